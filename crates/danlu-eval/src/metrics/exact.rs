use super::Metric;

/// 1 where the texts are the same but for case, spaces and closing punctuation.
pub(super) struct Exact;

impl Metric for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn help(&self) -> &'static str {
        "share of replies that are right but for case, spaces and closing punctuation"
    }

    fn applies(&self, _expected: &str, _task: &str) -> bool {
        true
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let wanted = normalise(expected);
        // Of what is punctuation alone nothing would be left to compare.
        f64::from(match wanted.is_empty() {
            true => expected.trim() == got.trim(),
            false => wanted == normalise(got),
        })
    }
}

/// Lower case, one space between words, none outside, no punctuation at the end.
pub(crate) fn normalise(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").to_lowercase();
    let closing = |c: char| c.is_whitespace() || ".,;:!?…。，；：！？、．".contains(c);
    text.trim_end_matches(closing).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_does_not_count() {
        assert_eq!(Exact.score("Grinning face", "  grinning   FACE. "), 1.0);
        assert_eq!(Exact.score("嘿嘿", "嘿嘿。"), 1.0);
        assert_eq!(Exact.score("red heart", "redheart"), 0.0);
        assert_eq!(Exact.score("cat", ""), 0.0);
        assert_eq!(Exact.score("o'clock", "oclock"), 0.0);
        assert_eq!(Exact.score("?", ""), 0.0);
        assert_eq!(Exact.score("...", "?"), 0.0);
        assert_eq!(Exact.score("?", " ?\n"), 1.0);
    }
}
