//! Full queues, clients that leave, slow readers, panics, loading and stopping.

use crate::support::*;
use danlu_core::Result;
use danlu_serve::engine::{Embedding, Engine, Event, FinishReason, Job, JobId, Usage};
use danlu_serve::{Catalogue, Options, Server};
use serde_json::json;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One token a step for every job, each step taking its time; a job of a certain seed panics.
struct Slow {
    step: Duration,
    jobs: Vec<(JobId, usize, usize, u64)>,
    next: u64,
    alive: Arc<AtomicUsize>,
    panics: u64,
}

impl Slow {
    fn engine(milliseconds: u64, alive: &Arc<AtomicUsize>) -> Box<dyn Engine> {
        let step = Duration::from_millis(milliseconds);
        Box::new(Self { step, jobs: Vec::new(), next: 0, alive: alive.clone(), panics: 666 })
    }

    fn count(&self) {
        self.alive.store(self.jobs.len(), Ordering::SeqCst);
    }
}

impl Engine for Slow {
    fn add(&mut self, job: Job) -> Result<JobId> {
        let id = JobId(self.next);
        self.next += 1;
        self.jobs.push((id, 0, job.max_tokens, job.sampling.seed));
        self.count();
        Ok(id)
    }

    fn cancel(&mut self, id: JobId) {
        self.jobs.retain(|j| j.0 != id);
        self.count();
    }

    fn finish(&mut self, id: JobId) -> Option<Event> {
        let at = self.jobs.iter().position(|j| j.0 == id)?;
        let said = self.jobs.remove(at).1;
        self.count();
        Some(Event::Done {
            id,
            reason: FinishReason::Stop,
            prompt_tokens: 1,
            cached_tokens: 0,
            completion_tokens: said,
        })
    }

    fn step(&mut self) -> Vec<Event> {
        std::thread::sleep(self.step);
        assert!(!self.jobs.iter().any(|j| j.3 == self.panics), "as it was asked to");
        let mut events = Vec::new();
        for (id, said, most, _) in &mut self.jobs {
            *said += 1;
            events.push(Event::Token { id: *id, token: 65, logprob: None });
            if said == most {
                events.push(Event::Done {
                    id: *id,
                    reason: FinishReason::Length,
                    prompt_tokens: 1,
                    cached_tokens: 0,
                    completion_tokens: *said,
                });
            }
        }
        self.jobs.retain(|(_, said, most, _)| said < most);
        self.count();
        events
    }

    fn usage(&self) -> Usage {
        Usage { running: self.jobs.len(), ..Usage::default() }
    }

    fn reset(&mut self) {
        self.jobs.clear();
        self.count();
    }

    fn begin_embedding(&mut self, _: Vec<u32>) -> Result<Embedding> {
        panic!("as it was asked to")
    }

    fn embed(&mut self, _: &mut Embedding) -> Option<Vec<f32>> {
        unreachable!("nothing is begun")
    }
}

fn slow(milliseconds: u64, options: Options) -> (Server, Arc<AtomicUsize>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let shared = alive.clone();
    (serve_engine(options, move |_| Slow::engine(milliseconds, &shared)), alive)
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let (server, alive) = slow(50, Options { max_batch: 2, max_queue: 2, ..options() });
    let a = server.address;
    let long = || chat(a, "ok".into(), json!({"max_tokens": 40}));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(long)).collect();
        wait_for("four jobs", || alive.load(Ordering::SeqCst) == 4);
        let refused = chat(a, "ok".into(), json!({}));
        assert_eq!(refused.error(429)["code"], "queue_full");
        let seconds = refused.header("retry-after").and_then(|s| s.parse::<u64>().ok());
        assert!(seconds.is_some_and(|s| (1..=60).contains(&s)));
        let body = json!({"model": "tiny", "input": "ok"});
        post(a, "/v1/embeddings", &body).error(429);
        for one in running {
            assert_eq!(one.join().expect("ends").status, 200);
        }
    });
    assert_healthy(a);
    server.stop();
}

#[test]
fn more_replies_than_places_are_refused_whole() {
    let (server, alive) = slow(5, Options { max_batch: 2, max_queue: 1, ..options() });
    // They would never find room, so it is no use to come back.
    assert_eq!(chat(server.address, "ok".into(), json!({"n": 4})).error(400)["param"], "n");
    for (prompts, n, param) in [(4, 1, "prompt"), (2, 2, "n")] {
        let body = json!({"model": "tiny", "prompt": vec!["ok"; prompts], "n": n, "max_tokens": 8});
        assert_eq!(post(server.address, "/v1/completions", &body).error(400)["param"], param);
    }
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    let body = json!({"model": "tiny", "prompt": ["ok", "hi", "a"], "max_tokens": 8});
    assert_eq!(post(server.address, "/v1/completions", &body).status, 200);
    assert_eq!(chat(server.address, "ok".into(), json!({"n": 3})).status, 200);
    server.stop();
}

#[test]
fn a_spoken_reply_is_not_lost_if_nobody_can_listen_to_it() {
    let server = serve(Options { max_batch: 1, max_queue: 0, ..options() });
    let more = json!({
        "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"},
        "max_tokens": 12, "stream": true,
    });
    // The reply has the only place, so that what it says may find none.
    let answer = chat(server.address, "Say hi".into(), more);
    let deltas = events(&answer).into_iter().map(|e| e["choices"][0]["delta"]["audio"].clone());
    let audio = deltas.into_iter().find(|audio| !audio.is_null()).expect("a sound");
    assert!(audio["data"].is_string() && audio["transcript"].is_string(), "{audio}");
    server.stop();
}

fn request(body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn a_client_that_leaves_is_not_generated_for() {
    let (server, alive) = slow(20, options());
    for stream in [true, false] {
        let more = json!({"max_tokens": 150, "stream": stream});
        let mut client = connect(server.address);
        client.write_all(&request(&chat_body("ok".into(), more))).expect("writes");
        wait_for("a job", || alive.load(Ordering::SeqCst) == 1);
        if stream {
            let mut some = [0; 100];
            client.read_exact(&mut some).expect("the beginning");
        }
        let start = Instant::now();
        drop(client);
        wait_for("its end", || alive.load(Ordering::SeqCst) == 0);
        assert!(start.elapsed() < Duration::from_secs(2), "150 tokens take three seconds");
    }
    wait_for("the count", || metric(server.address, "num_requests_running") == 0.0);
    let text = get(server.address, "/metrics").text();
    assert!(text.contains("finished_reason=\"abort\"} 2"), "{text}");
    server.stop();
}

#[test]
fn a_reader_that_does_not_read_loses_its_stream() {
    let reader_time = Duration::from_millis(500);
    let (server, alive) = long(Options { reader_time, ..options() });
    let mut client = connect(server.address);
    let more = json!({"max_tokens": 900_000, "stream": true});
    client.write_all(&request(&chat_body("ok".into(), more))).expect("writes");
    wait_for("a job", || alive.load(Ordering::SeqCst) == 1);
    wait_for("its end", || alive.load(Ordering::SeqCst) == 0);
    // The engine may have made all of it by now; the reader still does not read.
    std::thread::sleep(3 * reader_time);
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    assert_healthy(server.address);
    server.stop();
}

/// A context so long that the sockets' buffers cannot take the reply.
fn long(options: Options) -> (Server, Arc<AtomicUsize>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let shared = alive.clone();
    let mut server = Server::start(options, move |host| {
        let engine = Slow::engine(0, &shared);
        let one = host.host("tiny", tokenisers(), 1_000_000, engine, Vec::new())?;
        Catalogue::new(vec![one])
    })
    .expect("listens");
    server.loaded().expect("loads");
    (server, alive)
}

#[test]
fn a_reader_who_takes_long_keeps_no_place_and_not_for_ever() {
    let (server, alive) = long(Options {
        max_batch: 1,
        max_queue: 0,
        reader_time: Duration::from_secs(1),
        reply_time: Duration::from_secs(4),
        ..options()
    });
    let start = Instant::now();
    let mut client = connect(server.address);
    let more = json!({"max_tokens": 200_000, "stream": true});
    client.write_all(&request(&chat_body("ok".into(), more))).expect("writes");
    wait_for("a job", || alive.load(Ordering::SeqCst) == 1);
    let mut slow = client.try_clone().expect("clones");
    // Never so slow that one event takes too long.
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 16_384];
        while start.elapsed() < Duration::from_secs(6) && slow.read(&mut piece).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    wait_for("its end", || alive.load(Ordering::SeqCst) == 0);
    assert_healthy(server.address);
    assert!(start.elapsed() < Duration::from_secs(4), "the reader still reads");
    reading.join().expect("ends");
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    server.stop();
}

#[test]
fn a_panic_ends_its_batch_and_nothing_else() {
    let (server, _) = slow(1, options());
    for _ in 0..2 {
        let error = chat(server.address, "ok".into(), json!({"seed": 666})).error(500);
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("server_error"), &json!("internal_error"))
        );
        assert!(!error["message"].as_str().expect("text").contains("asked to"));
        let streamed = chat(server.address, "ok".into(), json!({"seed": 666, "stream": true}));
        assert!(streamed.text().contains("data: {\"error\":"), "{}", streamed.text());
        assert_healthy(server.address);
    }
    post(server.address, "/v1/embeddings", &json!({"model": "tiny", "input": "ok"})).error(500);
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn a_reply_that_takes_too_long_is_given_up() {
    let reply_time = Duration::from_millis(300);
    let (server, alive) = slow(50, Options { reply_time, ..options() });
    let answer = chat(server.address, "ok".into(), json!({"max_tokens": 100}));
    assert_eq!(answer.error(504)["code"], "timeout");
    wait_for("its end", || alive.load(Ordering::SeqCst) == 0);
    let more = json!({"max_tokens": 100, "stream": true});
    let answer = chat(server.address, "ok".into(), more);
    assert!(answer.text().contains("\"timeout\""), "{}", answer.text());
    server.stop();
}

#[test]
fn texts_that_take_too_long_to_embed_are_given_up() {
    let server = serve(Options { reply_time: Duration::from_millis(50), ..options() });
    let body = json!({"model": "tiny", "input": vec![vec![1; 390]; 256]});
    let start = Instant::now();
    let error = post(server.address, "/v1/embeddings", &body).error(504);
    assert_eq!(error["code"], "timeout");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let body = json!({"model": "tiny", "input": [1, 2]});
    assert_eq!(post(server.address, "/v1/embeddings", &body).status, 200);
    server.stop();
}

#[test]
fn while_it_loads_it_lives_and_is_not_ready() {
    let go = Arc::new(AtomicBool::new(false));
    let waiting = go.clone();
    let mut server = Server::start(options(), move |host| {
        while !waiting.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let tokenisers = tokenisers();
        let engine = engine(&tokenisers, 2);
        Catalogue::new(vec![host.host("tiny", tokenisers, CONTEXT, engine, Vec::new())?])
    })
    .expect("listens");
    let a = server.address;
    assert_eq!((get(a, "/health").status, get(a, "/ready").status), (200, 503));
    let refused = chat(a, "ok".into(), json!({}));
    assert_eq!(refused.error(503)["code"], "loading");
    assert!(refused.header("retry-after").is_some());
    go.store(true, Ordering::SeqCst);
    server.loaded().expect("loads");
    assert_eq!(get(a, "/ready").status, 200);
    assert_healthy(a);
    server.stop();
}

/// Sends this process a signal.
#[cfg(target_os = "linux")]
fn signal(name: &str) {
    let id = std::process::id().to_string();
    let status = std::process::Command::new("kill").args([name, &id]).status().expect("runs");
    assert!(status.success());
}

/// Whether signals to end, and to read keys again, are handled by this process.
#[cfg(target_os = "linux")]
fn handled() -> bool {
    let text = std::fs::read_to_string("/proc/self/status").expect("reads");
    let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a number");
    // SIGHUP is the first bit, SIGTERM the fifteenth.
    let bits = 1 | (1 << 14);
    mask & bits == bits
}

#[cfg(target_os = "linux")]
#[test]
fn signals_are_heard_while_it_loads() {
    let go = Arc::new(AtomicBool::new(false));
    let waiting = go.clone();
    let server = Server::start(options(), move |_| {
        while !waiting.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(danlu_core::Error::Other("nobody waits for it".into()))
    })
    .expect("listens");
    let a = server.address;
    let running = std::thread::spawn(move || server.run());
    wait_for("the handlers", handled);
    signal("-HUP");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((get(a, "/health").status, get(a, "/ready").status), (200, 503));
    assert!(!running.is_finished());
    signal("-TERM");
    wait_for("the end", || running.is_finished());
    running.join().expect("no panic").expect("a clean end");
    go.store(true, Ordering::SeqCst);
}

#[test]
fn a_model_that_does_not_load_is_an_error() {
    let mut server =
        Server::start(options(), |_| Err(danlu_core::Error::Other("no such model".into())))
            .expect("listens");
    assert!(server.loaded().expect_err("fails").to_string().contains("no such model"));
    server.stop();
}

#[test]
fn stopping_lets_replies_end_and_takes_no_more() {
    let (server, alive) = slow(20, options());
    let a = server.address;
    let more = json!({"max_tokens": 100, "stream": true});
    std::thread::scope(|scope| {
        let running = scope.spawn(|| chat(a, "ok".into(), more));
        wait_for("a job", || alive.load(Ordering::SeqCst) == 1);
        let stopping = scope.spawn(|| server.stop());
        wait_for("the drain", || get(a, "/ready").status == 503);
        // Who asks meanwhile hears how it is.
        let ready = get(a, "/ready");
        assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("draining")));
        assert_eq!(ready.header("connection"), Some("close"));
        assert_eq!((get(a, "/health").status, get(a, "/metrics").status), (200, 200));
        let refused = chat(a, "ok".into(), json!({}));
        assert_eq!(refused.error(503)["code"], "stopping");
        assert!(refused.header("retry-after").is_some());
        get(a, "/v1/models").error(503);
        // One who says nothing is not waited for.
        let _silent = connect(a);
        assert_eq!(alive.load(Ordering::SeqCst), 1, "the reply still runs");
        let answer = running.join().expect("ends");
        assert_eq!(events(&answer).last().expect("one")["choices"][0]["finish_reason"], "length");
        stopping.join().expect("ends");
    });
    assert!(std::net::TcpStream::connect(a).is_err(), "nobody listens any more");
}

#[test]
fn a_batch_mixes_old_and_new_without_mixing_them_up() {
    let server = server();
    let a = server.address;
    let ask = |seed: usize| {
        let more = json!({"temperature": 1.0, "seed": seed, "max_tokens": 10 + seed});
        chat(a, "hi".into(), more).json()["choices"][0]["message"]["content"].clone()
    };
    let alone: Vec<_> = (0..12).map(ask).collect();
    std::thread::scope(|scope| {
        let together: Vec<_> = (0..12).map(|seed| scope.spawn(move || ask(seed))).collect();
        let together: Vec<_> = together.into_iter().map(|t| t.join().expect("ends")).collect();
        assert_eq!(together, alone);
    });
    server.stop();
}
