//! `x + linear(f(norm(x)))`, the shape of every half of a transformer's block.

use crate::linear::{Fused, linear_with};
use crate::{layer_norm, rms_norm};
use burn::tensor::Tensor;

/// A normalisation with its learnt tensors, each `[1, width]`.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "made and used up at once")]
pub enum Norm {
    /// See [`crate::rms_norm()`].
    Rms {
        /// Gains.
        gain: Tensor<2>,
        /// Added to the mean square.
        eps: f32,
    },
    /// See [`crate::layer_norm()`].
    Layer {
        /// Gains.
        gain: Tensor<2>,
        /// Added at the end.
        bias: Tensor<2>,
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    /// `[n, width]` to `[n, width]`.
    pub fn forward(self, x: Tensor<2>) -> Tensor<2> {
        self.run(x, false)
    }

    fn run(self, x: Tensor<2>, onto: bool) -> Tensor<2> {
        match self {
            Self::Rms { gain, eps } => rms_norm::run(x, gain, eps, onto),
            Self::Layer { gain, bias, eps } => layer_norm::run(x, gain, bias, eps, onto),
        }
    }
}

/// The last projection of a branch: what goes into it, its weight, and what stands around it (the
/// residual is added by [`residual()`]).
#[derive(Debug, Clone)]
pub struct Last {
    /// `[n, inputs]`.
    pub x: Tensor<2>,
    /// `[outputs, inputs]`.
    pub weight: Tensor<2>,
    /// Bias and activation.
    pub around: Fused,
}

/// `x + last(branch(norm(x)))` for `x: [n, width]`.
///
/// Forward, the sum is part of the last projection; backward, the gradient that reaches `x` along
/// the sum is added in the norm's own pass. So the residual stream costs no pass of its own.
pub fn residual(x: Tensor<2>, norm: Norm, branch: impl FnOnce(Tensor<2>) -> Last) -> Tensor<2> {
    let Last { x: inner, weight, around } = branch(norm.run(x.clone(), true));
    linear_with(inner, weight, Fused { residual: Some(x), ..around })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        for layer in [false, true] {
            let norm = |v: &[Tensor<2>]| match layer {
                false => Norm::Rms { gain: v[1].clone(), eps: 1e-6 },
                true => Norm::Layer { gain: v[1].clone(), bias: v[2].clone(), eps: 1e-5 },
            };
            // Twice, so that the inner stream is no leaf; every input is used in both cases.
            let twice = |v: &[Tensor<2>], half: &dyn Fn(Tensor<2>) -> Tensor<2>| {
                half(half(v[0].clone())) + v[2].clone()
            };
            check(
                &[[70, 6], [1, 6], [1, 6], [6, 6]],
                |v| {
                    twice(v, &|x| {
                        residual(x, norm(v), |x| Last {
                            x,
                            weight: v[3].clone(),
                            around: Fused { activation: Activation::GeluTanh, ..Fused::default() },
                        })
                    })
                },
                |v| {
                    twice(v, &|x: Tensor<2>| {
                        let inner = norm(v).forward(x.clone());
                        x + Activation::GeluTanh.composed(inner).matmul(v[3].clone().transpose())
                    })
                },
            );
        }
    }
}
