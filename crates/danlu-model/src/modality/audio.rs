//! Sounds: a convolutional autoencoder of log-mel frames with finite scalar quantisation in the
//! middle, and Griffin-Lim back to samples.

use super::Fsq;
use crate::layers::{Conv, ResBlock, RmsNorm};
use crate::params::{Module, Parameter};
use burn::tensor::{Device, Tensor, TensorData};
use danlu_core::recipe::AudioRecipe;
use danlu_core::{Rng, Sound};
use danlu_media::{Mel, MelBank, MelConfig};
use danlu_ops::ConvShape;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of an audio tokeniser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioTokeniserConfig {
    /// Levels of each quantised dimension.
    pub levels: Vec<u32>,
    /// Samples from one mel frame to the next.
    pub hop: usize,
    /// Samples of an analysis window.
    pub fft: usize,
    /// Mel bands.
    pub mels: usize,
    /// Mel frames in one token.
    pub frames: usize,
    /// Channels of the convolutions.
    pub channels: usize,
    /// Residual blocks in encoder and decoder alike.
    pub blocks: usize,
    /// Longest sound in seconds.
    pub max_seconds: f32,
    /// Mean of the training data's log-mel values.
    pub mean: f32,
    /// Standard deviation of the training data's log-mel values.
    pub std: f32,
}

impl From<&AudioRecipe> for AudioTokeniserConfig {
    fn from(r: &AudioRecipe) -> Self {
        Self {
            levels: r.levels.clone(),
            hop: r.hop,
            fft: r.fft,
            mels: r.mels,
            frames: r.frames,
            channels: r.channels,
            blocks: r.blocks,
            max_seconds: r.max_seconds,
            mean: 0.0,
            std: 1.0,
        }
    }
}

/// The learnt tokeniser of sounds.
#[derive(Debug, Clone)]
pub struct AudioTokeniser {
    /// Its sizes.
    pub config: AudioTokeniserConfig,
    /// The quantiser.
    pub fsq: Fsq,
    /// The analysis in front of it.
    pub bank: Arc<MelBank>,
    enter: Conv,
    encoder: Vec<ResBlock>,
    encoder_norm: RmsNorm,
    to_code: Conv,
    from_code: Conv,
    decoder: Vec<ResBlock>,
    decoder_norm: RmsNorm,
    leave: Conv,
}

/// Samples a second of every sound in the model.
const RATE: u32 = 16_000;

impl AudioTokeniser {
    /// Random weights.
    pub fn new(config: AudioTokeniserConfig, seed: u64, device: &Device) -> Self {
        let mut rng = Rng::new(seed, 0x0061_7564_696f);
        let rng = &mut rng;
        let (c, group) = (config.channels, config.mels * config.frames);
        let (wide, point) = (ConvShape::same([1, 5]), ConvShape::same([1, 1]));
        let stack = |name: &str, rng: &mut Rng| -> Vec<ResBlock> {
            (0..config.blocks)
                .map(|i| ResBlock::new(&format!("{name}.{i}"), c, [1, 5], rng, device))
                .collect()
        };
        let fsq = Fsq { levels: config.levels.clone() };
        let codes = fsq.dimensions();
        let bank = Arc::new(MelBank::new(&MelConfig {
            rate: RATE,
            fft: config.fft,
            hop: config.hop,
            mels: config.mels,
            low: 40.0,
            high: 7_800.0,
        }));
        Self {
            enter: Conv::new("enter", [c, group], wide, 1.0, rng, device),
            encoder: stack("encoder", rng),
            encoder_norm: RmsNorm::new("encoder_norm", c, 1e-6, device),
            to_code: Conv::new("to_code", [codes, c], point, 1.0, rng, device),
            from_code: Conv::new("from_code", [c, codes], wide, 1.0, rng, device),
            decoder: stack("decoder", rng),
            decoder_norm: RmsNorm::new("decoder_norm", c, 1e-6, device),
            leave: Conv::new("leave", [group, c], wide, 0.5, rng, device),
            config,
            fsq,
            bank,
        }
    }

    /// Tokens of one second of sound.
    pub fn tokens_per_second(&self) -> f64 {
        RATE as f64 / (self.config.hop * self.config.frames) as f64
    }

    /// Most tokens of one sound.
    pub fn max_tokens(&self) -> usize {
        (self.config.max_seconds as f64 * self.tokens_per_second()).ceil() as usize
    }

    /// Normalised log-mel frames, `frames` to a row: `[tokens, frames * mels]` row-major. The last
    /// row is filled up with silence.
    pub fn rows(&self, samples: &[f32]) -> Vec<f32> {
        let mel = self.bank.log_mel(samples);
        let row = self.config.frames * self.config.mels;
        let tokens = mel.frames.div_ceil(self.config.frames).max(1);
        let mut values = mel.values;
        values.resize(tokens * row, danlu_media::FLOOR.ln());
        values.iter_mut().for_each(|v| *v = (*v - self.config.mean) / self.config.std);
        values
    }

    /// The unquantised code of each position `[batch * tokens, dimensions]` of
    /// `[batch, tokens, frames * mels]`.
    pub fn encode(&self, rows: Tensor<3>) -> Tensor<2> {
        let [b, t, width] = rows.dims();
        let mut x = self.enter.forward(rows.reshape([b, 1, t, width]));
        for block in &self.encoder {
            x = block.forward(x);
        }
        let c = self.config.channels;
        let x = self.encoder_norm.forward(x.reshape([b * t, c]));
        let x = danlu_ops::silu(x).reshape([b, 1, t, c]);
        self.to_code.forward(x).reshape([b * t, self.fsq.dimensions()])
    }

    /// `[batch, tokens, frames * mels]` of quantised codes `[batch * tokens, dimensions]`.
    pub fn decode(&self, codes: Tensor<2>, batch: usize) -> Tensor<3> {
        let [n, dimensions] = codes.dims();
        let t = n / batch;
        let mut x = self.from_code.forward(codes.reshape([batch, 1, t, dimensions]));
        for block in &self.decoder {
            x = block.forward(x);
        }
        let c = self.config.channels;
        let x = self.decoder_norm.forward(x.reshape([n, c])).reshape([batch, 1, t, c]);
        self.leave.forward(x).reshape([batch, t, self.config.frames * self.config.mels])
    }

    /// Codes of a 16 kHz sound.
    pub fn to_codes(&self, sound: &Sound) -> Vec<u32> {
        self.codes_of_rows(self.rows(&sound.samples))
    }

    /// Codes of what [`rows`](Self::rows) made.
    pub fn codes_of_rows(&self, rows: Vec<f32>) -> Vec<u32> {
        let width = self.config.frames * self.config.mels;
        let t = rows.len() / width;
        let device = self.to_code.weight.tensor.device();
        self.fsq
            .codes(self.encode(Tensor::from_data(TensorData::new(rows, [1, t, width]), &device)))
    }

    /// The log-mel frames that codes stand for.
    pub fn to_mel(&self, codes: &[u32]) -> Mel {
        let device = self.to_code.weight.tensor.device();
        let out = self.decode(self.fsq.values(codes, &device), 1);
        let mut values: Vec<f32> = out.into_data().try_into_vec().expect("f32");
        values.iter_mut().for_each(|v| *v = *v * self.config.std + self.config.mean);
        Mel { frames: codes.len() * self.config.frames, mels: self.config.mels, values }
    }

    /// The sound of codes. The phases are found by Griffin-Lim, so it is the same for the same
    /// codes.
    pub fn to_sound(&self, codes: &[u32]) -> Sound {
        self.bank.griffin_lim(&self.to_mel(codes), 32, 1)
    }
}

impl Module for AudioTokeniser {
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.enter.weight, &self.enter.bias];
        all.extend(self.encoder.iter().flat_map(ResBlock::parameters));
        all.extend([&self.encoder_norm.weight, &self.to_code.weight, &self.to_code.bias]);
        all.extend([&self.from_code.weight, &self.from_code.bias]);
        all.extend(self.decoder.iter().flat_map(ResBlock::parameters));
        all.extend([&self.decoder_norm.weight, &self.leave.weight, &self.leave.bias]);
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.enter.weight, &mut self.enter.bias];
        all.extend(self.encoder.iter_mut().flat_map(ResBlock::parameters_mut));
        all.extend([
            &mut self.encoder_norm.weight,
            &mut self.to_code.weight,
            &mut self.to_code.bias,
            &mut self.from_code.weight,
            &mut self.from_code.bias,
        ]);
        all.extend(self.decoder.iter_mut().flat_map(ResBlock::parameters_mut));
        all.extend([&mut self.decoder_norm.weight, &mut self.leave.weight, &mut self.leave.bias]);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_codes_follows_the_length() {
        let recipe = AudioRecipe { channels: 8, blocks: 1, mels: 20, ..Default::default() };
        let t = AudioTokeniser::new((&recipe).into(), 1, &danlu_ops::cpu_device());
        let tone: Vec<f32> = (0..16_000).map(|i| (i as f32 * 0.2).sin() * 0.3).collect();
        let codes = t.to_codes(&Sound { rate: RATE, samples: tone.clone() });
        assert_eq!(codes.len(), 21);
        assert!(codes.iter().all(|&c| c < t.fsq.size()));
        assert_eq!(t.to_codes(&Sound { rate: RATE, samples: tone[..10].to_vec() }).len(), 1);
        let sound = t.to_sound(&codes);
        assert!((sound.seconds() - 1.0).abs() < 0.05, "{}", sound.seconds());
    }
}
