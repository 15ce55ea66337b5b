//! The transformer made ready for decoding: weights in the tiles that products are fastest with,
//! quantised if wanted, and a forward pass over new tokens alone.
//!
//! It is made from the parameters of a [`Transformer`] and computes what that computes, within what
//! rounding and quantisation change. A row's result depends on its own sequence alone, to the bit:
//! not on the number of threads, nor on what else is in the pass.

use super::additions::{Adapted, Beside};
use super::experts::{self, Mixture};
use crate::arch::{Transformer, TransformerConfig};
use crate::layers::{FeedForward, Linear, Lora};
use crate::params::Parameter;
use danlu_ops::quant::{Activations, Arena, Into, WeightFormat, Weights, product};
use danlu_ops::{AttentionShape, Pages, Rotary, Span, Team, attend};
use std::sync::Arc;

/// A projection with weights in tiles.
#[derive(Debug)]
pub(super) struct Projection {
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
    pub(super) fn new(linear: &Linear, format: WeightFormat, arena: &Arena) -> Self {
        let weights = if linear.adapters.is_empty() {
            tiles(&linear.weight, format, arena)
        } else {
            let shape = [linear.weight.shape[0], linear.weight.shape[1]];
            let values = Lora::merged(&linear.adapters, &linear.weight);
            Arc::new(Weights::new(&values, shape, format, arena))
        };
        Self { weights, bias: linear.bias.as_ref().map(|b| b.values()) }
    }

    /// Of a matrix alone.
    pub(super) fn of(parameter: &Parameter, format: WeightFormat, arena: &Arena) -> Self {
        Self { weights: tiles(parameter, format, arena), bias: None }
    }

    /// Bytes of its matrix.
    pub(super) fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// `[outputs]`, if it has one.
    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Its product with `x`, stored in `out` or added to that.
    pub(super) fn run(&self, team: &Team, x: &Activations, out: &mut [f32], into: Into) {
        product(team, x, &self.weights, self.bias.as_deref(), out, into);
    }

    pub(super) fn format(&self) -> WeightFormat {
        self.weights.format()
    }
}

/// What mixes the channels of a layer.
#[derive(Debug)]
enum Feed {
    Dense { gate_up: Projection, down: Projection },
    Experts(Mixture),
}

impl Feed {
    fn new(feed: &FeedForward, format: WeightFormat, arena: &Arena) -> Self {
        match feed {
            FeedForward::Dense(mlp) => Self::Dense {
                gate_up: Projection::new(&mlp.gate_up, format, arena),
                down: Projection::new(&mlp.down, format, arena),
            },
            FeedForward::Experts(experts) => Self::Experts(Mixture::new(experts, format, arena)),
        }
    }

    /// Bytes of all matrices, and of those that a token does not go through.
    fn bytes(&self) -> [usize; 2] {
        match self {
            Self::Dense { gate_up, down } => [gate_up.bytes() + down.bytes(), 0],
            Self::Experts(m) => [m.projections().map(Projection::bytes).sum(), m.idle_bytes()],
        }
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
    feed: Feed,
}

/// Memory that passes use again.
#[derive(Debug, Default)]
struct Scratch {
    stream: Vec<f32>,
    qkv: Vec<f32>,
    queries: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    aside: Vec<f32>,
    wanted: Vec<f32>,
    logits: Vec<f32>,
    activations: Activations,
    experts: experts::Scratch,
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
    /// The angles of each layer's positions.
    rotary: Vec<Arc<Rotary>>,
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
pub(super) fn sized(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
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
                let a = &block.attention;
                Layer {
                    attention_norm: block.attention_norm.weight.values(),
                    qkv: Projection::new(&a.qkv, format, &arena),
                    q_norm: a.q_norm.values(),
                    k_norm: a.k_norm.values(),
                    out: Projection::new(&a.out, format, &arena),
                    mlp_norm: block.mlp_norm.weight.values(),
                    feed: Feed::new(&block.mlp, format, &arena),
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
            rotary: transformer.rotary().to_vec(),
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
        let layer = |l: &Layer| l.qkv.bytes() + l.out.bytes() + l.feed.bytes()[0];
        let layers: usize = self.layers.iter().map(layer).sum();
        self.embedding.bytes() + layers + self.head.as_ref().map_or(0, Projection::bytes)
    }

    /// Bytes of the matrices that a pass for one token goes through.
    pub fn bytes_per_token(&self) -> usize {
        let beside = if self.head.is_some() { self.embedding.bytes() } else { 0 };
        let idle: usize = self.layers.iter().map(|l| l.feed.bytes()[1]).sum();
        self.weight_bytes() - beside - idle
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
        let mut beside = Beside { adapted, aside: &mut s.aside };
        for (i, layer) in self.layers.iter().enumerate() {
            act.norm(team, x, &layer.attention_norm, eps, layer.qkv.format());
            beside.run(team, &layer.qkv, [i, 0], act, qkv, Into::Store);
            attend(
                team,
                pages,
                i,
                shape,
                &self.rotary[i],
                [&layer.q_norm, &layer.k_norm],
                spans,
                qkv,
                &mut s.queries,
                mixed,
            );
            act.take(team, mixed, shape.output(), layer.out.format());
            beside.run(team, &layer.out, [i, 1], act, x, Into::Add);
            match &layer.feed {
                Feed::Dense { gate_up: up, down } => {
                    act.norm(team, x, &layer.mlp_norm, eps, up.format());
                    beside.run(team, up, [i, 2], act, gate_up, Into::Store);
                    act.swiglu(team, gate_up, config.hidden, down.format());
                    beside.run(team, down, [i, 3], act, x, Into::Add);
                }
                Feed::Experts(mixture) => {
                    act.norm(team, x, &layer.mlp_norm, eps, mixture.format());
                    mixture.run(team, act, &mut s.experts, x);
                }
            }
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
