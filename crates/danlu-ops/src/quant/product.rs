//! Products of activations with weights: `x w^T`.

use super::WeightFormat;
use super::blocks::{BLOCK, SUPER};
use super::isa::{Isa, Kernel, dispatch};
use super::rows::{Activations, Meta};
use super::weights::{TILE, Weights, tile_bytes};
use crate::team::Team;
use std::time::Instant;

/// Bytes ahead of their use at which weights are asked for.
const AHEAD: usize = 4096;
/// Bytes of quantised activations that stay in the second-level cache beside the weights.
const CACHED: usize = 384 << 10;

/// Repeats a block for each constant below a bound, so that sums stay in registers.
macro_rules! each {
    ($i:ident < $n:expr, $body:block) => {
        each!(@ $i, $n, $body, 0 1 2 3 4 5)
    };
    (@ $i:ident, $n:expr, $body:block, $($x:literal)*) => {
        $(if $x < $n {
            const $i: usize = $x;
            $body
        })*
    };
}
pub(crate) use each;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// It replaces what the output held.
    Store,
    /// It is added to what the output holds.
    Add,
}

/// A product in pointers, as the kernels see it.
#[derive(Clone, Copy)]
struct Call {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    blocks: usize,
    numbers: *const u8,
    scales: *const u8,
    supers: *const u8,
    /// Bytes of a tile of numbers.
    tile_bytes: usize,
    values: *const f32,
    bytes: *const i8,
    meta: *const Meta,
    bias: Option<*const f32>,
    out: *mut f32,
    add: bool,
}

// SAFETY: the tasks of a product read the inputs and write disjoint parts of the output.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

/// `out = x w^T + bias`, or the same added to `out`: `[x.rows(), w's rows]`, row-major.
///
/// # Panics
/// If shapes do not fit, or `x` was not made for the format of `w`.
pub fn product(
    team: &Team,
    x: &Activations,
    w: &Weights,
    bias: Option<&[f32]>,
    out: &mut [f32],
    into: Into,
) {
    let [rows, cols] = w.shape();
    let m = x.rows();
    assert_eq!(x.cols(), cols, "product: columns of x and of the weights");
    assert_eq!(out.len(), m * rows, "product: size of the output");
    assert!(bias.is_none_or(|b| b.len() == rows), "product: length of the bias");
    let (bytes, meta) = match x.bytes() {
        Some((bytes, meta)) => (bytes.as_ptr(), meta.as_ptr()),
        None => {
            assert!(!w.format().is_quantised(), "product: x is not quantised");
            (std::ptr::null(), std::ptr::null())
        }
    };
    if m == 0 || rows == 0 {
        return;
    }
    let call = Call {
        format: w.format(),
        rows,
        cols,
        blocks: cols.div_ceil(BLOCK),
        numbers: w.numbers.bytes().as_ptr(),
        scales: w.scales.bytes().as_ptr(),
        supers: w.supers.bytes().as_ptr(),
        tile_bytes: tile_bytes(w.format(), cols)[0],
        values: x.values().as_ptr(),
        bytes,
        meta,
        bias: bias.map(<[f32]>::as_ptr),
        out: out.as_mut_ptr(),
        add: into == Into::Add,
    };
    let tiles = rows.div_ceil(TILE);
    // Rows of activations at a time, and tiles of a task: several tasks a thread.
    let at_once = (CACHED / (cols * if w.format().is_quantised() { 2 } else { 4 }).max(1)).max(24);
    let strip = tiles.div_ceil(team.threads() * 4);
    let strips = tiles.div_ceil(strip);
    // Threads that keep step read on where they were: each has a range of strips.
    let (lanes, long) = (team.threads(), strips.div_ceil(team.threads()));
    team.each(lanes * long * m.div_ceil(at_once), |task| {
        let (part, turn) = (task / (lanes * long), task % (lanes * long));
        let strip_at = turn % lanes * long + turn / lanes;
        if strip_at >= strips {
            return;
        }
        let strip = Strip {
            call,
            tiles: [strip_at * strip, tiles.min((strip_at + 1) * strip)],
            rows: [part * at_once, m.min((part + 1) * at_once)],
        };
        dispatch(strip);
    });
}

/// Some tiles against some rows of activations.
struct Strip {
    call: Call,
    tiles: [usize; 2],
    rows: [usize; 2],
}

impl Kernel for Strip {
    type Out = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: `product` has checked all sizes.
        unsafe {
            match self.call.format {
                WeightFormat::F32 => self.go::<I, FloatOf<false>>(),
                WeightFormat::F16 => self.go::<I, FloatOf<true>>(),
                WeightFormat::Q8_0 => self.go::<I, Blocked<Bytes>>(),
                WeightFormat::Q4_0 => self.go::<I, Blocked<Nibbles>>(),
                WeightFormat::Q4K => self.go::<I, Blocked<Shared>>(),
            }
        }
    }
}

impl Strip {
    /// One tile after the other, so that a thread reads memory from its beginning to its end: several
    /// side by side, which would share the reading of activations, reach two thirds of the rate.
    #[inline(always)]
    unsafe fn go<I: Isa, P: Part>(&self) {
        let Strip { call, tiles: [first, end], rows: [top, bottom] } = self;
        let m = bottom - top;
        // Groups of rows as even as they get: six and two take longer than four and four.
        let groups = m.div_ceil(I::ROWS);
        for tile in *first..*end {
            for g in 0..groups {
                let row = top + m * g / groups;
                let count = top + m * (g + 1) / groups - row;
                macro_rules! pick {
                    ($($r:literal)*) => {
                        match count {
                            // SAFETY: within the product's sizes.
                            $($r if $r <= I::ROWS => unsafe { P::run::<I, $r>(call, tile, row) },)*
                            _ => unreachable!("a group has 1 to {} rows", I::ROWS),
                        }
                    };
                }
                pick!(1 2 3 4 5 6);
            }
        }
    }
}

/// A tile against `M` rows.
trait Part {
    /// # Safety
    /// The tile and rows are within the product, and the processor has the instructions.
    unsafe fn run<I: Isa, const M: usize>(c: &Call, tile: usize, row: usize);
}

/// Weights that are floats.
struct FloatOf<const HALF: bool>;

impl<const HALF: bool> Part for FloatOf<HALF> {
    #[inline(always)]
    unsafe fn run<I: Isa, const M: usize>(c: &Call, tile: usize, row: usize) {
        // SAFETY: as the caller.
        unsafe {
            let step = if HALF { TILE * 2 } else { TILE * 4 };
            let w = c.numbers.add(tile * c.tile_bytes);
            let x = c.values.add(row * c.cols);
            let mut sum = [I::splat(0.0); M];
            for k in 0..c.cols {
                let at = w.add(k * step);
                let part = if HALF { I::halves(at.cast()) } else { I::load(at.cast()) };
                I::prefetch(at.wrapping_add(AHEAD));
                each!(R < M, {
                    sum[R] = I::fma(part, I::splat(*x.add(R * c.cols + k)), sum[R]);
                });
            }
            put::<I, M>(c, tile, row, sum);
        }
    }
}

/// How the whole numbers of a format lie in memory, and what scales them.
trait Format {
    /// Vectors of 64 bytes in a block.
    const VECTORS: usize;
    /// Numbers of four bits.
    const HALVES: bool;
    /// What is taken from each number.
    const OFFSET: i32;
    /// Whether scales are shares of a super-block's, and there are minima.
    const SHARED: bool;
}

struct Bytes;
struct Nibbles;
struct Shared;

impl Format for Bytes {
    const VECTORS: usize = 8;
    const HALVES: bool = false;
    const OFFSET: i32 = 128;
    const SHARED: bool = false;
}

impl Format for Nibbles {
    const VECTORS: usize = 4;
    const HALVES: bool = true;
    const OFFSET: i32 = 8;
    const SHARED: bool = false;
}

impl Format for Shared {
    const VECTORS: usize = 4;
    const HALVES: bool = true;
    const OFFSET: i32 = 0;
    const SHARED: bool = true;
}

/// Weights in blocks.
struct Blocked<F>(std::marker::PhantomData<F>);

impl<F: Format> Part for Blocked<F> {
    #[inline(always)]
    unsafe fn run<I: Isa, const M: usize>(c: &Call, tile: usize, row: usize) {
        // SAFETY: as the caller.
        unsafe {
            let blocks = c.blocks;
            let supers = blocks.div_ceil(SUPER);
            let w = c.numbers.add(tile * c.tile_bytes);
            let scales = c.scales.add(tile * blocks * TILE * 2);
            let x = c.bytes.add(row * blocks * BLOCK);
            let meta = c.meta.add(row * blocks);
            let mut sum = [I::splat(0.0); M];
            for b in 0..blocks {
                let mut acc = [I::ints(0); M];
                if F::OFFSET == 8 || F::OFFSET == 128 && I::KEEPS_OFFSET {
                    each!(R < M, {
                        let meta = meta.add(R * blocks + b);
                        acc[R] = I::ints(if F::OFFSET == 8 {
                            (*meta).minus_8
                        } else {
                            (*meta).minus_128
                        });
                    });
                }
                for v in 0..F::VECTORS {
                    let at = w.add((b * F::VECTORS + v) * 64);
                    let part = I::bytes(at);
                    I::prefetch(at.wrapping_add(AHEAD));
                    if F::HALVES {
                        each!(R < M, {
                            let x = x.add((R * blocks + b) * BLOCK + v * 4);
                            acc[R] = I::dot(acc[R], I::low(part), I::spread(x));
                            acc[R] = I::dot(acc[R], I::high(part), I::spread(x.add(16)));
                        });
                    } else {
                        each!(R < M, {
                            let x = I::spread(x.add((R * blocks + b) * BLOCK + v * 4));
                            acc[R] = I::dot_offset(acc[R], part, x);
                        });
                    }
                }
                let at = scales.add(b * TILE * 2);
                // Those of the next tile.
                I::prefetch(at.wrapping_add(blocks * TILE * 2));
                if F::SHARED {
                    let top = c.supers.add((tile * supers + b / SUPER) * TILE * 4);
                    let scale = I::mul(I::halves(top.cast()), I::unsigned(at));
                    let low = I::halves(top.add(TILE * 2).cast());
                    let low = I::mul(low, I::unsigned(at.add(TILE)));
                    each!(R < M, {
                        let meta = meta.add(R * blocks + b);
                        let s = I::mul(scale, I::splat((*meta).scale));
                        sum[R] = I::fma(I::float(acc[R]), s, sum[R]);
                        sum[R] = I::fma(low, I::splat(-(*meta).sum), sum[R]);
                    });
                } else {
                    let scale = I::halves(at.cast());
                    each!(R < M, {
                        let meta = meta.add(R * blocks + b);
                        let s = I::mul(scale, I::splat((*meta).scale));
                        sum[R] = I::fma(I::float(acc[R]), s, sum[R]);
                    });
                }
            }
            put::<I, M>(c, tile, row, sum);
        }
    }
}

/// Stores the sums of a tile and `M` rows, with bias and what was there.
#[inline(always)]
unsafe fn put<I: Isa, const M: usize>(c: &Call, tile: usize, row: usize, sum: [I::F; M]) {
    // SAFETY: as the caller.
    unsafe {
        let at = tile * TILE;
        let left = c.rows - at;
        each!(R < M, {
            let out = c.out.add((row + R) * c.rows + at);
            let mut value = sum[R];
            if left >= TILE {
                if let Some(bias) = c.bias {
                    value = I::add(value, I::load(bias.add(at)));
                }
                if c.add {
                    value = I::add(I::load(out), value);
                }
                I::store(out, value);
            } else {
                let mut lanes = [0.0f32; TILE];
                I::store(lanes.as_mut_ptr(), value);
                for (i, lane) in lanes.iter().enumerate().take(left) {
                    let bias = c.bias.map_or(0.0, |bias| *bias.add(at + i));
                    let old = if c.add { *out.add(i) } else { 0.0 };
                    *out.add(i) = old + (lane + bias);
                }
            }
        });
    }
}

/// Reads memory as a product does and adds it up.
struct Read {
    at: *const u8,
    vectors: usize,
}

// SAFETY: only reads.
unsafe impl Send for Read {}

impl Kernel for Read {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> f32 {
        // SAFETY: `bandwidth` gives as many vectors, a multiple of four.
        unsafe {
            // As long as `each` has numbers; four are used.
            let mut sums = [I::splat(0.0); 6];
            for v in 0..self.vectors / 4 {
                each!(Q < 4, {
                    let at = self.at.add((4 * v + Q) * 64);
                    sums[Q] = I::add(sums[Q], I::load(at.cast()));
                    I::prefetch(at.wrapping_add(AHEAD));
                });
            }
            let mut lanes = [0.0f32; TILE];
            I::store(
                lanes.as_mut_ptr(),
                I::add(I::add(sums[0], sums[1]), I::add(sums[2], sums[3])),
            );
            lanes.iter().sum()
        }
    }
}

/// Rate at which the threads of `team` read memory from its beginning to its end, in bytes a second:
/// the best of `repeats` passes over `bytes`, which should be several times the caches.
pub fn bandwidth(team: &Team, bytes: usize, repeats: usize) -> f64 {
    let arena = super::Arena::default();
    // As many pieces as a product has tasks, in the same order.
    let piece = (bytes / (team.threads() * 4)).next_multiple_of(256);
    let pieces = (bytes / piece).max(1);
    let mut region = arena.take(pieces * piece);
    // Pages that were never written are all the same page of zeros.
    region.bytes_mut().fill(1);
    let region = region.bytes();
    let mut best = f64::INFINITY;
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        team.each(pieces, |i| {
            let at = region[i * piece..(i + 1) * piece].as_ptr();
            std::hint::black_box(dispatch(Read { at, vectors: piece / 64 }));
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (pieces * piece) as f64 / best
}
