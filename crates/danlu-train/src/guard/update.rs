//! Judges a step after its update: by how far a layer moved, another layer each step.

use super::subject::{Limits, Subject, memory_of};
use super::{Trouble, group};
use crate::incident::Cause;
use burn::tensor::Tensor;
use danlu_core::recipe::GuardRecipe;
use danlu_model::{Module, Parameter};
use danlu_ops::squared_norm;

/// Updates this many times larger than a layer's are too large.
const UPDATE_JUMP: f64 = 6.0;

/// Looks at a layer that its usual update is the mean of. Updates become smaller as a training goes on,
/// so more of them would make a jump seem less than it is.
const LOOKS: u64 = 5;

/// Parameters of a group before an update.
pub(super) struct Before {
    group: String,
    tensors: Vec<(usize, Tensor<2>)>,
}

/// Remembers the group whose turn it is.
pub(super) fn before(module: &dyn Module, step: u64) -> Before {
    let parameters = module.parameters();
    let mut groups: Vec<String> = parameters.iter().map(|p| group(&p.name)).collect();
    let names = groups.clone();
    groups.dedup();
    let group = groups[step as usize % groups.len()].clone();
    let own = parameters.iter().enumerate().filter(|(i, _)| names[*i] == group);
    // A copy here, or the update would make one where nobody counts it.
    let copy = |p: &Parameter| {
        Tensor::from_data(p.tensor.clone().inner().to_data(), &p.tensor.device().inner())
    };
    let tensors = own.map(|(i, p)| (i, copy(p))).collect();
    Before { group, tensors }
}

/// Looks at how far the group in `before` has moved in a step that began with sample `first`. `share`
/// is what the full learning rate should be multiplied with in this step by the schedule and by a
/// warm-up of the guard's.
pub(super) fn moved<S: Subject>(
    r: &GuardRecipe,
    subject: &mut S,
    before: Before,
    share: f32,
    first: u64,
) -> Option<Trouble> {
    let Limits { update: large, .. } = subject.limits();
    let (mut moved, mut weights) = (0.0, 0.0);
    {
        let module = subject.module();
        let parameters = module.parameters();
        for (i, old) in before.tensors {
            weights += squared_norm(&old);
            moved += squared_norm(&(parameters[i].tensor.clone().inner() - old));
        }
    }
    let ratio = (moved / weights.max(1e-30)).sqrt();
    if !ratio.is_finite() {
        // The next step says so, and which parameter it is.
        return None;
    }
    let step = subject.state().step - 1;
    let memory = memory_of(subject);
    if let Some(last) = memory.history.last_mut() {
        last.ratio = Some(ratio);
    }
    let at_full = ratio / share.max(1e-6) as f64;
    let lowered = (memory.ease(step) / memory.ramp(step).max(1e-6)).max(1e-6) as f64;
    let usual = memory.ratios.entry(before.group.clone()).or_default();
    let jump = at_full / usual.value.max(1e-30);
    let too_large = usual.count >= 3 && jump > UPDATE_JUMP;
    if !too_large && ratio <= large {
        // A rate that was lowered moves less, and that is not what is usual; unless what it was lowered
        // for is here, and the layer moves as it did before all.
        let known = usual.count >= 3 && at_full / lowered > UPDATE_JUMP * usual.value;
        usual.add(if known { at_full } else { at_full / lowered }, LOOKS);
        memory.large = (0, None);
        return None;
    }
    let usual = usual.value;
    memory.large.0 += 1;
    // By how much the rate is too high, where that can be told: best by the first such step, for what
    // comes after it has other weights and other gradients.
    let by = too_large.then_some(jump);
    memory.large.1 = if memory.large.0 == 1 { by } else { memory.large.1.or(by) };
    if memory.large.0 == 1 {
        if memory.high == 0 {
            memory.high_from = [step, first];
        }
        return None;
    }
    let (from, by) = (memory.high_from, memory.large.1);
    let factor = by.map_or(r.lower, |by| (1.0 / by) as f32);
    Some(Trouble {
        cause: Cause::RateTooHigh,
        from,
        layer: Some(before.group.clone()),
        evidence: vec![format!(
            "{} moved by {:.2} % of its weights in a step; at this rate {:.3} % is usual",
            before.group,
            100.0 * ratio,
            100.0 * usual * share as f64
        )],
        factor: factor.clamp(0.01, 0.9),
        leave_out: false,
    })
}
