//! The Hugging Face form of the Qwen3 family: `config.json`, and tensors with query, key and value
//! (and gate and up) as matrices of their own where ours are fused.

use super::NamedTensor;
use crate::arch::{Transformer, TransformerConfig};
use crate::params::Module;
use danlu_core::{Error, Result, Vocabulary};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What `config.json` holds. Keys that we do not need are passed over on reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HfConfig {
    /// `Qwen3ForCausalLM`, or `LlamaForCausalLM` without query and key norms.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// `qwen3` or `llama`.
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
    /// Longest document.
    pub max_position_embeddings: usize,
    /// Base of the rotary angles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f32>,
    /// Newer files keep the base here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<RopeParameters>,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Activation of the feed-forward.
    pub hidden_act: String,
    /// Whether the projections have biases (not supported).
    #[serde(default)]
    pub attention_bias: bool,
    /// How our vocabulary divides, if the model is ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub danlu_vocabulary: Option<Vocabulary>,
}

/// `rope_parameters` of a `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// `default` is the only one supported.
    #[serde(default = "default_rope")]
    pub rope_type: String,
}

fn default_rope() -> String {
    "default".into()
}

impl HfConfig {
    /// The file of our configuration.
    pub fn from_ours(c: &TransformerConfig, vocabulary: Option<Vocabulary>) -> Self {
        let (class, kind) =
            if c.qk_norm { ("Qwen3ForCausalLM", "qwen3") } else { ("LlamaForCausalLM", "llama") };
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
            max_position_embeddings: c.context,
            rope_theta: Some(c.rope_theta),
            rope_parameters: Some(RopeParameters {
                rope_theta: c.rope_theta,
                rope_type: default_rope(),
            }),
            rms_norm_eps: c.norm_eps,
            tie_word_embeddings: c.tied,
            hidden_act: "silu".into(),
            attention_bias: c.qkv_bias,
            danlu_vocabulary: vocabulary,
        }
    }

    /// Our configuration of the file at `path`.
    pub fn to_ours(&self, path: &Path) -> Result<TransformerConfig> {
        let qk_norm = match self.model_type.as_str() {
            "qwen3" => true,
            "llama" => false,
            other => {
                return Err(Error::file(path, "`model_type` qwen3 or llama", format!("`{other}`")));
            }
        };
        if self.hidden_act != "silu" {
            let found = format!("`{}`", self.hidden_act);
            return Err(Error::file(path, "`hidden_act` silu", found));
        }
        if self.attention_bias {
            return Err(Error::file(path, "`attention_bias` false", "true"));
        }
        let rope = self.rope_parameters.as_ref();
        if let Some(other) = rope.map(|r| &r.rope_type).filter(|t| *t != "default") {
            return Err(Error::file(path, "`rope_type` default", format!("`{other}`")));
        }
        let theta = rope.map(|r| r.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let heads = self.num_attention_heads;
        let config = TransformerConfig {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            depth: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
            hidden: self.intermediate_size,
            context: self.max_position_embeddings,
            rope_theta: theta,
            norm_eps: self.rms_norm_eps,
            qk_norm,
            tied: self.tie_word_embeddings,
            qkv_bias: false,
        };
        config.check().map_err(|e| Error::file(path, "sizes that can work", e))?;
        Ok(config)
    }
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

/// Every tensor of a transformer under its Hugging Face name.
pub fn to_hf(model: &Transformer) -> Vec<NamedTensor> {
    let mut out = Vec::new();
    for p in model.parameters() {
        let mut values = p.values();
        match parts(&p.name, &model.config) {
            None => out.push(NamedTensor { name: p.name.clone(), shape: p.shape.clone(), values }),
            Some(parts) => {
                for (name, rows) in parts {
                    let mut shape = p.shape.clone();
                    shape[0] = rows;
                    let rest = values.split_off(shape.iter().product());
                    out.push(NamedTensor { name, shape, values });
                    values = rest;
                }
            }
        }
    }
    out
}

/// Fills a transformer from tensors under their Hugging Face names.
pub fn from_hf(
    model: &mut Transformer,
    mut tensors: BTreeMap<String, NamedTensor>,
    path: &Path,
) -> Result<()> {
    let config = model.config.clone();
    let mut fused = BTreeMap::new();
    for p in model.parameters() {
        let wanted = parts(&p.name, &config).unwrap_or_else(|| vec![(p.name.clone(), p.shape[0])]);
        let mut values = Vec::with_capacity(p.len());
        for (name, rows) in wanted {
            let mut shape = p.shape.clone();
            shape[0] = rows;
            let Some(t) = tensors.remove(&name) else {
                return Err(Error::file(path, format!("a tensor `{name}`"), "none of that name"));
            };
            if t.shape != shape {
                return Err(Error::file(
                    path,
                    format!("tensor `{name}` of shape {shape:?}"),
                    format!("{:?}", t.shape),
                ));
            }
            values.extend(t.values);
        }
        let tensor = NamedTensor { name: p.name.clone(), shape: p.shape.clone(), values };
        fused.insert(p.name.clone(), tensor);
    }
    super::load_parameters(model, &mut fused, path)
}
