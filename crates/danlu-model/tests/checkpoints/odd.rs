//! What checkpoints of others say in odd places, or leave out: read as transformers and llama.cpp read it.

use super::{copied, golden, imported, logits, temporary, turns};
use danlu_core::{Control, recipe::LossWeights};
use danlu_model::chat::{ChatTemplate, Context};
use danlu_model::io::{
    Dtype, Gguf, GgufTensor, GgufWeights, HfConfig, NamedTensor, Packing, check_architecture,
    load_tensors, save_tensors, tokeniser_keys, tokeniser_of_gguf, write_gguf,
};
use danlu_model::modality::TextTokeniser;
use danlu_model::prompt::Template;
use danlu_model::{Model, TransformerConfig, export, import};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The golden Llama's `config.json` with other values; null takes a key away.
fn config(changes: &[(&str, Value)]) -> String {
    let text = std::fs::read_to_string(golden("llama/config.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes {
        match value {
            Value::Null => _ = file.as_object_mut().unwrap().remove(*key),
            value => file[*key] = value.clone(),
        }
    }
    file.to_string()
}

fn read(changes: &[(&str, Value)]) -> danlu_core::Result<danlu_model::TransformerConfig> {
    let path = Path::new("odd/config.json");
    HfConfig::parse(path, config(changes).as_bytes()).and_then(|c| c.to_ours(path))
}

fn change(path: &Path, how: impl Fn(&mut Value)) {
    let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    how(&mut file);
    std::fs::write(path, file.to_string()).unwrap();
}

#[test]
fn what_a_file_leaves_out_is_what_its_class_takes() {
    let silent = ["rope_parameters", "tie_word_embeddings", "rms_norm_eps", "hidden_act"];
    // From transformers 5.24: theta, tied, epsilon, context.
    for (kind, class, want) in [
        ("llama", "LlamaForCausalLM", (1e4, false, 1e-6, 9000)),
        ("mistral", "MistralForCausalLM", (1e4, false, 1e-6, 4096)),
        ("smollm3", "SmolLM3ForCausalLM", (2e6, true, 1e-6, 9000)),
        ("qwen3", "Qwen3ForCausalLM", (1e4, false, 1e-6, 9000)),
    ] {
        let mut changes: Vec<(&str, Value)> = silent.map(|key| (key, Value::Null)).to_vec();
        changes.push(("model_type", json!(kind)));
        changes.push(("architectures", json!([class])));
        changes.push(("max_position_embeddings", json!(9000)));
        let c = read(&changes).unwrap();
        assert_eq!((c.rope_theta, c.tied, c.norm_eps, c.context), want, "{kind}");
    }
    let mixture = [
        ("model_type", json!("mixtral")),
        ("architectures", json!(["MixtralForCausalLM"])),
        ("num_local_experts", json!(4)),
        ("rope_parameters", Value::Null),
        ("rms_norm_eps", Value::Null),
    ];
    let c = read(&mixture).unwrap();
    assert_eq!((c.rope_theta, c.norm_eps), (1e6, 1e-5));
    let kind = ("model_type", json!("qwen3"));
    let class = ("architectures", json!(["Qwen3ForCausalLM"]));
    let c = read(&[kind, class, ("head_dim", Value::Null)]).unwrap();
    assert_eq!(c.head_dim, 128);
    assert!(read(&[("hidden_act", json!("swish"))]).is_ok());
    // Whatever else is odd in the file.
    let other = [("model_type", json!("gemma2")), ("hidden_act", json!("gelu_pytorch_tanh"))];
    let error = read(&other).unwrap_err().to_string();
    assert!(error.contains("`model_type` llama") && error.contains("gemma2"), "{error}");
}

#[test]
fn of_two_places_for_angles_the_older_one_counts() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    let llama = ("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5}));
    let scaled = |places: &[(&str, Value)]| read(places).unwrap();
    let mut own = yarn.clone();
    own["rope_theta"] = json!(5e5);
    let c = scaled(&[llama.clone(), ("rope_scaling", own)]);
    assert_eq!(c.rope_theta, 5e5);
    let Some(danlu_model::arch::RopeScaling::Yarn { original, .. }) = c.rope_scaling else {
        panic!("{:?}", c.rope_scaling)
    };
    assert_eq!(original, 128);
    // Where the base is not lost it may stand beside them.
    let beside = ("rope_theta", json!(5e5));
    let c = scaled(&[llama.clone(), ("rope_scaling", yarn.clone()), beside]);
    assert_eq!(c.rope_theta, 5e5);
    let error = read(&[llama, ("rope_scaling", yarn.clone())]).unwrap_err().to_string();
    assert!(error.contains("`rope_theta` under `rope_scaling`"), "{error}");
    // What was taught may stand beside them too, and counts.
    let taught = ("original_max_position_embeddings", json!(32));
    let c = scaled(&[("rope_parameters", Value::Null), ("rope_scaling", yarn), taught]);
    let Some(danlu_model::arch::RopeScaling::Yarn { original, .. }) = c.rope_scaling else {
        panic!("{:?}", c.rope_scaling)
    };
    assert_eq!(original, 32);
    let nested = json!({"full_attention": {"rope_type": "default"}});
    let error = read(&[("rope_parameters", nested)]).unwrap_err().to_string();
    assert!(error.contains("for all layers alike"), "{error}");
}

#[test]
fn one_file_goes_before_shards_and_a_second_head_is_not_dropped() {
    let device = danlu_ops::cpu_device();
    let folder = copied("llama", "odd-both");
    std::fs::write(folder.join("model.safetensors.index.json"), "{}").unwrap();
    assert!(import::import(&folder, None, &device).is_ok(), "as transformers reads it");
    let file = folder.join("model.safetensors");
    let mut tensors: Vec<NamedTensor> = load_tensors(&file).unwrap().into_values().collect();
    let mut head = tensors.iter().find(|t| t.name.contains("embed_tokens")).unwrap().clone();
    head.name = "lm_head.weight".into();
    tensors.push(head);
    save_tensors(&file, &tensors, Dtype::F32, Default::default()).unwrap();
    assert!(import::import(&folder, None, &device).is_ok(), "the embedding once more");
    tensors.last_mut().unwrap().values[7] += 1.0;
    save_tensors(&file, &tensors, Dtype::F32, Default::default()).unwrap();
    let into = temporary("odd-both-out");
    for error in [
        import::import(&folder, None, &device).unwrap_err(),
        import::convert(&folder, None, &into, Dtype::F32).unwrap_err(),
    ] {
        assert!(error.to_string().contains("another `lm_head.weight`"), "{error}");
    }
    assert!(!into.join("danlu.json").exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn values_that_half_precision_has_no_number_for_are_refused() {
    let folder = copied("llama", "odd-large");
    let file = folder.join("model.safetensors");
    let mut tensors: Vec<NamedTensor> = load_tensors(&file).unwrap().into_values().collect();
    let matrix = tensors.iter_mut().find(|t| t.name.contains("down_proj")).unwrap();
    matrix.values[3] = 1e5;
    let name = matrix.name.clone();
    save_tensors(&file, &tensors, Dtype::F32, Default::default()).unwrap();
    let (into, gguf) = (temporary("odd-large-out"), temporary("odd-large.gguf"));
    let model = import::import(&folder, None, &danlu_ops::cpu_device()).unwrap();
    for error in [
        import::convert(&folder, None, &into, Dtype::F16).unwrap_err(),
        export::to_folder(&model, &into, Dtype::F16, None).unwrap_err(),
        export::to_gguf(&model, &gguf, Packing::F16, None).map(|_| ()).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("65504") && error.contains("100000"), "{error}");
        assert!(error.contains(&name) || error.contains("gguf"), "{error}");
    }
    assert!(!gguf.exists() && !into.join("tokenizer.json").exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_was_for_batches_does_not_cut_or_fill_a_text() {
    let model = imported("llama");
    let said = "a text that is longer than sixteen tokens of any kind, and then some more of it";
    let folder = copied("llama", "odd-batch");
    change(&folder.join("tokenizer.json"), |file| {
        file["truncation"] = json!({"direction": "Right", "max_length": 16,
            "strategy": "LongestFirst", "stride": 0});
        file["padding"] = json!({"strategy": {"Fixed": 200}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    });
    let read = TextTokeniser::load(&folder.join("tokenizer.json")).unwrap();
    assert_eq!(read.encode(said), model.tokenisers.text.encode(said));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn special_tokens_may_be_named_elsewhere() {
    let device = danlu_ops::cpu_device();
    let named = imported("llama").tokenisers.chat.unwrap().specials().to_vec();
    let eos = named.iter().find(|s| s.0 == "eos_token").unwrap().1.clone();
    let folder = copied("llama", "odd-specials");
    change(&folder.join("tokenizer_config.json"), |file| {
        file.as_object_mut().unwrap().remove("eos_token");
    });
    let map = json!({"eos_token": {"content": eos, "lstrip": false}}).to_string();
    std::fs::write(folder.join("special_tokens_map.json"), map).unwrap();
    // What is named so is special, whatever the tokeniser says.
    change(&folder.join("tokenizer.json"), |file| {
        for token in file["added_tokens"].as_array_mut().unwrap() {
            token["special"] = json!(false);
        }
    });
    let model = import::import(&folder, None, &device).unwrap();
    let chat = model.tokenisers.chat.as_ref().unwrap();
    assert!(chat.specials().contains(&("eos_token".to_string(), eos.clone())));
    assert!(model.tokenisers.text.specials().iter().any(|s| s.content == eos));
    assert!(model.tokenisers.text.encode(&eos).len() > 1, "no text becomes it");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_first_token_is_found_beside_a_last_one() {
    let folder = copied("llama", "odd-begin");
    let path = folder.join("tokenizer.json");
    let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let model = imported("llama");
    let tokens = [0, 2].map(|id| model.tokenisers.text.token(id).unwrap());
    change(&path, |file| {
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let of = |id: usize| json!({"id": tokens[id], "ids": [2 * id], "tokens": [tokens[id]]});
        file["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [special(&tokens[0]), text, special(&tokens[1])], "pair": [text],
            "special_tokens": {&tokens[0]: of(0), &tokens[1]: of(1)}});
    });
    assert_eq!(TextTokeniser::load(&path).unwrap().begin(), Some(0));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A GGUF file of the golden Llama whose keys were changed.
fn gguf(name: &str, how: impl Fn(&mut Vec<(String, danlu_model::io::GgufValue)>)) -> PathBuf {
    let whole = temporary(&format!("{name}-whole.gguf"));
    let path = temporary(&format!("{name}.gguf"));
    export::to_gguf(&imported("llama"), &whole, Packing::F32, None).unwrap();
    let file = Gguf::open(&whole).unwrap();
    let mut keys: Vec<_> =
        file.keys().map(|key| (key.to_string(), file.get(key).unwrap().clone())).collect();
    how(&mut keys);
    let tensors: Vec<GgufTensor> = file
        .names()
        .map(|name| GgufTensor {
            name: name.into(),
            shape: file.info(name).unwrap().shape.clone(),
            packing: Packing::F32,
        })
        .collect();
    write_gguf(&path, &keys, &tensors, |i| Ok(file.read(&tensors[i].name)?.values)).unwrap();
    std::fs::remove_file(&whole).unwrap();
    path
}

#[test]
fn gguf_is_scaled_begun_and_refused_as_llama_cpp_does() {
    let device = danlu_ops::cpu_device();
    let ids = [5, 9, 70, 31, 8, 100, 44, 3];
    let plain = logits(&import::import(&gguf("odd-plain", |_| {}), None, &device).unwrap(), &ids);
    let typed = |keys: &mut Vec<(String, danlu_model::io::GgufValue)>| {
        keys.push(("llama.rope.scaling.type".into(), "linear".into()));
        keys.push(("llama.rope.scaling.factor".into(), 4.0f32.into()));
    };
    let typed = gguf("odd-typed", typed);
    let want = logits(&import::import(&typed, None, &device).unwrap(), &ids);
    assert!(want.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3));
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let path = gguf("odd-linear", |keys| keys.push((key.into(), 4.0f32.into())));
        assert_eq!(logits(&import::import(&path, None, &device).unwrap(), &ids), want, "{key}");
        std::fs::remove_file(&path).unwrap();
    }
    let begins = gguf("odd-begins", |keys| {
        keys.retain(|(key, _)| !key.ends_with("add_bos_token"));
        keys.iter_mut()
            .filter(|(key, _)| key == "tokenizer.ggml.pre")
            .for_each(|(_, value)| *value = "llama-bpe".into());
    });
    let read = tokeniser_of_gguf(&Gguf::open(&begins).unwrap()).unwrap();
    assert_eq!(read.begin(), Some(0));
    let parts = gguf("odd-parts", |keys| keys.push(("split.count".into(), 2usize.into())));
    let error = GgufWeights::new(Gguf::open(&parts).unwrap()).unwrap_err().to_string();
    assert!(error.contains("one of 2 parts"), "{error}");
    for path in [typed, begins, parts] {
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_added_tokens_take_goes_through_gguf() {
    let folder = copied("llama", "odd-flags");
    let path = folder.join("tokenizer.json");
    change(&path, |file| {
        let added = file["added_tokens"].as_array_mut().unwrap();
        added[0]["lstrip"] = json!(true);
        added[1]["rstrip"] = json!(true);
    });
    let text = TextTokeniser::load(&path).unwrap();
    let mut keys = tokeniser_keys(&text, text.size() as usize, Path::new("out")).unwrap();
    keys.push(("general.architecture".into(), "llama".into()));
    let tensor = GgufTensor { name: "x".into(), shape: vec![1], packing: Packing::F32 };
    let file = temporary("odd-flags.gguf");
    write_gguf(&file, &keys, &[tensor], |_| Ok(vec![0.0])).unwrap();
    let back = tokeniser_of_gguf(&Gguf::open(&file).unwrap()).unwrap();
    assert_eq!(back.specials(), text.specials());
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn templates_are_read_as_jinja2_reads_them() {
    let text = imported("llama").tokenisers.text;
    let turns = turns(&json!([{"role": "user", "content": "hi"}]));
    let rendered = |template: &str| {
        let chat = ChatTemplate::new(template, Vec::new(), None).unwrap();
        let ids = chat.ids(&text, &turns, Context::default(), true, 2).unwrap().ids;
        text.decode(&ids)
    };
    let lines = "{% if messages %}\r\n{{ messages[0].content }}\r\n{% endif %}\r\nend";
    assert_eq!(rendered(lines), "hi\nend");
    let joined = "{%- set d = \"one\\\ntwo\\\n\\\nthree\" %}{{ d }} # '\\\n' {# it's \\\n #}";
    assert_eq!(rendered(joined), "onetwothree # '\\\n' ");
    // In the order in which a message was made, as in Python.
    assert_eq!(rendered("{% for key in messages[0] %}{{ key }} {% endfor %}"), "role content ");
    assert_eq!(rendered("{{ messages[0] | tojson }}"), "{\"role\": \"user\", \"content\": \"hi\"}");
}

#[test]
fn documents_end_as_texts_do_and_replies_as_the_template_says() {
    let source = copied("llama", "eos");
    let device = danlu_ops::cpu_device();
    let weights = LossWeights::default();
    let document = |model: &Model| {
        let ids = Template::new(&model.tokenisers).plain_text("hello", &weights, 0).ids;
        (ids[0], ids[ids.len() - 1])
    };
    let end = |model: &Model| model.tokenisers.vocabulary().control_id(Control::End);
    let model = import::open(&source, &device).unwrap();
    assert_eq!((document(&model), end(&model)), ((2, 2), 2), "one token ends both");
    change(&source.join("tokenizer_config.json"), |file| {
        file["eos_token"] = "<|endoftext|>".into();
    });
    let model = import::open(&source, &device).unwrap();
    assert_eq!((document(&model), end(&model)), ((0, 0), 2));
    let own = temporary("eos-own");
    model.save(&own, Dtype::F32).unwrap();
    let back = Model::load(&own, &device).unwrap();
    assert_eq!((document(&back), end(&back)), ((0, 0), 2));
    std::fs::remove_dir_all(&source).unwrap();
    std::fs::remove_dir_all(&own).unwrap();
}

#[test]
fn of_named_templates_tools_have_their_own_and_the_rest_the_default_one() {
    let folder = copied("llama", "named");
    let device = danlu_ops::cpu_device();
    let about = folder.join("tokenizer_config.json");
    let beside = folder.join("chat_template.jinja");
    let more = folder.join("additional_chat_templates");
    std::fs::remove_file(&beside).unwrap();
    let messages = turns(&json!([{"role": "user", "content": "hi"}]));
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    let shown = |chat: &ChatTemplate, tools: &[Value]| {
        let text = imported("llama").tokenisers.text;
        let context = Context { tools, variables: None };
        text.decode(&chat.ids(&text, &messages, context, true, 2).unwrap().ids)
    };
    let of = |source: &str| ChatTemplate::new(source, Vec::new(), None).unwrap();
    let both = |tool_use: &str, default: &str| {
        let all = json!([{"name": "rag", "template": "no"},
            {"name": "tool_use", "template": tool_use}, {"name": "default", "template": default}]);
        change(&about, |file| file["chat_template"] = all.clone());
        let found = import::open(&folder, &device).unwrap().tokenisers.chat.unwrap();
        assert_eq!(shown(&found, &tools), shown(&of(tool_use), &tools), "{tool_use:?}");
        assert_eq!(shown(&found, &[]), shown(&of(default), &[]), "{default:?}");
        assert!(found.tells_tools());
    };
    // Line ends and blanks at both ends of each are as in a file of its own.
    let odd = [
        "a {{ messages[0].content }} {{ tools | length if tools }}",
        "\n\n b {{ messages[0].content }}\n\n",
        "  {% if true %}\n c\n{% endif %}\n  ",
        "\n{%- for m in messages -%}  {{ m.content }}\n{% endfor %}\n",
        "{% for m in messages %}{{ m.content }}{% endfor -%}\n \r\n",
        "{{- messages[0].content -}}\n ",
    ];
    for tool_use in odd {
        odd.iter().for_each(|default| both(tool_use, default));
    }
    // In files of their own, which go before.
    std::fs::create_dir(&more).unwrap();
    let refused = || import::open(&folder, &device).expect_err("no default").to_string();
    std::fs::write(more.join("tool_use.jinja"), odd[0]).unwrap();
    let error = refused();
    assert!(error.contains("additional_chat_templates: expected"), "{error}");
    assert!(error.contains("`default`, found `tool_use`"), "{error}");
    for default in [&beside, &more.join("default.jinja")] {
        std::fs::write(default, odd[1]).unwrap();
        let found = import::open(&folder, &device).unwrap().tokenisers.chat.unwrap();
        assert_eq!(shown(&found, &tools), shown(&of(odd[0]), &tools));
        assert_eq!(shown(&found, &[]), shown(&of(odd[1]), &[]));
        std::fs::remove_file(default).unwrap();
    }
    std::fs::remove_dir_all(&more).unwrap();
    change(&about, |file| {
        file["chat_template"] = json!([{"name": "rag", "template": "no"}]);
    });
    let error = refused();
    assert!(error.contains("tokenizer_config.json") && error.contains("`rag`"), "{error}");
    change(&about, |file| file["chat_template"] = json!([{"template": "no"}]));
    assert!(refused().contains("`chat_template`"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn heads_that_a_loader_does_not_take_are_refused_by_their_sizes() {
    let path = Path::new("out.gguf");
    let of = |name: &str, head_dim: usize| {
        let config = imported(name).transformer.config;
        check_architecture(&TransformerConfig { head_dim, ..config }, path)
    };
    let error = of("qwen2", 16).expect_err("wider").to_string();
    assert!(error.contains("out.gguf") && error.contains("4 of 16 in a width of 32"), "{error}");
    for (name, head_dim) in [("qwen2", 8), ("llama", 16), ("qwen3", 32)] {
        of(name, head_dim).unwrap();
    }
}

#[test]
fn the_first_token_of_a_text_goes_out_or_none_is_named() {
    let mut model = imported("llama");
    let folder = temporary("odd-bos");
    let said = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    export::to_folder(&model, &folder, Dtype::F32, None).unwrap();
    for name in ["config.json", "generation_config.json"] {
        assert_eq!(said(name)["bos_token_id"], 0, "{name}");
    }
    let chat = model.tokenisers.chat.take().unwrap();
    let specials = chat.specials().iter().filter(|s| s.0 != "bos_token").cloned().collect();
    model.tokenisers.chat = Some(ChatTemplate::new(chat.source(), specials, None).unwrap());
    export::to_folder(&model, &folder, Dtype::F32, None).unwrap();
    assert_eq!(said("config.json").get("bos_token_id"), Some(&Value::Null));
    assert_eq!(said("generation_config.json").get("bos_token_id"), None);
    std::fs::remove_dir_all(&folder).unwrap();
}
