//! The decoder-only transformer of GPT-2 (Radford et al. 2019): LayerNorm before each part, learnt
//! positions, a bias everywhere, a GELU feed-forward (the form with `tanh`), tied embeddings. The
//! architecture that engines are compared on.

use crate::layers::{LayerNorm, Linear};
use crate::params::{Module, Parameter};
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::{Activation, AttentionShape, HeadLoss, Rotary};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Every size of a GPT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptConfig {
    /// Token ids.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers.
    pub depth: usize,
    /// Heads; divides `width` into an even number.
    pub heads: usize,
    /// Longest document in tokens.
    pub context: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
}

impl GptConfig {
    /// Shape of the attention.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.width / self.heads,
            norm_eps: None,
        }
    }

    /// As [`super::TransformerConfig::flops_per_token`].
    pub fn flops_per_token(&self, span: f64) -> f64 {
        let weights = (self.depth * 12 * self.width + self.vocabulary) * self.width;
        6.0 * weights as f64 + 12.0 * (self.depth * self.width) as f64 * span
    }
}

/// One layer: attention, then feed-forward, each after a norm and added to the residual stream.
#[derive(Debug, Clone)]
pub struct GptBlock {
    /// Before the attention.
    pub attention_norm: LayerNorm,
    /// `[3 * width, width]`: queries, keys, values.
    pub qkv: Linear,
    /// `[width, width]`.
    pub out: Linear,
    /// Before the feed-forward.
    pub mlp_norm: LayerNorm,
    /// `[4 * width, width]`.
    pub up: Linear,
    /// `[width, 4 * width]`.
    pub down: Linear,
    /// Whether only its input is kept for the backward pass, which runs the block again.
    pub recompute: bool,
    shape: AttentionShape,
}

impl GptBlock {
    /// Random weights under `name` (`h.3`), biases 0.
    pub fn new(name: &str, c: &GptConfig, rng: &mut Rng, device: &Device) -> Self {
        let linear = |part: &str, dims: [usize; 2], std, rng: &mut Rng| {
            Linear::new(&format!("{name}.{part}"), dims, std, rng, device).biased(device)
        };
        let norm =
            |part: &str| LayerNorm::new(&format!("{name}.{part}"), c.width, c.norm_eps, device);
        // What writes to the residual stream starts smaller, as in GPT-2.
        let (std, last) = (0.02, 0.02 / (2.0 * c.depth as f32).sqrt());
        Self {
            attention_norm: norm("ln_1"),
            qkv: linear("attn.c_attn", [3 * c.width, c.width], std, rng),
            out: linear("attn.c_proj", [c.width, c.width], last, rng),
            mlp_norm: norm("ln_2"),
            up: linear("mlp.c_fc", [4 * c.width, c.width], std, rng),
            down: linear("mlp.c_proj", [c.width, 4 * c.width], last, rng),
            recompute: false,
            shape: c.attention(),
        }
    }

    /// Packed documents `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>, rotary: &Arc<Rotary>, starts: &Arc<[u32]>) -> Tensor<2> {
        if self.recompute {
            return self.recomputed(x, rotary, starts);
        }
        let x = danlu_ops::residual(x, self.attention_norm.op(), |x| {
            let qkv = self.qkv.forward(x);
            let unused = Tensor::ones([1, self.shape.head_dim], &qkv.device());
            let mixed =
                danlu_ops::attention(qkv, unused.clone(), unused, &self.shape, rotary, starts);
            self.out.last(mixed, Activation::None)
        });
        danlu_ops::residual(x, self.mlp_norm.op(), |x| {
            self.down.last(self.up.forward(x), Activation::GeluTanh)
        })
    }

    fn recomputed(&self, x: Tensor<2>, rotary: &Arc<Rotary>, starts: &Arc<[u32]>) -> Tensor<2> {
        let mut bare = Self { recompute: false, ..self.clone() };
        let mut inputs = vec![x];
        // What is run again holds no gradient record but that of the tensors it is given then.
        for p in bare.parameters_mut() {
            let plain = p.tensor.clone().inner();
            inputs.push(std::mem::replace(&mut p.tensor, plain));
        }
        let inputs: [Tensor<2>; 13] =
            inputs.try_into().expect("a stream, two norms and four projections with biases");
        let (rotary, starts) = (rotary.clone(), starts.clone());
        danlu_ops::recompute(inputs, move |[x, tensors @ ..]| {
            let mut block = bare.clone();
            for (p, tensor) in block.parameters_mut().into_iter().zip(tensors) {
                p.tensor = tensor;
            }
            block.forward(x, &rotary, &starts)
        })
    }

    /// Every parameter, in file order.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let Self { attention_norm, qkv, out, mlp_norm, up, down, .. } = self;
        let mut all = attention_norm.parameters();
        all.extend([qkv, out].into_iter().flat_map(Linear::parameters));
        all.extend(mlp_norm.parameters());
        all.extend([up, down].into_iter().flat_map(Linear::parameters));
        all
    }

    /// Every parameter, in file order, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { attention_norm, qkv, out, mlp_norm, up, down, .. } = self;
        let mut all = attention_norm.parameters_mut();
        all.extend([qkv, out].into_iter().flat_map(Linear::parameters_mut));
        all.extend(mlp_norm.parameters_mut());
        all.extend([up, down].into_iter().flat_map(Linear::parameters_mut));
        all
    }
}

/// The decoder-only transformer.
#[derive(Debug, Clone)]
pub struct Gpt {
    /// Its sizes.
    pub config: GptConfig,
    /// `[vocabulary, width]`, also the output head.
    pub embedding: Parameter,
    /// `[context, width]`.
    pub positions: Parameter,
    /// The layers.
    pub blocks: Vec<GptBlock>,
    /// Before the head.
    pub norm: LayerNorm,
    rotary: Arc<Rotary>,
}

impl Gpt {
    /// Random weights.
    pub fn new(config: GptConfig, seed: u64, device: &Device) -> Self {
        let mut rng = Rng::new(seed, 0x0067_7074);
        let c = &config;
        let table = |name: &str, rows: usize, rng: &mut Rng| {
            Parameter::normal(format!("{name}.weight"), &[rows, c.width], 0.02, rng, device)
        };
        let embedding = table("wte", c.vocabulary, &mut rng);
        let positions = table("wpe", c.context, &mut rng);
        let blocks =
            (0..c.depth).map(|i| GptBlock::new(&format!("h.{i}"), c, &mut rng, device)).collect();
        let norm = LayerNorm::new("ln_f", c.width, c.norm_eps, device);
        let rotary = Arc::new(Rotary::none(c.context));
        Self { config, embedding, positions, blocks, norm, rotary }
    }

    /// Normalised hidden states `[n, width]` of packed documents: `ids` `[n]`, and where documents
    /// start.
    ///
    /// # Panics
    /// If a document is longer than the context.
    pub fn hidden(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>) -> Tensor<2> {
        let places: Arc<[u32]> = starts.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
        let mut x = danlu_ops::embedding(self.embedding.tensor.clone(), ids)
            + danlu_ops::embedding(self.positions.tensor.clone(), &places);
        for block in &self.blocks {
            x = block.forward(x, &self.rotary, starts);
        }
        self.norm.forward(x)
    }

    /// Logits `[n, vocabulary]` of packed documents.
    pub fn logits(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>) -> Tensor<2> {
        danlu_ops::linear(self.hidden(ids, starts), self.embedding.tensor.clone())
    }

    /// Loss `[1]` and the cross-entropy of each position in nats.
    pub fn loss(
        &self,
        ids: &Arc<[u32]>,
        starts: &Arc<[u32]>,
        spec: &HeadLoss,
    ) -> (Tensor<1>, Vec<f32>) {
        danlu_ops::head_loss(self.hidden(ids, starts), self.embedding.tensor.clone(), spec)
    }
}

impl Module for Gpt {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.embedding, &self.positions];
        all.extend(self.blocks.iter().flat_map(GptBlock::parameters));
        all.extend(self.norm.parameters());
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.embedding, &mut self.positions];
        all.extend(self.blocks.iter_mut().flat_map(GptBlock::parameters_mut));
        all.extend(self.norm.parameters_mut());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmark_model_costs_what_was_agreed() {
        let config = GptConfig {
            vocabulary: 8192,
            width: 512,
            depth: 8,
            heads: 8,
            context: 512,
            norm_eps: 1e-5,
        };
        assert!((config.flops_per_token(256.0) / 1e6 - 188.7).abs() < 0.1);
    }
}
