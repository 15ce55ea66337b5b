//! How fast a model decodes: one reply, several together, a prompt, and what of the memory's rate
//! that uses.

use super::{peak_rss, rss};
use danlu_core::{Error, Result, Rng};
use danlu_model::engine::{
    CacheFormat, Decoder, EngineOptions, Event, Job, PAGE, Scheduler, WeightFormat,
};
use danlu_model::{Transformer, TransformerConfig};
use serde::Serialize;
use std::time::Instant;

/// Bytes over which the memory's rate is measured: several times what caches hold.
const READ: usize = 256 << 20;

/// What is decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeSetting {
    /// Format of the weights.
    pub weights: WeightFormat,
    /// Format of keys and values.
    pub cache: CacheFormat,
    /// Tokens of the prompt whose reading is timed.
    pub prefill: usize,
    /// Tokens before the reply that is timed.
    pub prompt: usize,
    /// Tokens of that reply.
    pub tokens: usize,
    /// Replies together, each of half as many tokens after a prompt of 16, or of a quarter of the
    /// context.
    pub batch: usize,
    /// Repetitions; the medians count.
    pub repeats: usize,
}

/// What came of it. The names are read by scripts and stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeBench {
    /// Always `danlu`.
    pub engine: String,
    /// Format of the projections' weights.
    pub format: String,
    /// Threads.
    pub threads: usize,
    /// One reply.
    pub tokens_per_second: f64,
    /// All replies together.
    pub batch_tokens_per_second: f64,
    /// Replies together.
    pub batch: usize,
    /// Reading a prompt.
    pub prefill_tokens_per_second: f64,
    /// Rate at which this machine reads memory, in GB/s (10^9 bytes): the larger of two.
    pub read_gb_per_second: f64,
    /// The rate of one reply over what that rate allows: every matrix is read once a token.
    pub share_of_roofline: f64,
    /// Matrices in MB (10^6 bytes).
    pub weights_mb: f64,
    /// Seconds to open the model's folder; 0 for random weights.
    pub load_seconds: f64,
    /// Seconds to bring the weights into their form.
    pub prepare_seconds: f64,
    /// The file of the weights in MB; 0 for random weights.
    pub file_mb: f64,
    /// Keys and values of the first reply and its prompt, in MB.
    pub cache_mb: f64,
    /// Memory of the process after that reply and what is given back at rest, in MB: what opening a
    /// model and using it once takes.
    pub rss_mb: f64,
    /// That over the file and the keys and values; 0 for random weights.
    pub rss_over_file_and_cache: f64,
    /// Most memory that the process had for all of this, in MB, before the memory's rate was
    /// measured, which takes 256 MB.
    pub peak_rss_mb: f64,
}

/// The two shapes that engines are compared on: those of SmolLM2's smaller models.
pub fn shape(name: &str) -> Result<TransformerConfig> {
    let [width, depth, heads, kv_heads, hidden] = match name {
        "135m" => [576, 30, 9, 3, 1536],
        "360m" => [960, 32, 15, 5, 2560],
        other => return Err(Error::parameter("--shape", "135m or 360m", other)),
    };
    Ok(TransformerConfig {
        vocabulary: 49_152,
        width,
        depth,
        heads,
        kv_heads,
        head_dim: 64,
        hidden,
        context: 2048,
        rope_theta: 100_000.0,
        rope_scaling: None,
        no_rope: Vec::new(),
        norm_eps: 1e-5,
        qk_norm: false,
        tied: true,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        experts: 0,
        experts_per_token: 0,
        gates_of_all: false,
        balance: 0.0,
    })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Runs jobs until each has given its first token, then times the steps until all are done; returns
/// tokens a second of the second part.
fn rate(scheduler: &mut Scheduler, jobs: Vec<Job>) -> Result<f64> {
    let mut silent: Vec<_> =
        jobs.into_iter().map(|job| scheduler.add(job)).collect::<Result<_>>()?;
    while !silent.is_empty() {
        for event in scheduler.step() {
            if let Event::Token { id, .. } = event {
                silent.retain(|&s| s != id);
            }
        }
    }
    let (start, mut tokens) = (Instant::now(), 0);
    while scheduler.usage().running > 0 {
        let events = scheduler.step();
        tokens += events.iter().filter(|e| matches!(e, Event::Token { .. })).count();
    }
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

/// Measures a model. Prompts are random ids, replies greedy.
///
/// # Errors
/// If the context is too small for what is to be timed, by name of what.
pub fn decode(model: &Transformer, s: &DecodeSetting) -> Result<DecodeBench> {
    // A token more is drawn, which begins the reply.
    let most = model.config.context.saturating_sub(1);
    for (name, found) in [("--prompt and --tokens", s.prompt + s.tokens), ("--prefill", s.prefill)]
    {
        if found > most {
            let wanted = format!("at most {most} together, with a context of {}", most + 1);
            return Err(Error::parameter(name, wanted, found));
        }
    }
    let start = Instant::now();
    let decoder = Decoder::new(model, s.weights);
    let prepare_seconds = start.elapsed().as_secs_f64();
    let (weights, per_token) = (decoder.weight_bytes(), decoder.bytes_per_token());
    let threads = decoder.team().threads();
    let options = EngineOptions {
        weights: s.weights,
        cache: s.cache,
        batch: s.batch,
        chunk: s.prefill,
        ..Default::default()
    };
    let mut scheduler = Scheduler::with(decoder, &options)?;
    let mut rng = Rng::new(1, 2);
    let vocabulary = model.config.vocabulary;
    // Never the same prompt twice: what is known would not be read.
    let mut job = |prompt: usize, tokens: usize| {
        Job::new((0..prompt).map(|_| rng.below(vocabulary) as u32).collect(), tokens)
    };
    let (mut one, mut many, mut prefill) = (Vec::new(), Vec::new(), Vec::new());
    let (short, half) = (16.min(most / 4).max(1), (s.tokens / 2).max(1));
    // Not counted: a mapped file is read from where it lies.
    rate(&mut scheduler, vec![job(s.prompt, s.tokens + 1)])?;
    // As a server does when nothing is asked for a while.
    danlu_ops::give_back();
    let rss_mb = rss().unwrap_or(f64::NAN) / 1e6;
    let pages = (s.prompt + s.tokens).div_ceil(PAGE);
    let cache_mb = (pages * scheduler.usage().page_bytes) as f64 / 1e6;
    for _ in 0..s.repeats.max(1) {
        one.push(rate(&mut scheduler, vec![job(s.prompt, s.tokens + 1)])?);
        let jobs = (0..s.batch).map(|_| job(short, half + 1)).collect();
        many.push(rate(&mut scheduler, jobs)?);
        scheduler.add(job(s.prefill, 1))?;
        let start = Instant::now();
        while scheduler.usage().running + scheduler.usage().waiting > 0 {
            scheduler.step();
        }
        prefill.push(s.prefill as f64 / start.elapsed().as_secs_f64());
    }
    let peak_rss_mb = peak_rss().unwrap_or(f64::NAN) / 1e6;
    let rate = || danlu_ops::quant::bandwidth(scheduler.decoder().team(), READ, s.repeats);
    let read = rate().max(rate());
    let tokens_per_second = median(one);
    Ok(DecodeBench {
        engine: "danlu".into(),
        format: model.frozen_format().unwrap_or(s.weights).name().into(),
        threads,
        tokens_per_second,
        batch_tokens_per_second: median(many),
        batch: s.batch,
        prefill_tokens_per_second: median(prefill),
        read_gb_per_second: read / 1e9,
        share_of_roofline: tokens_per_second * per_token as f64 / read,
        weights_mb: weights as f64 / 1e6,
        load_seconds: 0.0,
        prepare_seconds,
        file_mb: 0.0,
        cache_mb,
        rss_mb,
        rss_over_file_and_cache: 0.0,
        peak_rss_mb,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_measured() {
        let config = TransformerConfig {
            vocabulary: 100,
            width: 64,
            depth: 1,
            heads: 1,
            kv_heads: 1,
            hidden: 64,
            context: 64,
            ..shape("135m").expect("known")
        };
        let model = Transformer::new(config, 1, &danlu_ops::cpu_device());
        for (name, weights) in WeightFormat::ALL {
            let setting = DecodeSetting {
                weights,
                cache: CacheFormat::Q8,
                prefill: 40,
                prompt: 8,
                tokens: 10,
                batch: 3,
                repeats: 1,
            };
            let b = decode(&model, &setting).expect("fits");
            assert_eq!((b.format.as_str(), b.batch), (name, 3));
            let rates = [b.tokens_per_second, b.batch_tokens_per_second, b.share_of_roofline];
            assert!(rates.iter().all(|r| r.is_finite() && *r > 0.0), "{b:?}");
            // Two pages of 16 tokens: keys and values of a head of 64 bytes, 4 bytes of scale each.
            assert!((4.3e-3..6e-3).contains(&b.cache_mb), "{b:?}");
        }
        // One token is timed as well, and what does not fit is named.
        let one = DecodeSetting {
            weights: WeightFormat::Q8_0,
            cache: CacheFormat::F16,
            prefill: 63,
            prompt: 62,
            tokens: 1,
            batch: 2,
            repeats: 1,
        };
        let b = decode(&model, &one).expect("fits");
        let rates = [b.tokens_per_second, b.batch_tokens_per_second];
        assert!(rates.iter().all(|r| r.is_finite() && *r > 0.0), "{b:?}");
        for (bad, word) in [
            (DecodeSetting { tokens: 2, ..one }, "--prompt and --tokens"),
            (DecodeSetting { prefill: 64, ..one }, "--prefill"),
        ] {
            let error = decode(&model, &bad).expect_err("too long").to_string();
            assert!(error.contains(word) && error.contains("63"), "{error}");
        }
        assert!(shape("1b").expect_err("unknown").to_string().contains("--shape"));
    }
}
