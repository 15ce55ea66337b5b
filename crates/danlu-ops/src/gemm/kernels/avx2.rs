//! The AVX2 and FMA micro-kernel: tiles of 6 rows by 16 columns, 12 accumulators of 8 lanes.

use super::{From, Kernel, Level, Tile};
use std::arch::x86_64::*;

const MR: usize = 6;
const NR: usize = 16;

pub(in super::super) static KERNEL: Kernel =
    Kernel { level: Level::Avx2, mr: MR, nr: NR, lanes: 8, mc: 192, run };

/// Picks the variant for the tile's rows, vectors per row and layout of the left operand.
unsafe fn run(t: &Tile) {
    macro_rules! pick {
        ($($r:literal)*) => {
            match (t.rows, t.cols > 8, t.a_row == 1 && t.a_step == MR) {
                $(($r, true, true) => tile::<$r, 2, true>,
                ($r, false, true) => tile::<$r, 1, true>,
                ($r, true, false) => tile::<$r, 2, false>,
                ($r, false, false) => tile::<$r, 1, false>,)*
                _ => unreachable!("a tile has 1 to {MR} rows"),
            }
        };
    }
    let tile: unsafe fn(&Tile) = pick!(1 2 3 4 5 6);
    // SAFETY: the caller promises the instructions and the pointers.
    unsafe { tile(t) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const ROWS: usize, const VECS: usize, const PACKED: bool>(t: &Tile) {
    let (a_row, a_step) = if PACKED { (1, MR) } else { (t.a_row, t.a_step) };
    // SAFETY: all addresses are elements that the tile's description names; lanes past `cols` of
    // the packed right panel exist, and those of the result go to `edge` and no further.
    unsafe {
        each!(I < ROWS, {
            // The result is needed only after the loop: asking for it now hides the memory's delay.
            let c = t.c.wrapping_add(I * t.c_row);
            _mm_prefetch::<_MM_HINT_T0>(c.cast());
        });
        let mut acc = [[_mm256_setzero_ps(); VECS]; ROWS];
        let (mut a, mut b) = (t.a, t.b);
        let (mut next, next_step) = (t.next.cast::<u8>(), t.next_step);
        let third = 3 * a_row;
        macro_rules! step {
            () => {
                let mut bv = [_mm256_setzero_ps(); VECS];
                pair!(V < VECS, {
                    bv[V] = _mm256_loadu_ps(b.add(V * 8));
                });
                each!(I < ROWS, {
                    let av = _mm256_set1_ps(*a.add(I / 3 * third + I % 3 * a_row));
                    pair!(V < VECS, {
                        acc[I][V] = _mm256_fmadd_ps(av, bv[V], acc[I][V]);
                    });
                });
                a = a.wrapping_add(a_step);
                b = b.wrapping_add(t.b_step);
            };
        }
        for _ in 0..t.depth / 4 {
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            next = next.wrapping_add(next_step);
            step!();
            step!();
            step!();
            step!();
        }
        for _ in 0..t.depth % 4 {
            step!();
        }
        if t.cols == VECS * 8 {
            each!(I < ROWS, {
                pair!(V < VECS, {
                    let out = match t.from {
                        From::Nothing => acc[I][V],
                        From::Scaled(s) => {
                            let old = _mm256_loadu_ps(t.src.add(I * t.src_row + V * 8));
                            _mm256_fmadd_ps(_mm256_set1_ps(s), old, acc[I][V])
                        }
                    };
                    _mm256_storeu_ps(t.c.add(I * t.c_row + V * 8), out);
                });
            });
        } else {
            // Masked stores are slow on several processors, so an edge goes through the stack.
            let mut edge = [[0f32; NR]; ROWS];
            each!(I < ROWS, {
                pair!(V < VECS, {
                    _mm256_storeu_ps(edge[I].as_mut_ptr().add(V * 8), acc[I][V]);
                });
            });
            for (i, line) in edge.iter().enumerate() {
                for (j, &sum) in line.iter().enumerate().take(t.cols) {
                    let out = match t.from {
                        From::Nothing => sum,
                        From::Scaled(s) => s.mul_add(*t.src.add(i * t.src_row + j), sum),
                    };
                    t.c.add(i * t.c_row + j).write(out);
                }
            }
        }
    }
}
