//! Judges what each task costs by itself: one of few tokens among long texts can be ruined and the
//! loss of the step hardly say so.

use super::memory::{KNOWN, Memory};
use super::subject::Limits;
use danlu_core::recipe::GuardRecipe;

/// Losses of a task in a row that are out of line before it is trouble: one may be a hard sample.
const ROW: u64 = 2;
/// A loss has to be so many nats a token over what is expected, and by this share of itself.
const LEAST: f64 = 0.5;
const SHARE: f64 = 0.3;

/// Judges the tasks (a name, a mean, and how many tokens) of a step that begins with `from` (step and
/// sample): what was seen of one that is out of line with itself again.
pub(super) fn judge(
    r: &GuardRecipe,
    limits: &Limits,
    memory: &mut Memory,
    tasks: &[(String, f64, f64)],
    from: [u64; 2],
) -> Option<String> {
    if memory.tasks.len() < 2 {
        // One alone is the loss of the step.
        return None;
    }
    let mut found = None;
    for (name, mean, tokens) in tasks {
        let (Some(lately), Some(lag)) = (memory.tasks.get(name), memory.lags.get(name)) else {
            continue;
        };
        if lately.count < KNOWN || lag.residual.count < r.history as u64 {
            continue;
        }
        let over = lag.above(mean - lately.value);
        let deviations = over / lag.spread(*mean);
        let least = LEAST.max(limits.least).max(limits.nats / tokens.max(1.0));
        if deviations <= r.deviations || over <= least || over <= SHARE * mean.abs() {
            memory.odd.remove(name);
            continue;
        }
        if memory.odd.is_empty() {
            memory.odd_from = from;
        }
        let row = memory.odd.entry(name.clone()).or_default();
        *row += 1;
        if *row >= ROW {
            let expected = mean - over;
            found.get_or_insert(format!(
                "{name} cost {mean:.3} where {expected:.3} is expected of it: {deviations:.1} \
                 deviations, {row} times in a row"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { least: 0.0, nats: 16.0, norm: 20.0, update: 0.25 };

    fn step(memory: &mut Memory, cost: f64, tokens: f64, step: u64) -> Option<String> {
        let tasks = [("file".to_string(), cost, tokens), ("text".to_string(), 3.0, 500.0)];
        let found = judge(&GuardRecipe::default(), &LIMITS, memory, &tasks, [step, 4 * step]);
        memory.learn_tasks(&tasks);
        found
    }

    #[test]
    fn a_task_that_is_ruined_is_seen_and_a_hard_sample_is_not() {
        let mut memory = Memory::default();
        for i in 0..80 {
            let noise = (i * 7 % 11) as f64 / 11.0 - 0.5;
            let cost = 0.8 + 5.0 * (-(i as f64) / 10.0).exp() + 0.2 * noise;
            assert_eq!(step(&mut memory, cost, 20.0, i), None, "step {i}");
        }
        assert_eq!(step(&mut memory.clone(), 6.0, 1.0, 80), None, "a token may cost that");
        assert_eq!(step(&mut memory, 6.0, 20.0, 80), None);
        assert_eq!(step(&mut memory, 0.9, 20.0, 81), None, "it was one sample");
        assert_eq!(step(&mut memory, 6.0, 20.0, 82), None);
        let seen = step(&mut memory, 5.0, 20.0, 83).expect("again");
        assert!(seen.starts_with("file cost 5.000") && seen.contains("2 times"), "{seen}");
        assert_eq!(memory.odd_from, [82, 328]);
        assert!((memory.tasks["file"].value - 0.8).abs() < 0.2, "{:?}", memory.tasks);
        assert!(step(&mut memory, 5.0, 20.0, 84).is_some(), "as long as it lasts");
        assert_eq!(step(&mut memory, 0.8, 20.0, 85), None);
        assert!(memory.odd.is_empty());
    }
}
