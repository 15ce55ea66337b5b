use crate::{Error, Result};
use serde_json::Value;
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
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, shown or played, in order.
    pub parts: Vec<Part>,
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
const KEYS: [&str; 4] = ["messages", "expected", "task", "label"];

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
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let text = match std::str::from_utf8(&bytes) {
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
        let Value::Object(map) = value else {
            return Err(format!("expected a JSON object, found {}", kind(value)));
        };
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
                }))
            }
        }
    }
}

/// A message, and whether it is to be learnt if an assistant says it.
fn message(value: &Value, base: &Path) -> Result<(Message, bool), String> {
    let Value::Object(map) = value else {
        return Err(format!("expected an object, found {}", kind(value)));
    };
    let role = match map.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                return Err(format!(
                    "unknown role `{other}`; expected `system`, `user` or `assistant`"
                ));
            }
        },
        Some(other) => return Err(format!("`role`: expected a string, found {}", kind(other))),
        None => return Err("`role` is missing".into()),
    };
    let learnt = match map.get("weight") {
        None | Some(Value::Null) => true,
        Some(weight) if weight.as_f64() == Some(1.0) => true,
        Some(weight) if weight.as_f64() == Some(0.0) => false,
        Some(other) => return Err(format!("`weight`: expected 0 or 1, found {}", kind(other))),
    };
    let Some(value) = map.get("content") else {
        return Err("`content` is missing".into());
    };
    let parts = content(value, base).map_err(|e| format!("`content`: {e}"))?;
    Ok((Message { role, parts }, learnt))
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

fn array<'a>(name: &str, value: &'a Value) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("`{name}`: expected a list, found {}", kind(value)))
}

fn kind(value: &Value) -> String {
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
