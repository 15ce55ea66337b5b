//! The template: conversations to token ids. Training, evaluation and generation all come through
//! here, so they cannot disagree.
//!
//! A turn is its role's control token and its parts; an assistant's turn is closed by
//! [`Control::End`]. A picture is `<|image|>`, its semantic token, its codes, `<|/image|>`; a sound
//! likewise. `<locN>`
//! in a text is the place token N. Nothing a text says becomes a control token. An imported model's
//! conversations are written by its own [`ChatTemplate`] instead.

use crate::chat::{ChatTemplate, Context, Piece, Turn};
use crate::modality::{ImageTokeniser, Tokenisers};
use danlu_core::{
    Control, Document, Error, Media, Message, Part, Picture, Result, Role, Sample, Sound,
    TokenKind, Vocabulary, call, instruction, recipe::LossWeights,
};
use std::borrow::Cow;

/// Where the codes of pictures and sounds come from. `prompt` says that the part is shown to the
/// model and not said by it.
pub trait Codes {
    /// Codes of a picture as [`Tokenisers::image_codes`] makes them: the semantic token, if there
    /// are such, then [`ImageTokeniser::TOKENS`] codes.
    fn image(&mut self, media: &Media, prompt: bool) -> Result<Vec<u32>>;
    /// Codes of a sound, at least one, after the semantic token if there are such.
    fn audio(&mut self, media: &Media, prompt: bool) -> Result<Vec<u32>>;
}

/// Codes made on the spot from files.
#[derive(Debug)]
pub struct FileCodes<'a>(pub &'a Tokenisers);

impl Codes for FileCodes<'_> {
    fn image(&mut self, media: &Media, _: bool) -> Result<Vec<u32>> {
        let Media::File(path) = media else {
            return Err(Error::Other("a picture that is not a file needs its corpus".into()));
        };
        let picture =
            danlu_media::fit(&danlu_media::read_picture(path)?, crate::modality::PLACES as usize);
        Ok(self.0.image_codes(&[&picture])?.remove(0))
    }

    fn audio(&mut self, media: &Media, _: bool) -> Result<Vec<u32>> {
        let Media::File(path) = media else {
            return Err(Error::Other("a sound that is not a file needs its corpus".into()));
        };
        let sound = danlu_media::read_sound(path)?;
        let (seconds, max) = (sound.seconds(), self.0.of_sounds()?.config.max_seconds);
        if seconds > max as f64 {
            return Err(Error::file(
                path,
                format!("a sound of at most {max} seconds"),
                format!("{seconds:.1} seconds"),
            ));
        }
        self.0.audio_codes(&sound)
    }
}

/// Turns conversations into ids.
#[derive(Debug)]
pub struct Template<'a> {
    tokenisers: &'a Tokenisers,
    vocabulary: Vocabulary,
}

impl<'a> Template<'a> {
    /// The template of a set of tokenisers.
    pub fn new(tokenisers: &'a Tokenisers) -> Self {
        Self { tokenisers, vocabulary: tokenisers.vocabulary() }
    }

    /// The vocabulary of the ids.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Ids of text with its place tokens.
    pub fn text(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut plain = 0;
        let mut at = 0;
        while let Some(found) = text[at..].find("<loc") {
            let start = at + found;
            let rest = &text[start + 4..];
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let place = rest[..digits].parse::<u32>().ok().filter(|&p| p < self.vocabulary.places);
            match place {
                Some(place) if rest[digits..].starts_with('>') => {
                    ids.extend(self.plain(&text[plain..start], plain == 0));
                    ids.push(self.vocabulary.place_id(place));
                    plain = start + 4 + digits + 1;
                    at = plain;
                }
                _ => at = start + 4,
            }
        }
        ids.extend(self.plain(&text[plain..], plain == 0));
        ids
    }

    fn plain(&self, text: &str, first: bool) -> Vec<u32> {
        match (text.is_empty(), first) {
            (true, _) => Vec::new(),
            (_, true) => self.tokenisers.text.encode(text),
            (_, false) => self.tokenisers.text.encode_later(text),
        }
    }

    /// What stands before a document of plain text.
    pub fn begin(&self) -> u32 {
        let end = || self.tokenisers.end_of_text();
        self.tokenisers.text.begin().unwrap_or_else(end)
    }

    /// A document of plain text: every token counts.
    pub fn plain_text(&self, text: &str, weights: &LossWeights, task: u16) -> Document {
        let mut ids = vec![self.begin()];
        ids.extend(self.plain(text, true));
        ids.push(self.tokenisers.end_of_text());
        let weights = vec![weights.text; ids.len()];
        Document { ids, weights, task }
    }

    /// A training document: assistants' tokens count by their modality, others by
    /// `weights.prompt`. With `blank` the user's turns are left out but for one
    /// [`Control::Blank`], which teaches the model what to say when asked nothing.
    pub fn document(
        &self,
        sample: &Sample,
        codes: &mut dyn Codes,
        weights: &LossWeights,
        blank: bool,
        task: u16,
    ) -> Result<Document> {
        let sample = &*self.told(sample);
        if let Some(chat) = &self.tokenisers.chat {
            return self.chat_document(chat, sample, codes, weights, blank, task);
        }
        let mut document = Document { ids: Vec::new(), weights: Vec::new(), task };
        for (i, message) in sample.messages.iter().enumerate() {
            let speaks = message.role == Role::Assistant;
            let learnt = speaks && !sample.unlearnt.contains(&i);
            document.ids.push(self.role(message.role));
            document.weights.push(weights.prompt);
            let ids = if blank && !speaks {
                vec![self.vocabulary.control_id(Control::Blank)]
            } else {
                let mut ids = self.parts(&message.parts, codes, !speaks)?;
                if speaks {
                    ids.push(self.vocabulary.control_id(Control::End));
                }
                ids
            };
            for id in ids {
                let said = self.weight(id, weights);
                document.weights.push(if learnt { said } else { weights.prompt });
                document.ids.push(id);
            }
        }
        Ok(document)
    }

    /// The conversation in words that the model has. Where its template has none for tools, they are
    /// told in the system's turn, a call is JSON (several stand between tags), and what comes of it
    /// is said by the user.
    fn told<'s>(&self, sample: &'s Sample) -> Cow<'s, Sample> {
        let chat = self.tokenisers.chat.as_ref();
        let apart =
            |m: &Message| m.role == Role::Tool || m.parts.iter().any(|p| p.call().is_some());
        if chat.is_some_and(ChatTemplate::tells_tools)
            || (sample.tools.is_empty() && !sample.messages.iter().any(apart))
        {
            return Cow::Borrowed(sample);
        }
        let mut told = Sample { messages: Vec::new(), unlearnt: Vec::new(), ..sample.clone() };
        for (i, message) in sample.messages.iter().enumerate() {
            let (calls, mut parts): (Vec<Part>, Vec<Part>) =
                message.parts.iter().cloned().partition(|part| part.call().is_some());
            let several = calls.len() > 1;
            for call in calls {
                let words = call.words();
                let [open, close] = if several { call::TAGS } else { [""; 2] };
                parts.push(Part::Text(format!("{open}{words}{close}")));
            }
            let role = match message.role {
                Role::Tool => Role::User,
                role => role,
            };
            // What several tools answer is one turn, for many templates want turns that alternate.
            let before = i.checked_sub(1).map(|b| sample.messages[b].role);
            match told.messages.last_mut() {
                Some(last) if message.role == Role::Tool && before == Some(Role::Tool) => {
                    last.parts.push(Part::Text("\n".into()));
                    last.parts.extend(parts);
                }
                _ => told.messages.push(Message { role, parts, notes: message.notes.clone() }),
            }
            if sample.unlearnt.contains(&i) {
                told.unlearnt.push(told.messages.len() - 1);
            }
        }
        let tools = std::mem::take(&mut told.tools);
        if !tools.is_empty() {
            if told.messages.first().is_none_or(|m| m.role != Role::System) {
                let own = chat.and_then(ChatTemplate::system).map(|s| Part::Text(s.into()));
                told.messages.insert(0, Message::new(Role::System, own.into_iter().collect()));
                told.unlearnt.iter_mut().for_each(|turn| *turn += 1);
            }
            let parts = &mut told.messages[0].parts;
            let blank = if parts.is_empty() { "" } else { "\n\n" };
            parts.push(Part::Text(format!("{blank}{}", instruction::tools(&tools))));
        }
        Cow::Owned(told)
    }

    /// What a token that the model says counts for.
    fn weight(&self, id: u32, weights: &LossWeights) -> f32 {
        match self.vocabulary.kind(id) {
            None => weights.prompt,
            Some(TokenKind::Image(_)) => weights.image,
            Some(TokenKind::Audio(_)) => weights.audio,
            Some(TokenKind::ImageSemantic(_) | TokenKind::AudioSemantic(_)) => weights.semantic,
            Some(_) => weights.text,
        }
    }

    /// A training document in the words of a chat template.
    fn chat_document(
        &self,
        chat: &ChatTemplate,
        sample: &Sample,
        codes: &mut dyn Codes,
        weights: &LossWeights,
        blank: bool,
        task: u16,
    ) -> Result<Document> {
        let turns = self.turns(sample, codes, blank)?;
        let end = self.vocabulary.control_id(Control::End);
        let rendered = chat.ids(&self.tokenisers.text, &turns, Context::of(sample), false, end)?;
        let speaks = sample.messages.iter().any(|m| m.role == Role::Assistant);
        if speaks && rendered.replies.is_empty() {
            let wanted =
                "a template in which a reply's prompt is the beginning of the conversation";
            return Err(Error::parameter("chat template", wanted, "another text"));
        }
        let mut document = Document { weights: Vec::new(), ids: rendered.ids, task };
        document.weights = vec![weights.prompt; document.ids.len()];
        let learnt = rendered.replies.into_iter().zip(rendered.spoken);
        for i in learnt.filter(|(_, turn)| !sample.unlearnt.contains(turn)).flat_map(|l| l.0) {
            document.weights[i] = self.weight(document.ids[i], weights);
        }
        Ok(document)
    }

    /// The turns of a conversation for a chat template; with `blank` the user's are left empty.
    fn turns(&self, sample: &Sample, codes: &mut dyn Codes, blank: bool) -> Result<Vec<Turn>> {
        let mut turns = Vec::with_capacity(sample.messages.len());
        for message in &sample.messages {
            let speaks = message.role == Role::Assistant;
            let (mut pieces, mut calls) = (Vec::new(), Vec::new());
            for part in message.parts.iter().filter(|_| speaks || !blank) {
                pieces.push(match part {
                    Part::Call(call) => {
                        calls.push(call.clone());
                        continue;
                    }
                    // Places are tokens of their own where the vocabulary has them.
                    Part::Text(text) if self.vocabulary.places == 0 => Piece::Text(text.clone()),
                    Part::Text(text) if !text.contains("<loc") => Piece::Text(text.clone()),
                    part => Piece::Ids(self.parts(std::slice::from_ref(part), codes, !speaks)?),
                });
            }
            turns.push(Turn { role: message.role, pieces, calls, notes: message.notes.clone() });
        }
        Ok(turns)
    }

    /// The ids before a reply: every message, then the opening of the assistant's turn.
    pub fn prompt(&self, sample: &Sample, codes: &mut dyn Codes) -> Result<Vec<u32>> {
        let sample = &*self.told(sample);
        if let Some(chat) = &self.tokenisers.chat {
            let turns = self.turns(sample, codes, false)?;
            let end = self.vocabulary.control_id(Control::End);
            return Ok(chat
                .ids(&self.tokenisers.text, &turns, Context::of(sample), true, end)?
                .ids);
        }
        let mut ids = Vec::new();
        for message in &sample.messages {
            ids.push(self.role(message.role));
            ids.extend(self.parts(&message.parts, codes, message.role != Role::Assistant)?);
            if message.role == Role::Assistant {
                ids.push(self.vocabulary.control_id(Control::End));
            }
        }
        ids.push(self.vocabulary.control_id(Control::Assistant));
        Ok(ids)
    }

    /// The prompt of guidance: asked nothing.
    pub fn blank_prompt(&self) -> Vec<u32> {
        if let Some(chat) = &self.tokenisers.chat {
            let turns = [Turn::new(Role::User, Vec::new())];
            let end = self.vocabulary.control_id(Control::End);
            // A template that refuses an empty question is asked nothing at all.
            let rendered = chat.ids(&self.tokenisers.text, &turns, Context::default(), true, end);
            return rendered.map_or_else(|_| vec![end], |r| r.ids);
        }
        [Control::User, Control::Blank, Control::Assistant]
            .map(|c| self.vocabulary.control_id(c))
            .to_vec()
    }

    fn role(&self, role: Role) -> u32 {
        self.vocabulary.control_id(match role {
            Role::System => Control::System,
            Role::User | Role::Tool => Control::User,
            Role::Assistant => Control::Assistant,
        })
    }

    fn parts(&self, parts: &[Part], codes: &mut dyn Codes, prompt: bool) -> Result<Vec<u32>> {
        let v = &self.vocabulary;
        let mut ids = Vec::new();
        for part in parts {
            match part {
                Part::Text(text) => ids.extend(self.text(text)),
                Part::Call(call) => ids.extend(self.text(&call.words())),
                Part::Image(media) => {
                    shows("image", "pictures", v.image)?;
                    ids.push(v.control_id(Control::Image));
                    let codes = codes.image(media, prompt)?;
                    let (first, rest) = codes.split_at(usize::from(v.image_semantic > 0));
                    ids.extend(first.iter().map(|&c| v.image_semantic_id(c)));
                    ids.extend(rest.iter().map(|&c| v.image_id(c)));
                    ids.push(v.control_id(Control::ImageEnd));
                }
                Part::Audio(media) => {
                    shows("audio", "sounds", v.audio)?;
                    ids.push(v.control_id(Control::Audio));
                    let codes = codes.audio(media, prompt)?;
                    let (first, rest) = codes.split_at(usize::from(v.audio_semantic > 0));
                    ids.extend(first.iter().map(|&c| v.audio_semantic_id(c)));
                    ids.extend(rest.iter().map(|&c| v.audio_id(c)));
                    ids.push(v.control_id(Control::AudioEnd));
                }
            }
        }
        Ok(ids)
    }

    /// A reply's ids as text, pictures and sounds, in order. The closing control is passed over;
    /// a part that is not well-formed is an error.
    pub fn reply(&self, ids: &[u32]) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        let mut text = String::new();
        let mut run: Vec<u32> = Vec::new();
        let mut left = ids.iter().copied();
        while let Some(id) = left.next() {
            match self.vocabulary.kind(id) {
                _ if self.vocabulary.is_end(id) => break,
                Some(TokenKind::Text(t)) => run.push(t),
                Some(TokenKind::Place(p)) => {
                    text += &self.tokenisers.text.decode(&std::mem::take(&mut run));
                    text += &format!("<loc{p}>");
                }
                Some(TokenKind::Control(open @ (Control::Image | Control::Audio))) => {
                    text += &self.tokenisers.text.decode(&std::mem::take(&mut run));
                    if !text.is_empty() {
                        out.push(Value::Text(std::mem::take(&mut text)));
                    }
                    let codes: Vec<u32> = left
                        .by_ref()
                        .map_while(|id| match (open, self.vocabulary.kind(id)) {
                            (
                                Control::Image,
                                Some(TokenKind::Image(c) | TokenKind::ImageSemantic(c)),
                            ) => Some(c),
                            (
                                Control::Audio,
                                Some(TokenKind::Audio(c) | TokenKind::AudioSemantic(c)),
                            ) => Some(c),
                            _ => None,
                        })
                        .collect();
                    out.push(self.media(open, codes)?);
                }
                other => {
                    return Err(Error::Other(format!("a reply has a stray token: {id} {other:?}")));
                }
            }
        }
        text += &self.tokenisers.text.decode(&run);
        if !text.is_empty() || out.is_empty() {
            out.push(Value::Text(text));
        }
        Ok(out)
    }

    fn media(&self, open: Control, codes: Vec<u32>) -> Result<Value> {
        let v = &self.vocabulary;
        let semantic = match open {
            Control::Image => usize::from(v.image_semantic > 0),
            _ => usize::from(v.audio_semantic > 0),
        };
        match (open, codes.len().saturating_sub(semantic)) {
            (Control::Image, ImageTokeniser::TOKENS) => {
                Ok(Value::Picture(self.tokenisers.picture(&codes)?))
            }
            (Control::Audio, 1..) => Ok(Value::Sound(self.tokenisers.sound(&codes)?)),
            (_, n) => Err(Error::Other(format!("a reply has a {open:?} of {n} codes"))),
        }
    }
}

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text, with places as `<locN>`.
    Text(String),
    /// A picture.
    Picture(Picture),
    /// A sound.
    Sound(Sound),
}

/// Refuses a picture or a sound where a model has no tokens for them.
fn shows(parameter: &str, what: &str, tokens: u32) -> Result<()> {
    match tokens {
        0 => {
            let wanted = format!("text alone, as the model has no tokens for {what}");
            Err(Error::parameter(parameter, wanted, format!("one of the {what}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny_tokenisers;

    struct Fixed;

    impl Codes for Fixed {
        fn image(&mut self, _: &Media, _: bool) -> Result<Vec<u32>> {
            // The semantic token, then the codes.
            Ok((0..=ImageTokeniser::TOKENS as u32).map(|i| i % 4).collect())
        }
        fn audio(&mut self, _: &Media, _: bool) -> Result<Vec<u32>> {
            Ok(vec![1, 2, 3])
        }
    }

    fn sample() -> Sample {
        let file = || Media::File("x".into());
        Sample {
            messages: vec![
                Message::new(
                    Role::User,
                    vec![Part::Text("hi <loc3> <loc99>".into()), Part::Image(file())],
                ),
                Message::new(Role::Assistant, vec![Part::Text("ok".into()), Part::Audio(file())]),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn only_the_reply_counts_and_the_prompt_is_its_prefix() {
        let t = tiny_tokenisers();
        let template = Template::new(&t);
        let weights =
            LossWeights { text: 1.0, image: 0.5, audio: 0.25, semantic: 2.0, prompt: 0.0 };
        let d = template.document(&sample(), &mut Fixed, &weights, false, 7).expect("renders");
        let mut asked = sample();
        asked.messages.pop();
        let prompt = template.prompt(&asked, &mut Fixed).expect("renders");
        assert_eq!(d.ids[..prompt.len()], prompt[..]);
        assert!(d.weights[..prompt.len()].iter().all(|&w| w == 0.0));
        assert!(d.weights[prompt.len()..].iter().all(|&w| w > 0.0));
        assert_eq!(d.weights.iter().filter(|&&w| w == 0.25).count(), 2);
        assert_eq!(d.weights.iter().filter(|&&w| w == 2.0).count(), 1);
        let first = d.ids[prompt.len()..].iter().position(|&id| {
            matches!(template.vocabulary().kind(id), Some(TokenKind::AudioSemantic(1)))
        });
        assert!(first.is_some(), "the semantic token of the sound that is said");
        let v = template.vocabulary();
        assert!(prompt.contains(&v.place_id(3)), "a place token");
        let places = prompt.iter().filter(|&&id| matches!(v.kind(id), Some(TokenKind::Place(_))));
        assert_eq!(places.count(), 1, "<loc99> is outside the picture, so it is text");
    }

    #[test]
    fn a_reply_comes_apart_as_it_was_put_together() {
        let t = tiny_tokenisers();
        let template = Template::new(&t);
        let d = template
            .document(&sample(), &mut Fixed, &LossWeights::default(), true, 0)
            .expect("renders");
        assert_eq!(d.ids[..3], template.blank_prompt()[..]);
        let reply = template.reply(&d.ids[3..]).expect("well-formed");
        assert_eq!(reply[0], Value::Text("ok".into()));
        assert!(matches!(&reply[1], Value::Sound(s) if !s.samples.is_empty()));
        let v = t.vocabulary();
        let short = [v.control_id(Control::Image), v.image_semantic_id(2), v.image_id(0)];
        let error = template.reply(&short).expect_err("one code is no picture");
        assert!(error.to_string().contains("Image of 1 codes"), "{error}");
    }
}
