use super::Lora;
use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::{Activation, Fused, Last, Norm};

/// `x w^T`, plus a bias if it has one, plus what its adapters add.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Parameter,
    /// `[outputs]`.
    pub bias: Option<Parameter>,
    /// Low-rank additions to the weight, in the order in which they were learnt.
    pub adapters: Vec<Lora>,
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
        Self { weight, bias: None, adapters: Vec::new() }
    }

    /// With a bias of zeros.
    pub fn biased(self, device: &Device) -> Self {
        let name = self.weight.name.replace(".weight", ".bias");
        let bias = Parameter::constant(name, &self.weight.shape[..1], 0.0, device);
        Self { bias: Some(bias), ..self }
    }

    /// Whose weight is several matrices, one on the other, of so many rows each.
    pub(super) fn stacked(mut self, rows: &[usize]) -> Self {
        self.weight.stacked = rows.to_vec();
        self
    }

    /// With a bias of zeros, if it is to have one.
    pub fn biased_if(self, has: bool, device: &Device) -> Self {
        if has { self.biased(device) } else { self }
    }

    /// `[n, inputs]` to `[n, outputs]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.run(x, Activation::None, None)
    }

    /// `f(x) w^T + bias + residual`, and the adapters. A gated activation takes `x` twice as wide.
    pub fn run(
        &self,
        x: Tensor<2>,
        activation: Activation,
        residual: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let bias = self.bias.as_ref().map(|b| b.tensor.clone());
        let weight = self.weight.tensor.clone();
        if self.adapters.is_empty() && self.weight.frozen.is_none() {
            return danlu_ops::linear_with(x, weight, Fused { activation, bias, residual });
        }
        // The adapters read what the activation gives, so it is made once for all.
        let x = match activation {
            Activation::None => x,
            _ => danlu_ops::activate(x, activation),
        };
        if self.adapters.iter().any(|a| a.magnitude.is_some()) {
            let y = Lora::directed(&self.adapters, x, self.weight.whole());
            return [bias, residual].into_iter().flatten().fold(y, |y, more| y + more);
        }
        if let Some(frozen) = &self.weight.frozen {
            let y = danlu_ops::frozen_linear(x.clone(), frozen);
            let y = [bias, residual].into_iter().flatten().fold(y, |y, more| y + more);
            return if self.adapters.is_empty() { y } else { Lora::add(&self.adapters, x, y) };
        }
        let around = Fused { bias, residual, ..Fused::default() };
        let y = danlu_ops::linear_with(x.clone(), weight, around);
        Lora::add(&self.adapters, x, y)
    }

    /// As the last projection of a branch of the residual stream, after an activation. Without
    /// adapters, which [`Self::after`] knows of.
    pub fn last(&self, x: Tensor<2>, activation: Activation) -> Last {
        let bias = self.bias.as_ref().map(|b| b.tensor.clone());
        Last {
            x,
            weight: self.weight.tensor.clone(),
            around: Fused { activation, bias, residual: None },
        }
    }

    /// `stream + self(f(branch(norm(stream))))`, which costs the residual stream no pass of its own
    /// where there is no adapter.
    pub fn after(
        &self,
        stream: Tensor<2>,
        norm: Norm,
        activation: Activation,
        branch: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        if self.adapters.is_empty() && self.weight.frozen.is_none() {
            return danlu_ops::residual(stream, norm, |x| self.last(branch(x), activation));
        }
        let inner = branch(norm.forward(stream.clone()));
        self.run(inner, activation, Some(stream))
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
