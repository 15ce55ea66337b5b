//! What replies share, and that nobody can tell from what they say: the batch, known prompts,
//! guesses. And models that bring a template of their own.

use crate::api::png;
use crate::support::*;
use danlu_core::Foreign;
use danlu_model::chat::ChatTemplate;
use danlu_model::{Tokenisers, chat};
use danlu_serve::{Catalogue, Options, Server};
use serde_json::{Value, json};
use std::net::SocketAddr;

#[test]
fn a_prompt_that_begins_as_an_earlier_one_is_not_read_again() {
    let server = server();
    let ask = |words: &str| {
        let text = format!("{} {words}", "ok hi ".repeat(30));
        let value = chat(server.address, json!(text), json!({"max_tokens": 3})).json();
        let count = |v: &Value| v.as_u64().expect("a count");
        let usage = &value["usage"];
        let cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
        (cached, count(&usage["prompt_tokens"]), value["choices"].clone())
    };
    let (first, ..) = ask("a b c");
    let (other, tokens, _) = ask("c b a");
    assert_eq!(first, 0);
    assert!(other >= 64 && other < tokens, "{other} of {tokens}");
    let (again, tokens, choices) = ask("a b c");
    assert!(again > tokens - 17 && again < tokens, "{again} of {tokens}");
    let fresh = self::server();
    let text = format!("{} a b c", "ok hi ".repeat(30));
    let unknown = chat(fresh.address, json!(text), json!({"max_tokens": 3})).json();
    assert_eq!(unknown["choices"], choices);
    fresh.stop();
    server.stop();
}

/// Requests of every kind, each with its path.
fn kinds() -> Vec<(&'static str, Value)> {
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["cat", "dog"]}},
        "required": ["a"], "additionalProperties": false});
    let hot = |seed: u64| json!({"temperature": 1.0, "seed": seed, "max_tokens": 40});
    let of = |mut body: Value, more: Value| {
        body.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        body
    };
    let chat = "/v1/chat/completions";
    let repeated = "ok hi a b c ok hi a b c ok hi a b c ok hi";
    let mut all = vec![
        (chat, chat_body(json!(repeated), json!({"max_tokens": 60}))),
        (chat, chat_body(json!("hi"), hot(1))),
        (chat, chat_body(json!("hi"), of(hot(2), json!({"logprobs": true, "top_logprobs": 3})))),
        (chat, chat_body(json!("hi"), of(hot(3), json!({"presence_penalty": 1.0, "top_p": 0.9})))),
        (chat, chat_body(json!("hi"), of(hot(4), json!({"logit_bias": {"65": 8}, "min_p": 0.01})))),
        (chat, chat_body(json!("hi"), of(hot(5), json!({"stop": ["a", "b"]})))),
        (
            chat,
            chat_body(json!("draw"), json!({"modalities": ["image"], "seed": 6, "max_tokens": 90})),
        ),
        (
            chat,
            chat_body(
                json!([{"type": "text", "text": "ok"},
                    {"type": "image_url", "image_url": {"url": png()}}]),
                hot(7),
            ),
        ),
        ("/v1/completions", of(json!({"model": "tiny", "prompt": repeated}), hot(8))),
    ];
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    all.push((chat, chat_body(json!("ok"), of(hot(9), json!({"response_format": form})))));
    all
}

/// What an answer says, without what differs from time to time.
fn said(address: SocketAddr, (path, body): &(&'static str, Value)) -> Value {
    let answer = post(address, path, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut value = answer.json();
    let usage = value["usage"].as_object_mut().expect("usage");
    usage.remove("prompt_tokens_details");
    json!([value["choices"], value["usage"]])
}

#[test]
fn neither_company_nor_guesses_change_an_answer() {
    let kinds = kinds();
    let plain = serve(Options { lookup: false, max_batch: 1, ..options() });
    let alone: Vec<Value> = kinds.iter().map(|kind| said(plain.address, kind)).collect();
    let guessed = |a| metric(a, "guessed_tokens_total");
    assert_eq!(guessed(plain.address), 0.0);
    plain.stop();
    let server = server();
    // Twice: the second time every prompt is known.
    for _ in 0..2 {
        std::thread::scope(|scope| {
            let all = kinds.iter().map(|kind| scope.spawn(|| said(server.address, kind)));
            let all: Vec<_> = all.collect();
            for ((one, alone), kind) in all.into_iter().zip(&alone).zip(&kinds) {
                assert_eq!(one.join().expect("ends"), *alone, "{kind:?}");
            }
        });
    }
    let (made, right) = (guessed(server.address), metric(server.address, "guesses_right_total"));
    assert!(made > 0.0 && right <= made, "{right} of {made}");
    server.stop();
}

/// The tokenisers of an imported text model: its end is a byte of its text, `others` may end a reply
/// besides, and its template says how a conversation is written.
fn foreign(others: &str) -> Tokenisers {
    let text = tokenisers().text;
    let end = text.encode("~")[0];
    let other_ends = others.chars().map(|c| text.encode(&c.to_string())[0]).collect();
    let source = "{{ style }}{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}\
                  {% for m in messages %}[{{ m.role }}]{{ m.content or '' }}\
                  {% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}\
                  {{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let specials = vec![("eos_token".to_string(), "~".to_string())];
    let chat = ChatTemplate::new(source, specials, Some("be brief".into())).expect("compiles");
    Tokenisers {
        text,
        foreign: Some(Foreign { end, other_ends, pad: end, rows: 0 }),
        chat: Some(chat),
        image: None,
        audio: None,
        image_semantic: None,
        audio_semantic: None,
    }
}

#[test]
fn imported_text_models_speak_through_their_own_template() {
    let mut server = Server::start(options(), |host| {
        let tokenisers = foreign("");
        let engine = engine(&tokenisers, 4);
        Catalogue::new(vec![host.host("tiny", tokenisers, CONTEXT, engine, Vec::new())?])
    })
    .expect("listens");
    server.loaded().expect("loads");
    let a = server.address;
    let answer = chat(a, "ok hi".into(), json!({"temperature": 1.0, "seed": 1, "max_tokens": 30}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let value = answer.json();
    let tokenisers = foreign("");
    let pieces = vec![chat::Piece::Text("ok hi".into())];
    let turn = chat::Turn::new(danlu_core::Role::User, pieces);
    let end = tokenisers.text.encode("~")[0];
    let template = tokenisers.chat.as_ref().expect("it has one");
    let ids = template
        .ids(&tokenisers.text, &[turn], chat::Context::default(), true, end)
        .expect("renders")
        .ids;
    assert_eq!(value["usage"]["prompt_tokens"], ids.len());
    assert!(ids.len() > tokenisers.text.encode("[system]be brief~[user]").len());
    // Tools, their calls and their answers are told in the template's own words.
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "fetch", "arguments": "{\"a\":1}"}});
    let messages = json!([
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
    ]);
    let tool = json!({"type": "function", "function": {"name": "fetch", "parameters": {}}});
    let asked = |choice: &str| {
        let more = json!({"messages": messages, "tools": [tool], "tool_choice": choice});
        chat(a, "".into(), more).json()["usage"]["prompt_tokens"].clone()
    };
    let talk = "[system]be brief~[user]ok~[assistant]{\"a\": 1}~[tool]7~[assistant]";
    let count = |text: String| tokenisers.text.encode(&text).len();
    assert_eq!(asked("auto"), count(format!("<fetch>{talk}")));
    assert_eq!(asked("none"), count(talk.to_string()));
    let styled =
        |variables: Value| chat(a, "ok".into(), json!({"chat_template_kwargs": variables}));
    let plain = count("[system]be brief~[user]ok~[assistant]".into());
    let told = styled(json!({"style": "abc"})).json();
    assert_eq!(told["usage"]["prompt_tokens"], plain + count("abc".into()));
    let error = styled(json!({"messages": []})).error(400);
    assert_eq!(error["param"], "chat_template_kwargs");
    let text = value["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(!text.is_empty() && !text.contains('~'), "{text:?}");
    let image = chat(a, "draw".into(), json!({"modalities": ["image"]}));
    assert_eq!(image.error(400)["code"], "unsupported_modality");
    assert_eq!(get(a, "/v1/models").json()["data"][0]["modalities"], json!(["text"]));
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}},
        "required": ["a"], "additionalProperties": false});
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let more = json!({"response_format": form, "max_tokens": 40, "temperature": 1.0, "seed": 2});
    let value = chat(a, "ok".into(), more).json();
    assert_eq!(value["choices"][0]["finish_reason"], "stop");
    let text = value["choices"][0]["message"]["content"].as_str().expect("text").to_string();
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert!(value["a"].is_boolean());
    let body = json!({"model": "tiny", "prompt": "ok hi", "max_tokens": 5});
    let tokens = tokenisers.text.encode("ok hi").len();
    assert_eq!(post(a, "/v1/completions", &body).json()["usage"]["prompt_tokens"], tokens);
    server.stop();
}

#[test]
fn a_reply_stops_at_any_end_that_an_imported_model_has() {
    let ask = |others: &'static str| {
        let mut server = Server::start(options(), move |host| {
            let tokenisers = foreign(others);
            let engine = engine(&tokenisers, 4);
            Catalogue::new(vec![host.host("tiny", tokenisers, CONTEXT, engine, Vec::new())?])
        })
        .expect("listens");
        server.loaded().expect("loads");
        // Without chance, and without saying anything twice.
        let more = json!({"temperature": 0, "frequency_penalty": 2, "max_tokens": 60});
        let value = chat(server.address, "ok hi".into(), more).json();
        server.stop();
        let choice = &value["choices"][0];
        let text = choice["message"]["content"].as_str().expect("text").to_string();
        (text, choice["finish_reason"].as_str().expect("one").to_string())
    };
    // Any printable character that the model says may be one of its ends.
    let (whole, _) = ask("");
    let stops = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[^_`{|}";
    let at = whole.find(|c| stops.contains(c)).expect("it says one of them");
    assert!(at > 0 && whole.len() > at + 1, "in the midst of {whole:?}");
    let (cut, reason) = ask(stops);
    assert_eq!((cut.as_str(), reason.as_str()), (&whole[..at], "stop"));
}
