//! Low-rank additions to a product, for some of its rows: adapters beside quantised weights.

use super::rows::Activations;
use crate::cpu::{self, Shared};
use crate::team::Team;
use std::ops::Range;

/// `scale * b a` for some outputs of a projection.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// `[rank, inputs]`, row-major.
    pub a: Vec<f32>,
    /// `[outputs, rank]`, row-major.
    pub b: Vec<f32>,
    /// Inner dimensions.
    pub rank: usize,
    /// The outputs of the projection that it is for.
    pub outputs: Range<usize>,
    /// What `b a` is multiplied by.
    pub scale: f32,
}

/// Adds `scale * (x a^T) b^T` to the rows `rows` of `out`, which has `width` columns, in single
/// precision.
///
/// # Panics
/// If shapes do not fit.
pub fn add_low_rank(
    team: &Team,
    x: &Activations,
    rows: Range<usize>,
    lora: &LowRank,
    out: &mut [f32],
    width: usize,
) {
    let (cols, rank) = (x.cols(), lora.rank);
    assert!(rows.end <= x.rows() && out.len() == x.rows() * width, "low rank: rows");
    assert!(lora.outputs.end <= width, "low rank: outputs {:?} of {width}", lora.outputs);
    assert_eq!(lora.a.len(), rank * cols, "low rank: size of a");
    assert_eq!(lora.b.len(), rank * lora.outputs.len(), "low rank: size of b");
    let values = x.values();
    let shared = Shared::new(out);
    let first = rows.start;
    team.each(rows.len(), |i| {
        let row = first + i;
        let x = &values[row * cols..][..cols];
        // SAFETY: each task has a row of its own.
        let out = unsafe { shared.part(row * width + lora.outputs.start, lora.outputs.len()) };
        cpu::vectorised(
            #[inline(always)]
            || {
                let inner: Vec<f32> =
                    lora.a.chunks_exact(cols.max(1)).map(|a| lora.scale * cpu::dot(x, a)).collect();
                for (out, b) in out.iter_mut().zip(lora.b.chunks_exact(rank.max(1))) {
                    *out += cpu::dot(&inner, b);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::WeightFormat;

    #[test]
    fn only_the_named_rows_and_outputs_get_the_product() {
        let (cols, rank, width) = (40, 3, 9);
        let number = |i: usize, m: usize| (i * 13 % m) as f32 / m as f32 - 0.4;
        let x: Vec<f32> = (0..4 * cols).map(|i| number(i, 17)).collect();
        let lora = LowRank {
            a: (0..rank * cols).map(|i| number(i, 11)).collect(),
            b: (0..5 * rank).map(|i| number(i, 7)).collect(),
            rank,
            outputs: 2..7,
            scale: 0.5,
        };
        let team = Team::new(2);
        let mut act = Activations::default();
        act.take(&team, &x, cols, WeightFormat::Q8_0);
        let mut out = vec![1.0; 4 * width];
        add_low_rank(&team, &act, 1..3, &lora, &mut out, width);
        for (i, got) in out.iter().enumerate() {
            let (row, col) = (i / width, i % width);
            let mut want = 1.0;
            if (1..3).contains(&row) && (2..7).contains(&col) {
                for r in 0..rank {
                    let inner: f32 =
                        (0..cols).map(|k| x[row * cols + k] * lora.a[r * cols + k]).sum();
                    want += 0.5 * inner * lora.b[(col - 2) * rank + r];
                }
            }
            assert!((got - want).abs() < 1e-5, "{row}, {col}: {got} against {want}");
        }
    }
}
