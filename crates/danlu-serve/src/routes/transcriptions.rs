//! Speech to text.

use crate::app::App;
use crate::ask::{Ask, Drawing, named};
use crate::catalogue::Chosen;
use crate::conversation::{Content, Told, Turn, check_modality, prompt};
use crate::http::body;
use crate::http::error::{Answer, ApiError, bytes_response, json_response};
use crate::http::fields::Fields;
use crate::reply::{Whole, wholes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use danlu_core::{Modality, Role, Sound, instruction};
use serde_json::{Map, Number, Value, json};
use std::sync::Arc;

/// The handler.
pub(super) async fn transcriptions(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let form = body::form(&app, &head.headers, body).await?;
    let mut map = Map::new();
    for (name, text) in &form.texts {
        // A form has text only; what looks like a number is one. NaN and infinity are none.
        let number = match name.as_str() {
            "seed" => text.parse::<i64>().ok().map(Value::from),
            "temperature" => text.parse().ok().and_then(Number::from_f64).map(Value::Number),
            _ => None,
        };
        map.insert(name.clone(), number.unwrap_or_else(|| Value::String(text.clone())));
    }
    let mut fields = Fields::new(map);
    let name = Fields::required("model", fields.string("model")?)?;
    let chosen = named(&app, &name)?;
    let kinds = ["json", "text", "verbose_json"];
    let format = fields.choice("response_format", &kinds)?.unwrap_or("json");
    let language = fields.string("language")?;
    // What would change the answer is not passed over.
    fields.without("prompt")?;
    fields.choice("timestamp_granularities[]", &["segment"])?;
    fields.choice("include[]", &[])?;
    fields.choice("chunking_strategy", &["auto"])?;
    let streamed = fields.string("stream")?;
    if streamed.as_deref().is_some_and(|s| s != "false" && s != "False") {
        return Err(ApiError::bad("stream", "transcriptions are not streamed"));
    }
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
    let whole = heard(&app, chosen, sound, words, drawing.once()).await?;
    let text = whole.text;
    Ok(match format {
        "text" => {
            let kind = "text/plain; charset=utf-8";
            bytes_response(StatusCode::OK, kind, format!("{text}\n").into_bytes())
        }
        "verbose_json" => {
            let segment = json!({"id": 0, "start": 0.0, "end": seconds, "text": text});
            let mut answer = json!({
                "task": "transcribe", "duration": seconds, "text": text, "segments": [segment],
            });
            // It is what was said to be spoken; nothing here finds out.
            if let Some(language) = language {
                answer["language"] = json!(language);
            }
            json_response(StatusCode::OK, &answer)
        }
        _ => json_response(StatusCode::OK, &json!({"text": text})),
    })
}

/// What the model hears in a sound.
pub(super) async fn heard(
    app: &Arc<App>,
    chosen: Chosen,
    sound: Sound,
    words: &str,
    drawing: Drawing,
) -> Answer<Whole> {
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
        schema: None,
        raw: false,
    };
    let mut replies = wholes(ask.start(app).await?).await?;
    replies.pop().ok_or_else(|| ApiError::internal("no reply to a transcription"))
}
