//! One file a modality: how text, pictures and sounds become token codes and come back.

mod audio;
mod fsq;
mod image;
mod text;

pub use audio::{AudioTokeniser, AudioTokeniserConfig};
pub use fsq::Fsq;
pub use image::{ImageTokeniser, ImageTokeniserConfig};
pub use text::TextTokeniser;

use danlu_core::Vocabulary;

/// Bins of a coordinate: one per pixel of a picture's side.
pub const PLACES: u32 = 64;

/// The three tokenisers of a model.
#[derive(Debug, Clone)]
pub struct Tokenisers {
    /// Byte-level BPE.
    pub text: TextTokeniser,
    /// Pictures to codes and back.
    pub image: ImageTokeniser,
    /// Sounds to codes and back.
    pub audio: AudioTokeniser,
}

impl Tokenisers {
    /// The one vocabulary that they make together.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary {
            text: self.text.size(),
            image: self.image.fsq.size(),
            audio: self.audio.fsq.size(),
            places: PLACES,
        }
    }
}
