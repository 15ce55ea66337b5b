//! What the guard remembers from step to step. It is part of every checkpoint, so a run that is
//! resumed decides as it would have done.

use crate::incident::Seen;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Steps that moving means go back.
pub(super) const SPAN: u64 = 50;

/// The same of what tasks cost.
pub(super) const TASKS: u64 = 8;

/// The same of the mean that tells first how far losses are from what is expected.
const LATELY: u64 = 15;

/// Losses of a task after which what it costs is known.
pub(super) const KNOWN: u64 = 3;

/// By how much that mean may be too small, of so few.
const ALLOWED: f64 = 1.5;

/// A moving mean.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Values that it has seen.
    pub count: u64,
}

impl Mean {
    /// Takes a value in: the first few weigh alike, later ones as much as one in `span`.
    pub(crate) fn add(&mut self, value: f64, span: u64) {
        self.count += 1;
        self.value += (value - self.value) / self.count.min(span) as f64;
    }
}

/// How losses lie about a mean that lags behind them as long as they fall.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Lag {
    /// How far they are from it, with its sign.
    pub drift: Mean,
    /// How far they are from it and the drift.
    pub residual: Mean,
    /// The same of fewer steps.
    pub lately: Mean,
}

impl Lag {
    /// What one that is `raw` above the mean is above what is expected.
    pub(super) fn above(&self, raw: f64) -> f64 {
        // Means lag behind losses that fall; what they lag by lately is no surprise.
        raw - self.drift.value
    }

    /// A standard deviation of losses about `loss`.
    pub(super) fn spread(&self, loss: f64) -> f64 {
        // Of what a steep fall has left in the longer mean, little is true of the steps after it.
        let size = self.residual.value.min(ALLOWED * self.lately.value);
        // 1.25 mean absolute deviations are a standard deviation of what is normally distributed.
        (1.25 * size).max(0.02 * loss.abs()).max(1e-9)
    }

    pub(super) fn learn(&mut self, raw: f64) {
        if self.drift.count > 0 {
            let size = self.above(raw).abs();
            self.residual.add(size, SPAN);
            self.lately.add(size, LATELY);
        }
        // As fast as the means of the tasks: a slower one goes on falling after they have stopped.
        self.drift.add(raw, TASKS);
    }
}

/// A learning rate that is lowered from a step on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ease {
    /// The first step (from 0) that it holds for.
    pub from: u64,
    /// What the rate is multiplied with.
    pub factor: f32,
    /// Steps over which it comes up to that.
    pub warmup: u64,
}

impl Ease {
    pub(crate) fn at(&self, step: u64) -> f32 {
        if step < self.from { 1.0 } else { self.factor * self.ramp(step) }
    }

    /// How far the rate has come up.
    fn ramp(&self, step: u64) -> f32 {
        if step < self.from {
            return 1.0;
        }
        ((step - self.from + 1) as f32 / self.warmup.max(1) as f32).min(1.0)
    }
}

/// Something whose outcome is still to be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// Number of the incident.
    pub incident: u64,
    /// Step at which it will be told.
    pub due: u64,
    /// Expected loss before it.
    pub loss: f64,
}

/// What the guard remembers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Steps whose checkpoints it may go back to, ascending.
    pub marks: Vec<u64>,
    /// Stretches of samples that are left out, `[from, to]`.
    pub left_out: Vec<[u64; 2]>,
    /// Incidents so far.
    pub incidents: u64,
    /// How often it has gone back.
    pub rollbacks: u64,
    /// Steps skipped in a row.
    pub skipped: u64,
    /// Step (from 0) and sample that those skipped steps began with.
    pub skipped_from: [u64; 2],
    /// Learning rates that it has lowered.
    pub eases: Vec<Ease>,
    /// Cross-entropy of each task lately.
    pub tasks: BTreeMap<String, Mean>,
    /// How far losses are from those, with its sign: below them as long as they fall.
    pub drift: Mean,
    /// How far losses are from those and the drift.
    pub residual: Mean,
    /// The same of fewer steps.
    #[serde(default)]
    pub residual_lately: Mean,
    /// How the losses of each task lie about what it costs lately.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lags: BTreeMap<String, Lag>,
    /// Tasks whose last losses were out of line with themselves, and how many of them in a row.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub odd: BTreeMap<String, u64>,
    /// Step (from 0) and sample that the first of those was seen at.
    #[serde(default)]
    pub odd_from: [u64; 2],
    /// Sum of the squares of each parameter that learns, and of its average where one is kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub squares: BTreeMap<String, f64>,
    /// Logarithm of the gradient norm.
    pub norm: Mean,
    /// How far it is from that mean.
    pub norm_residual: Mean,
    /// Steps in a row with a loss that is suspicious but not enough to skip it.
    pub high: u64,
    /// Step (from 0) and sample that those began with.
    pub high_from: [u64; 2],
    /// Update over weight of each layer, at the full rate.
    pub ratios: BTreeMap<String, Mean>,
    /// Updates in a row that were much too large, and by how much the first was where that can be told.
    pub large: (u64, Option<f64>),
    /// How evenly the experts of each layer are used lately.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spreads: BTreeMap<String, Mean>,
    /// Steps in a row in which those of some layer were used much less evenly.
    #[serde(default)]
    pub collapsed: u64,
    /// Step (from 0) and sample that those began with.
    #[serde(default)]
    pub collapsed_from: [u64; 2],
    /// Step (from 0) at which the routers of a layer fell last, where training has gone back for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallen: Option<u64>,
    /// Samples of a step that was well, and its loss then.
    pub healthy: Option<([u64; 2], f64)>,
    /// What is still to be told.
    pub open: Option<Open>,
    /// The last steps.
    pub history: Vec<Seen>,
}

/// Steps of history that an incident shows.
const SHOWN: usize = 60;

impl Memory {
    /// What the scheduled learning rate of a step (from 0) is multiplied with.
    pub fn ease(&self, step: u64) -> f32 {
        self.eases.iter().map(|e| e.at(step)).product()
    }

    /// The part of [`Self::ease`] that is for coming up again, and will be over.
    pub fn ramp(&self, step: u64) -> f32 {
        self.eases.iter().map(|e| e.ramp(step)).product()
    }

    /// Where training goes on from `next`, past samples that are left out.
    pub fn after_left_out(&self, next: u64) -> u64 {
        let mut at = next;
        // Stretches may touch; each is passed at most once.
        for _ in &self.left_out {
            for &[from, to] in &self.left_out {
                if (from..to).contains(&at) {
                    at = to;
                }
            }
        }
        at
    }

    /// Takes in what the tasks of a step that was well have cost: a name, a mean, and how much it counts.
    /// What a task cost that is out of line with itself is not what it costs.
    pub(crate) fn learn_tasks(&mut self, tasks: &[(String, f64, f64)]) {
        for (name, mean, _) in tasks.iter().filter(|(name, ..)| !self.odd.contains_key(name)) {
            let lately = self.tasks.entry(name.clone()).or_default();
            if lately.count >= KNOWN {
                self.lags.entry(name.clone()).or_default().learn(mean - lately.value);
            }
            lately.add(*mean, TASKS);
        }
    }

    /// How losses of whole steps lie about what their tasks cost.
    pub(super) fn overall(&self) -> Lag {
        // One that was saved before there were two means of it.
        let lately =
            if self.residual_lately.count == 0 { self.residual } else { self.residual_lately };
        Lag { drift: self.drift, residual: self.residual, lately }
    }

    pub(super) fn set_overall(&mut self, lag: Lag) {
        Lag { drift: self.drift, residual: self.residual, lately: self.residual_lately } = lag;
    }

    pub(crate) fn remember(&mut self, seen: Seen) {
        self.history.push(seen);
        let over = self.history.len().saturating_sub(SHOWN);
        self.history.drain(..over);
    }

    /// Notes that there is a checkpoint of `step` by the schedule. The last three are kept.
    pub(crate) fn mark(&mut self, step: u64) {
        self.marks.retain(|&m| m < step);
        self.marks.push(step);
        let over = self.marks.len().saturating_sub(3);
        self.marks.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_up_again_and_left_out_samples_are_passed() {
        let ease = Ease { from: 10, factor: 0.5, warmup: 4 };
        let rates: Vec<f32> = (8..16).map(|s| ease.at(s)).collect();
        assert_eq!(rates, [1.0, 1.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]);
        let memory = Memory { eases: vec![ease], ..Memory::default() };
        assert_eq!((memory.ease(11), memory.ramp(11), memory.ramp(99)), (0.25, 0.5, 1.0));
        let memory = Memory { left_out: vec![[20, 30], [10, 20]], ..Memory::default() };
        let after = [9, 10, 19, 25, 30].map(|n| memory.after_left_out(n));
        assert_eq!(after, [9, 30, 30, 30, 30]);
    }

    #[test]
    fn means_forget_and_marks_are_few() {
        let mut mean = Mean::default();
        (0..100).for_each(|i| mean.add(if i < 50 { 1.0 } else { 3.0 }, 10));
        assert!((mean.value - 3.0).abs() < 0.02, "{mean:?}");
        let mut memory = Memory::default();
        [0, 5, 10, 15, 10].into_iter().for_each(|s| memory.mark(s));
        assert_eq!(memory.marks, [5, 10]);
        memory.mark(20);
        assert_eq!(memory.marks, [5, 10, 20]);
    }
}
