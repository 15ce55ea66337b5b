use super::Linear;
use crate::arch::TransformerConfig;
use crate::params::Parameter;
use burn::tensor::{Device, Tensor, TensorData};
use danlu_core::Rng;
use danlu_ops::{AttentionShape, Rotary};
use std::sync::Arc;

/// Grouped-query attention with rotary positions and normalised queries and keys.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[(heads + 2 kv_heads) * head_dim, width]`: queries, keys, values.
    pub qkv: Linear,
    /// `[width, heads * head_dim]`.
    pub out: Linear,
    /// `[head_dim]`, used with `qk_norm`.
    pub q_norm: Parameter,
    /// `[head_dim]`, used with `qk_norm`.
    pub k_norm: Parameter,
    /// Heads and their width.
    pub shape: AttentionShape,
}

/// Keys (turned) and values of one sequence in one layer, `[tokens, kv_heads * head_dim]` each.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Attention {
    /// Random weights; `out` starts smaller, for it writes to the residual stream.
    pub fn new(name: &str, c: &TransformerConfig, rng: &mut Rng, device: &Device) -> Self {
        let shape = c.attention();
        let normal = |part: &str, dims: [usize; 2], std, rng: &mut Rng| {
            Linear::new(&format!("{name}.{part}"), dims, std, rng, device)
        };
        let ones = |part: &str| {
            Parameter::constant(format!("{name}.{part}.weight"), &[c.head_dim], 1.0, device)
        };
        let qkv = normal("qkv_proj", [shape.projection(), c.width], c.init_std(), rng);
        let kv = shape.kv_heads * shape.head_dim;
        let qkv = qkv.stacked(&[shape.output(), kv, kv]);
        let out = normal("o_proj", [c.width, shape.output()], c.residual_std(), rng);
        Self {
            qkv: qkv.biased_if(c.qkv_bias, device),
            out: out.biased_if(c.out_bias, device),
            q_norm: ones("q_norm"),
            k_norm: ones("k_norm"),
            shape,
        }
    }

    /// Packed documents `[n, width]` to `[n, width]`; see [`danlu_ops::attention`] for `starts`.
    pub fn forward(&self, x: Tensor<2>, rotary: &Arc<Rotary>, starts: &Arc<[u32]>) -> Tensor<2> {
        self.out.forward(self.branch(x, rotary, starts))
    }

    /// The same, but for the last projection.
    pub fn branch(&self, x: Tensor<2>, rotary: &Arc<Rotary>, starts: &Arc<[u32]>) -> Tensor<2> {
        let qkv = self.qkv.forward(x);
        let (q, k) = (self.q_norm.tensor.clone(), self.k_norm.tensor.clone());
        danlu_ops::attention(qkv, q, k, &self.shape, rotary, starts)
    }

    /// [`danlu_ops::attention_entropy`] of one document `[n, width]`. No gradients.
    pub fn entropy(&self, x: Tensor<2>, rotary: &Rotary) -> Vec<f64> {
        let qkv = self.qkv.forward(x).into_data();
        let qkv: Vec<f32> = qkv.try_into_vec().expect("f32");
        let norms = [&self.q_norm.values()[..], &self.k_norm.values()[..]];
        danlu_ops::attention_entropy(&qkv, norms, &self.shape, rotary)
    }

    /// The new tokens of several sequences, one after the other in `x: [sum of counts, width]`,
    /// each against its own cache, which grows by them. No gradients.
    pub fn forward_cached(
        &self,
        x: Tensor<2>,
        rotary: &Rotary,
        caches: &mut [(&mut Cache, usize, usize)],
    ) -> Tensor<2> {
        use rayon::prelude::*;
        let device = x.device();
        let qkv = self.qkv.forward(x).into_data();
        let qkv: Vec<f32> = qkv.try_into_vec().expect("f32");
        let (q_norm, k_norm) = (self.q_norm.values(), self.k_norm.values());
        let (from, to) = (self.shape.projection(), self.shape.output());
        let row = self.shape.kv_heads * self.shape.head_dim;
        let mut out = vec![0.0; qkv.len() / from * to];
        // Cut inputs and outputs into the pieces of each sequence.
        let mut pieces = Vec::with_capacity(caches.len());
        let (mut left_in, mut left_out) = (&qkv[..], &mut out[..]);
        for (cache, position, count) in caches.iter_mut() {
            let (a, rest) = left_in.split_at(*count * from);
            left_in = rest;
            let (b, rest) = std::mem::take(&mut left_out).split_at_mut(*count * to);
            left_out = rest;
            pieces.push((&mut **cache, *position, a, b));
        }
        pieces.into_par_iter().for_each(|(cache, position, x, y)| {
            let end = (position + x.len() / from) * row;
            cache.keys.resize(end, 0.0);
            cache.values.resize(end, 0.0);
            for (i, (x, y)) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)).enumerate() {
                danlu_ops::attention_cached(
                    x,
                    [&q_norm, &k_norm],
                    &self.shape,
                    rotary,
                    position + i,
                    &mut cache.keys,
                    &mut cache.values,
                    y,
                );
            }
        });
        let rows = out.len() / to;
        let mixed = Tensor::from_data(TensorData::new(out, [rows, to]), &device);
        self.out.forward(mixed)
    }
}
