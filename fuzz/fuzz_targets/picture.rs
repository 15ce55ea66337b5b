//! Any bytes are a picture within the limits of the server or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The limits of the server; what is refused is as good as what is read.
    let _ = danlu_media::decode_picture_within(bytes, "fuzz", 4096, 96 << 20);
});
