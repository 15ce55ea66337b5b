//! What may be asked: models, each with its adapters.

use crate::engine::{Engine, Limits, ModelThread};
use crate::metrics::Metrics;
use crate::schema::Grammars;
use danlu_core::{Error, Result, TokenKind, Vocabulary};
use danlu_model::Tokenisers;
use std::sync::{Arc, OnceLock};

/// A model that replies.
pub struct Hosted {
    /// How requests call it.
    pub(crate) name: String,
    pub(crate) tokenisers: Arc<Tokenisers>,
    pub(crate) vocabulary: Vocabulary,
    /// Longest prompt and reply together, in tokens.
    pub(crate) context: usize,
    pub(crate) thread: ModelThread,
    adapters: Vec<String>,
    entries: Arc<Vec<Vec<u8>>>,
    /// Whether the first word of a reply comes with a blank that is no part of it.
    pub(crate) leads_with_blank: bool,
    longest: usize,
    grammars: OnceLock<Arc<Grammars>>,
}

impl std::fmt::Debug for Hosted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosted").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a model is hosted with: the sizes of the queue and where it counts.
#[derive(Debug, Clone)]
pub struct Host {
    /// How many jobs are taken.
    pub limits: Limits,
    /// Where the model counts.
    pub metrics: Arc<Metrics>,
}

impl Host {
    /// Starts the thread of a model. `context` is the longest prompt and reply together in tokens,
    /// and `adapters` are those that the engine knows, by name.
    pub fn host(
        &self,
        name: &str,
        tokenisers: Tokenisers,
        context: usize,
        engine: Box<dyn Engine>,
        adapters: Vec<String>,
    ) -> Result<Hosted> {
        for name in adapters.iter().map(String::as_str).chain([name]) {
            check_name(name)?;
        }
        let thread = ModelThread::start(engine, self.limits, self.metrics.clone())
            .map_err(|e| Error::Other(format!("the model's thread could not be started: {e}")))?;
        let entries = tokenisers.text.entries();
        let longest = entries.iter().map(Vec::len).max().unwrap_or(1).max(1);
        Ok(Hosted {
            name: name.into(),
            vocabulary: tokenisers.vocabulary(),
            leads_with_blank: tokenisers.text.leads_with_blank(),
            tokenisers: Arc::new(tokenisers),
            context,
            thread,
            adapters,
            entries: Arc::new(entries),
            longest,
            grammars: OnceLock::new(),
        })
    }
}

/// Refuses names that could be anything but a name.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(Error::parameter(
        "name of a model or adapter",
        "1 to 64 letters, digits, `-`, `_` and `.`, not beginning with `.`",
        format!("{shown:?}"),
    ))
}

impl Hosted {
    /// Bytes of a text entry.
    pub(crate) fn bytes(&self, text: u32) -> &[u8] {
        self.entries.get(text as usize).map_or(&[], Vec::as_slice)
    }

    /// How a token is shown: codes by the names that an exported model has for them.
    pub(crate) fn shown(&self, id: u32) -> Vec<u8> {
        match self.vocabulary.kind(id) {
            Some(TokenKind::Text(text)) => self.bytes(text).to_vec(),
            kind => kind.and_then(TokenKind::name).unwrap_or_default().into_bytes(),
        }
    }

    /// Bytes of text beyond which no prompt can fit, so that it need not be tokenised to know.
    pub(crate) fn most_text(&self) -> usize {
        self.context.saturating_mul(self.longest)
    }

    /// What makes masks of schemas; the first request with one builds it.
    pub(crate) fn grammars(&self) -> Result<Arc<Grammars>> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars.clone());
        }
        let made = Arc::new(Grammars::new(&self.entries, self.vocabulary.ends())?);
        Ok(self.grammars.get_or_init(|| made).clone())
    }
}

/// Every model that may be asked, the first being the default of the page.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: Vec<Arc<Hosted>>,
}

/// A model as a request names it: itself, or one of its adapters.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) model: Arc<Hosted>,
    pub(crate) adapter: Option<String>,
}

impl Catalogue {
    /// A catalogue of models. Every name, of adapters too, may be there once.
    pub fn new(models: Vec<Hosted>) -> Result<Self> {
        let mut names: Vec<&str> = Vec::new();
        for model in &models {
            names.push(&model.name);
            names.extend(model.adapters.iter().map(String::as_str));
        }
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let adapter = models.iter().any(|m| m.adapters.iter().any(|a| a == pair[0]));
            let parameter = if adapter { "--adapter" } else { "--model" };
            let wanted = "names that differ from each other, those of models and of adapters";
            return Err(Error::parameter(parameter, wanted, pair[0]));
        }
        Ok(Self { models: models.into_iter().map(Arc::new).collect() })
    }

    /// The model or adapter of a name.
    pub(crate) fn find(&self, name: &str) -> Option<Chosen> {
        self.models.iter().find_map(|model| {
            let adapter = model.adapters.iter().find(|a| *a == name).cloned();
            let fits = adapter.is_some() || model.name == name;
            fits.then(|| Chosen { model: model.clone(), adapter })
        })
    }

    /// Every model with the names of its adapters.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&Hosted, &[String])> {
        self.models.iter().map(|model| (&**model, model.adapters.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_are_names() {
        for good in ["base", "tuned-2.1_b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(4096);
        for bad in ["", "../x", "/etc/passwd", ".hidden", "a\0b", "a b", "名", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
