use super::Linear;
use crate::arch::TransformerConfig;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::Activation;

/// SwiGLU feed-forward: `down(silu(gate(x)) * up(x))`, with gate and up as one matrix.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[2 * hidden, width]`: gate, then up.
    pub gate_up: Linear,
    /// `[width, hidden]`.
    pub down: Linear,
}

impl Mlp {
    /// Random weights; `down` starts smaller, for it writes to the residual stream.
    pub fn new(name: &str, c: &TransformerConfig, rng: &mut Rng, device: &Device) -> Self {
        let (inner, outer) = (c.init_std(), c.residual_std());
        let (up, down) = (format!("{name}.gate_up_proj"), format!("{name}.down_proj"));
        let gate_up = Linear::new(&up, [2 * c.hidden, c.width], inner, rng, device);
        let gate_up = gate_up.stacked(&[c.hidden, c.hidden]);
        let down = Linear::new(&down, [c.width, c.hidden], outer, rng, device);
        Self {
            gate_up: gate_up.biased_if(c.mlp_bias, device),
            down: down.biased_if(c.mlp_bias, device),
        }
    }

    /// `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.run(self.gate_up.forward(x), ACTIVATION, None)
    }
}

/// Between the two projections of the feed-forward.
pub(super) const ACTIVATION: Activation = Activation::Swiglu;
