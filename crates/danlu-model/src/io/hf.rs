//! The Hugging Face form of the transformer (Llama, Mistral, SmolLM3, Qwen2, Qwen3, and the mixtures of experts
//! Mixtral and Qwen3-MoE): `config.json`, and tensors with query, key and value (and gate and up) as
//! matrices of their own where ours are fused.

use super::{NamedTensor, Weights, read_regular, rope};
use crate::arch::{Transformer, TransformerConfig};
use crate::params::Module;
use danlu_core::{Error, Result, Vocabulary};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What `config.json` holds. Keys that we do not need are passed over on reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HfConfig {
    /// `Qwen3ForCausalLM`; `Qwen2ForCausalLM` with biases of queries, keys and values,
    /// `LlamaForCausalLM` without, neither with query and key norms.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// `qwen3`, `qwen3_moe`, `qwen2`, `llama`, `mistral`, `mixtral` or `smollm3`.
    pub model_type: String,
    /// Token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head.
    pub head_dim: Option<usize>,
    /// Hidden width of the feed-forward.
    pub intermediate_size: usize,
    /// Experts of a layer, as Qwen names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<usize>,
    /// The same, as Mixtral names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_local_experts: Option<usize>,
    /// How many of them a token is sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_experts_per_tok: Option<usize>,
    /// Hidden width of an expert; Mixtral has it as that of the feed-forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe_intermediate_size: Option<usize>,
    /// Whether the gates of a token's experts sum to 1; Qwen3-MoE's do not if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_topk_prob: Option<bool>,
    /// Weight in the training loss of how unevenly experts are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_aux_loss_coef: Option<f32>,
    /// Longest document.
    pub max_position_embeddings: usize,
    /// Base of the rotary angles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f32>,
    /// Newer files keep the base here, with how the angles are scaled.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub rope_parameters: Value,
    /// The same in older files, without the base; where both are there, this one counts.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub rope_scaling: Value,
    /// The context that was taught before angles were scaled; it goes before what is said beside the scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// For each layer whether it has positions (1) or not (0); SmolLM3's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_rope_layers: Option<Vec<usize>>,
    /// Without the list: every how many layers one has no positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_rope_layer_interval: Option<usize>,
    /// How far attention looks back, if not as far as the context: within it nothing is left out.
    #[serde(rename = "sliding_window", skip_deserializing)]
    pub window: Option<usize>,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Activation of the feed-forward.
    pub hidden_act: String,
    /// Whether all four projections of the attention have biases; Qwen2, which has three, does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_bias: Option<bool>,
    /// Whether the projections of the feed-forward have biases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_bias: Option<bool>,
    /// Precision of the weights, as PyTorch names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// First token of a text; where nothing is said of it, classes of transformers take one of their own.
    #[serde(default)]
    pub bos_token_id: Value,
    /// What ends a text or a reply: one id or several.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub eos_token_id: Value,
    /// What fills a window.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub pad_token_id: Value,
    /// How our vocabulary divides, if the model is ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub danlu_vocabulary: Option<Vocabulary>,
}

/// A kind of model that we compute.
struct Kind {
    /// Its `model_type`.
    name: &'static str,
    /// Its class in transformers.
    class: &'static str,
    qk_norm: bool,
    qkv_bias: bool,
}

#[rustfmt::skip]
const KINDS: [Kind; 7] = [
    Kind { name: "llama", class: "LlamaForCausalLM", qk_norm: false, qkv_bias: false },
    Kind { name: "mistral", class: "MistralForCausalLM", qk_norm: false, qkv_bias: false },
    Kind { name: "mixtral", class: "MixtralForCausalLM", qk_norm: false, qkv_bias: false },
    Kind { name: "smollm3", class: "SmolLM3ForCausalLM", qk_norm: false, qkv_bias: false },
    Kind { name: "qwen2", class: "Qwen2ForCausalLM", qk_norm: false, qkv_bias: true },
    Kind { name: "qwen3", class: "Qwen3ForCausalLM", qk_norm: true, qkv_bias: false },
    Kind { name: "qwen3_moe", class: "Qwen3MoeForCausalLM", qk_norm: true, qkv_bias: false },
];

/// The kind of the file at `path`; another one is refused by its name.
fn kind_of<'a>(name: &Value, path: &Path) -> Result<&'a Kind> {
    let known = || KINDS.iter().find(|kind| name == kind.name);
    known().ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        Error::file(path, format!("`model_type` {}", known.join(", ")), name)
    })
}

/// What the classes of transformers 5 take where a file says nothing, but for sizes that are told
/// everywhere.
fn silent(kind: &Kind) -> Value {
    let mut all = serde_json::json!({
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
        "rope_theta": 10_000.0,
    });
    let own = match kind.name {
        "mistral" => serde_json::json!({"sliding_window": 4096, "num_key_value_heads": 8}),
        "mixtral" => serde_json::json!({
            "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_key_value_heads": 8,
        }),
        "smollm3" => serde_json::json!({
            "tie_word_embeddings": true, "rope_theta": 2e6, "num_key_value_heads": 4,
        }),
        "qwen2" => serde_json::json!({"num_key_value_heads": 32}),
        "qwen3" => serde_json::json!({"num_key_value_heads": 32, "head_dim": 128}),
        "qwen3_moe" => serde_json::json!({"num_key_value_heads": 4}),
        _ => Value::Null,
    };
    for (key, value) in own.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    all
}

/// Longest `config.json`, in bytes.
const LONGEST: u64 = 1 << 20;

/// A key, what is supported of it, and whether a value is that.
type Limit = (&'static str, &'static str, fn(&Value) -> bool);

/// What of a `config.json` would change what the model computes.
const LIMITS: &[Limit] = &[
    ("hidden_act", "silu", |v| v == "silu" || v == "swish"),
    ("partial_rotary_factor", "1", |v| v.as_f64() == Some(1.0)),
    ("n_routed_experts", "no experts beside shared ones", |v| v == 0),
    ("decoder_sparse_step", "1: experts in every layer", |v| v == 1),
    ("mlp_only_layers", "none: experts in every layer", |v| {
        v.as_array().is_some_and(Vec::is_empty)
    }),
    ("quantization_config", "weights that are not quantised", |_| false),
];

/// How far attention of the file looks back in some layer, if not everywhere.
fn window(file: &Value) -> Option<usize> {
    let window = usize::try_from(file.get("sliding_window")?.as_u64()?).ok()?;
    if let Some(layers) = file.get("layer_types").and_then(Value::as_array) {
        return layers.iter().any(|l| l != "full_attention").then_some(window);
    }
    // Qwen names a window that it does not use; Mistral uses what it names.
    let qwen = file["model_type"].as_str().is_some_and(|t| t.starts_with("qwen"));
    let used = file.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(!qwen);
    used.then_some(window)
}

impl HfConfig {
    /// Reads a `config.json` and refuses what we would compute otherwise, by the key.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &read_regular(path, LONGEST)?)
    }

    /// The same of bytes; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let wanted = "the configuration of a model in JSON";
        let mut file: Value =
            serde_json::from_slice(bytes).map_err(|e| Error::file(path, wanted, e))?;
        let kind = kind_of(file.get("model_type").unwrap_or(&Value::Null), path)?;
        if let (Some(file), Value::Object(silent)) = (file.as_object_mut(), silent(kind)) {
            silent.into_iter().for_each(|(key, value)| {
                file.entry(key).or_insert(value);
            });
        }
        for (key, wanted, right) in LIMITS {
            match file.get(key) {
                None | Some(Value::Null) => {}
                Some(value) if right(value) => {}
                Some(value) => return Err(Error::file(path, format!("`{key}`: {wanted}"), value)),
            }
        }
        let window = window(&file);
        let read: Self = serde_json::from_value(file).map_err(|e| Error::file(path, wanted, e))?;
        Ok(Self { window, ..read })
    }

    /// The file of our configuration.
    pub fn from_ours(c: &TransformerConfig, vocabulary: Option<Vocabulary>) -> Self {
        let mixes = c.experts > 0;
        // Of queries, keys and values alone.
        let three = c.qkv_bias && !c.out_bias;
        let (class, kind) = match c.qk_norm {
            true if mixes => ("Qwen3MoeForCausalLM", "qwen3_moe"),
            true => ("Qwen3ForCausalLM", "qwen3"),
            false if mixes => ("MixtralForCausalLM", "mixtral"),
            false if three => ("Qwen2ForCausalLM", "qwen2"),
            false if !c.no_rope.is_empty() => ("SmolLM3ForCausalLM", "smollm3"),
            // The class of Llama wants a width that its heads divide.
            false if !c.width.is_multiple_of(c.heads) && !c.out_bias && !c.mlp_bias => {
                ("MistralForCausalLM", "mistral")
            }
            false => ("LlamaForCausalLM", "llama"),
        };
        let ends = vocabulary.as_ref().map(Vocabulary::ends).unwrap_or_default();
        let pad = vocabulary.as_ref().map(|v| v.control_id(danlu_core::Control::Pad));
        Self {
            architectures: vec![class.into()],
            model_type: kind.into(),
            vocab_size: c.vocabulary,
            hidden_size: c.width,
            num_hidden_layers: c.depth,
            num_attention_heads: c.heads,
            num_key_value_heads: Some(c.kv_heads),
            head_dim: Some(c.head_dim),
            intermediate_size: c.hidden,
            num_experts: (mixes && c.qk_norm).then_some(c.experts),
            num_local_experts: (mixes && !c.qk_norm).then_some(c.experts),
            num_experts_per_tok: mixes.then_some(c.experts_per_token),
            moe_intermediate_size: (mixes && c.qk_norm).then_some(c.hidden),
            norm_topk_prob: (mixes && c.qk_norm).then_some(!c.gates_of_all),
            router_aux_loss_coef: mixes.then_some(c.balance),
            max_position_embeddings: c.context,
            rope_theta: Some(c.rope_theta),
            rope_scaling: match &c.rope_scaling {
                None => Value::Null,
                Some(_) => rope::to_config(c),
            },
            rope_parameters: rope::to_config(c),
            original_max_position_embeddings: None,
            no_rope_layers: (!c.no_rope.is_empty())
                .then(|| (0..c.depth).map(|i| usize::from(!c.no_rope.contains(&i))).collect()),
            no_rope_layer_interval: None,
            window: None,
            rms_norm_eps: c.norm_eps,
            tie_word_embeddings: c.tied,
            hidden_act: "silu".into(),
            attention_bias: Some(c.out_bias),
            mlp_bias: c.mlp_bias.then_some(true),
            dtype: None,
            bos_token_id: Value::Null,
            eos_token_id: match ends[..] {
                [] => Value::Null,
                [end] => end.into(),
                _ => ends.into(),
            },
            pad_token_id: pad.into(),
            danlu_vocabulary: vocabulary,
        }
    }

    /// The `generation_config.json` beside it.
    pub(crate) fn generation(&self) -> Value {
        let mut all = serde_json::json!({
            "eos_token_id": self.eos_token_id, "pad_token_id": self.pad_token_id,
        });
        if !self.bos_token_id.is_null() {
            all["bos_token_id"] = self.bos_token_id.clone();
        }
        all
    }

    /// Our configuration of the file at `path`.
    pub fn to_ours(&self, path: &Path) -> Result<TransformerConfig> {
        let kind = kind_of(&Value::from(self.model_type.as_str()), path)?;
        if let Some(other) = self.architectures.iter().find(|a| *a != kind.class) {
            return Err(Error::file(path, format!("`architectures` {}", kind.class), other));
        }
        let (experts, chosen) = self.experts(path)?;
        let [attention_bias, mlp_bias] = self.biases(path)?;
        let places = [&self.rope_scaling, &self.rope_parameters];
        let beside = rope::Beside {
            context: self.max_position_embeddings,
            taught: self.original_max_position_embeddings,
            theta: self.rope_theta,
        };
        let rope = rope::of_config(path, places, beside)?;
        let shorter = [self.window, rope.context].into_iter().flatten().min();
        let heads = self.num_attention_heads;
        let head_dim = match self.head_dim {
            Some(width) => width,
            None if heads == 0 || !self.hidden_size.is_multiple_of(heads) => {
                let wanted = format!("`num_attention_heads` that divide {}", self.hidden_size);
                return Err(Error::file(path, wanted, heads));
            }
            None => self.hidden_size / heads,
        };
        let config = TransformerConfig {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            depth: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            hidden: match self.moe_intermediate_size {
                Some(hidden) if experts > 0 => hidden,
                _ => self.intermediate_size,
            },
            context: self.max_position_embeddings.min(shorter.unwrap_or(usize::MAX)),
            rope_theta: rope.theta.or(self.rope_theta).unwrap_or(10_000.0),
            rope_scaling: rope.scaling,
            no_rope: self.no_rope(path)?,
            norm_eps: self.rms_norm_eps,
            qk_norm: kind.qk_norm,
            tied: self.tie_word_embeddings,
            qkv_bias: kind.qkv_bias || attention_bias,
            out_bias: attention_bias,
            mlp_bias,
            experts,
            experts_per_token: chosen,
            gates_of_all: self.model_type == "qwen3_moe" && self.norm_topk_prob != Some(true),
            balance: match experts {
                0 => 0.0,
                _ => self.router_aux_loss_coef.unwrap_or_default(),
            },
        };
        config.check().map_err(|e| Error::file(path, "sizes that can work", e))?;
        Ok(config)
    }

    /// The layers without positions.
    fn no_rope(&self, path: &Path) -> Result<Vec<usize>> {
        let depth = self.num_hidden_layers;
        let smollm = self.model_type == "smollm3";
        let Some(all) = &self.no_rope_layers else {
            // What transformers takes where a file says nothing.
            let every = if smollm { self.no_rope_layer_interval.unwrap_or(4) } else { 0 };
            let plain = |layer: &usize| every > 0 && (layer + 1).is_multiple_of(every);
            return Ok((0..depth.min(TransformerConfig::DEEPEST)).filter(plain).collect());
        };
        let of = |kind| all.iter().filter(|&&turns| turns == kind).count();
        let turned = of(1);
        if all.len() != depth || turned + of(0) != depth || !(smollm || turned == depth) {
            let wanted = match smollm {
                true => format!("`no_rope_layers`: 0 or 1 for each of {depth} layers"),
                false => format!("positions in every layer of type `{}`", self.model_type),
            };
            return Err(Error::file(path, wanted, format!("`no_rope_layers` {all:?}")));
        }
        Ok((0..depth).filter(|&layer| all[layer] == 0).collect())
    }

    /// Whether all projections of the attention have biases, and those of the feed-forward.
    fn biases(&self, path: &Path) -> Result<[bool; 2]> {
        let has = |key, said: Option<bool>, kinds: &[&str]| match said {
            Some(true) if !kinds.contains(&self.model_type.as_str()) => {
                let wanted = format!("`{key}` false in a model of type `{}`", self.model_type);
                Err(Error::file(path, wanted, true))
            }
            said => Ok(said.unwrap_or_default()),
        };
        // Qwen2 has three of its own, whatever this key says.
        let said = self.attention_bias.filter(|_| self.model_type != "qwen2");
        let attention = ["llama", "smollm3", "qwen3", "qwen3_moe"];
        Ok([
            has("attention_bias", said, &attention)?,
            has("mlp_bias", self.mlp_bias, &["llama", "smollm3"])?,
        ])
    }

    /// Experts of a layer and how many a token is sent to, as the kind of model has them.
    fn experts(&self, path: &Path) -> Result<(usize, usize)> {
        // What the classes of transformers take where a file says nothing.
        let (key, experts, chosen, hidden) = match self.model_type.as_str() {
            "qwen3_moe" => {
                // Newer files have the name of Mixtral.
                let experts = self.num_experts.or(self.num_local_experts);
                ("num_experts", experts, 8, self.moe_intermediate_size)
            }
            "mixtral" => {
                ("num_local_experts", self.num_local_experts, 2, Some(self.intermediate_size))
            }
            kind => {
                let all = [self.num_experts, self.num_local_experts];
                return match all.into_iter().flatten().find(|&n| n > 0) {
                    None => Ok((0, 0)),
                    Some(n) => {
                        let keys = "(`num_experts`, `num_local_experts`)";
                        let wanted = format!("no experts {keys} in a model of type `{kind}`");
                        Err(Error::file(path, wanted, n))
                    }
                };
            }
        };
        let Some(experts) = experts.filter(|&n| n > 0) else {
            return Err(Error::file(path, format!("a number under `{key}`"), "none"));
        };
        if hidden.is_none() {
            return Err(Error::file(path, "a number under `moe_intermediate_size`", "none"));
        }
        Ok((experts, self.num_experts_per_tok.unwrap_or(chosen)))
    }
}

/// The names of Mixtral for those of Qwen, which ours are.
const MIXTRAL: [(&str, &str); 4] = [
    (".mlp.gate.", ".block_sparse_moe.gate."),
    (".gate_proj.", ".w1."),
    (".up_proj.", ".w3."),
    (".down_proj.", ".w2."),
];

/// The name of a tensor in the file, from ours.
pub(super) fn file_name(name: String, c: &TransformerConfig) -> String {
    if c.experts == 0 || c.qk_norm || !name.contains(".mlp.") {
        return name;
    }
    let name = MIXTRAL.iter().fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
    name.replace(".mlp.experts.", ".block_sparse_moe.experts.")
}

/// The parts of a fused parameter and their rows.
fn parts(name: &str, c: &TransformerConfig) -> Option<Vec<(String, usize)>> {
    let split = |fused: &str, into: &[(&str, usize)]| {
        [".weight", ".bias"]
            .iter()
            .any(|kind| name.ends_with(&format!("{fused}{kind}")))
            .then(|| into.iter().map(|(part, rows)| (name.replace(fused, part), *rows)).collect())
    };
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    split("qkv_proj", &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)])
        .or_else(|| split("gate_up_proj", &[("gate_proj", c.hidden), ("up_proj", c.hidden)]))
}

/// A part of a parameter as a Hugging Face file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name there.
    pub name: String,
    /// The same as Qwen has it, whatever kind of file it is for.
    pub plain_name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Which of [`Module::parameters`] it is of.
    parameter: usize,
    /// First value of it in the parameter.
    from: usize,
}

impl Part {
    /// Its values.
    pub fn values(&self, model: &Transformer) -> Vec<f32> {
        let p = model.parameters()[self.parameter];
        let n: usize = self.shape.iter().product();
        if p.len() == n {
            return p.values();
        }
        if p.frozen.is_some() {
            return p.values()[self.from..self.from + n].to_vec();
        }
        // The rest is not copied for it: a checkpoint's largest matrices are parts of one.
        let part = match p.tensor.dims() {
            [1, _] => p.tensor.clone().narrow(1, self.from, n),
            [_, columns] => p.tensor.clone().narrow(0, self.from / columns, n / columns),
        };
        part.into_data().try_into_vec().expect("parameters are f32")
    }
}

/// What a Hugging Face file of a transformer holds, in file order.
pub fn parts_of(model: &Transformer) -> Vec<Part> {
    let mut out = Vec::new();
    for (parameter, p) in model.parameters().into_iter().enumerate() {
        let names =
            parts(&p.name, &model.config).unwrap_or_else(|| vec![(p.name.clone(), p.shape[0])]);
        let mut from = 0;
        for (name, rows) in names {
            let mut shape = p.shape.clone();
            shape[0] = rows;
            let n: usize = shape.iter().product();
            let plain_name = name.clone();
            let name = file_name(name, &model.config);
            out.push(Part { name, plain_name, shape, parameter, from });
            from += n;
        }
    }
    out
}

/// Every tensor of a transformer under its Hugging Face name.
pub fn to_hf(model: &Transformer) -> Vec<NamedTensor> {
    parts_of(model)
        .into_iter()
        .map(|p| NamedTensor { values: p.values(model), name: p.name, shape: p.shape })
        .collect()
}

/// Refuses tensors that are not those of `parts`: each must be there in its shape, and nothing that would
/// compute something else. `tied`: a head may be there if it is the embedding.
pub(crate) fn check_parts(parts: &[Part], weights: &dyn Weights, tied: bool) -> Result<()> {
    let path = weights.path();
    for part in parts {
        let name = &part.name;
        match weights.shape(name) {
            Some(shape) if shape == part.shape => {}
            Some(shape) => {
                let wanted = format!("tensor `{name}` of shape {:?}", part.shape);
                return Err(Error::file(path, wanted, format!("{shape:?}")));
            }
            None => {
                let wanted = format!("a tensor `{name}`");
                return Err(Error::file(path, wanted, "none of that name"));
            }
        }
    }
    let known: std::collections::HashSet<&str> = parts.iter().map(|p| p.name.as_str()).collect();
    for name in weights.names() {
        // Old files keep the rotary angles; a tied model may keep its head, which is the embedding.
        let repeats = name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
        if !known.contains(name.as_str()) && !repeats {
            let wanted = "the tensors of its configuration and no others";
            return Err(Error::file(path, wanted, format!("`{name}` besides")));
        }
    }
    let head = "lm_head.weight";
    if tied
        && weights.shape(head).is_some()
        && weights.read(head)?.values != weights.read("model.embed_tokens.weight")?.values
    {
        let wanted = format!("`tie_word_embeddings` false, or a `{head}` that is the embedding");
        return Err(Error::file(path, wanted, format!("another `{head}`")));
    }
    Ok(())
}

/// The values of a part, all of them numbers.
pub(crate) fn read_part(part: &Part, weights: &dyn Weights) -> Result<Vec<f32>> {
    let values = weights.read(&part.name)?.values;
    if let Some(odd) = values.iter().find(|v| !v.is_finite()) {
        let wanted = format!("finite numbers in tensor `{}`", part.name);
        return Err(Error::file(weights.path(), wanted, odd));
    }
    Ok(values)
}

/// Fills a transformer from tensors under their Hugging Face names, one a thread at a time. Every tensor
/// must be there in its shape, and nothing that would compute something else.
pub fn fill(model: &mut Transformer, weights: &dyn Weights) -> Result<()> {
    let all = parts_of(model);
    check_parts(&all, weights, model.config.tied)?;
    let mut of: Vec<Vec<&Part>> = vec![Vec::new(); all.last().map_or(0, |p| p.parameter + 1)];
    all.iter().for_each(|part| of[part.parameter].push(part));
    // In the order of the parameters, so that the same file has the same error.
    let filled: Vec<Result<()>> = model
        .parameters_mut()
        .into_par_iter()
        .zip(of)
        .map(|(p, parts)| {
            let mut values = read_part(parts[0], weights)?;
            for part in &parts[1..] {
                values.extend(read_part(part, weights)?);
            }
            p.set(values);
            Ok(())
        })
        .collect();
    filled.into_iter().collect()
}

/// The same from tensors in memory.
pub fn from_hf(
    model: &mut Transformer,
    tensors: BTreeMap<String, NamedTensor>,
    path: &Path,
) -> Result<()> {
    struct Held(PathBuf, BTreeMap<String, NamedTensor>);
    impl Weights for Held {
        fn path(&self) -> &Path {
            &self.0
        }
        fn names(&self) -> Vec<String> {
            self.1.keys().cloned().collect()
        }
        fn shape(&self, name: &str) -> Option<Vec<usize>> {
            Some(self.1.get(name)?.shape.clone())
        }
        fn read(&self, name: &str) -> Result<NamedTensor> {
            Ok(self.1[name].clone())
        }
    }
    fill(model, &Held(path.into(), tensors))
}
