//! Texts to vectors: the mean of the model's normalised hidden states, of length 1.

use crate::app::App;
use crate::ask::{model, refused};
use crate::catalogue::Hosted;
use crate::conversation::check_text;
use crate::http::body;
use crate::http::error::{Answer, ApiError, json_response};
use crate::http::fields::{Fields, kind};
use crate::media::to_base64;
use crate::reply::late;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use danlu_model::prompt::Template;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::Instant;

/// Most texts of a request.
const MAX_TEXTS: usize = 2048;

/// The handler.
pub(super) async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let (map, share) = body::json(&app, &head.headers, body).await?;
    let mut fields = Fields::new(map);
    let chosen = model(&app, &mut fields)?;
    let input = Fields::required("input", fields.take("input"))?;
    let base64 = fields.choice("encoding_format", &["float", "base64"])? == Some("base64");
    fields.pass_over(&["user"]);
    fields.finish()?;
    if chosen.adapter.is_some() {
        let message = "embeddings are of the base model; ask it by its name";
        return Err(ApiError::bad("model", message));
    }
    let host = chosen.model.clone();
    let work = app.work(move || {
        let _share = share;
        ids(&host, &input)
    });
    let texts = work.await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let deadline = Instant::now() + app.options.reply_time;
    // One for all of them, so that what was begun is not refused.
    let place = chosen.model.thread.place().map_err(|r| refused("input", r))?;
    let mut data = Vec::with_capacity(texts.len());
    for (i, text) in texts.into_iter().enumerate() {
        let made = tokio::time::timeout_at(deadline, chosen.model.thread.embed(text, &place)).await;
        let vector = made.map_err(|_| late())?.map_err(|r| refused("input", r))??;
        let embedding = if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
            Value::String(to_base64(&bytes))
        } else {
            json!(vector)
        };
        data.push(json!({"object": "embedding", "index": i, "embedding": embedding}));
    }
    app.metrics.tokens(tokens, 0, 0);
    let answer = json!({
        "object": "list",
        "data": data,
        "model": chosen.model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// The ids of a text, a list of texts, a list of ids or a list of lists of ids.
pub(super) fn ids(model: &Hosted, input: &Value) -> Answer<Vec<Vec<u32>>> {
    let list = match input {
        Value::Array(list) if list.first().is_some_and(Value::is_number) => vec![input],
        Value::Array(list) => list.iter().collect(),
        Value::String(_) => vec![input],
        other => {
            let wanted = "a text, a list of texts, or token ids";
            return Err(ApiError::expected("input", wanted, kind(other)));
        }
    };
    if list.is_empty() || list.len() > MAX_TEXTS {
        let wanted = format!("1 to {MAX_TEXTS} texts");
        return Err(ApiError::expected("input", wanted, list.len()));
    }
    list.into_iter()
        .map(|one| {
            let ids = text_or_ids(model, "input", one)?;
            let wanted = format!("1 to {} tokens in each text", model.context);
            let wrong = || ApiError::expected("input", wanted, ids.len());
            match ids.len() {
                0 => Err(wrong()),
                n if n > model.context => Err(wrong().code("context_length_exceeded")),
                _ => Ok(ids),
            }
        })
        .collect()
}

/// The ids of a text or of a list of ids.
pub(super) fn text_or_ids(model: &Hosted, param: &str, value: &Value) -> Answer<Vec<u32>> {
    let size = model.vocabulary.size();
    match value {
        Value::String(text) => {
            check_text(model, param, text.len())?;
            Ok(Template::new(&model.tokenisers).text(text))
        }
        Value::Array(list) => list
            .iter()
            .map(|id| {
                let id = id.as_u64().filter(|&id| id < size as u64);
                let wanted = format!("token ids below {size}");
                id.map(|id| id as u32).ok_or_else(|| ApiError::expected(param, wanted, "another"))
            })
            .collect(),
        other => Err(ApiError::expected(param, "a string or a list of token ids", kind(other))),
    }
}
