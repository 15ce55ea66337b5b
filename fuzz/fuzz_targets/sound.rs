//! Any bytes are a sound within the limits of the server or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = danlu_media::decode_sound_within(bytes, "fuzz", 8.0);
});
