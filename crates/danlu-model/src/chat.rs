//! Chat templates of imported models: a conversation to the ids that its model was taught on. The
//! Jinja text belongs to the checkpoint and is bound to it by hash; nothing that a client sends is ever
//! a template. Knows nothing of files.

mod dumps;

use crate::modality::TextTokeniser;
use danlu_core::{Call, Error, Result, Role, Sample};
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, syntax::SyntaxConfig};
use serde_json::{Map, Value as Json};
use std::collections::HashSet;
use std::fmt::Write;
use std::ops::Range;

/// Instructions that a template may run for one conversation.
const FUEL: u64 = 2_000_000;
/// Calls inside calls.
const RECURSION: usize = 100;
/// Longest template, in bytes.
const LONGEST: usize = 1 << 20;
const NAME: &str = "chat template";
/// What stands in for the content of a turn, to see where it begins.
const OTHER: char = '\u{FFFFB}';
/// What a template's `{% generation %}` renders its content between, until replies are found.
const SPOKEN: [char; 2] = ['\u{FFFFC}', '\u{FFFFD}'];

/// A piece of a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text; none of it becomes a control token.
    Text(String),
    /// Ids that stand for a picture or a sound.
    Ids(Vec<u32>),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub pieces: Vec<Piece>,
    /// Calls of tools that an assistant makes after it.
    pub calls: Vec<Call>,
    /// What else templates may read of it, by key ([`danlu_core::Message::NOTES`]).
    pub notes: Vec<(&'static str, String)>,
}

impl Turn {
    /// A turn that calls no tool.
    pub fn new(role: Role, pieces: Vec<Piece>) -> Self {
        Self { role, pieces, calls: Vec::new(), notes: Vec::new() }
    }
}

/// What a template is told beside the turns.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Tools that the model may call.
    pub tools: &'a [Json],
    /// Variables of the template's own, by name.
    pub variables: Option<&'a Map<String, Json>>,
}

impl<'a> Context<'a> {
    /// What a sample has of it.
    pub fn of(sample: &'a Sample) -> Self {
        Self { tools: &sample.tools, variables: Some(&sample.variables) }
    }
}

/// A conversation as ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Every token.
    pub ids: Vec<u32>,
    /// Where the replies are among them, unless the assistant is to speak next: what the template
    /// marks as such (`{% generation %}`), or each with the token that ends it, but for those whose
    /// prompt is not the beginning of the conversation.
    pub replies: Vec<Range<usize>>,
    /// Which turn each of them is.
    pub spoken: Vec<usize>,
}

/// The template of a model, compiled.
#[derive(Clone)]
pub struct ChatTemplate {
    source: String,
    /// Special tokens by the names that templates know them under (`bos_token`, ...).
    specials: Vec<(String, String)>,
    /// What is put first where a conversation has no system turn.
    system: Option<String>,
    environment: Environment<'static>,
    tells_tools: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `specials` are the special tokens by name (`bos_token`, `eos_token`),
    /// `system` is the default system prompt.
    pub fn new(
        source: &str,
        specials: Vec<(String, String)>,
        system: Option<String>,
    ) -> Result<Self> {
        if source.len() > LONGEST {
            return Err(Error::parameter(
                NAME,
                format!("at most {LONGEST} bytes"),
                format!("{} bytes", source.len()),
            ));
        }
        let mut environment = Environment::new();
        // As transformers sets up Jinja.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(refused)?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", dumps::to_json);
        // As Python has it: none is no list, but a text is one, and so is what is not there.
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_test("sequence", |value: &Value| {
            use ValueKind::{Map, Seq, String, Undefined};
            matches!(value.kind(), Seq | String | Map | Undefined)
        });
        // Templates that can do without the date get none, for a conversation to have the same ids
        // on every day.
        let asks = source.split_once(DATE).map(|(_, after)| after.trim_start());
        if asks.is_some_and(|after| !after.starts_with("is defined")) {
            environment.add_function(DATE, date);
        }
        environment.add_function("raise_exception", |message: String| -> Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // A mark around replies that transformers reads for its loss mask.
        let text = replace_tag(source, "generation", "filter spoken");
        let text = replace_tag(&text, "endgeneration", "endfilter");
        environment.add_filter("spoken", |said: String| {
            let [begin, end] = SPOKEN;
            format!("{begin}{said}{end}")
        });
        environment.add_template_owned(NAME, as_jinja_reads(&text)).map_err(refused)?;
        let reads = environment.get_template(NAME).map_err(refused)?.undeclared_variables(false);
        let tells_tools = reads.contains("tools");
        Ok(Self { source: source.into(), specials, system, environment, tells_tools })
    }

    /// The same with the default system prompt inside of the Jinja text, for programs that have no
    /// other place for it.
    pub fn folded(&self) -> Result<Self> {
        let Some(system) = &self.system else { return Ok(self.clone()) };
        // A literal of JSON is one of Jinja. The line's end after the block is left out of what is
        // rendered, so that what follows stands at the beginning of a line, as before.
        let system = serde_json::Value::from(system.as_str());
        let source = format!(
            "{{% if messages | length == 0 or messages[0]['role'] != 'system' %}}\
             {{% set messages = [{{'role': 'system', 'content': {system}}}] + messages %}}\
             {{% endif %}}\n{}",
            self.source
        );
        Self::new(&source, self.specials.clone(), None)
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What is put first where a conversation has no system turn.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Special tokens by name.
    pub fn specials(&self) -> &[(String, String)] {
        &self.specials
    }

    /// Whether it has words of its own for tools, their calls and their answers.
    pub fn tells_tools(&self) -> bool {
        self.tells_tools
    }

    /// The text of a conversation without tools, `open` for the assistant to speak next.
    pub fn render(&self, turns: &[(Role, String)], open: bool) -> Result<String> {
        let messages = turns.iter().map(|(role, content)| (*role, message(*role, content)));
        self.text(&messages.collect::<Vec<_>>(), &[], open)
    }

    /// The text of messages, each beside its role; `given` are tools and variables by name.
    fn text(
        &self,
        messages: &[(Role, Value)],
        given: &[(String, Value)],
        open: bool,
    ) -> Result<String> {
        Ok(self.marked(messages, given, open)?.0)
    }

    /// The same, with what the template marks as spoken by the model.
    fn marked(
        &self,
        messages: &[(Role, Value)],
        given: &[(String, Value)],
        open: bool,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let first = match &self.system {
            Some(system) if messages.first().is_none_or(|m| m.0 != Role::System) => {
                Some(message(Role::System, system))
            }
            _ => None,
        };
        let mut context = vec![
            (
                "messages".to_string(),
                first.into_iter().chain(messages.iter().map(|m| m.1.clone())).collect(),
            ),
            ("add_generation_prompt".to_string(), Value::from(open)),
            ("tools".to_string(), Value::from(())),
            ("documents".to_string(), Value::from(())),
        ];
        context.extend(given.iter().cloned());
        context.extend(self.specials.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))));
        let template = self.environment.get_template(NAME).map_err(refused)?;
        Ok(without_marks(template.render(map(context)).map_err(refused)?))
    }

    /// The ids of a conversation, `open` for the assistant to speak next; `end` is the token that ends
    /// a reply. Equal to what `apply_chat_template` of transformers gives, but that a special token
    /// written in a turn, by a tool or in a variable stays text, and that a template which can do without
    /// today's date (`strftime_now is defined`) does.
    pub fn ids(
        &self,
        text: &TextTokeniser,
        turns: &[Turn],
        context: Context<'_>,
        open: bool,
        end: u32,
    ) -> Result<Rendered> {
        let marks = Marks::unused(turns, context)?;
        let guarded: Vec<(Role, Value)> =
            turns.iter().map(|t| (t.role, marks.message(text, t))).collect();
        let guard = |value: &Json| Value::from(Serde(marks.guard_json(text, value)));
        let variables = context.variables.into_iter().flatten();
        let mut given: Vec<(String, Value)> =
            variables.map(|(name, value)| (name.clone(), guard(value))).collect();
        if !context.tools.is_empty() {
            let tools = Json::from(context.tools);
            given.push(("tools".to_string(), guard(&tools)));
        }
        let (whole, marked) = self.marked(&guarded, &given, open)?;
        let mut media = turns.iter().flat_map(|t| &t.pieces).filter_map(|p| match p {
            Piece::Ids(ids) => Some(ids),
            Piece::Text(_) => None,
        });
        let tokens = marks.encode(text, &whole, &mut media)?;
        if media.next().is_some() {
            return Err(Error::parameter(
                NAME,
                "every picture and sound shown once",
                "one left out",
            ));
        }
        // Nothing is learnt of a question.
        let said = if open { &[] } else { &guarded[..] };
        let place = Place { text, whole: &whole, tokens: &tokens };
        let found = match self.spoken(said, &given, &place, &marked)? {
            marked if !marked.is_empty() => marked,
            _ => self.replies(said, &given, &place, end)?,
        };
        let (spoken, replies) = found.into_iter().unzip();
        Ok(Rendered { ids: tokens.into_iter().map(|t| t.0).collect(), replies, spoken })
    }

    /// The parts that the template marks, each with the turn that it is of.
    fn spoken(
        &self,
        said: &[(Role, Value)],
        given: &[(String, Value)],
        place: &Place<'_>,
        marked: &[Range<usize>],
    ) -> Result<Vec<(usize, Range<usize>)>> {
        let turns: Vec<usize> = assistants(said).collect();
        // Where each turn ends, if the parts alone do not say whose they are.
        let ends = match turns.len() == marked.len() {
            true => Vec::new(),
            false => {
                let ends = turns.iter().map(|&i| self.text(&said[..=i], given, false));
                ends.map(|text| text.map(|text| text.len())).collect::<Result<_>>()?
            }
        };
        let of = |(k, part): (usize, &Range<usize>)| {
            let within =
                if ends.is_empty() { Some(k) } else { ends.iter().position(|e| part.end <= *e) };
            let turn = within.map_or(turns.last(), |k| turns.get(k))?;
            Some((*turn, place.from(part.start)..place.until(part.end)))
        };
        let parts = marked.iter().enumerate().filter(|(_, part)| !part.is_empty());
        Ok(parts.filter_map(of).collect())
    }

    /// The replies by where a prompt for each of them ends, each with the turn that it is.
    fn replies(
        &self,
        said: &[(Role, Value)],
        given: &[(String, Value)],
        place: &Place<'_>,
        end: u32,
    ) -> Result<Vec<(usize, Range<usize>)>> {
        let whole = place.whole;
        let turns: Vec<usize> = assistants(said).collect();
        let before = turns.iter().map(|&i| self.text(&said[..i], given, true));
        let before = before.collect::<Result<Vec<String>>>()?;
        let mut out = Vec::new();
        for (k, &i) in turns.iter().enumerate() {
            let until = match i + 1 == said.len() {
                true => whole.to_string(),
                false => self.text(&said[..=i], given, false)?,
            };
            let closed = whole.starts_with(&until);
            let start = if whole.starts_with(&before[k]) {
                before[k].len()
            } else if let Some(at) = self.content_at(&said[..=i], given, &until).filter(|_| closed)
            {
                // Of the first turn the prompt may lack what comes before any turn; or it ends in what
                // only a thought would go on with.
                at
            } else {
                // Some templates cut what was said before the last question; it cannot be learnt.
                continue;
            };
            // Up to where the next one may begin at the latest.
            let next = before[k + 1..].iter().find(|next| whole.starts_with(*next));
            let limit = if closed { until.len() } else { next.map_or(whole.len(), String::len) };
            let (from, to) = (place.from(start), place.until(limit));
            let tokens = place.tokens.get(from..to).unwrap_or_default();
            let shared = common(&until, whole);
            let last = if let Some(length) = tokens.iter().position(|t| t.0 == end) {
                from + length + 1
            } else if let Some(last) = place.ended(from, to, limit).filter(|_| closed) {
                last
            } else if let Some(last) = place.open_end(from, shared, &until) {
                // A conversation that is ended as a whole.
                last
            } else if !closed {
                continue;
            } else {
                let wanted = format!("token {end} to end the reply of turn {i}");
                return Err(Error::parameter(NAME, wanted, "none"));
            };
            out.push((i, from..last));
        }
        Ok(out)
    }

    /// Where the content of the last of some turns begins in their text: where it parts from that with
    /// another content.
    fn content_at(
        &self,
        said: &[(Role, Value)],
        given: &[(String, Value)],
        text: &str,
    ) -> Option<usize> {
        let ((role, last), before) = said.split_last()?;
        let content = last.get_attr("content").ok()?;
        content.as_str().filter(|content| !content.trim().is_empty())?;
        let key = |key: Value| {
            let value = last.get_item(&key).ok()?;
            let name = key.as_str()?.to_string();
            let other = Value::from(OTHER.to_string());
            Some((name.clone(), if name == "content" { other } else { value }))
        };
        let other = map(last.try_iter().ok()?.filter_map(key));
        let turns = [before, &[(*role, other)]].concat();
        Some(common(&self.text(&turns, given, false).ok()?, text))
    }
}

/// The turns in which the model speaks.
fn assistants(said: &[(Role, Value)]) -> impl Iterator<Item = usize> {
    said.iter().enumerate().filter(|(_, turn)| turn.0 == Role::Assistant).map(|(i, _)| i)
}

/// Bytes that two texts begin with alike.
fn common(a: &str, b: &str) -> usize {
    let alike = a.char_indices().zip(b.chars()).take_while(|((_, x), y)| x == y);
    alike.last().map_or(0, |((at, c), _)| at + c.len_utf8())
}

/// A text without the marks around what the model speaks, and where these parts are in it.
fn without_marks(text: String) -> (String, Vec<Range<usize>>) {
    if !text.contains(SPOKEN) {
        return (text, Vec::new());
    }
    let mut bare = String::with_capacity(text.len());
    let (mut parts, mut begun) = (Vec::new(), Vec::new());
    for c in text.chars() {
        if c == SPOKEN[0] {
            begun.push(bare.len());
        } else if c == SPOKEN[1] {
            // Of parts within parts the outer one counts.
            if let (Some(from), true) = (begun.pop(), begun.is_empty()) {
                parts.push(from..bare.len());
            }
        } else {
            bare.push(c);
        }
    }
    (bare, parts)
}

/// The tokens of a rendered text, each with the byte that it begins at.
struct Place<'a> {
    text: &'a TextTokeniser,
    whole: &'a str,
    tokens: &'a [(u32, usize)],
}

impl Place<'_> {
    fn special(&self, token: usize) -> bool {
        self.text.specials().iter().any(|s| s.id == self.tokens[token].0)
    }

    /// The first token of what begins at a byte, which may have begun before it.
    fn from(&self, byte: usize) -> usize {
        let at = self.tokens.partition_point(|t| t.1 < byte);
        let begins = self.tokens.get(at).is_some_and(|t| t.1 == byte) || byte >= self.whole.len();
        // A special token may have taken blanks that follow it.
        if begins || at == 0 || self.special(at - 1) { at } else { at - 1 }
    }

    /// The token after what ends at a byte.
    fn until(&self, byte: usize) -> usize {
        self.tokens.partition_point(|t| t.1 < byte)
    }

    /// The token after those from `from` on that end within the `shared` first bytes, if what `until`,
    /// the text that is ended there, has after them ends it and says nothing.
    fn open_end(&self, from: usize, shared: usize, until: &str) -> Option<usize> {
        let ends = |byte: usize| {
            let mut rest = until.get(byte..).unwrap_or("?").to_string();
            for special in self.text.specials() {
                rest = rest.replace(&special.content, "");
            }
            byte <= shared && rest.trim().is_empty()
        };
        // An end may begin as what comes next does.
        let end = |to: usize| self.tokens.get(to).map_or(self.whole.len(), |t| t.1);
        (from + 1..=self.until(shared)).rev().find(|&to| ends(end(to)))
    }

    /// The token after the last special one of some, if nothing but blanks follows it up to a byte.
    fn ended(&self, from: usize, to: usize, limit: usize) -> Option<usize> {
        let last = (from..to).rev().find(|&i| self.special(i))?;
        let rest = self.tokens.get(last + 1).map_or(limit, |t| t.1.min(limit));
        self.whole[rest..limit].trim().is_empty().then_some(last + 1)
    }
}

fn map(pairs: impl IntoIterator<Item = (String, Value)>) -> Value {
    // In this order, as templates may go through the keys or write them all.
    Value::from_pairs(pairs)
}

fn refused(error: minijinja::Error) -> Error {
    let mut found = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        found += &format!(": {inner}");
        source = inner.source();
    }
    Error::parameter(NAME, "Jinja that renders this conversation", found)
}

/// A message as templates read it.
fn message(role: Role, content: &str) -> Value {
    let keys = [("role", role.name()), ("content", content)];
    map(keys.map(|(key, value)| (key.to_string(), Value::from(value))))
}

/// What a template asks for the date with.
const DATE: &str = "strftime_now";

/// The date and time (UTC) by a format of `strftime`.
fn date(format: &str) -> Result<String, minijinja::Error> {
    let mut out = String::new();
    match write!(out, "{}", chrono::Utc::now().format(format)) {
        Ok(()) => Ok(out),
        Err(_) => {
            let message = format!("strftime_now: expected a format of strftime, found {format:?}");
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        }
    }
}

/// A template as Jinja2 takes it in and minijinja does not: every end of a line is `\n`, and within a text of a
/// tag a line's end after a backslash is left out, as in Python.
fn as_jinja_reads(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    // What ends the tag or the comment that this is in, and the quote of the text in it.
    let (mut end, mut quote): (Option<&str>, Option<char>) = (None, None);
    let mut at = 0;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let mut take = c.len_utf8();
        match (end, quote) {
            (None, _) => {
                let opens = [("{%", "%}"), ("{{", "}}"), ("{#", "#}")];
                if let Some((open, close)) = opens.iter().find(|(open, _)| rest.starts_with(open)) {
                    (end, take) = (Some(*close), open.len());
                }
            }
            (Some(_), Some(_)) if c == '\\' => {
                if rest.starts_with("\\\n") {
                    at += 2;
                    continue;
                }
                take += rest[1..].chars().next().map_or(0, char::len_utf8);
            }
            (Some(_), Some(open)) if c == open => quote = None,
            (Some(_), Some(_)) => {}
            (Some(close), None) if rest.starts_with(close) => (end, take) = (None, close.len()),
            (Some("#}"), None) => {}
            (Some(_), None) if c == '"' || c == '\'' => quote = Some(c),
            (Some(_), None) => {}
        }
        out += &rest[..take];
        at += take;
    }
    out
}

/// Replaces the block tag `{% name %}`, however its blanks and minus signs stand.
fn replace_tag(source: &str, name: &str, with: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out += before;
        let end = tag.find("%}").map_or(tag.len(), |e| e + 2);
        let (tag, after) = tag.split_at(end);
        let bare = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']);
        if bare.trim() == name {
            out += &tag.replacen(name, with, 1)
        } else {
            out += tag
        }
        rest = after;
    }
    out + rest
}

/// Two characters that no turn uses: one breaks special tokens that a turn writes out, one stands
/// for pictures and sounds. Neither is left in what is encoded.
struct Marks {
    guard: char,
    media: char,
}

impl Marks {
    fn unused(turns: &[Turn], context: Context<'_>) -> Result<Self> {
        // The last private-use plane.
        let plane = '\u{100000}'..='\u{10FFFD}';
        let mut used = HashSet::new();
        let mut kept = false;
        let mut see = |text: &str| {
            used.extend(text.chars().filter(|c| plane.contains(c)));
            kept |= text.contains(SPOKEN);
        };
        for turn in turns {
            for piece in &turn.pieces {
                if let Piece::Text(text) = piece {
                    see(text);
                }
            }
            turn.notes.iter().for_each(|(_, note)| see(note));
            for call in &turn.calls {
                see(&call.words());
                see(call.id.as_deref().unwrap_or_default());
            }
        }
        context.tools.iter().for_each(|tool| see(&tool.to_string()));
        for (_, value) in context.variables.into_iter().flatten() {
            see(&value.to_string());
        }
        if kept {
            let wanted = "texts without the private characters U+FFFFC and U+FFFFD";
            return Err(Error::parameter("messages", wanted, "one of them"));
        }
        let mut free = plane.filter(|c| !used.contains(c));
        match (free.next(), free.next()) {
            (Some(guard), Some(media)) => Ok(Self { guard, media }),
            _ => Err(Error::parameter("messages", "characters left for marks", "none")),
        }
    }

    /// A turn as a template reads it; without content if it calls tools and says nothing.
    fn message(&self, text: &TextTokeniser, turn: &Turn) -> Value {
        let mut said = String::new();
        for piece in &turn.pieces {
            match piece {
                Piece::Ids(_) => said.push(self.media),
                Piece::Text(t) => said += t,
            }
        }
        let mut keys = vec![("role".to_string(), Value::from(turn.role.name()))];
        // Who only calls tools has none, as transformers leaves out what is null.
        if turn.calls.is_empty() || !turn.pieces.is_empty() {
            keys.push(("content".to_string(), Value::from(self.guard(text, &said))));
        }
        for (key, note) in &turn.notes {
            let note = Value::from(self.guard(text, note));
            // Templates call a thought by either name; transformers gives it both.
            let other = match *key {
                "reasoning_content" => Some("thinking"),
                "thinking" => Some("reasoning_content"),
                _ => None,
            };
            if let Some(other) = other.filter(|o| turn.notes.iter().all(|(key, _)| key != o)) {
                keys.push((other.to_string(), note.clone()));
            }
            keys.push((key.to_string(), note));
        }
        if !turn.calls.is_empty() {
            let calls = turn
                .calls
                .iter()
                .map(|call| Value::from(Serde(self.guard_json(text, &call.json()))));
            keys.push(("tool_calls".to_string(), calls.collect()));
        }
        map(keys)
    }

    /// JSON with every text in it guarded.
    fn guard_json(&self, text: &TextTokeniser, value: &Json) -> Json {
        match value {
            Json::String(s) => Json::String(self.guard(text, s)),
            Json::Array(list) => list.iter().map(|one| self.guard_json(text, one)).collect(),
            Json::Object(map) => Json::Object(
                map.iter()
                    .map(|(key, one)| {
                        // What a template reads by name stays so.
                        let whole = text.specials().iter().any(|s| key.contains(&s.content));
                        let key = if whole { self.guard(text, key) } else { key.clone() };
                        (key, self.guard_json(text, one))
                    })
                    .collect(),
            ),
            plain => plain.clone(),
        }
    }

    /// A text in which no special token stands whole, nor can be made whole by what follows.
    fn guard(&self, text: &TextTokeniser, out: &str) -> String {
        let mut guarded = String::with_capacity(out.len());
        let mut plain = 0;
        for (at, first) in out.char_indices() {
            let rest = &out[at..];
            let broken = text
                .specials()
                .iter()
                .any(|s| rest.starts_with(&s.content) || s.content.starts_with(rest));
            if broken {
                let after = at + first.len_utf8();
                guarded += &out[plain..after];
                guarded.push(self.guard);
                plain = after;
            }
        }
        guarded + &out[plain..]
    }

    /// Ids of rendered text, each with the byte at which it begins there.
    fn encode<'a>(
        &self,
        text: &TextTokeniser,
        whole: &str,
        media: &mut impl Iterator<Item = &'a Vec<u32>>,
    ) -> Result<Vec<(u32, usize)>> {
        let mut out = Vec::new();
        let mut at = 0;
        for (i, part) in whole.split(self.media).enumerate() {
            if i > 0 {
                let Some(ids) = media.next() else {
                    let wanted = "every picture and sound shown once";
                    return Err(Error::parameter(NAME, wanted, "one shown twice"));
                };
                out.extend(ids.iter().map(|&id| (id, at)));
                at += self.media.len_utf8();
            }
            for (chunk, special) in text.split(part) {
                let from = at + chunk.start;
                match special {
                    Some(id) => out.push((id, from)),
                    None => self.encode_plain(text, &part[chunk], from, &mut out),
                }
            }
            at += part.len();
        }
        Ok(out)
    }

    fn encode_plain(
        &self,
        text: &TextTokeniser,
        chunk: &str,
        from: usize,
        out: &mut Vec<(u32, usize)>,
    ) {
        // Where each byte of the text without guards was.
        let mut bare = String::with_capacity(chunk.len());
        let mut places = Vec::with_capacity(chunk.len());
        for (at, c) in chunk.char_indices().filter(|&(_, c)| c != self.guard) {
            bare.push(c);
            places.extend((0..c.len_utf8()).map(|i| from + at + i));
        }
        out.extend(
            text.encode_at(&bare, from == 0)
                .into_iter()
                .map(|(id, at)| (id, places.get(at).copied().unwrap_or(from + chunk.len()))),
        );
    }
}
