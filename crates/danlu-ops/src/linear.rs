//! `y = x w^T`, the projection of every layer.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

#[backend_extension(Flex, Autodiff)]
trait LinearOp: Backend {
    fn danlu_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// `x w^T` for `x: [n, inputs]` and `w: [outputs, inputs]` (the layout of PyTorch's `Linear`):
/// `[n, outputs]`.
///
/// # Panics
/// If the inner dimensions differ.
pub fn linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    assert_eq!(x.dims()[1], w.dims()[1], "linear: x {:?}, w {:?}", x.dims(), w.dims());
    if !on_cpu(&x.device()) {
        return composed(x, w);
    }
    Tensor::from_dispatch(Dispatch::danlu_linear(x.into_dispatch(), w.into_dispatch()))
}

fn composed(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    x.matmul(w.transpose())
}

impl LinearOp for Flex {
    fn danlu_linear(x: FlexTensor, w: FlexTensor) -> FlexTensor {
        forward(&x.to_contiguous(), &w.to_contiguous())
    }
}

impl<C: CheckpointStrategy> LinearOp for Autodiff<Flex, C> {
    fn danlu_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        tape::record::<C, _, 2>(
            "linear",
            [x, w],
            |[x, w], tracked| {
                let (x, w) = (x.to_contiguous(), w.to_contiguous());
                let y = forward(&x, &w);
                (y, tracked.then_some((x, w)))
            },
            |(x, w), grad, [want_x, want_w]| {
                let grad = grad.to_contiguous();
                let ([n, k], [m, _]) = (cpu::dims(&x), cpu::dims::<2>(&w));
                let g = Mat::new(cpu::values(&grad), m);
                let dx = want_x.then(|| {
                    let mut out = vec![0.0; n * k];
                    let w = Mat::new(cpu::values(&w), k);
                    gemm([n, m, k], g, w, &mut out, k, 0.0, Threads::All);
                    cpu::tensor(out, [n, k])
                });
                let dw = want_w.then(|| {
                    let mut out = vec![0.0; m * k];
                    let x = Mat::new(cpu::values(&x), k);
                    gemm([m, n, k], g.t(), x, &mut out, k, 0.0, Threads::All);
                    cpu::tensor(out, [m, k])
                });
                [dx, dw]
            },
        )
    }
}

fn forward(x: &FlexTensor, w: &FlexTensor) -> FlexTensor {
    let ([n, k], [m, _]) = (cpu::dims(x), cpu::dims::<2>(w));
    let mut out = vec![0.0; n * m];
    let (x, w) = (Mat::new(cpu::values(x), k), Mat::new(cpu::values(w), k).t());
    gemm([n, k, m], x, w, &mut out, m, 0.0, Threads::All);
    cpu::tensor(out, [n, m])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        check(
            &[[5, 7], [6, 7]],
            |v| linear(v[0].clone(), v[1].clone()),
            |v| composed(v[0].clone(), v[1].clone()),
        );
    }

    #[test]
    #[should_panic(expected = "linear: x [2, 3], w [4, 5]")]
    fn shapes_that_do_not_fit_are_named() {
        let d = crate::cpu_device();
        linear(Tensor::zeros([2, 3], &d), Tensor::zeros([4, 5], &d));
    }
}
