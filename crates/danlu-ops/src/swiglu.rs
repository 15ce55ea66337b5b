//! `silu(gate) * up`, the activation of the feed-forward block (Shazeer, arXiv 2002.05202).

use crate::cpu::{self, ROWS};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use rayon::prelude::*;

#[backend_extension(Flex, Autodiff)]
trait SwigluOp: Backend {
    fn danlu_swiglu(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// `silu(gate) * up` for `x: [n, 2 * hidden]` that holds gate, then up: `[n, hidden]`.
pub fn swiglu(x: Tensor<2>) -> Tensor<2> {
    assert_eq!(x.dims()[1] % 2, 0, "swiglu: x {:?} needs an even width", x.dims());
    if !on_cpu(&x.device()) {
        return composed(x);
    }
    Tensor::from_dispatch(Dispatch::danlu_swiglu(x.into_dispatch()))
}

fn composed(x: Tensor<2>) -> Tensor<2> {
    let hidden = x.dims()[1] / 2;
    let gate = x.clone().narrow(1, 0, hidden);
    burn::tensor::activation::silu(gate) * x.narrow(1, hidden, hidden)
}

impl SwigluOp for Flex {
    fn danlu_swiglu(x: FlexTensor) -> FlexTensor {
        forward(&x.to_contiguous())
    }
}

impl<C: CheckpointStrategy> SwigluOp for Autodiff<Flex, C> {
    fn danlu_swiglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        tape::record::<C, _, 1>(
            "swiglu",
            [x],
            |[x], tracked| {
                let x = x.to_contiguous();
                (forward(&x), tracked.then_some(x))
            },
            |x, grad, _| [Some(backward(&x, &grad.to_contiguous()))],
        )
    }
}

fn forward(x: &FlexTensor) -> FlexTensor {
    let [n, double] = cpu::dims(x);
    let hidden = double / 2;
    let mut out = vec![0.0; n * hidden];
    out.par_chunks_mut(ROWS * hidden).zip(cpu::values(x).par_chunks(ROWS * double)).for_each(
        |(out, x)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(double)) {
                        let (gate, up) = x.split_at(hidden);
                        for i in 0..hidden {
                            out[i] = gate[i] * cpu::sigmoid(gate[i]) * up[i];
                        }
                    }
                },
            );
        },
    );
    cpu::tensor(out, [n, hidden])
}

fn backward(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let [n, double] = cpu::dims(x);
    let hidden = double / 2;
    let mut dx = vec![0.0; n * double];
    dx.par_chunks_mut(ROWS * double)
        .zip(cpu::values(x).par_chunks(ROWS * double))
        .zip(cpu::values(grad).par_chunks(ROWS * hidden))
        .for_each(|((dx, x), grad)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    for ((dx, x), grad) in dx
                        .chunks_exact_mut(double)
                        .zip(x.chunks_exact(double))
                        .zip(grad.chunks_exact(hidden))
                    {
                        let (gate, up) = x.split_at(hidden);
                        let (dgate, dup) = dx.split_at_mut(hidden);
                        for i in 0..hidden {
                            let s = cpu::sigmoid(gate[i]);
                            dgate[i] = grad[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                            dup[i] = grad[i] * gate[i] * s;
                        }
                    }
                },
            );
        });
    cpu::tensor(dx, [n, double])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        for n in [1, 70] {
            check(&[[n, 12]], |v| swiglu(v[0].clone()), |v| composed(v[0].clone()));
        }
    }
}
