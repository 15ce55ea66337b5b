//! Pretraining: the one loop in which the transformer learns every task and modality at once.

use crate::checkpoint::{self, Facts, Snapshot, State, Writer};
use crate::codes::CodeTable;
use crate::marginal::Marginals;
use crate::memory;
use crate::optim::{Optimiser, gradients, rate_at};
use crate::page::run_page;
use crate::run::{Run, append};
use crate::text_loss::{HeldOut, nats_per_byte};
use crate::watch::{Event, Watcher};
use burn::tensor::Tensor;
use danlu_core::recipe::{LossWeights, Optimiser as Kind, Recipe};
use danlu_core::{
    Batch, Control, Document, Error, Modality, Result, Rng, Sample, TokenKind, Vocabulary,
};
use danlu_data::{
    Classes, Corpus, Drawn, Mixture, Packer, View, cut, picture_classes, questions, sound_classes,
    tasks,
};
use danlu_model::engine::{Request, Sampling, generate};
use danlu_model::io::{Dtype, write_atomically};
use danlu_model::prompt::{Template, Value};
use danlu_model::{Model, ModelInfo, Module, Tokenisers, Transformer, TransformerConfig};
use danlu_ops::HeadLoss;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// Cross-entropy in nats a token, by name of modality or task.
pub type Losses = BTreeMap<String, f64>;

/// One line of the training log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Optimiser steps taken.
    pub step: usize,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Weighted training loss, z-loss included.
    pub loss: f64,
    /// Training cross-entropy by modality.
    pub modality: Losses,
    /// Training cross-entropy by task.
    pub task: Losses,
    /// Validation cross-entropy by modality, where it was measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation: Losses,
    /// Nats a byte of held-out plain text, by language and of `all`, where it was measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub text: Losses,
    /// Gradient norm before clipping.
    pub norm: f64,
    /// Share of the peak learning rate.
    pub rate: f32,
    /// Tokens a second.
    pub speed: f64,
    /// Share of the machine's multiply-add peak that the model's operations use.
    pub utilisation: f64,
}

/// What the training of a run depends on, in one hash: all of the recipe but how it is evaluated,
/// data and tokenisers.
pub fn fingerprint(recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    hash.update(recipe.for_training().to_toml().as_bytes());
    hash.update(codes_fingerprint(recipe, run, corpus)?.as_bytes());
    Ok(hash.finalize().to_hex().to_string())
}

/// Takes over the newest checkpoint and the log of another run, unless `run` has checkpoints of its
/// own already.
pub fn take_over(from: &Run, recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<State> {
    let print = fingerprint(recipe, run, corpus)?;
    let state = checkpoint::adopt(&from.checkpoints(), &run.checkpoints(), &print)?;
    for name in ["train", "samples"] {
        let (old, new) = (from.log(name), run.log(name));
        if old.exists() {
            std::fs::copy(&old, &new).map_err(|e| Error::io(&new, e))?;
        }
    }
    Ok(state)
}

/// What the codes of a corpus depend on, in one hash: data and tokenisers.
pub fn codes_fingerprint(recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    for (name, manifest) in manifests(recipe)? {
        hash.update(name.as_bytes());
        hash.update(manifest.as_bytes());
    }
    let sizes =
        [corpus.pictures.len(), corpus.sounds.len(), corpus.texts.len(), corpus.samples.len()];
    hash.update(format!("{sizes:?}").as_bytes());
    hash.update(format!("{} {}", recipe.data.variants, recipe.seed).as_bytes());
    hash.update(Tokenisers::fingerprint(&run.tokenisers())?.as_bytes());
    Ok(hash.finalize().to_hex().to_string())
}

/// What the manifests of checkpoints record of a run.
fn facts(recipe: &Recipe, run: &Run) -> Result<Facts> {
    let mut data = manifests(recipe)?;
    for path in &recipe.data.files {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
        data.insert(name, blake3::hash(&bytes).to_hex().to_string());
    }
    Ok(Facts {
        seed: recipe.seed,
        recipe: blake3::hash(recipe.for_training().to_toml().as_bytes()).to_hex().to_string(),
        data,
        tokenisers: Tokenisers::fingerprint(&run.tokenisers())?,
    })
}

/// BLAKE3 of each pack's manifest, by the pack's folder name.
fn manifests(recipe: &Recipe) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for folder in &recipe.data.packs {
        let path = folder.join("manifest.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().to_string();
        out.insert(name, blake3::hash(&bytes).to_hex().to_string());
    }
    Ok(out)
}

/// Takes conversations of sample files out of a corpus that are too long for a window, by file and
/// line; over the recipe's `max_bad_rows` of them, with those that could not be read, is an error.
pub fn check_lengths(
    recipe: &Recipe,
    corpus: &mut Corpus,
    tokenisers: &Tokenisers,
    codes: &CodeTable,
) -> Result<()> {
    let template = Template::new(tokenisers);
    let window = recipe.train.window;
    corpus.retain_samples(recipe.data.max_bad_rows, |sample| {
        let document = template.document(sample, &mut codes.reader(None), &even(), false, 0);
        match document {
            Ok(d) if d.ids.len() <= window + 1 => None,
            Ok(d) => Some(format!(
                "a conversation of {} tokens; expected at most {} (train.window {window} and one)",
                d.ids.len(),
                window + 1
            )),
            Err(e) => Some(e.to_string()),
        }
    })
}

/// Everything that makes documents: a pure function of the recipe's seed and an index.
struct Source<'a> {
    recipe: &'a Recipe,
    corpus: &'a Corpus,
    mixture: Mixture,
    template: Template<'a>,
    codes: &'a CodeTable,
    /// Classes of pictures and of sounds.
    classes: [Classes; 2],
    /// Samples made of packs that were too long for a window so far.
    too_long: std::cell::Cell<u64>,
}

impl Source<'_> {
    /// Document `index`; one without ids stands for a sample that is too long for a window, which
    /// is counted and passed over.
    fn document(&self, index: u64) -> Result<Document> {
        let (task, drawn) = self.mixture.draw(self.corpus, self.recipe.seed, index);
        let train = &self.recipe.train;
        let mut rng = Rng::new(self.recipe.seed ^ 0x5eed, index);
        match drawn {
            Drawn::Text(text) => {
                let mut document = self.template.plain_text(&text, &train.loss, task);
                cut(&mut document, train.window);
                Ok(document)
            }
            Drawn::Chat(sample) => {
                let blank = rng.unit() < train.blank && guided(&sample);
                let brief = rng.unit() < train.brief;
                let mut codes = self.codes.reader(Some(rng));
                if brief {
                    codes = codes.brief([&self.classes[0].of, &self.classes[1].of]);
                }
                let document =
                    self.template.document(&sample, &mut codes, &train.loss, blank, task)?;
                if document.ids.len() > train.window + 1 {
                    self.too_long.set(self.too_long.get() + 1);
                    return Ok(Document { ids: vec![], weights: vec![], task });
                }
                Ok(document)
            }
        }
    }
}

/// Whether a sample answers with a picture, so that its prompt may be left out for guidance.
fn guided(sample: &Sample) -> bool {
    let last = sample.messages.last();
    last.is_some_and(|m| m.parts.iter().any(|p| matches!(p, danlu_core::Part::Image(_))))
        && sample.messages.len() > 1
}

/// The recipe's default loss weights, for validation: every token of a reply counts the same.
fn even() -> LossWeights {
    LossWeights::default()
}

/// Trains the transformer of a run, from its newest checkpoint if there is one, and writes the
/// model folder. Stops with a checkpoint and an error if the watcher says so.
pub fn pretrain(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    tokenisers: Tokenisers,
    codes: &CodeTable,
    watcher: &mut dyn Watcher,
) -> Result<Model> {
    let r = &recipe.train;
    let plain = danlu_ops::cpu_device();
    let device = plain.clone().autodiff();
    let vocabulary = tokenisers.vocabulary();
    let base = match &recipe.model.from {
        Some(folder) => Some((Model::load(folder, &plain)?, Model::weights_hash(folder)?)),
        None => None,
    };
    let config = match &base {
        Some((base, _)) => base.transformer.config.clone(),
        None => TransformerConfig::from_recipe(&recipe.model, vocabulary.size(), r.window)?,
    };
    if config.vocabulary != vocabulary.size() {
        return Err(Error::parameter(
            "model.from",
            format!("a model with the {} token ids of the run's tokenisers", vocabulary.size()),
            config.vocabulary,
        ));
    }
    if config.context < r.window {
        return Err(Error::parameter(
            "model.context",
            format!("at least train.window ({})", r.window),
            config.context,
        ));
    }
    let source = Source {
        recipe,
        corpus,
        mixture: Mixture::new(&recipe.mixture, corpus)?,
        template: Template::new(&tokenisers),
        codes,
        classes: [picture_classes(corpus), sound_classes(corpus)],
        too_long: std::cell::Cell::new(0),
    };
    if r.brief > 0.0 && (vocabulary.image_semantic == 0 || vocabulary.audio_semantic == 0) {
        return Err(Error::parameter(
            "train.brief",
            "0 for tokenisers without both recognisers",
            r.brief,
        ));
    }
    let names = source.mixture.names();
    let packer =
        Packer { rows: r.rows, window: r.window, pad: vocabulary.control_id(Control::Pad) };

    let sizes = memory::Sizes::from(&config);
    let load = memory::Load {
        rows: r.rows,
        window: r.window,
        accumulate: r.accumulate,
        again: r.recompute.blocks("train.recompute", config.depth)?,
        muon: r.optimiser == Kind::Muon,
        average: r.ema > 0.0,
        replies: REPLIES,
        saves: true,
        threads: rayon::current_num_threads(),
    };
    let prediction = memory::predict(&sizes, &load);
    memory::check(&prediction, memory::available(), &sizes, &load)?;
    watcher.tell(Event::Note(prediction.to_string()));

    let (mut model, ancestor) = match base {
        Some((base, hash)) => (base.transformer, Some(hash)),
        None => (Transformer::new(config.clone(), recipe.seed, &device), None),
    };
    model.to_device(&device);
    model.blocks.iter_mut().zip(load.again).for_each(|(block, again)| block.recompute = again);
    let mut optimiser = Optimiser::from_recipe(&model, r);
    let mut average: Option<Vec<Tensor<2>>> = (r.ema > 0.0)
        .then(|| model.parameters().iter().map(|p| p.tensor.clone().inner()).collect());
    let print = fingerprint(recipe, run, corpus)?;
    let mut faults = Vec::new();
    let found = checkpoint::load(
        &run.checkpoints(),
        &print,
        &mut model,
        &mut optimiser,
        average.as_mut(),
        &mut faults,
    )?;
    faults.into_iter().for_each(|f| watcher.tell(Event::Note(f)));
    let mut state = found.unwrap_or(State::new(print));
    let mut writer = Writer::new(&run.checkpoints(), &recipe.checkpoint, facts(recipe, run)?);
    drop_after::<LogLine>(&run.log("train"), |l| l.step <= state.step as usize)?;

    let marginals = marginals(&source, &vocabulary)?;
    let json = serde_json::to_string(&marginals).map_err(|e| Error::Other(e.to_string()))?;
    write_atomically(&run.folder.join("marginals.json"), json.as_bytes())?;
    let validation = validation_batches(&source, &packer)?;
    let held_out = |limit| {
        let learns =
            |(name, &share): (&String, &f32)| PLAIN.contains(&name.as_str()) && share > 0.0;
        if !recipe.mixture.iter().any(learns) {
            return Ok(Vec::new());
        }
        HeldOut::of(corpus, &tokenisers.text, &vocabulary, [r.rows, r.window], limit)
    };
    let some_text = held_out(TEXT_BYTES)?;
    let peak = danlu_ops::fma_peak(rayon::current_num_threads(), 0.15);
    let first = state.step as usize;
    watcher.tell(Event::Phase {
        name: format!("base model, {:.1} M parameters", model.size() as f64 / 1e6),
        steps: r.steps,
        done: first,
    });
    let begun = Instant::now();
    let before = state.seconds;
    let mut bad_in_a_row = 0;
    for step in first..r.steps {
        let started = Instant::now();
        let (mut loss, mut sums, mut tokens, mut span) = (0.0, Sums::new(names.len()), 0, 0.0);
        let mut total: Option<Vec<Tensor<2>>> = None;
        for _ in 0..r.accumulate {
            let batch = packer.pack(state.next, &mut |i| source.document(i).map(Some))?;
            state.next = batch.next;
            tokens += batch.tokens;
            span += mean_span(&batch) / r.accumulate as f64;
            let (value, each) = forward(&model, &batch, mean(&batch), r.z_loss);
            let number: f32 = value.clone().inner().into_scalar();
            loss += number as f64 / r.accumulate as f64;
            sums.add(&batch, &each, &vocabulary);
            let grads = gradients(&model, value.backward());
            total = Some(match total {
                None => grads,
                Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| a + b).collect(),
            });
        }
        let share = rate_at(r, step);
        let grads = total.expect("accumulate is at least 1");
        let rates = [r.rate * share, r.muon_rate * share];
        let norm = optimiser.step(&mut model, grads, rates, 1.0 / r.accumulate as f32);
        state.step += 1;
        state.tokens += tokens as u64;
        state.seconds = before + begun.elapsed().as_secs_f64();
        if norm.is_finite() {
            bad_in_a_row = 0;
            if let Some(average) = &mut average {
                for (a, p) in average.iter_mut().zip(model.parameters()) {
                    let now = p.tensor.clone().inner();
                    *a = a.clone().mul_scalar(r.ema) + now.mul_scalar(1.0 - r.ema);
                }
            }
        } else {
            optimiser.step += 1;
            bad_in_a_row += 1;
            watcher.tell(Event::Note(format!(
                "step {step} skipped: loss {loss}, gradient norm {norm}, samples up to {}",
                state.next
            )));
            if bad_in_a_row > 20 {
                return Err(Error::Other(
                    "over 20 steps in a row without a finite gradient".into(),
                ));
            }
        }
        let done = step + 1;
        let speed = tokens as f64 / started.elapsed().as_secs_f64();
        let mut line = LogLine {
            step: done,
            tokens: state.tokens,
            loss,
            modality: sums.modality(),
            task: sums.tasks(&names),
            validation: Losses::new(),
            text: Losses::new(),
            norm,
            rate: share,
            speed,
            utilisation: speed * config.flops_per_token(span) / peak,
        };
        let stop = watcher.stop();
        let last = done == r.steps;
        let due = done % r.checkpoint == 0 || writer.due();
        let looks = last || done % r.validate == 0;
        if stop || due || looks {
            let taken = Snapshot::take(&state, &model, &optimiser, average.as_deref())?;
            let before = writer.begin(taken);
            before.unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        if looks {
            // Whatever becomes of the evaluation, the training is on the disk.
            writer.wait().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
            let frozen = frozen(&model, average.as_deref());
            line.validation = validate(&frozen, &validation, &vocabulary);
            let all = line.validation.values();
            if !line.validation.is_empty() {
                writer.rate(done as u64, all.sum::<f64>() / line.validation.len() as f64)?;
            }
            line.text = match last {
                true => nats_per_byte(&frozen, &held_out(usize::MAX)?),
                false => nats_per_byte(&frozen, &some_text),
            };
            samples(&frozen, &source, run, done)?;
        }
        append(&run.log("train"), &line)?;
        if looks || done == 20 {
            run_page(run, recipe, corpus)?;
        }
        watcher.tell(Event::Step { done, figures: figures(&line) });
        if stop {
            writer.wait()?;
            return Err(Error::Other(format!(
                "stopped at step {done}; go on with `danlu train --resume {}`",
                run.folder.display()
            )));
        }
    }
    let transformer = frozen(&model, average.as_deref());
    if source.too_long.get() > 0 {
        watcher.tell(Event::Note(format!(
            "{} samples were over train.window ({}) and passed over",
            source.too_long.get(),
            r.window
        )));
    }
    watcher.tell(Event::PhaseDone {
        result: format!("{} tokens in {:.0} s", state.tokens, state.seconds),
    });
    let info = ModelInfo {
        name: recipe.name.clone(),
        steps: state.step,
        tokens: state.tokens,
        recipe: blake3::hash(recipe.to_toml().as_bytes()).to_hex().to_string(),
        data: manifests(recipe)?,
        from: ancestor.into_iter().chain(state.from.clone()).collect(),
        ..Default::default()
    };
    let model = Model { transformer, tokenisers, info };
    model.save(&run.model(), Dtype::F32)?;
    Ok(model)
}

fn figures(line: &LogLine) -> String {
    let part = |m: Modality| {
        line.modality.get(m.name()).map_or(String::new(), |l| format!(" {} {l:.2}", m.name()))
    };
    format!(
        "loss {:.3}{} | {:.0} tok/s, MFU {:.0} %",
        line.loss,
        Modality::ALL.map(part).concat(),
        line.speed,
        100.0 * line.utilisation
    )
}

/// One over the sum of a batch's weights.
fn mean(batch: &Batch) -> f32 {
    1.0 / batch.weights.iter().sum::<f32>().max(1e-6)
}

/// Loss of a batch and the cross-entropy of each position.
/// Weighted by the batch, times `scale`.
pub(crate) fn forward(
    model: &Transformer,
    batch: &Batch,
    scale: f32,
    z_loss: f32,
) -> (Tensor<1>, Vec<f32>) {
    let spec = HeadLoss {
        targets: batch.targets.as_slice().into(),
        weights: batch.weights.as_slice().into(),
        scale,
        z_loss,
    };
    model.loss(&batch.ids.as_slice().into(), &batch.starts.as_slice().into(), &spec)
}

/// Keys that a token attends to on average: half its document.
fn mean_span(batch: &Batch) -> f64 {
    let squares: f64 = batch.starts.windows(2).map(|w| ((w[1] - w[0]) as f64).powi(2)).sum();
    squares / 2.0 / batch.ids.len().max(1) as f64
}

/// Sums of cross-entropies by modality and by task.
struct Sums {
    modality: [(f64, f64); 3],
    task: Vec<(f64, f64)>,
}

impl Sums {
    fn new(tasks: usize) -> Self {
        Self { modality: [(0.0, 0.0); 3], task: vec![(0.0, 0.0); tasks] }
    }

    fn add(&mut self, batch: &Batch, each: &[f32], vocabulary: &Vocabulary) {
        for (i, &ce) in each.iter().enumerate() {
            if batch.weights[i] <= 0.0 {
                continue;
            }
            let kind = vocabulary.kind(batch.targets[i]);
            let modality = kind.map_or(Modality::Text, TokenKind::modality);
            let m = Modality::ALL.iter().position(|&x| x == modality).expect("listed");
            for (sum, n) in [&mut self.modality[m], &mut self.task[batch.tasks[i] as usize]] {
                *sum += ce as f64;
                *n += 1.0;
            }
        }
    }

    fn modality(&self) -> Losses {
        let named = Modality::ALL.iter().map(|m| m.name().to_string());
        means(named.zip(self.modality.iter().copied()))
    }

    fn tasks(&self, names: &[&str]) -> Losses {
        means(names.iter().map(|n| n.to_string()).zip(self.task.iter().copied()))
    }
}

fn means(all: impl Iterator<Item = (String, (f64, f64))>) -> Losses {
    all.filter(|(_, (_, n))| *n > 0.0).map(|(name, (sum, n))| (name, sum / n)).collect()
}

fn marginals(source: &Source<'_>, vocabulary: &Vocabulary) -> Result<Marginals> {
    // Documents far from the ones that training begins with, but of the same distribution.
    let documents: Vec<Document> =
        (0..3000).map(|i| source.document((1 << 40) + i)).collect::<Result<_>>()?;
    Ok(Marginals::count(vocabulary, documents.iter()))
}

/// Batches of questions that training never sees, with their answers: held-out styles, voices and
/// concepts.
fn validation_batches(source: &Source<'_>, packer: &Packer) -> Result<Vec<Batch>> {
    let mut documents = Vec::new();
    for (number, name) in source.mixture.names().into_iter().enumerate() {
        if source.recipe.mixture[name] <= 0.0 {
            continue;
        }
        for view in [View::HeldStyle, View::HeldVoice, View::Validation] {
            for sample in questions(source.corpus, tasks::find(name)?, view, 6, source.recipe.seed)
            {
                let sample = tasks::answered(sample);
                let mut codes = source.codes.reader(None);
                let document =
                    source.template.document(&sample, &mut codes, &even(), false, number as u16)?;
                if document.ids.len() <= packer.window + 1 {
                    documents.push(document);
                }
            }
        }
    }
    let mut batches = Vec::new();
    let mut next = 0;
    while (next as usize) < documents.len() {
        let batch = packer.pack(next, &mut |i| Ok(documents.get(i as usize).cloned()))?;
        next = batch.next;
        batches.push(batch);
    }
    Ok(batches)
}

fn validate(model: &Transformer, batches: &[Batch], vocabulary: &Vocabulary) -> Losses {
    let tasks = batches.iter().flat_map(|b| &b.tasks).max().map_or(0, |&t| t as usize + 1);
    let mut sums = Sums::new(tasks);
    for batch in batches {
        sums.add(batch, &forward(model, batch, 1.0, 0.0).1, vocabulary);
    }
    sums.modality()
}

/// The model without gradient records, with averaged weights where there are some.
fn frozen(model: &Transformer, average: Option<&[Tensor<2>]>) -> Transformer {
    let mut model = model.clone();
    for (i, p) in model.parameters_mut().into_iter().enumerate() {
        p.tensor = match average {
            Some(average) => average[i].clone(),
            None => p.tensor.clone().inner(),
        };
    }
    model
}

/// A reply during training, for the run page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// Optimiser steps taken.
    pub step: usize,
    /// Task and view of the question.
    pub task: String,
    /// The question's text.
    pub question: String,
    /// File of the question's picture or sound.
    pub shown: Option<String>,
    /// What the reply should be, as text or name.
    pub expected: String,
    /// The reply, if it is text.
    pub text: Option<String>,
    /// File of the reply's picture or sound.
    pub file: Option<String>,
}

/// The tasks of plain text.
const PLAIN: [&str; 3] = ["text_en", "text_zh", "code"];

/// Bytes of each language that are measured at every validation but the last, which has them all.
const TEXT_BYTES: usize = 20_000;

/// Replies at one time.
const REPLIES: usize = 16;

/// The questions whose replies are kept at every validation.
const SHOWN: [(&str, View); 8] = [
    ("name_en", View::HeldStyle),
    ("name_zh", View::HeldStyle),
    ("transcribe_en", View::HeldVoice),
    ("draw_en", View::Seen),
    ("draw_heard_en", View::HeldVoice),
    ("draw_heard_zh", View::HeldVoice),
    ("say_en", View::HeldStyle),
    ("say_zh", View::HeldStyle),
];

fn samples(model: &Transformer, source: &Source<'_>, run: &Run, step: usize) -> Result<()> {
    let folder = run.samples();
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let template = &source.template;
    let mut asked = Vec::new();
    let mut requests = Vec::new();
    for (name, view) in SHOWN {
        if source.recipe.mixture.get(name).is_none_or(|&w| w <= 0.0) {
            continue;
        }
        for sample in questions(source.corpus, tasks::find(name)?, view, 2, source.recipe.seed ^ 77)
        {
            let Some(expected) = sample.expected.clone() else { continue };
            let to = match expected.first() {
                Some(danlu_core::Part::Image(_)) => Modality::Image,
                Some(danlu_core::Part::Audio(_)) => Modality::Audio,
                _ => Modality::Text,
            };
            let prompt = template.prompt(&sample, &mut source.codes.reader(None))?;
            if prompt.len() + 80 > model.config.context {
                continue;
            }
            requests.push(Request {
                prompt,
                blank: template.blank_prompt(),
                to: Some(to),
                max_tokens: 160,
                text: Sampling::default(),
                media: Sampling { temperature: 0.5, ..Default::default() },
                guidance: source.recipe.eval.guidance,
                seed: 1,
            });
            asked.push((name, view, sample, expected));
        }
    }
    let vocabulary = template.vocabulary();
    let replies = generate(model, vocabulary, &requests, REPLIES, &mut |_| {})?;
    for (i, ((name, view, sample, expected), ids)) in asked.iter().zip(&replies).enumerate() {
        let parts = || sample.messages.iter().flat_map(|m| &m.parts);
        let mut shown = None;
        for part in parts() {
            let stem = folder.join(format!("question-{i}"));
            match part {
                danlu_core::Part::Image(danlu_core::Media::Asset(id)) => {
                    let file = stem.with_extension("png");
                    write_atomically(
                        &file,
                        &danlu_media::encode_png(&source.corpus.picture(*id).picture),
                    )?;
                    shown = Some(file);
                }
                danlu_core::Part::Audio(danlu_core::Media::Asset(id)) => {
                    let file = stem.with_extension("wav");
                    write_atomically(
                        &file,
                        &danlu_media::encode_wav(&source.corpus.sound(*id).sound),
                    )?;
                    shown = Some(file);
                }
                _ => {}
            }
        }
        let texts: Vec<&str> = parts()
            .filter_map(|p| match p {
                danlu_core::Part::Text(t) => Some(t.as_str()),
                _ => None,
            })
            .collect();
        let stem = folder.join(format!("step-{step:06}-{i}"));
        let (mut text, mut file) = (None, None);
        match template.reply(ids)?.into_iter().next() {
            Some(Value::Text(t)) => text = Some(t),
            Some(Value::Picture(p)) => {
                let path = stem.with_extension("png");
                write_atomically(&path, &danlu_media::encode_png(&p))?;
                file = Some(path);
            }
            Some(Value::Sound(s)) => {
                let path = stem.with_extension("wav");
                write_atomically(&path, &danlu_media::encode_wav(&s))?;
                file = Some(path);
            }
            None => {}
        }
        let name_of = |label: &str| {
            let concept = source.corpus.concept_of_label(label)?;
            source.corpus.concepts[concept as usize].name("en").map(str::to_string)
        };
        let expected = match expected.first() {
            Some(danlu_core::Part::Text(t)) => t.clone(),
            _ => sample.label.as_deref().and_then(name_of).unwrap_or_default(),
        };
        let relative = |p: Option<std::path::PathBuf>| {
            p.and_then(|p| p.file_name().map(|n| n.to_string_lossy().to_string()))
        };
        append(
            &run.log("samples"),
            &SampleLine {
                step,
                task: format!("{name}, {}", view.name()),
                question: texts.join(" "),
                shown: relative(shown),
                expected,
                text,
                file: relative(file),
            },
        )?;
    }
    Ok(())
}

/// Removes what was logged after the step that a run goes on from: all but what `before` says.
pub(crate) fn drop_after<L: Serialize + serde::de::DeserializeOwned>(
    path: &std::path::Path,
    before: impl Fn(&L) -> bool,
) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let kept: Vec<L> = crate::run::entries::<L>(path)?.into_iter().filter(before).collect();
    let mut text = String::new();
    for line in kept {
        text += &serde_json::to_string(&line).map_err(|e| Error::Other(e.to_string()))?;
        text.push('\n');
    }
    write_atomically(path, text.as_bytes())
}
