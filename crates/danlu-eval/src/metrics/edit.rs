use super::{Metric, normalise};

/// Word error rate; a Chinese character counts as a word.
pub(super) struct WordErrors;

/// Character error rate, spaces not counted.
pub(super) struct CharacterErrors;

impl Metric for WordErrors {
    fn name(&self) -> &'static str {
        "wer"
    }

    fn help(&self) -> &'static str {
        "words to insert, delete or replace, per expected word; mean over replies"
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn applies(&self, _expected: &str, task: &str) -> bool {
        task.starts_with("transcribe")
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        rate(&words(&normalise(expected)), &words(&normalise(got)))
    }
}

impl Metric for CharacterErrors {
    fn name(&self) -> &'static str {
        "cer"
    }

    fn help(&self) -> &'static str {
        "characters to insert, delete or replace, per expected character; mean over replies"
    }

    fn higher_is_better(&self) -> bool {
        false
    }

    fn applies(&self, _expected: &str, task: &str) -> bool {
        task.starts_with("transcribe")
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let [expected, got] = [expected, got].map(|text| {
            normalise(text).chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>()
        });
        rate(&expected, &got)
    }
}

fn words(text: &str) -> Vec<String> {
    let ideograph = |c: char| matches!(c, '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}');
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        if c.is_whitespace() || ideograph(c) {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            if ideograph(c) {
                words.push(c.to_string());
            }
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Levenshtein distance per expected item.
fn rate<T: PartialEq>(expected: &[T], got: &[T]) -> f64 {
    let mut row: Vec<usize> = (0..=got.len()).collect();
    for (i, want) in expected.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, have) in got.iter().enumerate() {
            let replace = diagonal + usize::from(want != have);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[got.len()] as f64 / expected.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted() {
        assert_eq!(WordErrors.score("the red cat sat", "The cat sat down."), 0.5);
        assert_eq!(WordErrors.score("one", ""), 1.0);
        assert_eq!(WordErrors.score("one", "a b c"), 3.0);
        assert_eq!(WordErrors.score("嘿嘿", "嘿哈"), 0.5);
        assert_eq!(CharacterErrors.score("kitten", "sitting"), 0.5);
        assert_eq!(CharacterErrors.score("a b", "ab"), 0.0);
    }

    #[test]
    fn only_transcripts_have_them() {
        assert!(WordErrors.applies("x", "transcribe_en") && !WordErrors.applies("x", "name_en"));
    }
}
