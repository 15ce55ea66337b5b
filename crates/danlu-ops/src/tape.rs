//! Registers a hand-written backward pass with Burn's autodiff.

use crate::profile::timed;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Flex, tensor::FloatTensor};

/// Gradient of each input, from the state that forward kept and the gradient of the output. The
/// flags say which inputs want one; the others may be `None`.
pub(crate) type Back<S, const N: usize> = fn(S, Upstream, [bool; N]) -> [Option<FlexTensor>; N];

/// What reaches a backward pass.
pub(crate) struct Upstream {
    /// Gradient of the output.
    pub(crate) grad: FlexTensor,
    /// Gradient that the first input has from operations after this one, for an operation that
    /// was recorded `onto` it: to be added to what is returned for that input.
    pub(crate) earlier: Option<FlexTensor>,
}

/// How an operation is recorded.
#[derive(Clone, Copy, Default)]
pub(crate) struct Recording {
    /// The first input is also an input of an operation that follows from this one's output, whose
    /// backward pass has therefore run before this one's. Then the gradient that it left is handed
    /// over, and one pass over memory adds both.
    pub(crate) onto: bool,
}

struct Recorded<S, const N: usize>(&'static str, Back<S, N>, Recording);

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
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        // A leaf (order 0) keeps its gradient, so there is nothing to take over.
        let first = ops.parents[0].as_ref().filter(|n| self.2.onto && n.order > 0);
        let earlier = first.map(|n| grads.consume::<Flex>(n).to_contiguous());
        let up = Upstream { grad, earlier };
        let computed = timed(self.0, " back", || (self.1)(ops.state, up, wanted));
        timed("sum of gradients", "", || {
            for (parent, grad) in ops.parents.into_iter().zip(computed) {
                if let Some(node) = parent {
                    let grad = grad.expect("backward returns every gradient that is asked for");
                    grads.register::<Flex>(node.id, grad);
                }
            }
        });
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
    record_with::<C, S, N>(name, Recording::default(), inputs, forward, back)
}

/// As [`record`], recorded in a particular way.
pub(crate) fn record_with<C, S, const N: usize>(
    name: &'static str,
    how: Recording,
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    forward: impl FnOnce([FlexTensor; N], bool) -> (FlexTensor, Option<S>),
    back: Back<S, N>,
) -> FloatTensor<Autodiff<Flex, C>>
where
    C: CheckpointStrategy,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    let guards = inputs.each_ref().map(|t| t.node());
    let plain = inputs.map(|t| t.into_primitive().to_contiguous());
    match Recorded(name, back, how).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, state) = timed(name, "", || forward(plain, true));
            prep.finish(state.expect("forward keeps its state when tracked"), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(timed(name, "", || forward(plain, false).0)),
    }
}
