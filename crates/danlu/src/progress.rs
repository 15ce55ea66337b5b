//! What a person sees of long work: a bar with figures and the time left, or plain lines where
//! the output is not a terminal.

use danlu_train::{Event, Watcher};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

static STOP: AtomicBool = AtomicBool::new(false);

/// Tells a terminal about long work; Ctrl-C or SIGTERM asks it to stop with a checkpoint, a second
/// one ends at once.
pub(crate) struct Terminal {
    bar: Option<ProgressBar>,
    name: String,
    steps: usize,
    first: usize,
    began: Instant,
    last_line: Instant,
    interactive: bool,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        // A handler can be set once; later terminals share it.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("\nstopping with a checkpoint; once more to end at once");
        });
        Self {
            bar: None,
            name: String::new(),
            steps: 0,
            first: 0,
            began: Instant::now(),
            last_line: Instant::now(),
            interactive: std::io::stderr().is_terminal(),
        }
    }
}

impl Watcher for Terminal {
    fn tell(&mut self, event: Event) {
        match event {
            Event::Phase { name, steps, done } => {
                self.began = Instant::now();
                self.last_line = Instant::now();
                (self.steps, self.first) = (steps, done);
                if done > 0 {
                    eprintln!("{name}: going on from step {done}");
                } else {
                    eprintln!("{name} ...");
                }
                self.name = name;
                if self.interactive && steps > 0 {
                    let bar = ProgressBar::new(steps as u64);
                    let style = "{bar:28} {pos}/{len} {msg} | {elapsed} gone, {eta} left";
                    if let Ok(style) = ProgressStyle::with_template(style) {
                        bar.set_style(style);
                    }
                    bar.set_position(done as u64);
                    bar.reset_eta();
                    self.bar = Some(bar);
                }
            }
            Event::Step { done, figures } => match &self.bar {
                Some(bar) => {
                    bar.set_position(done as u64);
                    bar.set_message(figures);
                }
                None => {
                    let last = done == self.steps;
                    if !last && self.last_line.elapsed().as_secs() < 10 {
                        return;
                    }
                    self.last_line = Instant::now();
                    let gone = self.began.elapsed().as_secs_f64();
                    let rate = (done - self.first) as f64 / gone.max(1e-6);
                    let left = (self.steps.saturating_sub(done)) as f64 / rate.max(1e-9);
                    eprintln!(
                        "  {done}/{} {figures} | {gone:.0} s gone, {left:.0} s left",
                        self.steps
                    );
                }
            },
            Event::Logged(_) => {}
            Event::PhaseDone { result } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
                eprintln!("{}: {result} ({:.0} s)", self.name, self.began.elapsed().as_secs_f64());
            }
            Event::Note(text) => match &self.bar {
                Some(bar) => bar.println(format!("note: {text}")),
                None => eprintln!("note: {text}"),
            },
        }
    }

    fn stop(&self) -> bool {
        stop_asked()
    }
}

/// Whether the person has asked to stop.
pub(crate) fn stop_asked() -> bool {
    STOP.load(Ordering::SeqCst)
}
