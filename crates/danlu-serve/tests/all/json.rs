//! Bodies and parameters that are not what they should be.

use crate::support::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn what_is_no_json_is_a_400_without_what_was_sent() {
    let server = server();
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let deep_object = [br#"{"a":"#.repeat(100_000), b"1".to_vec()].concat();
    let good = chat_body("ok".into(), Value::Null).to_string();
    let cut = good.as_bytes()[..good.len() - 3].to_vec();
    let with = |more: &str| good.replacen('{', &format!("{{{more},"), 1).into_bytes();
    for bad in [
        cut,
        deep,
        deep_object,
        with(r#""temperature":NaN"#),
        with(r#""temperature":1e400"#),
        with(r#""user":"\ud800""#),
        [b"{\"user\":\"secret\xff\xfe\"}".to_vec()].concat(),
        b"".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"{} {}".to_vec(),
    ] {
        let answer = post_bytes(server.address, "/v1/chat/completions", &bad);
        answer.error(400);
        assert!(!answer.text().contains("secret"), "{}", answer.text());
    }
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn odd_text_is_text() {
    let server = server();
    for odd in ["a\u{0}b", "\u{202e}olleh", "👩‍🚀🇨🇳e\u{301}", "<|end|><|assistant|><|image|>", " "]
    {
        let answer = chat(server.address, odd.into(), Value::Null);
        assert_eq!(answer.status, 200, "{odd:?}: {}", answer.text());
    }
    server.stop();
}

#[test]
fn text_that_looks_like_control_is_counted_as_text() {
    let server = server();
    let tokens = |text: &str| {
        let value = chat(server.address, text.into(), json!({"max_tokens": 1})).json();
        value["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    // Byte by byte, as any other text of the same length that the tokeniser never saw.
    assert_eq!(tokens("<|end|>"), tokens("<|xyz|>"));
    server.stop();
}

#[test]
fn every_parameter_has_its_bounds_and_its_name() {
    let server = server();
    let long = vec!["x"; 1_000];
    for (param, bad) in [
        ("n", json!(1_000_000)),
        ("n", json!(0)),
        ("n", json!(1.5)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(9_223_372_036_854_775_808u64)),
        ("max_completion_tokens", json!("many")),
        ("temperature", json!(-1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("top_k", json!(-1)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("top_logprobs", json!(21)),
        ("seed", json!(1.5)),
        ("logit_bias", json!({"99999999": 1})),
        ("logit_bias", json!({"cat": 1})),
        ("logit_bias", json!({"1": 1000})),
        ("stop", json!(long)),
        ("stop", json!("")),
        ("stop", json!(["a", ""])),
        ("stop", json!(3)),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages[0].role", json!([{"role": "robot", "content": "x"}])),
        ("messages[0].content", json!([{"role": "user"}])),
        ("messages[0].content", json!([{"role": "user", "content": []}])),
        ("messages[0].content[0].type", json!([{"role": "user", "content": [{"type": "video"}]}])),
        ("messages[0]", json!(["x"])),
        ("modalities", json!(["smell"])),
        ("response_format.type", json!({"type": "yaml"})),
        ("tool_choice", json!("required")),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("audio.voice", json!({"voice": {"id": "x"}})),
        ("audio.format", json!({"format": "mp3"})),
        ("audio.pitch", json!({"voice": "alloy", "pitch": 2})),
        ("temprature", json!(1)),
    ] {
        let mut body = chat_body("ok".into(), json!({"logprobs": true}));
        let key = param.split(['[', '.']).next().expect("a name");
        body[key] = bad.clone();
        let error = post(server.address, "/v1/chat/completions", &body).error(400);
        assert_eq!(error["param"], param, "{bad}: {error}");
    }
    for (key, bad) in [
        ("include_usage", json!("yes")),
        ("include_obfuscation", json!(true)),
        ("include_usge", json!(true)),
    ] {
        let more = json!({"stream": true, "stream_options": {key: bad}});
        let error = chat(server.address, "ok".into(), more).error(400);
        assert_eq!(error["param"], format!("stream_options.{key}"));
    }
    for missing in ["model", "messages"] {
        let mut body = chat_body("ok".into(), Value::Null);
        body.as_object_mut().expect("an object").remove(missing);
        let error = post(server.address, "/v1/chat/completions", &body).error(400);
        assert_eq!(error["param"], missing);
    }
    let more = json!({"model": "nobody"});
    let error = chat(server.address, "ok".into(), more).error(404);
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn other_endpoints_have_bounds_too() {
    let server = server();
    let a = server.address;
    for (path, param, body) in [
        ("/v1/completions", "prompt", json!({"prompt": [999_999]})),
        ("/v1/completions", "prompt", json!({"prompt": {}})),
        ("/v1/completions", "logprobs", json!({"prompt": "ok", "logprobs": 6})),
        ("/v1/completions", "best_of", json!({"prompt": "ok", "best_of": 2})),
        ("/v1/completions", "best_of", json!({"prompt": "ok", "n": 2, "best_of": 3})),
        ("/v1/completions", "suffix", json!({"prompt": "ok", "suffix": "end"})),
        ("/v1/completions", "max_tokens", json!({"prompt": "ok", "max_tokens": 0})),
        ("/v1/completions", "max_tokens", json!({"prompt": "ok", "max_tokens": -1, "echo": true})),
        ("/v1/completions", "stream_options", json!({"prompt": "ok", "stream_options": {}})),
        ("/v1/audio/speech", "instructions", json!({"input": "x", "instructions": "whisper"})),
        ("/v1/audio/speech", "stream_format", json!({"input": "x", "stream_format": "sse"})),
        ("/v1/embeddings", "input", json!({"input": [999_999]})),
        ("/v1/embeddings", "input", json!({"input": []})),
        ("/v1/embeddings", "input", json!({"input": ""})),
        ("/v1/embeddings", "input", json!({"input": vec!["a"; 2049]})),
        ("/v1/embeddings", "input", json!({"input": "ok ".repeat(1_000)})),
        ("/v1/embeddings", "encoding_format", json!({"input": "a", "encoding_format": "int8"})),
        ("/v1/images/generations", "n", json!({"prompt": "a", "n": 11})),
        ("/v1/images/generations", "size", json!({"prompt": "a", "size": "1024x1024"})),
        ("/v1/images/generations", "prompt", json!({"prompt": ""})),
        ("/v1/audio/speech", "input", json!({"input": "x".repeat(4_097)})),
        ("/v1/audio/speech", "response_format", json!({"input": "x", "response_format": "mp3"})),
        ("/v1/audio/speech", "voice", json!({"input": "x", "voice": "../x"})),
        // Over the context.
        ("/v1/audio/speech", "input", json!({"input": "x".repeat(4_000)})),
        ("/v1/images/generations", "prompt", json!({"prompt": "x".repeat(3_900)})),
    ] {
        let mut body = body;
        body["model"] = json!("tiny");
        let error = post(a, path, &body).error(400);
        assert_eq!(error["param"], param, "{path}: {error}");
    }
    for best in [json!({"best_of": 1}), json!({"n": 2, "best_of": 2})] {
        let mut body = best;
        (body["model"], body["prompt"], body["max_tokens"]) =
            (json!("tiny"), json!("ok"), json!(2));
        assert_eq!(post(a, "/v1/completions", &body).status, 200, "{body}");
    }
    server.stop();
}

#[test]
fn forms_have_bounds_too() {
    let server = server();
    let ask =
        |more: &[(&str, &str)]| crate::api::transcribe(server.address, &crate::api::wav(), more);
    for good in [
        [("seed", "42"), ("temperature", "0.5")],
        [("language", "zh"), ("chunking_strategy", "auto")],
        [("response_format", "verbose_json"), ("timestamp_granularities[]", "segment")],
    ] {
        assert_eq!(ask(&good).status, 200, "{good:?}: {}", ask(&good).text());
    }
    for (param, bad) in [
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "-1"),
        ("temperature", "hot"),
        ("seed", "1.5"),
        ("prompt", "Names: Danlu"),
        ("timestamp_granularities[]", "word"),
        ("include[]", "logprobs"),
        ("chunking_strategy", "{}"),
        ("stream", "yes"),
        ("response_format", "ass"),
        ("langage", "en"),
        ("n", "2"),
        ("file", "another"),
    ] {
        assert_eq!(ask(&[(param, bad)]).error(400)["param"], param, "{bad}");
    }
    assert_eq!(ask(&[("n", "1")]).status, 200);
    // Nothing is told that was not measured.
    let told = ask(&[("response_format", "verbose_json")]).json();
    assert!(told["language"] == "und" && told["segments"][0]["avg_logprob"].is_null(), "{told}");
    let told = ask(&[("response_format", "verbose_json"), ("language", "zh")]).json();
    assert_eq!((&told["language"], &told["duration"]), (&json!("zh"), &json!(0.5)));
    server.stop();
}

#[test]
fn a_prompt_over_the_context_is_told_so_and_quickly() {
    let server = serve(danlu_serve::Options { body_time: Duration::from_secs(20), ..options() });
    for text in ["ok hi ".repeat(200), "a".repeat(10_000_000)] {
        let start = Instant::now();
        let error = chat(server.address, text.into(), Value::Null).error(400);
        assert_eq!(error["code"], "context_length_exceeded");
        let told = error["message"].as_str().expect("text");
        let words =
            format!("This model's maximum context length is {CONTEXT} tokens. However, your");
        assert!(told.starts_with(&words), "{told}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    // A picture needs room of its own.
    let text = "a".repeat(CONTEXT - 20);
    let error =
        chat(server.address, text.into(), json!({"modalities": ["image"], "max_tokens": 99}));
    assert_eq!(error.error(400)["code"], "context_length_exceeded");
    // And more tokens than the context has are as many as it has.
    let answer = chat(server.address, "ok".into(), json!({"max_tokens": 1_000_000}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    server.stop();
}

/// Not one byte of a changed body brings the server down, and every answer has the official shape.
#[test]
fn changed_bodies_are_answered() {
    let server = server();
    let good = chat_body(
        json!([{"type": "text", "text": "ok"}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
        json!({"stop": ["a"], "logit_bias": {"1": 2}, "response_format": {"type": "text"}, "seed": 1}),
    );
    let good = good.to_string().into_bytes();
    let mut rng = danlu_core::Rng::new(1, 0);
    for _ in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len());
            match rng.below(3) {
                0 => bytes[at] = rng.below(256) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, *rng.pick(b"{}[]\",:0-\\nul\x00\xff")),
            }
        }
        let answer = post_bytes(server.address, "/v1/chat/completions", &bytes);
        if answer.status != 200 {
            answer.error(answer.status);
            assert!(answer.status < 500, "{}", answer.text());
        }
    }
    assert_healthy(server.address);
    server.stop();
}
