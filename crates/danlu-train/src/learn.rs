//! The loop that autoencoders and recognisers share: warm-up, then a straight line to nothing. AdamW,
//! with Muon for the matrices inside a recogniser's scales.

use crate::audit::{self, AuditLine};
use crate::checkpoint::{self, Facts, Snapshot, State, Writer};
use crate::fault;
use crate::guard::{self, Done, Figures, Limits, Subject};
use crate::optim::{Optimiser, gradients, squares};
use crate::pretrain::{data_hashes, recipe_hash};
use crate::run::{Run, append};
use crate::tokenisers::LogLine;
use crate::watch::{Event, Watcher};
use burn::tensor::Tensor;
use danlu_core::recipe::{CheckpointRecipe, Recipe};
use danlu_core::{Error, Picture, Result};
use danlu_data::Corpus;
use danlu_model::Module;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Learning rate of Muon as a multiple of AdamW's.
const MUON_RATE: f32 = 10.0;

/// Steps of the warm-up.
const WARMUP: f32 = 100.0;

/// Steps between checkpoints: what is taken again after going back.
fn checkpoint_every(steps: usize) -> usize {
    (steps / 10).clamp(10, 100)
}

/// What is learnt, and how.
pub(crate) struct Course<'a, M, const D: usize> {
    /// In words.
    pub(crate) what: &'static str,
    /// In names of files.
    pub(crate) name: &'static str,
    pub(crate) steps: usize,
    /// Samples a step.
    pub(crate) batch: usize,
    /// Peak learning rate.
    pub(crate) rate: f32,
    /// What a loss must be over the expected one to be trouble.
    pub(crate) least: f64,
    /// The samples of some indices.
    pub(crate) draw: &'a dyn Fn(&M, Range<u64>) -> Examples<D>,
    pub(crate) loss: &'a dyn Fn(&M, &Examples<D>) -> Tensor<1>,
}

/// What a step learns from.
pub(crate) struct Examples<const D: usize> {
    pub(crate) inputs: Tensor<D>,
    /// Class of each, for recognisers.
    pub(crate) classes: Vec<u32>,
    pub(crate) content: Content,
}

/// First digits of the hash of what examples are made of, and what it took to hash it.
pub(crate) struct Content {
    digits: String,
    took: Duration,
}

impl Content {
    /// Of pictures and their classes.
    pub(crate) fn of_pictures(pictures: &[&Picture], classes: &[u32]) -> Self {
        Self::of(classes, |hash| {
            pictures.iter().for_each(|p| {
                hash.update(&p.rgb);
            });
        })
    }

    /// Of rows of numbers and their classes.
    pub(crate) fn of_rows(rows: &[&[f32]], classes: &[u32]) -> Self {
        Self::of(classes, |hash| rows.iter().for_each(|row| hash_numbers(hash, row)))
    }

    fn of(classes: &[u32], add: impl FnOnce(&mut blake3::Hasher)) -> Self {
        let started = Instant::now();
        let mut hash = blake3::Hasher::new();
        add(&mut hash);
        for class in classes {
            hash.update(&class.to_le_bytes());
        }
        let digits = hash.finalize().to_hex()[..16].to_string();
        Self { digits, took: started.elapsed() }
    }
}

/// Takes numbers into a hash, many at a time, for that is what hashing is quick at.
pub(crate) fn hash_numbers(hash: &mut blake3::Hasher, numbers: &[f32]) {
    const MANY: usize = 4096;
    let mut bytes = [0; 4 * MANY];
    for some in numbers.chunks(MANY) {
        for (at, value) in bytes.chunks_exact_mut(4).zip(some) {
            at.copy_from_slice(&value.to_le_bytes());
        }
        hash.update(&bytes[..4 * some.len()]);
    }
}

/// Learns a module by a course, from its newest checkpoint if there is one.
pub(crate) fn learn<M: Module, const D: usize>(
    course: &Course<'_, M, D>,
    module: &mut M,
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let (name, steps) = (course.name, course.steps);
    let facts = facts(recipe, corpus)?;
    checkpoint::same_data(&checkpoints(run, name), &facts)?;
    let mut learning = Learning::open(course, module, run, &facts.recipe, watcher)?;
    // The store is for what the run is for.
    let kept = CheckpointRecipe { store: None, ..recipe.checkpoint.clone() };
    let mut writer = Writer::new(&learning.folder, &kept, facts)?;
    guard::begin(&recipe.guard, run, &mut learning, &mut writer)?;
    let done = learning.state.step as usize;
    watcher.tell(Event::Phase { name: course.what.into(), steps, done });
    let mut clock = Instant::now();
    while (learning.state.step as usize) < steps {
        let started = Instant::now();
        let mut pass = learning.pass();
        let what = guard::step(&recipe.guard, run, &mut learning, &mut pass, &mut writer, watcher)?;
        if what == Done::Back {
            continue;
        }
        let done = learning.state.step as usize;
        let line = || pass.audit(done as u64, what == Done::Skipped);
        audit::log(run, &audit::log_of(name), &mut learning.state.upkeep, line)?;
        learning.state.upkeep.audit += pass.examples.content.took.as_secs_f64();
        guard::conclude(run, &mut learning, watcher)?;
        learning.state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        if pass.loss.is_finite() {
            let loss = pass.loss as f32;
            let smooth = learning.state.smooth.map_or(loss, |s| s * 0.98 + loss * 0.02);
            learning.state.smooth = Some(smooth);
        }
        let loss = learning.state.smooth.unwrap_or(f32::NAN);
        let stop = watcher.stop();
        let scheduled = done.is_multiple_of(checkpoint_every(steps));
        if scheduled && recipe.guard.on {
            guard::memory_of(&mut learning).mark(done as u64);
        }
        if stop || (scheduled || writer.due()) && done < steps {
            guard::keep(&recipe.guard, &mut learning, &mut writer, watcher);
        }
        learning.state.upkeep.step(started, &mut writer);
        let last = done == steps;
        if done.is_multiple_of(20) || last {
            let upkeep = last.then_some(learning.state.upkeep);
            append(&run.log(name), &LogLine { step: done, loss, upkeep })?;
        }
        watcher.tell(Event::Step { done, figures: format!("loss {loss:.4}") });
        if stop {
            writer.wait()?;
            return Err(Error::Other(format!(
                "{}: stopped at step {done}; a checkpoint is in {}",
                course.what,
                learning.folder.display()
            )));
        }
    }
    // The module is not saved yet: until it is, the last checkpoint is what there is of it.
    writer.wait().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
    guard::finish(run, &mut learning, watcher)?;
    learning.state.upkeep.saved(&mut writer);
    let loss = learning.state.smooth.map_or(String::new(), |s| format!("loss {s:.4}"));
    watcher.tell(Event::PhaseDone { result: learning.state.upkeep.after(loss) });
    Ok(())
}

/// What the manifests of checkpoints record.
pub(crate) fn facts(recipe: &Recipe, corpus: &Corpus) -> Result<Facts> {
    Ok(Facts {
        seed: recipe.seed,
        recipe: recipe_hash(recipe),
        data: data_hashes(recipe, corpus)?,
        ..Facts::default()
    })
}

/// Lets a module go on with data that is not what it was learnt from so far.
pub(crate) fn accept(run: &Run, name: &str, facts: &Facts) -> Result<()> {
    checkpoint::accept_data(&checkpoints(run, name), &facts.recipe, facts)
}

/// Removes the checkpoints of a module that is saved, if there are some.
pub(crate) fn forget(run: &Run, name: &str) -> Result<()> {
    let folder = checkpoints(run, name);
    let aside = folder.with_extension("old");
    let _ = std::fs::remove_dir_all(&aside);
    if folder.exists() {
        // Renamed first, so that what is half removed is not taken for checkpoints.
        std::fs::rename(&folder, &aside).map_err(|e| Error::io(&folder, e))?;
        std::fs::remove_dir_all(&aside).map_err(|e| Error::io(&aside, e))?;
    }
    Ok(())
}

/// Where checkpoints are while a module is learnt.
pub(crate) fn checkpoints(run: &Run, name: &str) -> PathBuf {
    run.tokenisers().join(format!("{name}-checkpoints"))
}

/// A course that is open.
struct Learning<'a, M, const D: usize> {
    course: &'a Course<'a, M, D>,
    module: &'a mut M,
    optimiser: Optimiser,
    state: State,
    folder: PathBuf,
}

/// A step before its update.
struct Pass<const D: usize> {
    loss: f64,
    /// The loss again, as the guard takes it.
    tasks: [(String, f64, f64); 1],
    norm: f64,
    grads: Vec<Tensor<2>>,
    squares: Vec<f64>,
    samples: [u64; 2],
    left_out: Option<[u64; 2]>,
    examples: Examples<D>,
}

impl<const D: usize> Pass<D> {
    fn audit(&self, step: u64, skipped: bool) -> AuditLine {
        let [from, to] = self.samples;
        let left_out = self.left_out.into_iter().collect();
        AuditLine {
            step,
            from,
            to,
            left_out,
            skipped,
            content: self.examples.content.digits.clone(),
        }
    }
}

impl<'a, M: Module, const D: usize> Learning<'a, M, D> {
    fn open(
        course: &'a Course<'a, M, D>,
        module: &'a mut M,
        run: &Run,
        fingerprint: &str,
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        let mut optimiser = Optimiser::new(module, [0.9, 0.99], 1e-8, 0.01, 1.0)
            .with_muon(module, |name| name.starts_with("scales."));
        let folder = checkpoints(run, course.name);
        let mut faults = Vec::new();
        let found =
            checkpoint::load(&folder, fingerprint, module, &mut optimiser, None, &mut faults)?;
        faults.into_iter().for_each(|f| watcher.tell(Event::Note(f)));
        let mut state = found.unwrap_or_else(|| State::new(fingerprint.into()));
        if state.guard.is_none() {
            // Without a guard, nothing is left out; checkpoints of before there was one do not say.
            state.next = state.step * course.batch as u64;
        }
        Ok(Self { course, module, optimiser, state, folder })
    }

    fn draw(&self, from: u64) -> Examples<D> {
        (self.course.draw)(self.module, from..from + self.course.batch as u64)
    }

    /// Takes the samples of the next step through the module and back.
    fn pass(&mut self) -> Pass<D> {
        fault::poison(self.module, self.state.step);
        let before = self.state.next;
        let from = self.state.guard.as_ref().map_or(before, |m| m.after_left_out(before));
        let examples = self.draw(from);
        self.state.next = from + self.course.batch as u64;
        let value = (self.course.loss)(self.module, &examples);
        let loss = value.clone().inner().into_scalar::<f32>() as f64;
        let grads = gradients(self.module, value.backward());
        let squares = squares(&grads);
        Pass {
            loss,
            tasks: [(self.course.name.into(), loss, self.course.batch as f64)],
            norm: squares.iter().sum::<f64>().sqrt(),
            grads,
            squares,
            samples: [from, self.state.next],
            left_out: (from > before).then_some([before, from]),
            examples,
        }
    }

    /// Shares of the peak learning rate in the next step: of the warm-up, and of the way down.
    fn schedule(&self) -> [f32; 2] {
        let (step, steps) = (self.state.step as f32, self.course.steps as f32);
        [((step + 1.0) / WARMUP).min(1.0), ((steps - step) / steps).min(1.0)]
    }
}

impl<M: Module, const D: usize> Subject for Learning<'_, M, D> {
    type Pass = Pass<D>;

    fn phase(&self) -> &'static str {
        self.course.name
    }

    fn limits(&self) -> Limits {
        // Convolutions start anew and move by much at first.
        Limits { least: self.course.least, nats: 0.0, norm: 20.0, update: f64::INFINITY }
    }

    /// Codes that nobody uses are set anew.
    fn peak_rate(&self) -> Option<f32> {
        None
    }

    fn logs(&self) -> Vec<String> {
        vec![self.course.name.into(), audit::log_of(self.course.name)]
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn module(&mut self) -> Box<dyn Module + '_> {
        Box::new(&mut *self.module)
    }

    fn figures(pass: &Pass<D>) -> Figures<'_> {
        let &Pass { loss, norm, samples, .. } = pass;
        Figures { loss, norm, tasks: &pass.tasks, spreads: &[], samples }
    }

    fn usual_share(&self) -> f32 {
        let [warm, left] = self.schedule();
        warm * left * self.state.guard.as_ref().map_or(1.0, |m| m.ramp(self.state.step))
    }

    fn apply(&mut self, pass: &mut Pass<D>) {
        let ease = self.state.guard.as_ref().map_or(1.0, |m| m.ease(self.state.step));
        let [warm, left] = self.schedule();
        let wrong = fault::rate(self.course.name, self.state.step);
        let rate = self.course.rate * warm * left * ease * wrong;
        let grads = std::mem::take(&mut pass.grads);
        let rates = [rate, MUON_RATE * rate];
        self.optimiser.step_known(self.module, grads, &pass.squares, rates, 1.0);
        self.state.step += 1;
    }

    fn skip(&mut self) {
        self.optimiser.step += 1;
        self.state.step += 1;
    }

    fn loss_again(&mut self, pass: &Pass<D>) -> Result<f64> {
        let value = (self.course.loss)(self.module, &pass.examples);
        Ok(value.inner().into_scalar::<f32>() as f64)
    }

    fn loss_of_samples(&mut self, from: u64) -> Result<f64> {
        let value = (self.course.loss)(self.module, &self.draw(from));
        Ok(value.inner().into_scalar::<f32>() as f64)
    }

    fn first_not_finite(&mut self, pass: &Pass<D>, evidence: &mut Vec<String>) -> Option<String> {
        if !pass.loss.is_finite() {
            evidence.push("the loss is not finite although all weights are".into());
            return None;
        }
        let groups = guard::by_group(self.module, &pass.squares);
        let (name, _) = groups.into_iter().rev().find(|(_, squares)| !squares.is_finite())?;
        evidence.push(format!("the loss is finite; gradients of {name} are not"));
        Some(name)
    }

    fn snapshot(&mut self) -> Result<Snapshot> {
        Snapshot::take(&self.state, self.module, &self.optimiser, None)
    }

    fn restore(&mut self, step: u64) -> Result<()> {
        let print = &self.state.fingerprint;
        let optimiser = &mut self.optimiser;
        self.state =
            checkpoint::load_step(&self.folder, step, print, self.module, optimiser, None)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells_examples_apart() {
        let rows = |rows: &[&[f32]], classes: &[u32]| Content::of_rows(rows, classes).digits;
        let long: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        let mut other = long.clone();
        other[4999] += 0.5;
        assert_eq!(rows(&[&long], &[1]), rows(&[&long[..300], &long[300..]], &[1]));
        assert_ne!(rows(&[&long], &[1]), rows(&[&other], &[1]));
        assert_ne!(rows(&[&long], &[1]), rows(&[&long], &[2]));
        let picture = |colour| Picture::filled(4, 4, colour);
        let [a, b] = [picture([1, 2, 3]), picture([1, 2, 4])];
        let of = |p: &Picture| Content::of_pictures(&[p], &[]).digits;
        assert!(of(&a) == of(&a) && of(&a) != of(&b));
    }
}
