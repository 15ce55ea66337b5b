//! Writes checkpoints while the training goes on.

use super::copier::{Copier, Giver};
use super::manifest::Facts;
use super::store::Store;
use super::{Snapshot, State, folder};
use crate::upkeep::thread_time;
use danlu_core::recipe::CheckpointRecipe;
use danlu_core::{Error, Result};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Writes one checkpoint at a time on a thread of its own. A step is held for the copy of the
/// tensors alone, and for the save before if that is not finished. Copies to an object store are made
/// after, on a thread of their own, which holds neither steps nor saves. When it is dropped, what it
/// writes is finished first.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    recipe: CheckpointRecipe,
    facts: Facts,
    copier: Option<Copier>,
    job: Option<Job>,
    last: Instant,
    /// Time that steps were held, and processor time of the threads that write.
    cost: [Duration; 2],
}

/// The step that is saved, and the thread that does it and says what processor time it had.
type Job = (u64, JoinHandle<(Result<()>, Duration)>);

impl Writer {
    /// For the checkpoints in `folder` of a run that is made of `facts`. Opens the recipe's object
    /// store if it names one.
    pub fn new(folder: &Path, recipe: &CheckpointRecipe, facts: Facts) -> Result<Self> {
        let store = recipe.store.as_deref().map(Store::open).transpose()?;
        let copier = store.map(Copier::new);
        let (folder, recipe) = (folder.to_path_buf(), recipe.clone());
        let cost = [Duration::ZERO; 2];
        Ok(Self { folder, recipe, facts, copier, job: None, last: Instant::now(), cost })
    }

    /// Where it writes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the recipe wants one by the clock.
    pub fn due(&self) -> bool {
        let minutes = self.recipe.minutes;
        minutes > 0.0 && self.last.elapsed().as_secs_f32() >= 60.0 * minutes
    }

    /// Takes a snapshot and begins to write it. Returns what became of the one before, if it failed.
    pub fn begin(&mut self, snapshot: impl FnOnce() -> Result<Snapshot>) -> Result<()> {
        let before = self.wait();
        let started = Instant::now();
        let snapshot = snapshot()?;
        self.last = Instant::now();
        let step = snapshot.state.step;
        let (folder, recipe, facts) =
            (self.folder.clone(), self.recipe.clone(), self.facts.clone());
        let giver = self.copier.as_ref().map(Copier::giver);
        let job = std::thread::spawn(move || {
            (save(&folder, &recipe, &facts, &snapshot, giver.as_ref()), thread_time())
        });
        self.job = Some((step, job));
        self.cost[0] += started.elapsed();
        before
    }

    /// Waits until what was begun is on the disk, and says what became of it, and of copies that were
    /// made meanwhile. The run can go on after an error: the checkpoints before are as they were.
    pub fn wait(&mut self) -> Result<()> {
        self.saved()?;
        let Some(copier) = &self.copier else { return Ok(()) };
        let (failed, copying) = copier.told();
        self.cost[1] += copying;
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Error::Other(failed.join("\n"))),
        }
    }

    /// The same, with what is still to be copied: for the end of a training.
    pub fn finish(&mut self) -> Result<()> {
        let saved = self.saved();
        self.copier.iter().for_each(Copier::flush);
        let copied = self.wait();
        saved.and(copied)
    }

    fn saved(&mut self) -> Result<()> {
        let Some((step, job)) = self.job.take() else { return Ok(()) };
        let started = Instant::now();
        let panicked = |_| (Err(Error::Other("its writer panicked".into())), Duration::ZERO);
        let (result, writing) = job.join().unwrap_or_else(panicked);
        self.cost[0] += started.elapsed();
        self.cost[1] += writing;
        result.map_err(|e| {
            let newest = folder::list(&self.folder).pop();
            let newest = newest.map_or("there is none before it".into(), |path| {
                format!("the newest is still {}", path.display())
            });
            Error::Other(format!("the checkpoint of step {step} was not written: {e}; {newest}"))
        })
    }

    /// What saving has cost since this was last asked: the time that steps were held, and the processor
    /// time of the threads that write.
    pub(crate) fn cost(&mut self) -> [Duration; 2] {
        std::mem::take(&mut self.cost)
    }

    /// Removes the checkpoints after where the training stands, which has gone back before them. What
    /// is to be told if the store does not let them go.
    pub fn drop_after(&self, state: &State) -> Result<Option<String>> {
        // What is on its way would come to be there after it was removed.
        self.copier.iter().for_each(Copier::flush);
        folder::drop_after(&self.folder, state.step)?;
        let dropped = |copier: &Copier| copier.store().drop_after(state).err();
        let failed = self.copier.as_ref().and_then(dropped);
        let step = state.step;
        Ok(failed.map(|e| format!("checkpoints after step {step} are still in the store: {e}")))
    }

    /// Says that the checkpoint of `step`, which has been written, had this validation loss. If it
    /// is the lowest and the recipe keeps the best, `best` names it.
    pub fn rate(&self, step: u64, loss: f64) -> Result<()> {
        let before = folder::best(&self.folder).map_or(f64::INFINITY, |(_, loss)| loss);
        let name = folder::name(step);
        if self.recipe.best && loss < before && self.folder.join(&name).exists() {
            folder::point_at(&self.folder, "best", &format!("{name} {loss}"))?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever wanted to know has asked; a run that ends by an error has told another one.
        let _ = self.wait();
    }
}

fn save(
    folder: &Path,
    recipe: &CheckpointRecipe,
    facts: &Facts,
    snapshot: &Snapshot,
    giver: Option<&Giver>,
) -> Result<()> {
    let whole = folder::write(folder, snapshot, facts, recipe.shard_mb << 20)?;
    if let Some(giver) = giver {
        giver.put(whole);
    }
    let best = folder::best(folder).filter(|_| recipe.best).map(|(name, _)| name);
    let copied = giver.map(Giver::names).unwrap_or_default();
    folder::prune(folder, recipe.keep, &best.into_iter().chain(copied).collect::<Vec<_>>())
}
