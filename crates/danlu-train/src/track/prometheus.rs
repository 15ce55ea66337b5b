//! A file in the text format of Prometheus, for the textfile collector of a node exporter.

use super::{End, Track};
use danlu_core::{Error, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Rewrites the file with the newest figures, at most once a second.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    run: String,
    last: Option<Instant>,
    newest: Option<(u64, Vec<(String, f64)>)>,
}

impl File {
    pub(super) fn new(path: PathBuf, run: &str) -> Self {
        Self { path, run: run.to_string(), last: None, newest: None }
    }

    fn write(&mut self, running: bool) -> Result<()> {
        let Some((step, figures)) = &self.newest else { return Ok(()) };
        let text = text(&self.run, *step, figures, running);
        // A reader sees the old file or the new one. That it survives a power cut is not needed.
        let part = self.path.with_extension("part");
        std::fs::write(&part, text).map_err(|e| Error::io(&part, e))?;
        std::fs::rename(&part, &self.path).map_err(|e| Error::io(&self.path, e))?;
        self.last = Some(Instant::now());
        Ok(())
    }
}

impl Track for File {
    fn name(&self) -> &'static str {
        "prometheus"
    }

    fn step(&mut self, step: u64, figures: &[(String, f64)]) -> Result<()> {
        self.newest = Some((step, figures.to_vec()));
        match self.last {
            Some(last) if last.elapsed() < Duration::from_secs(1) => Ok(()),
            _ => self.write(true),
        }
    }

    fn back(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: End) -> Result<()> {
        self.write(false)
    }
}

/// A gauge for every group of figures; what comes after a `/` in a figure's name is its label `of`.
fn text(run: &str, step: u64, figures: &[(String, f64)], running: bool) -> String {
    let mut out = String::new();
    let fixed = [("step", step as f64), ("running", f64::from(u8::from(running)))];
    let mut lines: Vec<(String, String, f64)> =
        fixed.into_iter().map(|(name, value)| (name.to_string(), String::new(), value)).collect();
    for (name, value) in figures {
        let (group, of) = name.split_once('/').unwrap_or((name, ""));
        lines.push((group.to_string(), of.to_string(), *value));
    }
    // All lines of a metric must be together.
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let mut before = String::new();
    for (group, of, value) in lines {
        if group != before {
            out += &format!("# TYPE danlu_train_{group} gauge\n");
            before = group.clone();
        }
        let of = if of.is_empty() { String::new() } else { format!(",of=\"{}\"", escaped(&of)) };
        let value = match value {
            v if v.is_nan() => "NaN".to_string(),
            f64::INFINITY => "+Inf".to_string(),
            f64::NEG_INFINITY => "-Inf".to_string(),
            v => v.to_string(),
        };
        out += &format!("danlu_train_{group}{{run=\"{}\"{of}}} {value}\n", escaped(run));
    }
    out
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_together_and_typed_once() {
        let figures = [
            ("loss".to_string(), 2.5),
            ("rate".to_string(), f64::NAN),
            ("loss/te\"xt".to_string(), 1.5),
        ];
        let want = "# TYPE danlu_train_loss gauge\n\
                    danlu_train_loss{run=\"a\"} 2.5\n\
                    danlu_train_loss{run=\"a\",of=\"te\\\"xt\"} 1.5\n\
                    # TYPE danlu_train_rate gauge\n\
                    danlu_train_rate{run=\"a\"} NaN\n\
                    # TYPE danlu_train_running gauge\n\
                    danlu_train_running{run=\"a\"} 1\n\
                    # TYPE danlu_train_step gauge\n\
                    danlu_train_step{run=\"a\"} 7\n";
        assert_eq!(text("a", 7, &figures, true), want);
    }

    #[test]
    fn the_last_figures_are_written_at_the_end() {
        let path = std::env::temp_dir().join(format!("danlu-prom-{}.prom", std::process::id()));
        let mut file = File::new(path.clone(), "a");
        (1..=3).for_each(|step| file.step(step, &[]).expect("writes"));
        file.end(End::Finished).expect("writes");
        let text = std::fs::read_to_string(&path).expect("there");
        assert!(
            text.contains("step{run=\"a\"} 3") && text.contains("running{run=\"a\"} 0"),
            "{text}"
        );
        std::fs::remove_file(&path).expect("removes");
    }
}
