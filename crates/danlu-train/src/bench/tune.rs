//! How fast an adapter learns on a base, on ids that are given, so that another program can be
//! given the same.

use crate::optim::gradients;
use crate::tune::Learner;
use danlu_core::{BaseFormat, Error, LoraConfig, Result};
use danlu_model::Model;
use danlu_ops::HeadLoss;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What came of it. The names are read by scripts and stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TuneBench {
    /// Always `danlu`.
    pub engine: String,
    /// Median over the steps after the first two.
    pub tokens_per_second: f64,
    /// Most memory that the process had, in MB (10^6 bytes).
    pub peak_rss_mb: f64,
    /// Most memory of tensors in use at one time, in MB.
    pub peak_tensors_mb: f64,
    /// Threads.
    pub threads: usize,
    /// Parameters that learn.
    pub learns: usize,
    /// Loss of every step, in nats a token.
    pub losses: Vec<f64>,
}

/// Tunes the model in `folder` with a fresh adapter on `ids`: u32 numbers, little-endian, `rows`
/// times `window + 1` of them a step. AdamW at a constant `rate`, betas 0.9 and 0.999, no decay,
/// gradients clipped to a norm of 1. The base may be kept in few bits.
pub fn tune(
    folder: &Path,
    ids: &Path,
    [rows, window]: [usize; 2],
    lora: &LoraConfig,
    base: Option<BaseFormat>,
    rate: f32,
) -> Result<TuneBench> {
    let bytes = std::fs::read(ids).map_err(|e| Error::io(ids, e))?;
    let each = rows * (window + 1);
    let (words, odd) = bytes.as_chunks::<4>();
    if !odd.is_empty() || words.is_empty() || !words.len().is_multiple_of(each) {
        return Err(Error::file(
            ids,
            format!("u32 ids, {each} a step (--rows x (--window + 1))"),
            format!("{} bytes", bytes.len()),
        ));
    }
    let words: Vec<u32> = words.iter().map(|&w| u32::from_le_bytes(w)).collect();
    let model = Model::load(folder, &danlu_ops::cpu_device())?;
    let size = model.transformer.config.vocabulary;
    if let Some(id) = words.iter().find(|&&id| id as usize >= size) {
        return Err(Error::file(ids, format!("ids below {size}"), id));
    }
    if window > model.transformer.config.context {
        let wanted = format!("at most the context, {}", model.transformer.config.context);
        return Err(Error::parameter("--window", wanted, window));
    }
    let mut learner = Learner::new(&model.transformer, Some(lora), base, 1)?;
    drop(model);
    let mut optimiser =
        crate::optim::Optimiser::new(&*learner.module(), [0.9, 0.999], 1e-8, 0.0, 1.0);
    let starts: Arc<[u32]> = (0..=rows).map(|r| (r * window) as u32).collect();
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in words.chunks_exact(each) {
        let begun = Instant::now();
        let lines = step.chunks_exact(window + 1);
        let inputs: Arc<[u32]> = lines.clone().flat_map(|l| &l[..window]).copied().collect();
        let targets: Arc<[u32]> = lines.flat_map(|l| &l[1..]).copied().collect();
        let spec = HeadLoss {
            targets,
            weights: vec![1.0; rows * window].into(),
            scale: 1.0 / (rows * window) as f32,
            z_loss: 0.0,
        };
        let (loss, _) = learner.transformer.loss(&inputs, &starts, &spec);
        losses.push(loss.clone().inner().into_scalar::<f32>() as f64);
        let grads = gradients(&*learner.module(), loss.backward());
        optimiser.step(&mut *learner.module(), grads, [rate, 0.0], 1.0);
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let mut timed: Vec<f64> = seconds.iter().skip(2.min(seconds.len() - 1)).copied().collect();
    timed.sort_by(f64::total_cmp);
    let learns = learner.module().size();
    Ok(TuneBench {
        engine: "danlu".into(),
        tokens_per_second: (rows * window) as f64 / timed[timed.len() / 2],
        peak_rss_mb: super::peak_rss().unwrap_or(f64::NAN) / 1e6,
        peak_tensors_mb: danlu_ops::memory().peak as f64 / 1e6,
        threads: rayon::current_num_threads(),
        learns,
        losses,
    })
}
