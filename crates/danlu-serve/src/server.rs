//! Starting, serving and stopping.

use crate::app::App;
use crate::catalogue::{Catalogue, Host};
use crate::engine::Limits;
use crate::http::keys::Keys;
use crate::options::Options;
use crate::routes;
use danlu_core::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Stack of the threads that work beside the model, in bytes: schemas nest.
const STACK: usize = 8 << 20;

/// A server that listens.
pub struct Server {
    /// Where.
    pub address: SocketAddr,
    app: Arc<App>,
    runtime: Runtime,
    serving: JoinHandle<()>,
    loading: std::thread::JoinHandle<Result<()>>,
}

impl Server {
    /// Listens at once, and loads what may be asked meanwhile: until then `/ready` says no.
    pub fn start(
        options: Options,
        load: impl FnOnce(&Host) -> Result<Catalogue> + Send + 'static,
    ) -> Result<Self> {
        let keys = match &options.keys {
            Some(path) => Keys::load(path)?,
            None => Keys::default(),
        };
        let at = SocketAddr::new(options.host, options.port);
        let limits = Limits { queue: options.max_queue, batch: options.max_batch };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(16)
            .thread_stack_size(STACK)
            .enable_all()
            .build()
            .map_err(|e| Error::Other(format!("the server's threads could not start: {e}")))?;
        let busy = |e| Error::Other(format!("cannot listen on {at}: {e}"));
        let listener = runtime.block_on(TcpListener::bind(at)).map_err(busy)?;
        let address = listener.local_addr().map_err(busy)?;
        let app = Arc::new(App::new(options, keys));
        let router = routes::router(app.clone());
        let serving = runtime.spawn(crate::net::serve(listener, router, app.clone()));
        let host = Host { limits, metrics: app.metrics.clone() };
        let shared = app.clone();
        let loading = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                shared.loaded(load(&host)?);
                tracing::info!("ready");
                Ok(())
            })
            .map_err(|e| Error::Other(format!("the loading thread could not start: {e}")))?;
        tracing::info!(%address, "listening");
        Ok(Self { address, app, runtime, serving, loading })
    }

    /// Waits until everything is loaded.
    pub fn loaded(&mut self) -> Result<()> {
        let done = std::thread::spawn(|| Ok(()));
        joined(std::mem::replace(&mut self.loading, done))
    }

    /// What `/metrics` shows.
    pub fn metrics(&self) -> String {
        self.app.metrics.text()
    }

    /// Takes no more requests; those that run may end. Then the server is gone.
    pub fn stop(self) {
        self.app.drain();
        // The task ends by itself within the time to drain.
        let _ = self.runtime.block_on(self.serving);
        self.runtime.shutdown_background();
    }

    /// Serves until the process is told to end (SIGTERM, or Ctrl-C): the first time replies may
    /// end, the second time they may not. At SIGHUP the file of keys is read again. Both are heard
    /// while it loads too.
    pub fn run(self) -> Result<()> {
        let Self { app, runtime, serving, loading, .. } = self;
        let ended = runtime.block_on(async move {
            let mut signals = Signals::new()?;
            let mut loading = tokio::task::spawn_blocking(move || joined(loading));
            let mut loads = true;
            loop {
                tokio::select! {
                    told = signals.next() => match told {
                        Told::End => break,
                        Told::Reload => reload(&app),
                    },
                    done = &mut loading, if loads => {
                        loads = false;
                        done.unwrap_or_else(|_| Err(panicked()))?;
                    }
                }
            }
            tracing::info!("stopping: replies that run may end");
            app.drain();
            tokio::select! {
                _ = serving => tracing::info!("stopped"),
                () = signals.end() => tracing::warn!("stopped at once"),
            }
            Ok(())
        });
        // What still loads is not waited for.
        runtime.shutdown_background();
        ended
    }
}

/// How loading ended.
fn joined(loading: std::thread::JoinHandle<Result<()>>) -> Result<()> {
    loading.join().unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    Error::Other("loading the model panicked".into())
}

/// Reads the file of keys again.
fn reload(app: &App) {
    match &app.options.keys {
        Some(path) => match app.keys.reload(path) {
            Ok(count) => tracing::info!(count, "keys were read again"),
            Err(error) => tracing::error!(%error, "keys stay as they were"),
        },
        None => tracing::info!("there are no keys to read again"),
    }
}

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    End,
    Reload,
}

struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hup: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |e| Error::Other(format!("signals cannot be listened to: {e}"));
        Ok(Self {
            term: signal(SignalKind::terminate()).map_err(failed)?,
            int: signal(SignalKind::interrupt()).map_err(failed)?,
            hup: signal(SignalKind::hangup()).map_err(failed)?,
        })
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::End,
            _ = self.int.recv() => Told::End,
            _ = self.hup.recv() => Told::Reload,
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> Told {
        // Without a handler there is nothing to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Told::End
    }

    /// Waits for the next signal to end.
    async fn end(&mut self) {
        while self.next().await != Told::End {}
    }
}
