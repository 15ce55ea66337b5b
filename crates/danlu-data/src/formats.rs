//! Rows that adaptations learn from, in the forms that people have them: OpenAI's `messages`,
//! alpaca, sharegpt, prompts with completions, preferences, plain text. The keys of a row tell its form.

use crate::table::{is_table, objects};
use danlu_core::{Error, Media, Message, Part, Result, Role, Row, Sample, call, refuse_misspelt};
use serde_json::{Map, Value};
use std::path::Path;

/// One row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TuneRow {
    /// A conversation; with `expected`, a question that a reply is checked against.
    Chat(Sample),
    /// Plain text.
    Text(String),
    /// A conversation without its last reply, and the better and the worse one.
    Pair {
        /// What both reply to.
        asked: Sample,
        /// The better reply.
        chosen: Message,
        /// The worse reply.
        rejected: Message,
    },
}

/// Rows with the numbers of their lines (JSON Lines) or rows (Parquet).
pub type Numbered = Vec<(usize, TuneRow)>;

/// Reads a file of JSON Lines or of one JSON array, or of Parquet if it is called so: the usable rows with their numbers,
/// and a message for each of the others (`file:line: ...`).
pub fn read_tuning(path: &Path) -> Result<(Numbered, Vec<String>)> {
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for row in read_each(path)? {
        match row {
            Ok(row) => rows.push(row),
            Err(e @ Error::Row { .. }) => bad.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok((rows, bad))
}

/// The same, row by row in their order.
pub fn read_each(path: &Path) -> Result<Vec<Result<(usize, TuneRow)>>> {
    let base = path.parent().unwrap_or(Path::new("."));
    let numbered = |i: usize, row: Result<TuneRow, String>| {
        row.map(|row| (i, row)).map_err(|message| Error::row(path, i, message))
    };
    if is_table(path) {
        let each = objects(path)?
            .map(|object| object.and_then(|(i, object)| numbered(i, parse_value(object, base))));
        return Ok(each.collect());
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let bytes = danlu_core::without_mark(path, &bytes)?;
    if let Some(found) = other_form(path, bytes) {
        return Err(Error::file(path, "a row a line, one JSON array of rows, or Parquet", found));
    }
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        let objects: Vec<Value> = serde_json::from_slice(bytes)
            .map_err(|e| Error::file(path, "a JSON array of rows, or a row a line", e))?;
        let each = objects.into_iter().enumerate();
        return Ok(each.map(|(i, object)| numbered(i + 1, parse_value(object, base))).collect());
    }
    let lines = bytes.split(|&b| b == b'\n').enumerate();
    let filled = lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    let each = filled.map(|(i, line)| {
        let row = std::str::from_utf8(line)
            .map_err(|e| format!("not UTF-8: {e}"))
            .and_then(|text| parse(text, base));
        numbered(i + 1, row)
    });
    Ok(each.collect())
}

/// What a file is that has rows in a form that is not read.
fn other_form(path: &Path, bytes: &[u8]) -> Option<&'static str> {
    let named = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Some("a gzip file");
    }
    if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Some("a zstd file");
    }
    if named("csv") || named("tsv") {
        return Some("a table of text (CSV)");
    }
    let first = bytes.split(|&b| b == b'\n').find(|line| !line.trim_ascii().is_empty())?;
    let broken = serde_json::from_slice::<Value>(first).is_err_and(|e| e.is_eof());
    // Only then is it worth reading it all.
    let one = broken && serde_json::from_slice::<Map<String, Value>>(bytes).is_ok();
    one.then_some("one JSON object over several lines")
}

/// Parses one line. The error is a sentence for [`Error::Row`].
fn parse(text: &str, base: &Path) -> Result<TuneRow, String> {
    parse_value(serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?, base)
}

fn parse_value(value: Value, base: &Path) -> Result<TuneRow, String> {
    let Value::Object(mut map) = value else {
        return Err("expected a JSON object".into());
    };
    // Tables give every row every column.
    map.retain(|_, value| !value.is_null());
    let mut media = Attached::take(&mut map, base)?;
    let row = if map.contains_key("chosen") || map.contains_key("rejected") {
        pair(&map, base, &mut media)?
    } else {
        let mut forms = FORMS.iter().filter(|form| form.is_whole(&map));
        match forms.next() {
            None => match FORMS.iter().find(|form| map.contains_key(form.key())) {
                // Says what it lacks.
                Some(form) => TuneRow::Chat(sample(&map, form.turns(&map, base)?, &mut media)?),
                None => of_messages(&map, base, &mut media)?,
            },
            Some(first) => {
                if let Some(other) = forms.find(|other| differ(*first, **other, &map, base)) {
                    let (a, b) = (first.key(), other.key());
                    return Err(format!(
                        "`{a}` and `{b}` say different things; expected one of them"
                    ));
                }
                match first {
                    Form::Messages => of_messages(&map, base, &mut media)?,
                    form => TuneRow::Chat(sample(&map, form.turns(&map, base)?, &mut media)?),
                }
            }
        }
    };
    if matches!(row, TuneRow::Chat(_)) {
        refuse_judged(&map)?;
    }
    media.used_up()?;
    if row == TuneRow::Text(String::new()) {
        return Err("`text`: expected a text, found an empty one".into());
    }
    if let TuneRow::Chat(sample) = &row {
        let spoken = sample.messages.iter().filter(|m| m.role == Role::Assistant).count();
        if spoken > 0 && spoken == sample.unlearnt.len() && sample.expected.is_none() {
            return Err("expected an assistant's message of `weight` 1, found none".into());
        }
        if spoken == 0 && sample.expected.is_none() {
            return Err("expected an assistant's message (or `expected`), found none".into());
        }
        let empty = |part: &Part| matches!(part, Part::Text(text) if text.is_empty());
        let mut replies = sample.messages.iter().filter(|m| m.role == Role::Assistant);
        if spoken > 0 && sample.expected.is_none() && replies.all(|m| m.parts.iter().all(empty)) {
            return Err("expected an assistant that says something, found empty replies".into());
        }
    }
    Ok(row)
}

/// A form of a conversation that a row may have.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Messages,
    Sharegpt,
    Alpaca,
    Completed,
}

/// In the order in which they count where a row has several.
const FORMS: [Form; 4] = [Form::Messages, Form::Sharegpt, Form::Alpaca, Form::Completed];

impl Form {
    /// The key that tells it.
    fn key(self) -> &'static str {
        match self {
            Form::Messages => "messages",
            Form::Sharegpt => "conversations",
            Form::Alpaca => "instruction",
            Form::Completed => "completion",
        }
    }

    /// Whether a row has all of it.
    fn is_whole(self, map: &Map<String, Value>) -> bool {
        let there = |key: &str| match map.get(key) {
            Some(Value::Array(list)) => !list.is_empty(),
            other => other.is_some(),
        };
        match self {
            Form::Messages | Form::Sharegpt => there(self.key()),
            // The instruction may be empty where there is an input.
            Form::Alpaca => there("output") && (there("instruction") || there("input")),
            Form::Completed => there("prompt") && there("completion"),
        }
    }

    fn turns(self, map: &Map<String, Value>, base: &Path) -> Result<Turns, String> {
        match self {
            Form::Messages => turns(map, "messages", Role::User, base),
            Form::Sharegpt => sharegpt(map, base),
            Form::Alpaca => alpaca(map),
            Form::Completed => completed(map, base),
        }
    }
}

/// Whether the last reply of another form of a row is nowhere in the first: many sets have a
/// conversation twice, whole and as its first question.
fn differ(first: Form, other: Form, map: &Map<String, Value>, base: &Path) -> bool {
    let (Ok(turns), Ok(other)) = (first.turns(map, base), other.turns(map, base)) else {
        return false;
    };
    last_reply(&other).is_some_and(|reply| turns.iter().all(|turn| turn.0 != *reply))
}

fn last_reply(turns: &Turns) -> Option<&Message> {
    turns.iter().map(|t| &t.0).rfind(|m| m.role == Role::Assistant)
}

/// A row of `messages` or `text`.
fn of_messages(
    map: &Map<String, Value>,
    base: &Path,
    media: &mut Attached,
) -> Result<TuneRow, String> {
    match Row::of_object(map, base)? {
        Row::Text(text) => Ok(TuneRow::Text(text)),
        Row::Chat(mut sample) => {
            media.fill(&mut sample.messages)?;
            // Another's column of that name may be anything.
            let told = map.get("system").is_some_and(Value::is_string);
            if told && let Some(system) = system(map, sample.messages.first())? {
                sample.messages.insert(0, system);
                sample.unlearnt.iter_mut().for_each(|i| *i += 1);
            }
            Ok(TuneRow::Chat(sample))
        }
    }
}

/// The columns `images` and `audios`: a path or a list of paths each, for the marks `<image>` and
/// `<audio>` in the texts, or, without marks, before the first text of the user.
struct Attached {
    /// Whether the row has such columns at all: without, a mark is only text.
    given: bool,
    images: std::collections::VecDeque<Part>,
    audios: std::collections::VecDeque<Part>,
}

const MARKS: [&str; 2] = ["<image>", "<audio>"];

impl Attached {
    fn take(map: &mut Map<String, Value>, base: &Path) -> Result<Self, String> {
        let columns = ["images", "image", "audios", "audio"];
        let given = columns.iter().any(|key| map.get(*key).is_some_and(|v| !v.is_null()));
        let mut paths = |keys: [&str; 2], make: fn(Media) -> Part| {
            let mut out = std::collections::VecDeque::new();
            for key in keys {
                let Some(value) = map.remove(key) else { continue };
                let list = match value {
                    Value::Null => vec![],
                    Value::String(path) => vec![path],
                    Value::Array(all) => all
                        .into_iter()
                        .map(|v| v.as_str().map(str::to_string))
                        .collect::<Option<_>>()
                        .ok_or_else(|| format!("`{key}`: expected paths as strings"))?,
                    _ => return Err(format!("`{key}`: expected a path or a list of paths")),
                };
                out.extend(list.into_iter().map(|p| make(Media::File(base.join(p)))));
            }
            Ok(out)
        };
        Ok(Self {
            given,
            images: paths(["images", "image"], Part::Image)?,
            audios: paths(["audios", "audio"], Part::Audio)?,
        })
    }

    /// A text with its marks replaced, in order.
    fn parts(&mut self, text: &str) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((at, which)) =
            MARKS.iter().enumerate().filter_map(|(i, m)| Some((rest.find(m)?, i))).min()
        {
            if !rest[..at].is_empty() {
                parts.push(Part::Text(rest[..at].to_string()));
            }
            let next = if which == 0 { &mut self.images } else { &mut self.audios }.pop_front();
            match next {
                Some(part) => parts.push(part),
                None if !self.given => return Ok(vec![Part::Text(text.to_string())]),
                None => return Err(format!("more marks `{}` than files", MARKS[which])),
            }
            rest = &rest[at + MARKS[which].len()..];
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(Part::Text(rest.to_string()));
        }
        Ok(parts)
    }

    /// Puts the files where the marks are, and what is left before the first user's message.
    fn fill(&mut self, messages: &mut [Message]) -> Result<(), String> {
        if !self.given {
            return Ok(());
        }
        for message in messages.iter_mut() {
            let mut parts = Vec::new();
            for part in std::mem::take(&mut message.parts) {
                match part {
                    Part::Text(text) => parts.extend(self.parts(&text)?),
                    other => parts.push(other),
                }
            }
            message.parts = parts;
        }
        if let Some(first) = messages.iter_mut().find(|m| m.role == Role::User) {
            let left = self.images.drain(..).chain(self.audios.drain(..));
            let all: Vec<Part> = left.chain(std::mem::take(&mut first.parts)).collect();
            first.parts = all;
        }
        Ok(())
    }

    fn used_up(&self) -> Result<(), String> {
        match self.images.len() + self.audios.len() {
            0 => Ok(()),
            n => Err(format!("{n} files of `images` and `audios` have no place in the texts")),
        }
    }
}

fn string<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{key}`: expected a string")),
    }
}

fn said(role: Role, text: &str) -> Message {
    Message::text(role, text)
}

/// Turns, each with whether it is learnt if an assistant says it.
type Turns = Vec<(Message, bool)>;

fn learnt(role: Role, text: &str) -> (Message, bool) {
    (said(role, text), true)
}

/// Refuses rows that say of one reply whether it was good, as KTO learns from: what is bad would be
/// learnt like the rest.
fn refuse_judged(map: &Map<String, Value>) -> Result<(), String> {
    let judged = |key: &&&str| match map.get(**key) {
        Some(Value::Bool(_)) => true,
        Some(_) => **key == "kto_tag",
        None => false,
    };
    match ["kto_tag", "label"].iter().find(judged) {
        Some(key) => Err(format!(
            "`{key}`: replies judged one by one (KTO) are not learnt from; expected `chosen` and \
             `rejected`, or the good ones without `{key}`"
        )),
        None => Ok(()),
    }
}

/// The column `system`, unless the conversation begins with a system's turn.
fn system(map: &Map<String, Value>, first: Option<&Message>) -> Result<Option<Message>, String> {
    let text = string(map, "system")?.filter(|text| !text.is_empty());
    let wanted = first.is_none_or(|m| m.role != Role::System);
    Ok(text.filter(|_| wanted).map(|text| said(Role::System, text)))
}

/// A sample of turns, with what stands beside them in every form.
fn sample(
    map: &Map<String, Value>,
    mut turns: Turns,
    media: &mut Attached,
) -> Result<Sample, String> {
    if let Some(system) = system(map, turns.first().map(|t| &t.0))? {
        turns.insert(0, (system, true));
    }
    let unlearnt = turns.iter().enumerate().filter(|(_, t)| t.0.role == Role::Assistant && !t.1);
    let unlearnt = unlearnt.map(|(i, _)| i).collect();
    let mut messages: Vec<Message> = turns.into_iter().map(|t| t.0).collect();
    media.fill(&mut messages)?;
    Ok(Sample {
        messages,
        unlearnt,
        task: string(map, "task")?.map(str::to_string),
        tools: call::tools(map.get("tools"))?,
        variables: danlu_core::variables(map.get("chat_template_kwargs"))
            .map_err(|e| format!("`chat_template_kwargs`: {e}"))?,
        ..Sample::default()
    })
}

/// The keys that stand beside the turns in every form.
const BESIDE: [&str; 4] = ["system", "task", "tools", "chat_template_kwargs"];

/// `instruction`, `input`, `output`, and `history` where there is one.
fn alpaca(map: &Map<String, Value>) -> Result<Turns, String> {
    let mut turns = alpaca_asked(map)?;
    turns.push(learnt(Role::Assistant, string(map, "output")?.ok_or("`output` is missing")?));
    Ok(turns)
}

/// What alpaca's rows ask.
fn alpaca_asked(map: &Map<String, Value>) -> Result<Turns, String> {
    // `text` is the same once more, in the template of the program that the rows were made for.
    let columns = ["instruction", "input", "output", "history", "text", "chosen", "rejected"];
    refuse_misspelt(map.keys(), &[&columns[..], &BESIDE].concat())?;
    let asked = [string(map, "instruction")?, string(map, "input")?];
    let asked: Vec<&str> = asked.into_iter().flatten().filter(|text| !text.is_empty()).collect();
    if asked.is_empty() {
        return Err("`instruction`: expected something that is asked, found none".into());
    }
    let mut turns = Turns::new();
    match map.get("history") {
        None => {}
        Some(Value::Array(pairs)) => {
            for pair in pairs {
                let pair = pair.as_array().filter(|t| t.len() == 2);
                let texts = pair.and_then(|t| Some((t[0].as_str()?, t[1].as_str()?)));
                let (q, a) = texts.ok_or("`history`: expected pairs of texts")?;
                turns.extend([learnt(Role::User, q), learnt(Role::Assistant, a)]);
            }
        }
        Some(_) => return Err("`history`: expected a list of pairs".into()),
    }
    turns.push(learnt(Role::User, &asked.join("\n")));
    Ok(turns)
}

/// `conversations` of `from` and `value`.
fn sharegpt(map: &Map<String, Value>, base: &Path) -> Result<Turns, String> {
    let keys = ["conversations", "chosen", "rejected"];
    refuse_misspelt(map.keys(), &[&keys[..], &BESIDE].concat())?;
    let turns = map["conversations"].as_array().ok_or("`conversations`: expected a list")?;
    if turns.is_empty() {
        return Err("`conversations`: expected at least one turn, found none".into());
    }
    let turn = |(i, turn)| turn_of(turn, base).map_err(|e| format!("conversations[{i}]: {e}"));
    turns.iter().enumerate().map(turn).collect()
}

/// A turn by `from` and `value`, or a message.
fn turn_of(turn: &Value, base: &Path) -> Result<(Message, bool), String> {
    let map = turn.as_object().ok_or("expected an object")?;
    // Some have the keys of `messages` here, or one of them.
    let there = |key: &str| map.get(key).filter(|value| !value.is_null());
    let role = there("role").and_then(Value::as_str);
    let ours = matches!(role, Some("system" | "user" | "assistant" | "tool"));
    if ours && there("value").is_none() && there("from").is_none() {
        return danlu_core::message(turn, base);
    }
    let either = |names: [&str; 2]| -> Result<&str, String> {
        let found = string(map, names[0])?.or(string(map, names[1])?);
        found.ok_or_else(|| format!("`{}` is missing", names[0]))
    };
    let text = either(["value", "content"])?;
    let role = match either(["from", "role"])? {
        "human" | "user" => Role::User,
        "gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard" => Role::Assistant,
        "system" => Role::System,
        "tool" | "observation" | "function_response" => Role::Tool,
        "function_call" => {
            let Some(calls) = call::written(text) else {
                let wanted = "JSON of calls with `name` and `arguments`";
                return Err(format!("`function_call`: expected {wanted}, found other text"));
            };
            let calls = calls.into_iter().map(Part::Call).collect();
            return Ok((Message::new(Role::Assistant, calls), danlu_core::learnt(map)?));
        }
        other => {
            let wanted = "human, gpt, system, function_call or observation";
            return Err(format!("unknown `from` `{other}`; expected {wanted}"));
        }
    };
    Ok((said(role, text), danlu_core::learnt(map)?))
}

/// What stands under `key` of a question or a reply: the text of a message by `role`, a message, or
/// several.
fn turns(map: &Map<String, Value>, key: &str, role: Role, base: &Path) -> Result<Turns, String> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(vec![learnt(role, text)]),
        Some(one @ Value::Object(_)) => Ok(vec![turn_of(one, base)?]),
        Some(Value::Array(many)) if !many.is_empty() => {
            let turn = |(i, turn)| turn_of(turn, base).map_err(|e| format!("{key}[{i}]: {e}"));
            many.iter().enumerate().map(turn).collect()
        }
        Some(_) => Err(format!("`{key}`: expected a text or messages")),
        None => Err(format!("`{key}` is missing")),
    }
}

/// `prompt` and `completion`: a question and its reply, each a text or messages.
fn completed(map: &Map<String, Value>, base: &Path) -> Result<Turns, String> {
    refuse_misspelt(map.keys(), &[&["prompt", "completion"][..], &BESIDE].concat())?;
    let mut all = turns(map, "prompt", Role::User, base)?;
    // What was asked is not learnt again where it holds replies of before.
    all.iter_mut().for_each(|turn| turn.1 = false);
    let reply = turns(map, "completion", Role::Assistant, base)?;
    if reply.last().is_none_or(|turn| turn.0.role != Role::Assistant) {
        return Err("`completion`: expected an assistant's message at the end".into());
    }
    all.extend(reply);
    Ok(all)
}

/// `chosen` and `rejected`: two replies to `prompt` (a text or messages) or to alpaca's or
/// sharegpt's question, or two whole conversations that differ in the last message.
fn pair(map: &Map<String, Value>, base: &Path, media: &mut Attached) -> Result<TuneRow, String> {
    let side = |key: &str| turns(map, key, Role::Assistant, base);
    let (mut chosen, mut rejected) = (side("chosen")?, side("rejected")?);
    let (Some((better, _)), Some((worse, _))) = (chosen.pop(), rejected.pop()) else {
        return Err("`chosen` and `rejected`: expected replies, found none".into());
    };
    if chosen != rejected {
        return Err("`chosen` and `rejected` differ before their last message".into());
    }
    let mut asked = if map.contains_key("prompt") {
        refuse_misspelt(map.keys(), &[&["prompt", "chosen", "rejected"][..], &BESIDE].concat())?;
        turns(map, "prompt", Role::User, base)?
    } else if map.contains_key("conversations") {
        sharegpt(map, base)?
    } else if map.contains_key("instruction") {
        alpaca_asked(map)?
    } else if map.contains_key("messages") {
        turns(map, "messages", Role::User, base)?
    } else {
        refuse_misspelt(map.keys(), &[&["prompt", "chosen", "rejected"][..], &BESIDE].concat())?;
        Turns::new()
    };
    // Whole conversations may repeat the prompt, and either may have a system's turn more.
    if chosen.starts_with(&asked) || chosen.ends_with(&asked) {
        asked = chosen;
    } else if !asked.ends_with(&chosen) {
        return Err("`chosen` and `rejected`: expected conversations that begin with `prompt`, \
                    found others"
            .into());
    }
    if asked.is_empty() {
        return Err("expected `prompt`, or whole conversations in `chosen` and `rejected`".into());
    }
    for (name, m) in [("chosen", &better), ("rejected", &worse)] {
        if m.role != Role::Assistant {
            return Err(format!("`{name}`: expected an assistant's message at the end"));
        }
    }
    Ok(TuneRow::Pair { asked: sample(map, asked, media)?, chosen: better, rejected: worse })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> TuneRow {
        parse(text, Path::new("/d")).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn chat(text: &str) -> Vec<Message> {
        match row(text) {
            TuneRow::Chat(sample) => sample.messages,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_forms_that_people_have_say_the_same() {
        let wanted = vec![
            said(Role::System, "Be brief."),
            said(Role::User, "Add\n1 1"),
            said(Role::Assistant, "2"),
        ];
        for text in [
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Add\n1 1"},{"role":"assistant","content":"2"}]}"#,
            r#"{"instruction":"Add","input":"1 1","output":"2","system":"Be brief."}"#,
            r#"{"conversations":[{"from":"human","value":"Add\n1 1"},{"from":"gpt","value":"2"}],"system":"Be brief."}"#,
            r#"{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Add\n1 1"}],"completion":"2"}"#,
            r#"{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Add\n1 1"}],"completion":[{"role":"assistant","content":"2"}]}"#,
        ] {
            assert_eq!(chat(text), wanted, "{text}");
        }
        assert_eq!(row(r#"{"text":"plain"}"#), TuneRow::Text("plain".into()));
    }

    #[test]
    fn of_a_prompt_and_its_completion_the_completion_is_learnt() {
        let text = r#"{"prompt":"Hi","completion":"Hello."}"#;
        assert_eq!(chat(text), [said(Role::User, "Hi"), said(Role::Assistant, "Hello.")]);
        let text = r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
            {"role":"user","content":"c"}],"completion":{"role":"assistant","content":"d"}}"#;
        let TuneRow::Chat(sample) = row(text) else { panic!("a conversation") };
        assert_eq!((sample.messages.len(), sample.unlearnt), (4, vec![1]));
    }

    #[test]
    fn calls_of_tools_come_in_the_forms_that_people_have() {
        let tools = r#"[{"name":"weather","parameters":{}}]"#;
        let row = |text: String| match row(&text) {
            TuneRow::Chat(sample) => sample,
            other => panic!("{other:?}"),
        };
        let wanted = row(format!(
            r#"{{"tools":{tools},"messages":[{{"role":"user","content":"Bern?"}},{{"role":"assistant",
            "tool_calls":[{{"function":{{"name":"weather","arguments":{{"city":"Bern"}}}}}}]}},
            {{"role":"tool","content":"sunny"}},{{"role":"assistant","content":"Sunny."}}]}}"#
        ));
        assert_eq!(wanted.tools.len(), 1);
        let found = row(format!(
            r#"{{"tools":{},"conversations":[{{"from":"human","value":"Bern?"}},{{"from":"function_call",
            "value":"{{\"name\":\"weather\",\"arguments\":{{\"city\":\"Bern\"}}}}"}},
            {{"from":"observation","value":"sunny"}},{{"from":"gpt","value":"Sunny."}}]}}"#,
            Value::from(tools)
        ));
        assert_eq!(found, wanted);
        let bad = r#"{"conversations":[{"from":"function_call","value":"weather of Bern"}]}"#;
        let error = parse(bad, Path::new(".")).expect_err("no call");
        assert!(error.contains("conversations[0]: `function_call`"), "{error}");
    }

    #[test]
    fn preferences_come_in_several_forms() {
        let wanted = TuneRow::Pair {
            asked: Sample { messages: vec![said(Role::User, "Hi")], ..Sample::default() },
            chosen: said(Role::Assistant, "Hello."),
            rejected: said(Role::Assistant, "What?"),
        };
        for text in [
            r#"{"prompt":"Hi","chosen":"Hello.","rejected":"What?"}"#,
            r#"{"instruction":"Hi","chosen":"Hello.","rejected":"What?"}"#,
            r#"{"conversations":[{"from":"human","value":"Hi"}],"chosen":{"from":"gpt","value":"Hello."},"rejected":{"from":"gpt","value":"What?"}}"#,
            r#"{"chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}],"rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"What?"}]}"#,
        ] {
            assert_eq!(row(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_prompt_that_the_conversations_repeat_is_asked_once() {
        let row = |asked: &str| {
            let side = |reply: &str| {
                format!(
                    r#"[{{"role":"user","content":"{asked}"}},{{"role":"assistant","content":"{reply}"}}]"#
                )
            };
            let (better, worse) = (side("Hello."), side("What?"));
            let text = format!(
                r#"{{"prompt":"Hi","prompt_id":"7","chosen":{better},"rejected":{worse}}}"#
            );
            parse(&text, Path::new("/d"))
        };
        let Ok(TuneRow::Pair { asked, .. }) = row("Hi") else { panic!("{:?}", row("Hi")) };
        assert_eq!(asked.messages, vec![said(Role::User, "Hi")]);
        let error = row("Bye").expect_err("another question");
        assert!(error.contains("begin with `prompt`"), "{error}");
    }

    #[test]
    fn what_stands_beside_the_turns_counts_in_every_form() {
        let asked = [said(Role::System, "Be brief."), said(Role::User, "Hi")];
        let beside =
            r#""system":"Be brief.","tools":[{"name":"f"}],"chat_template_kwargs":{"deep":true}"#;
        for form in [
            r#""messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}]"#,
            r#""conversations":[{"from":"human","value":"Hi"},{"from":"gpt","value":"a"}]"#,
            r#""conversations":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}]"#,
            r#""instruction":"Hi","output":"a""#,
            r#""instruction":null,"input":"Hi","output":"a""#,
            r#""prompt":"Hi","completion":"a""#,
            r#""prompt":"Hi","chosen":"a","rejected":"b""#,
            r#""instruction":"Hi","chosen":"a","rejected":"b""#,
            r#""conversations":[{"from":"human","value":"Hi"}],"chosen":"a","rejected":"b""#,
            r#""chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}],
               "rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"b"}]"#,
        ] {
            let sample = match row(&format!("{{{form},{beside}}}")) {
                TuneRow::Chat(sample) => sample,
                TuneRow::Pair { asked, .. } => asked,
                other => panic!("{other:?}"),
            };
            assert_eq!(sample.messages[..2], asked, "{form}");
            assert_eq!(sample.tools.len(), 1, "{form}");
            assert_eq!(sample.variables["deep"], true, "{form}");
        }
        let own = r#"{"conversations":[{"from":"system","value":"Own."},{"from":"human","value":"Hi"},
            {"from":"gpt","value":"a"}],"system":"Be brief."}"#;
        let own = chat(own);
        assert_eq!((own.len(), &own[0]), (3, &said(Role::System, "Own.")));
        let text = r#"{"instruction":"c","output":"d","history":[["a","b"]],"system":"s"}"#;
        let pairs =
            r#"{"instruction":"c","chosen":"d","rejected":"e","history":[["a","b"]],"system":"s"}"#;
        let TuneRow::Pair { asked, .. } = row(pairs) else { panic!("a preference") };
        assert_eq!(asked.messages, chat(text)[..4]);
    }

    #[test]
    fn weights_and_calls_count_wherever_turns_are() {
        let sample = |text: &str| match row(text) {
            TuneRow::Chat(sample) => sample,
            other => panic!("{other:?}"),
        };
        for turns in [
            r#"[{"from":"human","value":"a"},{"from":"gpt","value":"b","weight":0},
                {"from":"human","value":"c"},{"from":"gpt","value":"d","weight":1}]"#,
            r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0},
                {"role":"user","content":"c"},{"role":"assistant","content":"d"}]"#,
        ] {
            assert_eq!(sample(&format!(r#"{{"conversations":{turns}}}"#)).unlearnt, [1], "{turns}");
            let text = format!(r#"{{"prompt":"x","completion":{turns}}}"#);
            assert_eq!(sample(&text).unlearnt, [2], "{turns}");
        }
        let calls = r#"{"conversations":[{"role":"user","content":"a"},{"role":"assistant",
            "tool_calls":[{"function":{"name":"f","arguments":{}}}]}]}"#;
        assert_eq!(sample(calls).messages[1].parts[0].call().map(|c| &c.name[..]), Some("f"));
        let call = |value: &str| {
            let value = Value::from(value);
            let turns = format!(r#"{{"from":"function_call","value":{value}}}"#);
            parse(&format!(r#"{{"conversations":[{turns}]}}"#), Path::new("."))
        };
        assert!(call(r#"{"name":"f","arguments":"{\"a\":1}"}"#).is_ok(), "arguments as text");
        let error = call(r#"[{"name":"f","arguments":{}},{"name":"g"}]"#).expect_err("half");
        assert!(error.contains("`function_call`"), "{error}");
    }

    #[test]
    fn files_in_other_forms_are_told_from_broken_rows() {
        let refused = |name: &str, bytes: &[u8]| {
            let name = format!("danlu-form-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, bytes).expect("writes");
            let error = read_tuning(&path).expect_err("refused").to_string();
            std::fs::remove_file(&path).expect("removes");
            error
        };
        for (name, bytes, found) in [
            ("a.jsonl", &b"{\n \"data\": [\n]}"[..], "one JSON object over several lines"),
            ("a.csv", b"prompt,completion\na,b\n", "CSV"),
            ("a.jsonl.gz", &[0x1f, 0x8b, 8, 0], "gzip"),
        ] {
            let error = refused(name, bytes);
            assert!(error.contains(found) && error.contains("a row a line"), "{error}");
        }
    }

    #[test]
    fn files_that_people_have_are_read_as_they_are() {
        let wanted = vec![said(Role::User, "Add"), said(Role::Assistant, "2")];
        for text in [
            r#"{"instruction":"Add","input":"","output":"2","text":"Below is ... Add ... 2"}"#,
            r#"{"prompt":"Add","prompt_id":"7","category":"Closed QA","messages":[{"role":"user","content":"Add"},{"role":"assistant","content":"2","weight":1}]}"#,
        ] {
            assert_eq!(chat(text), wanted, "{text}");
        }
        for text in [
            r#"{"uuid":"1","instruction":"Add","response":"2","conversations":[{"from":"human","value":"Add"},{"from":"gpt","value":"2"}]}"#,
            r#"{"messages":[{"role":"user","content":"Add"},{"role":"assistant","content":"2"}],"prompt":"Add","completion":"2","system":true}"#,
            r#"{"messages":[{"role":"user","content":"Add"},{"role":"assistant","content":"2"}],"input":"Add","output":"2","conversations":[]}"#,
            r#"{"conversations":[{"role":"human","content":"Add"},{"role":"gpt","content":"2"}]}"#,
            r#"{"conversations":[{"from":null,"value":null,"role":"user","content":"Add"},{"from":null,"value":null,"role":"assistant","content":"2"}]}"#,
        ] {
            assert_eq!(chat(text), wanted, "{text}");
        }
        assert_eq!(row(r#"{"text":"plain","label":true}"#), TuneRow::Text("plain".into()));
        let at = std::env::temp_dir().join(format!("danlu-array-{}.json", std::process::id()));
        let array = "[\n {\"instruction\":\"Add\",\"output\":\"2\"},\n {\"text\":3}\n]";
        std::fs::write(&at, array).expect("write");
        let (rows, bad) = read_tuning(&at).expect("an array");
        assert!(matches!(&rows[..], [(1, TuneRow::Chat(s))] if s.messages == wanted), "{rows:?}");
        assert!(bad.len() == 1 && bad[0].contains(":2: `text`"), "{bad:?}");
        std::fs::write(&at, "[{").expect("write");
        let error = read_tuning(&at).expect_err("half an array").to_string();
        assert!(error.contains("a JSON array of rows"), "{error}");
        std::fs::remove_file(&at).expect("remove");
    }

    #[test]
    fn media_columns_take_a_path_or_a_list() {
        let file = |p: &str| Part::Image(Media::File(Path::new("/d").join(p)));
        for column in [r#""images":"a.png""#, r#""images":["a.png"]"#, r#""image":"a.png""#] {
            let text = format!(r#"{{"instruction":"What is <image> ?","output":"x",{column}}}"#);
            let parts = &chat(&text)[0].parts;
            assert_eq!(
                parts[..],
                [Part::Text("What is ".into()), file("a.png"), Part::Text(" ?".into())]
            );
            let text = format!(r#"{{"instruction":"What?","output":"x",{column}}}"#);
            assert_eq!(chat(&text)[0].parts[..], [file("a.png"), Part::Text("What?".into())]);
        }
        assert_eq!(
            chat(r#"{"instruction":"a <image> tag","output":"x"}"#)[0].parts,
            vec![Part::Text("a <image> tag".into())],
            "without files a mark is only text"
        );
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        for (text, want) in [
            ("7", "expected a JSON object"),
            (r#"{"instruction":"a"}"#, "`output` is missing"),
            (r#"{"instruction":"a","output":3}"#, "`output`: expected a string"),
            (r#"{"instruction":"a","output":"b","otput":"c"}"#, "unknown key `otput`"),
            (r#"{"conversations":[]}"#, "at least one turn"),
            (r#"{"conversations":[{"from":"robot","value":"x"}]}"#, "unknown `from` `robot`"),
            (r#"{"conversations":[{"from":"human","value":"x"}]}"#, "assistant's message"),
            (r#"{"messages":[{"role":"user","content":"x"}]}"#, "assistant's message"),
            (r#"{"completion":"a"}"#, "`prompt` is missing"),
            (r#"{"prompt":"a","completion":"b","label":false}"#, "judged one by one (KTO)"),
            (r#"{"instruction":"a","output":"b","kto_tag":"true"}"#, "judged one by one (KTO)"),
            (
                r#"{"instruction":"a","output":"b","conversations":[{"from":"human","value":"a"},
                    {"from":"gpt","value":"c"}]}"#,
                "`conversations` and `instruction` say different things",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],
                    "text":"c"}"#,
                "has both `messages` and `text`",
            ),
            (r#"{"instruction":"","input":"","output":"b"}"#, "something that is asked"),
            (r#"{"prompt":"a","chosen":"b","rejected":"c","sytem":"d"}"#, "unknown key `sytem`"),
            (
                r#"{"prompt":"a","completion":[{"role":"user","content":"b"}]}"#,
                "`completion`: expected an assistant's message at the end",
            ),
            (r#"{"chosen":"a"}"#, "`rejected` is missing"),
            (r#"{"chosen":"a","rejected":"b"}"#, "expected `prompt`"),
            (r#"{"instruction":"a","output":"b","images":7}"#, "`images`: expected a path"),
            (
                r#"{"instruction":"<image> <image>","output":"b","images":"a.png"}"#,
                "more marks `<image>`",
            ),
        ] {
            let error = parse(text, Path::new(".")).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
