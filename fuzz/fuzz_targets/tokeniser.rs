//! Any `tokenizer.json` cuts any text and spells it again, or is an error. The first byte says how many
//! bytes of the rest are the text.
#![no_main]

use danlu_model::modality::TextTokeniser;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&text, rest)) = bytes.split_first() else { return };
    let (text, json) = rest.split_at(usize::from(text).min(rest.len()));
    let Ok(tokeniser) = TextTokeniser::parse("tokenizer.json".as_ref(), json) else { return };
    let ids = tokeniser.encode(&String::from_utf8_lossy(text));
    let _ = (tokeniser.decode(&ids), tokeniser.entries(), tokeniser.specials());
});
