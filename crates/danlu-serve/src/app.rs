//! What all handlers share.

use crate::catalogue::Catalogue;
use crate::http::body::Buffered;
use crate::http::error::{Answer, ApiError, full};
use crate::http::keys::Keys;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::reply::late;
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
    /// How many pictures, sounds, texts and schemas of requests are worked on beside the model at a
    /// time, and how many may wait for that besides.
    workers: Arc<Semaphore>,
    line: Semaphore,
    /// How many pictures and sounds of replies are worked on at a time. They do not stand behind new
    /// requests.
    finishers: Arc<Semaphore>,
    /// When the server began, in seconds since 1970.
    pub(crate) started: u64,
    catalogue: OnceLock<Catalogue>,
    drain: watch::Sender<bool>,
}

impl App {
    pub(crate) fn new(options: Options, keys: Keys) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let waiting = options.max_queue + options.max_batch;
        Self {
            keys,
            metrics: Arc::default(),
            buffered: Arc::default(),
            workers: Arc::new(Semaphore::new(threads)),
            line: Semaphore::new(threads + waiting),
            finishers: Arc::new(Semaphore::new(threads)),
            options,
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

    /// Runs what takes the processor a while for a request, off the threads that serve connections.
    /// As many wait for it as may wait for the model, and as long as a reply may take.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let Ok(_place) = self.line.try_acquire() else { return Err(full(1)) };
        let done = run(&self.workers, work);
        tokio::time::timeout(self.options.reply_time, done).await.unwrap_or_else(|_| Err(late()))
    }

    /// The same for what a reply is made of.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        run(&self.finishers, work).await
    }
}

async fn run<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let permit = permits.clone().acquire_owned().await.map_err(ApiError::internal)?;
    let work = move || {
        // Work that nobody waits for any more is still work.
        let _permit = permit;
        work()
    };
    // A panic of the work is an error of this request alone.
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn work_waits_in_a_line_that_has_an_end_and_not_for_ever() {
        let reply_time = Duration::from_millis(400);
        let options = Options { max_queue: 1, max_batch: 1, reply_time, ..Options::default() };
        let app = Arc::new(App::new(options, Keys::default()));
        let threads = app.workers.available_permits();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.expect("starts");
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Arc::new(std::sync::Mutex::new(ends));
        let busy: Vec<_> = (0..threads + 2)
            .map(|_| {
                let (app, begun, ends) = (app.clone(), begun.clone(), ends.clone());
                runtime.spawn(async move {
                    let work = move || {
                        let _ = begun.send(());
                        let _ = ends.lock().expect("no panic").recv();
                        Ok(())
                    };
                    app.work(work).await
                })
            })
            .collect();
        (0..threads).for_each(|_| begins.recv().expect("every worker"));
        while app.line.available_permits() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let error = runtime.block_on(app.work(|| Ok(()))).expect_err("the line is full");
        assert_eq!((error.status.as_u16(), error.code), (429, Some("queue_full")));
        assert!(error.retry.is_some());
        // A reply that is made does not stand behind them.
        assert!(runtime.block_on(app.finish(|| Ok(()))).is_ok());
        for one in busy {
            let error = runtime.block_on(one).expect("no panic").expect_err("it takes too long");
            assert_eq!(error.code, Some("timeout"));
        }
        // Nobody waits, and the workers are still busy.
        assert_eq!(app.workers.available_permits(), 0);
        drop(end);
    }
}
