//! What the guard asks of a training. Each regime has one: pretraining, tuning, and the tokenisers.

use super::routers::Spread;
use crate::checkpoint::{Snapshot, State};
use burn::tensor::Tensor;
use danlu_core::Result;
use danlu_model::{Module, Parameter};
use danlu_ops::squared_norm;

/// What a step is judged by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures<'a> {
    /// What is minimised.
    pub(crate) loss: f64,
    /// Gradient norm before clipping.
    pub(crate) norm: f64,
    /// Losses that are expected to go on as they did: a name, a mean, and how much it counts.
    pub(crate) tasks: &'a [(String, f64, f64)],
    /// How tokens were spread over the experts of each layer that has some.
    pub(crate) spreads: &'a [Spread],
    /// From the first sample to the one after the last.
    pub(crate) samples: [u64; 2],
}

/// From where on something is trouble, as far as that depends on the regime.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// What a loss must be over the expected one, whatever the spread of losses is. Losses that come
    /// near nothing have hardly a spread, and a hard sample among easy ones is no trouble.
    pub(crate) least: f64,
    /// What the losses of all its tokens must be over the expected ones together, nats: one token in a few
    /// may cost that at any time.
    pub(crate) nats: f64,
    /// A gradient norm that is this many times the usual one.
    pub(crate) norm: f64,
    /// An update of more than this share of a layer's weights, whatever it was before.
    pub(crate) update: f64,
}

/// A training as the guard sees it.
pub(crate) trait Subject {
    /// A step before its update.
    type Pass;

    /// The part of the run that this is: the name of a tokeniser; empty for what the run is for.
    fn phase(&self) -> &'static str;

    fn limits(&self) -> Limits;

    /// Logs that are cut back when it goes back.
    fn logs(&self) -> Vec<String>;

    fn state(&self) -> &State;

    fn state_mut(&mut self) -> &mut State;

    /// What learns.
    fn module(&mut self) -> Box<dyn Module + '_>;

    /// The peak learning rate, where all that learns moves by updates of about that size at most.
    fn peak_rate(&self) -> Option<f32>;

    /// Moving averages of the parameters, in the module's order, where they are kept.
    fn averages(&self) -> Option<&[Tensor<2>]> {
        None
    }

    fn figures(pass: &Self::Pass) -> Figures<'_>;

    /// Share of the peak learning rate in the next step, without what the guard has lowered for good.
    fn usual_share(&self) -> f32;

    /// Takes the step.
    fn apply(&mut self, pass: &mut Self::Pass);

    /// Goes past the step without moving the weights.
    fn skip(&mut self);

    /// Loss of the samples of a step, tried again with the weights of now.
    fn loss_again(&mut self, pass: &Self::Pass) -> Result<f64>;

    /// Loss of the step that begins with a sample, with the weights of now.
    fn loss_of_samples(&mut self, from: u64) -> Result<f64>;

    /// The first parameter that holds something that is no finite number.
    fn parameter_not_finite(&mut self) -> Option<String> {
        not_finite(self.module().parameters())
    }

    /// The layer in which values stop being finite first, with what was seen of it.
    fn first_not_finite(&mut self, pass: &Self::Pass, evidence: &mut Vec<String>)
    -> Option<String>;

    /// A copy for a checkpoint.
    fn snapshot(&mut self) -> Result<Snapshot>;

    /// Goes back to the checkpoint of a step.
    fn restore(&mut self, step: u64) -> Result<()>;
}

/// A parameter without gradient record.
pub(super) fn values(p: &Parameter) -> Tensor<2> {
    let value = p.tensor.clone();
    if value.device().is_autodiff() { value.inner() } else { value }
}

/// The first of some parameters that holds something that is no finite number.
pub(crate) fn not_finite<'a>(all: impl IntoIterator<Item = &'a Parameter>) -> Option<String> {
    let bad = |p: &&Parameter| !squared_norm(&values(p)).is_finite();
    all.into_iter().find(bad).map(|p| p.name.clone())
}

/// What the guard remembers of a training.
pub(crate) fn memory_of<S: Subject>(subject: &mut S) -> &mut super::Memory {
    subject.state_mut().guard.get_or_insert_default()
}
