use super::{Metric, normalised};

/// Word error rate: words put in, left out and exchanged, over the words expected. A Chinese,
/// Japanese or Korean character is a word.
#[derive(Debug, Clone, Copy)]
pub struct WordErrors;

/// Character error rate, white space ignored.
#[derive(Debug, Clone, Copy)]
pub struct CharacterErrors;

impl Metric for WordErrors {
    fn name(&self) -> &'static str {
        "word error rate"
    }

    fn help(&self) -> &'static str {
        "words wrong, missing or too many, over the words expected"
    }

    fn applies(&self, task: &str, _expected: &str) -> bool {
        task.starts_with("transcribe")
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        rate(&words(&normalised(expected)), &words(&normalised(got)))
    }
}

impl Metric for CharacterErrors {
    fn name(&self) -> &'static str {
        "character error rate"
    }

    fn help(&self) -> &'static str {
        "characters wrong, missing or too many, over the characters expected"
    }

    fn applies(&self, task: &str, _expected: &str) -> bool {
        task.starts_with("transcribe")
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let characters = |text: &str| -> Vec<char> {
            normalised(text).chars().filter(|c| !c.is_whitespace()).collect()
        };
        rate(&characters(expected), &characters(got))
    }
}

fn words(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for c in text.chars() {
        let alone = matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}'
            | '\u{ac00}'..='\u{d7af}' | '\u{20000}'..='\u{3ffff}');
        if alone {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    spaced.split_whitespace().map(String::from).collect()
}

/// Levenshtein distance over the expected length.
fn rate<T: PartialEq>(expected: &[T], got: &[T]) -> f64 {
    if expected.is_empty() {
        return f64::from(!got.is_empty());
    }
    let mut row: Vec<usize> = (0..=got.len()).collect();
    for (i, wanted) in expected.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, given) in got.iter().enumerate() {
            let exchanged = corner + usize::from(wanted != given);
            corner = row[j + 1];
            row[j + 1] = exchanged.min(corner + 1).min(row[j] + 1);
        }
    }
    row[got.len()] as f64 / expected.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_kind_of_error() {
        for (expected, got, words, characters) in [
            ("the red cat", "the red cat.", 0.0, 0.0),
            ("the red cat", "the bed cat", 1.0 / 3.0, 1.0 / 9.0),
            ("the red cat", "red cat", 1.0 / 3.0, 3.0 / 9.0),
            ("cat", "the cat", 1.0, 1.0),
            ("红苹果", "红平果", 1.0 / 3.0, 1.0 / 3.0),
        ] {
            assert!((WordErrors.score(expected, got) - words).abs() < 1e-12, "{got}");
            assert!((CharacterErrors.score(expected, got) - characters).abs() < 1e-12, "{got}");
        }
    }
}
