//! Single-precision matrix products with packed panels and a micro-kernel per instruction set.
//!
//! The result does not depend on the number of threads: each element is summed over k in one
//! order, given by k alone. So it does not depend on m and n either: a row alone has the same
//! bits as the row within a larger product.

mod buffer;
mod kernels;
mod micro;
mod pack;
mod plan;
mod run;
#[cfg(test)]
mod tests;

use kernels::{Kernel, kernel};
pub use kernels::{Level, force_level, level};
pub use micro::Micro;
use run::{Product, Right, Start};
use std::mem::MaybeUninit;

/// The fewest multiplications for which a second thread is worth waking.
const WORTH_THREADS: usize = 1 << 21;
/// The most columns worked on at a time, which bounds the memory for the packed right operand.
const MOST_COLS: usize = 8192;

/// A matrix operand: element (i, j) is at `i * rows + j * cols` of `data`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    /// The distance between rows.
    pub rows: usize,
    /// The distance between columns.
    pub cols: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix whose rows are `width` elements apart.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        Mat { data, rows: width, cols: 1 }
    }

    /// The transpose of the same elements.
    pub fn t(self) -> Self {
        Mat { data: self.data, rows: self.cols, cols: self.rows }
    }

    /// Whether all elements of `rows` by `cols` are within the data.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        if rows == 0 || cols == 0 {
            return true;
        }
        let last = (rows - 1)
            .checked_mul(self.rows)
            .zip((cols - 1).checked_mul(self.cols))
            .and_then(|(i, j)| i.checked_add(j));
        last.is_some_and(|last| last < self.data.len())
    }
}

/// Which operand of a product is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// The left one, by its rows.
    Left,
    /// The right one, by its columns.
    Right,
}

/// How many threads a product may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    /// The calling one.
    One,
    /// Those of rayon's current pool.
    All,
}

/// `c = keep * c + a b` with `a` [m, k] and `b` [k, n]; `c` is row-major [m, n] with `width`
/// elements from row to row. With `keep` 0 what `c` held is not read.
///
/// # Panics
/// If an operand or `c` is too short for the sizes, or `width` is less than n.
pub fn gemm(
    [m, k, n]: [usize; 3],
    a: Mat,
    b: Mat,
    c: &mut [f32],
    width: usize,
    keep: f32,
    threads: Threads,
) {
    let start = if keep == 0.0 { Start::Nothing } else { Start::Kept(keep) };
    assert!(b.holds(k, n), "gemm: right operand too short");
    product(kernel(), [m, k, n], a, Right::Plain(b), uninit(c), width, start, threads);
}

/// `c = a b`, like [`gemm`] with `keep` 0, into memory that need not hold anything yet. Afterwards
/// the first n elements of each of the m rows are initialised (and nothing between rows is touched).
pub fn gemm_uninit(
    [m, k, n]: [usize; 3],
    a: Mat,
    b: Mat,
    c: &mut [MaybeUninit<f32>],
    width: usize,
    threads: Threads,
) {
    assert!(b.holds(k, n), "gemm: right operand too short");
    product(kernel(), [m, k, n], a, Right::Plain(b), c, width, Start::Nothing, threads);
}

/// `c = a b + bias`: the first n elements of `bias` are added to every row. Otherwise like
/// [`gemm_uninit`].
pub fn gemm_bias(
    [m, k, n]: [usize; 3],
    a: Mat,
    b: Mat,
    bias: &[f32],
    c: &mut [f32],
    width: usize,
    threads: Threads,
) {
    assert!(b.holds(k, n), "gemm: right operand too short");
    assert!(bias.len() >= n, "gemm: bias too short");
    product(kernel(), [m, k, n], a, Right::Plain(b), uninit(c), width, Start::Bias(bias), threads);
}

/// `c = a b` where the product, [n, n], is symmetric: only elements on or right of the diagonal are
/// sure to be there afterwards, with the same bits as in [`gemm`]. `a` is [n, k], `b` [k, n].
///
/// # Panics
/// If an operand or `c` is too short for the sizes.
pub fn gemm_upper([n, k]: [usize; 2], a: Mat, b: Mat, c: &mut [f32], threads: Threads) {
    assert!(b.holds(k, n), "gemm: right operand too short");
    let right = Right::Plain(b);
    part(kernel(), [n, k, n], a, right, uninit(c), n, Start::Nothing, threads, true);
}

/// A right operand packed once for several products.
pub struct Packed {
    kernel: &'static Kernel,
    memory: buffer::Owned,
    k: usize,
    n: usize,
}

impl Packed {
    /// Packs `b`, [k, n].
    ///
    /// # Panics
    /// If `b` is too short for the sizes.
    pub fn new(b: Mat, [k, n]: [usize; 2]) -> Self {
        assert!(b.holds(k, n), "gemm: right operand too short");
        let kernel = kernel();
        let mut memory = buffer::Owned::new(run::right_len(kernel, k, n));
        if k > 0 && n > 0 {
            let kc = plan::block_depth(k);
            // SAFETY: the operand was checked, and the memory has the length asked for.
            unsafe { run::pack_right(kernel, b, [k, n], kc, memory.ptr_mut()) };
        }
        Packed { kernel, memory, k, n }
    }

    /// The sizes [k, n].
    pub fn size(&self) -> [usize; 2] {
        [self.k, self.n]
    }
}

/// `c = keep * c + a b` with `a` [m, k] and `b` packed: the same bits as [`gemm`].
pub fn gemm_packed(
    m: usize,
    a: Mat,
    b: &Packed,
    c: &mut [f32],
    width: usize,
    keep: f32,
    threads: Threads,
) {
    let start = if keep == 0.0 { Start::Nothing } else { Start::Kept(keep) };
    let right = Right::Packed(b.memory.ptr());
    product(b.kernel, [m, b.k, b.n], a, right, uninit(c), width, start, threads);
}

/// Initialised memory seen as memory that need not be. Nothing uninitialised is ever written to it.
fn uninit(c: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layout is the same, and only whole floats are stored through the result.
    unsafe { &mut *(std::ptr::from_mut(c) as *mut [MaybeUninit<f32>]) }
}

/// All of a product; see [`part`].
#[allow(clippy::too_many_arguments)]
fn product(
    kernel: &'static Kernel,
    size: [usize; 3],
    a: Mat,
    right: Right,
    c: &mut [MaybeUninit<f32>],
    width: usize,
    start: Start,
    threads: Threads,
) {
    part(kernel, size, a, right, c, width, start, threads, false);
}

/// Checks the left operand and the result, deals with empty products and runs the rest. With
/// `upper` the tiles that lie left of the diagonal are left out.
#[allow(clippy::too_many_arguments)]
fn part(
    kernel: &'static Kernel,
    [m, k, n]: [usize; 3],
    a: Mat,
    right: Right,
    c: &mut [MaybeUninit<f32>],
    width: usize,
    start: Start,
    threads: Threads,
    upper: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k), "gemm: left operand too short");
    assert!(width >= n, "gemm: rows of the result overlap");
    let need = (m - 1).checked_mul(width).and_then(|l| l.checked_add(n));
    assert!(need.is_some_and(|l| l <= c.len()), "gemm: result too short");
    if k == 0 {
        for row in c.chunks_mut(width).take(m) {
            for (j, c) in row.iter_mut().take(n).enumerate() {
                match start {
                    Start::Nothing => _ = c.write(0.0),
                    Start::Bias(bias) => _ = c.write(bias[j]),
                    // SAFETY: only results that are initialised are kept.
                    Start::Kept(keep) => unsafe { *c.assume_init_mut() *= keep },
                }
            }
        }
        return;
    }
    let work = m.saturating_mul(k).saturating_mul(n);
    let threads = if threads == Threads::One || work < WORTH_THREADS {
        1
    } else {
        rayon::current_num_threads()
    };
    let most = if matches!(right, Right::Packed(_)) { n } else { MOST_COLS };
    for first in (0..n).step_by(most) {
        let part = Product {
            kernel,
            size: [m, k, most.min(n - first)],
            a,
            right: match right {
                Right::Plain(b) => Right::Plain(Mat { data: &b.data[first * b.cols..], ..b }),
                packed => packed,
            },
            c: c[first..].as_mut_ptr().cast(),
            width,
            start: match start {
                Start::Bias(bias) => Start::Bias(&bias[first..]),
                other => other,
            },
            upper: upper.then_some(first),
        };
        // SAFETY: the operands and the result were checked above and by the callers, `c` is
        // borrowed for this call alone, and the kernel is one that the processor has.
        unsafe { run::run(&part, threads) };
    }
}
