//! What fuzz targets call: readers of untrusted bytes without a server around them.

use crate::ask::{Drawing, IGNORED};
use crate::conversation::Content;
use crate::http::fields::Fields;
use crate::media;
use crate::routes::tools::Tools;
use crate::schema::Grammars;
use serde_json::Value;
use std::sync::OnceLock;

/// The messages of a chat request with their pictures and sounds. Whether they are accepted.
pub fn messages(bytes: &[u8]) -> bool {
    let list: Option<Vec<Value>> = serde_json::from_slice(bytes).ok();
    let turns = list.and_then(|list| crate::conversation::messages(list).ok());
    let decoded = |(at, content): &(String, Content)| match content {
        Content::Picture(url) => media::picture(at, url).is_ok(),
        Content::Sound(data) => media::sound_of_text(at, data, 8.0).is_ok(),
        Content::Text(_) | Content::Own(_) | Content::Call(_) => true,
    };
    turns.is_some_and(|turns| turns.iter().flat_map(|turn| &turn.parts).all(decoded))
}

/// The fields of a chat request beside its messages: how tokens are drawn, and tools. Whether they are
/// accepted.
pub fn request(bytes: &[u8]) -> bool {
    let Ok(map) = serde_json::from_slice(bytes) else { return false };
    let mut fields = Fields::new(map);
    let drawing = Drawing::take(&mut fields, 512).is_ok();
    let tools = Tools::take(&mut fields).is_ok_and(|tools| {
        // What is said to the model, and what it says, is made of what came.
        let _ = (tools.any(), tools.schema(), tools.calls(&Value::from(tools.told()).to_string()));
        true
    });
    fields.pass_over(&IGNORED);
    drawing && tools && fields.finish().is_ok()
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
        let picture =
            r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0K"}}"#;
        let said = format!(r#"[{{"role":"user","content":[{picture}]}}]"#);
        assert!(!super::messages(said.as_bytes()), "a picture that is cut off");
        let tool =
            r#"[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]"#;
        let asked = |more: &str| format!(r#"{{"temperature":1,"tools":{tool}{more}}}"#);
        assert!(super::request(asked("").as_bytes()));
        assert!(!super::request(asked(r#","top_p":2"#).as_bytes()));
        assert!(!super::request(asked(r#","tool_choice":"g""#).as_bytes()));
        assert!(super::schema(br#"{"type":"boolean"}"#));
        assert!(!super::schema(br#"{"type":"unicorn"}"#));
    }
}
