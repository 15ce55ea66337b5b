//! Text to speech.

use crate::app::App;
use crate::ask::{Ask, Drawing, model};
use crate::conversation::{Told, Turn, check_modality, prompt};
use crate::http::body;
use crate::http::error::{Answer, ApiError, bytes_response};
use crate::http::fields::Fields;
use crate::reply::wholes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use danlu_core::{Modality, Role, Sound, instruction};
use std::sync::Arc;

/// Most characters of a text.
const MAX_INPUT: usize = 4_096;

/// Voices of the official API; they stand for the model's own.
const USUAL_VOICES: [&str; 14] = [
    "default", "alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage",
    "shimmer", "verse", "marin", "cedar",
];

/// How sound is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Format {
    Wav,
    Flac,
    /// 16-bit little-endian samples without a head.
    Pcm,
}

/// Samples a second of raw PCM, which tells nothing of itself: what clients of the official API take it for.
const PCM_RATE: u32 = 24_000;

impl Format {
    /// The format of a word.
    pub(super) fn named(param: &str, word: Option<&str>) -> Answer<Self> {
        match word {
            None | Some("wav") => Ok(Self::Wav),
            Some("flac") => Ok(Self::Flac),
            Some("pcm" | "pcm16") => Ok(Self::Pcm),
            _ => Err(ApiError::expected(param, "one of wav, flac, pcm", "another")),
        }
    }

    /// The bytes of a sound.
    pub(super) fn encode(self, sound: &Sound) -> Vec<u8> {
        match self {
            Self::Wav => danlu_media::encode_wav(sound),
            Self::Flac => danlu_media::encode_flac(sound),
            Self::Pcm => {
                let step = f64::from(sound.rate) / f64::from(PCM_RATE);
                let samples = danlu_media::resample(&sound.samples, step);
                let sound = Sound { rate: PCM_RATE, samples };
                danlu_media::pcm16(&sound).flat_map(i16::to_le_bytes).collect()
            }
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Wav => "audio/wav",
            Self::Flac => "audio/flac",
            Self::Pcm => "audio/pcm",
        }
    }
}

/// The voice to name in the instruction; `None` for the model's own.
pub(super) fn voice(param: &str, name: Option<String>) -> Answer<Option<String>> {
    let Some(name) = name.filter(|n| !USUAL_VOICES.contains(&n.as_str())) else { return Ok(None) };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=32).contains(&name.len()) && name.chars().all(plain) {
        return Ok(Some(name));
    }
    Err(ApiError::expected(param, "1 to 32 letters, digits, `-` and `_`", "another"))
}

/// The handler.
pub(super) async fn speech(State(app): State<Arc<App>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let (map, share) = body::json(&app, &head.headers, body).await?;
    let mut fields = Fields::new(map);
    let chosen = model(&app, &mut fields)?;
    let text = Fields::required("input", fields.string("input")?)?;
    if text.is_empty() || text.chars().count() > MAX_INPUT {
        let wanted = format!("1 to {MAX_INPUT} characters");
        return Err(ApiError::expected("input", wanted, text.chars().count()));
    }
    let format = fields.string("response_format")?;
    let format = Format::named("response_format", format.as_deref())?;
    let voice = voice("voice", fields.string("voice")?)?;
    fields.number("speed", 1.0..=1.0)?;
    fields.without("instructions")?;
    fields.choice("stream_format", &["audio"])?;
    let drawing = Drawing::take(&mut fields, chosen.model.vocabulary.size())?;
    fields.finish()?;
    check_modality(&chosen.model, "model", Modality::Audio)?;
    let asked = instruction::speak(&text, voice.as_deref());
    let turns = vec![Turn::text(Role::User, "input", asked)];
    let host = chosen.model.clone();
    let work = app.work(move || {
        let _share = share;
        prompt(&host, "input", turns, Told::default())
    });
    let prompt = work.await?;
    let limited = drawing.max_tokens.is_some();
    let ask = Ask {
        chosen,
        prompt,
        param: "input",
        to: Some(Modality::Audio),
        drawing: drawing.once(),
        top_logprobs: None,
        echo: None,
        schema: None,
        raw: false,
    };
    let replies = wholes(ask.start(&app).await?).await?;
    // Of a sound that ends too early the client would learn in no other way.
    if !limited && replies.iter().any(|r| r.reason == "length") {
        let message =
            "the speech of this `input` does not fit into the model's context: ask for less of it";
        return Err(ApiError::bad("input", message).code("context_length_exceeded"));
    }
    let sounds = || replies.iter().flat_map(|r| &r.sounds);
    let rate = sounds().next().map_or(danlu_media::RATE, |s| s.rate);
    let samples = sounds().flat_map(|s| s.samples.iter().copied()).collect();
    let bytes = format.encode(&Sound { rate, samples });
    Ok(bytes_response(StatusCode::OK, format.kind(), bytes))
}
