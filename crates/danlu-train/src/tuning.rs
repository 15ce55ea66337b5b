//! A tuning that is open: what learns, its optimiser, its lessons, and where it stands. The loop in
//! [`crate::tune`] takes its steps through it.

use crate::audit::{self, AuditLine};
use crate::checkpoint::{self, Snapshot, State};
use crate::distil::{self, Teacher};
use crate::fault;
use crate::guard::{self, Figures, Limits, Subject};
use crate::lesson::{Lesson, Lessons};
use crate::optim::{Optimiser, gradients, squares, warm_rate};
use crate::pretrain::forward_at;
use crate::run::Run;
use crate::tune::Learner;
use crate::watch::{Event, Watcher};
use burn::tensor::Tensor;
use danlu_core::{Objective, Result, TuneRecipe};
use danlu_model::{Model, Module};
use std::path::PathBuf;

/// A tuning that is open.
pub(crate) struct Tuning<'a> {
    recipe: &'a TuneRecipe,
    model: &'a Model,
    teacher: Option<&'a Teacher>,
    pub(crate) lessons: &'a Lessons<'a>,
    pub(crate) learner: Learner,
    optimiser: Optimiser,
    pub(crate) state: State,
    checkpoints: PathBuf,
}

/// A step before its update.
pub(crate) struct Pass {
    pub(crate) lesson: Lesson,
    /// The value whose gradient is taken: a weighted sum of cross-entropies, or what a teacher makes of it.
    pub(crate) sum: f64,
    /// What the guard watches.
    watched: [(String, f64, f64); 1],
    /// Gradient norm before clipping.
    pub(crate) norm: f64,
    grads: Vec<Tensor<2>>,
    pub(crate) squares: Vec<f64>,
    /// From the first item to the one after the last.
    pub(crate) samples: [u64; 2],
    left_out: Option<[u64; 2]>,
}

impl Pass {
    /// Its loss for the log.
    pub(crate) fn logged(&self) -> f64 {
        self.lesson.loss.unwrap_or(self.sum)
    }

    /// Its line of the audit log.
    pub(crate) fn audit(&self, step: u64, skipped: bool) -> AuditLine {
        let [from, to] = self.samples;
        let left_out = self.left_out.into_iter().collect();
        let content = audit::content(std::slice::from_ref(&self.lesson.batch));
        AuditLine { step, from, to, left_out, skipped, content }
    }
}

impl<'a> Tuning<'a> {
    /// A tuning of `model` before its first step, which keeps nothing.
    pub(crate) fn begin(
        recipe: &'a TuneRecipe,
        model: &'a Model,
        (lessons, teacher): (&'a Lessons<'a>, Option<&'a Teacher>),
    ) -> Result<Self> {
        let r = &recipe.train;
        let mut learner = fresh(recipe, model)?;
        let optimiser =
            Optimiser::new(&*learner.module(), [0.9, 0.999], 1e-8, r.weight_decay, r.clip);
        let (state, checkpoints) = (State::new(String::new()), PathBuf::new());
        Ok(Self { recipe, model, teacher, lessons, learner, optimiser, state, checkpoints })
    }

    /// Opens a tuning of `model` at its newest checkpoint that is whole and not after step `until`, or
    /// before its first step.
    pub(crate) fn open(
        recipe: &'a TuneRecipe,
        run: &Run,
        model: &'a Model,
        of: (&'a Lessons<'a>, Option<&'a Teacher>),
        fingerprint: &str,
        until: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        let mut tuning = Self { checkpoints: run.checkpoints(), ..Self::begin(recipe, model, of)? };
        let mut faults = Vec::new();
        let found = checkpoint::load_until(
            &tuning.checkpoints,
            until,
            fingerprint,
            &mut *tuning.learner.module(),
            &mut tuning.optimiser,
            None,
            &mut faults,
        )?;
        faults.into_iter().for_each(|f| watcher.tell(Event::Note(f)));
        tuning.state = found.unwrap_or_else(|| State::new(fingerprint.into()));
        Ok(tuning)
    }

    /// Takes the items of the next step through the model and back.
    pub(crate) fn pass(&mut self) -> Result<Pass> {
        let step = self.state.step;
        fault::poison(&mut *self.learner.module(), step);
        let before = self.state.next;
        let from = self.state.guard.as_ref().map_or(before, |m| m.after_left_out(before));
        let lesson = self.lessons.next(&self.learner, from, step as usize)?;
        self.learner.shake(Some(self.dice(step)));
        let (value, sum) = self.loss(&lesson);
        let grads = gradients(&*self.learner.module(), value.backward());
        self.learner.shake(None);
        let squares = squares(&grads);
        self.state.next = lesson.next;
        Ok(Pass {
            watched: [watched(&lesson, sum)],
            sum,
            norm: squares.iter().sum::<f64>().sqrt(),
            grads,
            squares,
            samples: [from, lesson.next],
            left_out: (from > before).then_some([before, from]),
            lesson,
        })
    }

    /// What is to be differentiated of a lesson, and its value.
    fn loss(&self, lesson: &Lesson) -> (Tensor<1>, f64) {
        let (student, batch) = (&self.learner.transformer, &lesson.batch);
        if let Some(teacher) = self.teacher {
            return distil::loss(student, teacher, batch);
        }
        let value = forward_at(student, batch, lesson.scale, 0.0, lesson.temperature).0;
        let number = value.clone().inner().into_scalar::<f32>() as f64;
        (value, number)
    }

    /// The seed of the dropout of a step.
    fn dice(&self, step: u64) -> u64 {
        self.recipe.seed ^ step << 8
    }

    fn scheduled(&self) -> f32 {
        let (r, step) = (&self.recipe.train, self.state.step as usize);
        warm_rate(r.schedule, [r.steps, r.warmup, step], r.final_rate, 0.2)
    }

    /// What the full learning rate is multiplied with in the next step.
    pub(crate) fn share(&self) -> f32 {
        self.scheduled() * self.state.guard.as_ref().map_or(1.0, |m| m.ease(self.state.step))
    }

    /// What the guard watches, of the step that begins with item `from`, with the weights of now.
    fn watched_of(&mut self, from: u64) -> Result<f64> {
        let step = self.state.step;
        let lesson = self.lessons.next(&self.learner, from, step as usize)?;
        self.learner.shake(Some(self.dice(step)));
        let (_, sum) = self.loss(&lesson);
        self.learner.shake(None);
        Ok(watched(&lesson, sum).1)
    }
}

/// What learns, before its first step.
pub(crate) fn fresh(recipe: &TuneRecipe, model: &Model) -> Result<Learner> {
    Learner::new(&model.transformer, recipe.lora.as_ref(), recipe.base, recipe.seed)
}

/// The figure of a lesson that is expected to go on as it did. A reward jumps; how far the model has
/// gone from the reference does not.
fn watched(lesson: &Lesson, sum: f64) -> (String, f64, f64) {
    let (name, value) = match (lesson.figures.get("divergence"), lesson.loss) {
        (Some(&divergence), _) => ("divergence", divergence),
        (None, Some(loss)) => ("preference", loss),
        (None, None) => ("replies", sum),
    };
    (name.into(), value, lesson.batch.tokens as f64)
}

impl Subject for Tuning<'_> {
    type Pass = Pass;

    fn phase(&self) -> &'static str {
        ""
    }

    fn limits(&self) -> Limits {
        // A pair that is new among learnt ones, or the first try that is rewarded, has a gradient of
        // another size than those before it: it is clipped, and no trouble. What a model tries by
        // itself is no data that could be bad, and its divergence has a long tail.
        let (least, nats) = match self.recipe.objective {
            Objective::Reply | Objective::Distil { .. } => (0.2, 16.0),
            Objective::Dpo { .. } => (0.7, 0.0),
            Objective::Grpo { .. } => (f64::INFINITY, 0.0),
        };
        // The matrices of an adapter are small, and one of them begins with zeros.
        let update = if self.recipe.lora.is_some() { f64::INFINITY } else { 0.25 };
        Limits { least, nats, norm: f64::INFINITY, update }
    }

    fn peak_rate(&self) -> Option<f32> {
        Some(self.recipe.train.rate)
    }

    fn logs(&self) -> Vec<String> {
        ["train", audit::LOG].map(String::from).into()
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn module(&mut self) -> Box<dyn Module + '_> {
        self.learner.module()
    }

    fn figures(pass: &Pass) -> Figures<'_> {
        let &Pass { norm, samples, .. } = pass;
        Figures { loss: pass.watched[0].1, norm, tasks: &pass.watched, spreads: &[], samples }
    }

    fn usual_share(&self) -> f32 {
        self.scheduled() * self.state.guard.as_ref().map_or(1.0, |m| m.ramp(self.state.step))
    }

    fn apply(&mut self, pass: &mut Pass) {
        let rate = self.recipe.train.rate * self.share() * fault::rate("", self.state.step);
        let grads = std::mem::take(&mut pass.grads);
        let module = &mut *self.learner.module();
        self.optimiser.step_known(module, grads, &pass.squares, [rate, 0.0], 1.0);
        self.state.step += 1;
    }

    fn skip(&mut self) {
        self.optimiser.step += 1;
        self.state.step += 1;
    }

    fn loss_again(&mut self, pass: &Pass) -> Result<f64> {
        self.watched_of(pass.samples[0])
    }

    fn loss_of_samples(&mut self, from: u64) -> Result<f64> {
        self.watched_of(from)
    }

    fn parameter_not_finite(&mut self) -> Option<String> {
        // The base beneath an adapter can be damaged too.
        guard::not_finite(self.learner.every())
    }

    fn first_not_finite(&mut self, pass: &Pass, evidence: &mut Vec<String>) -> Option<String> {
        let plain = self.learner.plain();
        let batches = std::slice::from_ref(&pass.lesson.batch);
        let module = &*self.learner.module();
        guard::first_not_finite(&plain, batches, module, &pass.squares, evidence)
    }

    fn snapshot(&mut self) -> Result<Snapshot> {
        Snapshot::take(&self.state, &*self.learner.module(), &self.optimiser, None)
    }

    fn restore(&mut self, step: u64) -> Result<()> {
        // The base comes from the model that was read, and what learns from the checkpoint.
        self.learner = fresh(self.recipe, self.model)?;
        self.state = checkpoint::load_step(
            &self.checkpoints,
            step,
            &self.state.fingerprint,
            &mut *self.learner.module(),
            &mut self.optimiser,
            None,
        )?;
        Ok(())
    }
}
