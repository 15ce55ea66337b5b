//! What training takes of memory, reckoned before the first step.
//!
//! A step is gone through on paper: every operation takes and gives back what its kernel does, in
//! the sizes that the pool of `danlu-ops` rounds them to, and the largest sum is the peak. So an
//! operation that comes to keep more or less has its line to change here; a test holds the sum
//! against steps that are really taken.

use crate::watch::{Event, Watcher};
use danlu_core::{BaseFormat, Error, LoraConfig, Objective, Result, Target, TuneRecipe};
use danlu_model::TransformerConfig;
use danlu_model::arch::GptConfig;
use danlu_model::io::Packing;
use danlu_ops::{AttentionMemory, AttentionShape, tensor_bytes};

/// Bytes of memory at the peak of training, by what holds them. The data, the program, the scratch
/// of matrix products and what the allocator holds back are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prediction {
    /// The model's parameters.
    pub parameters: usize,
    /// What the optimiser remembers.
    pub optimiser: usize,
    /// The moving average of the parameters, with what its update takes.
    pub average: usize,
    /// Gradients of parameters at the moment of the peak.
    pub gradients: usize,
    /// What is kept for the backward pass at that moment.
    pub activations: usize,
    /// What else operations hold at that moment, gradients of activations among it.
    pub workspace: usize,
    /// Keys and values of the replies at a validation.
    pub replies: usize,
    /// The copy that is written as a checkpoint while the training goes on.
    pub saving: usize,
}

impl Prediction {
    /// Bytes of the tensors that operations make: what [`danlu_ops::memory`] measures.
    pub fn operations(&self) -> usize {
        self.gradients + self.activations + self.workspace
    }

    /// Bytes of all tensors at the peak of a step.
    pub fn tensors(&self) -> usize {
        self.parameters + self.optimiser + self.average + self.operations()
    }

    /// Bytes at the peak. What operations have used stays with the program while it replies, and a
    /// checkpoint is written meanwhile.
    pub fn peak(&self) -> usize {
        self.tensors() + self.replies + self.saving
    }
}

impl std::fmt::Display for Prediction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "memory: about {:.0} MB at the peak:", mb(self.peak()))?;
        let parts = [
            ("parameters", self.parameters),
            ("optimiser", self.optimiser),
            ("average", self.average),
            ("gradients", self.gradients),
            ("activations", self.activations),
            ("workspace", self.workspace),
            ("replies", self.replies),
            ("saving", self.saving),
        ];
        let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> = parts.map(|(n, b)| format!(" {n} {:.1}", mb(*b))).collect();
        write!(f, "{}", parts.join(","))
    }
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// The sizes of a model that its memory depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    vocabulary: usize,
    width: usize,
    depth: usize,
    attention: AttentionShape,
    /// Width of what goes into the activation of the feed-forward, and of what comes out; of each
    /// expert, if there are some.
    feed: [usize; 2],
    /// Experts of a layer, 0 if there are none, and how many a token is sent to.
    experts: [usize; 2],
    /// Learnt positions.
    positions: usize,
    tied: bool,
    /// Values of a layer's vectors, and of the last norm's.
    vectors: [usize; 2],
}

impl From<&TransformerConfig> for Sizes {
    fn from(c: &TransformerConfig) -> Self {
        let norms = if c.qk_norm { 2 * c.head_dim } else { 0 };
        Self {
            vocabulary: c.vocabulary,
            width: c.width,
            depth: c.depth,
            attention: c.attention(),
            feed: [2 * c.hidden, c.hidden],
            experts: [c.experts, c.experts_per_token],
            positions: 0,
            tied: c.tied,
            vectors: [2 * c.width + norms, c.width],
        }
    }
}

impl From<&GptConfig> for Sizes {
    fn from(c: &GptConfig) -> Self {
        Self {
            vocabulary: c.vocabulary,
            width: c.width,
            depth: c.depth,
            attention: c.attention(),
            feed: [4 * c.width; 2],
            experts: [0, 0],
            positions: c.context,
            tied: true,
            vectors: [13 * c.width, 2 * c.width],
        }
    }
}

impl Sizes {
    /// `[rows, columns]` of a layer's matrices; those of experts one under the other.
    fn matrices(&self) -> [[usize; 2]; 4] {
        let (w, a, [wide, hidden]) = (self.width, &self.attention, self.feed);
        let times = self.experts[0].max(1);
        [[a.projection(), w], [w, a.output()], [times * wide, w], [times * w, hidden]]
    }

    fn layer(&self) -> usize {
        self.matrices().iter().map(|[r, c]| r * c).sum::<usize>() + self.experts[0] * self.width
    }

    fn tables(&self) -> usize {
        (self.vocabulary * (2 - usize::from(self.tied)) + self.positions) * self.width
    }

    /// Values of all parameters.
    pub fn parameters(&self) -> usize {
        let [of_layer, last] = self.vectors;
        self.depth * (self.layer() + of_layer) + self.tables() + last
    }
}

/// What is done with a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Rows of a batch.
    pub rows: usize,
    /// Tokens of a row, taken to be one document.
    pub window: usize,
    /// Batches a step.
    pub accumulate: usize,
    /// For each block, whether it is recomputed.
    pub again: Vec<bool>,
    /// Whether Muon steps the matrices of the layers (otherwise AdamW).
    pub muon: bool,
    /// Whether there is a moving average of the parameters.
    pub average: bool,
    /// Replies at one time during a validation; 0: there is none.
    pub replies: usize,
    /// Whether checkpoints are written.
    pub saves: bool,
    /// Threads that work.
    pub threads: usize,
    /// What learns beside weights that do not; `None`: all weights learn.
    pub adapters: Option<Adapters>,
}

/// Adapters that learn beside a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adapters {
    /// Their values.
    pub values: usize,
    /// The ranks of all those of a layer together.
    pub ranks: usize,
    /// Whether they have magnitudes (DoRA).
    pub magnitudes: bool,
    /// Whether some of their inputs are left out.
    pub dropout: bool,
    /// Bytes of the base's projections in few bits, which it is kept in beside its floats.
    pub packed: usize,
}

impl Adapters {
    /// Those of a recipe on a base of these sizes.
    pub fn new(c: &TransformerConfig, lora: &LoraConfig, base: Option<BaseFormat>) -> Self {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let sides = |target: &Target| match target {
            Target::QProj => [q, c.width],
            Target::KProj | Target::VProj => [kv, c.width],
            Target::OProj => [c.width, q],
            Target::GateProj | Target::UpProj => [c.hidden, c.width],
            Target::DownProj => [c.width, c.hidden],
        };
        let of = |target: &Target| {
            let [outputs, inputs] = sides(target);
            lora.rank * (outputs + inputs) + if lora.dora { outputs } else { 0 }
        };
        let packed = |base| match base {
            BaseFormat::Q8_0 => Packing::Q8_0.bytes(Sizes::from(c).layer()),
            BaseFormat::Q4_0 => Packing::Q4_0.bytes(Sizes::from(c).layer()),
        };
        Self {
            values: c.depth * lora.targets.iter().map(of).sum::<usize>(),
            ranks: lora.rank * lora.targets.len(),
            magnitudes: lora.dora,
            dropout: lora.dropout > 0.0,
            packed: c.depth * base.map_or(0, packed),
        }
    }
}

/// What a tuning does with memory.
pub fn tuning(recipe: &TuneRecipe, config: &TransformerConfig) -> Load {
    let r = &recipe.train;
    // Rows of a step, and replies that are tried for them.
    let (rows, tried) = match recipe.objective {
        Objective::Reply | Objective::Distil { .. } => (r.rows, 0),
        Objective::Dpo { pairs, .. } => (2 * pairs, 0),
        Objective::Grpo { questions, replies, .. } => (questions * replies, questions * replies),
    };
    let held_out = if recipe.held_out.is_empty() { 0 } else { HELD_OUT };
    Load {
        rows,
        window: r.window,
        accumulate: 1,
        again: vec![false; config.depth],
        muon: false,
        average: false,
        replies: tried.max(held_out),
        saves: true,
        threads: rayon::current_num_threads(),
        adapters: recipe.lora.as_ref().map(|lora| Adapters::new(config, lora, recipe.base)),
    }
}

/// Documents that are measured together, of what a tuning holds out.
pub(crate) const HELD_OUT: usize = 16;

/// Reckons the peak of training.
pub fn predict(sizes: &Sizes, load: &Load) -> Prediction {
    let walk = Walk { s: sizes, l: load, n: load.rows * load.window };
    let mut book = Book::default();
    for batch in 0..load.accumulate.max(1) {
        let before = book.now[GRADIENTS];
        walk.forward(&mut book);
        walk.backward(&mut book);
        if batch > 0 {
            // Summed into those of the batches before.
            book.now[GRADIENTS] = before;
        }
    }
    walk.optimiser(&mut book);
    if load.replies > 0 {
        walk.validation(&mut book);
    }
    let parameters = size_of::<f32>() * sizes.parameters();
    let layers = size_of::<f32>() * sizes.depth * sizes.layer();
    let (learns, packed) = match &load.adapters {
        Some(a) => (size_of::<f32>() * a.values, a.packed + size_of::<f32>() * a.values),
        None => (parameters, 0),
    };
    let optimiser = 2 * learns - if load.muon { layers } else { 0 };
    let average = if load.average {
        parameters + 2 * size_of::<f32>() * sizes.vocabulary * sizes.width
    } else {
        0
    };
    let kept = size_of::<f32>() * load.window * sizes.attention.kv_heads * sizes.attention.head_dim;
    // A checkpoint holds two tensors a parameter beside it, whatever the optimiser uses of them.
    let saved = learns * if load.average { 4 } else { 3 };
    Prediction {
        parameters: parameters + packed,
        optimiser,
        average,
        gradients: book.peak[GRADIENTS],
        activations: book.peak[ACTIVATIONS],
        workspace: book.peak[WORKSPACE],
        // With guidance, every reply is two sequences.
        // Whoever replies has the weights once more, as decoding reads them.
        replies: 2 * load.replies * 2 * sizes.depth * kept
            + if load.replies > 0 { parameters } else { 0 },
        saving: if load.saves { saved } else { 0 },
    }
}

const GRADIENTS: usize = 0;
const ACTIVATIONS: usize = 1;
const WORKSPACE: usize = 2;

/// Bytes in use by kind, now and when they were most.
#[derive(Default)]
struct Book {
    now: [usize; 3],
    peak: [usize; 3],
}

impl Book {
    fn take(&mut self, kind: usize, numbers: impl IntoIterator<Item = usize>) {
        self.now[kind] += numbers.into_iter().map(tensor_bytes).sum::<usize>();
        if self.now.iter().sum::<usize>() > self.peak.iter().sum() {
            self.peak = self.now;
        }
    }

    fn give(&mut self, kind: usize, numbers: impl IntoIterator<Item = usize>) {
        self.now[kind] -= numbers.into_iter().map(tensor_bytes).sum::<usize>();
    }

    /// Takes and gives back.
    fn pass(&mut self, kind: usize, numbers: impl IntoIterator<Item = usize> + Clone) {
        self.take(kind, numbers.clone());
        self.give(kind, numbers);
    }
}

/// One batch of `n` tokens through a model.
struct Walk<'a> {
    s: &'a Sizes,
    l: &'a Load,
    n: usize,
}

/// Rows of logits at one time, as in `danlu-ops`.
const LOGITS: usize = 1024;

impl Walk<'_> {
    /// Numbers of the stream, of the fused projection, of attention's output, and of what goes into
    /// the activation and comes out of it.
    fn widths(&self) -> [usize; 5] {
        let (a, [wide, hidden]) = (&self.s.attention, self.s.feed.map(|w| w * self.times()));
        [self.s.width, a.projection(), a.output(), wide, hidden].map(|w| self.n * w)
    }

    /// Feed-forwards that a token goes through.
    fn times(&self) -> usize {
        self.s.experts[1].max(1)
    }

    /// What a mixture of experts keeps for its backward pass beside what a feed-forward does: its
    /// inputs and outputs by expert, what comes out of the activation, the weights one under the other,
    /// and what is added to the stream.
    fn mixture(&self) -> Vec<usize> {
        if self.s.experts[0] == 0 {
            return Vec::new();
        }
        let [stream, _, _, _, hidden] = self.widths();
        let places = stream * self.times();
        let [_, _, up, down] = self.s.matrices().map(|[r, c]| r * c);
        vec![places, places, hidden, up, down, stream]
    }

    /// What attention takes beside its output.
    fn attention(&self, backward: bool) -> AttentionMemory {
        let documents = [self.n / self.l.window, self.l.window];
        AttentionMemory::new(&self.s.attention, documents, self.l.threads, backward)
    }

    /// A layer forward. Its input is there before and after; its output comes to it, and, if
    /// `keeps`, what its backward pass wants.
    fn layer(&self, book: &mut Book, keeps: bool) {
        let [stream, projection, mixed, wide, hidden] = self.widths();
        let drop = |book: &mut Book, numbers: usize| {
            if !keeps {
                book.give(ACTIVATIONS, [numbers]);
            }
        };
        book.take(ACTIVATIONS, [stream, projection]);
        if keeps {
            book.take(ACTIVATIONS, self.beside());
        }
        drop(book, stream);
        let attention = self.attention(false);
        book.take(WORKSPACE, attention.shared.clone());
        book.take(ACTIVATIONS, [mixed]);
        book.pass(WORKSPACE, attention.threads);
        book.give(WORKSPACE, attention.shared);
        drop(book, projection);
        book.take(ACTIVATIONS, [stream]);
        drop(book, mixed);
        book.take(ACTIVATIONS, [stream, wide]);
        book.take(ACTIVATIONS, self.mixture());
        if !keeps {
            book.give(ACTIVATIONS, self.mixture());
        }
        drop(book, stream);
        book.take(ACTIVATIONS, [stream]);
        book.pass(WORKSPACE, [hidden]);
        drop(book, wide);
        drop(book, stream);
    }

    /// What the adapters of a layer keep for their backward pass: what lies between their two
    /// products, inputs of which some were left out, and outputs before they got their length.
    fn beside(&self) -> Vec<usize> {
        let Some(a) = &self.l.adapters else { return Vec::new() };
        let [stream, projection, mixed, wide, hidden] = self.widths();
        let mut all = vec![self.n * a.ranks];
        if a.dropout {
            all.extend([stream, mixed, stream, hidden]);
        }
        if a.magnitudes {
            all.extend([projection, stream, wide, stream]);
        }
        all
    }

    /// A layer backward: from the gradient of its output to that of its input.
    fn layer_back(&self, book: &mut Book) {
        let [stream, projection, mixed, wide, hidden] = self.widths();
        // Weights that do not learn have no gradient; what lies beside them has a small one.
        let [qkv, out, up, down] = match &self.l.adapters {
            None => self.s.matrices().map(|[r, c]| r * c),
            Some(a) => [a.values / self.s.depth.max(1), 0, 0, 0],
        };
        book.give(ACTIVATIONS, self.beside());
        if self.s.experts[0] > 0 {
            // Gradients of the experts' outputs, and of weights while they are taken apart.
            book.pass(WORKSPACE, [stream * self.times(), hidden, up, down]);
            book.give(ACTIVATIONS, self.mixture());
        }
        // The last projection. The activation's input becomes its own gradient, in its place.
        book.take(WORKSPACE, [hidden]);
        book.take(GRADIENTS, [down]);
        book.give(WORKSPACE, [hidden]);
        // The projection before it, with the norm's output, which it kept.
        book.take(WORKSPACE, [stream]);
        book.take(GRADIENTS, [up]);
        book.give(ACTIVATIONS, [wide, stream]);
        // The norm, which adds what came along the stream.
        book.pass(WORKSPACE, [stream]);
        book.give(WORKSPACE, [stream]);
        book.give(ACTIVATIONS, [stream]);
        // The projection after attention, and attention.
        book.take(WORKSPACE, [mixed]);
        book.take(GRADIENTS, [out]);
        let attention = self.attention(true);
        book.take(WORKSPACE, [projection]);
        book.take(WORKSPACE, attention.shared.clone());
        book.pass(WORKSPACE, attention.threads);
        book.give(WORKSPACE, attention.shared);
        book.give(WORKSPACE, [mixed]);
        book.give(ACTIVATIONS, [projection, mixed]);
        // The projection before attention, and the first norm.
        book.take(WORKSPACE, [stream]);
        book.take(GRADIENTS, [qkv]);
        book.give(WORKSPACE, [projection]);
        book.give(ACTIVATIONS, [stream]);
        book.pass(WORKSPACE, [stream]);
        book.give(WORKSPACE, [stream]);
        book.give(ACTIVATIONS, [stream]);
    }

    /// Forward through the loss, which makes its gradients at once.
    fn forward(&self, book: &mut Book) {
        let [stream, ..] = self.widths();
        book.take(ACTIVATIONS, [stream]);
        if self.s.positions > 0 {
            book.pass(ACTIVATIONS, [stream]);
        }
        for &again in &self.l.again {
            self.layer(book, !again);
        }
        book.take(ACTIVATIONS, [stream]);
        let (rows, w) = (LOGITS.min(self.n), self.s.width);
        book.take(WORKSPACE, [stream]);
        if self.l.adapters.is_none() {
            book.take(GRADIENTS, [self.s.vocabulary * w]);
        }
        book.pass(WORKSPACE, [rows * self.s.vocabulary, rows * w]);
        book.give(ACTIVATIONS, [stream]);
    }

    fn backward(&self, book: &mut Book) {
        let ([stream, ..], w) = (self.widths(), self.s.width);
        book.pass(WORKSPACE, [stream]);
        book.give(ACTIVATIONS, [stream]);
        for &again in self.l.again.iter().rev() {
            if again {
                self.layer(book, true);
                book.give(ACTIVATIONS, [stream]);
            }
            self.layer_back(book);
        }
        if self.s.positions > 0 {
            book.take(GRADIENTS, [self.s.positions * w]);
        }
        let table = self.s.vocabulary * w;
        match self.s.tied {
            _ if self.l.adapters.is_some() => {}
            true => book.pass(GRADIENTS, [table]),
            false => book.take(GRADIENTS, [table]),
        }
        book.give(WORKSPACE, [stream]);
    }

    /// The optimiser's step, and no gradient after it. AdamW works in place; Muon comes when the
    /// gradients of all others are gone.
    fn optimiser(&self, book: &mut Book) {
        if self.l.muon {
            let matrices = self.s.matrices();
            book.now[GRADIENTS] =
                self.s.depth * matrices.iter().map(|[r, c]| tensor_bytes(r * c)).sum::<usize>();
            let many = self.s.depth * matrices.len() >= 2 * self.l.threads;
            let largest = matrices.into_iter().max_by_key(|[r, c]| r * c + 4 * r.min(c).pow(2));
            let [r, c] = largest.unwrap_or_default();
            let square = r.min(c).pow(2);
            let one = [r * c, square, square, square, square];
            book.pass(WORKSPACE, one.repeat(if many { self.l.threads } else { 1 }));
        }
        book.now[GRADIENTS] = 0;
    }

    /// A batch without gradients, and then the prompts of as many replies as there are at one time.
    fn validation(&self, book: &mut Book) {
        for n in [self.n, self.l.replies * self.l.window] {
            let walk = Walk { n, ..*self };
            let [stream, ..] = walk.widths();
            book.take(ACTIVATIONS, [stream]);
            for _ in 0..self.s.depth {
                walk.layer(book, false);
                book.give(ACTIVATIONS, [stream]);
            }
            let rows = LOGITS.min(n);
            book.pass(WORKSPACE, [stream, rows * self.s.vocabulary, rows * self.s.width]);
            book.give(ACTIVATIONS, [stream]);
        }
    }
}

/// What a pretraining could do to take less. `sizes` and `load` are what its prediction is made of.
pub fn remedies(sizes: &Sizes, load: &Load) -> String {
    let all = Load { again: vec![true; sizes.depth], ..load.clone() };
    let least = Load { rows: 1, window: load.window.min(32), ..all.clone() };
    let (all, least) = (predict(sizes, &all), predict(sizes, &least).peak());
    if danlu_ops::available_memory().is_some_and(|available| available < least) {
        return format!(
            "a smaller model (model.depth is {}, model.width {}): a single short row would still take \
             about {:.0} MB",
            sizes.depth,
            sizes.width,
            mb(least)
        );
    }
    let recompute = if load.again.iter().all(|&again| again) {
        String::new()
    } else {
        format!(", or train.recompute = \"all\" (about {:.0} MB)", mb(all.peak()))
    };
    let (rows, window) = (load.rows, load.window);
    format!("fewer train.rows ({rows}), a shorter train.window ({window}){recompute}")
}

/// What a process took at most of what was reckoned for it, where it was measured: the program, its
/// data and what the allocator holds back come to it.
const MOST: f64 = 1.3;

/// Refuses training that needs more memory than there is, with what `would_help`; what is to be told
/// of one that may just not fit.
pub fn check(
    prediction: &Prediction,
    available: Option<usize>,
    would_help: &str,
) -> Result<Option<String>> {
    let needed = prediction.peak();
    let Some(available) = available.filter(|&a| (a as f64) < MOST * needed as f64) else {
        return Ok(None);
    };
    let (needs, there) = (mb(needed), mb(available));
    let words = format!("about {needs:.0} MB of memory and {there:.0} MB are available");
    if available < needed {
        let words = format!("training needs {words}; what would help: {would_help}\n{prediction}");
        return Err(Error::Other(words));
    }
    Ok(Some(format!(
        "training needs {words}, but a process may take up to {:.0} % more than is reckoned; what \
         would help: {would_help}",
        100.0 * (MOST - 1.0)
    )))
}

/// Tells what training will take, and refuses what cannot fit ([`check`]).
pub(crate) fn refuse(
    prediction: &Prediction,
    would_help: &str,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let tight = check(prediction, danlu_ops::available_memory(), would_help)?;
    let told = std::iter::once(prediction.to_string()).chain(tight);
    told.for_each(|told| watcher.tell(Event::Note(told)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        let config = GptConfig {
            vocabulary: 500,
            width: 64,
            depth: 4,
            heads: 4,
            context: 128,
            norm_eps: 1e-5,
        };
        Sizes::from(&config)
    }

    fn load() -> Load {
        Load {
            rows: 4,
            window: 128,
            accumulate: 1,
            again: vec![false; 4],
            muon: false,
            average: false,
            replies: 0,
            saves: false,
            threads: 2,
            adapters: None,
        }
    }

    #[test]
    fn what_costs_memory_is_seen() {
        let (sizes, less) = (sizes(), load());
        let peak = |load: Load| predict(&sizes, &load).peak();
        let base = peak(load());
        for more in [
            Load { rows: 8, ..load() },
            Load { window: 256, ..load() },
            Load { average: true, ..load() },
            Load { accumulate: 2, ..load() },
            Load { replies: 16, ..load() },
            Load { saves: true, ..load() },
        ] {
            assert!(peak(more.clone()) > base, "{more:?}");
        }
        for less in [Load { again: vec![true; 4], ..less.clone() }, Load { muon: true, ..less }] {
            assert!(peak(less.clone()) < base, "{less:?}");
        }
        let text = predict(&sizes, &Load { saves: true, ..load() }).to_string();
        for part in ["memory: about", "parameters", "gradients", "activations", "saving"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn an_adapter_takes_less_than_all_weights_and_its_ways_cost() {
        let recipe = danlu_core::recipe::ModelRecipe { depth: 4, ..Default::default() };
        let config = TransformerConfig::from_recipe(&recipe, 500, 128).expect("valid");
        let sizes = Sizes::from(&config);
        let peak = |tables: &str| {
            let text = format!(
                "name='a'\nmodel='m'\n{tables}\n[[data]]\nfile='d'\n[train]\nsteps=1\nwindow=128\n"
            );
            let recipe = TuneRecipe::parse(&text).expect("valid");
            predict(&sizes, &tuning(&recipe, &config)).peak()
        };
        let lora = peak("[lora]");
        assert!(lora < peak(""), "all weights have gradients and moments");
        for more in [
            "[lora]\nrank=64",
            "[lora]\ndropout=0.1",
            "[lora]\ndora=true",
            "base='q8_0'\n[lora]",
            "[lora]\n[objective]\nkind='dpo'\npairs=16",
            "[lora]\n[objective]\nkind='grpo'\nreward='number'\nquestions=8\nreplies=8",
        ] {
            assert!(peak(more) > lora, "{more}");
        }
    }

    #[test]
    fn too_much_is_refused_with_what_would_help() {
        let (sizes, load) = (sizes(), load());
        let prediction = predict(&sizes, &load);
        let peak = prediction.peak();
        let remedies = remedies(&sizes, &load);
        for enough in [None, Some(2 * peak), Some(usize::MAX)] {
            assert_eq!(check(&prediction, enough, &remedies).expect("fits"), None);
        }
        let told = check(&prediction, Some(peak + 1), &remedies).expect("may fit");
        assert!(told.is_some_and(|t| t.contains("up to 30 % more")), "it is told that it is close");
        let error = check(&prediction, Some(peak / 2), &remedies).expect_err("too much");
        let text = error.to_string();
        let [needed, there] = [peak, peak / 2].map(|b| format!("{:.0} MB", mb(b)));
        let wanted = ["train.rows (4)", "train.window (128)", "train.recompute", &needed, &there];
        for wanted in wanted {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }
}
