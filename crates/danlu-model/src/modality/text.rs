//! Text: byte-level BPE, so that any UTF-8 comes back exactly, and of imported models the pieces of
//! SentencePiece too. Imported tokenisers may have special tokens of their own; no text becomes one.

use crate::io::read_regular;
use danlu_core::{Error, Result};
use std::ops::Range;
use std::path::Path;
use tokenizers::Tokenizer;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// Longest `tokenizer.json`, in bytes.
const LONGEST: u64 = 256 << 20;

/// How SentencePiece writes a blank.
pub(crate) const BLANK: char = '\u{2581}';

/// The tokeniser of text.
#[derive(Debug, Clone)]
pub struct TextTokeniser {
    tokenizer: Tokenizer,
    /// The same for text that is not the first of a conversation, where that makes a difference: what
    /// puts a blank before the first word puts none here.
    later: Option<Box<Tokenizer>>,
    specials: Vec<Special>,
    /// Whether entries are written in bytes, rather than as pieces of SentencePiece.
    byte_level: bool,
    /// What it puts before a text.
    begin: Option<u32>,
}

/// A token that stands for itself and is no text: a turn's end, a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Special {
    /// Its id.
    pub id: u32,
    /// How a template writes it.
    pub content: String,
    /// Whether it takes the blanks before it.
    lstrip: bool,
    /// Whether it takes the blanks after it.
    rstrip: bool,
}

impl TextTokeniser {
    /// Learns merges from `texts` up to `vocabulary` entries, the 256 bytes included.
    pub fn train<'a>(texts: impl Iterator<Item = &'a str> + Send, vocabulary: u32) -> Result<Self> {
        let mut tokenizer = Tokenizer::new(BPE::default());
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(bytes));
        tokenizer.with_decoder(Some(bytes));
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(vocabulary as usize)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut trainer: TrainerWrapper = trainer.into();
        tokenizer
            .train(&mut trainer, texts)
            .map_err(|e| Error::Other(format!("the text tokeniser could not be trained: {e}")))?;
        Ok(Self::of(tokenizer))
    }

    fn of(mut tokenizer: Tokenizer) -> Self {
        let mut specials: Vec<Special> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, t)| t.special && !t.content.is_empty())
            .map(|(id, t)| Special { id, content: t.content, lstrip: t.lstrip, rstrip: t.rstrip })
            .collect();
        // The longest first: where two begin at one place, the longer one is meant.
        specials.sort_by(|a, b| b.content.len().cmp(&a.content.len()).then(a.id.cmp(&b.id)));
        tokenizer.set_encode_special_tokens(true);
        // What cuts or fills the texts of a batch; a file that was saved in a training may have them.
        tokenizer.with_padding(None);
        if let Err(error) = tokenizer.with_truncation(None) {
            unreachable!("no truncation is always possible: {error}");
        }
        let later = without_blank(&tokenizer).map(Box::new);
        let decoder = tokenizer.get_decoder().and_then(|d| serde_json::to_string(d).ok());
        let byte_level = decoder.is_none_or(|d| d.contains("\"ByteLevel\""));
        let ids = |specials: bool| {
            tokenizer.encode_fast("a", specials).map(|e| e.get_ids().to_vec()).unwrap_or_default()
        };
        let (bare, whole) = (ids(false), ids(true));
        // What it puts after a text is not for one that is to go on.
        let at = (!bare.is_empty()).then(|| whole.windows(bare.len()).position(|ids| ids == bare));
        let begin = match at.flatten().map(|at| &whole[..at]) {
            Some(&[begin]) => Some(begin),
            _ => None,
        };
        Self { tokenizer, later, specials, byte_level, begin }
    }

    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &read_regular(path, LONGEST)?)
    }

    /// Reads the bytes of a `tokenizer.json`; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        // The library panics on a decoder that is no JSON.
        #[derive(serde::Deserialize)]
        struct Whole {
            #[serde(rename = "decoder")]
            _decoder: Option<serde_json::Value>,
        }
        const WANTED: &str = "a tokenizer.json of the tokenizers library";
        let wrong = |found: &dyn std::fmt::Display| Error::file(path, WANTED, found);
        serde_json::from_slice::<Whole>(bytes).map_err(|e| wrong(&e))?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| wrong(&e))?;
        // The last is a character that no vocabulary has.
        let this = Self::of(tokenizer);
        if let Err(error) = this.tokenizer.encode_fast("a 1\n\u{e9}!\u{10FFFD}", false) {
            return Err(Error::file(path, "a tokenizer.json that encodes every text", error));
        }
        Ok(this)
    }

    /// The same where these tokens are special, whatever the file says of them: what a checkpoint names as
    /// the end of a text stands for that.
    pub(crate) fn with_specials(self, tokens: &[&str], path: &Path) -> Result<Self> {
        let text = |token: &&&str| {
            let special = self.specials.iter().any(|s| s.content == **token);
            !token.is_empty() && !special && self.id(token).is_some()
        };
        let named: Vec<&str> = tokens.iter().filter(text).copied().collect();
        if named.is_empty() {
            return Ok(self);
        }
        let wrong = |e: serde_json::Error| Error::file(path, "a tokenizer.json", e);
        let mut all: serde_json::Value = serde_json::from_str(&self.to_json()?).map_err(wrong)?;
        let serde_json::Value::Array(added) = &mut all["added_tokens"] else { return Ok(self) };
        for token in named {
            match added.iter_mut().find(|a| a["content"] == token) {
                Some(there) => there["special"] = true.into(),
                None => added.push(serde_json::json!({"id": self.id(token), "content": token,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": true})),
            }
        }
        added.sort_by_key(|a| a["id"].as_u64());
        Self::parse(path, all.to_string().as_bytes())
    }

    /// The text of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        self.tokenizer.to_string(true).map_err(|e| Error::Other(format!("tokenizer.json: {e}")))
    }

    /// Number of entries.
    pub fn size(&self) -> u32 {
        self.tokenizer.get_vocab_size(true) as u32
    }

    /// The highest id of an entry; 0 without any.
    pub fn highest(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Its special tokens, the longest first.
    pub fn specials(&self) -> &[Special] {
        &self.specials
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token of an id, as the file writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Bytes of each entry by id; special entries are the bytes of their names.
    pub fn entries(&self) -> Vec<Vec<u8>> {
        let added = self.tokenizer.get_added_tokens_decoder();
        (0..self.size())
            .map(|id| match (added.get(&id), self.tokenizer.id_to_token(id)) {
                (Some(token), _) => token.content.clone().into_bytes(),
                (None, Some(word)) if self.byte_level => {
                    word.chars().flat_map(entry_bytes).collect()
                }
                (None, Some(word)) => piece_bytes(&word),
                (None, None) => Vec::new(),
            })
            .collect()
    }

    /// What it puts before a text (`<s>`), if it puts anything there. Templates of conversations write
    /// their own.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// Whether decoding leaves out a blank before the first word, as encoding puts one there.
    pub fn leads_with_blank(&self) -> bool {
        let first = self.encode("a").first().and_then(|&id| self.token(id));
        !self.byte_level && first.is_some_and(|token| token.starts_with(BLANK))
    }

    /// Ids of `text`, without any special token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_in(text, true)
    }

    /// Ids of a text that stands behind something else.
    pub fn encode_later(&self, text: &str) -> Vec<u32> {
        self.encode_in(text, false)
    }

    fn encode_in(&self, text: &str, first: bool) -> Vec<u32> {
        let encoding = self.of_place(first).encode_fast(text, false);
        encoding.expect("a checked tokeniser encodes every string").get_ids().to_vec()
    }

    /// The same with the byte at which each begins; `first` if nothing is before the text.
    pub fn encode_at(&self, text: &str, first: bool) -> Vec<(u32, usize)> {
        let encoding = self.of_place(first).encode(text, false);
        let encoding = encoding.expect("a checked tokeniser encodes every string");
        let starts = encoding.get_offsets().iter().map(|o| o.0);
        encoding.get_ids().iter().copied().zip(starts).collect()
    }

    fn of_place(&self, first: bool) -> &Tokenizer {
        self.later.as_deref().filter(|_| !first).unwrap_or(&self.tokenizer)
    }

    /// Pieces of a template's text: special tokens with their ids, and what is between them.
    pub fn split(&self, text: &str) -> Vec<(Range<usize>, Option<u32>)> {
        let mut out = Vec::new();
        let (mut plain, mut at) = (0, 0);
        while at < text.len() {
            let rest = &text[at..];
            let Some(special) = self.specials.iter().find(|s| rest.starts_with(&s.content)) else {
                at += rest.chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let before = &text[plain..at];
            let before = if special.lstrip { before.trim_end() } else { before };
            if !before.is_empty() {
                out.push((plain..plain + before.len(), None));
            }
            let end = at + special.content.len();
            out.push((at..end, Some(special.id)));
            let blanks = text[end..].len() - text[end..].trim_start().len();
            at = if special.rstrip { end + blanks } else { end };
            plain = at;
        }
        if plain < text.len() {
            out.push((plain..text.len(), None));
        }
        out
    }

    /// Text of ids, without special tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }
}

/// A tokeniser that puts a blank before the first word of a text alone, without that blank; `None` if
/// it does not.
fn without_blank(tokenizer: &Tokenizer) -> Option<Tokenizer> {
    let mut steps = tokenizer.get_pre_tokenizer()?.clone();
    let mut changed = false;
    let mut change = |step: &mut PreTokenizerWrapper| {
        if let PreTokenizerWrapper::Metaspace(m) = step
            && m.get_prepend_scheme() == PrependScheme::First
        {
            m.set_prepend_scheme(PrependScheme::Never);
            changed = true;
        }
    };
    match &mut steps {
        PreTokenizerWrapper::Sequence(all) => all.as_mut().iter_mut().for_each(change),
        step => change(step),
    }
    changed.then(|| {
        let mut later = tokenizer.clone();
        later.with_pre_tokenizer(Some(steps));
        later
    })
}

/// The byte that a piece of SentencePiece stands for, if it is written as one (`<0x0A>`).
pub(crate) fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x").and_then(|p| p.strip_suffix('>'));
    digits.filter(|d| d.len() == 2).and_then(|d| u8::from_str_radix(d, 16).ok())
}

/// The bytes of a piece of SentencePiece.
fn piece_bytes(piece: &str) -> Vec<u8> {
    let text = || piece.replace(BLANK, " ").into_bytes();
    byte_of_piece(piece).map_or_else(text, |byte| vec![byte])
}

/// The byte that a character of an entry stands for. Byte-level tokenisers write printable Latin-1
/// as it is and the other bytes, in order, from U+0100; any other character is its own UTF-8.
fn entry_bytes(c: char) -> Vec<u8> {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    match u32::from(c) {
        code @ 0..=255 if printable(code as u8) => vec![code as u8],
        code @ 256..=323 => {
            let other = (0..=255).filter(|&b| !printable(b)).nth(code as usize - 256);
            other.into_iter().collect()
        }
        _ => c.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokeniser() -> TextTokeniser {
        let texts = ["a cat and a dog and a cat", "红苹果和绿苹果", "fn main() { let x = 1; }"];
        TextTokeniser::train(texts.into_iter(), 300).expect("trains")
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC*") {
            let t = tokeniser();
            proptest::prop_assert_eq!(t.decode(&t.encode(&text)), text);
        }
    }

    #[test]
    fn bytes_of_entries_are_the_text() {
        let t = tokeniser();
        let entries = t.entries();
        for text in ["a cat 红苹果 \u{0}\u{7f}", "é\u{ad}\u{a0}", "fn main() {\n\t}"] {
            let bytes: Vec<u8> =
                t.encode(text).iter().flat_map(|&id| entries[id as usize].clone()).collect();
            assert_eq!(String::from_utf8(bytes).expect("UTF-8"), text);
        }
    }

    #[test]
    fn odd_text_comes_back() {
        let t = tokeniser();
        for text in ["", " ", "\n\t  x", "\u{0}\u{202e}", "👩‍🚀🇨🇳", "<|end|>", "e\u{301}", "ﬁ①"]
        {
            assert_eq!(t.decode(&t.encode(text)), text);
        }
        assert!(t.encode("<|end|>").len() > 1, "control tokens are not text");
    }

    #[test]
    fn a_file_that_is_no_json_is_refused_wherever_it_ends() {
        let json = tokeniser().to_json().expect("json");
        let parse = |text: &str| TextTokeniser::parse("tokenizer.json".as_ref(), text.as_bytes());
        assert!(parse(&json).is_ok());
        let decoder = json.find("\"decoder\"").expect("there is one");
        for (from, to) in
            [(":", ": x"), ("{", "{ \"a\": \"\\ud800\","), ("{", "{,"), ("{", "{\u{1}")]
        {
            let broken = json[decoder..].replacen(from, to, 1);
            let error = parse(&(json[..decoder].to_string() + &broken)).expect_err(to).to_string();
            assert!(error.contains("tokenizer.json"), "{error}");
        }
        for end in [decoder, decoder + 12, decoder + 20, decoder + 40] {
            assert!(parse(&json[..end]).is_err(), "cut at {end}");
        }
    }

    /// The trained file with something else in one place of it.
    fn changed(key: &str, value: serde_json::Value) -> Result<TextTokeniser> {
        let json = tokeniser().to_json().expect("json");
        let mut json: serde_json::Value = serde_json::from_str(&json).expect("json");
        json[key] = value;
        TextTokeniser::parse("tokenizer.json".as_ref(), json.to_string().as_bytes())
    }

    #[test]
    fn a_pattern_that_goes_back_for_ever_ends() {
        let byte_level = serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        for pattern in ["(a+)+", "(a+)+$", "(a|b|ab)*(?=c)", "(?:(a+)+)+(?=b)\\1"] {
            let split = serde_json::json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false,
            });
            let both =
                serde_json::json!({"type": "Sequence", "pretokenizers": [split, byte_level]});
            let t = changed("pre_tokenizer", both).expect("reads");
            let start = std::time::Instant::now();
            for text in ["a".repeat(20_000), "ab".repeat(10_000) + "!"] {
                assert_eq!(t.decode(&t.encode(&text)), text, "{pattern}");
            }
            assert!(start.elapsed().as_secs() < 10, "{pattern}: {:?}", start.elapsed());
        }
    }

    #[test]
    fn a_vocabulary_that_lacks_characters_is_refused() {
        let vocabulary = serde_json::json!({
            "a": 0, "## ": 1, "##1": 2, "##\n": 3, "##\u{e9}": 4, "##!": 5,
        });
        let model = serde_json::json!({
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        });
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": model,
        });
        let parsed = TextTokeniser::parse("tokenizer.json".as_ref(), json.to_string().as_bytes());
        let error = parsed.expect_err("no text of other characters could be read").to_string();
        assert!(error.contains("encodes every text"), "{error}");
    }

    #[test]
    fn the_file_gives_the_same_ids() {
        let t = tokeniser();
        let path = std::env::temp_dir().join(format!("danlu-tok-{}.json", std::process::id()));
        std::fs::write(&path, t.to_json().expect("json")).expect("writes");
        let back = TextTokeniser::load(&path).expect("loads");
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(back.encode("a cat 苹果"), t.encode("a cat 苹果"));
        assert_eq!(back.size(), t.size());
    }
}
