//! How fast streams are answered over HTTP, by a model of this process or by any server.

use super::super::serve::{Engine, hosted, name};
use super::{cache_format, print_json, weight_format};
use crate::answer::model_folder;
use danlu_core::{Error, Result};
use danlu_model::engine::{CacheFormat, WeightFormat};
use danlu_serve::load::{Load, LoadReport};
use danlu_serve::{Catalogue, Options, Server};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Model folder to answer with, in this process [default: the reference model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Ask a server that runs already instead, as http://HOST:PORT/v1
    #[arg(long, conflicts_with = "model", requires = "name")]
    url: Option<String>,
    /// Name of the model there
    #[arg(long, requires = "url")]
    name: Option<String>,
    /// Weights: f32, f16, q8_0, q4_0 or q4_k; those of a folder that keeps few bits stay as they are
    #[arg(long, default_value = "q8_0", value_parser = weight_format)]
    weights: WeightFormat,
    /// Keys and values: f32, f16 or q8
    #[arg(long, default_value = "f16", value_parser = cache_format)]
    cache: CacheFormat,
    /// Clients at a time
    #[arg(long, default_value_t = 8, value_parser = super::counted)]
    streams: usize,
    /// Requests of all clients together, after one of each that is not counted
    #[arg(long, default_value_t = 32, value_parser = super::counted)]
    requests: usize,
    /// Words of a prompt, about one token each
    #[arg(long, default_value_t = 128, value_parser = super::counted)]
    words: usize,
    /// Words of them that every prompt begins with
    #[arg(long, default_value_t = 0)]
    shared: usize,
    /// Most tokens of a reply
    #[arg(long, default_value_t = 128, value_parser = super::counted)]
    tokens: usize,
    /// Temperature of drawing
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Prompts that say their words twice and begin a third time: replies that repeat them, where
    /// guesses are right (give --temperature 0 too, and compare with --no-lookup)
    #[arg(long)]
    repeat: bool,
    /// Do not guess what repeats an earlier text
    #[arg(long)]
    no_lookup: bool,
    /// One JSON object instead of a few lines
    #[arg(long)]
    json: bool,
}

/// What was measured. The names are read by scripts and stay.
#[derive(Serialize)]
struct Report {
    /// Format of the weights, of a model of this process.
    weights: Option<String>,
    /// Seconds from its folder to being ready.
    load_seconds: Option<f64>,
    /// Memory of this process once it was ready, after the load, and the most ever, in MB.
    ready_rss_mb: Option<f64>,
    rss_mb: Option<f64>,
    peak_rss_mb: Option<f64>,
    /// Tokens of prompts that were known from earlier ones, tokens that were guessed, and those of
    /// them that were right; all without the requests that are not counted.
    cached_prompt_tokens: Option<f64>,
    guessed_tokens: Option<f64>,
    guesses_right: Option<f64>,
    #[serde(flatten)]
    load: LoadReport,
}

pub(super) fn run(args: Args) -> Result<()> {
    let mut load = Load {
        url: args.url.clone().unwrap_or_default(),
        model: args.name.clone().unwrap_or_default(),
        streams: args.streams.max(1),
        requests: args.requests.max(1),
        words: args.words,
        shared: args.shared,
        repeat: args.repeat,
        tokens: args.tokens.max(1),
        temperature: args.temperature,
    };
    let report = if args.url.is_some() {
        Report {
            weights: None,
            load_seconds: None,
            ready_rss_mb: None,
            rss_mb: None,
            peak_rss_mb: None,
            cached_prompt_tokens: None,
            guessed_tokens: None,
            guesses_right: None,
            load: load.run()?,
        }
    } else {
        let folder = model_folder(args.model)?;
        load.model = name(&folder);
        let weights = format(&folder).unwrap_or_else(|| args.weights.name().into());
        let engine = Engine {
            weights: args.weights,
            cache: args.cache,
            cache_tokens: None,
            batch: load.streams,
        };
        let options = Options {
            port: 0,
            max_batch: load.streams,
            lookup: !args.no_lookup,
            ..Options::default()
        };
        let start = Instant::now();
        let mut server = Server::start(options, move |host| {
            Catalogue::new(vec![hosted(host, &folder, &mut Vec::new(), engine, None)?])
        })?;
        server.loaded()?;
        let load_seconds = start.elapsed().as_secs_f64();
        let ready = memory("VmRSS:");
        load.url = format!("http://{}/v1", server.address);
        let (measured, before) = watched(&load, &server);
        let after = server.metrics();
        let metric = |name| Some(value(&after, name)? - value(&before, name).unwrap_or(0.0));
        let report = Report {
            weights: Some(weights),
            load_seconds: Some(load_seconds),
            ready_rss_mb: ready,
            rss_mb: memory("VmRSS:"),
            peak_rss_mb: memory("VmHWM:"),
            cached_prompt_tokens: metric("cached_prompt_tokens_total"),
            guessed_tokens: metric("guessed_tokens_total"),
            guesses_right: metric("guesses_right_total"),
            load: measured?,
        };
        server.stop();
        report
    };
    if args.json {
        return print_json(&report);
    }
    show(&report);
    match &report.load.first_error {
        Some(why) => Err(Error::Other(format!("{} errors; {why}", report.load.errors))),
        None => Ok(()),
    }
}

/// Asks, and what the server's counters were once the replies that are not counted had ended: the
/// clients wait for one another then.
fn watched(load: &Load, server: &Server) -> (Result<LoadReport>, String) {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| load.run());
        let mut before = String::new();
        while before.is_empty() && !asking.is_finished() {
            if ended(&server.metrics()) >= load.streams as f64 {
                // Read again: a reply's tokens are added after its end.
                before = server.metrics();
            } else {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        let gone = |_| Err(Error::Other("a client ended before it had its answers".into()));
        (asking.join().unwrap_or_else(gone), before)
    })
}

/// A counter in the text of a server's metrics.
fn value(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find(|l| l.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

/// Replies that ended, for whatever reason.
fn ended(metrics: &str) -> f64 {
    let lines = metrics.lines().filter(|l| l.starts_with("request_success_total{"));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn show(report: &Report) {
    let load = &report.load;
    println!(
        "{} streams, {} requests, {} errors: {:.0} tokens/s end to end over {:.1} s",
        load.streams, load.requests, load.errors, load.tokens_per_second, load.seconds
    );
    println!(
        "first token: {:.0} ms in half, {:.0} ms in 95 of 100; whole replies {:.2} and {:.2} s",
        1e3 * load.first_token_p50_s,
        1e3 * load.first_token_p95_s,
        load.request_p50_s,
        load.request_p95_s
    );
    println!("{} tokens of prompts, {} of replies", load.prompt_tokens, load.completion_tokens);
    if let Some(cached) = report.cached_prompt_tokens {
        println!("{cached} tokens of prompts were known from earlier ones");
    }
    if let (Some(made), Some(right)) = (report.guessed_tokens, report.guesses_right) {
        println!("{made} tokens were guessed, {right} of them rightly");
    }
    if let (Some(weights), Some(seconds)) = (&report.weights, report.load_seconds) {
        let megabytes = |value: Option<f64>| value.unwrap_or(f64::NAN);
        println!(
            "weights {weights}, ready in {seconds:.2} s; memory {:.0} MB then, {:.0} MB now, {:.0} MB at most",
            megabytes(report.ready_rss_mb),
            megabytes(report.rss_mb),
            megabytes(report.peak_rss_mb)
        );
    }
}

/// The format of a folder that keeps its weights in few bits: they are answered with as they are.
fn format(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("danlu.json")).ok()?;
    let info: serde_json::Value = serde_json::from_str(&text).ok()?;
    info["weights"].as_str().map(Into::into)
}

/// A line of this process's status in MB, where the system tells.
fn memory(line: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(line))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_name() {
        let text = "# HELP guessed_tokens_total x\nguessed_tokens_total 8\n\
                    request_success_total{finished_reason=\"stop\"} 2\n\
                    request_success_total{finished_reason=\"length\"} 3\n";
        assert_eq!(value(text, "guessed_tokens_total"), Some(8.0));
        assert_eq!((value(text, "guessed"), ended(text)), (None, 5.0));
    }
}
