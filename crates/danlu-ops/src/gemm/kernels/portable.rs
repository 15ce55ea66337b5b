//! The micro-kernel in plain Rust, for processors without a kernel of their own: 4 by 8 tiles.

use super::{From, Kernel, Level, Tile};

const MR: usize = 4;
const NR: usize = 8;

pub(in super::super) static KERNEL: Kernel =
    Kernel { level: Level::Portable, mr: MR, nr: NR, lanes: NR, mc: 128, run };

/// Always sums a full tile, with absent rows read from the last one, and stores what is asked for.
unsafe fn run(t: &Tile) {
    // SAFETY: all addresses are elements that the tile's description names.
    unsafe {
        let mut acc = [[0f32; NR]; MR];
        let rows: [usize; MR] = std::array::from_fn(|i| i.min(t.rows - 1) * t.a_row);
        for p in 0..t.depth {
            let b = &*t.b.add(p * t.b_step).cast::<[f32; NR]>();
            for (line, row) in acc.iter_mut().zip(rows) {
                let av = *t.a.add(row + p * t.a_step);
                for (sum, &bv) in line.iter_mut().zip(b) {
                    // Not `mul_add`: without the instruction that is a call for each element.
                    *sum += av * bv;
                }
            }
        }
        for (i, line) in acc.iter().enumerate().take(t.rows) {
            for (j, &sum) in line.iter().enumerate().take(t.cols) {
                let out = match t.from {
                    From::Nothing => sum,
                    From::Scaled(s) => s * *t.src.add(i * t.src_row + j) + sum,
                };
                t.c.add(i * t.c_row + j).write(out);
            }
        }
    }
}
