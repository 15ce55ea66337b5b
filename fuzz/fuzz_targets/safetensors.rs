//! Any bytes are a safetensors header, an index of shards, or an error.
#![no_main]

use danlu_model::io::{check_safetensors, parse_index};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check_safetensors("fuzz.safetensors".as_ref(), bytes);
    if let Ok(map) = parse_index("index.json".as_ref(), bytes) {
        assert!(map.values().all(|file| !file.contains(['/', '\\'])), "{map:?}");
    }
});
