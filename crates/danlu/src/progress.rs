//! What a person sees of long work: a bar with figures and the time left, or plain lines where
//! the output is not a terminal.

use danlu_train::{Event, Watcher};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Instant;

static STOP: AtomicBool = AtomicBool::new(false);
/// Whether what is at work has something to keep before it stops.
static KEEPS: AtomicBool = AtomicBool::new(true);
static HEARS: Once = Once::new();

/// A file that has reached the largest size that the process may write is an error of that write, which
/// names the file, and not the end of the process without a word.
pub(crate) fn outlive_full_files() {
    // Where it cannot be heard, it ends the process as it does any other.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Begins to hear signals. Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) ask to stop with a
/// checkpoint; a second one ends at once. Who was started to outlive its terminal (nohup) does.
fn hear() {
    let mut heard = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        heard.push(SIGHUP);
    }
    // Without, signals end the process as they do any other.
    let Ok(mut signals) = Signals::new(heard) else { return };
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if STOP.swap(true, Ordering::SeqCst) || !KEEPS.load(Ordering::SeqCst) {
                std::process::exit(130);
            }
            // The terminal may be gone.
            let told = "\nstopping with a checkpoint; once more to end at once";
            let _ = writeln!(std::io::stderr(), "{told}");
        }
    });
}

/// Whether this process was started with a signal ignored, as Linux tells it.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Work that has nothing to keep until it is done: as long as this lives, the first signal ends it.
pub(crate) struct Unkept(());

impl Unkept {
    pub(crate) fn begin() -> Self {
        KEEPS.store(false, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Unkept {
    fn drop(&mut self) {
        KEEPS.store(true, Ordering::SeqCst);
    }
}

/// Tells a terminal about long work, and hears signals.
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
        HEARS.call_once(hear);
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
                    // After the guard went back it may be before where this began.
                    let rate = done.saturating_sub(self.first) as f64 / gone.max(1e-6);
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
