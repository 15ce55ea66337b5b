//! Watches a training and answers trouble: skips a step, or goes back to an earlier checkpoint,
//! leaves out what it began with and lowers the learning rate. Every decision is a function of what
//! the checkpoint holds and of the samples, so a resumed run decides alike.
//!
//! Each regime is a `Subject`. A step is judged before its update (`judge`) by its loss against
//! what its tasks cost lately, together and each by itself (`tasks`), by its gradient, by the experts it
//! used (`routers`) and by whether the weights are what the step before left (`weights`), and after its update (`update`) by how far a
//! layer moved. Whether data or weights are to blame is found by trial: samples that were well before
//! are tried again. `answer` takes the step and does what the judgement asks for, and `damage` tells,
//! once it has gone back, whether the weights went bad by steps at all.

mod answer;
mod damage;
mod judge;
mod memory;
mod pace;
mod routers;
mod subject;
mod tasks;
mod update;
mod weights;

pub(crate) use answer::{Done, begin, conclude, finish, keep, step};
pub use memory::{Ease, Lag, Mean, Memory, Open};
pub(crate) use pace::Pace;
pub(crate) use routers::Spread;
pub(crate) use subject::{Figures, Limits, Subject, memory_of, not_finite};

use crate::incident::Cause;
use danlu_core::Batch;
use danlu_model::{Module, Transformer};
use std::sync::Arc;

/// What is to be done about a step before its update.
pub(crate) enum Verdict {
    /// Take it.
    Go,
    /// Leave the weights as they are.
    Skip(Trouble),
    /// Go back to an earlier state.
    Back(Trouble),
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trouble {
    pub(crate) cause: Cause,
    /// Step (from 0) and first sample that it began with.
    pub(crate) from: [u64; 2],
    pub(crate) layer: Option<String>,
    pub(crate) evidence: Vec<String>,
    /// What the learning rate is to be multiplied with after going back.
    pub(crate) factor: f32,
    /// Whether the samples are left out after going back.
    pub(crate) leave_out: bool,
}

impl Trouble {
    /// The same once it is known that the weights of a layer were damaged: neither rate nor samples are
    /// to blame.
    fn of_damage(mut self, layer: String, evidence: String) -> Self {
        self.evidence.push(evidence);
        Self { cause: Cause::Hardware, layer: Some(layer), factor: 1.0, leave_out: false, ..self }
    }
}

/// The groups that parameters are watched in: `model.layers.3`, `model.embed_tokens`, ...
pub(crate) fn group(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    match parts.iter().position(|p| *p == "layers" || *p == "scales") {
        Some(at) => parts.truncate(at + 2),
        None => parts.truncate(parts.len().saturating_sub(1).max(1)),
    }
    parts.join(".")
}

/// Sums per group, in the order in which groups come, of one number a parameter.
pub(crate) fn by_group(module: &dyn Module, each: &[f64]) -> Vec<(String, f64)> {
    let mut out: Vec<(String, f64)> = Vec::new();
    for (p, &value) in module.parameters().iter().zip(each) {
        let name = group(&p.name);
        match out.last_mut().filter(|(last, _)| *last == name) {
            Some((_, sum)) => *sum += value,
            None => out.push((name, value)),
        }
    }
    out
}

/// The layer of a transformer in which values stop being finite first, on the way forward through
/// `batches` or, if all are finite there, on the way back. The transformer has no gradient records;
/// `squares` are those of the gradients of what learns.
pub(crate) fn first_not_finite(
    plain: &Transformer,
    batches: &[Batch],
    module: &dyn Module,
    squares: &[f64],
    evidence: &mut Vec<String>,
) -> Option<String> {
    for batch in batches {
        let (ids, starts): (Arc<[u32]>, Arc<[u32]>) =
            (batch.ids.as_slice().into(), batch.starts.as_slice().into());
        let layers = plain.view(&ids, &starts);
        if let Some(at) = layers.iter().position(|l| l.bad > 0) {
            let before = at.checked_sub(1).map_or(0.0, |i| layers[i].largest);
            evidence.push(format!(
                "{} of the values that come out of {} are not finite; the largest before it is \
                 {before:.3e}",
                layers[at].bad, layers[at].name
            ));
            return Some(layers[at].name.clone());
        }
    }
    let groups = by_group(module, squares);
    let (name, _) = groups.into_iter().rev().find(|(_, squares)| !squares.is_finite())?;
    evidence.push(format!("all values are finite forward; gradients of {name} are not"));
    Some(name)
}

#[cfg(test)]
mod tests;
