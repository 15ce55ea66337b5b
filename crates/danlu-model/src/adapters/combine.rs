//! Several independent adapters of one base in one model.

use super::{Adapter, place};
use crate::arch::Transformer;
use danlu_core::{Error, Result, Rng, Target};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the changes that several adapters make to a weight become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Their weighted sum.
    Linear,
    /// Each keeps its largest changes; of those that disagree in sign the side with the greater sum
    /// wins, and is averaged (TIES, arXiv 2306.01708).
    Ties,
    /// Each loses changes at random and has the others enlarged accordingly (DARE, arXiv
    /// 2311.03099); their weighted sum.
    Dare,
}

/// Adds to `model`'s weights what `adapters` would, each with its weight. `density` is the share of
/// its changes that each keeps, for [`Combine::Ties`] and [`Combine::Dare`].
pub fn combine(
    model: &mut Transformer,
    adapters: &[(&Adapter, f32)],
    how: Combine,
    density: f32,
    seed: u64,
) -> Result<()> {
    if adapters.is_empty() {
        return Err(Error::parameter("adapter", "at least one", "none"));
    }
    if !(density > 0.0 && density <= 1.0) {
        return Err(Error::parameter("density", "above 0, at most 1", density));
    }
    if let Some((a, _)) = adapters.iter().find(|(a, _)| a.config.dora) {
        let found = format!("`{}` is DoRA", a.info.name);
        return Err(Error::parameter(
            "adapter",
            "adapters without magnitudes (merge those)",
            found,
        ));
    }
    let config = model.config.clone();
    for (adapter, _) in adapters {
        if let Some((layer, _)) = adapter.deltas.keys().find(|(layer, _)| *layer >= config.depth) {
            let name = format!("adapter `{}`", adapter.info.name);
            let wanted = format!("changes of the {} layers that there are", config.depth);
            return Err(Error::parameter(name, wanted, format!("one of layer {layer}")));
        }
    }
    let mut changed = false;
    for (layer, block) in model.blocks.iter_mut().enumerate() {
        let mut linears = block.linears_mut();
        for target in Target::ALL {
            if !adapters.iter().any(|(a, _)| a.deltas.contains_key(&(layer, target))) {
                continue;
            }
            let (which, rows) = place(target, &config)?;
            let weight = &mut linears[which].weight;
            let inputs = weight.shape[1];
            let mut changes = Vec::new();
            for (number, (adapter, share)) in adapters.iter().enumerate() {
                let Some(d) = adapter.deltas.get(&(layer, target)) else { continue };
                let rank = adapter.config.rank;
                if [d.a.len(), d.b.len()] != [rank * inputs, rows.len() * rank] {
                    return Err(Error::parameter(
                        format!("adapter `{}`, {}", adapter.info.name, target.path(layer)),
                        format!("[{rank}, {inputs}] and [{}, {rank}]", rows.len()),
                        format!("{} and {} values", d.a.len(), d.b.len()),
                    ));
                }
                let mut dense = product(&d.b, &d.a, rank, inputs, adapter.config.scale());
                match how {
                    Combine::Linear => {}
                    Combine::Ties => keep_largest(&mut dense, density),
                    Combine::Dare => {
                        let index = ((layer as u64) << 16 | target as u64) << 8 | number as u64;
                        drop_some(&mut dense, density, &mut Rng::new(seed, index));
                    }
                }
                changes.push((dense, *share));
            }
            if changes.is_empty() {
                continue;
            }
            let mut values = weight.values();
            let own = &mut values[rows.start * inputs..rows.end * inputs];
            own.par_iter_mut().enumerate().for_each(|(i, v)| {
                let at = changes.iter().map(|(dense, share)| (dense[i], *share));
                *v += if how == Combine::Ties { elected(at) } else { at.map(|(d, s)| d * s).sum() };
            });
            changed |= values != weight.values();
            weight.set(values);
        }
    }
    if changed {
        Ok(())
    } else {
        Err(Error::parameter("adapter", "adapters that change a weight", "none"))
    }
}

/// `scale * b a`, row-major.
fn product(b: &[f32], a: &[f32], rank: usize, inputs: usize, scale: f32) -> Vec<f32> {
    b.par_chunks_exact(rank)
        .flat_map_iter(|b| {
            let mut row = vec![0.0; inputs];
            for (&b, a) in b.iter().zip(a.chunks_exact(inputs)) {
                row.iter_mut().zip(a).for_each(|(r, &a)| *r += scale * b * a);
            }
            row
        })
        .collect()
}

/// Sets all but the largest share of the values to zero.
fn keep_largest(values: &mut [f32], share: f32) {
    // As it was written: 0.7 is a little less in 32 bits, and one value of ten fewer.
    let share = share.to_string().parse().unwrap_or(f64::from(share));
    let kept = ((values.len() as f64 * share) as usize).clamp(1, values.len());
    let mut sizes: Vec<f32> = values.iter().map(|v| v.abs()).collect();
    let (_, &mut least, _) = sizes.select_nth_unstable_by(kept - 1, |x, y| y.total_cmp(x));
    values.iter_mut().filter(|v| v.abs() < least).for_each(|v| *v = 0.0);
}

fn drop_some(values: &mut [f32], kept: f32, rng: &mut Rng) {
    for v in values {
        *v = if rng.unit() < kept { *v / kept } else { 0.0 };
    }
}

/// The weighted mean of those changes that have the sign of their sum (as PEFT merges them: weights do
/// not vote).
fn elected(changes: impl Iterator<Item = (f32, f32)> + Clone) -> f32 {
    let side = if changes.clone().map(|(d, _)| d).sum::<f32>() >= 0.0 { 1.0 } else { -1.0 };
    let (mut sum, mut count) = (0.0, 0.0f32);
    for (change, weight) in changes.filter(|(d, _)| *d != 0.0 && d.signum() == side) {
        sum += change * weight;
        count += 1.0;
    }
    sum / count.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{logits, noisy};
    use super::*;
    use crate::model::tests::tiny_model;
    use danlu_core::LoraConfig;

    #[test]
    fn the_linear_sum_of_one_is_its_merge() {
        let device = danlu_ops::cpu_device();
        let a = noisy(&LoraConfig { rank: 2, ..Default::default() }, 4, "a");
        let mut merged = tiny_model(1).transformer;
        let mut summed = merged.clone();
        merged.attach(&a, &device).expect("attaches");
        merged.merge().expect("merges");
        for how in [Combine::Linear, Combine::Ties, Combine::Dare] {
            let mut one = summed.clone();
            combine(&mut one, &[(&a, 1.0)], how, 1.0, 1).expect("combines");
            let (a, b) = (logits(&one), logits(&merged));
            let gap = a.iter().zip(&b).map(|(x, y)| (x - y).abs());
            assert!(gap.fold(0.0, f32::max) < 1e-4, "{how:?}");
        }
        // Opposite halves leave nothing.
        let error = combine(&mut summed, &[(&a, 1.0), (&a, -1.0)], Combine::Linear, 1.0, 1);
        assert!(error.expect_err("nothing").to_string().contains("change a weight"));
    }

    #[test]
    fn ties_keeps_the_large_and_lets_the_majority_win() {
        let mut values = vec![0.1, -3.0, 2.0, 0.0, -0.2];
        keep_largest(&mut values, 0.4);
        assert_eq!(values, [0.0, -3.0, 2.0, 0.0, 0.0]);
        assert_eq!(elected([(2.0, 1.0), (-1.0, 1.0), (4.0, 1.0)].into_iter()), 3.0);
        assert_eq!(elected([(1.0, 1.0), (-1.0, 1.0)].into_iter()), 1.0);
        assert_eq!(elected([(0.0, 1.0)].into_iter()), 0.0);
        // Weights scale, one below zero as well, and do not vote.
        assert_eq!(elected([(2.0, 0.5), (4.0, 0.5)].into_iter()), 1.5);
        assert_eq!(elected([(2.0, -1.0), (1.0, 1.0)].into_iter()), -0.5);
        assert_eq!(elected([(2.0, 0.1), (-1.0, 1.0)].into_iter()), 0.2);
        let mut values = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        keep_largest(&mut values, 0.3);
        assert_eq!(values, [0.0, 0.0, 0.0, 0.0, 0.0, 6.0], "as many as fit whole, 1.8 of 6");
        let mut values: Vec<f32> = (1..=10).map(|i| i as f32).collect();
        keep_largest(&mut values, 0.7);
        assert_eq!(values.iter().filter(|v| **v != 0.0).count(), 7);
    }

    #[test]
    fn dare_keeps_the_mean() {
        let mut values = vec![1.0; 20_000];
        drop_some(&mut values, 0.25, &mut Rng::new(1, 1));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert!(values.iter().all(|&v| v == 0.0 || v == 4.0));
    }

    #[test]
    fn impossible_requests_are_named() {
        let mut model = tiny_model(1).transformer;
        let a = noisy(&LoraConfig { dora: true, ..Default::default() }, 4, "d");
        for (list, density, want) in [
            (vec![], 1.0, "at least one"),
            (vec![(&a, 1.0)], 1.0, "DoRA"),
            (vec![(&a, 1.0)], 0.0, "density"),
        ] {
            let error = combine(&mut model, &list, Combine::Ties, density, 1).expect_err(want);
            assert!(error.to_string().contains(want), "{error}");
        }
    }
}
