//! Any folder is an adapter or an error. The first two bytes say how long its configuration is.
#![no_main]

use danlu_model::adapters::Adapter;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let config = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let folder = std::env::temp_dir().join(format!("danlu-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    std::fs::write(folder.join("adapter_config.json"), &rest[..config]).expect("writes");
    std::fs::write(folder.join("adapter_model.safetensors"), &rest[config..]).expect("writes");
    if let Ok(adapter) = Adapter::load(&folder) {
        assert!(!adapter.deltas.is_empty());
    }
});
