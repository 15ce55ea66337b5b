//! Scaled rotary angles: how a model reads further than it was first taught to.

use danlu_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// What the rotary frequencies of a model are divided by, pair by pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every frequency by the same (position interpolation, Chen et al., arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Low frequencies by `factor`, high ones not, those between in part (Llama 3.1).
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Turns over the original context under which a frequency is low.
        low: f32,
        /// Turns over the original context above which a frequency is high.
        high: f32,
        /// The context in tokens that was first taught.
        original: usize,
    },
    /// The same by a ramp over the pairs, and longer queries and keys (YaRN, Peng et al., arXiv
    /// 2309.00071).
    Yarn {
        /// Divisor of low frequencies.
        factor: f32,
        /// The context in tokens that was first taught.
        original: usize,
        /// Turns over the original context from which a frequency stays as it is.
        fast: f32,
        /// Turns over the original context under which it is divided by all of `factor`.
        slow: f32,
        /// Whether the ramp begins and ends at whole pairs.
        whole: bool,
        /// What cosines and sines are multiplied by.
        amplitude: f32,
    },
    /// A divisor for each pair (LongRoPE, Ding et al., arXiv 2402.13753).
    Pairs {
        /// The divisors, `[head_dim / 2]`.
        factors: Vec<f32>,
        /// What cosines and sines are multiplied by.
        amplitude: f32,
    },
}

impl RopeScaling {
    /// Refuses numbers that cannot work, by name.
    pub fn check(&self, head_dim: usize) -> Result<()> {
        let within = |name: &str, value: f32, least: f32, most: f32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let wanted = format!("{least:e} to {most:e}");
            Err(Error::parameter(format!("model.rope_scaling.{name}"), wanted, value))
        };
        let original = |tokens: usize| within("original context", tokens as f32, 1.0, 1e8);
        match self {
            Self::Linear { factor } => within("factor", *factor, 1e-3, 1e6),
            Self::Llama3 { factor, low, high, original: tokens } => {
                within("factor", *factor, 1e-3, 1e6)?;
                within("low_freq_factor", *low, 1e-6, 1e6)?;
                within("high_freq_factor", *high, *low, 1e6)?;
                original(*tokens)
            }
            Self::Yarn { factor, original: tokens, fast, slow, amplitude, .. } => {
                within("factor", *factor, 1e-3, 1e6)?;
                within("beta_slow", *slow, 1e-6, 1e6)?;
                within("beta_fast", *fast, *slow, 1e6)?;
                within("attention_factor", *amplitude, 1e-3, 1e3)?;
                original(*tokens)
            }
            Self::Pairs { factors, amplitude } => {
                if factors.len() != head_dim / 2 {
                    let wanted = format!("{} factors, one for each pair of a head", head_dim / 2);
                    return Err(Error::parameter("model.rope_scaling", wanted, factors.len()));
                }
                within("attention_factor", *amplitude, 1e-3, 1e3)?;
                factors.iter().try_for_each(|&factor| within("factor", factor, 1e-3, 1e6))
            }
        }
    }

    /// What the frequency of each pair of a head is divided by, `[head_dim / 2]`.
    pub fn divisors(&self, head_dim: usize, theta: f32) -> Vec<f64> {
        let half = head_dim / 2;
        let theta = f64::from(theta);
        match self {
            Self::Linear { factor } => vec![f64::from(*factor); half],
            Self::Llama3 { factor, low, high, original } => {
                let [factor, low, high] = [*factor, *low, *high].map(f64::from);
                let divisor = |i: usize| {
                    let wavelength = 2.0 * PI * theta.powf(i as f64 / half as f64);
                    let turns = *original as f64 / wavelength;
                    match () {
                        () if turns < low => factor,
                        () if turns > high || low == high => 1.0,
                        () => {
                            let kept = (turns - low) / (high - low);
                            1.0 / ((1.0 - kept) / factor + kept)
                        }
                    }
                };
                (0..half).map(divisor).collect()
            }
            Self::Yarn { factor, original, fast, slow, whole, .. } => {
                let pair = |turns: f32| {
                    let reach = *original as f64 / (f64::from(turns) * 2.0 * PI);
                    head_dim as f64 * reach.ln() / (2.0 * theta.ln())
                };
                let (mut from, mut to) = (pair(*fast), pair(*slow));
                if *whole {
                    (from, to) = (from.floor(), to.ceil());
                }
                (from, to) = (from.max(0.0), to.min(head_dim as f64 - 1.0));
                if from == to {
                    to += 0.001;
                }
                let divisor = |i: usize| {
                    let scaled = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                    1.0 / (scaled / f64::from(*factor) + 1.0 - scaled)
                };
                (0..half).map(divisor).collect()
            }
            Self::Pairs { factors, .. } => factors.iter().map(|&f| f64::from(f)).collect(),
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn amplitude(&self) -> f32 {
        match self {
            Self::Linear { .. } | Self::Llama3 { .. } => 1.0,
            Self::Yarn { amplitude, .. } | Self::Pairs { amplitude, .. } => *amplitude,
        }
    }

    /// The amplitude that YaRN gives to a factor.
    pub fn yarn_amplitude(factor: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
    }

    /// Llama 3.1's numbers, where divisors of pairs are what these make of `theta`.
    pub fn named(factors: &[f32], theta: f32) -> Self {
        let most = factors.iter().copied().fold(1.0, f32::max).round();
        let llama = Self::Llama3 { factor: most, low: 1.0, high: 4.0, original: 8192 };
        let made = llama.divisors(2 * factors.len(), theta);
        let same = made.iter().zip(factors).all(|(a, b)| (a - f64::from(*b)).abs() <= 1e-3 * a);
        if same { llama } else { Self::Pairs { factors: factors.into(), amplitude: 1.0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_frequencies_are_stretched_and_high_ones_are_not() {
        let llama = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original: 32_768,
            fast: 32.0,
            slow: 1.0,
            whole: true,
            amplitude: RopeScaling::yarn_amplitude(4.0),
        };
        for (scaling, most) in [(llama, 8.0), (yarn, 4.0)] {
            scaling.check(128).expect("numbers of real models");
            let all = scaling.divisors(128, 500_000.0);
            assert_eq!((all.len(), all[0]), (64, 1.0));
            assert!((all[63] - most).abs() < 1e-9, "{all:?}");
            assert!(all.windows(2).all(|w| w[0] <= w[1]), "{all:?}");
            assert!(all.iter().any(|&d| d > 1.01 && d < most - 0.01), "some lie between");
        }
    }

    #[test]
    fn factors_of_a_known_kind_are_named() {
        let llama = RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
        let mut factors: Vec<f32> =
            llama.divisors(64, 500_000.0).into_iter().map(|d| d as f32).collect();
        assert_eq!(RopeScaling::named(&factors, 500_000.0), llama);
        factors[20] *= 1.1;
        let other = RopeScaling::named(&factors, 500_000.0);
        assert_eq!(other, RopeScaling::Pairs { factors, amplitude: 1.0 });
    }

    #[test]
    fn numbers_that_cannot_work_are_refused_by_name() {
        for (scaling, wanted) in [
            (RopeScaling::Linear { factor: 0.0 }, "factor"),
            (RopeScaling::Linear { factor: f32::NAN }, "factor"),
            (
                RopeScaling::Llama3 { factor: 8.0, low: 4.0, high: 1.0, original: 8192 },
                "high_freq_factor",
            ),
            (
                RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 0 },
                "original context",
            ),
            (RopeScaling::Pairs { factors: vec![1.0; 3], amplitude: 1.0 }, "4 factors"),
        ] {
            let error = scaling.check(8).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
