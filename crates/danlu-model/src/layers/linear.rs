use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::{Activation, Fused, Last};

/// `x w^T`, plus a bias if it has one.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Parameter,
    /// `[outputs]`.
    pub bias: Option<Parameter>,
}

impl Linear {
    /// Normally distributed weights, no bias.
    pub fn new(
        name: &str,
        [outputs, inputs]: [usize; 2],
        std: f32,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let weight =
            Parameter::normal(format!("{name}.weight"), &[outputs, inputs], std, rng, device);
        Self { weight, bias: None }
    }

    /// With a bias of zeros.
    pub fn biased(self, device: &Device) -> Self {
        let name = self.weight.name.replace(".weight", ".bias");
        let bias = Parameter::constant(name, &self.weight.shape[..1], 0.0, device);
        Self { bias: Some(bias), ..self }
    }

    /// `[n, inputs]` to `[n, outputs]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let bias = self.bias.as_ref().map(|b| b.tensor.clone());
        danlu_ops::linear_with(x, self.weight.tensor.clone(), Fused { bias, ..Fused::default() })
    }

    /// As the last projection of a branch of the residual stream, after an activation.
    pub fn last(&self, x: Tensor<2>, activation: Activation) -> Last {
        let bias = self.bias.as_ref().map(|b| b.tensor.clone());
        Last {
            x,
            weight: self.weight.tensor.clone(),
            around: Fused { activation, bias, residual: None },
        }
    }

    /// Weight and bias.
    pub fn parameters(&self) -> Vec<&Parameter> {
        std::iter::once(&self.weight).chain(&self.bias).collect()
    }

    /// Weight and bias, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        std::iter::once(&mut self.weight).chain(&mut self.bias).collect()
    }
}
