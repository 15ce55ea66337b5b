//! A reply as it comes: tokens of the engine to text, pictures and sounds.

use crate::app::App;
use crate::ask::{Ask, Echo};
use crate::catalogue::Hosted;
use crate::detokenise::Detokeniser;
use crate::engine::{Event, FinishReason, Logprob, Running};
use crate::http::error::{Answer, ApiError};
use axum::http::StatusCode;
use danlu_core::{Control, Picture, Sound, TokenKind};
use danlu_model::prompt::{Template, Value as Said};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// A piece of a reply.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text that is certain, and the log probabilities of its tokens if they were asked for.
    Text {
        text: String,
        logprobs: Vec<Value>,
    },
    Picture(Picture),
    Sound(Sound),
    /// The last piece.
    End(End),
}

/// How a reply ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// `stop` or `length`.
    pub(crate) reason: &'static str,
    /// A stop string cut it off.
    pub(crate) cut: bool,
    pub(crate) usage: Usage,
}

/// Tokens of a request and its replies.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    /// Tokens of the prompt that were known from an earlier one.
    pub(crate) cached: usize,
}

impl Usage {
    /// That of all replies, `each` of which in a row are to one prompt: it counts once.
    pub(crate) fn sum(replies: &[Usage], each: usize) -> Usage {
        let mut sum = Usage::default();
        for same in replies.chunks(each.max(1)) {
            sum.prompt += same.iter().map(|u| u.prompt).max().unwrap_or(0);
            sum.cached += same.iter().map(|u| u.cached).max().unwrap_or(0);
            sum.completion += same.iter().map(|u| u.completion).sum::<usize>();
        }
        sum
    }

    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// The time for a reply is over.
pub(crate) fn late() -> ApiError {
    let message = "the reply took too long";
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).code("timeout")
}

/// A reply in the making. Dropping it cancels it.
pub(crate) struct Reply {
    running: Running,
    app: Arc<App>,
    model: Arc<Hosted>,
    deadline: Instant,
    text: Detokeniser,
    logprobs: Vec<Value>,
    /// The prompt, as far as it is told again and its log probabilities were not come by yet.
    echoed: std::vec::IntoIter<u32>,
    /// Those of what stands before.
    scored: Vec<Value>,
    /// Nothing follows the prompt.
    alone: bool,
    /// Ids of the picture or sound that is open.
    open: Vec<u32>,
    usage: Usage,
    ended: bool,
    /// What is told before the next event is looked at.
    next: Option<Piece>,
    /// A blank at the beginning of the text is no part of it.
    blank: bool,
    /// Most tokens of the reply.
    room: usize,
    /// A sound was ended since there was no room for more of it.
    short: bool,
}

impl Reply {
    pub(crate) fn new(running: Running, app: &Arc<App>, model: Arc<Hosted>, ask: &Ask) -> Self {
        let told = |echo: Echo| ask.prompt[echo.before..].to_vec();
        let mut reply = Self {
            blank: model.leads_with_blank && !ask.raw,
            running,
            deadline: Instant::now() + app.options.reply_time,
            app: app.clone(),
            model,
            text: Detokeniser::new(ask.drawing.stops.clone()),
            logprobs: Vec::new(),
            echoed: ask.echo.map(told).unwrap_or_default().into_iter(),
            scored: Vec::new(),
            alone: ask.echo.is_some_and(|echo| echo.alone),
            open: Vec::new(),
            usage: Usage { prompt: ask.prompt.len(), completion: 0, cached: 0 },
            ended: false,
            next: None,
            room: ask.room().unwrap_or(usize::MAX),
            short: false,
        };
        if ask.echo.is_some_and(|echo| echo.before == 0) {
            reply.score(None);
        }
        reply
    }

    /// The next token of the prompt that is told again; nothing is known of the first.
    fn score(&mut self, logprob: Option<&Logprob>) {
        let Some(id) = self.echoed.next() else { return };
        let bytes = self.model.shown(id);
        let value = match logprob {
            Some(logprob) => self.logprob(&bytes, logprob),
            None => json!({"token": String::from_utf8_lossy(&bytes), "logprob": null}),
        };
        self.scored.push(value);
    }

    /// The log probabilities of what was told last.
    fn take_logprobs(&mut self) -> Vec<Value> {
        let mut all = std::mem::take(&mut self.scored);
        all.append(&mut self.logprobs);
        all
    }

    /// The next piece; `None` after the last.
    pub(crate) async fn next(&mut self) -> Answer<Option<Piece>> {
        loop {
            if let Some(piece) = self.next.take() {
                return Ok(Some(piece));
            }
            if self.ended {
                return Ok(None);
            }
            let event = tokio::time::timeout_at(self.deadline, self.running.next()).await;
            let event = event.map_err(|_| late())?;
            let piece = match event {
                None => return Err(ApiError::internal("the model's thread has ended")),
                Some(Err(message)) => return Err(ApiError::internal(message)),
                Some(Ok(Event::Token { token, logprob, .. })) => self.token(token, logprob).await?,
                Some(Ok(Event::Scored { logprobs, .. })) => {
                    logprobs.iter().for_each(|logprob| self.score(Some(logprob)));
                    None
                }
                Some(Ok(Event::Done {
                    reason,
                    prompt_tokens,
                    cached_tokens,
                    completion_tokens,
                    ..
                })) => {
                    // What the engine made behind a stop string is no part of the reply.
                    let cut = self.text.stopped();
                    let told = cut || self.alone;
                    let completion = if told { self.usage.completion } else { completion_tokens };
                    self.usage = Usage { prompt: prompt_tokens, completion, cached: cached_tokens };
                    let full = reason == FinishReason::Length || self.short || self.alone;
                    let reason = if full { "length" } else { "stop" };
                    self.end(reason)
                }
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
    }

    /// The rest of the text, and after it the end.
    fn end(&mut self, reason: &'static str) -> Option<Piece> {
        self.ended = true;
        let text = self.text.finish();
        let cut = self.text.stopped();
        let reason = if cut { "stop" } else { reason };
        let end = Piece::End(End { reason, cut, usage: self.usage });
        let logprobs = self.take_logprobs();
        if text.is_empty() && logprobs.is_empty() {
            return Some(end);
        }
        self.next = Some(end);
        Some(Piece::Text { text, logprobs })
    }

    async fn token(&mut self, id: u32, logprob: Option<Logprob>) -> Answer<Option<Piece>> {
        if self.text.stopped() || self.alone {
            return Ok(None);
        }
        self.usage.completion += 1;
        let model = self.model.clone();
        let bytes = match model.vocabulary.kind(id) {
            _ if model.vocabulary.is_end(id) => return Ok(None),
            None => return Ok(None),
            Some(TokenKind::Text(text)) => {
                let bytes = model.bytes(text);
                let blank = std::mem::take(&mut self.blank) && bytes.starts_with(b" ");
                bytes[usize::from(blank)..].to_vec()
            }
            Some(TokenKind::Place(place)) => format!("<loc{place}>").into_bytes(),
            Some(kind) => {
                self.open.push(id);
                let closes = [Control::ImageEnd, Control::AudioEnd].map(TokenKind::Control);
                // With two tokens left a sound must end, whether all was said or not (`Grammar`).
                self.short |= kind == closes[1] && self.usage.completion + 1 >= self.room;
                if closes.contains(&kind) {
                    return self.media().await.map(Some);
                }
                return Ok(None);
            }
        };
        if let Some(logprob) = logprob {
            self.logprobs.push(self.logprob(&bytes, &logprob));
        }
        let text = self.text.push(&bytes);
        if self.text.stopped() {
            // The end follows when the engine has said what the reply came to.
            self.running.finish();
            if text.is_empty() {
                self.logprobs.clear();
            }
        }
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(Piece::Text { text, logprobs: self.take_logprobs() }))
    }

    async fn media(&mut self) -> Answer<Piece> {
        let (model, ids) = (self.model.clone(), std::mem::take(&mut self.open));
        let made = self.app.finish(move || {
            let said = Template::new(&model.tokenisers).reply(&ids)?;
            Ok(said.into_iter().next())
        });
        match made.await? {
            Some(Said::Picture(picture)) => Ok(Piece::Picture(picture)),
            Some(Said::Sound(sound)) => Ok(Piece::Sound(sound)),
            other => Err(ApiError::internal(format!("a closed medium became {other:?}"))),
        }
    }

    fn logprob(&self, bytes: &[u8], of: &Logprob) -> Value {
        let one = |bytes: &[u8], value: f32| {
            json!({
                "token": String::from_utf8_lossy(bytes),
                // JSON has no infinity; this is what the official API says for "never".
                "logprob": value.max(-9999.0),
                "bytes": bytes,
            })
        };
        let mut own = one(bytes, of.chosen);
        let top = of.top.iter().map(|&(id, value)| {
            let mut shown = one(&self.model.shown(id), value);
            if !matches!(self.model.vocabulary.kind(id), Some(TokenKind::Text(_))) {
                // No text becomes such a token.
                shown["bytes"] = Value::Null;
            }
            shown
        });
        own["top_logprobs"] = Value::Array(top.collect());
        own
    }
}

/// A whole reply.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<Value>,
    pub(crate) pictures: Vec<Picture>,
    pub(crate) sounds: Vec<Sound>,
    pub(crate) reason: &'static str,
    /// A stop string cut it off.
    pub(crate) cut: bool,
    pub(crate) usage: Usage,
}

/// Waits for a whole reply.
pub(crate) async fn whole(mut reply: Reply) -> Answer<Whole> {
    let mut out = Whole::default();
    while let Some(piece) = reply.next().await? {
        match piece {
            Piece::Text { text, logprobs } => {
                out.text += &text;
                out.logprobs.extend(logprobs);
            }
            Piece::Picture(picture) => out.pictures.push(picture),
            Piece::Sound(sound) => out.sounds.push(sound),
            Piece::End(end) => {
                (out.reason, out.cut, out.usage) = (end.reason, end.cut, end.usage);
            }
        }
    }
    Ok(out)
}

/// Waits for whole replies, all at a time.
pub(crate) async fn wholes(replies: Vec<Reply>) -> Answer<Vec<Whole>> {
    futures_util::future::try_join_all(replies.into_iter().map(whole)).await
}
