//! A pretraining that is open: data, model, optimiser, and where it stands. The loop in
//! [`crate::pretrain`] and the replay in [`crate::debug`] take the same steps through it.

use crate::audit::{self, AuditLine, content};
use crate::checkpoint::{self, Snapshot, State};
use crate::codes::CodeTable;
use crate::fault;
use crate::guard::{self, Figures, Limits, Memory, Spread, Subject};
use crate::memory;
use crate::optim::{Optimiser, gradients, rate_at, squares};
use crate::pretrain::{Source, Sums, forward, frozen, mean_span, replies};
use crate::run::Run;
use crate::watch::{Event, Watcher};
use burn::tensor::Tensor;
use danlu_core::recipe::{Optimiser as Kind, Recipe};
use danlu_core::{Batch, Document, Error, Result, Vocabulary};
use danlu_data::{Corpus, Mixture, Packer, picture_classes, sound_classes};
use danlu_model::arch::LayerView;
use danlu_model::layers::experts_used;
use danlu_model::prompt::Template;
use danlu_model::{Model, Module, Tokenisers, Transformer, TransformerConfig};
use std::path::PathBuf;
use std::sync::Arc;

/// A training that is open.
pub(crate) struct Session<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) source: Source<'a>,
    pub(crate) packer: Packer,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) model: Transformer,
    pub(crate) optimiser: Optimiser,
    pub(crate) average: Option<Vec<Tensor<2>>>,
    pub(crate) state: State,
    /// Hash of the weights of the model that it began with, if it did.
    pub(crate) ancestor: Option<String>,
    checkpoints: PathBuf,
}

/// A step before its update: what it is made of, and what came of its forward and backward pass.
pub(crate) struct Pass {
    /// Weighted loss, z-loss included.
    pub(crate) loss: f64,
    pub(crate) sums: Sums,
    /// Mean cross-entropy and number of learnt tokens of each task, by name.
    pub(crate) tasks: Vec<(String, f64, f64)>,
    pub(crate) tokens: usize,
    /// Keys that a token attends to on average.
    pub(crate) span: f64,
    /// From the first sample to the one after the last.
    pub(crate) samples: [u64; 2],
    /// Samples that were left out just before.
    pub(crate) left_out: Option<[u64; 2]>,
    pub(crate) batches: Vec<Batch>,
    /// Sums over the batches.
    pub(crate) grads: Vec<Tensor<2>>,
    /// Sum of the squares of each of `grads`.
    pub(crate) squares: Vec<f64>,
    /// Gradient norm before clipping.
    pub(crate) norm: f64,
    /// How tokens were spread over the experts of each layer that has some.
    pub(crate) spreads: Vec<Spread>,
}

impl Pass {
    /// Its line of the audit log.
    pub(crate) fn audit(&self, step: u64, skipped: bool) -> AuditLine {
        let [from, to] = self.samples;
        let left_out = self.left_out.into_iter().collect();
        AuditLine { step, from, to, left_out, skipped, content: self.content() }
    }

    /// First digits of the hash of the token ids.
    pub(crate) fn content(&self) -> String {
        content(&self.batches)
    }
}

/// The sizes of a recipe's model with so many token ids.
pub(crate) fn sizes(recipe: &Recipe, vocabulary: usize) -> Result<TransformerConfig> {
    match &recipe.model.from {
        Some(base) => Model::config(base),
        None => TransformerConfig::from_recipe(&recipe.model, vocabulary, recipe.train.window),
    }
}

/// Refuses a window that is longer than what the model can read.
pub(crate) fn check_window(recipe: &Recipe, config: &TransformerConfig) -> Result<()> {
    let window = recipe.train.window;
    if config.context < window {
        let wanted = format!("at least train.window ({window})");
        return Err(Error::parameter("model.context", wanted, config.context));
    }
    Ok(())
}

/// Refuses brief prompts where no recogniser has a word for what they leave out.
pub(crate) fn check_brief(recipe: &Recipe, vocabulary: &Vocabulary) -> Result<()> {
    let brief = recipe.train.brief;
    if brief > 0.0 && (vocabulary.image_semantic == 0 || vocabulary.audio_semantic == 0) {
        let wanted = "0 for tokenisers without both recognisers";
        return Err(Error::parameter("train.brief", wanted, brief));
    }
    Ok(())
}

impl<'a> Session<'a> {
    /// Opens the training of a run with this fingerprint at its newest checkpoint that is whole and not
    /// after step `until`, or before its first step. Refuses what cannot fit into memory.
    pub(crate) fn open(
        recipe: &'a Recipe,
        corpus: &'a Corpus,
        tokenisers: &'a Tokenisers,
        codes: &'a CodeTable,
        (run, fingerprint, until): (&Run, &str, u64),
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        let r = &recipe.train;
        let device = danlu_ops::cpu_device().autodiff();
        let vocabulary = tokenisers.vocabulary();
        let base = match &recipe.model.from {
            Some(folder) => {
                let plain = danlu_ops::cpu_device();
                let mut model = Model::load(folder, &plain)?;
                model.transformer.thaw();
                Some((model, Model::weights_hash(folder)?))
            }
            None => None,
        };
        let config = sizes(recipe, vocabulary.size())?;
        if config.vocabulary != vocabulary.size() {
            return Err(Error::parameter(
                "model.from",
                format!("a model with the {} token ids of the run's tokenisers", vocabulary.size()),
                config.vocabulary,
            ));
        }
        check_window(recipe, &config)?;
        let source = Source {
            recipe,
            corpus,
            mixture: Mixture::new(&recipe.mixture, corpus)?,
            template: Template::new(tokenisers),
            codes,
            classes: [picture_classes(corpus), sound_classes(corpus)],
            too_long: Default::default(),
        };
        check_brief(recipe, &vocabulary)?;
        let packer = Packer { rows: r.rows, window: r.window };
        let load = load(recipe, config.depth)?;
        let sizes = memory::Sizes::from(&config);
        let prediction = memory::predict(&sizes, &load);
        memory::refuse(&prediction, &memory::remedies(&sizes, &load), watcher)?;

        let (mut model, ancestor) = match base {
            Some((base, hash)) => (base.transformer, Some(hash)),
            None => (Transformer::new(config, recipe.seed, &device), None),
        };
        model.to_device(&device);
        model.blocks.iter_mut().zip(load.again).for_each(|(block, again)| block.recompute = again);
        let mut optimiser = Optimiser::from_recipe(&model, r);
        let mut average: Option<Vec<Tensor<2>>> = (r.ema > 0.0)
            .then(|| model.parameters().iter().map(|p| p.tensor.clone().inner()).collect());
        let checkpoints = run.checkpoints();
        let mut faults = Vec::new();
        let found = checkpoint::load_until(
            &checkpoints,
            until,
            fingerprint,
            &mut model,
            &mut optimiser,
            average.as_mut(),
            &mut faults,
        )?;
        faults.into_iter().for_each(|f| watcher.tell(Event::Note(f)));
        let state = found.unwrap_or_else(|| State::new(fingerprint.into()));
        Ok(Self {
            recipe,
            source,
            packer,
            vocabulary,
            model,
            optimiser,
            average,
            state,
            ancestor,
            checkpoints,
        })
    }

    /// What the guard remembers.
    pub(crate) fn memory(&mut self) -> &mut Memory {
        guard::memory_of(self)
    }

    /// The batches of a step that begins with sample `next`, and the sample after them.
    fn batches(&self, next: u64) -> Result<(Vec<Batch>, u64)> {
        let mut at = next;
        let mut all = Vec::new();
        for _ in 0..self.recipe.train.accumulate {
            let batch = self.packer.pack(at, &mut |i| self.document(i).map(Some))?;
            at = batch.next;
            all.push(batch);
        }
        Ok((all, at))
    }

    /// A batch of one sample alone.
    pub(crate) fn alone(&self, index: u64) -> Result<Batch> {
        let packer = Packer { rows: 1, ..self.packer.clone() };
        packer.pack(index, &mut |i| match i == index {
            true => self.document(i).map(Some),
            false => Ok(None),
        })
    }

    fn document(&self, index: u64) -> Result<Document> {
        let mut document = self.source.document(index)?;
        fault::spoil(&mut document, index, self.recipe.seed, self.vocabulary.size());
        Ok(document)
    }

    /// Takes the samples of the next step through the model and back. The state is that of before,
    /// but for the index of the next sample.
    pub(crate) fn pass(&mut self) -> Result<Pass> {
        let (step, z_loss) = (self.state.step, self.recipe.train.z_loss);
        fault::poison(&mut self.model, step);
        let before = self.state.next;
        let from = self.state.guard.as_ref().map_or(before, |m| m.after_left_out(before));
        let (batches, to) = self.batches(from)?;
        self.state.next = to;
        let accumulate = batches.len() as f64;
        let even = mean(&batches);
        let (mut loss, mut sums) = (0.0, Sums::new(self.source.mixture.names().len()));
        let (mut tokens, mut span) = (0, 0.0);
        let mut total: Option<Vec<Tensor<2>>> = None;
        // What was sent in between is no part of the step.
        self.model.take_loads();
        for batch in &batches {
            tokens += batch.tokens;
            span += mean_span(batch) / accumulate;
            let (value, each) = forward(&self.model, batch, even, z_loss);
            let number: f32 = value.clone().inner().into_scalar();
            loss += number as f64 / accumulate;
            sums.add(batch, &each, &self.vocabulary);
            let grads = gradients(&self.model, value.backward());
            total = Some(match total {
                None => grads,
                Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| a + b).collect(),
            });
        }
        let grads = total.expect("accumulate is at least 1");
        let squares = squares(&grads);
        let norm = squares.iter().sum::<f64>().sqrt() * self.scale() as f64;
        Ok(Pass {
            loss,
            tasks: sums.counted(&self.source.mixture.names()),
            sums,
            tokens,
            span,
            samples: [from, to],
            left_out: (from > before).then_some([before, from]),
            batches,
            grads,
            squares,
            norm,
            spreads: spreads(&self.model),
        })
    }

    /// What the sum of gradients is multiplied with.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / self.recipe.train.accumulate as f32
    }

    /// What the full learning rate is multiplied with in the next step: the schedule, and what the
    /// guard has lowered.
    pub(crate) fn share(&self) -> f32 {
        let ease = self.state.guard.as_ref().map_or(1.0, |m| m.ease(self.state.step));
        rate_at(&self.recipe.train, self.state.step as usize) * ease
    }

    /// The model without gradient records, as it is trained.
    pub(crate) fn plain(&self) -> Transformer {
        frozen(&self.model, None)
    }

    /// Loss of batches with the weights of now, without moving them.
    pub(crate) fn loss_of(&self, batches: &[Batch]) -> f64 {
        let plain = self.plain();
        let z_loss = self.recipe.train.z_loss;
        let even = mean(batches);
        let loss = |batch| forward(&plain, batch, even, z_loss).0.into_scalar::<f32>() as f64;
        batches.iter().map(loss).sum::<f64>() / batches.len().max(1) as f64
    }

    /// What runs through the layers for a batch, of which the first `rows` rows alone are taken.
    pub(crate) fn view(&self, batch: &Batch, rows: usize) -> Vec<LayerView> {
        let end = (rows * self.recipe.train.window).min(batch.ids.len());
        let ids: Arc<[u32]> = batch.ids[..end].into();
        let inside = batch.starts.iter().copied().filter(|&s| (s as usize) < end);
        let starts: Arc<[u32]> = inside.chain([end as u32]).collect();
        self.plain().view(&ids, &starts)
    }
}

impl Subject for Session<'_> {
    type Pass = Pass;

    fn phase(&self) -> &'static str {
        ""
    }

    fn limits(&self) -> Limits {
        Limits { least: 0.0, nats: 16.0, norm: 20.0, update: 0.25 }
    }

    fn peak_rate(&self) -> Option<f32> {
        let r = &self.recipe.train;
        Some(if r.optimiser == Kind::Muon { r.rate.max(r.muon_rate) } else { r.rate })
    }

    fn averages(&self) -> Option<&[Tensor<2>]> {
        self.average.as_deref()
    }

    fn logs(&self) -> Vec<String> {
        ["train", "samples", audit::LOG].map(String::from).into()
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn module(&mut self) -> Box<dyn Module + '_> {
        Box::new(&mut self.model)
    }

    fn figures(pass: &Pass) -> Figures<'_> {
        let &Pass { loss, norm, samples, .. } = pass;
        Figures { loss, norm, tasks: &pass.tasks, spreads: &pass.spreads, samples }
    }

    fn usual_share(&self) -> f32 {
        let ramp = self.state.guard.as_ref().map_or(1.0, |m| m.ramp(self.state.step));
        rate_at(&self.recipe.train, self.state.step as usize) * ramp
    }

    /// Moves the weights and their average.
    fn apply(&mut self, pass: &mut Pass) {
        let r = &self.recipe.train;
        let share = self.share() * fault::rate("", self.state.step);
        let (rates, scale) = ([r.rate * share, r.muon_rate * share], self.scale());
        let grads = std::mem::take(&mut pass.grads);
        self.optimiser.step_known(&mut self.model, grads, &pass.squares, rates, scale);
        if let Some(average) = &mut self.average {
            // Shorter at first, so that what it began with does not stay in it.
            let step = self.state.step as f32;
            let ema = r.ema.min((1.0 + step) / (10.0 + step));
            for (a, p) in average.iter_mut().zip(self.model.parameters()) {
                let now = p.tensor.clone().inner();
                *a = a.clone().mul_scalar(ema) + now.mul_scalar(1.0 - ema);
            }
        }
        self.state.step += 1;
    }

    fn skip(&mut self) {
        self.optimiser.step += 1;
        self.state.step += 1;
    }

    fn loss_again(&mut self, pass: &Pass) -> Result<f64> {
        Ok(self.loss_of(&pass.batches))
    }

    fn loss_of_samples(&mut self, from: u64) -> Result<f64> {
        Ok(self.loss_of(&self.batches(from)?.0))
    }

    fn first_not_finite(&mut self, pass: &Pass, evidence: &mut Vec<String>) -> Option<String> {
        let (plain, squares) = (self.plain(), &pass.squares);
        guard::first_not_finite(&plain, &pass.batches, &self.model, squares, evidence)
    }

    fn snapshot(&mut self) -> Result<Snapshot> {
        Snapshot::take(&self.state, &self.model, &self.optimiser, self.average.as_deref())
    }

    fn restore(&mut self, step: u64) -> Result<()> {
        self.state = checkpoint::load_step(
            &self.checkpoints,
            step,
            &self.state.fingerprint,
            &mut self.model,
            &mut self.optimiser,
            self.average.as_mut(),
        )?;
        Ok(())
    }
}

/// How the tokens of the passes since the loads were taken last were spread over experts.
fn spreads(model: &Transformer) -> Vec<Spread> {
    let (experts, chosen) = (model.config.experts, model.config.experts_per_token);
    let layers = model.take_loads().into_iter().enumerate();
    layers
        .filter_map(|(i, load)| {
            let used = experts_used(&load)?;
            Some(Spread { layer: format!("model.layers.{i}"), used, experts, chosen })
        })
        .collect()
}

/// What losses of the batches of a step are scaled with, for their mean to be the loss of all of them
/// as one batch: a token counts the same in whichever it is.
pub(crate) fn mean(batches: &[Batch]) -> f32 {
    let weights: f32 = batches.iter().flat_map(|batch| &batch.weights).sum();
    batches.len() as f32 / weights.max(1e-6)
}

/// What a recipe's training does with memory.
pub(crate) fn load(recipe: &Recipe, depth: usize) -> Result<memory::Load> {
    let r = &recipe.train;
    Ok(memory::Load {
        rows: r.rows,
        window: r.window,
        accumulate: r.accumulate,
        again: r.recompute.blocks("train.recompute", depth)?,
        muon: r.optimiser == Kind::Muon,
        average: r.ema > 0.0,
        replies: replies(recipe),
        saves: true,
        threads: rayon::current_num_threads(),
        adapters: None,
    })
}
