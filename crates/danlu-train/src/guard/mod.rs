//! Watches a training and answers trouble: skips a step, or goes back to an earlier checkpoint,
//! leaves out what it began with and lowers the learning rate. Every decision is a function of what
//! the checkpoint holds and of the samples, so a resumed run decides alike.
//!
//! It judges a step before its update by its loss against what its tasks cost lately, and by its
//! gradient; after its update by how far a layer moved, another layer each step. Whether data or
//! weights are to blame is found by trial: samples that were well before are tried again.

mod memory;
mod pace;

pub use memory::{Ease, Mean, Memory, Open};
pub(crate) use pace::Pace;

use crate::incident::{Cause, Incident, Seen};
use crate::run::Run;
use crate::session::{Pass, Session};
use burn::tensor::Tensor;
use danlu_core::recipe::GuardRecipe;
use danlu_core::{Error, Result};
use danlu_model::Module;
use danlu_ops::squared_norm;

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

/// Updates of more than this share of a layer's weights are too large, whatever they were before.
const LARGE_UPDATE: f64 = 0.25;

/// Updates this many times larger than a layer's are too large.
const UPDATE_JUMP: f64 = 6.0;

/// Gradient norms this many times larger than their mean are suspicious.
const NORM_JUMP: f64 = 20.0;

/// Steps that moving means go back.
const SPAN: u64 = 50;

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

/// Parameters of a group before an update.
pub(crate) struct Before {
    group: String,
    tensors: Vec<(usize, Tensor<2>)>,
}

/// Remembers the group whose turn it is.
pub(crate) fn before(module: &dyn Module, step: u64) -> Before {
    let parameters = module.parameters();
    let mut groups: Vec<String> = parameters.iter().map(|p| group(&p.name)).collect();
    let names = groups.clone();
    groups.dedup();
    let group = groups[step as usize % groups.len()].clone();
    let own = parameters.iter().enumerate().filter(|(i, _)| names[*i] == group);
    let tensors = own.map(|(i, p)| (i, p.tensor.clone().inner())).collect();
    Before { group, tensors }
}

/// Judges a step before its update. `memory` is the one of the state before it.
pub(crate) fn judge(r: &GuardRecipe, session: &mut Session<'_>, pass: &Pass) -> Result<Verdict> {
    if !pass.loss.is_finite() || !pass.norm.is_finite() {
        return Ok(not_finite(r, session, pass));
    }
    if !r.on {
        return Ok(Verdict::Go);
    }
    let step = session.state.step;
    let outlook = Outlook::of(session.memory(), &pass.tasks, pass.norm);
    let seen = Seen {
        step: step + 1,
        loss: Some(outlook.loss),
        expected: outlook.expected,
        norm: Some(pass.norm),
        ratio: None,
    };
    let memory = session.memory_mut();
    memory.remember(seen);
    let expected = outlook.expected.unwrap_or(outlook.loss);
    let Alarm { far, norm, suspicious } = outlook.alarm(r, memory);
    if !far && !norm && !suspicious {
        memory.high = 0;
        memory.skipped = 0;
        outlook.learn(memory, &pass.tasks);
        memory.healthy = Some((pass.samples, pass.loss));
        return Ok(Verdict::Go);
    }
    let from = [step, pass.samples[0]];
    if memory.high == 0 {
        memory.high_from = from;
    }
    memory.high += 1;
    let began = memory.high_from;
    if !far && !norm && memory.high < 4 {
        return Ok(Verdict::Go);
    }
    let mut evidence = vec![format!(
        "loss {:.3} where {:.3} is expected of its tasks: {:.1} deviations",
        outlook.loss, expected, outlook.deviations
    )];
    if norm {
        let jump = outlook.norm_jump;
        evidence.push(format!("gradient norm {:.3}, {jump:.1} times its mean", pass.norm));
    }
    let trouble = |cause, from, evidence, factor| Trouble {
        cause,
        from,
        layer: None,
        evidence,
        factor,
        leave_out: true,
    };
    let again = session.loss_of(&pass.batches);
    if (again - pass.loss).abs() > 1e-3 * pass.loss.abs() {
        evidence.push(format!("the same samples gave {again} when they were tried again"));
        let verdict =
            Trouble { leave_out: false, ..trouble(Cause::Hardware, began, evidence, 1.0) };
        return Ok(Verdict::Back(verdict));
    }
    let memory = session.memory();
    if let Some((samples, was)) = memory.healthy {
        let now = session.loss_of_samples(samples[0])?;
        let spread = outlook.spread;
        evidence.push(format!(
            "samples {} to {} cost {was:.3} before and cost {now:.3} now",
            samples[0], samples[1]
        ));
        if now - was > (0.4 * r.deviations * spread).max(0.06 * was) {
            let from = [began[0], began[1].max(samples[1])];
            return Ok(Verdict::Back(trouble(Cause::RateTooHigh, from, evidence, r.lower)));
        }
    }
    if !far && !norm {
        // The weights are well; the samples are hard, but not by enough to leave them out.
        let memory = session.memory_mut();
        memory.high = 0;
        outlook.learn(memory, &pass.tasks);
        return Ok(Verdict::Go);
    }
    Ok(Verdict::Skip(trouble(Cause::BadData, from, evidence, 1.0)))
}

/// What is out of line with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alarm {
    /// The loss, by so much that the step should not be taken.
    far: bool,
    /// The gradient norm, likewise.
    norm: bool,
    /// The loss, by less.
    suspicious: bool,
}

/// What a loss should be, and how far it is from that.
struct Outlook {
    loss: f64,
    expected: Option<f64>,
    /// How far the loss is from what its tasks cost, the drift not taken off.
    raw: f64,
    spread: f64,
    deviations: f64,
    norm_jump: f64,
    norm_deviations: f64,
    log_norm: f64,
}

impl Outlook {
    /// `tasks` are names, mean cross-entropies and numbers of tokens.
    fn of(memory: &Memory, tasks: &[(String, f64, f64)], norm: f64) -> Self {
        let tokens: f64 = tasks.iter().map(|(_, _, n)| n).sum();
        let loss = tasks.iter().map(|(_, mean, n)| mean * n).sum::<f64>() / tokens.max(1.0);
        let known = tasks.iter().filter_map(|(name, mean, n)| {
            let lately = memory.tasks.get(name).filter(|m| m.count >= 3)?;
            Some((lately.value, mean, n))
        });
        let (mut residual, mut of) = (0.0, 0.0);
        for (lately, mean, n) in known {
            residual += (mean - lately) * n;
            of += n;
        }
        let residual = if of > 0.0 { residual / tokens.max(1.0) } else { 0.0 };
        let raw = residual;
        // Means lag behind losses that fall; what they lag by lately is no surprise.
        let residual = if of > 0.0 { raw - memory.drift.value } else { 0.0 };
        let expected = (of > 0.0).then_some(loss - residual);
        // 1.25 mean absolute deviations are a standard deviation of what is normally distributed.
        let spread = (1.25 * memory.residual.value).max(0.02 * loss).max(1e-9);
        let log_norm = norm.max(1e-30).ln();
        let from_mean = log_norm - memory.norm.value;
        let norm_spread = (1.25 * memory.norm_residual.value).max(0.1);
        Self {
            loss,
            expected,
            raw,
            spread,
            deviations: residual / spread,
            norm_jump: from_mean.exp(),
            norm_deviations: from_mean / norm_spread,
            log_norm,
        }
    }

    fn alarm(&self, r: &GuardRecipe, memory: &Memory) -> Alarm {
        let old_enough = memory.residual.count >= r.history as u64;
        let over = (self.loss - self.expected.unwrap_or(self.loss)) / self.loss.max(1e-3);
        Alarm {
            far: old_enough && self.deviations > r.deviations && over > 0.1,
            norm: old_enough && self.norm_jump > NORM_JUMP && self.norm_deviations > r.deviations,
            suspicious: old_enough && self.deviations > 0.5 * r.deviations && over > 0.06,
        }
    }

    fn learn(&self, memory: &mut Memory, tasks: &[(String, f64, f64)]) {
        if let Some(expected) = self.expected {
            if memory.drift.count > 0 {
                memory.residual.add((self.loss - expected).abs(), SPAN);
            }
            memory.drift.add(self.raw, 20);
        }
        for (name, mean, _) in tasks {
            memory.tasks.entry(name.clone()).or_default().add(*mean, 8);
        }
        if memory.norm.count > 0 {
            memory.norm_residual.add((self.log_norm - memory.norm.value).abs(), SPAN);
        }
        memory.norm.add(self.log_norm, SPAN);
    }
}

/// A loss or gradient that is not finite: where it comes from.
fn not_finite(r: &GuardRecipe, session: &mut Session<'_>, pass: &Pass) -> Verdict {
    let step = session.state.step;
    let finite = |v: f64| v.is_finite().then_some(v);
    let (loss, norm) = (finite(pass.loss), finite(pass.norm));
    let from = [step, pass.samples[0]];
    let mut evidence = vec![format!("loss {}, gradient norm {}", pass.loss, pass.norm)];
    let bad = session.model.parameters().into_iter().find(|p| {
        let value = p.tensor.clone().inner();
        !squared_norm(&value).is_finite()
    });
    let bad = bad.map(|p| p.name.clone());
    let layer = match &bad {
        Some(name) => {
            evidence
                .push(format!("{name} holds values that are not finite, and no step made them"));
            Some(name.clone())
        }
        None => session.first_not_finite(pass, &mut evidence),
    };
    let memory = session.memory_mut();
    memory.remember(Seen { step: step + 1, loss, expected: None, norm, ratio: None });
    let cause = if bad.is_some() { Cause::Hardware } else { Cause::Overflow };
    let factor = if bad.is_some() { 1.0 } else { r.lower };
    let leave_out = bad.is_none();
    let mut trouble = Trouble { cause, from, layer, evidence, factor, leave_out };
    if r.on && (bad.is_some() || memory.skipped >= r.skips as u64) {
        if memory.skipped > 0 {
            trouble.from = memory.skipped_from;
        }
        return Verdict::Back(trouble);
    }
    Verdict::Skip(trouble)
}

/// Looks at how far the group in `before` has moved. `share` is what the full learning rate should be
/// multiplied with in this step by the schedule and by a warm-up of the guard's.
pub(crate) fn moved(
    r: &GuardRecipe,
    session: &mut Session<'_>,
    before: Before,
    share: f32,
    pass: &Pass,
) -> Option<Trouble> {
    let parameters = session.model.parameters();
    let (mut moved, mut weights) = (0.0, 0.0);
    for (i, old) in before.tensors {
        weights += squared_norm(&old);
        moved += squared_norm(&(parameters[i].tensor.clone().inner() - old));
    }
    let ratio = (moved / weights.max(1e-30)).sqrt();
    if !ratio.is_finite() {
        // The next step says so, and which parameter it is.
        return None;
    }
    let memory = session.state.guard.get_or_insert_default();
    if let Some(last) = memory.history.last_mut() {
        last.ratio = Some(ratio);
    }
    let at_full = ratio / share.max(1e-6) as f64;
    let usual = memory.ratios.entry(before.group.clone()).or_default();
    let jump = at_full / usual.value.max(1e-30);
    let too_large = usual.count >= 3 && jump > UPDATE_JUMP;
    if !too_large && ratio <= LARGE_UPDATE {
        usual.add(at_full, 20);
        memory.large = (0, None);
        return None;
    }
    let usual = usual.value;
    memory.large.0 += 1;
    // By how much the rate is too high, where that can be told.
    let by = too_large.then_some(jump);
    memory.large.1 = match (memory.large.0, memory.large.1, by) {
        (1, _, by) => by,
        (_, Some(before), Some(by)) => Some(before.min(by)),
        (_, before, by) => before.or(by),
    };
    let step = session.state.step - 1;
    if memory.large.0 == 1 {
        if memory.high == 0 {
            memory.high_from = [step, pass.samples[0]];
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
            "{} moved by {:.1} % of its weights in a step; at this rate {:.2} % is usual",
            before.group,
            100.0 * ratio,
            100.0 * usual * share as f64
        )],
        factor: factor.clamp(0.01, 0.9),
        leave_out: false,
    })
}

/// Records trouble that a step is skipped for: a new incident, or more of the one before.
pub(crate) fn record_skip(
    run: &Run,
    memory: &mut Memory,
    trouble: Trouble,
    samples: [u64; 2],
) -> Result<Incident> {
    let [step, sample] = trouble.from;
    if memory.skipped == 0 {
        memory.incidents += 1;
        memory.skipped_from = [step, sample];
    }
    memory.skipped += 1;
    let loss = memory.history.iter().rev().find_map(|s| s.expected).unwrap_or(0.0);
    memory.open = Some(Open { incident: memory.incidents, due: step + 2, loss });
    let [began, first] = memory.skipped_from;
    let incident = Incident {
        number: memory.incidents,
        step: step + 1,
        began: began + 1,
        samples: [first, samples[1]],
        layer: trouble.layer,
        cause: trouble.cause,
        evidence: trouble.evidence,
        action: match memory.skipped {
            1 => "skipped the step".into(),
            n => format!("skipped {n} steps"),
        },
        outcome: String::new(),
        history: memory.history.clone(),
    };
    incident.save(run)?;
    Ok(incident)
}

/// The checkpoints that may be gone back to for trouble that began at step `from` (from 0), the best
/// first: the newest that is a little before it, then older ones; the oldest if none is before it.
pub(crate) fn targets(memory: &Memory, from: u64) -> Vec<u64> {
    let mut all: Vec<u64> = memory.marks.iter().rev().copied().filter(|&m| m + 2 <= from).collect();
    if all.is_empty() {
        all.extend(memory.marks.first());
    }
    all
}

/// Takes what is known about trouble over into the memory of the state that training has gone back
/// to, and records the incident.
pub(crate) fn record_back(
    r: &GuardRecipe,
    run: &Run,
    before: Memory,
    session: &mut Session<'_>,
    trouble: Trouble,
    pass: &Pass,
) -> Result<Incident> {
    let step = session.state.step;
    let seen_at = before.history.last().map_or(step, |s| s.step);
    let loss = before.history.iter().rev().find_map(|s| s.expected).unwrap_or(0.0);
    let memory = session.memory_mut();
    // One skipped for it before is the same incident.
    let number = before.incidents + u64::from(before.skipped == 0);
    memory.incidents = number;
    memory.rollbacks = before.rollbacks + 1;
    memory.eases = before.eases;
    memory.left_out = before.left_out;
    memory.history = before.history.clone();
    let samples = [trouble.from[1], pass.samples[1]];
    let mut action = format!("went back to step {step}");
    if trouble.leave_out && samples[0] < samples[1] {
        memory.left_out.push(samples);
        action += &format!(", leaves out samples {} to {}", samples[0], samples[1]);
    }
    if trouble.factor < 1.0 {
        let ease = Ease { from: step, factor: trouble.factor, warmup: r.warmup as u64 };
        memory.eases.push(ease);
        action += &format!(
            ", multiplies the learning rate by {:.3} after a warm-up of {} steps",
            trouble.factor, r.warmup
        );
    }
    let due = seen_at + 5;
    memory.open = Some(Open { incident: number, due, loss });
    let incident = Incident {
        number,
        step: seen_at,
        began: trouble.from[0] + 1,
        samples,
        layer: trouble.layer,
        cause: trouble.cause,
        evidence: trouble.evidence,
        action,
        outcome: String::new(),
        history: before.history,
    };
    incident.save(run)?;
    Ok(incident)
}

/// Tells what came of an incident once its time has come.
pub(crate) fn conclude(run: &Run, memory: &mut Memory, done: u64) -> Result<Option<Incident>> {
    let Some(open) = memory.open.as_ref().filter(|o| done >= o.due && memory.skipped == 0) else {
        return Ok(None);
    };
    let all = crate::incident::incidents(run)?;
    let Some(mut incident) = all.into_iter().find(|i| i.number == open.incident) else {
        memory.open = None;
        return Ok(None);
    };
    let loss = memory.history.last().and_then(|s| s.loss).unwrap_or(f64::NAN);
    incident.outcome = format!(
        "training went on; at step {done} the loss was {loss:.3}, where {:.3} was expected before",
        open.loss
    );
    memory.open = None;
    incident.save(run)?;
    Ok(Some(incident))
}

/// Why a run is stopped that has gone back too often, or has nowhere to go back to.
pub(crate) fn give_up(run: &Run, memory: &Memory, trouble: &Trouble, why: &str) -> Error {
    let marks: Vec<String> = memory.marks.iter().map(u64::to_string).collect();
    Error::Other(format!(
        "stopped at step {}: {} ({}), and {why}; checkpoints of steps {} are in {}, what happened \
         before is in {}",
        trouble.from[0] + 1,
        trouble.cause.words(),
        trouble.evidence.join("; "),
        marks.join(", "),
        run.checkpoints().display(),
        run.incidents().display()
    ))
}

#[cfg(test)]
mod tests;
