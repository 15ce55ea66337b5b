//! The AVX-512 micro-kernel: tiles of 12 rows by 32 columns, 24 accumulators of 16 lanes.

use super::{From, Kernel, Level, Tile};
use std::arch::x86_64::*;

const MR: usize = 12;
const NR: usize = 32;

pub(in super::super) static KERNEL: Kernel =
    Kernel { level: Level::Avx512, mr: MR, nr: NR, lanes: 16, mc: 240, run };

/// Picks the variant for the tile's rows, vectors per row and layout of the left operand.
unsafe fn run(t: &Tile) {
    macro_rules! pick {
        ($($r:literal)*) => {
            match (t.rows, t.cols > 16, t.a_row == 1 && t.a_step == MR) {
                $(($r, true, true) => tile::<$r, 2, true>,
                ($r, false, true) => tile::<$r, 1, true>,
                ($r, true, false) => tile::<$r, 2, false>,
                ($r, false, false) => tile::<$r, 1, false>,)*
                _ => unreachable!("a tile has 1 to {MR} rows"),
            }
        };
    }
    let tile: unsafe fn(&Tile) = pick!(1 2 3 4 5 6 7 8 9 10 11 12);
    // SAFETY: the caller promises the instructions and the pointers.
    unsafe { tile(t) }
}

#[target_feature(enable = "avx512f")]
unsafe fn tile<const ROWS: usize, const VECS: usize, const PACKED: bool>(t: &Tile) {
    let (a_row, a_step) = if PACKED { (1, MR) } else { (t.a_row, t.a_step) };
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
        let (mut a, mut b) = (t.a, t.b);
        let third = 3 * a_row;
        macro_rules! step {
            () => {
                let mut bv = [_mm512_setzero_ps(); VECS];
                pair!(V < VECS, {
                    bv[V] = _mm512_loadu_ps(b.add(V * 16));
                });
                each!(I < ROWS, {
                    let av = _mm512_set1_ps(*a.add(I / 3 * third + I % 3 * a_row));
                    pair!(V < VECS, {
                        acc[I][V] = _mm512_fmadd_ps(av, bv[V], acc[I][V]);
                    });
                });
                a = a.wrapping_add(a_step);
                b = b.wrapping_add(t.b_step);
            };
        }
        for _ in 0..t.depth / 4 {
            step!();
            step!();
            step!();
            step!();
        }
        for _ in 0..t.depth % 4 {
            step!();
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
