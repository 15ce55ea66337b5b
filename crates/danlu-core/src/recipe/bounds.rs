//! Counts that no machine has room for.

use super::{AudioRecipe, ImageRecipe, MOST_ROWS};
use crate::{Error, Result};

/// Most pictures or clips at a time, and tokens of a clip.
const MOST_CLIPS: usize = 1 << 14;
/// Most channels of a tokeniser's or recogniser's network.
const MOST_CHANNELS: usize = 1 << 12;
/// Most blocks at a scale of one.
const MOST_BLOCKS: usize = 1 << 8;
/// Most samples of an analysis window: four seconds.
const MOST_SAMPLES: usize = 1 << 16;
/// Most tokens of a row.
const MOST_WINDOW: usize = 1 << 28;
/// Most tokens of a batch.
const MOST_TOKENS: usize = 1 << 36;

/// Refuses a count that no machine has room for.
///
/// # Errors
/// If `value` is over `most`, by the name of the parameter.
pub fn at_most(name: &str, value: usize, most: usize) -> Result<()> {
    match value <= most {
        true => Ok(()),
        false => Err(Error::parameter(name, format!("at most {most}"), value)),
    }
}

/// Refuses a batch that no machine has room for.
pub(crate) fn batch_at_most(rows: usize, window: usize) -> Result<()> {
    at_most("train.rows", rows, MOST_ROWS)?;
    at_most("train.window", window, MOST_WINDOW)?;
    at_most("train.rows * train.window", rows * window, MOST_TOKENS)
}

/// Refuses networks and batches of tokenisers and recognisers beyond all bounds.
pub(super) fn of_tokenisers(image: &ImageRecipe, audio: &AudioRecipe) -> Result<()> {
    for (name, value, most) in [
        ("image.batch", image.batch, MOST_CLIPS),
        ("image.channels", image.channels, MOST_CHANNELS),
        ("image.blocks", image.blocks, MOST_BLOCKS),
        ("audio.batch", audio.batch, MOST_CLIPS),
        ("audio.channels", audio.channels, MOST_CHANNELS),
        ("audio.blocks", audio.blocks, MOST_BLOCKS),
        ("audio.mels", audio.mels, MOST_CHANNELS),
        ("audio.frames", audio.frames, MOST_CHANNELS),
        ("audio.clip", audio.clip, MOST_CLIPS),
        ("audio.hop", audio.hop, MOST_SAMPLES),
        ("audio.fft", audio.fft, MOST_SAMPLES),
    ] {
        at_most(name, value, most)?;
    }
    for (name, r) in [("image", &image.semantic), ("audio", &audio.semantic)] {
        at_most(&format!("{name}.semantic.batch"), r.batch, MOST_CLIPS)?;
        at_most(&format!("{name}.semantic.channels"), r.channels, MOST_CHANNELS)?;
        at_most(&format!("{name}.semantic.blocks"), r.blocks, MOST_BLOCKS)?;
        at_most(&format!("{name}.semantic.width"), r.width, MOST_CHANNELS)?;
    }
    Ok(())
}
