//! Weights in few bits that make up for each other's errors: GPTQ (Frantar et al., arXiv
//! 2210.17323), with its columns in the order of how much they matter and the scales fixed before.
//!
//! With inputs `x`, the error of a row of weights `w` is `e H e^T`, where `e` is how far it is off and
//! `H` the sum of `x^T x`. One column after the other is rounded; what that costs is made up for by
//! those that are still to come, as far as `H` allows: by the factor `U` of its inverse (upper
//! triangular, `H^-1 = U^T U`), column `k` takes `-e_j / U_jj * U_jk`.

use super::WeightFormat;
use super::blocks::{self, BLOCK, Block};
use super::memory::Arena;
use super::weights::{Weights, put_blocks};

/// What is known of the inputs of a matrix.
#[derive(Debug, Clone)]
pub struct Feedback {
    /// Columns in the order in which they are rounded.
    pub order: Vec<u32>,
    /// `U` for the columns in that order: upper triangular, row-major `[columns, columns]`.
    pub factor: Vec<f32>,
    /// How much an error of each column matters by itself: the mean square of its inputs.
    pub squares: Vec<f32>,
}

impl Weights {
    /// Quantises `values`, row-major `[rows, cols]`, so that what each column loses is made up for
    /// by the next. Formats without blocks are rounded as they are.
    ///
    /// # Panics
    /// If the number of values does not fit the shape, or `feedback` is not of so many columns.
    pub fn with_feedback(
        values: &[f32],
        [rows, cols]: [usize; 2],
        format: WeightFormat,
        arena: &Arena,
        feedback: &Feedback,
    ) -> Self {
        assert_eq!(values.len(), rows * cols, "weights: values of a [{rows}, {cols}] matrix");
        let sizes = [feedback.order.len(), feedback.squares.len()];
        assert_eq!((sizes, feedback.factor.len()), ([cols; 2], cols * cols), "weights: feedback");
        if !format.is_quantised() {
            return Self::new(values, [rows, cols], format, arena);
        }
        Self::fill([rows, cols], format, arena, |row, in_tile, tile| {
            let row = &values[row * cols..][..cols];
            put_blocks(&round(row, format, feedback), format, in_tile, tile);
        })
    }
}

/// The whole numbers that a format has.
fn range(format: WeightFormat) -> [f32; 2] {
    match format {
        WeightFormat::Q8_0 => [-127.0, 127.0],
        _ => [0.0, 15.0],
    }
}

fn round(row: &[f32], format: WeightFormat, f: &Feedback) -> Vec<Block> {
    let cols = row.len();
    let mut blocks = blocks::quantise_for(row, &f.squares, format);
    let grids: Vec<[f32; 2]> = blocks.iter().map(|b| b.grid(format)).collect();
    let [low, high] = range(format);
    let mut left: Vec<f32> = f.order.iter().map(|&c| row[c as usize]).collect();
    for (j, &column) in f.order.iter().enumerate() {
        let column = column as usize;
        let [step, offset] = grids[column / BLOCK];
        let number = match step == 0.0 {
            true => (-offset).clamp(low, high).round_ties_even(),
            false => ((left[j] - offset) / step).round_ties_even().clamp(low, high),
        };
        blocks[column / BLOCK].numbers[column % BLOCK] = number as i8;
        let line = &f.factor[j * cols..][j..cols];
        let error = (left[j] - (number * step + offset)) / line[0];
        for (w, u) in left[j + 1..].iter_mut().zip(&line[1..]) {
            *w -= error * u;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing in common: the factor is the root of the inverse squares, and nothing is handed on.
    fn apart(cols: usize) -> Feedback {
        let mut factor = vec![0.0; cols * cols];
        factor.iter_mut().step_by(cols + 1).for_each(|v| *v = 1.0);
        Feedback { order: (0..cols as u32).rev().collect(), factor, squares: vec![1.0; cols] }
    }

    #[test]
    fn without_anything_in_common_it_is_rounding_to_the_nearest_of_the_same_scales() {
        // One column more than whole blocks.
        let (rows, cols) = (18, 65);
        let values: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 60.0).collect();
        let arena = Arena::default();
        for (name, format) in WeightFormat::ALL {
            let ours = Weights::with_feedback(&values, [rows, cols], format, &arena, &apart(cols));
            let nearest = Weights::new(&values, [rows, cols], format, &arena);
            let off = |w: &Weights| -> f64 {
                let back = w.values();
                back.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            let (a, b) = (off(&ours), off(&nearest));
            assert!(a <= 1.05 * b + 1e-9, "{name}: {a} against {b}");
        }
    }

    #[test]
    fn what_one_column_loses_the_other_takes() {
        // Two inputs that are always equal: only the sum of the two weights matters.
        let factor = vec![10.0, -9.9, 0.0, 0.1];
        let f = Feedback { order: vec![0, 1], factor, squares: vec![1.0; 2] };
        let values = [0.53, 0.0, 0.53, 0.7];
        let arena = Arena::default();
        let w = Weights::with_feedback(&values, [2, 2], WeightFormat::Q4_0, &arena, &f);
        for (got, wanted) in w.values().chunks(2).zip(values.chunks(2)) {
            let sum = |v: &[f32]| v[0] + v[1];
            assert!((sum(got) - sum(wanted)).abs() < 0.05, "{got:?} for {wanted:?}");
        }
    }
}
