//! Adapting a base: the one loop in which an adapter, or all weights, learn from rows.
//!
//! What a step learns from is made by [`lesson`](crate::lesson): replies, preferences or rewarded
//! tries. Each is a batch whose positions have weights, so the loop does not know which.

use crate::audit;
use crate::checkpoint::{self, Facts, State, Writer};
use crate::distil::Teacher;
use crate::fault;
use crate::guard::{self, Done, Pace};
use crate::lesson::{Held, Lessons};
use crate::memory;
use crate::pretrain::{LogLine, Losses};
use crate::run::{Run, data_name};
use crate::track::{self, About, Trackers, to_value};
use crate::tune_page::tune_page;
use crate::tuning::Tuning;
use crate::upkeep::Upkeep;
use crate::watch::{Event, Watcher};
use danlu_core::recipe::changes;
use danlu_core::{BaseFormat, Error, LoraConfig, Objective, Recipe, Result, TuneRecipe};
use danlu_model::adapters::{Adapter, AdapterInfo, Newest};
use danlu_model::io::Dtype;
use danlu_model::params::{Module, Parameter};
use danlu_model::{Model, Transformer, TransformerConfig};
use danlu_ops::quant::{Arena, WeightFormat};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuneLine {
    /// Optimiser steps taken.
    pub step: usize,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// What is minimised.
    #[serde(deserialize_with = "crate::run::number")]
    pub loss: f64,
    /// Other figures of the objective: `margin`, `preferred`, `reward`, `divergence`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: Losses,
    /// Cross-entropy of what is held out, in nats a token, by file, where it was measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out: Losses,
    /// Gradient norm before clipping.
    #[serde(deserialize_with = "crate::run::number")]
    pub norm: f64,
    /// Share of the peak learning rate.
    pub rate: f32,
    /// Tokens a second.
    pub speed: f64,
    /// What it has cost so far to watch and keep it, where it was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<Upkeep>,
}

/// What is adapted, in the making.
#[derive(Debug)]
pub struct Learner {
    /// The base with its adapters; what does not learn has no gradient record.
    pub transformer: Transformer,
    /// What a preference is held against: the base without what is learnt.
    pub reference: Transformer,
    lora: Option<LoraConfig>,
    beneath: Vec<Vec<usize>>,
}

impl Learner {
    /// Makes a fresh adapter on top of `model`'s, or all weights, ready to learn.
    ///
    /// With `base` the projections of the base are kept in few bits alone, here and in the
    /// reference.
    pub fn new(
        model: &Transformer,
        lora: Option<&LoraConfig>,
        base: Option<BaseFormat>,
        seed: u64,
    ) -> Result<Self> {
        let device = danlu_ops::cpu_device();
        let beneath = Newest::counts(model);
        let mut transformer = model.clone();
        if let Some(format) = base {
            let format = match format {
                BaseFormat::Q8_0 => WeightFormat::Q8_0,
                BaseFormat::Q4_0 => WeightFormat::Q4_0,
            };
            let arena = Arena::default();
            let linears = transformer.blocks.iter_mut().flat_map(|b| b.linears_mut());
            linears.for_each(|l| l.weight.freeze(format, &arena));
        }
        let reference = transformer.clone();
        if let Some(config) = lora {
            transformer.attach_fresh(config, seed, &device)?;
        }
        transformer.every_mut().into_iter().for_each(|p| {
            p.tensor = burn::tensor::Tensor::from_inner(p.tensor.clone());
        });
        let mut learner = Self { transformer, reference, lora: lora.cloned(), beneath };
        let mut module = learner.module();
        module.parameters_mut().into_iter().for_each(|p| {
            p.tensor = p.tensor.clone().require_grad();
        });
        drop(module);
        Ok(learner)
    }

    /// The parameters that learn.
    pub fn module(&mut self) -> Box<dyn Module + '_> {
        match self.lora {
            Some(_) => Box::new(Newest::new(&mut self.transformer, self.beneath.clone())),
            None => Box::new(&mut self.transformer),
        }
    }

    /// The model as it is now, without gradient records.
    pub fn plain(&self) -> Transformer {
        let mut plain = self.transformer.clone();
        plain.every_mut().into_iter().for_each(|p| p.tensor = p.tensor.clone().inner());
        plain
    }

    /// Every parameter, learnt or not, of the model and of its adapters.
    pub(crate) fn every(&mut self) -> Vec<&Parameter> {
        self.transformer.every_mut().into_iter().map(|p| &*p).collect()
    }

    /// Gives the dropout of the adapter that learns the dice of a step; `None`: none is dropped.
    pub(crate) fn shake(&mut self, seed: Option<u64>) {
        let Some(share) = self.lora.as_ref().map(|l| l.dropout).filter(|&d| d > 0.0) else {
            return;
        };
        let mut number = 0;
        for (block, beneath) in self.transformer.blocks.iter_mut().zip(&self.beneath) {
            for (linear, &n) in block.linears_mut().into_iter().zip(beneath) {
                for lora in &mut linear.adapters[n..] {
                    lora.dropout = seed.map(|s| (share, s ^ (number << 40)));
                }
                number += 1;
            }
        }
    }
}

/// Paths of a tuning beside those of every run.
pub fn adapter_folder(run: &Run) -> PathBuf {
    run.folder.join("adapter")
}

/// Opens or starts the run of a recipe. A folder that holds another recipe is refused, unless nothing
/// has been learnt by it yet.
pub fn open(folder: &Path, recipe: &TuneRecipe) -> Result<Run> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let run = Run { folder: folder.to_path_buf() };
    let path = run.recipe();
    if path.exists() {
        let (_, found) = resume(folder)?;
        if &found == recipe {
            return Ok(run);
        }
        if found.for_training() != recipe.for_training() && run.has_learnt() {
            return Err(Error::file(
                &path,
                format!("the recipe `{}` that this run was started with", recipe.name),
                format!(
                    "another one ({}); choose another folder, or remove this one to start again",
                    changes(&found.for_training().to_toml(), &recipe.for_training().to_toml())
                ),
            ));
        }
    }
    run.begin(&recipe.to_toml())?;
    Ok(run)
}

/// The recipe that a run was started with.
pub fn resume(folder: &Path) -> Result<(Run, TuneRecipe)> {
    let run = Run { folder: folder.to_path_buf() };
    let path = run.recipe();
    let text = crate::run::read(&path)?;
    if !TuneRecipe::is_meant(&text) && Recipe::parse(&text).is_ok() {
        return Err(Error::file(&path, "the recipe of `danlu tune`", "one of `danlu train`"));
    }
    let mut recipe =
        TuneRecipe::parse(&text).map_err(|e| Error::file(&path, "a recipe of a tuning", e))?;
    run.find(recipe.paths_mut());
    Ok((run, recipe))
}

/// Adapts the base of a recipe, from the run's newest checkpoint if there is one, and writes the
/// adapter's folder, or the model's if all weights learn. `folder` is the base's.
///
/// With `changed` it goes on although the data is not what it was trained on so far.
pub fn tune(
    recipe: &TuneRecipe,
    run: &Run,
    folder: &Path,
    changed: bool,
    watcher: &mut dyn Watcher,
) -> Result<PathBuf> {
    track::tracked(watcher, |trackers, watcher| {
        let done = steps(recipe, run, folder, changed, trackers, watcher);
        if done.is_err() && run.log(crate::run::LOG).exists() {
            // What stopped it is wanted there most.
            tune_page(run, recipe).unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        done
    })
}

/// Refuses a window that is longer than what the base can read.
pub(crate) fn check_window(recipe: &TuneRecipe, base: &TransformerConfig) -> Result<()> {
    let (window, context) = (recipe.train.window, base.context);
    if window > context {
        let wanted = format!("at most the model's context, {context}");
        return Err(Error::parameter("train.window", wanted, window));
    }
    Ok(())
}

/// What a tuning begins with.
pub(crate) struct Base {
    /// The base with the adapters beneath.
    pub(crate) model: Model,
    /// BLAKE3 of the base's weights, and of each of those adapters.
    hash: String,
    parents: Vec<String>,
    /// BLAKE3 of every file of rows, by name.
    data: BTreeMap<String, String>,
}

impl Base {
    /// Reads the base of a recipe, which is in `folder`.
    pub(crate) fn read(recipe: &TuneRecipe, folder: &Path) -> Result<Self> {
        let device = danlu_ops::cpu_device();
        let (mut model, _, parents) = Model::load_adapted(folder, &recipe.adapters, &device)?;
        if recipe.lora.is_none() {
            model.transformer.thaw();
        }
        check_window(recipe, &model.transformer.config)?;
        let hash = Model::weights_hash(folder)?;
        Ok(Self { model, hash, parents, data: data_hashes(recipe)? })
    }

    /// BLAKE3 of all that is learnt from, by name.
    fn learnt_from(&self, teacher: Option<&Teacher>) -> BTreeMap<String, String> {
        let teacher = teacher.map(|t| ("teacher".to_string(), t.hash.clone()));
        self.data.clone().into_iter().chain(teacher).collect()
    }

    /// What the manifests of checkpoints record; the hash that it calls the recipe's is of all that
    /// the tuning depends on.
    pub(crate) fn facts(
        &self,
        recipe: &TuneRecipe,
        lessons: &Lessons<'_>,
        teacher: Option<&Teacher>,
    ) -> Facts {
        let mut data = self.learnt_from(teacher);
        data.extend(lessons.contents());
        let fingerprint = fingerprint(recipe, &self.hash, &self.parents, &data);
        let beneath = self.parents.iter().enumerate();
        let beneath = beneath.map(|(i, hash)| (format!("adapter {} beneath", i + 1), hash.clone()));
        let weights = beneath.chain([("the base".to_string(), self.hash.clone())]);
        data.extend(weights.map(|(of, hash)| (format!("{}{of}", checkpoint::WEIGHTS), hash)));
        Facts {
            seed: recipe.seed,
            recipe: fingerprint,
            data,
            tokenisers: self.model.info.tokenisers.clone(),
        }
    }
}

fn steps(
    recipe: &TuneRecipe,
    run: &Run,
    folder: &Path,
    changed: bool,
    trackers: &mut Trackers,
    watcher: &mut dyn Watcher,
) -> Result<PathBuf> {
    let r = &recipe.train;
    let base = Base::read(recipe, folder)?;
    let model = &base.model;
    let teacher = Teacher::of(recipe, model, watcher)?;
    let config = &model.transformer.config;
    let prediction = memory::predict(&config.into(), &memory::tuning(recipe, config));
    memory::refuse(&prediction, &remedies(recipe), watcher)?;
    let held_out = Held::read(recipe, model, watcher)?;
    let lessons = Lessons::read(recipe, model, watcher)?;
    let facts = base.facts(recipe, &lessons, teacher.as_ref());
    let fingerprint = facts.recipe.clone();
    let fetched = checkpoint::fetch(&recipe.checkpoint, &run.checkpoints(), &fingerprint)?;
    fetched.into_iter().for_each(|told| watcher.tell(Event::Note(told)));
    match changed {
        true => checkpoint::accept_data(&run.checkpoints(), &fingerprint, &facts)?,
        false => checkpoint::same_data(&run.checkpoints(), &facts)?,
    }
    let of = (&lessons, teacher.as_ref());
    let mut tuning = Tuning::open(recipe, run, model, of, &fingerprint, u64::MAX, watcher)?;
    let mut writer = Writer::new(&run.checkpoints(), &recipe.checkpoint, facts)?;
    if let Some(words) = run.begins_anew(tuning.state.step)? {
        watcher.tell(Event::Note(words));
    }
    guard::begin(&recipe.guard, run, &mut tuning, &mut writer)?;
    let about = About { track: &recipe.track, name: &recipe.name, recipe: to_value(recipe) };
    *trackers = Trackers::open(&about, run, tuning.state.step, watcher);

    let learns = tuning.learner.module().size() as f64 / 1e6;
    let done = tuning.state.step as usize;
    let name = format!("{learns:.2} M parameters learn");
    watcher.tell(Event::Phase { name, steps: r.steps, done });
    let looks = |done: usize| done == r.steps || done.is_multiple_of(r.validate);
    let look = |line: &mut TuneLine, tuning: &Tuning<'_>, writer: &mut Writer| -> Result<()> {
        fault::point("measuring");
        line.upkeep = Some(tuning.state.upkeep);
        line.held_out = held_out.measure(&tuning.learner.plain());
        let all = line.held_out.values();
        if line.held_out.is_empty() {
            return Ok(());
        }
        writer.rate(line.step as u64, all.sum::<f64>() / line.held_out.len() as f64)
    };
    // Killed when the step was on the disk, and before it was in the log.
    if let Some(mut line) = run.noted_line::<TuneLine>(tuning.state.step)? {
        if looks(line.step) {
            look(&mut line, &tuning, &mut writer)?;
        }
        run.log_line(&line)?;
        trackers.step(line.step as u64, &track::tuning_figures(&line), watcher);
        tune_page(run, recipe).unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
    }
    let mut clock = Instant::now();
    let mut pace = Pace::default();
    while (tuning.state.step as usize) < r.steps {
        let started = Instant::now();
        let mut pass = tuning.pass()?;
        let share = tuning.share();
        let what = guard::step(&recipe.guard, run, &mut tuning, &mut pass, &mut writer, watcher)?;
        if what == Done::Back {
            trackers.back(tuning.state.step, watcher);
            continue;
        }
        let done = tuning.state.step as usize;
        let line = || pass.audit(done as u64, what == Done::Skipped);
        audit::log(run, audit::LOG, &mut tuning.state.upkeep, line)?;
        guard::conclude(run, &mut tuning, watcher)?;
        let tokens = pass.lesson.batch.tokens;
        tuning.state.tokens += tokens as u64;
        tuning.state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        let stop = watcher.stop();
        let scheduled = done.is_multiple_of(r.checkpoint);
        let looks = looks(done);
        if scheduled && recipe.guard.on {
            guard::memory_of(&mut tuning).mark(done as u64);
        }
        let speed = tokens as f64 / started.elapsed().as_secs_f64();
        let mut line = TuneLine {
            step: done,
            tokens: tuning.state.tokens,
            loss: pass.logged(),
            figures: pass.lesson.figures,
            held_out: Losses::new(),
            norm: pass.norm,
            rate: share,
            speed,
            upkeep: None,
        };
        if stop || looks || scheduled || writer.due() {
            let noted = run.note_line(&line);
            noted.unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
            guard::keep(&recipe.guard, &mut tuning, &mut writer, watcher);
        }
        if looks {
            // Whatever becomes of the evaluation, the training is on the disk.
            writer.wait().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        tuning.state.upkeep.step(started, &mut writer);
        if looks {
            look(&mut line, &tuning, &mut writer)?;
        }
        run.log_line(&line)?;
        trackers.step(done as u64, &track::tuning_figures(&line), watcher);
        if let Some(words) = pace.step(started.elapsed().as_secs_f64()).filter(|_| !looks) {
            watcher.tell(Event::Note(format!("step {done}: {words}")));
        }
        if looks {
            tune_page(run, recipe).unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
        }
        watcher.tell(Event::Step { done, figures: figures(&line) });
        watcher.tell(Event::Logged(Box::new(line.into())));
        if stop {
            writer.finish().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
            return Err(Error::Stopped(format!(
                "stopped at step {done}; go on with `danlu tune --resume {}`",
                run.folder.display()
            )));
        }
    }
    // What was learnt is published all the same.
    writer.finish().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
    guard::finish(run, &mut tuning, watcher)?;
    tuning.state.upkeep.saved(&mut writer);
    let Tuning { learner, state, .. } = tuning;
    let result = format!("{} tokens in {:.0} s", state.tokens, state.seconds);
    watcher.tell(Event::PhaseDone { result: state.upkeep.after(result) });
    let to = match recipe.lora {
        Some(_) => adapter_folder(run),
        None => run.model(),
    };
    publish(recipe, base, teacher.as_ref(), &learner, &state, &to)?;
    Ok(to)
}

/// Writes what was learnt into `to`: the adapter, or the model if all weights learn.
pub(crate) fn publish(
    recipe: &TuneRecipe,
    base: Base,
    teacher: Option<&Teacher>,
    learner: &Learner,
    state: &State,
    to: &Path,
) -> Result<()> {
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
    let recipe_hash = hash(&recipe.to_toml());
    let data = base.learnt_from(teacher);
    let Base { model, hash: base, parents, .. } = base;
    match &recipe.lora {
        Some(config) => {
            let info = AdapterInfo {
                name: recipe.name.clone(),
                base: Some(base),
                parents,
                recipe: recipe_hash,
                data,
                steps: state.step,
                tokens: state.tokens,
                hash: String::new(),
            };
            let deltas = learner.plain().newest_deltas(config);
            let adapter = Adapter { config: config.clone(), info, deltas };
            adapter.publish(to, &model.info)
        }
        None => {
            let mut from = model.info.from.clone();
            from.push(base);
            let info = danlu_model::ModelInfo {
                name: recipe.name.clone(),
                steps: state.step,
                tokens: state.tokens,
                recipe: recipe_hash,
                data,
                from,
                ..model.info.clone()
            };
            let mut transformer = learner.plain();
            if transformer.blocks.iter().any(|b| b.linears().iter().any(|l| !l.adapters.is_empty()))
            {
                transformer.merge()?;
            }
            Model { transformer, info, ..model }.save(to, Dtype::F32)
        }
    }
}

/// What a tuning could do to take less memory.
pub(crate) fn remedies(recipe: &TuneRecipe) -> String {
    let window = format!("a shorter train.window ({})", recipe.train.window);
    let rows = match &recipe.objective {
        Objective::Reply | Objective::Distil { .. } => {
            format!("fewer train.rows ({})", recipe.train.rows)
        }
        Objective::Dpo { pairs, .. } => format!("fewer objective.pairs ({pairs})"),
        Objective::Grpo { questions, replies, .. } => {
            format!("fewer objective.questions ({questions}) or objective.replies ({replies})")
        }
    };
    let adapter = if recipe.lora.is_none() { ", or an adapter (`[lora]`)" } else { "" };
    format!("{rows}, {window}{adapter}")
}

/// As a line of a pretraining, for those who draw curves.
impl From<TuneLine> for LogLine {
    fn from(line: TuneLine) -> Self {
        let mut losses = line.figures;
        losses.insert("replies".into(), line.loss);
        LogLine {
            step: line.step,
            tokens: line.tokens,
            loss: line.loss,
            modality: losses,
            task: Losses::new(),
            validation: line.held_out,
            text: Losses::new(),
            experts: Losses::new(),
            norm: line.norm,
            rate: line.rate,
            speed: line.speed,
            utilisation: 0.0,
            health: None,
            upkeep: line.upkeep,
        }
    }
}

fn figures(line: &TuneLine) -> String {
    let more: String = line.figures.iter().map(|(name, v)| format!(" {name} {v:.3}")).collect();
    let held: String = line.held_out.values().map(|v| format!(" held out {v:.3}")).collect();
    format!("loss {:.3}{more}{held} | {:.0} tok/s", line.loss, line.speed)
}

/// BLAKE3 of every file of rows, by name.
fn data_hashes(recipe: &TuneRecipe) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for set in &recipe.data {
        let bytes = std::fs::read(&set.file).map_err(|e| Error::io(&set.file, e))?;
        let name = data_name(&set.file, |name| out.contains_key(name));
        out.insert(name, blake3::hash(&bytes).to_hex().to_string());
    }
    Ok(out)
}

/// What the run depends on, in one hash.
fn fingerprint(
    recipe: &TuneRecipe,
    base: &str,
    parents: &[String],
    data: &BTreeMap<String, String>,
) -> String {
    let mut hash = blake3::Hasher::new();
    // Where the files lie does not matter; what is in them does.
    let mut bare = recipe.for_training();
    bare.model = PathBuf::new();
    bare.adapters.clear();
    if let Objective::Distil { teacher, .. } = &mut bare.objective {
        *teacher = PathBuf::new();
    }
    hash.update(bare.to_toml().as_bytes());
    hash.update(format!("{base} {parents:?} {data:?}").as_bytes());
    hash.finalize().to_hex().to_string()
}

/// Every parameter with those of its adapters.
trait Every {
    fn every_mut(&mut self) -> Vec<&mut Parameter>;
}

impl Every for Transformer {
    fn every_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.embedding, &mut self.norm.weight];
        all.extend(&mut self.head);
        all.extend(self.blocks.iter_mut().flat_map(danlu_model::layers::Block::every_mut));
        all
    }
}
