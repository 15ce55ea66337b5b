//! Any bytes are a GGUF header or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = danlu_model::io::check_gguf("fuzz.gguf".as_ref(), bytes);
});
