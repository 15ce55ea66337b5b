//! Reads checkpoints back, the newest that is whole.

use super::manifest::{Facts, MANIFEST, Manifest};
use super::{State, folder, shards};
use crate::guard::Memory;
use crate::optim::Optimiser;
use crate::run::read;
use burn::tensor::{Tensor, TensorData};
use danlu_core::{Error, Result};
use danlu_model::io::{NamedTensor, load_parameters, load_tensors};
use danlu_model::params::{Module, matrix};
use std::collections::BTreeMap;
use std::path::Path;

/// Takes over the newest checkpoint in `from` that is whole for a run of another fingerprint, whose
/// checkpoints are in `to` and must be none yet, and which is of `facts`; its weights must have the shapes of
/// `module`'s. What could not be read is reported in `faults`.
pub fn adopt(
    from: &Path,
    to: &Path,
    module: &dyn Module,
    fingerprint: &str,
    facts: &Facts,
    faults: &mut Vec<String>,
) -> Result<State> {
    if let Some(found) = folder::list(to).last() {
        return Err(Error::file(to, "a run without checkpoints to take one over", found.display()));
    }
    let mut newest = folder::list(from).into_iter().rev();
    let whole = newest.find_map(|path| match read_whole(&path) {
        Ok(whole) => Some((path, whole)),
        Err(e) => {
            faults.push(e.to_string());
            None
        }
    });
    let Some((path, (mut state, _, tensors))) = whole else {
        let found = faults.first().map_or("none", String::as_str);
        return Err(Error::file(from, "a checkpoint to go on from", found));
    };
    for p in module.parameters() {
        let found = tensors.get(&p.name).map(|t| &t.shape);
        if found != Some(&p.shape) {
            let wanted =
                format!("`{}` of shape {:?}, as this recipe's model has it", p.name, p.shape);
            let found = found.map_or("none".into(), |shape| format!("{shape:?}"));
            return Err(Error::file(path, wanted, found));
        }
    }
    let before = std::mem::replace(&mut state.fingerprint, fingerprint.to_string());
    state.from.push(before);
    // What other tasks cost under another recipe says nothing here; what the weights were does.
    let squares = state.guard.take().map(|guard| guard.squares);
    state.guard = squares.map(|squares| Memory { squares, ..Memory::default() });
    let tensors = tensors.into_values().collect();
    let snapshot = super::Snapshot { state: state.clone(), tensors };
    folder::write(to, &snapshot, facts, usize::MAX)?;
    Ok(state)
}

/// Loads the newest checkpoint that is whole and of this fingerprint; older ones are tried if it is
/// not. `None` if there is none. What could not be read is reported in `faults`.
pub fn load(
    folder: &Path,
    fingerprint: &str,
    module: &mut dyn Module,
    optimiser: &mut Optimiser,
    average: Option<&mut Vec<Tensor<2>>>,
    faults: &mut Vec<String>,
) -> Result<Option<State>> {
    load_until(folder, u64::MAX, fingerprint, module, optimiser, average, faults)
}

/// As [`load`], of those that are not after step `until`. If that is any step, those that could not be
/// read are renamed to `.bad`.
pub fn load_until(
    folder: &Path,
    until: u64,
    fingerprint: &str,
    module: &mut dyn Module,
    optimiser: &mut Optimiser,
    mut average: Option<&mut Vec<Tensor<2>>>,
    faults: &mut Vec<String>,
) -> Result<Option<State>> {
    if until == u64::MAX {
        folder::recover(folder)?;
    }
    // A folder that cannot be looked into is not an empty one.
    match std::fs::read_dir(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(folder, e)),
        _ => {}
    }
    let all = folder::list(folder).into_iter().rev();
    let mut damaged: Vec<std::path::PathBuf> = Vec::new();
    for path in all.filter(|path| folder::step_of(path).is_some_and(|step| step <= until)) {
        match load_one(&path, fingerprint, module, optimiser, average.as_deref_mut()) {
            Ok(state) => {
                if until == u64::MAX {
                    damaged.iter().try_for_each(|path| folder::set_bad(path))?;
                }
                if !faults.is_empty() {
                    faults.push(format!("going on from {} instead", path.display()));
                }
                return Ok(Some(state));
            }
            Err(e) => {
                faults.push(e.to_string());
                // One of another training is whole.
                let other = |m: Manifest| m.state.fingerprint != fingerprint;
                if !Manifest::read(&path).is_ok_and(other) {
                    damaged.push(path);
                }
            }
        }
    }
    match faults.first() {
        Some(first) => Err(Error::Other(format!("no checkpoint can be read; the newest: {first}"))),
        None => Ok(None),
    }
}

/// Refuses a run whose data is not what its newest checkpoint was trained on: a sample file that has
/// changed, say. Checkpoints of before there were manifests say nothing of it.
pub fn same_data(folder: &Path, facts: &Facts) -> Result<()> {
    let newest = folder::list(folder).into_iter().rev().find_map(|p| Manifest::read(&p).ok());
    let Some(Manifest { facts: before, .. }) = newest else { return Ok(()) };
    same_beginning(&before, facts)?;
    for (name, hash) in &before.data {
        let found = facts.data.get(name).map_or("no such file", String::as_str);
        if found != hash {
            return Err(Error::file(
                name,
                format!("the data that this run was trained on, BLAKE3 {hash}"),
                format!("{found}; --changed-data goes on with it nevertheless"),
            ));
        }
    }
    Ok(())
}

/// Refuses other tokenisers, and other weights than those that a tuning began with: what was learnt means nothing
/// with them, whatever the data is.
fn same_beginning(before: &Facts, now: &Facts) -> Result<()> {
    let began = |f: &Facts| {
        let weights = f.data.iter().filter(|(name, _)| name.starts_with(WEIGHTS));
        let weights = weights.map(|(name, hash)| (name.clone(), hash.clone()));
        weights
            .chain([("tokenisers".to_string(), f.tokenisers.clone())])
            .collect::<BTreeMap<_, _>>()
    };
    let now = began(now);
    for (name, hash) in began(before).into_iter().filter(|(_, hash)| !hash.is_empty()) {
        let found = now.get(&name).map_or("none", String::as_str);
        if found != hash {
            let wanted = format!("what this run began with, BLAKE3 {hash}");
            return Err(Error::file(name, wanted, found));
        }
    }
    Ok(())
}

/// How the names of the weights that a tuning begins with start, in [`Facts::data`].
pub(crate) const WEIGHTS: &str = "weights of ";

/// Lets a run go on with data that has changed: its checkpoints, those that the guard may go back to
/// among them, are written anew as of this fingerprint and these facts. Those that cannot be read stay
/// as they are, for [`load`] to tell of.
pub fn accept_data(folder: &Path, fingerprint: &str, facts: &Facts) -> Result<()> {
    // The newest last, for it is the one that is pointed at.
    for path in folder::list(folder) {
        let Ok((mut state, before, tensors)) = read_whole(&path) else { continue };
        if state.fingerprint == fingerprint && before.data == facts.data {
            continue;
        }
        same_beginning(&before, facts)?;
        if let Some(guard) = &mut state.guard {
            // The samples of those numbers are others now.
            guard.healthy = None;
        }
        if state.fingerprint != fingerprint {
            let before = std::mem::replace(&mut state.fingerprint, fingerprint.to_string());
            state.from.push(before);
        }
        let tensors = tensors.into_values().collect();
        let snapshot = super::Snapshot { state, tensors };
        folder::write(folder, &snapshot, facts, usize::MAX)?;
    }
    Ok(())
}

/// Where the newest checkpoint of a folder stands whose manifest can be read.
pub fn newest_state(folder: &Path) -> Option<State> {
    let mut newest = folder::list(folder).into_iter().rev();
    newest.find_map(|path| Some(Manifest::read(&path).ok()?.state))
}

/// Loads the checkpoint of one step.
pub fn load_step(
    folder: &Path,
    step: u64,
    fingerprint: &str,
    module: &mut dyn Module,
    optimiser: &mut Optimiser,
    average: Option<&mut Vec<Tensor<2>>>,
) -> Result<State> {
    load_one(&folder.join(folder::name(step)), fingerprint, module, optimiser, average)
}

/// Fills a module with the weights of the checkpoint in `path`: their average, where one is kept.
pub fn weights(path: &Path, module: &mut dyn Module) -> Result<State> {
    let (state, _, mut tensors) = read_whole(path)?;
    for p in module.parameters() {
        if let Some(average) = tensors.remove(&format!("average.{}", p.name)) {
            tensors.insert(p.name.clone(), average);
        }
    }
    load_parameters(module, &mut tensors, path)?;
    Ok(state)
}

type Tensors = BTreeMap<String, NamedTensor>;

/// Everything in a checkpoint's folder, verified.
fn read_whole(path: &Path) -> Result<(State, Facts, Tensors)> {
    if !path.join(MANIFEST).exists() {
        // The format before manifests.
        let file = path.join("state.json");
        let state: State = serde_json::from_str(&read(&file)?)
            .map_err(|e| Error::file(&file, "the state of a checkpoint", e))?;
        let tensors = load_tensors(&path.join("tensors.safetensors"))?;
        return Ok((state, Facts::default(), tensors));
    }
    let manifest = Manifest::read(path)?;
    let mut tensors = Tensors::new();
    for shard in &manifest.shards {
        let read = shards::read(path, shard)?;
        tensors.extend(read.into_iter().map(|t| (t.name.clone(), t)));
    }
    Ok((manifest.state, manifest.facts, tensors))
}

fn load_one(
    path: &Path,
    fingerprint: &str,
    module: &mut dyn Module,
    optimiser: &mut Optimiser,
    average: Option<&mut Vec<Tensor<2>>>,
) -> Result<State> {
    let (state, _, mut tensors) = read_whole(path)?;
    if state.fingerprint != fingerprint {
        return Err(Error::file(
            path,
            format!("a checkpoint of this recipe and data ({fingerprint})"),
            format!("one of {}", state.fingerprint),
        ));
    }
    let mut take = |name: String, shape: &[usize]| -> Result<Tensor<2>> {
        let t = tensors.remove(&name).filter(|t| t.shape == shape);
        let t = t.ok_or_else(|| {
            Error::file(path, format!("a tensor `{name}` of shape {shape:?}"), "none")
        })?;
        if let Some(value) = t.values.iter().find(|v| !v.is_finite()) {
            return Err(Error::file(path, format!("finite numbers in tensor `{name}`"), value));
        }
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
    load_parameters(module, &mut tensors, path)?;
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
