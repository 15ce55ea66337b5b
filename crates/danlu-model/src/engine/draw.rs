//! Drawing a token from logits, which are gone over once.

use super::job::{BitMask, Logprob, Sampler};
use danlu_core::Rng;
use danlu_ops::Scan;
use std::collections::HashMap;

/// The state of drawing one reply.
#[derive(Debug)]
pub(super) struct Drawing {
    rng: Rng,
    /// How often each id was said in the reply, and whether it stood in the prompt.
    said: HashMap<u32, u32>,
    logprobs: Option<usize>,
}

impl Drawing {
    pub(super) fn new(how: &Sampler, prompt: &[u32], logprobs: Option<usize>) -> Self {
        let mut said = HashMap::new();
        if how.repetition_penalty != 1.0 {
            said.extend(prompt.iter().map(|&id| (id, 0)));
        }
        Self { rng: Rng::new(how.seed, 0x0067_656e), said, logprobs }
    }

    /// Draws an id, and takes note of it. `logits` are changed; `scan` is memory.
    pub(super) fn draw(
        &mut self,
        how: &Sampler,
        logits: &mut [f32],
        mask: Option<&BitMask>,
        scan: &mut Scan,
    ) -> (u32, Option<Logprob>) {
        let before = self.logprobs.map(|n| likeliest(logits, n, scan));
        // What the model said of the ids whose logits are changed here.
        let mut changed: HashMap<u32, f32> = HashMap::new();
        let edit = |id: u32,
                    change: &dyn Fn(f32) -> f32,
                    logits: &mut [f32],
                    changed: &mut HashMap<u32, f32>| {
            if let Some(logit) = logits.get_mut(id as usize) {
                changed.entry(id).or_insert(*logit);
                *logit = change(*logit);
            }
        };
        let penalised = how.repetition_penalty != 1.0
            || how.presence_penalty != 0.0
            || how.frequency_penalty != 0.0;
        if penalised {
            for (&id, &times) in &self.said {
                let change = |logit: f32| {
                    let rate = how.repetition_penalty;
                    let logit = if logit > 0.0 { logit / rate } else { logit * rate };
                    let present = if times > 0 { how.presence_penalty } else { 0.0 };
                    logit - present - how.frequency_penalty * times as f32
                };
                edit(id, &change, logits, &mut changed);
            }
        }
        for &(id, bias) in &how.logit_bias {
            edit(id, &|logit| logit + bias, logits, &mut changed);
        }
        let original = |id: u32, logits: &[f32]| {
            changed.get(&id).copied().unwrap_or_else(|| logits[id as usize])
        };
        if let Some(mask) = mask {
            mask.apply(logits);
        }
        let id = pick(how, logits, scan, &mut self.rng);
        *self.said.entry(id).or_default() += 1;
        let logprob =
            before.map(|(total, top)| Logprob { chosen: original(id, logits) - total, top });
        (id, logprob)
    }
}

/// What is taken off logits to make them logarithms of probabilities, and those of the `n` likeliest ids.
fn likeliest(logits: &[f32], n: usize, scan: &mut Scan) -> (f32, Vec<(u32, f32)>) {
    scan.run(logits, 1.0);
    let log_total = scan.peak() + scan.total().ln();
    let mut top = scan.above(logits, scan.reached_by(n.max(1)));
    best_first(&mut top);
    top.truncate(n);
    top.iter_mut().for_each(|(_, l)| *l -= log_total);
    (log_total, top)
}

/// The log probability of an id that stands after what `logits` came from, and those of the `n` likeliest.
pub(super) fn score(id: u32, logits: &[f32], n: usize, scan: &mut Scan) -> Logprob {
    let (log_total, top) = likeliest(logits, n, scan);
    Logprob { chosen: logits[id as usize] - log_total, top }
}

/// The greatest logit first; among equals the smallest id.
fn best_first(all: &mut [(u32, f32)]) {
    all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// Temperatures below which the likeliest is drawn: what they divide by them is no number any more.
const COLD: f32 = 1e-6;

fn pick(how: &Sampler, logits: &[f32], scan: &mut Scan, rng: &mut Rng) -> u32 {
    if how.temperature < COLD {
        scan.run(logits, 0.0);
        return scan.best(logits);
    }
    let over = 1.0 / how.temperature;
    scan.run(logits, over);
    let cut = how.top_k > 0 && how.top_k < logits.len() || how.top_p < 1.0 || how.min_p > 0.0;
    if !cut {
        return scan.at(logits, rng.unit() * scan.total());
    }
    let peak = scan.peak();
    let weight = |logit: f32| ((logit - peak) * over).exp();
    let mut all;
    let total: f32;
    if how.top_k > 0 {
        all = scan.above(logits, scan.reached_by(how.top_k));
        best_first(&mut all);
        all.truncate(how.top_k);
        total = all.iter().map(|c| weight(c.1)).sum();
    } else if how.top_p < 1.0 {
        total = scan.total();
        let mut count = 16;
        loop {
            let least = scan.reached_by(count);
            all = scan.above(logits, least);
            let sum: f32 = all.iter().map(|c| weight(c.1)).sum();
            if least == f32::MIN || sum >= how.top_p * total {
                break;
            }
            count *= 4;
        }
        best_first(&mut all);
    } else {
        all = scan.above(logits, peak + how.temperature * how.min_p.ln());
        best_first(&mut all);
        total = 0.0;
    }
    if how.top_p < 1.0 {
        let mut seen = 0.0;
        let keep = all.iter().position(|c| {
            seen += weight(c.1);
            seen >= how.top_p * total
        });
        all.truncate(keep.map_or(all.len(), |k| k + 1));
    }
    if how.min_p > 0.0 {
        let keep = all.iter().take_while(|c| weight(c.1) >= how.min_p * 0.999_999).count();
        all.truncate(keep.max(1));
    }
    let weights: Vec<f32> = all.iter().map(|c| weight(c.1)).collect();
    all[rng.weighted(&weights)].0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [5.0, 1.0, 3.0, 2.9, -1.0, 9.0];

    fn drawn(how: &Sampler) -> Vec<u32> {
        let mut mask = BitMask::new(6);
        mask.insert_range(0..5);
        let mut drawing = Drawing::new(how, &[], None);
        let mut scan = Scan::default();
        let mut ids: Vec<u32> = (0..400)
            .map(|_| drawing.draw(how, &mut LOGITS.clone(), Some(&mask), &mut scan).0)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[test]
    fn limits_hold_and_forbidden_ids_never_come() {
        assert_eq!(drawn(&Sampler::default()), [0]);
        for temperature in [1e-40, 1e-20, 1e-5] {
            let cold = Sampler { temperature, ..Default::default() };
            assert_eq!(drawn(&cold), [0]);
            assert_eq!(drawn(&Sampler { top_p: 0.9, min_p: 0.1, ..cold }), [0]);
        }
        let hot = Sampler { temperature: 5.0, ..Default::default() };
        assert_eq!(drawn(&hot), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(&Sampler { top_k: 2, ..hot.clone() }), [0, 2]);
        assert_eq!(drawn(&Sampler { top_p: 0.3, ..hot.clone() }), [0]);
        assert_eq!(drawn(&Sampler { min_p: 0.6, ..hot.clone() }), [0, 2, 3]);
        assert_eq!(drawn(&Sampler { top_k: 3, top_p: 0.6, ..hot.clone() }), [0, 2]);
        assert_eq!(drawn(&Sampler { top_k: 100, ..hot }), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn how_often_an_id_comes_is_its_probability() {
        let logits: Vec<f32> = (0..200).map(|i| (i % 5) as f32 - (i / 64) as f32).collect();
        let how = Sampler { temperature: 1.5, ..Default::default() };
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l / 1.5).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (mut drawing, mut scan) = (Drawing::new(&how, &[], None), Scan::default());
        let mut counts = [0.0; 200];
        let n = 40_000;
        for _ in 0..n {
            counts[drawing.draw(&how, &mut logits.clone(), None, &mut scan).0 as usize] += 1.0;
        }
        for (i, (count, w)) in counts.iter().zip(&weights).enumerate() {
            let p = w / total;
            let bound = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
            assert!((count / n as f64 - p).abs() < bound, "id {i}: {count} of {n}, wanted {p}");
        }
    }

    #[test]
    fn penalties_and_biases_move_what_they_name() {
        let mut scan = Scan::default();
        let mut first_three = |how: &Sampler, prompt: &[u32]| {
            let mut drawing = Drawing::new(how, prompt, None);
            [(); 3].map(|()| drawing.draw(how, &mut LOGITS.clone(), None, &mut scan).0)
        };
        let plain = Sampler::default();
        assert_eq!(first_three(&plain, &[]), [5, 5, 5]);
        let biased = Sampler { logit_bias: vec![(4, 100.0), (99, 1.0)], ..plain.clone() };
        assert_eq!(first_three(&biased, &[]), [4, 4, 4]);
        let present = Sampler { presence_penalty: 5.0, ..plain.clone() };
        assert_eq!(first_three(&present, &[]), [5, 0, 5]);
        let often = Sampler { frequency_penalty: 2.5, ..plain.clone() };
        assert_eq!(first_three(&often, &[]), [5, 5, 0]);
        let repeated = Sampler { repetition_penalty: 2.0, ..plain };
        assert_eq!(first_three(&repeated, &[5]), [0, 5, 5]);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let how = Sampler { logit_bias: vec![(1, 50.0)], ..Default::default() };
        let mut drawing = Drawing::new(&how, &[], Some(2));
        let (id, logprob) = drawing.draw(&how, &mut LOGITS.clone(), None, &mut Scan::default());
        let logprob = logprob.expect("asked for");
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum::<f32>().ln();
        assert_eq!(id, 1);
        assert!((logprob.chosen - (1.0 - total)).abs() < 1e-5);
        assert_eq!(logprob.top.iter().map(|t| t.0).collect::<Vec<_>>(), [5, 0]);
        assert!((logprob.top[1].1 - (5.0 - total)).abs() < 1e-5);
    }
}
