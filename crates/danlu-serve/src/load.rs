//! A load generator: clients in threads of their own that ask any server of the OpenAI API for
//! streams of text, and what they measure. It speaks HTTP and knows no server.

use danlu_core::{Error, Result, Rng};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest silence of a server.
const PATIENCE: Duration = Duration::from_secs(600);

/// Common words, about one token each.
const WORDS: [&str; 48] = [
    "the", "river", "was", "old", "and", "men", "came", "from", "far", "to", "see", "it", "when",
    "a", "small", "house", "near", "water", "had", "two", "red", "doors", "but", "no", "one",
    "knew", "who", "lived", "there", "some", "said", "that", "light", "could", "be", "seen", "at",
    "night", "while", "others", "heard", "only", "wind", "over", "long", "grass", "in", "summer",
];

/// What is asked of a server, how often and by how many at a time.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where, as `http://HOST:PORT/v1`.
    pub url: String,
    /// Model to ask for.
    pub model: String,
    /// Clients at a time; each asks again as soon as it is answered.
    pub streams: usize,
    /// Requests of all clients together, after one of each that is not counted.
    pub requests: usize,
    /// Words of a prompt, about one token each.
    pub words: usize,
    /// Of these, how many every prompt begins with.
    pub shared: usize,
    /// Whether a prompt says its words twice and begins a third time, for a reply that goes on so.
    pub repeat: bool,
    /// Most tokens of a reply.
    pub tokens: usize,
    /// Of drawing; every request has a seed of its own.
    pub temperature: f64,
}

/// What was measured. The names are read by scripts and stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// Clients at a time.
    pub streams: usize,
    /// Requests that were answered to the end.
    pub requests: usize,
    /// Requests that were not.
    pub errors: usize,
    /// What became of the first of these.
    pub first_error: Option<String>,
    /// Tokens of all prompts, by the server's count.
    pub prompt_tokens: u64,
    /// Tokens of all replies, by the server's count.
    pub completion_tokens: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Tokens of replies in that time.
    pub tokens_per_second: f64,
    /// From asking to the first text, the median.
    pub first_token_p50_s: f64,
    /// The same, 95 of 100.
    pub first_token_p95_s: f64,
    /// From asking to the end, the median.
    pub request_p50_s: f64,
    /// The same, 95 of 100.
    pub request_p95_s: f64,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Answer {
    first: f64,
    whole: f64,
    prompt: u64,
    completion: u64,
}

impl Load {
    /// Asks, and waits for all answers.
    ///
    /// # Errors
    /// If the address is none, or nothing at all was answered.
    pub fn run(&self) -> Result<LoadReport> {
        let (host, path) = address(&self.url)?;
        let (next, streams) = (AtomicUsize::new(0), self.streams.max(1));
        let barrier = Barrier::new(streams + 1);
        let work = |stream: usize| {
            // Beyond all that are counted, so that no prompt comes twice.
            let warm = self.once(host, path, self.requests + stream);
            barrier.wait();
            let mut done = Vec::new();
            if warm.is_err() {
                done.push(warm);
                return done;
            }
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.requests {
                    return done;
                }
                done.push(self.once(host, path, number));
            }
        };
        let (done, seconds) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..streams).map(|i| scope.spawn(move || work(i))).collect();
            barrier.wait();
            let start = Instant::now();
            let done: Vec<_> =
                clients.into_iter().flat_map(|c| c.join().unwrap_or_default()).collect();
            (done, start.elapsed().as_secs_f64())
        });
        let errors = done.iter().filter(|d| d.is_err()).count();
        let first_error = done.iter().find_map(|d| d.as_ref().err().cloned());
        let answers: Vec<Answer> = done.into_iter().flatten().collect();
        if answers.is_empty() {
            let why = first_error.unwrap_or_else(|| "no request was made".into());
            return Err(Error::Other(format!("{}: {why}", self.url)));
        }
        let completion_tokens = answers.iter().map(|a| a.completion).sum();
        let sorted = |of: fn(&Answer) -> f64| {
            let mut all: Vec<f64> = answers.iter().map(of).collect();
            all.sort_unstable_by(f64::total_cmp);
            all
        };
        let (firsts, wholes) = (sorted(|a| a.first), sorted(|a| a.whole));
        Ok(LoadReport {
            streams,
            requests: answers.len(),
            errors,
            first_error,
            prompt_tokens: answers.iter().map(|a| a.prompt).sum(),
            completion_tokens,
            seconds,
            tokens_per_second: completion_tokens as f64 / seconds,
            first_token_p50_s: rank(&firsts, 0.5),
            first_token_p95_s: rank(&firsts, 0.95),
            request_p50_s: rank(&wholes, 0.5),
            request_p95_s: rank(&wholes, 0.95),
        })
    }

    /// The prompt of a request.
    fn prompt(&self, number: usize) -> String {
        let pick = |rng: &mut Rng, count: usize| -> String {
            (0..count).map(|_| format!("{} ", rng.pick(&WORDS))).collect()
        };
        let shared = self.shared.min(self.words);
        let own = pick(&mut Rng::new(1, number as u64), self.words - shared);
        let text = pick(&mut Rng::new(0, 0), shared) + &own;
        if !self.repeat {
            return text;
        }
        let beginning: Vec<&str> = text.split(' ').take(self.words.div_ceil(8)).collect();
        format!("{text}\n\n{text}\n\n{}", beginning.join(" "))
    }

    /// One request; an error is what to tell of it.
    fn once(&self, host: &str, path: &str, number: usize) -> std::result::Result<Answer, String> {
        let body = json!({
            "model": self.model,
            "prompt": self.prompt(number),
            "max_tokens": self.tokens,
            "temperature": self.temperature,
            "seed": number,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
        .to_string();
        let request = format!(
            "POST {path}/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let told = |e: std::io::Error| e.to_string();
        let start = Instant::now();
        let mut stream = TcpStream::connect(host).map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
        stream.write_all(request.as_bytes()).map_err(told)?;
        let mut lines = Lines::new(BufReader::new(stream)).map_err(told)?;
        if lines.status != 200 {
            let mut why = String::new();
            while let Some(line) = lines.next().map_err(told)? {
                why += &line;
            }
            let why: String = why.chars().take(300).collect();
            return Err(format!("status {}: {why}", lines.status));
        }
        let (mut first, mut usage, mut ended) = (None, Value::Null, false);
        while let Some(line) = lines.next().map_err(told)? {
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                ended = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).map_err(|e| format!("{e}: {data}"))?;
            if event["error"].is_object() {
                return Err(event["error"].to_string());
            }
            let text = event["choices"][0]["text"].as_str();
            if text.is_some_and(|t| !t.is_empty()) && first.is_none() {
                first = Some(start.elapsed().as_secs_f64());
            }
            if event["usage"].is_object() {
                usage = event["usage"].clone();
            }
        }
        let whole = start.elapsed().as_secs_f64();
        let count = |name: &str| usage[name].as_u64();
        match (ended, count("prompt_tokens"), count("completion_tokens")) {
            // A reply may end before it says anything that can be shown.
            (true, Some(prompt), Some(completion)) => {
                Ok(Answer { first: first.unwrap_or(whole), whole, prompt, completion })
            }
            (false, ..) => Err("the stream ended before [DONE]".into()),
            _ => Err("the stream had no usage".into()),
        }
    }
}

/// The host with its port, and the path before the endpoint.
fn address(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").unwrap_or_default().trim_end_matches('/');
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if host.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(Error::parameter("--url", "http://HOST:PORT/v1", url));
    }
    Ok((host, path))
}

/// The value that a share of an ascending list is at most (nearest rank).
fn rank(ascending: &[f64], share: f64) -> f64 {
    let at = (ascending.len() as f64 * share).ceil() as usize;
    ascending[at.clamp(1, ascending.len()) - 1]
}

/// A response's body, line by line.
struct Lines<R> {
    from: R,
    status: u16,
    chunked: bool,
    /// Bytes that are left of the chunk, or of the body.
    left: Option<usize>,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the head.
    fn new(mut from: R) -> std::io::Result<Self> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other("no HTTP response"))?;
        let mut lines = Self { from, status, chunked: false, left: None, bytes: Vec::new() };
        loop {
            line.clear();
            lines.from.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "transfer-encoding" => (lines.chunked, lines.left) = (true, Some(0)),
                "content-length" if !lines.chunked => lines.left = value.trim().parse().ok(),
                _ => {}
            }
        }
        Ok(lines)
    }

    /// The next line without its end; `None` after the last.
    fn next(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(at) = self.bytes.iter().position(|&b| b == b'\n') {
                let rest = self.bytes.split_off(at + 1);
                let line = std::mem::replace(&mut self.bytes, rest);
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_string()));
            }
            if !self.more()? {
                let last = std::mem::take(&mut self.bytes);
                let last = String::from_utf8_lossy(&last).trim_end().to_string();
                return Ok(Some(last).filter(|l| !l.is_empty()));
            }
        }
    }

    /// Reads some more of the body; whether there was any.
    fn more(&mut self) -> std::io::Result<bool> {
        if self.chunked && self.left == Some(0) {
            let mut line = String::new();
            // The end of the chunk before stands in front of the size, but for the first.
            while line.trim().is_empty() {
                line.clear();
                if self.from.read_line(&mut line)? == 0 {
                    return Ok(false);
                }
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            self.left = Some(size);
        }
        if self.left == Some(0) {
            return Ok(false);
        }
        let mut piece = [0; 4096];
        let most = self.left.unwrap_or(piece.len()).min(piece.len());
        let count = self.from.read(&mut piece[..most])?;
        self.left = self.left.map(|left| left - count);
        self.bytes.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            url: "http://127.0.0.1:80/v1".into(),
            model: "m".into(),
            streams: 2,
            requests: 3,
            words: 24,
            shared: 8,
            repeat: false,
            tokens: 4,
            temperature: 1.0,
        }
    }

    fn lines(response: &str) -> (u16, Vec<String>) {
        let mut lines = Lines::new(response.as_bytes()).expect("a head");
        let mut all = Vec::new();
        while let Some(line) = lines.next().expect("reads") {
            all.push(line);
        }
        (lines.status, all)
    }

    #[test]
    fn bodies_of_every_framing_come_as_lines() {
        let want = vec!["data: a".to_string(), String::new(), "data: bc".into()];
        let body = "data: a\n\ndata: bc";
        for head in ["".to_string(), format!("Content-Length: {}\r\n", body.len())] {
            let response = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
            assert_eq!(lines(&response), (200, want.clone()));
        }
        let chunks = "5\r\ndata:\r\n4;x=y\r\n a\n\n\r\n8\r\ndata: bc\r\n0\r\n\r\n";
        let response = format!("HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(lines(&response), (201, want));
        assert!(Lines::new(&b"what?"[..]).is_err());
    }

    #[test]
    fn prompts_differ_share_their_beginning_and_may_repeat_themselves() {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let (one, two) = (words(&load().prompt(1)), words(&load().prompt(2)));
        assert_eq!((one.len(), two.len()), (24, 24));
        assert_eq!(one[..8], two[..8]);
        assert_ne!(one[8..], two[8..]);
        let repeated = words(&Load { repeat: true, ..load() }.prompt(1));
        assert_eq!(repeated, [&one[..], &one, &one[..3]].concat());
    }

    #[test]
    fn ranks_and_addresses() {
        let all: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!([rank(&all, 0.5), rank(&all, 0.95), rank(&all[..1], 0.95)], [10.0, 19.0, 1.0]);
        assert_eq!(address("http://a:80/v1/").expect("one"), ("a:80", "/v1"));
        assert_eq!(address("http://a:80").expect("one"), ("a:80", ""));
        for bad in ["a:80", "https://a:80", "http://a/v1", ""] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
