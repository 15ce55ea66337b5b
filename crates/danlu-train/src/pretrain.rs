//! Pretraining: the one loop in which the transformer learns every task and modality at once.

use crate::audit;
use crate::checkpoint::{self, Facts, State, Writer};
use crate::codes::CodeTable;
use crate::fault;
use crate::guard::{self, Done, Pace, Subject};
use crate::learn::hash_numbers;
use crate::marginal::Marginals;
use crate::page::run_page;
use crate::run::{Run, append, data_name};
use crate::session::{Pass, Session, sizes};
use crate::text_loss::{HeldOut, judged, nats_per_byte};
use crate::track::{self, About, Trackers, to_value};
use crate::upkeep::Upkeep;
use crate::watch::{Event, Watcher};
use burn::tensor::Tensor;
use danlu_core::recipe::{LossWeights, Recipe};
use danlu_core::{
    Batch, Document, Error, Media, Modality, Part, Result, Rng, Sample, TokenKind, Vocabulary,
};
use danlu_data::{Classes, Corpus, Drawn, Mixture, Packer, View, cut, questions, tasks};
use danlu_model::engine::{Request, Sampling, generate};
use danlu_model::io::{Dtype, write_atomically};
use danlu_model::prompt::{Template, Value};
use danlu_model::{Model, ModelInfo, Module, Tokenisers, Transformer};
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
    #[serde(deserialize_with = "crate::run::number")]
    pub loss: f64,
    /// Training cross-entropy by modality.
    #[serde(deserialize_with = "crate::run::numbers")]
    pub modality: Losses,
    /// Training cross-entropy by task.
    #[serde(deserialize_with = "crate::run::numbers")]
    pub task: Losses,
    /// Validation cross-entropy by modality, and of each file of `data.held_out`, where it was measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation: Losses,
    /// Nats a byte of held-out plain text, by language and of `all`, where it was measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub text: Losses,
    /// Experts that the tokens of each layer were spread over, where there are some: the exponential
    /// of the entropy of what each was sent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub experts: Losses,
    /// Gradient norm before clipping.
    #[serde(deserialize_with = "crate::run::number")]
    pub norm: f64,
    /// Share of the peak learning rate.
    pub rate: f32,
    /// Tokens a second.
    pub speed: f64,
    /// Share of the machine's multiply-add peak that the model's operations use.
    pub utilisation: f64,
    /// What is seen inside the model, where it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What it has cost so far to watch and keep the run, where it was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<Upkeep>,
}

/// What is seen inside the model, by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Gradient norm before clipping.
    pub norm: BTreeMap<String, f64>,
    /// Norm of an update over the norm of the weights, lately.
    pub ratio: BTreeMap<String, f64>,
    /// Root mean square of what comes out; of the head, that is logits.
    pub scale: BTreeMap<String, f64>,
    /// Entropy of attention, from 0 to 1.
    pub entropy: BTreeMap<String, f64>,
}

/// What the training of a run depends on, in one hash: all of the recipe but how it is evaluated,
/// data and tokenisers.
pub fn fingerprint(recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    hash.update(recipe.for_training().to_toml().as_bytes());
    hash.update(codes_fingerprint(recipe, run, corpus)?.as_bytes());
    Ok(hash.finalize().to_hex().to_string())
}

/// Takes over the newest checkpoint that is whole and the log of another run, unless `run` has checkpoints of its
/// own already, or its model is another with the recipe's sizes and a `vocabulary` of so many ids.
pub fn take_over(
    from: &Run,
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    vocabulary: usize,
    watcher: &mut dyn Watcher,
) -> Result<State> {
    let print = fingerprint(recipe, run, corpus)?;
    let mut faults = Vec::new();
    // It goes on with the data of its own recipe.
    let facts = facts(recipe, run, corpus)?;
    let (old, new) = (from.checkpoints(), run.checkpoints());
    let model = Transformer::blank(sizes(recipe, vocabulary)?, &danlu_ops::cpu_device());
    let state = checkpoint::adopt(&old, &new, &model, &print, &facts, &mut faults)?;
    faults.into_iter().for_each(|f| watcher.tell(Event::Note(f)));
    for name in ["train", "samples", audit::LOG] {
        let (old, new) = (from.log(name), run.log(name));
        if old.exists() {
            std::fs::copy(&old, &new).map_err(|e| Error::io(&new, e))?;
        }
    }
    Ok(state)
}

/// Refuses a run that has checkpoints of its own, which another's would take the place of.
pub fn has_none(run: &Run) -> Result<()> {
    match checkpoint::folder::list(&run.checkpoints()).last() {
        None => Ok(()),
        Some(found) => {
            let wanted =
                "a run without checkpoints to take one over (or --resume to go on with it)";
            Err(Error::file(&run.folder, wanted, found.display()))
        }
    }
}

/// Lets a run go on with data that is not what it was trained on so far.
pub fn accept_changed_data(recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<()> {
    let print = fingerprint(recipe, run, corpus)?;
    checkpoint::accept_data(&run.checkpoints(), &print, &facts(recipe, run, corpus)?)
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
    for (name, content) in media_of_files(corpus) {
        hash.update(format!("{name} {content}").as_bytes());
    }
    hash.update(format!("{} {}", recipe.data.variants, recipe.seed).as_bytes());
    hash.update(Tokenisers::fingerprint(&run.tokenisers())?.as_bytes());
    Ok(hash.finalize().to_hex().to_string())
}

/// What the manifests of checkpoints record of a run.
fn facts(recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<Facts> {
    Ok(Facts {
        seed: recipe.seed,
        recipe: recipe_hash(recipe),
        data: data_hashes(recipe, corpus)?,
        tokenisers: Tokenisers::fingerprint(&run.tokenisers())?,
    })
}

/// BLAKE3 of what of a recipe a training depends on.
pub(crate) fn recipe_hash(recipe: &Recipe) -> String {
    blake3::hash(recipe.for_training().to_toml().as_bytes()).to_hex().to_string()
}

/// BLAKE3 of each pack's manifest, of each sample file, and of what is shown and played in it.
pub(crate) fn data_hashes(recipe: &Recipe, corpus: &Corpus) -> Result<BTreeMap<String, String>> {
    let mut data = manifests(recipe)?;
    for path in &recipe.data.files {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let name = data_name(path, |name| data.contains_key(name));
        data.insert(name, blake3::hash(&bytes).to_hex().to_string());
    }
    data.extend(media_of_files(corpus));
    Ok(data)
}

/// BLAKE3 of the pictures and sounds of each sample file that has some, in the order of its rows.
fn media_of_files(corpus: &Corpus) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    let mut of_file: BTreeMap<String, blake3::Hasher> = BTreeMap::new();
    for (sample, (path, _)) in corpus.samples.iter().zip(&corpus.origins) {
        let expected = sample.expected.iter().flatten();
        for part in sample.messages.iter().flat_map(|m| &m.parts).chain(expected) {
            let (kind, id) = match part {
                Part::Image(Media::Asset(id)) => (0, *id),
                Part::Audio(Media::Asset(id)) => (1, *id),
                _ => continue,
            };
            let digest = known.entry((kind, id)).or_insert_with(|| match kind {
                0 => blake3::hash(&corpus.picture(id).picture.rgb),
                _ => {
                    let mut hash = blake3::Hasher::new();
                    hash_numbers(&mut hash, &corpus.sound(id).sound.samples);
                    hash.finalize()
                }
            });
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{name}, its pictures and sounds");
            of_file.entry(name).or_default().update(digest.as_bytes());
        }
    }
    let hex = |hash: blake3::Hasher| hash.finalize().to_hex().to_string();
    of_file.into_iter().map(|(name, hash)| (name, hex(hash))).collect()
}

/// BLAKE3 of each pack's manifest, by the pack's folder name.
fn manifests(recipe: &Recipe) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for folder in &recipe.data.packs {
        let path = folder.join("manifest.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let name = data_name(folder, |name| out.contains_key(name));
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

/// So many samples that are too long, one after the other, are all that there are.
const ALL_TOO_LONG: u64 = 4096;

/// Samples that were passed over because they are too long for a window.
#[derive(Clone, Copy, Default)]
pub(crate) struct TooLong {
    /// So far.
    all: u64,
    /// Since the last that was not.
    in_a_row: u64,
    /// Tokens of the shortest of those, and its task.
    shortest: Option<(usize, u16)>,
}

impl TooLong {
    /// One more of `length` tokens.
    fn more(self, length: usize, task: u16) -> Self {
        let shortest = self.shortest.filter(|s| s.0 <= length).or(Some((length, task)));
        Self { all: self.all + 1, in_a_row: self.in_a_row + 1, shortest }
    }

    /// Refuses a window that nothing fits, where `names` are those of the tasks.
    fn check(self, window: usize, names: &[&str]) -> Result<()> {
        let Some((length, task)) = self.shortest.filter(|_| self.in_a_row >= ALL_TOO_LONG) else {
            return Ok(());
        };
        let (many, name) = (self.in_a_row, names[task as usize]);
        let wanted = format!(
            "at least {}, for the shortest of {many} samples in a row, of task `{name}`",
            length - 1
        );
        Err(Error::parameter("train.window", wanted, window))
    }
}

/// Everything that makes documents: a pure function of the recipe's seed and an index.
pub(crate) struct Source<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) corpus: &'a Corpus,
    pub(crate) mixture: Mixture,
    pub(crate) template: Template<'a>,
    pub(crate) codes: &'a CodeTable,
    /// Classes of pictures and of sounds.
    pub(crate) classes: [Classes; 2],
    /// Samples made of packs that were too long for a window.
    pub(crate) too_long: std::cell::Cell<TooLong>,
}

impl Source<'_> {
    /// Document `index`; one without ids stands for a sample that is too long for a window, which
    /// is counted and passed over.
    pub(crate) fn document(&self, index: u64) -> Result<Document> {
        let (task, drawn) = self.mixture.draw(self.corpus, self.recipe.seed, index);
        let train = &self.recipe.train;
        let mut rng = Rng::new(self.recipe.seed ^ 0x5eed, index);
        match drawn {
            Drawn::Text(text) => {
                let mut document = self.template.plain_text(&text, &train.loss, task);
                cut(&mut document, train.window);
                self.fits();
                Ok(document)
            }
            Drawn::Long(text) => {
                let render = |text: &str| self.template.plain_text(text, &train.loss, task);
                let mut document = window_of(&text, train.window, &mut rng, &render);
                cut(&mut document, train.window);
                self.fits();
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
                    let too_long = self.too_long.get().more(document.ids.len(), task);
                    self.too_long.set(too_long);
                    too_long.check(train.window, &self.mixture.names())?;
                    return Ok(Document { ids: vec![], weights: vec![], task });
                }
                self.fits();
                Ok(document)
            }
        }
    }

    /// A sample is not too long.
    fn fits(&self) {
        self.too_long.set(TooLong { in_a_row: 0, shortest: None, ..self.too_long.get() });
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
    track::tracked(watcher, |trackers, watcher| {
        let done = steps(recipe, run, corpus, tokenisers, codes, trackers, watcher);
        if done.is_err() && run.log(crate::run::LOG).exists() {
            // What stopped it is wanted there most.
            run_page(run, recipe, corpus)
                .unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        done
    })
}

fn steps(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    tokenisers: Tokenisers,
    codes: &CodeTable,
    trackers: &mut Trackers,
    watcher: &mut dyn Watcher,
) -> Result<Model> {
    let r = &recipe.train;
    let facts = facts(recipe, run, corpus)?;
    let print = fingerprint(recipe, run, corpus)?;
    let fetched = checkpoint::fetch(&recipe.checkpoint, &run.checkpoints(), &print)?;
    fetched.into_iter().for_each(|told| watcher.tell(Event::Note(told)));
    checkpoint::same_data(&run.checkpoints(), &facts)?;
    let place = (run, print.as_str(), u64::MAX);
    let mut session = Session::open(recipe, corpus, &tokenisers, codes, place, watcher)?;
    let names = session.source.mixture.names();
    let first = session.state.step as usize;
    let mut writer = Writer::new(&run.checkpoints(), &recipe.checkpoint, facts)?;
    if let Some(words) = run.begins_anew(session.state.step)? {
        watcher.tell(Event::Note(words));
    }
    guard::begin(&recipe.guard, run, &mut session, &mut writer)?;
    let about = About { track: &recipe.track, name: &recipe.name, recipe: to_value(recipe) };
    *trackers = Trackers::open(&about, run, session.state.step, watcher);

    let marginals = marginals(&session.source, &session.vocabulary)?;
    let json = serde_json::to_string(&marginals).map_err(|e| Error::Other(e.to_string()))?;
    write_atomically(&run.folder.join("marginals.json"), json.as_bytes())?;
    let validation = validation_batches(&session.source, &session.packer)?;
    let files = crate::held_out::read(recipe, &tokenisers, watcher)?;
    let held_out = |session: &Session<'_>, limit| {
        let learns =
            |(name, &share): (&String, &f32)| PLAIN.contains(&name.as_str()) && share > 0.0;
        if !recipe.mixture.iter().any(learns) {
            return Ok(Vec::new());
        }
        let vocabulary = &session.vocabulary;
        HeldOut::of(corpus, &tokenisers, vocabulary, [r.rows, r.window], limit)
    };
    let some_text = held_out(&session, TEXT_BYTES)?;
    let measured = || danlu_ops::fma_peak(rayon::current_num_threads(), 0.15);
    let mut peak = measured();
    watcher.tell(Event::Phase {
        name: match (session.model.size(), session.model.config.idle()) {
            (all, 0) => format!("base model, {:.1} M parameters", all as f64 / 1e6),
            (all, idle) => {
                let [all, active] = [all, all - idle].map(|n| n as f64 / 1e6);
                format!("base model, {all:.1} M parameters, {active:.1} M for each token")
            }
        },
        steps: r.steps,
        done: first,
    });
    let looks = |done: usize| done == r.steps || done.is_multiple_of(r.validate);
    let look = |line: &mut LogLine,
                session: &Session<'_>,
                writer: &mut Writer,
                watcher: &mut dyn Watcher|
     -> Result<()> {
        fault::point("measuring");
        line.upkeep = Some(session.state.upkeep);
        let frozen = frozen(&session.model, session.average.as_deref());
        line.validation = validate(&frozen, &validation, &session.vocabulary);
        line.validation.extend(files.measure(&frozen));
        line.text = nats_per_byte(&frozen, &some_text);
        if let Some(loss) = judged(&line.validation, &line.text) {
            writer.rate(line.step as u64, loss)?;
        }
        if line.step == r.steps {
            line.text = nats_per_byte(&frozen, &held_out(session, usize::MAX)?);
        }
        let shown = samples(&frozen, &session.source, run, line.step);
        shown.unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        Ok(())
    };
    // Killed when the step was on the disk, and before it was in the log.
    if let Some(mut line) = run.noted_line::<LogLine>(session.state.step)? {
        if looks(line.step) {
            look(&mut line, &session, &mut writer, watcher)?;
        }
        run.log_line(&line)?;
        trackers.step(line.step as u64, &track::figures(&line), watcher);
        let drawn = run_page(run, recipe, corpus);
        drawn.unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
    }
    let mut clock = Instant::now();
    let mut pace = Pace::default();
    while (session.state.step as usize) < r.steps {
        let step = session.state.step as usize;
        let started = Instant::now();
        let mut pass = session.pass()?;
        let share = session.share();
        let what = guard::step(&recipe.guard, run, &mut session, &mut pass, &mut writer, watcher)?;
        if what == Done::Back {
            trackers.back(session.state.step, watcher);
            continue;
        }
        session.state.tokens += pass.tokens as u64;
        session.state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        let done = step + 1;
        let line = || pass.audit(done as u64, what == Done::Skipped);
        audit::log(run, audit::LOG, &mut session.state.upkeep, line)?;
        guard::conclude(run, &mut session, watcher)?;
        let speed = pass.tokens as f64 / started.elapsed().as_secs_f64();
        let work = speed * session.model.config.flops_per_token(pass.span);
        if work > peak {
            // It was measured while others had the machine.
            peak = peak.max(measured());
        }
        let looks_inside = recipe.guard.look > 0 && done.is_multiple_of(recipe.guard.look);
        let mut line = LogLine {
            step: done,
            tokens: session.state.tokens,
            loss: pass.loss,
            modality: pass.sums.modality(),
            task: pass.sums.tasks(&names),
            validation: Losses::new(),
            text: Losses::new(),
            experts: pass.spreads.iter().map(|s| (s.layer.clone(), s.used)).collect(),
            norm: pass.norm,
            rate: share,
            speed,
            utilisation: work / peak,
            health: looks_inside.then(|| health(&mut session, &pass)),
            upkeep: None,
        };
        let stop = watcher.stop();
        let scheduled = done.is_multiple_of(r.checkpoint);
        let looks = looks(done);
        if scheduled && recipe.guard.on {
            session.memory().mark(done as u64);
        }
        if stop || scheduled || writer.due() || looks {
            let noted = run.note_line(&line);
            noted.unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
            guard::keep(&recipe.guard, &mut session, &mut writer, watcher);
        }
        if looks {
            // Whatever becomes of the evaluation, the training is on the disk.
            writer.wait().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        session.state.upkeep.step(started, &mut writer);
        if looks {
            look(&mut line, &session, &mut writer, watcher)?;
        }
        run.log_line(&line)?;
        trackers.step(done as u64, &track::figures(&line), watcher);
        if looks || done == 20 {
            // No page is worth a training.
            run_page(run, recipe, corpus)
                .unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        if let Some(words) = pace.step(started.elapsed().as_secs_f64()).filter(|_| !looks) {
            watcher.tell(Event::Note(format!("step {done}: {words}")));
        }
        watcher.tell(Event::Step { done, figures: figures(&line) });
        watcher.tell(Event::Logged(Box::new(line)));
        if stop {
            writer.finish().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
            return Err(Error::Stopped(format!(
                "stopped at step {done}; go on with `danlu train --resume {}`",
                run.folder.display()
            )));
        }
    }
    writer.finish().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
    let transformer = frozen(&session.model, session.average.as_deref());
    if session.source.too_long.get().all > 0 {
        watcher.tell(Event::Note(format!(
            "{} samples were over train.window ({}) and passed over",
            session.source.too_long.get().all,
            r.window
        )));
    }
    guard::finish(run, &mut session, watcher)?;
    session.state.upkeep.saved(&mut writer);
    let (state, ancestor) = (session.state, session.ancestor);
    let result = format!("{} tokens in {:.0} s", state.tokens, state.seconds);
    watcher.tell(Event::PhaseDone { result: state.upkeep.after(result) });
    let info = info(recipe, &state, ancestor)?;
    let model = Model { transformer, tokenisers, info };
    model.save(&run.model(), Dtype::F32)?;
    Ok(model)
}

/// What is written with the model of a training that stands at `state`; `ancestor` is the hash of the weights that it
/// began with, if it did.
pub(crate) fn info(recipe: &Recipe, state: &State, ancestor: Option<String>) -> Result<ModelInfo> {
    Ok(ModelInfo {
        name: recipe.name.clone(),
        steps: state.step,
        tokens: state.tokens,
        recipe: blake3::hash(recipe.to_toml().as_bytes()).to_hex().to_string(),
        data: manifests(recipe)?,
        from: ancestor.into_iter().chain(state.from.clone()).collect(),
        ..Default::default()
    })
}

/// What is seen inside the model after a step.
fn health(session: &mut Session<'_>, pass: &Pass) -> Health {
    let started = Instant::now();
    let share = session.usual_share() as f64;
    let scale = session.scale() as f64;
    let norm = guard::by_group(&session.model, &pass.squares);
    let view = session.view(&pass.batches[0], 1);
    session.state.upkeep.guard += started.elapsed().as_secs_f64();
    let ratios = session.memory().ratios.iter();
    Health {
        norm: norm.into_iter().map(|(name, squares)| (name, squares.sqrt() * scale)).collect(),
        ratio: ratios.map(|(name, mean)| (name.clone(), mean.value * share)).collect(),
        scale: view.iter().map(|v| (v.name.clone(), v.rms)).collect(),
        entropy: view.iter().filter_map(|v| Some((v.name.clone(), v.entropy?))).collect(),
    }
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

/// Loss of a batch and the cross-entropy of each position.
/// Weighted by the batch, times `scale`.
pub(crate) fn forward(
    model: &Transformer,
    batch: &Batch,
    scale: f32,
    z_loss: f32,
) -> (Tensor<1>, Vec<f32>) {
    forward_at(model, batch, scale, z_loss, 1.0)
}

/// The same with logits that are divided by a temperature.
pub(crate) fn forward_at(
    model: &Transformer,
    batch: &Batch,
    scale: f32,
    z_loss: f32,
    temperature: f32,
) -> (Tensor<1>, Vec<f32>) {
    let spec = HeadLoss {
        targets: batch.targets.as_slice().into(),
        weights: batch.weights.as_slice().into(),
        scale,
        z_loss,
    };
    let (ids, starts) = (batch.ids.as_slice().into(), batch.starts.as_slice().into());
    model.loss_at(&ids, &starts, &spec, temperature)
}

/// Keys that a token attends to on average: half its document.
pub(crate) fn mean_span(batch: &Batch) -> f64 {
    let squares: f64 = batch.starts.windows(2).map(|w| ((w[1] - w[0]) as f64).powi(2)).sum();
    squares / 2.0 / batch.ids.len().max(1) as f64
}

/// Sums of cross-entropies by modality and by task.
pub(crate) struct Sums {
    modality: [(f64, f64); 3],
    task: Vec<(f64, f64)>,
}

impl Sums {
    pub(crate) fn new(tasks: usize) -> Self {
        Self { modality: [(0.0, 0.0); 3], task: vec![(0.0, 0.0); tasks] }
    }

    pub(crate) fn add(&mut self, batch: &Batch, each: &[f32], vocabulary: &Vocabulary) {
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

    /// Mean and number of tokens of each task that there was, by name.
    pub(crate) fn counted(&self, names: &[&str]) -> Vec<(String, f64, f64)> {
        let all = names.iter().zip(&self.task).filter(|(_, (_, n))| *n > 0.0);
        all.map(|(name, (sum, n))| (name.to_string(), sum / n, *n)).collect()
    }

    fn tasks(&self, names: &[&str]) -> Losses {
        means(names.iter().map(|n| n.to_string()).zip(self.task.iter().copied()))
    }
}

fn means(all: impl Iterator<Item = (String, (f64, f64))>) -> Losses {
    all.filter(|(_, (_, n))| *n > 0.0).map(|(name, (sum, n))| (name, sum / n)).collect()
}

/// Bytes of text that are more than one token takes, but for tokens of rare length.
const TOKEN: usize = 32;

/// A document of a text that may be longer than a window: all of it, or from the end of a line or sentence
/// anywhere in it. It may still be longer; no more of the text is turned into tokens than could fit.
fn window_of(
    text: &str,
    window: usize,
    rng: &mut Rng,
    render: &dyn Fn(&str) -> Document,
) -> Document {
    let until = |from: usize, length: usize| {
        &text[from..text.floor_char_boundary(from.saturating_add(length))]
    };
    let head = until(0, TOKEN * window);
    let document = render(head);
    if document.ids.len() <= window + 1 && head.len() == text.len() {
        return document;
    }
    // About as many bytes as a window takes.
    let fills = (head.len() * window / document.ids.len().max(1)).max(1);
    let skip = rng.below(text.len().saturating_sub(fills / 2) + 1);
    if skip == 0 {
        return document;
    }
    let from = text.floor_char_boundary(skip);
    let ends = |c: char| matches!(c, '\n' | '.' | '。' | '！' | '？');
    // On to the next end, if it comes soon enough to leave half of the window.
    let end = until(from, fills / 2).char_indices().find(|&(_, c)| ends(c));
    let from = end.map_or(from, |(i, c)| from + i + c.len_utf8());
    let part = until(from, TOKEN * window).trim_start_matches(['\n', ' ']);
    if part.is_empty() { document } else { render(part) }
}

fn marginals(source: &Source<'_>, vocabulary: &Vocabulary) -> Result<Marginals> {
    // Documents far from the ones that training begins with, but of the same distribution.
    let documents: Vec<Document> = (0..3000)
        .map(|i| {
            let mut document = source.document((1 << 40) + i)?;
            // What was cut to a window has room for what it was cut from.
            document.ids.shrink_to_fit();
            document.weights.shrink_to_fit();
            Ok(document)
        })
        .collect::<Result<_>>()?;
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
pub(crate) fn frozen(model: &Transformer, average: Option<&[Tensor<2>]>) -> Transformer {
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

/// How many there are at one time, none where a recipe has none of their tasks.
pub(crate) fn replies(recipe: &Recipe) -> usize {
    let asked = |(name, _): &(&str, View)| recipe.mixture.get(*name).is_some_and(|&w| w > 0.0);
    if SHOWN.iter().any(asked) { REPLIES } else { 0 }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_nothing_fits_is_refused_and_says_what_would_fit() {
        let mut seen = TooLong::default();
        for i in 0..ALL_TOO_LONG {
            seen.check(32, &["draw_en", "name_en"]).expect("others may fit");
            seen = seen.more(if i == 9 { 50 } else { 60 }, u16::from(i == 9));
        }
        let text = seen.check(32, &["draw_en", "name_en"]).expect_err("none fits").to_string();
        let wanted = ["train.window", "at least 49", "`name_en`", "found 32"];
        assert!(wanted.iter().all(|w| text.contains(w)), "{text}");
        let after = TooLong { in_a_row: 0, shortest: None, ..seen };
        after.check(32, &["draw_en"]).expect("one did fit");
    }

    #[test]
    fn a_long_text_is_learnt_from_anywhere_in_it_a_window_at_a_time() {
        // A token for every byte, and how many were asked for in all.
        let asked = std::cell::Cell::new(0);
        let render = |text: &str| {
            asked.set(asked.get() + text.len());
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            Document { weights: vec![1.0; ids.len()], ids, task: 0 }
        };
        let of = |text: &str, i| window_of(text, 32, &mut Rng::new(7, i), &render).ids;
        let text = |ids: &[u32]| -> String { ids.iter().map(|&i| i as u8 as char).collect() };
        for short in ["", "As it is.", "no more than a window holds"] {
            assert_eq!(text(&of(short, 3)), short);
        }
        let long: String = (0..2_000).map(|i| format!("Sentence {i}. ")).collect();
        let mut tenths = [0; 10];
        for i in 0..200 {
            let found = text(&of(&long, i));
            let at = long.find(&found).expect("a part of it");
            assert!(found.starts_with("Sentence"), "{found:?}");
            assert!(found.len() >= 16 || at + found.len() == long.len(), "{found:?}");
            tenths[10 * at / long.len()] += 1;
        }
        assert!(tenths.iter().all(|&n| n > 5), "{tenths:?}");
        assert!(asked.get() < 200 * 3 * TOKEN * 32, "{} bytes became tokens", asked.get());
        // Between characters, wherever it falls.
        let chinese = "天地玄黄宇宙洪荒".repeat(200);
        (0..50).for_each(|i| assert!(!of(&chinese, i).is_empty()));
    }
}
