//! Places where a test can hold a process to kill it from outside, and troubles that a test can
//! inject: named in the environment variable `DANLU_FAULT`, inert without it.
//!
//! `hold:renamed@2=/tmp/reached` writes the file when the place `renamed` is passed for the second
//! time and then waits to be killed. `fail:tensors` makes writing tensors of a checkpoint fail.
//! `rate@40=20` multiplies the learning rate by 20 from step 40 on (`rate:image@40=20` that of the
//! image tokeniser), `noise:60@900=0.5` makes half of the tokens of the 60 samples from sample 900 on
//! random, `infinite:60@900` gives them infinite weights in the loss, and `nan:model.layers.1@40` puts one NaN into the first parameter of that name before step
//! 40, `large:model.layers.1@40` a value of 1,000; `collapse:layers.1.mlp.gate@40=4` makes the rows of that router equal before step 40 and the three after it. Several are separated by `;`.

use danlu_core::{Document, Rng};
use danlu_model::Module;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

#[derive(Debug, Clone, PartialEq)]
struct Fault {
    kind: String,
    what: String,
    at: u64,
    value: String,
}

fn parse(text: &str) -> Vec<Fault> {
    let each = text.split(';').filter(|t| !t.is_empty()).map(|entry| {
        let (place, value) = entry.split_once('=').unwrap_or((entry, ""));
        let (name, at) = place.split_once('@').unwrap_or((place, ""));
        let (kind, what) = name.split_once(':').unwrap_or((name, ""));
        let at = at.parse().unwrap_or(1);
        Fault { kind: kind.into(), what: what.into(), at, value: value.into() }
    });
    each.collect()
}

fn faults() -> &'static [Fault] {
    static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();
    FAULTS.get_or_init(|| parse(&std::env::var("DANLU_FAULT").unwrap_or_default()))
}

/// A place in the path of a save. Waits here for ever if a test asked for it.
pub(crate) fn point(place: &str) {
    for fault in faults().iter().filter(|f| f.kind == "hold" && f.what == place) {
        static PASSED: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);
        let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        let count = passed.get_or_insert_default().entry(place.to_string()).or_default();
        *count += 1;
        if *count == fault.at {
            drop(passed);
            // If the file cannot be written, the test that waits for it says so.
            let _ = std::fs::write(&fault.value, place);
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    }
}

/// Whether the operation `what` should fail.
pub(crate) fn fails(what: &str) -> bool {
    faults().iter().any(|f| f.kind == "fail" && f.what == what)
}

/// What the learning rate of a part of a run is multiplied with at `step`.
pub(crate) fn rate(phase: &str, step: u64) -> f32 {
    let begun = |f: &&Fault| f.kind == "rate" && f.what == phase && f.at <= step;
    faults().iter().find(begun).map_or(1.0, |f| f.value.parse().unwrap_or(1.0))
}

/// Makes some of the ids of sample `index` random, or its weights infinite, if it is one of those.
pub(crate) fn spoil(document: &mut Document, index: u64, seed: u64, vocabulary: usize) {
    for fault in faults().iter().filter(|f| f.kind == "noise" || f.kind == "infinite") {
        let count: u64 = fault.what.parse().unwrap_or(0);
        if !(fault.at..fault.at + count).contains(&index) {
            continue;
        }
        if fault.kind == "infinite" {
            document.weights.fill(f32::INFINITY);
            continue;
        }
        let share: f32 = fault.value.parse().unwrap_or(0.0);
        let mut rng = Rng::new(seed ^ 0x6e_6f69_7365, index);
        for id in document.ids.iter_mut().skip(1) {
            if rng.unit() < share {
                *id = rng.below(vocabulary) as u32;
            }
        }
    }
}

/// Damages the first parameter that a fault of this step names: one value becomes no number or a large one, or all rows
/// of a router the same, so that it sends every token to the same experts. A training that has gone back is
/// left alone.
pub(crate) fn poison(module: &mut dyn Module, step: u64) {
    /// The step after the last that was damaged.
    static NEXT: Mutex<u64> = Mutex::new(0);
    let damages = |f: &&Fault| {
        let lasts = f.value.parse().unwrap_or(1);
        ["nan", "large", "collapse"].contains(&f.kind.as_str())
            && (f.at..f.at + lasts).contains(&step)
    };
    for fault in faults().iter().filter(damages) {
        let all = module.parameters_mut();
        let Some(p) = all.into_iter().find(|p| p.name.contains(&fault.what)) else { continue };
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        if step < *next {
            *next = u64::MAX;
        } else {
            *next = step + 1;
            let mut values = p.values();
            match fault.kind.as_str() {
                "nan" => values[0] = f32::NAN,
                "large" => values[0] = 1e3,
                _ => {
                    let row = values[..p.shape[1]].to_vec();
                    values.chunks_exact_mut(row.len()).for_each(|r| r.copy_from_slice(&row));
                }
            }
            p.set(values);
            p.tensor = p.tensor.clone().require_grad();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_none_is_there_by_default() {
        let all = parse("hold:renamed@2=/tmp/x;rate@40=20;nan:model.layers.1@3=1;fail:tensors");
        let fault = |kind: &str, what: &str, at, value: &str| Fault {
            kind: kind.into(),
            what: what.into(),
            at,
            value: value.into(),
        };
        let want = [
            fault("hold", "renamed", 2, "/tmp/x"),
            fault("rate", "", 40, "20"),
            fault("nan", "model.layers.1", 3, "1"),
            fault("fail", "tensors", 1, ""),
        ];
        assert_eq!(all, want);
        assert!(parse("").is_empty());
        let whole = Document { ids: vec![1, 2, 3], weights: vec![1.0; 3], task: 0 };
        let mut document = whole.clone();
        spoil(&mut document, 7, 1, 100);
        assert_eq!((rate("", 1000), document, fails("tensors")), (1.0, whole, false));
    }
}
