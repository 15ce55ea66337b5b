//! Pictures of a prompt.

use crate::app::{App, now};
use crate::ask::{Ask, Drawing, IGNORED, model};
use crate::conversation::{Told, Turn, check_modality, prompt};
use crate::http::body;
use crate::http::error::{Answer, ApiError, json_response};
use crate::http::fields::Fields;
use crate::media::to_base64;
use crate::reply::wholes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use danlu_core::{Modality, Role, instruction};
use serde_json::json;
use std::sync::Arc;

/// Most characters of a prompt.
const MAX_PROMPT: usize = 4_000;

/// The handler.
pub(super) async fn images(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let (map, share) = body::json(&app, &head.headers, body).await?;
    let mut fields = Fields::new(map);
    let chosen = model(&app, &mut fields)?;
    let text = Fields::required("prompt", fields.string("prompt")?)?;
    if text.is_empty() || text.chars().count() > MAX_PROMPT {
        let wanted = format!("1 to {MAX_PROMPT} characters");
        return Err(ApiError::expected("prompt", wanted, text.chars().count()));
    }
    fields.choice("size", &["64x64", "auto"])?;
    fields.choice("response_format", &["b64_json"])?;
    fields.choice("output_format", &["png"])?;
    fields.integer("partial_images", 0..=0)?;
    if fields.flag("stream")? == Some(true) {
        return Err(ApiError::bad("stream", "pictures are not streamed"));
    }
    fields.pass_over(&["quality", "style", "background", "moderation"]);
    fields.pass_over(&IGNORED);
    let drawing = Drawing::take(&mut fields, chosen.model.vocabulary.size())?;
    fields.finish()?;
    check_modality(&chosen.model, "model", Modality::Image)?;
    let turns = vec![Turn::text(Role::User, "prompt", instruction::draw(&text))];
    let host = chosen.model.clone();
    let work = app.work(move || {
        let _share = share;
        prompt(&host, "prompt", turns, Told::default())
    });
    let prompt = work.await?;
    let ask = Ask {
        chosen,
        prompt,
        param: "prompt",
        to: Some(Modality::Image),
        drawing,
        top_logprobs: None,
        echo: None,
        schema: None,
        raw: false,
    };
    let replies = wholes(ask.start(&app).await?).await?;
    let data: Vec<_> = replies
        .iter()
        .flat_map(|r| &r.pictures)
        .map(|picture| json!({"b64_json": to_base64(&danlu_media::encode_png(picture))}))
        .collect();
    let answer = json!({"created": now(), "data": data, "size": "64x64", "output_format": "png"});
    Ok(json_response(StatusCode::OK, &answer))
}
