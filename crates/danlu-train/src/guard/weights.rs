//! Judges whether the weights are what the last update left: a value in memory or in a checkpoint that
//! changed by itself need not show in the loss of a step.

use super::subject::{Subject, memory_of, values};
use super::{Trouble, group};
use crate::incident::Cause;
use danlu_ops::squared_norm;
use std::collections::BTreeMap;

/// A parameter that grew by so many times what the peak rate moves values by is not as an update left it.
const APART: f64 = 30.0;

/// How the names of averages begin, here as in checkpoints.
const AVERAGE: &str = "average.";

/// Compares the weights, and their averages, with those of the step before, and remembers them. Those of
/// one layer alone that have grown by far more than an update can, or are not finite, are damaged.
pub(super) fn judge<S: Subject>(subject: &mut S, from: [u64; 2]) -> Option<Trouble> {
    let rate = f64::from(subject.peak_rate()?);
    let mut now: Vec<(String, usize, f64)> = {
        let module = subject.module();
        let parameters = module.parameters();
        parameters.iter().map(|p| (p.name.clone(), p.len(), squared_norm(&values(p)))).collect()
    };
    if let Some(averages) = subject.averages() {
        let named = averages.iter().zip(&now);
        let named =
            named.map(|(a, (name, len, _))| (format!("{AVERAGE}{name}"), *len, squared_norm(a)));
        let named: Vec<_> = named.collect();
        now.extend(named);
    }
    let memory = memory_of(subject);
    let grown: Vec<&(String, usize, f64)> =
        now.iter().filter(|one| has_grown(&memory.squares, one, rate)).collect();
    let layer = |name: &str| group(name.strip_prefix(AVERAGE).unwrap_or(name));
    let layers: Vec<String> = grown.iter().map(|(name, ..)| layer(name)).collect();
    // What moves all layers is a rate.
    let damaged = grown.first().filter(|_| layers.iter().all(|l| *l == layers[0])).map(|first| {
        let (name, _, squares) = first;
        let before = memory.squares.get(name).map_or(f64::NAN, |s| s.sqrt());
        Trouble {
            cause: Cause::Hardware,
            from,
            layer: Some(name.clone()),
            evidence: vec![format!(
                "the norm of {name} is {:.3e} and was {before:.3e} before the last step: no step did \
                 that",
                squares.sqrt()
            )],
            factor: 1.0,
            leave_out: false,
        }
    });
    if damaged.is_none() {
        memory.squares = now.into_iter().map(|(name, _, squares)| (name, squares)).collect();
    }
    damaged
}

/// Whether a parameter (a name, a length, the sum of its squares) is not as an update left it.
fn has_grown(
    before: &BTreeMap<String, f64>,
    (name, len, now): &(String, usize, f64),
    rate: f64,
) -> bool {
    if !now.is_finite() {
        return true;
    }
    let Some(before) = before.get(name).map(|squares| squares.sqrt()) else { return false };
    let now = now.sqrt();
    now > 2.0 * before && now - before > APART * rate * (*len as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_update_can_do_is_no_damage() {
        let before = BTreeMap::from([("a".to_string(), 4.0), ("b".to_string(), 0.0)]);
        let grown =
            |name: &str, norm: f64| has_grown(&before, &(name.into(), 100, norm * norm), 0.01);
        assert!(!grown("a", 3.9) && !grown("a", 2.0 + 2.9) && grown("a", 2.0 + 3.1));
        // From nothing, as half of an adapter begins; of what was not there before.
        assert!(!grown("b", 0.1) && grown("b", 4.0) && !grown("c", 1e9));
        assert!(grown("a", f64::NAN) && grown("c", f64::INFINITY));
    }
}
