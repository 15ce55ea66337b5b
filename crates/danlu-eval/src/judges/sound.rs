use super::{Labels, Ranked};
use danlu_core::Sound;
use realfft::{RealFftPlanner, RealToComplex};
use std::sync::Arc;

/// Recognises what a sound says by the nearest recording of a gallery.
///
/// Mel-frequency cepstra with their slopes, mean removed, every 20 ms, compared by dynamic time
/// warping within a band (Sakoe and Chiba 1978). Recordings of very different length are passed
/// over; of the others, the labels that are nearest by the averages of twelve equal stretches are
/// compared in full.
pub struct SoundJudge {
    front: Front,
    labels: Labels,
    recordings: Vec<Recording>,
}

/// Cepstra of a frame.
const CEPSTRA: usize = 13;
/// Values of a frame: cepstra and slopes.
const WIDTH: usize = 2 * CEPSTRA;
/// What slopes count, compared with levels. Chosen on the pictograms' training concepts and voices.
const SLOPE: f32 = 4.0;
/// Stretches of the quick comparison.
const STRETCHES: usize = 12;
/// Labels compared in full.
const SHORTLIST: usize = 100;
/// Most that two durations may differ, as a ratio.
const DURATION: f32 = 1.6;
/// Half width of the warping band, of the longer sound.
const BAND: f32 = 0.12;
/// Frames more than this many nepers of power under the loudest are silence at the ends.
const SILENCE: f32 = 9.2;

type Frame = [f32; WIDTH];

struct Recording {
    label: usize,
    frames: Vec<Frame>,
    coarse: Vec<f32>,
}

impl std::fmt::Debug for SoundJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SoundJudge({} labels)", self.labels.names.len())
    }
}

impl SoundJudge {
    /// A judge that chooses among these labels. A label may have several recordings.
    pub fn new(gallery: &[(&str, &Sound)]) -> Self {
        let front = Front::new();
        let mut labels = Labels::default();
        let recordings = gallery
            .iter()
            .map(|(label, sound)| {
                let frames = front.frames(sound);
                Recording { label: labels.number(label), coarse: coarse(&frames), frames }
            })
            .collect();
        Self { front, labels, recordings }
    }

    /// How many labels there are to choose from.
    pub fn labels(&self) -> usize {
        self.labels.names.len()
    }

    /// The labels that came into consideration with the distance of their nearest recording,
    /// nearest first. None does for an empty sound, or one shorter or longer than all recordings.
    pub fn rank(&self, sound: &Sound) -> Vec<Ranked> {
        let frames = self.front.frames(sound);
        if frames.is_empty() {
            return Vec::new();
        }
        let quick = coarse(&frames);
        let near: Vec<&Recording> =
            self.recordings.iter().filter(|r| comparable(frames.len(), r.frames.len())).collect();
        let mut first = vec![f32::INFINITY; self.labels.names.len()];
        for recording in &near {
            let distance = square(&quick, &recording.coarse);
            first[recording.label] = first[recording.label].min(distance);
        }
        let mut order = first.clone();
        order.sort_by(f32::total_cmp);
        let last = order.get(SHORTLIST - 1).copied().unwrap_or(f32::INFINITY);
        let mut distances = vec![f32::INFINITY; first.len()];
        for recording in near.iter().filter(|r| first[r.label] <= last) {
            let distance = warped(&frames, &recording.frames);
            distances[recording.label] = distances[recording.label].min(distance);
        }
        self.labels.ranked(&distances)
    }

    /// The distance of a sound from the nearest recording of one label; `None` if the label has
    /// none or the sound is empty.
    pub fn distance(&self, sound: &Sound, label: &str) -> Option<f32> {
        let number = *self.labels.numbers.get(label)?;
        let frames = self.front.frames(sound);
        let of = self.recordings.iter().filter(|r| r.label == number);
        of.filter(|r| !frames.is_empty() && !r.frames.is_empty())
            .map(|r| warped(&frames, &r.frames))
            .min_by(f32::total_cmp)
    }
}

fn comparable(a: usize, b: usize) -> bool {
    let (short, long) = (a.min(b) as f32, a.max(b) as f32);
    short > 0.0 && long <= short * DURATION + 1.0
}

fn square(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// Averages of equal stretches.
fn coarse(frames: &[Frame]) -> Vec<f32> {
    let n = frames.len();
    let mut out = vec![0.0; STRETCHES * WIDTH];
    if n == 0 {
        return out;
    }
    for (k, mean) in out.chunks_exact_mut(WIDTH).enumerate() {
        let start = k * n / STRETCHES;
        let end = ((k + 1) * n).div_ceil(STRETCHES).max(start + 1);
        for frame in &frames[start..end] {
            mean.iter_mut().zip(frame).for_each(|(m, v)| *m += v / (end - start) as f32);
        }
    }
    out
}

/// Dynamic time warping, steps symmetric, divided by the length of both.
fn warped(a: &[Frame], b: &[Frame]) -> f32 {
    let (n, m) = (a.len(), b.len());
    let band = (BAND * n.max(m) as f32) as usize + 2 + m / n;
    let mut before = vec![f32::INFINITY; m + 1];
    let mut now = before.clone();
    before[0] = 0.0;
    for (i, frame) in a.iter().enumerate() {
        now.fill(f32::INFINITY);
        let middle = (i + 1) * m / n;
        for j in middle.saturating_sub(band).max(1)..=(middle + band).min(m) {
            let cost = apart(frame, &b[j - 1]);
            let straight = before[j - 1] + 2.0 * cost;
            now[j] = straight.min(before[j] + cost).min(now[j - 1] + cost);
        }
        std::mem::swap(&mut before, &mut now);
    }
    before[m] / (n + m) as f32
}

fn apart(a: &Frame, b: &Frame) -> f32 {
    // Two lanes of thirteen, so that the sums need not wait for each other.
    let mut sums = [0f32; CEPSTRA];
    for i in 0..CEPSTRA {
        let (x, y) = (a[i] - b[i], a[i + CEPSTRA] - b[i + CEPSTRA]);
        sums[i] = x * x + y * y;
    }
    sums.iter().sum::<f32>().sqrt()
}

/// From samples to frames.
struct Front {
    fft: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    /// First bin and weights of each mel band.
    bands: Vec<(usize, Vec<f32>)>,
    cosines: Vec<f32>,
}

const RATE: f32 = 16_000.0;
const FFT: usize = 512;
const WINDOW: usize = 400;
const HOP: usize = 160;
const BANDS: usize = 26;

impl Front {
    fn new() -> Self {
        let tau = std::f32::consts::TAU;
        let window = (0..WINDOW)
            .map(|i| 0.54 - 0.46 * (tau * i as f32 / (WINDOW - 1) as f32).cos())
            .collect();
        let mel = |hertz: f32| 1127.0 * (1.0 + hertz / 700.0).ln();
        let (low, high) = (mel(60.0), mel(7_600.0));
        let edge = |i: usize| {
            let at = low + (high - low) * i as f32 / (BANDS + 1) as f32;
            700.0 * ((at / 1127.0).exp() - 1.0) / RATE * FFT as f32
        };
        let bands = (0..BANDS).map(|b| {
            let (left, middle, right) = (edge(b), edge(b + 1), edge(b + 2));
            let first = left.ceil() as usize;
            let weight = |k: usize| {
                let (up, down) = (k as f32 - left, right - k as f32);
                (up / (middle - left)).min(down / (right - middle)).max(0.0)
            };
            (first, (first..=right as usize).map(weight).collect())
        });
        let pi = std::f32::consts::PI;
        let cosine = |c: usize, b: usize| (pi * c as f32 * (b as f32 + 0.5) / BANDS as f32).cos();
        let cosines = (1..=CEPSTRA)
            .flat_map(|c| (0..BANDS).map(move |b| cosine(c, b) * (2.0 / BANDS as f32).sqrt()))
            .collect();
        let fft = RealFftPlanner::new().plan_fft_forward(FFT);
        Self { fft, window, bands: bands.collect(), cosines }
    }

    /// Cepstra and slopes every 20 ms, without the silence at either end.
    fn frames(&self, sound: &Sound) -> Vec<Frame> {
        let mut samples = danlu_media::resample(&sound.samples, sound.rate as f64 / RATE as f64);
        if samples.iter().all(|&s| s == 0.0) {
            return Vec::new();
        }
        for i in (1..samples.len()).rev() {
            samples[i] -= 0.97 * samples[i - 1];
        }
        samples.resize(samples.len().max(WINDOW), 0.0);
        let mut powers = self.powers(&samples);
        let energy: Vec<f32> = powers.chunks_exact(BANDS).map(|p| p.iter().sum::<f32>()).collect();
        let floor = energy.iter().copied().fold(0.0, f32::max) * (-SILENCE).exp();
        let loud = |e: &f32| *e > floor;
        let (Some(first), Some(last)) = (energy.iter().position(loud), energy.iter().rposition(loud))
        else {
            return Vec::new();
        };
        powers.truncate((last + 1) * BANDS);
        powers.drain(..first * BANDS);

        let loudest = powers.iter().copied().fold(0.0, f32::max);
        powers.iter_mut().for_each(|p| *p = (*p + loudest * 1e-5 + 1e-9).ln());
        let mut cepstra: Vec<[f32; CEPSTRA]> = powers
            .chunks_exact(BANDS)
            .map(|bands| {
                std::array::from_fn(|c| {
                    let row = &self.cosines[c * BANDS..][..BANDS];
                    row.iter().zip(bands).map(|(w, v)| w * v).sum()
                })
            })
            .collect();
        let n = cepstra.len();
        for c in 0..CEPSTRA {
            let mean = cepstra.iter().map(|f| f[c]).sum::<f32>() / n as f32;
            cepstra.iter_mut().for_each(|f| f[c] -= mean);
        }
        let frame = |i: usize| -> Frame {
            let at = |offset: isize| &cepstra[i.saturating_add_signed(offset).min(n - 1)];
            std::array::from_fn(|c| match c.checked_sub(CEPSTRA) {
                None => cepstra[i][c],
                Some(c) => {
                    SLOPE * (2.0 * (at(2)[c] - at(-2)[c]) + at(1)[c] - at(-1)[c]) / 10.0
                }
            })
        };
        if n < 2 {
            return vec![frame(0)];
        }
        (0..n / 2)
            .map(|i| {
                let (a, b) = (frame(2 * i), frame(2 * i + 1));
                std::array::from_fn(|c| (a[c] + b[c]) / 2.0)
            })
            .collect()
    }

    /// Power in each band of each 10 ms frame.
    fn powers(&self, samples: &[f32]) -> Vec<f32> {
        let mut time = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut out = Vec::new();
        for stretch in samples.windows(WINDOW).step_by(HOP) {
            time.fill(0.0);
            for ((t, s), w) in time.iter_mut().zip(stretch).zip(&self.window) {
                *t = s * w;
            }
            self.fft
                .process_with_scratch(&mut time, &mut spectrum, &mut scratch)
                .expect("the buffers have the planned sizes");
            out.extend(self.bands.iter().map(|(first, weights)| {
                let bins = weights.iter().zip(&spectrum[*first..]);
                bins.map(|(w, c)| w * c.norm_sqr()).sum::<f32>()
            }));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::Rng;

    /// Vowel-like stretches, each a buzz through two resonances, spoken at a pitch and speed.
    fn word(vowels: &[(f32, f32)], pitch: f32, speed: f32) -> Sound {
        let each = (3_200.0 / speed) as usize;
        let mut samples = Vec::new();
        for &(f1, f2) in vowels {
            for _ in 0..each {
                let t = samples.len() as f32 / RATE;
                let partials = (1..40).map(|k| {
                    let f = pitch * k as f32;
                    let near = |c: f32| 1.0 / (1.0 + ((f - c) / 120.0).powi(2));
                    let level = near(f1) + 0.7 * near(f2) + 0.01;
                    level * (std::f32::consts::TAU * f * t + (k * k) as f32).sin()
                });
                samples.push(0.1 * partials.sum::<f32>());
            }
        }
        Sound { rate: 16_000, samples }
    }

    #[test]
    fn words_are_recognised_in_another_voice_and_tempo() {
        let (a, i, u, e) = ((750.0, 1300.0), (300.0, 2300.0), (320.0, 800.0), (500.0, 1900.0));
        let words: [(&str, Vec<(f32, f32)>); 6] = [
            ("aiu", vec![a, i, u]),
            ("uia", vec![u, i, a]),
            ("aui", vec![a, u, i]),
            ("eau", vec![e, a, u]),
            ("iea", vec![i, e, a]),
            ("ai", vec![a, i]),
        ];
        let spoken: Vec<_> = words.iter().map(|(n, v)| (*n, word(v, 110.0, 1.0))).collect();
        let judge = SoundJudge::new(&spoken.iter().map(|(n, s)| (*n, s)).collect::<Vec<_>>());
        for (name, vowels) in &words {
            let mut other = word(vowels, 165.0, 1.15);
            other.samples.splice(0..0, vec![0.0; 4_000]);
            let mut rng = Rng::new(1, 1);
            other.samples.iter_mut().for_each(|s| *s += 1e-4 * rng.normal());
            let ranked = judge.rank(&other);
            assert_eq!(ranked[0].label, *name, "{ranked:?}");
            assert!((judge.distance(&other, name).unwrap_or(9e9) - ranked[0].distance).abs() < 1e-6);
        }
    }

    #[test]
    fn odd_sounds_do_not_panic() {
        let sound = |samples: Vec<f32>| Sound { rate: 16_000, samples };
        let judge = SoundJudge::new(&[("none", &sound(vec![])), ("click", &sound(vec![0.5]))]);
        assert!(judge.rank(&sound(vec![])).is_empty());
        assert!(judge.rank(&sound(vec![0.0; 5_000])).is_empty());
        assert_eq!(judge.rank(&sound(vec![0.4, 0.1]))[0].label, "click");
        assert!(judge.distance(&sound(vec![0.4]), "none").is_none());
    }

    #[test]
    fn warping_is_zero_for_itself_and_finite_within_reason() {
        let frames = |n: usize| (0..n).map(|i| [i as f32; WIDTH]).collect::<Vec<Frame>>();
        assert_eq!(warped(&frames(9), &frames(9)), 0.0);
        for (n, m) in [(1, 3), (3, 1), (10, 16), (16, 10), (1, 1), (50, 80), (5, 60), (60, 5)] {
            assert!(warped(&frames(n), &frames(m)).is_finite(), "{n} {m}");
        }
    }
}
