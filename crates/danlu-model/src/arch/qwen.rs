//! The decoder-only transformer of the Qwen3 family: RMSNorm before each part, rotary positions,
//! grouped queries, normalised queries and keys, SwiGLU, tied embeddings. Without the norms of queries
//! and keys it is Llama (and Mistral; SmolLM3 where some layers have no positions), with biases of queries,
//! keys and values Qwen2; Llama and Qwen3 may have biases of more.

use super::RopeScaling;
use crate::layers::{Block, Cache, RmsNorm};
use crate::params::{Module, Parameter};
use burn::tensor::{Device, Tensor};
use danlu_core::recipe::{MOST_EXPERTS, ModelRecipe};
use danlu_core::{Error, Result, Rng};
use danlu_ops::quant::WeightFormat;
use danlu_ops::{AttentionShape, HeadLoss, Rotary};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Every size of a transformer, spelled out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Token ids.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub depth: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden width of the feed-forward; of each expert, if there are some.
    pub hidden: usize,
    /// Longest document in tokens.
    pub context: usize,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Whether queries, keys and values have biases (Qwen2).
    #[serde(default)]
    pub qkv_bias: bool,
    /// Whether the last projection of the attention has a bias as well (Llama and Qwen3 with
    /// `attention_bias`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub out_bias: bool,
    /// Whether the projections of the feed-forward have biases (Llama with `mlp_bias`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub mlp_bias: bool,
    /// How the rotary angles are scaled for a context longer than the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Layers whose queries and keys are not turned, the first is 0, ascending (SmolLM3; Yang et al.,
    /// arXiv 2501.18795).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_rope: Vec<usize>,
    /// Experts of every layer; 0: each layer has one feed-forward.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub experts: usize,
    /// How many of them a token is sent to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub experts_per_token: usize,
    /// Whether their gates are shares of the softmax over all experts, which sum to less than 1, rather
    /// than over those that a token is sent to (Qwen3-MoE without `norm_topk_prob`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub gates_of_all: bool,
    /// Weight in the training loss of how unevenly they are used ([`crate::layers::Experts::forward`]).
    #[serde(default, skip_serializing_if = "is_zero_weight")]
    pub balance: f32,
}

fn is_false(b: &bool) -> bool {
    !b
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn is_zero_weight(w: &f32) -> bool {
    *w == 0.0
}

impl TransformerConfig {
    /// Most layers.
    pub const DEEPEST: usize = 1 << 10;

    /// Fills in what the recipe leaves to the depth dial.
    pub fn from_recipe(r: &ModelRecipe, vocabulary: usize, window: usize) -> Result<Self> {
        let width = r.width.unwrap_or(64 * r.depth);
        let head_dim = r.head_dim.unwrap_or(64);
        let heads = r.heads.unwrap_or((width / head_dim).max(1));
        let third = (1..=heads)
            .filter(|k| heads.is_multiple_of(*k))
            .min_by_key(|&k| (3 * k).abs_diff(heads))
            .unwrap_or(1);
        let chosen = if r.experts > 0 { r.experts_per_token } else { 0 };
        // As many multiplications a token as without experts.
        let hidden = (width * 8 / 3).div_ceil(64 * chosen.max(1)) * 64;
        let config = Self {
            vocabulary,
            width,
            depth: r.depth,
            heads,
            kv_heads: r.kv_heads.unwrap_or(third),
            head_dim,
            hidden: r.hidden.unwrap_or(hidden),
            context: r.context.unwrap_or(window),
            rope_theta: r.rope_theta,
            norm_eps: r.norm_eps,
            qk_norm: r.qk_norm,
            tied: r.tied,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            rope_scaling: None,
            no_rope: Vec::new(),
            experts: r.experts,
            experts_per_token: chosen,
            gates_of_all: false,
            balance: if r.experts > 0 { r.balance } else { 0.0 },
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that cannot work or are absurd, by name.
    pub fn check(&self) -> Result<()> {
        let bounded = [
            ("vocabulary", self.vocabulary, 1 << 22),
            ("width", self.width, 1 << 16),
            ("depth", self.depth, Self::DEEPEST),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("hidden", self.hidden, 1 << 18),
            ("context", self.context, 1 << 22),
        ];
        for (name, value, max) in bounded {
            if value == 0 || value > max {
                return Err(Error::parameter(
                    format!("model.{name}"),
                    format!("1 to {max}"),
                    value,
                ));
            }
        }
        for (name, value, range) in
            [("rope_theta", self.rope_theta, 1.0..=1e12), ("norm_eps", self.norm_eps, 1e-12..=0.1)]
        {
            if !range.contains(&value) {
                let wanted = format!("{:e} to {:e}", range.start(), range.end());
                return Err(Error::parameter(format!("model.{name}"), wanted, value));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::parameter(
                "model.kv_heads",
                format!("a divisor of the {} heads", self.heads),
                self.kv_heads,
            ));
        }
        if self.experts > MOST_EXPERTS {
            let wanted = format!("at most {MOST_EXPERTS}");
            return Err(Error::parameter("model.experts", wanted, self.experts));
        }
        let some = if self.experts > 0 { 1..=self.experts } else { 0..=0 };
        if !some.contains(&self.experts_per_token) {
            let wanted =
                format!("{} to {}, for {} experts", some.start(), some.end(), self.experts);
            let name = "model.experts_per_token";
            return Err(Error::parameter(name, wanted, self.experts_per_token));
        }
        if !(0.0..=1.0).contains(&self.balance) {
            return Err(Error::parameter("model.balance", "0 to 1", self.balance));
        }
        if !self.known_biases() {
            let wanted = "biases as Llama, Qwen2 or Qwen3 have them: of queries, keys and values; of all \
                          four projections of the attention; without norms of queries and keys and \
                          without experts also of the feed-forward";
            let found = format!(
                "queries, keys and values {}, output {}, feed-forward {}",
                self.qkv_bias, self.out_bias, self.mlp_bias
            );
            return Err(Error::parameter("model.qkv_bias, out_bias, mlp_bias", wanted, found));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::parameter("model.head_dim", "an even number", self.head_dim));
        }
        if !self.no_rope.is_sorted_by(|a, b| a < b)
            || self.no_rope.last().is_some_and(|&layer| layer >= self.depth)
        {
            let wanted = format!("numbers of layers under {}, ascending", self.depth);
            let found = format!("{:?}", self.no_rope);
            return Err(Error::parameter("model.no_rope", wanted, found));
        }
        self.rope_scaling.as_ref().map_or(Ok(()), |scaling| scaling.check(self.head_dim))
    }

    /// Whether some kind of model of others has these biases.
    fn known_biases(&self) -> bool {
        let (norms, mixes) = (self.qk_norm, self.experts > 0);
        match [self.qkv_bias, self.out_bias, self.mlp_bias] {
            [false, false, false] => true,
            [true, false, false] => !norms && !mixes,
            [true, true, false] => norms || !mixes,
            [qkv, out, true] => qkv == out && !norms && !mixes,
            [false, true, false] => false,
        }
    }

    /// The angles of the positions of every layer; layers have the same tables.
    pub fn rotary(&self) -> Vec<Arc<Rotary>> {
        let rotary = Rotary::new(self.head_dim, self.context, self.rope_theta);
        let turned = Arc::new(match &self.rope_scaling {
            None => rotary,
            Some(scaling) => rotary
                .scaled(&scaling.divisors(self.head_dim, self.rope_theta), scaling.amplitude()),
        });
        let none = Arc::new(Rotary::none(self.context));
        let of = |layer| if self.no_rope.contains(&layer) { &none } else { &turned };
        (0..self.depth).map(|layer| of(layer).clone()).collect()
    }

    /// Shape of the attention.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            norm_eps: self.qk_norm.then_some(self.norm_eps),
        }
    }

    /// Standard deviation of the initial matrices.
    pub fn init_std(&self) -> f32 {
        (1.0 / (3.0 * self.width as f32)).sqrt()
    }

    /// Standard deviation of the initial matrices that write to the residual stream.
    pub fn residual_std(&self) -> f32 {
        self.init_std() / (2.0 * self.depth as f32).sqrt()
    }

    /// Weights of the experts that a token does not go through; 0 without experts.
    pub fn idle(&self) -> usize {
        3 * self.depth * (self.experts - self.experts_per_token) * self.width * self.hidden
    }

    /// Floating-point operations of training on one token (forward and backward, no
    /// recomputation), with `span` keys attended to on average: six per weight that multiplies,
    /// the head included and of experts those that a token is sent to, and twelve per layer, width
    /// of the queries and key.
    pub fn flops_per_token(&self, span: f64) -> f64 {
        let a = self.attention();
        let feed = 3 * self.hidden * self.experts_per_token.max(1) + self.experts;
        let layer = self.width * (a.projection() + a.output() + feed);
        let weights = self.depth * layer + self.vocabulary * self.width;
        6.0 * weights as f64 + 12.0 * (self.depth * a.output()) as f64 * span
    }
}

/// The decoder-only transformer.
#[derive(Debug, Clone)]
pub struct Transformer {
    /// Its sizes.
    pub config: TransformerConfig,
    /// `[vocabulary, width]`.
    pub embedding: Parameter,
    /// The layers.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: RmsNorm,
    /// `[vocabulary, width]`, unless tied.
    pub head: Option<Parameter>,
    /// The angles of each layer's positions.
    pub(super) rotary: Vec<Arc<Rotary>>,
}

/// What one sequence has seen so far: keys and values of every layer.
#[derive(Debug, Clone)]
pub struct SequenceCache {
    layers: Vec<Cache>,
    tokens: usize,
}

impl SequenceCache {
    /// Tokens seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Transformer {
    /// Random weights.
    pub fn new(config: TransformerConfig, seed: u64, device: &Device) -> Self {
        Self::draw(config, Rng::new(seed, 0x006d_6f64_656c), device)
    }

    /// Matrices without values, each of which is to be set or kept in few bits.
    pub fn blank(config: TransformerConfig, device: &Device) -> Self {
        Self::draw(config, Rng::still(), device)
    }

    fn draw(config: TransformerConfig, mut rng: Rng, device: &Device) -> Self {
        let c = &config;
        let table = [c.vocabulary, c.width];
        let embedding =
            Parameter::normal("model.embed_tokens.weight", &table, c.init_std(), &mut rng, device);
        let blocks = (0..c.depth)
            .map(|i| Block::new(&format!("model.layers.{i}"), c, &mut rng, device))
            .collect();
        let norm = RmsNorm::new("model.norm", c.width, c.norm_eps, device);
        let head = (!c.tied)
            .then(|| Parameter::normal("lm_head.weight", &table, c.init_std(), &mut rng, device));
        let rotary = c.rotary();
        Self { config, embedding, blocks, norm, head, rotary }
    }

    /// The matrix of the output head; made for this call if it is kept in few bits.
    pub fn table(&self) -> Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embedding).whole()
    }

    /// The rows of the embedding that `ids` name, `[n, width]`.
    pub(crate) fn embed(&self, ids: &Arc<[u32]>) -> Tensor<2> {
        let tensor = &self.embedding.tensor;
        match &self.embedding.frozen {
            Some(frozen) => danlu_ops::frozen_rows(frozen, ids, &tensor.device()),
            None => danlu_ops::embedding(tensor.clone(), ids),
        }
    }

    /// The angles of each layer's positions.
    pub(crate) fn rotary(&self) -> &[Arc<Rotary>] {
        &self.rotary
    }

    /// Logits `[n, vocabulary]` of normalised hidden states.
    pub(super) fn scores(&self, hidden: Tensor<2>) -> Tensor<2> {
        let table = self.head.as_ref().unwrap_or(&self.embedding);
        match &table.frozen {
            Some(frozen) => danlu_ops::frozen_linear(hidden, frozen),
            None => danlu_ops::linear(hidden, table.tensor.clone()),
        }
    }

    /// The name of the format that the projections are kept in, if they are kept in few bits.
    pub fn frozen_format(&self) -> Option<WeightFormat> {
        self.blocks.first()?.attention.qkv.weight.frozen.as_ref().map(|w| w.format())
    }

    /// Normalised hidden states `[n, width]` of packed documents: `ids` `[n]`, and where documents
    /// start.
    pub fn hidden(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>) -> Tensor<2> {
        self.run(ids, starts).0
    }

    /// The same, and how unevenly the experts of each layer were used, where there are some.
    fn run(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>) -> (Tensor<2>, Vec<Tensor<1>>) {
        let (mut x, mut uneven) = (self.embed(ids), Vec::new());
        for (block, rotary) in self.blocks.iter().zip(&self.rotary) {
            let (y, of_block) = block.forward(x, rotary, starts);
            x = y;
            uneven.extend(of_block);
        }
        (self.norm.forward(x), uneven)
    }

    /// Tokens that the experts of each layer were sent in all passes since this was asked last; nothing
    /// of a layer without experts.
    pub fn take_loads(&self) -> Vec<Vec<u64>> {
        self.blocks.iter().filter_map(|b| Some(b.mlp.experts()?.take_load())).collect()
    }

    /// Logits `[n, vocabulary]` of packed documents.
    pub fn logits(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>) -> Tensor<2> {
        self.scores(self.hidden(ids, starts))
    }

    /// Loss `[1]`, with what the uneven use of experts adds to it, and the cross-entropy of each
    /// position in nats.
    pub fn loss(
        &self,
        ids: &Arc<[u32]>,
        starts: &Arc<[u32]>,
        spec: &HeadLoss,
    ) -> (Tensor<1>, Vec<f32>) {
        self.loss_at(ids, starts, spec, 1.0)
    }

    /// The same with logits that are divided by `temperature`: the loss of tokens that were drawn at it.
    pub fn loss_at(
        &self,
        ids: &Arc<[u32]>,
        starts: &Arc<[u32]>,
        spec: &HeadLoss,
        temperature: f32,
    ) -> (Tensor<1>, Vec<f32>) {
        let (mut hidden, uneven) = self.run(ids, starts);
        if temperature != 1.0 {
            hidden = hidden.div_scalar(temperature);
        }
        let (loss, each) = danlu_ops::head_loss(hidden, self.table(), spec);
        let weight = self.config.balance / uneven.len().max(1) as f32;
        if weight == 0.0 {
            return (loss, each);
        }
        (uneven.into_iter().fold(loss, |sum, u| sum + u.mul_scalar(weight)), each)
    }

    /// An empty cache.
    pub fn start(&self) -> SequenceCache {
        SequenceCache { layers: vec![Cache::default(); self.blocks.len()], tokens: 0 }
    }

    /// Feeds new tokens to several sequences; returns the logits after the last of each,
    /// `[sequences, vocabulary]` row-major. The weights must be on a device without autodiff.
    ///
    /// # Panics
    /// If a sequence gets no token or grows over the context.
    pub fn advance(&self, sequences: &mut [(&mut SequenceCache, &[u32])]) -> Vec<f32> {
        let ids: Arc<[u32]> = sequences.iter().flat_map(|(_, new)| new.iter().copied()).collect();
        for (cache, new) in sequences.iter() {
            assert!(!new.is_empty(), "advance: a sequence without new tokens");
            assert!(cache.tokens + new.len() <= self.config.context, "advance: over the context");
        }
        let mut x = self.embed(&ids);
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut caches: Vec<_> = sequences
                .iter_mut()
                .map(|(cache, new)| (&mut cache.layers[layer], cache.tokens, new.len()))
                .collect();
            x = block.forward_cached(x, &self.rotary[layer], &mut caches);
        }
        let mut row = 0;
        let lasts: Arc<[u32]> = sequences
            .iter_mut()
            .map(|(cache, new)| {
                cache.tokens += new.len();
                row += new.len();
                row as u32 - 1
            })
            .collect();
        let last = danlu_ops::embedding(x, &lasts);
        let logits = self.scores(self.norm.forward(last));
        logits.into_data().try_into_vec().expect("f32")
    }
}

impl Module for Transformer {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.embedding];
        all.extend(self.blocks.iter().flat_map(Block::parameters));
        all.push(&self.norm.weight);
        all.extend(&self.head);
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.embedding];
        all.extend(self.blocks.iter_mut().flat_map(Block::parameters_mut));
        all.push(&mut self.norm.weight);
        all.extend(&mut self.head);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Transformer {
        let recipe =
            ModelRecipe { depth: 2, width: Some(24), head_dim: Some(6), ..Default::default() };
        let config = TransformerConfig::from_recipe(&recipe, 31, 40).expect("valid");
        Transformer::new(config, 5, &danlu_ops::cpu_device())
    }

    #[test]
    fn the_dial_derives_the_rest() {
        let recipe = ModelRecipe { depth: 6, ..Default::default() };
        let c = TransformerConfig::from_recipe(&recipe, 100, 512).expect("valid");
        assert_eq!((c.width, c.heads, c.kv_heads, c.hidden, c.context), (384, 6, 2, 1024, 512));
        let bad = ModelRecipe { kv_heads: Some(4), ..recipe };
        let error = TransformerConfig::from_recipe(&bad, 100, 512).expect_err("4 of 6 heads");
        assert!(error.to_string().contains("model.kv_heads"), "{error}");
        for (theta, eps, name) in [
            (f32::NAN, 1e-5, "model.rope_theta"),
            (0.0, 1e-5, "rope_theta"),
            (1e4, -1.0, "norm_eps"),
        ] {
            let bad = TransformerConfig { rope_theta: theta, norm_eps: eps, ..c.clone() };
            let error = bad.check().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn prefill_and_decode_equal_the_full_forward() {
        let model = tiny();
        let docs: [&[u32]; 2] = [&[1, 5, 9, 30, 2, 2, 7], &[4, 4, 8]];
        let ids: Arc<[u32]> = docs.concat().into();
        let starts: Arc<[u32]> = Arc::from([0, 7, 10]);
        let full: Vec<f32> = model.logits(&ids, &starts).into_data().try_into_vec().expect("f32");
        let (mut a, mut b) = (model.start(), model.start());
        // A prefill of five tokens beside one of one token, then the rest one by one.
        model.advance(&mut [(&mut a, &docs[0][..5]), (&mut b, &docs[1][..1])]);
        model.advance(&mut [(&mut a, &docs[0][5..6]), (&mut b, &docs[1][1..2])]);
        let got = model.advance(&mut [(&mut a, &docs[0][6..]), (&mut b, &docs[1][2..])]);
        for (row, at) in [6, 9].into_iter().enumerate() {
            for v in 0..31 {
                let (x, y) = (got[row * 31 + v], full[at * 31 + v]);
                assert!((x - y).abs() < 1e-4, "row {row} logit {v}: {x} against {y}");
            }
        }
    }

    #[test]
    fn a_document_does_not_see_its_neighbours() {
        let model = tiny();
        let run = |ids: Vec<u32>| -> Vec<f32> {
            let starts: Arc<[u32]> = Arc::from([0, 3, 6]);
            let out = model.logits(&ids.into(), &starts).narrow(0, 3, 3);
            out.into_data().try_into_vec().expect("f32")
        };
        assert_eq!(run(vec![1, 2, 3, 4, 5, 6]), run(vec![9, 8, 7, 4, 5, 6]));
    }
}
