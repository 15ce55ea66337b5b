//! Every endpoint as it should be used.

use crate::support::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use danlu_core::{Picture, Sound};
use serde_json::{Value, json};

pub(crate) fn png() -> String {
    let png = danlu_media::encode_png(&Picture::filled(20, 10, [200, 30, 30]));
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

pub(crate) fn wav() -> Vec<u8> {
    let samples = (0..8_000).map(|i| 0.3 * (i as f32 * 0.2).sin()).collect();
    danlu_media::encode_wav(&Sound { rate: 16_000, samples })
}

#[test]
fn chat_takes_text_pictures_and_sound_and_counts_tokens() {
    let server = server();
    let content = json!([
        {"type": "text", "text": "ok"},
        {"type": "image_url", "image_url": {"url": png()}},
        {"type": "input_audio", "input_audio": {"data": STANDARD.encode(wav()), "format": "wav"}},
    ]);
    let more = json!({"user": "someone", "temperature": 0.5, "seed": 3});
    let answer = chat(server.address, content, more);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let value = answer.json();
    assert_eq!(value["object"], "chat.completion");
    assert_eq!(value["choices"][0]["message"]["role"], "assistant");
    let usage = &value["usage"];
    let count = |key: &str| usage[key].as_u64().expect("a count");
    assert!(count("prompt_tokens") > 32 + 10, "the picture and the sound: {usage}");
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert!(["stop", "length"].contains(&value["choices"][0]["finish_reason"].as_str().expect("")));
    server.stop();
}

#[test]
fn a_seed_repeats_and_company_changes_nothing() {
    let server = server();
    let ask = |n: u64| {
        let more = json!({"temperature": 1.0, "seed": 5, "n": n, "max_tokens": 20});
        let value = chat(server.address, "hi".into(), more).json();
        let choices = value["choices"].as_array().expect("choices").clone();
        choices.iter().map(|c| c["message"]["content"].clone()).collect::<Vec<_>>()
    };
    let (one, three) = (ask(1), ask(3));
    assert_eq!(one[0], three[0]);
    assert_ne!(three[0], three[1], "the others have seeds of their own");
    server.stop();
}

#[test]
fn a_stream_says_what_the_whole_says() {
    let server = server();
    let more = json!({"temperature": 1.0, "seed": 9, "max_tokens": 30});
    let whole = chat(server.address, "hi".into(), more.clone()).json();
    let mut streamed = more;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let answer = chat(server.address, "hi".into(), streamed);
    let kind = answer.header("content-type").expect("a kind").to_string();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    let events = events(&answer);
    let text: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(text), whole["choices"][0]["message"]["content"]);
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk"));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let last = &events[events.len() - 1];
    assert_eq!(last["choices"], json!([]));
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][count], whole["usage"][count], "{count}");
    }
    let reason = &events[events.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!(reason, &whole["choices"][0]["finish_reason"]);
    server.stop();
}

#[test]
fn log_probabilities_sum_to_at_most_one_and_the_best_is_first() {
    let server = server();
    let more = json!({"logprobs": true, "top_logprobs": 20, "max_tokens": 5});
    let value = chat(server.address, "hi".into(), more).json();
    let list = value["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    assert!(!list.is_empty());
    for one in list {
        let top: Vec<f64> = one["top_logprobs"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|t| t["logprob"].as_f64().expect("a number"))
            .collect();
        assert_eq!(top.len(), 20);
        let own = one["logprob"].as_f64().expect("a number");
        assert!(own <= top[0], "at most as likely as the likeliest");
        assert!(top.windows(2).all(|w| w[0] >= w[1]));
        assert!(top.iter().map(|l| l.exp()).sum::<f64>() < 1.0001);
        assert!(one["bytes"].is_array() && one["token"].is_string());
    }
    server.stop();
}

#[test]
fn a_stop_string_ends_the_reply_before_it() {
    let server = server();
    let more = json!({"temperature": 1.0, "seed": 4, "max_tokens": 40});
    let whole = chat(server.address, "hi".into(), more.clone()).json();
    let text = whole["choices"][0]["message"]["content"].as_str().expect("text").to_string();
    let middle: String = text.chars().skip(5).take(2).collect();
    let mut stopped = more;
    stopped["stop"] = json!([middle]);
    let value = chat(server.address, "hi".into(), stopped).json();
    let short = value["choices"][0]["message"]["content"].as_str().expect("text").to_string();
    assert_eq!(short, text[..text.find(&middle).expect("it is there")]);
    assert_eq!(value["choices"][0]["finish_reason"], "stop");
    let count = |v: &Value| v.as_u64().expect("a count");
    let (prompt, made) = (&value["usage"]["prompt_tokens"], &value["usage"]["completion_tokens"]);
    assert!(count(made) < count(&whole["usage"]["completion_tokens"]));
    let cached = count(&value["usage"]["prompt_tokens_details"]["cached_tokens"]);
    assert!(cached + 17 > count(prompt), "{cached} of {prompt}: it was asked before");
    // It is a reply that ended, in the counts too.
    let counted = |name: &str| metric(server.address, name);
    assert_eq!(counted("request_success_total{finished_reason=\"abort\"}"), 0.0);
    assert_eq!(counted("e2e_request_latency_seconds_count"), 2.0);
    assert_eq!(counted("prompt_tokens_total"), 2.0 * count(prompt) as f64);
    server.stop();
}

#[test]
fn replies_are_pictures_and_sounds_if_asked_for() {
    let server = server();
    let more = json!({"modalities": ["image"], "max_tokens": 100});
    let value = chat(server.address, "Draw hi".into(), more).json();
    let message = &value["choices"][0]["message"];
    let url = message["images"][0]["image_url"]["url"].as_str().expect("a data URL");
    let bytes = STANDARD.decode(url.split_once(',').expect("a comma").1).expect("base64");
    let picture = danlu_media::decode_picture(&bytes, "reply").expect("a picture");
    assert_eq!((picture.width, picture.height), (64, 64));
    assert_eq!(message["content"], Value::Null);

    let more = json!({
        "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"},
        "max_tokens": 12,
    });
    let value = chat(server.address, "Say hi".into(), more.clone()).json();
    let audio = &value["choices"][0]["message"]["audio"];
    let bytes = STANDARD.decode(audio["data"].as_str().expect("data")).expect("base64");
    assert!(danlu_media::decode_sound(&bytes, "reply").is_ok());
    assert!(audio["id"].is_string() && audio["transcript"].is_string());
    assert!(audio["expires_at"].is_u64());

    let mut streamed = more;
    streamed["stream"] = json!(true);
    let answer = chat(server.address, "Say hi".into(), streamed);
    let found =
        events(&answer).iter().any(|e| e["choices"][0]["delta"]["audio"]["data"].is_string());
    assert!(found, "{}", answer.text());
    server.stop();
}

#[test]
fn completions_go_on_where_a_text_ends() {
    let server = server();
    let body = json!({
        "model": "tiny", "prompt": ["ok", "hi"], "max_tokens": 5, "logprobs": 2, "echo": true,
    });
    let answer = post(server.address, "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let value = answer.json();
    assert_eq!(value["object"], "text_completion");
    assert!(value["choices"][0]["text"].as_str().expect("text").starts_with("ok"));
    assert!(value["choices"][1]["text"].as_str().expect("text").starts_with("hi"));
    let logprobs = &value["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().expect("tokens").len();
    assert_eq!(logprobs["token_logprobs"].as_array().expect("values").len(), tokens);
    // Those of the prompt come first; before it stands what documents begin with.
    assert_eq!((&logprobs["text_offset"][0], &logprobs["tokens"][0]), (&json!(0), &json!("ok")));
    assert!(logprobs["token_logprobs"][0].is_number(), "{logprobs}");
    let mut streamed = body;
    streamed["stream"] = json!(true);
    streamed["prompt"] = json!("ok");
    let streamed = events(&post(server.address, "/v1/completions", &streamed));
    let offsets =
        streamed.iter().filter_map(|e| e["choices"][0]["logprobs"]["text_offset"].as_array());
    let offsets: Vec<&Value> = offsets.flatten().collect();
    assert_eq!((offsets[0], offsets.len()), (&logprobs["text_offset"][0], tokens));
    // A prompt alone, of ids: nothing stands before, and nothing follows.
    let body = json!({
        "model": "tiny", "prompt": [[71, 72, 0], [78]], "max_tokens": 0, "logprobs": 1, "echo": true,
    });
    let value = post(server.address, "/v1/completions", &body).json();
    let choice = &value["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hi!"), &json!("length")));
    let told = &choice["logprobs"];
    assert_eq!(told["tokens"], json!(["h", "i", "!"]));
    assert_eq!(told["text_offset"], json!([0, 1, 2]));
    assert_eq!(
        (&told["token_logprobs"][0], &told["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    assert!(told["token_logprobs"][2].as_f64().is_some_and(|p| p < 0.0), "{told}");
    assert_eq!(told["top_logprobs"][2].as_object().expect("by token").len(), 1);
    assert_eq!(value["choices"][1]["logprobs"]["token_logprobs"], json!([null]));
    assert_eq!(
        (&value["usage"]["prompt_tokens"], &value["usage"]["completion_tokens"]),
        (&json!(4), &json!(0))
    );
    // The same in a stream, in one piece.
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let streamed = events(&post(server.address, "/v1/completions", &streamed));
    let of_first = streamed.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == 0);
    let of_first: Vec<&Value> = of_first.filter(|c| c["logprobs"].is_object()).collect();
    assert_eq!(
        (of_first.len(), &of_first[0]["logprobs"], &of_first[0]["text"]),
        (1, told, &json!("hi!"))
    );

    let body = json!({"model": "tiny", "prompt": [1, 2], "max_tokens": 5, "stream": true});
    let streamed = events(&post(server.address, "/v1/completions", &body));
    assert!(streamed.last().is_some_and(|e| e["choices"][0]["finish_reason"].is_string()));
    server.stop();
}

#[test]
fn every_prompt_of_a_request_is_counted_once() {
    let server = server();
    let ask = |prompt: Value, n: usize, stream: bool| {
        let mut body = json!({"model": "tiny", "prompt": prompt, "n": n, "max_tokens": 3});
        if stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        let answer = post(server.address, "/v1/completions", &body);
        let whole = if stream { events(&answer).pop().expect("usage") } else { answer.json() };
        let cached = &whole["usage"]["prompt_tokens_details"]["cached_tokens"];
        let count = |v: &Value| v.as_u64().expect("a count");
        (count(&whole["usage"]["prompt_tokens"]), count(cached))
    };
    let (long, short) = ("ok hi ".repeat(30), "a b c ".repeat(8));
    let (one, two) = (ask(json!(long), 1, false).0, ask(json!(short), 1, false).0);
    for stream in [false, true] {
        let (prompt, cached) = ask(json!([long, short]), 2, stream);
        assert_eq!(prompt, one + two);
        // Both are known by now, but for their last tokens.
        assert!(cached + 2 * 17 >= prompt && cached < prompt, "{cached} of {prompt}");
    }
    server.stop();
}

#[test]
fn images_speech_and_transcription() {
    let server = server();
    let body = json!({"model": "tiny", "prompt": "a cat", "n": 2, "size": "64x64"});
    let answer = post(server.address, "/v1/images/generations", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let data = answer.json()["data"].as_array().expect("data").clone();
    assert_eq!(data.len(), 2);
    for one in &data {
        let bytes = STANDARD.decode(one["b64_json"].as_str().expect("base64")).expect("base64");
        assert!(danlu_media::decode_picture(&bytes, "reply").is_ok());
    }
    let mut lengths = Vec::new();
    for format in ["wav", "flac", "pcm"] {
        let body = json!({
            "model": "tiny", "input": "hi", "voice": "alloy", "response_format": format, "seed": 1,
            "max_tokens": 60,
        });
        let answer = post(server.address, "/v1/audio/speech", &body);
        assert_eq!(answer.header("content-type"), Some(format!("audio/{format}").as_str()));
        lengths.push(match format {
            "pcm" => answer.body.len() / 2,
            _ => danlu_media::decode_sound(&answer.body, "reply").expect("a sound").samples.len(),
        });
    }
    // Raw, it is at 24 kHz, which clients of the official API take it for.
    let [waves, flac, pcm] = lengths[..] else { panic!("{lengths:?}") };
    assert!(waves > 0 && flac == waves && pcm == waves * 3 / 2, "{lengths:?}");
    for (format, key) in
        [("json", Some("text")), ("verbose_json", Some("segments")), ("text", None)]
    {
        let answer = transcribe(server.address, &wav(), &[("response_format", format)]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        if let Some(key) = key {
            assert!(!answer.json()[key].is_null());
        }
    }
    server.stop();
}

/// Sends a form to the transcription endpoint.
pub(crate) fn transcribe(
    address: std::net::SocketAddr,
    file: &[u8],
    more: &[(&str, &str)],
) -> Response {
    let mut body = Vec::new();
    for (name, value) in [("model", "tiny")].iter().chain(more) {
        body.extend(
            format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
                .into_bytes(),
        );
    }
    body.extend(
        b"--XX\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
          content-type: audio/wav\r\n\r\n",
    );
    body.extend_from_slice(file);
    body.extend(b"\r\n--XX--\r\n");
    let kind = [("content-type", "multipart/form-data; boundary=XX")];
    send(address, "POST", "/v1/audio/transcriptions", &kind, &body)
}

#[test]
fn embeddings_have_length_one_and_two_encodings() {
    let server = server();
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "input": ["ok hi", "a b"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        post(server.address, "/v1/embeddings", &body).json()
    };
    let floats = ask(json!({}));
    let vector: Vec<f32> = floats["data"][1]["embedding"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|v| v.as_f64().expect("a number") as f32)
        .collect();
    assert!((vector.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
    let base64 = ask(json!({"encoding_format": "base64"}));
    let bytes = STANDARD.decode(base64["data"][1]["embedding"].as_str().expect("text"));
    let bytes = bytes.expect("base64");
    let again: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect();
    assert_eq!(again, vector);
    assert!(floats["usage"]["prompt_tokens"].as_u64().is_some_and(|n| n > 0));
    server.stop();
}

#[test]
fn models_state_and_the_page() {
    let server = server();
    let a = server.address;
    let list = get(a, "/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    for key in ["created", "object", "owned_by"] {
        assert!(!list["data"][0][key].is_null());
    }
    assert_eq!(get(a, "/v1/models/tiny").json(), list["data"][0]);
    for none in ["none", "%FF", "%00", "a%20b"] {
        let error = get(a, &format!("/v1/models/{none}")).error(404);
        assert_eq!(error["code"], "model_not_found", "{none}");
    }
    assert_eq!(get(a, "/health").status, 200);
    assert_eq!(get(a, "/ready").status, 200);
    assert_eq!(get(a, "/openapi.json").json()["openapi"], "3.1.0");
    assert_healthy(a);
    let text = get(a, "/metrics").text();
    for name in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "time_to_first_token_seconds_count 1",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds_count 1",
        "request_success_total{finished_reason=",
    ] {
        assert!(text.contains(name), "{name} in\n{text}");
    }
    let page = get(a, "/");
    assert!(page.text().contains("<html"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    server.stop();
}

#[test]
fn adapters_are_asked_by_name_in_one_batch() {
    use danlu_core::{LoraConfig, Target};
    use danlu_model::adapters::{Adapter, Delta};
    use danlu_serve::{Catalogue, Server};
    let mut server = Server::start(options(), |host| {
        let tokenisers = tokenisers();
        let mut engine = scheduler(&tokenisers, 8);
        let (width, place) = (24, (0, Target::OProj));
        // One that adds, and one that adds the same and has learnt how long the rows are (DoRA).
        let lengths = (0..width).map(|i| 30.0 - i as f32).collect();
        for (name, magnitude) in [("other", None), ("long", Some(lengths))] {
            let mut adapted = transformer(&tokenisers, 7);
            let b = (0..width).map(|i| i as f32 - 9.0).collect();
            let dora = magnitude.is_some();
            let delta = Delta { a: vec![1.0; width], b, magnitude };
            let config = LoraConfig { rank: 1, targets: vec![place.1], dora, ..Default::default() };
            let deltas = [(place, delta)].into_iter().collect();
            let adapter = Adapter { config, info: Default::default(), deltas };
            adapted.attach(&adapter, &danlu_ops::cpu_device())?;
            engine.add_adapter(name, &adapted)?;
        }
        let adapters = vec!["other".to_string(), "long".to_string()];
        let one = host.host("tiny", tokenisers, CONTEXT, Box::new(engine), adapters)?;
        Catalogue::new(vec![one])
    })
    .expect("listens");
    server.loaded().expect("loads");
    let a = server.address;
    let ask = |model: &str| {
        let more = json!({"model": model, "max_tokens": 20});
        let value = chat(a, "hi".into(), more).json();
        assert_eq!(value["model"], model);
        value["choices"][0]["message"]["content"].clone()
    };
    let names = ["tiny", "other", "long"];
    let alone = names.map(|name| (name, ask(name)));
    for (at, (name, said)) in alone.iter().enumerate() {
        assert!(alone[..at].iter().all(|(_, before)| before != said), "{name}: {alone:?}");
    }
    std::thread::scope(|scope| {
        let all = [0, 1, 2, 0, 1, 2, 1].map(|at| (at, scope.spawn(move || ask(names[at]))));
        for (at, one) in all {
            assert_eq!(one.join().expect("ends"), alone[at].1, "{}", alone[at].0);
        }
    });
    let list = get(a, "/v1/models").json();
    assert_eq!(
        (&list["data"][1]["id"], &list["data"][1]["parent"]),
        (&json!("other"), &json!("tiny"))
    );
    server.stop();
}
