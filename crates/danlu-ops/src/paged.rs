//! Attention over keys and values that lie in pages, for decoding.
//!
//! A page holds [`PAGE`] tokens of every layer. Sequences with the same beginning share pages, which
//! is for whoever numbers them to arrange; here a sequence is a list of page numbers. Within a page
//! the keys of a head lie turned, sixteen tokens side by side, so that a score needs no sum across
//! lanes, and the values token by token.
//!
//! What a query gets depends on nothing but its own sequence: not on how many rows came together,
//! nor on which pages they lie in.

use crate::attention::{AttentionShape, Rotary, normalise};
use crate::cpu::{self, Shared};
use crate::quant::{Isa, Kernel, dispatch, each};
use crate::team::Team;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::{MmapMut, MmapOptions};
use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;

/// Tokens of a page.
pub const PAGE: usize = 16;
/// Queries that a task works on at a time.
const QUERIES: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Elements that are turned into half precision at a time.
const SOME: usize = 64;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheFormat {
    /// Single precision.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// Signed bytes with a scale for each head of each token.
    Q8,
}

impl CacheFormat {
    /// Every format, with its name.
    pub const ALL: [(&'static str, Self); 3] =
        [("f32", Self::F32), ("f16", Self::F16), ("q8", Self::Q8)];

    /// The format of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, format)| *format)
    }

    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8 => 1,
        }
    }
}

/// Zeros of the system's own, from the beginning of a page on: they take no memory before they are
/// written to, where an allocator that has memory left to give would write them itself.
fn zeros(len: usize) -> MmapMut {
    let map = MmapOptions::new().len(len.max(LINE)).map_anon();
    map.unwrap_or_else(|_| {
        let layout = Layout::from_size_align(len.max(LINE), LINE);
        handle_alloc_error(layout.expect("sizes are far below the address space"))
    })
}

/// Keys and values of many sequences: a number of pages for every layer.
pub struct Pages {
    format: CacheFormat,
    kv_heads: usize,
    head_dim: usize,
    count: usize,
    layers: usize,
    /// Page after page, and in each layer after layer, so that few sequences touch little memory
    /// even where the system gives it in large pieces.
    memory: MmapMut,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} of {} bytes)", self.count, self.page_bytes())
    }
}

/// Where the parts of one head of a page are, in bytes.
#[derive(Clone, Copy)]
struct Head {
    values: usize,
    scales: usize,
    len: usize,
}

impl Pages {
    /// `count` pages for `layers` layers of `shape`.
    pub fn new(layers: usize, shape: &AttentionShape, format: CacheFormat, count: usize) -> Self {
        let mut pages = Self {
            format,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            count,
            layers,
            memory: zeros(0),
        };
        pages.memory = zeros(count * pages.page_bytes());
        pages
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How keys and values are kept.
    pub fn format(&self) -> CacheFormat {
        self.format
    }

    /// Bytes of a page over all layers.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    fn layer_bytes(&self) -> usize {
        self.kv_heads * self.head().len
    }

    /// Floats of a row of values: whole vectors.
    fn wide(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    fn head(&self) -> Head {
        let size = self.format.size();
        let values = (self.head_dim * PAGE * size).next_multiple_of(LINE);
        let scales = values + PAGE * self.wide() * size;
        let len = if self.format == CacheFormat::Q8 { scales + 2 * PAGE * 4 } else { scales };
        Head { values, scales, len }
    }

    /// Copies page `from` to page `to`.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn copy(&mut self, from: usize, to: usize) {
        let len = self.page_bytes();
        self.memory.copy_within(from * len..(from + 1) * len, to * len);
    }
}

/// New tokens of one sequence, next to each other among the rows of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Pages of the sequence, enough for the new tokens too. No other sequence writes to those that
    /// the new tokens fall into.
    pub pages: &'a [u32],
    /// Tokens that the pages hold already.
    pub position: usize,
    /// New tokens.
    pub rows: usize,
}

/// The new tokens of several sequences against what they saw before and against each other.
///
/// `qkv` holds the rows of the fused projection, span by span. Keys (normalised and turned) and
/// values are written to the pages of layer `layer`; what attention gives goes to `out`
/// (`[rows, heads * head_dim]`). `queries` is memory that is used again.
///
/// # Panics
/// If shapes do not fit, a span has too few pages or names one that is not there, or a position is
/// past the rotary tables.
#[allow(clippy::too_many_arguments)]
pub fn attend(
    team: &Team,
    pages: &mut Pages,
    layer: usize,
    shape: &AttentionShape,
    rotary: &Rotary,
    norms: [&[f32]; 2],
    spans: &[Span<'_>],
    qkv: &[f32],
    queries: &mut Vec<f32>,
    out: &mut [f32],
) {
    let rows: usize = spans.iter().map(|s| s.rows).sum();
    let AttentionShape { heads, kv_heads, head_dim: dim, .. } = *shape;
    assert_eq!((pages.kv_heads, pages.head_dim), (kv_heads, dim), "attend: shape of the pages");
    assert_eq!(qkv.len(), rows * shape.projection(), "attend: size of qkv");
    assert_eq!(out.len(), rows * shape.output(), "attend: size of the output");
    for span in spans {
        let end = span.position + span.rows;
        assert!(span.pages.len() * PAGE >= end, "attend: {} pages for {end}", span.pages.len());
        assert!(end <= rotary.positions(), "attend: position {end} past the rotary tables");
        assert!(span.pages.iter().all(|&p| (p as usize) < pages.count), "attend: no such page");
    }
    // A row has its queries, and room for one key on its way to a page.
    let width = (heads + 1) * dim;
    if queries.len() < rows * width {
        queries.resize(rows * width, 0.0);
    }
    let starts: Vec<(usize, usize)> = spans
        .iter()
        .scan(0, |row, s| {
            *row += s.rows;
            Some(*row - s.rows)
        })
        .zip(0..)
        .collect();
    let (head, wide, format) = (pages.head(), pages.wide(), pages.format);
    assert!(layer < pages.layers, "attend: layer {layer} of {}", pages.layers);
    let (stride, first) = (pages.page_bytes(), layer * pages.layer_bytes());
    // Without any page there is nothing to point at.
    let first = if pages.count == 0 { 0 } else { first };
    let base = pages.memory[first..].as_mut_ptr();
    let memory = Memory { base, stride, format, head, wide, dim };
    let query_part = Shared::new(queries);
    // Which span a row belongs to.
    let of_row = |row: usize| {
        let (start, span) = starts[starts.partition_point(|&(start, _)| start <= row) - 1];
        (&spans[span], row - start)
    };
    team.chunks(rows, if rows <= 8 { rows } else { 4 }, |range| {
        for row in range {
            let (span, i) = of_row(row);
            let position = span.position + i;
            let qkv = &qkv[row * shape.projection()..][..shape.projection()];
            // SAFETY: each row has its own part of the queries.
            let all = unsafe { query_part.part(row * width, width) };
            let (q, key) = all.split_at_mut(heads * dim);
            cpu::vectorised(
                #[inline(always)]
                || {
                    for h in 0..heads {
                        let q = &mut q[h * dim..][..dim];
                        normalise(&qkv[h * dim..][..dim], norms[0], shape.norm_eps, q);
                        rotary.turn(position, q);
                        let scale = shape.scale();
                        q.iter_mut().for_each(|v| *v *= scale);
                    }
                },
            );
            let page = span.pages[position / PAGE] as usize;
            for h in 0..kv_heads {
                normalise(&qkv[(heads + h) * dim..][..dim], norms[1], shape.norm_eps, key);
                rotary.turn(position, key);
                let value = &qkv[(heads + kv_heads + h) * dim..][..dim];
                // SAFETY: the page is there, and no other row has this place in it.
                unsafe { memory.write(page, h, position % PAGE, key, value) };
            }
        }
    });
    let group = heads / kv_heads;
    let mut tasks = Vec::new();
    for (span, (start, _)) in spans.iter().zip(&starts) {
        let at_once = (QUERIES / group).max(1);
        for first in (0..span.rows).step_by(at_once) {
            let rows = at_once.min(span.rows - first);
            for kv in 0..kv_heads {
                tasks.push(Task {
                    memory,
                    pages: span.pages,
                    kv,
                    group,
                    visible: span.position + first + 1,
                    rows,
                    row: start + first,
                });
            }
        }
    }
    let out = Shared::new(out);
    let queries = &queries[..];
    // The longest last rows first: they take the most time.
    team.each(tasks.len(), |i| {
        let task = &tasks[tasks.len() - 1 - i];
        SCORES.with_borrow_mut(|scores| {
            dispatch(Attend { task, queries, width, out_width: heads * dim, out, scores });
        });
    });
}

/// One layer's pages in pointers.
#[derive(Clone, Copy)]
struct Memory {
    /// The layer's part of the first page.
    base: *mut u8,
    /// Bytes from a page to the next.
    stride: usize,
    format: CacheFormat,
    head: Head,
    wide: usize,
    dim: usize,
}

// SAFETY: rows write disjoint places, and reading begins when all is written.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// What makes whole numbers of one row, and what takes them back.
fn scales(x: &[f32]) -> [f32; 2] {
    let top = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    [if top > 0.0 { 127.0 / top } else { 0.0 }, top / 127.0]
}

impl Memory {
    unsafe fn of(&self, page: usize, kv: usize) -> *mut u8 {
        // SAFETY: the caller names a page and a head that are there.
        unsafe { self.base.add(page * self.stride + kv * self.head.len) }
    }

    /// Writes key and value of one token.
    unsafe fn write(&self, page: usize, kv: usize, slot: usize, key: &[f32], value: &[f32]) {
        // SAFETY: the caller's promise; `key` and `value` are as wide as a head.
        unsafe {
            let at = self.of(page, kv);
            match self.format {
                CacheFormat::F32 => {
                    let keys = at.cast::<f32>();
                    for (d, &k) in key.iter().enumerate() {
                        *keys.add(d * PAGE + slot) = k;
                    }
                    let values = at.add(self.head.values).cast::<f32>().add(slot * self.wide);
                    std::ptr::copy_nonoverlapping(value.as_ptr(), values, self.dim);
                }
                CacheFormat::F16 => {
                    let keys = at.cast::<f16>().add(slot);
                    let values = at.add(self.head.values).cast::<f16>().add(slot * self.wide);
                    let mut halves = [f16::ZERO; SOME];
                    for (c, part) in key.chunks(SOME).enumerate() {
                        halves[..part.len()].convert_from_f32_slice(part);
                        for (d, &k) in halves[..part.len()].iter().enumerate() {
                            *keys.add((c * SOME + d) * PAGE) = k;
                        }
                    }
                    for (c, part) in value.chunks(SOME).enumerate() {
                        halves[..part.len()].convert_from_f32_slice(part);
                        let to = values.add(c * SOME);
                        std::ptr::copy_nonoverlapping(halves.as_ptr(), to, part.len());
                    }
                }
                CacheFormat::Q8 => {
                    let keys = at.cast::<i8>().add(slot);
                    let values = at.add(self.head.values).cast::<i8>().add(slot * self.wide);
                    let to = at.add(self.head.scales).cast::<f32>().add(slot);
                    let ([inverse, scale], [over, value_scale]) = (scales(key), scales(value));
                    (*to, *to.add(PAGE)) = (scale, value_scale);
                    for (d, k) in key.iter().enumerate() {
                        *keys.add(d * PAGE) = (k * inverse).round_ties_even() as i8;
                    }
                    for (d, v) in value.iter().enumerate() {
                        *values.add(d) = (v * over).round_ties_even() as i8;
                    }
                }
            }
        }
    }
}

/// Some query rows of one sequence for one key-value head.
struct Task<'a> {
    memory: Memory,
    pages: &'a [u32],
    kv: usize,
    /// Query heads of the key-value head.
    group: usize,
    /// Tokens that the first row sees.
    visible: usize,
    rows: usize,
    /// The first row among all.
    row: usize,
}

struct Attend<'a> {
    task: &'a Task<'a>,
    queries: &'a [f32],
    /// Floats of a row of the queries, and of the output.
    width: usize,
    out_width: usize,
    out: Shared,
    /// Memory that is used again.
    scores: &'a mut Vec<f32>,
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Kernel for Attend<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(mut self) {
        // SAFETY: `attend` has checked the sizes.
        unsafe {
            match self.task.memory.format {
                CacheFormat::F32 => self.go::<I, Single>(),
                CacheFormat::F16 => self.go::<I, Half>(),
                CacheFormat::Q8 => self.go::<I, Bytes>(),
            }
        }
    }
}

/// How sixteen neighbours are read.
trait Read {
    const SIZE: usize;
    const SCALED: bool;
    unsafe fn read<I: Isa>(at: *const u8) -> I::F;
}

struct Single;
struct Half;
struct Bytes;

impl Read for Single {
    const SIZE: usize = 4;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn read<I: Isa>(at: *const u8) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::load(at.cast()) }
    }
}

impl Read for Half {
    const SIZE: usize = 2;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn read<I: Isa>(at: *const u8) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::halves(at.cast()) }
    }
}

impl Read for Bytes {
    const SIZE: usize = 1;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn read<I: Isa>(at: *const u8) -> I::F {
        // SAFETY: the caller's promise.
        unsafe { I::signed(at.cast()) }
    }
}

impl Attend<'_> {
    #[inline(always)]
    unsafe fn go<I: Isa, R: Read>(&mut self) {
        let mut scores = std::mem::take(self.scores);
        let Task { memory, pages, kv, group, visible, rows, row } = self.task;
        let (dim, count) = (memory.dim, rows * group);
        let width = self.width;
        let longest = visible + rows - 1;
        let pages = &pages[..longest.div_ceil(PAGE)];
        let stride = pages.len() * PAGE;
        if scores.len() < count * stride {
            scores.resize(count * stride, 0.0);
        }
        let place =
            |i: usize, width: usize| (row + i / group) * width + (kv * group + i % group) * dim;
        // SAFETY: all within what `attend` has checked.
        unsafe {
            let mut first = 0;
            while first < count {
                let here = I::ROWS.min(count - first);
                let mut at = [self.queries.as_ptr(); 6];
                let mut to = [scores.as_mut_ptr(); 6];
                for i in 0..here {
                    at[i] = self.queries.as_ptr().add(place(first + i, width));
                    to[i] = scores.as_mut_ptr().add((first + i) * stride);
                }
                let mut page = 0;
                while page < pages.len() {
                    let left = pages.len() - page;
                    let many = if I::REGISTERS < 32 {
                        1
                    } else if here <= 3 {
                        4
                    } else {
                        2
                    };
                    let now = if left >= many { many } else { 1 };
                    macro_rules! pick {
                        ($($q:literal)*) => {
                            match (here, now) {
                                $(($q, 4) if $q <= 3 => self.scores::<I, R, 4, $q>(page, &at, &to),
                                ($q, 2) if $q > 3 => self.scores::<I, R, 2, $q>(page, &at, &to),
                                ($q, _) => self.scores::<I, R, 1, $q>(page, &at, &to),)*
                                _ => unreachable!("1 to 6 queries at a time"),
                            }
                        };
                    }
                    pick!(1 2 3 4 5 6);
                    page += now;
                }
                let mut over = [0.0; 6];
                for i in 0..here {
                    let seen = visible + (first + i) / group;
                    let scores = &mut scores[(first + i) * stride..][..stride];
                    over[i] = 1.0 / softmax(scores, seen);
                    if R::SCALED {
                        for (page, scores) in pages.iter().zip(scores.as_chunks_mut::<PAGE>().0) {
                            let at = memory.of(*page as usize, *kv).add(memory.head.scales);
                            let scales = at.cast::<f32>().add(PAGE);
                            let all = I::mul(I::load(scores.as_ptr()), I::load(scales));
                            I::store(scores.as_mut_ptr(), all);
                        }
                    }
                }
                let vectors = memory.wide / 16;
                let mut vector = 0;
                while vector < vectors {
                    let now = if I::REGISTERS >= 32 && vector + 4 <= vectors { 4 } else { 1 };
                    let mut out = [std::ptr::null_mut(); 6];
                    let lanes = (16 * now).min(dim - 16 * vector);
                    for (i, out) in out.iter_mut().enumerate().take(here) {
                        let at = place(first + i, self.out_width) + 16 * vector;
                        *out = self.out.part(at, lanes).as_mut_ptr();
                    }
                    let from = Weighted { vector, longest, lanes, over: &over, scores: &to };
                    macro_rules! pick {
                        ($($q:literal)*) => {
                            match (here, now) {
                                $(($q, 4) => self.values::<I, R, 4, $q>(&from, &out),
                                ($q, _) => self.values::<I, R, 1, $q>(&from, &out),)*
                                _ => unreachable!("1 to 6 queries at a time"),
                            }
                        };
                    }
                    pick!(1 2 3 4 5 6);
                    vector += now;
                }
                first += here;
            }
        }
        *self.scores = scores;
    }

    /// Scores of `Q` queries with the tokens of `P` pages.
    #[inline(always)]
    unsafe fn scores<I: Isa, R: Read, const P: usize, const Q: usize>(
        &self,
        page: usize,
        queries: &[*const f32; 6],
        to: &[*mut f32; 6],
    ) {
        let Task { memory, pages, kv, .. } = self.task;
        // SAFETY: as the caller.
        unsafe {
            let mut keys = [memory.base.cast_const(); P];
            each!(G < P, {
                keys[G] = memory.of(pages[page + G] as usize, *kv);
            });
            let mut sum = [[I::splat(0.0); Q]; P];
            for d in 0..memory.dim {
                let mut key = [I::splat(0.0); P];
                each!(G < P, {
                    key[G] = R::read::<I>(keys[G].add(d * PAGE * R::SIZE));
                });
                each!(N < Q, {
                    let q = I::splat(*queries[N].add(d));
                    each!(G < P, {
                        sum[G][N] = I::fma(key[G], q, sum[G][N]);
                    });
                });
            }
            each!(G < P, {
                each!(N < Q, {
                    let mut value = sum[G][N];
                    if R::SCALED {
                        let scales = keys[G].add(memory.head.scales).cast::<f32>();
                        value = I::mul(value, I::load(scales));
                    }
                    I::store(to[N].add((page + G) * PAGE), value);
                });
            });
        }
    }

    /// Weighted sums of `C` vectors of the values, for `Q` queries.
    #[inline(always)]
    unsafe fn values<I: Isa, R: Read, const C: usize, const Q: usize>(
        &self,
        from: &Weighted<'_>,
        out: &[*mut f32; 6],
    ) {
        let Task { memory, pages, kv, .. } = self.task;
        // SAFETY: as the caller.
        unsafe {
            let mut sum = [[I::splat(0.0); Q]; C];
            for (p, &page) in pages[..from.longest.div_ceil(PAGE)].iter().enumerate() {
                let values = memory.of(page as usize, *kv).add(memory.head.values);
                for slot in 0..PAGE.min(from.longest - p * PAGE) {
                    let at = values.add((slot * memory.wide + from.vector * 16) * R::SIZE);
                    let mut value = [I::splat(0.0); C];
                    each!(V < C, {
                        value[V] = R::read::<I>(at.add(V * 16 * R::SIZE));
                    });
                    each!(N < Q, {
                        let weight = I::splat(*from.scores[N].add(p * PAGE + slot));
                        each!(V < C, {
                            sum[V][N] = I::fma(value[V], weight, sum[V][N]);
                        });
                    });
                }
            }
            each!(N < Q, {
                let over = I::splat(from.over[N]);
                each!(V < C, {
                    let value = I::mul(sum[V][N], over);
                    if (V + 1) * 16 <= from.lanes {
                        I::store(out[N].add(V * 16), value);
                    } else {
                        let mut lanes = [0.0f32; 16];
                        I::store(lanes.as_mut_ptr(), value);
                        let left = from.lanes - V * 16;
                        std::ptr::copy_nonoverlapping(lanes.as_ptr(), out[N].add(V * 16), left);
                    }
                });
            });
        }
    }
}

/// What the weighted sums of some vectors are made of.
struct Weighted<'a> {
    vector: usize,
    longest: usize,
    lanes: usize,
    over: &'a [f32; 6],
    scores: &'a [*mut f32; 6],
}

/// Exponentials of the first `seen` scores less their maximum, zeros after them; returns their sum.
#[inline(always)]
fn softmax(scores: &mut [f32], seen: usize) -> f32 {
    scores[seen..].fill(f32::NEG_INFINITY);
    let chunks = scores.as_chunks_mut::<16>().0;
    let mut tops = [f32::NEG_INFINITY; 16];
    for chunk in chunks.iter() {
        for i in 0..16 {
            tops[i] = if chunk[i] > tops[i] { chunk[i] } else { tops[i] };
        }
    }
    let top = tops.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut sums = [0.0f32; 16];
    for chunk in chunks.iter_mut() {
        for i in 0..16 {
            let e = cpu::exp(chunk[i] - top);
            // The exponential of what is not seen is small but not zero.
            let e = if chunk[i] == f32::NEG_INFINITY { 0.0 } else { e };
            chunk[i] = e;
            sums[i] += e;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::attention_cached;
    use crate::gemm::{Level, force_level};
    use crate::quant::LEVEL;
    use std::sync::PoisonError;

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    const NORMS: [[f32; 40]; 2] = [[1.25; 40], [0.75; 40]];

    fn norms(shape: &AttentionShape) -> [&'static [f32]; 2] {
        [&NORMS[0][..shape.head_dim], &NORMS[1][..shape.head_dim]]
    }

    /// Every row against a plain cache.
    fn plain(shape: &AttentionShape, rotary: &Rotary, qkv: &[f32]) -> Vec<f32> {
        let (from, to) = (shape.projection(), shape.output());
        let rows = qkv.len() / from;
        let row = shape.kv_heads * shape.head_dim;
        let (mut keys, mut values) = (vec![0.0; rows * row], vec![0.0; rows * row]);
        let mut out = vec![0.0; rows * to];
        for i in 0..rows {
            attention_cached(
                &qkv[i * from..][..from],
                norms(shape),
                shape,
                rotary,
                i,
                &mut keys,
                &mut values,
                &mut out[i * to..][..to],
            );
        }
        out
    }

    /// Two sequences, fed in steps of several rows; the first is returned.
    fn paged(
        threads: usize,
        format: CacheFormat,
        shape: &AttentionShape,
        rotary: &Rotary,
        qkv: &[f32],
        steps: &[usize],
        company: bool,
    ) -> Vec<f32> {
        let team = Team::new(threads);
        let mut pages = Pages::new(2, shape, format, 12);
        let (from, to) = (shape.projection(), shape.output());
        let (mine, other) = ([7, 0, 11, 3, 5], [1, 2, 4, 6, 8]);
        let (mut out, mut queries, mut done) = (Vec::new(), Vec::new(), 0);
        for &rows in steps {
            let now = &qkv[done * from..][..rows * from];
            let mut spans = vec![Span { pages: &mine, position: done, rows }];
            let mut all = now.to_vec();
            if company {
                spans.insert(0, Span { pages: &other, position: done / 2, rows: 3 });
                all = [noise(3 * from, done), all].concat();
            }
            let mut part = vec![f32::NAN; all.len() / from * to];
            let n = norms(shape);
            attend(&team, &mut pages, 1, shape, rotary, n, &spans, &all, &mut queries, &mut part);
            out.extend_from_slice(&part[part.len() - rows * to..]);
            done += rows;
        }
        out
    }

    #[test]
    fn pages_hold_what_a_plain_cache_holds() {
        let _one = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        for (heads, kv_heads, head_dim, norm) in
            [(4, 2, 6, true), (9, 3, 32, false), (8, 1, 40, true), (3, 3, 16, false)]
        {
            let norm_eps = norm.then_some(1e-6);
            let shape = AttentionShape { heads, kv_heads, head_dim, norm_eps };
            let rotary = Rotary::new(head_dim, 80, 10_000.0);
            let qkv = noise(70 * shape.projection(), 3);
            let want = plain(&shape, &rotary, &qkv);
            let steps = [33, 1, 1, 4, 30, 1];
            for (format, bound) in
                [(CacheFormat::F32, 1e-5), (CacheFormat::F16, 2e-3), (CacheFormat::Q8, 3e-2)]
            {
                for level in [Level::Avx512, Level::Avx2, Level::Portable] {
                    force_level(Some(level));
                    let got = paged(2, format, &shape, &rotary, &qkv, &steps, true);
                    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                        let at = format!("{format:?} {level:?} {shape:?} {i}");
                        assert!((a - b).abs() < bound, "{at}: {a} against {b}");
                    }
                }
                force_level(None);
            }
        }
    }

    #[test]
    fn neither_steps_nor_company_nor_threads_change_a_bit() {
        let _one = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 32, norm_eps: None };
        let rotary = Rotary::new(32, 80, 10_000.0);
        let qkv = noise(70 * shape.projection(), 9);
        for (_, format) in CacheFormat::ALL {
            let at_once = paged(1, format, &shape, &rotary, &qkv, &[70], false);
            for (threads, company) in [(1, false), (2, true), (3, true)] {
                let one = paged(threads, format, &shape, &rotary, &qkv, &[1; 70], company);
                assert_eq!(one, at_once, "{format:?}");
                let some = paged(threads, format, &shape, &rotary, &qkv, &[5, 40, 25], company);
                assert_eq!(some, at_once, "{format:?}");
            }
        }
    }

    #[test]
    fn a_copied_page_holds_the_same_and_is_apart() {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, norm_eps: None };
        let rotary = Rotary::new(16, 40, 10_000.0);
        let team = Team::new(1);
        let from = shape.projection();
        let qkv = noise(20 * from, 1);
        let mut pages = Pages::new(1, &shape, CacheFormat::F16, 4);
        assert_eq!(pages.page_bytes(), 2 * 16 * PAGE * 2);
        let n = norms(&shape);
        let mut queries = Vec::new();
        let mut step = |pages: &mut Pages, list: &[u32], position: usize, qkv: &[f32]| {
            let rows = qkv.len() / from;
            let span = Span { pages: list, position, rows };
            let mut out = vec![0.0; rows * shape.output()];
            attend(&team, pages, 0, &shape, &rotary, n, &[span], qkv, &mut queries, &mut out);
            out
        };
        step(&mut pages, &[0, 1], 0, &qkv[..18 * from]);
        pages.copy(1, 3);
        // The copy goes another way; the first one is not disturbed.
        step(&mut pages, &[0, 3], 18, &qkv[..from]);
        let last = step(&mut pages, &[0, 1], 18, &qkv[18 * from..19 * from]);
        let want = plain(&shape, &rotary, &qkv[..19 * from]);
        for (a, b) in last.iter().zip(&want[18 * shape.output()..]) {
            assert!((a - b).abs() < 2e-3, "{a} against {b}");
        }
    }
}
