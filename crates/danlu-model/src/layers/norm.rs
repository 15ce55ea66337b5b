use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_ops::Norm;

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
        self.op().forward(x)
    }

    /// The operation with its tensors.
    pub fn op(&self) -> Norm {
        Norm::Rms { gain: self.weight.tensor.clone(), eps: self.eps }
    }
}

/// Layer norm with a learnt gain and bias.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[width]`.
    pub weight: Parameter,
    /// `[width]`.
    pub bias: Parameter,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// Gains of 1, biases of 0.
    pub fn new(name: &str, width: usize, eps: f32, device: &Device) -> Self {
        Self {
            weight: Parameter::constant(format!("{name}.weight"), &[width], 1.0, device),
            bias: Parameter::constant(format!("{name}.bias"), &[width], 0.0, device),
            eps,
        }
    }

    /// `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.op().forward(x)
    }

    /// The operation with its tensors.
    pub fn op(&self) -> Norm {
        let (gain, bias) = (self.weight.tensor.clone(), self.bias.tensor.clone());
        Norm::Layer { gain, bias, eps: self.eps }
    }

    /// Gain and bias.
    pub fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.weight, &self.bias]
    }

    /// Gain and bias, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.weight, &mut self.bias]
    }
}
