//! One run, written as typed TOML: what data, which tokenisers, what model, how it is trained.
//!
//! Unknown keys are errors that name the key and the nearest valid one. Every default is here,
//! beside the field's meaning; the file on disk states only what differs.

mod bounds;
mod changes;
mod running;

pub use bounds::at_most;
pub(crate) use bounds::batch_at_most;
pub use changes::changes;
pub use running::{CheckpointRecipe, GuardRecipe, TrackRecipe};

use crate::{Error, Result};
pub(crate) use running::is_default;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run: letters, digits, `-` and `_`.
    pub name: String,
    /// Seed of everything random in the run.
    #[serde(default = "one")]
    pub seed: u64,
    /// What is read.
    pub data: DataRecipe,
    /// The text tokeniser.
    #[serde(default)]
    pub text: TextRecipe,
    /// The image tokeniser.
    #[serde(default)]
    pub image: ImageRecipe,
    /// The audio tokeniser.
    #[serde(default)]
    pub audio: AudioRecipe,
    /// The transformer.
    #[serde(default)]
    pub model: ModelRecipe,
    /// The training loop.
    pub train: TrainRecipe,
    /// Share of each task among the samples, by task name; need not sum to 1. A task that is not
    /// named is not trained.
    pub mixture: BTreeMap<String, f32>,
    /// What is evaluated when training ends, and how much of it.
    #[serde(default)]
    pub eval: EvalRecipe,
    /// Which checkpoints are written and kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint: CheckpointRecipe,
    /// What watches the training, and what it may do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guard: GuardRecipe,
    /// Where figures go beside the log.
    #[serde(default, skip_serializing_if = "is_default")]
    pub track: TrackRecipe,
}

/// What is read. Relative paths are resolved against the recipe's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Pack folders (each with a `manifest.json`).
    #[serde(default)]
    pub packs: Vec<PathBuf>,
    /// Sample files (`.jsonl`); task name `file` in the mixture.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// Sample files that are never learnt from: what they cost is measured at every validation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<PathBuf>,
    /// How many unusable rows of `files`, and of `held_out`, are skipped before the run refuses to go on.
    #[serde(default = "default_bad_rows")]
    pub max_bad_rows: usize,
    /// Scenes composed of several pictures, for the grounding tasks.
    #[serde(default = "default_scenes")]
    pub scenes: usize,
    /// Altered copies (shift, scale, colour; speed, gain, noise) that each training picture and
    /// sound is tokenised in, besides the original. Prompts draw from them; replies never do.
    #[serde(default = "default_variants")]
    pub variants: usize,
    /// Keep only the first this many concepts of each pack (0: all), for small runs.
    #[serde(default)]
    pub concepts: usize,
    /// Most characters of a stretch of plain text, half as many of Chinese; the fewest are a third.
    // Left out where it is the default, so that runs from before there was a choice are the same.
    #[serde(default = "default_stretch", skip_serializing_if = "is_default_stretch")]
    pub stretch: usize,
}

/// Byte-level BPE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextRecipe {
    /// Entries, the 256 bytes included.
    pub vocabulary: u32,
    /// Bytes of text it is trained on at most, drawn evenly from the documents.
    pub train_bytes: usize,
}

/// Convolutional autoencoder with finite scalar quantisation on 64x64 RGB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageRecipe {
    /// Levels of each quantised dimension; their product is the codebook size.
    pub levels: Vec<u32>,
    /// Channels at the finest feature map; coarser maps have twice as many.
    pub channels: usize,
    /// Residual blocks at each of the two scales, in encoder and decoder alike.
    pub blocks: usize,
    /// Optimiser steps; 0: none is learnt, and the model has no such tokens unless it is given them.
    pub steps: usize,
    /// Pictures a step.
    pub batch: usize,
    /// Peak learning rate.
    pub rate: f32,
    /// The recogniser of what a picture shows; its classes are the concepts trained on.
    pub semantic: SemanticRecipe,
}

/// A recogniser, whose verdict is the token before a picture's or sound's codes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SemanticRecipe {
    /// Optimiser steps; 0: no recogniser, and no semantic token.
    pub steps: usize,
    /// Pictures or sounds a step.
    pub batch: usize,
    /// Peak learning rate.
    pub rate: f32,
    /// Channels: a picture's four scales have 1, 2, 4 and 8 times as many, a sound's 4, 6, 8 and 8.
    pub channels: usize,
    /// Residual blocks at each scale.
    pub blocks: usize,
    /// Width of the embedding that is compared with the classes'.
    pub width: usize,
    /// Seconds of a sound that are looked at (pictures: not used).
    pub seconds: f32,
}

/// Log-mel autoencoder with finite scalar quantisation on 16 kHz mono.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AudioRecipe {
    /// Levels of each quantised dimension; their product is the codebook size.
    pub levels: Vec<u32>,
    /// Samples from one mel frame to the next.
    pub hop: usize,
    /// Samples of one analysis window; a power of two.
    pub fft: usize,
    /// Mel bands.
    pub mels: usize,
    /// Mel frames in one token. Tokens a second: `16000 / (hop * frames)`.
    pub frames: usize,
    /// Channels of the convolutions.
    pub channels: usize,
    /// Residual blocks in encoder and decoder alike.
    pub blocks: usize,
    /// Optimiser steps; 0: none is learnt, and the model has no such tokens unless it is given them.
    pub steps: usize,
    /// Clips a step.
    pub batch: usize,
    /// Tokens in a training clip.
    pub clip: usize,
    /// Peak learning rate.
    pub rate: f32,
    /// Longest sound that is accepted, in seconds.
    pub max_seconds: f32,
    /// The recogniser of what is said; its classes are the texts that two voices or more say.
    pub semantic: SemanticRecipe,
}

/// The transformer: `depth` derives what is not given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelRecipe {
    /// A model's folder whose weights and tokenisers the training begins with; every size is then
    /// its. Without, the weights are random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Layers, and the dial that sets the rest: width 64 a layer, one head per 64 of width.
    pub depth: usize,
    /// Width of the residual stream. Default: `64 * depth`.
    pub width: Option<usize>,
    /// Query heads. Default: `width / head_dim`.
    pub heads: Option<usize>,
    /// Key and value heads; divides `heads`. Default: the divisor of `heads` nearest to a third.
    pub kv_heads: Option<usize>,
    /// Width of a head. Default: 64.
    pub head_dim: Option<usize>,
    /// Hidden width of the SwiGLU; of each expert, if there are some. Default: 8/3 of the width, divided
    /// among the experts that a token is sent to, rounded up to a multiple of 64.
    pub hidden: Option<usize>,
    /// Experts of every layer (a mixture of experts); 0: every token goes through the same weights.
    // Left out without experts, so that runs from before there were some are the same.
    #[serde(skip_serializing_if = "is_zero")]
    pub experts: usize,
    /// How many of them each token is sent to.
    #[serde(skip_serializing_if = "is_usual_chosen")]
    pub experts_per_token: usize,
    /// Weight in the loss of how unevenly experts are used (Switch Transformer, arXiv 2101.03961).
    #[serde(skip_serializing_if = "is_usual_balance")]
    pub balance: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Normalise queries and keys per head (Qwen3).
    pub qk_norm: bool,
    /// Share the embedding with the output head.
    pub tied: bool,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// Longest document in tokens. Default: the training window.
    pub context: Option<usize>,
}

/// Most altered copies of a picture or sound.
pub const MOST_VARIANTS: usize = 200;

/// Most experts of a layer.
pub const MOST_EXPERTS: usize = 1 << 10;

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to `final_rate`.
    Cosine,
    /// Constant, then a straight line down over the last `decay` share of the steps.
    Wsd,
}

/// The optimiser of the matrices; everything else is always AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimiser {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2017).
    AdamW,
    /// Momentum orthogonalised by Newton-Schulz (Jordan 2024), for the matrices inside the blocks, each by
    /// itself: queries, keys and values are three, gate and up two.
    Muon,
}

/// The blocks of which only the input is kept for the backward pass, which runs them again: less
/// memory for more time, and the same numbers. Written `"none"`, `"all"` or `[0, 2]`, from 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "WrittenRecompute", into = "WrittenRecompute")]
pub enum Recompute {
    /// No block.
    #[default]
    None,
    /// Every block.
    All,
    /// These, ascending.
    Blocks(Vec<usize>),
}

/// What [`Recompute`] is in a file.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "`train.recompute`: expected \"none\", \"all\" or block numbers as in [0, 2]"
)]
enum WrittenRecompute {
    Word(String),
    Blocks(Vec<usize>),
}

impl TryFrom<WrittenRecompute> for Recompute {
    type Error = Error;

    fn try_from(written: WrittenRecompute) -> Result<Self> {
        match written {
            WrittenRecompute::Word(word) if word == "none" => Ok(Self::None),
            WrittenRecompute::Word(word) if word == "all" => Ok(Self::All),
            WrittenRecompute::Word(word) => {
                let wanted = "\"none\", \"all\" or block numbers as in [0, 2]";
                Err(Error::parameter("train.recompute", wanted, format!("\"{word}\"")))
            }
            WrittenRecompute::Blocks(blocks) => Ok(Self::Blocks(blocks)),
        }
    }
}

impl From<Recompute> for WrittenRecompute {
    fn from(r: Recompute) -> Self {
        match r {
            Recompute::None => Self::Word("none".into()),
            Recompute::All => Self::Word("all".into()),
            Recompute::Blocks(blocks) => Self::Blocks(blocks),
        }
    }
}

impl std::str::FromStr for Recompute {
    type Err = String;

    /// As on a command line: `none`, `all` or `0,2`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            list => {
                let blocks: std::result::Result<_, _> = list.split(',').map(str::parse).collect();
                let wanted = "expected `none`, `all` or block numbers as in `0,2`";
                blocks.map(Self::Blocks).map_err(|_| wanted.into())
            }
        }
    }
}

impl Recompute {
    /// Whether it is no block.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Whether it is among the blocks, for each of `depth`. Numbers that are no block's or do not
    /// ascend are refused in the name of the parameter `name`.
    pub fn blocks(&self, name: &str, depth: usize) -> Result<Vec<bool>> {
        let blocks = match self {
            Self::None => return Ok(vec![false; depth]),
            Self::All => return Ok(vec![true; depth]),
            Self::Blocks(blocks) => blocks,
        };
        if let Some(b) = blocks.iter().find(|&&b| b >= depth) {
            let wanted = format!("block numbers from 0 to {}", depth.saturating_sub(1));
            return Err(Error::parameter(name, wanted, b));
        }
        if !blocks.is_sorted_by(|a, b| a < b) {
            let wanted = "block numbers that ascend, each once";
            return Err(Error::parameter(name, wanted, format!("{blocks:?}")));
        }
        Ok((0..depth).map(|b| blocks.contains(&b)).collect())
    }
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Optimiser steps.
    pub steps: usize,
    /// Rows of a batch.
    #[serde(default = "default_rows")]
    pub rows: usize,
    /// Tokens of a row; the longest document that fits.
    #[serde(default = "default_window")]
    pub window: usize,
    /// Batches whose gradients are summed into one step.
    #[serde(default = "default_one")]
    pub accumulate: usize,
    /// Blocks that the backward pass runs again instead of keeping what they made.
    // Left out where it is none, so that runs from before there was a choice are still the same.
    #[serde(default, skip_serializing_if = "Recompute::is_none")]
    pub recompute: Recompute,
    /// Which optimiser.
    #[serde(default = "default_optimiser")]
    pub optimiser: Optimiser,
    /// Peak learning rate of AdamW.
    #[serde(default = "default_rate")]
    pub rate: f32,
    /// Peak learning rate of Muon, where it is used.
    #[serde(default = "default_muon_rate")]
    pub muon_rate: f32,
    /// Shape of the schedule.
    #[serde(default = "default_schedule")]
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    #[serde(default = "default_warmup")]
    pub warmup: usize,
    /// Last learning rate, as a share of the peak.
    #[serde(default = "default_final_rate")]
    pub final_rate: f32,
    /// Share of the steps in which WSD decays.
    #[serde(default = "default_decay")]
    pub decay: f32,
    /// AdamW betas.
    #[serde(default = "default_betas")]
    pub betas: [f32; 2],
    /// AdamW epsilon.
    #[serde(default = "default_epsilon")]
    pub epsilon: f32,
    /// Decoupled weight decay of the matrices.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f32,
    /// Largest global gradient norm; larger ones are scaled down to it.
    #[serde(default = "default_clip")]
    pub clip: f32,
    /// Weight of the z-loss (squared log-partition; PaLM, arXiv 2204.02311).
    #[serde(default = "default_z_loss")]
    pub z_loss: f32,
    /// Decay of the exponential moving average of the weights that is saved; 0: none.
    #[serde(default)]
    pub ema: f32,
    /// Weight of a reply's tokens in the loss, by their modality.
    #[serde(default)]
    pub loss: LossWeights,
    /// Share of prompts that are blanked out so that generation can be guided (classifier-free).
    #[serde(default = "default_blank")]
    pub blank: f32,
    /// Share of the samples whose prompts show pictures and sounds by their semantic token alone,
    /// where they have a class: short, so that more of them fit, and about what the thing is.
    #[serde(default)]
    pub brief: f32,
    /// Steps between checkpoints.
    #[serde(default = "default_checkpoint")]
    pub checkpoint: usize,
    /// Steps between validation losses and samples on the run page.
    #[serde(default = "default_validate")]
    pub validate: usize,
}

/// Loss weight of each modality's tokens in a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossWeights {
    /// Text, places and the closing control token.
    pub text: f32,
    /// Image codes.
    pub image: f32,
    /// Audio codes.
    pub audio: f32,
    /// Semantic tokens of pictures and sounds.
    pub semantic: f32,
    /// Tokens of prompts, whatever their modality.
    pub prompt: f32,
}

/// What is evaluated when training ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalRecipe {
    /// Questions per task and split.
    pub questions: usize,
    /// Sampling temperature of generated pictures and sounds; text is always greedy.
    pub temperature: f32,
    /// Classifier-free guidance of generated pictures; 1: none.
    pub guidance: f32,
}

impl DataRecipe {
    /// Packs as they are: no scenes, nothing altered.
    pub fn of_packs(packs: Vec<PathBuf>) -> Self {
        Self {
            packs,
            files: Vec::new(),
            held_out: Vec::new(),
            max_bad_rows: 0,
            scenes: 0,
            variants: 0,
            concepts: 0,
            stretch: STRETCH,
        }
    }

    /// Refuses a file that is learnt from and held out, however it is written.
    fn held_apart(&self) -> Result<()> {
        let learnt = |path: &&PathBuf| self.files.iter().any(|file| same_file(file, path));
        match self.held_out.iter().find(learnt) {
            None => Ok(()),
            Some(both) => {
                let wanted = "files that are not learnt from (`data.files`)";
                Err(Error::parameter("data.held_out", wanted, both.display()))
            }
        }
    }
}

impl Default for TextRecipe {
    fn default() -> Self {
        Self { vocabulary: 4096, train_bytes: 20_000_000 }
    }
}

impl Default for ImageRecipe {
    fn default() -> Self {
        Self {
            levels: vec![8, 8, 8, 5],
            channels: 64,
            blocks: 2,
            steps: 3000,
            batch: 16,
            rate: 1e-3,
            semantic: SemanticRecipe::default(),
        }
    }
}

impl Default for SemanticRecipe {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 64,
            rate: 2e-3,
            channels: 32,
            blocks: 1,
            width: 128,
            seconds: 2.5,
        }
    }
}

impl Default for AudioRecipe {
    fn default() -> Self {
        Self {
            levels: vec![8, 8, 8, 5],
            hop: 256,
            fft: 1024,
            mels: 80,
            frames: 3,
            channels: 192,
            blocks: 3,
            steps: 3000,
            batch: 16,
            clip: 48,
            rate: 1e-3,
            max_seconds: 8.0,
            semantic: SemanticRecipe::default(),
        }
    }
}

impl Default for ModelRecipe {
    fn default() -> Self {
        Self {
            from: None,
            depth: 4,
            width: None,
            heads: None,
            kv_heads: None,
            head_dim: None,
            hidden: None,
            experts: 0,
            experts_per_token: usual_chosen(),
            balance: usual_balance(),
            rope_theta: 10_000.0,
            qk_norm: true,
            tied: true,
            norm_eps: 1e-6,
            context: None,
        }
    }
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { text: 1.0, image: 1.0, audio: 1.0, semantic: 1.0, prompt: 0.0 }
    }
}

impl Default for EvalRecipe {
    fn default() -> Self {
        Self { questions: 100, temperature: 0.7, guidance: 1.5 }
    }
}

fn one() -> u64 {
    1
}
fn default_one() -> usize {
    1
}
fn default_bad_rows() -> usize {
    20
}
fn default_scenes() -> usize {
    2000
}
fn default_variants() -> usize {
    3
}
/// Most characters of a stretch of plain text, unless the recipe says so.
pub const STRETCH: usize = 640;

fn default_stretch() -> usize {
    STRETCH
}
fn is_default_stretch(stretch: &usize) -> bool {
    *stretch == default_stretch()
}
fn is_zero(n: &usize) -> bool {
    *n == 0
}
fn usual_chosen() -> usize {
    2
}
fn is_usual_chosen(n: &usize) -> bool {
    *n == usual_chosen()
}
fn usual_balance() -> f32 {
    0.01
}
fn is_usual_balance(weight: &f32) -> bool {
    *weight == usual_balance()
}
fn default_rows() -> usize {
    8
}
fn default_window() -> usize {
    256
}
fn default_optimiser() -> Optimiser {
    Optimiser::AdamW
}
fn default_rate() -> f32 {
    2e-3
}
fn default_muon_rate() -> f32 {
    2e-2
}
fn default_schedule() -> Schedule {
    Schedule::Wsd
}
fn default_warmup() -> usize {
    50
}
fn default_final_rate() -> f32 {
    0.02
}
fn default_decay() -> f32 {
    0.4
}
fn default_betas() -> [f32; 2] {
    [0.9, 0.95]
}
fn default_epsilon() -> f32 {
    1e-8
}
fn default_weight_decay() -> f32 {
    0.1
}
fn default_clip() -> f32 {
    1.0
}
fn default_z_loss() -> f32 {
    1e-4
}
fn default_blank() -> f32 {
    0.1
}
fn default_checkpoint() -> usize {
    200
}
fn default_validate() -> usize {
    200
}

/// Leaves a path's last name. What lies there is told by its hash, wherever that is.
pub(crate) fn without_folder(path: &mut PathBuf) {
    if let Some(name) = path.file_name() {
        *path = name.into();
    }
}

/// Refuses a recipe whose path cannot be written into a copy of it, where paths are text.
pub(crate) fn writable(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(Error::file(path, "a path in UTF-8", "another")),
    }
}

impl Recipe {
    /// Reads a recipe file; relative paths in it become relative to the current folder.
    pub fn load(path: &Path) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        writable(path)?;
        if crate::TuneRecipe::is_meant(&text) {
            let found = "one of a tuning, for `danlu tune`";
            return Err(Error::file(path, "a recipe of a training", found));
        }
        let mut recipe = Self::parse(&text).map_err(|e| Error::file(path, "a recipe", e))?;
        let base = path.parent().unwrap_or(Path::new("."));
        recipe.paths_mut().for_each(|p| *p = base.join(&*p));
        // Only now two ways to write a path are one.
        recipe.data.held_apart()?;
        Ok(recipe)
    }

    /// Every file and folder that it names.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let data = self.data.packs.iter_mut().chain(&mut self.data.files);
        data.chain(&mut self.data.held_out).chain(&mut self.model.from)
    }

    /// The recipe with the default evaluation and checkpoints, and without recomputation and held-out files, which
    /// change no number, nor the folders that its data lies in: what a trained model depends on.
    pub fn for_training(&self) -> Recipe {
        let train = TrainRecipe { recompute: Recompute::None, ..self.train.clone() };
        let mut bare = Recipe {
            eval: EvalRecipe::default(),
            checkpoint: CheckpointRecipe::default(),
            track: TrackRecipe::default(),
            train,
            data: DataRecipe { held_out: Vec::new(), ..self.data.clone() },
            ..self.clone()
        };
        bare.paths_mut().for_each(without_folder);
        bare
    }

    /// Parses and checks the text of a recipe.
    pub fn parse(text: &str) -> Result<Recipe> {
        let recipe: Recipe =
            toml::from_str(text).map_err(|e| Error::Other(explain_unknown_key(&e.to_string())))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe as TOML, every value spelled out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is always TOML")
    }

    fn check(&self) -> Result<()> {
        let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(named) {
            return Err(Error::parameter("name", "letters, digits, `-` and `_`", &self.name));
        }
        let at_least = |name: &str, value: usize, min: usize| {
            if value < min {
                return Err(Error::parameter(name, format!("at least {min}"), value));
            }
            Ok(())
        };
        at_least("text.vocabulary", self.text.vocabulary as usize, 256)?;
        at_least("model.depth", self.model.depth, 1)?;
        for (name, value, most) in [
            ("model.depth", Some(self.model.depth), 1 << 10),
            ("model.width", self.model.width, 1 << 16),
            ("model.heads", self.model.heads, 1 << 12),
            ("model.head_dim", self.model.head_dim, 1 << 12),
            ("train.accumulate", Some(self.train.accumulate), 1 << 12),
        ] {
            if let Some(value) = value.filter(|v| !(1..=most).contains(v)) {
                return Err(Error::parameter(name, format!("1 to {most}"), value));
            }
        }
        let (experts, chosen) = (self.model.experts, self.model.experts_per_token);
        if experts > MOST_EXPERTS {
            let wanted = format!("at most {MOST_EXPERTS}");
            return Err(Error::parameter("model.experts", wanted, experts));
        }
        if experts > 0 && !(1..=experts).contains(&chosen) {
            let wanted = format!("1 to {experts}, the experts that there are");
            return Err(Error::parameter("model.experts_per_token", wanted, chosen));
        }
        at_least("train.rows", self.train.rows, 1)?;
        at_least("train.window", self.train.window, 16)?;
        at_least("train.accumulate", self.train.accumulate, 1)?;
        at_least("train.steps", self.train.steps, 1)?;
        self.train.recompute.blocks("train.recompute", self.model.depth)?;
        at_least("train.checkpoint", self.train.checkpoint, 1)?;
        at_least("train.validate", self.train.validate, 1)?;
        self.checkpoint.check()?;
        at_least("data.stretch", self.data.stretch, 32)?;
        self.data.held_apart()?;
        batch_at_most(self.train.rows, self.train.window)?;
        at_most("train.accumulate", self.train.accumulate, MOST_ROWS)?;
        at_most("data.scenes", self.data.scenes, MOST_SCENES)?;
        if self.data.variants > MOST_VARIANTS {
            let wanted = format!("at most {MOST_VARIANTS}");
            return Err(Error::parameter("data.variants", wanted, self.data.variants));
        }
        self.guard.check()?;
        self.track.check()?;
        at_least("image.batch", self.image.batch, 1)?;
        at_least("audio.batch", self.audio.batch, 1)?;
        for (name, semantic) in [("image", &self.image.semantic), ("audio", &self.audio.semantic)] {
            at_least(&format!("{name}.semantic.batch"), semantic.batch, 1)?;
            at_least(&format!("{name}.semantic.channels"), semantic.channels, 1)?;
            at_least(&format!("{name}.semantic.width"), semantic.width, 1)?;
            if !(0.1..=60.0).contains(&semantic.seconds) {
                return Err(Error::parameter(
                    format!("{name}.semantic.seconds"),
                    "0.1 to 60",
                    semantic.seconds,
                ));
            }
        }
        at_least("image.channels", self.image.channels, 1)?;
        at_least("audio.channels", self.audio.channels, 1)?;
        at_least("audio.mels", self.audio.mels, 1)?;
        at_least("audio.frames", self.audio.frames, 1)?;
        at_least("audio.clip", self.audio.clip, 1)?;
        at_least("audio.hop", self.audio.hop, 1)?;
        for (name, levels) in
            [("image.levels", &self.image.levels), ("audio.levels", &self.audio.levels)]
        {
            let size: u64 = levels.iter().map(|&l| l as u64).product();
            if levels.is_empty() || levels.iter().any(|&l| l < 2) || size > 65_536 {
                return Err(Error::parameter(
                    name,
                    "levels of at least 2 with a product of at most 65536",
                    format!("{levels:?}"),
                ));
            }
        }
        bounds::of_tokenisers(&self.image, &self.audio)?;
        let rate = 16_000.0 / (self.audio.hop * self.audio.frames) as f32;
        if rate > 50.0 {
            return Err(Error::parameter(
                "audio.hop * audio.frames",
                "at most 50 tokens a second (hop * frames of at least 320)",
                format!("{rate:.1} tokens a second"),
            ));
        }
        if !self.audio.fft.is_power_of_two() || self.audio.fft < self.audio.hop {
            return Err(Error::parameter(
                "audio.fft",
                "a power of two that is at least audio.hop",
                self.audio.fft,
            ));
        }
        if self.mixture.is_empty() {
            return Err(Error::parameter("mixture", "at least one task", "none"));
        }
        for (task, &weight) in &self.mixture {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::parameter(
                    format!("mixture.{task}"),
                    "a finite weight of at least 0",
                    weight,
                ));
            }
        }
        for (name, value, low, high) in [
            ("train.rate", self.train.rate, 0.0, 10.0),
            ("train.muon_rate", self.train.muon_rate, 0.0, 10.0),
            ("train.clip", self.train.clip, 1e-9, 1e9),
            ("train.betas[0]", self.train.betas[0], 0.0, 0.999_999),
            ("train.betas[1]", self.train.betas[1], 0.0, 0.999_999),
            ("train.epsilon", self.train.epsilon, 1e-30, 1.0),
            ("train.z_loss", self.train.z_loss, 0.0, 1e3),
            ("train.loss.text", self.train.loss.text, 0.0, 1e6),
            ("train.loss.image", self.train.loss.image, 0.0, 1e6),
            ("train.loss.audio", self.train.loss.audio, 0.0, 1e6),
            ("train.loss.semantic", self.train.loss.semantic, 0.0, 1e6),
            ("train.loss.prompt", self.train.loss.prompt, 0.0, 1e6),
            ("image.rate", self.image.rate, 0.0, 10.0),
            ("audio.rate", self.audio.rate, 0.0, 10.0),
            ("image.semantic.rate", self.image.semantic.rate, 0.0, 10.0),
            ("audio.semantic.rate", self.audio.semantic.rate, 0.0, 10.0),
            ("audio.max_seconds", self.audio.max_seconds, 1e-3, 1e6),
            ("model.balance", self.model.balance, 0.0, 1.0),
            ("model.norm_eps", self.model.norm_eps, 1e-30, 1.0),
            ("model.rope_theta", self.model.rope_theta, 1.0, 1e12),
            ("train.ema", self.train.ema, 0.0, 0.999_999),
            ("train.blank", self.train.blank, 0.0, 1.0),
            ("train.brief", self.train.brief, 0.0, 1.0),
            ("train.decay", self.train.decay, 0.0, 1.0),
            ("train.final_rate", self.train.final_rate, 0.0, 1.0),
            ("train.weight_decay", self.train.weight_decay, 0.0, 10.0),
            ("eval.temperature", self.eval.temperature, 0.0, 100.0),
            ("eval.guidance", self.eval.guidance, 0.0, 100.0),
        ] {
            if !(low..=high).contains(&value) {
                return Err(Error::parameter(name, format!("a number in {low}..={high}"), value));
            }
        }
        Ok(())
    }
}

/// Most rows of a batch, and batches of a step: so many that what they take of memory is still a number.
pub(crate) const MOST_ROWS: usize = 1 << 32;
/// Most scenes that are composed.
const MOST_SCENES: usize = 10_000_000;

/// Whether two paths are of one file, however they are written.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let one = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    a == b || one(a) == one(b)
}

/// Adds "did you mean" to serde's "unknown field `x`, expected one of `a`, `b`".
pub(crate) fn explain_unknown_key(message: &str) -> String {
    let Some(rest) = message.split("unknown field `").nth(1) else {
        return message.trim().to_string();
    };
    let names: Vec<&str> = rest.split('`').collect();
    let typed = names[0];
    let nearest = names[1..]
        .iter()
        .filter(|n| !n.trim().is_empty() && !n.contains(' ') && !n.contains(','))
        .min_by_key(|n| edit_distance(typed, n));
    match nearest {
        Some(name) => format!("{}; did you mean `{name}`?", message.trim()),
        None => message.trim().to_string(),
    }
}

/// Levenshtein distance in characters.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str =
        "name='a'\n[data]\npacks=['p']\n[train]\nsteps=10\n[mixture]\nname_en=1.0\n";

    #[test]
    fn a_small_recipe_gets_the_defaults_and_survives_the_round_trip() {
        let recipe = Recipe::parse(SMALL).expect("valid");
        assert_eq!(recipe.train.window, 256);
        assert_eq!(Recipe::parse(&recipe.to_toml()).expect("round trip"), recipe);
    }

    #[test]
    fn recomputation_is_read_and_does_not_count_as_another_training() {
        let plain = Recipe::parse(SMALL).expect("valid");
        for (written, want) in [
            ("'none'", [false; 4]),
            ("'all'", [true; 4]),
            ("[]", [false; 4]),
            ("[0, 3]", [true, false, false, true]),
        ] {
            let text = SMALL.replace("steps=10", &format!("steps=10\nrecompute={written}"));
            let recipe = Recipe::parse(&text).expect(written);
            let blocks = recipe.train.recompute.blocks("train.recompute", 4).expect(written);
            assert_eq!(blocks, want, "{written}");
            assert_eq!(Recipe::parse(&recipe.to_toml()).expect("round trip"), recipe);
            assert_eq!(recipe.for_training(), plain.for_training(), "{written}");
        }
        assert_eq!("0,2".parse(), Ok(Recompute::Blocks(vec![0, 2])));
        assert!("0,x".parse::<Recompute>().is_err());
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error =
            Recipe::parse(&SMALL.replace("steps=10", "steps=10\nwindw=3")).expect_err("typo");
        let text = error.to_string();
        assert!(text.contains("windw") && text.contains("did you mean `window`"), "{text}");
    }

    #[test]
    fn impossible_values_name_the_parameter() {
        for (from, to, want) in [
            ("steps=10", "steps=0", "train.steps"),
            ("name_en=1.0", "name_en=-1.0", "mixture.name_en"),
            ("steps=10", "steps=10\nclip=0.0", "train.clip"),
            ("steps=10", "steps=10\nz_loss=nan", "train.z_loss"),
            ("steps=10", "steps=10\nbetas=[0.9, 1.0]", "train.betas[1]"),
            ("steps=10", "steps=10\nepsilon=0.0", "train.epsilon"),
            ("[mixture]", "[train.loss]\nimage=inf\n[mixture]", "train.loss.image"),
            ("[train]", "[image]\nrate=nan\n[train]", "image.rate"),
            ("[train]", "[image]\nchannels=0\n[train]", "image.channels"),
            ("[train]", "[audio]\nmels=0\n[train]", "audio.mels"),
            ("[train]", "[audio]\nsemantic={rate=-1.0}\n[train]", "audio.semantic.rate"),
            ("[train]", "[model]\nnorm_eps=nan\n[train]", "model.norm_eps"),
            ("[train]", "[model]\nexperts=1\n[train]", "model.experts_per_token"),
            ("[train]", "[model]\nexperts=2000\n[train]", "model.experts"),
            ("[train]", "[model]\nbalance=nan\n[train]", "model.balance"),
            ("[train]", "[model]\nrope_theta=0.0\n[train]", "model.rope_theta"),
            ("name='a'", "name='a b'", "name"),
            ("[train]", "[audio]\nhop=100\n[train]", "at most 50 tokens a second"),
            ("[train]", "[image]\nlevels=[1]\n[train]", "image.levels"),
            ("steps=10", "steps=10\nrecompute=[0, 4]", "`train.recompute`: expected block numbers"),
            ("steps=10", "steps=10\nrecompute=[2, 1]", "`train.recompute`: expected block numbers"),
            ("steps=10", "steps=10\nrecompute='some'", "`train.recompute`: expected \"none\""),
            ("steps=10", "steps=10\nrecompute=true", "`train.recompute`: expected \"none\""),
            ("steps=10", "steps=10\nrecompute=[-1]", "`train.recompute`: expected \"none\""),
        ] {
            let text = Recipe::parse(&SMALL.replace(from, to)).expect_err(to).to_string();
            assert!(text.contains(want), "{to}: {text}");
        }
    }
}
