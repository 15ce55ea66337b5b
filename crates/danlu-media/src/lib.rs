//! Pictures and sounds in and out of files, and the signal processing under the audio tokeniser.
//!
//! Files become the plain [`danlu_core::Picture`] and [`danlu_core::Sound`] here and nowhere else.
//! This crate knows no sample, no token and no tensor.

mod flac;
mod mel;
mod picture;
mod quality;
mod resample;
mod restyle;
mod sound;

pub use flac::encode_flac;
pub use mel::{FLOOR, Mel, MelBank, MelConfig};
pub use picture::{
    alter_picture, decode_picture, decode_picture_within, encode_png, fit, read_picture,
    write_picture,
};
pub use quality::{mel_distance, psnr, ssim};
pub use resample::resample;
pub use restyle::{blend_pictures, restyle_picture};
pub use sound::{
    MAX_SECONDS, RATE, alter_sound, decode_sound, decode_sound_within, encode_wav, pcm16,
    read_sound, revoice_sound, write_sound,
};

use danlu_core::{Error, Result};
use std::path::Path;

/// Reads a whole file.
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// Writes a file whole or not at all: a neighbour is written and renamed over it.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::file(path, "a file to write", "a path without a file name"))?;
    let part = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    std::fs::write(&part, bytes).map_err(|e| Error::io(path, e))?;
    std::fs::rename(&part, path).map_err(|e| Error::io(path, e))
}
