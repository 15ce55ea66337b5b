//! Replies that keep to a JSON schema: a mask over the text tokens, made by llguidance with limits
//! on what compiling and every step may take. Nothing is fetched and nothing is cached: a schema
//! costs its own request alone.

use crate::engine::{BitMask, Mask};
use crate::http::error::{Answer, ApiError};
use danlu_core::{Error, Result};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

/// Most bytes of a schema.
const MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 48;
/// Longest pattern in a schema, and its deepest nesting.
const MAX_PATTERN: usize = 1_024;
const MAX_GROUPS: usize = 32;
/// Largest number in a schema: those up to here are exact in every JSON.
const MAX_NUMBER: f64 = (1u64 << 53) as f64;

/// Makes masks for the vocabulary of one model.
pub(crate) struct Grammars {
    factory: ParserFactory,
    text: u32,
    ends: Arc<[u32]>,
}

impl Grammars {
    /// `entries` are the bytes of the text tokens by id, `ends` are the ids that end a reply.
    pub(crate) fn new(entries: &[Vec<u8>], ends: Vec<u32>) -> Result<Self> {
        let text = entries.len() as u32;
        // The end has a place of its own behind the text; an empty entry is never text.
        let mut words = entries.to_vec();
        for &end in &ends {
            if let Some(word) = words.get_mut(end as usize) {
                word.clear();
            }
        }
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER][..], b"<|end|>"].concat());
        let trie = TokTrie::from(&TokRxInfo::new(text + 1, text), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let failed = |e| Error::Other(format!("the vocabulary does not do for schemas: {e}"));
        let mut factory =
            ParserFactory::new(&env, InferenceCapabilities::default(), &[]).map_err(failed)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: 1_000,
            initial_lexer_fuel: 500_000,
            step_lexer_fuel: 200_000,
            step_max_items: 50_000,
            max_lexer_states: 20_000,
            max_grammar_size: 100_000,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        Ok(Self { factory, text, ends: ends.into() })
    }

    /// The mask of a schema; an error that names `param` if it cannot be kept to.
    pub(crate) fn mask(&self, param: &str, schema: &Value) -> Answer<SchemaMask> {
        let refused = |why: String| ApiError::bad(param, why).code("invalid_json_schema");
        check(schema).map_err(|why| refused(format!("`{param}`: {why}")))?;
        let mut schema = match schema {
            Value::Object(map) => Value::Object(map.clone()),
            Value::Bool(true) => json!({}),
            _ => return Err(refused(format!("`{param}`: expected an object"))),
        };
        // Blanks between the tokens of JSON could go on for ever.
        schema["x-guidance"] = json!({"whitespace_flexible": false});
        let made = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let mut matcher = Matcher::new(made);
        let first = matcher.compute_mask();
        match (matcher.get_error(), first) {
            (None, Ok(mask)) if !mask.is_zero() => {}
            (Some(error), _) => {
                let brief: String =
                    error.lines().next().unwrap_or_default().chars().take(200).collect();
                return Err(refused(format!("`{param}` cannot be kept to: {brief}")));
            }
            _ => return Err(refused(format!("`{param}` cannot be kept to: nothing satisfies it"))),
        }
        Ok(SchemaMask { matcher, text: self.text, ends: self.ends.clone() })
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("text", &self.text).finish_non_exhaustive()
    }
}

/// Bounds that are looked at before anything is compiled.
fn check(schema: &Value) -> Result<(), String> {
    let bytes = schema.to_string().len();
    if bytes > MAX_BYTES {
        return Err(format!("expected a schema of at most {MAX_BYTES} bytes, found {bytes}"));
    }
    let mut left = vec![(schema, 1)];
    while let Some((value, depth)) = left.pop() {
        if depth > MAX_DEPTH {
            return Err(format!("expected at most {MAX_DEPTH} levels of nesting"));
        }
        match value {
            Value::Array(list) => left.extend(list.iter().map(|v| (v, depth + 1))),
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("x-guidance", _) => return Err("`x-guidance` is not for clients".into()),
                        ("$ref" | "$dynamicRef", Value::String(to)) if !to.starts_with('#') => {
                            return Err("a reference may only lead into the schema itself".into());
                        }
                        // A key may be said twice, and then counts twice while it is said.
                        ("minProperties", Value::Number(least))
                            if least.as_u64() > Some(1.max(required(map))) =>
                        {
                            let most = "`minProperties` above the number of `required` properties";
                            return Err(format!("{most} is not kept to"));
                        }
                        ("pattern", Value::String(text)) => check_pattern(text)?,
                        ("patternProperties", Value::Object(inner)) => {
                            inner.keys().try_for_each(|text| check_pattern(text))?;
                        }
                        _ => {}
                    }
                    left.push((value, depth + 1));
                }
            }
            // The compiler negates integers, and has no end on the one that has no opposite.
            Value::Number(n) if n.as_f64().is_none_or(|v| v.abs() > MAX_NUMBER) => {
                return Err("expected numbers between -2^53 and 2^53".into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many properties a schema of an object requires.
fn required(schema: &serde_json::Map<String, Value>) -> u64 {
    let names = schema.get("required").and_then(Value::as_array);
    let names: std::collections::HashSet<&str> =
        names.into_iter().flatten().filter_map(Value::as_str).collect();
    names.len() as u64
}

fn check_pattern(text: &str) -> Result<(), String> {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if text.len() > MAX_PATTERN || deepest > MAX_GROUPS {
        return Err(format!(
            "expected a pattern of at most {MAX_PATTERN} bytes and {MAX_GROUPS} groups inside \
             each other"
        ));
    }
    Ok(())
}

/// Where a reply is in its schema.
pub(crate) struct SchemaMask {
    matcher: Matcher,
    text: u32,
    ends: Arc<[u32]>,
}

impl Mask for SchemaMask {
    fn allowed(&mut self, out: &mut BitMask) {
        // If a limit is reached, nothing may follow: the reply ends there and is found incomplete.
        let Ok(mask) = self.matcher.compute_mask_or_eos() else { return };
        mask.iter_set_entries(|id| {
            let id = id as u32;
            match id == self.text {
                true => self.ends.iter().for_each(|&end| out.insert(end)),
                false => out.insert(id),
            }
        });
    }

    fn accept(&mut self, id: u32) {
        let id = if self.ends.contains(&id) { self.text } else { id };
        // An error stays in the matcher and shows in the next mask.
        let _ = self.matcher.consume_token(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::Rng;

    fn grammars() -> Grammars {
        let mut entries: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        entries.extend([b"true".to_vec(), b"{\"".to_vec(), b"\":".to_vec()]);
        // Two ends, of which one is an entry of the text.
        Grammars::new(&entries, vec![300, 96]).expect("builds")
    }

    /// A random walk within the mask; the bytes, and whether it ended by itself.
    fn walk(mask: &mut SchemaMask, seed: u64, most: usize) -> (Vec<u8>, bool) {
        let entries = |id: u32| match id {
            256 => b"true".to_vec(),
            257 => b"{\"".to_vec(),
            258 => b"\":".to_vec(),
            byte => vec![byte as u8],
        };
        let (mut rng, mut out) = (Rng::new(seed, 0), Vec::new());
        for _ in 0..most {
            let mut bits = BitMask::new(301);
            mask.allowed(&mut bits);
            assert_eq!(bits.contains(96), bits.contains(300), "both or neither");
            let ids: Vec<u32> = (0..301).filter(|&id| bits.contains(id)).collect();
            let Some(&id) = (!ids.is_empty()).then(|| rng.pick(&ids)) else { break };
            mask.accept(id);
            if [300, 96].contains(&id) {
                return (out, true);
            }
            out.extend(entries(id));
        }
        (out, false)
    }

    #[test]
    fn every_walk_that_ends_keeps_to_the_schema() {
        let schema = json!({
            "type": "object",
            "properties": {
                "kind": {"enum": ["cat", "dog"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 30},
                "tame": {"type": "boolean"},
                "next": {"$ref": "#/$defs/leaf"}
            },
            "required": ["kind", "age", "tame", "next"],
            "additionalProperties": false,
            "$defs": {"leaf": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}}
        });
        for seed in 0..20 {
            let mut mask = grammars().mask("schema", &schema).expect("compiles");
            let (text, ended) = walk(&mut mask, seed, 500);
            assert!(ended, "{text:?}");
            let value: Value = serde_json::from_slice(&text).expect("JSON");
            assert!(["cat", "dog"].contains(&value["kind"].as_str().expect("a string")));
            assert!((0..=30).contains(&value["age"].as_i64().expect("a number")));
            assert!(value["tame"].is_boolean());
        }
    }

    #[test]
    fn least_numbers_of_properties_are_kept_to_or_refused() {
        let refused = |least: u64, required: &[&str]| {
            let schema = json!({"minProperties": least, "required": required});
            check(&schema).err()
        };
        assert_eq!(refused(1, &[]).or(refused(2, &["a", "b"])), None);
        assert!(refused(2, &["a", "a"]).is_some_and(|why| why.contains("minProperties")));
        let schema = json!({"type": "object", "minProperties": 2});
        assert!(grammars().mask("schema", &schema).is_err());
    }

    #[test]
    fn hostile_schemas_are_refused_or_bounded() {
        let nested = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
        let mut deep = json!({"type": "string"});
        for _ in 0..60 {
            deep = json!({"type": "array", "items": deep});
        }
        for schema in [
            json!({"$ref": "https://example.com/schema.json"}),
            json!({"$ref": "file:///etc/passwd"}),
            json!({"$ref": "#/$defs/missing"}),
            json!({"type": "string", "pattern": nested(60_000)}),
            json!({"type": "string", "pattern": nested(40)}),
            json!({"type": "string", "pattern": "foo(("}),
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
            json!({"type": "nothing"}),
            json!({"anyOf": [{"const": i64::MIN}, {"type": "boolean"}]}),
            json!({"type": "integer", "minimum": i64::MIN}),
            json!({"enum": [1, -1e19]}),
            json!({"enum": []}),
            json!(false),
            json!([1]),
            json!({"description": "x".repeat(70_000)}),
            json!({"x-guidance": {"whitespace_flexible": true}}),
            deep,
        ] {
            let brief: String = schema.to_string().chars().take(80).collect();
            let error = grammars().mask("schema", &schema).err().expect(&brief);
            assert_eq!((error.status.as_u16(), error.code), (400, Some("invalid_json_schema")));
        }
        // What may be accepted must not run away.
        for schema in [
            json!({"type": "string", "pattern": "foo**"}),
            json!({"type": "string", "pattern": "(a+)+$"}),
            json!({"type": "string", "pattern": "((a{1,50}){1,50}){1,50}"}),
            json!({"type": "integer", "minimum": -(1i64 << 53), "maximum": 1i64 << 53}),
            json!({"enum": [-(1i64 << 53), 1i64 << 53]}),
            json!({"$ref": "#"}),
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
            json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        ] {
            let start = std::time::Instant::now();
            if let Ok(mut mask) = grammars().mask("schema", &schema) {
                walk(&mut mask, 1, 50);
            }
            assert!(start.elapsed().as_secs() < 10, "{schema}");
        }
    }
}
