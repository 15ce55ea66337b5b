//! The older endpoint: a text, and how it goes on.

use super::chat::unique;
use super::embeddings::text_or_ids;
use crate::app::{App, now};
use crate::ask::{Ask, Drawing, Echo, IGNORED, model, start, streamed};
use crate::conversation::check_length;
use crate::http::body;
use crate::http::error::{Answer, ApiError, json_response};
use crate::http::fields::{Fields, kind};
use crate::http::sse::Events;
use crate::reply::{Piece, Reply, Usage, late, wholes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use danlu_core::Modality;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// Most prompts of a request.
const MAX_PROMPTS: usize = 64;
/// Most tokens of a reply where a request says nothing of them, as the official API has it.
const USUAL_TOKENS: usize = 16;

struct Wanted {
    app: Arc<App>,
    name: String,
    id: String,
    created: u64,
    logprobs: bool,
    usage: bool,
    /// Replies to each prompt.
    each: usize,
    /// What each choice begins with.
    echo: Vec<String>,
}

/// The handler.
pub(super) async fn completions(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let (mut map, share) = body::json(&app, &head.headers, body).await?;
    // A prompt alone may be asked for, if it is told again: to score it. A token is drawn and dropped.
    let alone = map.get("echo") == Some(&Value::Bool(true))
        && map.get("max_tokens").and_then(Value::as_i64) == Some(0);
    if alone {
        map.insert("max_tokens".into(), 1.into());
    }
    let name = map.get("model").and_then(Value::as_str).unwrap_or_default().to_string();
    let mut fields = Fields::new(map);
    let chosen = model(&app, &mut fields)?;
    let prompts = Fields::required("prompt", fields.take("prompt"))?;
    let mut drawing = Drawing::take(&mut fields, chosen.model.vocabulary.size())?;
    drawing.max_tokens.get_or_insert(USUAL_TOKENS);
    let logprobs = fields.integer("logprobs", 0..=5)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let (stream, usage) = streamed(&mut fields)?;
    // All that are drawn are told.
    let drawn = drawing.replies as i64;
    fields.integer("best_of", drawn..=drawn)?;
    fields.without("suffix")?;
    fields.pass_over(&IGNORED);
    fields.finish()?;
    let prompts = each(prompts)?;
    let host = chosen.model.clone();
    let ids = app.work(move || {
        let _share = share;
        prompts
            .into_iter()
            .map(|value| {
                let mut ids = Vec::new();
                // A document of plain text begins as in training: with what the tokeniser of an
                // imported model puts there, or as one ends. Ids are as they are.
                let end = || host.tokenisers.end_of_text();
                let controls = host.vocabulary.has_controls();
                let begin = host.tokenisers.text.begin().or_else(|| controls.then(end));
                ids.extend(begin.filter(|_| value.is_string()));
                let before = ids.len();
                ids.extend(text_or_ids(&host, "prompt", &value)?);
                check_length(&host, "prompt", ids.len())?;
                let text = match value {
                    _ if !echo => String::new(),
                    Value::String(text) => text,
                    _ => {
                        let bytes: Vec<u8> =
                            ids[before..].iter().flat_map(|&id| host.shown(id)).collect();
                        String::from_utf8_lossy(&bytes).into_owned()
                    }
                };
                Ok((ids, before, text))
            })
            .collect::<Answer<Vec<_>>>()
    });
    let prompts = ids.await?;
    let echoes =
        prompts.iter().flat_map(|(_, _, text)| std::iter::repeat_n(text.clone(), drawing.replies));
    let echoes = echoes.collect();
    let asks = prompts.into_iter().map(|(prompt, before, _)| Ask {
        chosen: chosen.clone(),
        prompt,
        param: "prompt",
        to: Some(Modality::Text),
        drawing: drawing.clone(),
        top_logprobs: logprobs.map(|n| n as usize),
        echo: (echo && (alone || logprobs.is_some())).then_some(Echo { before, alone }),
        schema: None,
        raw: true,
    });
    let replies = start(&app, asks.collect()).await?;
    let wanted = Wanted {
        app,
        name,
        id: format!("cmpl-{}", unique()),
        created: now(),
        logprobs: logprobs.is_some(),
        usage,
        each: drawing.replies,
        echo: echoes,
    };
    if stream { Ok(wanted.stream(replies)) } else { wanted.answer(replies).await }
}

/// The prompts of a request: a text, a list of texts, ids or a list of lists of ids.
fn each(value: Value) -> Answer<Vec<Value>> {
    let list = match value {
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            vec![Value::Array(list)]
        }
        Value::Array(list) => list,
        Value::String(_) => vec![value],
        other => {
            let wanted = "a text, a list of texts, or token ids";
            return Err(ApiError::expected("prompt", wanted, kind(&other)));
        }
    };
    if list.is_empty() || list.len() > MAX_PROMPTS {
        let wanted = format!("1 to {MAX_PROMPTS} prompts");
        return Err(ApiError::expected("prompt", wanted, list.len()));
    }
    Ok(list)
}

/// How a token is written where there is no list of its bytes: those of a part of a character as the
/// official API writes them.
fn written(token: &Value, bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => token["token"].as_str().unwrap_or_default().to_string(),
        Err(_) => bytes.iter().fold("bytes:".to_string(), |all, b| all + &format!("\\x{b:02x}")),
    }
}

/// The bytes of a token; where it has none those of its name.
fn bytes(token: &Value) -> Vec<u8> {
    match token["bytes"].as_array() {
        Some(bytes) => bytes.iter().filter_map(|b| u8::try_from(b.as_u64()?).ok()).collect(),
        None => token["token"].as_str().unwrap_or_default().into(),
    }
}

/// Log probabilities in the older shape; the first token of a prompt has none. `begun` counts the characters
/// that have begun before these tokens: one that begins within a character is where that begins.
fn older(list: &[Value], begun: &mut usize) -> Value {
    let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for one in list {
        let bytes = bytes(one);
        let inside = |b: &u8| b & 0xC0 == 0x80;
        offsets.push(begun.saturating_sub(usize::from(bytes.first().is_some_and(inside))));
        *begun += bytes.iter().filter(|b| !inside(b)).count();
        tokens.push(written(one, &bytes));
        values.push(one["logprob"].clone());
        let shown = |t: &Value| (written(t, &self::bytes(t)), t["logprob"].clone());
        let top = one["top_logprobs"].as_array();
        tops.push(top.map(|top| top.iter().map(shown).collect::<Map<_, _>>()));
    }
    json!({
        "tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets,
    })
}

impl Wanted {
    /// A chunk of a stream.
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.shape(choices);
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn shape(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
            "choices": choices,
        })
    }

    async fn answer(&self, replies: Vec<Reply>) -> Answer {
        let (mut usages, mut choices) = (Vec::new(), Vec::new());
        for (i, whole) in wholes(replies).await?.into_iter().enumerate() {
            usages.push(whole.usage);
            let echo = &self.echo[i];
            let logprobs = self.logprobs.then(|| older(&whole.logprobs, &mut 0));
            choices.push(json!({
                "index": i,
                "text": format!("{echo}{}", whole.text),
                "logprobs": logprobs,
                "finish_reason": whole.reason,
            }));
        }
        let mut answer = self.shape(choices);
        answer["usage"] = Usage::sum(&usages, self.each).json();
        Ok(json_response(StatusCode::OK, &answer))
    }

    fn stream(self, replies: Vec<Reply>) -> axum::http::Response<axum::body::Body> {
        let options = &self.app.options;
        let (events, response) = Events::channel(options.reader_time);
        // Not longer, however often the reader comes back for one event more.
        let end = Instant::now() + options.reply_time + options.reader_time;
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
                        let usage = Usage::sum(&usages, self.each);
                        let mut last = self.shape(Vec::new());
                        last["usage"] = usage.json();
                        if events.send(&last).await.is_err() {
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

    async fn stream_one(&self, events: &Events, index: usize, mut reply: Reply) -> Answer<Usage> {
        let mut begun = 0;
        let mut echo = self.echo[index].clone();
        while let Some(piece) = reply.next().await? {
            let (text, logprobs, reason, usage) = match piece {
                Piece::Text { text, logprobs } => (text, logprobs, None, None),
                Piece::End(end) => (String::new(), vec![], Some(end.reason), Some(end.usage)),
                Piece::Picture(_) | Piece::Sound(_) => continue,
            };
            let text = std::mem::take(&mut echo) + &text;
            let logprobs =
                (self.logprobs && !logprobs.is_empty()).then(|| older(&logprobs, &mut begun));
            let chunk = self.chunk(vec![json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason,
            })]);
            let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the reader does not read");
            events.send(&chunk).await.map_err(slow)?;
            if let Some(usage) = usage {
                return Ok(usage);
            }
        }
        Err(ApiError::internal("a reply without an end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_characters_have_names_of_their_own() {
        let token = |bytes: &[u8], logprob: f32| json!({"token": String::from_utf8_lossy(bytes), "bytes": bytes, "logprob": logprob});
        let with = |bytes: &[u8], others: [&[u8]; 2]| {
            let mut one = token(bytes, -0.5);
            let top = [token(bytes, -0.5), token(others[0], -1.5), token(others[1], -2.5)];
            one["top_logprobs"] = top.to_vec().into();
            one
        };
        // A face of four bytes in two tokens, then a letter.
        let list = [
            with(&[0xf0, 0x9f], [&[0xf0], b"a"]),
            with(&[0x98, 0x80], [&[0x98], &[0x99]]),
            with(b"b", [b"a", b"c"]),
        ];
        let (mut begun, mut in_pieces) = (0, 0);
        let whole = older(&list, &mut begun);
        assert_eq!(whole["tokens"], json!(["bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "b"]));
        assert_eq!(whole["text_offset"], json!([0, 0, 1]));
        let tops = whole["top_logprobs"].as_array().expect("a list");
        assert!(
            tops.iter().all(|top| top.as_object().is_some_and(|top| top.len() == 3)),
            "{tops:?}"
        );
        assert_eq!(tops[0]["bytes:\\xf0\\x9f"], -0.5);
        // A stream goes on where it was.
        let pieces = list.iter().map(|one| older(std::slice::from_ref(one), &mut in_pieces));
        let offsets: Vec<Value> = pieces.map(|piece| piece["text_offset"][0].clone()).collect();
        assert_eq!(json!(offsets), whole["text_offset"]);
        assert_eq!((begun, in_pieces), (2, 2));
    }
}
