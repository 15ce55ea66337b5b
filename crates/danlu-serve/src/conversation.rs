//! Messages of a chat request to ids: the official content parts on one side, the model's own
//! template on the other.

use crate::catalogue::Hosted;
use crate::http::error::{Answer, ApiError};
use crate::http::fields::kind;
use crate::media;
use danlu_core::{AssetId, Call, Media, Message, Modality, Part, Picture, Role, Sample, Sound};
use danlu_model::modality::{ImageTokeniser, PLACES};
use danlu_model::prompt::{Codes, Template};
use serde_json::{Map, Value};

/// Most messages of a request.
const MAX_MESSAGES: usize = 1_024;
/// Most pictures and sounds of a request.
const MAX_MEDIA: usize = 16;

/// A piece of a message, media still as they came.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Text(String),
    /// A data URL.
    Picture(String),
    /// Base64 of a file.
    Sound(String),
    /// A sound of the model's own.
    Own(Sound),
    /// A call of a tool that an earlier reply made.
    Call(Call),
}

/// A message.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    /// Each with the parameter that it came from.
    pub(crate) parts: Vec<(String, Content)>,
    /// As [`Message::notes`].
    pub(crate) notes: Vec<(&'static str, String)>,
}

/// What a template is told beside the turns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// As [`Sample::tools`].
    pub(crate) tools: Vec<Value>,
    /// As [`Sample::variables`].
    pub(crate) variables: Map<String, Value>,
}

impl Turn {
    /// A turn of one text.
    pub(crate) fn text(role: Role, param: &str, text: impl Into<String>) -> Self {
        Self::new(role, vec![(param.into(), Content::Text(text.into()))])
    }

    /// A turn without notes.
    pub(crate) fn new(role: Role, parts: Vec<(String, Content)>) -> Self {
        Self { role, parts, notes: Vec::new() }
    }
}

/// Reads the `messages` of a chat request.
pub(crate) fn messages(list: Vec<Value>) -> Answer<Vec<Turn>> {
    if list.is_empty() || list.len() > MAX_MESSAGES {
        let wanted = format!("a list of 1 to {MAX_MESSAGES} messages");
        return Err(ApiError::expected("messages", wanted, list.len()));
    }
    let turns: Vec<Turn> = list
        .into_iter()
        .enumerate()
        .map(|(i, value)| message(&format!("messages[{i}]"), value))
        .collect::<Answer<_>>()?;
    let media = turns
        .iter()
        .flat_map(|t| &t.parts)
        .filter(|(_, c)| !matches!(c, Content::Text(_) | Content::Call(_)));
    let count = media.count();
    if count > MAX_MEDIA {
        let wanted = format!("at most {MAX_MEDIA} pictures and sounds");
        return Err(ApiError::expected("messages", wanted, count));
    }
    Ok(turns)
}

/// Takes what should be an object apart.
fn object(at: &str, value: Value) -> Answer<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(ApiError::expected(at, "an object", kind(&other))),
    }
}

/// Takes what should be a string out of an object.
fn string(map: &mut Map<String, Value>, at: &str, key: &str) -> Answer<String> {
    match map.remove(key) {
        Some(Value::String(text)) => Ok(text),
        other => {
            let found = other.as_ref().map_or("nothing".into(), kind);
            Err(ApiError::expected(format!("{at}.{key}"), "a string", found))
        }
    }
}

/// Takes what should be an object out of an object.
fn inner(map: &mut Map<String, Value>, at: &str, key: &str) -> Answer<Map<String, Value>> {
    object(&format!("{at}.{key}"), map.remove(key).unwrap_or_default())
}

fn message(at: &str, value: Value) -> Answer<Turn> {
    let mut map = object(at, value)?;
    let role_at = format!("{at}.role");
    let role = match map.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("tool") => Role::Tool,
        Some("assistant") => Role::Assistant,
        _ => {
            let wanted = "one of system, developer, user, assistant, tool";
            return Err(ApiError::expected(role_at, wanted, "another"));
        }
    };
    // Of others they are refused below, as everything that nobody reads.
    let mut own = |key: &str| if role == Role::Assistant { map.remove(key) } else { None };
    let (calls, images) = (own("tool_calls"), own("images"));
    let calls = match calls.filter(|calls| !calls.is_null()) {
        Some(calls) => said_calls(&format!("{at}.tool_calls"), calls)?,
        None => Vec::new(),
    };
    let mut notes = Vec::new();
    for key in Message::NOTES {
        match map.remove(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(note)) => notes.push((key, note)),
            Some(other) => {
                return Err(ApiError::expected(format!("{at}.{key}"), "a string", kind(&other)));
            }
        }
    }
    let content_at = format!("{at}.content");
    let mut parts = match map.remove("content") {
        Some(Value::String(text)) => vec![(content_at.clone(), Content::Text(text))],
        Some(Value::Array(list)) if !list.is_empty() => list
            .into_iter()
            .enumerate()
            .map(|(i, part)| content(format!("{content_at}[{i}]"), part))
            .collect::<Answer<_>>()?,
        None | Some(Value::Null) if !calls.is_empty() => Vec::new(),
        None | Some(Value::Null) if role == Role::Assistant => {
            vec![(content_at.clone(), Content::Text(String::new()))]
        }
        other => {
            let found = other.as_ref().map_or("nothing".into(), kind);
            return Err(ApiError::expected(content_at, "a string or a list of parts", found));
        }
    };
    // A reply of this server that comes back has its pictures here.
    match images {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => {
            for (i, part) in list.into_iter().enumerate() {
                parts.push(content(format!("{at}.images[{i}]"), part)?);
            }
        }
        Some(other) => {
            return Err(ApiError::expected(
                format!("{at}.images"),
                "a list of parts",
                kind(&other),
            ));
        }
    }
    if map.get("audio").is_some_and(|audio| !audio.is_null()) {
        let message = "sounds of earlier replies are not kept here: give it as an `input_audio` part of \
                       `content`, or leave it out";
        return Err(ApiError::bad(format!("{at}.audio"), message));
    }
    parts.extend(calls.into_iter().map(|call| (content_at.clone(), Content::Call(call))));
    let left = map.iter().filter(|(key, v)| !v.is_null() && !NOTHING_HERE.contains(&key.as_str()));
    if let Some((key, _)) = left.into_iter().next() {
        let key: String = key.chars().take(64).collect();
        let known = "role, content, tool_calls, images, name, tool_call_id, reasoning_content";
        return Err(ApiError::expected(
            format!("{at}.{key}"),
            format!("one of {known}"),
            "another",
        ));
    }
    Ok(Turn { role, parts, notes })
}

/// Keys of a message that change nothing here: of what official replies hold.
const NOTHING_HERE: [&str; 5] = ["role", "refusal", "annotations", "function_call", "audio"];

/// The calls of an earlier reply.
fn said_calls(at: &str, calls: Value) -> Answer<Vec<Call>> {
    let list = match calls {
        Value::Array(list) => list,
        other => return Err(ApiError::expected(at, "a list", kind(&other))),
    };
    let mut out = Vec::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        let at = format!("{at}[{i}]");
        let mut call = object(&at, value)?;
        let id = call.remove("id").and_then(|id| id.as_str().map(str::to_string));
        let mut function = inner(&mut call, &at, "function")?;
        let at = format!("{at}.function");
        let name = string(&mut function, &at, "name")?;
        let arguments = string(&mut function, &at, "arguments")?;
        out.push(Call { id, name, arguments: Call::arguments(arguments) });
    }
    Ok(out)
}

fn content(at: String, value: Value) -> Answer<(String, Content)> {
    let mut map = object(&at, value)?;
    match map.get("type").and_then(Value::as_str) {
        Some("text") => {
            let text = string(&mut map, &at, "text")?;
            Ok((at, Content::Text(text)))
        }
        Some("refusal") => {
            let text = string(&mut map, &at, "refusal")?;
            Ok((at, Content::Text(text)))
        }
        Some("image_url") => {
            let mut picture = inner(&mut map, &at, "image_url")?;
            let at = format!("{at}.image_url");
            let url = string(&mut picture, &at, "url")?;
            Ok((format!("{at}.url"), Content::Picture(url)))
        }
        Some("input_audio") => {
            let mut sound = inner(&mut map, &at, "input_audio")?;
            let at = format!("{at}.input_audio");
            let format = string(&mut sound, &at, "format")?;
            if !["wav", "mp3", "flac", "ogg"].contains(&format.as_str()) {
                let wanted = "one of wav, mp3, flac, ogg";
                return Err(ApiError::expected(format!("{at}.format"), wanted, "another"));
            }
            let data = string(&mut sound, &at, "data")?;
            Ok((format!("{at}.data"), Content::Sound(data)))
        }
        _ => {
            let wanted = "one of text, image_url, input_audio";
            Err(ApiError::expected(format!("{at}.type"), wanted, "another"))
        }
    }
}

/// Pictures and sounds of one request, as assets of its sample. Pictures are as the tokeniser takes
/// them: at the size that they come in, those of one request would be hundreds of megabytes.
#[derive(Default)]
struct Decoded {
    pictures: Vec<Picture>,
    sounds: Vec<Sound>,
}

struct RequestCodes<'a> {
    model: &'a Hosted,
    media: &'a Decoded,
}

impl Codes for RequestCodes<'_> {
    fn image(&mut self, media: &Media, _: bool) -> danlu_core::Result<Vec<u32>> {
        let Media::Asset(AssetId(i)) = media else { return Err(no_asset()) };
        Ok(self.model.tokenisers.image_codes(&[&self.media.pictures[*i as usize]])?.remove(0))
    }

    fn audio(&mut self, media: &Media, _: bool) -> danlu_core::Result<Vec<u32>> {
        let Media::Asset(AssetId(i)) = media else { return Err(no_asset()) };
        self.model.tokenisers.audio_codes(&self.media.sounds[*i as usize])
    }
}

fn no_asset() -> danlu_core::Error {
    danlu_core::Error::Other("a request holds its media itself".into())
}

/// Refuses a modality that the model has no tokens for.
pub(crate) fn check_modality(model: &Hosted, param: &str, modality: Modality) -> Answer<()> {
    let v = &model.vocabulary;
    let has = match modality {
        Modality::Text => true,
        Modality::Image => v.image > 0,
        Modality::Audio => v.audio > 0,
    };
    if has {
        return Ok(());
    }
    let message = format!("the model `{}` has no {}s", model.name, modality.name());
    Err(ApiError::bad(param, message).code("unsupported_modality"))
}

/// The ids before the reply; `param` is where what is said came from. Takes the processor a while.
pub(crate) fn prompt(
    model: &Hosted,
    param: &str,
    turns: Vec<Turn>,
    told: Told,
) -> Answer<Vec<u32>> {
    let text = turns.iter().flat_map(|t| &t.parts).map(|(_, c)| match c {
        Content::Text(text) => text.len(),
        Content::Call(call) => call.words().len(),
        _ => 0,
    });
    let notes = turns.iter().flat_map(|t| &t.notes).map(|(_, note)| note.len());
    let tools = told.tools.iter().map(|tool| tool.to_string().len());
    let variables = told.variables.values().map(|value| value.to_string().len());
    check_text(model, param, text.chain(notes).chain(tools).chain(variables).sum())?;
    check_pictures(model, param, &turns)?;
    let mut media = Decoded::default();
    let mut messages = Vec::with_capacity(turns.len());
    for turn in turns {
        let mut parts = Vec::with_capacity(turn.parts.len());
        for (at, content) in turn.parts {
            parts.push(decode(model, &at, content, &mut media)?);
        }
        messages.push(Message { role: turn.role, parts, notes: turn.notes });
    }
    let Told { tools, variables } = told;
    let sample = Sample { messages, tools, variables, ..Default::default() };
    let mut codes = RequestCodes { model, media: &media };
    let ids = Template::new(&model.tokenisers).prompt(&sample, &mut codes)?;
    check_length(model, param, ids.len())?;
    Ok(ids)
}

fn decode(model: &Hosted, at: &str, content: Content, media: &mut Decoded) -> Answer<Part> {
    let mut sound = |sound: Sound| {
        media.sounds.push(sound);
        Part::Audio(Media::Asset(AssetId(media.sounds.len() as u32 - 1)))
    };
    Ok(match content {
        Content::Text(text) => Part::Text(text),
        Content::Call(call) => Part::Call(call),
        Content::Picture(url) => {
            check_modality(model, at, Modality::Image)?;
            media.pictures.push(danlu_media::fit(&media::picture(at, &url)?, PLACES as usize));
            Part::Image(Media::Asset(AssetId(media.pictures.len() as u32 - 1)))
        }
        Content::Sound(data) => {
            check_modality(model, at, Modality::Audio)?;
            sound(media::sound_of_text(at, &data, max_seconds(model))?)
        }
        Content::Own(own) => sound(own),
    })
}

/// Longest sound that the model takes, in seconds.
pub(crate) fn max_seconds(model: &Hosted) -> f64 {
    model.tokenisers.audio.as_ref().map_or(0.0, |t| t.config.max_seconds as f64)
}

/// Refuses text that cannot fit, before it is tokenised.
pub(crate) fn check_text(model: &Hosted, param: &str, bytes: usize) -> Answer<()> {
    if bytes <= model.most_text() {
        return Ok(());
    }
    Err(too_long(model, param, &format!("{bytes} bytes of text")))
}

/// Refuses pictures whose codes cannot fit, before any is decoded.
fn check_pictures(model: &Hosted, param: &str, turns: &[Turn]) -> Answer<()> {
    let parts = turns.iter().flat_map(|t| &t.parts);
    let count = parts.filter(|(_, c)| matches!(c, Content::Picture(_))).count();
    check_length(model, param, (count * (ImageTokeniser::TOKENS + 2)).max(1))
}

/// Refuses a prompt that leaves no room for a reply, and one of nothing.
pub(crate) fn check_length(model: &Hosted, param: &str, tokens: usize) -> Answer<()> {
    if tokens == 0 {
        return Err(ApiError::expected(param, "at least one token", "none"));
    }
    if tokens < model.context {
        return Ok(());
    }
    Err(too_long(model, param, &format!("{tokens} tokens")))
}

/// That something does not fit into a context, in the words by which clients of the official API know it.
pub(crate) fn over_context(context: usize, found: &str) -> String {
    format!(
        "This model's maximum context length is {context} tokens. However, your messages resulted in \
         {found}"
    )
}

fn too_long(model: &Hosted, param: &str, found: &str) -> ApiError {
    let message = over_context(model.context, found) + ", and a reply needs room besides";
    ApiError::bad(param, message).code("context_length_exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The contents of one message.
    fn contents(value: Value) -> Answer<Vec<Content>> {
        let turns = messages(vec![value])?;
        Ok(turns.into_iter().flat_map(|t| t.parts).map(|(_, content)| content).collect())
    }

    #[test]
    fn calls_of_earlier_replies_and_their_answers_are_read() {
        let call = json!({"id": "c", "type": "function",
            "function": {"name": "f", "arguments": "{\"a\":1}"}});
        let assistant = |content: Value, calls: Value| json!({"role": "assistant", "content": content, "tool_calls": calls});
        let read = |value| contents(value).expect("valid");
        let [Content::Call(read_call)] = &read(assistant(Value::Null, json!([call])))[..] else {
            panic!("one call alone")
        };
        assert_eq!(
            (read_call.json(), read_call.words().as_str()),
            (
                json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}),
                r#"{"name":"f","arguments":{"a":1}}"#,
            )
        );
        assert_eq!(read(assistant(json!("ok"), json!([call, call]))).len(), 3);
        assert_eq!(read(assistant(json!("ok"), Value::Null)).len(), 1);
        let error =
            contents(assistant(json!(""), json!([{"type": "custom"}]))).expect_err("another");
        assert_eq!(error.param.as_deref(), Some("messages[0].tool_calls[0].function"));
        let answer = json!({"role": "tool", "tool_call_id": "c", "content": "7"});
        let turns = messages(vec![answer]).expect("valid");
        assert_eq!(
            (turns[0].role, &turns[0].notes[..]),
            (Role::Tool, &[("tool_call_id", "c".to_string())][..])
        );
    }
}
