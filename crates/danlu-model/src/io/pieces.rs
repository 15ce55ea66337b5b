//! SentencePiece's BPE between GGUF, which keeps a score for each piece, and `tokenizer.json`, which
//! keeps the pairs that merge in order.

use super::gguf::{Gguf, Value};
use super::vocab::kind;
use crate::modality::{BLANK, byte_of_piece};
use danlu_core::{Error, Result};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::Path;

/// Longest piece that is made of others, in bytes.
const LONGEST: usize = 256;
/// The score of a piece that no pair makes.
const UNMADE: f32 = -1e6;
/// A key of ours for what GGUF has none: which texts get a blank before their first word. Without it
/// every one does, as in llama.cpp.
const PREFIX: &str = "danlu.tokenizer.prefix";

/// Which texts get a blank before their first word.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Prefix {
    /// Every one, whatever it begins with.
    Each,
    /// Every one that begins with none.
    Always,
    /// The first of a conversation, if it begins with none.
    First,
    Never,
}

impl Prefix {
    /// The `normalizer` and the `pre_tokenizer` of a `tokenizer.json`.
    fn json(self) -> [Json; 2] {
        let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
        let metaspace = |scheme: &str| {
            json!({"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme,
                   "split": false})
        };
        match self {
            Self::Each => [
                json!({"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": BLANK}, blanks]}),
                Json::Null,
            ],
            Self::Always => [Json::Null, metaspace("always")],
            Self::First => [Json::Null, metaspace("first")],
            Self::Never => [Json::Null, metaspace("never")],
        }
    }
}

/// How a `tokenizer.json` turns pieces into text.
fn decoder(leads: bool) -> Json {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if leads {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// The parts of a `tokenizer.json` that are not the same for every tokeniser: its `normalizer`,
/// `pre_tokenizer`, `decoder` and `model`.
pub(super) fn of_gguf(
    file: &Gguf,
    tokens: &[&str],
    kinds: &[i64],
    vocabulary: serde_json::Map<String, Json>,
) -> Result<[Json; 4]> {
    let path = file.path();
    let scores = file.floats("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let wanted = format!("a `tokenizer.ggml.scores` for each of {} tokens", tokens.len());
        return Err(Error::file(path, wanted, scores.len()));
    }
    let flag = |key: &str| match file.get(key) {
        None => Ok(true),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => {
            let wanted = format!("true or false under `{key}`");
            Err(Error::file(path, wanted, format!("{other:?}")))
        }
    };
    let prefix = match file.maybe_text(PREFIX)? {
        None if flag("tokenizer.ggml.add_space_prefix")? => Prefix::Each,
        None => Prefix::Never,
        Some("always") => Prefix::Always,
        Some("first") => Prefix::First,
        Some(other) => {
            let wanted = format!("always or first under `{PREFIX}`");
            return Err(Error::file(path, wanted, format!("`{other}`")));
        }
    };
    let unknown = tokens.iter().zip(kinds).find(|(_, of)| **of == kind::UNKNOWN).map(|(t, _)| *t);
    let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
        "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary,
        "merges": merges(tokens, kinds, &scores)});
    let [normaliser, cut] = prefix.json();
    Ok([normaliser, cut, decoder(prefix != Prefix::Never), model])
}

/// The pairs of pieces that make a piece, those first that make one of a higher score.
fn merges<'a>(tokens: &[&'a str], kinds: &[i64], scores: &[f32]) -> Vec<[&'a str; 2]> {
    let plain = |of: i64| matches!(of, kind::NORMAL | kind::USER | kind::UNUSED);
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, of))| plain(**of))
        .map(|(id, (token, _))| (*token, id))
        .collect();
    let mut all: Vec<(f32, usize, usize, [&str; 2])> = Vec::new();
    for (token, &id) in &ids {
        let token: &'a str = token;
        if token.len() > LONGEST {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                all.push((scores[id], l, r, [left, right]));
            }
        }
    }
    // Equal scores by the pieces' ids, for the order to be the same each time.
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    all.into_iter().map(|merge| merge.3).collect()
}

/// The keys of GGUF, under `tokenizer.ggml.` but for ours, that are not the same for every
/// tokeniser. `tokens` are those of all ids with their kinds, which are changed where GGUF has
/// others for pieces, and `all` is the `tokenizer.json`.
pub(super) fn keys(
    path: &Path,
    all: &Json,
    tokens: &[String],
    kinds: &mut [i64],
) -> Result<Vec<(String, Value)>> {
    let own = [&all["normalizer"], &all["pre_tokenizer"]];
    let prefixes = [Prefix::Each, Prefix::Always, Prefix::First, Prefix::Never];
    let Some(prefix) = prefixes.into_iter().find(|p| p.json().iter().eq(own)) else {
        let wanted = "SentencePiece's pre-tokeniser, for GGUF";
        return Err(Error::file(path, wanted, format!("{} and {}", own[0], own[1])));
    };
    let unknown = all["model"]["unk_token"].as_str();
    let mut made: HashMap<String, f32> = HashMap::new();
    for (rank, pair) in all["model"]["merges"].as_array().into_iter().flatten().enumerate() {
        let piece = match pair {
            Json::String(both) => both.replacen(' ', "", 1),
            Json::Array(two) => two.iter().filter_map(Json::as_str).collect(),
            other => return Err(Error::file(path, "merges of two tokens", other)),
        };
        made.entry(piece).or_insert(-(rank as f32) - 1.0);
    }
    let mut scores = Vec::with_capacity(tokens.len());
    for (token, of) in tokens.iter().zip(kinds) {
        if unknown == Some(token) {
            *of = kind::UNKNOWN;
        } else if *of == kind::NORMAL && is_byte(token) {
            *of = kind::BYTE;
        }
        scores.push(Value::from(made.get(token).copied().unwrap_or(UNMADE)));
    }
    let key = |name: &str, value: Value| (format!("tokenizer.ggml.{name}"), value);
    let mut keys = vec![
        key("model", "llama".into()),
        key("pre", "default".into()),
        key("scores", Value::List(scores)),
        key("add_space_prefix", (prefix != Prefix::Never).into()),
    ];
    let name = match prefix {
        Prefix::Always => "always",
        Prefix::First => "first",
        Prefix::Each | Prefix::Never => return Ok(keys),
    };
    keys.push((PREFIX.into(), name.into()));
    Ok(keys)
}

/// Whether a piece stands for one byte, `<0x0A>`.
fn is_byte(piece: &str) -> bool {
    byte_of_piece(piece).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_merge_in_the_order_of_what_they_make() {
        let tokens = ["<unk>", "a", "b", "c", "ab", "bc", "abc", "<s>", "abcd"];
        let kinds = [2, 1, 1, 1, 1, 1, 1, 3, 1];
        let scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, 0.0, 0.0];
        let found = merges(&tokens, &kinds, &scores);
        assert_eq!(found, [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]);
    }

    #[test]
    fn bytes_are_told_from_pieces() {
        assert!(is_byte("<0x0A>") && is_byte("<0xff>"));
        assert!(!is_byte("<0x0>") && !is_byte("<0xZZ>") && !is_byte("<0x0A0A>") && !is_byte("0A"));
    }
}
