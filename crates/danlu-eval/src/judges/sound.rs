use super::{nearest, squared};
use danlu_core::Sound;
use rayon::prelude::*;
use realfft::{RealFftPlanner, RealToComplex};
use std::sync::Arc;

const RATE: u32 = 16_000;
/// 25 ms.
const FRAME: usize = 400;
/// 10 ms.
const HOP: usize = 160;
const FFT: usize = 512;
const BANDS: usize = 26;
/// Cepstral coefficients, the first (loudness) included.
const CEPSTRA: usize = 16;
/// Values a frame: cepstra and their slopes.
const WIDTH: usize = 2 * CEPSTRA;
/// Parts that a sound is cut into for the first, rough comparison.
const SEGMENTS: usize = 12;
/// Share of the gallery that is compared in full, and the least number.
const KEPT: f32 = 0.1;
const KEPT_LEAST: usize = 50;
/// Half width of the band around the diagonal, as a share of the longer sound.
const BAND: f32 = 0.2;
/// Energies this far below the loudest (as a share of it) are silence: 50 dB.
const FLOOR: f32 = 1e-5;

/// Recognises sounds by the nearest of a gallery: dynamic time warping (Sakoe and Chiba 1978) on
/// normalised mel-frequency cepstra, which say what is spoken more than by whom.
pub struct SoundJudge {
    ear: Ear,
    labels: Vec<String>,
    references: Vec<Heard>,
}

impl SoundJudge {
    /// A judge that knows the sounds of `gallery` by their labels.
    pub fn new(gallery: &[(String, &Sound)]) -> Self {
        let ear = Ear::new();
        Self {
            labels: gallery.iter().map(|(label, _)| label.clone()).collect(),
            references: gallery.par_iter().map(|(_, sound)| ear.hear(sound)).collect(),
            ear,
        }
    }

    /// The `k` labels that sound most like `sound`, each once with its distance, the nearest first.
    /// An empty sound is like nothing.
    pub fn rank(&self, sound: &Sound, k: usize) -> Vec<(String, f32)> {
        if sound.samples.is_empty() {
            return Vec::new();
        }
        let heard = self.ear.hear(sound);
        let mut rough: Vec<(f32, usize)> = self
            .references
            .iter()
            .enumerate()
            .map(|(i, r)| (squared(&heard.outline, &r.outline), i))
            .collect();
        let kept = ((rough.len() as f32 * KEPT) as usize).max(KEPT_LEAST).min(rough.len());
        rough.sort_by(|a, b| a.0.total_cmp(&b.0));
        let distances = rough[..kept]
            .iter()
            .map(|&(_, i)| (&self.labels[i], warp(&heard.frames, &self.references[i].frames)));
        nearest(distances, k)
    }
}

/// What is kept of a sound.
struct Heard {
    /// `WIDTH` values per 20 ms.
    frames: Vec<f32>,
    /// The mean of each of `SEGMENTS` equal parts.
    outline: Vec<f32>,
}

/// Filters and tables shared by all sounds.
struct Ear {
    fft: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    /// First bin and weights of each band.
    bands: Vec<(usize, Vec<f32>)>,
    /// `CEPSTRA` rows of `BANDS` cosines.
    cosines: Vec<f32>,
}

impl Ear {
    fn new() -> Self {
        let turn = std::f32::consts::TAU / FRAME as f32;
        let mel = |hz: f32| 2595.0 * (1.0 + hz / 700.0).log10();
        let hertz = |mel: f32| 700.0 * (10f32.powf(mel / 2595.0) - 1.0);
        let (low, high) = (mel(60.0), mel(7600.0));
        let corner = |i: usize| {
            let at = low + (high - low) * i as f32 / (BANDS + 1) as f32;
            hertz(at) * FFT as f32 / RATE as f32
        };
        let bands = (0..BANDS)
            .map(|i| {
                let (start, peak, end) = (corner(i), corner(i + 1), corner(i + 2));
                let first = start.ceil() as usize;
                let weight = |bin: usize| {
                    let at = bin as f32;
                    let slope = if at < peak {
                        (at - start) / (peak - start)
                    } else {
                        (end - at) / (end - peak)
                    };
                    slope.max(0.0)
                };
                (first, (first..=end as usize).map(weight).collect())
            })
            .collect();
        let cosines = (0..CEPSTRA * BANDS)
            .map(|i| {
                let (row, column) = ((i / BANDS) as f32, (i % BANDS) as f32);
                (std::f32::consts::PI * row * (column + 0.5) / BANDS as f32).cos()
            })
            .collect();
        Self {
            fft: RealFftPlanner::new().plan_fft_forward(FFT),
            window: (0..FRAME).map(|i| 0.54 - 0.46 * (turn * i as f32).cos()).collect(),
            bands,
            cosines,
        }
    }

    fn hear(&self, sound: &Sound) -> Heard {
        let samples = at_rate(sound);
        let mut cepstra = self.cepstra(&samples);
        normalise(&mut cepstra, CEPSTRA);
        let slopes = slopes(&cepstra);
        let count = cepstra.len() / CEPSTRA;
        let mut frames = Vec::with_capacity(count * WIDTH);
        for i in 0..count {
            frames.extend_from_slice(&cepstra[i * CEPSTRA..][..CEPSTRA]);
            frames.extend_from_slice(&slopes[i * CEPSTRA..][..CEPSTRA]);
        }
        normalise(&mut frames, WIDTH);
        let outline = (0..SEGMENTS)
            .flat_map(|s| {
                let start = s * count / SEGMENTS;
                let end = ((s + 1) * count).div_ceil(SEGMENTS).max(start + 1);
                mean(&frames[start * WIDTH..end * WIDTH])
            })
            .collect();
        // 20 ms are enough for warping: pairs of frames are averaged.
        let frames = frames.chunks(2 * WIDTH).flat_map(mean).collect();
        Heard { frames, outline }
    }

    /// Cepstra of every 10 ms, silence at both ends left out.
    fn cepstra(&self, samples: &[f32]) -> Vec<f32> {
        let count = samples.len().saturating_sub(FRAME) / HOP + 1;
        let mut buffer = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut energies = Vec::with_capacity(count * BANDS);
        for frame in 0..count {
            buffer.fill(0.0);
            let start = frame * HOP;
            for (i, &window) in self.window.iter().enumerate() {
                let Some(&now) = samples.get(start + i) else { break };
                let before = if start + i > 0 { samples[start + i - 1] } else { now };
                buffer[i] = (now - 0.97 * before) * window;
            }
            self.fft.process(&mut buffer, &mut spectrum).expect("buffers are of the FFT's size");
            energies.extend(self.bands.iter().map(|(first, weights)| {
                let bins = spectrum[*first..].iter().zip(weights);
                bins.map(|(bin, weight)| bin.norm_sqr() * weight).sum::<f32>()
            }));
        }
        let loudest = energies.iter().fold(0f32, |a, &b| a.max(b)).max(1e-12);
        let heard = |frame: &[f32]| frame.iter().any(|&e| e > loudest * 10.0 * FLOOR);
        let first = energies.chunks(BANDS).position(heard).unwrap_or(0);
        let last = energies.chunks(BANDS).rposition(heard).unwrap_or(count - 1);
        let mut cepstra = Vec::with_capacity((last + 1 - first) * CEPSTRA);
        for frame in energies[first * BANDS..(last + 1) * BANDS].chunks(BANDS) {
            let logs: Vec<f32> = frame.iter().map(|&e| (e + loudest * FLOOR).ln()).collect();
            cepstra.extend(
                self.cosines
                    .chunks(BANDS)
                    .map(|row| row.iter().zip(&logs).map(|(c, l)| c * l).sum::<f32>()),
            );
        }
        cepstra
    }
}

/// The samples at 16 kHz. Sounds of Danlu are; others are interpolated, which will do here.
fn at_rate(sound: &Sound) -> Vec<f32> {
    if sound.rate == RATE || sound.samples.is_empty() {
        return sound.samples.clone();
    }
    let step = f64::from(sound.rate) / f64::from(RATE);
    let count = (sound.samples.len() as f64 / step) as usize;
    (0..count)
        .map(|i| {
            let at = i as f64 * step;
            let (low, part) = (at as usize, at.fract() as f32);
            let next = sound.samples[(low + 1).min(sound.samples.len() - 1)];
            sound.samples[low] * (1.0 - part) + next * part
        })
        .collect()
}

/// Every column to mean 0 and variance 1 over the whole sound.
fn normalise(frames: &mut [f32], width: usize) {
    let count = (frames.len() / width).max(1) as f32;
    for column in 0..width {
        let values = || frames.iter().skip(column).step_by(width);
        let mean = values().sum::<f32>() / count;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f32>() / count;
        let scale = 1.0 / (variance + 1e-6).sqrt();
        for v in frames.iter_mut().skip(column).step_by(width) {
            *v = (*v - mean) * scale;
        }
    }
}

/// Slope of every coefficient over five frames.
fn slopes(cepstra: &[f32]) -> Vec<f32> {
    let count = (cepstra.len() / CEPSTRA) as isize;
    let at = |frame: isize, c: usize| cepstra[frame.clamp(0, count - 1) as usize * CEPSTRA + c];
    let mut out = Vec::with_capacity(cepstra.len());
    for i in 0..count {
        out.extend((0..CEPSTRA).map(|c| {
            let near = at(i + 1, c) - at(i - 1, c);
            let far = at(i + 2, c) - at(i - 2, c);
            (near + 2.0 * far) / 10.0
        }));
    }
    out
}

/// The mean of frames of `WIDTH` values.
fn mean(frames: &[f32]) -> Vec<f32> {
    let count = (frames.len() / WIDTH).max(1) as f32;
    let mut out = vec![0.0; WIDTH];
    for frame in frames.chunks(WIDTH) {
        for (sum, v) in out.iter_mut().zip(frame) {
            *sum += v / count;
        }
    }
    out
}

/// Cost of the best alignment per frame: a step in both sounds counts twice, so that every path
/// has the same weight, the sum of the lengths.
fn warp(a: &[f32], b: &[f32]) -> f32 {
    let (n, m) = (a.len() / WIDTH, b.len() / WIDTH);
    if n == 0 || m == 0 {
        return f32::INFINITY;
    }
    let slope = m as f32 / n as f32;
    // Wide enough that consecutive rows' bands overlap.
    let radius = (BAND * n.max(m) as f32).max(slope + 2.0);
    let mut before = vec![f32::INFINITY; m + 1];
    let mut row = vec![f32::INFINITY; m + 1];
    before[0] = 0.0;
    for i in 0..n {
        row.fill(f32::INFINITY);
        let centre = (i as f32 + 0.5) * slope;
        let from = (centre - radius).max(0.0) as usize;
        let to = ((centre + radius).ceil() as usize).min(m);
        let frame = &a[i * WIDTH..][..WIDTH];
        for j in from..to {
            let cost = squared(frame, &b[j * WIDTH..][..WIDTH]).sqrt();
            let both = before[j] + 2.0 * cost;
            let one = before[j + 1].min(row[j]) + cost;
            row[j + 1] = both.min(one);
        }
        std::mem::swap(&mut before, &mut row);
    }
    before[m] / (n + m) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up word: vowels with two formants each, spoken at `pitch` and `pace`.
    fn word(vowels: &[(f32, f32)], pitch: f32, pace: f32) -> Sound {
        let mut samples = Vec::new();
        let length = (2400.0 * pace) as usize;
        for (low, high) in vowels {
            for i in 0..length {
                let t = i as f32 / RATE as f32;
                let fade = (std::f32::consts::PI * i as f32 / length as f32).sin();
                let voice: f32 = (1..30)
                    .map(|h| {
                        let hz = pitch * h as f32;
                        let near = |f: f32| (-((hz - f) / 150.0).powi(2)).exp();
                        (std::f32::consts::TAU * hz * t).sin() * (near(*low) + 0.6 * near(*high))
                    })
                    .sum();
                samples.push(0.2 * fade * voice);
            }
        }
        Sound { rate: RATE, samples }
    }

    const A: (f32, f32) = (730.0, 1090.0);
    const I: (f32, f32) = (270.0, 2290.0);
    const U: (f32, f32) = (300.0, 870.0);

    #[test]
    fn words_are_recognised_in_another_pitch_and_pace() {
        let words: [&[(f32, f32)]; 5] = [&[A, I, U], &[I, A, U], &[U, I], &[A, U, A], &[I, U, I]];
        let sounds: Vec<Sound> = words.iter().map(|w| word(w, 110.0, 1.0)).collect();
        let gallery: Vec<(String, &Sound)> =
            sounds.iter().enumerate().map(|(i, s)| (i.to_string(), s)).collect();
        let judge = SoundJudge::new(&gallery);
        for (i, w) in words.iter().enumerate() {
            let found = judge.rank(&word(w, 150.0, 1.25), 3);
            assert_eq!(found[0].0, i.to_string(), "{found:?}");
        }
        assert!(judge.rank(&sounds[1], 1)[0].1 < 1e-3);
    }

    #[test]
    fn odd_sounds_do_no_harm() {
        let known = word(&[A, I], 110.0, 1.0);
        let judge = SoundJudge::new(&[("x".into(), &known)]);
        assert!(judge.rank(&Sound { rate: RATE, samples: vec![] }, 1).is_empty());
        for samples in [vec![0.0; 5], vec![0.0; 16_000], vec![1.0; 401]] {
            let found = judge.rank(&Sound { rate: RATE, samples }, 1);
            assert!(found.iter().all(|(_, d)| !d.is_nan()), "{found:?}");
        }
        let mut slow = word(&[A, I], 55.0, 2.0);
        slow.rate = 32_000;
        assert_eq!(judge.rank(&slow, 1).len(), 1);
    }

    #[test]
    fn warping_costs_nothing_for_repeated_frames() {
        let frame = |v: f32| vec![v; WIDTH];
        let short = [frame(1.0), frame(2.0), frame(3.0)].concat();
        let long = [frame(1.0), frame(2.0), frame(2.0), frame(3.0)].concat();
        assert_eq!(warp(&short, &long), 0.0);
        let other = [frame(3.0), frame(2.0), frame(1.0)].concat();
        assert!(warp(&short, &other) > 1.0);
    }
}
