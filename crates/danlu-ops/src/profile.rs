//! Where the time of a step goes: an opt-in clock around every operation, forward and backward. An
//! operation that runs inside another one is on its own clock alone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

static ON: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<BTreeMap<String, Timed>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Seconds on the clocks of operations inside the one that this thread runs.
    static INSIDE: Cell<f64> = const { Cell::new(0.0) };
}

/// What one operation took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timed {
    /// Seconds in all.
    pub seconds: f64,
    /// Number of calls.
    pub calls: u64,
}

/// Begins to measure, from nothing.
pub fn start_profile() {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    ON.store(true, Ordering::Relaxed);
}

/// Ends measuring; what was measured, by operation and direction (`linear`, `linear back`).
pub fn take_profile() -> BTreeMap<String, Timed> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut *TIMES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `f`, on the clock if one is running.
pub(crate) fn timed<R>(name: &str, direction: &str, f: impl FnOnce() -> R) -> R {
    if !ON.load(Ordering::Relaxed) {
        return f();
    }
    let before = INSIDE.replace(0.0);
    let start = Instant::now();
    let result = f();
    let seconds = start.elapsed().as_secs_f64();
    let inside = INSIDE.replace(before + seconds);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = times.entry(format!("{name}{direction}")).or_default();
    entry.seconds += seconds - inside;
    entry.calls += 1;
    result
}
