//! A projection by a weight that is kept in few bits and does not learn (QLoRA, arXiv 2305.14314).
//!
//! The weight becomes single precision for the product and is gone after it, forward and backward
//! alike, so only its blocks are in memory between.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::pool::{Buffer, tensor};
use crate::quant::Weights;
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, TensorData};
use std::sync::Arc;

#[backend_extension(Flex, Autodiff)]
trait FrozenLinearOp: Backend {
    fn danlu_frozen_linear(x: FloatTensor<Self>, w: Arc<Weights>) -> FloatTensor<Self>;
}

/// `x w^T` for `x: [n, inputs]` and a weight `[outputs, inputs]` in any format: `[n, outputs]`.
///
/// # Panics
/// If the inner dimensions differ.
pub fn frozen_linear(x: Tensor<2>, w: &Arc<Weights>) -> Tensor<2> {
    assert_eq!(x.dims()[1], w.shape()[1], "frozen_linear: x {:?}, w {:?}", x.dims(), w.shape());
    if !on_cpu(&x.device()) {
        return composed(x, w);
    }
    Tensor::from_dispatch(Dispatch::danlu_frozen_linear(x.into_dispatch(), w.clone()))
}

/// The weight in single precision, `[outputs, inputs]`.
pub fn thaw(w: &Weights, device: &burn::tensor::Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(w.values(), w.shape()), device)
}

/// The rows of `w` that `ids` name, `[n, inputs]`: what [`embedding`](crate::embedding) gives of a
/// table that is kept in few bits.
///
/// # Panics
/// If an id is no row.
pub fn frozen_rows(w: &Weights, ids: &[u32], device: &burn::tensor::Device) -> Tensor<2> {
    let width = w.shape()[1];
    let mut out = vec![0.0; ids.len() * width];
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        w.row(*id as usize, out);
    }
    Tensor::from_data(TensorData::new(out, [ids.len(), width]), device)
}

pub(crate) fn composed(x: Tensor<2>, w: &Weights) -> Tensor<2> {
    let w = thaw(w, &x.device());
    x.matmul(w.transpose())
}

/// The weight in single precision, row-major.
fn values(w: &Weights) -> Buffer {
    let [outputs, inputs] = w.shape();
    let mut out = Buffer::any(outputs * inputs);
    w.write_to(&mut out);
    out
}

impl FrozenLinearOp for Flex {
    fn danlu_frozen_linear(x: FlexTensor, w: Arc<Weights>) -> FlexTensor {
        forward(&x.to_contiguous(), &w)
    }
}

impl<C: CheckpointStrategy> FrozenLinearOp for Autodiff<Flex, C> {
    fn danlu_frozen_linear(x: FloatTensor<Self>, w: Arc<Weights>) -> FloatTensor<Self> {
        tape::record::<C, _, 1>(
            "frozen linear",
            [x],
            |[x], tracked| (forward(&x, &w), tracked.then(|| w.clone())),
            |w, up, _| {
                let [n, outputs] = cpu::dims(&up.grad);
                let inputs = w.shape()[1];
                let mut out = Buffer::any(n * inputs);
                let (g, w) = (Mat::new(cpu::values(&up.grad), outputs), values(&w));
                let w = Mat::new(&w, inputs);
                gemm([n, outputs, inputs], g, w, &mut out, inputs, 0.0, Threads::All);
                [Some(tensor(out, [n, inputs]))]
            },
        )
    }
}

fn forward(x: &FlexTensor, w: &Weights) -> FlexTensor {
    let ([n, inputs], [outputs, _]) = (cpu::dims(x), w.shape());
    let mut out = Buffer::any(n * outputs);
    let (x, w) = (Mat::new(cpu::values(x), inputs), values(w));
    gemm([n, inputs, outputs], x, Mat::new(&w, inputs).t(), &mut out, outputs, 0.0, Threads::All);
    tensor(out, [n, outputs])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Arena, WeightFormat};
    use crate::testing::check;

    fn weights(format: WeightFormat) -> Arc<Weights> {
        let values: Vec<f32> = (0..6 * 40).map(|i| ((i * 37 % 101) as f32 - 50.0) / 60.0).collect();
        Arc::new(Weights::new(&values, [6, 40], format, &Arena::default()))
    }

    #[test]
    fn kernel_composed_and_differences_agree() {
        for (_, format) in WeightFormat::ALL {
            let w = weights(format);
            let by = |v: &[Tensor<2>]| frozen_linear(v[0].clone(), &w);
            check(&[[5, 40]], by, |v| composed(v[0].clone(), &w));
        }
    }

    #[test]
    fn few_bits_are_near_the_weight() {
        let x = Tensor::<2>::ones([1, 40], &crate::cpu_device());
        let of = |f| -> Vec<f32> {
            frozen_linear(x.clone(), &weights(f)).into_data().try_into_vec().expect("f32")
        };
        let exact = of(WeightFormat::F32);
        for (format, near) in [(WeightFormat::Q8_0, 0.05), (WeightFormat::Q4_0, 1.0)] {
            for (a, b) in of(format).iter().zip(&exact) {
                assert!((a - b).abs() < near, "{format:?}: {a} against {b}");
            }
            assert!(weights(format).bytes() < weights(WeightFormat::F32).bytes() / 2);
        }
    }

    #[test]
    #[should_panic(expected = "frozen_linear: x [2, 3], w [6, 40]")]
    fn shapes_that_do_not_fit_are_named() {
        frozen_linear(Tensor::zeros([2, 3], &crate::cpu_device()), &weights(WeightFormat::F32));
    }
}
