//! Pictures: a convolutional autoencoder of 64x64 RGB with finite scalar quantisation in the
//! middle. A fold of 4x4 pixels and one halving leave 8x8 positions; two of them, one above the other,
//! make a token: 32 tokens a picture, for the length of what the transformer reads and writes is what
//! training costs.

use super::Fsq;
use crate::layers::{Conv, ResBlock, RmsNorm, fold};
use crate::params::{Module, Parameter};
use burn::tensor::{Device, Tensor, TensorData};
use danlu_core::recipe::ImageRecipe;
use danlu_core::{Picture, Rng};
use danlu_ops::ConvShape;
use serde::{Deserialize, Serialize};

/// Side of a picture in pixels.
const SIDE: usize = 64;
/// Side of the square of positions at the coarse scale.
const GRID: usize = 8;
/// Positions, one above the other, in one token.
const MERGE: usize = 2;
/// Pixels folded into channels at the edge of the network.
const FOLD: usize = 4;

/// Sizes of an image tokeniser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTokeniserConfig {
    /// Levels of each quantised dimension.
    pub levels: Vec<u32>,
    /// Channels at 16x16; 8x8 has twice as many.
    pub channels: usize,
    /// Residual blocks at each scale.
    pub blocks: usize,
}

impl From<&ImageRecipe> for ImageTokeniserConfig {
    fn from(r: &ImageRecipe) -> Self {
        Self { levels: r.levels.clone(), channels: r.channels, blocks: r.blocks }
    }
}

/// The learnt tokeniser of pictures.
#[derive(Debug, Clone)]
pub struct ImageTokeniser {
    /// Its sizes.
    pub config: ImageTokeniserConfig,
    /// The quantiser.
    pub fsq: Fsq,
    encoder: Half,
    to_code: Conv,
    from_code: Conv,
    decoder: Half,
}

/// Encoder or decoder: a stack at each scale with a change of scale between.
#[derive(Debug, Clone)]
struct Half {
    enter: Conv,
    first: Vec<ResBlock>,
    change: Conv,
    second: Vec<ResBlock>,
    norm: RmsNorm,
    leave: Conv,
}

impl Half {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.enter.weight, &self.enter.bias];
        all.extend(self.first.iter().flat_map(ResBlock::parameters));
        all.extend([&self.change.weight, &self.change.bias]);
        all.extend(self.second.iter().flat_map(ResBlock::parameters));
        all.extend([&self.norm.weight, &self.leave.weight, &self.leave.bias]);
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.enter.weight, &mut self.enter.bias];
        all.extend(self.first.iter_mut().flat_map(ResBlock::parameters_mut));
        all.extend([&mut self.change.weight, &mut self.change.bias]);
        all.extend(self.second.iter_mut().flat_map(ResBlock::parameters_mut));
        all.extend([&mut self.norm.weight, &mut self.leave.weight, &mut self.leave.bias]);
        all
    }
}

/// The inverse of [`fold`] with blocks of `f` by `f`.
fn unfold(x: Tensor<4>, f: usize) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let c = c / (f * f);
    x.reshape([b, h, w, f, f, c]).permute([0, 1, 3, 2, 4, 5]).reshape([b, h * f, w * f, c])
}

fn flat(x: Tensor<4>) -> Tensor<2> {
    let [b, h, w, c] = x.dims();
    x.reshape([b * h * w, c])
}

fn normed(norm: &RmsNorm, x: Tensor<4>) -> Tensor<4> {
    let dims = x.dims();
    norm.forward(flat(x)).reshape(dims)
}

impl ImageTokeniser {
    /// Codes of one picture.
    pub const TOKENS: usize = GRID * GRID / MERGE;

    /// Random weights.
    pub fn new(config: ImageTokeniserConfig, seed: u64, device: &Device) -> Self {
        let mut rng = Rng::new(seed, 0x0069_6d61_6765);
        let rng = &mut rng;
        let (fine, coarse, pixels) = (config.channels, 2 * config.channels, FOLD * FOLD * 3);
        let (wide, point) = (ConvShape::same([3, 3]), ConvShape::same([1, 1]));
        let stack = |name: &str, channels: usize, rng: &mut Rng| -> Vec<ResBlock> {
            (0..config.blocks)
                .map(|i| ResBlock::new(&format!("{name}.{i}"), channels, [3, 3], rng, device))
                .collect()
        };
        let fsq = Fsq { levels: config.levels.clone() };
        let codes = fsq.dimensions();
        let encoder = Half {
            enter: Conv::new("encoder.enter", [fine, pixels], wide, 1.0, rng, device),
            first: stack("encoder.first", fine, rng),
            change: Conv::new("encoder.change", [coarse, 4 * fine], point, 1.0, rng, device),
            second: stack("encoder.second", coarse, rng),
            norm: RmsNorm::new("encoder.norm", coarse, 1e-6, device),
            leave: Conv::new("encoder.leave", [coarse, coarse], wide, 1.0, rng, device),
        };
        let to_code = Conv::new("to_code", [codes, MERGE * coarse], point, 1.0, rng, device);
        let from_code = Conv::new("from_code", [MERGE * coarse, codes], wide, 1.0, rng, device);
        let decoder = Half {
            enter: Conv::new("decoder.enter", [coarse, coarse], wide, 1.0, rng, device),
            first: stack("decoder.first", coarse, rng),
            change: Conv::new("decoder.change", [4 * fine, coarse], point, 1.0, rng, device),
            second: stack("decoder.second", fine, rng),
            norm: RmsNorm::new("decoder.norm", fine, 1e-6, device),
            leave: Conv::new("decoder.leave", [pixels, fine], wide, 0.3, rng, device),
        };
        Self { config, fsq, encoder, to_code, from_code, decoder }
    }

    /// Pictures as a tensor `[n, 64, 64, 3]` in -1..1.
    ///
    /// # Panics
    /// If a picture is not 64x64.
    pub fn pixels(pictures: &[&Picture], device: &Device) -> Tensor<4> {
        let mut values = Vec::with_capacity(pictures.len() * SIDE * SIDE * 3);
        for p in pictures {
            assert_eq!((p.width, p.height), (SIDE, SIDE), "the image tokeniser takes 64x64");
            values.extend(p.rgb.iter().map(|&v| v as f32 / 127.5 - 1.0));
        }
        Tensor::from_data(TensorData::new(values, [pictures.len(), SIDE, SIDE, 3]), device)
    }

    /// The unquantised code of each token, `[n * TOKENS, dimensions]`, of pixels `[n, 64, 64, 3]`.
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<2> {
        let e = &self.encoder;
        let mut x = e.enter.forward(fold(pixels, [FOLD, FOLD]));
        for block in &e.first {
            x = block.forward(x);
        }
        x = e.change.forward(fold(x, [2, 2]));
        for block in &e.second {
            x = block.forward(x);
        }
        let x = danlu_ops::silu(flat(e.leave.forward(normed(&e.norm, x))));
        let (n, c) = (x.dims()[0] / (GRID * GRID), 2 * self.config.channels);
        let pairs = x
            .reshape([n, GRID / MERGE, MERGE, GRID, c])
            .permute([0, 1, 3, 2, 4])
            .reshape([n, GRID / MERGE, GRID, MERGE * c]);
        flat(self.to_code.forward(pairs))
    }

    /// Pixels `[n, 64, 64, 3]` of quantised codes `[n * TOKENS, dimensions]`.
    pub fn decode(&self, codes: Tensor<2>) -> Tensor<4> {
        let [rows, dimensions] = codes.dims();
        let d = &self.decoder;
        let (n, c) = (rows / Self::TOKENS, 2 * self.config.channels);
        let x = self.from_code.forward(codes.reshape([n, GRID / MERGE, GRID, dimensions]));
        let x = x
            .reshape([n, GRID / MERGE, GRID, MERGE, c])
            .permute([0, 1, 3, 2, 4])
            .reshape([n, GRID, GRID, c]);
        let mut x = d.enter.forward(x);
        for block in &d.first {
            x = block.forward(x);
        }
        x = unfold(d.change.forward(x), 2);
        for block in &d.second {
            x = block.forward(x);
        }
        unfold(d.leave.forward(normed(&d.norm, x)), FOLD)
    }

    /// Codes of pictures, [`Self::TOKENS`] each, row by row from the top left.
    pub fn to_codes(&self, pictures: &[&Picture]) -> Vec<Vec<u32>> {
        let device = self.to_code.weight.tensor.device();
        let mut out = Vec::with_capacity(pictures.len());
        for some in pictures.chunks(32) {
            let codes = self.fsq.codes(self.encode(Self::pixels(some, &device)));
            out.extend(codes.chunks_exact(Self::TOKENS).map(<[u32]>::to_vec));
        }
        out
    }

    /// Pictures of codes.
    ///
    /// # Panics
    /// If a list does not have [`Self::TOKENS`] codes.
    pub fn to_pictures(&self, codes: &[Vec<u32>]) -> Vec<Picture> {
        let device = self.to_code.weight.tensor.device();
        let mut out = Vec::with_capacity(codes.len());
        for some in codes.chunks(32) {
            assert!(some.iter().all(|c| c.len() == Self::TOKENS), "codes of a whole picture");
            let pixels = self.decode(self.fsq.values(&some.concat(), &device));
            let values: Vec<f32> = pixels.into_data().try_into_vec().expect("f32");
            out.extend(
                values.chunks_exact(SIDE * SIDE * 3).map(|v| Picture {
                    width: SIDE,
                    height: SIDE,
                    rgb: v
                        .iter()
                        .map(|&v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8)
                        .collect(),
                }),
            );
        }
        out
    }
}

impl Module for ImageTokeniser {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = self.encoder.parameters();
        all.extend([&self.to_code.weight, &self.to_code.bias]);
        all.extend([&self.from_code.weight, &self.from_code.bias]);
        all.extend(self.decoder.parameters());
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = self.encoder.parameters_mut();
        all.extend([&mut self.to_code.weight, &mut self.to_code.bias]);
        all.extend([&mut self.from_code.weight, &mut self.from_code.bias]);
        all.extend(self.decoder.parameters_mut());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> ImageTokeniser {
        let config = ImageTokeniserConfig { levels: vec![5, 4], channels: 8, blocks: 1 };
        ImageTokeniser::new(config, 1, &danlu_ops::cpu_device())
    }

    #[test]
    fn folding_comes_back() {
        let d = danlu_ops::cpu_device();
        let x = Tensor::<4>::random([2, 8, 8, 3], burn::tensor::Distribution::Default, &d);
        let back = unfold(fold(x.clone(), [4, 4]), 4);
        back.into_data().assert_eq(&x.into_data(), true);
    }

    #[test]
    fn codes_have_the_right_number_and_range_and_do_not_depend_on_the_batch() {
        let t = tiny();
        let mut b = Picture::filled(64, 64, [255, 0, 0]);
        b.rgb[..3000].fill(90);
        let a = Picture::filled(64, 64, [10, 200, 30]);
        let both = t.to_codes(&[&a, &b]);
        assert_eq!(both[0].len(), ImageTokeniser::TOKENS);
        assert!(both.iter().flatten().all(|&c| c < 20));
        assert_eq!(t.to_codes(&[&b])[0], both[1]);
        assert_eq!(t.to_pictures(&both)[0].rgb.len(), 64 * 64 * 3);
    }
}
