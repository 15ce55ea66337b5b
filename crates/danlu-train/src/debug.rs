//! Takes a step of a run again, exactly, and shows it by layer and by sample beside the steps before.

use crate::audit::{self, AuditLine};
use crate::checkpoint::newest_state;
use crate::codes::CodeTable;
use crate::guard::{Subject, by_group};
use crate::optim::{gradients, squares};
use crate::pretrain::{LogLine, forward, mean};
use crate::run::{Run, entries};
use crate::session::{Pass, Session};
use crate::watch::{Event, Watcher};
use danlu_core::{Batch, Error, Recipe, Result};
use danlu_data::{Corpus, Drawn};
use danlu_model::Tokenisers;

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
    /// Its samples, those that cost most over what is usual for their task first.
    pub samples: Vec<SampleRow>,
}

impl Replay {
    /// Whether loss and gradient norm have the bits that were logged; `None` if the log has no such
    /// step.
    pub fn exact(&self) -> Option<bool> {
        let [now, then] = self.loss;
        let [norm, norm_then] = self.norm;
        then.or(norm_then)?;
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

/// Takes step `step` (from 1) of a run again, from the newest checkpoint that leaves room for a window
/// of healthy steps before it. The run's folder is not changed.
pub fn replay(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    tokenisers: &Tokenisers,
    codes: &CodeTable,
    step: u64,
    watcher: &mut dyn Watcher,
) -> Result<Replay> {
    if step == 0 || step > recipe.train.steps as u64 {
        let wanted = format!("a step of this run, 1 to {}", recipe.train.steps);
        return Err(Error::parameter("--step", wanted, step));
    }
    let lines: Vec<AuditLine> = entries(&run.log(audit::LOG))?;
    let log: Vec<LogLine> = entries(&run.log("train"))?;
    let logged = log.iter().find(|l| l.step as u64 == step);
    let open = |until: u64, watcher: &mut dyn Watcher| {
        Session::open(recipe, run, corpus, tokenisers, codes, until, watcher)
    };
    let mut session = open(step.saturating_sub(1 + WINDOW), watcher)?;
    let nearer = open(step - 1, watcher)?;
    // Without an earlier checkpoint the first would be taken from the very start: too far if there
    // is a checkpoint nearer by.
    if session.state.step + 10 * WINDOW < nearer.state.step {
        session = nearer;
    }
    let from = session.state.step;
    if let Some(now) = newest_state(&run.checkpoints()).and_then(|s| s.guard) {
        let memory = session.memory();
        (memory.eases, memory.left_out) = (now.eases, now.left_out);
    }
    watcher.tell(Event::Phase {
        name: format!("replay of step {step} from the checkpoint of step {from}"),
        steps: step as usize,
        done: from as usize,
    });
    let mut window: Vec<Vec<LayerRow>> = Vec::new();
    while session.state.step + 1 < step {
        let mut pass = session.pass()?;
        let done = session.state.step + 1;
        let line = lines.iter().find(|l| l.step == done);
        same_content(run, done, line, &pass)?;
        if done + WINDOW >= step {
            window.push(layers(&session, &pass));
        }
        match line.is_some_and(|l| l.skipped) {
            true => session.skip(),
            false => session.apply(&mut pass),
        }
        watcher
            .tell(Event::Step { done: done as usize, figures: format!("loss {:.3}", pass.loss) });
    }
    let pass = session.pass()?;
    same_content(run, step, lines.iter().find(|l| l.step == step), &pass)?;
    let mut rows = layers(&session, &pass);
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
    let samples = samples(&mut session, corpus, &pass)?;
    watcher.tell(Event::PhaseDone { result: format!("loss {:.4}", pass.loss) });
    let finite = |v: f64| v.is_finite().then_some(v);
    Ok(Replay {
        step,
        from,
        loss: [finite(pass.loss), logged.and_then(|l| finite(l.loss))],
        norm: [finite(pass.norm), logged.and_then(|l| finite(l.norm))],
        window: window.len() as u64,
        layers: rows,
        samples,
    })
}

/// Refuses samples that are not made into what they were made into.
fn same_content(run: &Run, step: u64, line: Option<&AuditLine>, pass: &Pass) -> Result<()> {
    match line {
        Some(line) if line.content != pass.content() || [line.from, line.to] != pass.samples => {
            Err(Error::file(
                run.log(audit::LOG),
                format!("step {step} of samples {:?}, {}", [line.from, line.to], line.content),
                format!(
                    "samples {:?}, {}: data or recipe are others",
                    pass.samples,
                    pass.content()
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// Gradients and activations by layer, in the first column of each row.
fn layers(session: &Session<'_>, pass: &Pass) -> Vec<LayerRow> {
    let scale = session.scale() as f64;
    let norms = by_group(&session.model, &pass.squares);
    let view = session.view(&pass.batches[0], 1);
    let row = |v: &danlu_model::arch::LayerView| {
        let own = norms.iter().find(|(name, _)| *name == v.name);
        LayerRow {
            name: v.name.clone(),
            gradient: [own.map(|(_, squares)| squares.sqrt() * scale), None],
            scale: [Some(v.rms), None],
            largest: [Some(v.largest as f64), None],
            entropy: [v.entropy, None],
            bad: v.bad,
        }
    };
    view.iter().map(row).collect()
}

/// Every sample of a step alone through the model and back.
fn samples(session: &mut Session<'_>, corpus: &Corpus, pass: &Pass) -> Result<Vec<SampleRow>> {
    let names = session.source.mixture.names();
    let memory = session.memory().clone();
    let mut rows = Vec::new();
    for index in pass.samples[0]..pass.samples[1] {
        let batch = session.alone(index)?;
        if batch.tokens == 0 {
            continue;
        }
        let (value, each) =
            forward(&session.model, &batch, mean(&batch), session.recipe.train.z_loss);
        let gradient = squares(&gradients(&session.model, value.backward()));
        let (task, text) = drawn(session, corpus, index);
        rows.push(row(&batch, &each, index, names[task as usize], &memory, text, gradient));
    }
    let excess = |r: &SampleRow| (r.loss - r.usual.unwrap_or(0.0)) * r.tokens as f64;
    rows.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
    Ok(rows)
}

fn row(
    batch: &Batch,
    each: &[f32],
    index: u64,
    task: &str,
    memory: &crate::guard::Memory,
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
        usual: memory.tasks.get(task).map(|mean| mean.value),
        gradient: squares.iter().sum::<f64>().sqrt(),
        text,
    }
}

/// The number of a sample's task and how its text begins.
fn drawn(session: &Session<'_>, corpus: &Corpus, index: u64) -> (u16, String) {
    let (task, drawn) = session.source.mixture.draw(corpus, session.recipe.seed, index);
    let text = match drawn {
        Drawn::Text(text) => text,
        Drawn::Chat(sample) => {
            let parts = sample.messages.iter().flat_map(|m| &m.parts);
            let texts = parts.map(|part| match part {
                danlu_core::Part::Text(text) => text.as_str(),
                danlu_core::Part::Image(_) => "[picture]",
                danlu_core::Part::Audio(_) => "[sound]",
            });
            texts.collect::<Vec<_>>().join(" | ")
        }
    };
    let short: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
    (task, short)
}
