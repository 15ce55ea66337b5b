use danlu_core::Rng;
use serde::{Deserialize, Serialize};

const RESAMPLES: usize = 2000;

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Mean and percentile-bootstrap 95 % interval of `values` (Efron 1979), 2000 resamples; the same
/// for the same values. All zeros for no values.
pub fn interval(values: &[f64]) -> Interval {
    let n = values.len();
    if n == 0 {
        return Interval { mean: 0.0, low: 0.0, high: 0.0 };
    }
    let mut rng = Rng::new(0x0b00_7577, 0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| (0..n).map(|_| values[rng.below(n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |part: f64| means[((RESAMPLES - 1) as f64 * part).round() as usize];
    Interval { mean: values.iter().sum::<f64>() / n as f64, low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_what_a_proportion_should() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 4 == 0)).collect();
        let i = interval(&values);
        assert_eq!(i.mean, 0.25);
        // The normal approximation: 0.25 +- 1.96 * sqrt(0.25 * 0.75 / 200).
        assert!((i.low - 0.19).abs() < 0.012 && (i.high - 0.31).abs() < 0.012, "{i:?}");
        assert_eq!(i, interval(&values));
    }

    #[test]
    fn few_values_do_not_panic() {
        assert_eq!(interval(&[]).high, 0.0);
        assert_eq!(interval(&[0.5]), Interval { mean: 0.5, low: 0.5, high: 0.5 });
    }
}
