//! The NEON micro-kernel: tiles of 6 rows by 16 columns, 24 accumulators of 4 lanes.

use super::{From, Kernel, Level, Tile};
use std::arch::aarch64::*;

const MR: usize = 6;
const NR: usize = 16;

pub(in super::super) static KERNEL: Kernel =
    Kernel { level: Level::Neon, mr: MR, nr: NR, lanes: NR, mc: 192, run };

/// Picks the variant for the tile's rows.
unsafe fn run(t: &Tile) {
    // SAFETY: the caller promises the instructions and the pointers.
    unsafe {
        match t.rows {
            1 => tile::<1>(t),
            2 => tile::<2>(t),
            3 => tile::<3>(t),
            4 => tile::<4>(t),
            5 => tile::<5>(t),
            6 => tile::<6>(t),
            _ => unreachable!("a tile has 1 to {MR} rows"),
        }
    }
}

#[target_feature(enable = "neon")]
unsafe fn tile<const ROWS: usize>(t: &Tile) {
    // SAFETY: all addresses are elements that the tile's description names; lanes past `cols` of
    // the packed right panel exist, and those of the result go to `edge` and no further.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); 4]; ROWS];
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.depth {
            let bv = [vld1q_f32(b), vld1q_f32(b.add(4)), vld1q_f32(b.add(8)), vld1q_f32(b.add(12))];
            for (i, line) in acc.iter_mut().enumerate() {
                let av = vld1q_dup_f32(a.add(i * t.a_row));
                for v in 0..4 {
                    line[v] = vfmaq_f32(line[v], av, bv[v]);
                }
            }
            a = a.wrapping_add(t.a_step);
            b = b.wrapping_add(t.b_step);
        }
        let mut edge = [0f32; NR];
        for (i, line) in acc.iter().enumerate() {
            for v in 0..4 {
                vst1q_f32(edge.as_mut_ptr().add(v * 4), line[v]);
            }
            for (j, &sum) in edge.iter().enumerate().take(t.cols) {
                let out = match t.from {
                    From::Nothing => sum,
                    From::Scaled(s) => s.mul_add(*t.src.add(i * t.src_row + j), sum),
                };
                t.c.add(i * t.c_row + j).write(out);
            }
        }
    }
}
