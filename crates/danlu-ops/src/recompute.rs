//! A part of a model of which only the inputs are kept for the backward pass, which runs the part
//! again (Chen et al., arXiv 1604.06174).
//!
//! The backward pass makes leaves of the inputs, runs the part on them with gradients recorded, and
//! goes back through it from the gradient that reached its output. Both passes run the same kernels
//! on the same numbers, so every gradient has the bits that it would have had without this.

use crate::seed::seed_with;
use crate::tape::Upstream;
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{GradientCheckpointingStrategy, Tensor};
use std::sync::Arc;

type Part<const N: usize> = Arc<dyn Fn([Tensor<2>; N]) -> Tensor<2> + Send + Sync>;

/// What the backward pass begins with.
#[derive(Clone)]
struct Kept<const N: usize> {
    inputs: [FlexTensor; N],
    part: Part<N>,
}

impl<const N: usize> std::fmt::Debug for Kept<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

/// `part(inputs)`, a matrix. Nothing that `part` makes outlives the call but its result; the
/// backward pass calls it again. So it must depend on its inputs alone, and hold no tensor that
/// records gradients. The first input is the stream that a [`crate::residual()`] in the part may
/// begin with.
///
/// Where no gradients are recorded, and on devices other than the CPU, it is `part` itself.
pub fn recompute<const N: usize>(
    inputs: [Tensor<2>; N],
    part: impl Fn([Tensor<2>; N]) -> Tensor<2> + Send + Sync + 'static,
) -> Tensor<2> {
    let strategies: Vec<_> =
        inputs.iter().filter_map(Tensor::gradient_checkpointing_strategy).collect();
    let ours = strategies.iter().all(|&s| s == GradientCheckpointingStrategy::Disabled);
    if strategies.is_empty() || !ours || !inputs.iter().all(|t| on_cpu(&t.device())) {
        return part(inputs);
    }
    let part: Part<N> = Arc::new(part);
    let tracked = inputs.map(|t| {
        t.autodiff().try_into_primitive::<Autodiff<Flex>>().expect("on the CPU, with autodiff")
    });
    let out = tape::record::<NoCheckpointing, _, N>(
        "recompute",
        tracked,
        |inputs, tracked| {
            let y = plain_of(part(inputs.each_ref().map(|t| tensor_of(t.clone()))));
            (y, tracked.then_some(Kept { inputs, part }))
        },
        again::<N>,
    );
    Tensor::from_primitive::<Autodiff<Flex>>(out)
}

/// Runs the part and goes back through it.
fn again<const N: usize>(
    Kept { inputs, part }: Kept<N>,
    up: Upstream,
    wanted: [bool; N],
) -> [Option<FlexTensor>; N] {
    let mut wants = wanted.into_iter();
    let leaves = inputs.map(|t| {
        let leaf = tensor_of(t).autodiff();
        if wants.next() == Some(true) { leaf.require_grad() } else { leaf }
    });
    let mut given = leaves.clone();
    if let Some(first) = given.first_mut() {
        *first = passed(first.clone());
    }
    let mut grads = seed_with(part(given), tensor_of(up.grad)).backward();
    let mut wants = wanted.into_iter();
    leaves.map(|leaf| {
        (wants.next() == Some(true)).then(|| {
            let grad = leaf.grad_remove(&mut grads);
            plain_of(grad.unwrap_or_else(|| leaf.inner().zeros_like()))
        })
    })
}

/// `x`, no longer a leaf: what is recorded onto a leaf would add up its gradients in a pass and
/// memory of their own.
fn passed(x: Tensor<2>) -> Tensor<2> {
    let x = x.try_into_primitive::<Autodiff<Flex>>().expect("made above");
    let out = tape::record::<NoCheckpointing, _, 1>(
        "recompute",
        [x],
        |[x], tracked| (x, tracked.then_some(())),
        |(), up, _| [Some(up.grad)],
    );
    Tensor::from_primitive::<Autodiff<Flex>>(out)
}

fn tensor_of(t: FlexTensor) -> Tensor<2> {
    Tensor::from_primitive::<Flex>(t)
}

fn plain_of(t: Tensor<2>) -> FlexTensor {
    t.try_into_primitive::<Flex>().expect("on the CPU, without autodiff")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, floats};
    use crate::{Activation, Fused, Last, Norm, residual};

    /// A norm, a projection and a residual, as in a transformer's block.
    fn part([x, gain, w]: [Tensor<2>; 3]) -> Tensor<2> {
        residual(x, Norm::Rms { gain, eps: 1e-6 }, |x| Last {
            x,
            weight: w,
            around: Fused { activation: Activation::GeluTanh, ..Fused::default() },
        })
    }

    fn inputs(v: &[Tensor<2>]) -> [Tensor<2>; 3] {
        [v[0].clone(), v[1].clone(), v[2].clone()]
    }

    #[test]
    fn kernel_composed_and_differences_agree() {
        check(&[[70, 6], [1, 6], [6, 6]], |v| recompute(inputs(v), part), |v| part(inputs(v)));
    }

    #[test]
    fn gradients_have_the_same_bits_even_one_inside_the_other() {
        let device = crate::cpu_device().autodiff();
        let leaf = |dims: [usize; 2], step: f32| {
            let values: Vec<f32> =
                (0..dims[0] * dims[1]).map(|i| (i as f32 * step).sin()).collect();
            let data = burn::tensor::TensorData::new(values, dims);
            Tensor::<2>::from_data(data, &device).require_grad()
        };
        let run = |f: fn([Tensor<2>; 3]) -> Tensor<2>| {
            let leaves = [leaf([70, 6], 0.7), leaf([1, 6], 0.3), leaf([6, 6], 1.1)];
            // Twice, so that one of the streams is no leaf and the weights have two gradients each.
            let [x, gain, w] = leaves.clone();
            let y = f([f([x, gain.clone(), w.clone()]), gain, w]);
            let grads = (y.clone() * y).sum().backward();
            leaves.map(|l| {
                let grad = floats(l.grad(&grads).expect("tracked").into_data());
                grad.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        };
        let want = run(part);
        assert_eq!(run(|v| recompute(v, part)), want);
        assert_eq!(run(|v| recompute(v, |v| recompute(v, part))), want);
    }

    #[test]
    fn what_wants_no_gradient_gets_none() {
        let device = crate::cpu_device();
        let ones = |dims: [usize; 2]| Tensor::<2>::ones(dims, &device);
        let w = Tensor::from_inner(ones([6, 6])).require_grad();
        let y = recompute([ones([3, 6]), ones([1, 6]), w.clone()], part);
        let grads = y.sum().backward();
        assert_eq!(w.grad(&grads).expect("tracked").dims(), [6, 6]);
        assert!(!recompute([ones([3, 6]), ones([1, 6]), ones([6, 6])], part).is_autodiff());
    }
}
