//! The form that llama.cpp gives to the transformer in GGUF files: keys, names of tensors, and rows of
//! queries and keys in another order where it turns neighbouring pairs.

use super::gguf::{Gguf, Value};
use super::hf::file_name;
use super::{NamedTensor, Weights, rope};
use crate::arch::TransformerConfig;
use danlu_core::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// An architecture as GGUF names it.
struct Architecture {
    name: &'static str,
    qk_norm: bool,
    biases: Biases,
    /// Whether llama.cpp turns neighbouring elements of a head, and files keep the rows of queries
    /// and keys in that order. We turn element `i` with `i + half`, as Hugging Face does.
    interleaved: bool,
    /// Whether layers may be mixtures of experts, and whether they may not be.
    experts: [bool; 2],
    /// Whether every fourth layer has no positions.
    no_rope: bool,
    /// Whether llama.cpp takes heads of any width, and not only those that are as wide as the model together.
    any_heads: bool,
}

/// The biases that llama.cpp reads for an architecture.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Biases {
    None,
    /// Of queries, keys and values.
    Queries,
    /// Any: each is there if its tensor is.
    Any,
}

#[rustfmt::skip]
const ARCHITECTURES: [Architecture; 5] = [
    Architecture {
        name: "llama", qk_norm: false, biases: Biases::Any, interleaved: true, experts: [true, true],
        no_rope: false, any_heads: true,
    },
    Architecture {
        name: "qwen2", qk_norm: false, biases: Biases::Queries, interleaved: false, experts: [false, true],
        no_rope: false, any_heads: false,
    },
    Architecture {
        name: "qwen3", qk_norm: true, biases: Biases::None, interleaved: false, experts: [false, true],
        no_rope: false, any_heads: true,
    },
    Architecture {
        name: "qwen3moe", qk_norm: true, biases: Biases::None, interleaved: false, experts: [true, false],
        no_rope: false, any_heads: true,
    },
    Architecture {
        name: "smollm3", qk_norm: false, biases: Biases::None, interleaved: true, experts: [false, true],
        no_rope: true, any_heads: true,
    },
];

/// Parts of names outside and inside of a layer: ours (Hugging Face's), and those of GGUF.
const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
const INSIDE: [(&str, &str); 12] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
];
/// Parts of names of an expert, and of the tensor that has those of all experts of a layer.
const EXPERTS: [(&str, &str); 3] =
    [("gate_proj", "ffn_gate_exps"), ("up_proj", "ffn_up_exps"), ("down_proj", "ffn_down_exps")];

/// The name in GGUF of a tensor under our (Hugging Face's) name, and which of the matrices in it that
/// is, where it is an expert's.
pub fn gguf_name(name: &str) -> Option<(String, Option<usize>)> {
    let (stem, kind) = name.rsplit_once('.')?;
    let Some(rest) = stem.strip_prefix("model.layers.") else {
        let (_, theirs) = OUTSIDE.iter().find(|n| n.0 == stem)?;
        return Some((format!("{theirs}.{kind}"), None));
    };
    let (layer, part) = rest.split_once('.')?;
    let (theirs, number) = match part.strip_prefix("mlp.experts.") {
        Some(rest) => {
            let (number, part) = rest.split_once('.')?;
            let (_, theirs) = EXPERTS.iter().find(|n| n.0 == part)?;
            (theirs, Some(number.parse().ok()?))
        }
        None => (&INSIDE.iter().find(|n| n.0 == part)?.1, None),
    };
    Some((format!("blk.{layer}.{theirs}.{kind}"), number))
}

/// Our (Hugging Face's) names of a tensor of a GGUF file: one, or that of each of `experts`.
fn our_names(name: &str, experts: usize) -> Option<Vec<(String, Option<usize>)>> {
    let (stem, kind) = name.rsplit_once('.')?;
    let Some(rest) = stem.strip_prefix("blk.") else {
        let (ours, _) = OUTSIDE.iter().find(|n| n.1 == stem)?;
        return Some(vec![(format!("{ours}.{kind}"), None)]);
    };
    let (layer, part) = rest.split_once('.')?;
    if let Some((ours, _)) = EXPERTS.iter().find(|n| n.1 == part) {
        let one = |e| format!("model.layers.{layer}.mlp.experts.{e}.{ours}.{kind}");
        return Some((0..experts).map(|e| (one(e), Some(e))).collect());
    }
    let (ours, _) = INSIDE.iter().find(|n| n.1 == part)?;
    Some(vec![(format!("model.layers.{layer}.{ours}.{kind}"), None)])
}

/// Rows of heads with neighbouring pairs, from rows with halves, or back.
fn reorder(values: &[f32], rows: usize, head_dim: usize, to_pairs: bool) -> Vec<f32> {
    let width = values.len() / rows;
    let half = head_dim / 2;
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        let (head, i) = (row / head_dim, row % head_dim);
        let pair = head * head_dim + 2 * (i % half) + i / half;
        let (from, to) = if to_pairs { (row, pair) } else { (pair, row) };
        out[to * width..][..width].copy_from_slice(&values[from * width..][..width]);
    }
    out
}

/// Whether rows of a tensor of ours stand in another order in llama.cpp.
fn turned(name: &str) -> bool {
    name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.")
}

/// Values of a tensor as GGUF wants them for an architecture of ours.
pub fn to_gguf_order(c: &TransformerConfig, name: &str, rows: usize, values: Vec<f32>) -> Vec<f32> {
    if architecture_of(c).is_some_and(|a| a.interleaved) && turned(name) {
        reorder(&values, rows, c.head_dim, true)
    } else {
        values
    }
}

/// The layers of SmolLM3 that have no positions, which GGUF does not write down.
fn every_fourth(depth: usize) -> Vec<usize> {
    (3..depth.min(TransformerConfig::DEEPEST)).step_by(4).collect()
}

/// Refuses a configuration that no architecture of GGUF has; `path` is the file that was asked for.
pub fn check_architecture(c: &TransformerConfig, path: &Path) -> Result<()> {
    if architecture_of(c).is_some() {
        return Ok(());
    }
    let (wanted, found) = if c.gates_of_all {
        ("gates of experts that sum to 1, for GGUF", "shares of all experts".into())
    } else if c.out_bias || c.mlp_bias {
        let found = "norms, experts or layers without positions, and biases";
        (
            "no norms of queries and keys, experts or layers without positions beside biases, for GGUF",
            found.into(),
        )
    } else if c.qkv_bias && c.heads * c.head_dim != c.width {
        let wanted = "heads that are as wide as the model together, where queries, keys and values alone \
                      have biases, for GGUF";
        (wanted, format!("{} of {} in a width of {}", c.heads, c.head_dim, c.width))
    } else {
        let wanted = "positions in every layer, or (without norms and biases of queries and keys) in all \
                      but each fourth, for GGUF";
        (wanted, format!("none in layers {:?}", c.no_rope))
    };
    Err(Error::file(path, wanted, found))
}

fn architecture_of(c: &TransformerConfig) -> Option<&'static Architecture> {
    let fits = |a: &&Architecture| {
        let biases = match a.biases {
            Biases::None => !(c.qkv_bias || c.out_bias || c.mlp_bias),
            Biases::Queries => c.qkv_bias && !c.out_bias && !c.mlp_bias,
            // Those of queries alone are another's.
            Biases::Any => c.qkv_bias == c.out_bias,
        };
        let positions = match a.no_rope {
            false => c.no_rope.is_empty(),
            true => !c.no_rope.is_empty() && c.no_rope == every_fourth(c.depth),
        };
        let mixes = a.experts[usize::from(c.experts == 0)];
        let heads = a.any_heads || c.heads * c.head_dim == c.width;
        a.qk_norm == c.qk_norm && biases && positions && mixes && heads && !c.gates_of_all
    };
    ARCHITECTURES.iter().find(fits)
}

/// The keys of GGUF for a configuration.
///
/// # Panics
/// If no architecture has it ([`check_architecture`]).
pub fn architecture_keys(c: &TransformerConfig) -> Vec<(String, Value)> {
    let name = architecture_of(c).expect("an architecture that was checked").name;
    let key = |part: &str, value: Value| (format!("{name}.{part}"), value);
    let mut keys = vec![
        ("general.architecture".into(), name.into()),
        key("block_count", c.depth.into()),
        key("context_length", c.context.into()),
        key("embedding_length", c.width.into()),
        key("feed_forward_length", c.hidden.into()),
        key("attention.head_count", c.heads.into()),
        key("attention.head_count_kv", c.kv_heads.into()),
        key("attention.key_length", c.head_dim.into()),
        key("attention.value_length", c.head_dim.into()),
        key("attention.layer_norm_rms_epsilon", c.norm_eps.into()),
        key("rope.dimension_count", c.head_dim.into()),
        key("rope.freq_base", c.rope_theta.into()),
        key("vocab_size", c.vocabulary.into()),
    ];
    if c.experts > 0 {
        keys.push(key("expert_count", c.experts.into()));
        keys.push(key("expert_used_count", c.experts_per_token.into()));
        keys.push(key("expert_feed_forward_length", c.hidden.into()));
    }
    keys.extend(rope::gguf_keys(c).into_iter().map(|(part, value)| key(part, value)));
    keys
}

/// The transformer of a GGUF file: its configuration, and its tensors under our names.
#[derive(Debug)]
pub struct GgufWeights {
    file: Gguf,
    /// Sizes.
    pub config: TransformerConfig,
    interleaved: bool,
    /// Names in the file by ours, with the number of an expert's matrix.
    names: BTreeMap<String, (String, Option<usize>)>,
}

impl GgufWeights {
    /// Reads the configuration, and refuses what we would compute otherwise.
    pub fn new(file: Gguf) -> Result<Self> {
        let path = file.path();
        let name = file.text("general.architecture")?;
        let Some(a) = ARCHITECTURES.iter().find(|a| a.name == name) else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
            let wanted = format!("`general.architecture` {}", known.join(", "));
            return Err(Error::file(path, wanted, format!("`{name}`")));
        };
        let key = |part: &str| format!("{name}.{part}");
        if let Some(parts) = file.maybe_size("split.count")?.filter(|&parts| parts > 1) {
            let wanted = "a whole file (`llama-gguf-split --merge` makes one of its parts)";
            return Err(Error::file(path, wanted, format!("one of {parts} parts")));
        }
        if file.get(&key("attention.causal")) == Some(&Value::Bool(false)) {
            return Err(Error::file(path, format!("`{}` true", key("attention.causal")), false));
        }
        let heads = file.size(&key("attention.head_count"))?;
        let width = file.size(&key("embedding_length"))?;
        let head_dim = match file.maybe_size(&key("attention.key_length"))? {
            Some(v) => v,
            None if heads > 0 && width.is_multiple_of(heads) => width / heads,
            None => {
                let wanted = format!("`{}` that divides {width}", key("attention.head_count"));
                return Err(Error::file(path, wanted, heads));
            }
        };
        let experts = file.maybe_size(&key("expert_count"))?.unwrap_or(0);
        let chosen = file.maybe_size(&key("expert_used_count"))?.unwrap_or(0);
        if !a.experts[usize::from(experts == 0)] {
            let wanted = if experts > 0 { "0" } else { "at least 1" };
            return Err(Error::file(path, format!("`{}` {wanted}", key("expert_count")), experts));
        }
        let of_experts = key("expert_feed_forward_length");
        let hidden = match file.maybe_size(&of_experts)?.filter(|_| experts > 0) {
            Some(hidden) => hidden,
            None => file.size(&key("feed_forward_length"))?,
        };
        for (part, wanted) in [
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
            ("expert_shared_count", 0),
        ] {
            let found = file.maybe_size(&key(part))?;
            if let Some(found) = found.filter(|&f| f != wanted) {
                return Err(Error::file(path, format!("`{}` {wanted}", key(part)), found));
            }
        }
        let Some(table) = file.info("token_embd.weight") else {
            return Err(Error::file(path, "a tensor `token_embd.weight`", "none of that name"));
        };
        let epsilon = key("attention.layer_norm_rms_epsilon");
        let Some(norm_eps) = file.maybe_float(&epsilon)? else {
            return Err(Error::file(path, format!("a number under `{epsilon}`"), "nothing"));
        };
        let rope_theta = file.maybe_float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        // Within the window of sliding attention nothing is left out.
        let window = file.maybe_size(&key("attention.sliding_window"))?.filter(|&w| w > 0);
        let context = file.size(&key("context_length"))?;
        let depth = file.size(&key("block_count"))?;
        let has = |bias: &str| match a.biases {
            Biases::None => false,
            Biases::Queries => bias == "attn_q",
            Biases::Any => file.info(&format!("blk.0.{bias}.bias")).is_some(),
        };
        let config = TransformerConfig {
            vocabulary: table.shape[0],
            width,
            depth,
            heads,
            kv_heads: file.maybe_size(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            hidden,
            context: context.min(window.unwrap_or(usize::MAX)),
            rope_theta,
            rope_scaling: rope::of_gguf(&file, &key, rope_theta)?,
            no_rope: if a.no_rope { every_fourth(depth) } else { Vec::new() },
            norm_eps,
            qk_norm: a.qk_norm,
            tied: file.info("output.weight").is_none(),
            qkv_bias: has("attn_q"),
            out_bias: has("attn_output"),
            mlp_bias: has("ffn_up"),
            experts,
            experts_per_token: if experts > 0 { chosen } else { 0 },
            gates_of_all: false,
            balance: 0.0,
        };
        config.check().map_err(|e| Error::file(path, "sizes that can work", e))?;
        let mut names = BTreeMap::new();
        for theirs in file.names().filter(|&name| name != rope::FACTORS) {
            let Some(ours) = our_names(theirs, experts) else {
                let wanted = format!("tensors of `{name}`");
                return Err(Error::file(path, wanted, format!("`{theirs}` besides")));
            };
            for (ours, number) in ours {
                names.insert(file_name(ours, &config), (theirs.to_string(), number));
            }
        }
        Ok(Self { config, interleaved: a.interleaved, names, file })
    }

    /// The file.
    pub fn file(&self) -> &Gguf {
        &self.file
    }
}

impl Weights for GgufWeights {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (theirs, number) = self.names.get(name)?;
        let shape = &self.file.info(theirs)?.shape;
        Some(match number {
            Some(number) if shape.len() == 3 && *number < shape[0] => shape[1..].to_vec(),
            _ => shape.clone(),
        })
    }

    fn read(&self, name: &str) -> Result<NamedTensor> {
        let Some((theirs, number)) = self.names.get(name) else {
            let wanted = format!("a tensor `{name}`");
            return Err(Error::file(self.path(), wanted, "none of that name"));
        };
        let mut tensor = match number {
            Some(number) => self.file.read_one(theirs, *number)?,
            None => self.file.read(theirs)?,
        };
        tensor.name = name.into();
        if self.interleaved && turned(name) {
            let (rows, width) = (tensor.shape[0], self.config.head_dim);
            if !rows.is_multiple_of(width) {
                let wanted = format!("tensor `{theirs}` with rows of heads of {width}");
                return Err(Error::file(self.path(), wanted, rows));
            }
            tensor.values = reorder(&tensor.values, rows, width, false);
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (ours, theirs) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.12.self_attn.k_proj.bias", "blk.12.attn_k.bias"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
            ("model.layers.0.mlp.gate.weight", "blk.0.ffn_gate_inp.weight"),
        ] {
            assert_eq!(gguf_name(ours), Some((theirs.to_string(), None)));
            assert_eq!(our_names(theirs, 0), Some(vec![(ours.to_string(), None)]));
        }
        let of = |e| (format!("model.layers.1.mlp.experts.{e}.up_proj.weight"), Some(e));
        let all = "blk.1.ffn_up_exps.weight";
        assert_eq!(our_names(all, 2), Some(vec![of(0), of(1)]));
        assert_eq!(gguf_name(&of(1).0), Some((all.to_string(), Some(1))));
        assert_eq!(our_names("blk.0.ffn_gate_shexp.weight", 2), None);
        assert_eq!(our_names("rope_freqs.weight", 0), None);
    }

    #[test]
    fn pairs_and_halves_go_both_ways() {
        // Two heads of four rows of one value each.
        let halves: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let pairs = reorder(&halves, 8, 4, true);
        assert_eq!(pairs, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(reorder(&pairs, 8, 4, false), halves);
    }
}
