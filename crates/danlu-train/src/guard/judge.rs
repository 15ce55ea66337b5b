//! Judges a step before its update: by its loss against what its tasks cost lately, by its gradient,
//! and by how it spread tokens over experts. Whether data or weights are to blame is found by trial.

use super::memory::{KNOWN, Memory, SPAN};
use super::subject::{Figures, Limits, Subject, memory_of};
use super::{Trouble, Verdict, routers, tasks, weights};
use crate::incident::{Cause, Seen};
use danlu_core::Result;
use danlu_core::recipe::GuardRecipe;

/// Judges a step before its update. The memory is the one of the state before it.
pub(super) fn judge<S: Subject>(
    r: &GuardRecipe,
    subject: &mut S,
    pass: &S::Pass,
) -> Result<Verdict> {
    let figures = S::figures(pass);
    if !figures.loss.is_finite() || !figures.norm.is_finite() {
        return Ok(not_finite(r, subject, pass));
    }
    if !r.on {
        return Ok(Verdict::Go);
    }
    let limits = subject.limits();
    let step = subject.state().step;
    if let Some(trouble) = weights::judge(subject, [step, figures.samples[0]]) {
        let finite = |v: f64| v.is_finite().then_some(v);
        let (loss, norm) = (finite(figures.loss), finite(figures.norm));
        memory_of(subject).remember(Seen {
            step: step + 1,
            loss,
            expected: None,
            norm,
            ratio: None,
        });
        return Ok(Verdict::Back(trouble));
    }
    let memory = memory_of(subject);
    let outlook = Outlook::of(memory, &figures);
    let seen = Seen {
        step: step + 1,
        loss: Some(outlook.loss),
        expected: outlook.expected,
        norm: Some(figures.norm),
        ratio: None,
    };
    memory.remember(seen);
    let expected = outlook.expected.unwrap_or(outlook.loss);
    let Alarm { far, norm, suspicious } = outlook.alarm(r, &limits, memory);
    let from = [step, figures.samples[0]];
    let odd = tasks::judge(r, &limits, memory, figures.tasks, from);
    if let Some(trouble) = routers::judge(r, memory, &figures, from, far || norm) {
        return Ok(Verdict::Back(trouble));
    }
    if !far && !norm && !suspicious && odd.is_none() {
        memory.high = 0;
        memory.skipped = 0;
        outlook.learn(memory, figures.tasks);
        routers::learn(memory, figures.spreads);
        memory.healthy = Some((figures.samples, figures.loss));
        return Ok(Verdict::Go);
    }
    if memory.high == 0 {
        memory.high_from = from;
    }
    memory.high += 1;
    let began = if odd.is_some() { memory.odd_from } else { memory.high_from };
    if !far && !norm && odd.is_none() && memory.high < 4 {
        return Ok(Verdict::Go);
    }
    let healthy = memory.healthy;
    let mut evidence = vec![format!(
        "loss {:.3} where {:.3} is expected of its tasks: {:.1} deviations",
        outlook.loss, expected, outlook.deviations
    )];
    if norm {
        let (norm, jump) = (figures.norm, outlook.norm_jump);
        evidence.push(format!("gradient norm {norm:.3}, {jump:.1} times its mean"));
    }
    let clear = far || norm || odd.is_some();
    evidence.extend(odd);
    let trouble = |cause, from, evidence, factor| Trouble {
        cause,
        from,
        layer: None,
        evidence,
        factor,
        leave_out: true,
    };
    let again = subject.loss_again(pass)?;
    if (again - figures.loss).abs() > 1e-3 * figures.loss.abs() {
        evidence.push(format!("the same samples gave {again} when they were tried again"));
        let verdict =
            Trouble { leave_out: false, ..trouble(Cause::Hardware, began, evidence, 1.0) };
        return Ok(Verdict::Back(verdict));
    }
    if let Some((samples, was)) = healthy {
        let now = subject.loss_of_samples(samples[0])?;
        evidence.push(format!(
            "samples {} to {} cost {was:.3} before and cost {now:.3} now",
            samples[0], samples[1]
        ));
        let enough = (0.4 * r.deviations * outlook.spread).max(0.06 * was).max(0.5 * limits.least);
        if now - was > enough {
            let from = [began[0], began[1].max(samples[1])];
            return Ok(Verdict::Back(trouble(Cause::RateTooHigh, from, evidence, r.lower)));
        }
    }
    if !clear {
        // The weights are well; the samples are hard, but not by enough to leave them out.
        let memory = memory_of(subject);
        memory.high = 0;
        outlook.learn(memory, figures.tasks);
        return Ok(Verdict::Go);
    }
    Ok(Verdict::Skip(trouble(Cause::BadData, from, evidence, 1.0)))
}

/// A loss or gradient that is not finite: where it comes from.
fn not_finite<S: Subject>(r: &GuardRecipe, subject: &mut S, pass: &S::Pass) -> Verdict {
    let figures = S::figures(pass);
    let step = subject.state().step;
    let finite = |v: f64| v.is_finite().then_some(v);
    let (loss, norm) = (finite(figures.loss), finite(figures.norm));
    let from = [step, figures.samples[0]];
    let mut evidence = vec![format!("loss {}, gradient norm {}", figures.loss, figures.norm)];
    let bad = subject.parameter_not_finite();
    let layer = match &bad {
        Some(name) => {
            evidence
                .push(format!("{name} holds values that are not finite, and no step made them"));
            Some(name.clone())
        }
        None => subject.first_not_finite(pass, &mut evidence),
    };
    let memory = memory_of(subject);
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

/// What is out of line with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alarm {
    /// The loss, by so much that the step should not be taken.
    pub(super) far: bool,
    /// The gradient norm, likewise.
    pub(super) norm: bool,
    /// The loss, by less.
    pub(super) suspicious: bool,
}

/// What a loss should be, and how far it is from that.
pub(super) struct Outlook {
    loss: f64,
    pub(super) expected: Option<f64>,
    /// How far the loss is from what its tasks cost, the drift not taken off.
    raw: f64,
    spread: f64,
    /// Tokens that are learnt, or what else tasks count.
    tokens: f64,
    pub(super) deviations: f64,
    pub(super) norm_jump: f64,
    norm_deviations: f64,
    /// `None` for a gradient that is nothing.
    log_norm: Option<f64>,
}

impl Outlook {
    pub(super) fn of(memory: &Memory, figures: &Figures<'_>) -> Self {
        let tasks = figures.tasks;
        let tokens: f64 = tasks.iter().map(|(_, _, n)| n).sum();
        let loss = tasks.iter().map(|(_, mean, n)| mean * n).sum::<f64>() / tokens.max(1.0);
        let known = tasks.iter().filter_map(|(name, mean, n)| {
            let lately = memory.tasks.get(name).filter(|m| m.count >= KNOWN)?;
            Some((lately.value, mean, n))
        });
        let (mut residual, mut of) = (0.0, 0.0);
        for (lately, mean, n) in known {
            residual += (mean - lately) * n;
            of += n;
        }
        let raw = if of > 0.0 { residual / tokens.max(1.0) } else { 0.0 };
        let overall = memory.overall();
        let residual = if of > 0.0 { overall.above(raw) } else { 0.0 };
        let expected = (of > 0.0).then_some(loss - residual);
        let spread = overall.spread(loss);
        let log_norm = (figures.norm > 0.0).then(|| figures.norm.ln());
        let from_mean = log_norm.map_or(0.0, |norm| norm - memory.norm.value);
        let norm_spread = (1.25 * memory.norm_residual.value).max(0.1);
        Self {
            loss,
            expected,
            raw,
            spread,
            tokens,
            deviations: residual / spread,
            norm_jump: from_mean.exp(),
            norm_deviations: from_mean / norm_spread,
            log_norm,
        }
    }

    pub(super) fn alarm(&self, r: &GuardRecipe, limits: &Limits, memory: &Memory) -> Alarm {
        let old_enough = memory.residual.count >= r.history as u64;
        let over = self.loss - self.expected.unwrap_or(self.loss);
        let share = over / self.loss.max(1e-3);
        let [out, most] = [self.deviations, r.deviations];
        let least = limits.least.max(limits.nats / self.tokens.max(1.0));
        // A gradient that is large alone is clipped; it is trouble where the loss is out of line too, or
        // beyond all that a batch can be blamed for.
        let too = out > 0.5 * most && over > 0.5 * least;
        let beyond = too || self.norm_jump > 5.0 * limits.norm;
        let norm = self.norm_jump > limits.norm && self.norm_deviations > most && beyond;
        Alarm {
            far: old_enough && out > most && share > 0.1 && over > least,
            norm: old_enough && norm,
            suspicious: old_enough && out > 0.5 * most && share > 0.06 && over > 0.5 * least,
        }
    }

    pub(super) fn learn(&self, memory: &mut Memory, tasks: &[(String, f64, f64)]) {
        if self.expected.is_some() {
            let mut overall = memory.overall();
            overall.learn(self.raw);
            memory.set_overall(overall);
        }
        memory.learn_tasks(tasks);
        let Some(log_norm) = self.log_norm else { return };
        if memory.norm.count > 0 {
            memory.norm_residual.add((log_norm - memory.norm.value).abs(), SPAN);
        }
        memory.norm.add(log_norm, SPAN);
    }
}
