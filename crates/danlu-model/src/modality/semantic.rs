//! Semantic tokens: what a picture shows or a sound says, in one token that stands before its codes.
//!
//! The codes of an autoencoder change with every stroke and every voice, and a small transformer
//! that has seen a thing drawn by two hands does not know it when a third draws it. So a recogniser
//! is trained, in front of the quantiser, to tell the concepts apart whatever the style or voice,
//! and its verdict, the nearest of its classes, is the first token: a supervised semantic token as
//! in CosyVoice (arXiv 2407.05407), here of a whole clip. It is learnt from the training split
//! alone, and the codes follow for all that has no name.

use crate::layers::{Conv, Linear, ResBlock, RmsNorm, fold};
use crate::modality::ImageTokeniser;
use crate::params::{Module, Parameter};
use burn::tensor::{Device, Tensor, TensorData};
use danlu_core::{Picture, Rng};
use danlu_ops::ConvShape;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What a recogniser looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Eye {
    /// 64x64 pixels.
    Picture,
    /// Log-mel frames.
    Sound,
}

/// Sizes of a recogniser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecogniserConfig {
    /// What it looks at.
    pub eye: Eye,
    /// Values at each position: 12 of a picture (2x2 pixels), the mel bands of a sound.
    pub inputs: usize,
    /// Mel frames that are looked at (pictures: not used). A multiple of 8.
    pub frames: usize,
    /// Channels, times the scale's factor.
    pub channels: usize,
    /// Residual blocks at each scale.
    pub blocks: usize,
    /// Width of the embedding.
    pub width: usize,
    /// Classes: the number of semantic tokens.
    pub classes: usize,
}

impl RecogniserConfig {
    /// Refuses sizes from a file that cannot work or are absurd, with what was found.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [self.inputs, self.channels, self.width, self.frames, self.blocks + 1];
        let fine = sizes.iter().all(|s| (1..=4096).contains(s))
            && (1..=65_535).contains(&self.classes)
            && self.frames.is_multiple_of(8)
            && (self.eye == Eye::Sound || self.inputs == FOLD * FOLD * 3);
        if fine { Ok(()) } else { Err(format!("{self:?}")) }
    }

    fn scales(&self) -> [usize; 4] {
        match self.eye {
            Eye::Picture => [1, 2, 4, 8],
            Eye::Sound => [4, 6, 8, 8],
        }
        .map(|factor| factor * self.channels)
    }
}

/// Frames before a sound begins to be heard, and after, that are looked at as well.
const AROUND: usize = 3;
/// Pixels folded into channels in front of the first scale.
const FOLD: usize = 2;

/// How a picture is looked at before it is recognised: size, and shift to the right and down in
/// pixels. One style fills its square more than another.
const VIEWS: [[f32; 3]; 5] =
    [[1.0, 0.0, 0.0], [0.88, 0.0, 0.0], [1.1, 0.0, 0.0], [1.0, 2.0, 1.0], [1.0, -2.0, -1.0]];

/// `picture` scaled about its centre and shifted, on white.
fn view(picture: &Picture, size: f32, x: f32, y: f32) -> Picture {
    if size == 1.0 && x == 0.0 && y == 0.0 {
        return picture.clone();
    }
    let (w, h) = (picture.width, picture.height);
    let pixel = |x: i32, y: i32, c: usize| -> f32 {
        let inside = x >= 0 && y >= 0 && x < w as i32 && y < h as i32;
        if inside { picture.rgb[(y as usize * w + x as usize) * 3 + c] as f32 } else { 255.0 }
    };
    let back = |at: usize, shift: f32, side: usize| {
        let centre = (side as f32 - 1.0) / 2.0;
        let from = (at as f32 - centre - shift) / size + centre;
        (from.floor() as i32, from - from.floor())
    };
    let mut rgb = Vec::with_capacity(picture.rgb.len());
    for row in 0..h {
        let (y0, fy) = back(row, y, h);
        for column in 0..w {
            let (x0, fx) = back(column, x, w);
            for c in 0..3 {
                let top = pixel(x0, y0, c) * (1.0 - fx) + pixel(x0 + 1, y0, c) * fx;
                let low = pixel(x0, y0 + 1, c) * (1.0 - fx) + pixel(x0 + 1, y0 + 1, c) * fx;
                rgb.push((top * (1.0 - fy) + low * fy + 0.5) as u8);
            }
        }
    }
    Picture { width: w, height: h, rgb }
}

/// A convolutional network whose embedding is compared with one prototype a class.
#[derive(Debug, Clone)]
pub struct Recogniser {
    /// Its sizes.
    pub config: RecogniserConfig,
    enter: Conv,
    scales: Vec<Scale>,
    norm: RmsNorm,
    embed: Linear,
    embed_norm: RmsNorm,
    /// `[classes, width]`.
    prototypes: Parameter,
}

/// One scale: a change from the finer one (but for the first), then residual blocks.
#[derive(Debug, Clone)]
struct Scale {
    change: Option<Conv>,
    blocks: Vec<ResBlock>,
}

impl Recogniser {
    /// Random weights.
    pub fn new(config: RecogniserConfig, seed: u64, device: &Device) -> Self {
        let mut rng = Rng::new(seed, 0x7365_6d61_6e74_6963);
        let rng = &mut rng;
        let kernel = match config.eye {
            Eye::Picture => [3, 3],
            Eye::Sound => [1, 5],
        };
        let widths = config.scales();
        let enter = ConvShape::same(kernel);
        let enter = Conv::new("enter", [widths[0], config.inputs], enter, 1.0, rng, device);
        let halving = if config.eye == Eye::Picture { 4 } else { 2 };
        let scales = (0..widths.len())
            .map(|s| {
                let name = format!("scales.{s}");
                let change = (s > 0).then(|| {
                    let point = ConvShape::same([1, 1]);
                    let sizes = [widths[s], halving * widths[s - 1]];
                    Conv::new(&format!("{name}.change"), sizes, point, 1.0, rng, device)
                });
                let blocks = (0..config.blocks)
                    .map(|b| {
                        let name = format!("{name}.blocks.{b}");
                        ResBlock::new(&name, widths[s], kernel, rng, device)
                    })
                    .collect();
                Scale { change, blocks }
            })
            .collect();
        let last = widths[widths.len() - 1];
        let std = (2.0 * last as f32).sqrt().recip();
        Self {
            enter,
            scales,
            norm: RmsNorm::new("norm", last, 1e-6, device),
            embed: Linear::new("embed", [config.width, 2 * last], std, rng, device),
            embed_norm: RmsNorm::new("embed_norm", config.width, 1e-6, device),
            prototypes: Parameter::normal(
                "prototypes.weight",
                &[config.classes, config.width],
                (config.width as f32).sqrt().recip(),
                rng,
                device,
            ),
            config,
        }
    }

    /// Number of semantic tokens.
    pub fn classes(&self) -> u32 {
        self.config.classes as u32
    }

    /// The prototypes `[classes, width]`: the logits of a class are the embedding times its own.
    pub fn table(&self) -> Tensor<2> {
        self.prototypes.tensor.clone()
    }

    /// Embeddings `[n, width]` of pixels `[n, 64, 64, 3]` in -1..1, or of normalised log-mel
    /// `[n, 1, frames, mels]`.
    pub fn embed(&self, x: Tensor<4>) -> Tensor<2> {
        let x = match self.config.eye {
            Eye::Picture => fold(x, [FOLD, FOLD]),
            Eye::Sound => x,
        };
        let step = if self.config.eye == Eye::Picture { [2, 2] } else { [1, 2] };
        let mut x = self.enter.forward(x);
        for scale in &self.scales {
            if let Some(change) = &scale.change {
                x = change.forward(fold(x, step));
            }
            for block in &scale.blocks {
                x = block.forward(x);
            }
        }
        let [n, h, w, c] = x.dims();
        let x = self.norm.forward(x.reshape([n * h * w, c]));
        let x = danlu_ops::silu(x).reshape([n, h * w, c]);
        let mean = x.clone().mean_dim(1).reshape([n, c]);
        let peak = x.max_dim(1).reshape([n, c]);
        self.embed_norm.forward(self.embed.forward(Tensor::cat(vec![mean, peak], 1)))
    }

    /// The class of each embedding `[n * views, width]`, `views` of one thing after the other: that
    /// whose prototype is nearest to their sum, and of equal ones the first.
    pub fn classify(&self, embedding: Tensor<2>, views: usize) -> Vec<u32> {
        let [rows, width] = embedding.dims();
        let sum = embedding.reshape([rows / views, views, width]).sum_dim(1);
        let logits = danlu_ops::linear(sum.reshape([rows / views, width]), self.table());
        let logits: Vec<f32> = logits.into_data().try_into_vec().expect("f32");
        logits
            .chunks_exact(self.config.classes)
            .map(|row| {
                let best =
                    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
                best as u32
            })
            .collect()
    }

    /// The class of each 64x64 picture, looked at in several views.
    pub fn pictures(&self, pictures: &[&Picture]) -> Vec<u32> {
        let device = self.prototypes.tensor.device();
        let some = |some: &[&Picture]| {
            let views: Vec<Picture> =
                some.iter().flat_map(|p| VIEWS.map(|[size, x, y]| view(p, size, x, y))).collect();
            let views: Vec<&Picture> = views.iter().collect();
            let embedding = self.embed(ImageTokeniser::pixels(&views, &device));
            self.classify(embedding, VIEWS.len())
        };
        pictures.chunks(8).flat_map(some).collect()
    }

    /// The class of each sound, given as rows of [`AudioTokeniser::rows`].
    ///
    /// [`AudioTokeniser::rows`]: crate::modality::AudioTokeniser::rows
    pub fn sounds(&self, rows: &[&[f32]]) -> Vec<u32> {
        let device = self.prototypes.tensor.device();
        let some = |some: &[&[f32]]| self.classify(self.embed(self.frames(some, &device)), 1);
        rows.chunks(32).flat_map(some).collect()
    }

    /// Sounds of a fixed length `[n, 1, frames, mels]`, silence at both ends left out: what is
    /// longer is cut, what is shorter goes on with zeros, which is the mean of all frames.
    pub fn frames(&self, rows: &[&[f32]], device: &Device) -> Tensor<4> {
        let (frames, mels) = (self.config.frames, self.config.inputs);
        let mut values = Vec::with_capacity(rows.len() * frames * mels);
        for (i, row) in rows.iter().enumerate() {
            let heard = heard(row, mels);
            let row = &row[heard.start * mels..heard.end * mels];
            values.extend_from_slice(&row[..row.len().min(frames * mels)]);
            values.resize((i + 1) * frames * mels, 0.0);
        }
        Tensor::from_data(TensorData::new(values, [rows.len(), 1, frames, mels]), device)
    }
}

/// The frames, with a little around them, in which a sound is at least a third of the way from its
/// quietest to its loudest. Recordings begin and end with silence of any length; what is recognised
/// should not.
fn heard(row: &[f32], mels: usize) -> Range<usize> {
    let mean = |frame: &[f32]| frame.iter().sum::<f32>() / mels as f32;
    let loudness: Vec<f32> = row.chunks_exact(mels).map(mean).collect();
    let least = loudness.iter().copied().fold(f32::INFINITY, f32::min);
    let most = loudness.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let loud = |&l: &f32| l >= least + (most - least) / 3.0;
    let first = loudness.iter().position(loud).unwrap_or(0);
    let last = loudness.iter().rposition(loud).map_or(0, |last| last + 1);
    first.saturating_sub(AROUND)..(last + AROUND).min(loudness.len())
}

impl Module for Recogniser {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.enter.weight, &self.enter.bias];
        for scale in &self.scales {
            all.extend(scale.change.iter().flat_map(|c| [&c.weight, &c.bias]));
            all.extend(scale.blocks.iter().flat_map(ResBlock::parameters));
        }
        all.extend([&self.norm.weight, &self.embed.weight, &self.embed_norm.weight]);
        all.push(&self.prototypes);
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.enter.weight, &mut self.enter.bias];
        for scale in &mut self.scales {
            all.extend(scale.change.iter_mut().flat_map(|c| [&mut c.weight, &mut c.bias]));
            all.extend(scale.blocks.iter_mut().flat_map(ResBlock::parameters_mut));
        }
        all.extend([&mut self.norm.weight, &mut self.embed.weight, &mut self.embed_norm.weight]);
        all.push(&mut self.prototypes);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(eye: Eye) -> Recogniser {
        let inputs = if eye == Eye::Picture { 12 } else { 10 };
        let config = RecogniserConfig {
            eye,
            inputs,
            frames: 16,
            channels: 4,
            blocks: 1,
            width: 6,
            classes: 9,
        };
        assert_eq!(config.check(), Ok(()));
        Recogniser::new(config, 4, &danlu_ops::cpu_device())
    }

    #[test]
    fn a_class_does_not_depend_on_the_batch() {
        let r = tiny(Eye::Picture);
        let pictures: Vec<Picture> =
            (0..40).map(|i| Picture::filled(64, 64, [i * 6, 255 - i * 5, 90])).collect();
        let all: Vec<&Picture> = pictures.iter().collect();
        let together = r.pictures(&all);
        for (p, &class) in all.iter().zip(&together) {
            assert_eq!(r.pictures(&[p]), [class]);
        }
        assert!(together.iter().all(|&c| c < 9));
    }

    #[test]
    fn sounds_are_cut_and_filled_up() {
        let r = tiny(Eye::Sound);
        let long: Vec<f32> = (0..400).map(|i| (i as f32 * 0.37).sin()).collect();
        let device = danlu_ops::cpu_device();
        let x = r.frames(&[&long, &long[..30]], &device);
        assert_eq!(x.dims(), [2, 1, 16, 10]);
        let x: Vec<f32> = x.into_data().try_into_vec().expect("f32");
        assert_eq!(x[..160], long[..160]);
        assert_eq!((&x[160..190], x[190]), (&long[..30], 0.0));
        assert_eq!(r.sounds(&[&long[..30]]), r.sounds(&[&long[..30], &long])[..1]);
    }

    #[test]
    fn silence_at_the_ends_does_not_count() {
        let r = tiny(Eye::Sound);
        let loud: Vec<f32> = (0..200).map(|i| 1.0 + (i as f32 * 0.37).sin()).collect();
        let silence = |frames: usize| vec![-2.0; 10 * frames];
        let short = [silence(AROUND), loud.clone(), silence(AROUND)].concat();
        let long = [silence(40), loud, silence(9)].concat();
        assert_eq!(heard(&long, 10), 40 - AROUND..60 + AROUND);
        assert_eq!(r.sounds(&[&short]), r.sounds(&[&long]));
        assert_eq!(heard(&[], 10), 0..0);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let good = tiny(Eye::Sound).config;
        for bad in [
            RecogniserConfig { classes: 0, ..good.clone() },
            RecogniserConfig { channels: 1 << 30, ..good.clone() },
            RecogniserConfig { frames: 13, ..good.clone() },
            RecogniserConfig { eye: Eye::Picture, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
