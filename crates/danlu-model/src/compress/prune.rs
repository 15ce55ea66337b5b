//! Taking out what does the least: layers, groups of heads, channels of the feed-forward.
//!
//! What a part does is seen on documents. A layer that hardly turns the residual stream can go
//! (ShortGPT, arXiv 2403.03853); a channel or a head counts by the size of its inputs to the matrix
//! that reads it times the size of that matrix's column (Wanda, arXiv 2306.11695). Every layer loses
//! as many heads and channels as the others, so the result is a transformer of the same family.

use super::Packed;
use crate::arch::{Transformer, TransformerConfig};
use crate::layers::FeedForward;
use crate::params::Parameter;
use burn::tensor::Tensor;
use danlu_core::{Error, Result};
use danlu_ops::Activation;

/// How much is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cut {
    /// Layers.
    pub layers: usize,
    /// Key-value heads of every layer, with the query heads that read them.
    pub kv_heads: usize,
    /// Channels of the feed-forward of every layer.
    pub channels: usize,
}

impl Cut {
    /// Whether something of each would be left.
    ///
    /// # Errors
    /// By name of what would not.
    pub fn check(&self, c: &TransformerConfig) -> Result<()> {
        for (name, all, out) in [
            ("--drop-layers", c.depth, self.layers),
            ("--drop-heads", c.kv_heads, self.kv_heads),
            ("--drop-channels", c.hidden, self.channels),
        ] {
            if out >= all {
                let wanted = format!("fewer than the {all} that there are");
                return Err(Error::parameter(name, wanted, out));
            }
        }
        if c.experts > 0 && self.channels > 0 {
            let wanted = "0 for a mixture of experts, whose channels are not looked at";
            return Err(Error::parameter("--drop-channels", wanted, self.channels));
        }
        Ok(())
    }
}

/// What ran through one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Mean cosine between what went into the layer and what came out.
    pub likeness: f64,
    /// How much each key-value head's group adds to the residual stream.
    pub kv_heads: Vec<f64>,
    /// How much each channel of the feed-forward adds; none of a mixture of experts.
    pub channels: Vec<f64>,
}

/// Looks at every layer on documents.
pub fn observe(model: &Transformer, documents: &[Packed]) -> Vec<Seen> {
    let mut streams: Vec<Tensor<2>> = documents.iter().map(|(ids, _)| model.embed(ids)).collect();
    let mut out = Vec::new();
    for (block, rotary) in model.blocks.iter().zip(model.rotary()) {
        let (mut heads, mut channels) = (Vec::new(), Vec::new());
        let (mut likeness, mut tokens) = (0.0, 0);
        for (x, (_, starts)) in streams.iter_mut().zip(documents) {
            let before = x.clone();
            let mixed =
                block.attention.branch(block.attention_norm.forward(x.clone()), rotary, starts);
            add_squares(&mut heads, &mixed);
            let after = x.clone() + block.attention.out.forward(mixed);
            let inner = block.mlp_norm.forward(after.clone());
            *x = after
                + match &block.mlp {
                    FeedForward::Dense(mlp) => {
                        let gated = mlp.gate_up.forward(inner);
                        let gated = danlu_ops::activate(gated, Activation::Swiglu);
                        add_squares(&mut channels, &gated);
                        mlp.down.forward(gated)
                    }
                    FeedForward::Experts(experts) => experts.forward(inner).0,
                };
            let (sum, n) = cosines(&before, x);
            likeness += sum;
            tokens += n;
        }
        let c = &model.config;
        let by_channel = |squares: &[f64], weight: &crate::params::Parameter| -> Vec<f64> {
            let columns = column_squares(&weight.values(), weight.shape[1]);
            squares.iter().zip(columns).map(|(x, w)| x * w).collect()
        };
        let heads = by_channel(&heads, &block.attention.out.weight);
        let group = c.heads / c.kv_heads * c.head_dim;
        out.push(Seen {
            likeness: likeness / tokens.max(1) as f64,
            kv_heads: heads.chunks(group).map(|g| g.iter().sum()).collect(),
            channels: match block.mlp.dense() {
                Some(mlp) => by_channel(&channels, &mlp.down.weight),
                None => Vec::new(),
            },
        });
    }
    out
}

fn values(x: &Tensor<2>) -> Vec<f32> {
    x.to_data().try_into_vec().expect("f32")
}

fn add_squares(sums: &mut Vec<f64>, x: &Tensor<2>) {
    let width = x.dims()[1];
    sums.resize(width, 0.0);
    for row in values(x).chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(v * v));
    }
}

fn column_squares(values: &[f32], width: usize) -> Vec<f64> {
    let mut out = vec![0.0; width];
    for row in values.chunks_exact(width) {
        out.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(v * v));
    }
    out
}

/// Sum of the cosines of rows, and how many rows.
fn cosines(a: &Tensor<2>, b: &Tensor<2>) -> (f64, usize) {
    let width = a.dims()[1];
    let (a, b) = (values(a), values(b));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
    let each = rows.map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-30));
    (each.sum(), a.len() / width)
}

/// The indices of the `keep` largest, in their order.
fn largest(scores: &[f64], keep: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(keep);
    order.sort_unstable();
    order
}

/// A smaller transformer, without what does the least of what `seen` has of each layer.
///
/// # Errors
/// If nothing would be left, by name of what.
pub fn prune(model: &Transformer, seen: &[Seen], cut: &Cut) -> Result<Transformer> {
    let c = &model.config;
    cut.check(c)?;
    let kv_heads = c.kv_heads - cut.kv_heads;
    let turns: Vec<f64> = seen.iter().map(|s| -s.likeness).collect();
    let layers = largest(&turns, c.depth - cut.layers);
    let config = TransformerConfig {
        depth: layers.len(),
        no_rope: (0..layers.len()).filter(|&to| c.no_rope.contains(&layers[to])).collect(),
        kv_heads,
        heads: c.heads / c.kv_heads * kv_heads,
        hidden: c.hidden - cut.channels,
        ..c.clone()
    };
    let device = model.norm.weight.tensor.device();
    let mut small = Transformer::blank(config, &device);
    for (to, &layer) in small.blocks.iter_mut().zip(&layers) {
        let (from, seen) = (&model.blocks[layer], &seen[layer]);
        let heads = largest(&seen.kv_heads, kv_heads);
        let group = c.heads / c.kv_heads;
        let queries: Vec<usize> = heads.iter().flat_map(|h| h * group..(h + 1) * group).collect();
        let rows = |heads: &[usize], first: usize| -> Vec<usize> {
            let of = |h: &usize| (first + h) * c.head_dim..(first + h + 1) * c.head_dim;
            heads.iter().flat_map(of).collect()
        };
        let out_columns = rows(&queries, 0);
        let mut qkv = out_columns.clone();
        qkv.extend(rows(&heads, c.heads));
        qkv.extend(rows(&heads, c.heads + c.kv_heads));
        to.attention.qkv.weight.set(take_rows(&from.attention.qkv.weight.values(), c.width, &qkv));
        some(&mut to.attention.qkv.bias, &from.attention.qkv.bias, &qkv);
        let out = &from.attention.out.weight;
        to.attention.out.weight.set(take_columns(&out.values(), out.shape[1], &out_columns));
        same(&mut to.attention.out.bias, &from.attention.out.bias);
        match (&mut to.mlp, &from.mlp) {
            (FeedForward::Dense(to), FeedForward::Dense(from)) => {
                let channels = largest(&seen.channels, c.hidden - cut.channels);
                let up = channels.iter().map(|i| c.hidden + i);
                let gate_up: Vec<usize> = channels.iter().copied().chain(up).collect();
                let values = from.gate_up.weight.values();
                to.gate_up.weight.set(take_rows(&values, c.width, &gate_up));
                some(&mut to.gate_up.bias, &from.gate_up.bias, &gate_up);
                let values = from.down.weight.values();
                to.down.weight.set(take_columns(&values, c.hidden, &channels));
                same(&mut to.down.bias, &from.down.bias);
            }
            (to, from) => {
                for (to, from) in to.parameters_mut().into_iter().zip(from.parameters()) {
                    to.set(from.values());
                }
            }
        }
        to.attention.q_norm.set(from.attention.q_norm.values());
        to.attention.k_norm.set(from.attention.k_norm.values());
        to.attention_norm.weight.set(from.attention_norm.weight.values());
        to.mlp_norm.weight.set(from.mlp_norm.weight.values());
    }
    small.embedding.set(model.embedding.values());
    small.norm.weight.set(model.norm.weight.values());
    same(&mut small.head, &model.head);
    Ok(small)
}

/// Takes over what not every model has.
fn same(to: &mut Option<Parameter>, from: &Option<Parameter>) {
    if let (Some(to), Some(from)) = (to, from) {
        to.set(from.values());
    }
}

/// The same of some values of a bias.
fn some(to: &mut Option<Parameter>, from: &Option<Parameter>, values: &[usize]) {
    if let (Some(to), Some(from)) = (to, from) {
        to.set(take_rows(&from.values(), 1, values));
    }
}

fn take_rows(values: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|r| &values[r * width..(r + 1) * width]).copied().collect()
}

fn take_columns(values: &[f32], width: usize, columns: &[usize]) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| columns.iter().map(|&c| row[c])).collect()
}
