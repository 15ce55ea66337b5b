use crate::params::Parameter;
use burn::tensor::{Device, Tensor};

/// Root-mean-square norm with a learnt gain.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Parameter,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// Gains of 1.
    pub fn new(name: &str, width: usize, eps: f32, device: &Device) -> Self {
        let weight = Parameter::constant(format!("{name}.weight"), &[width], 1.0, device);
        Self { weight, eps }
    }

    /// `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        danlu_ops::rms_norm(x, self.weight.tensor.clone(), self.eps)
    }
}
