//! Request bodies within limits: their kind, their size with and without Content-Length, the time
//! that they take, the number of pieces they come in, and all of them together.

use super::error::{Answer, ApiError};
use crate::app::App;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pieces of one body, beyond which it is refused if they are small on average.
const MANY_PIECES: usize = 4_096;
/// What such pieces should have on average, in bytes.
const SMALL_PIECE: usize = 256;

/// Most bytes that the values of one JSON body may take beside their texts. They are many times what
/// was sent, if that is `[1,1,1,...`.
const MOST_VALUES: usize = 64 << 20;
/// Bytes of JSON from which on reading it is work for the threads beside the model.
const LONG: usize = 64 << 10;

/// Bytes of bodies in memory, all requests together.
#[derive(Debug, Default)]
pub(crate) struct Buffered(AtomicUsize);

/// A part of [`Buffered`] that is given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Arc<Buffered>,
    bytes: usize,
}

impl Share {
    pub(crate) fn new(of: &Arc<Buffered>) -> Self {
        Self { of: of.clone(), bytes: 0 }
    }

    /// Whether there is room for so many more.
    fn grow(&mut self, bytes: usize, most: usize) -> bool {
        let before = self.of.0.fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
        before + bytes <= most
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Counts one body while it is read.
struct Meter {
    share: Share,
    pieces: usize,
    most: usize,
    together: usize,
}

impl Meter {
    fn new(app: &App) -> Self {
        let (most, together) = (app.options.max_body, app.options.max_buffered);
        Self { share: Share::new(&app.buffered), pieces: 0, most, together }
    }

    fn take(&mut self, bytes: usize) -> Answer<()> {
        self.pieces += 1;
        let roomy = self.share.grow(bytes, self.together);
        if self.share.bytes > self.most {
            return Err(too_large(self.most));
        }
        if !roomy {
            return Err(overloaded());
        }
        if self.pieces > MANY_PIECES && self.share.bytes < self.pieces * SMALL_PIECE {
            let message = "the body comes in too many small pieces";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
        }
        Ok(())
    }
}

fn overloaded() -> ApiError {
    let message = "too many large requests at a time";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("overloaded").retry(1)
}

fn too_large(most: usize) -> ApiError {
    let message = format!("the body is larger than {most} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
}

/// Refuses what can be told by the head alone.
fn check_head(headers: &HeaderMap, kind: &str, most: usize) -> Answer<()> {
    let wrong = |message: String| ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
    let plain = |v: &axum::http::HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|v| !plain(v)) {
        return Err(wrong("compressed bodies are not accepted".into()));
    }
    let found = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("none");
    let essence = found.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(kind) {
        return Err(wrong(format!("expected a body of the content type {kind}")));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    match length.and_then(|v| v.parse::<usize>().ok()) {
        Some(length) if length > most => Err(too_large(most)),
        _ => Ok(()),
    }
}

fn late() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive")
}

fn broken() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "the body could not be read")
}

/// At most what the values of a JSON text take, guessed from the characters that part them: an object
/// has a node for its first few keys.
fn values(bytes: &[u8]) -> usize {
    let most = |byte: &u8| match byte {
        b'{' => 640,
        b'[' | b',' | b':' => 64,
        _ => 0,
    };
    bytes.iter().map(most).sum()
}

/// A JSON object, and its share of the memory: to be held as long as anything of it is.
pub(crate) async fn json(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Answer<(Map<String, Value>, Share)> {
    check_head(headers, "application/json", app.options.max_body)?;
    let mut meter = Meter::new(app);
    let bytes = tokio::time::timeout(app.options.body_time, whole(body, &mut meter));
    let bytes = bytes.await.map_err(|_| late())??;
    let (mut share, together) = (meter.share, meter.together);
    if bytes.len() < LONG {
        return read(&bytes, &mut share, together).map(|map| (map, share));
    }
    app.work(move || read(&bytes, &mut share, together).map(|map| (map, share))).await
}

fn read(bytes: &[u8], share: &mut Share, together: usize) -> Answer<Map<String, Value>> {
    let values = values(bytes);
    if values > MOST_VALUES {
        let message = "the body has too many values";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_json"));
    }
    if !share.grow(values, together) {
        return Err(overloaded());
    }
    let message = |e: serde_json::Error| {
        // The position helps; the words of the parser could repeat what was sent.
        format!("the body is not valid JSON (line {}, column {})", e.line(), e.column())
    };
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, message(e)).code("invalid_json"))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(ApiError::new(StatusCode::BAD_REQUEST, "the body should be a JSON object")),
    }
}

async fn whole(mut body: Body, meter: &mut Meter) -> Answer<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| broken())?.into_data() {
            meter.take(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// The fields of a multipart form: texts by name, and the file with its share of the memory.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) texts: Vec<(String, String)>,
    pub(crate) file: Option<Bytes>,
    /// To be held as long as the file is.
    pub(crate) share: Share,
}

/// Fields that a form may have.
const MAX_FIELDS: usize = 32;
/// Longest text field in bytes.
const MAX_TEXT: usize = 16 << 10;

/// A multipart form whose file is the field `file`.
pub(crate) async fn form(app: &App, headers: &HeaderMap, body: Body) -> Answer<Form> {
    check_head(headers, "multipart/form-data", app.options.max_body)?;
    tokio::time::timeout(app.options.body_time, fields(app, headers, body))
        .await
        .map_err(|_| late())?
}

async fn fields(app: &App, headers: &HeaderMap, body: Body) -> Answer<Form> {
    use axum::extract::{DefaultBodyLimit, FromRequest, Multipart};
    let meter = Arc::new(std::sync::Mutex::new((Meter::new(app), None::<ApiError>)));
    let counting = meter.clone();
    let stream = body.into_data_stream().map(move |piece| {
        let piece = piece.map_err(std::io::Error::other)?;
        let mut guard = counting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = guard.0.take(piece.len()) {
            guard.1 = Some(error);
            return Err(std::io::Error::other("over the limit"));
        }
        Ok(piece)
    });
    let mut request = axum::http::Request::new(Body::from_stream(stream));
    *request.headers_mut() = headers.clone();
    // The meter has the limit; the framework has one of its own, of 2 MB.
    DefaultBodyLimit::disable().apply(&mut request);
    let refused = |fallback: ApiError| {
        let guard = meter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guard.1.clone().unwrap_or(fallback)
    };
    let not_a_form =
        || ApiError::new(StatusCode::BAD_REQUEST, "the body is not a valid multipart form");
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| not_a_form())?;
    let (mut texts, mut file) = (Vec::new(), None);
    for _ in 0..=MAX_FIELDS {
        let Some(field) = form.next_field().await.map_err(|_| refused(not_a_form()))? else {
            let share = Share::new(&app.buffered);
            let mut guard = meter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let share = std::mem::replace(&mut guard.0.share, share);
            return Ok(Form { texts, file, share });
        };
        let name = field.name().unwrap_or_default().to_string();
        let bytes = field.bytes().await.map_err(|_| refused(not_a_form()))?;
        if name == "file" {
            if file.replace(bytes).is_some() {
                return Err(ApiError::expected(name, "one field", "two of the same name"));
            }
        } else {
            let text = (bytes.len() <= MAX_TEXT).then(|| String::from_utf8(bytes.to_vec()).ok());
            let text = text.flatten();
            let wanted = format!("UTF-8 of at most {MAX_TEXT} bytes");
            let text = text.ok_or_else(|| ApiError::expected(name.clone(), wanted, "another"))?;
            texts.push((name, text));
        }
    }
    Err(ApiError::new(StatusCode::BAD_REQUEST, format!("more than {MAX_FIELDS} fields")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::keys::Keys;
    use crate::options::Options;

    #[test]
    fn a_body_has_its_share_until_nothing_of_it_is_left() {
        let app = App::new(Options::default(), Keys::default());
        let kind = [(header::CONTENT_TYPE, "application/json".parse().expect("a header"))];
        let headers = HeaderMap::from_iter(kind);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("starts");
        let read = |text: String| runtime.block_on(json(&app, &headers, Body::from(text)));
        let taken = || app.buffered.0.load(Ordering::Acquire);
        for text in ["x".to_string(), "x".repeat(2 * LONG), "x,".repeat(LONG)] {
            let (map, share) = read(format!("{{\"a\":\"{text}\"}}")).expect("valid");
            assert_eq!(map["a"].as_str(), Some(text.as_str()));
            assert!(taken() >= text.len() + 640, "{}", taken());
            drop(share);
            assert_eq!(taken(), 0);
        }
        for many in ["1,", "[", "{\"\":0},"] {
            let error = read(format!("{{\"a\":[{}", many.repeat(1_100_000))).expect_err("too many");
            assert_eq!((error.status.as_u16(), error.code), (400, Some("invalid_json")));
            assert!(error.message.contains("too many values"), "{}", error.message);
            assert_eq!(taken(), 0);
        }
    }
}
