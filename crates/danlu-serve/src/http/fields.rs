//! The fields of a JSON request: each is taken out by name, checked against what it may be, and an
//! error names it. What is left over at the end is refused with the nearest name.

use super::error::{Answer, ApiError};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// What is known of a JSON value without repeating it.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// The fields that are not yet taken.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    known: Vec<&'static str>,
    /// What errors put before a name.
    within: &'static str,
}

impl Fields {
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self::within("", map)
    }

    /// The fields of an object that is a field itself; `within` is its name with a dot.
    pub(crate) fn within(within: &'static str, map: Map<String, Value>) -> Self {
        Self { map, known: Vec::new(), within }
    }

    fn at(&self, name: &str) -> String {
        format!("{}{name}", self.within)
    }

    /// Takes a field out; null is as good as none.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// A number within bounds.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Answer<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = match (range.start(), range.end()) {
                    (only, end) if only == end => format!("{only}, the only one here"),
                    (from, to) => format!("a number from {from} to {to}"),
                };
                Err(ApiError::expected(self.at(name), wanted, kind(&value)))
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Answer<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        // JSON does not tell 1 from 1.0.
        let whole = || value.as_f64().filter(|v| v.fract() == 0.0 && v.abs() < 9e15);
        match value.as_i64().or_else(|| whole().map(|v| v as i64)) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = match (range.start(), range.end()) {
                    (only, end) if only == end => format!("{only}, the only one here"),
                    (from, to) => format!("a whole number from {from} to {to}"),
                };
                Err(ApiError::expected(self.at(name), wanted, kind(&value)))
            }
        }
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &'static str) -> Answer<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(ApiError::expected(self.at(name), "true or false", kind(&other))),
        }
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &'static str) -> Answer<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ApiError::expected(self.at(name), "a string", kind(&other))),
        }
    }

    /// One of a few words.
    pub(crate) fn choice(
        &mut self,
        name: &'static str,
        words: &[&'static str],
    ) -> Answer<Option<&'static str>> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        let found = words.iter().find(|w| **w == text).copied();
        let wanted = || match words {
            [] => "none".to_string(),
            words => format!("one of {}", words.join(", ")),
        };
        found.map(Some).ok_or_else(|| ApiError::expected(self.at(name), wanted(), "another word"))
    }

    /// An object.
    pub(crate) fn object(&mut self, name: &'static str) -> Answer<Option<Map<String, Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(ApiError::expected(self.at(name), "an object", kind(&other))),
        }
    }

    /// A list.
    pub(crate) fn list(&mut self, name: &'static str) -> Answer<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(ApiError::expected(self.at(name), "a list", kind(&other))),
        }
    }

    /// What must be there.
    pub(crate) fn required<T>(name: &'static str, value: Option<T>) -> Answer<T> {
        value.ok_or_else(|| ApiError::bad(name, format!("`{name}` is missing")))
    }

    /// Refuses a text that would change the answer elsewhere and cannot here.
    pub(crate) fn without(&mut self, name: &'static str) -> Answer<()> {
        match self.string(name)? {
            Some(text) if !text.is_empty() => {
                let message = format!("`{0}` is not supported: leave it out", self.at(name));
                Err(ApiError::bad(self.at(name), message))
            }
            _ => Ok(()),
        }
    }

    /// Takes fields out that change nothing here.
    pub(crate) fn pass_over(&mut self, names: &[&'static str]) {
        names.iter().for_each(|name| drop(self.take(name)));
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self) -> Answer<()> {
        // Null is as good as none, of what nobody knows too.
        let mut left = self.map.iter().filter(|(_, value)| !value.is_null());
        let Some((name, _)) = left.next() else { return Ok(()) };
        let name: String = name.chars().take(64).collect();
        let near = self.known.iter().min_by_key(|known| strsim::levenshtein(known, &name));
        let hint = match near {
            Some(known) if strsim::levenshtein(known, &name) <= 1 + known.len() / 4 => {
                format!("; did you mean `{known}`?")
            }
            _ => String::new(),
        };
        let name = self.at(&name);
        Err(ApiError::bad(name.clone(), format!("unknown parameter `{name}`{hint}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        match value {
            Value::Object(map) => Fields::new(map),
            _ => Fields::new(Map::new()),
        }
    }

    #[test]
    fn errors_name_the_field_what_was_wanted_and_what_was_found() {
        let mut f = fields(json!({"temperature": -1, "n": 1.5, "stop": "x", "tmperature": 1}));
        let error = f.number("temperature", 0.0..=2.0).expect_err("below");
        assert_eq!(error.param.as_deref(), Some("temperature"));
        assert!(error.message.contains("from 0 to 2, found -1"), "{}", error.message);
        assert!(f.integer("n", 1..=10).is_err(), "1.5 is not whole");
        assert!(f.flag("stop").is_err());
        let error = f.finish().expect_err("left over");
        assert!(error.message.contains("did you mean `temperature`"), "{}", error.message);
    }
}
