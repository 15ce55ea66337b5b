//! Speech to text.

use crate::app::App;
use crate::ask::{Ask, Drawing, named};
use crate::catalogue::Chosen;
use crate::conversation::{Content, Told, Turn, check_modality, prompt};
use crate::http::body;
use crate::http::error::{Answer, ApiError, bytes_response, json_response};
use crate::http::fields::Fields;
use crate::http::sse::Events;
use crate::reply::{Piece, Reply, Whole, whole};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use danlu_core::{Modality, Role, Sound, instruction};
use serde_json::{Map, Number, Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// The handler.
pub(super) async fn transcriptions(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let form = body::form(&app, &head.headers, body).await?;
    let mut map = Map::new();
    let mut wanted_times = Vec::new();
    for (name, text) in &form.texts {
        // A list has a field for each of its entries.
        if name == "timestamp_granularities[]" {
            wanted_times.push(text.as_str());
            continue;
        }
        // A form has text only; what looks like a number is one. NaN and infinity are none.
        let number = match name.as_str() {
            "seed" | "top_k" | "max_tokens" | "max_completion_tokens" | "n" => {
                text.parse::<i64>().ok().map(Value::from)
            }
            "temperature" | "top_p" | "min_p" | "repetition_penalty" | "presence_penalty"
            | "frequency_penalty" => {
                text.parse().ok().and_then(Number::from_f64).map(Value::Number)
            }
            _ => None,
        };
        let value = number.unwrap_or_else(|| Value::String(text.clone()));
        if map.insert(name.clone(), value).is_some() {
            let name: String = name.chars().take(64).collect();
            return Err(ApiError::expected(name, "one field", "two of the same name"));
        }
    }
    let mut fields = Fields::new(map);
    let name = Fields::required("model", fields.string("model")?)?;
    let chosen = named(&app, &name)?;
    let kinds = ["json", "text", "verbose_json", "srt", "vtt"];
    let format = fields.choice("response_format", &kinds)?.unwrap_or("json");
    let language = fields.string("language")?.filter(|code| !code.is_empty());
    if let Some(code) = &language
        && !is_code(code)
    {
        let wanted = "a code of ISO 639 such as en or zh-CN";
        return Err(ApiError::expected("language", wanted, "another text"));
    }
    // What would change the answer is not passed over.
    fields.without("prompt")?;
    if wanted_times.iter().any(|&w| w != "segment") {
        let param = "timestamp_granularities[]";
        return Err(ApiError::expected(param, "one of segment", "another word"));
    }
    fields.choice("include[]", &[])?;
    fields.choice("chunking_strategy", &["auto"])?;
    let streamed = fields.choice("stream", &["true", "True", "false", "False"])?;
    let streamed = streamed.is_some_and(|word| word.eq_ignore_ascii_case("true"));
    if streamed && !["json", "text"].contains(&format) {
        return Err(ApiError::expected("response_format", "json or text for a stream", format));
    }
    // There is room for one text in the answer.
    fields.integer("n", 1..=1)?;
    let drawing = Drawing::take(&mut fields, chosen.model.vocabulary.size())?;
    fields.finish()?;
    check_modality(&chosen.model, "model", Modality::Audio)?;
    let file = Fields::required("file", form.file)?;
    let limit = crate::conversation::max_seconds(&chosen.model);
    let share = form.share;
    let work = app.work(move || {
        let _share = share;
        crate::media::sound("file", &file, limit)
    });
    let sound = work.await?;
    let seconds = sound.seconds();
    let words = instruction::transcribe(language.as_deref());
    let reply = hear(&app, chosen, sound, words, drawing.once()).await?;
    if streamed {
        return Ok(stream(&app, reply));
    }
    let whole = whole(reply).await?;
    let text = whole.text;
    let plain = |text: String| bytes_response(StatusCode::OK, PLAIN, text.into_bytes());
    Ok(match format {
        "text" => plain(format!("{text}\n")),
        "srt" => plain(format!("1\n{} --> {}\n{text}\n\n", clock(0.0, ','), clock(seconds, ','))),
        "vtt" => {
            let (from, to) = (clock(0.0, '.'), clock(seconds, '.'));
            let head = "text/vtt; charset=utf-8";
            let words = format!("WEBVTT\n\n{from} --> {to}\n{text}\n\n");
            bytes_response(StatusCode::OK, head, words.into_bytes())
        }
        "verbose_json" => {
            // All of it is one segment. What is not known is left out.
            let segment = json!({"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": text});
            let mut answer = json!({
                "task": "transcribe", "duration": seconds, "text": text, "segments": [segment],
            });
            // It is what was said to be spoken; nothing here finds out, and clients want one (ISO 639-2:
            // undetermined).
            answer["language"] = json!(language.as_deref().unwrap_or("und"));
            json_response(StatusCode::OK, &answer)
        }
        _ => json_response(StatusCode::OK, &json!({"text": text})),
    })
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// Whether a text is a code of a language, with or without a region.
fn is_code(text: &str) -> bool {
    let mut parts = text.split(['-', '_']);
    let letters = |p: &str| p.chars().all(|c| c.is_ascii_alphabetic());
    let first = parts.next().is_some_and(|p| (2..=3).contains(&p.len()) && letters(p));
    first
        && parts.all(|p| (2..=8).contains(&p.len()) && p.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Hours, minutes, seconds and thousandths, as subtitles have them.
fn clock(seconds: f64, point: char) -> String {
    let all = (seconds * 1e3).round() as u64;
    let [h, m, s, ms] = [all / 3_600_000, all / 60_000 % 60, all / 1_000 % 60, all % 1_000];
    format!("{h:02}:{m:02}:{s:02}{point}{ms:03}")
}

/// The words as they come, and in the end all of them.
fn stream(app: &Arc<App>, mut reply: Reply) -> Response<Body> {
    let options = &app.options;
    let (events, response) = Events::channel(options.reader_time);
    // Not longer, however often the reader comes back for one event more.
    let end = Instant::now() + options.reply_time + options.reader_time;
    let told = async move {
        let mut text = String::new();
        loop {
            let event = match reply.next().await {
                Ok(Some(Piece::Text { text: more, .. })) => {
                    text += &more;
                    json!({"type": "transcript.text.delta", "delta": more})
                }
                Ok(Some(Piece::End(end))) => {
                    let usage = json!({
                        "type": "tokens", "input_tokens": end.usage.prompt,
                        "output_tokens": end.usage.completion,
                        "total_tokens": end.usage.prompt + end.usage.completion,
                    });
                    let done =
                        json!({"type": "transcript.text.done", "text": text, "usage": usage});
                    if events.send(&done).await.is_ok() {
                        events.finish().await;
                    }
                    return;
                }
                Ok(Some(Piece::Picture(_) | Piece::Sound(_))) => continue,
                Ok(None) => return,
                Err(error) => return events.fail(&error).await,
            };
            if events.send(&event).await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(tokio::time::timeout_at(end, told));
    response
}

/// What the model hears in a sound.
pub(super) async fn heard(
    app: &Arc<App>,
    chosen: Chosen,
    sound: Sound,
    words: &str,
    drawing: Drawing,
) -> Answer<Whole> {
    whole(hear(app, chosen, sound, words, drawing).await?).await
}

/// The same in the making.
async fn hear(
    app: &Arc<App>,
    chosen: Chosen,
    sound: Sound,
    words: &str,
    drawing: Drawing,
) -> Answer<Reply> {
    let at = |content| ("file".to_string(), content);
    let parts = vec![at(Content::Own(sound)), at(Content::Text(words.into()))];
    let (host, turns) = (chosen.model.clone(), vec![Turn::new(Role::User, parts)]);
    let prompt = app.work(move || prompt(&host, "file", turns, Told::default())).await?;
    let ask = Ask {
        chosen,
        prompt,
        param: "file",
        to: Some(Modality::Text),
        drawing,
        top_logprobs: None,
        echo: None,
        schema: None,
        raw: false,
    };
    let mut replies = ask.start(app).await?;
    replies.pop().ok_or_else(|| ApiError::internal("no reply to a transcription"))
}
