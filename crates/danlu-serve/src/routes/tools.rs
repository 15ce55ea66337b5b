//! Tools: told to the model in a system message, and found again in what it says. If a call is
//! required, the reply is held to the schema of a call.

use crate::http::error::{Answer, ApiError};
use crate::http::fields::{Fields, kind};
use serde_json::{Map, Value, json};

/// Most tools of a request.
const MAX_TOOLS: usize = 64;

/// Whether a tool is to be called.
#[derive(Debug, Clone, PartialEq)]
enum Choice {
    Never,
    Free,
    Any,
    One(String),
}

/// A function that the model may ask to be called.
#[derive(Debug, Clone)]
struct Tool {
    name: String,
    /// As it came.
    function: Value,
    parameters: Value,
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    list: Vec<Tool>,
    choice: Choice,
}

impl Tools {
    /// Takes `tools` and `tool_choice` out of a request.
    pub(crate) fn take(fields: &mut Fields) -> Answer<Self> {
        let list = fields.list("tools")?.unwrap_or_default();
        if list.len() > MAX_TOOLS {
            let wanted = format!("at most {MAX_TOOLS} tools");
            return Err(ApiError::expected("tools", wanted, list.len()));
        }
        let list: Vec<Tool> = list
            .into_iter()
            .enumerate()
            .map(|(i, value)| tool(&format!("tools[{i}]"), value))
            .collect::<Answer<_>>()?;
        let choice = match fields.take("tool_choice") {
            None => Choice::Free,
            Some(Value::String(word)) => match word.as_str() {
                "none" => Choice::Never,
                "auto" => Choice::Free,
                "required" => Choice::Any,
                _ => {
                    let wanted = "none, auto, required or a function";
                    return Err(ApiError::expected("tool_choice", wanted, "another word"));
                }
            },
            Some(value) => match value["function"]["name"].as_str() {
                Some(name) => Choice::One(name.into()),
                None => {
                    let wanted = "a function with a name";
                    return Err(ApiError::expected("tool_choice", wanted, kind(&value)));
                }
            },
        };
        let known = |name: &String| list.iter().any(|t| t.name == *name);
        let missing = match &choice {
            Choice::Any => list.is_empty(),
            Choice::One(name) => !known(name),
            Choice::Never | Choice::Free => false,
        };
        if missing {
            return Err(ApiError::bad(
                "tool_choice",
                "`tool_choice` names a tool that is not there",
            ));
        }
        Ok(Self { list, choice })
    }

    /// Whether a reply may be a call.
    pub(crate) fn any(&self) -> bool {
        !self.list.is_empty() && self.choice != Choice::Never
    }

    /// The tools as the model is told of them.
    pub(crate) fn instruction(&self) -> String {
        let list: Vec<&Value> = self.list.iter().map(|t| &t.function).collect();
        format!(
            "Tools: {}\nTo call one, reply with JSON alone: {{\"name\": ..., \"arguments\": {{...}}}}",
            json!(list)
        )
    }

    /// The schema that a reply is held to if a call is required.
    pub(crate) fn schema(&self) -> Option<Value> {
        let call = |tool: &Tool| {
            json!({
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": tool.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = match &self.choice {
            Choice::Never | Choice::Free => return None,
            Choice::Any => self.list.iter().map(call).collect(),
            Choice::One(name) => self.list.iter().filter(|t| t.name == *name).map(call).collect(),
        };
        Some(json!({"anyOf": calls}))
    }

    /// The call that a reply is, if it is one: JSON alone, or between `<tool_call>` tags.
    pub(crate) fn call(&self, text: &str) -> Option<Value> {
        let inner = match text.split_once("<tool_call>") {
            Some((_, rest)) => rest.split("</tool_call>").next().unwrap_or_default(),
            None => text,
        };
        let call: Map<String, Value> = serde_json::from_str(inner.trim()).ok()?;
        let name = call.get("name")?.as_str()?;
        self.list.iter().find(|t| t.name == name)?;
        let arguments = call.get("arguments").filter(|a| a.is_object())?;
        Some(json!({
            "id": format!("call_{}", crate::routes::chat::unique()),
            "type": "function",
            "function": {"name": name, "arguments": arguments.to_string()},
        }))
    }
}

fn tool(at: &str, value: Value) -> Answer<Tool> {
    if value["type"] != "function" {
        return Err(ApiError::expected(format!("{at}.type"), "function", "another"));
    }
    let function = value["function"].clone();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name = function["name"].as_str().unwrap_or_default().to_string();
    if !(1..=64).contains(&name.len()) || !name.chars().all(plain) {
        let wanted = "1 to 64 letters, digits, `-` and `_`";
        return Err(ApiError::expected(format!("{at}.function.name"), wanted, "another"));
    }
    let parameters = match &function["parameters"] {
        Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Value::Object(map) => Value::Object(map.clone()),
        other => {
            let param = format!("{at}.function.parameters");
            return Err(ApiError::expected(param, "an object", kind(other)));
        }
    };
    Ok(Tool { name, function, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: Value) -> Answer<Tools> {
        let map = json!({
            "tools": [{"type": "function", "function": {"name": "weather", "parameters":
                {"type": "object", "properties": {"city": {"type": "string"}}}}}],
            "tool_choice": choice,
        });
        let Value::Object(map) = map else { unreachable!("it is one") };
        Tools::take(&mut Fields::new(map))
    }

    #[test]
    fn calls_are_found_and_other_text_is_text() {
        let tools = tools(json!("auto")).expect("valid");
        let call = tools.call(" {\"name\":\"weather\",\"arguments\":{\"city\":\"Bern\"}}");
        let call = call.expect("a call");
        assert_eq!(call["function"]["arguments"], "{\"city\":\"Bern\"}");
        let tagged = "ok <tool_call>{\"name\":\"weather\",\"arguments\":{}}</tool_call>";
        assert!(tools.call(tagged).is_some());
        for text in ["sunny", "{\"name\":\"other\",\"arguments\":{}}", "{\"name\":\"weather\"}"] {
            assert_eq!(tools.call(text), None, "{text}");
        }
        assert_eq!(tools.schema(), None);
    }

    #[test]
    fn a_required_call_has_a_schema_and_an_unknown_one_is_refused() {
        assert!(tools(json!("required")).expect("valid").schema().is_some());
        assert!(!tools(json!("none")).expect("valid").any());
        let other = json!({"type": "function", "function": {"name": "other"}});
        for bad in [other, json!("always"), json!(3)] {
            let error = tools(bad).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some("tool_choice"));
        }
    }
}
