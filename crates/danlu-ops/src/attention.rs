//! Causal attention inside packed documents, with grouped queries, per-head normalisation of
//! queries and keys, and rotary positions folded in.
//!
//! The input is the output of one fused projection: every row holds all query heads, then the key
//! heads, then the value heads. Documents are given by where they start, so nothing is ever
//! computed between documents, and positions restart at each. Scores exist for one block of queries
//! and keys at a time (Dao et al., arXiv 2205.14135): memory is linear in the length of a document,
//! and keys that no query of a block sees are not computed. The backward pass keeps the projection,
//! the output and the log-sum-exp of each row, and makes the rest again.

use crate::cpu::{self, Mat, ROWS, Shared, Threads, gemm};
use crate::pool::{Buffer, tensor};
use crate::rms_norm::{inverse_rms, row_backward};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Bool, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Query rows whose scores exist at once; divides [`KEYS`].
const QUERIES: usize = 64;

/// Keys whose scores exist at once.
const KEYS: usize = 512;

/// Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864), for pairs of elements
/// half a head apart as in Llama and Qwen.
#[derive(Debug)]
pub struct Rotary {
    /// Pairs that are turned; 0: none.
    half: usize,
    positions: usize,
    theta: f32,
    /// Cosines and sines `[TURNS, 2, half]` of as many positions, each made when it is first asked
    /// for: few documents are as long as the context.
    tables: Vec<OnceLock<Box<[f32]>>>,
}

/// Positions of a table of [`Rotary`].
const TURNS: usize = 128;

impl Rotary {
    /// Tables for heads of `head_dim` elements and positions `0..positions`.
    pub fn new(head_dim: usize, positions: usize, theta: f32) -> Self {
        let tables = (0..positions.div_ceil(TURNS)).map(|_| OnceLock::new()).collect();
        Self { half: head_dim / 2, positions, theta, tables }
    }

    /// Number `index` of the tables.
    fn table(&self, index: usize) -> Box<[f32]> {
        let half = self.half;
        let scales: Vec<f64> =
            (0..half).map(|i| f64::from(self.theta).powf(i as f64 / half as f64)).collect();
        let mut table = Vec::with_capacity(TURNS * 2 * half);
        for position in index * TURNS..(index + 1) * TURNS {
            let angles = scales.iter().map(|scale| position as f64 / scale);
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        table.into()
    }

    /// Turns nothing, for models that learn their positions or have none.
    pub fn none(positions: usize) -> Self {
        Self { half: 0, positions, theta: 1.0, tables: Vec::new() }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }

    #[inline(always)]
    pub(crate) fn turn(&self, position: usize, x: &mut [f32]) {
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
        if self.half == 0 {
            return (&[], &[]);
        }
        debug_assert!(position < self.positions, "position {position} of {}", self.positions);
        let index = position / TURNS;
        let table = self.tables[index].get_or_init(|| self.table(index));
        table[position % TURNS * 2 * self.half..][..2 * self.half].split_at(self.half)
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

/// Queries and keys as the scores take them.
struct Prepared {
    /// Queries, then keys of a row, normalised and turned: `[n, (heads + kv_heads) * dim]`. `None`
    /// if they are what the projection holds.
    turned: Option<Buffer>,
    /// Keys, one dimension a row: `[kv_heads * dim, n]`.
    keys: Buffer,
    /// Values the same way, for the backward pass.
    values: Option<Buffer>,
}

impl Task {
    /// Position of every row in its document.
    fn positions(&self) -> Vec<usize> {
        self.starts.windows(2).flat_map(|w| 0..(w[1] - w[0]) as usize).collect()
    }

    /// Documents that are not empty: first row and length.
    fn documents(&self) -> impl Iterator<Item = (usize, usize)> {
        let all = self.starts.windows(2).map(|w| (w[0] as usize, (w[1] - w[0]) as usize));
        all.filter(|&(_, len)| len > 0)
    }

    fn prepare(&self, x: &[f32], norms: [&[f32]; 2], with_values: bool) -> Prepared {
        let s = &self.shape;
        let (dim, wide, both) = (s.head_dim, s.projection(), s.heads + s.kv_heads);
        let n = x.len() / wide;
        let turns = self.rotary.half > 0 || s.norm_eps.is_some();
        let mut turned = turns.then(|| Buffer::any(n * both * dim));
        if let Some(turned) = &mut turned {
            let positions = self.positions();
            let rows = ROWS * both * dim;
            turned.par_chunks_mut(rows).enumerate().for_each(|(task, out)| {
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        for (r, out) in out.chunks_exact_mut(both * dim).enumerate() {
                            let row = task * ROWS + r;
                            for (h, out) in out.chunks_exact_mut(dim).enumerate() {
                                let from = &x[row * wide + h * dim..][..dim];
                                let norm = norms[usize::from(h >= s.heads)];
                                normalise(from, norm, s.norm_eps, out);
                                self.rotary.turn(positions[row], out);
                            }
                        }
                    },
                );
            });
        }
        let across = |at: usize| {
            let (from, width) = match &turned {
                Some(t) if at < both => (&**t, both * dim),
                _ => (x, wide),
            };
            transposed(from, width, at * dim, s.kv_heads * dim)
        };
        let (keys, values) = (across(s.heads), with_values.then(|| across(both)));
        Prepared { turned, keys, values }
    }

    /// Rows of `head` (keys follow the queries) from row `first` on.
    fn rows<'a>(&self, p: &'a Prepared, x: &'a [f32], head: usize, first: usize) -> Mat<'a> {
        let (dim, both) = (self.shape.head_dim, self.shape.heads + self.shape.kv_heads);
        match &p.turned {
            Some(t) if head < both => Mat::new(&t[(first * both + head) * dim..], both * dim),
            _ => {
                let wide = self.shape.projection();
                Mat::new(&x[first * wide + head * dim..], wide)
            }
        }
    }

    fn forward(
        &self,
        qkv: &FlexTensor,
        q_norm: &FlexTensor,
        k_norm: &FlexTensor,
    ) -> (FlexTensor, Vec<f32>) {
        let s = &self.shape;
        let [n, _] = cpu::dims(qkv);
        let (x, norms) = (cpu::values(qkv), [cpu::values(q_norm), cpu::values(k_norm)]);
        let (dim, width, group) = (s.head_dim, s.output(), s.heads / s.kv_heads);
        let prepared = self.prepare(x, norms, false);
        let mut out = Buffer::any(n * width);
        let mut lse = vec![0.0; n * s.heads];
        let (to, to_lse) = (Shared::new(&mut out), Shared::new(&mut lse));
        let units: Vec<_> = self
            .documents()
            .flat_map(|(first, len)| {
                let blocks = (0..len).step_by(QUERIES);
                blocks.flat_map(move |at| (0..s.heads).map(move |h| (first, len, at, h)))
            })
            .collect();
        units.into_par_iter().for_each(|(first, len, begin, head)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    let rows = QUERIES.min(len - begin);
                    let end = begin + rows;
                    let mut scores = Buffer::any(rows * KEYS.min(end));
                    let mut mixed = Buffer::any(rows * dim);
                    let mut peaks = [f32::MIN; QUERIES];
                    let mut sums = [0.0f32; QUERIES];
                    let q = self.rows(&prepared, x, head, first + begin);
                    let kv = head / group;
                    for from in (0..end).step_by(KEYS) {
                        let keys = KEYS.min(end - from);
                        let kt = Mat::new(&prepared.keys[kv * dim * n + first + from..], n);
                        gemm([rows, dim, keys], q, kt, &mut scores, keys, 0.0, Threads::One);
                        for r in 0..rows {
                            let row = &mut scores[r * keys..][..keys];
                            let seen = (begin + r + 1 - from).min(keys);
                            let old = peaks[r];
                            let (peak, sum) = exponentials(row, seen, s.scale(), old);
                            let kept = cpu::exp(old - peak);
                            (peaks[r], sums[r]) = (peak, sums[r] * kept + sum);
                            if from > 0 {
                                mixed[r * dim..][..dim].iter_mut().for_each(|v| *v *= kept);
                            }
                        }
                        let v = self.rows(&prepared, x, s.heads + s.kv_heads + kv, first + from);
                        let keep = if from == 0 { 0.0 } else { 1.0 };
                        let p = Mat::new(&scores, keys);
                        gemm([rows, keys, dim], p, v, &mut mixed, dim, keep, Threads::One);
                    }
                    for r in 0..rows {
                        let row = first + begin + r;
                        // SAFETY: this unit alone has these rows of `head`.
                        let out = unsafe { to.part(row * width + head * dim, dim) };
                        let by = 1.0 / sums[r];
                        out.iter_mut().zip(&mixed[r * dim..]).for_each(|(o, m)| *o = m * by);
                        // SAFETY: as above.
                        let lse = unsafe { to_lse.part(row * s.heads + head, 1) };
                        lse[0] = peaks[r] + sums[r].ln();
                    }
                },
            );
        });
        (tensor(out, [n, width]), lse)
    }

    fn backward(&self, saved: &Saved, grad: &FlexTensor) -> [FlexTensor; 3] {
        let s = &self.shape;
        let [n, _] = cpu::dims(&saved.qkv);
        let (x, up) = (cpu::values(&saved.qkv), cpu::values(grad));
        let norms = saved.norms.each_ref().map(cpu::values);
        let (dim, wide) = (s.head_dim, s.projection());
        let prepared = self.prepare(x, norms, true);
        let mut dx = Buffer::any(n * wide);
        // Gradients of key and value by query head, before those of a group are added up.
        let pair = 2 * dim;
        let mut spread = Buffer::any(n * s.heads * pair);
        let (to, to_spread) = (Shared::new(&mut dx), Shared::new(&mut spread));
        let units: Vec<_> = self
            .documents()
            .flat_map(|(first, len)| (0..s.heads).map(move |h| (first, len, h)))
            .collect();
        let parts: Vec<Vec<f32>> = units
            .into_par_iter()
            .map(|(first, len, head)| {
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        let [mut dq, dk, dv] =
                            self.head_backward(saved, &prepared, up, [first, len, head]);
                        let mut dnorm = vec![0.0; dim];
                        for (r, dq) in dq.chunks_exact_mut(dim).enumerate() {
                            let at = (first + r) * wide + head * dim;
                            // SAFETY: this unit alone has these rows of `head`.
                            let to = unsafe { to.part(at, dim) };
                            self.rotary.turn_back(r, dq);
                            let from = &x[at..][..dim];
                            self.unnormalise(from, norms[0], dq, to, &mut dnorm);
                            let at = ((first + r) * s.heads + head) * pair;
                            // SAFETY: as above.
                            let to = unsafe { to_spread.part(at, pair) };
                            to[..dim].copy_from_slice(&dk[r * dim..][..dim]);
                            to[dim..].copy_from_slice(&dv[r * dim..][..dim]);
                        }
                        dnorm
                    },
                )
            })
            .collect();
        let dq_norm = cpu::add_parts(&parts, dim);
        let positions = self.positions();
        let group = s.heads / s.kv_heads;
        let parts: Vec<Vec<f32>> = dx
            .par_chunks_mut(ROWS * wide)
            .enumerate()
            .map(|(task, dx)| {
                let mut dnorm = vec![0.0; dim];
                let mut sum = vec![0.0; pair];
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        for (r, dx) in dx.chunks_exact_mut(wide).enumerate() {
                            let row = task * ROWS + r;
                            for kv in 0..s.kv_heads {
                                let all = &spread[(row * s.heads + kv * group) * pair..];
                                sum.copy_from_slice(&all[..pair]);
                                for more in all[..group * pair].chunks_exact(pair).skip(1) {
                                    sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
                                }
                                let (dk, dv) = sum.split_at_mut(dim);
                                self.rotary.turn_back(positions[row], dk);
                                let at = (s.heads + kv) * dim;
                                let from = &x[row * wide + at..][..dim];
                                let to = &mut dx[at..][..dim];
                                self.unnormalise(from, norms[1], dk, to, &mut dnorm);
                                dx[at + s.kv_heads * dim..][..dim].copy_from_slice(dv);
                            }
                        }
                    },
                );
                dnorm
            })
            .collect();
        let dk_norm = cpu::add_parts(&parts, dim);
        [tensor(dx, [n, wide]), tensor(dq_norm, [1, dim]), tensor(dk_norm, [1, dim])]
    }

    /// Gradients of the turned queries and keys and of the values of one head of a document, each
    /// `[len, dim]`: a block of keys at a time, and for each the blocks of queries that see it,
    /// from the last one, which sees all of them.
    #[inline(always)]
    fn head_backward(
        &self,
        saved: &Saved,
        prepared: &Prepared,
        up: &[f32],
        [first, len, head]: [usize; 3],
    ) -> [Buffer; 3] {
        let s = &self.shape;
        let (x, out) = (cpu::values(&saved.qkv), cpu::values(&saved.out));
        let (dim, width) = (s.head_dim, s.output());
        let (n, kv) = (x.len() / s.projection(), head / (s.heads / s.kv_heads));
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| Buffer::any(len * dim));
        let mut p = Buffer::any(QUERIES.min(len) * KEYS.min(len));
        let mut dp = Buffer::any(QUERIES.min(len) * KEYS.min(len));
        let deltas: Vec<f32> = (first..first + len)
            .map(|row| {
                let at = row * width + head * dim;
                cpu::dot(&out[at..][..dim], &up[at..][..dim])
            })
            .collect();
        let values = prepared.values.as_deref().expect("prepared for the backward pass");
        for from in (0..len).step_by(KEYS) {
            for begin in (from..len).step_by(QUERIES).rev() {
                let rows = QUERIES.min(len - begin);
                let keys = KEYS.min(begin + rows - from);
                let at = kv * dim * n + first + from;
                let (kt, vt) = (Mat::new(&prepared.keys[at..], n), Mat::new(&values[at..], n));
                let q = self.rows(prepared, x, head, first + begin);
                let k = self.rows(prepared, x, s.heads + kv, first + from);
                let go = Mat::new(&up[(first + begin) * width + head * dim..], width);
                gemm([rows, dim, keys], q, kt, &mut p, keys, 0.0, Threads::One);
                gemm([rows, dim, keys], go, vt, &mut dp, keys, 0.0, Threads::One);
                for r in 0..rows {
                    let lse = saved.lse[(first + begin + r) * s.heads + head];
                    let delta = deltas[begin + r];
                    let seen = (begin + r + 1 - from).min(keys);
                    let (seen_p, unseen_p) = p[r * keys..][..keys].split_at_mut(seen);
                    let (seen_dp, unseen_dp) = dp[r * keys..][..keys].split_at_mut(seen);
                    for (p, dp) in seen_p.iter_mut().zip(seen_dp) {
                        *p = cpu::exp(*p * s.scale() - lse);
                        *dp = *p * (*dp - delta) * s.scale();
                    }
                    unseen_p.fill(0.0);
                    unseen_dp.fill(0.0);
                }
                let (pm, dpm) = (Mat::new(&p, keys), Mat::new(&dp, keys));
                let keep = if begin + rows == len { 0.0 } else { 1.0 };
                let to = &mut dv[from * dim..];
                gemm([keys, rows, dim], pm.t(), go, to, dim, keep, Threads::One);
                let to = &mut dk[from * dim..];
                gemm([keys, rows, dim], dpm.t(), q, to, dim, keep, Threads::One);
                let keep = if from == 0 { 0.0 } else { 1.0 };
                let to = &mut dq[begin * dim..];
                gemm([rows, keys, dim], dpm, k, to, dim, keep, Threads::One);
            }
        }
        [dq, dk, dv]
    }

    /// Backward pass of [`normalise`] for one row of a head.
    #[inline(always)]
    fn unnormalise(
        &self,
        from: &[f32],
        norm: &[f32],
        grad: &[f32],
        to: &mut [f32],
        dnorm: &mut [f32],
    ) {
        match self.shape.norm_eps {
            Some(eps) => row_backward(from, norm, eps, grad, to, dnorm),
            None => to.copy_from_slice(grad),
        }
    }
}

/// One head of a row with its norm, if there is one.
#[inline(always)]
pub(crate) fn normalise(from: &[f32], norm: &[f32], eps: Option<f32>, to: &mut [f32]) {
    let Some(eps) = eps else { return to.copy_from_slice(from) };
    let r = inverse_rms(from, eps);
    for ((to, from), norm) in to.iter_mut().zip(from).zip(norm) {
        *to = from * r * norm;
    }
}

/// Columns `at..at + count` of the row-major `x`, as rows: `[count, n]`.
fn transposed(x: &[f32], width: usize, at: usize, count: usize) -> Buffer {
    let n = x.len() / width;
    let mut out = Buffer::any(count * n);
    let to = Shared::new(&mut out);
    (0..n.div_ceil(ROWS)).into_par_iter().for_each(|task| {
        let rows = task * ROWS..n.min((task + 1) * ROWS);
        for column in 0..count {
            // SAFETY: this task alone has these columns of the output.
            let to = unsafe { to.part(column * n + rows.start, rows.len()) };
            for (to, row) in to.iter_mut().zip(rows.clone()) {
                *to = x[row * width + at + column];
            }
        }
    });
    out
}

/// The first `seen` scores of `row` times `scale` become their exponentials over the largest of
/// them and `old`, the rest 0. Returns that largest one and the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], seen: usize, scale: f32, old: f32) -> (f32, f32) {
    let (row, unseen) = row.split_at_mut(seen);
    unseen.fill(0.0);
    let mut peaks = [f32::MIN; 16];
    let (chunks, tail) = row.as_chunks_mut::<16>();
    for chunk in &mut *chunks {
        for j in 0..16 {
            peaks[j] = if chunk[j] > peaks[j] { chunk[j] } else { peaks[j] };
        }
    }
    let peak = peaks.iter().chain(&*tail).fold(f32::MIN, |a, &b| a.max(b));
    let peak = (peak * scale).max(old);
    let mut sums = [0.0f32; 16];
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
    (peak, sum)
}

/// Softmax of `row` times `scale`.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], scale: f32) {
    let (_, sum) = exponentials(row, row.len(), scale, f32::MIN);
    row.iter_mut().for_each(|v| *v *= 1.0 / sum);
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
                normalise(&qkv[head * dim..][..dim], norm, shape.norm_eps, to);
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
                softmax(&mut scores, shape.scale());
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
