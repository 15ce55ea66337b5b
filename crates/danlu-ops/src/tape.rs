//! Registers a hand-written backward pass with Burn's autodiff.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Flex, tensor::FloatTensor};

/// Gradient of each input, from the state that forward kept and the gradient of the output. The
/// flags say which inputs want one; the others may be `None`.
pub(crate) type Back<S, const N: usize> = fn(S, FlexTensor, [bool; N]) -> [Option<FlexTensor>; N];

struct Recorded<S, const N: usize>(&'static str, Back<S, N>);

impl<S, const N: usize> std::fmt::Debug for Recorded<S, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl<S, const N: usize> Backward<Flex, N> for Recorded<S, N>
where
    S: Clone + Send + std::fmt::Debug + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let computed = (self.1)(ops.state, upstream, wanted);
        for (parent, grad) in ops.parents.into_iter().zip(computed) {
            if let Some(node) = parent {
                let grad = grad.expect("backward returns every gradient that is asked for");
                grads.register::<Flex>(node.id, grad);
            }
        }
    }
}

/// Runs `forward` on the plain tensors under `inputs`, and records `back` if any of them is
/// tracked. `forward` is told whether its state will be needed.
pub(crate) fn record<C, S, const N: usize>(
    name: &'static str,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    forward: impl FnOnce([FlexTensor; N], bool) -> (FlexTensor, Option<S>),
    back: Back<S, N>,
) -> FloatTensor<Autodiff<Flex, C>>
where
    C: CheckpointStrategy,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    let guards = inputs.each_ref().map(|t| t.node());
    let plain = inputs.map(|t| t.into_primitive());
    match Recorded(name, back).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, state) = forward(plain, true);
            prep.finish(state.expect("forward keeps its state when tracked"), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(plain, false).0),
    }
}
