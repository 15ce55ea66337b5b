//! Any bytes are the fields of a chat request or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    danlu_serve::fuzzing::request(bytes);
});
