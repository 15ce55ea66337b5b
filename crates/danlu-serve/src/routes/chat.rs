//! Conversations: text, pictures and sounds in; text, pictures and sounds out; whole or streamed.

use super::speech::{Format, voice};
use super::tools::{Held, Tools};
use super::transcriptions::heard;
use crate::app::{App, now};
use crate::ask::{Ask, Drawing, IGNORED, model, streamed};
use crate::catalogue::Chosen;
use crate::conversation::{Told, check_modality, messages, prompt};
use crate::http::body;
use crate::http::error::{Answer, ApiError, json_response};
use crate::http::fields::{Fields, kind};
use crate::http::sse::Events;
use crate::media::to_base64;
use crate::reply::{Piece, Reply, Usage, Whole, late, wholes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use danlu_core::{Modality, Picture, Sound, instruction};
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use tokio::time::Instant;

/// What a request wants besides the drawing of tokens.
struct Wanted {
    app: Arc<App>,
    chosen: Chosen,
    name: String,
    id: String,
    created: u64,
    /// When the replies have to be made.
    deadline: Instant,
    to: Option<Modality>,
    sound: Format,
    tools: Tools,
    /// The reply is JSON, or an error.
    json: bool,
    logprobs: bool,
    usage: bool,
}

/// A word that is new every time.
pub(super) fn unique() -> String {
    let word = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}

/// The handler.
pub(super) async fn chat(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let (map, share) = body::json(&app, &head.headers, body).await?;
    let name = map.get("model").and_then(Value::as_str).unwrap_or_default().to_string();
    let mut fields = Fields::new(map);
    let chosen = model(&app, &mut fields)?;
    let list = Fields::required("messages", fields.list("messages")?)?;
    let mut turns = messages(list)?;
    let drawing = Drawing::take(&mut fields, chosen.model.vocabulary.size())?;
    let to = modalities(fields.list("modalities")?)?;
    let mut sound = Fields::within("audio.", fields.object("audio")?.unwrap_or_default());
    let format = Format::named("audio.format", sound.string("format")?.as_deref())?;
    let voice = voice("audio.voice", sound.string("voice")?)?;
    sound.finish()?;
    let (stream, usage) = streamed(&mut fields)?;
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    if top.is_some() && !logprobs {
        return Err(ApiError::bad("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let schema = response_format(fields.object("response_format")?)?;
    let tools = Tools::take(&mut fields)?;
    let variables = fields.take("chat_template_kwargs");
    let variables = danlu_core::variables(variables.as_ref())
        .map_err(|message| ApiError::bad("chat_template_kwargs", message))?;
    fields.pass_over(&IGNORED);
    fields.finish()?;
    let needed = to.map_or(Modality::ALL.to_vec(), |to| vec![to]);
    for modality in needed {
        check_modality(&chosen.model, "modalities", modality)?;
    }
    if let Some(voice) = voice
        && let Some(turn) = turns.last_mut()
    {
        // As in training, the voice is named at the end of the instruction.
        let words = instruction::in_voice("", &voice);
        turn.parts.push(("audio.voice".into(), crate::conversation::Content::Text(words)));
    }
    let told = Told { tools: tools.told(), variables };
    let schema = match tools.schema() {
        Some(schema) => Some(("tools", schema)),
        None => schema.map(|schema| ("response_format", schema)),
    };
    if schema.is_some() && to != Some(Modality::Text) {
        let message = "a reply that keeps to a schema is of text alone";
        return Err(ApiError::bad("modalities", message));
    }
    let wanted = Wanted {
        app: app.clone(),
        name,
        id: format!("chatcmpl-{}", unique()),
        created: now(),
        deadline: Instant::now() + app.options.reply_time,
        to,
        sound: format,
        json: schema.is_some(),
        logprobs,
        usage,
        tools,
        chosen: chosen.clone(),
    };
    let host = chosen.model.clone();
    let work = app.work(move || {
        let _share = share;
        let grammars = if schema.is_some() { Some(host.grammars()?) } else { None };
        let schema = schema.zip(grammars);
        Ok((prompt(&host, "messages", turns, told)?, schema.map(|((p, s), g)| (p, g, Arc::new(s)))))
    });
    let (prompt, schema) = work.await?;
    let top_logprobs = logprobs.then(|| top.unwrap_or(0) as usize);
    let ask = Ask {
        chosen,
        prompt,
        param: "messages",
        to,
        drawing,
        top_logprobs,
        echo: None,
        schema,
        raw: false,
    };
    let replies = ask.start(&app).await?;
    if stream { Ok(wanted.stream(replies)) } else { wanted.answer(replies).await }
}

/// What a reply is made of: `["text"]` if nothing is said, one medium if it is named (beside text
/// or not), and anything the model likes if both are.
fn modalities(list: Option<Vec<Value>>) -> Answer<Option<Modality>> {
    let list = list.unwrap_or_else(|| vec![json!("text")]);
    let (mut text, mut image, mut audio) = (false, false, false);
    for word in &list {
        match word.as_str() {
            Some("text") => text = true,
            Some("image") => image = true,
            Some("audio") => audio = true,
            _ => {
                let wanted = "a list of text, image and audio";
                return Err(ApiError::expected("modalities", wanted, kind(word)));
            }
        }
    }
    match (text, image, audio) {
        (_, true, true) => Ok(None),
        (_, true, false) => Ok(Some(Modality::Image)),
        (_, false, true) => Ok(Some(Modality::Audio)),
        (true, false, false) => Ok(Some(Modality::Text)),
        (false, false, false) => Err(ApiError::expected("modalities", "at least one", "none")),
    }
}

/// The schema that the reply keeps to.
fn response_format(format: Option<Map<String, Value>>) -> Answer<Option<Value>> {
    let Some(format) = format else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => match format.get("json_schema") {
            Some(Value::Object(inner)) => match inner.get("schema") {
                Some(schema) => Ok(Some(schema.clone())),
                None => {
                    let param = "response_format.json_schema.schema";
                    Err(ApiError::bad(param, format!("`{param}` is missing")))
                }
            },
            _ => {
                let param = "response_format.json_schema";
                Err(ApiError::expected(param, "an object", "another"))
            }
        },
        _ => {
            let wanted = "one of text, json_object, json_schema";
            Err(ApiError::expected("response_format.type", wanted, "another"))
        }
    }
}

fn image(picture: &Picture) -> Value {
    let data = to_base64(&danlu_media::encode_png(picture));
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}})
}

impl Wanted {
    /// A sound as the API tells it, with what the model itself hears in it: nothing, if there is no
    /// place or time left to listen. The sound is made and is not lost by that.
    async fn audio(&self, sound: Sound) -> Value {
        let data = to_base64(&self.sound.encode(&sound));
        let words = instruction::transcribe(None);
        let heard = heard(&self.app, self.chosen.clone(), sound, words, Drawing::plain());
        let heard = match tokio::time::timeout_at(self.deadline, heard).await {
            Ok(Ok(heard)) => heard.text,
            Ok(Err(error)) => {
                tracing::warn!(status = error.status.as_u16(), "a reply was not listened to");
                String::new()
            }
            Err(_) => String::new(),
        };
        json!({
            "id": format!("audio_{}", unique()),
            "data": data,
            // Nothing is kept here, so it cannot be asked for again.
            "expires_at": now(),
            "transcript": heard,
        })
    }

    /// Refuses a text that should be JSON and is not, which is so only where a limit of the schema was
    /// reached. One that a stop string `cut` is what was asked for.
    fn check_json(&self, text: &str, reason: &str, cut: bool) -> Answer<()> {
        let whole = || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        if self.json && reason == "stop" && !cut && !whole() {
            return Err(ApiError::internal("a reply came to the limits of its schema"));
        }
        Ok(())
    }

    /// Whether a reply that is no call is a part of one, and so no text that somebody is to see. One that a
    /// stop string `cut` is what was asked for.
    fn half_a_call(&self, cut: bool) -> bool {
        self.tools.required() && !cut
    }

    async fn choice(&self, index: usize, whole: Whole) -> Answer<Value> {
        self.check_json(&whole.text, whole.reason, whole.cut)?;
        let calls = if self.tools.any() { self.tools.calls(&whole.text) } else { Vec::new() };
        let bare = self.to.is_some_and(|to| to != Modality::Text);
        let mut message = json!({"role": "assistant", "refusal": null, "content": whole.text});
        if !calls.is_empty() {
            message["content"] = json!(Tools::before(&whole.text));
        } else if self.half_a_call(whole.cut) || (bare && whole.text.is_empty()) {
            message["content"] = Value::Null;
        }
        if !whole.pictures.is_empty() {
            message["images"] = whole.pictures.iter().map(image).collect();
        }
        // The official reply has room for one sound; they are joined.
        if let Some(first) = whole.sounds.first() {
            let samples = whole.sounds.iter().flat_map(|s| s.samples.iter().copied()).collect();
            message["audio"] = self.audio(Sound { rate: first.rate, samples }).await;
        }
        let reason = if calls.is_empty() { whole.reason } else { "tool_calls" };
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
        }
        let logprobs = self.logprobs.then(|| json!({"content": whole.logprobs, "refusal": null}));
        Ok(json!({
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": reason,
        }))
    }

    async fn answer(&self, replies: Vec<Reply>) -> Answer {
        let (mut usages, mut choices) = (Vec::new(), Vec::new());
        for (i, whole) in wholes(replies).await?.into_iter().enumerate() {
            usages.push(whole.usage);
            choices.push(self.choice(i, whole).await?);
        }
        let answer = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.name,
            "system_fingerprint": null,
            "choices": choices,
            "usage": Usage::sum(&usages, usages.len()).json(),
        });
        Ok(json_response(StatusCode::OK, &answer))
    }

    fn stream(self, replies: Vec<Reply>) -> axum::http::Response<axum::body::Body> {
        let options = &self.app.options;
        let (events, response) = Events::channel(options.reader_time);
        // Not longer, however often the reader comes back for one event more.
        let end = self.deadline + options.reader_time;
        tokio::spawn(async move {
            let parts = replies.into_iter().enumerate();
            let parts = parts.map(|(i, reply)| self.stream_one(&events, i, reply));
            let all = futures_util::future::try_join_all(parts);
            let made = tokio::select! {
                made = tokio::time::timeout_at(end, all) => made.unwrap_or_else(|_| Err(late())),
                () = events.gone() => return,
            };
            match made {
                Ok(usages) => {
                    if self.usage {
                        let usage = Usage::sum(&usages, usages.len());
                        let mut chunk = self.chunk(Vec::new());
                        chunk["usage"] = usage.json();
                        if events.send(&chunk).await.is_err() {
                            return;
                        }
                    }
                    events.finish().await;
                }
                Err(error) => events.fail(&error).await,
            }
        });
        response
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.name,
            "system_fingerprint": null,
            "choices": choices,
        });
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    async fn delta(
        &self,
        events: &Events,
        index: usize,
        delta: Value,
        (logprobs, reason): (Vec<Value>, Option<&str>),
    ) -> Answer<()> {
        let logprobs =
            (!logprobs.is_empty()).then(|| json!({"content": logprobs, "refusal": null}));
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        });
        let sent = events.send(&self.chunk(vec![choice])).await;
        // Nobody hears of it; it ends this reply and the others of the request.
        sent.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the reader does not read"))
    }

    async fn stream_one(&self, events: &Events, index: usize, mut reply: Reply) -> Answer<Usage> {
        let none = || (Vec::new(), None);
        let (holds, mut held) = (self.tools.any(), Held::default());
        // A reply that may be a call may have no content.
        let content = if holds { Value::Null } else { json!("") };
        self.delta(events, index, json!({"role": "assistant", "content": content}), none()).await?;
        let mut said = String::new();
        while let Some(piece) = reply.next().await? {
            match piece {
                Piece::Text { text, logprobs } => {
                    if self.json {
                        said += &text;
                    }
                    let (text, logprobs) =
                        if holds { held.push(text, logprobs) } else { (text, logprobs) };
                    if !text.is_empty() || !logprobs.is_empty() {
                        let delta = json!({"content": text});
                        self.delta(events, index, delta, (logprobs, None)).await?;
                    }
                }
                Piece::Picture(picture) => {
                    let delta = json!({"images": [image(&picture)]});
                    self.delta(events, index, delta, none()).await?;
                }
                Piece::Sound(sound) => {
                    let delta = json!({"audio": self.audio(sound).await});
                    self.delta(events, index, delta, none()).await?;
                }
                Piece::End(end) => {
                    self.check_json(&said, end.reason, end.cut)?;
                    let mut reason = end.reason;
                    let mut calls = self.tools.calls(&held.text());
                    let (text, logprobs) = held.take();
                    if !calls.is_empty() {
                        reason = "tool_calls";
                        for (i, call) in calls.iter_mut().enumerate() {
                            call["index"] = json!(i);
                        }
                        let mut delta = json!({"tool_calls": calls});
                        if let Some(before) = Tools::before(&text) {
                            delta["content"] = json!(before);
                        }
                        self.delta(events, index, delta, (logprobs, None)).await?;
                    } else if !self.half_a_call(end.cut)
                        && (!text.is_empty() || !logprobs.is_empty())
                    {
                        let delta = json!({"content": text});
                        self.delta(events, index, delta, (logprobs, None)).await?;
                    }
                    let last = (Vec::new(), Some(reason));
                    self.delta(events, index, json!({}), last).await?;
                    return Ok(end.usage);
                }
            }
        }
        Err(ApiError::internal("a reply without an end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modalities_say_what_a_reply_is_made_of() {
        let of = |list: Value| modalities(list.as_array().cloned());
        assert_eq!(of(Value::Null).expect("text"), Some(Modality::Text));
        assert_eq!(of(json!(["text", "audio"])).expect("sound"), Some(Modality::Audio));
        assert_eq!(of(json!(["image"])).expect("picture"), Some(Modality::Image));
        assert_eq!(of(json!(["text", "image", "audio"])).expect("any"), None);
        assert!(of(json!([])).is_err() && of(json!(["video"])).is_err());
    }
}
