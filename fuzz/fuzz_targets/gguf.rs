//! Any bytes are a GGUF file whose tensors and tokeniser can be read, or an error.
#![no_main]

use danlu_model::io::{Gguf, check_gguf, ends_of_gguf, tokeniser_of_gguf};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if check_gguf("fuzz.gguf".as_ref(), bytes).is_err() {
        return;
    }
    let path = std::env::temp_dir().join(format!("danlu-fuzz-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).expect("the temporary folder can be written");
    let Ok(file) = Gguf::open(&path) else { panic!("its header was good before") };
    for name in file.names() {
        let _ = file.read(name);
    }
    let _ = (tokeniser_of_gguf(&file), ends_of_gguf(&file));
});
