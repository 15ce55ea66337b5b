use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;

/// `x w^T` without bias.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Parameter,
}

impl Linear {
    /// Normally distributed weights.
    pub fn new(
        name: &str,
        [outputs, inputs]: [usize; 2],
        std: f32,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let weight =
            Parameter::normal(format!("{name}.weight"), &[outputs, inputs], std, rng, device);
        Self { weight }
    }

    /// `[n, inputs]` to `[n, outputs]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        danlu_ops::linear(x, self.weight.tensor.clone())
    }
}
