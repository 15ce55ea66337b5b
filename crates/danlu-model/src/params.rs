//! Named parameters: what optimisers step, checkpoints save and imports fill.

use burn::tensor::{Device, Tensor, TensorData};
use danlu_core::Rng;
use danlu_ops::quant::{Arena, WeightFormat, Weights};
use std::sync::Arc;

/// One learnt tensor. It is kept as a matrix `[shape[0], the rest]` (a vector as `[1, n]`), which
/// is the form that every operation takes; `shape` is what files show.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name, dotted, as in the file.
    pub name: String,
    /// Shape in files.
    pub shape: Vec<usize>,
    /// The values; without meaning where they are frozen.
    pub tensor: Tensor<2>,
    /// The values in few bits, where they are kept in those alone. They cannot learn.
    pub frozen: Option<Arc<Weights>>,
    /// Rows of each of the matrices that are stacked in it, for what treats those apart; empty where it
    /// is one.
    pub stacked: Vec<usize>,
}

impl Parameter {
    /// A parameter of `shape` with the given row-major values.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn new(
        name: impl Into<String>,
        shape: &[usize],
        values: Vec<f32>,
        device: &Device,
    ) -> Self {
        let data = TensorData::new(values, matrix(shape));
        let tensor = Tensor::from_data(data, device);
        Self { name: name.into(), shape: shape.to_vec(), tensor, frozen: None, stacked: Vec::new() }
    }

    /// Every value the same.
    pub fn constant(name: impl Into<String>, shape: &[usize], value: f32, device: &Device) -> Self {
        Self::new(name, shape, vec![value; shape.iter().product()], device)
    }

    /// Normally distributed with the given standard deviation; if the stream is
    /// [still](Rng::still), without values until they are [set](Self::set).
    pub fn normal(
        name: impl Into<String>,
        shape: &[usize],
        std: f32,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        if rng.is_still() {
            let tensor = Tensor::zeros([1, 1], device);
            return Self {
                name: name.into(),
                shape: shape.to_vec(),
                tensor,
                frozen: None,
                stacked: Vec::new(),
            };
        }
        let values = (0..shape.iter().product()).map(|_| rng.normal() * std).collect();
        Self::new(name, shape, values, device)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is a matrix or more (weight decay applies) and not a vector of gains or biases.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }

    /// The values, row-major.
    pub fn values(&self) -> Vec<f32> {
        if let Some(frozen) = &self.frozen {
            return frozen.values();
        }
        self.tensor.to_data().try_into_vec().expect("parameters are f32")
    }

    /// Replaces the values; the shape stays.
    pub fn set(&mut self, values: Vec<f32>) {
        let device = self.tensor.device();
        assert_eq!(values.len(), self.len(), "{}", self.name);
        self.tensor = Tensor::from_data(TensorData::new(values, matrix(&self.shape)), &device);
        self.frozen = None;
    }

    /// Keeps the values as these weights alone.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn keep(&mut self, weights: Arc<Weights>) {
        assert_eq!(weights.shape(), matrix(&self.shape), "{}", self.name);
        self.frozen = Some(weights);
        self.tensor = Tensor::zeros([1, 1], &self.tensor.device());
    }

    /// Keeps the values in few bits alone.
    pub fn freeze(&mut self, format: WeightFormat, arena: &Arena) {
        let values = self.values();
        self.keep(Arc::new(Weights::new(&values, matrix(&self.shape), format, arena)));
    }

    /// Makes frozen values whole again, so that they can learn; what few bits lost stays lost.
    pub fn thaw(&mut self) {
        if let Some(frozen) = &self.frozen {
            self.set(frozen.values());
        }
    }

    /// The matrix, made for this call if it is frozen.
    pub fn whole(&self) -> Tensor<2> {
        match &self.frozen {
            Some(frozen) => danlu_ops::thaw(frozen, &self.tensor.device()),
            None => self.tensor.clone(),
        }
    }
}

/// `[rows, columns]` of the matrix that a tensor of `shape` is kept as.
pub fn matrix(shape: &[usize]) -> [usize; 2] {
    match shape {
        [] => [1, 1],
        [n] => [1, *n],
        [rows, rest @ ..] => [*rows, rest.iter().product()],
    }
}

/// Something with parameters. The order is fixed by the code and the same on every call.
pub trait Module {
    /// Every parameter.
    fn parameters(&self) -> Vec<&Parameter>;
    /// Every parameter, to change.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// Number of values in all parameters.
    fn size(&self) -> usize {
        self.parameters().iter().map(|p| p.len()).sum()
    }

    /// Makes every parameter that is kept in few bits whole again.
    fn thaw(&mut self) {
        self.parameters_mut().into_iter().for_each(Parameter::thaw);
    }

    /// Moves every parameter that can learn to `device`; with an autodiff device they become leaves that want a
    /// gradient.
    fn to_device(&mut self, device: &Device) {
        for p in self.parameters_mut().into_iter().filter(|p| p.frozen.is_none()) {
            let data = p.tensor.to_data();
            let tensor = Tensor::from_data(data, device);
            p.tensor = if device.is_autodiff() { tensor.require_grad() } else { tensor };
        }
    }
}

impl<M: Module + ?Sized> Module for &mut M {
    fn parameters(&self) -> Vec<&Parameter> {
        (**self).parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        (**self).parameters_mut()
    }
}
