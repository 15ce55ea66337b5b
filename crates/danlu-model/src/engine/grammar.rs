//! What may come next in a reply, so that every reply is well-formed: a picture has exactly its
//! number of codes, a sound has at least one, and nothing is left open when the tokens run out.

use super::job::{BitMask, Mask};
use crate::modality::ImageTokeniser;
use danlu_core::{Control, Modality, TokenKind, Vocabulary};
use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Start,
    Free,
    ImageSemantic,
    AudioSemantic,
    Image { left: usize },
    Audio { said: usize },
    Closing,
    Done,
}

/// The state of one reply.
#[derive(Debug, Clone)]
pub struct Grammar {
    vocabulary: Vocabulary,
    to: Option<Modality>,
    state: State,
    left: usize,
}

/// A picture, its brackets and the end.
fn image_room(v: &Vocabulary) -> usize {
    ImageTokeniser::TOKENS + 3 + usize::from(v.image_semantic > 0)
}

/// The shortest sound, its brackets and the end.
fn audio_room(v: &Vocabulary) -> usize {
    4 + usize::from(v.audio_semantic > 0)
}

impl Grammar {
    /// A reply of at most `tokens` tokens, the closing one included. With `to`, a reply of that
    /// one modality; without, any mixture.
    pub fn new(vocabulary: &Vocabulary, to: Option<Modality>, tokens: usize) -> Self {
        Self { vocabulary: vocabulary.clone(), to, state: State::Start, left: tokens }
    }

    /// Tokens that a reply of `to` needs at least.
    pub fn room(vocabulary: &Vocabulary, to: Option<Modality>) -> usize {
        match to {
            Some(Modality::Image) => image_room(vocabulary),
            Some(Modality::Audio) => audio_room(vocabulary),
            Some(Modality::Text) | None => 2,
        }
    }

    /// Whether the reply is complete.
    pub fn done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the next token is a code of a picture (where guidance applies).
    pub fn in_image(&self) -> bool {
        matches!(self.state, State::ImageSemantic | State::Image { left: 1.. })
    }

    /// Whether the next token is within a picture or a sound.
    pub fn in_media(&self) -> bool {
        matches!(
            self.state,
            State::ImageSemantic | State::AudioSemantic | State::Image { .. } | State::Audio { .. }
        )
    }

    /// Ids that may come next, ascending and apart. Empty when done.
    pub fn allowed(&self) -> Vec<Range<u32>> {
        let v = &self.vocabulary;
        let one = |c: Control| {
            let id = v.control_id(c);
            id..id + 1
        };
        match self.state {
            State::Done => vec![],
            State::Closing => vec![one(Control::End)],
            State::ImageSemantic => vec![v.ids_of(TokenKind::ImageSemantic(0))],
            State::AudioSemantic => vec![v.ids_of(TokenKind::AudioSemantic(0))],
            State::Image { left: 0 } => vec![one(Control::ImageEnd)],
            State::Image { .. } => vec![v.ids_of(TokenKind::Image(0))],
            State::Audio { said } => {
                let mut all = Vec::new();
                if said == 0 || self.left > 2 {
                    all.push(v.ids_of(TokenKind::Audio(0)));
                }
                if said > 0 {
                    all.push(one(Control::AudioEnd));
                }
                all
            }
            State::Start | State::Free => {
                let mut all = Vec::new();
                let wants = |m: Modality| self.to.is_none_or(|to| to == m);
                let text = wants(Modality::Text) && self.left > 1;
                let may_end = match self.state {
                    State::Start => self.left <= 1,
                    _ => true,
                };
                let end = v.control_id(Control::End);
                if text {
                    // The ends of an imported model are among its text.
                    let mut ids = v.ids_of(TokenKind::Text(0));
                    let mut ends = if may_end { Vec::new() } else { v.ends() };
                    ends.sort_unstable();
                    for end in ends.into_iter().filter(|end| *end < ids.end) {
                        all.push(ids.start..end);
                        ids.start = end + 1;
                    }
                    all.push(ids);
                    all.push(v.ids_of(TokenKind::Place(0)));
                }
                if may_end && !(text && v.ids_of(TokenKind::Text(0)).contains(&end)) {
                    all.push(one(Control::End));
                }
                all.retain(|r| !r.is_empty());
                if wants(Modality::Image) && v.image > 0 && self.left >= image_room(v) {
                    all.push(one(Control::Image));
                }
                if wants(Modality::Audio) && v.audio > 0 && self.left >= audio_room(v) {
                    all.push(one(Control::Audio));
                }
                all
            }
        }
    }

    /// Takes a token that [`allowed`](Self::allowed) lists.
    pub fn take(&mut self, id: u32) {
        debug_assert!(self.allowed().iter().any(|r| r.contains(&id)), "{id} in {self:?}");
        self.left = self.left.saturating_sub(1);
        let single = self.to.is_some();
        let v = &self.vocabulary;
        self.state = match (self.state, v.kind(id)) {
            _ if v.is_end(id) => State::Done,
            (_, Some(TokenKind::Control(Control::Image))) if v.image_semantic > 0 => {
                State::ImageSemantic
            }
            (_, Some(TokenKind::Control(Control::Audio))) if v.audio_semantic > 0 => {
                State::AudioSemantic
            }
            (_, Some(TokenKind::Control(Control::Image))) | (State::ImageSemantic, _) => {
                State::Image { left: ImageTokeniser::TOKENS }
            }
            (_, Some(TokenKind::Control(Control::Audio))) | (State::AudioSemantic, _) => {
                State::Audio { said: 0 }
            }
            (_, Some(TokenKind::Control(_))) if single => State::Closing,
            (_, Some(TokenKind::Control(_))) => State::Free,
            (State::Image { left }, _) => State::Image { left: left - 1 },
            (State::Audio { said }, _) => State::Audio { said: said + 1 },
            _ => State::Free,
        };
    }
}

/// The grammar as a constraint of the engine.
#[derive(Debug)]
pub struct ReplyMask(pub Grammar);

impl Mask for ReplyMask {
    fn allowed(&mut self, out: &mut BitMask) {
        self.0.allowed().into_iter().for_each(|ids| out.insert_range(ids));
    }

    fn accept(&mut self, id: u32) {
        self.0.take(id);
    }

    fn done(&self) -> bool {
        self.0.done()
    }

    fn in_media(&self) -> bool {
        self.0.in_media()
    }

    fn in_image(&self) -> bool {
        self.0.in_image()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::Rng;

    #[test]
    fn any_walk_is_well_formed_and_ends_in_time() {
        for semantic in [0, 5] {
            walk(&Vocabulary {
                text: 4,
                image: 3,
                audio: 3,
                image_semantic: semantic,
                audio_semantic: semantic,
                places: 2,
                foreign: None,
            });
        }
    }

    #[test]
    fn every_end_of_an_imported_model_ends_a_reply_that_has_begun() {
        let ends = danlu_core::Foreign { end: 6, other_ends: vec![4, 1], pad: 0, rows: 0 };
        let v = Vocabulary {
            text: 8,
            image: 0,
            audio: 0,
            image_semantic: 0,
            audio_semantic: 0,
            places: 0,
            foreign: Some(ends),
        };
        let ids = |g: &Grammar| g.allowed().into_iter().flatten().collect::<Vec<u32>>();
        for end in [6, 4, 1] {
            let mut g = Grammar::new(&v, Some(Modality::Text), 9);
            assert_eq!(ids(&g), [0, 2, 3, 5, 7]);
            g.take(5);
            assert_eq!(ids(&g), [0, 1, 2, 3, 4, 5, 6, 7]);
            g.take(end);
            assert!(g.done() && ids(&g).is_empty(), "{end}");
        }
    }

    fn walk(v: &Vocabulary) {
        let mut rng = Rng::new(1, 0);
        for to in [None, Some(Modality::Text), Some(Modality::Image), Some(Modality::Audio)] {
            for room in [Grammar::room(v, to), 36, 38, 200] {
                for _ in 0..50 {
                    let room = room.max(Grammar::room(v, to));
                    let mut g = Grammar::new(v, to, room);
                    let (mut ids, mut run) = (Vec::new(), 0);
                    while !g.done() {
                        let allowed: Vec<u32> = g.allowed().into_iter().flatten().collect();
                        let id = *rng.pick(&allowed);
                        g.take(id);
                        ids.push(id);
                        match v.kind(id).expect("inside") {
                            TokenKind::Image(_) | TokenKind::Audio(_) => run += 1,
                            TokenKind::Control(Control::ImageEnd) => {
                                assert_eq!(run, ImageTokeniser::TOKENS)
                            }
                            TokenKind::Control(Control::AudioEnd) => assert!(run > 0),
                            _ => run = 0,
                        }
                        if matches!(
                            v.kind(id),
                            Some(TokenKind::Control(Control::Image | Control::Audio))
                        ) {
                            run = 0;
                        }
                        assert!(ids.len() <= room, "{to:?} {room}");
                    }
                    let has = |c: Control| ids.contains(&v.control_id(c));
                    assert_eq!(has(Control::Image), has(Control::ImageEnd));
                    assert_eq!(has(Control::Audio), has(Control::AudioEnd));
                    match to {
                        Some(Modality::Image) => assert_eq!(ids.len(), image_room(v)),
                        Some(Modality::Audio) => assert!(has(Control::Audio)),
                        Some(Modality::Text) => {
                            assert!(!has(Control::Image) && !has(Control::Audio))
                        }
                        None => {}
                    }
                }
            }
        }
    }
}
