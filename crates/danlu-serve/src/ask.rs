//! What the endpoints that make replies have in common: how tokens are drawn, how many replies of
//! what kind, when they end.

use crate::app::App;
use crate::catalogue::Chosen;
use crate::conversation::over_context;
use crate::engine::{Guidance, Job, Mask, Refusal, ReplyMask, Sampler};
use crate::http::error::{Answer, ApiError, full};
use crate::http::fields::{Fields, kind};
use crate::reply::Reply;
use crate::schema::Grammars;
use axum::http::StatusCode;
use danlu_core::{Modality, split_mix};
use danlu_model::engine::Grammar;
use danlu_model::prompt::Template;
use serde_json::{Map, Value};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// Most replies to one request.
const MAX_REPLIES: i64 = 10;
/// Most stop strings, and the longest in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 256;
/// Most entries of `logit_bias`.
const MAX_BIASES: usize = 300;

/// How replies are drawn, as a request says it.
#[derive(Debug, Clone)]
pub(crate) struct Drawing {
    temperature: Option<f32>,
    sampler: Sampler,
    pub(crate) replies: usize,
    pub(crate) max_tokens: Option<usize>,
    /// The parameter that the limit came from.
    limit: &'static str,
    pub(crate) stops: Vec<String>,
    guidance: f32,
}

/// Names of parameters that official clients send and that change nothing here.
pub(crate) const IGNORED: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "reasoning_effort",
    "verbosity",
];

impl Drawing {
    /// Takes the fields out of a request to a model of so many token ids.
    pub(crate) fn take(fields: &mut Fields, vocabulary: usize) -> Answer<Self> {
        let float = |value: Option<f64>| value.map(|v| v as f32);
        let temperature = float(fields.number("temperature", 0.0..=2.0)?);
        let default = Sampler::default();
        let sampler = Sampler {
            temperature: 0.0,
            top_k: fields.integer("top_k", 0..=1_000_000)?.unwrap_or(0) as usize,
            top_p: float(fields.number("top_p", 0.0..=1.0)?).unwrap_or(1.0).max(1e-6),
            min_p: float(fields.number("min_p", 0.0..=1.0)?).unwrap_or(0.0),
            repetition_penalty: float(fields.number("repetition_penalty", 0.01..=10.0)?)
                .unwrap_or(default.repetition_penalty),
            presence_penalty: float(fields.number("presence_penalty", -2.0..=2.0)?).unwrap_or(0.0),
            frequency_penalty: float(fields.number("frequency_penalty", -2.0..=2.0)?)
                .unwrap_or(0.0),
            logit_bias: biases(fields.object("logit_bias")?, vocabulary)?,
            seed: match fields.integer("seed", i64::MIN..=i64::MAX)? {
                Some(seed) => seed as u64,
                // Keyed anew by the system for every value made.
                None => std::hash::RandomState::new().build_hasher().finish(),
            },
        };
        let newer = fields.integer("max_completion_tokens", 1..=i64::from(u32::MAX))?;
        let older = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?;
        Ok(Self {
            temperature,
            sampler,
            replies: fields.integer("n", 1..=MAX_REPLIES)?.unwrap_or(1) as usize,
            max_tokens: newer.or(older).map(|n| n as usize),
            limit: if newer.is_none() && older.is_some() {
                "max_tokens"
            } else {
                "max_completion_tokens"
            },
            stops: stops(fields.take("stop"))?,
            guidance: float(fields.number("guidance", 0.0..=100.0)?).unwrap_or(1.5),
        })
    }

    /// The same for one reply.
    pub(crate) fn once(self) -> Self {
        Self { replies: 1, ..self }
    }

    /// The likeliest reply, once.
    pub(crate) fn plain() -> Self {
        Self {
            temperature: None,
            sampler: Sampler::default(),
            replies: 1,
            max_tokens: None,
            limit: "max_completion_tokens",
            stops: Vec::new(),
            guidance: 1.5,
        }
    }
}

/// Whether replies are streamed, and whether the usage is told at the end of the stream.
pub(crate) fn streamed(fields: &mut Fields) -> Answer<(bool, bool)> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let Some(options) = fields.object("stream_options")? else { return Ok((stream, false)) };
    if !stream {
        let message = "`stream_options` needs `stream` to be true";
        return Err(ApiError::bad("stream_options", message));
    }
    let mut options = Fields::within("stream_options.", options);
    let usage = options.flag("include_usage")?.unwrap_or(false);
    if options.flag("include_obfuscation")? == Some(true) {
        let param = "stream_options.include_obfuscation";
        return Err(ApiError::expected(param, "false", "true"));
    }
    options.finish()?;
    Ok((stream, usage))
}

fn biases(map: Option<Map<String, Value>>, vocabulary: usize) -> Answer<Vec<(u32, f32)>> {
    let map = map.unwrap_or_default();
    let wrong = |wanted: String, found: String| ApiError::expected("logit_bias", wanted, found);
    if map.len() > MAX_BIASES {
        return Err(wrong(format!("at most {MAX_BIASES} ids"), map.len().to_string()));
    }
    map.into_iter()
        .map(|(id, bias)| {
            let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocabulary);
            let id = id.ok_or_else(|| {
                wrong(format!("token ids below {vocabulary} as keys"), "another".into())
            })?;
            let value = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            let value = value
                .ok_or_else(|| wrong("numbers from -100 to 100 as values".into(), kind(&bias)))?;
            Ok((id, value as f32))
        })
        .collect()
}

fn stops(value: Option<Value>) -> Answer<Vec<String>> {
    let wanted =
        format!("a string or a list of at most {MAX_STOPS}, of 1 to {MAX_STOP} bytes each");
    let wrong = |found: String| ApiError::expected("stop", &wanted, found);
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MAX_STOPS {
        return Err(wrong(format!("{} of them", list.len())));
    }
    list.into_iter()
        .map(|value| match value {
            Value::String(text) if (1..=MAX_STOP).contains(&text.len()) => Ok(text),
            Value::String(text) => Err(wrong(format!("a string of {} bytes", text.len()))),
            other => Err(wrong(kind(&other))),
        })
        .collect()
}

/// How a prompt is told again, with the log probabilities of its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Echo {
    /// Ids that stand before the prompt as it was asked.
    pub(crate) before: usize,
    /// Nothing is to follow it.
    pub(crate) alone: bool,
}

/// A request for replies.
pub(crate) struct Ask {
    pub(crate) chosen: Chosen,
    pub(crate) prompt: Vec<u32>,
    /// The parameter that the prompt came from.
    pub(crate) param: &'static str,
    /// What the reply is made of; `None` lets the model choose.
    pub(crate) to: Option<Modality>,
    pub(crate) drawing: Drawing,
    pub(crate) top_logprobs: Option<usize>,
    /// Tell those of the prompt as well.
    pub(crate) echo: Option<Echo>,
    /// Keep to this schema.
    pub(crate) schema: Option<(&'static str, Arc<Grammars>, Arc<Value>)>,
    /// A reply of text goes on where the prompt ends, without the template.
    pub(crate) raw: bool,
}

impl Ask {
    /// Most tokens of the reply.
    pub(crate) fn room(&self) -> Answer<usize> {
        let model = &self.chosen.model;
        let most = model.context.saturating_sub(self.prompt.len());
        let needed = match self.to {
            Some(Modality::Text) => 1,
            _ if self.raw => 1,
            to => Grammar::room(&model.vocabulary, to),
        };
        // A picture is as long as every other; more would be kept free for nothing.
        let useful = if self.to == Some(Modality::Image) { needed.min(most) } else { most };
        let room = self.drawing.max_tokens.unwrap_or(useful).min(useful);
        if room >= needed {
            return Ok(room);
        }
        if most < needed {
            let found = format!("{} tokens, and the reply needs {needed}", self.prompt.len());
            let message = over_context(model.context, &found);
            return Err(ApiError::bad(self.param, message).code("context_length_exceeded"));
        }
        let wanted = format!("at least {needed}, which such a reply needs");
        Err(ApiError::expected(self.drawing.limit, wanted, room))
    }

    /// The mask of one reply.
    fn mask(&self, room: usize) -> Answer<Option<Box<dyn Mask>>> {
        if let Some((param, grammars, schema)) = &self.schema {
            return Ok(Some(Box::new(grammars.mask(param, schema)?)));
        }
        let v = &self.chosen.model.vocabulary;
        // A text may be cut anywhere, so its grammar does not need to close it in time.
        let room = if self.to == Some(Modality::Text) { usize::MAX } else { room };
        Ok(Some(Box::new(ReplyMask(Grammar::new(v, self.to, room)))))
    }

    fn jobs(&self, lookup: bool) -> Answer<Vec<Job>> {
        let model = &self.chosen.model;
        let room = self.room()?;
        let pictures = self.to.is_none_or(|to| to == Modality::Image);
        let guided = pictures && self.drawing.guidance != 1.0 && model.vocabulary.image > 0;
        (0..self.drawing.replies)
            .map(|i| {
                let sampler = |usual: f32| {
                    let own = self.drawing.sampler.clone();
                    // Replies of seeds beside each other are not to be the same.
                    let seed = match i {
                        0 => own.seed,
                        i => split_mix(own.seed, i as u64),
                    };
                    let temperature = self.drawing.temperature.unwrap_or(usual);
                    Sampler { temperature, seed, ..own }
                };
                Ok(Job {
                    prompt: self.prompt.clone(),
                    max_tokens: room,
                    sampling: sampler(0.0),
                    media: Some(sampler(0.7)),
                    // It changes nothing but the time.
                    speculate: lookup && self.to == Some(Modality::Text),
                    stop_ids: model.vocabulary.ends(),
                    top_logprobs: self.top_logprobs,
                    score_prompt: self.echo.is_some(),
                    mask: self.mask(room)?,
                    adapter: self.chosen.adapter.clone(),
                    guidance: guided.then(|| Guidance {
                        blank: Template::new(&model.tokenisers).blank_prompt(),
                        scale: self.drawing.guidance,
                    }),
                })
            })
            .collect()
    }

    /// Starts the replies.
    pub(crate) async fn start(self, app: &Arc<App>) -> Answer<Vec<Reply>> {
        start(app, vec![self]).await
    }
}

/// Starts the replies to several requests of one model, all of them or none.
pub(crate) async fn start(app: &Arc<App>, asks: Vec<Ask>) -> Answer<Vec<Reply>> {
    // Schemas are compiled here, off the threads that serve connections.
    let lookup = app.options.lookup;
    let work = app.work(move || {
        let jobs = asks.iter().map(|ask| ask.jobs(lookup)).collect::<Answer<Vec<_>>>()?;
        Ok((asks, jobs.into_iter().flatten().collect::<Vec<_>>()))
    });
    let (asks, jobs) = work.await?;
    let Some(first) = asks.first() else { return Ok(Vec::new()) };
    let model = &first.chosen.model;
    // With one reply to each it is the prompts that are too many.
    let param = if first.drawing.replies > 1 { "n" } else { first.param };
    let running = model.thread.submit(jobs).map_err(|refusal| refused(param, refusal))?;
    let each = asks.iter().flat_map(|ask| std::iter::repeat_n(ask, ask.drawing.replies));
    let replies =
        each.zip(running).map(|(ask, running)| Reply::new(running, app, model.clone(), ask));
    Ok(replies.collect())
}

/// Why a job was not taken; `param` is what would have to be less of.
pub(crate) fn refused(param: &str, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Full { retry } => full(retry),
        Refusal::TooMany { most } => {
            let message = format!("this server makes at most {most} replies at a time");
            ApiError::bad(param, message)
        }
        Refusal::Gone => ApiError::internal("the model's thread has ended"),
    }
}

/// The model that a request names.
pub(crate) fn model(app: &App, fields: &mut Fields) -> Answer<Chosen> {
    let name = Fields::required("model", fields.string("model")?)?;
    named(app, &name)
}

/// The model of a name.
pub(crate) fn named(app: &App, name: &str) -> Answer<Chosen> {
    app.catalogue()?.find(name).ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        let error = ApiError::new(
            StatusCode::NOT_FOUND,
            format!("the model `{shown}` does not exist; see /v1/models"),
        );
        ApiError { param: Some("model".into()), ..error }.code("model_not_found")
    })
}
