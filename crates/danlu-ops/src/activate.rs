//! Activations where no projection follows; [`crate::linear_with`] has both in one.

use crate::activation::Activation;
use crate::cpu;
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

#[backend_extension(Flex, Autodiff)]
trait ActivateOp: Backend {
    fn danlu_activate(x: FloatTensor<Self>, f: Activation) -> FloatTensor<Self>;
}

/// `f(x)` for `x: [n, width]`: `[n, f.output(width)]`.
pub fn activate(x: Tensor<2>, f: Activation) -> Tensor<2> {
    f.output(x.dims()[1]);
    if !on_cpu(&x.device()) {
        return f.composed(x);
    }
    Tensor::from_dispatch(Dispatch::danlu_activate(x.into_dispatch(), f))
}

/// `x * sigmoid(x)`, element by element.
pub fn silu(x: Tensor<2>) -> Tensor<2> {
    activate(x, Activation::Silu)
}

/// `silu(gate) * up` for `x: [n, 2 * hidden]` that holds gate, then up: `[n, hidden]`.
pub fn swiglu(x: Tensor<2>) -> Tensor<2> {
    activate(x, Activation::Swiglu)
}

impl ActivateOp for Flex {
    fn danlu_activate(x: FlexTensor, f: Activation) -> FlexTensor {
        forward(&x.to_contiguous(), f)
    }
}

impl<C: CheckpointStrategy> ActivateOp for Autodiff<Flex, C> {
    fn danlu_activate(x: FloatTensor<Self>, f: Activation) -> FloatTensor<Self> {
        tape::record::<C, _, 1>(
            "activation",
            [x],
            |[x], tracked| (forward(&x, f), tracked.then_some((x, f))),
            |(mut x, f), up, _| {
                let [_, width] = cpu::dims(&x);
                let mut grad = up.grad;
                f.backward(cpu::values_mut(&mut x), width, cpu::values_mut(&mut grad));
                [Some(x)]
            },
        )
    }
}

fn forward(x: &FlexTensor, f: Activation) -> FlexTensor {
    let [n, width] = cpu::dims(x);
    let to = f.output(width);
    let mut out = Buffer::any(n * to);
    f.forward(cpu::values(x), width, &mut out);
    tensor(out, [n, to])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        for f in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Swiglu] {
            for n in [1, 70] {
                check(&[[n, 12]], |v| activate(v[0].clone(), f), |v| f.composed(v[0].clone()));
            }
        }
    }

    #[test]
    #[should_panic(expected = "swiglu: x of width 3")]
    fn an_odd_width_is_named() {
        swiglu(Tensor::zeros([2, 3], &crate::cpu_device()));
    }
}
