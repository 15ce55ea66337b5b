use super::Metric;
use std::collections::HashMap;

const ORDERS: usize = 6;
const BETA: f64 = 2.0;

/// Character n-gram F-score (Popović 2015), over the orders that both texts are long enough for, as
/// sacrebleu has it.
pub(super) struct Chrf;

impl Metric for Chrf {
    fn name(&self) -> &'static str {
        "chrf"
    }

    fn help(&self) -> &'static str {
        "overlap of runs of 1 to 6 characters, recall counting twice (chrF2); mean over replies"
    }

    fn applies(&self, _expected: &str, _task: &str) -> bool {
        true
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let [expected, got] = [expected, got]
            .map(|t| t.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>());
        if expected.is_empty() || got.is_empty() {
            return f64::from(expected == got);
        }
        // Orders that one of the texts is too short for say nothing about it.
        let (mut precision, mut recall) = (Mean::default(), Mean::default());
        for n in 1..=ORDERS {
            let (want, have) = (grams(&expected, n), grams(&got, n));
            let shared: usize =
                have.iter().map(|(gram, &c)| c.min(want.get(gram).copied().unwrap_or(0))).sum();
            if n <= got.len().min(expected.len()) {
                precision.add(shared, got.len() - (n - 1));
                recall.add(shared, expected.len() - (n - 1));
            }
        }
        let (p, r) = (precision.value(), recall.value());
        let b = BETA * BETA;
        if p + r == 0.0 { 0.0 } else { (1.0 + b) * p * r / (b * p + r) }
    }
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, part: usize, whole: usize) {
        self.sum += part as f64 / whole as f64;
        self.count += 1;
    }

    fn value(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

fn grams(text: &[char], n: usize) -> HashMap<&[char], usize> {
    let mut counts = HashMap::new();
    for gram in text.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_case_by_hand() {
        // "abc" against "abd": 1-grams 2/3, 2-grams 1/2, 3-grams 0/1, both ways.
        let expected = (2.0 / 3.0 + 0.5 + 0.0) / 3.0;
        assert!((Chrf.score("abc", "abd") - expected).abs() < 1e-12);
        // "ab" against "abab", both of which have 1-grams and 2-grams: precision (2/4 + 1/3)/2, recall 1.
        let (p, r) = ((0.5 + 1.0 / 3.0) / 2.0, 1.0);
        assert!((Chrf.score("ab", "abab") - 5.0 * p * r / (4.0 * p + r)).abs() < 1e-12);
        // What sacrebleu 2 says.
        for (expected, got, score) in [
            ("cat", "a cat", 0.8984),
            ("cat", "cats and dogs", 0.5471),
            ("red apple", "red apples", 0.9617),
        ] {
            assert!((Chrf.score(expected, got) - score).abs() < 1e-4, "{expected} {got}");
        }
    }

    #[test]
    fn ends_of_the_scale() {
        assert_eq!(Chrf.score("red heart", "redheart"), 1.0);
        assert_eq!(Chrf.score("abc", "xyz"), 0.0);
        assert_eq!(Chrf.score("abc", ""), 0.0);
    }
}
