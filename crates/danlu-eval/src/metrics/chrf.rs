use super::{Metric, has_places};
use std::collections::HashMap;

/// Character n-gram F-score (Popović 2015): n from 1 to 6, recall twice as important as precision,
/// white space ignored. Orders that neither text is long enough for do not count.
#[derive(Debug, Clone, Copy)]
pub struct Chrf;

const ORDERS: usize = 6;
const BETA: f64 = 2.0;

impl Metric for Chrf {
    fn name(&self) -> &'static str {
        "chrF"
    }

    fn help(&self) -> &'static str {
        "overlap of character n-grams with the expected text"
    }

    fn applies(&self, _task: &str, expected: &str) -> bool {
        !has_places(expected)
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let characters = |text: &str| -> Vec<char> {
            text.chars().filter(|c| !c.is_whitespace()).collect()
        };
        let (expected, got) = (characters(expected), characters(got));
        if expected.is_empty() || got.is_empty() {
            return f64::from(expected.is_empty() && got.is_empty());
        }
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for n in 1..=ORDERS.min(expected.len().max(got.len())) {
            let (wanted, given) = (grams(&expected, n), grams(&got, n));
            let both: usize = given
                .iter()
                .map(|(gram, &count)| count.min(wanted.get(gram).copied().unwrap_or(0)))
                .sum();
            let share = |n: usize| if n == 0 { 0.0 } else { both as f64 / n as f64 };
            precision += share(given.values().sum());
            recall += share(wanted.values().sum());
            orders += 1.0;
        }
        let (p, r) = (precision / orders, recall / orders);
        if p + r == 0.0 { 0.0 } else { (1.0 + BETA * BETA) * p * r / (BETA * BETA * p + r) }
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
    fn follows_the_formula() {
        // Unigrams: 2 of 3 and 2 of 3; bigrams: 1 of 2 and 1 of 2; trigrams: none of 1.
        let mean = (2.0 / 3.0 + 0.5) / 3.0;
        assert!((Chrf.score("abc", "abd") - mean).abs() < 1e-12);
        // Precision 1 for all orders, recall 2/4, 1/3, 0, 0 and precision of 3, 4 absent.
        let (p, r): (f64, f64) = (2.0 / 4.0, (0.5 + 1.0 / 3.0) / 4.0);
        assert!((Chrf.score("abcd", "ab") - 5.0 * p * r / (4.0 * p + r)).abs() < 1e-12);
        assert_eq!(Chrf.score("a b", "ab"), 1.0);
        assert_eq!(Chrf.score("abc", "xyz"), 0.0);
    }
}
