//! How fast a model trains: steps on synthetic ids, with the time of each operation and memory.

use crate::memory::{self, Load, Sizes, predict};
use crate::optim::Optimiser;
use burn::tensor::Tensor;
use danlu_core::recipe::{ModelRecipe, Recompute, at_most};
use danlu_core::{Error, Result, split_mix};
use danlu_model::arch::{Gpt, GptConfig};
use danlu_model::{Module, Transformer, TransformerConfig};
use danlu_ops::HeadLoss;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

mod decode;
mod single;
pub use decode::{DecodeBench, DecodeSetting, decode, shape};
pub use single::{Rate, Rates, gemm, ops};
mod tune;
pub use tune::{TuneBench, tune};

/// Which architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// GPT-2's: LayerNorm, biases, GELU, learnt positions.
    Gpt,
    /// Danlu's: the Qwen3 family.
    Qwen,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Architecture.
    pub arch: Arch,
    /// Layers.
    pub depth: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Heads.
    pub heads: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Tokens of a row.
    pub window: usize,
    /// Rows of a batch.
    pub rows: usize,
    /// Steps that are measured.
    pub steps: usize,
    /// Steps before them.
    pub warmup: usize,
    /// Blocks that the backward pass runs again.
    pub recompute: Recompute,
}

/// What came of it. The names are read by scripts and stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainBench {
    /// Always `danlu`.
    pub engine: String,
    /// `gpt` or `qwen`.
    pub arch: String,
    /// Median over the steps.
    pub tokens_per_second: f64,
    /// Share of the multiply-add peak that the model's operations use.
    pub mfu: f64,
    /// The machine's multiply-add peak in GFLOP/s, the larger of before and after.
    pub fma_peak_gflops: f64,
    /// Most memory that the process had, in MB (10^6 bytes).
    pub peak_rss_mb: f64,
    /// Most memory of tensors in use at one time, in MB, parameters and optimiser included.
    pub peak_tensors_mb: f64,
    /// The same, as it was reckoned before the first step.
    pub predicted_peak_mb: f64,
    /// Threads.
    pub threads: usize,
    /// Steps that were measured.
    pub steps: usize,
    /// Loss of the very first step.
    pub loss_first: f64,
    /// Loss of the last one.
    pub loss_last: f64,
    /// Milliseconds a step, by operation; `other` is what no clock was on.
    pub ops_ms: BTreeMap<String, f64>,
}

/// A model of one of the architectures.
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Model {
    Gpt(Gpt),
    Qwen(Transformer),
}

impl Model {
    fn new(s: &Setting) -> Result<Self> {
        let device = danlu_ops::cpu_device();
        for (name, found) in [
            ("--depth", s.depth),
            ("--width", s.width),
            ("--heads", s.heads),
            ("--vocabulary", s.vocabulary),
            ("--window", s.window),
            ("--rows", s.rows),
        ] {
            if found == 0 {
                return Err(Error::parameter(name, "at least 1", found));
            }
        }
        let again = s.recompute.blocks("--recompute", s.depth)?;
        let model = match s.arch {
            Arch::Gpt => {
                if !s.width.is_multiple_of(2 * s.heads) {
                    let wanted = format!("a divisor of half the width ({})", s.width / 2);
                    return Err(Error::parameter("--heads", wanted, s.heads));
                }
                let config = GptConfig {
                    vocabulary: s.vocabulary,
                    width: s.width,
                    depth: s.depth,
                    heads: s.heads,
                    context: s.window,
                    norm_eps: 1e-5,
                };
                let mut model = Gpt::new(config, 1, &device);
                model.blocks.iter_mut().zip(again).for_each(|(b, again)| b.recompute = again);
                Self::Gpt(model)
            }
            Arch::Qwen => {
                let recipe = ModelRecipe {
                    depth: s.depth,
                    width: Some(s.width),
                    heads: Some(s.heads),
                    head_dim: Some(s.width / s.heads),
                    ..Default::default()
                };
                let config = TransformerConfig::from_recipe(&recipe, s.vocabulary, s.window)?;
                let mut model = Transformer::new(config, 1, &device);
                model.blocks.iter_mut().zip(again).for_each(|(b, again)| b.recompute = again);
                Self::Qwen(model)
            }
        };
        Ok(model)
    }

    fn module(&mut self) -> &mut dyn Module {
        match self {
            Self::Gpt(m) => m,
            Self::Qwen(m) => m,
        }
    }

    fn loss(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>, spec: &HeadLoss) -> Tensor<1> {
        match self {
            Self::Gpt(m) => m.loss(ids, starts, spec).0,
            Self::Qwen(m) => m.loss(ids, starts, spec).0,
        }
    }

    fn sizes(&self) -> Sizes {
        match self {
            Self::Gpt(m) => Sizes::from(&m.config),
            Self::Qwen(m) => Sizes::from(&m.config),
        }
    }

    fn flops_per_token(&self, span: f64) -> f64 {
        match self {
            Self::Gpt(m) => m.config.flops_per_token(span),
            Self::Qwen(m) => m.config.flops_per_token(span),
        }
    }
}

/// The ids that every engine of `benches/peers` is trained on: a walk on a fixed random graph, where
/// each token has four successors, small ids more often than large ones (see `chain.py` there).
fn walk(vocabulary: usize, count: usize) -> Vec<u32> {
    let mut token = 0;
    let next = |step| {
        let way = 4 * token + split_mix(0, (1 << 32) + step) % 4;
        // Products of fractions in 24 bits; the cube of one is small more often than large.
        let times = |a: u64, b: u64| (a * b) >> 24;
        let u = split_mix(0, way + 1) >> 40;
        token = times(times(times(u, u), u), vocabulary as u64);
        token as u32
    };
    (0..count as u64).map(next).collect()
}

/// Refuses sizes beyond all bounds, and a model that memory has no room for.
fn check(s: &Setting) -> Result<()> {
    for (name, value, most) in [
        ("--depth", s.depth, 10_000),
        ("--width", s.width, 1 << 17),
        ("--heads", s.heads, 1 << 12),
        ("--vocabulary", s.vocabulary, 1 << 24),
        ("--window", s.window, 1 << 20),
        ("--rows", s.rows, 1 << 16),
        ("--steps", s.steps, 100_000),
        ("--warmup", s.warmup, 100_000),
    ] {
        at_most(name, value, most)?;
    }
    // Weights, gradients and two of the optimiser's each.
    let bytes = 16.0 * s.width as f64 * (s.vocabulary + 12 * s.depth * s.width) as f64;
    let available = danlu_ops::available_memory().map_or(f64::INFINITY, |bytes| bytes as f64);
    if bytes > available {
        let wanted = format!("sizes that fit into {:.0} MB", available / 1e6);
        let found = format!("{:.0} MB of parameters, gradients and averages", bytes / 1e6);
        return Err(Error::parameter("--width, --depth and --vocabulary", wanted, found));
    }
    Ok(())
}

/// Trains for some steps and measures.
pub fn train(s: &Setting) -> Result<TrainBench> {
    let threads = rayon::current_num_threads();
    check(s)?;
    let peak = danlu_ops::fma_peak(threads, 0.3);
    let device = danlu_ops::cpu_device().autodiff();
    let mut model = Model::new(s)?;
    model.module().to_device(&device);
    let mut optimiser = Optimiser::new(model.module(), [0.9, 0.95], 1e-8, 0.1, 1.0);
    let load = Load {
        rows: s.rows,
        window: s.window,
        accumulate: 1,
        again: s.recompute.blocks("--recompute", s.depth)?,
        muon: false,
        average: false,
        replies: 0,
        saves: false,
        threads,
        adapters: None,
    };
    let predicted = predict(&model.sizes(), &load);
    memory::check(&predicted, danlu_ops::available_memory(), "fewer --rows or a shorter --window")?;
    // What is not made by operations: made once, and changed in place.
    let made_once = predicted.tensors() - predicted.operations();
    let n = s.rows * s.window;
    let starts: Arc<[u32]> = (0..=s.rows).map(|r| (r * s.window) as u32).collect();
    danlu_ops::reset_peak();
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    let batch = s.rows * (s.window + 1);
    let all_ids = walk(s.vocabulary, (s.warmup + s.steps) * batch);
    for (step, all) in all_ids.chunks_exact(batch.max(1)).enumerate() {
        if step == s.warmup {
            danlu_ops::start_profile();
        }
        let rows = || all.chunks_exact(s.window + 1);
        let ids: Arc<[u32]> = rows().flat_map(|r| &r[..s.window]).copied().collect();
        let spec = HeadLoss {
            targets: rows().flat_map(|r| &r[1..]).copied().collect(),
            weights: vec![1.0; n].into(),
            scale: 1.0 / n as f32,
            z_loss: 0.0,
        };
        let start = Instant::now();
        let loss = model.loss(&ids, &starts, &spec);
        losses.push(loss.clone().inner().into_scalar::<f32>() as f64);
        let grads = loss.backward();
        let grads = crate::optim::gradients(model.module(), grads);
        optimiser.step(model.module(), grads, [3e-4, 0.0], 1.0);
        if step >= s.warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let profile = danlu_ops::take_profile();
    let steps = s.steps.max(1) as f64;
    let mut ops: BTreeMap<String, f64> =
        profile.into_iter().map(|(name, t)| (name, 1e3 * t.seconds / steps)).collect();
    let all = 1e3 * seconds.iter().sum::<f64>() / steps;
    ops.insert("other".into(), all - ops.values().sum::<f64>());
    seconds.sort_by(f64::total_cmp);
    let speed = n as f64 / seconds[seconds.len() / 2];
    let mut peak = peak.max(danlu_ops::fma_peak(threads, 0.3));
    let work = speed * model.flops_per_token(s.window as f64 / 2.0);
    for _ in 0..4 {
        // Something else ran when it was measured.
        if work > peak {
            peak = peak.max(danlu_ops::fma_peak(threads, 0.5));
        }
    }
    Ok(TrainBench {
        engine: "danlu".into(),
        arch: match s.arch {
            Arch::Gpt => "gpt".into(),
            Arch::Qwen => "qwen".into(),
        },
        tokens_per_second: speed,
        mfu: work / peak,
        fma_peak_gflops: peak / 1e9,
        peak_rss_mb: peak_rss().unwrap_or(f64::NAN) / 1e6,
        peak_tensors_mb: (danlu_ops::memory().peak + made_once) as f64 / 1e6,
        predicted_peak_mb: predicted.peak() as f64 / 1e6,
        threads,
        steps: s.steps,
        loss_first: losses[0],
        loss_last: losses[losses.len() - 1],
        ops_ms: ops,
    })
}

/// Most memory that this process has had, in bytes, where the system tells.
pub fn peak_rss() -> Option<f64> {
    status("VmHWM:")
}

/// Memory that this process has now, in bytes, where the system tells.
pub fn rss() -> Option<f64> {
    status("VmRSS:")
}

fn status(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(key))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(1024.0 * kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_architectures_learn_and_are_measured() {
        for arch in [Arch::Gpt, Arch::Qwen] {
            let s = Setting {
                arch,
                depth: 2,
                width: 32,
                heads: 2,
                vocabulary: 40,
                window: 24,
                rows: 4,
                steps: 30,
                warmup: 2,
                recompute: Recompute::None,
            };
            let b = train(&s).expect("trains");
            assert!(b.loss_last < b.loss_first - 0.3, "{arch:?}: {b:?}");
            assert!(b.mfu > 0.0 && b.tokens_per_second > 0.0, "{b:?}");
            assert!(b.ops_ms.contains_key("attention back"), "{b:?}");
        }
    }

    #[test]
    fn the_walk_is_that_of_the_peers() {
        // `chain.stream(8192, 8)` of `benches/peers/chain.py`.
        assert_eq!(walk(8192, 8), [658, 0, 7497, 317, 163, 19, 584, 1765]);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        for arch in [Arch::Gpt, Arch::Qwen] {
            // Large enough for products, norms and attention to be shared between threads.
            let s = Setting {
                arch,
                depth: 1,
                width: 128,
                heads: 4,
                vocabulary: 300,
                window: 160,
                rows: 2,
                steps: 3,
                warmup: 0,
                recompute: Recompute::None,
            };
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let b = pool.expect("starts").install(|| train(&s)).expect("trains");
                (b.loss_first, b.loss_last)
            };
            let one = run(1);
            assert_eq!([run(2), run(3)], [one; 2], "{arch:?}");
        }
    }

    #[test]
    fn sizes_of_nothing_are_refused_by_name() {
        let s = Setting {
            arch: Arch::Qwen,
            depth: 1,
            width: 32,
            heads: 0,
            vocabulary: 9,
            window: 8,
            rows: 1,
            steps: 1,
            warmup: 0,
            recompute: Recompute::None,
        };
        let message = train(&s).expect_err("no heads").to_string();
        assert!(message.contains("--heads") && message.contains("found 0"), "{message}");
    }

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let s = Setting {
            arch: Arch::Gpt,
            depth: 1,
            width: 30,
            heads: 4,
            vocabulary: 9,
            window: 8,
            rows: 1,
            steps: 1,
            warmup: 0,
            recompute: Recompute::None,
        };
        let message = train(&s).expect_err("refused").to_string();
        assert!(message.contains("--heads"), "{message}");
    }
}
