//! What fuzz targets call: readers of untrusted bytes without a server around them.

use crate::schema::Grammars;
use serde_json::Value;
use std::sync::OnceLock;

/// The messages of a chat request. Whether they are accepted.
pub fn messages(bytes: &[u8]) -> bool {
    let list: Option<Vec<Value>> = serde_json::from_slice(bytes).ok();
    list.is_some_and(|list| crate::conversation::messages(&list).is_ok())
}

/// A JSON schema, over a vocabulary of single bytes. Whether it is accepted.
pub fn schema(bytes: &[u8]) -> bool {
    static GRAMMARS: OnceLock<Option<Grammars>> = OnceLock::new();
    let entries: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
    let grammars = GRAMMARS.get_or_init(|| Grammars::new(&entries, vec![256]).ok());
    let schema: Option<Value> = serde_json::from_slice(bytes).ok();
    match (grammars, schema) {
        (Some(grammars), Some(schema)) => grammars.mask("schema", &schema).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn good_is_accepted_and_bad_is_not() {
        assert!(super::messages(br#"[{"role":"user","content":"x"}]"#));
        assert!(!super::messages(br#"[{"role":"user"}]"#));
        assert!(super::schema(br#"{"type":"boolean"}"#));
        assert!(!super::schema(br#"{"type":"unicorn"}"#));
    }
}
