//! What all handlers share.

use crate::catalogue::Catalogue;
use crate::http::body::Buffered;
use crate::http::error::{Answer, ApiError};
use crate::http::keys::Keys;
use crate::metrics::Metrics;
use crate::options::Options;
use axum::http::StatusCode;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, watch};

/// The state of a server.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) keys: Keys,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) buffered: Arc<Buffered>,
    /// How many pictures, sounds, texts and schemas are worked on beside the model at a time.
    pub(crate) workers: Semaphore,
    /// When the server began, in seconds since 1970.
    pub(crate) started: u64,
    catalogue: OnceLock<Catalogue>,
    drain: watch::Sender<bool>,
}

impl App {
    pub(crate) fn new(options: Options, keys: Keys) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            options,
            keys,
            metrics: Arc::default(),
            buffered: Arc::default(),
            workers: Semaphore::new(threads),
            started: now(),
            catalogue: OnceLock::new(),
            drain: watch::Sender::new(false),
        }
    }

    /// Tells what may be asked, once it is loaded.
    pub(crate) fn loaded(&self, catalogue: Catalogue) {
        // There is one loader.
        let _ = self.catalogue.set(catalogue);
    }

    /// What may be asked; an error while it is loaded.
    pub(crate) fn catalogue(&self) -> Answer<&Catalogue> {
        self.catalogue.get().ok_or_else(|| {
            let message = "the model is being loaded";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("loading").retry(1)
        })
    }

    /// Whether a request would be answered now.
    pub(crate) fn ready(&self) -> bool {
        self.catalogue.get().is_some() && !self.draining()
    }

    pub(crate) fn draining(&self) -> bool {
        *self.drain.borrow()
    }

    /// Lets requests that have begun end and takes no more.
    pub(crate) fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Ends when the server drains.
    pub(crate) async fn drained(&self) {
        // The sender is a field of this value.
        let _ = self.drain.subscribe().wait_for(|drain| *drain).await;
    }

    /// Runs what takes the processor a while, off the threads that serve connections.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let _permit = self.workers.acquire().await.map_err(ApiError::internal)?;
        // A panic of the work is an error of this request alone.
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}
