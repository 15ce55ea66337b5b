use super::*;

/// Plain text: a stretch of a document, in one of the packs' languages.
pub(super) struct PlainText(pub(super) &'static str);

/// Fewest and most characters of a stretch, unless the recipe says so; Chinese takes about half as
/// many for as many tokens.
const LENGTHS: (usize, usize) = (200, danlu_core::recipe::STRETCH);

impl Task for PlainText {
    fn name(&self) -> &'static str {
        match self.0 {
            "en" => "text_en",
            "zh" => "text_zh",
            _ => "code",
        }
    }

    fn help(&self) -> &'static str {
        match self.0 {
            "en" => "plain English text",
            "zh" => "plain Chinese text",
            _ => "plain program text",
        }
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        let fits = |i: &usize| {
            let doc = &corpus.texts[*i];
            doc.language == self.0 && (doc.split == Split::Train) == view.is_trained()
        };
        // Nearly all texts fit, so guessing is cheaper than listing them.
        let count = corpus.texts.len();
        let guessed = (0..if count == 0 { 0 } else { 50 }).map(|_| rng.below(count)).find(fits);
        let i = match guessed {
            Some(i) => i,
            None => one(&(0..count).filter(fits).collect::<Vec<_>>(), rng)?,
        };
        let scale = if self.0 == "zh" { 2 } else { 1 };
        let most = if corpus.stretch == 0 { LENGTHS.1 } else { corpus.stretch };
        let fewest = most * LENGTHS.0 / LENGTHS.1;
        let length = (fewest + rng.below(most - fewest)) / scale;
        Some(Drawn::Text(stretch(&corpus.texts[i].text, length, self.0 == "code", rng)))
    }
}

/// About `length` characters of `text` that begin at its start or after the end of a line or, if
/// it is no code, of a sentence.
fn stretch(text: &str, length: usize, code: bool, rng: &mut Rng) -> String {
    let total = text.chars().count();
    if total <= length {
        return text.to_string();
    }
    let skip = rng.below(total - length + 1);
    let mut rest = text.char_indices().skip(skip);
    let ends = |c: char| c == '\n' || (!code && matches!(c, '.' | '。' | '！' | '？'));
    // On to the next end, if it comes soon enough to leave half of the stretch.
    let end = rest.clone().take(length / 2).find(|&(_, c)| ends(c));
    let start = match end {
        _ if skip == 0 => 0,
        Some((i, c)) => i + c.len_utf8(),
        None => rest.next().map_or(0, |(i, _)| i),
    };
    let blank: &[char] = if code { &['\n'] } else { &['\n', ' '] };
    let found: String = text[start..].trim_start_matches(blank).chars().take(length).collect();
    if found.is_empty() { text.chars().take(length).collect() } else { found }
}
