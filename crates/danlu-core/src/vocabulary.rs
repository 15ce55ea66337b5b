use crate::Modality;
use serde::{Deserialize, Serialize};

/// A control token. The order is the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Control {
    /// Fills the tail of a window; never predicted, never attended to.
    Pad,
    /// Ends an assistant's reply.
    End,
    /// Opens a system message.
    System,
    /// Opens a user message.
    User,
    /// Opens an assistant message.
    Assistant,
    /// Opens a picture; a fixed number of image codes and [`Control::ImageEnd`] follow.
    Image,
    /// Closes a picture.
    ImageEnd,
    /// Opens a sound; one or more audio codes and [`Control::AudioEnd`] follow.
    Audio,
    /// Closes a sound.
    AudioEnd,
    /// Stands for a prompt that was left out (classifier-free guidance).
    Blank,
}

impl Control {
    /// Every control token, in id order.
    pub const ALL: [Control; 10] = [
        Control::Pad,
        Control::End,
        Control::System,
        Control::User,
        Control::Assistant,
        Control::Image,
        Control::ImageEnd,
        Control::Audio,
        Control::AudioEnd,
        Control::Blank,
    ];

    /// How the token is written where a person reads it.
    pub fn name(self) -> &'static str {
        match self {
            Control::Pad => "<|pad|>",
            Control::End => "<|end|>",
            Control::System => "<|system|>",
            Control::User => "<|user|>",
            Control::Assistant => "<|assistant|>",
            Control::Image => "<|image|>",
            Control::ImageEnd => "<|/image|>",
            Control::Audio => "<|audio|>",
            Control::AudioEnd => "<|/audio|>",
            Control::Blank => "<|blank|>",
        }
    }
}

/// What a token id means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Id of the text tokeniser.
    Text(u32),
    /// Code of the image tokeniser.
    Image(u32),
    /// Code of the audio tokeniser.
    Audio(u32),
    /// What a picture shows as a whole; stands before its codes.
    ImageSemantic(u32),
    /// What is said in a sound; stands before its codes.
    AudioSemantic(u32),
    /// A coordinate, in `0..places` along one axis of the picture.
    Place(u32),
    /// A control token.
    Control(Control),
}

impl TokenKind {
    /// How the token is written where a person reads it and in the files of others; `None` for text, whose
    /// tokeniser knows it.
    pub fn name(self) -> Option<String> {
        Some(match self {
            TokenKind::Text(_) => return None,
            TokenKind::Image(c) => format!("<|image_{c}|>"),
            TokenKind::Audio(c) => format!("<|audio_{c}|>"),
            TokenKind::ImageSemantic(c) => format!("<|image_class_{c}|>"),
            TokenKind::AudioSemantic(c) => format!("<|audio_class_{c}|>"),
            TokenKind::Place(p) => format!("<loc{p}>"),
            TokenKind::Control(c) => c.name().into(),
        })
    }

    /// The modality under which the loss of this token is reported: places and controls count as
    /// text.
    pub fn modality(self) -> Modality {
        match self {
            TokenKind::Image(_) | TokenKind::ImageSemantic(_) => Modality::Image,
            TokenKind::Audio(_) | TokenKind::AudioSemantic(_) => Modality::Audio,
            _ => Modality::Text,
        }
    }
}

/// Control tokens that an imported text tokeniser has among its own entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// Ends an assistant's reply.
    pub end: u32,
    /// What ends a reply besides, when the model says it: some models were taught several ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_ends: Vec<u32>,
    /// Fills the tail of a window.
    pub pad: u32,
    /// Rows of the embedding, where they are more than the entries of the tokeniser; 0: as many.
    #[serde(default)]
    pub rows: u32,
}

/// The one vocabulary: text, then image codes, audio codes, semantic tokens of pictures and of
/// sounds, places and control tokens. The vocabulary of an imported text model is its text alone,
/// until it is given pictures or sounds, with which come places and control tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// Entries of the text tokeniser.
    pub text: u32,
    /// Entries of the image codebook.
    pub image: u32,
    /// Entries of the audio codebook.
    pub audio: u32,
    /// Semantic tokens of pictures; 0: pictures are codes alone.
    #[serde(default)]
    pub image_semantic: u32,
    /// Semantic tokens of sounds; 0: sounds are codes alone.
    #[serde(default)]
    pub audio_semantic: u32,
    /// Bins of a coordinate; 0: none.
    pub places: u32,
    /// What ends and fills documents, if those are entries of the text tokeniser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<Foreign>,
}

impl Vocabulary {
    /// Number of token ids.
    pub fn size(&self) -> usize {
        let controls = if self.has_controls() { Control::ALL.len() } else { 0 };
        (self.places_from() + self.places) as usize + controls
    }

    /// Whether there are control tokens of our own: always, but for an imported text model without
    /// pictures and sounds.
    pub fn has_controls(&self) -> bool {
        self.foreign.is_none() || self.image > 0 || self.audio > 0
    }

    /// Id of an image code.
    pub fn image_id(&self, code: u32) -> u32 {
        debug_assert!(code < self.image);
        self.text + code
    }

    /// Id of an audio code.
    pub fn audio_id(&self, code: u32) -> u32 {
        debug_assert!(code < self.audio);
        self.text + self.image + code
    }

    /// Id of a picture's semantic token.
    pub fn image_semantic_id(&self, class: u32) -> u32 {
        debug_assert!(class < self.image_semantic);
        self.text + self.image + self.audio + class
    }

    /// Id of a sound's semantic token.
    pub fn audio_semantic_id(&self, class: u32) -> u32 {
        debug_assert!(class < self.audio_semantic);
        self.text + self.image + self.audio + self.image_semantic + class
    }

    fn places_from(&self) -> u32 {
        self.text + self.image + self.audio + self.image_semantic + self.audio_semantic
    }

    /// Id of a place, 0-based along its axis.
    pub fn place_id(&self, bin: u32) -> u32 {
        debug_assert!(bin < self.places);
        self.places_from() + bin
    }

    /// Id of a control token.
    ///
    /// # Panics
    /// If there are none ([`has_controls`](Self::has_controls)) but for the end and the filling.
    pub fn control_id(&self, control: Control) -> u32 {
        match (&self.foreign, control) {
            (Some(foreign), Control::End) => foreign.end,
            (Some(foreign), Control::Pad) => foreign.pad,
            _ => {
                assert!(self.has_controls(), "{} in a vocabulary of text alone", control.name());
                self.places_from() + self.places + control as u32
            }
        }
    }

    /// Ids that end a reply when the model says them, that of [`Control::End`] first.
    pub fn ends(&self) -> Vec<u32> {
        let others = self.foreign.iter().flat_map(|f| &f.other_ends);
        std::iter::once(self.control_id(Control::End)).chain(others.copied()).collect()
    }

    /// Whether an id is one of [`ends`](Self::ends).
    pub fn is_end(&self, id: u32) -> bool {
        match &self.foreign {
            Some(foreign) => id == foreign.end || foreign.other_ends.contains(&id),
            None => id == self.control_id(Control::End),
        }
    }

    /// Ids of the tokens of one kind, given by any of its members.
    pub fn ids_of(&self, kind: TokenKind) -> std::ops::Range<u32> {
        let from = |first: u32, n: u32| first..first + n;
        match kind {
            TokenKind::Text(_) => from(0, self.text),
            TokenKind::Image(_) => from(self.text, self.image),
            TokenKind::Audio(_) => from(self.text + self.image, self.audio),
            TokenKind::ImageSemantic(_) => {
                from(self.text + self.image + self.audio, self.image_semantic)
            }
            TokenKind::AudioSemantic(_) => {
                from(self.places_from() - self.audio_semantic, self.audio_semantic)
            }
            TokenKind::Place(_) => from(self.places_from(), self.places),
            TokenKind::Control(c) => from(self.control_id(c), 1),
        }
    }

    /// The id of what [`kind`](Self::kind) says; `None` if this vocabulary has no such token.
    pub fn id_of(&self, kind: TokenKind) -> Option<u32> {
        let below = |i: u32, n: u32, id: fn(&Self, u32) -> u32| (i < n).then(|| id(self, i));
        match kind {
            TokenKind::Text(i) => (i < self.text).then_some(i),
            TokenKind::Image(i) => below(i, self.image, Self::image_id),
            TokenKind::Audio(i) => below(i, self.audio, Self::audio_id),
            TokenKind::ImageSemantic(i) => below(i, self.image_semantic, Self::image_semantic_id),
            TokenKind::AudioSemantic(i) => below(i, self.audio_semantic, Self::audio_semantic_id),
            TokenKind::Place(i) => below(i, self.places, Self::place_id),
            TokenKind::Control(c) => {
                let foreign = matches!(c, Control::End | Control::Pad) && self.foreign.is_some();
                (foreign || self.has_controls()).then(|| self.control_id(c))
            }
        }
    }

    /// What `id` means; `None` if it is outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        if self.foreign.as_ref().is_some_and(|f| f.end == id) {
            return Some(TokenKind::Control(Control::End));
        }
        let mut left = id;
        for (size, make) in [
            (self.text, TokenKind::Text as fn(u32) -> TokenKind),
            (self.image, TokenKind::Image),
            (self.audio, TokenKind::Audio),
            (self.image_semantic, TokenKind::ImageSemantic),
            (self.audio_semantic, TokenKind::AudioSemantic),
            (self.places, TokenKind::Place),
        ] {
            if left < size {
                return Some(make(left));
            }
            left -= size;
        }
        let controls: &[Control] = if self.has_controls() { &Control::ALL } else { &[] };
        controls.get(left as usize).map(|&c| TokenKind::Control(c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_one_kind_and_comes_back() {
        let v = Vocabulary {
            text: 5,
            image: 3,
            audio: 4,
            image_semantic: 6,
            audio_semantic: 2,
            places: 2,
            foreign: None,
        };
        assert_eq!(v.size(), 5 + 3 + 4 + 6 + 2 + 2 + 10);
        for id in 0..v.size() as u32 {
            let back = match v.kind(id).expect("inside") {
                TokenKind::Text(i) => i,
                TokenKind::Image(i) => v.image_id(i),
                TokenKind::Audio(i) => v.audio_id(i),
                TokenKind::ImageSemantic(i) => v.image_semantic_id(i),
                TokenKind::AudioSemantic(i) => v.audio_semantic_id(i),
                TokenKind::Place(i) => v.place_id(i),
                TokenKind::Control(c) => v.control_id(c),
            };
            assert_eq!(back, id);
            assert_eq!(v.id_of(v.kind(id).expect("inside")), Some(id));
            assert!(v.ids_of(v.kind(id).expect("inside")).contains(&id));
        }
        assert_eq!(v.kind(v.size() as u32), None);
        assert_eq!(v.kind(u32::MAX), None);
        assert_eq!(v.ends(), [v.control_id(Control::End)]);
        assert!(v.is_end(v.control_id(Control::End)) && !v.is_end(v.control_id(Control::Pad)));
    }

    #[test]
    fn an_imported_text_model_ends_with_a_token_of_its_own() {
        let foreign = Some(Foreign { end: 3, other_ends: vec![1], pad: 4, rows: 0 });
        let mut v = Vocabulary {
            text: 5,
            image: 0,
            audio: 0,
            image_semantic: 0,
            audio_semantic: 0,
            places: 0,
            foreign,
        };
        assert_eq!((v.size(), v.has_controls()), (5, false));
        assert_eq!(v.control_id(Control::End), 3);
        assert_eq!(v.kind(3), Some(TokenKind::Control(Control::End)));
        assert_eq!(v.kind(4), Some(TokenKind::Text(4)));
        assert_eq!(v.kind(5), None);
        // What may end a reply besides is a text's otherwise.
        assert_eq!((v.ends(), v.kind(1)), (vec![3, 1], Some(TokenKind::Text(1))));
        assert_eq!((0..5).filter(|&id| v.is_end(id)).collect::<Vec<_>>(), [1, 3]);
        // With pictures come control tokens of its own, but it still ends as it did.
        (v.image, v.places) = (3, 2);
        assert_eq!(v.size(), 5 + 3 + 2 + 10);
        assert_eq!(v.control_id(Control::End), 3);
        assert_eq!(v.control_id(Control::Image), 5 + 3 + 2 + 5);
        assert_eq!(v.kind(15), Some(TokenKind::Control(Control::Image)));
    }
}
