//! SentencePiece's BPE, held against it and against transformers (golden/make_pieces.py).

use super::{golden, temporary, turns};
use danlu_core::Role;
use danlu_model::chat::{ChatTemplate, Piece, Turn};
use danlu_model::io::{Gguf, GgufTensor, Packing, tokeniser_keys, tokeniser_of_gguf, write_gguf};
use danlu_model::modality::TextTokeniser;
use serde_json::Value;
use std::path::Path;

fn file() -> Value {
    serde_json::from_slice(&std::fs::read(golden("../pieces.json")).unwrap()).unwrap()
}

fn tokeniser(kind: &Value) -> TextTokeniser {
    let json = kind["tokenizer"].to_string();
    TextTokeniser::parse("tokenizer.json".as_ref(), json.as_bytes()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn chat(template: &str) -> ChatTemplate {
    let specials = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
    let specials = specials.map(|(k, v)| (k.to_string(), v.to_string())).to_vec();
    ChatTemplate::new(template, specials, None).unwrap()
}

#[test]
fn texts_and_conversations_have_the_ids_that_transformers_gives() {
    let file = file();
    for (name, kind) in file["kinds"].as_object().unwrap() {
        let text = tokeniser(kind);
        assert_eq!(text.begin(), Some(1), "{name}");
        assert_eq!(text.leads_with_blank(), name != "never", "{name}");
        for case in kind["texts"].as_array().unwrap() {
            let said = case["text"].as_str().unwrap();
            let found = text.encode(said);
            assert_eq!(found, ids(&case["ids"]), "{name}: {said:?}");
            assert_eq!(text.decode(&found), case["back"].as_str().unwrap(), "{name}: {said:?}");
        }
        let chats = kind["chats"].as_array().unwrap();
        assert!(chats.len() >= 6);
        for case in chats {
            let chat = chat(case["template"].as_str().unwrap());
            let got =
                chat.ids(&text, &turns(&case["messages"]), Default::default(), false, 2).unwrap();
            assert_eq!(got.ids, ids(&case["ids"]), "{name}: {case}");
            for reply in got.replies {
                assert_eq!(got.ids[reply.end - 1], 2);
                let said = text.decode(&got.ids[reply]);
                let turns = case["messages"].as_array().unwrap();
                let last = turns.iter().rfind(|t| t["role"] == "assistant").unwrap();
                assert_eq!(said.trim(), last["content"].as_str().unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn bytes_of_pieces_are_the_text() {
    let file = file();
    for (name, kind) in file["kinds"].as_object().unwrap() {
        let text = tokeniser(kind);
        let entries = text.entries();
        for said in ["hello there", "苹果 \u{1F600}", "tab\tand\n", "caf\u{e9}"] {
            let bytes: Vec<u8> =
                text.encode(said).iter().flat_map(|&id| entries[id as usize].clone()).collect();
            let shown = String::from_utf8(bytes).unwrap();
            let lead = if text.leads_with_blank() { " " } else { "" };
            assert_eq!(shown, format!("{lead}{said}"), "{name}");
        }
    }
}

/// A file of keys and one tensor.
fn written(name: &str, text: &TextTokeniser) -> std::path::PathBuf {
    let path = temporary(&format!("{name}.gguf"));
    let mut keys = tokeniser_keys(text, text.size() as usize + 2, Path::new("out")).unwrap();
    keys.push(("general.architecture".into(), "llama".into()));
    keys.push(("tokenizer.ggml.bos_token_id".into(), 1usize.into()));
    let tensor = GgufTensor { name: "x".into(), shape: vec![1], packing: Packing::F32 };
    write_gguf(&path, &keys, &[tensor], |_| Ok(vec![0.0])).unwrap();
    path
}

#[test]
fn scores_of_gguf_give_the_ids_that_sentencepiece_does() {
    let file = file();
    let read = tokeniser_of_gguf(&Gguf::open(&golden("../pieces.gguf")).unwrap()).unwrap();
    assert_eq!(read.begin(), Some(1), "the beginning of a text is there, if nothing is said of it");
    let path = written("pieces-again", &read);
    let again = tokeniser_of_gguf(&Gguf::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    for case in file["sentencepiece"].as_array().unwrap() {
        let said = case["text"].as_str().unwrap();
        for text in [&read, &again] {
            assert_eq!(text.encode(said), ids(&case["ids"]), "{said:?}");
        }
    }
    for token in ["<s>", "</s>", "<unk>"] {
        assert!(read.encode(token).len() > 1, "no text becomes a special token");
    }
}

#[test]
fn every_kind_goes_through_gguf() {
    let file = file();
    for (name, kind) in file["kinds"].as_object().unwrap() {
        let text = tokeniser(kind);
        let path = written(&format!("pieces-{name}"), &text);
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.text("tokenizer.ggml.model").unwrap(), "llama");
        let kinds = gguf.integers("tokenizer.ggml.token_type").unwrap();
        assert_eq!(kinds[..4], [2, 3, 3, 6], "unknown, two of control, bytes");
        assert_eq!(kinds[kinds.len() - 2..], [5, 5], "rows without a token");
        let back = tokeniser_of_gguf(&gguf).unwrap();
        assert_eq!(back.begin(), Some(1));
        for case in kind["texts"].as_array().unwrap() {
            let said = case["text"].as_str().unwrap();
            assert_eq!(back.encode(said), text.encode(said), "{name}: {said:?}");
            assert_eq!(back.encode_later(said), text.encode_later(said), "{name}: {said:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}

/// What is learnt of a conversation, reply by reply, each with its turn.
fn learnt(template: &str, said: &[(Role, &str)]) -> Vec<(usize, String)> {
    let kinds = file();
    let text = tokeniser(&kinds["kinds"]["first"]);
    let turn = |(role, said): &(Role, &str)| Turn::new(*role, vec![Piece::Text(said.to_string())]);
    let turns: Vec<Turn> = said.iter().map(turn).collect();
    let got = chat(template).ids(&text, &turns, Default::default(), false, 2).unwrap();
    let of = |r: std::ops::Range<usize>| {
        let ends = ["</s>", "<unk>"].map(|end| (text.id(end).unwrap(), end));
        let piece = |id: &u32| match ends.iter().find(|(end, _)| end == id) {
            Some((_, end)) => end.to_string(),
            None => text.decode(&[*id]),
        };
        got.ids[r].iter().map(piece).collect::<String>()
    };
    got.spoken.into_iter().zip(got.replies.into_iter().map(of)).collect()
}

#[test]
fn what_is_learnt_is_what_the_model_says() {
    use Role::{Assistant, Tool, User};
    let bare = |all: Vec<(usize, String)>| -> Vec<(usize, String)> {
        all.into_iter().map(|(i, said)| (i, said.replace(' ', ""))).collect()
    };
    let want = |all: &[(usize, &str)]| -> Vec<(usize, String)> {
        all.iter().map(|(i, said)| (*i, said.to_string())).collect()
    };
    let turns = [(User, "a"), (Assistant, "hello"), (User, "b"), (Assistant, "there")];
    // An end of the conversation, and none of its turns.
    let once = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content }}{% endif %}{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}";
    assert_eq!(bare(learnt(once, &turns)), want(&[(1, "hello"), (3, "there</s>")]));
    // Two ends, one before what a tool says.
    let two = "{% for m in messages %}{% if m.role == 'assistant' %}:{{ m.content }}{{ unk_token if m.content == 'hello' else eos_token }}{% else %}[{{ m.content }}]{% endif %}{% endfor %}{% if add_generation_prompt %}:{% endif %}";
    let tools = [(User, "a"), (Assistant, "hello"), (Tool, "cold"), (Assistant, "there")];
    assert_eq!(bare(learnt(two, &tools)), want(&[(1, "hello<unk>"), (3, "there</s>")]));
    // Marked, but for what comes before it.
    let marked = "{% for m in messages %}{% if m.role == 'assistant' %}:{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}{% if add_generation_prompt %}:{% endif %}";
    let all = want(&[(1, "hello</s>"), (3, "there</s>")]);
    assert_eq!(bare(learnt(marked, &turns)), all);
    let inner =
        marked.replace("{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}");
    assert_eq!(bare(learnt(&inner, &turns)), want(&[(1, "hello"), (3, "there")]));
    // Who speaks first has a prompt without what comes before the first turn.
    let first = "{% if messages %}({% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let speaks = [(Assistant, "hello"), (User, "a"), (Assistant, "there")];
    assert_eq!(bare(learnt(first, &speaks)), want(&[(0, "hello</s>"), (2, "there</s>")]));
    // The prompt begins a thought, which the conversation has none of.
    let thinks = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}";
    let short = [(User, "a"), (Assistant, "s"), (User, "b"), (Assistant, "there")];
    assert_eq!(bare(learnt(thinks, &short)), want(&[(1, "s</s>"), (3, "there</s>")]));
    // What ends the conversation begins as what begins a turn.
    let alike = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% else %}{{ eos_token }}{% endif %}";
    assert_eq!(bare(learnt(alike, &turns)), want(&[(1, "hello"), (3, "there</s>")]));
    // The first token began with the prompt's last blank.
    let blank = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}: {% endif %}";
    assert_eq!(bare(learnt(blank, &turns)), all);
    // Not one turn of the user's is learnt as well.
    let texts = learnt(once, &turns).into_iter().map(|t| t.1).collect::<String>();
    assert!(!texts.contains('b') && !texts.contains('['), "{texts}");
}
