//! SmolLM3, of whose layers every fourth has no positions (golden/make_no_rope.py): logits, what comes back
//! after export, what is left when layers go, and what is refused.

use super::{came_back, computes, golden, in_eight_bits, temporary};
use danlu_model::compress::{Cut, observe, prune};
use danlu_model::io::{Dtype, Gguf, HfConfig, load_tensors};
use danlu_model::{Model, export, import};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

fn imported() -> Model {
    import::import(&golden("../no_rope"), None, &danlu_ops::cpu_device()).unwrap()
}

fn ids() -> (Vec<u32>, Vec<f32>) {
    let mut file = load_tensors(&golden("../no_rope/logits.safetensors")).unwrap();
    let ids = file["ids"].values.iter().map(|&v| v as u32).collect();
    (ids, file.remove("smollm3").unwrap().values)
}

#[test]
fn layers_without_positions_compute_what_transformers_does() {
    let model = imported();
    let (ids, want) = ids();
    assert_eq!(model.transformer.config.no_rope, [3]);
    computes("smollm3", &model, &ids, &want);
    // It is not a Llama whose positions count everywhere.
    let mut turned = model.transformer.config.clone();
    turned.no_rope.clear();
    let config = HfConfig::from_ours(&turned, None);
    assert_eq!(config.model_type, "llama");
    let folder = temporary("turned");
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden("../no_rope").join(file), folder.join(file)).unwrap();
    }
    let mut text = serde_json::to_value(&config).unwrap();
    text["eos_token_id"] = 2.into();
    std::fs::write(folder.join("config.json"), text.to_string()).unwrap();
    let other = import::import(&folder, None, &danlu_ops::cpu_device()).unwrap();
    let far = super::logits(&other, &ids).iter().zip(&want).any(|(a, b)| (a - b).abs() > 1e-2);
    assert!(far, "positions do not count in this checkpoint, so that it shows nothing");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn layers_without_positions_come_back_and_keep_their_places() {
    let device = danlu_ops::cpu_device();
    let model = imported();
    let own = temporary("no-rope");
    model.save(&own, Dtype::F32).unwrap();
    let folder = own.join("hf");
    export::to_folder(&model, &folder, Dtype::F32, None).unwrap();
    let text = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(config["architectures"], json!(["SmolLM3ForCausalLM"]));
    assert_eq!(config["no_rope_layers"], json!([1, 1, 1, 0, 1]));
    let gguf = own.join("model.gguf");
    export::to_gguf(&model, &gguf, danlu_model::io::Packing::F32, None).unwrap();
    assert_eq!(Gguf::open(&gguf).unwrap().text("general.architecture").unwrap(), "smollm3");
    for (form, path) in [("ours", &own), ("Hugging Face", &folder), ("GGUF", &gguf)] {
        let back = import::open(path, &device).unwrap();
        assert_eq!(back.transformer.config.no_rope, [3], "{form}");
        came_back("smollm3", form, &model, &back);
    }
    in_eight_bits("smollm3", &model, &own.join("q8.gguf"));

    // One layer less: the one without positions is where it was among the others, or gone.
    let (ids, _) = ids();
    let starts = Arc::from([0, ids.len() as u32]);
    let seen = observe(&model.transformer, &[(ids.into(), starts)]);
    let cut = Cut { layers: 2, ..Default::default() };
    let small = prune(&model.transformer, &seen, &cut).unwrap();
    let least = |n: &usize| seen.iter().filter(|s| s.likeness > seen[*n].likeness).count() >= 2;
    let kept: Vec<usize> = (0..5).filter(least).collect();
    let place: Vec<usize> = kept.iter().position(|&layer| layer == 3).into_iter().collect();
    assert_eq!((kept.len(), &small.config.no_rope), (3, &place));
    let pruned = Model { transformer: small, ..model };
    if place != [3] && !place.is_empty() {
        let error = export::to_gguf(&pruned, &gguf, danlu_model::io::Packing::F32, None);
        let error = error.expect_err("no such GGUF").to_string();
        assert!(error.contains("each fourth") && error.contains("model.gguf"), "{error}");
    }
    std::fs::remove_dir_all(&own).unwrap();
}

#[test]
fn what_is_said_of_positions_must_be_of_every_layer() {
    let path = Path::new("config.json");
    let text = std::fs::read(golden("../no_rope/config.json")).unwrap();
    let file: Value = serde_json::from_slice(&text).unwrap();
    let ours = |change: &dyn Fn(&mut Value)| {
        let mut file = file.clone();
        change(&mut file);
        HfConfig::parse(path, file.to_string().as_bytes()).and_then(|c| c.to_ours(path))
    };
    let list = |list: Value| move |file: &mut Value| file["no_rope_layers"] = list.clone();
    assert_eq!(ours(&list(json!([0, 1, 1, 0, 1]))).unwrap().no_rope, [0, 3]);
    // Without a list every fourth, or as the interval says.
    assert_eq!(ours(&list(Value::Null)).unwrap().no_rope, [3]);
    let every = |file: &mut Value| {
        file["no_rope_layers"] = Value::Null;
        file["no_rope_layer_interval"] = 2.into();
    };
    assert_eq!(ours(&every).unwrap().no_rope, [1, 3]);
    for wrong in [json!([1, 1, 0]), json!([1, 1, 1, 2, 1])] {
        let error = ours(&list(wrong)).unwrap_err().to_string();
        assert!(error.contains("no_rope_layers") && error.contains("config.json"), "{error}");
    }
    let llama = |file: &mut Value| {
        file["model_type"] = "llama".into();
        file["architectures"] = json!(["LlamaForCausalLM"]);
    };
    let error = ours(&llama).unwrap_err().to_string();
    assert!(error.contains("`llama`") && error.contains("no_rope_layers"), "{error}");
    let deep = |file: &mut Value| {
        file["no_rope_layers"] = Value::Null;
        file["num_hidden_layers"] = json!(u64::MAX >> 1);
    };
    let error = ours(&deep).unwrap_err().to_string();
    assert!(error.contains("depth"), "{error}");
}
