//! The forms that a model can be brought into, and how.

use danlu_core::{Error, Objective, Result};
use danlu_model::compress::{Cut, Packed, Rounding, observe, prune, quantise};
use danlu_model::engine::WeightFormat;
use danlu_model::io::Dtype;
use danlu_model::{Model, ModelInfo, TransformerConfig};
use danlu_train::lesson::{documents, recipe_of_rows};
use danlu_train::{Event, Watcher, tune};
use serde::Serialize;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    /// Each to the nearest
    Rtn,
    /// Each so that it makes up for what others lost, on the rows of --data (arXiv 2210.17323)
    Gptq,
}

/// A form: what is taken out, and how the rest is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub(crate) weights: WeightFormat,
    /// `None`: calibrated where there are rows.
    pub(crate) method: Option<Method>,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) channels: usize,
}

impl Form {
    fn method(&self, rows: bool) -> Method {
        self.method.unwrap_or(if rows { Method::Gptq } else { Method::Rtn })
    }

    /// In a few words, rounded by `method`.
    fn name(&self, method: Method) -> String {
        let mut name = self.weights.name().to_string();
        if self.weights.is_quantised() && method == Method::Gptq {
            name += " gptq";
        }
        for (n, what) in
            [(self.layers, "layers"), (self.kv_heads, "heads"), (self.channels, "channels")]
        {
            if n > 0 {
                name += &format!(", {n} {what} fewer");
            }
        }
        name
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.layers + self.kv_heads + self.channels > 0
    }

    pub(crate) fn cut(&self) -> Cut {
        Cut { layers: self.layers, kv_heads: self.kv_heads, channels: self.channels }
    }

    /// Weights that a transformer has in this form, in bits.
    fn bits(&self, c: &TransformerConfig) -> f64 {
        let bits = |format: WeightFormat| match format {
            WeightFormat::F32 => 32.0,
            WeightFormat::F16 => 16.0,
            WeightFormat::Q8_0 => 8.5,
            WeightFormat::Q4_0 => 4.5,
            WeightFormat::Q4K => 5.25,
        };
        let group = c.heads / c.kv_heads;
        let kv = c.kv_heads - self.kv_heads;
        let attention = c.width * c.head_dim * kv * (2 * group + 2);
        let feed = 3 * c.width * (c.hidden - self.channels) * c.experts.max(1);
        let layer = attention + feed;
        let tables = c.vocabulary * c.width * if c.tied { 1 } else { 2 };
        (layer * (c.depth - self.layers)) as f64 * bits(self.weights)
            + tables as f64 * bits(self.weights.of_tables())
    }
}

/// Forms to try for a model, the smallest first: those of `asked`'s method, with nothing, an eighth
/// or a quarter of the layers or channels taken out where there are rows to see which.
pub(crate) fn candidates(asked: &Form, c: &TransformerConfig, rows: bool) -> Vec<Form> {
    let whole = Form { layers: 0, kv_heads: 0, channels: 0, ..asked.clone() };
    let share = |n: usize, by: usize| n / by;
    let mut cuts = vec![whole.clone()];
    if rows {
        for by in [8, 4] {
            cuts.push(Form { layers: share(c.depth, by), ..whole.clone() });
            if c.experts == 0 {
                // In whole blocks of 32, which formats want.
                cuts.push(Form { channels: share(c.hidden, by) / 32 * 32, ..whole.clone() });
            }
        }
        if asked.is_cut() {
            cuts.push(asked.clone());
        }
    }
    let formats = [WeightFormat::Q4_0, WeightFormat::Q4K, WeightFormat::Q8_0, WeightFormat::F16];
    let mut all: Vec<Form> = Vec::new();
    for cut in cuts {
        for weights in formats {
            let form = Form { weights, ..cut.clone() };
            if !all.contains(&form) {
                all.push(form);
            }
        }
    }
    all.sort_by(|a, b| a.bits(c).total_cmp(&b.bits(c)));
    all
}

/// Tokens for each channel of the model's width without which rows say too little of what rounding
/// loses: the least squares would fit those rows alone.
const TOKENS_A_CHANNEL: usize = 4;

/// How much was looked at.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Calibration {
    /// Tokens that there were, up to those asked for.
    pub(crate) tokens: usize,
    /// Tokens that were asked for.
    pub(crate) asked: usize,
    /// Whether they are too few to round by; weights are rounded to the nearest then.
    pub(crate) too_few: bool,
}

impl Calibration {
    fn of(tokens: usize, asked: usize, width: usize) -> Self {
        Self { tokens: tokens.min(asked), asked, too_few: tokens < TOKENS_A_CHANNEL * width }
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        let mut words = format!("looked at {} of {} tokens", self.tokens, self.asked);
        if self.too_few {
            words += &format!(
                ", under {TOKENS_A_CHANNEL} for each of the model's channels: weights in few bits are \
                 rounded to the nearest"
            );
        }
        words
    }
}

/// What forms are made from, and with.
pub(crate) struct Maker<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) model: &'a Model,
    /// BLAKE3 of its weights.
    pub(crate) base: String,
    /// Where healing works; what is in it is used again by an interrupted run.
    pub(crate) work: PathBuf,
    pub(crate) data: &'a [PathBuf],
    pub(crate) tokens: usize,
    pub(crate) window: usize,
    pub(crate) heal: usize,
    pub(crate) rate: f32,
    pub(crate) student: Option<&'a Path>,
    pub(crate) tokenisers: Option<Dtype>,
    /// The rows that are looked at, once they were.
    pub(crate) seen: OnceCell<Vec<Packed>>,
}

impl Maker<'_> {
    /// The model in a form.
    pub(crate) fn make(&self, form: &Form, watcher: &mut dyn Watcher) -> Result<Model> {
        let mut small = self.cut(form, watcher)?;
        if !form.weights.is_quantised() {
            // A model in few bits becomes a whole one.
            danlu_model::Module::thaw(&mut small.transformer);
            return Ok(small);
        }
        let how = match self.method(form, watcher)? {
            Method::Rtn => Rounding::Nearest,
            Method::Gptq => Rounding::Calibrated(self.documents(watcher)?),
        };
        let depth = small.transformer.blocks.len();
        let name = self.name(form, watcher)?;
        watcher.tell(Event::Phase { name, steps: depth, done: 0 });
        let mut tell = |done| watcher.tell(Event::Step { done, figures: String::new() });
        quantise(&mut small.transformer, form.weights, how, &mut tell)?;
        watcher.tell(Event::PhaseDone { result: format!("{depth} layers") });
        Ok(small)
    }

    /// How the weights of a form are rounded, which may need a look at the rows.
    fn method(&self, form: &Form, watcher: &mut dyn Watcher) -> Result<Method> {
        let asked = form.method(!self.data.is_empty());
        if asked == Method::Rtn || !form.weights.is_quantised() {
            return Ok(Method::Rtn);
        }
        self.documents(watcher)?;
        let too_few = self.calibration().is_some_and(|c| c.too_few);
        Ok(if too_few { Method::Rtn } else { Method::Gptq })
    }

    /// A form in a few words.
    pub(crate) fn name(&self, form: &Form, watcher: &mut dyn Watcher) -> Result<String> {
        Ok(form.name(self.method(form, watcher)?))
    }

    /// How much was looked at, where anything was.
    pub(crate) fn calibration(&self) -> Option<Calibration> {
        let tokens = self.seen.get()?.iter().map(|(ids, _)| ids.len()).sum();
        Some(Calibration::of(tokens, self.tokens, self.model.transformer.config.width))
    }

    fn window(&self) -> usize {
        self.window.min(self.model.transformer.config.context)
    }

    /// The model, or what is left of it, healed; or the student, taught.
    fn cut(&self, form: &Form, watcher: &mut dyn Watcher) -> Result<Model> {
        let learner = if let Some(student) = self.student {
            Model::folder(student)
        } else if form.is_cut() {
            let mut whole = self.model.transformer.clone();
            danlu_model::Module::thaw(&mut whole);
            let seen = observe(&whole, self.documents(watcher)?);
            let transformer = prune(&whole, &seen, &form.cut())?;
            let pruned = Model { transformer, ..self.model.clone() };
            if self.heal == 0 {
                return Ok(pruned);
            }
            let folder = self.work.join(format!("cut-{}", self.tag(form)));
            pruned.save(&folder, Dtype::F32)?;
            folder
        } else {
            return Ok(self.model.clone());
        };
        let objective =
            Objective::Distil { teacher: self.folder.to_path_buf(), temperature: 1.0, hard: 0.0 };
        let mut recipe = recipe_of_rows(self.data, &learner, self.window(), objective)?;
        recipe.name = "heal".into();
        recipe.train.steps = self.heal;
        recipe.train.rate = self.rate;
        let run = tune::open(&self.work.join(format!("heal-{}", self.tag(form))), &recipe)?;
        let healed = tune::tune(&recipe, &run, &learner, false, watcher).map_err(|e| match e {
            // It is gone on with by what began it.
            Error::Stopped(text) => Error::Stopped(
                text.split(';').next().unwrap_or_default().to_string()
                    + "; go on by giving the same `danlu compress` again",
            ),
            other => other,
        })?;
        let mut healed = Model::load(&healed, &danlu_ops::cpu_device())?;
        // The healing is nobody's name, and what was healed is kept nowhere.
        match self.student {
            Some(_) => healed.info.name = Model::check_files(&learner)?.name,
            None => {
                healed.info.name = self.model.info.name.clone();
                healed.info.from = self.model.info.from.clone();
            }
        }
        Ok(healed)
    }

    /// The rows that are looked at, read once for all forms.
    fn documents(&self, watcher: &mut dyn Watcher) -> Result<&[Packed]> {
        if let Some(seen) = self.seen.get() {
            return Ok(seen);
        }
        let seen = documents(self.data, self.model, self.window(), self.tokens, watcher)?;
        let seen = self.seen.get_or_init(|| seen);
        if let Some(c) = self.calibration() {
            watcher.tell(Event::Note(c.words()));
        }
        Ok(seen)
    }

    fn tag(&self, form: &Form) -> String {
        format!("{}-{}-{}", form.layers, form.kv_heads, form.channels)
    }

    /// Writes a form as the new model's folder.
    pub(crate) fn save(&self, small: &Model, form: &Form, out: &Path) -> Result<()> {
        let networks = if form.weights.is_quantised() { Dtype::I8 } else { Dtype::F16 };
        let mut from = small.info.from.clone();
        if from.last() != Some(&self.base) {
            from.push(self.base.clone());
        }
        let info = ModelInfo { from, ..small.info.clone() };
        std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        Model { info, ..small.clone() }.save(out, self.tokenisers.unwrap_or(networks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_train::bench::shape;

    #[test]
    fn candidates_grow_and_only_rows_allow_cuts() {
        let c = shape("135m").expect("known");
        let asked =
            Form { weights: WeightFormat::Q4_0, method: None, layers: 0, kv_heads: 1, channels: 0 };
        let all = candidates(&asked, &c, true);
        assert!(all.windows(2).all(|w| w[0].bits(&c) <= w[1].bits(&c)));
        assert!(all.iter().any(|f| f.kv_heads == 1) && all.iter().any(|f| f.layers == 7));
        let without = candidates(&asked, &c, false);
        assert_eq!(without.len(), 4);
        assert!(without.iter().all(|f| !f.is_cut()));
        assert_eq!(without[0].weights, WeightFormat::Q4_0);
        assert_eq!(without[0].name(Method::Rtn), "q4_0");
        assert_eq!(without[0].name(Method::Gptq), "q4_0 gptq");
    }

    #[test]
    fn few_tokens_are_told_and_not_rounded_by() {
        let few = Calibration::of(255, 8192, 64);
        assert!(few.too_few && few.words().contains("255 of 8192 tokens"), "{few:?}");
        let enough = Calibration::of(9000, 8192, 64);
        assert_eq!((enough.tokens, enough.too_few), (8192, false));
        assert!(!enough.words().contains("nearest"), "{enough:?}");
    }
}
