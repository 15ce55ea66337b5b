use danlu_core::{Rng, Sound};
use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use std::f32::consts::TAU;
use std::sync::Arc;

/// Amplitude of the sine that reads 0 in a log-mel band.
const REFERENCE: f32 = 0.1;

/// Least power in a band. Its logarithm is what silence reads: 50 dB below a sine of amplitude 0.1.
pub const FLOOR: f32 = 1e-5;

/// What a log-mel spectrogram looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct MelConfig {
    /// Samples a second.
    pub rate: u32,
    /// Samples of an analysis window: even, at least `hop`.
    pub fft: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// Bands.
    pub mels: usize,
    /// Lower edge of the first band in hertz.
    pub low: f32,
    /// Upper edge of the last band in hertz, at most half the rate.
    pub high: f32,
}

impl Default for MelConfig {
    fn default() -> Self {
        Self { rate: 16_000, fft: 1024, hop: 256, mels: 80, low: 0.0, high: 8_000.0 }
    }
}

/// A log-mel spectrogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Mel {
    /// Frames in time.
    pub frames: usize,
    /// Bands.
    pub mels: usize,
    /// `frames * mels` values, band after band of each frame.
    pub values: Vec<f32>,
}

/// Turns sounds into log-mel spectrograms and back.
///
/// Frame `i` is the Hann-windowed stretch of `fft` samples centred on the middle of samples `i *
/// hop .. (i + 1) * hop`, the sound being mirrored at its ends; so `n` samples have exactly
/// `n.div_ceil(hop)` frames. A band is the power under a triangle of height 1 on the HTK mel scale,
/// in units of a sine of amplitude 0.1, and its value is `ln(max(power, FLOOR))`.
pub struct MelBank {
    config: MelConfig,
    window: Vec<f32>,
    bands: Vec<Band>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

/// The weights of one band, of bins `first..first + weights.len()`.
#[derive(Debug)]
struct Band {
    first: usize,
    weights: Vec<f32>,
}

impl std::fmt::Debug for MelBank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MelBank").field("config", &self.config).finish_non_exhaustive()
    }
}

impl MelBank {
    /// Plans the transforms and lays out the bands. Panics if the sizes contradict each other.
    pub fn new(config: &MelConfig) -> Self {
        let MelConfig { rate, fft, hop, mels, low, high } = *config;
        assert!(fft.is_multiple_of(2) && hop > 0 && hop <= fft && mels > 0, "MelBank: {config:?}");
        assert!(low >= 0.0 && low < high && high <= rate as f32 / 2.0, "MelBank: {config:?}");
        let window = (0..fft).map(|i| 0.5 - 0.5 * (TAU * i as f32 / fft as f32).cos()).collect();
        let (from, to) = (to_mel(low), to_mel(high));
        let edge = |i: usize| {
            let hertz = to_hertz(from + (to - from) * i as f32 / (mels + 1) as f32);
            hertz * fft as f32 / rate as f32
        };
        let bands = (0..mels).map(|m| Band::new(edge(m), edge(m + 1), edge(m + 2), fft / 2 + 1));
        let mut planner = RealFftPlanner::new();
        Self {
            config: config.clone(),
            window,
            bands: bands.collect(),
            forward: planner.plan_fft_forward(fft),
            inverse: planner.plan_fft_inverse(fft),
        }
    }

    /// What it was made with.
    pub fn config(&self) -> &MelConfig {
        &self.config
    }

    /// Frames of a sound of so many samples: one for every `hop` begun.
    pub fn frames(&self, samples: usize) -> usize {
        samples.div_ceil(self.config.hop)
    }

    /// The log-mel spectrogram of samples at the configured rate.
    pub fn log_mel(&self, samples: &[f32]) -> Mel {
        let MelConfig { fft, hop, mels, .. } = self.config;
        let frames = self.frames(samples.len());
        let padded = self.mirrored(samples, frames);
        // A sine of the reference amplitude has this power at its peak.
        let scale = 1.0 / (REFERENCE * self.window.iter().sum::<f32>() / 2.0).powi(2);
        let mut buffers = Buffers::new(self);
        let mut values = Vec::with_capacity(frames * mels);
        let mut power = vec![0.0; fft / 2 + 1];
        for frame in 0..frames {
            buffers.analyse(self, &padded[frame * hop..][..fft]);
            for (p, c) in power.iter_mut().zip(&buffers.spectrum) {
                *p = c.norm_sqr() * scale;
            }
            values.extend(self.bands.iter().map(|b| b.sum(&power).max(FLOOR).ln()));
        }
        Mel { frames, mels, values }
    }

    /// A sound whose log-mel spectrogram is near `mel`: `mel.frames * hop` samples.
    ///
    /// The magnitudes are the non-negative solution of least divergence from the bands; the phases
    /// start at random, drawn from `seed`, and are made consistent by `iterations` of the fast
    /// Griffin-Lim algorithm (Perraudin, Balazs, Søndergaard 2013; momentum 0.99).
    pub fn griffin_lim(&self, mel: &Mel, iterations: usize, seed: u64) -> Sound {
        assert_eq!(mel.mels, self.config.mels, "griffin_lim: the bands differ");
        let MelConfig { rate, fft, hop, .. } = self.config;
        let bins = fft / 2 + 1;
        let magnitudes = self.magnitudes(mel);
        let mut buffers = Buffers::new(self);
        let mut rng = Rng::new(seed, 0);
        // `spectra` is what the next sound is made of, `before` the last consistent spectra.
        let mut spectra: Vec<Complex32> =
            magnitudes.iter().map(|&m| Complex32::from_polar(m, TAU * rng.unit())).collect();
        let mut before = vec![Complex32::ZERO; spectra.len()];
        let length = mel.frames * hop + fft - hop;
        let overlap = self.overlap(mel.frames);
        let mut samples = vec![0.0; length];
        for iteration in 0..=iterations {
            samples.fill(0.0);
            for (frame, spectrum) in spectra.chunks_exact(bins).enumerate() {
                buffers.synthesise(self, spectrum, &mut samples[frame * hop..][..fft]);
            }
            samples.iter_mut().zip(&overlap).for_each(|(s, o)| *s *= o);
            if iteration == iterations {
                break;
            }
            let momentum = if iteration == 0 { 0.0 } else { 0.99 };
            for frame in 0..mel.frames {
                buffers.analyse(self, &samples[frame * hop..][..fft]);
                let range = frame * bins..(frame + 1) * bins;
                let wanted = &magnitudes[range.clone()];
                let now = spectra[range.clone()].iter_mut().zip(&mut before[range]);
                for (((s, b), &c), &m) in now.zip(&buffers.spectrum).zip(wanted) {
                    let ahead = c + (c - *b) * momentum;
                    *b = c;
                    *s = ahead * (m / (ahead.norm_sqr() + 1e-18).sqrt());
                }
            }
        }
        let start = (fft - hop) / 2;
        Sound { rate, samples: samples[start..start + mel.frames * hop].to_vec() }
    }

    /// Linear magnitudes, `frames * bins`, whose bands are nearest to those of `mel` in the
    /// generalised Kullback-Leibler divergence (multiplicative updates of Lee and Seung 2001).
    fn magnitudes(&self, mel: &Mel) -> Vec<f32> {
        const UPDATES: usize = 12;
        let bins = self.config.fft / 2 + 1;
        let scale = REFERENCE * self.window.iter().sum::<f32>() / 2.0;
        let mut columns = vec![1e-9; bins];
        for band in &self.bands {
            for (c, w) in columns[band.first..].iter_mut().zip(&band.weights) {
                *c += w;
            }
        }
        let rows: Vec<f32> = self.bands.iter().map(|b| b.weights.iter().sum()).collect();
        let mut out = Vec::with_capacity(mel.frames * bins);
        let mut ratio = vec![0.0; bins];
        for frame in mel.values.chunks_exact(self.config.mels) {
            // Silence is silence: the floor itself is not played.
            let wanted: Vec<f32> = frame.iter().map(|v| (v.exp() - FLOOR).max(0.0)).collect();
            let spread = |values: &mut dyn Iterator<Item = f32>, into: &mut [f32]| {
                into.fill(0.0);
                for (value, band) in values.zip(&self.bands) {
                    for (r, w) in into[band.first..].iter_mut().zip(&band.weights) {
                        *r += w * value;
                    }
                }
                into.iter_mut().zip(&columns).for_each(|(r, c)| *r /= c);
            };
            let mut power = vec![0.0; bins];
            spread(&mut wanted.iter().zip(&rows).map(|(v, r)| v / r), &mut power);
            for _ in 0..UPDATES {
                let now = self.bands.iter().zip(&wanted).map(|(b, v)| v / (b.sum(&power) + 1e-12));
                spread(&mut now.collect::<Vec<_>>().into_iter(), &mut ratio);
                power.iter_mut().zip(&ratio).for_each(|(p, r)| *p *= r);
            }
            out.extend(power.iter().map(|p| p.sqrt() * scale));
        }
        out
    }

    /// The samples with mirrored ends, long enough for `frames` frames.
    fn mirrored(&self, samples: &[f32], frames: usize) -> Vec<f32> {
        let MelConfig { fft, hop, .. } = self.config;
        if samples.is_empty() {
            return Vec::new();
        }
        let start = ((fft - hop) / 2) as i64;
        let length = frames * hop + fft - hop;
        let period = (2 * (samples.len() as i64 - 1)).max(1);
        let mirror = |i: i64| {
            let i = i.rem_euclid(period);
            samples[i.min(period - i).min(samples.len() as i64 - 1) as usize]
        };
        let first = start as usize;
        let mut out = vec![0.0; length];
        out[first..first + samples.len()].copy_from_slice(samples);
        for i in (0..first).chain(first + samples.len()..length) {
            out[i] = mirror(i as i64 - start);
        }
        out
    }

    /// One over the sum of the squared windows that cover each sample.
    fn overlap(&self, frames: usize) -> Vec<f32> {
        let MelConfig { fft, hop, .. } = self.config;
        let mut sums = vec![0.0; frames * hop + fft - hop];
        for frame in 0..frames {
            for (s, w) in sums[frame * hop..].iter_mut().zip(&self.window) {
                *s += w * w;
            }
        }
        // At the outer ends next to nothing covers a sample; what is there is cut off later.
        sums.iter().map(|&s| 1.0 / (s.max(0.05) * fft as f32)).collect()
    }
}

impl Band {
    /// The triangle over these fractional bins; of a triangle too narrow to hold a bin, the two
    /// nearest share the weight.
    fn new(left: f32, middle: f32, right: f32, bins: usize) -> Self {
        let weight = |bin: usize| {
            let x = bin as f32;
            let side = if x < middle {
                (x - left) / (middle - left)
            } else {
                (right - x) / (right - middle)
            };
            side.max(0.0)
        };
        let first = (left.ceil().max(0.0) as usize).min(bins - 1);
        let last = (right.floor() as usize).min(bins - 1);
        let weights: Vec<f32> = (first..=last).map(weight).collect();
        if weights.iter().sum::<f32>() >= 0.5 {
            return Self { first, weights };
        }
        let first = (middle.floor() as usize).min(bins - 2);
        let part = (middle - first as f32).clamp(0.0, 1.0);
        Self { first, weights: vec![1.0 - part, part] }
    }

    fn sum(&self, power: &[f32]) -> f32 {
        self.weights.iter().zip(&power[self.first..]).map(|(w, p)| w * p).sum()
    }
}

/// What one transform needs, kept between frames.
struct Buffers {
    time: Vec<f32>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
}

impl Buffers {
    fn new(bank: &MelBank) -> Self {
        let scratch = bank.forward.get_scratch_len().max(bank.inverse.get_scratch_len());
        Self {
            time: vec![0.0; bank.config.fft],
            spectrum: vec![Complex32::ZERO; bank.config.fft / 2 + 1],
            scratch: vec![Complex32::ZERO; scratch],
        }
    }

    /// The spectrum of one windowed frame, into `self.spectrum`.
    fn analyse(&mut self, bank: &MelBank, samples: &[f32]) {
        for ((t, s), w) in self.time.iter_mut().zip(samples).zip(&bank.window) {
            *t = s * w;
        }
        bank.forward
            .process_with_scratch(&mut self.time, &mut self.spectrum, &mut self.scratch)
            .expect("the buffers have the planned sizes");
    }

    /// Adds the windowed frame of a spectrum to `out`, `fft` times too large.
    fn synthesise(&mut self, bank: &MelBank, spectrum: &[Complex32], out: &mut [f32]) {
        self.spectrum.copy_from_slice(spectrum);
        // A real signal has no phase at zero and at half the rate.
        let last = self.spectrum.len() - 1;
        self.spectrum[0].im = 0.0;
        self.spectrum[last].im = 0.0;
        bank.inverse
            .process_with_scratch(&mut self.spectrum, &mut self.time, &mut self.scratch)
            .expect("the buffers have the planned sizes");
        for ((o, t), w) in out.iter_mut().zip(&self.time).zip(&bank.window) {
            *o += t * w;
        }
    }
}

fn to_mel(hertz: f32) -> f32 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

fn to_hertz(mel: f32) -> f32 {
    700.0 * (10f32.powf(mel / 2595.0) - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mel_distance;

    fn sine(hertz: f32, amplitude: f32, n: usize) -> Vec<f32> {
        (0..n).map(|i| amplitude * (TAU * hertz * i as f32 / 16_000.0).sin()).collect()
    }

    /// A buzz at 120 Hz through three resonances, coming and going.
    fn vowel(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| {
                let t = i as f32 / 16_000.0;
                let sum: f32 = (1..60)
                    .map(|k| {
                        let f = 120.0 * k as f32;
                        let near = |centre: f32| 1.0 / (1.0 + ((f - centre) / 90.0).powi(2));
                        let level = near(700.0) + 0.6 * near(1200.0) + 0.3 * near(2600.0) + 0.003;
                        level * (TAU * f * t + k as f32).sin()
                    })
                    .sum();
                0.12 * sum * (std::f32::consts::PI * i as f32 / n as f32).sin()
            })
            .collect()
    }

    #[test]
    fn frames_are_one_for_every_hop_begun() {
        let bank = MelBank::new(&MelConfig::default());
        for n in [0, 1, 2, 255, 256, 257, 1000, 16_000] {
            let mel = bank.log_mel(&vec![0.1; n]);
            assert_eq!((mel.frames, mel.values.len()), (n.div_ceil(256), n.div_ceil(256) * 80));
            assert!(mel.values.iter().all(|v| v.is_finite()));
        }
        assert!(bank.log_mel(&[0.0; 999]).values.iter().all(|&v| v == FLOOR.ln()));
    }

    #[test]
    fn a_sine_of_the_reference_amplitude_reads_about_zero_in_its_band() {
        for (fft, hop) in [(1024, 256), (512, 160)] {
            let bank = MelBank::new(&MelConfig { fft, hop, ..MelConfig::default() });
            for band in [5, 30, 60] {
                let middle = to_hertz(to_mel(8_000.0) * (band + 1) as f32 / 81.0);
                let mel = bank.log_mel(&sine(middle, REFERENCE, 8_000));
                let frame = &mel.values[15 * 80..16 * 80];
                let loudest = frame.iter().copied().fold(f32::MIN, f32::max);
                assert!(frame[band] > loudest - 0.7, "{fft} {band}: {loudest}");
                assert!(loudest.abs() < 0.7, "{fft} {band}: {loudest}");
            }
        }
    }

    #[test]
    fn no_band_is_empty() {
        for fft in [256, 512, 1024, 2048] {
            let bank = MelBank::new(&MelConfig { fft, hop: 128, ..MelConfig::default() });
            for band in &bank.bands {
                assert!(band.weights.iter().sum::<f32>() > 0.49, "{fft}: {band:?}");
                assert!(band.first + band.weights.len() <= fft / 2 + 1);
            }
        }
    }

    #[test]
    fn a_sine_comes_back_with_its_frequency() {
        let bank = MelBank::new(&MelConfig::default());
        let sound = bank.griffin_lim(&bank.log_mel(&sine(440.0, 0.3, 16_000)), 32, 1);
        assert_eq!(sound.samples.len(), 63 * 256);
        let up = sound.samples[2_000..14_000].windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0);
        let hertz = up.count() as f32 / 0.75;
        assert!((hertz - 440.0).abs() < 15.0, "{hertz}");
        let loudest = sound.samples.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!((0.2..0.5).contains(&loudest), "{loudest}");
    }

    #[test]
    fn a_vowel_comes_back_near_and_the_same_each_time() {
        let bank = MelBank::new(&MelConfig::default());
        let mel = bank.log_mel(&vowel(16_000));
        let sound = bank.griffin_lim(&mel, 32, 1);
        let distance = mel_distance(&mel, &bank.log_mel(&sound.samples));
        let rough = mel_distance(&mel, &bank.log_mel(&bank.griffin_lim(&mel, 0, 1).samples));
        assert!(distance < 2.0 && distance < 0.7 * rough, "{distance} dB, unrefined {rough} dB");
        assert_eq!(sound, bank.griffin_lim(&mel, 32, 1));
    }
}
