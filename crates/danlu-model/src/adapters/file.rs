//! An adapter's folder, as PEFT has it: `adapter_config.json`, `adapter_model.safetensors`; and
//! beside them `danlu.json`, what it was learnt on.

use super::{Adapter, Delta};
use crate::io::{
    Dtype, NamedTensor, Shards, Weights, read_regular, save_tensors, write_atomically,
};
use danlu_core::{Error, LoraConfig, MAX_RANK, Result, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Where an adapter came from: `danlu.json` of its folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterInfo {
    /// Name of the run.
    pub name: String,
    /// BLAKE3 of the weights of the base, if it is known.
    pub base: Option<String>,
    /// BLAKE3 of the adapters between, the lowest first.
    #[serde(default)]
    pub parents: Vec<String>,
    /// BLAKE3 of the recipe's text.
    #[serde(default)]
    pub recipe: String,
    /// BLAKE3 of each data file, by name.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Optimiser steps taken.
    #[serde(default)]
    pub steps: u64,
    /// Tokens trained on.
    #[serde(default)]
    pub tokens: u64,
    /// BLAKE3 of the adapter itself.
    #[serde(default)]
    pub hash: String,
}

/// What PEFT's `adapter_config.json` holds, as far as we need it.
#[derive(Debug, Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: TargetModules,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modules_to_save: Option<Vec<String>>,
    // In their order in the file: the first that fits counts.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    rank_pattern: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    alpha_pattern: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TargetModules {
    List(Vec<String>),
    One(String),
}

fn none() -> String {
    "none".into()
}

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const INFO: &str = "danlu.json";
const PREFIX: &str = "base_model.model.";
/// Longest configuration, in bytes.
const LONGEST: u64 = 1 << 20;
/// Keys of PEFT's configuration that change what is computed, in ways that we do not have.
const OTHERWISE: [&str; 12] = [
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "ensure_weight_tying",
];
/// How `init_lora_weights` begins where the base's weights were changed as well.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// What PEFT says of an adapter, but for what would be computed otherwise, which is refused.
fn peft_config(path: &Path) -> Result<PeftConfig> {
    let bytes = read_regular(path, LONGEST)?;
    let wrong = |e| Error::file(path, "PEFT's configuration of a LoRA", e);
    let all: serde_json::Value = serde_json::from_slice(&bytes).map_err(wrong)?;
    for key in OTHERWISE {
        let value = &all[key];
        let empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        if !(value.is_null() || value == false || empty) {
            return Err(Error::file(path, format!("no `{key}`"), value));
        }
    }
    let begun = all["init_lora_weights"].as_str().unwrap_or_default();
    if CHANGES_BASE.iter().any(|c| begun.starts_with(c)) {
        let wanted = "`init_lora_weights` that leaves the base as it is";
        return Err(Error::file(path, wanted, format!("`{begun}`")));
    }
    serde_json::from_value(all).map_err(wrong)
}

/// What an adapter's folder calls its base, if it says.
pub(super) fn base_named(folder: &Path) -> Result<Option<String>> {
    Ok(peft_config(&folder.join(CONFIG))?.base_model_name_or_path.filter(|n| !n.is_empty()))
}

impl Adapter {
    /// Writes the folder. PEFT reads it as it is.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let rank = self.config.rank;
        let mut tensors = Vec::new();
        for ((layer, target), d) in &self.deltas {
            let path = format!("{PREFIX}{}", target.path(*layer));
            let mut push = |name: &str, shape: Vec<usize>, values: &Vec<f32>| {
                let name = format!("{path}.{name}");
                tensors.push(NamedTensor { name, shape, values: values.clone() });
            };
            push("lora_A.weight", vec![rank, d.a.len() / rank], &d.a);
            push("lora_B.weight", vec![d.b.len() / rank, rank], &d.b);
            if let Some(m) = &d.magnitude {
                push("lora_magnitude_vector", vec![m.len()], m);
            }
        }
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        save_tensors(&folder.join(TENSORS), &tensors, Dtype::F32, metadata)?;
        let c = &self.config;
        let config = PeftConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: None,
            r: c.rank,
            lora_alpha: c.alpha,
            lora_dropout: c.dropout,
            target_modules: TargetModules::List(
                c.targets.iter().map(|t| t.name().to_string()).collect(),
            ),
            use_rslora: c.rslora,
            use_dora: c.dora,
            bias: none(),
            fan_in_fan_out: false,
            inference_mode: true,
            modules_to_save: None,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
        };
        write_json(&folder.join(CONFIG), &config)?;
        write_json(&folder.join(INFO), &AdapterInfo { hash: self.hash(), ..self.info.clone() })
    }

    /// Reads a folder of ours or of PEFT's. Refused, by name: another method than LoRA, weights in
    /// pickles, ranks without bounds, tensors that are missing, of a wrong shape, left over or not
    /// finite, and a folder of ours that was changed.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let peft = peft_config(&path)?;
        let wants = |ok: bool, wanted: &str, found: String| {
            if ok { Ok(()) } else { Err(Error::file(&path, wanted, found)) }
        };
        wants(peft.peft_type == "LORA", "`peft_type` LORA", format!("`{}`", peft.peft_type))?;
        wants(peft.bias == "none", "`bias` none", format!("`{}`", peft.bias))?;
        wants(!peft.fan_in_fan_out, "`fan_in_fan_out` false", "true".into())?;
        let saved = peft.modules_to_save.clone().unwrap_or_default();
        wants(saved.is_empty(), "no `modules_to_save`", format!("{saved:?}"))?;
        wants(
            (1..=MAX_RANK).contains(&peft.r),
            &format!("`r` of 1 to {MAX_RANK}"),
            peft.r.to_string(),
        )?;
        // A list names projections, or single ones by their paths; a text is an expression. Which
        // ones they are the tensors tell.
        if let TargetModules::List(names) = &peft.target_modules {
            for name in names {
                let last = name.rsplit('.').next().unwrap_or(name);
                let known = Target::ALL.map(Target::name);
                let wanted = format!("`target_modules` among {}", known.join(", "));
                let path = name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
                wants(path && known.contains(&last), &wanted, format!("`{name}`"))?;
            }
        }
        let each = Patterns::new(&path, &peft)?;
        let config = LoraConfig {
            rank: each.rank,
            alpha: peft.lora_alpha,
            targets: Target::ALL.to_vec(),
            dropout: peft.lora_dropout,
            rslora: peft.use_rslora,
            dora: peft.use_dora,
        };
        config.check().map_err(|e| Error::file(&path, "a LoRA that can work", e))?;
        let path = folder.join(TENSORS);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            let wanted = format!("{TENSORS} (pickles can run code and are never read)");
            return Err(Error::file(folder, wanted, "adapter_model.bin"));
        }
        let (config, deltas) = read_deltas(&path, config, &each)?;
        let path = folder.join(INFO);
        let info = match read_regular(&path, LONGEST) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::file(&path, "what an adapter was learnt on", e))?,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().to_string();
                AdapterInfo { name, ..AdapterInfo::default() }
            }
            Err(e) => return Err(e),
        };
        let adapter = Self { config, info, deltas };
        let hash = adapter.hash();
        if !adapter.info.hash.is_empty() && adapter.info.hash != hash {
            return Err(Error::file(
                &path,
                format!("the adapter with hash {} beside it", adapter.info.hash),
                format!("one with hash {hash}"),
            ));
        }
        Ok(adapter)
    }
}

/// Ranks and alphas of single projections, by an expression for their paths each.
struct Patterns {
    ranks: Vec<(regex::Regex, usize)>,
    alphas: Vec<(regex::Regex, f32)>,
    usual: (usize, f32),
    /// The highest rank, which all get: what is added to smaller ones is zero.
    rank: usize,
}

impl Patterns {
    fn new(path: &Path, peft: &PeftConfig) -> Result<Self> {
        let compiled = |key: &str| {
            regex::RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .size_limit(1 << 16)
                .build()
                .map_err(|e| Error::file(path, "expressions for paths of projections", e))
        };
        let mut ranks = Vec::new();
        for (key, value) in &peft.rank_pattern {
            let rank = value.as_u64().and_then(|r| usize::try_from(r).ok());
            let Some(rank) = rank.filter(|r| (1..=MAX_RANK).contains(r)) else {
                let wanted = format!("`rank_pattern.{key}` of 1 to {MAX_RANK}");
                return Err(Error::file(path, wanted, value));
            };
            ranks.push((compiled(key)?, rank));
        }
        let mut alphas = Vec::new();
        for (key, value) in &peft.alpha_pattern {
            let alpha = value.as_f64().map(|a| a as f32);
            let Some(alpha) = alpha.filter(|a| a.is_finite() && *a > 0.0) else {
                let wanted = format!("`alpha_pattern.{key}` over 0");
                return Err(Error::file(path, wanted, value));
            };
            alphas.push((compiled(key)?, alpha));
        }
        let rank = ranks.iter().map(|r| r.1).chain([peft.r]).max().unwrap_or(peft.r);
        Ok(Self { ranks, alphas, usual: (peft.r, peft.lora_alpha), rank })
    }

    /// Rank and alpha of the projection at a path.
    fn of(&self, name: &str) -> (usize, f32) {
        fn first<T: Copy>(all: &[(regex::Regex, T)], name: &str) -> Option<T> {
            all.iter().find(|(key, _)| key.is_match(name)).map(|(_, value)| *value)
        }
        (
            first(&self.ranks, name).unwrap_or(self.usual.0),
            first(&self.alphas, name).unwrap_or(self.usual.1),
        )
    }
}

type Deltas = BTreeMap<(usize, Target), Delta>;

/// The values of every projection under one rank and alpha, and the configuration of those that
/// there are.
fn read_deltas(
    path: &Path,
    mut config: LoraConfig,
    each: &Patterns,
) -> Result<(LoraConfig, Deltas)> {
    let mut out: BTreeMap<(usize, Target), [Option<NamedTensor>; 3]> = BTreeMap::new();
    let file = Shards::open(path)?;
    for name in file.names() {
        let tensor = file.read(&name)?;
        let (key, part) = place(&name).ok_or_else(|| {
            Error::file(
                path,
                "tensors named base_model.model.model.layers.N.{self_attn,mlp}.X_proj.lora_{A,B}.weight",
                format!("`{name}`"),
            )
        })?;
        if let Some(bad) = tensor.values.iter().find(|v| !v.is_finite()) {
            return Err(Error::file(path, format!("finite values in `{name}`"), bad));
        }
        out.entry(key).or_default()[part] = Some(tensor);
    }
    let mut deltas = BTreeMap::new();
    for ((layer, target), [a, b, magnitude]) in out {
        let name = target.path(layer);
        let missing = |part: &str| Error::file(path, format!("`{name}.{part}`"), "none");
        let (a, b) = (
            a.ok_or_else(|| missing("lora_A.weight"))?,
            b.ok_or_else(|| missing("lora_B.weight"))?,
        );
        let (rank, alpha) = each.of(&name);
        let fits = matches!(a.shape[..], [r, _] if r == rank)
            && matches!(b.shape[..], [_, r] if r == rank);
        if !fits {
            return Err(Error::file(
                path,
                format!("`{name}` of rank {rank} as adapter_config.json says"),
                format!("shapes {:?} and {:?}", a.shape, b.shape),
            ));
        }
        match (config.dora, &magnitude) {
            (true, None) => return Err(missing("lora_magnitude_vector")),
            (true, Some(m)) if m.shape != b.shape[..1] => {
                let wanted = format!("`{name}.lora_magnitude_vector` of {:?}", &b.shape[..1]);
                return Err(Error::file(path, wanted, format!("{:?}", m.shape)));
            }
            (false, Some(_)) => {
                let wanted = format!("no `{name}.lora_magnitude_vector` without `use_dora`");
                return Err(Error::file(path, wanted, "one"));
            }
            _ => {}
        }
        let magnitude = magnitude.map(|m| m.values);
        let scale = LoraConfig { rank, alpha, ..config.clone() }.scale() / config.scale();
        let (mut a, mut b) = (a, b);
        if scale != 1.0 {
            b.values.iter_mut().for_each(|v| *v *= scale);
        }
        if rank < config.rank {
            let (inputs, rows) = (a.shape[1], b.values.chunks_exact(rank));
            let missing = config.rank - rank;
            b.values = rows.flat_map(|r| r.iter().copied().chain(vec![0.0; missing])).collect();
            a.values.resize(config.rank * inputs, 0.0);
        }
        deltas.insert((layer, target), Delta { a: a.values, b: b.values, magnitude });
    }
    if deltas.is_empty() {
        return Err(Error::file(path, "at least one adapted projection", "none"));
    }
    config.targets.retain(|target| deltas.keys().any(|(_, t)| t == target));
    Ok((config, deltas))
}

/// Layer, target and part (0: `a`, 1: `b`, 2: magnitude) of a tensor's name.
fn place(name: &str) -> Option<((usize, Target), usize)> {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name).strip_prefix("model.layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let target = Target::ALL.into_iter().find(|t| {
        let path = t.path(layer);
        name.strip_prefix(PREFIX).unwrap_or(name).starts_with(&format!("{path}."))
    })?;
    let part = match rest.splitn(3, '.').nth(2)? {
        "lora_A.weight" => 0,
        "lora_B.weight" => 1,
        "lora_magnitude_vector" | "lora_magnitude_vector.weight" => 2,
        _ => return None,
    };
    Some(((layer, target), part))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Other(format!("{}: {e}", path.display())))?;
    write_atomically(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::tests::noisy;
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let path =
            std::env::temp_dir().join(format!("danlu-adapter-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_folder_comes_back() {
        for dora in [false, true] {
            let targets = vec![Target::KProj, Target::UpProj];
            let config = LoraConfig { rank: 3, dora, targets, ..Default::default() };
            let adapter = noisy(&config, 7, "a");
            let path = folder("back");
            adapter.save(&path).expect("saves");
            let back = Adapter::load(&path).expect("loads");
            assert_eq!((&back.config, &back.deltas), (&adapter.config, &adapter.deltas));
            assert_eq!(back.info.hash, adapter.hash());
            #[cfg(unix)]
            {
                // Who names a folder may name it by another name.
                let link = folder("link");
                let _ = std::fs::remove_file(&link);
                std::os::unix::fs::symlink(&path, &link).expect("links");
                assert_eq!(Adapter::load(&link).expect("loads").deltas, adapter.deltas);
                std::fs::remove_file(&link).expect("removes");
            }
            std::fs::remove_dir_all(&path).expect("removes");
        }
    }

    #[test]
    fn projections_of_other_ranks_do_the_same() {
        let config = LoraConfig { rank: 4, alpha: 8.0, ..Default::default() };
        let wide = noisy(&config, 7, "a");
        let path = folder("ranks");
        // The same numbers, the queries' with a rank of 2 and an alpha of their own.
        let mut narrow = wide.clone();
        narrow.info.hash.clear();
        for ((layer, target), d) in &mut narrow.deltas {
            if (*layer, *target) == (0, Target::QProj) {
                let inputs = d.a.len() / 4;
                d.a.truncate(2 * inputs);
                d.b = d.b.chunks_exact(4).flat_map(|r| r[..2].to_vec()).collect();
            }
        }
        let mut tensors = Vec::new();
        for ((layer, target), d) in &narrow.deltas {
            let rank = if (*layer, *target) == (0, Target::QProj) { 2 } else { 4 };
            for (part, values, shape) in [
                ("lora_A.weight", &d.a, vec![rank, d.a.len() / rank]),
                ("lora_B.weight", &d.b, vec![d.b.len() / rank, rank]),
            ] {
                let name = format!("{PREFIX}{}.{part}", target.path(*layer));
                tensors.push(NamedTensor { name, shape, values: values.clone() });
            }
        }
        wide.save(&path).expect("saves");
        std::fs::remove_file(path.join(INFO)).expect("removes");
        save_tensors(&path.join(TENSORS), &tensors, Dtype::F32, BTreeMap::new()).expect("saves");
        let change = |key: &str, value: serde_json::Value| {
            let file = path.join(CONFIG);
            let text = std::fs::read_to_string(&file).expect("reads");
            let mut all: serde_json::Value = serde_json::from_str(&text).expect("json");
            all[key] = value;
            std::fs::write(&file, all.to_string()).expect("writes");
        };
        let error = Adapter::load(&path).expect_err("rank 4").to_string();
        assert!(error.contains("layers.0.self_attn.q_proj` of rank 4"), "{error}");
        change("rank_pattern", serde_json::json!({r"layers\.0\.self_attn.q_proj": 2}));
        change("alpha_pattern", serde_json::json!({"model.layers.0.self_attn.q_proj": 12.0}));
        change("target_modules", serde_json::json!(r".*\.(q|k|v|o|gate|up|down)_proj"));
        let back = Adapter::load(&path).expect("loads");
        assert_eq!((back.config.rank, back.config.scale()), (4, 2.0));
        for (key, d) in &back.deltas {
            let whole = &wide.deltas[key];
            if *key != (0, Target::QProj) {
                assert_eq!(d, whole);
                continue;
            }
            // An alpha of 12 by a rank of 2 is 6, three times what the others have.
            assert_eq!(d.a[..d.a.len() / 2], whole.a[..d.a.len() / 2]);
            assert!(d.a[d.a.len() / 2..].iter().all(|&v| v == 0.0));
            for (r, w) in d.b.chunks_exact(4).zip(whole.b.chunks_exact(4)) {
                assert_eq!(r, [3.0 * w[0], 3.0 * w[1], 0.0, 0.0]);
            }
        }
        change("rank_pattern", serde_json::json!({"q_proj": 100_000}));
        let error = Adapter::load(&path).expect_err("rank").to_string();
        assert!(error.contains("rank_pattern.q_proj"), "{error}");
        change("rank_pattern", serde_json::json!({"(q_proj": 2}));
        let error = Adapter::load(&path).expect_err("expression").to_string();
        assert!(error.contains("expressions for paths"), "{error}");
        std::fs::remove_dir_all(&path).expect("removes");
    }

    #[test]
    fn hostile_folders_are_refused_by_name() {
        let adapter = noisy(&LoraConfig { rank: 2, ..Default::default() }, 7, "a");
        let config = |change: &dyn Fn(&mut serde_json::Value)| {
            let path = folder("hostile");
            adapter.save(&path).expect("saves");
            let file = path.join(CONFIG);
            let text = std::fs::read_to_string(&file).expect("reads");
            let mut value: serde_json::Value = serde_json::from_str(&text).expect("json");
            change(&mut value);
            std::fs::write(&file, value.to_string()).expect("writes");
            let error = Adapter::load(&path).expect_err("hostile").to_string();
            std::fs::remove_dir_all(&path).expect("removes");
            error
        };
        for (key, value, want) in [
            ("r", serde_json::json!(100_000), "`r` of 1 to"),
            ("r", serde_json::json!(3), "rank 3"),
            ("peft_type", serde_json::json!("IA3"), "LORA"),
            ("lora_alpha", serde_json::json!(-1.0), "lora.alpha"),
            ("target_modules", serde_json::json!(["../x"]), "../x"),
            ("modules_to_save", serde_json::json!(["lm_head"]), "modules_to_save"),
            ("use_dora", serde_json::json!(true), "lora_magnitude_vector"),
            ("lora_alpha", serde_json::json!(16.0), "hash"),
            ("lora_bias", serde_json::json!(true), "lora_bias"),
            ("layer_replication", serde_json::json!([[0, 2]]), "layer_replication"),
            ("trainable_token_indices", serde_json::json!([1]), "trainable_token_indices"),
            ("init_lora_weights", serde_json::json!("pissa_niter_4"), "pissa_niter_4"),
            ("revision", serde_json::json!("x".repeat(LONGEST as usize)), "at most 1048576"),
        ] {
            let error = config(&|v| v[key] = value.clone());
            assert!(error.contains(want), "{key}: {error}");
        }
        let mut nan = adapter.clone();
        nan.deltas.values_mut().next().expect("one").b[0] = f32::NAN;
        let path = folder("nan");
        nan.save(&path).expect("saves");
        let error = Adapter::load(&path).expect_err("nan").to_string();
        assert!(error.contains("finite") && error.contains("lora_B"), "{error}");
        std::fs::rename(path.join(TENSORS), path.join("adapter_model.bin")).expect("renames");
        let error = Adapter::load(&path).expect_err("pickle").to_string();
        assert!(error.contains("pickles"), "{error}");
        std::fs::remove_dir_all(&path).expect("removes");
    }
}
