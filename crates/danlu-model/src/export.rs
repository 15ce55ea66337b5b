//! Models as others read them: a Hugging Face folder for transformers, a GGUF file for llama.cpp. Both
//! carry the tokeniser, the chat template and where the model came from.

use crate::chat::ChatTemplate;
use crate::io::{
    Dtype, FACTORS, GgufTensor, GgufValue, HfConfig, Packing, Part, SPECIALS, architecture_keys,
    check_architecture, end_keys, gguf_factors, gguf_name, parts_of, to_gguf_order, tokeniser_keys,
    write_gguf,
};
use crate::modality::{TextTokeniser, Tokenisers};
use crate::model::{Model, write_json, write_weights};
use danlu_core::{Control, Error, Foreign, Result};
use serde_json::{Value as Json, json};
use std::path::Path;

/// How our own models write conversations, as a chat template.
const OWN: &str = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\
    {% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// A model's tokeniser and template with every id of its vocabulary, as text alone.
fn as_text(model: &Model, path: &Path) -> Result<Tokenisers> {
    let v = model.tokenisers.vocabulary();
    let own = &model.tokenisers.text;
    let mut ends = v.ends();
    let (end, other_ends) = (ends.remove(0), ends);
    let pad = v.control_id(Control::Pad);
    let others: Vec<(u32, String)> =
        (v.text..v.size() as u32).filter_map(|id| Some((id, v.kind(id)?.name()?))).collect();
    // Readers number what is added on from the last entry: every row before it needs one.
    let rows = (own.size()..v.text).map(|id| (id, format!("[PAD{id}]")));
    let others: Vec<(u32, String)> =
        if others.is_empty() { others } else { rows.chain(others).collect() };
    let text = if others.is_empty() {
        own.clone()
    } else {
        let wrong = |e| Error::file(path, "a tokenizer.json", e);
        let mut all: Json = serde_json::from_str(&own.to_json()?).map_err(wrong)?;
        let added = all["added_tokens"].as_array_mut();
        let added = added.ok_or_else(|| Error::file(path, "`added_tokens`", "none"))?;
        for (id, token) in &others {
            // Places are what a text says; the others are never text.
            let special = !token.starts_with("<loc");
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special}));
        }
        let text = TextTokeniser::parse(path, all.to_string().as_bytes())?;
        let elsewhere =
            |(id, token): &&(u32, String)| own.token(*id).is_some() || text.id(token) != Some(*id);
        if let Some((id, token)) = others.iter().find(elsewhere) {
            let found = match text.id(token) {
                Some(other) if other != *id => format!("token {other}"),
                _ => format!("`{}` there", own.token(*id).unwrap_or_default()),
            };
            return Err(Error::file(path, format!("`{token}` as token {id}"), found));
        }
        text
    };
    let chat = match &model.tokenisers.chat {
        Some(chat) => chat.folded()?,
        None => {
            let named = |c: Control| c.name().to_string();
            let specials = vec![
                ("eos_token".to_string(), named(Control::End)),
                ("pad_token".to_string(), named(Control::Pad)),
            ];
            ChatTemplate::new(OWN, specials, None)?
        }
    };
    Ok(Tokenisers {
        text,
        foreign: Some(Foreign { end, other_ends, pad, rows: v.size() as u32 }),
        chat: Some(chat),
        image: None,
        audio: None,
        image_semantic: None,
        audio_semantic: None,
    })
}

/// Refuses what would be left out.
fn check(model: &Model, path: &Path) -> Result<()> {
    let mut linears = model.transformer.blocks.iter().flat_map(|b| b.linears());
    let adapted = linears.any(|l| !l.adapters.is_empty());
    if adapted {
        return Err(Error::file(path, "a model whose adapters are merged", "one with adapters"));
    }
    Ok(())
}

/// The model card's head and a line about what the model is. `packed` names a quantised form.
fn card(model: &Model, licence: Option<&str>) -> String {
    let c = &model.transformer.config;
    let info = &model.info;
    let origin = info.origin.as_ref();
    let licence = licence.or(origin.and_then(|o| o.licence.as_deref()));
    let mut out = String::from("---\n");
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(licence_line(licence));
    line("library_name: transformers\npipeline_tag: text-generation".into());
    if let Some(origin) = origin {
        let name = Json::from(origin.file.as_str());
        line(format!("base_model: {name}"));
        if info.steps > 0 {
            line("base_model_relation: finetune".into());
        }
    }
    line(format!("tags: [danlu]\n---\n\n# {}\n", info.name));
    line(format!(
        "A decoder-only transformer of {} layers of width {}, {} tokens in the vocabulary and a \
         context of {}. Written by Danlu.",
        c.depth, c.width, c.vocabulary, c.context
    ));
    if let Some(o) = origin {
        line(format!(
            "\nIt began as `{}`, whose weights have the BLAKE3 hash `{}`.",
            o.file, o.hash
        ));
    }
    if info.steps > 0 {
        line(format!("\nTrained for {} steps on {} tokens.", info.steps, info.tokens));
    }
    out
}

/// The line of a model card that tells the licence: an identifier as it is, anything else quoted as JSON and
/// so YAML does.
pub fn licence_line(licence: Option<&str>) -> String {
    let licence = licence.map_or("other".into(), str::to_lowercase);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
    match licence.chars().all(plain) {
        true => format!("license: {licence}"),
        false => format!("license: {}", Json::from(licence)),
    }
}

/// Writes a folder that transformers opens: weights in `dtype`, configuration, tokeniser, chat
/// template and a model card.
pub fn to_folder(model: &Model, folder: &Path, dtype: Dtype, licence: Option<&str>) -> Result<()> {
    check(model, folder)?;
    let tokenisers = as_text(model, folder)?;
    let v = tokenisers.vocabulary();
    let mut config = HfConfig::from_ours(&model.transformer.config, Some(v));
    config.danlu_vocabulary = None;
    config.bos_token_id = tokenisers.begin_of_text().into();
    let generation = config.generation();
    let transformer = &model.transformer;
    let values = |part: &Part| Ok(part.values(transformer));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    // First, for they may not fit the type.
    write_weights(&parts_of(transformer), values, folder, dtype, config)?;
    tokenisers.save(folder, dtype)?;
    write_json(&folder.join("generation_config.json"), &generation)?;
    let card = card(model, licence);
    crate::io::write_atomically(&folder.join("README.md"), card.as_bytes())
}

/// Writes a file that llama.cpp opens, matrices in `packing`. With 4 bits, the embedding and the
/// head take 8; rows that are no whole blocks take 16. Returns how many tensors did.
pub fn to_gguf(
    model: &Model,
    path: &Path,
    packing: Packing,
    licence: Option<&str>,
) -> Result<usize> {
    check(model, path)?;
    let c = &model.transformer.config;
    check_architecture(c, path)?;
    let tokenisers = as_text(model, path)?;
    let v = tokenisers.vocabulary();
    let file_type = match packing {
        Packing::F32 => 0usize,
        Packing::F16 => 1,
        Packing::Q4_0 => 2,
        Packing::Q4_1 => 3,
        Packing::Q8_0 => 7,
        Packing::Bf16 => 32,
        Packing::Q5_0 | Packing::Q5_1 | Packing::Q4K | Packing::Q5K | Packing::Q6K => {
            let found = packing.name();
            return Err(Error::parameter("--type", "f32, f16, bf16, q8_0, q4_1 or q4_0", found));
        }
    };
    let info = &model.info;
    let key = |name: &str, value: GgufValue| (name.to_string(), value);
    let mut keys = architecture_keys(c);
    keys.push(key("general.type", "model".into()));
    keys.push(key("general.name", info.name.as_str().into()));
    keys.push(key("general.file_type", file_type.into()));
    keys.push(key("general.quantization_version", 2usize.into()));
    keys.push(key("general.alignment", 32usize.into()));
    let origin = info.origin.as_ref();
    if let Some(licence) = licence.or(origin.and_then(|o| o.licence.as_deref())) {
        keys.push(key("general.license", licence.into()));
    }
    if let Some(o) = origin {
        keys.push(key("general.base_model.count", 1usize.into()));
        keys.push(key("general.base_model.0.name", o.file.as_str().into()));
        keys.push(key("general.base_model.0.version", o.hash.as_str().into()));
    }
    keys.extend(tokeniser_keys(&tokenisers.text, c.vocabulary, path)?);
    let mut eos = v.control_id(Control::End);
    if let Some(chat) = &tokenisers.chat {
        keys.push(key("tokenizer.chat_template", chat.source().into()));
        for (name, gguf) in SPECIALS {
            let token = chat.specials().iter().find(|s| s.0 == name).map(|s| &s.1);
            let id = token.and_then(|t| tokenisers.text.id(t));
            match (name, id) {
                // The end that the template writes by this name.
                ("eos_token", Some(id)) if v.is_end(id) => eos = id,
                ("eos_token" | "pad_token", _) | (_, None) => {}
                (_, Some(id)) => keys.push(key(gguf, (id as usize).into())),
            }
        }
    }
    let begins = SPECIALS[0].1;
    if let Some(begin) = tokenisers.text.begin()
        && !keys.iter().any(|(name, _)| name == begins)
    {
        keys.push(key(begins, (begin as usize).into()));
    }
    keys.extend(end_keys(eos, &v.ends()));
    let pad = v.control_id(Control::Pad);
    keys.push(key(SPECIALS[3].1, (pad as usize).into()));
    let mut wider = 0;
    // The matrices of a layer's experts are one tensor.
    let mut tensors: Vec<(GgufTensor, Vec<Part>)> = Vec::new();
    for part in parts_of(&model.transformer) {
        let Some((name, number)) = gguf_name(&part.plain_name) else {
            let wanted = "tensors that GGUF has a name for";
            return Err(Error::file(path, wanted, format!("`{}`", part.name)));
        };
        if let Some(at) = tensors.iter().rposition(|(t, _)| number.is_some() && t.name == name) {
            tensors[at].0.shape[0] += 1;
            tensors[at].1.push(part);
            continue;
        }
        let table = matches!(name.as_str(), "token_embd.weight" | "output.weight");
        let own = match packing {
            // llama.cpp keeps routers whole too.
            _ if part.shape.len() == 1 || name.ends_with("ffn_gate_inp.weight") => Packing::F32,
            Packing::Q4_0 | Packing::Q4_1 if table => Packing::Q8_0,
            other => other,
        };
        let whole = part.shape.last().is_some_and(|w| w.is_multiple_of(own.block()));
        wider += usize::from(!whole);
        let packing = if whole { own } else { Packing::F16 };
        let one = number.map(|_| 1).into_iter();
        let shape = one.chain(part.shape.iter().copied()).collect();
        tensors.push((GgufTensor { name, shape, packing }, vec![part]));
    }
    let (mut tensors, parts): (Vec<GgufTensor>, Vec<Vec<Part>>) = tensors.into_iter().unzip();
    let factors = gguf_factors(c, path)?;
    if let Some(factors) = &factors {
        let (name, shape) = (FACTORS.into(), vec![factors.len()]);
        tensors.push(GgufTensor { name, shape, packing: Packing::F32 });
    }
    write_gguf(path, &keys, &tensors, |i| {
        let Some(parts) = parts.get(i) else { return Ok(factors.clone().unwrap_or_default()) };
        let of =
            |p: &Part| to_gguf_order(c, &p.plain_name, p.shape[0], p.values(&model.transformer));
        Ok(match &parts[..] {
            [one] => of(one),
            all => all.iter().flat_map(of).collect(),
        })
    })?;
    Ok(wider)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import;
    use crate::model::tests::tiny_model;
    use crate::parity::{Limits, PROBE, compare};

    #[test]
    fn a_model_of_ours_goes_out_as_text_and_says_the_same() {
        let model = tiny_model(5);
        let folder = std::env::temp_dir().join(format!("danlu-export-{}", std::process::id()));
        to_folder(&model, &folder, Dtype::F32, None).expect("writes");
        let file = folder.join("model.gguf");
        let wider = to_gguf(&model, &file, Packing::F32, Some("MIT")).expect("writes");
        assert_eq!(wider, 0);
        let texts: Vec<String> = PROBE.iter().map(|t| t.to_string()).collect();
        for path in [&folder, &file] {
            let back = import::import(path, None, &danlu_ops::cpu_device()).expect("opens");
            let c = compare(&model, &back, &texts, &Limits::SAME).expect("compares");
            assert!(c.same_bits && c.same_ids, "{}: {c:?}", path.display());
            let v = model.tokenisers.vocabulary();
            let image = back.tokenisers.text.id("<|image_0|>");
            assert_eq!(image, Some(v.image_id(0)), "{}", path.display());
            assert!(back.tokenisers.text.encode("<|end|>").len() > 1);
        }
        // Rows of 24 values are no whole blocks of 32.
        assert!(to_gguf(&model, &file, Packing::Q8_0, None).expect("writes") > 0);
        let error = to_gguf(&model, &file, Packing::Q6K, None).expect_err("read only").to_string();
        assert!(error.contains("Q6_K"), "{error}");
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn tokens_keep_their_ids_behind_rows_without_an_entry() {
        let mut model = tiny_model(5);
        let size = model.tokenisers.text.size();
        let foreign = Foreign { end: 0, other_ends: Vec::new(), pad: 1, rows: size + 12 };
        model.tokenisers.foreign = Some(foreign);
        let path = Path::new("padded");
        let text = as_text(&model, path).expect("numbers").text;
        let v = model.tokenisers.vocabulary();
        assert_eq!(v.image_id(0), size + 12);
        for id in v.text..v.size() as u32 {
            let token = v.kind(id).and_then(|kind| kind.name()).expect("a token of its own");
            assert_eq!(text.id(&token), Some(id), "{token}");
        }
        let mut rows = size..v.text;
        assert!(rows.all(|id| text.token(id) == Some(format!("[PAD{id}]"))));
        assert_eq!(text.size() as usize, v.size());
        let keys = tokeniser_keys(&text, v.size(), path).expect("writes");
        let tokens = keys.iter().find(|(name, _)| name == "tokenizer.ggml.tokens");
        let Some((_, GgufValue::List(tokens))) = tokens else { panic!("no tokens") };
        assert_eq!(tokens[v.image_id(0) as usize], GgufValue::Text("<|image_0|>".into()));
        // An entry of the same name has another id.
        let mut all: Json = serde_json::from_str(&text.to_json().expect("json")).expect("json");
        let added = all["added_tokens"].as_array_mut().expect("there are some");
        added.retain(|token| token["content"] == "<|image_0|>");
        let bytes = all.to_string();
        model.tokenisers.text = TextTokeniser::parse(path, bytes.as_bytes()).expect("reads");
        let error = as_text(&model, path).expect_err("twice").to_string();
        assert!(error.contains("`<|image_0|>`"), "{error}");
    }
}
