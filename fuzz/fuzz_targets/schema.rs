//! Any bytes are a JSON schema to keep to or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    danlu_serve::fuzzing::schema(bytes);
});
