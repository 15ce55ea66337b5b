use crate::arch::TransformerConfig;
use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::{Activation, Fused, Last};

/// SwiGLU feed-forward: `down(silu(gate(x)) * up(x))`, with gate and up as one matrix.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[2 * hidden, width]`: gate, then up.
    pub gate_up: Parameter,
    /// `[width, hidden]`.
    pub down: Parameter,
}

impl Mlp {
    /// Random weights; `down` starts smaller, for it writes to the residual stream.
    pub fn new(name: &str, c: &TransformerConfig, rng: &mut Rng, device: &Device) -> Self {
        let (inner, outer) = (c.init_std(), c.residual_std());
        Self {
            gate_up: Parameter::normal(
                format!("{name}.gate_up_proj.weight"),
                &[2 * c.hidden, c.width],
                inner,
                rng,
                device,
            ),
            down: Parameter::normal(
                format!("{name}.down_proj.weight"),
                &[c.width, c.hidden],
                outer,
                rng,
                device,
            ),
        }
    }

    /// `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let Last { x, weight, around } = self.branch(x);
        danlu_ops::linear_with(x, weight, around)
    }

    /// The same, but for the last projection.
    pub fn branch(&self, x: Tensor<2>) -> Last {
        let around = Fused { activation: Activation::Swiglu, ..Fused::default() };
        let x = danlu_ops::linear(x, self.gate_up.tensor.clone());
        Last { x, weight: self.down.tensor.clone(), around }
    }
}
