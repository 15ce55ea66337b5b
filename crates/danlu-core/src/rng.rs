use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// 2^64 over the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Number `n` (from 1) of the SplitMix64 generator that starts at `seed` (Steele, Lea and Flood 2014).
pub fn split_mix(seed: u64, n: u64) -> u64 {
    let z = seed.wrapping_add(n.wrapping_mul(GOLDEN));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A random stream that is a pure function of its seed and its stream number.
///
/// Loaders draw sample `i` from `Rng::new(seed, i)`, so that what a run sees depends on the recipe
/// alone and a resumed run needs to remember one number.
#[derive(Debug, Clone)]
pub struct Rng {
    source: Pcg64Mcg,
    still: bool,
}

impl Rng {
    /// The stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        // Neighbouring streams start far apart.
        let start = seed ^ stream.wrapping_mul(GOLDEN);
        let mut bytes = [0u8; 16];
        for (n, half) in (1..).zip(bytes.chunks_mut(8)) {
            half.copy_from_slice(&split_mix(start, n).to_le_bytes());
        }
        Self { source: Pcg64Mcg::from_seed(bytes), still: false }
    }

    /// A stream for parameters that a file is about to fill: nothing need be drawn for them.
    pub fn still() -> Self {
        Self { still: true, ..Self::new(0, 0) }
    }

    /// Whether what would be drawn is to be zero instead.
    pub fn is_still(&self) -> bool {
        self.still
    }

    /// Uniform in `0..n`. `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "Rng::below(0)");
        ((self.source.next_u64() as u128 * n as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f32 {
        (self.source.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let u = 1.0 - self.unit() as f64;
        let v = self.unit() as f64;
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// An index drawn in proportion to `weights` (not all zero).
    pub fn weighted(&mut self, weights: &[f32]) -> usize {
        let total: f64 = weights.iter().map(|&w| w as f64).sum();
        let mut left = self.unit() as f64 * total;
        for (i, &w) in weights.iter().enumerate() {
            left -= w as f64;
            if left < 0.0 {
                return i;
            }
        }
        weights.iter().rposition(|&w| w > 0.0).unwrap_or(0)
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, stream| {
            let mut rng = Rng::new(seed, stream);
            [rng.below(1000), rng.below(1000), rng.below(1000)]
        };
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3), draw(7, 4));
        assert_ne!(draw(7, 3), draw(8, 3));
    }

    #[test]
    fn weighted_follows_the_weights_and_never_picks_zero() {
        let mut rng = Rng::new(1, 0);
        let mut counts = [0usize; 3];
        for _ in 0..4000 {
            counts[rng.weighted(&[1.0, 0.0, 3.0])] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn normal_has_unit_variance() {
        let mut rng = Rng::new(2, 0);
        let xs: Vec<f32> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = xs.iter().sum::<f32>() / xs.len() as f32;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / xs.len() as f32;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }
}
