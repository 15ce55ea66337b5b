//! One file a modality: how text, pictures and sounds become token codes and come back.

mod audio;
mod fsq;
mod image;
mod semantic;
mod text;

pub use audio::{AudioTokeniser, AudioTokeniserConfig};
pub use fsq::Fsq;
pub use image::{ImageTokeniser, ImageTokeniserConfig};
pub use semantic::{Eye, Recogniser, RecogniserConfig};
pub(crate) use text::{BLANK, byte_of_piece};
pub use text::{Special, TextTokeniser};

use crate::chat::ChatTemplate;
use danlu_core::{Control, Error, Foreign, Picture, Result, Sound, Vocabulary};

/// Bins of a coordinate: one per pixel of a picture's side.
pub const PLACES: u32 = 64;

/// The tokenisers of a model, and what recognises pictures and sounds as a whole. A model of text
/// alone has the first only.
#[derive(Debug, Clone)]
pub struct Tokenisers {
    /// Byte-level BPE.
    pub text: TextTokeniser,
    /// What ends and fills documents, if those are entries of the text tokeniser.
    pub foreign: Option<Foreign>,
    /// How an imported model was taught conversations; without, they are written as in
    /// [`prompt`](crate::prompt).
    pub chat: Option<ChatTemplate>,
    /// Pictures to codes and back.
    pub image: Option<ImageTokeniser>,
    /// Sounds to codes and back.
    pub audio: Option<AudioTokeniser>,
    /// Gives the semantic token before a picture's codes; without, there is none.
    pub image_semantic: Option<Recogniser>,
    /// Gives the semantic token before a sound's codes; without, there is none.
    pub audio_semantic: Option<Recogniser>,
}

impl Tokenisers {
    /// The one vocabulary that they make together.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary {
            text: self.text.size().max(self.foreign.as_ref().map_or(0, |f| f.rows)),
            image: self.image.as_ref().map_or(0, |t| t.fsq.size()),
            audio: self.audio.as_ref().map_or(0, |t| t.fsq.size()),
            image_semantic: self.image_semantic.as_ref().map_or(0, Recogniser::classes),
            audio_semantic: self.audio_semantic.as_ref().map_or(0, Recogniser::classes),
            places: if self.image.is_some() || self.foreign.is_none() { PLACES } else { 0 },
            foreign: self.foreign.clone(),
        }
    }

    /// What stands after a document of plain text: of an imported model the end of a text as it names it
    /// (`eos_token`), which need not be that of a reply.
    pub fn end_of_text(&self) -> u32 {
        let own = || self.vocabulary().control_id(Control::End);
        self.special("eos_token").unwrap_or_else(own)
    }

    /// What an imported model names as the beginning of a text (`bos_token`), if it does.
    pub(crate) fn begin_of_text(&self) -> Option<u32> {
        self.special("bos_token").or(self.text.begin())
    }

    /// The id of a special token by the name that templates know it under.
    fn special(&self, name: &str) -> Option<u32> {
        let mut specials = self.chat.as_ref()?.specials().iter();
        self.text.id(&specials.find(|special| special.0 == name)?.1)
    }

    /// The tokeniser of pictures; an error if the model has none.
    pub fn of_pictures(&self) -> Result<&ImageTokeniser> {
        self.image
            .as_ref()
            .ok_or_else(|| Error::Other("this model has no tokens for pictures".into()))
    }

    /// The tokeniser of sounds; an error if the model has none.
    pub fn of_sounds(&self) -> Result<&AudioTokeniser> {
        self.audio
            .as_ref()
            .ok_or_else(|| Error::Other("this model has no tokens for sounds".into()))
    }

    /// What stands for each 64x64 picture: its semantic token if there are such, then its
    /// [`ImageTokeniser::TOKENS`] codes.
    pub fn image_codes(&self, pictures: &[&Picture]) -> Result<Vec<Vec<u32>>> {
        let mut all = self.of_pictures()?.to_codes(pictures);
        if let Some(recogniser) = &self.image_semantic {
            for (codes, class) in all.iter_mut().zip(recogniser.pictures(pictures)) {
                codes.insert(0, class);
            }
        }
        Ok(all)
    }

    /// What stands for a 16 kHz sound: its semantic token if there are such, then its codes.
    pub fn audio_codes(&self, sound: &Sound) -> Result<Vec<u32>> {
        let tokeniser = self.of_sounds()?;
        let rows = tokeniser.rows(&sound.samples);
        let semantic = self.audio_semantic.as_ref();
        let mut codes: Vec<u32> = semantic.map(|r| r.sounds(&[&rows])[0]).into_iter().collect();
        codes.extend(tokeniser.codes_of_rows(rows));
        Ok(codes)
    }

    /// The picture of what [`image_codes`](Self::image_codes) made.
    ///
    /// # Panics
    /// If the number of codes is another.
    pub fn picture(&self, codes: &[u32]) -> Result<Picture> {
        let codes = codes[usize::from(self.image_semantic.is_some())..].to_vec();
        Ok(self.of_pictures()?.to_pictures(&[codes]).remove(0))
    }

    /// The sound of what [`audio_codes`](Self::audio_codes) made.
    pub fn sound(&self, codes: &[u32]) -> Result<Sound> {
        Ok(self.of_sounds()?.to_sound(&codes[usize::from(self.audio_semantic.is_some())..]))
    }
}
