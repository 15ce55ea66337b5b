//! Tokenisers between GGUF and `tokenizer.json`. GGUF names the way that text is cut before merging
//! (`tokenizer.ggml.pre`); here is what each name that we know means.

use super::gguf::{Gguf, Value};
use super::pieces;
use crate::modality::TextTokeniser;
use danlu_core::{Error, Result};
use serde_json::{Value as Json, json};
use std::collections::HashSet;
use std::path::Path;

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
pub(super) mod kind {
    pub(in crate::io) const NORMAL: i64 = 1;
    pub(in crate::io) const UNKNOWN: i64 = 2;
    pub(in crate::io) const CONTROL: i64 = 3;
    pub(in crate::io) const USER: i64 = 4;
    pub(in crate::io) const UNUSED: i64 = 5;
    pub(in crate::io) const BYTE: i64 = 6;
}

/// How text is cut into words before merging.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    /// By the expression of GPT-2.
    Gpt2,
    /// Every digit alone, then by the expression of GPT-2.
    DigitsGpt2,
    /// By expressions, one after the other.
    By(&'static [&'static str]),
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Of `tokenizer.json` in Mistral NeMo; llama.cpp has a form of it without sets of letters.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The names of `tokenizer.ggml.pre`, each with how it cuts, and whether a word that is an entry is
/// taken whole, whatever the merges say. Of names that cut alike the first is written.
const PRE: &[(&str, Cut, bool)] = &[
    ("gpt-2", Cut::Gpt2, false),
    ("smollm", Cut::DigitsGpt2, false),
    ("starcoder", Cut::DigitsGpt2, false),
    ("refact", Cut::DigitsGpt2, false),
    ("command-r", Cut::DigitsGpt2, false),
    ("qwen2", Cut::By(&[QWEN2]), false),
    ("deepseek-r1-qwen", Cut::By(&[QWEN2]), false),
    ("llama-bpe", Cut::By(&[LLAMA3]), true),
    ("llama3", Cut::By(&[LLAMA3]), true),
    ("llama-v3", Cut::By(&[LLAMA3]), true),
    ("smaug-bpe", Cut::By(&[LLAMA3]), false),
    ("dbrx", Cut::By(&[LLAMA3]), false),
    ("tekken", Cut::By(&[TEKKEN]), true),
    ("default", Cut::By(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]), false),
];

/// A key of ours for what GGUF has none: how text is normalised before it is cut, `NFC` or `none`.
const NORMALISER: &str = "danlu.tokenizer.normalizer";

/// The names whose models come with a `tokenizer.json` that composes characters (NFC) first. What
/// others wrote has no key that says so, and llama.cpp leaves it out.
const COMPOSED: [&str; 2] = ["qwen2", "deepseek-r1-qwen"];

/// The names with which llama.cpp puts the first token before a text where nothing is said of it.
const BEGINS: [&str; 4] = ["llama-bpe", "llama3", "llama-v3", "tekken"];

/// A key of ours for what GGUF has none: added tokens that take the blanks around them, or stand for whole words
/// alone, as a list in JSON of what a `tokenizer.json` says of them.
const ADDED: &str = "danlu.tokenizer.added_tokens";
/// What of an added token is not the same everywhere.
const FLAGS: [&str; 4] = ["lstrip", "rstrip", "single_word", "normalized"];

impl Cut {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    fn json(self) -> Json {
        let bytes = |regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": regex})
        };
        match self {
            Cut::Gpt2 => bytes(true),
            Cut::DigitsGpt2 => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, bytes(true)]}),
            Cut::By(all) => {
                let mut steps: Vec<Json> = all
                    .iter()
                    .map(|regex| {
                        json!({"type": "Split", "pattern": {"Regex": regex},
                               "behavior": "Isolated", "invert": false})
                    })
                    .collect();
                steps.push(bytes(false));
                json!({"type": "Sequence", "pretokenizers": steps})
            }
        }
    }
}

/// Ids of special tokens that GGUF names, by the names that templates know them under.
pub const SPECIALS: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

/// Where GGUF names what may end a reply, the likeliest first: the ends of a turn, of a text, and of
/// a message to a tool.
const ENDS: [&str; 3] =
    ["tokenizer.ggml.eot_token_id", SPECIALS[1].1, "tokenizer.ggml.eom_token_id"];

/// A key of ours for more ends than those have room for: their ids.
const MORE_ENDS: &str = "danlu.tokenizer.end_token_ids";

/// Ids that may end a reply, the likeliest first, as a GGUF file names them; one may be there twice.
pub fn ends_of_gguf(file: &Gguf) -> Result<Vec<u32>> {
    let mut ends = Vec::new();
    for key in ENDS {
        ends.extend(file.maybe_size(key)?.and_then(|id| u32::try_from(id).ok()));
    }
    if file.get(MORE_ENDS).is_some() {
        ends.extend(file.integers(MORE_ENDS)?.into_iter().filter_map(|id| u32::try_from(id).ok()));
    }
    Ok(ends)
}

/// The keys of what may end a reply; `eos` is the one of `ends` that ends a text.
pub fn end_keys(eos: u32, ends: &[u32]) -> Vec<(String, Value)> {
    let value = |id: u32| Value::from(id as usize);
    let mut keys = vec![(ENDS[1].to_string(), value(eos))];
    let mut others = ends.iter().copied().filter(|&id| id != eos);
    for key in [ENDS[0], ENDS[2]] {
        keys.extend(others.next().map(|id| (key.to_string(), value(id))));
    }
    let more: Vec<Value> = others.map(value).collect();
    if !more.is_empty() {
        keys.push((MORE_ENDS.to_string(), Value::List(more)));
    }
    keys
}

/// The tokeniser of a GGUF file.
pub fn tokeniser_of_gguf(file: &Gguf) -> Result<TextTokeniser> {
    let path = file.path();
    let tokens = file.texts("tokenizer.ggml.tokens")?;
    let kinds = match file.get("tokenizer.ggml.token_type") {
        None => vec![kind::NORMAL; tokens.len()],
        Some(_) => file.integers("tokenizer.ggml.token_type")?,
    };
    if kinds.len() != tokens.len() || tokens.is_empty() {
        let wanted = format!("a `tokenizer.ggml.token_type` for each of {} tokens", tokens.len());
        return Err(Error::file(path, wanted, kinds.len()));
    }
    let mut vocabulary = serde_json::Map::with_capacity(tokens.len());
    let mut added = Vec::new();
    for (id, (&token, &of)) in tokens.iter().zip(&kinds).enumerate() {
        if vocabulary.insert(token.into(), id.into()).is_some() {
            let wanted = "every token once in `tokenizer.ggml.tokens`";
            return Err(Error::file(path, wanted, format!("{token:?} twice")));
        }
        if matches!(of, kind::CONTROL | kind::USER | kind::UNKNOWN) && !token.is_empty() {
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": of != kind::USER}));
        }
    }
    if let Some(flags) = file.maybe_text(ADDED)? {
        let wrong = |e| Error::file(path, format!("a list of tokens in JSON under `{ADDED}`"), e);
        let flags: Vec<serde_json::Map<String, Json>> =
            serde_json::from_str(flags).map_err(wrong)?;
        for of in flags {
            let same = |token: &&mut Json| Some(&token["id"]) == of.get("id");
            let Some(token) = added.iter_mut().find(same) else { continue };
            for flag in FLAGS {
                if let Some(Json::Bool(set)) = of.get(flag) {
                    token[flag] = (*set).into();
                }
            }
        }
    }
    let model = file.text("tokenizer.ggml.model")?;
    let pieces = model == "llama";
    let [normaliser, cut, decoder, model] = match model {
        "gpt2" => bytes_of_gguf(file, vocabulary)?,
        "llama" => pieces::of_gguf(file, &tokens, &kinds, vocabulary)?,
        other => {
            let wanted = "byte-level BPE (`gpt2`) or SentencePiece's (`llama`) under \
                `tokenizer.ggml.model`";
            return Err(Error::file(path, wanted, format!("`{other}`")));
        }
    };
    let pre = file.maybe_text("tokenizer.ggml.pre")?.unwrap_or("default");
    let begins = match file.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(true)) => file.maybe_size(SPECIALS[0].1)?,
        // Where nothing is said of it, as in llama.cpp.
        None if pieces || BEGINS.contains(&pre) => file.maybe_size(SPECIALS[0].1)?,
        _ => None,
    };
    // What transformers puts before a text; a chat template writes its own.
    let before = begins.and_then(|id| Some((id, *tokens.get(id)?))).map_or(
        match pieces {
            true => Json::Null,
            false => json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
                "use_regex": true}),
        },
        |(id, token)| {
            json!({"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": token, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": token, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": token, "type_id": 1}},
                    {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
        },
    );
    let all = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normaliser, "pre_tokenizer": cut, "post_processor": before,
        "decoder": decoder, "model": model,
    });
    TextTokeniser::parse(path, all.to_string().as_bytes())
}

/// Of byte-level BPE: the `normalizer`, `pre_tokenizer`, `decoder` and `model` of a `tokenizer.json`.
fn bytes_of_gguf(file: &Gguf, vocabulary: serde_json::Map<String, Json>) -> Result<[Json; 4]> {
    let path = file.path();
    let pre = file.maybe_text("tokenizer.ggml.pre")?.unwrap_or("default");
    let Some((_, cut, whole_words)) = PRE.iter().find(|p| p.0 == pre) else {
        let known: Vec<&str> = PRE.iter().map(|p| p.0).collect();
        let wanted = format!("one of {} under `tokenizer.ggml.pre`", known.join(", "));
        return Err(Error::file(path, wanted, format!("`{pre}`")));
    };
    let composed = match file.maybe_text(NORMALISER)? {
        None => COMPOSED.contains(&pre),
        Some("NFC") => true,
        Some("none") => false,
        Some(other) => {
            let wanted = format!("NFC or none under `{NORMALISER}`");
            return Err(Error::file(path, wanted, format!("`{other}`")));
        }
    };
    let normaliser = if composed { json!({"type": "NFC"}) } else { Json::Null };
    let mut merges = Vec::new();
    for merge in file.texts("tokenizer.ggml.merges")? {
        // A token of bytes has no blank in it; the first may begin with one in old files.
        let at = merge.char_indices().skip(1).find(|c| c.1 == ' ').map(|c| c.0);
        let Some((a, b)) = at.map(|at| (&merge[..at], &merge[at + 1..])) else {
            let wanted = "pairs with a blank between in `tokenizer.ggml.merges`";
            return Err(Error::file(path, wanted, format!("{merge:?}")));
        };
        merges.push(json!([a, b]));
    }
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true});
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
        "byte_fallback": false, "ignore_merges": whole_words, "vocab": vocabulary,
        "merges": merges});
    Ok([normaliser, cut.json(), decoder, model])
}

/// The keys of GGUF for a tokeniser of a model with `rows` ids. Tokenisers that GGUF has no name for
/// are refused.
pub fn tokeniser_keys(
    text: &TextTokeniser,
    rows: usize,
    path: &Path,
) -> Result<Vec<(String, Value)>> {
    let wrong = |e: serde_json::Error| Error::file(path, "a tokenizer.json", e);
    let all: Json = serde_json::from_str(&text.to_json()?).map_err(wrong)?;
    let special: HashSet<u32> = text.specials().iter().map(|s| s.id).collect();
    let added: HashSet<u64> = all["added_tokens"]
        .as_array()
        .map(|a| a.iter().filter_map(|t| t["id"].as_u64()).collect())
        .unwrap_or_default();
    let mut tokens = Vec::with_capacity(rows);
    let mut kinds = Vec::with_capacity(rows);
    for id in 0..rows as u32 {
        let (token, of) = match text.token(id) {
            Some(token) if special.contains(&id) => (token, kind::CONTROL),
            Some(token) if added.contains(&u64::from(id)) => (token, kind::USER),
            Some(token) => (token, kind::NORMAL),
            None => (format!("[PAD{id}]"), kind::UNUSED),
        };
        tokens.push(token);
        kinds.push(of);
    }
    let model = &all["model"];
    let mut keys = match model["type"].as_str() {
        Some("BPE") if model["byte_fallback"] == true => {
            pieces::keys(path, &all, &tokens, &mut kinds)?
        }
        Some("BPE") => byte_keys(path, &all)?,
        _ => {
            let wanted = "byte-level BPE or SentencePiece's, for GGUF";
            return Err(Error::file(path, wanted, format!("a model `{}`", model["type"])));
        }
    };
    let key = |name: &str, value: Value| (format!("tokenizer.ggml.{name}"), value);
    keys.push(key("tokens", Value::List(tokens.into_iter().map(Value::Text).collect())));
    keys.push(key("token_type", Value::List(kinds.into_iter().map(Value::Signed).collect())));
    keys.push(key("add_bos_token", text.begin().is_some().into()));
    let flagged = |token: &&Json| FLAGS.iter().any(|flag| token[flag] == true);
    let flagged: Vec<&Json> =
        all["added_tokens"].as_array().into_iter().flatten().filter(flagged).collect();
    if !flagged.is_empty() {
        keys.push((ADDED.into(), Json::from_iter(flagged.into_iter().cloned()).to_string().into()));
    }
    Ok(keys)
}

/// Of byte-level BPE: the keys for how text is cut and merged.
fn byte_keys(path: &Path, all: &Json) -> Result<Vec<(String, Value)>> {
    let model = &all["model"];
    let whole_words = model["ignore_merges"] == true;
    let normaliser = &all["normalizer"];
    // NFC comes alone, or as the one step of a sequence.
    let steps = match normaliser["normalizers"].as_array() {
        Some(steps) => steps.clone(),
        None if normaliser.is_null() => Vec::new(),
        None => vec![normaliser.clone()],
    };
    if steps.iter().any(|step| step["type"] != "NFC") {
        let wanted = "no normaliser but NFC, for GGUF";
        return Err(Error::file(path, wanted, &normaliser["type"]));
    }
    let normalised = if steps.is_empty() { "none" } else { "NFC" };
    let cut = simple(&all["pre_tokenizer"]);
    let Some((pre, ..)) =
        PRE.iter().find(|(_, c, whole)| simple(&c.json()) == cut && *whole == whole_words)
    else {
        let wanted =
            "a pre-tokeniser that GGUF has a name for (GPT-2's, SmolLM's, Qwen2's, Llama 3's)";
        return Err(Error::file(path, wanted, &all["pre_tokenizer"]));
    };
    let mut merges = Vec::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let pair = match merge {
            Json::String(both) => both.clone(),
            Json::Array(two) => {
                let two: Vec<&str> = two.iter().filter_map(Json::as_str).collect();
                two.join(" ")
            }
            other => return Err(Error::file(path, "merges of two tokens", other)),
        };
        merges.push(Value::Text(pair));
    }
    let key = |name: &str, value: Value| (format!("tokenizer.ggml.{name}"), value);
    Ok(vec![
        key("model", "gpt2".into()),
        key("pre", (*pre).into()),
        key("merges", Value::List(merges)),
        key("add_space_prefix", false.into()),
        (NORMALISER.into(), normalised.into()),
    ])
}

/// A pre-tokeniser in one form: a list of its steps without what does not change ids.
fn simple(pre: &Json) -> Vec<Json> {
    let steps = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array().cloned().unwrap_or_default(),
        _ => vec![pre.clone()],
    };
    steps
        .into_iter()
        .map(|mut step| {
            if let Some(step) = step.as_object_mut() {
                step.remove("trim_offsets");
            }
            step
        })
        .collect()
}
