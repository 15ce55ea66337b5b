//! Replies that keep to a schema, and schemas that cannot be kept to.

use crate::support::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn ask(address: std::net::SocketAddr, schema: Value, seed: u64) -> Response {
    let more = json!({
        "temperature": 1.0, "seed": seed, "max_tokens": 120,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    });
    chat(address, "ok".into(), more)
}

fn text(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["choices"][0]["message"]["content"].as_str().expect("text").to_string()
}

#[test]
fn replies_keep_to_their_schema() {
    let server = server();
    let schema = json!({
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "tame": {"type": "boolean"}},
        "required": ["kind", "tame"],
        "additionalProperties": false,
    });
    for seed in 0..5 {
        let answer = ask(server.address, schema.clone(), seed);
        let value: Value = serde_json::from_str(&text(&answer)).expect("JSON");
        assert!(value["kind"] == "cat" || value["kind"] == "dog", "{value}");
        assert!(value["tame"].is_boolean());
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
    // Whatever the model says of an object, it begins as one.
    let more = json!({"response_format": {"type": "json_object"}, "max_tokens": 20});
    assert!(text(&chat(server.address, "ok".into(), more)).starts_with('{'));
    let more = json!({"response_format": {"type": "json_object"}, "modalities": ["image"]});
    chat(server.address, "ok".into(), more).error(400);
    server.stop();
}

#[test]
fn schemas_that_cannot_be_kept_to_are_400_and_nothing_runs_away() {
    let server = server();
    let groups = format!("{}a{}", "(".repeat(60_000), ")".repeat(60_000));
    for schema in [
        json!({"$ref": "http://127.0.0.1:1/x.json"}),
        json!({"$ref": "file:///etc/passwd"}),
        json!({"type": "string", "pattern": groups}),
        json!({"type": "integer", "minimum": 2, "maximum": 1}),
        json!({"type": "unicorn"}),
        json!(false),
        json!(3),
    ] {
        let answer = ask(server.address, schema, 1);
        assert_eq!(answer.error(400)["code"], "invalid_json_schema");
    }
    for schema in [
        json!({"$ref": "#"}),
        json!({"type": "string", "pattern": "foo**"}),
        json!({"type": "string", "pattern": "(a+)+b"}),
        json!({"allOf": [{"type": "string"}, {"type": "number"}]}),
    ] {
        let start = Instant::now();
        let answer = ask(server.address, schema.clone(), 1);
        assert!([200, 400].contains(&answer.status), "{schema}: {}", answer.text());
        assert!(start.elapsed() < Duration::from_secs(10), "{schema}");
    }
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn many_schemas_leave_nothing_behind() {
    let server = server();
    let one = |i: usize| ask(server.address, json!({"enum": [format!("value {i}")]}), 1);
    (0..50).for_each(|i| assert_eq!(text(&one(i)), format!("\"value {i}\"")));
    let before = resident();
    (50..400).for_each(|i| assert_eq!(one(i).status, 200));
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes more after 350 schemas");
    server.stop();
}

/// Memory of this process in bytes, where the system tells.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4_096
}

#[test]
fn a_required_tool_is_called_with_arguments_that_fit() {
    let server = server();
    let tool = json!({"type": "function", "function": {"name": "paint", "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": false,
    }}});
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "paint"}})] {
        for stream in [false, true] {
            let more = json!({
                "tools": [tool], "tool_choice": choice, "stream": stream, "max_tokens": 60,
            });
            let answer = chat(server.address, "ok".into(), more);
            let (call, reason) = if stream {
                let events = events(&answer);
                let calls = events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]);
                let call = calls.into_iter().find(|c| !c.is_null()).expect("a call").clone();
                let last = events.last().expect("an event").clone();
                let first = &events[0]["choices"][0]["delta"];
                assert!(first["content"].is_null() && first["role"] == "assistant", "{first}");
                (call, last["choices"][0]["finish_reason"].clone())
            } else {
                let choice = answer.json()["choices"][0].clone();
                assert_eq!(choice["message"]["content"], Value::Null);
                (choice["message"]["tool_calls"][0].clone(), choice["finish_reason"].clone())
            };
            assert_eq!((&call["function"]["name"], reason), (&json!("paint"), json!("tool_calls")));
            let arguments = call["function"]["arguments"].as_str().expect("text");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            assert!(arguments["colour"] == "red" || arguments["colour"] == "blue");
        }
    }
    server.stop();
}

#[test]
fn with_tools_text_is_streamed_as_without() {
    let server = server();
    let tool = json!({"type": "function", "function": {"name": "paint"}});
    let mut texts = Vec::new();
    for stream in [false, true] {
        let more = json!({
            "tools": [tool], "stream": stream, "logprobs": true, "max_tokens": 30,
            "temperature": 1.0, "seed": 3,
        });
        let answer = chat(server.address, "ok".into(), more);
        if !stream {
            let choice = answer.json()["choices"][0].clone();
            let logprobs = choice["logprobs"]["content"].as_array().expect("a list").len();
            texts
                .push((choice["message"]["content"].as_str().expect("text").to_string(), logprobs));
            continue;
        }
        let events = events(&answer);
        let choices = || events.iter().map(|e| &e["choices"][0]);
        let said = choices().filter_map(|c| c["delta"]["content"].as_str());
        let pieces = said.clone().filter(|text| !text.is_empty()).count();
        assert!(pieces > 5, "{pieces}: {}", answer.text());
        let logprobs = choices().filter_map(|c| c["logprobs"]["content"].as_array());
        texts.push((said.collect(), logprobs.map(Vec::len).sum()));
    }
    assert_eq!(texts[0], texts[1]);
    assert!(texts[0].1 > 20);
    server.stop();
}

#[test]
fn a_stop_string_may_cut_what_keeps_to_a_schema() {
    let server = server();
    let schema = json!({
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}},
        "required": ["kind"],
        "additionalProperties": false,
    });
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let tool = json!({"type": "function", "function": {"name": "paint", "parameters": schema}});
    for (stop, before, more) in [
        ("kind", "{\"", json!({"response_format": form})),
        (
            "\"arguments",
            "{\"name\":\"paint\",",
            json!({"tools": [tool], "tool_choice": "required"}),
        ),
    ] {
        let mut more = more;
        more["stop"] = json!(stop);
        more["max_tokens"] = json!(60);
        let answer = chat(server.address, "ok".into(), more.clone());
        assert_eq!(text(&answer), before);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
        more["stream"] = json!(true);
        let events = events(&chat(server.address, "ok".into(), more));
        let said = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        assert_eq!(said.collect::<String>(), before);
        assert_eq!(events.last().expect("one")["choices"][0]["finish_reason"], "stop");
    }
    server.stop();
}

#[test]
fn a_template_from_a_client_is_refused() {
    let server = server();
    let more = json!({"chat_template": "{% for i in range(10**9) %}{% endfor %}"});
    assert_eq!(chat(server.address, "ok".into(), more).error(400)["param"], "chat_template");
    server.stop();
}
