//! What adapters make of the projections of some sequences of a pass, while others have the base's:
//! low-rank additions, and lengths that were learnt for the rows of the sum (DoRA).

use super::decoder::Projection;
use crate::arch::Transformer;
use crate::layers::{Linear, Lora};
use danlu_core::{Error, Result};
use danlu_ops::Team;
use danlu_ops::quant::{Activations, Into, LowRank, add_low_rank};
use std::ops::Range;

/// What the adapters of one projection make of it.
#[derive(Debug)]
struct Change {
    added: Vec<LowRank>,
    /// What each output is multiplied by after that, without its bias.
    gains: Option<Vec<f32>>,
}

impl Change {
    fn new(linear: &Linear) -> Self {
        let plain = |lora: &Lora| LowRank {
            a: lora.a.values(),
            b: lora.b.values(),
            rank: lora.rank(),
            outputs: lora.rows.clone(),
            scale: lora.scale,
        };
        Self {
            added: linear.adapters.iter().map(plain).collect(),
            gains: Lora::gains(&linear.adapters, &linear.weight),
        }
    }
}

/// Changes to every layer's projections (query-key-value, output, gate-up, down; without those of
/// experts, which have none), which some sequences of a pass have and others not.
#[derive(Debug)]
pub(super) struct Additions(Vec<Vec<Change>>);

impl Additions {
    /// What the adapters attached to `adapted` change. The lengths of its rows, where they count,
    /// are computed here once, of the weights as `adapted` keeps them.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn new(name: &str, adapted: &Transformer) -> Result<Self> {
        let changes: Vec<Vec<Change>> = adapted
            .blocks
            .iter()
            .map(|b| b.linears().into_iter().take(4).map(Change::new).collect())
            .collect();
        if changes.iter().flatten().all(|c| c.added.is_empty()) {
            let what = format!("adapter `{name}`");
            return Err(Error::parameter(what, "a model with adapters attached", "none"));
        }
        Ok(Self(changes))
    }
}

/// Rows of a pass that have additions.
pub(super) type Adapted<'a> = (Range<usize>, &'a Additions);

/// The adapters of a pass.
pub(super) struct Beside<'a> {
    /// Who has which.
    pub(super) adapted: &'a [Adapted<'a>],
    /// Memory that passes use again.
    pub(super) aside: &'a mut Vec<f32>,
}

impl Beside<'_> {
    /// Projection `which` of layer `layer`, of `x` into `out`, with what the adapters of some rows
    /// make of it.
    pub(super) fn run(
        &mut self,
        team: &Team,
        projection: &Projection,
        [layer, which]: [usize; 2],
        x: &Activations,
        out: &mut [f32],
        into: Into,
    ) {
        let width = out.len() / x.rows().max(1);
        let changes = self.adapted.iter().map(|(rows, all)| (rows, &all.0[layer][which]));
        let (aside, adds) = (&mut *self.aside, into == Into::Add);
        aside.clear();
        if adds {
            // A gain is for the projection, not for what it is added to: that waits aside.
            for (rows, _) in changes.clone().filter(|(_, change)| change.gains.is_some()) {
                let out = &mut out[rows.start * width..rows.end * width];
                aside.extend_from_slice(out);
                out.fill(0.0);
            }
        }
        projection.run(team, x, out, into);
        let mut waiting = aside.chunks_exact(width.max(1));
        for (rows, change) in changes {
            for lora in &change.added {
                add_low_rank(team, x, rows.clone(), lora, out, width);
            }
            let Some(gains) = &change.gains else { continue };
            for row in out[rows.start * width..rows.end * width].chunks_exact_mut(width) {
                scale(row, gains, projection.bias());
                if let Some(before) = waiting.next() {
                    row.iter_mut().zip(before).for_each(|(v, b)| *v += b);
                }
            }
        }
    }
}

/// Multiplies outputs by their gains, but for the bias in them.
fn scale(row: &mut [f32], gains: &[f32], bias: Option<&[f32]>) {
    match bias {
        None => row.iter_mut().zip(gains).for_each(|(v, g)| *v *= g),
        Some(bias) => {
            for ((v, g), b) in row.iter_mut().zip(gains).zip(bias) {
                *v = (*v - b) * g + b;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::tests::{logits, noisy};
    use crate::engine::{CacheFormat, EngineOptions, Event, Job, JobId, Scheduler, WeightFormat};
    use crate::model::tests::tiny_model;
    use crate::params::Parameter;
    use danlu_core::{LoraConfig, Target};

    /// Log-probabilities of what follows the prompt of [`logits`].
    fn wanted(model: &Transformer) -> Vec<f32> {
        let size = model.config.vocabulary;
        let all = logits(model);
        // That of the document's first seven ids.
        let row = &all[6 * size..7 * size];
        let total = row.iter().map(|l| l.exp()).sum::<f32>().ln();
        row.iter().map(|l| l - total).collect()
    }

    fn prompt() -> Vec<u32> {
        (0..7).map(|i| i * 5 % 60).collect()
    }

    #[test]
    fn learnt_lengths_count_beside_others_of_a_batch() {
        let device = danlu_ops::cpu_device();
        let mut base = tiny_model(1).transformer;
        for linear in base.blocks.iter_mut().flat_map(|b| b.linears_mut()) {
            // A bias is not of the length that was learnt.
            let outputs = linear.weight.shape[0];
            let bias = (0..outputs).map(|i| (i % 5) as f32 * 0.2 - 0.3).collect();
            linear.bias = Some(Parameter::new("bias", &[outputs], bias, &device));
        }
        let few = [Target::QProj, Target::VProj, Target::DownProj].to_vec();
        let low = noisy(&LoraConfig { rank: 3, ..Default::default() }, 5, "low");
        let length = LoraConfig { rank: 2, targets: few, dora: true, ..Default::default() };
        let all = LoraConfig { rank: 2, dora: true, ..Default::default() };
        let of = |stack: &[&crate::adapters::Adapter]| {
            let mut adapted = base.clone();
            for adapter in stack {
                adapted.attach(adapter, &device).expect("attaches");
            }
            adapted
        };
        let (high, whole) = (noisy(&length, 6, "high"), noisy(&all, 7, "whole"));
        // A chain with a learnt length at its end, one of few projections, one of all, one without.
        let models = [base.clone(), of(&[&low]), of(&[&high]), of(&[&whole]), of(&[&low, &high])];
        for (weights, bound) in [(WeightFormat::F32, 1e-4), (WeightFormat::Q8_0, 0.1)] {
            let options = EngineOptions {
                weights,
                cache: CacheFormat::F32,
                batch: models.len(),
                ..Default::default()
            };
            let mut scheduler = Scheduler::new(&base, &options).expect("fits");
            for (i, model) in models.iter().enumerate().skip(1) {
                scheduler.add_adapter(&i.to_string(), model).expect("fits");
            }
            let size = base.config.vocabulary;
            let numbers: Vec<JobId> = (0..models.len())
                .map(|i| {
                    let adapter = (i > 0).then(|| i.to_string());
                    let asked = Job { top_logprobs: Some(size), adapter, ..Job::new(prompt(), 1) };
                    scheduler.add(asked).expect("fits")
                })
                .collect();
            let mut got = vec![vec![f32::NAN; size]; models.len()];
            while scheduler.usage().running + scheduler.usage().waiting > 0 {
                for event in scheduler.step() {
                    let Event::Token { id, logprob, .. } = event else { continue };
                    let at = numbers.iter().position(|n| *n == id).expect("ours");
                    logprob
                        .into_iter()
                        .flat_map(|l| l.top)
                        .for_each(|(t, l)| got[at][t as usize] = l);
                }
            }
            let all: Vec<Vec<f32>> = models.iter().map(wanted).collect();
            for (i, (got, want)) in got.iter().zip(&all).enumerate() {
                let mean = |b: &[f32]| {
                    got.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / size as f32
                };
                assert!(mean(want) < bound, "{weights:?}, {i}: {} nats off", mean(want));
                let others = all.iter().enumerate().filter(|(j, _)| *j != i);
                others.for_each(|(j, b)| assert!(mean(b) > bound, "{i} is {j}"));
            }
        }
    }
}
