//! Scores of a text against the text that was expected.
//!
//! To add a metric: a file beside this one, and a line in [`ALL`].

mod boxes;
mod chrf;
mod edit;
mod exact;

pub use boxes::{BoxHits, BoxIou, Names, Place, overlap, places};
pub use chrf::Chrf;
pub use edit::{CharacterErrors, WordErrors};
pub use exact::{Exact, normalised};

/// A score of one reply.
pub trait Metric: Sync {
    /// Short name, as in reports.
    fn name(&self) -> &'static str;
    /// What it measures, in a few words.
    fn help(&self) -> &'static str;
    /// Whether replies to this task with this expected text are scored by it.
    fn applies(&self, task: &str, expected: &str) -> bool;
    /// Whether more is better.
    fn higher_is_better(&self) -> bool {
        true
    }
    /// The score of `got`; 1 is perfect if higher is better, else 0.
    fn score(&self, expected: &str, got: &str) -> f64;
}

/// Every metric, in the order of reports.
pub const ALL: &[&dyn Metric] =
    &[&Exact, &Chrf, &WordErrors, &CharacterErrors, &BoxIou, &BoxHits, &Names];

/// Whether a text holds places.
fn has_places(text: &str) -> bool {
    text.contains("<loc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_perfect_on_the_expected_and_worse_on_nothing() {
        for (task, expected) in [
            ("name", "red apple"),
            ("transcribe", "红苹果"),
            ("list_objects", "cat<loc1><loc2><loc30><loc40>; dog<loc5><loc6><loc20><loc20>"),
        ] {
            let applied: Vec<_> = ALL.iter().filter(|m| m.applies(task, expected)).collect();
            assert!(!applied.is_empty(), "{task}");
            for metric in applied {
                let (best, worst) = if metric.higher_is_better() { (1.0, 0.0) } else { (0.0, 1.0) };
                assert_eq!(metric.score(expected, expected), best, "{}", metric.name());
                assert_eq!(metric.score(expected, ""), worst, "{}", metric.name());
            }
        }
        let mut names: Vec<_> = ALL.iter().map(|m| m.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
