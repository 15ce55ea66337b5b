//! Drawing a token from logits.

use danlu_core::Rng;
use std::ops::Range;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0: always the likeliest.
    pub temperature: f32,
    /// Only the likeliest this many; 0: all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities sum to this; 1: all.
    pub top_p: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0 }
    }
}

/// Draws an id among `allowed` (not empty).
pub fn sample(logits: &[f32], allowed: &[Range<u32>], how: &Sampling, rng: &mut Rng) -> u32 {
    let ids = || allowed.iter().cloned().flatten();
    let value = |id: u32| logits[id as usize];
    let best = ids()
        .reduce(|a, b| if value(b) > value(a) { b } else { a })
        .expect("the grammar allows something");
    if how.temperature <= 0.0 {
        return best;
    }
    let peak = value(best);
    let weight = |id: u32| ((value(id) - peak) / how.temperature).exp();
    let mut all: Vec<(u32, f32)> = ids().map(|id| (id, weight(id))).collect();
    if how.top_k > 0 && how.top_k < all.len() {
        all.select_nth_unstable_by(how.top_k - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(how.top_k);
    }
    if how.top_p < 1.0 {
        all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f32 = all.iter().map(|w| w.1).sum();
        let mut seen = 0.0;
        let keep = all.iter().position(|w| {
            seen += w.1;
            seen >= how.top_p * total
        });
        all.truncate(keep.map_or(all.len(), |k| k + 1));
    }
    let weights: Vec<f32> = all.iter().map(|w| w.1).collect();
    all[rng.weighted(&weights)].0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(how: Sampling) -> Vec<u32> {
        let logits = [5.0, 1.0, 3.0, 2.9, -1.0, 9.0];
        let mut rng = Rng::new(1, 2);
        let mut ids: Vec<u32> =
            (0..400).map(|_| sample(&logits, &[0..2, 2..5], &how, &mut rng)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[test]
    fn limits_hold_and_forbidden_ids_never_come() {
        assert_eq!(drawn(Sampling::default()), [0]);
        let hot = Sampling { temperature: 5.0, ..Default::default() };
        assert_eq!(drawn(hot), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..hot }), [0, 2]);
        assert_eq!(drawn(Sampling { top_p: 0.3, ..hot }), [0]);
    }
}
