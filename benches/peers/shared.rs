//! What both Rust peers need: the options, the Markov chain of `chain.py`, the timing of a run and
//! its result as JSON. Knows nothing about tensors.

use std::process::{Command, exit};
use std::time::Instant;

/// The command line, with the sizes of the benchmark model as defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// `gpt` or `qwen`.
    pub arch: String,
    /// Steps that are timed.
    pub steps: usize,
    /// Steps before them.
    pub warmup: usize,
    /// Threads; 0 for what the environment says.
    pub threads: usize,
    /// Sequences of a batch.
    pub rows: usize,
    /// Tokens of a sequence.
    pub window: usize,
    /// Layers.
    pub depth: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Print nothing but the result.
    pub json: bool,
}

impl Options {
    /// Reads `--name value` pairs; ends the program with a message on anything else.
    pub fn parse() -> Self {
        let mut o = Self {
            arch: "gpt".into(),
            steps: 10,
            warmup: 2,
            threads: 0,
            rows: 8,
            window: 512,
            depth: 8,
            width: 512,
            heads: 8,
            vocabulary: 8192,
            json: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            if name == "--json" {
                o.json = true;
                continue;
            }
            let value = words.next().unwrap_or_else(|| stop(&format!("{name} needs a value")));
            if name == "--arch" {
                if !["gpt", "qwen"].contains(&value.as_str()) {
                    stop(&format!("--arch: expected gpt or qwen, found {value}"));
                }
                o.arch = value;
                continue;
            }
            let slot = match name.as_str() {
                "--steps" => &mut o.steps,
                "--warmup" => &mut o.warmup,
                "--threads" => &mut o.threads,
                "--rows" => &mut o.rows,
                "--window" => &mut o.window,
                "--depth" => &mut o.depth,
                "--width" => &mut o.width,
                "--heads" => &mut o.heads,
                "--vocabulary" => &mut o.vocabulary,
                _ => stop(&format!("unknown option {name}")),
            };
            *slot = value
                .parse()
                .unwrap_or_else(|_| stop(&format!("{name}: expected a number, found {value}")));
        }
        let sizes = [o.steps, o.rows, o.window, o.depth, o.heads, o.vocabulary];
        if sizes.contains(&0) || !o.width.is_multiple_of(2 * o.heads) {
            stop("sizes must be at least 1, and --width an even multiple of --heads");
        }
        o.set_threads();
        o
    }

    /// Both engines take their threads from these variables, so the program starts itself again
    /// where they say otherwise.
    fn set_threads(&mut self) {
        let names = ["RAYON_NUM_THREADS", "MATMUL_NUM_THREADS"];
        let said = names.map(|n| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(0));
        if self.threads == 0 {
            let cores = || std::thread::available_parallelism().map_or(1, usize::from);
            self.threads = if said[0] > 0 { said[0] } else { cores() };
        }
        if said == [self.threads; 2] {
            return;
        }
        let again = std::env::current_exe().and_then(|program| {
            let count = self.threads.to_string();
            let variables = names.map(|name| (name, &count));
            Command::new(program).args(std::env::args_os().skip(1)).envs(variables).status()
        });
        match again {
            Ok(status) => exit(status.code().unwrap_or(1)),
            Err(error) => stop(&format!("cannot start again with {names:?}: {error}")),
        }
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Danlu's rule: the divisor of `heads` nearest to a third of them.
    pub fn kv_heads(&self) -> usize {
        (1..=self.heads)
            .filter(|k| self.heads.is_multiple_of(*k))
            .min_by_key(|k| (3 * k).abs_diff(self.heads))
            .unwrap_or(1)
    }

    /// Danlu's rule: 8/3 of the width, rounded up to a multiple of 64.
    pub fn hidden(&self) -> usize {
        (self.width * 8 / 3).div_ceil(64) * 64
    }

    /// Cosines and sines of the rotary angles, `[window, head_dim / 2]` each.
    pub fn rotary(&self) -> (Vec<f32>, Vec<f32>) {
        let half = self.head_dim() / 2;
        let angles = (0..self.window * half)
            .map(|i| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64));
        angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip()
    }
}

fn stop(message: &str) -> ! {
    eprintln!("{message}");
    exit(2)
}

/// splitmix64 (Steele, Lea and Flood 2014) of a counter.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One walk over the chain, `count` ids; see `chain.py`.
fn stream(vocabulary: usize, count: usize) -> Vec<u32> {
    let successor = |i: u64| {
        let r = mix(i + 1) >> 40;
        let cube = (((r * r) >> 24) * r) >> 24;
        (cube * vocabulary as u64) >> 24
    };
    let mut token = 0;
    (0..count as u64)
        .map(|i| {
            token = successor(token * 4 + mix(i + (1 << 32)) % 4);
            token as u32
        })
        .collect()
}

/// Inputs and targets of every step, `[rows * window]` each.
pub fn batches(o: &Options) -> Vec<(Vec<u32>, Vec<u32>)> {
    let ids = stream(o.vocabulary, (o.warmup + o.steps) * o.rows * (o.window + 1));
    ids.chunks_exact(o.rows * (o.window + 1))
        .map(|batch| {
            let rows = || batch.chunks_exact(o.window + 1);
            let inputs = rows().flat_map(|row| row[..o.window].to_vec()).collect();
            let targets = rows().flat_map(|row| row[1..].to_vec()).collect();
            (inputs, targets)
        })
        .collect()
}

/// Times `step`, which trains on one batch and returns its loss, and prints the result.
pub fn measure(engine: &str, o: &Options, mut step: impl FnMut(&[u32], &[u32]) -> f32) {
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for (inputs, targets) in batches(o) {
        let start = Instant::now();
        losses.push(step(&inputs, &targets));
        seconds.push(start.elapsed().as_secs_f64());
        if !o.json {
            let (n, loss) = (losses.len(), losses[losses.len() - 1]);
            eprintln!("step {n}: loss {loss:.4}, {:.2} s", seconds[n - 1]);
        }
    }
    let rate = (o.rows * o.window) as f64 / median(&seconds[o.warmup..]);
    let result = serde_json::json!({
        "engine": engine,
        "arch": o.arch,
        "tokens_per_second": (rate * 100.0).round() / 100.0,
        "peak_rss_mb": peak_rss_mb(),
        "threads": o.threads,
        "steps": o.steps,
        "loss_first": losses[0],
        "loss_last": losses[losses.len() - 1],
    });
    println!("{result}");
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// Most resident memory of this process so far, in MB (10^6 bytes); none without /proc.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some((kib * 1024.0 / 1e5).round() / 10.0)
}
