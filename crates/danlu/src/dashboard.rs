//! A live view of a training in the terminal: below the bar a line for each curve, from the first
//! step to the last. Where the output is no terminal, plain lines.

use crate::progress::{Terminal, stop_asked};
use danlu_train::pretrain::LogLine;
use danlu_train::{Event, Watcher};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Columns of a curve.
const COLUMNS: usize = 48;

/// Points of a curve that are remembered; when there are more, every second one is dropped.
const POINTS: usize = 16 * COLUMNS;

/// Who is told of a run whose recipe asks for a dashboard or does not.
pub(crate) fn watcher(dashboard: bool) -> Box<dyn Watcher> {
    // Sets what Ctrl-C does as well.
    let plain = Terminal::new();
    if !dashboard || !std::io::stderr().is_terminal() {
        return Box::new(plain);
    }
    Box::new(Dashboard {
        all: MultiProgress::new(),
        bar: None,
        lines: BTreeMap::new(),
        view: View::default(),
        drawn: None,
    })
}

struct Dashboard {
    all: MultiProgress,
    bar: Option<ProgressBar>,
    lines: BTreeMap<String, ProgressBar>,
    view: View,
    drawn: Option<Instant>,
}

impl Dashboard {
    fn say(&self, text: String) {
        // A terminal that cannot be written to is no reason to stop a training.
        let _ = self.all.println(text);
    }

    fn clear(&mut self) {
        let bars = self.bar.take().into_iter().chain(std::mem::take(&mut self.lines).into_values());
        bars.for_each(|bar| bar.finish_and_clear());
        self.view = View::default();
    }

    fn draw(&mut self) {
        if self.drawn.is_some_and(|at| at.elapsed() < Duration::from_millis(200)) {
            return;
        }
        self.drawn = Some(Instant::now());
        for (name, line) in self.view.lines() {
            let bar = self.lines.entry(name).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{msg}") {
                    bar.set_style(style);
                }
                bar
            });
            bar.set_message(line);
        }
    }
}

impl Watcher for Dashboard {
    fn tell(&mut self, event: Event) {
        match event {
            Event::Phase { name, steps, done } => {
                self.clear();
                let from =
                    if done > 0 { format!(": going on from step {done}") } else { "".into() };
                self.say(format!("{name}{from}"));
                let bar = self.all.add(ProgressBar::new(steps as u64));
                let style = "{bar:48} {pos}/{len} {msg} | {elapsed} gone, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style);
                }
                bar.set_position(done as u64);
                bar.reset_eta();
                self.bar = Some(bar);
            }
            Event::Step { done, figures } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done as u64);
                    bar.set_message(figures);
                }
            }
            Event::Logged(line) => {
                self.view.log(&line);
                self.draw();
            }
            Event::PhaseDone { result } => {
                self.clear();
                self.say(result);
            }
            Event::Note(text) => self.say(format!("note: {text}")),
        }
    }

    fn stop(&self) -> bool {
        stop_asked()
    }
}

type Points = Vec<(usize, f64)>;

/// The curves.
#[derive(Default)]
struct View {
    curves: BTreeMap<String, Points>,
    stride: usize,
}

impl View {
    fn log(&mut self, line: &LogLine) {
        let stride = self.stride.max(1);
        let losses = line.modality.iter().map(|(name, loss)| (format!("loss, {name}"), *loss));
        let others = [("norm of gradients", line.norm), ("tokens a second", line.speed)];
        let others = others.map(|(name, value)| (name.to_string(), value));
        for (name, value) in losses.chain(others) {
            let curve = self.curves.entry(name).or_default();
            // The run may have gone back.
            curve.retain(|(step, _)| *step < line.step);
            if line.step.is_multiple_of(stride) {
                curve.push((line.step, value));
            }
        }
        if self.curves.values().any(|curve| curve.len() > POINTS) {
            self.stride = 2 * stride;
            for curve in self.curves.values_mut() {
                curve.retain(|(step, _)| step.is_multiple_of(2 * stride));
            }
        }
    }

    /// A line for each curve, by its name.
    fn lines(&self) -> Vec<(String, String)> {
        let line = |(name, points): (&String, &Points)| {
            let values: Vec<f64> = points.iter().map(|p| p.1).collect();
            let last = values.last().copied().unwrap_or(f64::NAN);
            let digits = if last.abs() >= 100.0 { 0 } else { 3 };
            let line = format!("{name:18} {} {last:.digits$}", spark(&values, COLUMNS));
            (name.clone(), line)
        };
        self.curves.iter().map(line).collect()
    }
}

/// Means of equally long stretches as blocks of eight heights, from the lowest value to the highest.
fn spark(values: &[f64], columns: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = columns.min(values.len());
    let means: Vec<f64> = (0..columns)
        .map(|c| {
            let some = &values[c * values.len() / columns..(c + 1) * values.len() / columns];
            some.iter().sum::<f64>() / some.len() as f64
        })
        .collect();
    let finite = || means.iter().copied().filter(|m| m.is_finite());
    let (low, high) = (finite().fold(f64::MAX, f64::min), finite().fold(f64::MIN, f64::max));
    let block = |mean: &f64| {
        if !mean.is_finite() {
            return '×';
        }
        let height = (mean - low) / (high - low).max(1e-12);
        BLOCKS[((height * 7.0).round() as usize).min(7)]
    };
    means.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize) -> LogLine {
        let text = format!(
            r#"{{"step":{step},"tokens":1,"loss":2.0,"modality":{{"text":{}}},"task":{{}},"norm":1.0,
            "rate":1.0,"speed":250.0,"utilisation":0.5}}"#,
            5.0 - 0.001 * step as f64
        );
        serde_json::from_str(&text).expect("a line of the log")
    }

    #[test]
    fn curves_go_down_where_losses_do_and_stay_short() {
        let mut view = View::default();
        (1..=3000).for_each(|step| view.log(&line(step)));
        assert!(view.curves.values().all(|c| (POINTS / 4..=POINTS).contains(&c.len())));
        let lines = view.lines();
        let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["loss, text", "norm of gradients", "tokens a second"]);
        let (_, loss) = &lines[0];
        assert!(loss.contains("██") && loss.contains("▁▁") && loss.ends_with(" 2.000"), "{loss}");
        // The run goes back: what came after is gone.
        view.log(&line(1000));
        assert!(view.curves.values().all(|c| c.iter().all(|p| p.0 <= 1000)));
    }

    #[test]
    fn a_value_that_is_no_number_is_seen() {
        assert_eq!(spark(&[1.0, f64::NAN, 8.0], 10), "▁×█");
        assert_eq!(spark(&[], 10), "");
    }
}
