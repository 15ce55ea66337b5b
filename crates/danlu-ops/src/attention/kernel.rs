//! The CPU kernel and its backward pass.
//!
//! Scores lie transposed, one key a row: the largest score of a query and the sum of its
//! exponentials are then taken across vectors, and the scores are an operand of the next product as
//! they lie. Everything else that a product reads is packed once into the panels of the micro-kernel
//! ([`Micro`]). A tile whose keys come after all of its queries is not computed, and sums go as far
//! as a tile's last query sees.

use super::{AttentionShape, Rotary, normalise};
use crate::cpu::{self, Mat, ROWS, Shared};
use crate::gemm::{Micro, Packing};
use crate::pool::{Buffer, tensor};
use crate::rms_norm::row_backward;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Query rows whose scores exist at once: whole tiles of every kernel, by rows and by columns.
const QUERIES: usize = 96;

/// Keys whose scores exist at once. A multiple of [`QUERIES`], so that every query of a block sees
/// the first key of each block that is computed for it.
const KEYS: usize = 288;

/// How many rows ahead of their use a head's share of them is asked for.
const AHEAD: usize = 16;

#[derive(Debug, Clone)]
pub(super) struct Saved {
    pub task: Task,
    pub qkv: FlexTensor,
    pub norms: [FlexTensor; 2],
    pub out: FlexTensor,
    pub lse: Arc<Vec<f32>>,
}

#[derive(Debug, Clone)]
pub(super) struct Task {
    pub shape: AttentionShape,
    pub rotary: Arc<Rotary>,
    pub starts: Arc<[u32]>,
}

/// Rows of one document.
#[derive(Debug, Clone, Copy)]
struct Document {
    first: usize,
    len: usize,
    /// Rows of the documents before it, each rounded up to whole left panels.
    padded: usize,
}

/// Numbers in each buffer that attention takes beside its output, for those who plan memory.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMemory {
    /// Of the whole pass.
    pub shared: Vec<usize>,
    /// Of the threads, while they work.
    pub threads: Vec<usize>,
}

impl AttentionMemory {
    /// For `documents` of `len` rows on `threads` threads.
    pub fn new(
        shape: &AttentionShape,
        [documents, len]: [usize; 2],
        threads: usize,
        backward: bool,
    ) -> Self {
        let (micro, s) = (Micro::new(), shape);
        let (dim, rows) = (s.head_dim, QUERIES.min(len));
        let columns = rows.next_multiple_of(micro.cols());
        let (panels, lines) = (Panels::len(dim, len, micro), len.next_multiple_of(micro.rows()));
        let (shared, one, units) = if backward {
            let across = len.next_multiple_of(micro.cols()) * dim;
            let mut one = vec![len * dim; 3];
            one.extend([panels, panels, panels, across, across, lines * dim, lines * dim]);
            one.extend([rows * dim, columns * KEYS.min(len), columns * KEYS.min(len)]);
            (vec![documents * len * s.heads * 2 * dim], one, 1)
        } else {
            let shared = [lines * dim, panels].map(|numbers| documents * s.kv_heads * numbers);
            let one = vec![columns * KEYS.min(len), rows * dim, columns * dim];
            (shared.to_vec(), one, len.div_ceil(QUERIES))
        };
        Self { shared, threads: one.repeat(threads.min(documents * s.heads * units)) }
    }
}

/// Where a block of scores lies in its document: queries from `begin` on, keys from `from` on.
/// Scores are `[keys, width]`, a column for each query.
#[derive(Debug, Clone, Copy)]
struct Block {
    begin: usize,
    queries: usize,
    from: usize,
    keys: usize,
    width: usize,
}

impl Block {
    fn new([begin, queries]: [usize; 2], from: usize, micro: Micro) -> Self {
        let keys = KEYS.min(begin + queries - from);
        Self { begin, queries, from, keys, width: queries.next_multiple_of(micro.cols()) }
    }

    /// Keys of the block that the query in column `column` sees, or the last query if there are not
    /// so many.
    fn seen(&self, column: usize) -> usize {
        self.keys.min(self.begin + column.min(self.queries - 1) + 1 - self.from)
    }

    /// The first column whose query sees key `key` of the block.
    fn first_column(&self, key: usize) -> usize {
        (self.from + key).saturating_sub(self.begin)
    }

    /// `scores = keys queries`, where any query of a tile sees any of its keys. Both operands are
    /// packed, the keys by rows, the queries by columns.
    #[inline(always)]
    fn scores(&self, micro: Micro, dim: usize, keys: &[f32], queries: &[f32], scores: &mut [f32]) {
        let (mr, nr) = (micro.rows(), micro.cols());
        for i in (0..self.keys).step_by(mr) {
            let a = Mat::new(&keys[i * dim..], mr).t();
            for j in (0..self.queries).step_by(nr) {
                if self.seen(j + nr - 1) <= i {
                    continue;
                }
                let b = Mat::new(&queries[j * dim..], nr);
                let to = &mut scores[i * self.width + j..];
                micro.tile([mr.min(self.keys - i), dim, nr], a, b, to, self.width, false);
            }
        }
    }

    /// `to = scores right`, or added to it, one row for each query. `right` is packed by columns,
    /// panels of `depth` rows, of which the block's keys begin at row `at`.
    #[inline(always)]
    fn by_query(&self, micro: Micro, scores: &[f32], right: Panels, to: &mut [f32], add: bool) {
        let (mr, nr) = (micro.rows(), micro.cols());
        for j in (0..right.dim).step_by(nr) {
            let b = Mat::new(right.at(j, self.from), nr);
            for i in (0..self.queries).step_by(mr) {
                let rows = mr.min(self.queries - i);
                let a = Mat::new(&scores[i..], self.width).t();
                let size = [rows, self.seen(i + rows - 1), nr.min(right.dim - j)];
                micro.tile(size, a, b, &mut to[i * right.dim + j..], right.dim, add);
            }
        }
    }

    /// `to = scores^T right`, or added to it, one row for each key, over the queries that see it.
    #[inline(always)]
    fn by_key(&self, micro: Micro, scores: &[f32], right: Panels, to: &mut [f32], add: bool) {
        let (mr, nr) = (micro.rows(), micro.cols());
        for j in (0..right.dim).step_by(nr) {
            for i in (0..self.keys).step_by(mr) {
                let column = self.first_column(i);
                let a = Mat::new(&scores[i * self.width + column..], self.width);
                let b = Mat::new(right.at(j, self.begin + column), nr);
                let rows = mr.min(self.keys - i);
                let size = [rows, self.queries - column, nr.min(right.dim - j)];
                micro.tile(size, a, b, &mut to[i * right.dim + j..], right.dim, add);
            }
        }
    }

    /// What no product may take from the panel of columns at `at`, though it lies in the tiles that
    /// are read, becomes 0: keys that a query does not see.
    #[inline(always)]
    fn hide(&self, micro: Micro, scores: &mut [f32], at: usize, by: f32) {
        let (nr, seen) = (micro.cols(), self.seen(at + micro.cols() - 1));
        for key in self.diagonal(at)..seen {
            let hidden = (self.first_column(key) - at).min(nr);
            scores[key * self.width + at..][..hidden].fill(by);
        }
    }

    /// Rows after the last that the panel of columns at `at` sees, as far as a tile may reach.
    #[inline(always)]
    fn clear(&self, micro: Micro, scores: &mut [f32], at: usize) {
        let seen = self.seen(at + micro.cols() - 1);
        for key in seen..self.keys.min(seen + micro.rows()) {
            scores[key * self.width + at..][..micro.cols()].fill(0.0);
        }
    }

    /// The first key that the first query of the panel of columns at `at` does not see.
    fn diagonal(&self, at: usize) -> usize {
        self.keys.min(self.begin + at + 1 - self.from)
    }
}

/// A right operand packed by columns: `[dim / cols][depth][cols]`.
#[derive(Clone, Copy)]
struct Panels<'a> {
    data: &'a [f32],
    dim: usize,
    depth: usize,
    cols: usize,
}

impl<'a> Panels<'a> {
    /// The panel of column `j` from `row` on.
    fn at(&self, j: usize, row: usize) -> &'a [f32] {
        &self.data[j * self.depth + row * self.cols..]
    }

    fn len(dim: usize, depth: usize, micro: Micro) -> usize {
        dim.next_multiple_of(micro.cols()) * depth
    }

    fn new(data: &'a [f32], dim: usize, depth: usize, micro: Micro) -> Self {
        Self { data, dim, depth, cols: micro.cols() }
    }

    /// Packs `rows` rows `[dim]` as those from `first` on.
    #[inline(always)]
    fn pack(to: &mut [f32], [dim, depth]: [usize; 2], micro: Micro, x: &[f32], first: usize) {
        let (rows, nr) = (x.len() / dim, micro.cols());
        for j in (0..dim).step_by(nr) {
            let from = Mat::new(&x[j..], dim).t();
            let to = &mut to[j * depth + first * nr..][..rows * nr];
            micro.pack(Packing::Right, from, [nr.min(dim - j), rows], to);
        }
    }
}

impl Task {
    /// Position of every row in its document.
    fn positions(&self) -> Vec<usize> {
        self.starts.windows(2).flat_map(|w| 0..(w[1] - w[0]) as usize).collect()
    }

    /// Documents that are not empty, and the rows of all of them rounded up to whole left panels.
    fn documents(&self, micro: Micro) -> (Vec<Document>, usize) {
        let mut padded = 0;
        let mut documents = Vec::new();
        for w in self.starts.windows(2).filter(|w| w[0] < w[1]) {
            let len = (w[1] - w[0]) as usize;
            documents.push(Document { first: w[0] as usize, len, padded });
            padded += len.next_multiple_of(micro.rows());
        }
        (documents, padded)
    }

    /// Rows `at..` of a document for one head, `to.len() / dim` of them: queries (times the scale of
    /// scores) or keys, normalised and turned.
    #[inline(always)]
    fn load(
        &self,
        x: &[f32],
        norms: [&[f32]; 2],
        head: usize,
        (document, at): (Document, usize),
        to: &mut [f32],
    ) {
        let s = &self.shape;
        let key = head >= s.heads;
        for (r, to) in to.chunks_exact_mut(s.head_dim).enumerate() {
            let from = (document.first + at + r) * s.projection() + head * s.head_dim;
            let ahead = x.as_ptr().wrapping_add(from + AHEAD * s.projection());
            cpu::prefetch(ahead, s.head_dim);
            normalise(&x[from..][..s.head_dim], norms[usize::from(key)], s.norm_eps, to);
            self.rotary.turn(at + r, to);
            if !key {
                to.iter_mut().for_each(|v| *v *= s.scale());
            }
        }
    }

    pub(super) fn forward(
        &self,
        qkv: &FlexTensor,
        q_norm: &FlexTensor,
        k_norm: &FlexTensor,
    ) -> (FlexTensor, Vec<f32>) {
        let s = &self.shape;
        let [n, wide] = cpu::dims(qkv);
        let (x, norms) = (cpu::values(qkv), [cpu::values(q_norm), cpu::values(k_norm)]);
        let (dim, width, group) = (s.head_dim, s.output(), s.heads / s.kv_heads);
        let micro = Micro::new();
        let (documents, padded) = self.documents(micro);
        let mut all_keys = Buffer::any(padded * s.kv_heads * dim);
        let mut all_values = Buffer::any(n * s.kv_heads * Panels::len(dim, 1, micro));
        // Where the keys and values of one head of a document begin, and how long they are.
        let keys_at = |d: &Document, kv: usize| {
            let len = d.len.next_multiple_of(micro.rows());
            ((d.padded * s.kv_heads + kv * len) * dim, len * dim)
        };
        let values_at = |d: &Document, kv: usize| {
            let wide = Panels::len(dim, 1, micro);
            ((d.first * s.kv_heads + kv * d.len) * wide, d.len * wide)
        };
        let (to_keys, to_values) = (Shared::new(&mut all_keys), Shared::new(&mut all_values));
        let heads = documents.iter().flat_map(|d| (0..s.kv_heads).map(move |kv| (d, kv)));
        heads.collect::<Vec<_>>().into_par_iter().for_each(|(d, kv)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    // SAFETY: this unit alone has this head of this document.
                    let keys = keys_at(d, kv);
                    let keys = unsafe { to_keys.part(keys.0, keys.1) };
                    // SAFETY: as above.
                    let values = values_at(d, kv);
                    let values = unsafe { to_values.part(values.0, values.1) };
                    let mut rows = Buffer::any(QUERIES.min(d.len) * dim);
                    for at in (0..d.len).step_by(QUERIES) {
                        let count = QUERIES.min(d.len - at);
                        let rows = &mut rows[..count * dim];
                        self.load(x, norms, s.heads + kv, (*d, at), rows);
                        let from = Mat::new(rows, dim);
                        micro.pack(Packing::Left, from, [count, dim], &mut keys[at * dim..]);
                        let from = &x[(d.first + at) * wide + (s.heads + s.kv_heads + kv) * dim..];
                        gather(from, wide, rows, dim);
                        Panels::pack(values, [dim, d.len], micro, rows, at);
                    }
                },
            );
        });
        let mut out = Buffer::any(n * width);
        let mut lse = vec![0.0; n * s.heads];
        let (to, to_lse) = (Shared::new(&mut out), Shared::new(&mut lse));
        let units: Vec<_> = documents
            .iter()
            .flat_map(|d| {
                let blocks = (0..d.len).step_by(QUERIES);
                blocks.flat_map(move |at| (0..s.heads).map(move |h| (d, at, h)))
            })
            .collect();
        units.into_par_iter().for_each(|(d, begin, head)| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    let rows = QUERIES.min(d.len - begin);
                    let end = begin + rows;
                    let columns = rows.next_multiple_of(micro.cols());
                    let mut scores = Buffer::any(columns * KEYS.min(end));
                    let mut mixed = Buffer::any(rows * dim);
                    let mut queries = Buffer::any(columns * dim);
                    let mut peaks = [f32::MIN; QUERIES];
                    let mut sums = [0.0f32; QUERIES];
                    let kv = head / group;
                    let (keys, values) = (keys_at(d, kv), values_at(d, kv));
                    let keys = &all_keys[keys.0..][..keys.1];
                    let values = &all_values[values.0..][..values.1];
                    let values = Panels::new(values, dim, d.len, micro);
                    self.load(x, norms, head, (*d, begin), &mut mixed);
                    let from = Mat::new(&mixed, dim);
                    micro.pack(Packing::Right, from, [rows, dim], &mut queries);
                    for from in (0..end).step_by(KEYS) {
                        let block = Block::new([begin, rows], from, micro);
                        block.scores(micro, dim, &keys[from * dim..], &queries, &mut scores);
                        let old = peaks;
                        exponentials(&block, micro, &mut scores, &mut peaks, &mut sums);
                        if from > 0 {
                            for (r, row) in mixed.chunks_exact_mut(dim).enumerate() {
                                let kept = cpu::exp(old[r] - peaks[r]);
                                row.iter_mut().for_each(|v| *v *= kept);
                            }
                        }
                        block.by_query(micro, &scores, values, &mut mixed, from > 0);
                    }
                    for (r, mixed) in mixed.chunks_exact(dim).enumerate() {
                        let row = d.first + begin + r;
                        to.prefetch((row + AHEAD) * width + head * dim, dim);
                        // SAFETY: this unit alone has these rows of `head`.
                        let out = unsafe { to.part(row * width + head * dim, dim) };
                        let by = 1.0 / sums[r];
                        out.iter_mut().zip(mixed).for_each(|(o, m)| *o = m * by);
                        // SAFETY: as above.
                        let lse = unsafe { to_lse.part(row * s.heads + head, 1) };
                        lse[0] = peaks[r] + sums[r].ln();
                    }
                },
            );
        });
        (tensor(out, [n, width]), lse)
    }

    pub(super) fn backward(&self, saved: &Saved, grad: &FlexTensor) -> [FlexTensor; 3] {
        let s = &self.shape;
        let [n, _] = cpu::dims(&saved.qkv);
        let (x, up) = (cpu::values(&saved.qkv), cpu::values(grad));
        let norms = saved.norms.each_ref().map(cpu::values);
        let (dim, wide) = (s.head_dim, s.projection());
        let micro = Micro::new();
        let (documents, _) = self.documents(micro);
        let mut dx = Buffer::any(n * wide);
        // Gradients of key and value by query head, before those of a group are added up.
        let pair = 2 * dim;
        let mut spread = Buffer::any(n * s.heads * pair);
        let (to, to_spread) = (Shared::new(&mut dx), Shared::new(&mut spread));
        let units = documents.iter().flat_map(|d| (0..s.heads).map(move |h| (*d, h)));
        let parts: Vec<Vec<f32>> = units
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(d, head)| {
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        let [mut dq, dk, dv] = self.head_backward(saved, micro, up, d, head);
                        let mut dnorm = vec![0.0; dim];
                        for (r, dq) in dq.chunks_exact_mut(dim).enumerate() {
                            let at = (d.first + r) * wide + head * dim;
                            cpu::prefetch(x.as_ptr().wrapping_add(at + AHEAD * wide), dim);
                            to.prefetch(at + AHEAD * wide, dim);
                            // SAFETY: this unit alone has these rows of `head`.
                            let to = unsafe { to.part(at, dim) };
                            dq.iter_mut().for_each(|v| *v *= s.scale());
                            self.rotary.turn_back(r, dq);
                            let from = &x[at..][..dim];
                            self.unnormalise(from, norms[0], dq, to, &mut dnorm);
                            let at = ((d.first + r) * s.heads + head) * pair;
                            to_spread.prefetch(at + AHEAD * s.heads * pair, pair);
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

    /// Gradients of the turned queries (to be scaled yet) and keys and of the values of one head of a
    /// document, each `[len, dim]`: a block of keys at a time, and for each the blocks of queries
    /// that see it, from the last one, which sees all of them.
    #[inline(always)]
    fn head_backward(
        &self,
        saved: &Saved,
        micro: Micro,
        up: &[f32],
        d: Document,
        head: usize,
    ) -> [Buffer; 3] {
        let s = &self.shape;
        let (x, out) = (cpu::values(&saved.qkv), cpu::values(&saved.out));
        let norms = saved.norms.each_ref().map(cpu::values);
        let (dim, width, wide, len) = (s.head_dim, s.output(), s.projection(), d.len);
        let kv = head / (s.heads / s.kv_heads);
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| Buffer::any(len * dim));
        let columns = len.next_multiple_of(micro.cols());
        let panels = Panels::len(dim, len, micro);
        // Queries and gradients of the output by row (panels of columns) and as right operands of
        // scores; keys and values as their left operands, and keys by row.
        let [mut q, mut go, mut k] = [0; 3].map(|_| Buffer::any(panels));
        let [mut qt, mut got] = [0; 2].map(|_| Buffer::any(columns * dim));
        let lines = len.next_multiple_of(micro.rows());
        let [mut kl, mut vl] = [0; 2].map(|_| Buffer::any(lines * dim));
        let mut rows = Buffer::any(QUERIES.min(len) * dim);
        for at in (0..len).step_by(QUERIES) {
            let count = QUERIES.min(len - at);
            let rows = &mut rows[..count * dim];
            self.load(x, norms, head, (d, at), rows);
            Panels::pack(&mut q, [dim, len], micro, rows, at);
            micro.pack(Packing::Right, Mat::new(rows, dim), [count, dim], &mut qt[at * dim..]);
            self.load(x, norms, s.heads + kv, (d, at), rows);
            Panels::pack(&mut k, [dim, len], micro, rows, at);
            micro.pack(Packing::Left, Mat::new(rows, dim), [count, dim], &mut kl[at * dim..]);
            gather(&up[(d.first + at) * width + head * dim..], width, rows, dim);
            Panels::pack(&mut go, [dim, len], micro, rows, at);
            micro.pack(Packing::Right, Mat::new(rows, dim), [count, dim], &mut got[at * dim..]);
            let v = &x[(d.first + at) * wide + (s.heads + s.kv_heads + kv) * dim..];
            gather(v, wide, rows, dim);
            micro.pack(Packing::Left, Mat::new(rows, dim), [count, dim], &mut vl[at * dim..]);
        }
        let [q, go, k] = [&q, &go, &k].map(|data| Panels::new(data, dim, len, micro));
        let mut lse = vec![0.0; columns];
        let mut deltas = vec![0.0; columns];
        for r in 0..len {
            let row = d.first + r;
            let at = row * width + head * dim;
            cpu::prefetch(out.as_ptr().wrapping_add(at + AHEAD * width), dim);
            deltas[r] = cpu::dot(&out[at..][..dim], &up[at..][..dim]);
            lse[r] = saved.lse[row * s.heads + head];
        }
        let size = QUERIES.min(columns) * KEYS.min(len);
        let [mut p, mut dp] = [0; 2].map(|_| Buffer::any(size));
        for from in (0..len).step_by(KEYS) {
            for begin in (from..len).step_by(QUERIES).rev() {
                let block = Block::new([begin, QUERIES.min(len - begin)], from, micro);
                block.scores(micro, dim, &kl[from * dim..], &qt[begin * dim..], &mut p);
                block.scores(micro, dim, &vl[from * dim..], &got[begin * dim..], &mut dp);
                let of_rows = [&lse[begin..], &deltas[begin..]];
                gradients(&block, micro, &mut p, &mut dp, of_rows);
                let add = begin + block.queries < len;
                block.by_key(micro, &p, go, &mut dv[from * dim..], add);
                block.by_key(micro, &dp, q, &mut dk[from * dim..], add);
                block.by_query(micro, &dp, k, &mut dq[begin * dim..], from > 0);
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

/// Copies the first `dim` elements of rows `wide` apart.
#[inline(always)]
fn gather(from: &[f32], wide: usize, to: &mut [f32], dim: usize) {
    for (r, to) in to.chunks_exact_mut(dim).enumerate() {
        cpu::prefetch(from.as_ptr().wrapping_add((r + AHEAD) * wide), dim);
        to.copy_from_slice(&from[r * wide..][..dim]);
    }
}

/// Columns of scores that are worked on at a time: what they need stays in registers. Divides the
/// columns of every kernel's panel but the narrowest, and is divided by that.
const LANES: usize = 16;

/// Calls `f` for every part of a panel of `columns`, which is [`LANES`] wide or the whole panel.
macro_rules! by_lanes {
    ($columns:expr, $at:ident, $f:ident($($arg:expr),*)) => {
        match $columns {
            8 => $f::<8>($($arg),*),
            columns => {
                debug_assert!(columns.is_multiple_of(LANES));
                for $at in ($at..$at + columns).step_by(LANES) {
                    $f::<LANES>($($arg),*);
                }
            }
        }
    };
}

/// The scores of a block become their exponentials over the largest of each query, those seen before
/// included; what a query does not see becomes 0. `peaks` and `sums` are brought up to date.
#[inline(always)]
fn exponentials(
    block: &Block,
    micro: Micro,
    scores: &mut [f32],
    peaks: &mut [f32; QUERIES],
    sums: &mut [f32; QUERIES],
) {
    for at in (0..block.queries).step_by(micro.cols()) {
        block.hide(micro, scores, at, f32::MIN);
        let seen = &mut scores[..block.seen(at + micro.cols() - 1) * block.width];
        by_lanes!(micro.cols(), at, exponentials_of(seen, block.width, at, peaks, sums));
        block.hide(micro, scores, at, 0.0);
        block.clear(micro, scores, at);
    }
}

#[inline(always)]
fn exponentials_of<const L: usize>(
    scores: &mut [f32],
    width: usize,
    at: usize,
    peaks: &mut [f32; QUERIES],
    sums: &mut [f32; QUERIES],
) {
    let (peaks, sums) = (&mut peaks[at..][..L], &mut sums[at..][..L]);
    let mut most = [0.0; L];
    most.copy_from_slice(peaks);
    for row in scores.chunks_exact(width) {
        let row: &[f32; L] = row[at..].first_chunk().expect("a row is as wide as its panels");
        for l in 0..L {
            most[l] = if row[l] > most[l] { row[l] } else { most[l] };
        }
    }
    let mut sum = [0.0; L];
    for row in scores.chunks_exact_mut(width) {
        let row: &mut [f32; L] = row[at..].first_chunk_mut().expect("as above");
        for l in 0..L {
            row[l] = cpu::exp(row[l] - most[l]);
            sum[l] += row[l];
        }
    }
    for l in 0..L {
        sums[l] = sums[l] * cpu::exp(peaks[l] - most[l]) + sum[l];
        peaks[l] = most[l];
    }
}

/// The scores `p` become probabilities, and the gradients of probabilities `dp` those of scores;
/// `of_rows` are the log-sum-exp of each query and the sum of its output times that one's gradient.
#[inline(always)]
fn gradients(block: &Block, micro: Micro, p: &mut [f32], dp: &mut [f32], of_rows: [&[f32]; 2]) {
    for at in (0..block.queries).step_by(micro.cols()) {
        let seen = block.seen(at + micro.cols() - 1) * block.width;
        let (seen_p, seen_dp) = (&mut p[..seen], &mut dp[..seen]);
        by_lanes!(micro.cols(), at, gradients_of(seen_p, seen_dp, block.width, at, of_rows));
        for scores in [&mut *p, &mut *dp] {
            block.hide(micro, scores, at, 0.0);
            block.clear(micro, scores, at);
        }
    }
}

#[inline(always)]
fn gradients_of<const L: usize>(
    p: &mut [f32],
    dp: &mut [f32],
    width: usize,
    at: usize,
    of_rows: [&[f32]; 2],
) {
    let [lse, deltas]: [[f32; L]; 2] = of_rows.map(|x| *x[at..].first_chunk().expect("padded"));
    for (p, dp) in p.chunks_exact_mut(width).zip(dp.chunks_exact_mut(width)) {
        let p: &mut [f32; L] = p[at..].first_chunk_mut().expect("a row is as wide as its panels");
        let dp: &mut [f32; L] = dp[at..].first_chunk_mut().expect("as above");
        for l in 0..L {
            p[l] = cpu::exp(p[l] - lse[l]);
            dp[l] = p[l] * (dp[l] - deltas[l]);
        }
    }
}
