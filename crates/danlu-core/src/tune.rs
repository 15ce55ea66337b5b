//! How a base is adapted, written as typed TOML: on what, with which adapter, towards what.

use crate::recipe::{
    CheckpointRecipe, GuardRecipe, MOST_ROWS, Schedule, TrackRecipe, at_most, batch_at_most,
    explain_unknown_key, is_default, without_folder,
};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A whole adaptation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneRecipe {
    /// Name of the run: letters, digits, `-` and `_`.
    pub name: String,
    /// Seed of everything random in the run.
    #[serde(default = "one")]
    pub seed: u64,
    /// The base: a model's or a run's folder. Relative paths start at the recipe's folder.
    pub model: PathBuf,
    /// Adapters of the base that lie beneath what is learnt, the lowest first.
    #[serde(default)]
    pub adapters: Vec<PathBuf>,
    /// The adapter that is learnt; without it all weights are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// How the base is kept in memory while an adapter learns (QLoRA): its projections in 8 or 4
    /// bits (`q8_0`, `q4_0`), or as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseFormat>,
    /// What is learnt from.
    pub data: Vec<TuneSet>,
    /// What is held out and measured on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<TuneSet>,
    /// Unusable rows of all files together that are passed over before the run refuses to go on.
    #[serde(default = "twenty")]
    pub max_bad_rows: usize,
    /// What is learnt.
    #[serde(default)]
    pub objective: Objective,
    /// The loop.
    pub train: TuneTrain,
    /// Which checkpoints are written and kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint: CheckpointRecipe,
    /// What watches the tuning, and what it may do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guard: GuardRecipe,
    /// Where figures go beside the run's own log.
    #[serde(default, skip_serializing_if = "is_default")]
    pub track: TrackRecipe,
}

/// Bits of a base that does not learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFormat {
    /// 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a weight.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneSet {
    /// JSON Lines: `messages`, alpaca, sharegpt, `chosen` and `rejected`, or `text`; the keys of a
    /// row tell which.
    pub file: PathBuf,
    /// Its share of the documents, beside the others'.
    #[serde(default = "one_share")]
    pub share: f32,
}

/// What is learnt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Objective {
    /// The assistants' turns (and plain text whole).
    #[default]
    Reply,
    /// To prefer one reply to another (DPO, arXiv 2305.18290). The reference is the base without
    /// what is learnt.
    Dpo {
        /// How much the reference holds.
        #[serde(default = "dpo_beta")]
        beta: f32,
        /// Pairs a step.
        #[serde(default = "four")]
        pairs: usize,
    },
    /// Replies that a rule rewards (GRPO, arXiv 2402.03300): each is compared with others to the
    /// same question.
    Grpo {
        /// The rule.
        reward: Reward,
        /// Questions a step.
        #[serde(default = "four")]
        questions: usize,
        /// Replies to each.
        #[serde(default = "eight")]
        replies: usize,
        /// Most tokens of a reply.
        #[serde(default = "reply_tokens")]
        max_tokens: usize,
        /// Sampling temperature.
        #[serde(default = "one_share")]
        temperature: f32,
        /// How much the reference holds (weight of the divergence from it).
        #[serde(default = "grpo_beta")]
        beta: f32,
    },
    /// What a larger model thinks of every token (distillation, arXiv 1503.02531).
    Distil {
        /// A model's or a run's folder, with the vocabulary of the one that learns. Relative paths
        /// start at the recipe's folder.
        teacher: PathBuf,
        /// Both are softened by it.
        #[serde(default = "one_share")]
        temperature: f32,
        /// Weight of the tokens themselves beside what the teacher thinks of them.
        #[serde(default)]
        hard: f32,
    },
}

/// What a reply is rewarded for; each is 1 or 0, held against the row's `expected`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reward {
    /// It is what is expected, but for blanks at the ends and case.
    Exact,
    /// It contains what is expected, but for case.
    Contains,
    /// Its last number is the last number of what is expected.
    Number,
}

/// The loop of an adaptation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneTrain {
    /// Optimiser steps.
    pub steps: usize,
    /// Rows of a batch.
    #[serde(default = "four")]
    pub rows: usize,
    /// Tokens of a row; the longest document that fits.
    #[serde(default = "window")]
    pub window: usize,
    /// Peak learning rate of AdamW.
    #[serde(default = "rate")]
    pub rate: f32,
    /// Shape of the schedule.
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    #[serde(default = "ten")]
    pub warmup: usize,
    /// Last learning rate, as a share of the peak.
    #[serde(default = "final_rate")]
    pub final_rate: f32,
    /// Decoupled weight decay of the matrices.
    #[serde(default)]
    pub weight_decay: f32,
    /// Largest global gradient norm; larger ones are scaled down to it.
    #[serde(default = "one_share")]
    pub clip: f32,
    /// Weight of a prompt's tokens in the loss; replies have 1.
    #[serde(default)]
    pub prompt: f32,
    /// Steps between checkpoints.
    #[serde(default = "hundred")]
    pub checkpoint: usize,
    /// Steps between measurements of what is held out.
    #[serde(default = "hundred")]
    pub validate: usize,
}

/// A projection that can be adapted, by its name in Hugging Face's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// What attention writes to the residual stream.
    OProj,
    /// Gates of the feed-forward.
    GateProj,
    /// What is gated.
    UpProj,
    /// What the feed-forward writes to the residual stream.
    DownProj,
}

impl Target {
    /// All of them, in the order of a block.
    pub const ALL: [Target; 7] = [
        Target::QProj,
        Target::KProj,
        Target::VProj,
        Target::OProj,
        Target::GateProj,
        Target::UpProj,
        Target::DownProj,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Target::QProj => "q_proj",
            Target::KProj => "k_proj",
            Target::VProj => "v_proj",
            Target::OProj => "o_proj",
            Target::GateProj => "gate_proj",
            Target::UpProj => "up_proj",
            Target::DownProj => "down_proj",
        }
    }

    /// The path of layer `layer`'s, as in Hugging Face's files.
    pub fn path(self, layer: usize) -> String {
        let part = if self < Target::GateProj { "self_attn" } else { "mlp" };
        format!("model.layers.{layer}.{part}.{}", self.name())
    }
}

/// How an adapter is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Inner dimensions.
    pub rank: usize,
    /// What `b a` is multiplied by, times the rank (or its root).
    pub alpha: f32,
    /// The projections that are adapted.
    pub targets: Vec<Target>,
    /// Share of the inputs that is left out while it is learnt.
    pub dropout: f32,
    /// Divide by the root of the rank (rsLoRA, arXiv 2312.03732).
    pub rslora: bool,
    /// Learn the length of each row of the adapted weight apart (DoRA, arXiv 2402.09353).
    pub dora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            targets: Target::ALL.to_vec(),
            dropout: 0.0,
            rslora: false,
            dora: false,
        }
    }
}

/// Highest rank that is accepted.
pub const MAX_RANK: usize = 4096;

impl LoraConfig {
    /// What `b a` is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Refuses what cannot work, by name.
    pub fn check(&self) -> Result<()> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return Err(Error::parameter("lora.rank", format!("1 to {MAX_RANK}"), self.rank));
        }
        if self.targets.is_empty() {
            let names = Target::ALL.map(Target::name).join(", ");
            return Err(Error::parameter("lora.targets", format!("some of {names}"), "none"));
        }
        for (i, target) in self.targets.iter().enumerate() {
            if self.targets[..i].contains(target) {
                let found = format!("`{}` twice", target.name());
                return Err(Error::parameter("lora.targets", "each projection once", found));
            }
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::parameter("lora.alpha", "a number above 0", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::parameter("lora.dropout", "0 to below 1", self.dropout));
        }
        Ok(())
    }
}

/// Most replies that are tried to a question.
const MOST_REPLIES: usize = 4096;

fn one() -> u64 {
    1
}
fn one_share() -> f32 {
    1.0
}
fn four() -> usize {
    4
}
fn eight() -> usize {
    8
}
fn ten() -> usize {
    10
}
fn twenty() -> usize {
    20
}
fn hundred() -> usize {
    100
}
fn window() -> usize {
    512
}
fn rate() -> f32 {
    2e-4
}
fn cosine() -> Schedule {
    Schedule::Cosine
}
fn final_rate() -> f32 {
    0.1
}
fn dpo_beta() -> f32 {
    0.1
}
fn grpo_beta() -> f32 {
    0.02
}
fn reply_tokens() -> usize {
    64
}

/// The folder of an adapter: a tuning's folder stands for the adapter in it.
pub fn adapter_folder(path: PathBuf) -> PathBuf {
    let inner = path.join("adapter");
    if inner.join("adapter_config.json").exists() { inner } else { path }
}

impl TuneRecipe {
    /// Whether a text is meant to be a recipe of a tuning, right or wrong: those of pretraining have a
    /// table where these name a base.
    pub fn is_meant(text: &str) -> bool {
        let table: Option<toml::Table> = toml::from_str(text).ok();
        table.is_some_and(|t| t.get("model").is_some_and(toml::Value::is_str))
    }

    /// The same of a file; one that cannot be read is none.
    pub fn is_at(path: &Path) -> bool {
        std::fs::read_to_string(path).is_ok_and(|text| Self::is_meant(&text))
    }

    /// Reads a recipe file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        crate::recipe::writable(path)?;
        let other = text
            .parse::<toml::Table>()
            .is_ok_and(|table| table.get("mixture").is_some_and(toml::Value::is_table));
        if other && !Self::is_meant(&text) {
            let found = "one of a training, for `danlu train`";
            return Err(Error::file(path, "a recipe of a tuning", found));
        }
        let mut recipe =
            Self::parse(&text).map_err(|e| Error::file(path, "a recipe of a tuning", e))?;
        let base = path.parent().unwrap_or(Path::new("."));
        recipe.paths_mut().for_each(|p| *p = base.join(&*p));
        recipe.adapters = recipe.adapters.into_iter().map(adapter_folder).collect();
        Ok(recipe)
    }

    /// Every file and folder that it names.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let files = self.data.iter_mut().chain(&mut self.held_out).map(|set| &mut set.file);
        let teacher = match &mut self.objective {
            Objective::Distil { teacher, .. } => Some(teacher),
            _ => None,
        };
        files.chain(&mut self.adapters).chain([&mut self.model]).chain(teacher)
    }

    /// The recipe with the default checkpoints, without what changes no number and without the
    /// folders that things lie in: what the result depends on, beside the contents of those.
    pub fn for_training(&self) -> Self {
        let mut bare = Self {
            checkpoint: CheckpointRecipe::default(),
            track: TrackRecipe::default(),
            ..self.clone()
        };
        bare.paths_mut().for_each(without_folder);
        bare
    }

    /// Parses and checks the text of a recipe.
    pub fn parse(text: &str) -> Result<Self> {
        let recipe: Self =
            toml::from_str(text).map_err(|e| Error::Other(explain_unknown_key(&e.to_string())))?;
        // The library passes over what a kind without settings is given.
        let table = text.parse::<toml::Table>().unwrap_or_default();
        let of = table.get("objective").and_then(toml::Value::as_table);
        if let (Objective::Reply, Some(settings)) = (&recipe.objective, of)
            && let Some(key) = settings.keys().find(|key| *key != "kind")
        {
            let name = format!("objective.{key}");
            return Err(Error::parameter(name, "no such key where replies are learnt", "one"));
        }
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
        if self.data.is_empty() {
            return Err(Error::parameter("data", "at least one file", "none"));
        }
        let sets = self.data.iter().map(|set| ("data", set));
        for (of, set) in sets.chain(self.held_out.iter().map(|set| ("held_out", set))) {
            if !(set.share.is_finite() && set.share > 0.0) {
                let name = format!("{of}.share of {}", set.file.display());
                return Err(Error::parameter(name, "a number above 0", set.share));
            }
        }
        if let Some(lora) = &self.lora {
            lora.check()?;
        }
        self.checkpoint.check()?;
        self.guard.check()?;
        self.track.check()?;
        batch_at_most(self.train.rows, self.train.window)?;
        if self.base.is_some() && self.lora.as_ref().is_none_or(|l| l.dora) {
            let wanted = "`[lora]` without `dora`, for weights of few bits do not learn";
            return Err(Error::parameter("base", wanted, "another"));
        }
        if self.base.is_some() && matches!(self.objective, Objective::Grpo { .. }) {
            let wanted = "no `base` where replies are tried (`grpo`)";
            return Err(Error::parameter("base", wanted, "one"));
        }
        let t = &self.train;
        let mut counts = vec![
            ("train.steps", t.steps),
            ("train.rows", t.rows),
            ("train.checkpoint", t.checkpoint),
            ("train.validate", t.validate),
        ];
        let mut numbers = vec![
            ("train.rate", t.rate, 1e-12, 1.0),
            ("train.final_rate", t.final_rate, 0.0, 1.0),
            ("train.weight_decay", t.weight_decay, 0.0, 10.0),
            ("train.clip", t.clip, 1e-9, 1e9),
            ("train.prompt", t.prompt, 0.0, 1.0),
        ];
        match &self.objective {
            Objective::Reply => {}
            Objective::Dpo { beta, pairs } => {
                counts.push(("objective.pairs", *pairs));
                numbers.push(("objective.beta", *beta, 1e-6, 100.0));
                at_most("objective.pairs", *pairs, MOST_ROWS)?;
            }
            Objective::Grpo { questions, replies, max_tokens, temperature, beta, .. } => {
                counts.push(("objective.questions", *questions));
                counts.push(("objective.max_tokens", *max_tokens));
                at_most("objective.questions", *questions, MOST_ROWS)?;
                at_most("objective.replies", *replies, MOST_REPLIES)?;
                // A reply's number is kept in 16 bits beside each of its tokens.
                let all = questions.saturating_mul(*replies);
                at_most("objective.questions times replies", all, u16::MAX.into())?;
                if *replies < 2 {
                    return Err(Error::parameter("objective.replies", "at least 2", replies));
                }
                numbers.push(("objective.temperature", *temperature, 1e-3, 100.0));
                numbers.push(("objective.beta", *beta, 0.0, 100.0));
            }
            Objective::Distil { temperature, hard, .. } => {
                numbers.push(("objective.temperature", *temperature, 1e-2, 100.0));
                numbers.push(("objective.hard", *hard, 0.0, 100.0));
            }
        }
        for (name, value) in counts {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
            }
        }
        if t.window < 16 {
            return Err(Error::parameter("train.window", "at least 16", t.window));
        }
        for (name, value, low, high) in numbers {
            if !(low..=high).contains(&value) {
                return Err(Error::parameter(name, format!("a number in {low}..={high}"), value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name='a'\nmodel='m'\n[[data]]\nfile='d.jsonl'\n[train]\nsteps=10\n";

    #[test]
    fn a_small_recipe_gets_the_defaults_and_survives_the_round_trip() {
        for more in [
            "",
            "[lora]\nrank=4\n",
            "[objective]\nkind='dpo'\n",
            "[objective]\nkind='grpo'\nreward='number'\n",
        ] {
            let recipe = TuneRecipe::parse(&format!("{SMALL}{more}")).expect(more);
            assert_eq!(TuneRecipe::parse(&recipe.to_toml()).expect("round trip"), recipe);
        }
    }

    #[test]
    fn recipes_of_tunings_are_told_from_others() {
        assert!(TuneRecipe::is_meant(SMALL) && TuneRecipe::is_meant("model='m'\nwrong=1"));
        assert!(!TuneRecipe::is_meant("name='a'\n[model]\ndepth=2\n"));
        assert!(!TuneRecipe::is_meant("name='a'\n[train]\n"));
    }

    #[test]
    fn impossible_values_name_the_parameter() {
        for (from, to, want) in [
            ("steps=10", "steps=0", "train.steps"),
            ("model='m'", "model='m'\nbase='q8_0'", "`base`"),
            ("model='m'", "model='m'\nbase='q2'", "q2"),
            ("steps=10", "steps=10\nrat=1", "did you mean `rate`"),
            ("name='a'", "name='a/b'", "name"),
            ("[train]", "[lora]\nrank=0\n[train]", "lora.rank"),
            ("[train]", "[lora]\ntargets=['x_proj']\n[train]", "x_proj"),
            ("[train]", "[objective]\nkind='ppo'\n[train]", "ppo"),
            ("[train]", "[objective]\nkind='dpo'\npairs=0\n[train]", "objective.pairs"),
            ("file='d.jsonl'", "file='d.jsonl'\nshare=-1.0", "data.share"),
        ] {
            let text = TuneRecipe::parse(&SMALL.replace(from, to)).expect_err(to).to_string();
            assert!(text.contains(want), "{to}: {text}");
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (config, want) in [
            (LoraConfig { rank: 0, ..Default::default() }, "lora.rank"),
            (LoraConfig { rank: 100_000, ..Default::default() }, "lora.rank"),
            (LoraConfig { targets: vec![], ..Default::default() }, "q_proj"),
            (
                LoraConfig { targets: vec![Target::VProj; 2], ..Default::default() },
                "`v_proj` twice",
            ),
            (LoraConfig { alpha: f32::NAN, ..Default::default() }, "lora.alpha"),
            (LoraConfig { dropout: 1.0, ..Default::default() }, "lora.dropout"),
        ] {
            let error = config.check().expect_err(want).to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
