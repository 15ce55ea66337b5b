mod serve;

use crate::answer::model_folder;
use danlu_core::recipe::Recompute;
use danlu_core::{BaseFormat, Error, LoraConfig, Result};
use danlu_model::engine::{CacheFormat, WeightFormat};
use danlu_model::{Model, Transformer};
use danlu_train::bench::{Arch, DecodeSetting, Setting, decode, shape, train};
use std::path::PathBuf;

/// Measure how fast this machine trains and decodes, what each operation takes, and matrix products
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Train on synthetic ids: tokens a second, share of the multiply-add peak, memory, time of
    /// each operation
    Train(TrainArgs),
    /// Learn an adapter (LoRA) of a model on given ids: tokens a second, memory, losses
    Tune(TuneArgs),
    /// Decode random prompts: tokens a second of one reply, of several together and of reading a
    /// prompt, and the share of what the memory's rate allows
    Decode(DecodeArgs),
    /// Answer streams over HTTP: tokens a second end to end, time to the first token, errors and
    /// memory, of a model here or of any server
    Serve(serve::Args),
    /// Each operation of training by itself, forward and backward
    Ops {
        /// Repetitions; the median counts
        #[arg(long, default_value_t = 9, value_parser = counted)]
        repeats: usize,
        /// Only those whose names hold this, `attention` say
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Matrix products of the shapes of training
    Gemm {
        /// Repetitions; the median counts
        #[arg(long, default_value_t = 15, value_parser = counted)]
        repeats: usize,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct TrainArgs {
    /// Architecture: GPT-2's or Danlu's own
    #[arg(long, value_enum, default_value = "gpt")]
    arch: ArchArg,
    /// Layers
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 512)]
    width: usize,
    /// Heads
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Token ids
    #[arg(long, default_value_t = 8192)]
    vocabulary: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// Rows of a batch
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Steps that are measured
    #[arg(long, default_value_t = 10, value_parser = counted)]
    steps: usize,
    /// Steps before them
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Blocks that the backward pass runs again, for less memory: none, all, or numbers as in 0,2
    #[arg(long, value_name = "BLOCKS", default_value = "none")]
    recompute: Recompute,
    /// One JSON object instead of a table; `ops_ms` in it are milliseconds a step
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct TuneArgs {
    /// Model or run folder
    #[arg(long)]
    model: PathBuf,
    /// File of u32 ids, little-endian, rows x (window + 1) of them a step
    #[arg(long)]
    ids: PathBuf,
    /// Rows of a batch
    #[arg(long, default_value_t = 4)]
    rows: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// Inner dimensions of the adapter, which is for all projections
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Keep the base in 8 or 4 bits
    #[arg(long, value_enum)]
    base: Option<BaseArg>,
    /// Learning rate
    #[arg(long, default_value_t = 2e-4)]
    rate: f32,
    /// One JSON object instead of a few lines
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct DecodeArgs {
    /// Model folder [default: the reference model]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Random weights of a shape instead of a model: 135m or 360m
    #[arg(long, conflicts_with = "model")]
    shape: Option<String>,
    /// Weights: f32, f16, q8_0, q4_0 or q4_k; those of a compressed model stay as they are
    #[arg(long, default_value = "q8_0", value_parser = weight_format)]
    format: WeightFormat,
    /// Keys and values: f32, f16 or q8
    #[arg(long, default_value = "f16", value_parser = cache_format)]
    cache: CacheFormat,
    /// Tokens of the prompt whose reading is timed [default: 512, or half of the context]
    #[arg(long, value_parser = counted)]
    prefill: Option<usize>,
    /// Tokens before the reply that is timed [default: 128, or a quarter of the context]
    #[arg(long, value_parser = counted)]
    prompt: Option<usize>,
    /// Tokens of that reply [default: 128, or a quarter of the context]
    #[arg(long, value_parser = counted)]
    tokens: Option<usize>,
    /// Replies together, each half as long after a prompt of 16, or of a quarter of the context
    #[arg(long, default_value_t = 8, value_parser = counted)]
    batch: usize,
    /// Repetitions; the medians count
    #[arg(long, default_value_t = 5, value_parser = counted)]
    repeats: usize,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// A number of things of which there is at least one.
pub(super) fn counted(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number from 1 on".into())
}

pub(super) fn weight_format(name: &str) -> std::result::Result<WeightFormat, String> {
    WeightFormat::parse(name).ok_or_else(|| "f32, f16, q8_0, q4_0 or q4_k".into())
}

pub(super) fn cache_format(name: &str) -> std::result::Result<CacheFormat, String> {
    CacheFormat::parse(name).ok_or_else(|| "f32, f16 or q8".into())
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum BaseArg {
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ArchArg {
    Gpt,
    Qwen,
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.what {
        What::Train(args) => run_train(args),
        What::Decode(args) => run_decode(args),
        What::Tune(args) => run_tune(args),
        What::Serve(args) => serve::run(args),
        What::Ops { repeats, only, json } => {
            let rates = danlu_train::bench::ops(repeats, &only);
            if rates.rows.is_empty() {
                let expected = "a part of an operation's name; `danlu bench ops` shows all of them";
                return Err(Error::parameter("--only", expected, format!("`{only}`")));
            }
            table(json, rates)
        }
        What::Gemm { repeats, json } => table(json, danlu_train::bench::gemm(repeats)),
    }
}

/// Prints what was measured, as one JSON object or as a table.
fn table(json: bool, rates: danlu_train::bench::Rates) -> Result<()> {
    if json {
        return print_json(&rates);
    }
    println!("multiply-add peak {:.0} GFLOP/s on {} threads", rates.fma_peak_gflops, rates.threads);
    for row in &rates.rows {
        let rate = match row.gflops {
            Some(g) => format!("{g:8.1} GFLOP/s {:4.0} %", 100.0 * g / rates.fma_peak_gflops),
            None => format!("{:8.1} GB/s", row.gigabytes_per_second.unwrap_or(f64::NAN)),
        };
        println!("{:<44} {:9.3} ms {rate}", row.name, row.milliseconds);
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::Other(e.to_string()))?;
    println!("{text}");
    Ok(())
}

fn run_tune(args: TuneArgs) -> Result<()> {
    let folder = crate::answer::model_folder(Some(args.model))?;
    let alpha = 2.0 * args.rank as f32;
    let lora = LoraConfig { rank: args.rank, alpha, ..LoraConfig::default() };
    lora.check()?;
    let sizes = [args.rows.max(1), args.window.max(1)];
    let base = args.base.map(|b| match b {
        BaseArg::Q8 => BaseFormat::Q8_0,
        BaseArg::Q4 => BaseFormat::Q4_0,
    });
    let b = danlu_train::bench::tune(&folder, &args.ids, sizes, &lora, base, args.rate)?;
    if args.json {
        return print_json(&b);
    }
    println!(
        "{:.0} tokens/s, {:.2} M parameters learn",
        b.tokens_per_second,
        b.learns as f64 / 1e6
    );
    println!("memory: {:.0} MB, tensors of operations {:.0} MB", b.peak_rss_mb, b.peak_tensors_mb);
    let (first, last) = (b.losses[0], b.losses[b.losses.len() - 1]);
    println!("loss: {first:.4} at first, {last:.4} at last");
    Ok(())
}

fn run_train(args: TrainArgs) -> Result<()> {
    let setting = Setting {
        arch: match args.arch {
            ArchArg::Gpt => Arch::Gpt,
            ArchArg::Qwen => Arch::Qwen,
        },
        depth: args.depth,
        width: args.width,
        heads: args.heads,
        vocabulary: args.vocabulary,
        window: args.window,
        rows: args.rows,
        steps: args.steps.max(1),
        warmup: args.warmup,
        recompute: args.recompute,
    };
    let b = train(&setting)?;
    if args.json {
        return print_json(&b);
    }
    println!(
        "{:.0} tokens/s, {:.1} % of {:.0} GFLOP/s on {} threads",
        b.tokens_per_second,
        100.0 * b.mfu,
        b.fma_peak_gflops,
        b.threads
    );
    println!(
        "memory: {:.0} MB, tensors {:.0} MB, predicted {:.0} MB",
        b.peak_rss_mb, b.peak_tensors_mb, b.predicted_peak_mb
    );
    println!("loss: {:.4} at first, {:.4} at last", b.loss_first, b.loss_last);
    let mut ops: Vec<_> = b.ops_ms.iter().collect();
    ops.sort_by(|a, b| b.1.total_cmp(a.1));
    let all: f64 = b.ops_ms.values().sum();
    for (name, ms) in ops {
        println!("  {name:<28} {ms:9.2} ms {:5.1} %", 100.0 * ms / all);
    }
    Ok(())
}

fn run_decode(args: DecodeArgs) -> Result<()> {
    let device = danlu_ops::cpu_device();
    let begun = std::time::Instant::now();
    let (mut model, file_mb) = match &args.shape {
        Some(name) => (Transformer::new(shape(name)?, 1, &device), 0.0),
        None => {
            let folder = model_folder(args.model)?;
            let file = Model::weights_file(&folder);
            let bytes = std::fs::metadata(&file).map_err(|e| Error::io(&file, e))?.len();
            (Model::load(&folder, &device)?.transformer, bytes as f64 / 1e6)
        }
    };
    let load_seconds = if args.shape.is_some() { 0.0 } else { begun.elapsed().as_secs_f64() };
    // The tokenisers are not needed here.
    danlu_ops::give_back();
    let context = model.config.context;
    let up_to = |asked: Option<usize>, usual: usize, part: usize| {
        asked.unwrap_or(usual.min(context / part).max(1))
    };
    let setting = DecodeSetting {
        weights: args.format,
        cache: args.cache,
        prefill: up_to(args.prefill, 512, 2),
        prompt: up_to(args.prompt, 128, 4),
        tokens: up_to(args.tokens, 128, 4),
        batch: args.batch.max(1),
        repeats: args.repeats,
    };
    if model.frozen_format().is_none() {
        // In place, so that the two forms of the weights are not in memory together.
        let nearest = danlu_model::compress::Rounding::Nearest;
        danlu_model::compress::quantise(&mut model, args.format, nearest, &mut |_| {})?;
        danlu_ops::give_back();
    }
    let b = decode(&model, &setting)?;
    let over = if file_mb > 0.0 { b.rss_mb / (file_mb + b.cache_mb) } else { 0.0 };
    let b = danlu_train::bench::DecodeBench {
        load_seconds,
        file_mb,
        rss_over_file_and_cache: over,
        ..b
    };
    if args.json {
        return print_json(&b);
    }
    println!(
        "{}: {:.0} tokens/s, {:.0} % of what {:.1} GB/s allow on {} threads",
        b.format,
        b.tokens_per_second,
        100.0 * b.share_of_roofline,
        b.read_gb_per_second,
        b.threads
    );
    println!("{} together: {:.0} tokens/s", b.batch, b.batch_tokens_per_second);
    println!("reading {} tokens: {:.0} tokens/s", setting.prefill, b.prefill_tokens_per_second);
    println!(
        "weights: {:.1} MB, opened in {:.2} s, prepared in {:.2} s; memory after one reply {:.0} MB \
         (file {:.1}, keys and values {:.1}), at most {:.0} MB",
        b.weights_mb,
        b.load_seconds,
        b.prepare_seconds,
        b.rss_mb,
        b.file_mb,
        b.cache_mb,
        b.peak_rss_mb
    );
    Ok(())
}
