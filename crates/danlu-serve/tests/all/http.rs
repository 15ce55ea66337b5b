//! What a server meets on an open port: slow, many, huge, malformed and uninvited.

use crate::support::*;
use danlu_serve::Options;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

#[test]
fn a_head_or_body_that_dribbles_is_closed_in_time() {
    let server = server();
    for start in [
        "GET /health HTTP/1.1\r\nhost: localhost\r\n".to_string(),
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
            .to_string(),
    ] {
        let mut stream = connect(server.address);
        stream.write_all(start.as_bytes()).expect("writes");
        let begin = Instant::now();
        let mut dribbling = stream.try_clone().expect("clones");
        let dribble = std::thread::spawn(move || {
            while dribbling.write_all(b"x").is_ok() && begin.elapsed().as_secs() < 10 {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        if let Some(answer) = read(&mut stream) {
            assert_eq!(answer.status, 408, "{}", answer.text());
        }
        let mut rest = Vec::new();
        // Closed, by whichever side is told first.
        let _ = stream.read_to_end(&mut rest);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let _ = stream.shutdown(std::net::Shutdown::Both);
        dribble.join().expect("ends");
    }
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let slow = Duration::from_secs(60);
    let server = serve(Options { max_connections: 100, head_time: slow, ..options() });
    let idle: Vec<_> = (0..1_000).map(|_| connect(server.address)).collect();
    assert_healthy(server.address);
    let half = b"GET /health HTTP/1.1\r\nhost: localh";
    for mut stream in idle {
        // Most are closed by now.
        let _ = stream.write_all(half);
    }
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn bodies_over_the_limit_are_refused_with_and_without_a_length() {
    let server = serve(Options { max_body: 100_000, ..options() });
    let a = server.address;
    let big = vec![b'x'; 200_000];
    assert_eq!(post_bytes(a, "/v1/chat/completions", &big).error(413)["code"], "request_too_large");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut chunks = head.as_bytes().to_vec();
    for piece in big.chunks(5_000) {
        chunks.extend(format!("{:x}\r\n", piece.len()).bytes());
        chunks.extend_from_slice(piece);
        chunks.extend(b"\r\n");
    }
    chunks.extend(b"0\r\n\r\n");
    raw(a, &chunks).expect("an answer").error(413);
    let form = send(
        a,
        "POST",
        "/v1/audio/transcriptions",
        &[("content-type", "multipart/form-data; boundary=XX")],
        &big,
    );
    form.error(413);
    assert_healthy(a);
    server.stop();
}

#[test]
fn a_form_may_be_as_large_as_any_body() {
    let server = serve(Options { body_time: Duration::from_secs(20), ..options() });
    // What follows the samples is passed over.
    let file = [crate::api::wav(), vec![0; 3 << 20]].concat();
    let answer = crate::api::transcribe(server.address, &file, &[]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut chunks = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\n\
        content-type: multipart/form-data; boundary=XX\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec();
    let head = "--XX\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    let pieces = std::iter::repeat_n(vec![b'x'; 1 << 20], 40);
    for piece in std::iter::once(head.as_bytes().to_vec()).chain(pieces) {
        chunks.extend(format!("{:x}\r\n", piece.len()).bytes());
        chunks.extend(piece);
        chunks.extend(b"\r\n");
    }
    chunks.extend(b"9\r\n\r\n--XX--\r\n\r\n0\r\n\r\n");
    let error = raw(server.address, &chunks).expect("an answer").error(413);
    assert_eq!(error["code"], "request_too_large");
    server.stop();
}

#[test]
fn a_client_that_sends_all_before_it_listens_hears_why_it_was_refused() {
    let server = serve(Options { max_body: 4 << 20, ..options() });
    let a = server.address;
    for (kind, size, status) in [
        ("text/plain", 4 << 20, 415),
        ("application/json", 7 << 20, 413),
        ("application/json", 3 << 20, 400),
    ] {
        let mut stream = connect(a);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n\
             content-length: {size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("writes");
        for _ in 0..16 {
            // Time enough for a refusal, and a reset, to come between.
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(&vec![b'x'; size / 16]).expect("is read");
        }
        read(&mut stream).expect("an answer").error(status);
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).expect("a plain end"), 0);
    }
    // What waits to be told to send is not told to.
    let mut stream = connect(a);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n\
                expect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("writes");
    read(&mut stream).expect("an answer").error(415);
    // And there is an end to it.
    let mut stream = connect(a);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n\
                content-length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("writes");
    let piece = vec![b'x'; 1 << 20];
    assert!((0..100).any(|_| stream.write_all(&piece).is_err()), "more than the limit is not read");
    assert_healthy(a);
    server.stop();
}

#[test]
fn a_body_in_three_million_chunks_is_refused() {
    let server = serve(Options { body_time: Duration::from_secs(20), ..options() });
    let mut bytes = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
        content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..3_000_000 {
        bytes.extend(b"1\r\nx\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    let answer = raw(server.address, &bytes).expect("an answer");
    answer.error(400);
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn compressed_bodies_are_not_unpacked() {
    let server = server();
    let kind = [("content-type", "application/json"), ("content-encoding", "gzip")];
    send(server.address, "POST", "/v1/chat/completions", &kind, b"\x1f\x8b\x08").error(415);
    server.stop();
}

#[test]
fn two_lengths_in_one_request_are_refused() {
    let server = server();
    let body = chat_body("ok".into(), Value::Null).to_string();
    for lengths in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", body.len()),
        format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", body.len()),
        "content-length: 5\r\ncontent-length: 6\r\n".to_string(),
        "content-length: -1\r\n".to_string(),
    ] {
        let text = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\n{lengths}\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        let answer = raw(server.address, text.as_bytes()).expect("an answer");
        answer.error(400);
    }
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn a_huge_head_is_refused() {
    let server = server();
    let one =
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(65_536));
    raw(server.address, one.as_bytes()).expect("an answer").error(431);
    let many: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    let many = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n");
    raw(server.address, many.as_bytes()).expect("an answer").error(431);
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn what_is_no_request_is_told_so_in_json() {
    let server = server();
    for bad in ["nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\na b: c\r\n\r\n"] {
        let answer = raw(server.address, bad.as_bytes()).expect("an answer");
        answer.error(400);
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    // After a good one on the same connection too.
    let mut stream = connect(server.address);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("writes");
    assert_eq!(read(&mut stream).expect("an answer").status, 200);
    stream.write_all(b"nonsense\r\n\r\n").expect("writes");
    read(&mut stream).expect("an answer").error(400);
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn kinds_methods_and_paths_that_are_wrong_say_so() {
    let server = server();
    let a = server.address;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        send(a, "POST", "/v1/chat/completions", &[("content-type", kind)], b"{}").error(415);
    }
    send(a, "POST", "/v1/chat/completions", &[], b"{}").error(415);
    post_bytes(a, "/v1/audio/transcriptions", b"{}").error(415);
    let wrong = get(a, "/v1/chat/completions");
    wrong.error(405);
    assert_eq!(wrong.header("allow"), Some("POST"));
    let wrong = send(a, "DELETE", "/v1/models", &[], b"");
    wrong.error(405);
    assert!(wrong.header("allow").is_some_and(|allow| allow.contains("GET")));
    for path in ["/v2/models", "//v1/models", "/V1/models", "/v1/models/", "/%2e%2e/etc/passwd"] {
        get(a, path).error(404);
    }
    let kind = [("content-type", "Application/JSON; charset=utf-8")];
    let body = chat_body("ok".into(), Value::Null).to_string();
    let answer = send(a, "POST", "/v1/chat/completions", &kind, body.as_bytes());
    assert_eq!(answer.status, 200);
    server.stop();
}

#[test]
fn http_2_is_not_spoken() {
    let server = server();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = raw(server.address, preface);
    assert!(answer.is_none_or(|a| (400..=599).contains(&a.status)));
    assert_healthy(server.address);
    server.stop();
}

fn with_keys(limits: &str) -> (danlu_serve::Server, std::path::PathBuf) {
    let name = format!("danlu-keys-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    let hash = danlu_serve::hash("a-secret");
    let text = format!("[[key]]\nname = \"alice\"\nblake3 = \"{hash}\"\n{limits}\n");
    std::fs::write(&path, text).expect("writes");
    (serve(Options { keys: Some(path.clone()), ..options() }), path)
}

#[test]
fn no_way_round_the_key() {
    let (server, path) = with_keys("");
    let a = server.address;
    let json = ("content-type", "application/json");
    let body = chat_body("ok".into(), Value::Null).to_string();
    let ask = |path: &str, more: &[(&str, &str)]| {
        let headers: Vec<_> = [json].iter().chain(more).copied().collect();
        send(a, "POST", path, &headers, body.as_bytes())
    };
    let refused = ask("/v1/chat/completions", &[]);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let error = refused.error(401);
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["code"], "invalid_api_key");
    for wrong in ["Bearer a-secre", "Bearer a-secret2", "Bearer ", "Basic a-secret", "a-secret"] {
        let answer = ask("/v1/chat/completions", &[("authorization", wrong)]);
        answer.error(401);
        assert!(!answer.text().contains("a-secre"), "{}", answer.text());
    }
    for path in [
        "//v1/chat/completions",
        "/V1/chat/completions",
        "/%76%31/chat/completions",
        "/v1/../v1/chat/completions",
        "/./v1/chat/completions",
        "/health/../v1/chat/completions",
        "/v1/chat/completions?key=a-secret",
        "/v1/models",
        "/metrics",
    ] {
        ask(path, &[]).error(401);
    }
    let mut text =
        "POST http://localhost/v1/chat/completions HTTP/1.1\r\nhost: /health\r\n".to_string();
    text +=
        &format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    raw(a, text.as_bytes()).expect("an answer").error(401);
    for open in ["/", "/health", "/ready", "/openapi.json"] {
        assert_eq!(get(a, open).status, 200, "{open}");
    }
    let answer = ask("/v1/chat/completions", &[("authorization", "bearer a-secret")]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    server.stop();
    std::fs::remove_file(path).expect("removes");
}

#[test]
fn a_key_has_its_own_limits() {
    let (server, path) = with_keys("requests_per_minute = 2");
    let ask =
        || send(server.address, "GET", "/v1/models", &[("authorization", "Bearer a-secret")], b"");
    assert_eq!((ask().status, ask().status), (200, 200));
    let third = ask();
    assert_eq!(third.error(429)["code"], "rate_limit_exceeded");
    assert!(third.header("retry-after").and_then(|s| s.parse::<u64>().ok()).is_some());
    server.stop();
    std::fs::remove_file(path).expect("removes");
}

#[test]
fn pages_of_other_origins_are_not_answered() {
    let server = server();
    let a = server.address;
    let ask = |more: &[(&str, &str)]| send(a, "GET", "/v1/models", more, b"");
    assert_eq!(ask(&[("origin", "https://evil.example")]).error(403)["code"], "origin_not_allowed");
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    let answer = send(a, "OPTIONS", "/v1/chat/completions", &preflight, b"");
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(ask(&[("origin", &format!("http://{a}"))]).status, 200);
    // A name that was made to point here (DNS rebinding) is not this machine's.
    for (target, host, status) in [
        ("/v1/models", "evil.example:80", 403),
        // A whole address says which host is meant.
        ("http://evil.example/v1/models", "localhost", 403),
        ("http://localhost/v1/models", "evil.example", 200),
        ("http://[::1]:80/v1/models", "localhost", 200),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let answer = raw(a, text.as_bytes()).expect("an answer");
        assert_eq!(answer.status, status, "{target} {host}: {}", answer.text());
        if status == 403 {
            assert_eq!(answer.error(403)["code"], "host_not_allowed");
        }
    }
    server.stop();
}

#[test]
fn a_connection_serves_several_requests() {
    let server = server();
    let mut stream = connect(server.address);
    let body = chat_body("ok".into(), json!({"max_tokens": 2})).to_string();
    for _ in 0..3 {
        let text = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).expect("writes");
        assert_eq!(read(&mut stream).expect("an answer").status, 200);
    }
    server.stop();
}
