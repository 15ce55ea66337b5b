//! Which samples each step was trained on: a line a step in `audit.jsonl`, cut back with the run
//! when it goes on from a checkpoint, and a check that no sample was doubled or lost.

use crate::checkpoint;
use crate::learn;
use crate::run::{Run, append, entries};
use crate::tokenisers;
use crate::upkeep::Upkeep;
use danlu_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Name of the log of what a run is for.
pub(crate) const LOG: &str = "audit";

/// Name of the log of a tokeniser.
pub(crate) fn log_of(tokeniser: &str) -> String {
    format!("{tokeniser}-{LOG}")
}

/// The samples of one step. Sample `i` is a function of the recipe's seed and `i`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditLine {
    /// Optimiser steps taken with this one.
    pub step: u64,
    /// Index of its first sample.
    pub from: u64,
    /// Index after its last sample.
    pub to: u64,
    /// Stretches of samples before or among these that were left out on purpose, `[from, to]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<[u64; 2]>,
    /// Whether the step changed no weight.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// First digits of the BLAKE3 of the step's token ids: what the samples were made into.
    pub content: String,
}

/// What the audit of a part of a run says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// The tokeniser; empty for what the run is for.
    pub of: String,
    /// Steps that were trained.
    pub steps: u64,
    /// Samples that they were trained on.
    pub samples: u64,
    /// Steps that changed no weight.
    pub skipped: u64,
    /// Samples left out on purpose.
    pub left_out: u64,
    /// Every doubled or lost sample, in a sentence each.
    pub faults: Vec<String>,
}

/// First digits of the hash of what a step is trained on.
pub(crate) fn content(batches: &[Batch]) -> String {
    let mut hash = blake3::Hasher::new();
    for id in batches.iter().flat_map(|b| b.ids.iter().chain(&b.targets)) {
        hash.update(&id.to_le_bytes());
    }
    hash.finalize().to_hex()[..16].to_string()
}

/// Adds the line of a step to a log, and the time that it takes to the upkeep.
pub(crate) fn log(
    run: &Run,
    log: &str,
    upkeep: &mut Upkeep,
    line: impl FnOnce() -> AuditLine,
) -> Result<()> {
    let started = Instant::now();
    append(&run.log(log), &line())?;
    upkeep.audit += started.elapsed().as_secs_f64();
    Ok(())
}

/// Goes over the logs of a run, of the tokenisers that it learnt and of what it is for, and compares
/// the end of each with the newest checkpoint if there is one still.
pub fn audit(run: &Run) -> Result<Vec<Audit>> {
    let mut all = Vec::new();
    for part in tokenisers::PARTS {
        all.extend(audit_log(run, part, &log_of(part), &learn::checkpoints(run, part))?);
    }
    all.extend(audit_log(run, "", LOG, &run.checkpoints())?);
    if all.is_empty() {
        return Err(Error::file(run.log(LOG), "a line for every step", "none"));
    }
    Ok(all)
}

fn audit_log(run: &Run, of: &str, log: &str, checkpoints: &Path) -> Result<Option<Audit>> {
    let lines: Vec<AuditLine> = entries(&run.log(log))?;
    let Some(first) = lines.first() else { return Ok(None) };
    let mut audit = check(&lines);
    audit.of = of.into();
    let (step, next) = (first.step - 1, first.from);
    if let Some(state) = checkpoint::newest_state(checkpoints) {
        let line = lines.iter().find(|l| l.step == state.step);
        let found = line.map(|l| l.to).or((state.step == step).then_some(next));
        if found != Some(state.next) {
            audit.faults.push(format!(
                "the checkpoint of step {} goes on with sample {}, the log {}",
                state.step,
                state.next,
                found.map_or("has no such step".into(), |n| format!("with sample {n}"))
            ));
        }
    }
    Ok(Some(audit))
}

fn check(lines: &[AuditLine]) -> Audit {
    let mut audit = Audit::default();
    let mut next: Option<(u64, u64)> = None;
    for line in lines {
        let (step, mut at) = next.unwrap_or((line.step, line.from));
        if line.step != step {
            audit.faults.push(format!("after step {} comes step {}", step - 1, line.step));
        }
        let mut left_out = 0;
        for &[from, to] in &line.left_out {
            left_out += to.saturating_sub(from);
            if from == at {
                at = to;
            }
        }
        if line.from != at || line.to <= line.from {
            let what = if line.from < at { "are doubled" } else { "are lost" };
            let (low, high) = (line.from.min(at), line.from.max(at));
            audit.faults.push(format!("step {}: samples {low} to {high} {what}", line.step));
        }
        let inside = |&&[from, _]: &&[u64; 2]| from > line.from;
        let among: u64 = line.left_out.iter().filter(inside).map(|[a, b]| b - a).sum();
        audit.steps += 1;
        audit.left_out += left_out;
        audit.samples += line.to.saturating_sub(line.from).saturating_sub(among);
        audit.skipped += u64::from(line.skipped);
        next = Some((line.step + 1, line.to));
    }
    audit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, from: u64, to: u64) -> AuditLine {
        AuditLine { step, from, to, left_out: vec![], skipped: false, content: String::new() }
    }

    #[test]
    fn doubled_and_lost_samples_are_found_and_left_out_ones_are_not_lost() {
        let mut jump = line(3, 30, 38);
        jump.left_out = vec![[20, 30]];
        let good = [line(1, 0, 9), line(2, 9, 20), jump];
        let audit = check(&good);
        assert_eq!((audit.steps, audit.samples, audit.left_out), (3, 28, 10));
        assert!(audit.faults.is_empty(), "{:?}", audit.faults);
        for (bad, want) in [
            (vec![line(1, 0, 9), line(2, 8, 20)], "step 2: samples 8 to 9 are doubled"),
            (vec![line(1, 0, 9), line(2, 11, 20)], "step 2: samples 9 to 11 are lost"),
            (vec![line(1, 0, 9), line(3, 9, 20)], "after step 1 comes step 3"),
            (vec![line(1, 0, 9), line(1, 0, 9)], "doubled"),
        ] {
            let faults = check(&bad).faults.join("\n");
            assert!(faults.contains(want), "{want}: {faults}");
        }
    }

    #[test]
    fn content_tells_batches_apart() {
        let batch = |ids: &[u32]| Batch { ids: ids.to_vec(), ..Batch::default() };
        assert_eq!(content(&[batch(&[1, 2])]), content(&[batch(&[1, 2])]));
        assert_ne!(content(&[batch(&[1, 2])]), content(&[batch(&[2, 1])]));
    }
}
