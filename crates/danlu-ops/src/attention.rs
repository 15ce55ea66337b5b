//! Causal attention inside packed documents, with grouped queries, per-head normalisation of
//! queries and keys, and rotary positions folded in.
//!
//! The input is the output of one fused projection: every row holds all query heads, then the key
//! heads, then the value heads. Documents are given by where they start, so nothing is ever
//! computed between documents, and positions restart at each. Scores exist for one block of query
//! rows at a time: memory is linear in the length of a document. The backward pass keeps the
//! projection, the output and the log-sum-exp of each row, and makes the rest again
//! (Dao et al., arXiv 2205.14135).

use crate::cpu::{self, Mat, Shared, Threads, gemm};
use crate::pool::tensor;
use crate::rms_norm::{inverse_rms, row_backward};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Bool, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

/// Query rows whose scores exist at once.
const BLOCK: usize = 64;

/// Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864), for pairs of elements
/// half a head apart as in Llama and Qwen.
#[derive(Debug)]
pub struct Rotary {
    /// Pairs that are turned; 0: none.
    half: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Tables for heads of `head_dim` elements and positions `0..positions`.
    pub fn new(head_dim: usize, positions: usize, theta: f32) -> Self {
        let half = head_dim / 2;
        let angle = |p: usize, i: usize| p as f64 / (theta as f64).powf(i as f64 / half as f64);
        let table = |f: fn(f64) -> f64| {
            (0..positions * half).map(|e| f(angle(e / half, e % half)) as f32).collect()
        };
        Self { half, positions, cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Turns nothing, for models that learn their positions or have none.
    pub fn none(positions: usize) -> Self {
        Self { half: 0, positions, cos: Vec::new(), sin: Vec::new() }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }

    #[inline(always)]
    fn turn(&self, position: usize, x: &mut [f32]) {
        let (cos, sin) = self.at(position);
        let (a, b) = x.split_at_mut(self.half);
        for i in 0..self.half {
            (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
        }
    }

    #[inline(always)]
    fn turn_back(&self, position: usize, x: &mut [f32]) {
        let (cos, sin) = self.at(position);
        let (a, b) = x.split_at_mut(self.half);
        for i in 0..self.half {
            (a[i], b[i]) = (a[i] * cos[i] + b[i] * sin[i], b[i] * cos[i] - a[i] * sin[i]);
        }
    }

    #[inline(always)]
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let start = position * self.half;
        (&self.cos[start..][..self.half], &self.sin[start..][..self.half])
    }
}

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

    fn scale(&self) -> f32 {
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

fn composed(
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
    let table = |values: &[f32]| {
        let rows: Vec<f32> =
            position.iter().flat_map(|&p| &values[p * half..][..half]).copied().collect();
        Tensor::<3>::from_data(TensorData::new(rows, [n, 1, half]), &device)
    };
    let (cos, sin) = (table(&rotary.cos), table(&rotary.sin));
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

#[derive(Debug, Clone)]
struct Saved {
    task: Task,
    qkv: FlexTensor,
    norms: [FlexTensor; 2],
    out: FlexTensor,
    lse: Arc<Vec<f32>>,
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

#[derive(Debug, Clone)]
struct Task {
    shape: AttentionShape,
    rotary: Arc<Rotary>,
    starts: Arc<[u32]>,
}

impl Task {
    /// One unit of parallel work: `(first row, rows, key head)` of a document.
    fn units(&self) -> Vec<(usize, usize, usize)> {
        self.starts
            .windows(2)
            .map(|w| (w[0] as usize, (w[1] - w[0]) as usize))
            .filter(|&(_, len)| len > 0)
            .flat_map(|(first, len)| (0..self.shape.kv_heads).map(move |h| (first, len, h)))
            .collect()
    }

    /// Rows of one head of a document out of the projection, normalised and turned if `norm`.
    #[inline(always)]
    fn load(
        &self,
        qkv: &[f32],
        first: usize,
        len: usize,
        head: usize,
        norm: Option<&[f32]>,
    ) -> Vec<f32> {
        let (dim, width) = (self.shape.head_dim, self.shape.projection());
        let mut out = vec![0.0; len * dim];
        for (p, to) in out.chunks_exact_mut(dim).enumerate() {
            let from = &qkv[(first + p) * width + head * dim..][..dim];
            let Some(norm) = norm else {
                to.copy_from_slice(from);
                continue;
            };
            match self.shape.norm_eps {
                Some(eps) => {
                    let r = inverse_rms(from, eps);
                    for i in 0..dim {
                        to[i] = from[i] * r * norm[i];
                    }
                }
                None => to.copy_from_slice(from),
            }
            self.rotary.turn(p, to);
        }
        out
    }

    fn forward(
        &self,
        qkv: &FlexTensor,
        q_norm: &FlexTensor,
        k_norm: &FlexTensor,
    ) -> (FlexTensor, Vec<f32>) {
        let s = &self.shape;
        let [n, _] = cpu::dims(qkv);
        let (x, q_norm, k_norm) = (cpu::values(qkv), cpu::values(q_norm), cpu::values(k_norm));
        let (dim, width, group) = (s.head_dim, s.output(), s.heads / s.kv_heads);
        let mut out = vec![0.0; n * width];
        let mut lse = vec![0.0; n * s.heads];
        let (to, to_lse) = (Shared::new(&mut out), Shared::new(&mut lse));
        self.units().into_par_iter().for_each(|(first, len, kv)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    let k = self.load(x, first, len, s.heads + kv, Some(k_norm));
                    let v = self.load(x, first, len, s.heads + s.kv_heads + kv, None);
                    let mut scores = vec![0.0; BLOCK.min(len) * len];
                    let mut mixed = vec![0.0; BLOCK.min(len) * dim];
                    for head in kv * group..(kv + 1) * group {
                        let q = self.load(x, first, len, head, Some(q_norm));
                        for begin in (0..len).step_by(BLOCK) {
                            let rows = BLOCK.min(len - begin);
                            let keys = begin + rows;
                            let q = Mat::new(&q[begin * dim..], dim);
                            let kt = Mat::new(&k, dim).t();
                            gemm([rows, dim, keys], q, kt, &mut scores, keys, 0.0, Threads::One);
                            for r in 0..rows {
                                let row = &mut scores[r * keys..][..keys];
                                let sum = softmax(row, begin + r + 1, s.scale());
                                let i = (first + begin + r) * s.heads + head;
                                // SAFETY: this unit alone has this document's rows of `head`.
                                unsafe { to_lse.part(i, 1) }.fill(sum);
                            }
                            let p = Mat::new(&scores, keys);
                            gemm(
                                [rows, keys, dim],
                                p,
                                Mat::new(&v, dim),
                                &mut mixed,
                                dim,
                                0.0,
                                Threads::One,
                            );
                            for r in 0..rows {
                                let at = (first + begin + r) * width + head * dim;
                                // SAFETY: as above.
                                unsafe { to.part(at, dim) }
                                    .copy_from_slice(&mixed[r * dim..][..dim]);
                            }
                        }
                    }
                },
            );
        });
        (tensor(out, [n, width]), lse)
    }

    fn backward(&self, saved: &Saved, grad: &FlexTensor) -> [FlexTensor; 3] {
        let s = &self.shape;
        let [n, _] = cpu::dims(&saved.qkv);
        let (x, out, up) = (cpu::values(&saved.qkv), cpu::values(&saved.out), cpu::values(grad));
        let norms = saved.norms.each_ref().map(cpu::values);
        let (dim, wide, width) = (s.head_dim, s.projection(), s.output());
        let group = s.heads / s.kv_heads;
        let mut dx = vec![0.0; n * wide];
        let to = Shared::new(&mut dx);
        let parts: Vec<[Vec<f32>; 2]> = self
            .units()
            .into_par_iter()
            .map(|(first, len, kv)| {
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        let mut dnorms = [vec![0.0; dim], vec![0.0; dim]];
                        let k = self.load(x, first, len, s.heads + kv, Some(norms[1]));
                        let v = self.load(x, first, len, s.heads + s.kv_heads + kv, None);
                        let (mut dk, mut dv) = (vec![0.0; len * dim], vec![0.0; len * dim]);
                        let mut dq = vec![0.0; len * dim];
                        let mut p = vec![0.0; BLOCK.min(len) * len];
                        let mut dp = vec![0.0; BLOCK.min(len) * len];
                        let mut go = vec![0.0; BLOCK.min(len) * dim];
                        // Gradient of the turned, normalised rows of one head, back to `dx`.
                        let store =
                            |head: usize,
                             rows: &mut [f32],
                             which: Option<usize>,
                             dnorms: &mut [Vec<f32>; 2]| {
                                for (r, row) in rows.chunks_exact_mut(dim).enumerate() {
                                    let at = (first + r) * wide + head * dim;
                                    // SAFETY: this unit alone has these rows of its heads.
                                    let to = unsafe { to.part(at, dim) };
                                    let Some(which) = which else {
                                        to.copy_from_slice(row);
                                        continue;
                                    };
                                    self.rotary.turn_back(r, row);
                                    match s.norm_eps {
                                        Some(eps) => row_backward(
                                            &x[at..][..dim],
                                            norms[which],
                                            eps,
                                            row,
                                            to,
                                            &mut dnorms[which],
                                        ),
                                        None => to.copy_from_slice(row),
                                    }
                                }
                            };
                        for head in kv * group..(kv + 1) * group {
                            let q = self.load(x, first, len, head, Some(norms[0]));
                            for begin in (0..len).step_by(BLOCK) {
                                let rows = BLOCK.min(len - begin);
                                let keys = begin + rows;
                                for r in 0..rows {
                                    let at = (first + begin + r) * width + head * dim;
                                    go[r * dim..][..dim].copy_from_slice(&up[at..][..dim]);
                                }
                                let q = Mat::new(&q[begin * dim..], dim);
                                let (km, vm) = (Mat::new(&k, dim), Mat::new(&v, dim));
                                let gm = Mat::new(&go, dim);
                                gemm([rows, dim, keys], q, km.t(), &mut p, keys, 0.0, Threads::One);
                                gemm(
                                    [rows, dim, keys],
                                    gm,
                                    vm.t(),
                                    &mut dp,
                                    keys,
                                    0.0,
                                    Threads::One,
                                );
                                for r in 0..rows {
                                    let row = first + begin + r;
                                    let lse = saved.lse[row * s.heads + head];
                                    let o = &out[row * width + head * dim..][..dim];
                                    let delta = cpu::dot(o, &go[r * dim..][..dim]);
                                    let (seen, unseen) =
                                        p[r * keys..][..keys].split_at_mut(begin + r + 1);
                                    let (dseen, dunseen) =
                                        dp[r * keys..][..keys].split_at_mut(begin + r + 1);
                                    for (p, dp) in seen.iter_mut().zip(dseen) {
                                        *p = cpu::exp(*p * s.scale() - lse);
                                        *dp = *p * (*dp - delta) * s.scale();
                                    }
                                    unseen.fill(0.0);
                                    dunseen.fill(0.0);
                                }
                                let (pm, dpm) = (Mat::new(&p, keys), Mat::new(&dp, keys));
                                gemm(
                                    [keys, rows, dim],
                                    pm.t(),
                                    gm,
                                    &mut dv,
                                    dim,
                                    1.0,
                                    Threads::One,
                                );
                                gemm(
                                    [keys, rows, dim],
                                    dpm.t(),
                                    q,
                                    &mut dk,
                                    dim,
                                    1.0,
                                    Threads::One,
                                );
                                let dq = &mut dq[begin * dim..];
                                gemm([rows, keys, dim], dpm, km, dq, dim, 0.0, Threads::One);
                            }
                            store(head, &mut dq, Some(0), &mut dnorms);
                        }
                        store(s.heads + kv, &mut dk, Some(1), &mut dnorms);
                        store(s.heads + s.kv_heads + kv, &mut dv, None, &mut dnorms);
                        dnorms
                    },
                )
            })
            .collect();
        let mut sums = [vec![0.0; dim], vec![0.0; dim]];
        for part in &parts {
            for (sum, part) in sums.iter_mut().zip(part) {
                sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
            }
        }
        let [dq_norm, dk_norm] = sums.map(|v| tensor(v, [1, dim]));
        [tensor(dx, [n, wide]), dq_norm, dk_norm]
    }
}

/// Softmax of the first `seen` elements of `row` times `scale`; the rest become 0. Returns the
/// log-sum-exp.
#[inline(always)]
fn softmax(row: &mut [f32], seen: usize, scale: f32) -> f32 {
    let (row, unseen) = row.split_at_mut(seen);
    unseen.fill(0.0);
    let peak = row.iter().fold(f32::MIN, |a, &b| a.max(b)) * scale;
    let mut sums = [0.0f32; 16];
    let (chunks, tail) = row.as_chunks_mut::<16>();
    for chunk in chunks {
        for j in 0..16 {
            chunk[j] = cpu::exp(chunk[j] * scale - peak);
            sums[j] += chunk[j];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for v in tail {
        *v = cpu::exp(*v * scale - peak);
        sum += *v;
    }
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|v| *v *= inverse);
    peak + sum.ln()
}

/// One new token per sequence against its cache, without gradients, on plain slices.
///
/// `qkv` is the row of the fused projection at `position`. Its key (normalised and turned) and its
/// value are written to row `position` of `keys` and `values` (`[positions, kv_heads * head_dim]`),
/// and the attention over rows `0..=position` goes to `out` (`[heads * head_dim]`).
#[allow(clippy::too_many_arguments)]
pub fn attention_cached(
    qkv: &[f32],
    norms: [&[f32]; 2],
    shape: &AttentionShape,
    rotary: &Rotary,
    position: usize,
    keys: &mut [f32],
    values: &mut [f32],
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim: dim, .. } = *shape;
    let (row, group) = (kv_heads * dim, heads / kv_heads);
    cpu::vectorised(
        #[inline(always)]
        || {
            let load = |head: usize, norm: &[f32], to: &mut [f32]| {
                let from = &qkv[head * dim..][..dim];
                match shape.norm_eps {
                    Some(eps) => {
                        let r = inverse_rms(from, eps);
                        for i in 0..dim {
                            to[i] = from[i] * r * norm[i];
                        }
                    }
                    None => to.copy_from_slice(from),
                }
                rotary.turn(position, to);
            };
            for h in 0..kv_heads {
                load(heads + h, norms[1], &mut keys[position * row + h * dim..][..dim]);
            }
            values[position * row..][..row].copy_from_slice(&qkv[(heads + kv_heads) * dim..]);
            let mut q = vec![0.0; dim];
            let mut scores = vec![0.0; position + 1];
            for head in 0..heads {
                let kv = head / group * dim;
                load(head, norms[0], &mut q);
                for (p, score) in scores.iter_mut().enumerate() {
                    *score = cpu::dot(&q, &keys[p * row + kv..][..dim]);
                }
                softmax(&mut scores, position + 1, shape.scale());
                let out = &mut out[head * dim..][..dim];
                out.fill(0.0);
                for (p, &score) in scores.iter().enumerate() {
                    let v = &values[p * row + kv..][..dim];
                    for i in 0..dim {
                        out[i] += score * v[i];
                    }
                }
            }
        },
    );
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
        // 150 rows cross two blocks; an empty document and one of a single row are allowed.
        for (starts, norm) in
            [(vec![0u32, 4, 4, 5, 12], true), (vec![0, 9], false), (vec![0, 3, 150], true)]
        {
            let n = *starts.last().expect("closed") as usize;
            let starts: Arc<[u32]> = starts.into();
            let shape = shape(norm);
            let rotary = Arc::new(Rotary::new(6, 200, 10_000.0));
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
