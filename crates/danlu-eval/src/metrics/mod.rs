//! Scores of a text against the expected one. One file per metric, one line each in [`METRICS`].

mod boxes;
mod chrf;
mod edit;
mod exact;

pub use boxes::{Box2, boxes, mean_iou};
pub(crate) use exact::normalise;

/// Every metric of texts, in the order of reports.
pub const METRICS: &[&dyn Metric] =
    &[&exact::Exact, &chrf::Chrf, &edit::WordErrors, &edit::CharacterErrors, &boxes::Iou];

/// A way to compare two texts.
pub trait Metric: Sync {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// What it measures, in one line.
    fn help(&self) -> &'static str;

    /// Whether more of it is better. If so the worst is 0, otherwise what counts as failure is 1.
    fn higher_is_better(&self) -> bool {
        true
    }

    /// Whether it says something of replies to `task` where `expected` is right.
    fn applies(&self, expected: &str, task: &str) -> bool;

    /// How good `got` is.
    fn score(&self, expected: &str, got: &str) -> f64;
}

/// The metric called `name`.
pub fn metric(name: &str) -> Option<&'static dyn Metric> {
    METRICS.iter().copied().find(|m| m.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_every_metric_likes_the_right_answer() {
        for (i, m) in METRICS.iter().enumerate() {
            assert!(METRICS[..i].iter().all(|other| other.name() != m.name()));
            let text = "a cat <loc1><loc2><loc30><loc40>";
            let best = if m.higher_is_better() { 1.0 } else { 0.0 };
            assert_eq!(m.score(text, text), best, "{}", m.name());
            let other = m.score(text, "zzz qqq");
            assert!((other - best).abs() > 0.5, "{}: {other}", m.name());
        }
        assert!(metric("chrf").is_some() && metric("nothing").is_none());
    }
}
