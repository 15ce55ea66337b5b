//! Mixtures of experts of others (golden/make_experts.py): logits, what comes back after export, what is
//! kept in few bits, and what is refused.

use super::{came_back, computes, engine_computes, in_eight_bits, temporary};
use danlu_model::io::{Dtype, HfConfig, Packing, load_tensors};
use danlu_model::{Model, export, import};
use danlu_ops::HeadLoss;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NAMES: [&str; 2] = ["qwen3_moe", "mixtral"];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/experts").join(name)
}

fn imported(name: &str) -> Model {
    import::import(&golden(name), None, &danlu_ops::cpu_device()).unwrap()
}

#[test]
fn mixtures_compute_what_transformers_does() {
    let file = load_tensors(&golden("logits.safetensors")).unwrap();
    let ids: Vec<u32> = file["ids"].values.iter().map(|&v| v as u32).collect();
    for name in NAMES {
        let model = imported(name);
        let tail = computes(name, &model, &ids, &file[name].values);
        // The engine has experts of its own, of which each takes its rows of a batch.
        engine_computes(name, &model, &ids, tail);

        // What is added to the loss in training is what transformers adds, layer by layer.
        let n = ids.len();
        let spec = HeadLoss {
            targets: vec![0; n].into(),
            weights: vec![0.0; n].into(),
            scale: 1.0,
            z_loss: 0.0,
        };
        let (loss, _) =
            model.transformer.loss(&ids.clone().into(), &Arc::from([0, n as u32]), &spec);
        let (loss, aux): (f32, f32) =
            (loss.into_scalar(), file[&format!("{name}.aux_loss")].values[0]);
        assert!((loss - 0.02 * aux).abs() < 1e-5, "{name}: {loss}, transformers 0.02 times {aux}");
    }
}

#[test]
fn mixtures_come_back_bit_for_bit_and_in_few_bits() {
    let device = danlu_ops::cpu_device();
    for name in NAMES {
        let model = imported(name);
        let own = temporary(&format!("{name}-own"));
        model.save(&own, Dtype::F32).unwrap();
        let folder = temporary(&format!("{name}-hf"));
        export::to_folder(&model, &folder, Dtype::F32, None).unwrap();
        let gguf = own.join("model.gguf");
        export::to_gguf(&model, &gguf, Packing::F32, None).unwrap();
        for (form, path) in [("ours", &own), ("Hugging Face", &folder), ("GGUF", &gguf)] {
            let back = import::open(path, &device).unwrap();
            came_back(name, form, &model, &back);
            let (a, b) = (&model.transformer.config, &back.transformer.config);
            assert_eq!(
                (a.experts, a.experts_per_token),
                (b.experts, b.experts_per_token),
                "{form}"
            );
            // How it was trained is not in a GGUF file.
            assert_eq!(b.balance, if form == "GGUF" { 0.0 } else { 0.02 }, "{form}");
        }
        in_eight_bits(name, &model, &own.join("q8.gguf"));
        std::fs::remove_dir_all(&own).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn what_a_mixture_is_not_is_refused_by_name() {
    let path = golden("qwen3_moe").join("config.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value, wanted) in [
        ("mlp_only_layers", json!([1]), "mlp_only_layers"),
        ("decoder_sparse_step", json!(2), "decoder_sparse_step"),
        ("num_local_experts", json!(0), "num_experts"),
        ("num_local_experts", json!(100_000), "model.experts"),
        ("num_experts_per_tok", json!(7), "model.experts_per_token"),
        ("moe_intermediate_size", Value::Null, "moe_intermediate_size"),
        ("model_type", json!("qwen3"), "experts"),
    ] {
        let mut file = whole.clone();
        file[key] = value.clone();
        if key == "model_type" {
            file["architectures"] = json!(["Qwen3ForCausalLM"]);
        }
        let read = HfConfig::parse(Path::new("config.json"), file.to_string().as_bytes());
        let error = read.and_then(|c| c.to_ours(Path::new("config.json"))).expect_err(key);
        assert!(error.to_string().contains(wanted), "{key} {value}: {error}");
    }
}
