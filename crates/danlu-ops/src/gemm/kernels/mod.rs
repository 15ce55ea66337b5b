//! The micro-kernels: one small tile of the result per call, for each instruction set.
//!
//! Every kernel sums each element in one accumulator, from the first step to the last, so an
//! element's bits depend neither on the tile it falls in nor on the tile's position.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Repeats a block for each constant below a bound. Ordinary loops over the accumulators are at
/// times not unrolled before the compiler decides what lives in registers, and then everything
/// goes through memory.
#[cfg(target_arch = "x86_64")]
macro_rules! each {
    ($i:ident < $n:expr, $body:block) => {
        each!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $i:ident, $n:expr, $body:block, $($x:literal)*) => {
        $(if $x < $n {
            const $i: usize = $x;
            $body
        })*
    };
}
#[cfg(target_arch = "x86_64")]
macro_rules! pair {
    ($v:ident < $n:expr, $body:block) => {
        each!(@ $v, $n, $body, 0 1)
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// The instruction sets that a product can be computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust, left to the compiler's vectoriser.
    Portable,
    /// AVX2 with FMA (x86-64).
    Avx2,
    /// AVX-512 F (x86-64).
    Avx512,
    /// NEON (64-bit ARM).
    Neon,
}

/// What a tile of the result starts from before the sum over one block of steps is added.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// The sum alone is stored; nothing is read.
    Nothing,
    /// `scale * src + sum` is stored.
    Scaled(f32),
}

/// One call of a micro-kernel: `c[i][j] = start + sum over p of a[i][p] * b[p][j]`.
///
/// `rows` is at most the kernel's `mr`, `cols` at most its `nr`, both at least 1.
pub(super) struct Tile {
    /// How many products are summed.
    pub depth: usize,
    /// Left operand: element (i, p) at `i * a_row + p * a_step`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_step: usize,
    /// Right operand: element (p, j) at `p * b_step + j`. Columns are there, whatever they hold, up
    /// to the next multiple of the kernel's `lanes`.
    pub b: *const f32,
    pub b_step: usize,
    /// Result: element (i, j) at `i * c_row + j`.
    pub c: *mut f32,
    pub c_row: usize,
    pub rows: usize,
    pub cols: usize,
    /// What the result starts from: element (i, j) at `i * src_row + j`; may be `c` itself.
    pub src: *const f32,
    pub src_row: usize,
    pub from: From,
    /// What will be read after this tile, to be fetched into the second-level cache: bytes from one
    /// group of four steps to the next. A kernel need not.
    pub next: *const f32,
    pub next_step: usize,
}

/// A micro-kernel and the size of its tile.
pub(super) struct Kernel {
    pub level: Level,
    /// Rows of a full tile, and the width of a packed left panel.
    pub mr: usize,
    /// Columns of a full tile, and the width of a packed right panel.
    pub nr: usize,
    /// Columns that the kernel reads at a time.
    pub lanes: usize,
    /// The most rows of the left operand that are worked on at a time (a multiple of `mr`).
    pub mc: usize,
    /// Computes one tile.
    ///
    /// # Safety
    /// The processor has the level's instructions, and the pointers of the tile are good for the
    /// elements that its description names.
    pub run: unsafe fn(&Tile),
}

static FORCED: AtomicU8 = AtomicU8::new(0);

/// Makes every later product use `level` where the processor has it; `None` goes back to the best.
/// For tests and measurements: it applies to the whole process.
#[doc(hidden)]
pub fn force_level(level: Option<Level>) {
    FORCED.store(level.map_or(0, |l| l as u8 + 1), Ordering::Relaxed);
}

/// The instruction set that products use at present.
pub fn level() -> Level {
    kernel().level
}

/// The kernel for the processor at hand, or the one that was asked for.
pub(super) fn kernel() -> &'static Kernel {
    static BEST: OnceLock<&'static Kernel> = OnceLock::new();
    let forced = FORCED.load(Ordering::Relaxed);
    if forced != 0
        && let Some(k) = available().find(|k| k.level as u8 + 1 == forced)
    {
        return k;
    }
    BEST.get_or_init(|| {
        let name = std::env::var("GEMM_LEVEL").unwrap_or_default().to_ascii_lowercase();
        available()
            .find(|k| format!("{:?}", k.level).to_ascii_lowercase() == name)
            .or_else(|| available().next())
            .unwrap_or(&portable::KERNEL)
    })
}

/// The kernels that this processor can run, best first.
fn available() -> impl Iterator<Item = &'static Kernel> {
    let mut found: [Option<&'static Kernel>; 4] = [None; 4];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            found[0] = Some(&avx512::KERNEL);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found[1] = Some(&avx2::KERNEL);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        found[2] = Some(&neon::KERNEL);
    }
    found[3] = Some(&portable::KERNEL);
    found.into_iter().flatten()
}
