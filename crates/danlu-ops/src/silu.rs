//! `x * sigmoid(x)` (Elfwing et al., arXiv 1702.03118).

use crate::cpu;
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use rayon::prelude::*;

const CHUNK: usize = 16 * 1024;

#[backend_extension(Flex, Autodiff)]
trait SiluOp: Backend {
    fn danlu_silu(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// `x * sigmoid(x)`, element by element.
pub fn silu(x: Tensor<2>) -> Tensor<2> {
    if !on_cpu(&x.device()) {
        return composed(x);
    }
    Tensor::from_dispatch(Dispatch::danlu_silu(x.into_dispatch()))
}

fn composed(x: Tensor<2>) -> Tensor<2> {
    burn::tensor::activation::silu(x)
}

impl SiluOp for Flex {
    fn danlu_silu(x: FlexTensor) -> FlexTensor {
        forward(&x.to_contiguous())
    }
}

impl<C: CheckpointStrategy> SiluOp for Autodiff<Flex, C> {
    fn danlu_silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        tape::record::<C, _, 1>(
            "silu",
            [x],
            |[x], tracked| {
                let x = x.to_contiguous();
                (forward(&x), tracked.then_some(x))
            },
            |x, grad, _| [Some(backward(&x, &grad.to_contiguous()))],
        )
    }
}

/// Derivative of silu at `x`.
#[inline(always)]
pub(crate) fn slope(x: f32) -> f32 {
    let s = cpu::sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

fn forward(x: &FlexTensor) -> FlexTensor {
    let mut out = vec![0.0; cpu::values(x).len()];
    out.par_chunks_mut(CHUNK).zip(cpu::values(x).par_chunks(CHUNK)).for_each(|(out, x)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = x * cpu::sigmoid(x);
                }
            },
        );
    });
    cpu::tensor(out, cpu::dims::<2>(x))
}

fn backward(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let mut out = vec![0.0; cpu::values(x).len()];
    out.par_chunks_mut(CHUNK)
        .zip(cpu::values(x).par_chunks(CHUNK))
        .zip(cpu::values(grad).par_chunks(CHUNK))
        .for_each(|((out, x), grad)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    for i in 0..out.len() {
                        out[i] = grad[i] * slope(x[i]);
                    }
                },
            );
        });
    cpu::tensor(out, cpu::dims::<2>(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        check(&[[4, 9]], |v| silu(v[0].clone()), |v| composed(v[0].clone()));
    }
}
