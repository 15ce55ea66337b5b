//! The AVX-512 micro-kernel: tiles of 12 rows by 32 columns, 24 accumulators of 16 lanes.
//!
//! A step of a full tile is 24 multiply-adds, 12 cycles on two units. With one broadcast per row it is
//! 38 operations, more than a core issues in that time where the other hardware thread of the core is
//! busy with something else (a neighbour on a rented machine). So in two rows of three the
//! multiply-adds read their element from memory themselves: 30 operations and 22 loads, less than
//! two a cycle. Where rows are far apart that is one row of three, for want of registers.

use super::{From, Kernel, Level, Tile};
use std::arch::asm;
use std::arch::x86_64::*;

const MR: usize = 12;
const NR: usize = 32;

pub(in super::super) static KERNEL: Kernel =
    Kernel { level: Level::Avx512, mr: MR, nr: NR, lanes: 16, mc: 120, run };

/// How the left operand lies.
mod lies {
    /// A packed panel: `MR` neighbours for each step.
    pub const PANEL: u8 = 0;
    /// The elements of a step are neighbours.
    pub const STEPS: u8 = 1;
    /// The elements of a row are neighbours.
    pub const ROWS: u8 = 2;
    pub const ANYHOW: u8 = 3;
}

/// Bytes from the pointer of step 0 and row `i` to the element of step `u`, as far as they are constant.
const fn further(lies: u8, u: usize, i: usize) -> usize {
    size_of::<f32>()
        * match lies {
            lies::PANEL => u * MR + i,
            lies::STEPS => i,
            lies::ROWS => u,
            _ => 0,
        }
}

/// The multiply-adds of one row and step. They are written out because a compiler that moves loads
/// ahead runs out of registers and goes through memory.
macro_rules! row {
    // Each reads the element from memory.
    ($acc:expr, $b:expr, $at:expr, $further:expr) => {
        row!(@ [
            "vfmadd231ps {c0}, {b0}, dword ptr [{at} + {further}]{{1to16}}",
            "vfmadd231ps {c1}, {b1}, dword ptr [{at} + {further}]{{1to16}}"
        ] $acc, $b, $at, $further,)
    };
    // One load for both.
    ($acc:expr, $b:expr, $at:expr, $further:expr, once) => {
        row!(@ [
            "vbroadcastss {t}, dword ptr [{at} + {further}]",
            "vfmadd231ps {c0}, {b0}, {t}",
            "vfmadd231ps {c1}, {b1}, {t}"
        ] $acc, $b, $at, $further, t = out(zmm_reg) _,)
    };
    // The same for an element that is one or two rows further.
    ($acc:expr, $b:expr, $at:expr, $further:expr, once, $rows:expr, $row:expr) => {
        row!(@ [
            "vbroadcastss {t}, dword ptr [{at} + {row} * {scale} + {further}]",
            "vfmadd231ps {c0}, {b0}, {t}",
            "vfmadd231ps {c1}, {b1}, {t}"
        ] $acc, $b, $at, $further,
            t = out(zmm_reg) _, row = in(reg) $row, scale = const size_of::<f32>() * $rows,)
    };
    (@ [$($line:literal),*] $acc:expr, $b:expr, $at:expr, $further:expr, $($more:tt)*) => {
        asm!(
            $($line,)*
            c0 = inout(zmm_reg) $acc[0],
            c1 = inout(zmm_reg) $acc[VECS - 1],
            b0 = in(zmm_reg) $b[0],
            b1 = in(zmm_reg) $b[VECS - 1],
            at = in(reg) $at,
            further = const $further,
            $($more)*
            options(pure, readonly, nostack, preserves_flags),
        )
    };
}

/// Picks the variant for the tile's rows, vectors per row and layout of the left operand.
unsafe fn run(t: &Tile) {
    macro_rules! pick {
        ($($r:literal)*) => {
            match (t.rows, t.cols > 16, t.a_row, t.a_step) {
                $(($r, true, 1, MR) => tile::<$r, 2, { lies::PANEL }>,
                ($r, true, 1, _) => tile::<$r, 2, { lies::STEPS }>,
                ($r, true, _, 1) => tile::<$r, 2, { lies::ROWS }>,
                ($r, true, ..) => tile::<$r, 2, { lies::ANYHOW }>,
                ($r, false, 1, MR) => tile::<$r, 1, { lies::PANEL }>,
                ($r, false, ..) => tile::<$r, 1, { lies::ANYHOW }>,)*
                _ => unreachable!("a tile has 1 to {MR} rows"),
            }
        };
    }
    let tile: unsafe fn(&Tile) = pick!(1 2 3 4 5 6 7 8 9 10 11 12);
    // SAFETY: the caller promises the instructions and the pointers.
    unsafe { tile(t) }
}

#[target_feature(enable = "avx512f")]
unsafe fn tile<const ROWS: usize, const VECS: usize, const LIES: u8>(t: &Tile) {
    let a_row = if LIES <= lies::STEPS { 1 } else { t.a_row };
    let a_step = match LIES {
        lies::PANEL => MR,
        lies::ROWS => 1,
        _ => t.a_step,
    };
    // SAFETY: all addresses are elements that the tile's description names; lanes past `cols` of
    // the packed right panel exist, and those of the result are masked off.
    unsafe {
        each!(I < ROWS, {
            // The result is needed only after the loop: asking for it now hides the memory's delay.
            let c = t.c.wrapping_add(I * t.c_row);
            _mm_prefetch::<_MM_HINT_T0>(c.cast());
            if VECS == 2 {
                _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(t.cols - 1).cast());
            }
        });
        let mut acc = [[_mm512_setzero_ps(); VECS]; ROWS];
        let mut b = t.b;
        // Where rows 0, 3, 6 and 9 are: the others are one or two rows further.
        let mut a = [0, 3, 6, 9].map(|row| t.a.wrapping_add(row * a_row));
        let (mut next, next_step) = (t.next.cast::<u8>(), t.next_step);
        macro_rules! step {
            ($u:literal) => {
                let mut bv = [_mm512_setzero_ps(); VECS];
                pair!(V < VECS, {
                    bv[V] = _mm512_loadu_ps(b.wrapping_add($u * t.b_step + V * 16));
                });
                each!(I < ROWS, {
                    let at = match LIES {
                        lies::PANEL => a[0],
                        lies::STEPS => a[0].wrapping_add($u * a_step),
                        lies::ROWS => a[I / 3],
                        _ => a[I / 3].wrapping_add($u * a_step + I % 3 * a_row),
                    };
                    if VECS == 1 {
                        let av = _mm512_set1_ps(*at.byte_add(further(LIES, $u, I)));
                        acc[I][0] = _mm512_fmadd_ps(av, bv[0], acc[I][0]);
                    } else if LIES == lies::ROWS && I % 3 != 0 {
                        row!(acc[I], bv, at, further(LIES, $u, I), once, I % 3, a_row);
                    } else if LIES == lies::ANYHOW || I % 3 == 2 {
                        row!(acc[I], bv, at, further(LIES, $u, I), once);
                    } else {
                        row!(acc[I], bv, at, further(LIES, $u, I));
                    }
                });
            };
        }
        for _ in 0..t.depth / 4 {
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            next = next.wrapping_add(next_step);
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            a = a.map(|a| a.wrapping_add(4 * a_step));
            b = b.wrapping_add(4 * t.b_step);
        }
        for _ in 0..t.depth % 4 {
            step!(0);
            a = a.map(|a| a.wrapping_add(a_step));
            b = b.wrapping_add(t.b_step);
        }
        let last = t.cols - (VECS - 1) * 16;
        if last == 16 {
            each!(I < ROWS, {
                pair!(V < VECS, {
                    let c = t.c.add(I * t.c_row + V * 16);
                    let out = match t.from {
                        From::Nothing => acc[I][V],
                        From::Scaled(s) => {
                            let old = _mm512_loadu_ps(t.src.add(I * t.src_row + V * 16));
                            _mm512_fmadd_ps(_mm512_set1_ps(s), old, acc[I][V])
                        }
                    };
                    _mm512_storeu_ps(c, out);
                });
            });
        } else {
            each!(I < ROWS, {
                pair!(V < VECS, {
                    let mask: __mmask16 = if V + 1 == VECS { (1 << last) - 1 } else { !0 };
                    let c = t.c.add(I * t.c_row + V * 16);
                    let out = match t.from {
                        From::Nothing => acc[I][V],
                        From::Scaled(s) => {
                            let src = t.src.add(I * t.src_row + V * 16);
                            let old = _mm512_maskz_loadu_ps(mask, src);
                            _mm512_fmadd_ps(_mm512_set1_ps(s), old, acc[I][V])
                        }
                    };
                    _mm512_mask_storeu_ps(c, mask, out);
                });
            });
        }
    }
}
