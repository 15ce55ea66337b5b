//! Checkpoints: everything that the next step depends on, complete or not there at all.
//!
//! A checkpoint is a folder `step-00000200` with its tensors in shards and a manifest, which is
//! written last. [`Writer`] writes them beside the training, [`load`] takes the newest that is whole
//! by its hashes. The folder before it had a `state.json` and one file of tensors; it is still read.

mod copier;
pub(crate) mod folder;
mod load;
mod manifest;
mod shards;
#[cfg_attr(not(feature = "object-store"), path = "no_store.rs")]
mod store;
mod writer;

pub(crate) use load::WEIGHTS;
pub use load::{accept_data, adopt, load, load_step, load_until, newest_state, same_data, weights};
pub use manifest::{Facts, Manifest};
pub use shards::Shard;
pub use writer::Writer;

use crate::guard::Memory;
use crate::optim::Optimiser;
use crate::upkeep::Upkeep;
use burn::tensor::Tensor;
use danlu_core::recipe::CheckpointRecipe;
use danlu_core::{Error, Result};
use danlu_model::io::NamedTensor;
use danlu_model::params::Module;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Refuses a place to copy checkpoints to that cannot be opened; nothing is asked of it.
pub(crate) fn can_copy(recipe: &CheckpointRecipe) -> Result<()> {
    recipe.store.as_deref().map(store::Store::open).transpose().map(drop)
}

/// Where a folder of checkpoints is empty and the recipe names a store, fetches the newest whole one of
/// the training with this fingerprint; what is to be told. A store that another training has is refused.
pub fn fetch(recipe: &CheckpointRecipe, folder: &Path, fingerprint: &str) -> Result<Vec<String>> {
    folder::recover(folder)?;
    let Some(address) = recipe.store.as_ref().filter(|_| folder::list(folder).is_empty()) else {
        return Ok(Vec::new());
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut told = Vec::new();
    let found = store::Store::open(address)?.fetch(folder, fingerprint, &mut told)?;
    told.extend(found.map(|step| format!("fetched the checkpoint of step {step} from {address}")));
    Ok(told)
}

/// What a checkpoint holds beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimiser steps taken.
    pub step: u64,
    /// Index of the next sample.
    pub next: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// BLAKE3 of what the run depends on: recipe, data manifests, tokenisers.
    pub fingerprint: String,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Fingerprints of the runs whose checkpoints it goes on from, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// What the guard remembers; `None` where none has watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Memory>,
    /// A loss that is smoothed from step to step for the log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<f32>,
    /// What it has cost so far to watch and keep it.
    #[serde(default, skip_serializing_if = "Upkeep::is_none")]
    pub upkeep: Upkeep,
}

impl State {
    /// Before the first step of a training with this fingerprint.
    pub fn new(fingerprint: String) -> Self {
        Self {
            step: 0,
            next: 0,
            tokens: 0,
            fingerprint,
            seconds: 0.0,
            from: Vec::new(),
            guard: None,
            smooth: None,
            upkeep: Upkeep::default(),
        }
    }
}

/// A copy of everything that a checkpoint holds.
#[derive(Debug)]
pub struct Snapshot {
    state: State,
    tensors: Vec<NamedTensor>,
}

impl Snapshot {
    /// Copies the parameters of a module, what its optimiser remembers, and their average if there
    /// is one.
    pub fn take(
        state: &State,
        module: &dyn Module,
        optimiser: &Optimiser,
        average: Option<&[Tensor<2>]>,
    ) -> Result<Self> {
        let mut tensors = Vec::new();
        let mut push = |name: String, shape: &[usize], t: &Tensor<2>| -> Result<()> {
            let values = t.to_data().try_into_vec();
            let values = values.map_err(|e| Error::Other(format!("{name}: {e:?}")))?;
            tensors.push(NamedTensor { name, shape: shape.to_vec(), values });
            Ok(())
        };
        let parameters = module.parameters();
        for (i, (p, [first, second])) in parameters.iter().zip(&optimiser.state).enumerate() {
            push(p.name.clone(), &p.shape, &p.tensor)?;
            push(format!("first.{}", p.name), &p.shape, first)?;
            push(format!("second.{}", p.name), &p.shape, second)?;
            if let Some(average) = average {
                push(format!("average.{}", p.name), &p.shape, &average[i])?;
            }
        }
        Ok(Self { state: state.clone(), tensors })
    }
}

#[cfg(test)]
mod tests;
