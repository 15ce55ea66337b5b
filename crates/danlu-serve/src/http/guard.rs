//! Around every route: which hosts and origins are spoken to, who may ask, a panic becomes an
//! error, and a line in the log without any content.

use super::error::{Answer, ApiError};
use super::keys::{Owner, Permit};
use super::rest::{Patience, Rest};
use crate::app::App;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use hyper::body::{Body as _, Frame, SizeHint};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Longest time that the rest of a refused body is read for.
const REST: Duration = Duration::from_secs(5);

/// What the accept loop knows of a request's connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) _busy: Busy,
    /// A head with both Content-Length and Transfer-Encoding was seen.
    pub(crate) two_lengths: bool,
}

/// Counts a request of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<AtomicUsize>);

impl Busy {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Clone for Busy {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Paths that need no key: the page, the state of the server, what the API is.
const OPEN: [&str; 8] =
    ["/", "/app.js", "/app.css", "/icon.svg", "/health", "/ready", "/openapi.json", "/favicon.ico"];

/// Paths that are answered while the server drains.
const STATE: [&str; 3] = ["/health", "/ready", "/metrics"];

static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// The middleware.
pub(crate) async fn guard(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let start = Instant::now();
    let connection = request.extensions_mut().remove::<Connection>();
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let unread = !matches!(request.body().size_hint().exact(), Some(0));
    let patience = Patience {
        bytes: 2 * app.options.max_body,
        time: app.options.body_time.min(REST),
        waits: request.headers().contains_key(header::EXPECT),
    };
    let request = request.map(|body| Body::new(Rest::new(body, patience)));
    let mut owner = None;
    let (mut response, permit) = match check(&app, &connection, &request, &mut owner) {
        Err(error) => (error.into_response(), None),
        Ok(permit) => {
            let made = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            let response =
                made.unwrap_or_else(|_| ApiError::internal("a handler panicked").into_response());
            (response, permit)
        }
    };
    let status = response.status();
    app.metrics.response(status.as_u16());
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let line = Line {
        number,
        method,
        path: crate::routes::known(&path),
        status,
        owner: owner.map(|o| o.name.clone()),
        start,
    };
    let headers = response.headers_mut();
    headers.insert("x-request-id", HeaderValue::from(number));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // What follows a body in chunks, or one that was refused unread, is not looked at.
    if chunked || (unread && !status.is_success()) || app.draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let held = (connection, permit);
    response.map(|inner| Body::new(Held::new(inner, line, held)))
}

/// What the log says of a request, once its answer has been sent or cannot be.
struct Line {
    number: u64,
    method: Method,
    path: Option<&'static str>,
    status: StatusCode,
    /// Who asked, whether or not they were let.
    owner: Option<String>,
    start: Instant,
}

impl Line {
    fn write(&self, whole: bool) {
        tracing::info!(
            request = self.number,
            method = %self.method,
            // A path that leads nowhere is the client's text.
            path = self.path.unwrap_or("(other)"),
            status = self.status.as_u16(),
            key = self.owner.as_deref().unwrap_or("none"),
            milliseconds = self.start.elapsed().as_secs_f64() * 1e3,
            whole,
            "request"
        );
    }
}

/// Whether a request may go on, and whose it is where that is known.
fn check(
    app: &App,
    connection: &Option<Connection>,
    request: &Request,
    whose: &mut Option<Arc<Owner>>,
) -> Answer<Option<Permit>> {
    if connection.as_ref().is_some_and(|c| c.two_lengths) {
        let message = "a request may not have both Content-Length and Transfer-Encoding";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
    }
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        let message = "a request may not have two Host headers";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
    }
    let coding = request.headers().get_all(header::TRANSFER_ENCODING);
    if coding.iter().any(|v| !v.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")) {
        let message = "of transfer codings chunked alone is understood";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message));
    }
    check_host(app, request)?;
    check_origin(&app.options.allowed_hosts, request.headers())?;
    if app.draining() && !STATE.contains(&request.uri().path()) {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
        return Err(error.code("stopping").retry(5));
    }
    if OPEN.contains(&request.uri().path()) {
        return Ok(None);
    }
    *whose = app.keys.owner(request.headers())?;
    whose.as_ref().map(Owner::admit).transpose()
}

/// The name in an authority like `name:port` or `[::1]:port`.
fn host_name(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _)) => name,
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// A server for this machine alone answers to this machine's names alone: a page of another origin
/// whose name was made to point here (DNS rebinding) has another. A whole address as the target says it,
/// whatever the header says.
fn check_host(app: &App, request: &Request) -> Answer<()> {
    let options = &app.options;
    if options.allowed_hosts.is_empty() && !(options.host.is_loopback() && app.keys.is_empty()) {
        return Ok(());
    }
    let told = || request.headers().get(header::HOST).and_then(|v| v.to_str().ok());
    let given = request.uri().host().or_else(told).map(host_name);
    let here = |name: &str| {
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    match given {
        Some(name) if here(name) || among(&options.allowed_hosts, name) => Ok(()),
        _ => {
            let message = "this server does not answer to that host name (see --allow-host)";
            Err(ApiError::new(StatusCode::FORBIDDEN, message).code("host_not_allowed"))
        }
    }
}

fn among(hosts: &[String], name: &str) -> bool {
    hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

/// Only our own page may ask from a browser. Behind a proxy that puts its own name for us into `Host`
/// it comes from a host that is named with `--allow-host`.
fn check_origin(hosts: &[String], headers: &HeaderMap) -> Answer<()> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let authority = origin.to_str().ok().and_then(|o| Some(o.split_once("://")?.1));
    if authority.is_some_and(|a| Some(a) == host || among(hosts, host_name(a))) {
        return Ok(());
    }
    let message = "requests from pages of other origins are not answered";
    Err(ApiError::new(StatusCode::FORBIDDEN, message).code("origin_not_allowed"))
}

/// Most bytes of a body that are given out at once: who takes more would have taken all of it long before
/// it is sent.
const FRAME: usize = 64 << 10;

/// A body that holds something until it has been sent, which is then told.
struct Held<T> {
    inner: Body,
    /// What is left of its last piece.
    left: Bytes,
    line: Line,
    /// It was sent to its end.
    whole: bool,
    _held: T,
}

impl<T> Held<T> {
    fn new(inner: Body, line: Line, held: T) -> Self {
        Self { inner, left: Bytes::new(), line, whole: false, _held: held }
    }

    fn ended(&self) -> bool {
        self.left.is_empty() && self.inner.is_end_stream()
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.line.write(self.whole || self.ended());
    }
}

impl<T: Unpin> hyper::body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.left.is_empty() {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            self.whole |= frame.is_none();
            let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
            match frame.into_data() {
                Ok(data) => self.left = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let most = self.left.len().min(FRAME);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(most)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, inner) = (self.left.len() as u64, self.inner.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(left));
        }
        hint.set_lower(inner.lower().saturating_add(left));
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_taken_apart() {
        for (authority, name) in
            [("localhost:80", "localhost"), ("[::1]:80", "::1"), ("a.b", "a.b"), ("", "")]
        {
            assert_eq!(host_name(authority), name);
        }
    }

    #[test]
    fn a_large_body_is_held_until_its_last_piece_is_taken() {
        let line = Line {
            number: 0,
            method: Method::GET,
            path: None,
            status: StatusCode::OK,
            owner: None,
            start: Instant::now(),
        };
        let size = 2 * FRAME + 5;
        let mut body = Held::new(Body::from(vec![b'x'; size]), line, ());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut pieces, mut taken) = (Vec::new(), 0);
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((size - taken) as u64));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else {
                panic!("it is all there")
            };
            let piece = frame.into_data().expect("data").len();
            taken += piece;
            pieces.push(piece);
        }
        assert_eq!(pieces, [FRAME, FRAME, 5]);
    }

    #[test]
    fn only_the_own_origin_passes() {
        let ask = |origin: &str| {
            let headers = [(header::HOST, "a:80"), (header::ORIGIN, origin)];
            let headers = headers.map(|(k, v)| (k, v.parse().expect("a header")));
            check_origin(&["chat.example".into()], &HeaderMap::from_iter(headers)).is_ok()
        };
        for own in ["http://a:80", "https://chat.example", "http://Chat.Example:8443"] {
            assert!(ask(own), "{own}");
        }
        let others =
            ["http://b:80", "null", "http://a:81", "http://a:80.evil", "http://x.chat.example"];
        for other in others {
            assert!(!ask(other), "{other}");
        }
    }
}
