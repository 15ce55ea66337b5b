//! Text: byte-level BPE, so that any UTF-8 comes back exactly.

use danlu_core::{Error, Result};
use std::path::Path;
use tokenizers::Tokenizer;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// The learnt tokeniser of text.
#[derive(Debug, Clone)]
pub struct TextTokeniser(Tokenizer);

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
        Ok(Self(tokenizer))
    }

    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::file(path, "a tokenizer.json of the tokenizers library", e))?;
        Ok(Self(tokenizer))
    }

    /// The text of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        self.0.to_string(true).map_err(|e| Error::Other(format!("tokenizer.json: {e}")))
    }

    /// Number of entries.
    pub fn size(&self) -> u32 {
        self.0.get_vocab_size(true) as u32
    }

    /// Ids of `text`, without any special token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let encoding = self.0.encode_fast(text, false);
        encoding.expect("byte-level BPE encodes every string").get_ids().to_vec()
    }

    /// Text of ids; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.0.decode(ids, false).unwrap_or_default()
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
    fn odd_text_comes_back() {
        let t = tokeniser();
        for text in ["", " ", "\n\t  x", "\u{0}\u{202e}", "👩‍🚀🇨🇳", "<|end|>", "e\u{301}", "ﬁ①"]
        {
            assert_eq!(t.decode(&t.encode(text)), text);
        }
        assert!(t.encode("<|end|>").len() > 1, "control tokens are not text");
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
