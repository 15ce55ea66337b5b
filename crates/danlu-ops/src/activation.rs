//! Activations: what lies between the two projections of a feed-forward block, element by element
//! (or gate by value), with their derivatives. [`crate::Fused`] runs them inside a projection.

use crate::cpu;
use burn::tensor::{Tensor, activation};
use rayon::prelude::*;

/// What a projection does to its input first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x * sigmoid(x)` (Elfwing et al., arXiv 1702.03118).
    Silu,
    /// Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415) with the error function:
    /// what PyTorch's `gelu` computes if nothing else is asked for.
    Gelu,
    /// The same by the approximation with `tanh`, as in GPT-2.
    GeluTanh,
    /// `silu(gate) * up` for rows that hold gate, then up; half as wide (Shazeer, arXiv
    /// 2002.05202).
    Swiglu,
}

/// Elements that one task handles.
const CHUNK: usize = 16 * 1024;

/// `sqrt(2 / pi)` and the cubic coefficient of the approximation with `tanh`.
const GELU: [f32; 2] = [0.797_884_6, 0.044_715];

impl Activation {
    /// Width of the output for an input of `width`.
    ///
    /// # Panics
    /// If a gated activation gets an odd width.
    pub fn output(self, width: usize) -> usize {
        if self != Self::Swiglu {
            return width;
        }
        assert_eq!(width % 2, 0, "swiglu: x of width {width} needs an even width");
        width / 2
    }

    /// In plain Burn operations.
    pub(crate) fn composed(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::None => x,
            Self::Silu => activation::silu(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => {
                let cubic = x.clone().powf_scalar(3.0).mul_scalar(GELU[1]);
                let inner = (x.clone() + cubic).mul_scalar(GELU[0]);
                x * inner.tanh().add_scalar(1.0).mul_scalar(0.5)
            }
            Self::Swiglu => {
                let hidden = x.dims()[1] / 2;
                let gate = x.clone().narrow(1, 0, hidden);
                activation::silu(gate) * x.narrow(1, hidden, hidden)
            }
        }
    }

    /// `out = f(x)`; `width` is that of the input's rows.
    pub(crate) fn forward(self, x: &[f32], width: usize, out: &mut [f32]) {
        match self {
            Self::None => map(x, out, |x| x),
            Self::Silu => map(x, out, |x| x * cpu::sigmoid(x)),
            Self::Gelu => map(x, out, |x| x * normal_share(x)),
            Self::GeluTanh => map(x, out, |x| x * cpu::sigmoid(tanh_argument(x))),
            Self::Swiglu => swiglu_forward(x, width, out),
        }
    }

    /// From the input `x` and the gradient of the output in `grad`: the gradient of the input
    /// replaces `x`, and the output, made again, replaces `grad`.
    pub(crate) fn backward(self, x: &mut [f32], width: usize, grad: &mut [f32]) {
        match self {
            Self::None => map2(x, grad, |x, g| (g, x)),
            Self::Silu => map2(x, grad, |x, g| {
                let s = cpu::sigmoid(x);
                (g * s * (1.0 + x * (1.0 - s)), x * s)
            }),
            Self::Gelu => map2(x, grad, |x, g| {
                let share = normal_share(x);
                let density = 0.398_942_3 * cpu::exp(-0.5 * x * x);
                (g * (share + x * density), x * share)
            }),
            Self::GeluTanh => map2(x, grad, |x, g| {
                let s = cpu::sigmoid(tanh_argument(x));
                let slope = 2.0 * GELU[0] * (1.0 + 3.0 * GELU[1] * x * x);
                (g * s * (1.0 + x * (1.0 - s) * slope), x * s)
            }),
            Self::Swiglu => swiglu_backward(x, width, grad),
        }
    }
}

/// Twice the argument of `tanh`: `1 + tanh(a) = 2 sigmoid(2 a)`.
#[inline(always)]
fn tanh_argument(x: f32) -> f32 {
    2.0 * GELU[0] * (x + GELU[1] * x * x * x)
}

/// Share of a normal distribution below `x`.
#[inline(always)]
fn normal_share(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

/// The error function by the rational approximation that XLA and Eigen use, in a form that
/// vectorises.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_4e-5;
    let p = p * s - 7.349_906_5e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329_2e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = f(x);
                }
            },
        );
    });
}

fn map2(x: &mut [f32], grad: &mut [f32], f: impl Fn(f32, f32) -> (f32, f32) + Sync) {
    x.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK)).for_each(|(x, grad)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (x, grad) in x.iter_mut().zip(grad) {
                    (*x, *grad) = f(*x, *grad);
                }
            },
        );
    });
}

fn swiglu_forward(x: &[f32], double: usize, out: &mut [f32]) {
    let hidden = double / 2;
    let rows = cpu::rows_per_task(double);
    out.par_chunks_mut(rows * hidden).zip(x.par_chunks(rows * double)).for_each(|(out, x)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(double)) {
                    let (gate, up) = x.split_at(hidden);
                    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                        *out = gate * cpu::sigmoid(gate) * up;
                    }
                }
            },
        );
    });
}

fn swiglu_backward(x: &mut [f32], double: usize, grad: &mut [f32]) {
    let hidden = double / 2;
    let rows = cpu::rows_per_task(double);
    x.par_chunks_mut(rows * double).zip(grad.par_chunks_mut(rows * hidden)).for_each(
        |(x, grad)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    for (x, grad) in x.chunks_exact_mut(double).zip(grad.chunks_exact_mut(hidden)) {
                        let (gate, up) = x.split_at_mut(hidden);
                        for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                            let s = cpu::sigmoid(*gate);
                            let silu = *gate * s;
                            let (g, u) = (*grad, *up);
                            *grad = silu * u;
                            *up = g * silu;
                            *gate = g * u * s * (1.0 + *gate * (1.0 - s));
                        }
                    }
                },
            );
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_close_over_its_range() {
        for i in -500..500 {
            let x = i as f64 * 0.01;
            // By the trapezium rule on the definition.
            let n = 2000;
            let f = |t: f64| (-t * t).exp();
            let h = x / n as f64;
            let inner: f64 = (1..n).map(|k| f(k as f64 * h)).sum();
            let want = (inner + 0.5 * (f(0.0) + f(x))) * h * 2.0 / std::f64::consts::PI.sqrt();
            let got = erf(x as f32) as f64;
            assert!((got - want).abs() < 5e-7, "erf({x}): {got}, not {want}");
        }
    }
}
