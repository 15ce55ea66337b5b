//! Drawing one id from logits: penalties, biases, what is allowed, temperature, cuts, and the log
//! probabilities that a client may ask for.

use super::{BitMask, Logprob};
use danlu_core::Rng;
use std::collections::HashMap;

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    /// 0: always the likeliest.
    pub temperature: f32,
    /// Only the likeliest this many; 0: all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities sum to this; 1: all.
    pub top_p: f32,
    /// Only those at least this times as likely as the likeliest; 0: all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of what was said; 1: not at all.
    pub repetition_penalty: f32,
    /// Taken off the logit of everything that was said.
    pub presence_penalty: f32,
    /// Taken off for each time that it was said.
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the reply.
    pub seed: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// The state of drawing one reply.
#[derive(Debug)]
pub(super) struct Drawing {
    how: Sampler,
    rng: Rng,
    said: HashMap<u32, u32>,
}

impl Drawing {
    pub(super) fn new(how: Sampler) -> Self {
        let rng = Rng::new(how.seed, 0x0067_656e);
        Self { how, rng, said: HashMap::new() }
    }

    /// Draws an id among `allowed` (`None`: all). `logits` is changed. `None` if nothing is allowed.
    pub(super) fn draw(
        &mut self,
        logits: &mut [f32],
        allowed: Option<&BitMask>,
        top: Option<usize>,
    ) -> Option<(u32, Option<Logprob>)> {
        self.adjust(logits);
        let mut all: Vec<(u32, f32)> = match allowed {
            Some(mask) => mask.iter().map(|id| (id, logits[id as usize])).collect(),
            None => logits.iter().enumerate().map(|(id, &v)| (id as u32, v)).collect(),
        };
        let best = *all.iter().reduce(|a, b| if b.1 > a.1 { b } else { a })?;
        let logprobs = top.map(|n| {
            let sum: f32 = all.iter().map(|w| (w.1 - best.1).exp()).sum();
            (best.1 + sum.ln(), likeliest(&all, n))
        });
        let id = if self.how.temperature <= 0.0 { best.0 } else { self.pick(&mut all, best.1) };
        *self.said.entry(id).or_default() += 1;
        let logprob = logprobs.map(|(total, top)| Logprob {
            chosen: logits[id as usize] - total,
            top: top.into_iter().map(|(id, value)| (id, value - total)).collect(),
        });
        Some((id, logprob))
    }

    fn adjust(&self, logits: &mut [f32]) {
        let how = &self.how;
        for (&id, &times) in &self.said {
            let logit = &mut logits[id as usize];
            if how.repetition_penalty != 1.0 {
                *logit = match *logit > 0.0 {
                    true => *logit / how.repetition_penalty,
                    false => *logit * how.repetition_penalty,
                };
            }
            *logit -= how.presence_penalty + how.frequency_penalty * times as f32;
        }
        for &(id, bias) in &how.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    fn pick(&mut self, all: &mut Vec<(u32, f32)>, peak: f32) -> u32 {
        let how = &self.how;
        all.iter_mut().for_each(|w| w.1 = ((w.1 - peak) / how.temperature).exp());
        if how.min_p > 0.0 {
            // The likeliest has the weight 1, and always stays.
            all.retain(|w| w.1 >= how.min_p.min(1.0));
        }
        if how.top_k > 0 && how.top_k < all.len() {
            all.select_nth_unstable_by(how.top_k - 1, descending);
            all.truncate(how.top_k);
        }
        if how.top_p < 1.0 {
            all.sort_unstable_by(descending);
            let total: f32 = all.iter().map(|w| w.1).sum();
            let mut seen = 0.0;
            let keep = all.iter().position(|w| {
                seen += w.1;
                seen >= how.top_p * total
            });
            all.truncate(keep.map_or(all.len(), |k| k + 1));
        }
        // One order, whatever the cuts left, so that a seed repeats.
        all.sort_unstable_by_key(|w| w.0);
        let weights: Vec<f32> = all.iter().map(|w| w.1).collect();
        all[self.rng.weighted(&weights)].0
    }
}

fn descending(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `n` greatest, the best first.
fn likeliest(all: &[(u32, f32)], n: usize) -> Vec<(u32, f32)> {
    let mut all = all.to_vec();
    if n == 0 {
        return Vec::new();
    }
    if n < all.len() {
        all.select_nth_unstable_by(n - 1, descending);
        all.truncate(n);
    }
    all.sort_unstable_by(descending);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [5.0, 1.0, 3.0, 2.9, -1.0];

    fn drawn(how: Sampler, allowed: Option<&BitMask>) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..300)
            .map(|seed| {
                let mut drawing = Drawing::new(Sampler { seed, ..how.clone() });
                drawing.draw(&mut LOGITS.clone(), allowed, None).expect("something").0
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[test]
    fn cuts_biases_and_masks_hold() {
        let hot = Sampler { temperature: 5.0, ..Default::default() };
        assert_eq!(drawn(Sampler::default(), None), [0]);
        assert_eq!(drawn(hot.clone(), None), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(Sampler { top_k: 2, ..hot.clone() }, None), [0, 2]);
        assert_eq!(drawn(Sampler { top_p: 0.3, ..hot.clone() }, None), [0]);
        assert_eq!(drawn(Sampler { min_p: 0.6, ..hot.clone() }, None), [0, 2, 3]);
        let bias = vec![(0, -100.0), (4, 7.0), (99, 1.0)];
        assert_eq!(drawn(Sampler { logit_bias: bias, ..Default::default() }, None), [4]);
        let mut mask = BitMask::new(5);
        assert_eq!(Drawing::new(hot.clone()).draw(&mut LOGITS.clone(), Some(&mask), None), None);
        mask.insert_range(3..5);
        assert_eq!(drawn(hot, Some(&mask)), [3, 4]);
    }

    #[test]
    fn what_was_said_is_penalised() {
        let how = Sampler { presence_penalty: 1.0, frequency_penalty: 1.5, ..Default::default() };
        let mut drawing = Drawing::new(how);
        let ids: Vec<u32> = (0..3)
            .map(|_| drawing.draw(&mut LOGITS.clone(), None, None).expect("something").0)
            .collect();
        assert_eq!(ids, [0, 2, 3]);
        let mut drawing = Drawing::new(Sampler { repetition_penalty: 2.0, ..Default::default() });
        let ids = [(); 2].map(|()| drawing.draw(&mut LOGITS.clone(), None, None).expect("one").0);
        assert_eq!(ids, [0, 2]);
    }

    #[test]
    fn log_probabilities_are_of_what_is_allowed() {
        let mut mask = BitMask::new(5);
        mask.insert_range(1..4);
        let mut drawing = Drawing::new(Sampler::default());
        let (id, logprob) =
            drawing.draw(&mut LOGITS.clone(), Some(&mask), Some(2)).expect("something");
        let logprob = logprob.expect("asked for");
        assert_eq!((id, logprob.top.iter().map(|t| t.0).collect::<Vec<_>>()), (2, vec![2, 3]));
        let total = (1f32.exp() + 3f32.exp() + 2.9f32.exp()).ln();
        assert!((logprob.chosen - (3.0 - total)).abs() < 1e-5, "{logprob:?}");
    }
}
