use crate::call::{Call, tools};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called: what came of it.
    Tool,
}

impl Role {
    /// Its name in files and requests.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// Index of a picture or sound that a loaded corpus holds in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssetId(pub u32);

/// Where the content of a part is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Media {
    /// A file, resolved against the folder of the sample file that names it.
    File(PathBuf),
    /// Something that the corpus holds: pictures and sounds are counted apart.
    Asset(AssetId),
}

/// One piece of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// Text. `<locN>` in it is the place token N (0-based pixel column or row of the picture).
    Text(String),
    /// A picture.
    Image(Media),
    /// A sound.
    Audio(Media),
    /// A call of a tool; after everything else that an assistant says.
    Call(Call),
}

impl Part {
    /// The call that it is.
    pub fn call(&self) -> Option<&Call> {
        match self {
            Part::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Its text, or a mark where it has none.
    pub fn words(&self) -> Cow<'_, str> {
        match self {
            Part::Text(text) => text.into(),
            Part::Image(_) => "[picture]".into(),
            Part::Audio(_) => "[sound]".into(),
            Part::Call(call) => call.words().into(),
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, shown or played, in order.
    pub parts: Vec<Part>,
    /// Those of [`Message::NOTES`] that it has, for chat templates that read them.
    pub notes: Vec<(&'static str, String)>,
}

impl Message {
    /// Keys of a message that only chat templates make something of: who answers to what, and what
    /// was thought before a reply.
    pub const NOTES: [&'static str; 4] = ["name", "tool_call_id", "reasoning_content", "thinking"];

    /// A message without notes.
    pub fn new(role: Role, parts: Vec<Part>) -> Self {
        Self { role, parts, notes: Vec::new() }
    }

    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self::new(role, vec![Part::Text(text.into())])
    }
}

/// A conversation: the one form that training, tuning, evaluation and requests share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// The turns, in order.
    pub messages: Vec<Message>,
    /// For evaluation: what the reply should be.
    pub expected: Option<Vec<Part>>,
    /// For evaluation and reports: the task's name.
    pub task: Option<String>,
    /// For evaluation by a judge: the concept that the reply should be recognised as.
    pub label: Option<String>,
    /// Which of `messages` are replies that are not to be learnt (OpenAI's `weight` of 0).
    pub unlearnt: Vec<usize>,
    /// Tools that the model may call, as OpenAI's `tools` has them.
    pub tools: Vec<Value>,
    /// What a chat template is told beside all this, by names of its own (`enable_thinking`).
    pub variables: Map<String, Value>,
}

/// One line of a sample file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// `{"messages": [...]}`
    Chat(Sample),
    /// `{"text": "..."}`: plain text for pretraining.
    Text(String),
}

/// The keys of a conversation that say something here.
const KEYS: [&str; 6] = ["messages", "expected", "task", "label", "tools", "chat_template_kwargs"];

/// Refuses a key that is nearly one of `known`: it was misspelt. Others are passed over, for files
/// have columns of their owners' beside those that count. The error is a sentence for
/// [`Error::Row`].
pub fn refuse_misspelt<'a>(
    keys: impl IntoIterator<Item = &'a String>,
    known: &[&str],
) -> Result<(), String> {
    for key in keys.into_iter().filter(|key| !known.contains(&key.as_str())) {
        // A letter more or less tells other words apart from short ones.
        let near = |name: &&&str| name.len() > 4 && strsim::osa_distance(key, name) <= 2;
        if let Some(name) = known.iter().find(near) {
            return Err(format!("unknown key `{key}`; expected `{name}`"));
        }
    }
    Ok(())
}

/// What a file begins with, without the byte order mark that some programs put there. One of UTF-16 is an
/// error.
pub fn without_mark<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::file(path, "text in UTF-8", "a byte order mark of UTF-16"));
    }
    Ok(bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes))
}

/// Reads a JSON Lines file of samples, one `(line, row)` at a time; blank lines are passed over.
/// Media paths are resolved against the file's folder but not opened.
///
/// The item is an [`Error::Row`] where the line is not a sample, so the caller decides how many
/// to forgive.
pub fn read_rows(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Row)>> + use<>> {
    use std::io::BufRead;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let path = path.to_path_buf();
    let mut reader = std::io::BufReader::new(file);
    let mut line = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            line += 1;
            let mut bytes = Vec::new();
            match reader.read_until(b'\n', &mut bytes) {
                Err(e) => return Some(Err(Error::io(&path, e))),
                Ok(0) => return None,
                Ok(_) => {}
            }
            let row = match line {
                1 => match without_mark(&path, &bytes) {
                    Ok(bytes) => bytes,
                    Err(e) => return Some(Err(e)),
                },
                _ => &bytes[..],
            };
            if row.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let text = match std::str::from_utf8(row) {
                Ok(text) => text,
                Err(e) => return Some(Err(Error::row(&path, line, format!("not UTF-8: {e}")))),
            };
            let base = path.parent().unwrap_or(Path::new("."));
            return Some(
                Row::parse(text, base)
                    .map(|row| (line, row))
                    .map_err(|message| Error::row(&path, line, message)),
            );
        }
    }))
}

impl Row {
    /// Parses one line. `base` is the folder against which media paths are resolved. The error is
    /// a sentence for [`Error::Row`].
    pub fn parse(text: &str, base: &Path) -> Result<Row, String> {
        Self::of(&serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?, base)
    }

    /// The same of a line that is parsed already.
    pub fn of(value: &Value, base: &Path) -> Result<Row, String> {
        match value {
            Value::Object(map) => Self::of_object(map, base),
            other => Err(format!("expected a JSON object, found {}", kind(other))),
        }
    }

    /// The same of its object.
    pub fn of_object(map: &Map<String, Value>, base: &Path) -> Result<Row, String> {
        match (map.get("messages"), map.get("text")) {
            (Some(_), Some(_)) => {
                Err("has both `messages` and `text`; expected one of them".into())
            }
            (None, None) => Err(format!(
                "expected a key `messages` or `text`, found {:?}",
                map.keys().collect::<Vec<_>>()
            )),
            (None, Some(Value::String(text))) => Ok(Row::Text(text.clone())),
            (None, Some(other)) => Err(format!("`text`: expected a string, found {}", kind(other))),
            (Some(messages), None) => {
                refuse_misspelt(map.keys(), &KEYS)?;
                let list = array("messages", messages)?;
                if list.is_empty() {
                    return Err("`messages`: expected at least one message, found none".into());
                }
                let (mut messages, mut unlearnt) = (Vec::with_capacity(list.len()), Vec::new());
                for (i, value) in list.iter().enumerate() {
                    let (message, learnt) =
                        message(value, base).map_err(|e| format!("messages[{i}]: {e}"))?;
                    if !learnt && message.role == Role::Assistant {
                        unlearnt.push(i);
                    }
                    messages.push(message);
                }
                let expected = match map.get("expected") {
                    None | Some(Value::Null) => None,
                    Some(v) => Some(content(v, base).map_err(|e| format!("`expected`: {e}"))?),
                };
                let string = |key: &str| match map.get(key) {
                    None | Some(Value::Null) => Ok(None),
                    Some(Value::String(s)) => Ok(Some(s.clone())),
                    Some(other) => {
                        Err(format!("`{key}`: expected a string, found {}", kind(other)))
                    }
                };
                Ok(Row::Chat(Sample {
                    messages,
                    expected,
                    task: string("task")?,
                    label: string("label")?,
                    unlearnt,
                    tools: tools(map.get("tools"))?,
                    variables: variables(map.get("chat_template_kwargs"))
                        .map_err(|e| format!("`chat_template_kwargs`: {e}"))?,
                }))
            }
        }
    }
}

/// Variables of a chat template by name. Those that say what the conversation is cannot be set. The
/// error is a sentence without the name of the key.
pub fn variables(value: Option<&Value>) -> Result<Map<String, Value>, String> {
    let map = match value {
        None | Some(Value::Null) => return Ok(Map::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(format!("expected an object, found {}", kind(other))),
    };
    const TAKEN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
    let plain = |name: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(word)
    };
    for name in map.keys() {
        if !plain(name) || TAKEN.contains(&name.as_str()) || name.ends_with("_token") {
            return Err(format!("expected names that a template is free to use, found {name:?}"));
        }
    }
    Ok(map.clone())
}

/// Whether a message is to be learnt if an assistant says it: its `weight`, 0 or 1. The error is a
/// sentence for [`Error::Row`].
pub fn learnt(message: &Map<String, Value>) -> Result<bool, String> {
    match message.get("weight") {
        None | Some(Value::Null) => Ok(true),
        Some(weight) if weight.as_f64() == Some(1.0) => Ok(true),
        Some(weight) if weight.as_f64() == Some(0.0) => Ok(false),
        Some(other) => Err(format!("`weight`: expected 0 or 1, found {}", kind(other))),
    }
}

/// A message as OpenAI has it, and whether it is to be learnt if an assistant says it. `base` and the
/// error are as for [`Row::parse`].
pub fn message(value: &Value, base: &Path) -> Result<(Message, bool), String> {
    let Value::Object(map) = value else {
        return Err(format!("expected an object, found {}", kind(value)));
    };
    let role = match map.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => {
                return Err(format!(
                    "unknown role `{other}`; expected `system`, `user`, `assistant` or `tool`"
                ));
            }
        },
        Some(other) => return Err(format!("`role`: expected a string, found {}", kind(other))),
        None => return Err("`role` is missing".into()),
    };
    let learnt = learnt(map)?;
    let calls = match map.get("tool_calls").filter(|calls| !calls.is_null()) {
        None => Vec::new(),
        Some(_) if role != Role::Assistant => {
            return Err(format!("`tool_calls`: an assistant's, found {}'s", role.name()));
        }
        Some(calls) => Call::list("tool_calls", calls)?,
    };
    let mut parts = match map.get("content") {
        None if calls.is_empty() => return Err("`content` is missing".into()),
        None => Vec::new(),
        Some(Value::Null) if !calls.is_empty() => Vec::new(),
        Some(value) => content(value, base).map_err(|e| format!("`content`: {e}"))?,
    };
    parts.extend(calls.into_iter().map(Part::Call));
    let mut notes = Vec::new();
    for key in Message::NOTES {
        match map.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(note)) => notes.push((key, note.clone())),
            Some(other) => {
                return Err(format!("`{key}`: expected a string, found {}", kind(other)));
            }
        }
    }
    Ok((Message { role, parts, notes }, learnt))
}

fn content(value: &Value, base: &Path) -> Result<Vec<Part>, String> {
    match value {
        Value::String(text) => Ok(vec![Part::Text(text.clone())]),
        Value::Array(parts) if parts.is_empty() => {
            Err("expected at least one part, found none".into())
        }
        Value::Array(parts) => parts
            .iter()
            .enumerate()
            .map(|(i, p)| part(p, base).map_err(|e| format!("part {i}: {e}")))
            .collect(),
        other => Err(format!("expected a string or a list of parts, found {}", kind(other))),
    }
}

fn part(value: &Value, base: &Path) -> Result<Part, String> {
    let Value::Object(map) = value else {
        return Err(format!("expected an object, found {}", kind(value)));
    };
    let Some(Value::String(ty)) = map.get("type") else {
        return Err("`type` is missing; expected `text`, `image` or `audio`".into());
    };
    if !matches!(ty.as_str(), "text" | "image" | "audio") {
        return Err(format!("unknown type `{ty}`; expected `text`, `image` or `audio`"));
    }
    let body = match map.get(ty) {
        Some(Value::String(s)) => s,
        Some(other) => return Err(format!("`{ty}`: expected a string, found {}", kind(other))),
        None => return Err(format!("has type `{ty}` but no key `{ty}`")),
    };
    let file = || Media::File(base.join(body));
    Ok(match ty.as_str() {
        "text" => Part::Text(body.clone()),
        "image" => Part::Image(file()),
        _ => Part::Audio(file()),
    })
}

pub(crate) fn array<'a>(name: &str, value: &'a Value) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("`{name}`: expected a list, found {}", kind(value)))
}

pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("{b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {:?}", s.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_documented_form() {
        let row = Row::parse(
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Say what you see."},
               {"type":"image","image":"cat.png"}]},
               {"role":"assistant","content":[{"type":"audio","audio":"cat.wav"}]}]}"#,
            Path::new("/data"),
        );
        let Ok(Row::Chat(sample)) = row else { panic!("{row:?}") };
        assert_eq!(sample.messages[0].parts[1], Part::Image(Media::File("/data/cat.png".into())));
        assert_eq!(sample.messages[1].role, Role::Assistant);
    }

    #[test]
    fn tools_their_calls_and_their_answers_are_read() {
        let row = |tools: &str| {
            let text = format!(
                r#"{{"tools":{tools},"messages":[{{"role":"user","content":"Weather?"}},
                {{"role":"assistant","content":null,"tool_calls":[{{"id":"a1","type":"function",
                "function":{{"name":"weather","arguments":"{{\"city\":\"Bern\"}}"}}}}]}},
                {{"role":"tool","tool_call_id":"a1","content":"sunny"}},
                {{"role":"assistant","content":"Sunny.","reasoning_content":"Easy."}}]}}"#
            );
            match Row::parse(&text, Path::new(".")) {
                Ok(Row::Chat(sample)) => sample,
                other => panic!("{other:?}"),
            }
        };
        let function = r#"{"type":"function","function":{"name":"weather"}}"#;
        let sample = row(&format!("[{function}]"));
        let arguments = serde_json::json!({ "city": "Bern" });
        let call = Call { id: Some("a1".into()), name: "weather".into(), arguments };
        assert_eq!(sample.messages[1].parts, [Part::Call(call)]);
        assert_eq!(sample.messages[2].role, Role::Tool);
        assert_eq!(sample.messages[2].notes, [("tool_call_id", "a1".to_string())]);
        assert_eq!(sample.messages[3].notes, [("reasoning_content", "Easy.".to_string())]);
        assert_eq!(sample.tools[0]["function"]["name"], "weather");
        // Tables keep them as text.
        let text = Value::from(format!("[{function}]")).to_string();
        assert_eq!(row(&text), sample);
    }

    #[test]
    fn replies_of_no_weight_and_columns_of_others_are_known() {
        let row = Row::parse(
            r#"{"lang":"en","score":3,"messages":[{"role":"user","content":"a","weight":0},
               {"role":"assistant","content":"b","weight":0},{"role":"user","content":"c"},
               {"role":"assistant","content":"d","weight":1}]}"#,
            Path::new("."),
        );
        let Ok(Row::Chat(sample)) = row else { panic!("{row:?}") };
        assert_eq!(sample.unlearnt, [1]);
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        for (text, want) in [
            ("[]", "expected a JSON object, found a list"),
            ("{", "not JSON"),
            (r#"{"messages":[]}"#, "at least one message"),
            (r#"{"messages":[{"role":"robot","content":"x"}]}"#, "unknown role `robot`"),
            (r#"{"messages":[{"role":"user"}]}"#, "`content` is missing"),
            (
                r#"{"messages":[{"role":"assistant","content":"x","weight":0.5}]}"#,
                "`weight`: expected 0 or 1, found the number 0.5",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x","tool_calls":[]}]}"#,
                "`tool_calls`: an assistant's, found user's",
            ),
            (
                r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}]}"#,
                "tool_calls[0]: `function.arguments`: expected an object or its text, found nothing",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function"}]}"#,
                "tools[0]: expected a function with a name",
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"tools":1}}"#,
                "`chat_template_kwargs`: expected names that a template is free to use",
            ),
            (r#"{"messages":[{"role":"user","content":[]}]}"#, "at least one part"),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"video","video":"x"}]}]}"#,
                "unknown type `video`",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image","image":7}]}]}"#,
                "expected a string, found the number 7",
            ),
            (r#"{"text":3}"#, "expected a string"),
            (
                r#"{"messages":[{"role":"user","content":"x"}],"mesages":1}"#,
                "unknown key `mesages`",
            ),
            (r#"{"a":1}"#, "expected a key `messages` or `text`"),
        ] {
            let error = Row::parse(text, Path::new(".")).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
