//! What a projection's inputs have in common, as rounding with [`Feedback`] wants it.

use super::gram::Gram;
use danlu_ops::quant::Feedback;
use rayon::prelude::*;

/// What is added to the diagonal, as a share of its mean (1 %, as in the paper).
const DAMP: f64 = 0.01;

/// For inputs of which `gram` tells: columns whose inputs are large come first, for the others can
/// still make up for them. Otherwise says what is not finite.
pub(super) fn feedback(gram: Gram) -> Result<Feedback, String> {
    let n = gram.size;
    let diagonal: Vec<f64> = gram.diagonal().collect();
    let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
    if !mean.is_finite() {
        return Err(format!("inputs whose squares come to {mean}"));
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
    let mut values = vec![0.0; n * n];
    for (row, &a) in values.chunks_exact_mut(n).zip(&order) {
        for (v, &b) in row.iter_mut().zip(&order) {
            *v = gram.values[a * n + b];
        }
    }
    // What never comes in still has a weight, of which nothing is known.
    let squares = diagonal.iter().map(|d| (d / mean.max(1e-30)).max(1e-6) as f32).collect();
    let factor = factor(Gram { size: n, values })?;
    Ok(Feedback { order: order.into_iter().map(|c| c as u32).collect(), factor, squares })
}

/// `U`, upper triangular and row-major, with `(H + damping)^-1 = U^T U`. Otherwise says what is not
/// finite.
///
/// From the last row and column to the first, `H = V V^T` with `V` upper triangular; then `U` is the
/// inverse of `V`. Turned round, these are the lower factor and its inverse.
fn factor(mut gram: Gram) -> Result<Vec<f32>, String> {
    let n = gram.size;
    let mean = gram.diagonal().sum::<f64>() / n as f64;
    if !mean.is_finite() {
        return Err(format!("inputs whose squares come to {mean}"));
    }
    // An input that is always zero has no say; whatever its weights are, they are right.
    let damp = if mean > 0.0 { DAMP * mean } else { 1.0 };
    for i in 0..n {
        gram.values[i * n + i] += damp;
    }
    let turned = |i: usize, j: usize| gram.values[(n - 1 - i) * n + n - 1 - j];
    let mut lower = vec![0.0f64; n * n];
    for (i, row) in lower.chunks_exact_mut(n).enumerate() {
        for (j, v) in row[..=i].iter_mut().enumerate() {
            *v = turned(i, j);
        }
    }
    for j in 0..n {
        let (above, below) = lower.split_at_mut((j + 1) * n);
        let pivot = &mut above[j * n..];
        let square = pivot[j] - dot(&pivot[..j], &pivot[..j]);
        // What rounding errors took below zero is as good as nothing.
        pivot[j] = square.max(1e-12 * damp).sqrt();
        let pivot = &above[j * n..];
        let each = |row: &mut [f64]| row[j] = (row[j] - dot(&row[..j], &pivot[..j])) / pivot[j];
        if (n - j) * j > 1 << 14 {
            below.par_chunks_mut(n).with_min_len(16).for_each(each);
        } else {
            below.chunks_mut(n).for_each(each);
        }
    }
    // Row `j` of `inverse` is column `j` of the lower factor's inverse.
    let mut inverse = vec![0.0f64; n * n];
    inverse.par_chunks_mut(n).enumerate().for_each(|(j, column)| {
        column[j] = 1.0 / lower[j * n + j];
        for i in j + 1..n {
            let row = &lower[i * n..];
            column[i] = -dot(&row[j..i], &column[j..i]) / row[i];
        }
    });
    let mut out = vec![0.0f32; n * n];
    out.par_chunks_mut(n).enumerate().for_each(|(a, out)| {
        for (b, out) in out.iter_mut().enumerate().skip(a) {
            *out = inverse[(n - 1 - b) * n + n - 1 - a] as f32;
        }
    });
    match out.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(format!("inputs that are not finite at column {}", i / n)),
        None => Ok(out),
    }
}

/// Four sums at a time, which compilers make vectors of.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use danlu_core::Rng;
    use danlu_ops::quant::{Arena, WeightFormat, Weights};

    /// Inputs that have something in common, as those of a layer do.
    fn inputs(rows: usize, size: usize) -> Vec<f32> {
        let mut rng = Rng::new(7, 1);
        let mut out = Vec::with_capacity(rows * size);
        for _ in 0..rows {
            let common = rng.normal();
            out.extend((0..size).map(|i| rng.normal() * 0.5 + common * (1.0 + (i % 3) as f32)));
        }
        out
    }

    fn gram(x: &[f32], size: usize) -> Gram {
        let mut gram = Gram::new(size);
        let data = TensorData::new(x.to_vec(), [x.len() / size, size]);
        gram.add(&burn::tensor::Tensor::from_data(data, &danlu_ops::cpu_device()));
        gram
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let (n, x) = (48, inputs(200, 48));
        let gram = gram(&x, n);
        let damp = DAMP * gram.diagonal().sum::<f64>() / n as f64;
        let u = factor(gram.clone()).expect("finite");
        // U H U^T is one.
        for a in 0..n {
            assert!(u[a * n..][..a].iter().all(|&v| v == 0.0));
            for b in 0..n {
                let mut sum = 0.0;
                for i in 0..n {
                    for j in 0..n {
                        let h = gram.values[i * n + j] + if i == j { damp } else { 0.0 };
                        sum += f64::from(u[a * n + i]) * h * f64::from(u[b * n + j]);
                    }
                }
                let wanted = if a == b { 1.0 } else { 0.0 };
                assert!((sum - wanted).abs() < 1e-3, "[{a}, {b}]: {sum}");
            }
        }
    }

    #[test]
    fn errors_that_matter_are_smaller_than_those_of_rounding_to_the_nearest() {
        let (rows, n, x) = (24, 96, inputs(400, 96));
        let mut rng = Rng::new(3, 3);
        let w: Vec<f32> = (0..rows * n).map(|_| rng.normal() * 0.1).collect();
        let off = |weights: &Weights| -> f64 {
            let back = weights.values();
            let pairs = w.chunks_exact(n).zip(back.chunks_exact(n));
            let of = |(w, b): (&[f32], &[f32]), x: &[f32]| -> f64 {
                let sum: f32 = w.iter().zip(b).zip(x).map(|((w, b), x)| (w - b) * x).sum();
                f64::from(sum).powi(2)
            };
            pairs.map(|p| x.chunks_exact(n).map(|x| of(p, x)).sum::<f64>()).sum()
        };
        let arena = Arena::default();
        let feedback = feedback(gram(&x, n)).expect("finite");
        for format in [WeightFormat::Q4_0, WeightFormat::Q4K, WeightFormat::Q8_0] {
            let nearest = off(&Weights::new(&w, [rows, n], format, &arena));
            let ours = off(&Weights::with_feedback(&w, [rows, n], format, &arena, &feedback));
            assert!(ours < 0.7 * nearest, "{format:?}: {ours} against {nearest}");
        }
    }

    #[test]
    fn what_is_not_finite_is_told_and_dead_inputs_do_no_harm() {
        let n = 64;
        let mut x = inputs(100, n);
        x.chunks_exact_mut(n).for_each(|x| x[5] = 0.0);
        let f = feedback(gram(&x, n)).expect("finite");
        assert_eq!(f.order[n - 1], 5, "what never comes in is last");
        let made = Weights::with_feedback(
            &vec![0.25; 2 * n],
            [2, n],
            WeightFormat::Q4_0,
            &Arena::default(),
            &f,
        );
        assert!(made.values().iter().all(|v| (v - 0.25).abs() < 0.02));
        x[70] = f32::NAN;
        assert!(feedback(gram(&x, n)).expect_err("NaN").contains("NaN"));
    }
}
