//! Takes a step of a run again, exactly, and shows it by layer and by sample beside the steps before.

use crate::audit::{self, AuditLine};
use crate::checkpoint::{folder, newest_state};
use crate::codes::CodeTable;
use crate::distil::Teacher;
use crate::guard::{Subject, by_group, memory_of};
use crate::lesson::Lessons;
use crate::optim::{gradients, squares};
use crate::pretrain::{fingerprint, forward};
use crate::run::{Run, entries};
use crate::session::{Pass, Session, mean};
use crate::tune::Base;
use crate::tuning::{self, Tuning};
use crate::watch::{Event, Watcher};
use danlu_core::{Batch, Error, Recipe, Result, TuneRecipe};
use danlu_data::{Corpus, Drawn};
use danlu_model::Tokenisers;
use danlu_model::arch::LayerView;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// A step that was taken again.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Its number, from 1.
    pub step: u64,
    /// The step of the checkpoint that was gone on from.
    pub from: u64,
    /// Weighted loss, now and as it was logged.
    pub loss: [Option<f64>; 2],
    /// Gradient norm, now and as it was logged.
    pub norm: [Option<f64>; 2],
    /// Steps of the window that it is compared with.
    pub window: u64,
    /// What each layer does.
    pub layers: Vec<LayerRow>,
    /// Whether the log has the step.
    pub found: bool,
    /// Its samples, those that cost most over what is usual for their task first.
    pub samples: Vec<SampleRow>,
}

impl Replay {
    /// Whether loss and gradient norm have the bits that were logged; `None` if the log has no such
    /// step.
    pub fn exact(&self) -> Option<bool> {
        let [now, then] = self.loss;
        let [norm, norm_then] = self.norm;
        if !self.found {
            return None;
        }
        Some(now.map(f64::to_bits) == then.map(f64::to_bits) && norm == norm_then)
    }
}

/// A layer in the step, and its mean over the window (`None` without one).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRow {
    /// `model.layers.3`.
    pub name: String,
    /// Gradient norm.
    pub gradient: [Option<f64>; 2],
    /// Root mean square of what comes out.
    pub scale: [Option<f64>; 2],
    /// Largest absolute value of what comes out.
    pub largest: [Option<f64>; 2],
    /// Entropy of its attention, from 0 to 1.
    pub entropy: [Option<f64>; 2],
    /// Values that come out and are not finite.
    pub bad: usize,
}

/// A sample of the step by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRow {
    /// Its index.
    pub index: u64,
    /// Its task.
    pub task: String,
    /// Tokens that are learnt.
    pub tokens: usize,
    /// Cross-entropy, nats a token.
    pub loss: f64,
    /// What its task cost lately.
    pub usual: Option<f64>,
    /// Norm of its own gradient.
    pub gradient: f64,
    /// How its text begins.
    pub text: String,
}

/// Steps before it that a step is compared with.
const WINDOW: u64 = 10;

/// A training of which a step can be taken again.
trait Again: Subject {
    fn pass(&mut self) -> Result<Self::Pass>;

    /// Its line of the audit log.
    fn line(pass: &Self::Pass, step: u64) -> AuditLine;

    /// Its loss as it is logged.
    fn logged(pass: &Self::Pass) -> f64;

    /// Gradients and activations by layer, in the first column of each row.
    fn layers(&mut self, pass: &Self::Pass) -> Vec<LayerRow>;

    /// Every sample of a step alone through the model and back.
    fn samples(&mut self, pass: &Self::Pass) -> Result<Vec<SampleRow>>;
}

/// Takes step `step` (from 1) of a pretraining again, from the newest checkpoint that leaves room for
/// a window of healthy steps before it. The run's folder is not changed.
pub fn replay(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    tokenisers: &Tokenisers,
    codes: &CodeTable,
    step: u64,
    watcher: &mut dyn Watcher,
) -> Result<Replay> {
    let print = fingerprint(recipe, run, corpus)?;
    let mut open = |until: u64, watcher: &mut dyn Watcher| {
        Session::open(recipe, corpus, tokenisers, codes, (run, &print, until), watcher)
    };
    again(run, [step, recipe.train.steps as u64], &mut open, watcher)
}

/// The same of a tuning; `folder` is its base's.
pub fn replay_tuning(
    recipe: &TuneRecipe,
    run: &Run,
    folder: &Path,
    step: u64,
    watcher: &mut dyn Watcher,
) -> Result<Replay> {
    let base = Base::read(recipe, folder)?;
    let lessons = Lessons::read(recipe, &base.model, watcher)?;
    let teacher = Teacher::of(recipe, &base.model, watcher)?;
    let print = base.facts(recipe, &lessons, teacher.as_ref()).recipe;
    let of = (&lessons, teacher.as_ref());
    let mut open = |until: u64, watcher: &mut dyn Watcher| {
        Tuning::open(recipe, run, &base.model, of, &print, until, watcher)
    };
    again(run, [step, recipe.train.steps as u64], &mut open, watcher)
}

/// What the log of a step says, of either regime.
#[derive(Deserialize)]
struct Logged {
    step: u64,
    loss: Option<f64>,
    norm: Option<f64>,
}

fn again<S: Again>(
    run: &Run,
    [step, steps]: [u64; 2],
    open: &mut dyn FnMut(u64, &mut dyn Watcher) -> Result<S>,
    watcher: &mut dyn Watcher,
) -> Result<Replay> {
    if step == 0 || step > steps {
        let wanted = format!("a step of this run, 1 to {steps}");
        return Err(Error::parameter("--step", wanted, step));
    }
    let lines: Vec<AuditLine> = entries(&run.log(audit::LOG))?;
    let log: Vec<Logged> = entries(&run.log(crate::run::LOG))?;
    let logged = log.iter().find(|l| l.step == step);
    let there: Vec<u64> =
        folder::list(&run.checkpoints()).iter().filter_map(|path| folder::step_of(path)).collect();
    let before = |until: u64| there.iter().copied().filter(|&s| s <= until).max().unwrap_or(0);
    let (far, near) = (step.saturating_sub(1 + WINDOW), step - 1);
    // Without an earlier checkpoint the first would be taken from the very start: too far if there
    // is a checkpoint nearer by.
    let until = if before(far) + 10 * WINDOW < before(near) { near } else { far };
    let mut subject = open(until, watcher)?;
    let from = subject.state().step;
    if from == 0 && run.begun()?.from.is_some() {
        // From the very start would be from other weights than it had.
        let first = there.iter().min().map_or("none".into(), |first| format!("of step {first}"));
        let wanted =
            "a step after a checkpoint that there still is: it began with another run's weights";
        return Err(Error::parameter(
            "--step",
            wanted,
            format!("{step}; the first checkpoint is {first}"),
        ));
    }
    if let Some(now) = newest_state(&run.checkpoints()).and_then(|s| s.guard) {
        let memory = memory_of(&mut subject);
        (memory.eases, memory.left_out) = (now.eases, now.left_out);
    }
    watcher.tell(Event::Phase {
        name: format!("replay of step {step} from the checkpoint of step {from}"),
        steps: step as usize,
        done: from as usize,
    });
    let mut window: Vec<Vec<LayerRow>> = Vec::new();
    while subject.state().step + 1 < step {
        let mut pass = subject.pass()?;
        let done = subject.state().step + 1;
        let line = lines.iter().find(|l| l.step == done);
        same_content::<S>(run, done, line, &pass)?;
        if done + WINDOW >= step {
            window.push(subject.layers(&pass));
        }
        match line.is_some_and(|l| l.skipped) {
            true => subject.skip(),
            false => {
                subject.apply(&mut pass);
                memory_of(&mut subject).learn_tasks(S::figures(&pass).tasks);
            }
        }
        let figures = format!("loss {:.3}", S::logged(&pass));
        watcher.tell(Event::Step { done: done as usize, figures });
    }
    let pass = subject.pass()?;
    same_content::<S>(run, step, lines.iter().find(|l| l.step == step), &pass)?;
    let mut rows = subject.layers(&pass);
    let mean = |name: &str, of: &dyn Fn(&LayerRow) -> Option<f64>| -> Option<f64> {
        let all = window.iter().flatten().filter(|row| row.name == name).filter_map(of);
        let (sum, count) = all.fold((0.0, 0), |(sum, n), v| (sum + v, n + 1));
        (count > 0).then(|| sum / count as f64)
    };
    for row in &mut rows {
        row.gradient[1] = mean(&row.name, &|r| r.gradient[0]);
        row.scale[1] = mean(&row.name, &|r| r.scale[0]);
        row.largest[1] = mean(&row.name, &|r| r.largest[0]);
        row.entropy[1] = mean(&row.name, &|r| r.entropy[0]);
    }
    let mut samples = subject.samples(&pass)?;
    // A token each, or long texts would come before a short one that is all wrong.
    let excess = |r: &SampleRow| r.loss - r.usual.unwrap_or(0.0);
    samples.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
    let (loss, norm) = (S::logged(&pass), S::figures(&pass).norm);
    watcher.tell(Event::PhaseDone { result: format!("loss {loss:.4}") });
    let finite = |v: f64| v.is_finite().then_some(v);
    Ok(Replay {
        step,
        from,
        found: logged.is_some(),
        loss: [finite(loss), logged.and_then(|l| l.loss)],
        norm: [finite(norm), logged.and_then(|l| l.norm)],
        window: window.len() as u64,
        layers: rows,
        samples,
    })
}

/// Refuses samples that are not made into what they were made into.
fn same_content<S: Again>(
    run: &Run,
    step: u64,
    line: Option<&AuditLine>,
    pass: &S::Pass,
) -> Result<()> {
    let now = S::line(pass, step);
    match line {
        Some(then) if then.content != now.content || [then.from, then.to] != [now.from, now.to] => {
            Err(Error::file(
                run.log(audit::LOG),
                format!("step {step} of samples {:?}, {}", [then.from, then.to], then.content),
                format!(
                    "samples {:?}, {}: data or recipe are others",
                    [now.from, now.to],
                    now.content
                ),
            ))
        }
        _ => Ok(()),
    }
}

impl Again for Session<'_> {
    fn pass(&mut self) -> Result<Pass> {
        Session::pass(self)
    }

    fn line(pass: &Pass, step: u64) -> AuditLine {
        pass.audit(step, false)
    }

    fn logged(pass: &Pass) -> f64 {
        pass.loss
    }

    fn layers(&mut self, pass: &Pass) -> Vec<LayerRow> {
        let view = self.view(&pass.batches[0], 1);
        rows_of(view, &by_group(&self.model, &pass.squares), self.scale() as f64)
    }

    fn samples(&mut self, pass: &Pass) -> Result<Vec<SampleRow>> {
        let names = self.source.mixture.names();
        let memory = self.memory().clone();
        let mut rows = Vec::new();
        for index in pass.samples[0]..pass.samples[1] {
            let batch = self.alone(index)?;
            if batch.tokens == 0 {
                continue;
            }
            let (value, each) = forward(
                &self.model,
                &batch,
                mean(std::slice::from_ref(&batch)),
                self.recipe.train.z_loss,
            );
            let gradient = squares(&gradients(&self.model, value.backward()));
            let (task, text) = drawn(self, self.source.corpus, index);
            let task = names[task as usize];
            let usual = memory.tasks.get(task).map(|mean| mean.value);
            rows.push(row(&batch, &each, index, (task, usual), text, gradient));
        }
        Ok(rows)
    }
}

impl Again for Tuning<'_> {
    fn pass(&mut self) -> Result<tuning::Pass> {
        Tuning::pass(self)
    }

    fn line(pass: &tuning::Pass, step: u64) -> AuditLine {
        pass.audit(step, false)
    }

    fn logged(pass: &tuning::Pass) -> f64 {
        pass.logged()
    }

    fn layers(&mut self, pass: &tuning::Pass) -> Vec<LayerRow> {
        let batch = &pass.lesson.batch;
        // The first document is enough to look at.
        let end = batch.starts.get(1).map_or(batch.ids.len(), |&end| end as usize);
        let (ids, starts) = (Arc::from(&batch.ids[..end]), Arc::from([0, end as u32]));
        let view = self.learner.plain().view(&ids, &starts);
        rows_of(view, &by_group(&*self.learner.module(), &pass.squares), 1.0)
    }

    fn samples(&mut self, pass: &tuning::Pass) -> Result<Vec<SampleRow>> {
        let usual = memory_of(self).tasks.get("replies").map(|mean| mean.value);
        let mut rows = Vec::new();
        for index in pass.samples[0]..pass.samples[1] {
            // What the model tries by itself is no sample that could be to blame.
            let Some((batch, task, text)) = self.lessons.alone(index) else { continue };
            let (value, each) =
                forward(&self.learner.transformer, &batch, mean(std::slice::from_ref(&batch)), 0.0);
            let gradient = squares(&gradients(&*self.learner.module(), value.backward()));
            rows.push(row(&batch, &each, index, (&task, usual), short(&text), gradient));
        }
        Ok(rows)
    }
}

/// What was seen of the layers, and the squares of their gradients, each times `scale`.
fn rows_of(view: Vec<LayerView>, squares: &[(String, f64)], scale: f64) -> Vec<LayerRow> {
    let own = |name: &str| squares.iter().find(|(of, _)| of == name).map(|(_, squares)| *squares);
    let row = |v: &LayerView| LayerRow {
        name: v.name.clone(),
        gradient: [own(&v.name).map(|squares| squares.sqrt() * scale), None],
        scale: [Some(v.rms), None],
        largest: [Some(v.largest as f64), None],
        entropy: [v.entropy, None],
        bad: v.bad,
    };
    view.iter().map(row).collect()
}

fn row(
    batch: &Batch,
    each: &[f32],
    index: u64,
    (task, usual): (&str, Option<f64>),
    text: String,
    squares: Vec<f64>,
) -> SampleRow {
    let learnt = each.iter().zip(&batch.weights).filter(|(_, w)| **w > 0.0);
    let tokens = learnt.clone().count();
    let loss = learnt.map(|(&ce, _)| ce as f64).sum::<f64>() / tokens.max(1) as f64;
    SampleRow {
        index,
        task: task.to_string(),
        tokens,
        loss,
        usual,
        gradient: squares.iter().sum::<f64>().sqrt(),
        text,
    }
}

/// The number of a sample's task and how its text begins.
fn drawn(session: &Session<'_>, corpus: &Corpus, index: u64) -> (u16, String) {
    let (task, drawn) = session.source.mixture.draw(corpus, session.recipe.seed, index);
    let text = match drawn {
        Drawn::Text(text) | Drawn::Long(text) => text,
        Drawn::Chat(sample) => {
            let parts = sample.messages.iter().flat_map(|m| &m.parts);
            let texts = parts.map(danlu_core::Part::words);
            texts.collect::<Vec<_>>().join(" | ")
        }
    };
    (task, short(&text))
}

/// How a text begins, in a line.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect()
}
