//! Pictures and sounds of requests: from base64 to pixels and samples, with limits that are looked
//! at before anything is decoded. Nothing is ever fetched.

use crate::http::error::{Answer, ApiError};
use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use danlu_core::{Error, Picture, Sound};

/// Longest side of a picture in pixels.
const MAX_SIDE: u32 = 8_192;
/// Most bytes that decoding a picture may take.
const MAX_PIXELS: u64 = 96 << 20;

const STANDARD: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Text of bytes.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn from_base64(param: &str, text: &str) -> Answer<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| ApiError::expected(param, "base64", "another text"))
}

/// What was wrong with a file, in the words of the format but without those of the decoder.
fn brief(param: &str, error: Error) -> ApiError {
    match error {
        Error::File { expected, found, .. } => {
            let found = found.split(": ").next().unwrap_or_default();
            let found = found.split(" (").next().unwrap_or_default();
            ApiError::expected(param, expected, found).code("invalid_media")
        }
        other => ApiError::internal(other),
    }
}

/// The picture of a data URL.
pub(crate) fn picture(param: &str, url: &str) -> Answer<Picture> {
    const WANTED: &str = "a data URL (data:image/png;base64,...) of a PNG, JPEG, GIF or WebP";
    let scheme = url.get(..5).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("data:") {
        let message = format!("`{param}`: expected {WANTED}; addresses are not fetched");
        return Err(ApiError::bad(param, message).code("remote_media_not_allowed"));
    }
    let (head, data) =
        url[5..].split_once(',').ok_or_else(|| ApiError::expected(param, WANTED, "no comma"))?;
    let mut words = head.split(';').map(str::trim);
    let kind = words.next().unwrap_or_default().to_ascii_lowercase();
    let kinds = ["image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp"];
    if !kinds.contains(&kind.as_str()) || !words.any(|w| w.eq_ignore_ascii_case("base64")) {
        return Err(ApiError::expected(param, WANTED, "another kind"));
    }
    let bytes = from_base64(param, data)?;
    danlu_media::decode_picture_within(&bytes, "", MAX_SIDE, MAX_PIXELS)
        .map_err(|e| brief(param, e))
}

/// The sound of base64.
pub(crate) fn sound_of_text(param: &str, data: &str, max_seconds: f64) -> Answer<Sound> {
    sound(param, &from_base64(param, data)?, max_seconds)
}

/// The sound of a file's bytes, of at most `max_seconds`.
pub(crate) fn sound(param: &str, bytes: &[u8], max_seconds: f64) -> Answer<Sound> {
    danlu_media::decode_sound_within(bytes, "", max_seconds).map_err(|e| brief(param, e))
}
