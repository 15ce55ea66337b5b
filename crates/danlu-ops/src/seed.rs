//! A number whose backward pass starts a gradient of ones, or of given values: what measuring and
//! recomputation begin a backward pass with.

use crate::pool::{Buffer, tensor};
use crate::{cpu, on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

#[backend_extension(Flex, Autodiff)]
trait SeedOp: Backend {
    fn danlu_seed(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn danlu_seed_with(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Zero, `[1, 1]`, whose gradient with respect to `x` is 1 everywhere.
pub fn seed(x: Tensor<2>) -> Tensor<2> {
    if !on_cpu(&x.device()) {
        let sum = x.sum().reshape([1, 1]);
        return sum.clone() - sum.detach();
    }
    Tensor::from_dispatch(Dispatch::danlu_seed(x.into_dispatch()))
}

/// Zero, `[1, 1]`, whose gradient with respect to `x` is `grad`, of the same shape and without
/// gradient record.
///
/// # Panics
/// If the shapes differ.
pub fn seed_with(x: Tensor<2>, grad: Tensor<2>) -> Tensor<2> {
    assert_eq!(x.dims(), grad.dims(), "seed_with: gradient");
    if !on_cpu(&x.device()) {
        let sum = (x * grad).sum().reshape([1, 1]);
        return sum.clone() - sum.detach();
    }
    Tensor::from_dispatch(Dispatch::danlu_seed_with(x.into_dispatch(), grad.into_dispatch()))
}

impl SeedOp for Flex {
    fn danlu_seed(_: FlexTensor) -> FlexTensor {
        tensor(vec![0.0], [1, 1])
    }

    fn danlu_seed_with(_: FlexTensor, _: FlexTensor) -> FlexTensor {
        tensor(vec![0.0], [1, 1])
    }
}

impl<C: CheckpointStrategy> SeedOp for Autodiff<Flex, C> {
    fn danlu_seed(x: FloatTensor<Self>) -> FloatTensor<Self> {
        tape::record::<C, _, 1>(
            "seed",
            [x],
            |[x], tracked| (Flex::danlu_seed(x.clone()), tracked.then(|| cpu::dims::<2>(&x))),
            |[n, width], _, _| {
                let mut ones = Buffer::any(n * width);
                ones.fill(1.0);
                [Some(tensor(ones, [n, width]))]
            },
        )
    }

    fn danlu_seed_with(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let grad = grad.into_primitive();
        tape::record::<C, _, 1>(
            "seed",
            [x],
            |[x], tracked| (Flex::danlu_seed(x), tracked.then_some(grad)),
            |grad, _, _| [Some(grad)],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_one_everywhere() {
        let device = crate::cpu_device().autodiff();
        let x = Tensor::<2>::zeros([3, 2], &device).require_grad();
        let grads = seed(x.clone()).backward();
        let grad = x.grad(&grads).expect("tracked").into_data();
        assert_eq!(crate::testing::floats(grad), vec![1.0; 6]);
    }

    #[test]
    fn the_gradient_is_what_is_given() {
        let plain = crate::cpu_device();
        let x = Tensor::<2>::zeros([1, 3], &plain.clone().autodiff()).require_grad();
        let given = Tensor::<2>::from_data([[2.0, -1.0, 0.5]], &plain);
        let grads = seed_with(x.clone(), given).backward();
        let grad = x.grad(&grads).expect("tracked").into_data();
        assert_eq!(crate::testing::floats(grad), vec![2.0, -1.0, 0.5]);
    }
}
