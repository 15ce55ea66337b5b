//! A server with a tiny model, and a client that sends whatever it is told to.

use danlu_core::recipe::{AudioRecipe, ImageRecipe, ModelRecipe};
use danlu_model::Tokenisers;
use danlu_model::arch::{Transformer, TransformerConfig};
use danlu_model::engine::{EngineOptions, Scheduler};
use danlu_model::modality::{AudioTokeniser, ImageTokeniser, TextTokeniser};
use danlu_serve::engine::Engine;
use danlu_serve::{Catalogue, Options, Server};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Context of the tiny model.
pub(crate) const CONTEXT: usize = 400;

/// Untrained tokenisers, as small as they get.
pub(crate) fn tokenisers() -> Tokenisers {
    let device = danlu_ops::cpu_device();
    let image = ImageRecipe { levels: vec![4, 3], channels: 8, blocks: 1, ..Default::default() };
    let audio =
        AudioRecipe { levels: vec![4, 3], channels: 8, blocks: 1, mels: 20, ..Default::default() };
    Tokenisers {
        text: TextTokeniser::train(["ok hi a b c ok hi"].into_iter(), 262).expect("trains"),
        foreign: None,
        chat: None,
        image: Some(ImageTokeniser::new((&image).into(), 1, &device)),
        audio: Some(AudioTokeniser::new((&audio).into(), 1, &device)),
        image_semantic: None,
        audio_semantic: None,
    }
}

/// The tiny model with the weights of a seed.
pub(crate) fn transformer(tokenisers: &Tokenisers, seed: u64) -> Transformer {
    let recipe = ModelRecipe { depth: 2, width: Some(24), head_dim: Some(6), ..Default::default() };
    let size = tokenisers.vocabulary().size();
    let config = TransformerConfig::from_recipe(&recipe, size, CONTEXT).expect("valid");
    Transformer::new(config, seed, &danlu_ops::cpu_device())
}

/// The tiny model as an engine.
pub(crate) fn engine(tokenisers: &Tokenisers, width: usize) -> Box<dyn Engine> {
    Box::new(scheduler(tokenisers, width))
}

/// The same, to add adapters to.
pub(crate) fn scheduler(tokenisers: &Tokenisers, width: usize) -> Scheduler {
    let options = EngineOptions { batch: width, chunk: 32, ..EngineOptions::default() };
    Scheduler::new(&transformer(tokenisers, 7), &options).expect("there is room")
}

/// Options of tests: any port, and patience of a second or so.
pub(crate) fn options() -> Options {
    Options {
        port: 0,
        head_time: Duration::from_millis(700),
        idle_time: Duration::from_millis(700),
        body_time: Duration::from_millis(700),
        drain_time: Duration::from_secs(20),
        ..Options::default()
    }
}

/// A server with the tiny model.
pub(crate) fn server() -> Server {
    serve(options())
}

/// The same with other options.
pub(crate) fn serve(options: Options) -> Server {
    let width = options.max_batch;
    serve_engine(options, move |t| engine(t, width))
}

/// A server with another engine.
pub(crate) fn serve_engine(
    options: Options,
    make: impl FnOnce(&Tokenisers) -> Box<dyn Engine> + Send + 'static,
) -> Server {
    let mut server = Server::start(options, move |host| {
        let tokenisers = tokenisers();
        let engine = make(&tokenisers);
        Catalogue::new(vec![host.host("tiny", tokenisers, CONTEXT, engine, Vec::new())?])
    })
    .expect("listens");
    server.loaded().expect("loads");
    server
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.text()))
    }

    /// Asserts the official shape of an error, and gives its body.
    pub(crate) fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let value = self.json();
        let error = value["error"].as_object().expect("an object").clone();
        let mut keys: Vec<&str> = error.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
        value["error"].clone()
    }
}

/// Opens a connection.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
    stream
}

/// Reads one response; `None` if the server closed without one.
pub(crate) fn read(stream: &mut TcpStream) -> Option<Response> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_string()))
        .collect();
    let mut response =
        Response { status: status.expect("a status"), headers, body: bytes[head..].to_vec() };
    let length = response.header("content-length").and_then(|v| v.parse::<usize>().ok());
    let chunked = response.header("transfer-encoding").is_some();
    let mut piece = [0; 65_536];
    let ended = |body: &[u8]| match length {
        Some(length) => body.len() >= length,
        None if chunked => body.ends_with(b"0\r\n\r\n"),
        None => false,
    };
    while !ended(&response.body) {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(n) => response.body.extend_from_slice(&piece[..n]),
        }
    }
    if chunked {
        response.body = unchunk(&response.body);
    }
    Some(response)
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[..at]);
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let end = (at + 2 + size).min(bytes.len());
        out.extend_from_slice(&bytes[at + 2..end]);
        bytes = bytes.get(end + 2..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    out
}

/// Sends bytes on a fresh connection and reads the answer.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Response> {
    let mut stream = connect(address);
    // The server may answer and close before all is written.
    let _ = stream.write_all(bytes);
    read(&mut stream)
}

/// A request with a body.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n", body.len());
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    raw(address, &bytes).expect("an answer")
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Response {
    send(address, "GET", path, &[], b"")
}

/// A JSON request.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    post_bytes(address, path, body.to_string().as_bytes())
}

pub(crate) fn post_bytes(address: SocketAddr, path: &str, body: &[u8]) -> Response {
    send(address, "POST", path, &[("content-type", "application/json")], body)
}

/// A chat request of one user message, with more fields.
pub(crate) fn chat(address: SocketAddr, content: Value, more: Value) -> Response {
    post(address, "/v1/chat/completions", &chat_body(content, more))
}

pub(crate) fn chat_body(content: Value, more: Value) -> Value {
    let mut body = serde_json::json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
    });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// The events of a streamed response, without the end.
pub(crate) fn events(response: &Response) -> Vec<Value> {
    let text = response.text();
    let lines: Vec<&str> =
        text.split("\n\n").filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(lines.last(), Some(&"[DONE]"), "{text}");
    lines[..lines.len() - 1].iter().map(|l| serde_json::from_str(l).expect("JSON")).collect()
}

/// The server still answers a good request.
pub(crate) fn assert_healthy(address: SocketAddr) {
    let response = chat(address, "ok".into(), Value::Null);
    assert_eq!(response.status, 200, "{}", response.text());
}

/// A value of `/metrics`.
pub(crate) fn metric(address: SocketAddr, name: &str) -> f64 {
    let text = get(address, "/metrics").text();
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(' ')));
    line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).expect("a metric of that name")
}

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}
