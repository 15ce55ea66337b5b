//! Checkpoints: everything that the next step depends on, complete or not there at all.

use crate::optim::Optimiser;
use crate::run::read;
use burn::tensor::{Tensor, TensorData};
use danlu_core::{Error, Result};
use danlu_model::io::{
    Dtype, NamedTensor, load_parameters, load_tensors, save_tensors, write_atomically,
};
use danlu_model::params::{Module, matrix};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
}

/// Takes over the newest checkpoint in `from` for a run of another fingerprint, whose checkpoints
/// are in `to` and must be none yet.
pub fn adopt(from: &Path, to: &Path, fingerprint: &str) -> Result<State> {
    if let Some(found) = list(to).last() {
        return Err(Error::file(to, "a run without checkpoints to take one over", found.display()));
    }
    let newest = list(from).pop();
    let newest = newest.ok_or_else(|| Error::file(from, "a checkpoint to go on from", "none"))?;
    let file = newest.join("state.json");
    let mut state: State = serde_json::from_str(&read(&file)?)
        .map_err(|e| Error::file(&file, "the state of a checkpoint", e))?;
    let before = std::mem::replace(&mut state.fingerprint, fingerprint.to_string());
    state.from.push(before);
    let name = newest.file_name().unwrap_or_default();
    let part = to.join(format!("{}.part", name.to_string_lossy()));
    std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    let tensors = part.join("tensors.safetensors");
    std::fs::copy(newest.join("tensors.safetensors"), &tensors)
        .map_err(|e| Error::io(&tensors, e))?;
    let json = serde_json::to_string_pretty(&state).map_err(|e| Error::Other(e.to_string()))?;
    write_atomically(&part.join("state.json"), json.as_bytes())?;
    let whole = to.join(name);
    std::fs::rename(&part, &whole).map_err(|e| Error::io(&whole, e))?;
    Ok(state)
}

/// Writes a checkpoint into `folder`, and removes all but the newest two. It appears by a rename,
/// after everything in it is on the disk.
pub fn save(
    folder: &Path,
    state: &State,
    module: &dyn Module,
    optimiser: &Optimiser,
    average: Option<&[Tensor<2>]>,
) -> Result<()> {
    let name = format!("step-{:08}", state.step);
    let part = folder.join(format!("{name}.part"));
    let _ = std::fs::remove_dir_all(&part);
    std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    let mut tensors = Vec::new();
    let mut push = |name: String, shape: &[usize], t: &Tensor<2>| -> Result<()> {
        let values = t.to_data().try_into_vec();
        let values = values.map_err(|e| Error::Other(format!("{name}: {e:?}")))?;
        tensors.push(NamedTensor { name, shape: shape.to_vec(), values });
        Ok(())
    };
    for (i, (p, [first, second])) in module.parameters().iter().zip(&optimiser.state).enumerate() {
        push(p.name.clone(), &p.shape, &p.tensor)?;
        push(format!("first.{}", p.name), &p.shape, first)?;
        push(format!("second.{}", p.name), &p.shape, second)?;
        if let Some(average) = average {
            push(format!("average.{}", p.name), &p.shape, &average[i])?;
        }
    }
    save_tensors(&part.join("tensors.safetensors"), &tensors, Dtype::F32, BTreeMap::new())?;
    let json = serde_json::to_string_pretty(state).map_err(|e| Error::Other(e.to_string()))?;
    write_atomically(&part.join("state.json"), json.as_bytes())?;
    let whole = folder.join(&name);
    if whole.exists() {
        std::fs::remove_dir_all(&whole).map_err(|e| Error::io(&whole, e))?;
    }
    std::fs::rename(&part, &whole).map_err(|e| Error::io(&whole, e))?;
    let mut all = list(folder);
    all.truncate(all.len().saturating_sub(2));
    for old in all {
        std::fs::remove_dir_all(&old).map_err(|e| Error::io(&old, e))?;
    }
    Ok(())
}

/// Complete checkpoints of a folder, oldest first.
fn list(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with("step-") && !name.ends_with(".part")
        })
        .collect();
    all.sort();
    all
}

/// Loads the newest checkpoint that can be read; older ones are tried if it cannot. `None` if
/// there is none. What could not be read is reported in `faults`.
pub fn load(
    folder: &Path,
    fingerprint: &str,
    module: &mut dyn Module,
    optimiser: &mut Optimiser,
    mut average: Option<&mut Vec<Tensor<2>>>,
    faults: &mut Vec<String>,
) -> Result<Option<State>> {
    for path in list(folder).into_iter().rev() {
        match load_one(&path, fingerprint, module, optimiser, average.as_deref_mut()) {
            Ok(state) => return Ok(Some(state)),
            Err(e) => faults.push(e.to_string()),
        }
    }
    match faults.first() {
        Some(first) => Err(Error::Other(format!("no checkpoint can be read; the newest: {first}"))),
        None => Ok(None),
    }
}

fn load_one(
    path: &Path,
    fingerprint: &str,
    module: &mut dyn Module,
    optimiser: &mut Optimiser,
    average: Option<&mut Vec<Tensor<2>>>,
) -> Result<State> {
    let file = path.join("state.json");
    let state: State = serde_json::from_str(&read(&file)?)
        .map_err(|e| Error::file(&file, "the state of a checkpoint", e))?;
    if state.fingerprint != fingerprint {
        return Err(Error::file(
            &file,
            format!("a checkpoint of this recipe and data ({fingerprint})"),
            format!("one of {}", state.fingerprint),
        ));
    }
    let file = path.join("tensors.safetensors");
    let mut tensors = load_tensors(&file)?;
    let mut take = |name: String, shape: &[usize]| -> Result<Tensor<2>> {
        let t = tensors.remove(&name).filter(|t| t.shape == shape);
        let t = t.ok_or_else(|| {
            Error::file(&file, format!("a tensor `{name}` of shape {shape:?}"), "none")
        })?;
        Ok(Tensor::from_data(TensorData::new(t.values, matrix(shape)), &danlu_ops::cpu_device()))
    };
    let mut moments = Vec::new();
    let mut averages = Vec::new();
    for p in module.parameters() {
        moments.push([
            take(format!("first.{}", p.name), &p.shape)?,
            take(format!("second.{}", p.name), &p.shape)?,
        ]);
        if average.is_some() {
            averages.push(take(format!("average.{}", p.name), &p.shape)?);
        }
    }
    load_parameters(module, &mut tensors, &file)?;
    for p in module.parameters_mut() {
        if p.tensor.device().is_autodiff() {
            p.tensor = p.tensor.clone().detach().require_grad();
        }
    }
    optimiser.state = moments;
    optimiser.step = state.step;
    if let Some(average) = average {
        *average = averages;
    }
    Ok(state)
}
