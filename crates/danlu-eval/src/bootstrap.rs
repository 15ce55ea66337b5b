//! Confidence intervals by resampling.

use danlu_core::Rng;
use serde::{Deserialize, Serialize};

const RESAMPLES: usize = 1000;
const SEED: u64 = 0x00C0_FFEE;

/// A mean and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The mean of `values` and its percentile bootstrap interval (Efron 1979): 1,000 resamples from a
/// fixed seed, so that the same values give the same interval. All zero without values.
pub fn interval(values: &[f64]) -> Interval {
    ratio(&values.iter().map(|&v| (v, 1.0)).collect::<Vec<_>>())
}

/// The same of the sum of the firsts over that of the seconds: a rate of parts of unlike sizes, bits
/// a byte of texts say.
pub fn ratio(parts: &[(f64, f64)]) -> Interval {
    if parts.is_empty() {
        return Interval { mean: 0.0, low: 0.0, high: 0.0 };
    }
    let n = parts.len();
    let add = |sum: (f64, f64), &(a, b): &(f64, f64)| (sum.0 + a, sum.1 + b);
    let (a, b) = parts.iter().fold((0.0, 0.0), add);
    let mut rng = Rng::new(SEED, n as u64);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (a, b) = (0..n).fold((0.0, 0.0), |sum, _| add(sum, &parts[rng.below(n)]));
            a / b
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    Interval { mean: a / b, low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_the_width_that_theory_says() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 4 == 0)).collect();
        let found = interval(&values);
        assert_eq!(found.mean, 0.25);
        let half = 1.96 * (0.25 * 0.75 / 400.0f64).sqrt();
        assert!((found.low - (0.25 - half)).abs() < 0.01, "{found:?}");
        assert!((found.high - (0.25 + half)).abs() < 0.01, "{found:?}");
        assert_eq!(found, interval(&values));
    }

    #[test]
    fn large_parts_of_a_ratio_count_for_more() {
        let parts: Vec<(f64, f64)> =
            (0..50).map(|i| if i % 2 == 0 { (2.0, 1.0) } else { (9.0, 9.0) }).collect();
        let found = ratio(&parts);
        assert!((found.mean - 1.1).abs() < 1e-9, "{found:?}");
        assert!(1.0 < found.low && found.low < 1.1 && found.high < 1.3, "{found:?}");
    }

    #[test]
    fn one_value_or_none() {
        assert_eq!(interval(&[0.5]), Interval { mean: 0.5, low: 0.5, high: 0.5 });
        assert_eq!(interval(&[]).mean, 0.0);
    }
}
