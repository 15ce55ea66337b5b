//! What computes the logits that are compared: the forward pass of training, or the decode engine.

use crate::engine::{
    BitMask, CacheFormat, EngineOptions, Event, Job, Mask, Scheduler, WeightFormat,
};
use crate::model::Model;
use danlu_core::{Error, Result};
use std::sync::Arc;

/// Name of the adapters of a form in its scheduler.
const ADAPTER: &str = "parity";

/// A form of a model.
pub enum Form<'a> {
    /// The forward pass of training, with adapters beside the weights.
    Train(&'a Model),
    /// The decode engine. The first half of a text is read as a prompt, the rest id by id.
    Decode {
        /// Whose tokenisers read the texts.
        model: &'a Model,
        /// What computes.
        engine: Box<Scheduler>,
        /// The adapter that answers, by its name in the engine.
        adapter: Option<String>,
    },
}

impl std::fmt::Debug for Form<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.decodes() { "Decode" } else { "Train" })
    }
}

/// Logits, or log-probabilities, of some positions of a text.
pub(super) struct Rows {
    /// Position of the first row.
    pub(super) first: usize,
    /// `[rows, vocabulary]`, row-major.
    pub(super) values: Vec<f32>,
}

impl<'a> Form<'a> {
    /// The decode engine with the weights in `weights`; adapters are merged in. The cache is in
    /// single precision with weights of that, else in half.
    pub fn decode(model: &'a Model, weights: WeightFormat) -> Result<Self> {
        let engine = Box::new(Scheduler::new(&model.transformer, &options(weights))?);
        Ok(Form::Decode { model, engine, adapter: None })
    }

    /// The decode engine with the base's weights in `weights` and the adapters beside them, taken
    /// in, taken away and taken in again, as a server does that swaps them.
    ///
    /// # Errors
    /// If there are no adapters.
    pub fn beside(model: &'a Model, weights: WeightFormat) -> Result<Self> {
        let mut base = model.transformer.clone();
        base.detach();
        let mut engine = Box::new(Scheduler::new(&base, &options(weights))?);
        engine.add_adapter(ADAPTER, &model.transformer)?;
        engine.remove_adapter(ADAPTER);
        engine.add_adapter(ADAPTER, &model.transformer)?;
        Ok(Form::Decode { model, engine, adapter: Some(ADAPTER.into()) })
    }

    /// The model.
    pub(super) fn model(&self) -> &'a Model {
        match self {
            Form::Train(model) | Form::Decode { model, .. } => model,
        }
    }

    /// Whether rows are log-probabilities of the decode engine.
    pub(super) fn decodes(&self) -> bool {
        matches!(self, Form::Decode { .. })
    }

    /// The rows of ids, which leave one place in the context.
    pub(super) fn rows(&mut self, ids: &[u32]) -> Result<Rows> {
        match self {
            Form::Train(model) => {
                let starts = Arc::from([0, ids.len() as u32]);
                let all = model.transformer.logits(&Arc::from(ids), &starts);
                let values = all.into_data().try_into_vec().expect("logits are f32");
                Ok(Rows { first: 0, values })
            }
            Form::Decode { engine, adapter, .. } => decoded(engine, adapter.clone(), ids),
        }
    }
}

fn options(weights: WeightFormat) -> EngineOptions {
    let cache = match weights {
        WeightFormat::F32 => CacheFormat::F32,
        _ => CacheFormat::F16,
    };
    EngineOptions { weights, cache, batch: 1, ..EngineOptions::default() }
}

/// Has a reply say given ids, whatever is likely.
struct Forced {
    ids: Vec<u32>,
    at: usize,
}

impl Mask for Forced {
    fn allowed(&mut self, out: &mut BitMask) {
        // The id after the last one does not matter.
        out.insert(self.ids.get(self.at).copied().unwrap_or(0));
    }

    fn accept(&mut self, _: u32) {
        self.at += 1;
    }
}

/// Log-probabilities `[ids - half + 1, vocabulary]` from the last id of the first half on.
fn decoded(engine: &mut Scheduler, adapter: Option<String>, ids: &[u32]) -> Result<Rows> {
    let size = engine.decoder().config().vocabulary;
    let half = (ids.len() / 2).max(1);
    let count = ids.len() - half + 1;
    let job = Job {
        mask: Some(Box::new(Forced { ids: ids[half..].to_vec(), at: 0 })),
        top_logprobs: Some(size),
        adapter,
        ..Job::new(ids[..half].to_vec(), count)
    };
    engine.add(job)?;
    let mut values = Vec::with_capacity(count * size);
    loop {
        let events = engine.step();
        if events.is_empty() && engine.usage().running + engine.usage().waiting == 0 {
            let found = format!("{} of {count} rows", values.len() / size);
            return Err(Error::parameter("parity", "a row for each position", found));
        }
        for event in events {
            match event {
                Event::Token { logprob, .. } => {
                    let row = values.len();
                    // What is missing is no number, and never near.
                    values.resize(row + size, f32::NAN);
                    for (id, l) in logprob.into_iter().flat_map(|l| l.top) {
                        values[row + id as usize] = l;
                    }
                }
                Event::Scored { .. } => {}
                Event::Done { .. } => return Ok(Rows { first: half - 1, values }),
            }
        }
    }
}
