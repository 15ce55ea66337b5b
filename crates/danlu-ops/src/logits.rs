//! One pass over the logits of a vocabulary, after which a token is drawn from few of them.

use crate::cpu;

/// Logits of a chunk.
const CHUNK: usize = 64;

/// The greatest logit of every chunk of 64 and, for a temperature, the chunk's sum of exponentials.
/// The memory is used again.
#[derive(Debug, Default)]
pub struct Scan {
    maxima: Vec<f32>,
    /// Sums of `e^((logit - the chunk's greatest) * over)`.
    masses: Vec<f32>,
    over: f32,
    peak: f32,
}

impl Scan {
    /// Goes over `logits`; `over` is 1 / temperature, or 0 if no sums are wanted. A logit of minus
    /// infinity is one that may not come.
    pub fn run(&mut self, logits: &[f32], over: f32) {
        let chunks = logits.len().div_ceil(CHUNK);
        self.maxima.resize(chunks, 0.0);
        self.masses.resize(chunks, 0.0);
        self.over = over;
        cpu::vectorised(
            #[inline(always)]
            || {
                for (c, part) in logits.chunks(CHUNK).enumerate() {
                    let mut lanes = [f32::NEG_INFINITY; CHUNK];
                    lanes[..part.len()].copy_from_slice(part);
                    self.maxima[c] = greatest(&lanes);
                    if over > 0.0 {
                        self.masses[c] = mass(&lanes, self.maxima[c], over);
                    }
                }
            },
        );
        self.peak = self.maxima.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    }

    /// The greatest logit.
    pub fn peak(&self) -> f32 {
        self.peak
    }

    /// The first id with the greatest logit; 0 if none may come.
    pub fn best(&self, logits: &[f32]) -> u32 {
        let Some(c) = self.maxima.iter().position(|&m| m == self.peak) else { return 0 };
        let part = &logits[c * CHUNK..logits.len().min((c + 1) * CHUNK)];
        (c * CHUNK + part.iter().position(|&l| l == self.peak).unwrap_or(0)) as u32
    }

    /// The sum of `e^((logit - peak) / temperature)` over all.
    pub fn total(&self) -> f32 {
        (0..self.maxima.len()).map(|c| self.share(c)).sum()
    }

    /// What a chunk adds to the total.
    fn share(&self, chunk: usize) -> f32 {
        if self.maxima[chunk] == f32::NEG_INFINITY {
            return 0.0;
        }
        self.masses[chunk] * cpu::exp((self.maxima[chunk] - self.peak) * self.over)
    }

    /// The id at which the running sum of exponentials passes `target`, which is below the total.
    pub fn at(&self, logits: &[f32], mut target: f32) -> u32 {
        let mut last = self.best(logits);
        for c in 0..self.maxima.len() {
            let share = self.share(c);
            if share == 0.0 {
                continue;
            }
            if target >= share {
                target -= share;
                continue;
            }
            for (i, &l) in logits[c * CHUNK..].iter().take(CHUNK).enumerate() {
                if l == f32::NEG_INFINITY {
                    continue;
                }
                last = (c * CHUNK + i) as u32;
                let e = cpu::exp((l - self.peak) * self.over);
                if target < e {
                    return last;
                }
                target -= e;
            }
            // Rounding: the chunk's last.
            return last;
        }
        last
    }

    /// Every id whose logit is at least `threshold`, with its logit. Chunks without one are not
    /// looked at.
    pub fn above(&self, logits: &[f32], threshold: f32) -> Vec<(u32, f32)> {
        let mut found = Vec::new();
        for (c, part) in logits.chunks(CHUNK).enumerate() {
            if self.maxima[c] < threshold {
                continue;
            }
            let all = part.iter().enumerate().filter(|(_, l)| **l >= threshold);
            found.extend(all.map(|(i, &l)| ((c * CHUNK + i) as u32, l)));
        }
        found
    }

    /// A logit that at least `count` ids reach, few more than that; the least one if there are not
    /// so many.
    pub fn reached_by(&self, count: usize) -> f32 {
        if count > self.maxima.len() {
            return f32::MIN;
        }
        let mut maxima = self.maxima.clone();
        // The greatest logits of `count` chunks are `count` logits.
        *maxima.select_nth_unstable_by(count.max(1) - 1, |a, b| b.total_cmp(a)).1
    }
}

#[inline(always)]
fn greatest(lanes: &[f32; CHUNK]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 16];
    for part in lanes.as_chunks::<16>().0 {
        for i in 0..16 {
            tops[i] = if part[i] > tops[i] { part[i] } else { tops[i] };
        }
    }
    tops.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

#[inline(always)]
fn mass(lanes: &[f32; CHUNK], top: f32, over: f32) -> f32 {
    if top == f32::NEG_INFINITY {
        return 0.0;
    }
    let mut sums = [0.0f32; 16];
    for part in lanes.as_chunks::<16>().0 {
        for i in 0..16 {
            let e = cpu::exp((part[i] - top) * over);
            sums[i] += if part[i] == f32::NEG_INFINITY { 0.0 } else { e };
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Vec<f32> {
        let mut all: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 997) as f32 * 0.01).collect();
        all[13] = f32::NEG_INFINITY;
        all[64..192].fill(f32::NEG_INFINITY);
        all
    }

    #[test]
    fn sums_and_ids_are_those_of_the_plain_definition() {
        let logits = logits();
        let mut scan = Scan::default();
        scan.run(&logits, 0.5);
        let top = logits.iter().fold(f32::MIN, |a, &b| a.max(b));
        assert_eq!(scan.peak(), top);
        assert_eq!(scan.best(&logits) as usize, logits.iter().position(|&l| l == top).expect("in"));
        let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l - top) * 0.5).exp()).collect();
        let total: f64 = weights.iter().sum();
        assert!((f64::from(scan.total()) / total - 1.0).abs() < 1e-5);
        let mut before = 0.0;
        for (i, &w) in weights.iter().enumerate() {
            if w > 0.0 {
                assert_eq!(scan.at(&logits, (before + 0.5 * w) as f32), i as u32);
            }
            before += w;
        }
        // Past the end by rounding: still one that may come.
        assert!(logits[scan.at(&logits, scan.total() * 1.1) as usize] > f32::NEG_INFINITY);
    }

    #[test]
    fn enough_are_above_and_none_below() {
        let logits = logits();
        let mut scan = Scan::default();
        scan.run(&logits, 0.0);
        for count in [1, 5, 12, 500] {
            let found = scan.above(&logits, scan.reached_by(count));
            assert!(found.len() >= count, "{} of {count}", found.len());
            let least = found.iter().fold(f32::MAX, |a, b| a.min(b.1));
            assert_eq!(found.len(), logits.iter().filter(|&&l| l >= least).count());
        }
    }
}
