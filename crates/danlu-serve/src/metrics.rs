//! Counters and histograms in the Prometheus text format, with the names that dashboards of
//! language-model servers know.

use crate::engine::{FinishReason, Usage};
use std::fmt::Write;
use std::sync::Mutex;

/// Upper ends of the buckets of durations, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

#[derive(Debug, Clone, Default)]
struct Histogram {
    buckets: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let at = SECONDS.iter().position(|end| seconds <= *end);
        at.into_iter().for_each(|i| self.buckets[i] += 1);
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let mut seen = 0;
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (end, count) in SECONDS.iter().zip(self.buckets) {
            seen += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{end}\"}} {seen}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", self.sum, self.count);
    }
}

#[derive(Debug, Default)]
struct Values {
    /// Of each model.
    usages: Vec<Usage>,
    first_token: Histogram,
    next_token: Histogram,
    request: Histogram,
    stop: u64,
    length: u64,
    cancelled: u64,
    prompt_tokens: u64,
    generation_tokens: u64,
    cached_tokens: u64,
    http: std::collections::BTreeMap<u16, u64>,
}

/// What `/metrics` shows.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Values>);

impl Metrics {
    fn with<T>(&self, f: impl FnOnce(&mut Values) -> T) -> T {
        // Nothing in here panics half-way, so a poisoned lock holds whole values.
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// A place for the usage of one more model.
    pub(crate) fn model(&self) -> usize {
        self.with(|v| {
            v.usages.push(Usage::default());
            v.usages.len() - 1
        })
    }

    pub(crate) fn usage(&self, model: usize, usage: Usage) {
        self.with(|v| v.usages[model] = usage);
    }

    pub(crate) fn first_token(&self, seconds: f64) {
        self.with(|v| v.first_token.add(seconds));
    }

    pub(crate) fn next_token(&self, seconds: f64) {
        self.with(|v| v.next_token.add(seconds));
    }

    pub(crate) fn request_seconds(&self, seconds: f64) {
        self.with(|v| v.request.add(seconds));
    }

    pub(crate) fn finished(&self, reason: FinishReason) {
        self.with(|v| match reason {
            FinishReason::Stop => v.stop += 1,
            FinishReason::Length => v.length += 1,
            FinishReason::Cancelled => v.cancelled += 1,
        });
    }

    pub(crate) fn tokens(&self, prompt: usize, cached: usize, generated: usize) {
        self.with(|v| {
            v.prompt_tokens += prompt as u64;
            v.cached_tokens += cached as u64;
            v.generation_tokens += generated as u64;
        });
    }

    pub(crate) fn response(&self, status: u16) {
        self.with(|v| *v.http.entry(status).or_default() += 1);
    }

    /// Mean time of a reply so far, in seconds.
    pub(crate) fn mean_seconds(&self) -> Option<f64> {
        self.with(|v| (v.request.count > 0).then(|| v.request.sum / v.request.count as f64))
    }

    /// The whole in the Prometheus text format.
    pub fn text(&self) -> String {
        self.with(|v| {
            let mut out = String::new();
            // Of all models together, and of the cache that is fullest.
            let usage = v.usages.iter().fold(Usage::default(), |sum, one| Usage {
                running: sum.running + one.running,
                waiting: sum.waiting + one.waiting,
                cache: sum.cache.max(one.cache),
                guessed: [0, 1].map(|i| sum.guessed[i] + one.guessed[i]),
            });
            let single = [
                ("num_requests_running", "gauge", "Replies in the making.", usage.running as f64),
                ("num_requests_waiting", "gauge", "Jobs in the queue.", usage.waiting as f64),
                (
                    "kv_cache_usage_perc",
                    "gauge",
                    "Share of the fullest cache in use, 0 to 1.",
                    usage.cache,
                ),
                ("prompt_tokens_total", "counter", "Tokens read.", v.prompt_tokens as f64),
                ("generation_tokens_total", "counter", "Tokens made.", v.generation_tokens as f64),
                (
                    "cached_prompt_tokens_total",
                    "counter",
                    "Tokens of prompts that were known and not read again.",
                    v.cached_tokens as f64,
                ),
                (
                    "guessed_tokens_total",
                    "counter",
                    "Tokens that were guessed.",
                    usage.guessed[0] as f64,
                ),
                (
                    "guesses_right_total",
                    "counter",
                    "Guessed tokens that were right.",
                    usage.guessed[1] as f64,
                ),
            ];
            for (name, kind, help, value) in single {
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
            }
            let name = "request_success_total";
            let _ = writeln!(out, "# HELP {name} Replies that ended.\n# TYPE {name} counter");
            for (reason, n) in [("stop", v.stop), ("length", v.length), ("abort", v.cancelled)] {
                let _ = writeln!(out, "{name}{{finished_reason=\"{reason}\"}} {n}");
            }
            let name = "http_responses_total";
            let _ = writeln!(out, "# HELP {name} Responses by status.\n# TYPE {name} counter");
            for (status, n) in &v.http {
                let _ = writeln!(out, "{name}{{status=\"{status}\"}} {n}");
            }
            for (histogram, name, help) in [
                (&v.first_token, "time_to_first_token_seconds", "From the queue to a token."),
                (&v.next_token, "inter_token_latency_seconds", "From a token to the next."),
                (&v.request, "e2e_request_latency_seconds", "From the queue to the end."),
            ] {
                histogram.write(&mut out, name, help);
            }
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_counted_together() {
        let metrics = Metrics::default();
        let (one, other) = (metrics.model(), metrics.model());
        let usage = Usage { running: 2, waiting: 1, cache: 0.5, guessed: [4, 3] };
        metrics.usage(one, usage);
        metrics.usage(other, Usage { running: 1, cache: 0.25, ..usage });
        metrics.usage(other, usage);
        metrics.usage(other, Usage { running: 1, cache: 0.25, ..usage });
        let text = metrics.text();
        for line in [
            "num_requests_running 3",
            "num_requests_waiting 2",
            "kv_cache_usage_perc 0.5",
            "guessed_tokens_total 8",
            "guesses_right_total 6",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
    }

    #[test]
    fn buckets_are_cumulative_and_end_in_the_count() {
        let metrics = Metrics::default();
        for seconds in [0.0005, 0.02, 0.02, 500.0] {
            metrics.first_token(seconds);
        }
        metrics.finished(FinishReason::Length);
        let text = metrics.text();
        for line in [
            "time_to_first_token_seconds_bucket{le=\"0.001\"} 1",
            "time_to_first_token_seconds_bucket{le=\"0.025\"} 3",
            "time_to_first_token_seconds_bucket{le=\"120\"} 3",
            "time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "time_to_first_token_seconds_count 4",
            "request_success_total{finished_reason=\"length\"} 1",
            "num_requests_running 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
