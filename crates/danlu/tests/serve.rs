//! `danlu serve` as a process: signals, keys and the log. What HTTP does is tested in danlu-serve.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Serving {
    child: Child,
    address: String,
    log: std::thread::JoinHandle<String>,
}

fn reference() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/reference")
}

/// Starts the server on any port and waits until it is ready.
fn serve(more: &[&str]) -> Serving {
    let mut child = Command::new(env!("CARGO_BIN_EXE_danlu"))
        .args(["serve", "--port", "0", "--model"])
        .arg(reference())
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut log = String::new();
    let address = loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("reads") > 0, "it ended:\n{log}");
        log += &line;
        if let Some((_, rest)) = line.split_once("listening on http://") {
            break rest.split('/').next().expect("an address").to_string();
        }
    };
    let log = std::thread::spawn(move || {
        // What was said before counts too.
        lines.read_to_string(&mut log).expect("UTF-8");
        log
    });
    let serving = Serving { child, address, log };
    let start = Instant::now();
    while !ask(&serving.address, "GET", "/ready", "", "").starts_with("HTTP/1.1 200") {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not get ready");
        std::thread::sleep(Duration::from_millis(50));
    }
    serving
}

fn send(address: &str, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connects");
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).expect("writes");
    stream
}

fn ask(address: &str, method: &str, path: &str, headers: &str, body: &str) -> String {
    let mut text = String::new();
    send(address, method, path, headers, body).read_to_string(&mut text).expect("reads");
    text
}

fn chat(content: &str, more: &str) -> String {
    format!(
        "{{\"model\":\"reference\",\"messages\":[{{\"role\":\"user\",\"content\":\"{content}\"}}]{more}}}"
    )
}

const JSON: &str = "content-type: application/json\r\n";

#[cfg(unix)]
fn terminate(child: &Child) {
    let status = Command::new("kill").arg(child.id().to_string()).status().expect("runs");
    assert!(status.success());
}

/// Waits for the end.
fn ended(child: &mut Child, most: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < most {
        if child.try_wait().expect("waits").is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[cfg(unix)]
#[test]
fn sigterm_drains_and_a_second_one_ends() {
    let long = chat("Draw a cat", ",\"stream\":true,\"n\":10,\"temperature\":2");
    let mut serving = serve(&[]);
    let mut stream = send(&serving.address, "POST", "/v1/chat/completions", JSON, &long);
    let mut some = [0; 20];
    stream.read_exact(&mut some).expect("the beginning");
    terminate(&serving.child);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert!(ended(&mut serving.child, Duration::from_secs(10)));
    assert!(TcpStream::connect(&serving.address).is_err());

    let mut serving = serve(&["--drain", "600"]);
    // A request that never comes to its end keeps the first signal waiting.
    let mut stuck = TcpStream::connect(&serving.address).expect("connects");
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{JSON}");
    stuck.write_all(format!("{head}content-length: 9\r\n\r\n{{").as_bytes()).expect("writes");
    std::thread::sleep(Duration::from_millis(200));
    terminate(&serving.child);
    assert!(!ended(&mut serving.child, Duration::from_secs(1)), "it drains");
    terminate(&serving.child);
    assert!(ended(&mut serving.child, Duration::from_secs(5)));
    // After a kill it starts again: there is nothing that could be half-written.
    let mut serving = serve(&[]);
    serving.child.kill().expect("kills");
    serving.child.wait().expect("ends");
    let mut serving = serve(&[]);
    serving.child.kill().expect("kills");
    serving.child.wait().expect("ends");
}

#[cfg(unix)]
#[test]
fn the_log_has_no_content_and_no_key() {
    let made = Command::new(env!("CARGO_BIN_EXE_danlu"))
        .args(["serve", "--new-key", "alice"])
        .output()
        .expect("runs");
    let told = String::from_utf8(made.stderr).expect("UTF-8");
    let key = told.lines().find(|l| l.starts_with("danlu-")).expect("a key").to_string();
    let table = String::from_utf8(made.stdout).expect("UTF-8");
    assert!(!table.contains(&key), "the table has the hash alone");
    let path = std::env::temp_dir().join(format!("danlu-serve-keys-{}.toml", std::process::id()));
    std::fs::write(&path, table).expect("writes");
    let mut serving = serve(&["--keys", path.to_str().expect("UTF-8")]);
    let with_key = format!("{JSON}authorization: Bearer {key}\r\n");
    let body = chat("a-very-private-word", ",\"max_tokens\":3");
    let answer = ask(&serving.address, "POST", "/v1/chat/completions", &with_key, &body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let wrong = format!("{JSON}authorization: Bearer {key}x\r\n");
    let refused = ask(&serving.address, "POST", "/v1/chat/completions", &wrong, &body);
    assert!(refused.starts_with("HTTP/1.1 401") && !refused.contains(&key), "{refused}");
    ask(&serving.address, "GET", "/a-private-path?a-very-private-word", &with_key, "");
    terminate(&serving.child);
    assert!(ended(&mut serving.child, Duration::from_secs(10)));
    let log = serving.log.join().expect("read");
    assert!(log.contains("\"status\":200") && log.contains("\"key\":\"alice\""), "{log}");
    for private in ["private", key.as_str(), key.trim_start_matches("danlu-")] {
        assert!(!log.contains(private), "{private} in\n{log}");
    }
    for line in log.lines().filter(|l| !l.starts_with("listening on")) {
        assert!(line.starts_with('{') && line.ends_with('}'), "a line of JSON: {line}");
    }
    std::fs::remove_file(path).expect("removes");
}

#[test]
fn what_cannot_be_served_is_told_by_name() {
    for (arguments, want) in [
        (vec!["--host", "0.0.0.0"], "--without-keys"),
        (vec!["--model", "no/such/model"], "no/such/model"),
        (vec!["--keys", "no/such/keys"], "no/such/keys"),
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_danlu"))
            .args(["serve", "--port", "0"])
            .args(&arguments)
            .current_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && text.contains(want), "{text}");
    }
}

#[test]
fn streams_are_measured_here_and_at_any_server() {
    let mut serving = serve(&["--weights", "q8_0"]);
    let url = format!("http://{}/v1", serving.address);
    let model = reference();
    let here = ["--model", model.to_str().expect("UTF-8")];
    let there = ["--url", &url, "--name", "reference"];
    for server in [&here[..], &there] {
        let out = Command::new(env!("CARGO_BIN_EXE_danlu"))
            .args(["bench", "serve", "--json", "--streams", "2", "--requests", "5"])
            .args(["--words", "20", "--shared", "10", "--tokens", "6"])
            .args(server)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&value["requests"], &value["errors"]), (&5.into(), &0.into()), "{text}");
        let number = |name: &str| value[name].as_f64().expect(name);
        assert!((5.0..=30.0).contains(&number("completion_tokens")), "{text}");
        assert!(number("first_token_p50_s") <= number("first_token_p95_s"));
        assert!(number("first_token_p95_s") <= number("request_p95_s"));
        assert!(number("tokens_per_second") > 0.0);
        assert_eq!(value["load_seconds"].is_f64(), server[0] == "--model");
    }
    serving.child.kill().expect("kills");
    serving.child.wait().expect("ends");
}
