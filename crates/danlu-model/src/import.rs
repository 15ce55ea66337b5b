//! Checkpoints of others as models: a Hugging Face folder or a GGUF file, read into memory with its
//! tokeniser and chat template.

use crate::chat::ChatTemplate;
use crate::io::{
    Dtype, Gguf, GgufWeights, HfConfig, SPECIALS, Shards, Weights, check_parts, ends_of_gguf, fill,
    open_regular, parts_of, read_part, read_regular, read_text, tokeniser_of_gguf,
};
use crate::modality::{TextTokeniser, Tokenisers};
use crate::model::{CHAT_TEMPLATE, Model, ModelInfo, Origin, SPECIAL_TOKENS};
use crate::{Transformer, TransformerConfig};
use burn::tensor::Device;
use danlu_core::{Error, Foreign, Result, Role};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How conversations are written for a checkpoint that says nothing about them: what is said, one
/// after the other, and the end of a text after each reply.
const BARE: &str = "{% for message in messages %}{{ message.content }}\
    {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";
/// The folder of chat templates beside the default one, and the names of those that are read.
const MORE_TEMPLATES: &str = "additional_chat_templates";
const DEFAULT: &str = "default";
const TOOLS: &str = "tool_use";
/// Where GGUF has them.
const TEMPLATES: [(&str, &str); 2] =
    [(DEFAULT, "tokenizer.chat_template"), (TOOLS, "tokenizer.chat_template.tool_use")];
/// Longest small file, in bytes.
const LONGEST: u64 = 16 << 20;

/// Opens a model folder of ours, a Hugging Face folder or a GGUF file.
pub fn open(source: &Path, device: &Device) -> Result<Model> {
    if source.join("danlu.json").exists() {
        Model::load(source, device)
    } else {
        import(source, None, device)
    }
}

/// Reads a Hugging Face folder or a GGUF file. `system` is put first in conversations without a
/// system turn.
pub fn import(source: &Path, system: Option<String>, device: &Device) -> Result<Model> {
    let (mut model, weights) = Source::of(source)?.blank(source, system, device)?;
    fill(&mut model.transformer, &*weights)?;
    Ok(model)
}

/// Makes a model folder of a Hugging Face folder or a GGUF file without having all of its weights in memory:
/// a tensor is read while the one before it is written. Returns the model without values.
pub fn convert(
    source: &Path,
    system: Option<String>,
    folder: &Path,
    dtype: Dtype,
) -> Result<Model> {
    let (model, weights) = Source::of(source)?.blank(source, system, &danlu_ops::cpu_device())?;
    check_parts(&parts_of(&model.transformer), &*weights, model.transformer.config.tied)?;
    model.save_with(|part| read_part(part, &*weights), folder, dtype)?;
    Ok(model)
}

/// What a checkpoint says of itself, before its weights are read.
struct Source {
    weights: Box<dyn Weights>,
    config: TransformerConfig,
    text: TextTokeniser,
    template: Option<String>,
    /// Special tokens by the names that templates know them under.
    specials: Vec<(String, String)>,
    /// Tokens that may end a reply, the likeliest first.
    ends: Vec<u32>,
    pad: Option<u32>,
    name: String,
    licence: Option<String>,
    /// The files of the weights.
    files: Vec<PathBuf>,
}

impl Source {
    fn of(source: &Path) -> Result<Self> {
        let there = std::fs::metadata(source).map_err(|e| Error::io(source, e))?;
        if there.is_dir() { Self::folder(source) } else { Self::gguf(source) }
    }

    fn folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let file = HfConfig::read(&path)?;
        let config = file.to_ours(&path)?;
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::file(folder, "a tokenizer.json", "none"));
        }
        let text = TextTokeniser::load(&path)?;
        let mut about = small_json(&folder.join(SPECIAL_TOKENS))?;
        // Older folders name them here alone.
        for (name, token) in small_json(&folder.join("special_tokens_map.json"))? {
            let named = about.get(&name).is_some_and(|token| !token.is_null());
            if name.ends_with("_token") && !named {
                about.insert(name, token);
            }
        }
        let generation = small_json(&folder.join("generation_config.json"))?;
        let mut specials = Vec::new();
        for (name, token) in about.iter().filter(|(name, _)| name.ends_with("_token")) {
            let token = token.as_str().or_else(|| token.get("content")?.as_str());
            specials.extend(token.map(|t| (name.clone(), t.to_string())));
        }
        let named: Vec<&str> = specials.iter().map(|(_, token)| token.as_str()).collect();
        let text = text.with_specials(&named, &path)?;
        let template = match templates_beside(folder)? {
            (_, beside) if beside.is_empty() => {
                let path = folder.join(SPECIAL_TOKENS);
                template_of(&path, templates_within(&path, about.get("chat_template"))?)?
            }
            (path, beside) => template_of(&path, beside)?,
        };
        let mut ends = ids_of(generation.get("eos_token_id"));
        ends.extend(ids_of(Some(&file.eos_token_id)));
        let weights = Shards::of_folder(folder)?;
        let name = folder.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).unwrap_or_default();
        Ok(Self {
            files: weights.files(),
            weights: Box::new(weights),
            config,
            text,
            template,
            specials,
            ends,
            pad: ids_of(Some(&file.pad_token_id)).first().copied(),
            name: name.to_string_lossy().into_owned(),
            licence: licence_of_card(&folder.join("README.md")),
        })
    }

    fn gguf(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if ["bin", "pt", "pth", "ckpt", "pkl"].contains(&ending) {
            let found = format!(".{ending}, which may run code when it is read");
            return Err(Error::file(path, "a GGUF file or a Hugging Face folder", found));
        }
        let weights = GgufWeights::new(Gguf::open(path)?)?;
        let file = weights.file();
        let text = tokeniser_of_gguf(file)?;
        let mut specials = Vec::new();
        for (name, key) in SPECIALS {
            if let Some(id) = file.maybe_size(key)? {
                let token = u32::try_from(id).ok().and_then(|id| text.token(id));
                let Some(token) = token else {
                    let wanted = format!("an id of a token under `{key}`");
                    return Err(Error::file(path, wanted, id));
                };
                specials.push((name.to_string(), token));
            }
        }
        let owned = |text: Option<&str>| text.map(str::to_string);
        let id = |key: &str| Ok(file.maybe_size(key)?.and_then(|id| u32::try_from(id).ok()));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut templates = BTreeMap::new();
        for (name, key) in TEMPLATES {
            templates.extend(file.maybe_text(key)?.map(|text| (name.into(), text.into())));
        }
        let (template, name, licence) = (
            template_of(path, templates)?,
            owned(file.maybe_text("general.name")?),
            owned(file.maybe_text("general.license")?),
        );
        let ends = ends_of_gguf(file)?;
        let pad: Result<Option<u32>> = id(SPECIALS[3].1);
        Ok(Self {
            config: weights.config.clone(),
            text,
            template,
            specials,
            ends,
            pad: pad?,
            name: name.unwrap_or(stem),
            licence,
            files: vec![path.into()],
            weights: Box::new(weights),
        })
    }

    /// The model without the values of its transformer, and where they are.
    fn blank(
        self,
        source: &Path,
        system: Option<String>,
        device: &Device,
    ) -> Result<(Model, Box<dyn Weights>)> {
        let Self { weights, config, text, .. } = self;
        let rows = config.vocabulary as u32;
        let highest = text.highest();
        if highest >= rows {
            let wanted = format!("a tokeniser of at most the {rows} rows of the embedding");
            return Err(Error::file(source, wanted, format!("a token with id {highest}")));
        }
        let template = self.template.as_deref().unwrap_or(BARE);
        let chat = ChatTemplate::new(template, self.specials, system)
            .map_err(|e| Error::file(source, "a chat template that can be compiled", e))?;
        // What cannot be rendered now cannot be later, when someone waits for a reply.
        chat.render(&[(Role::User, "hi".to_string())], true)
            .map_err(|e| Error::file(source, "a chat template that renders a question", e))?;
        let mut ends = self.ends;
        ends.extend(named(&chat, "eos_token").and_then(|t| text.id(t)));
        let Some(end) = end_of_replies(&chat, &text).or(ends.first().copied()) else {
            let wanted = "a token that ends a reply (`eos_token_id`)";
            return Err(Error::file(source, wanted, "none"));
        };
        // Every one of them stops a reply, as in transformers.
        let mut other_ends = Vec::new();
        for id in ends {
            if id != end && !other_ends.contains(&id) {
                other_ends.push(id);
            }
        }
        let named = other_ends.iter().copied().chain([end]).chain(self.pad);
        if let Some(id) = named.into_iter().find(|&id| id >= rows) {
            let wanted = format!("ids of special tokens under {rows}");
            return Err(Error::file(source, wanted, id));
        }
        let foreign = Foreign { end, other_ends, pad: self.pad.unwrap_or(end), rows };
        let tokenisers = Tokenisers {
            text,
            foreign: Some(foreign),
            chat: Some(chat),
            image: None,
            audio: None,
            image_semantic: None,
            audio_semantic: None,
        };
        let transformer = Transformer::blank(config, device);
        let origin = Origin {
            file: source.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            hash: files_hash(&self.files)?,
            licence: self.licence,
        };
        let info = ModelInfo { name: self.name, origin: Some(origin), ..Default::default() };
        Ok((Model { transformer, tokenisers, info }, weights))
    }
}

/// BLAKE3 of the files of a checkpoint's weights, one after the other.
pub(crate) fn files_hash(files: &[PathBuf]) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    for path in files {
        let mut file = open_regular(path)?;
        hash.update_reader(&mut file).map_err(|e| Error::io(path, e))?;
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// A small JSON object; empty if there is no such file.
fn small_json(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&read_regular(path, LONGEST)?)
        .map_err(|e| Error::file(path, "a JSON object", e))
}

/// The licence that a model card tells in the block at its beginning, if there is a card that does.
fn licence_of_card(path: &Path) -> Option<String> {
    let text = read_text(path, LONGEST).ok()?;
    let block = text.strip_prefix("---")?.split("\n---").next()?;
    let told = block.lines().find_map(|line| line.strip_prefix("license:"))?;
    let told = told.trim().trim_matches(['"', '\'']);
    (!told.is_empty()).then(|| told.to_string())
}

/// Chat templates by name.
type Templates = BTreeMap<String, String>;

/// The chat templates in files of their own, and where they are.
fn templates_beside(folder: &Path) -> Result<(PathBuf, Templates)> {
    let mut all = Templates::new();
    let mut path = folder.join(CHAT_TEMPLATE);
    if path.exists() {
        all.insert(DEFAULT.into(), read_text(&path, LONGEST)?);
    }
    let more = folder.join(MORE_TEMPLATES);
    if more.is_dir() {
        for entry in std::fs::read_dir(&more).map_err(|e| Error::io(&more, e))? {
            let file = entry.map_err(|e| Error::io(&more, e))?.path();
            let name = file.file_name().and_then(|name| name.to_str());
            let Some(name) = name.and_then(|name| name.strip_suffix(".jinja")) else { continue };
            // What goes by another name is asked for by that name alone.
            let text = match [DEFAULT, TOOLS].contains(&name) {
                true => read_text(&file, LONGEST)?,
                false => String::new(),
            };
            all.insert(name.into(), text);
            path.clone_from(&more);
        }
    }
    Ok((path, all))
}

/// Those of a `tokenizer_config.json`: a text, or several with their names.
fn templates_within(path: &Path, value: Option<&Value>) -> Result<Templates> {
    let named = |name: &Value, text: &Value| {
        let both = name.as_str().zip(text.as_str());
        both.map(|(name, text)| (name.to_string(), text.to_string()))
    };
    let all: Option<Templates> = match value {
        None | Some(Value::Null) => Some(Templates::new()),
        Some(text @ Value::String(_)) => {
            named(&DEFAULT.into(), text).map(|one| Templates::from([one]))
        }
        Some(Value::Array(all)) => all.iter().map(|t| named(&t["name"], &t["template"])).collect(),
        Some(Value::Object(all)) => {
            all.iter().map(|(name, text)| named(&name.as_str().into(), text)).collect()
        }
        Some(_) => None,
    };
    let wanted = "a text under `chat_template`, or a list of texts with names";
    all.ok_or_else(|| Error::file(path, wanted, "something else"))
}

/// The one template that does what transformers does with several: that for tools where there are tools, the
/// default one without. `path` is for messages.
fn template_of(path: &Path, mut all: Templates) -> Result<Option<String>> {
    let Some(default) = all.remove(DEFAULT) else {
        let names: Vec<String> = all.keys().map(|name| format!("`{name}`")).collect();
        return match names.is_empty() {
            true => Ok(None),
            false => {
                let wanted = format!("a chat template named `{DEFAULT}`");
                Err(Error::file(path, wanted, names.join(", ")))
            }
        };
    };
    let Some(tools) = all.remove(TOOLS) else { return Ok(Some(default)) };
    // The line's end after a tag is left out of what is rendered, and so is one at the end of a file; what
    // says nothing keeps blanks before a tag.
    let part = |text: &str| {
        let end = ["\r\n", "\n", "\r"].iter().find_map(|end| text.strip_suffix(end));
        format!("\n{}{{{{ '' }}}}", end.unwrap_or(text))
    };
    let (tools, default) = (part(&tools), part(&default));
    Ok(Some(format!("{{% if tools %}}{tools}{{% else %}}{default}{{% endif %}}")))
}

/// One id or several.
fn ids_of(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn named<'a>(chat: &'a ChatTemplate, name: &str) -> Option<&'a str> {
    chat.specials().iter().find(|s| s.0 == name).map(|s| s.1.as_str())
}

/// The special token that a template writes right after a reply.
fn end_of_replies(chat: &ChatTemplate, text: &TextTokeniser) -> Option<u32> {
    let said = "ok";
    let turns = [(Role::User, "hi".to_string()), (Role::Assistant, said.to_string())];
    let whole = chat.render(&turns, false).ok()?;
    let after = &whole[whole.rfind(said)? + said.len()..];
    text.split(after).into_iter().find_map(|(_, special)| special)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_card_tells_its_licence_if_it_does() {
        let path = std::env::temp_dir().join(format!("danlu-card-{}", std::process::id()));
        for (text, want) in [
            ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A\n", Some("apache-2.0")),
            ("---\nlicense: \"mit\"\n---\n", Some("mit")),
            ("---\nlanguage: en\n---\nlicense: mit\n", None),
            ("license: mit\n", None),
        ] {
            std::fs::write(&path, text).expect("writes");
            assert_eq!(super::licence_of_card(&path).as_deref(), want, "{text}");
        }
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(super::licence_of_card(&path), None);
        let line = crate::export::licence_line;
        assert_eq!(line(Some("Apache-2.0")), "license: apache-2.0");
        assert_eq!(line(Some("a\nb: c")), "license: \"a\\nb: c\"");
    }
}
