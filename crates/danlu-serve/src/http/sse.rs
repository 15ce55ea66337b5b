//! Server-sent events with a bounded buffer: a reader who is slow slows its own reply down, and one
//! who does not read for too long loses it.

use super::error::ApiError;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events between a reply and its reader.
const BUFFER: usize = 16;

/// The writing end.
pub(crate) struct Events {
    sender: mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
    patience: Duration,
}

/// The reader has gone, or does not read.
#[derive(Debug)]
pub(crate) struct Gone;

impl Events {
    /// The writing end and the response that is read from it. A reader may take `patience` for one
    /// event.
    pub(crate) fn channel(patience: Duration) -> (Self, Response<Body>) {
        let (sender, mut receiver) = mpsc::channel(BUFFER);
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let mut response = Response::new(Body::from_stream(stream));
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Proxies that would hold the events back are told not to.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        (Self { sender, patience }, response)
    }

    async fn line(&self, text: String) -> Result<(), Gone> {
        let bytes = Bytes::from(format!("data: {text}\n\n"));
        let sent = tokio::time::timeout(self.patience, self.sender.send(Ok(bytes))).await;
        if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(Gone) }
    }

    /// Sends an event.
    pub(crate) async fn send(&self, value: &Value) -> Result<(), Gone> {
        self.line(value.to_string()).await
    }

    /// Tells the reader of an error; the stream ends there.
    pub(crate) async fn fail(self, error: &ApiError) {
        tracing::warn!(
            status = error.status.as_u16(),
            code = error.code,
            "a stream ended with an error"
        );
        // If the reader has gone, there is nobody to tell.
        let _ = self.send(&error.json()).await;
    }

    /// Says that this was all.
    pub(crate) async fn finish(self) {
        let _ = self.line("[DONE]".into()).await;
    }

    /// Ends when the reader has gone.
    pub(crate) async fn gone(&self) {
        self.sender.closed().await;
    }
}
