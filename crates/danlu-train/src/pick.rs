//! The model, or the adapter, of any checkpoint of a run: the one with the lowest validation loss, say, where
//! the run itself ends with its last step.

use crate::checkpoint::{self, folder};
use crate::distil::Teacher;
use crate::pretrain;
use crate::run::Run;
use crate::session::sizes;
use crate::tune::{self, Base};
use crate::tuning::fresh;
use crate::watch::Watcher;
use danlu_core::{Error, Recipe, Result, TuneRecipe};
use danlu_model::{Model, Tokenisers, Transformer};
use std::path::{Path, PathBuf};

/// A checkpoint of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    /// Optimiser steps taken.
    pub step: u64,
    /// Its folder.
    pub folder: PathBuf,
    /// The validation loss that it is kept for, if it is the best.
    pub best: Option<f64>,
}

/// The checkpoints of a run, the oldest first.
pub fn checkpoints(run: &Run) -> Vec<Picked> {
    let best = folder::best(&run.checkpoints());
    let of = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy();
        let best = best.as_ref().filter(|(of, _)| **of == *name).map(|(_, loss)| *loss);
        Some(Picked { step: folder::step_of(&path)?, best, folder: path })
    };
    folder::list(&run.checkpoints()).into_iter().filter_map(of).collect()
}

/// The checkpoint that `which` names: `best`, `newest`, or a step.
///
/// # Errors
/// If there is none of that name; those that there are are told.
pub fn find(run: &Run, which: &str) -> Result<Picked> {
    let all = checkpoints(run);
    let found = match which {
        "best" => all.iter().find(|c| c.best.is_some()),
        "newest" => all.last(),
        step => all.iter().find(|c| step.parse() == Ok(c.step)),
    };
    found.cloned().ok_or_else(|| {
        let steps: Vec<String> = all.iter().map(|c| c.step.to_string()).collect();
        let best = match all.iter().any(|c| c.best.is_some()) {
            true => "best, ",
            false => "(`best` needs `best = true` under `[checkpoint]`) ",
        };
        let wanted = format!("{best}newest, or one of the steps [{}]", steps.join(", "));
        Error::parameter("--step", wanted, which)
    })
}

/// The model of a checkpoint of a pretraining.
///
/// # Errors
/// If the checkpoint is damaged, or not of this recipe.
pub fn trained(recipe: &Recipe, run: &Run, picked: &Picked) -> Result<Model> {
    let device = danlu_ops::cpu_device();
    let (foreign, ancestor) = match &recipe.model.from {
        Some(base) => (Model::vocabulary(base)?.foreign, Some(Model::weights_hash(base)?)),
        None => (None, None),
    };
    let tokenisers = Tokenisers::load(&run.tokenisers(), foreign, &device)?;
    let config = sizes(recipe, tokenisers.vocabulary().size())?;
    let mut transformer = Transformer::blank(config, &device);
    let state = checkpoint::weights(&picked.folder, &mut transformer)?;
    let info = pretrain::info(recipe, &state, ancestor)?;
    Ok(Model { transformer, tokenisers, info })
}

/// Writes the adapter of a checkpoint of a tuning into `to`, or its model if all weights learn; `folder` is
/// the base's.
///
/// # Errors
/// If the checkpoint is damaged, or not of this recipe or base.
pub fn tuned(
    recipe: &TuneRecipe,
    folder: &Path,
    picked: &Picked,
    to: &Path,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let base = Base::read(recipe, folder)?;
    let teacher = Teacher::of(recipe, &base.model, watcher)?;
    let mut learner = fresh(recipe, &base.model)?;
    let state = checkpoint::weights(&picked.folder, &mut *learner.module())?;
    tune::publish(recipe, base, teacher.as_ref(), &learner, &state, to)
}
