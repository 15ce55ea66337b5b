//! The listening socket: an accept loop of our own, for what a ready-made one does not have: a limit
//! on the time of a request's head, a cap on connections that favours those who ask something, and
//! a stop that lets replies end.

mod connections;
mod files;
mod head;

use crate::app::App;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use connections::Connections;
use head::Watched;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tower::ServiceExt;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 32 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// Time that a connection without a request has left when the server begins to drain: who has just
/// come is to hear how it is.
const GRACE: Duration = Duration::from_millis(200);
/// How often is looked whether a connection was silent for too long, at least.
const TICK: Duration = Duration::from_secs(1);
/// Time after which another connection is accepted where one could not be.
const PAUSE: Duration = Duration::from_millis(50);

/// As many connections as were asked for, or as the process may have files for.
fn most_connections(app: &App) -> usize {
    let asked = app.options.max_connections;
    match files::most_connections() {
        Some(most) if most < asked => {
            tracing::warn!(asked, most, "fewer connections: the limit of open files is low");
            most
        }
        _ => asked,
    }
}

/// Serves connections until the server drains, then until those of before have ended or the time to
/// drain is over. Who comes meanwhile is told so: a balancer that asks `/ready` is to hear that it
/// should go elsewhere, and not that nobody is there.
pub(crate) async fn serve(listener: TcpListener, router: Router, app: Arc<App>) {
    let connections = Arc::new(Connections::new(most_connections(&app)));
    let drained = async {
        app.drained().await;
        let next = connections.next();
        let ended = connections.ended(next);
        if tokio::time::timeout(app.options.drain_time, ended).await.is_err() {
            tracing::warn!(open = connections.open(next), "the time to drain is over");
        }
    };
    let mut drained = pin!(drained);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drained.as_mut() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                // A small reply leaves at once.
                let _ = stream.set_nodelay(true);
                let (router, app, connections) = (router.clone(), app.clone(), connections.clone());
                tokio::spawn(connection(stream, router, app, connections));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                let room = async { files::too_many(&error) && connections.make_room().await };
                if !tokio::time::timeout(PAUSE, room).await.unwrap_or(false) {
                    // Some will close.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    app: Arc<App>,
    connections: Arc<Connections>,
) {
    let Some(slot) = connections.enter() else {
        tracing::warn!("every connection is busy: one more is turned away");
        return;
    };
    let busy = slot.busy.clone();
    let (stream, seen) = Watched::new(stream, busy.clone());
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        let extensions = request.extensions_mut();
        extensions.insert(crate::http::guard::Connection {
            _busy: crate::http::guard::Busy::new(&busy),
            two_lengths: seen.two_lengths(),
        });
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // It would hold the time between requests to that of a head; see below.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_buf_size(2 * MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // One that comes while the server drains is closed by its first answer.
    let mut asked = app.draining();
    let drained = async {
        app.drained().await;
        tokio::time::sleep(GRACE).await;
    };
    let mut drained = pin!(drained);
    let (head_time, idle_time) = (app.options.head_time, app.options.idle_time);
    // What the system keeps of an answer is long on its way to a slow reader, and nothing moves here.
    let full_time = idle_time.max(app.options.reply_time);
    let tick = (head_time.min(idle_time) / 8).clamp(Duration::from_millis(1), TICK);
    let mut clock = tokio::time::interval(tick);
    let (mut last, mut since) = ((seen.head(), seen.written()), Instant::now());
    loop {
        tokio::select! {
            now = clock.tick() => {
                let (head, full) = (seen.head(), seen.full());
                let seen = (head, seen.written());
                if seen != last || (slot.asks() && !full) {
                    (last, since) = (seen, now);
                }
                let most = match (full, head.1) {
                    (true, _) => full_time,
                    (false, true) => head_time,
                    (false, false) => idle_time,
                };
                if now - since >= most {
                    return;
                }
            }
            // How a connection ends is the client's affair.
            _ = connection.as_mut() => return,
            () = slot.evicted() => return,
            () = drained.as_mut(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
