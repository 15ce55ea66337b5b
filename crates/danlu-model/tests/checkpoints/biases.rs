//! What few models turn on (golden/make_biases.py): biases of every projection, and gates of experts that do not
//! sum to 1. Logits, what comes back after export, what is left when heads and channels go, and what is
//! refused.

use super::{came_back, computes, engine_computes, in_eight_bits, temporary};
use danlu_model::compress::{Cut, observe, prune};
use danlu_model::io::{Dtype, HfConfig, Packing, load_tensors};
use danlu_model::{Model, Module, export, import};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NAMES: [&str; 3] = ["llama", "qwen3", "qwen3_moe"];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/biases").join(name)
}

fn imported(name: &str) -> Model {
    import::import(&golden(name), None, &danlu_ops::cpu_device()).unwrap()
}

fn ids() -> Vec<u32> {
    let file = load_tensors(&golden("logits.safetensors")).unwrap();
    file["ids"].values.iter().map(|&v| v as u32).collect()
}

#[test]
fn biases_and_gates_compute_what_transformers_does() {
    let file = load_tensors(&golden("logits.safetensors")).unwrap();
    let ids = ids();
    for name in NAMES {
        let model = imported(name);
        let c = &model.transformer.config;
        let turned_on = [c.qkv_bias, c.out_bias, c.mlp_bias, c.gates_of_all];
        assert_eq!(turned_on, [true, true, name == "llama", name == "qwen3_moe"], "{name}");
        let tail = computes(name, &model, &ids, &file[name].values);
        engine_computes(name, &model, &ids, tail);
    }
}

#[test]
fn biases_and_gates_come_back_bit_for_bit() {
    let device = danlu_ops::cpu_device();
    for name in NAMES {
        let model = imported(name);
        let own = temporary(&format!("biased-{name}"));
        model.save(&own, Dtype::F32).unwrap();
        let folder = own.join("hf");
        export::to_folder(&model, &folder, Dtype::F32, None).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(
            (&config["model_type"], &config["attention_bias"]),
            (&json!(name), &json!(true))
        );
        let gguf = own.join("model.gguf");
        let mut forms = vec![("ours", &own), ("Hugging Face", &folder)];
        match (name, export::to_gguf(&model, &gguf, Packing::F32, None)) {
            ("llama", Ok(_)) => forms.push(("GGUF", &gguf)),
            // llama.cpp would leave the biases, or the sum of the gates, without a word.
            ("qwen3", Err(e)) => assert!(e.to_string().contains("biases"), "{e}"),
            ("qwen3_moe", Err(e)) => assert!(e.to_string().contains("sum to 1"), "{e}"),
            (_, other) => panic!("{name}: {other:?}"),
        }
        for (form, path) in forms {
            let back = import::open(path, &device).unwrap();
            assert_eq!(back.transformer.config, model.transformer.config, "{name}, {form}");
            came_back(name, form, &model, &back);
        }
        if name == "llama" {
            in_eight_bits(name, &model, &own.join("q8.gguf"));
        }
        std::fs::remove_dir_all(&own).unwrap();
    }
}

#[test]
fn what_is_left_keeps_its_biases() {
    let model = imported("llama").transformer;
    let ids = ids();
    let starts = Arc::from([0, ids.len() as u32]);
    let seen = observe(&model, &[(ids.into(), starts)]);
    let cut = Cut { kv_heads: 1, channels: 8, ..Default::default() };
    let small = prune(&model, &seen, &cut).unwrap();
    for (to, from) in small.blocks.iter().zip(&model.blocks) {
        for ((to, from), left) in to.linears().iter().zip(from.linears()).zip([64, 32, 48, 32]) {
            let values = |l: &danlu_model::layers::Linear| l.bias.as_ref().unwrap().values();
            let (to, from) = (values(to), values(from));
            assert_eq!(to.len(), left);
            // In the order in which they were.
            let mut rest = from.iter();
            assert!(to.iter().all(|v| rest.any(|f| f == v)), "{to:?} of {from:?}");
        }
    }
    assert!(small.parameters().iter().any(|p| p.name.ends_with("down_proj.bias")));
}

#[test]
fn biases_that_a_kind_of_model_does_not_have_are_refused() {
    let path = Path::new("config.json");
    for (name, key, kind) in [
        ("llama", "attention_bias", "mistral"),
        ("llama", "mlp_bias", "mistral"),
        ("qwen3", "mlp_bias", "qwen3"),
        ("qwen3_moe", "mlp_bias", "qwen3_moe"),
    ] {
        let text = std::fs::read(golden(name).join("config.json")).unwrap();
        let mut file: Value = serde_json::from_slice(&text).unwrap();
        file["attention_bias"] = json!(key == "attention_bias");
        file["mlp_bias"] = json!(key == "mlp_bias");
        file["model_type"] = kind.into();
        file.as_object_mut().unwrap().remove("architectures");
        let read = HfConfig::parse(path, file.to_string().as_bytes());
        let error = read.and_then(|c| c.to_ours(path)).expect_err(kind).to_string();
        assert!(error.contains(key) && error.contains(kind), "{error}");
    }
    let mut odd = imported("qwen3").transformer.config;
    odd.out_bias = false;
    let error = odd.check().unwrap_err().to_string();
    assert!(error.contains("out_bias"), "{error}");
}
