//! Tools that a model may call: how rows, requests and replies write them.

use crate::sample::{array, kind};
use serde_json::{Value, json};

/// What stands before a call among text, and after it.
pub const TAGS: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// A call of a tool that an assistant makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Call {
    /// What its answer names it by.
    pub id: Option<String>,
    /// The tool's name.
    pub name: String,
    /// JSON: mostly an object, or the text that came where it should have been one.
    pub arguments: Value,
}

impl Call {
    /// Reads one of `tool_calls` as OpenAI and transformers write it. Arguments may be an object or
    /// its text. The error is a sentence for [`crate::Error::Row`].
    pub fn of(value: &Value) -> Result<Self, String> {
        let map = value
            .as_object()
            .ok_or_else(|| format!("expected an object, found {}", kind(value)))?;
        let id = match map.get("id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(other) => return Err(format!("`id`: expected a string, found {}", kind(other))),
        };
        let function = map.get("function").unwrap_or(value);
        let name = match function.get("name") {
            Some(Value::String(name)) => name.clone(),
            other => {
                let found = other.map_or("nothing".into(), kind);
                return Err(format!("`function.name`: expected a string, found {found}"));
            }
        };
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => Self::arguments(text.clone()),
            Some(object @ Value::Object(_)) => object.clone(),
            other => {
                let found = other.map_or("nothing".into(), kind);
                return Err(format!(
                    "`function.arguments`: expected an object or its text, found {found}"
                ));
            }
        };
        Ok(Self { id, name, arguments })
    }

    /// Arguments from their text: mostly an object; what is none stays the text that it is.
    pub fn arguments(text: String) -> Value {
        match serde_json::from_str(&text) {
            Ok(object @ Value::Object(_)) => object,
            _ => Value::String(text),
        }
    }

    /// Reads a list of them; `name` is what the list is called in errors.
    pub fn list(name: &str, value: &Value) -> Result<Vec<Self>, String> {
        let call = |(i, call)| Self::of(call).map_err(|e| format!("{name}[{i}]: {e}"));
        array(name, value)?.iter().enumerate().map(call).collect()
    }

    /// The call as OpenAI and transformers write it, arguments as they are.
    pub fn json(&self) -> Value {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        match &self.id {
            Some(id) => json!({ "id": id, "type": "function", "function": function }),
            None => json!({ "type": "function", "function": function }),
        }
    }

    /// The call in the words of models that have no others for it.
    pub fn words(&self) -> String {
        json!({ "name": self.name, "arguments": self.arguments }).to_string()
    }
}

/// Whether a reply calls what was expected, the same tools in the same order with equal arguments.
pub fn same(expected: &[&Call], found: &[Call]) -> bool {
    let bare = |call: &Call| (call.name.clone(), call.arguments.clone());
    expected.iter().map(|c| bare(c)).eq(found.iter().map(bare))
}

/// The calls that a reply is, if it is some: each between `<tool_call>` tags, or JSON alone, of one or
/// a list of them. What is no call is passed over.
pub fn said(reply: &str) -> Vec<Call> {
    let mut inner = reply.split(TAGS[0]);
    let before = inner.next().unwrap_or_default();
    let tagged: Vec<&str> =
        inner.map(|rest| rest.split(TAGS[1]).next().unwrap_or_default()).collect();
    let all = if tagged.is_empty() { vec![before] } else { tagged };
    let parsed = all.into_iter().filter_map(|text| serde_json::from_str(text.trim()).ok());
    parsed.flat_map(listed).filter_map(bare).collect()
}

/// The calls of a text of JSON, one or a list of them; `None` where it is anything else, or one of
/// them is no call. Arguments may be a text of JSON themselves.
pub fn written(text: &str) -> Option<Vec<Call>> {
    let calls = listed(serde_json::from_str(text.trim()).ok()?);
    let call = |mut value: Value| {
        if let Some(Value::String(text)) = value.get("arguments") {
            value["arguments"] = serde_json::from_str(text).ok()?;
        }
        bare(value)
    };
    let calls: Vec<Call> = calls.into_iter().map(call).collect::<Option<_>>()?;
    (!calls.is_empty()).then_some(calls)
}

fn listed(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        other => vec![other],
    }
}

/// A call without the object that OpenAI puts around it.
fn bare(mut value: Value) -> Option<Call> {
    let map = value.as_object_mut()?;
    // Llama's word for them.
    let arguments = map.remove("arguments").or_else(|| map.remove("parameters"))?;
    let name = map.get("name")?.as_str()?.to_string();
    arguments.is_object().then_some(Call { id: None, name, arguments })
}

/// The tools of a row: a list, or its text as JSON. Each is OpenAI's object around a `function`, or
/// the function alone. The error is a sentence for [`crate::Error::Row`].
pub fn tools(value: Option<&Value>) -> Result<Vec<Value>, String> {
    let parsed;
    let value = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => {
            parsed = serde_json::from_str(text).map_err(|e| format!("`tools`: not JSON: {e}"))?;
            &parsed
        }
        Some(value) => value,
    };
    let list = array("tools", value)?;
    for (i, tool) in list.iter().enumerate() {
        let function = tool.get("function").unwrap_or(tool);
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(format!("tools[{i}]: expected a function with a name, found none"));
        }
    }
    Ok(list.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_and_other_text_is_text() {
        let one = r#"{"name": "weather", "arguments": {"city": "Bern"}}"#;
        let call = Call { id: None, name: "weather".into(), arguments: json!({ "city": "Bern" }) };
        for (reply, count) in [
            (format!(" {one}"), 1),
            (one.replace("arguments", "parameters"), 1),
            (format!("[{one}, {one}]"), 2),
            (format!("ok <tool_call>\n{one}\n</tool_call>\n<tool_call>{one}"), 2),
            (call.words(), 1),
            ("sunny".into(), 0),
            (format!("see {one}"), 0),
            (r#"{"name":"weather"}"#.into(), 0),
            (r#"{"name":"weather","arguments":"Bern"}"#.into(), 0),
        ] {
            assert_eq!(said(&reply), vec![call.clone(); count], "{reply}");
        }
    }
}
