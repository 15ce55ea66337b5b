//! What went wrong in a training, with what is probably to blame, what was done and what came of it:
//! one file each, `incidents/001.json`, and a section of the run page.

use crate::run::{Run, read};
use crate::tokenisers;
use danlu_core::{Error, Result};
use danlu_model::io::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is probably to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The samples cost much more than others of their tasks, with weights that are well.
    BadData,
    /// The weights move too far a step, or went bad on samples that are well.
    RateTooHigh,
    /// Values became too large for their format on the way through a layer.
    Overflow,
    /// Numbers changed that no operation changed: memory or processor.
    Hardware,
    /// A layer sends nearly all tokens to the same few of its experts.
    RouterCollapse,
}

impl Cause {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Cause::BadData => "bad data",
            Cause::RateTooHigh => "the learning rate is too high",
            Cause::Overflow => "overflow",
            Cause::Hardware => "hardware: memory or processor",
            Cause::RouterCollapse => "router collapse: the same few experts get nearly all tokens",
        }
    }
}

/// A step as the guard saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Optimiser steps taken with this one.
    pub step: u64,
    /// Cross-entropy of what is learnt, nats a token.
    pub loss: Option<f64>,
    /// What its tasks cost lately.
    pub expected: Option<f64>,
    /// Gradient norm before clipping; `None` if it is not finite.
    pub norm: Option<f64>,
    /// Norm of a layer's update over the norm of its weights.
    pub ratio: Option<f64>,
}

/// One incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// The part of the run: the name of a tokeniser; empty for what the run is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// From 1 in each part.
    pub number: u64,
    /// Step at which it was noticed.
    pub step: u64,
    /// Step with which it probably began.
    pub began: u64,
    /// Samples from the first to the one after the last of those steps.
    pub samples: [u64; 2],
    /// Layer or parameter in which it was seen first, where that can be told.
    pub layer: Option<String>,
    /// What is probably to blame.
    pub cause: Cause,
    /// What was seen, a sentence each.
    pub evidence: Vec<String>,
    /// What was done.
    pub action: String,
    /// What came of it; empty as long as that is open.
    pub outcome: String,
    /// The steps before it, and its own.
    pub history: Vec<Seen>,
}

impl Incident {
    /// In a line.
    pub fn headline(&self) -> String {
        let layer = self.layer.as_ref().map_or(String::new(), |l| format!(", first in {l}"));
        let of = if self.phase.is_empty() { "" } else { " of " };
        format!(
            "incident {}{of}{} at step {}: probably {}{layer}; {}",
            self.number,
            self.phase,
            self.step,
            self.cause.words(),
            self.action
        )
    }

    /// Writes it to the run's folder.
    pub(crate) fn save(&self, run: &Run) -> Result<()> {
        let folder = run.incidents();
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::Other(e.to_string()))?;
        write_atomically(&path(run, &self.phase, self.number), json.as_bytes())
    }
}

fn path(run: &Run, phase: &str, number: u64) -> PathBuf {
    let of = if phase.is_empty() { String::new() } else { format!("{phase}-") };
    run.incidents().join(format!("{of}{number:03}.json"))
}

/// The incidents of a run, the first first.
pub fn incidents(run: &Run) -> Result<Vec<Incident>> {
    let mut all = of_tokenisers(run)?;
    all.extend(of_phase(run, "")?);
    Ok(all)
}

/// Those of its tokenisers.
pub(crate) fn of_tokenisers(run: &Run) -> Result<Vec<Incident>> {
    let mut all = Vec::new();
    for phase in tokenisers::PARTS {
        all.extend(of_phase(run, phase)?);
    }
    Ok(all)
}

/// Those of one part of a run.
pub(crate) fn of_phase(run: &Run, phase: &str) -> Result<Vec<Incident>> {
    let mut all = Vec::new();
    for number in 1.. {
        let file = path(run, phase, number);
        if !file.exists() {
            break;
        }
        let one = serde_json::from_str(&read(&file)?);
        all.push(one.map_err(|e| Error::file(&file, "an incident", e))?);
    }
    Ok(all)
}

/// Removes the incidents after the first `keep` of a part: the run goes on from before them.
pub(crate) fn forget(run: &Run, phase: &str, keep: u64) -> Result<()> {
    let all = of_phase(run, phase)?.len() as u64;
    for number in keep + 1..=all {
        let file = path(run, phase, number);
        std::fs::remove_file(&file).map_err(|e| Error::io(&file, e))?;
    }
    Ok(())
}
