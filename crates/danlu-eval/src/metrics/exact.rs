use super::{Metric, has_places};

/// Whether the reply is the expected one: case, width of letters, spaces and final punctuation
/// aside.
#[derive(Debug, Clone, Copy)]
pub struct Exact;

impl Metric for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn help(&self) -> &'static str {
        "share of replies that are the expected text"
    }

    fn applies(&self, _task: &str, expected: &str) -> bool {
        !has_places(expected)
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        f64::from(normalised(expected) == normalised(got))
    }
}

/// Lower case, full-width letters and digits made narrow, runs of white space made one space, none
/// of it nor punctuation at the end. A text of nothing but punctuation keeps it.
pub fn normalised(text: &str) -> String {
    let narrow = |c: char| match c {
        '\u{3000}' => ' ',
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        _ => c,
    };
    let text: String = text.chars().map(narrow).flat_map(char::to_lowercase).collect();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let last = |c: char| c.is_whitespace() || ".!?,;:。！？…，；：、".contains(c);
    let kept = text.trim_end_matches(last);
    if kept.is_empty() { text } else { kept.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgives_form_and_nothing_else() {
        for (expected, got, same) in [
            ("red apple", "  Red  Apple. ", true),
            ("ABC 12", "ａｂｃ　１２", true),
            ("红苹果", "红苹果。", true),
            ("?", "?", true),
            ("?", "", false),
            ("red apple", "red apples", false),
            ("keycap: 1", "keycap: 2", false),
        ] {
            assert_eq!(Exact.score(expected, got) == 1.0, same, "{expected:?} {got:?}");
        }
    }
}
