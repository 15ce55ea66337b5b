//! A folder of checkpoints: how one comes to be there whole, and which of them stay.

use super::manifest::{Facts, MANIFEST, Manifest};
use super::{Snapshot, shards};
use crate::fault;
use danlu_core::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the checkpoint of a step.
pub(crate) fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step that a checkpoint's folder is named after.
pub(crate) fn step_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix("step-")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Complete checkpoints, oldest first.
pub(crate) fn list(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut all: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter_map(|path| Some((step_of(&path)?, path)))
        .collect();
    all.sort();
    all.into_iter().map(|(_, path)| path).collect()
}

/// Writes a checkpoint: shards into a folder of another name, each flushed to the disk, the
/// manifest last; then the folder gets its name, and `latest` names it. Whatever interrupts this,
/// there is the old state or the new one.
pub(crate) fn write(
    folder: &Path,
    snapshot: &Snapshot,
    facts: &Facts,
    limit: usize,
) -> Result<PathBuf> {
    let name = name(snapshot.state.step);
    let part = folder.join(format!("{name}.part"));
    // What an interrupted save left.
    let _ = std::fs::remove_dir_all(&part);
    std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    let whole = folder.join(&name);
    let write = || -> Result<()> {
        let ranges = shards::split(&snapshot.tensors, limit);
        let count = ranges.len();
        let mut written = Vec::with_capacity(count);
        for (i, range) in ranges.into_iter().enumerate() {
            let file = format!("tensors-{:05}-of-{count:05}.safetensors", i + 1);
            written.push(shards::write(&part, file, &snapshot.tensors[range])?);
        }
        let manifest = Manifest::new(snapshot.state.clone(), facts.clone(), written);
        put(&part.join(MANIFEST), manifest.to_json()?.as_bytes(), "manifest")?;
        sync_folder(&part)?;
        fault::point("part-synced");
        replace(&part, &whole)?;
        fault::point("renamed");
        sync_folder(folder)?;
        fault::point("parent-synced");
        point_at(folder, "latest", &name)
    };
    write().inspect_err(|_| {
        // The half of a checkpoint is of no use, and its room may be what is missing.
        let _ = std::fs::remove_dir_all(&part);
    })?;
    Ok(whole)
}

/// Writes a file that is on the disk when this returns.
fn put(path: &Path, bytes: &[u8], what: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        fault::point(&format!("{what}-written"));
        file.sync_all()?;
        fault::point(&format!("{what}-synced"));
        Ok(())
    };
    write().map_err(|e| Error::io(path, e))
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))
}

/// Gives a folder its name. One that has it is set aside first, for a folder is not renamed over
/// another one.
fn replace(part: &Path, whole: &Path) -> Result<()> {
    let aside = whole.with_extension("aside");
    if whole.exists() {
        let _ = std::fs::remove_dir_all(&aside);
        std::fs::rename(whole, &aside).map_err(|e| Error::io(whole, e))?;
        fault::point("set-aside");
    }
    std::fs::rename(part, whole).map_err(|e| Error::io(whole, e))?;
    // If it stays, the next save of this step removes it.
    let _ = std::fs::remove_dir_all(&aside);
    Ok(())
}

/// Gives its name back to a checkpoint that was set aside for one of its step which never came, for
/// it may be the only one.
pub(crate) fn recover(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for aside in entries.filter_map(|e| e.ok().map(|e| e.path())) {
        let whole = aside.with_extension("");
        if aside.extension().is_some_and(|e| e == "aside") && !whole.exists() {
            std::fs::rename(&aside, &whole).map_err(|e| Error::io(&aside, e))?;
        }
    }
    Ok(())
}

/// Renames a checkpoint that is damaged to `.bad`: among those that are kept it would push out good
/// ones.
pub(crate) fn set_bad(path: &Path) -> Result<()> {
    let bad = path.with_extension("bad");
    let _ = std::fs::remove_dir_all(&bad);
    std::fs::rename(path, &bad).map_err(|e| Error::io(path, e))
}

/// Makes the pointer `which` (`latest`, `best`) say `words`, by a rename.
pub(crate) fn point_at(folder: &Path, which: &str, words: &str) -> Result<()> {
    let part = folder.join(format!("{which}.part"));
    put(&part, format!("{words}\n").as_bytes(), "pointer")?;
    let path = folder.join(which);
    std::fs::rename(&part, &path).map_err(|e| Error::io(&path, e))?;
    fault::point("pointed");
    sync_folder(folder)
}

/// The checkpoint that `best` names, with its loss.
pub(crate) fn best(folder: &Path) -> Option<(String, f64)> {
    let words = std::fs::read_to_string(folder.join("best")).ok()?;
    let (name, loss) = words.trim().split_once(' ')?;
    folder.join(name).exists().then(|| Some((name.to_string(), loss.parse().ok()?)))?
}

/// Removes all checkpoints but the newest `keep`, those whose names are in `also`, and those that
/// the guard of one that stays may go back to.
pub(crate) fn prune(folder: &Path, keep: usize, also: &[String]) -> Result<()> {
    let all = list(folder);
    let newest = all.len().saturating_sub(keep);
    let mut stay: BTreeSet<PathBuf> = all[newest..].iter().cloned().collect();
    stay.extend(also.iter().map(|name| folder.join(name)));
    let marks: Vec<PathBuf> = stay
        .iter()
        .filter_map(|path| Manifest::read(path).ok()?.state.guard)
        .flat_map(|guard| guard.marks)
        .map(|step| folder.join(name(step)))
        .collect();
    stay.extend(marks);
    remove(all.into_iter().filter(|path| !stay.contains(path)))
}

/// Removes the checkpoints after `step`: training has gone back before them.
pub(crate) fn drop_after(folder: &Path, step: u64) -> Result<()> {
    remove(list(folder).into_iter().filter(|path| step_of(path).is_some_and(|s| s > step)))
}

fn remove(all: impl Iterator<Item = PathBuf>) -> Result<()> {
    for old in all {
        // Renamed first, so that one that is half removed is not taken for a checkpoint.
        let aside = old.with_extension("old");
        let _ = std::fs::remove_dir_all(&aside);
        std::fs::rename(&old, &aside).map_err(|e| Error::io(&old, e))?;
        fault::point("pruning");
        std::fs::remove_dir_all(&aside).map_err(|e| Error::io(&aside, e))?;
    }
    Ok(())
}
