//! Any text is a chat template that renders a conversation within its fuel, or an error. The first byte
//! says how many bytes of the rest are what the user of that conversation says.
#![no_main]

use danlu_core::Role;
use danlu_model::chat::ChatTemplate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&said, rest)) = bytes.split_first() else { return };
    let (said, source) = rest.split_at(usize::from(said).min(rest.len()));
    let specials = vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())];
    let source = String::from_utf8_lossy(source);
    let Ok(template) = ChatTemplate::new(&source, specials, None) else { return };
    let said = String::from_utf8_lossy(said).into_owned();
    let turns =
        [(Role::User, said.clone()), (Role::Assistant, "yes".into()), (Role::User, said)];
    for open in [false, true] {
        let _ = template.render(&turns, open);
    }
});
