//! The models and adapters that may be asked.

use crate::app::App;
use crate::ask::named;
use crate::catalogue::Hosted;
use crate::http::error::{Answer, json_response};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

fn entry(app: &App, model: &Hosted, id: &str) -> Value {
    let v = &model.vocabulary;
    let mut modalities = vec!["text"];
    modalities.extend((v.image > 0).then_some("image"));
    modalities.extend((v.audio > 0).then_some("audio"));
    let mut value = json!({
        "id": id,
        "object": "model",
        "created": app.started,
        "owned_by": "danlu",
        "context_length": model.context,
        "modalities": modalities,
    });
    if id != model.name {
        value["parent"] = json!(model.name);
    }
    value
}

/// All of them.
pub(super) async fn list(State(app): State<Arc<App>>) -> Answer {
    let mut data = Vec::new();
    for (model, adapters) in app.catalogue()?.list() {
        data.push(entry(&app, model, &model.name));
        data.extend(adapters.iter().map(|adapter| entry(&app, model, adapter)));
    }
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": data})))
}

/// One of them.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Answer {
    // What is no text is no name.
    let name = name.map_or_else(|_| "\u{FFFD}".to_string(), |Path(name)| name);
    let chosen = named(&app, &name)?;
    Ok(json_response(StatusCode::OK, &entry(&app, &chosen.model, &name)))
}
