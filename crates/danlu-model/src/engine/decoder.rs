//! The transformer made ready for decoding: weights in the tiles that products are fastest with,
//! quantised if wanted, and a forward pass over new tokens alone.
//!
//! It is made from the parameters of a [`Transformer`] and computes what that computes, within what
//! rounding and quantisation change. A row's result depends on its own sequence alone, to the bit:
//! not on the number of threads, nor on what else is in the pass.

use crate::arch::{Transformer, TransformerConfig};
use crate::layers::{Linear, Lora};
use crate::params::Parameter;
use danlu_core::{Error, Result};
use danlu_ops::quant::{
    Activations, Arena, Into, LowRank, WeightFormat, Weights, add_low_rank, product,
};
use danlu_ops::{AttentionShape, Pages, Rotary, Span, Team, attend};
use std::ops::Range;
use std::sync::Arc;

/// A projection with weights in tiles.
#[derive(Debug)]
struct Projection {
    weights: Arc<Weights>,
    bias: Option<Vec<f32>>,
}

/// A parameter's weights in `format`; those that are kept in few bits stay as they are.
fn tiles(parameter: &Parameter, format: WeightFormat, arena: &Arena) -> Arc<Weights> {
    if let Some(frozen) = &parameter.frozen {
        return frozen.clone();
    }
    let shape = [parameter.shape[0], parameter.shape[1]];
    Arc::new(Weights::new(&parameter.values(), shape, format, arena))
}

impl Projection {
    fn new(linear: &Linear, format: WeightFormat, arena: &Arena) -> Self {
        let weights = if linear.adapters.is_empty() {
            tiles(&linear.weight, format, arena)
        } else {
            let shape = [linear.weight.shape[0], linear.weight.shape[1]];
            let values = Lora::merged(&linear.adapters, &linear.weight);
            Arc::new(Weights::new(&values, shape, format, arena))
        };
        Self { weights, bias: linear.bias.as_ref().map(|b| b.values()) }
    }

    fn run(&self, team: &Team, x: &Activations, out: &mut [f32], into: Into) {
        product(team, x, &self.weights, self.bias.as_deref(), out, into);
    }

    fn format(&self) -> WeightFormat {
        self.weights.format()
    }
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    qkv: Projection,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    out: Projection,
    mlp_norm: Vec<f32>,
    gate_up: Projection,
    down: Projection,
}

/// Low-rank additions to every layer's projections (query-key-value, output, gate-up, down), which
/// some sequences of a pass have and others not.
#[derive(Debug)]
pub(super) struct Additions(Vec<[Vec<LowRank>; 4]>);

impl Additions {
    /// What the adapters attached to `adapted` add.
    ///
    /// # Errors
    /// If there is none, or one has magnitudes: those depend on the weights, and want to be merged.
    pub(super) fn new(name: &str, adapted: &Transformer) -> Result<Self> {
        let what = || format!("adapter `{name}`");
        let all = adapted.blocks.iter().flat_map(|b| b.linears()).flat_map(|l| &l.adapters);
        let (mut count, mut directed) = (0, 0);
        for lora in all {
            count += 1;
            directed += usize::from(lora.magnitude.is_some());
        }
        if directed > 0 {
            let wanted = "adapters without magnitudes (merge those of DoRA into the model)";
            return Err(Error::parameter(what(), wanted, format!("{directed} of {count} with")));
        }
        if count == 0 {
            return Err(Error::parameter(what(), "a model with adapters attached", "none"));
        }
        let one = |linear: &Linear| {
            let plain = |lora: &Lora| LowRank {
                a: lora.a.values(),
                b: lora.b.values(),
                rank: lora.rank(),
                outputs: lora.rows.clone(),
                scale: lora.scale,
            };
            linear.adapters.iter().map(plain).collect()
        };
        Ok(Self(adapted.blocks.iter().map(|b| b.linears().map(one)).collect()))
    }
}

/// Rows of a pass that have additions.
pub(super) type Adapted<'a> = (Range<usize>, &'a Additions);

/// Adds what the adapters of some rows add to projection `which` of layer `layer`.
fn adapt(
    team: &Team,
    adapted: &[Adapted<'_>],
    layer: usize,
    which: usize,
    x: &Activations,
    out: &mut [f32],
) {
    let width = out.len() / x.rows().max(1);
    for (rows, additions) in adapted {
        for lora in &additions.0[layer][which] {
            add_low_rank(team, x, rows.clone(), lora, out, width);
        }
    }
}

/// Memory that passes use again.
#[derive(Debug, Default)]
struct Scratch {
    stream: Vec<f32>,
    qkv: Vec<f32>,
    queries: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    wanted: Vec<f32>,
    logits: Vec<f32>,
    activations: Activations,
}

/// A transformer ready for decoding.
#[derive(Debug)]
pub struct Decoder {
    config: TransformerConfig,
    shape: AttentionShape,
    embedding: Arc<Weights>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Option<Projection>,
    rotary: Rotary,
    team: Team,
    scratch: Scratch,
}

/// What the rows of a pass lead to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Want<'a> {
    /// Logits `[rows named, vocabulary]`.
    Logits(&'a [usize]),
    /// The normalised hidden states of all rows, `[rows, width]`.
    Hidden,
}

/// The first `len` values, after growing to it.
fn sized(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

impl Decoder {
    /// The weights of `transformer` in `format`; its adapters are merged in. With formats of four
    /// bits, embedding and head have eight: they are what quality depends on most. What the
    /// transformer keeps in few bits stays as it is, where it is.
    pub fn new(transformer: &Transformer, format: WeightFormat) -> Self {
        let config = transformer.config.clone();
        let arena = Arena::default();
        let table_format = format.of_tables();
        let layers = transformer
            .blocks
            .iter()
            .map(|block| {
                let (a, mlp) = (&block.attention, &block.mlp);
                Layer {
                    attention_norm: block.attention_norm.weight.values(),
                    qkv: Projection::new(&a.qkv, format, &arena),
                    q_norm: a.q_norm.values(),
                    k_norm: a.k_norm.values(),
                    out: Projection::new(&a.out, format, &arena),
                    mlp_norm: block.mlp_norm.weight.values(),
                    gate_up: Projection::new(&mlp.gate_up, format, &arena),
                    down: Projection::new(&mlp.down, format, &arena),
                }
            })
            .collect();
        let weights = |table: &Parameter| tiles(table, table_format, &arena);
        Self {
            shape: config.attention(),
            embedding: weights(&transformer.embedding),
            layers,
            norm: transformer.norm.weight.values(),
            head: transformer
                .head
                .as_ref()
                .map(|head| Projection { weights: weights(head), bias: None }),
            rotary: Rotary::new(config.head_dim, config.context, config.rope_theta),
            team: Team::of_rayon(),
            scratch: Scratch::default(),
            config,
        }
    }

    /// Its sizes.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The threads that it works with.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Bytes of all matrices.
    pub fn weight_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.gate_up, &l.down]);
        let all = layers.chain(&self.head).map(|p| p.weights.bytes());
        self.embedding.bytes() + all.sum::<usize>()
    }

    /// Bytes of the matrices that a pass for one token goes through.
    pub fn bytes_per_token(&self) -> usize {
        let beside = if self.head.is_some() { self.embedding.bytes() } else { 0 };
        self.weight_bytes() - beside
    }

    /// Empty pages for this transformer's keys and values.
    pub(super) fn pages(&self, format: danlu_ops::CacheFormat, count: usize) -> Pages {
        Pages::new(self.layers.len(), &self.shape, format, count)
    }

    /// Feeds the new tokens `ids` of several sequences, span by span; keys and values go to their
    /// pages. The rows named in `adapted` have additions.
    pub(super) fn forward(
        &mut self,
        pages: &mut Pages,
        spans: &[Span<'_>],
        ids: &[u32],
        adapted: &[Adapted<'_>],
        want: Want<'_>,
    ) -> &mut [f32] {
        let Self { config, shape, team, scratch, .. } = self;
        let (m, width, eps) = (ids.len(), config.width, config.norm_eps);
        let s = scratch;
        let x = sized(&mut s.stream, m * width);
        for (id, x) in ids.iter().zip(x.chunks_exact_mut(width)) {
            self.embedding.row(*id as usize, x);
        }
        let qkv = sized(&mut s.qkv, m * shape.projection());
        let mixed = sized(&mut s.mixed, m * shape.output());
        let gate_up = sized(&mut s.gate_up, m * 2 * config.hidden);
        let act = &mut s.activations;
        for (i, layer) in self.layers.iter().enumerate() {
            act.norm(team, x, &layer.attention_norm, eps, layer.qkv.format());
            layer.qkv.run(team, act, qkv, Into::Store);
            adapt(team, adapted, i, 0, act, qkv);
            attend(
                team,
                pages,
                i,
                shape,
                &self.rotary,
                [&layer.q_norm, &layer.k_norm],
                spans,
                qkv,
                &mut s.queries,
                mixed,
            );
            act.take(team, mixed, shape.output(), layer.out.format());
            layer.out.run(team, act, x, Into::Add);
            adapt(team, adapted, i, 1, act, x);
            act.norm(team, x, &layer.mlp_norm, eps, layer.gate_up.format());
            layer.gate_up.run(team, act, gate_up, Into::Store);
            adapt(team, adapted, i, 2, act, gate_up);
            act.swiglu(team, gate_up, config.hidden, layer.down.format());
            layer.down.run(team, act, x, Into::Add);
            adapt(team, adapted, i, 3, act, x);
        }
        let rows = match want {
            Want::Logits(rows) => rows,
            Want::Hidden => {
                act.norm(team, x, &self.norm, eps, WeightFormat::F32);
                let hidden = sized(&mut s.wanted, m * width);
                hidden.copy_from_slice(act.values());
                return hidden;
            }
        };
        let wanted = sized(&mut s.wanted, rows.len() * width);
        for (row, to) in rows.iter().zip(wanted.chunks_exact_mut(width)) {
            to.copy_from_slice(&x[row * width..][..width]);
        }
        let table = self.head.as_ref().map_or(&self.embedding, |h| &h.weights);
        act.norm(team, wanted, &self.norm, eps, table.format());
        let logits = sized(&mut s.logits, rows.len() * config.vocabulary);
        product(team, act, table, None, logits, Into::Store);
        logits
    }
}
