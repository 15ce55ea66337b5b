//! Any bytes are a configuration within bounds, or an error.
#![no_main]

use danlu_model::io::HfConfig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = "config.json".as_ref();
    if let Ok(config) = HfConfig::parse(path, bytes).and_then(|c| c.to_ours(path)) {
        assert!(config.depth <= 1 << 10 && config.heads.is_multiple_of(config.kv_heads));
    }
});
