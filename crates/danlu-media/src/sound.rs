use crate::resample::resample;
use danlu_core::{Error, Result, Rng, Sound};
use std::io::Cursor;
use std::path::Path;
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error as DecodeError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

/// Samples a second of every decoded sound.
pub const RATE: u32 = 16_000;

/// Longest sound that [`decode_sound`] accepts, in seconds.
pub const MAX_SECONDS: f64 = 600.0;

/// Largest sample that is taken for one.
const LOUDEST: f32 = 100.0;
const KINDS: &str = "a WAV, FLAC, Ogg Vorbis or MP3";

/// Reads a WAV, FLAC, Ogg Vorbis or MP3 file. See [`decode_sound`].
pub fn read_sound(path: impl AsRef<Path>) -> Result<Sound> {
    let path = path.as_ref();
    decode_sound(&crate::read(path)?, path)
}

/// Decodes a WAV, FLAC, Ogg Vorbis or MP3 file, mixes it to one channel and resamples it to
/// [`RATE`]. `origin` is where the bytes came from, for the error.
///
/// A sound without samples is an error, and so is one longer than [`MAX_SECONDS`].
pub fn decode_sound(bytes: &[u8], origin: impl AsRef<Path>) -> Result<Sound> {
    decode_sound_within(bytes, origin, MAX_SECONDS)
}

/// [`decode_sound`] with another limit on the length, in seconds.
pub fn decode_sound_within(
    bytes: &[u8],
    origin: impl AsRef<Path>,
    max_seconds: f64,
) -> Result<Sound> {
    let (rate, samples) = mono(bytes, max_seconds)
        .map_err(|(expected, found)| Error::file(origin.as_ref(), expected, found))?;
    Ok(Sound { rate: RATE, samples: resample(&samples, rate as f64 / RATE as f64) })
}

/// Decoded samples at the file's own rate, channels averaged; or what was expected and found.
fn mono(bytes: &[u8], max_seconds: f64) -> Result<(u32, Vec<f32>), (String, String)> {
    let error = |found: String| (KINDS.to_string(), found);
    if bytes.is_empty() {
        return Err(error("an empty file".into()));
    }
    let stream = MediaSourceStream::new(Box::new(Cursor::new(bytes.to_vec())), Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(|e| error(format!("bytes of another kind ({e})")))?;
    let track = format
        .default_track(TrackType::Audio)
        .ok_or_else(|| error("a file without a sound track".into()))?;
    let id = track.id;
    let parameters = track
        .codec_params
        .as_ref()
        .and_then(|p| p.audio())
        .ok_or_else(|| error("a sound track that does not say how it is coded".into()))?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(|e| error(format!("a sound track that cannot be decoded: {e}")))?;

    let mut rate = None;
    let mut samples = Vec::new();
    let mut interleaved: Vec<f32> = Vec::new();
    let (mut good, mut bad, mut first_bad) = (0usize, 0usize, String::new());
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            // A second stream chained to the first is not read.
            Ok(None) | Err(DecodeError::ResetRequired) => break,
            // Recorders that write to a pipe cannot put the true length in the header.
            Err(DecodeError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(error(format!("one that cannot be decoded: {e}"))),
        };
        if packet.track_id != id {
            continue;
        }
        let buffer = match decoder.decode(&packet) {
            Ok(buffer) => buffer,
            Err(e @ (DecodeError::DecodeError(_) | DecodeError::IoError(_))) => {
                if bad == 0 {
                    first_bad = e.to_string();
                }
                bad += 1;
                continue;
            }
            Err(e) => return Err(error(format!("one that cannot be decoded: {e}"))),
        };
        good += 1;
        let spec = buffer.spec();
        let (this, channels) = (spec.rate(), spec.channels().count().max(1));
        if *rate.get_or_insert(this) != this {
            return Err(error("one whose sample rate changes on the way".into()));
        }
        if !(1_000..=768_000).contains(&this) {
            return Err((
                "a sound of 1000 to 768000 samples a second".into(),
                format!("one of {this}"),
            ));
        }
        buffer.copy_to_vec_interleaved(&mut interleaved);
        let scale = 1.0 / channels as f32;
        samples.extend(interleaved.chunks_exact(channels).map(|c| c.iter().sum::<f32>() * scale));
        if samples.len() as f64 > max_seconds * this as f64 {
            return Err((
                format!("a sound of at most {max_seconds} seconds"),
                "a longer one".into(),
            ));
        }
    }
    // A damaged packet now and then is left out, as players do; more than that is a broken file.
    if bad * 10 > good {
        return Err(error(format!("one of which {bad} packets are broken: {first_bad}")));
    }
    let Some(rate) = rate.filter(|_| !samples.is_empty()) else {
        return Err(("a sound".into(), "0 samples".into()));
    };
    if samples.iter().any(|s| !s.is_finite()) {
        return Err(("finite samples".into(), "NaN or infinity among them".into()));
    }
    // A little over full scale is clipped when it is played; far over it is another scale or damage.
    let peak = samples.iter().fold(0.0f32, |peak, s| peak.max(s.abs()));
    if peak > LOUDEST {
        return Err(("samples of about -1 to 1".into(), format!("one of {peak:e}")));
    }
    Ok((rate, samples))
}

/// The samples as 16-bit integers; what is beyond -1..1 is clipped.
pub fn pcm16(sound: &Sound) -> impl Iterator<Item = i16> + '_ {
    sound.samples.iter().map(|s| (s.clamp(-1.0, 1.0) * 32_767.0).round() as i16)
}

/// The sound as a WAV file of 16-bit PCM; what is beyond -1..1 is clipped.
pub fn encode_wav(sound: &Sound) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: sound.rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let why = "16-bit mono is a valid form, and memory does not refuse writes";
    let mut writer = hound::WavWriter::new(&mut bytes, spec).expect(why);
    for sample in pcm16(sound) {
        writer.write_sample(sample).expect(why);
    }
    writer.finalize().expect(why);
    bytes.into_inner()
}

/// Writes a WAV file of 16-bit PCM, whole or not at all.
pub fn write_sound(path: impl AsRef<Path>, sound: &Sound) -> Result<()> {
    crate::write(path.as_ref(), &encode_wav(sound))
}

/// Plays 0.9 to 1.12 times as fast (pitch and formants move with it, as between speakers), at 0.5
/// to 1.2 times the level, with a slight spectral tilt, and half of the time with white noise 20
/// to 40 dB below.
pub fn alter_sound(sound: &Sound, rng: &mut Rng) -> Sound {
    let speed = rng.between(0.9, 1.12);
    alter(sound, speed, rng)
}

/// As [`alter_sound`], with speed and pitch from 0.75 to 1.35 times: as another voice might say it.
pub fn revoice_sound(sound: &Sound, rng: &mut Rng) -> Sound {
    let speed = rng.between(-0.29, 0.3).exp();
    alter(sound, speed, rng)
}

fn alter(sound: &Sound, speed: f32, rng: &mut Rng) -> Sound {
    let mut samples = resample(&sound.samples, speed as f64);
    // y[n] = x[n] + tilt * x[n-1] lifts the low end (tilt > 0) or the high end.
    let tilt = rng.between(-0.3, 0.3);
    let mut gain = rng.between(0.5, 1.2) / (1.0 + tilt * tilt).sqrt();
    let mut before = 0.0;
    let mut loudest = 0f32;
    for sample in &mut samples {
        let tilted = *sample + tilt * before;
        before = std::mem::replace(sample, tilted);
        loudest = loudest.max(tilted.abs());
    }
    if loudest * gain > 1.0 {
        gain = 1.0 / loudest;
    }
    let power = samples.iter().map(|s| s * s).sum::<f32>() / samples.len().max(1) as f32;
    let noise = match rng.unit() < 0.5 {
        true => power.sqrt() * 10f32.powf(-rng.between(20.0, 40.0) / 20.0),
        false => 0.0,
    };
    for sample in &mut samples {
        // Uniform noise sounds as white as normal noise and is cheaper to draw.
        let added = if noise > 0.0 { noise * rng.between(-1.0, 1.0) * 3f32.sqrt() } else { 0.0 };
        *sample = ((*sample + added) * gain).clamp(-1.0, 1.0);
    }
    Sound { rate: sound.rate, samples }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sine(hertz: f32, rate: u32, n: usize) -> Vec<f32> {
        let step = std::f32::consts::TAU * hertz / rate as f32;
        (0..n).map(|i| 0.5 * (i as f32 * step).sin()).collect()
    }

    /// The strongest frequency, from the spacing of the upward zero crossings.
    fn pitch(sound: &Sound) -> f64 {
        let up: Vec<usize> = sound
            .samples
            .windows(2)
            .enumerate()
            .filter_map(|(i, w)| (w[0] < 0.0 && w[1] >= 0.0).then_some(i))
            .collect();
        (up.len() - 1) as f64 * sound.rate as f64 / (up[up.len() - 1] - up[0]) as f64
    }

    #[test]
    fn wav_comes_back() {
        let sound = Sound { rate: RATE, samples: sine(440.0, RATE, 8_000) };
        let back = decode_sound(&encode_wav(&sound), "x.wav").unwrap();
        assert_eq!((back.rate, back.samples.len()), (RATE, 8_000));
        let worst = back.samples.iter().zip(&sound.samples).map(|(a, b)| (a - b).abs());
        assert!(worst.fold(0.0, f32::max) < 1e-4);
    }

    /// Half a second of 440 Hz at 22.05 kHz in two channels, the second silent.
    #[test]
    fn every_format_is_read_mixed_and_resampled() {
        let files: [(&str, &[u8]); 4] = [
            ("wav", include_bytes!("fixtures/tone.wav")),
            ("flac", include_bytes!("fixtures/tone.flac")),
            ("ogg", include_bytes!("fixtures/tone.ogg")),
            ("mp3", include_bytes!("fixtures/tone.mp3")),
        ];
        for (kind, bytes) in files {
            let sound = decode_sound(bytes, kind).unwrap();
            assert_eq!(sound.rate, RATE);
            assert!((sound.seconds() - 0.5).abs() < 0.1, "{kind}: {} s", sound.seconds());
            assert!((pitch(&sound) - 440.0).abs() < 6.0, "{kind}: {} Hz", pitch(&sound));
            let loudest = sound.samples.iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!((loudest - 0.25).abs() < 0.05, "{kind}: {loudest}");
        }
    }

    #[test]
    fn what_is_no_sound_is_named() {
        let none = encode_wav(&Sound { rate: RATE, samples: vec![] });
        let ogg: &[u8] = include_bytes!("fixtures/tone.ogg");
        for (bytes, want) in [
            (&b""[..], "an empty file"),
            (b"this is text and not a sound at all, whatever its name says", "another kind"),
            (&none, "0 samples"),
            (&ogg[..100], "found"),
        ] {
            let error = decode_sound(bytes, "sounds/cat.wav").unwrap_err().to_string();
            assert!(error.contains("sounds/cat.wav") && error.contains(want), "{error}");
        }
        let long = encode_wav(&Sound { rate: RATE, samples: vec![0.1; 16_000] });
        let error = decode_sound_within(&long, "x.wav", 0.5).unwrap_err().to_string();
        assert!(error.contains("at most 0.5 seconds"), "{error}");
        let mut hostile = encode_wav(&Sound { rate: RATE, samples: vec![0.1; 100] });
        hostile[24..28].copy_from_slice(&3u32.to_le_bytes());
        assert!(decode_sound(&hostile, "x.wav").is_err());
    }

    #[test]
    fn alter_changes_speed_and_level_within_bounds() {
        let sound = Sound { rate: RATE, samples: sine(300.0, RATE, 16_000) };
        let mut lengths = Vec::new();
        for stream in 0..30 {
            let other = alter_sound(&sound, &mut Rng::new(1, stream));
            let loudest = other.samples.iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!((0.2..=1.0).contains(&loudest), "{loudest}");
            lengths.push(other.samples.len());
        }
        lengths.sort();
        assert!(lengths[0] >= 14_280 && lengths[29] <= 17_790, "{lengths:?}");
        assert!(lengths[29] - lengths[0] > 1_000);
        assert!(
            alter_sound(&Sound { rate: RATE, samples: vec![] }, &mut Rng::new(1, 0))
                .samples
                .is_empty()
        );
    }
}
