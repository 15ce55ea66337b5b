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
        let call = |(i, tool): (usize, &Tool)| {
            let mut arguments = tool.parameters.clone();
            move_schema(&mut arguments, &format!("/anyOf/{i}/properties/arguments"));
            json!({
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = match &self.choice {
            Choice::Never | Choice::Free => return None,
            Choice::Any => self.list.iter().enumerate().map(call).collect(),
            Choice::One(name) => {
                self.list.iter().filter(|t| t.name == *name).enumerate().map(call).collect()
            }
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

/// References of a schema that begin at its root, for it to stand at `place` of another.
fn move_schema(schema: &mut Value, place: &str) {
    let map = match schema {
        Value::Object(map) => map,
        Value::Array(list) => return list.iter_mut().for_each(|one| move_schema(one, place)),
        _ => return,
    };
    for (key, value) in map {
        match (key.as_str(), value) {
            // Data, whatever it looks like.
            ("const" | "enum" | "default" | "examples", _) => {}
            ("$ref" | "$dynamicRef", Value::String(to)) => {
                if let Some(rest) =
                    to.strip_prefix('#').filter(|r| r.is_empty() || r.starts_with('/'))
                {
                    *to = format!("#{place}{rest}");
                }
            }
            // Their keys are names, which may be any of those above.
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                Value::Object(named),
            ) => named.values_mut().for_each(|one| move_schema(one, place)),
            (_, value) => move_schema(value, place),
        }
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
    fn tools_may_have_definitions_of_their_own() {
        use crate::engine::{BitMask, Mask};
        // As the official client makes one of a class with classes in it.
        let nested = |name: &str, colours: [&str; 2]| {
            json!({"type": "function", "function": {"name": name, "strict": true, "parameters": {
                "$defs": {
                    "Colour": {"enum": colours, "title": "Colour", "type": "string"},
                    "Spot": {
                        "properties": {
                            "colour": {"$ref": "#/$defs/Colour"},
                            "next": {"anyOf": [{"$ref": "#/$defs/Spot"}, {"type": "null"}]},
                        },
                        "required": ["colour", "next"],
                        "title": "Spot",
                        "type": "object",
                        "additionalProperties": false,
                    },
                },
                "properties": {"spot": {"$ref": "#/$defs/Spot"}},
                "required": ["spot"],
                "title": name,
                "type": "object",
                "additionalProperties": false,
            }}})
        };
        let map = json!({
            "tools": [nested("paint", ["red", "blue"]), nested("print", ["black", "grey"])],
            "tool_choice": "required",
        });
        let Value::Object(map) = map else { unreachable!("it is one") };
        let schema = Tools::take(&mut Fields::new(map)).expect("valid").schema().expect("one");
        let entries: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        let grammars = crate::schema::Grammars::new(&entries, vec![256]).expect("builds");
        let may_say = |name: &str, colour: &str| {
            let mut mask = grammars.mask("tools", &schema).expect("compiles");
            let spot = |next: &str| format!(r#"{{"colour":"{colour}","next":{next}}}"#);
            let text =
                format!(r#"{{"name":"{name}","arguments":{{"spot":{}}}}}"#, spot(&spot("null")));
            text.bytes().map(u32::from).chain([256]).all(|id| {
                let mut bits = BitMask::new(257);
                mask.allowed(&mut bits);
                mask.accept(id);
                bits.contains(id)
            })
        };
        assert!(may_say("paint", "blue") && may_say("print", "grey"));
        assert!(!may_say("paint", "grey") && !may_say("print", "blue"));
    }

    #[test]
    fn data_that_looks_like_a_reference_is_left_alone() {
        let mut schema = json!({
            "properties": {"$ref": {"const": {"$ref": "#/a"}}, "enum": {"$ref": "#"}},
            "items": [{"$ref": "#/$defs/b"}, {"$ref": "other#/c"}],
        });
        move_schema(&mut schema, "/at");
        assert_eq!(schema["properties"]["$ref"]["const"]["$ref"], "#/a");
        assert_eq!(schema["properties"]["enum"]["$ref"], "#/at");
        assert_eq!(schema["items"], json!([{"$ref": "#/at/$defs/b"}, {"$ref": "other#/c"}]));
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
