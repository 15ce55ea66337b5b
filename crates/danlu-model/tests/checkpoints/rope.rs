//! Scaled rotary angles against transformers (golden/make_rope.py), and through the forms of files.

use super::{copied, golden, imported, logits, temporary};
use danlu_model::arch::RopeScaling;
use danlu_model::io::{Dtype, Gguf, HfConfig, Packing, load_tensors};
use danlu_model::parity::{Limits, PROBE, compare};
use danlu_model::{Model, export, import};
use serde_json::{Value, json};
use std::path::Path;

fn configs() -> serde_json::Map<String, Value> {
    let text = std::fs::read(golden("../rope.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The golden Llama under another configuration.
fn with_config(name: &str, config: &Value) -> Model {
    let folder = copied("llama", &format!("rope-{name}"));
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let model = import::import(&folder, None, &danlu_ops::cpu_device()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    model
}

#[test]
fn every_way_of_scaling_computes_what_transformers_does() {
    let file = load_tensors(&golden("../rope.safetensors")).unwrap();
    let ids: Vec<u32> = file["ids"].values.iter().map(|&v| v as u32).collect();
    for (name, config) in configs() {
        let model = with_config(&name, &config);
        let all = logits(&model, &ids);
        let size = model.transformer.config.vocabulary;
        let got = all.chunks_exact(size).skip(7).step_by(8).flatten();
        let want = &file[&name].values;
        assert_eq!(want.len(), 15 * size, "{name}");
        for (i, (g, w)) in got.zip(want).enumerate() {
            assert!((g - w).abs() <= 1e-4, "{name}[{i}]: {g}, transformers {w}");
        }
        // The cache turns keys by the same angles.
        let mut cache = model.transformer.start();
        model.transformer.advance(&mut [(&mut cache, &ids[..90])]);
        let last = model.transformer.advance(&mut [(&mut cache, &ids[90..])]);
        let tail = &want[want.len() - size..];
        assert!(last.iter().zip(tail).all(|(g, w)| (g - w).abs() <= 1e-4), "{name}: cached");
    }
}

#[test]
fn scaling_goes_out_and_comes_back() {
    let texts: Vec<String> = PROBE.iter().map(|t| t.to_string()).collect();
    let device = danlu_ops::cpu_device();
    for (name, config) in configs() {
        let model = with_config(&name, &config);
        let own = temporary(&format!("rope-{name}-own"));
        model.save(&own, Dtype::F32).unwrap();
        let folder = temporary(&format!("rope-{name}-hf"));
        export::to_folder(&model, &folder, Dtype::F32, None).unwrap();
        let gguf = own.join("model.gguf");
        let mut forms =
            vec![Model::load(&own, &device).unwrap(), import::open(&folder, &device).unwrap()];
        let written = export::to_gguf(&model, &gguf, Packing::F32, None);
        match name.as_str() {
            // What llama.cpp has no key for is refused, by what it is.
            "yarn-scaled" | "longrope" => {
                let error = written.expect_err("no such key").to_string();
                assert!(error.contains("for GGUF"), "{error}");
            }
            _ => {
                written.unwrap();
                let file = Gguf::open(&gguf).unwrap();
                let kind = file.get("llama.rope.scaling.type").map(|_| ());
                assert_eq!(kind.is_some(), ["linear", "yarn"].contains(&name.as_str()), "{name}");
                let tensor = file.info("rope_freqs.weight").is_some();
                assert_eq!(tensor, name.starts_with("llama3"), "{name}");
                forms.push(import::open(&gguf, &device).unwrap());
            }
        }
        for back in forms {
            let c = compare(&model, &back, &texts, &Limits::SAME).unwrap();
            assert!(c.near && c.same_ids && c.distance < 1e-4, "{name}: {c:?}");
        }
        std::fs::remove_dir_all(&own).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn llama_3_keeps_its_numbers_through_gguf() {
    let llama = RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
    let mut model = imported("llama");
    model.transformer.config.rope_theta = 500_000.0;
    model.transformer.config.rope_scaling = Some(llama.clone());
    let file = temporary("rope-named.gguf");
    export::to_gguf(&model, &file, Packing::F32, None).unwrap();
    let back = import::open(&file, &danlu_ops::cpu_device()).unwrap();
    assert_eq!(back.transformer.config.rope_scaling, Some(llama));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_window_of_attention_is_as_long_as_the_context_gets() {
    let path = Path::new("config.json");
    let context = |changes: &[(&str, Value)]| {
        let text = std::fs::read_to_string(golden("mistral/config.json")).unwrap();
        let mut file: Value = serde_json::from_str(&text).unwrap();
        for (key, value) in changes {
            file[*key] = value.clone();
        }
        let read = HfConfig::parse(path, file.to_string().as_bytes()).unwrap();
        read.to_ours(path).unwrap().context
    };
    let qwen = [("model_type", json!("qwen2")), ("architectures", json!([]))];
    assert_eq!(context(&[]), 128);
    assert_eq!(context(&[("sliding_window", json!(64))]), 64);
    assert_eq!(context(&[("sliding_window", json!(4096))]), 128);
    let unused = [&qwen[..], &[("sliding_window", json!(64))]].concat();
    assert_eq!(context(&unused), 128);
    let used = [&unused[..], &[("use_sliding_window", json!(true))]].concat();
    assert_eq!(context(&used), 64);
    let layers = json!(["full_attention", "sliding_attention"]);
    assert_eq!(context(&[&used[..], &[("layer_types", layers)]].concat()), 64);
    let layers = json!(["full_attention", "full_attention"]);
    assert_eq!(context(&[&used[..], &[("layer_types", layers)]].concat()), 128);
}

#[test]
fn a_ramp_that_llama_cpp_does_not_take_is_refused() {
    let mut config = configs()["yarn"].clone();
    let file = temporary("rope-ramp.gguf");
    for (key, turns) in [("beta_fast", 16.0), ("beta_slow", 2.0)] {
        config["rope_scaling"]["beta_fast"] = json!(32.0);
        config["rope_scaling"][key] = json!(turns);
        let model = with_config("ramp", &config);
        let error = export::to_gguf(&model, &file, Packing::F32, None).expect_err(key).to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains("for GGUF"), "{error}");
        assert!(!file.exists());
    }
}
