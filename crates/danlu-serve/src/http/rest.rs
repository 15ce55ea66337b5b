//! What is left of a request's body when it was refused. A client that sends first and listens
//! later would not hear why if the connection were closed on what it still sends, so the rest is
//! read and thrown away, within limits.

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Most pieces that are thrown away.
const PIECES: usize = 65_536;

/// How much is thrown away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Most bytes.
    pub(crate) bytes: usize,
    /// Longest time.
    pub(crate) time: Duration,
    /// The client waits to be told before it sends the body (`Expect: 100-continue`).
    pub(crate) waits: bool,
}

/// A body whose rest is read once it is dropped.
pub(crate) struct Rest {
    inner: Body,
    patience: Patience,
    begun: bool,
    ended: bool,
}

impl Rest {
    pub(crate) fn new(inner: Body, patience: Patience) -> Self {
        Self { inner, patience, begun: false, ended: false }
    }
}

impl hyper::body::Body for Rest {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.begun = true;
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        self.ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        // To read a body that the client holds back would be to ask for it.
        let held_back = self.patience.waits && !self.begun;
        if self.ended || held_back || self.inner.is_end_stream() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (mut body, patience) = (std::mem::take(&mut self.inner), self.patience);
        runtime.spawn(tokio::time::timeout(patience.time, async move {
            let mut left = patience.bytes;
            for _ in 0..PIECES {
                let Some(Ok(frame)) = body.frame().await else { return };
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let Some(rest) = left.checked_sub(bytes) else { return };
                left = rest;
            }
        }));
    }
}
