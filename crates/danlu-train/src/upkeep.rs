//! What it costs to watch and keep a training, counted in every run of every regime.

use crate::checkpoint::Writer;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Seconds of a training's steps, and what of them went into watching and keeping it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upkeep {
    /// All of the steps, without evaluations, samples, logs and pages.
    pub steps: f64,
    /// Those in which the guard looked, judged and answered.
    pub guard: f64,
    /// Those in which a step was held for a checkpoint: by the copy, and by the one before that was
    /// not written yet.
    pub checkpoints: f64,
    /// Those that went into the audit log.
    pub audit: f64,
    /// Processor seconds of the threads that write checkpoints beside the steps.
    pub writing: f64,
}

impl Upkeep {
    /// Whether nothing is counted yet.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in a step that began at `started`, and what its checkpoint cost.
    pub(crate) fn step(&mut self, started: Instant, writer: &mut Writer) {
        self.steps += started.elapsed().as_secs_f64();
        self.saved(writer);
    }

    /// Takes in what checkpoints have cost since it was last asked.
    pub(crate) fn saved(&mut self, writer: &mut Writer) {
        let [held, writing] = writer.cost();
        self.checkpoints += held.as_secs_f64();
        self.writing += writing.as_secs_f64();
    }

    /// Shares of the time of the steps: guard, checkpoints, audit log, and what writing takes of the
    /// `threads` that train, if it takes their processors.
    pub fn shares(&self, threads: usize) -> [f64; 4] {
        let steps = self.steps.max(1e-9);
        let writing = self.writing / threads.max(1) as f64;
        [self.guard, self.checkpoints, self.audit, writing].map(|seconds| seconds / steps)
    }

    /// What was said of a training, with this at its end if there were steps.
    pub fn after(&self, said: String) -> String {
        if self.steps == 0.0 {
            return said;
        }
        let (all, parts) = self.percent();
        format!("{said}, {all:.2} % of the steps upkeep ({parts})")
    }

    /// All of it in percent of the time of the steps, and its parts in words.
    pub(crate) fn percent(&self) -> (f64, String) {
        let shares = self.shares(rayon::current_num_threads()).map(|s| 100.0 * s);
        let [guard, checkpoints, audit, writing] = shares;
        let parts = format!(
            "guard {guard:.2}, checkpoints {checkpoints:.2} and {writing:.2} beside, audit {audit:.2}"
        );
        (shares.iter().sum(), parts)
    }
}

/// Processor time that the calling thread has had.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_steps_and_said_in_percent() {
        let upkeep =
            Upkeep { steps: 200.0, guard: 1.0, checkpoints: 0.5, audit: 0.1, writing: 0.8 };
        assert_eq!(upkeep.shares(2), [0.005, 0.0025, 0.0005, 0.002]);
        let said = upkeep.after("done".into());
        assert!(said.starts_with("done, ") && said.contains("(guard 0.50, checkp"), "{said}");
        assert_eq!(Upkeep::default().after("done".into()), "done");
    }

    #[test]
    fn the_time_of_a_thread_is_what_it_computes_and_not_what_it_sleeps() {
        let before = thread_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_time() - before < Duration::from_millis(40), "sleep is free");
        let started = Instant::now();
        while thread_time() - before < Duration::from_millis(5) {
            assert!(started.elapsed() < Duration::from_secs(30), "computing is not");
        }
    }
}
