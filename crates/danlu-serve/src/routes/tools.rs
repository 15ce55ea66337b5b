//! Tools: told to the model by its template, and found again in what it says. If a call is
//! required, the reply is held to the schema of a call.

use crate::http::error::{Answer, ApiError};
use crate::http::fields::{Fields, kind};
use danlu_core::{Call, call};
use serde_json::{Value, json};

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
    whole: Value,
    parameters: Value,
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    list: Vec<Tool>,
    choice: Choice,
    /// A reply may be several calls.
    several: bool,
}

/// A `tool_choice` whose `allowed_tools` leave those alone of the list: what is left of it is their `mode`.
fn chosen(choice: Option<Value>, list: &mut Vec<Tool>) -> Answer<Option<Value>> {
    let param = "tool_choice";
    let Some(allowed) = choice.as_ref().and_then(|choice| choice.get("allowed_tools")) else {
        return Ok(choice);
    };
    let mut names = Vec::new();
    for tool in allowed["tools"].as_array().into_iter().flatten() {
        match tool["function"]["name"].as_str() {
            Some(name) if list.iter().any(|t| t.name == name) => names.push(name),
            _ => return Err(ApiError::bad(param, "`tool_choice` names a tool that is not there")),
        }
    }
    let mode = &allowed["mode"];
    if names.is_empty() || !(mode == "auto" || mode == "required") {
        let wanted = "`allowed_tools` with a `mode` of auto or required and a list of `tools`";
        return Err(ApiError::expected(param, wanted, kind(mode)));
    }
    list.retain(|tool| names.contains(&tool.name.as_str()));
    Ok(Some(mode.clone()))
}

impl Tools {
    /// Takes `tools` and `tool_choice` out of a request.
    pub(crate) fn take(fields: &mut Fields) -> Answer<Self> {
        let list = fields.list("tools")?.unwrap_or_default();
        if list.len() > MAX_TOOLS {
            let wanted = format!("at most {MAX_TOOLS} tools");
            return Err(ApiError::expected("tools", wanted, list.len()));
        }
        let mut list: Vec<Tool> = list
            .into_iter()
            .enumerate()
            .map(|(i, value)| tool(&format!("tools[{i}]"), value))
            .collect::<Answer<_>>()?;
        let choice = match chosen(fields.take("tool_choice"), &mut list)? {
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
        let several = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        Ok(Self { list, choice, several })
    }

    /// Whether a reply may be a call.
    pub(crate) fn any(&self) -> bool {
        !self.list.is_empty() && self.choice != Choice::Never
    }

    /// Whether a reply must be a call.
    pub(crate) fn required(&self) -> bool {
        matches!(self.choice, Choice::Any | Choice::One(_))
    }

    /// The tools that the model is told of.
    pub(crate) fn told(&self) -> Vec<Value> {
        let list = if self.any() { self.list.as_slice() } else { &[] };
        list.iter().map(|t| t.whole.clone()).collect()
    }

    /// The schema that a reply is held to if a call is required.
    pub(crate) fn schema(&self) -> Option<Value> {
        let call = |(i, tool): (usize, &Tool)| {
            let mut arguments = tool.parameters.clone();
            // Arguments are an object, whether that is said or not.
            if let Some(map) = arguments.as_object_mut().filter(|map| !map.contains_key("$ref")) {
                map.entry("type").or_insert_with(|| "object".into());
            }
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

    /// The calls that a reply is, if it is some, of tools that are there.
    pub(crate) fn calls(&self, text: &str) -> Vec<Value> {
        let known = |call: &Call| self.list.iter().any(|t| t.name == call.name);
        let calls = call::said(text).into_iter().filter(known);
        let told = calls.map(|call| {
            json!({
                "id": format!("call_{}", crate::routes::chat::unique()),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments.to_string()},
            })
        });
        told.take(if self.several { usize::MAX } else { 1 }).collect()
    }

    /// What a reply says before its calls.
    pub(super) fn before(text: &str) -> Option<&str> {
        text.split_once(call::TAGS[0])
            .map(|(before, _)| before)
            .filter(|before| !before.trim().is_empty())
    }
}

/// A reply as it comes: what could still be a call is held back, with its log probabilities, and the
/// rest is let go.
#[derive(Debug, Default)]
pub(super) struct Held {
    pieces: Vec<(String, Vec<Value>)>,
    /// There was text that no call begins with.
    text: bool,
}

impl Held {
    /// Takes a piece; what is certainly text now.
    pub(super) fn push(&mut self, text: String, logprobs: Vec<Value>) -> (String, Vec<Value>) {
        self.pieces.push((text, logprobs));
        let all = self.text();
        let begun = all.trim_start();
        let listed = begun.strip_prefix('[').map(str::trim_start);
        let json = |s: &str| s.is_empty() || s.starts_with('{');
        if !self.text && (json(begun) || listed.is_some_and(json)) {
            return Default::default();
        }
        self.text = true;
        let [open, _] = call::TAGS;
        let most = all.len().min(open.len() - 1);
        let tail = || (1..=most).rev().find(|&n| all.ends_with(&open[..n]));
        let until = all.find(open).unwrap_or_else(|| all.len() - tail().unwrap_or(0));
        // By whole pieces, so that each has its own log probabilities.
        let mut end = 0;
        let certain = self.pieces.iter().take_while(|(text, _)| {
            end += text.len();
            end <= until
        });
        let count = certain.count();
        join(self.pieces.drain(..count))
    }

    /// What is held.
    pub(super) fn text(&self) -> String {
        self.pieces.iter().map(|(text, _)| text.as_str()).collect()
    }

    /// Lets everything go.
    pub(super) fn take(&mut self) -> (String, Vec<Value>) {
        join(self.pieces.drain(..))
    }
}

fn join(pieces: impl Iterator<Item = (String, Vec<Value>)>) -> (String, Vec<Value>) {
    pieces.fold(Default::default(), |(all, mut logprobs), (text, more)| {
        logprobs.extend(more);
        (all + &text, logprobs)
    })
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
    let function = &value["function"];
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name = function["name"].as_str().unwrap_or_default().to_string();
    if !(1..=64).contains(&name.len()) || !name.chars().all(plain) {
        let wanted = "1 to 64 letters, digits, `-` and `_`";
        return Err(ApiError::expected(format!("{at}.function.name"), wanted, "another"));
    }
    let parameters = match &function["parameters"] {
        Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Value::Object(map) if map.get("type").is_none_or(|kind| kind == "object") => {
            Value::Object(map.clone())
        }
        Value::Object(_) => {
            let param = format!("{at}.function.parameters.type");
            return Err(ApiError::expected(param, "object", "another"));
        }
        other => {
            let param = format!("{at}.function.parameters");
            return Err(ApiError::expected(param, "an object", kind(other)));
        }
    };
    Ok(Tool { name, parameters, whole: value })
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
        let calls = tools.calls(" {\"name\":\"weather\",\"arguments\":{\"city\":\"Bern\"}}");
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0]["function"]["arguments"], "{\"city\":\"Bern\"}");
        for text in ["sunny", "{\"name\":\"other\",\"arguments\":{}}"] {
            assert!(tools.calls(text).is_empty(), "{text}");
        }
        assert_eq!(tools.schema(), None);
    }

    #[test]
    fn what_could_be_a_call_is_held_and_nothing_else() {
        let told = |pieces: &[&str]| {
            let mut held = Held::default();
            let said: Vec<String> =
                pieces.iter().map(|p| held.push(p.to_string(), vec![json!(p)]).0).collect();
            (said, held.take())
        };
        let (said, (rest, logprobs)) =
            told(&[" ", "a", " {", "<tool", "x", " <", "tool_call>", "{"]);
        assert_eq!(said, ["", " a", " {", "", "<toolx", "", "", ""]);
        assert_eq!((rest.as_str(), logprobs.len()), (" <tool_call>{", 3));
        assert_eq!(told(&["[", "{"]).0, ["", ""]);
        assert_eq!(told(&["[", "1]"]).0, ["", "[1]"]);
        let (said, (rest, logprobs)) = told(&["\n", "{\"", "name", "<tool_call>"]);
        assert_eq!((said.concat().as_str(), logprobs.len()), ("", 4));
        assert_eq!(rest, "\n{\"name<tool_call>");
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
