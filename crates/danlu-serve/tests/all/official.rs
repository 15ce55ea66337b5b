//! What those expect who know the official API or the standards of HTTP.

use super::api::transcribe;
use super::support::{
    chat, connect, events, options, post, raw, read, send, serve, serve_engine, server,
};
use danlu_serve::Options;
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

#[test]
fn a_sound_that_had_to_end_says_so() {
    let server = server();
    // Some end by themselves.
    let mut seen = [0, 0];
    for seed in 0..30 {
        let more = json!({
            "modalities": ["audio"], "max_tokens": 8, "seed": seed, "temperature": 1.5,
        });
        let told = chat(server.address, "Say hi".into(), more.clone()).json();
        let full = told["usage"]["completion_tokens"] == 8;
        let reason = if full { "length" } else { "stop" };
        assert_eq!(told["choices"][0]["finish_reason"], reason, "seed {seed}");
        seen[usize::from(full)] += 1;
        let mut streamed = more;
        streamed["stream"] = json!(true);
        let events = events(&chat(server.address, "Say hi".into(), streamed));
        assert_eq!(events.last().expect("one")["choices"][0]["finish_reason"], reason);
    }
    assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
    // Nothing else would tell the client of a speech: the longer the text, the less room is left.
    let ask = |words: usize, more: Value| {
        let mut body = json!({
            "model": "tiny", "input": "ok ".repeat(words), "seed": 1, "temperature": 1.5,
        });
        let more = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().expect("an object").extend(more);
        post(server.address, "/v1/audio/speech", &body)
    };
    let told = "the speech of this `input` does not fit";
    let cut = (60..400).find(|&words| ask(words, json!({})).text().contains(told));
    let cut = cut.expect("one for which there is too little room");
    assert_eq!(ask(cut, json!({})).error(400)["code"], "context_length_exceeded");
    assert_eq!(ask(cut, json!({"max_tokens": 5})).status, 200);
    server.stop();
}

#[test]
fn arguments_of_a_call_are_an_object_whether_that_is_said_or_not() {
    let server = server();
    let ask = |parameters: Value, limit: usize| {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
        let more = json!({"tools": [tool], "tool_choice": "required", "max_tokens": limit});
        chat(server.address, "ok".into(), more)
    };
    let colour = json!({"properties": {"c": {"enum": ["red", "blue"]}}, "required": ["c"], "additionalProperties": false});
    let choice = ask(colour.clone(), 60).json()["choices"][0].clone();
    let call = &choice["message"]["tool_calls"][0]["function"];
    let arguments = call["arguments"].as_str().unwrap_or_else(|| panic!("no call: {choice}"));
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    assert!(arguments["c"] == "red" || arguments["c"] == "blue", "{arguments}");
    let error = ask(json!({"type": "string"}), 60).error(400);
    assert_eq!(error["param"], "tools[0].function.parameters.type");
    // Half a call is neither a call nor something to show.
    let choice = ask(colour, 5).json()["choices"][0].clone();
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("length"))
    );
    server.stop();
}

#[test]
fn what_is_said_in_a_message_is_read_or_refused() {
    let server = server();
    let ask = |message: Value| {
        let hi = json!({"role": "user", "content": "hi"});
        let body = json!({"model": "tiny", "messages": [hi, message, hi], "max_tokens": 2});
        post(server.address, "/v1/chat/completions", &body)
    };
    let more = json!({"modalities": ["image"], "max_tokens": 100});
    let drawn =
        chat(server.address, "Draw hi".into(), more).json()["choices"][0]["message"].clone();
    let tokens = |message: Value| {
        let answer = ask(message);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["usage"]["prompt_tokens"].as_u64().expect("a number")
    };
    let empty = tokens(json!({"role": "assistant", "content": null}));
    assert!(tokens(drawn) > empty + 30, "the picture of an earlier reply is lost");
    let refusal = json!([{"type": "refusal", "refusal": "ok"}]);
    assert!(tokens(json!({"role": "assistant", "content": refusal})) > empty);
    let error =
        ask(json!({"role": "assistant", "content": null, "audio": {"id": "audio_x"}})).error(400);
    assert_eq!(error["param"], "messages[1].audio");
    let error = ask(json!({"role": "user", "content": "a", "contnet": "b"})).error(400);
    assert_eq!(error["param"], "messages[1].contnet");
    server.stop();
}

#[test]
fn transcriptions_come_as_subtitles_and_as_a_stream() {
    let server = server();
    let wav = super::api::wav();
    let ask = |more: &[(&str, &str)]| transcribe(server.address, &wav, more);
    let plain = ask(&[]).json()["text"].as_str().expect("text").to_string();
    let srt = ask(&[("response_format", "srt")]).text();
    assert!(srt.starts_with("1\n00:00:00,000 --> 00:00:0") && srt.contains(&plain), "{srt}");
    let vtt = ask(&[("response_format", "vtt")]);
    assert_eq!(vtt.header("content-type"), Some("text/vtt; charset=utf-8"));
    assert!(vtt.text().starts_with("WEBVTT\n\n00:00:00.000 --> "), "{}", vtt.text());
    let told = events(&ask(&[("stream", "true")]));
    let pieces = told.iter().filter_map(|e| e["delta"].as_str()).collect::<String>();
    let last = told.last().expect("one");
    assert_eq!((&last["type"], &last["text"]), (&json!("transcript.text.done"), &json!(plain)));
    assert_eq!(pieces, plain);
    let times = "timestamp_granularities[]";
    for order in [["word", "segment"], ["segment", "word"]] {
        let error = ask(&order.map(|w| (times, w))).error(400);
        assert_eq!(error["param"], times);
    }
    assert_eq!(ask(&[("seed", "1"), ("seed", "2")]).error(400)["param"], "seed");
    for language in ["klingon speech", "z"] {
        assert_eq!(ask(&[("language", language)]).error(400)["param"], "language");
    }
    assert_eq!(ask(&[("language", "ZH-cn")]).status, 200);
    server.stop();
}

#[test]
fn connections_are_kept_between_requests_and_not_before_the_first() {
    let (head_time, idle_time) = (Duration::from_millis(300), Duration::from_millis(1_500));
    let server = serve(Options { head_time, idle_time, ..options() });
    let get = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut silent = connect(server.address);
    let mut stream = connect(server.address);
    for _ in 0..2 {
        stream.write_all(get).expect("writes");
        assert_eq!(read(&mut stream).expect("an answer").status, 200);
        std::thread::sleep(3 * head_time);
    }
    assert!(read(&mut silent).is_none(), "nothing was asked in time");
    std::thread::sleep(idle_time);
    // Closed by now: an answer would be one to what was sent before.
    let _ = stream.write_all(get);
    assert!(read(&mut stream).is_none(), "it was silent for too long");
    server.stop();
}

#[test]
fn embeddings_that_were_begun_are_not_refused() {
    let limits = Options { max_batch: 1, max_queue: 0, ..options() };
    let server = serve_engine(limits, |t| super::support::engine(t, 1));
    let texts: Vec<String> =
        (0..60).map(|i| format!("a b c {i} {}", "ok hi ".repeat(40))).collect();
    let a = server.address;
    let body = json!({"model": "tiny", "input": texts, "dimensions": null});
    // The texts do not come first always.
    let answer = (0..50).find_map(|_| {
        let body = body.clone();
        let embed = std::thread::spawn(move || post(a, "/v1/embeddings", &body));
        // Whoever is refused here is so since the texts have the one place.
        let mut held = false;
        while !embed.is_finished() {
            held |= chat(a, "ok".into(), json!({"max_tokens": 1})).status == 429;
        }
        let answer = embed.join().expect("ends");
        held.then_some(answer)
    });
    let answer = answer.expect("they had it once");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(60));
    server.stop();
}

#[test]
fn heads_are_taken_as_the_standard_says() {
    let server = server();
    let a = server.address;
    let body = br#"{"model":"tiny","prompt":"ok","max_tokens":1}"#;
    let ask = |more: (&str, &str)| {
        send(a, "POST", "/v1/completions", &[("content-type", "application/json"), more], body)
    };
    assert_eq!(ask(("content-encoding", "identity")).status, 200);
    ask(("content-encoding", "gzip")).error(415);
    ask(("host", "localhost")).error(400);
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let text = format!("{head}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
    raw(a, text.as_bytes()).expect("an answer").error(501);
    // JSON does not tell 1 from 1.0.
    let more = json!({"model": "tiny", "prompt": "ok", "max_tokens": 1.0});
    assert_eq!(post(a, "/v1/completions", &more).status, 200);
    server.stop();
}
