//! What was learnt beside a base: low-rank additions to its projections, kept in a folder of their
//! own, stacked (base, industry, scenario), swapped, merged.
//!
//! An adapter records by hash the weights that it was learnt on and the adapters that lay between,
//! so that it is never applied to anything else.

mod adopt;
mod card;
mod combine;
mod file;

pub use adopt::{Adopted, adopt, check_named};
pub use combine::{Combine, combine};
pub use file::AdapterInfo;

use crate::arch::{Transformer, TransformerConfig};
use crate::layers::{Block, Linear, Lora};
use crate::params::{Module, Parameter};
use burn::tensor::Device;
use danlu_core::{Error, LoraConfig, Result, Rng, Target};
use std::collections::BTreeMap;
use std::ops::Range;

/// Which of a block's matrices ([`crate::layers::Block::linears`]) a target is in, and which rows of
/// that are its.
///
/// # Errors
/// If it is one of the feed-forward, of which a mixture of experts has several.
fn place(target: Target, c: &TransformerConfig) -> Result<(usize, Range<usize>)> {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let at = match target {
        Target::QProj => (0, 0..q),
        Target::KProj => (0, q..q + kv),
        Target::VProj => (0, q + kv..q + 2 * kv),
        Target::OProj => (1, 0..c.width),
        Target::GateProj => (2, 0..c.hidden),
        Target::UpProj => (2, c.hidden..2 * c.hidden),
        Target::DownProj => (3, 0..c.width),
    };
    if c.experts > 0 && at.0 > 1 {
        let wanted = "projections of the attention (q_proj, k_proj, v_proj, o_proj), for the model \
                      is a mixture of experts";
        return Err(Error::parameter("targets of the adapter", wanted, target.name()));
    }
    Ok(at)
}

/// The values of one adapted projection, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// `[rank, inputs]`.
    pub a: Vec<f32>,
    /// `[outputs, rank]`.
    pub b: Vec<f32>,
    /// `[outputs]`, with DoRA.
    pub magnitude: Option<Vec<f32>>,
}

/// An adapter on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// How it is built.
    pub config: LoraConfig,
    /// What it was learnt on.
    pub info: AdapterInfo,
    /// Its values by layer and target.
    pub deltas: BTreeMap<(usize, Target), Delta>,
}

impl Adapter {
    /// BLAKE3 of everything that its effect depends on.
    pub fn hash(&self) -> String {
        let mut hash = blake3::Hasher::new();
        let c = &self.config;
        hash.update(format!("{} {} {} {}", c.rank, c.alpha, c.rslora, c.dora).as_bytes());
        for ((layer, target), d) in &self.deltas {
            hash.update(target.path(*layer).as_bytes());
            for values in [Some(&d.a), Some(&d.b), d.magnitude.as_ref()].into_iter().flatten() {
                values.iter().for_each(|v| {
                    hash.update(&v.to_le_bytes());
                });
            }
        }
        hash.finalize().to_hex().to_string()
    }

    /// Number of values.
    pub fn size(&self) -> usize {
        let of = |d: &Delta| d.a.len() + d.b.len() + d.magnitude.as_ref().map_or(0, Vec::len);
        self.deltas.values().map(of).sum()
    }

    /// Refuses a base that this was not learnt on. `base` is the hash of its weights, `beneath` the
    /// hashes of the adapters that it has already, the lowest first. An adapter that says nothing
    /// of its base, as those of other programs, goes with any of the right shape.
    pub fn check_base(&self, base: &str, beneath: &[String]) -> Result<()> {
        let name = || format!("adapter `{}`", self.info.name);
        if let Some(learnt) = self.info.base.as_ref().filter(|b| *b != base) {
            return Err(Error::parameter(
                name(),
                format!("a base with hash {learnt}, on which it was learnt"),
                format!("a base with hash {base}"),
            ));
        }
        if self.info.base.is_some() && self.info.parents != beneath {
            return Err(Error::parameter(
                name(),
                format!("the adapters {:?} beneath it, on which it was learnt", self.info.parents),
                format!("{beneath:?}"),
            ));
        }
        Ok(())
    }
}

impl Transformer {
    /// Puts an adapter on top of those that there are.
    pub fn attach(&mut self, adapter: &Adapter, device: &Device) -> Result<()> {
        let c = self.config.clone();
        let rank = adapter.config.rank;
        for (&(layer, target), delta) in &adapter.deltas {
            let path = target.path(layer);
            let Some(block) = self.blocks.get_mut(layer) else {
                return Err(Error::parameter(
                    format!("adapter `{}`", adapter.info.name),
                    format!("layers below {}", c.depth),
                    path,
                ));
            };
            let (which, rows) = place(target, &c)?;
            let linear = &mut *block.linears_mut()[which];
            let (inputs, outputs) = (linear.weight.shape[1], rows.len());
            let sizes = [delta.a.len(), delta.b.len()];
            if sizes != [rank * inputs, outputs * rank]
                || delta.magnitude.as_ref().is_some_and(|m| m.len() != outputs)
            {
                return Err(Error::parameter(
                    format!("adapter `{}`, {path}", adapter.info.name),
                    format!("[{rank}, {inputs}] and [{outputs}, {rank}]"),
                    format!("{} and {} values", sizes[0], sizes[1]),
                ));
            }
            refuse_over_magnitudes(linear, &rows, &path)?;
            let new = |part: &str, shape: &[usize], values: &[f32]| {
                Parameter::new(format!("{path}.{part}"), shape, values.to_vec(), device)
            };
            linear.adapters.push(Lora {
                a: new("lora_A.weight", &[rank, inputs], &delta.a),
                b: new("lora_B.weight", &[outputs, rank], &delta.b),
                rows,
                scale: adapter.config.scale(),
                magnitude: delta
                    .magnitude
                    .as_ref()
                    .map(|m| new("lora_magnitude_vector", &[outputs], m)),
                dropout: None,
            });
        }
        Ok(())
    }

    /// Puts a fresh adapter, which changes nothing yet, on top of those that there are. `a` is
    /// uniform within one over the root of the inputs, `b` zero.
    pub fn attach_fresh(&mut self, config: &LoraConfig, seed: u64, device: &Device) -> Result<()> {
        config.check()?;
        let c = self.config.clone();
        let mut rng = Rng::new(seed, 0x6c6f_7261);
        let mut targets = config.targets.clone();
        targets.sort();
        targets.dedup();
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let mut linears = block.linears_mut();
            for &target in &targets {
                let (which, rows) = place(target, &c)?;
                let linear = &mut *linears[which];
                let (inputs, outputs) = (linear.weight.shape[1], rows.len());
                let path = target.path(layer);
                refuse_over_magnitudes(linear, &rows, &path)?;
                let bound = 1.0 / (inputs as f32).sqrt();
                let a: Vec<f32> =
                    (0..config.rank * inputs).map(|_| (2.0 * rng.unit() - 1.0) * bound).collect();
                let magnitude = config.dora.then(|| {
                    // The length that the rows have with what lies beneath.
                    let mut beneath = linear.weight.clone();
                    beneath.set(Lora::merged(&linear.adapters, &linear.weight));
                    let norms = Lora::norms(&beneath, rows.clone());
                    Parameter::new(
                        format!("{path}.lora_magnitude_vector"),
                        &[outputs],
                        norms,
                        device,
                    )
                });
                linear.adapters.push(Lora {
                    a: Parameter::new(
                        format!("{path}.lora_A.weight"),
                        &[config.rank, inputs],
                        a,
                        device,
                    ),
                    b: Parameter::constant(
                        format!("{path}.lora_B.weight"),
                        &[outputs, config.rank],
                        0.0,
                        device,
                    ),
                    rows,
                    scale: config.scale(),
                    magnitude,
                    dropout: None,
                });
            }
        }
        Ok(())
    }

    /// Takes all adapters off.
    pub fn detach(&mut self) -> Vec<Vec<Vec<Lora>>> {
        let off = |b: &mut Block| {
            b.linears_mut().into_iter().map(|l| std::mem::take(&mut l.adapters)).collect()
        };
        self.blocks.iter_mut().map(off).collect()
    }

    /// Puts back what [`detach`](Self::detach) took off.
    pub fn reattach(&mut self, adapters: Vec<Vec<Vec<Lora>>>) {
        for (block, adapters) in self.blocks.iter_mut().zip(adapters) {
            for (linear, adapters) in block.linears_mut().into_iter().zip(adapters) {
                linear.adapters = adapters;
            }
        }
    }

    /// Makes the adapters part of the weights, in full precision. An error if that changes nothing.
    pub fn merge(&mut self) -> Result<()> {
        let mut changed = 0;
        for block in &mut self.blocks {
            for linear in block.linears_mut() {
                if linear.adapters.is_empty() {
                    continue;
                }
                let merged = Lora::merged(&linear.adapters, &linear.weight);
                changed += usize::from(merged != linear.weight.values());
                linear.weight.set(merged);
                linear.adapters.clear();
            }
        }
        if changed == 0 {
            return Err(Error::parameter("adapter", "adapters that change a weight", "none"));
        }
        Ok(())
    }

    /// The newest adapter of each projection, as values: what [`attach_fresh`](Self::attach_fresh)
    /// put there and training changed.
    pub fn newest_deltas(&self, config: &LoraConfig) -> BTreeMap<(usize, Target), Delta> {
        let c = &self.config;
        let mut out = BTreeMap::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            for &target in &config.targets {
                let Ok((which, rows)) = place(target, c) else { continue };
                let own = |l: &&Lora| l.rows == rows;
                if let Some(l) = block.linears()[which].adapters.iter().rev().find(own) {
                    let magnitude = l.magnitude.as_ref().map(Parameter::values);
                    let delta = Delta { a: l.a.values(), b: l.b.values(), magnitude };
                    out.insert((layer, target), delta);
                }
            }
        }
        out
    }
}

/// What lies on a learnt length cannot be said to be part of it: merge it first.
fn refuse_over_magnitudes(linear: &Linear, rows: &Range<usize>, path: &str) -> Result<()> {
    let over = |l: &&Lora| l.magnitude.is_some() && l.rows == *rows;
    match linear.adapters.iter().find(over) {
        None => Ok(()),
        Some(_) => Err(Error::parameter(
            format!("adapter on {path}"),
            "a base without DoRA adapters (merge them first)",
            "one",
        )),
    }
}

/// The parameters of the newest adapter, for an optimiser; everything else stands still.
#[derive(Debug)]
pub struct Newest<'a> {
    model: &'a mut Transformer,
    /// How many adapters of each projection lie beneath.
    beneath: Vec<Vec<usize>>,
}

impl<'a> Newest<'a> {
    /// What was attached since there were `beneath` adapters (as [`counts`](Self::counts) said).
    pub fn new(model: &'a mut Transformer, beneath: Vec<Vec<usize>>) -> Self {
        Self { model, beneath }
    }

    /// Adapters of every projection.
    pub fn counts(model: &Transformer) -> Vec<Vec<usize>> {
        let of = |b: &Block| b.linears().iter().map(|l| l.adapters.len()).collect();
        model.blocks.iter().map(of).collect()
    }
}

impl Module for Newest<'_> {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = Vec::new();
        for (block, beneath) in self.model.blocks.iter().zip(&self.beneath) {
            for (linear, &n) in block.linears().into_iter().zip(beneath) {
                all.extend(linear.adapters[n..].iter().flat_map(Lora::parameters));
            }
        }
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = Vec::new();
        for (block, beneath) in self.model.blocks.iter_mut().zip(&self.beneath) {
            for (linear, &n) in block.linears_mut().into_iter().zip(beneath) {
                all.extend(linear.adapters[n..].iter_mut().flat_map(Lora::parameters_mut));
            }
        }
        all
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::tests::tiny_model;
    use std::sync::Arc;

    /// An adapter with noise in both factors.
    pub(crate) fn noisy(config: &LoraConfig, seed: u64, name: &str) -> Adapter {
        let device = danlu_ops::cpu_device();
        let mut model = tiny_model(1).transformer;
        model.attach_fresh(config, seed, &device).expect("attaches");
        let mut deltas = model.newest_deltas(config);
        let mut rng = Rng::new(seed, 9);
        for d in deltas.values_mut() {
            d.b.iter_mut().for_each(|v| *v = rng.normal() * 0.3);
        }
        let info = AdapterInfo { name: name.into(), ..Default::default() };
        Adapter { config: config.clone(), info, deltas }
    }

    pub(crate) fn logits(model: &Transformer) -> Vec<f32> {
        let ids: Arc<[u32]> = (0..12).map(|i| i * 5 % 60).collect();
        model.logits(&ids, &Arc::from([0, 7, 12])).into_data().try_into_vec().expect("f32")
    }

    fn far(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn stacked_merged_and_swapped_adapters_answer_alike() {
        let device = danlu_ops::cpu_device();
        let base = tiny_model(1).transformer;
        let plain = logits(&base);
        let few = [Target::QProj, Target::VProj, Target::DownProj].to_vec();
        let low = noisy(&LoraConfig { rank: 3, ..Default::default() }, 5, "low");
        for dora in [false, true] {
            let config = LoraConfig { rank: 2, targets: few.clone(), dora, ..Default::default() };
            let high = noisy(&config, 6, "high");
            let mut stacked = base.clone();
            stacked.attach(&low, &device).expect("attaches");
            let one = logits(&stacked);
            stacked.attach(&high, &device).expect("attaches");
            let two = logits(&stacked);
            assert!(far(&plain, &one) > 1e-3 && far(&one, &two) > 1e-3);
            let mut merged = stacked.clone();
            merged.merge().expect("merges");
            assert!(far(&logits(&merged), &two) < 1e-4, "{}", far(&logits(&merged), &two));
            // Off and on again.
            let taken = stacked.detach();
            assert_eq!(logits(&stacked), plain);
            stacked.reattach(taken);
            assert_eq!(logits(&stacked), two);
            // Cached decoding goes through the same projections.
            let mut cache = stacked.start();
            let ids: Vec<u32> = (0..7).map(|i| i * 5 % 60).collect();
            let last = stacked.advance(&mut [(&mut cache, &ids)]);
            let size = stacked.config.vocabulary;
            assert!(far(&last, &two[6 * size..7 * size]) < 1e-4);
        }
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_merging_it_is_an_error() {
        let device = danlu_ops::cpu_device();
        let mut model = tiny_model(1).transformer;
        let plain = logits(&model);
        model.attach_fresh(&LoraConfig::default(), 3, &device).expect("attaches");
        assert!(far(&logits(&model), &plain) < 1e-6);
        let error = model.merge().expect_err("changes nothing").to_string();
        assert!(error.contains("change a weight"), "{error}");
    }

    #[test]
    fn another_base_is_refused_with_both_hashes() {
        let mut adapter = noisy(&LoraConfig::default(), 1, "finance");
        adapter.check_base("aa", &[]).expect("says nothing of its base");
        adapter.info.base = Some("aa".into());
        adapter.info.parents = vec!["p1".into()];
        adapter.check_base("aa", &["p1".into()]).expect("its own");
        let wrong = adapter.check_base("bb", &["p1".into()]).expect_err("base").to_string();
        assert!(
            wrong.contains("aa") && wrong.contains("bb") && wrong.contains("finance"),
            "{wrong}"
        );
        let wrong = adapter.check_base("aa", &[]).expect_err("parents").to_string();
        assert!(wrong.contains("p1"), "{wrong}");
    }
}
