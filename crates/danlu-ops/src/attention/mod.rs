//! Causal attention inside packed documents, with grouped queries, per-head normalisation of
//! queries and keys, and rotary positions folded in.
//!
//! The input is the output of one fused projection: every row holds all query heads, then the key
//! heads, then the value heads. Documents are given by where they start, so nothing is ever
//! computed between documents, and positions restart at each. Scores exist for one block of queries
//! and keys at a time (Dao et al., arXiv 2205.14135): memory is linear in the length of a document,
//! and keys that no query of a block sees are not computed. The backward pass keeps the projection,
//! the output and the log-sum-exp of each row, and makes the rest again.

mod cached;
mod kernel;
mod rotary;

pub use cached::attention_cached;
pub(crate) use cached::{normalise, softmax};
pub use rotary::Rotary;

use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Bool, Tensor, TensorData};
pub use kernel::AttentionMemory;
use kernel::{Saved, Task};
use std::sync::Arc;

/// The shape of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Epsilon of the query and key norms; `None`: queries and keys are not normalised.
    pub norm_eps: Option<f32>,
}

impl AttentionShape {
    /// Width of a row of the fused projection.
    pub fn projection(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of a row of the output.
    pub fn output(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

#[backend_extension(Flex, Autodiff)]
trait AttentionOp: Backend {
    fn danlu_attention(
        qkv: FloatTensor<Self>,
        q_norm: FloatTensor<Self>,
        k_norm: FloatTensor<Self>,
        shape: AttentionShape,
        rotary: Arc<Rotary>,
        starts: Arc<[u32]>,
    ) -> FloatTensor<Self>;
}

/// Attention of packed documents: `qkv: [n, shape.projection()]` to `[n, shape.output()]`.
///
/// `q_norm` and `k_norm` are the norm weights `[1, head_dim]`, used if `shape.norm_eps` is set.
/// `starts` are the rows where documents begin, ascending from 0 and closed by `n`.
///
/// # Panics
/// If shapes do not fit or a document is longer than the rotary tables.
pub fn attention(
    qkv: Tensor<2>,
    q_norm: Tensor<2>,
    k_norm: Tensor<2>,
    shape: &AttentionShape,
    rotary: &Arc<Rotary>,
    starts: &Arc<[u32]>,
) -> Tensor<2> {
    let [n, width] = qkv.dims();
    assert_eq!(width, shape.projection(), "attention: width of qkv for {shape:?}");
    assert_eq!(shape.heads % shape.kv_heads, 0, "attention: {shape:?}");
    assert_eq!(q_norm.dims(), [1, shape.head_dim], "attention: q_norm");
    assert_eq!(k_norm.dims(), [1, shape.head_dim], "attention: k_norm");
    assert_eq!(starts.first(), Some(&0), "attention: documents start at row 0");
    assert_eq!(starts.last(), Some(&(n as u32)), "attention: documents end at the last row");
    for w in starts.windows(2) {
        assert!(w[0] <= w[1], "attention: starts must ascend, found {} then {}", w[0], w[1]);
        let len = (w[1] - w[0]) as usize;
        assert!(
            len <= rotary.positions(),
            "attention: a document of {len} tokens, the rotary tables hold {}",
            rotary.positions()
        );
    }
    if !on_cpu(&qkv.device()) {
        return composed(qkv, q_norm, k_norm, shape, rotary, starts);
    }
    Tensor::from_dispatch(Dispatch::danlu_attention(
        qkv.into_dispatch(),
        q_norm.into_dispatch(),
        k_norm.into_dispatch(),
        *shape,
        rotary.clone(),
        starts.clone(),
    ))
}

pub(crate) fn composed(
    qkv: Tensor<2>,
    q_norm: Tensor<2>,
    k_norm: Tensor<2>,
    shape: &AttentionShape,
    rotary: &Rotary,
    starts: &[u32],
) -> Tensor<2> {
    let [n, _] = qkv.dims();
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let (device, half) = (qkv.device(), head_dim / 2);
    let mut document = vec![0usize; n];
    let mut position = vec![0usize; n];
    for (d, w) in starts.windows(2).enumerate() {
        for i in w[0] as usize..w[1] as usize {
            (document[i], position[i]) = (d, i - w[0] as usize);
        }
    }
    let table = |of: fn(&Rotary, usize) -> &[f32]| {
        let rows: Vec<f32> = position.iter().flat_map(|&p| of(rotary, p)).copied().collect();
        Tensor::<3>::from_data(TensorData::new(rows, [n, 1, half]), &device)
    };
    let (cos, sin) = (table(|r, p| r.at(p).0), table(|r, p| r.at(p).1));
    // [n, heads, head_dim] of one kind, normalised and turned.
    let part = |at: usize, count: usize, norm: Option<&Tensor<2>>| {
        let x = qkv.clone().narrow(1, at * head_dim, count * head_dim);
        let mut x = x.reshape([n, count, head_dim]);
        let Some(norm) = norm else { return x };
        if let Some(eps) = shape.norm_eps {
            let r = x.clone().powf_scalar(2.0).mean_dim(2).add_scalar(eps).sqrt().recip();
            x = x * r * norm.clone().reshape([1, 1, head_dim]);
        }
        let (a, b) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
        let turned = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![turned, b * cos.clone() + a * sin.clone()], 2)
    };
    let group = heads / kv_heads;
    let spread = |x: Tensor<3>| {
        x.reshape([n, kv_heads, 1, head_dim])
            .expand([n, kv_heads, group, head_dim])
            .reshape([n, heads, head_dim])
            .swap_dims(0, 1)
    };
    let q = part(0, heads, Some(&q_norm)).swap_dims(0, 1);
    let k = spread(part(heads, kv_heads, Some(&k_norm)));
    let v = spread(part(heads + kv_heads, kv_heads, None));
    let hidden: Vec<bool> =
        (0..n * n).map(|e| document[e / n] != document[e % n] || e % n > e / n).collect();
    let hidden = Tensor::<3, Bool>::from_data(TensorData::new(hidden, [1, n, n]), &device);
    let scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(shape.scale());
    let scores = scores.mask_fill(hidden.expand([heads, n, n]), -1e30);
    let weights = burn::tensor::activation::softmax(scores, 2);
    weights.matmul(v).swap_dims(0, 1).reshape([n, heads * head_dim])
}

impl AttentionOp for Flex {
    fn danlu_attention(
        qkv: FlexTensor,
        q_norm: FlexTensor,
        k_norm: FlexTensor,
        shape: AttentionShape,
        rotary: Arc<Rotary>,
        starts: Arc<[u32]>,
    ) -> FlexTensor {
        let task = Task { shape, rotary, starts };
        let [qkv, q_norm, k_norm] = [qkv, q_norm, k_norm].map(|t| t.to_contiguous());
        task.forward(&qkv, &q_norm, &k_norm).0
    }
}

impl<C: CheckpointStrategy> AttentionOp for Autodiff<Flex, C> {
    fn danlu_attention(
        qkv: FloatTensor<Self>,
        q_norm: FloatTensor<Self>,
        k_norm: FloatTensor<Self>,
        shape: AttentionShape,
        rotary: Arc<Rotary>,
        starts: Arc<[u32]>,
    ) -> FloatTensor<Self> {
        tape::record::<C, _, 3>(
            "attention",
            [qkv, q_norm, k_norm],
            |inputs, tracked| {
                let task = Task { shape, rotary, starts };
                let [qkv, q_norm, k_norm] = inputs.map(|t| t.to_contiguous());
                let (out, lse) = task.forward(&qkv, &q_norm, &k_norm);
                let saved = tracked.then(|| Saved {
                    task,
                    qkv,
                    norms: [q_norm, k_norm],
                    out: out.clone(),
                    lse: Arc::new(lse),
                });
                (out, saved)
            },
            |saved, up, _| saved.task.backward(&saved, &up.grad).map(Some),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, close, floats};

    fn shape(norm: bool) -> AttentionShape {
        AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, norm_eps: norm.then_some(1e-6) }
    }

    #[test]
    fn kernel_composed_and_differences_agree() {
        // 150 rows cross two blocks of queries, 700 two of keys; an empty document and one of a
        // single row are allowed.
        for (starts, norm) in [
            (vec![0u32, 4, 4, 5, 12], true),
            (vec![0, 9], false),
            (vec![0, 3, 150], true),
            (vec![0, 700], false),
        ] {
            let n = *starts.last().expect("closed") as usize;
            let starts: Arc<[u32]> = starts.into();
            let shape = shape(norm);
            let rotary = Arc::new(Rotary::new(6, 700, 10_000.0));
            let run = |v: &[Tensor<2>], fused: bool| {
                let (a, b, c) = (v[0].clone(), v[1].clone(), v[2].clone());
                // The norm weights are used in both cases, so that all inputs have a gradient.
                let used = (b.clone() + c.clone()).sum().reshape([1, 1]);
                let y = match fused {
                    true => attention(a, b, c, &shape, &rotary, &starts),
                    false => composed(a, b, c, &shape, &rotary, &starts),
                };
                y + used
            };
            check(&[[n, shape.projection()], [1, 6], [1, 6]], |v| run(v, true), |v| run(v, false));
        }
    }

    #[test]
    fn one_token_at_a_time_equals_all_at_once() {
        let d = crate::cpu_device();
        let (shape, n) = (shape(true), 11);
        let rotary = Arc::new(Rotary::new(6, 16, 10_000.0));
        let random =
            |dims| Tensor::<2>::random(dims, burn::tensor::Distribution::Normal(0., 1.), &d);
        let (qkv, a, b) = (random([n, shape.projection()]), random([1, 6]), random([1, 6]));
        let starts: Arc<[u32]> = Arc::from([0, n as u32]);
        let all = attention(qkv.clone(), a.clone(), b.clone(), &shape, &rotary, &starts);
        let [qkv, a, b] = [qkv, a, b].map(|t| floats(t.into_data()));
        let (mut keys, mut values) = (vec![0.0; n * 12], vec![0.0; n * 12]);
        let mut got = vec![0.0; n * 24];
        for p in 0..n {
            let row = &qkv[p * shape.projection()..][..shape.projection()];
            let out = &mut got[p * 24..][..24];
            attention_cached(row, [&a, &b], &shape, &rotary, p, &mut keys, &mut values, out);
        }
        close("cached", &got, &floats(all.into_data()), 1e-5);
    }

    #[test]
    #[should_panic(expected = "a document of 9 tokens, the rotary tables hold 8")]
    fn a_document_beyond_the_tables_is_named() {
        let d = crate::cpu_device();
        let shape = shape(true);
        attention(
            Tensor::zeros([9, shape.projection()], &d),
            Tensor::zeros([1, 6], &d),
            Tensor::zeros([1, 6], &d),
            &shape,
            &Arc::new(Rotary::new(6, 8, 1e4)),
            &Arc::from([0, 9]),
        );
    }
}
