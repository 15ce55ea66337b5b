//! How the server is, and what its API is.

use crate::app::App;
use crate::http::error::{bytes_response, json_response};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde_json::json;
use std::sync::Arc;

/// The API as an OpenAPI document.
pub(super) const OPENAPI: &str = include_str!("../openapi.json");

/// Whether the process lives.
pub(super) async fn health() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

/// Whether a request would be answered now.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response<Body> {
    let (status, word) = match (app.ready(), app.draining()) {
        (true, _) => (StatusCode::OK, "ready"),
        (_, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
    };
    json_response(status, &json!({"status": word}))
}

/// Counters for Prometheus.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    bytes_response(StatusCode::OK, kind, app.metrics.text().into_bytes())
}

/// The OpenAPI document.
pub(super) async fn openapi() -> Response<Body> {
    bytes_response(StatusCode::OK, "application/json", OPENAPI.into())
}
