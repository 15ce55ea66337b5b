use crate::adapters::{Adapter, check_named};
use crate::arch::Transformer;
use crate::chat::ChatTemplate;
use crate::io::{
    Dtype, HfConfig, NamedTensor, Part, Shards, TILES, fill, in_tiles, load_parameters,
    load_tensors, map_tiles, parts_of, save_tensors, write_atomically, write_tensors, write_tiles,
};
use crate::modality::{
    AudioTokeniser, AudioTokeniserConfig, ImageTokeniser, ImageTokeniserConfig, Recogniser,
    RecogniserConfig, TextTokeniser, Tokenisers,
};
use crate::params::Module;
use burn::tensor::Device;
use danlu_core::{Error, Foreign, Result, Vocabulary};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::path::Path;

/// Where a model came from: `danlu.json` of its folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name of the run.
    pub name: String,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// BLAKE3 of the recipe's text.
    pub recipe: String,
    /// BLAKE3 of each data manifest, by pack name.
    pub data: BTreeMap<String, String>,
    /// BLAKE3 of the tokenisers' files together, the chat template and the default system prompt
    /// included.
    pub tokenisers: String,
    /// BLAKE3 of each of these files, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Fingerprints of the runs that the training went on from, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// The checkpoint that it was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The format of the weights, where they are kept in tiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

/// An imported checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Name of the file or folder.
    pub file: String,
    /// BLAKE3 of the files of its weights together, in the order of their names.
    pub hash: String,
    /// Licence, as an SPDX identifier, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

/// A transformer with its tokenisers.
#[derive(Debug, Clone)]
pub struct Model {
    /// The transformer.
    pub transformer: Transformer,
    /// Its tokenisers.
    pub tokenisers: Tokenisers,
    /// Where it came from.
    pub info: ModelInfo,
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, "its documented JSON", e))
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Other(format!("{}: {e}", path.display())))?;
    write_atomically(path, text.as_bytes())
}

/// The tensors of a module as files hold them.
pub(crate) fn named(module: &dyn Module) -> Vec<NamedTensor> {
    module
        .parameters()
        .into_iter()
        .map(|p| NamedTensor { name: p.name.clone(), shape: p.shape.clone(), values: p.values() })
        .collect()
}

fn save_network<C: Serialize>(
    folder: &Path,
    name: &str,
    config: &C,
    module: &dyn Module,
    dtype: Dtype,
) -> Result<()> {
    let config = serde_json::to_string(config).map_err(|e| Error::Other(e.to_string()))?;
    let metadata = BTreeMap::from([("config".to_string(), config)]);
    save_tensors(&folder.join(format!("{name}.safetensors")), &named(module), dtype, metadata)
}

/// The `config` in a safetensors file's metadata.
fn network_config<C: DeserializeOwned>(path: &Path) -> Result<C> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let wanted = "a safetensors file with a `config` in its metadata";
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)
        .map_err(|e| Error::file(path, wanted, e))?;
    let text = header.metadata().as_ref().and_then(|m| m.get("config"));
    let text = text.ok_or_else(|| Error::file(path, wanted, "none"))?;
    serde_json::from_str(text).map_err(|e| Error::file(path, wanted, e))
}

impl Tokenisers {
    /// Writes the tokenisers into a model folder.
    pub fn save(&self, folder: &Path, dtype: Dtype) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        write_atomically(&folder.join("tokenizer.json"), self.text.to_json()?.as_bytes())?;
        if let Some(chat) = &self.chat {
            save_chat(folder, chat)?;
        }
        if let Some(image) = &self.image {
            save_network(folder, "image", &image.config, image, dtype)?;
        }
        if let Some(audio) = &self.audio {
            save_network(folder, "audio", &audio.config, audio, dtype)?;
        }
        for (name, recogniser) in self.recognisers() {
            if let Some(recogniser) = recogniser {
                recogniser.save(folder, name, dtype)?;
            }
        }
        Ok(())
    }

    /// The files of a model folder that these tokenisers have nothing for.
    fn not_written(&self) -> Vec<&'static str> {
        let chat = self.chat.is_some();
        let there = [
            (SPECIAL_TOKENS, chat),
            (CHAT_TEMPLATE, chat),
            ("generation_config.json", chat),
            (SYSTEM_PROMPT, self.chat.as_ref().is_some_and(|c| c.system().is_some())),
            ("image.safetensors", self.image.is_some()),
            ("audio.safetensors", self.audio.is_some()),
            ("image-semantic.safetensors", self.image_semantic.is_some()),
            ("audio-semantic.safetensors", self.audio_semantic.is_some()),
        ];
        there.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
    }

    /// The recognisers with the names of their files, in the order of the fingerprint.
    fn recognisers(&self) -> [(&'static str, Option<&Recogniser>); 2] {
        [
            (ImageTokeniser::SEMANTIC, self.image_semantic.as_ref()),
            (AudioTokeniser::SEMANTIC, self.audio_semantic.as_ref()),
        ]
    }

    /// Reads the tokenisers of a model folder, as many as there are. `foreign` is what the model's
    /// vocabulary says of its text tokeniser.
    pub fn load(folder: &Path, foreign: Option<Foreign>, device: &Device) -> Result<Self> {
        let file = |name: &str| Some(folder.join(name)).filter(|p| p.exists());
        Ok(Self {
            text: TextTokeniser::load(&folder.join("tokenizer.json"))?,
            foreign,
            chat: load_chat(folder)?,
            image: match file("image.safetensors") {
                Some(path) => Some(ImageTokeniser::load(&path, device)?),
                None => None,
            },
            audio: match file("audio.safetensors") {
                Some(path) => Some(AudioTokeniser::load(&path, device)?),
                None => None,
            },
            image_semantic: Recogniser::find(folder, ImageTokeniser::SEMANTIC, device)?,
            audio_semantic: Recogniser::find(folder, AudioTokeniser::SEMANTIC, device)?,
        })
    }

    /// The tokenisers' files, and whether a model folder must have each.
    pub const FILES: [(&'static str, bool); 8] = [
        ("tokenizer.json", true),
        (SPECIAL_TOKENS, false),
        (CHAT_TEMPLATE, false),
        (SYSTEM_PROMPT, false),
        ("image.safetensors", false),
        ("audio.safetensors", false),
        ("image-semantic.safetensors", false),
        ("audio-semantic.safetensors", false),
    ];

    /// BLAKE3 of the tokenisers' files in a folder.
    pub fn fingerprint(folder: &Path) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        for (name, needed) in Self::FILES {
            let path = folder.join(name);
            if needed || path.exists() {
                hash.update(name.as_bytes());
                hash.update(&std::fs::read(&path).map_err(|e| Error::io(&path, e))?);
            }
        }
        Ok(hash.finalize().to_hex().to_string())
    }
}

/// The file of a chat template.
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The file that says which shard of a checkpoint of others holds what; ours have none.
const INDEX: &str = "model.safetensors.index.json";
/// The file of the default system prompt.
const SYSTEM_PROMPT: &str = "system_prompt.txt";
/// The file that says which token begins a text and which ends it.
pub(crate) const SPECIAL_TOKENS: &str = "tokenizer_config.json";

fn save_chat(folder: &Path, chat: &ChatTemplate) -> Result<()> {
    write_atomically(&folder.join(CHAT_TEMPLATE), chat.source().as_bytes())?;
    let mut config = serde_json::Map::new();
    for (name, token) in chat.specials() {
        config.insert(name.clone(), token.as_str().into());
    }
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    write_json(&folder.join(SPECIAL_TOKENS), &config)?;
    match chat.system() {
        Some(text) => write_atomically(&folder.join(SYSTEM_PROMPT), text.as_bytes()),
        None => Ok(()),
    }
}

/// The chat template of a model folder, if it has one.
fn load_chat(folder: &Path) -> Result<Option<ChatTemplate>> {
    let text = |name: &str| -> Result<Option<String>> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(None);
        }
        std::fs::read_to_string(&path).map(Some).map_err(|e| Error::io(&path, e))
    };
    let Some(source) = text(CHAT_TEMPLATE)? else { return Ok(None) };
    let config: serde_json::Map<String, serde_json::Value> =
        read_json(&folder.join(SPECIAL_TOKENS))?;
    let specials = config
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, token)| Some((name.clone(), token.as_str()?.to_string())))
        .collect();
    let path = folder.join(CHAT_TEMPLATE);
    ChatTemplate::new(&source, specials, text(SYSTEM_PROMPT)?)
        .map(Some)
        .map_err(|e| Error::file(&path, "a chat template", e))
}

/// BLAKE3 of each of the tokenisers' files in a folder.
fn file_hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let there = Tokenisers::FILES.iter().filter(|(name, _)| folder.join(name).exists());
    there
        .map(|(name, _)| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
            Ok((name.to_string(), blake3::hash(&bytes).to_hex().to_string()))
        })
        .collect()
}

impl Recogniser {
    /// Writes it to `folder/NAME.safetensors`.
    pub fn save(&self, folder: &Path, name: &str, dtype: Dtype) -> Result<()> {
        save_network(folder, name, &self.config, self, dtype)
    }

    /// Reads `folder/NAME.safetensors`, if it is there.
    pub fn find(folder: &Path, name: &str, device: &Device) -> Result<Option<Self>> {
        let path = folder.join(format!("{name}.safetensors"));
        if !path.exists() {
            return Ok(None);
        }
        let config: RecogniserConfig = network_config(&path)?;
        config.check().map_err(|found| {
            Error::file(&path, "sizes of a recogniser within their bounds", found)
        })?;
        let mut module = Self::new(config, 0, device);
        load_parameters(&mut module, &mut load_tensors(&path)?, &path)?;
        Ok(Some(module))
    }
}

impl ImageTokeniser {
    /// Name of the file, without its ending, of what pictures are recognised with.
    pub const SEMANTIC: &'static str = "image-semantic";

    /// Writes it to `folder/image.safetensors`.
    pub fn save(&self, folder: &Path, dtype: Dtype) -> Result<()> {
        save_network(folder, "image", &self.config, self, dtype)
    }

    /// Reads an `image.safetensors`.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let config: ImageTokeniserConfig = network_config(path)?;
        check_levels(path, &config.levels)?;
        let mut module = Self::new(config, 0, device);
        load_parameters(&mut module, &mut load_tensors(path)?, path)?;
        Ok(module)
    }
}

impl AudioTokeniser {
    /// Name of the file, without its ending, of what sounds are recognised with.
    pub const SEMANTIC: &'static str = "audio-semantic";

    /// Writes it to `folder/audio.safetensors`.
    pub fn save(&self, folder: &Path, dtype: Dtype) -> Result<()> {
        save_network(folder, "audio", &self.config, self, dtype)
    }

    /// Reads an `audio.safetensors`.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let config: AudioTokeniserConfig = network_config(path)?;
        check_levels(path, &config.levels)?;
        let mut module = Self::new(config, 0, device);
        load_parameters(&mut module, &mut load_tensors(path)?, path)?;
        Ok(module)
    }
}

fn check_levels(path: &Path, levels: &[u32]) -> Result<()> {
    let size = levels.iter().try_fold(1u32, |a, &l| a.checked_mul(l));
    match size {
        Some(1..=65_536) if levels.iter().all(|&l| l >= 2) => Ok(()),
        _ => Err(Error::file(
            path,
            "levels of at least 2, 65536 codes at most",
            format!("{levels:?}"),
        )),
    }
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// Writes `model.safetensors`, a few tensors in memory at a time, and `config.json`. `values` gives those of
/// a part.
pub(crate) fn write_weights(
    parts: &[Part],
    values: impl Fn(&Part) -> Result<Vec<f32>> + Sync,
    folder: &Path,
    dtype: Dtype,
    config: HfConfig,
) -> Result<()> {
    let shapes: Vec<_> = parts.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_tensors(&folder.join("model.safetensors"), &shapes, dtype, metadata, |i| {
        values(&parts[i])
    })?;
    let config = HfConfig { dtype: Some(torch_name(dtype).into()), ..config };
    write_json(&folder.join("config.json"), &config)
}

impl Model {
    /// Writes the whole model folder in the given precision. Where every matrix is kept in few bits,
    /// the transformer is written as it is, in tiles. I8 is for the tokenisers' networks; a
    /// transformer that is whole is then written as F16.
    pub fn save(&self, folder: &Path, dtype: Dtype) -> Result<()> {
        self.save_with(|part| Ok(part.values(&self.transformer)), folder, dtype)
    }

    /// The same with the values of a transformer that is whole from somewhere else. Where they cannot be
    /// had, nothing in the folder changes.
    pub(crate) fn save_with(
        &self,
        values: impl Fn(&Part) -> Result<Vec<f32>> + Sync,
        folder: &Path,
        dtype: Dtype,
    ) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let vocabulary = self.tokenisers.vocabulary();
        let mut config = HfConfig::from_ours(&self.transformer.config, Some(vocabulary));
        config.bos_token_id = self.tokenisers.begin_of_text().into();
        let generation = config.generation();
        let (stale, format) = match self.transformer.frozen_format() {
            Some(format)
                if self
                    .transformer
                    .parameters()
                    .iter()
                    .all(|p| p.frozen.is_some() || !in_tiles(p)) =>
            {
                write_tiles(&self.transformer, &folder.join(TILES))?;
                let config = HfConfig { dtype: Some(format.name().into()), ..config };
                write_json(&folder.join("config.json"), &config)?;
                ("model.safetensors", Some(format.name().to_string()))
            }
            _ => {
                let dtype = if dtype == Dtype::I8 { Dtype::F16 } else { dtype };
                write_weights(&parts_of(&self.transformer), values, folder, dtype, config)?;
                (TILES, None)
            }
        };
        self.tokenisers.save(folder, dtype)?;
        // Of what was here before, nothing may be taken for this model's.
        for stale in self.tokenisers.not_written().into_iter().chain([stale, INDEX]) {
            match std::fs::remove_file(folder.join(stale)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(folder.join(stale), e));
                }
                _ => {}
            }
        }
        if self.tokenisers.chat.is_some() {
            write_json(&folder.join("generation_config.json"), &generation)?;
        }
        let info = ModelInfo {
            tokenisers: Tokenisers::fingerprint(folder)?,
            files: file_hashes(folder)?,
            weights: format,
            ..self.info.clone()
        };
        write_json(&folder.join("danlu.json"), &info)
    }

    /// The vocabulary of the model in a folder.
    pub fn vocabulary(folder: &Path) -> Result<Vocabulary> {
        let path = folder.join("config.json");
        let file: HfConfig = read_json(&path)?;
        file.danlu_vocabulary
            .ok_or_else(|| Error::file(&path, "`danlu_vocabulary` (see danlu import)", "none"))
    }

    /// The sizes of the model in a folder.
    pub fn config(folder: &Path) -> Result<crate::TransformerConfig> {
        let path = folder.join("config.json");
        HfConfig::read(&path)?.to_ours(&path)
    }

    /// What a model folder says of itself, if the tokenisers and templates in it are those that the
    /// model was trained with. Reads no weights.
    pub fn check_files(folder: &Path) -> Result<ModelInfo> {
        let info: ModelInfo = read_json(&folder.join("danlu.json"))?;
        let hashes = file_hashes(folder)?;
        for (name, hash) in &info.files {
            let found = hashes.get(name).map_or("no such file", String::as_str);
            if found != hash {
                let found = format!("{found}; it is not the one of this model");
                return Err(Error::file(
                    folder.join(name),
                    format!("the file of hash {hash}"),
                    found,
                ));
            }
        }
        let found = Tokenisers::fingerprint(folder)?;
        if info.tokenisers != found {
            return Err(Error::file(
                folder.join("danlu.json"),
                format!("tokenisers with hash {}", info.tokenisers),
                format!("tokenisers with hash {found}; they are not the ones of this model"),
            ));
        }
        Ok(info)
    }

    /// The model's folder of a path: a run's folder stands for the model in it.
    pub fn folder(path: &Path) -> std::path::PathBuf {
        let inner = path.join("model");
        if inner.join("config.json").exists() { inner } else { path.to_path_buf() }
    }

    /// The file of a model folder's weights: whole, or in tiles.
    pub fn weights_file(folder: &Path) -> std::path::PathBuf {
        let whole = folder.join("model.safetensors");
        let tiles = folder.join(TILES);
        if !whole.exists() && tiles.exists() { tiles } else { whole }
    }

    /// BLAKE3 of a model folder's weights, by which adapters know their base.
    pub fn weights_hash(folder: &Path) -> Result<String> {
        let path = Self::weights_file(folder);
        let mut hash = blake3::Hasher::new();
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
        hash.update_reader(file).map_err(|e| Error::io(&path, e))?;
        Ok(hash.finalize().to_hex().to_string())
    }

    /// Opens a model folder and puts adapters on it, the lowest first. Each must have been learnt
    /// on this base and on those beneath it. Returns the model, and the hashes of the base and of
    /// the adapters.
    pub fn load_adapted(
        folder: &Path,
        adapters: &[std::path::PathBuf],
        device: &Device,
    ) -> Result<(Self, String, Vec<String>)> {
        let mut model = Self::load(folder, device)?;
        let base = if adapters.is_empty() { String::new() } else { Self::weights_hash(folder)? };
        let mut hashes = Vec::new();
        for path in adapters {
            let adapter = Adapter::load(path)?;
            adapter.check_base(&base, &hashes)?;
            check_named(&adapter, path, folder, &base)?;
            model.transformer.attach(&adapter, device)?;
            hashes.push(adapter.hash());
        }
        Ok((model, base, hashes))
    }

    /// Opens a model folder. The tokenisers must be the ones that the model was trained with.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let path = folder.join("config.json");
        let file = HfConfig::read(&path)?;
        let config = file.to_ours(&path)?;
        let foreign = file.danlu_vocabulary.as_ref().and_then(|v| v.foreign.clone());
        let tokenisers = Tokenisers::load(folder, foreign, device)?;
        let vocabulary = tokenisers.vocabulary();
        if file.danlu_vocabulary.as_ref() != Some(&vocabulary)
            || config.vocabulary != vocabulary.size()
        {
            return Err(Error::file(
                &path,
                format!("the vocabulary of the tokenisers beside it, {vocabulary:?}"),
                format!("{:?} of {}", file.danlu_vocabulary, config.vocabulary),
            ));
        }
        let info = Self::check_files(folder)?;
        let mut transformer = Transformer::blank(config, device);
        let tiles = Self::weights_file(folder);
        match tiles.ends_with(TILES) {
            true => map_tiles(&mut transformer, &tiles)?,
            false => fill(&mut transformer, &Shards::of_folder(folder)?)?,
        }
        // A tokeniser takes many times its size to read.
        danlu_ops::give_back();
        Ok(Self { transformer, tokenisers, info })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::arch::TransformerConfig;
    use crate::modality::Eye;
    use danlu_core::recipe::{AudioRecipe, ImageRecipe, ModelRecipe};

    /// Untrained tokenisers, as small as they get.
    pub(crate) fn tiny_tokenisers() -> Tokenisers {
        let d = danlu_ops::cpu_device();
        let image =
            ImageRecipe { levels: vec![4, 3], channels: 8, blocks: 1, ..Default::default() };
        let audio = AudioRecipe {
            levels: vec![4, 3],
            channels: 8,
            blocks: 1,
            mels: 20,
            ..Default::default()
        };
        Tokenisers {
            text: TextTokeniser::train(["ok hi a b c"].into_iter(), 260).expect("trains"),
            foreign: None,
            chat: None,
            image: Some(ImageTokeniser::new((&image).into(), 1, &d)),
            audio: Some(AudioTokeniser::new((&audio).into(), 1, &d)),
            image_semantic: Some(Recogniser::new(tiny_recogniser(Eye::Picture, 7), 2, &d)),
            audio_semantic: Some(Recogniser::new(tiny_recogniser(Eye::Sound, 5), 3, &d)),
        }
    }

    fn tiny_recogniser(eye: Eye, classes: usize) -> RecogniserConfig {
        let (inputs, frames) = (if eye == Eye::Picture { 12 } else { 20 }, 32);
        RecogniserConfig { eye, inputs, frames, channels: 4, blocks: 1, width: 8, classes }
    }

    /// An untrained model, as small as it gets.
    pub(crate) fn tiny_model(seed: u64) -> Model {
        let tokenisers = tiny_tokenisers();
        let recipe =
            ModelRecipe { depth: 2, width: Some(24), head_dim: Some(6), ..Default::default() };
        let size = tokenisers.vocabulary().size();
        let config = TransformerConfig::from_recipe(&recipe, size, 160).expect("valid");
        let transformer = Transformer::new(config, seed, &danlu_ops::cpu_device());
        Model { transformer, tokenisers, info: ModelInfo::default() }
    }

    #[test]
    fn a_save_over_another_model_leaves_nothing_of_it() {
        let folder = std::env::temp_dir().join(format!("danlu-over-{}", std::process::id()));
        let mut model = tiny_model(3);
        model.save(&folder, Dtype::F32).expect("saves");
        let old = [SYSTEM_PROMPT, CHAT_TEMPLATE, INDEX, "image.safetensors"];
        old[..3].iter().for_each(|name| std::fs::write(folder.join(name), "x").expect("writes"));
        model.tokenisers.image = None;
        model.save(&folder, Dtype::F32).expect("saves");
        for name in old {
            assert!(!folder.join(name).exists(), "{name}");
        }
        assert!(folder.join("audio.safetensors").exists());
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn a_folder_comes_back_and_foreign_tokenisers_are_refused() {
        let folder = std::env::temp_dir().join(format!("danlu-model-{}", std::process::id()));
        let device = danlu_ops::cpu_device();
        let model = tiny_model(3);
        model.save(&folder, Dtype::F32).expect("saves");
        let back = Model::load(&folder, &device).expect("loads");
        for (a, b) in model.transformer.parameters().iter().zip(back.transformer.parameters()) {
            assert_eq!((&a.name, &a.shape, a.values()), (&b.name, &b.shape, b.values()));
        }
        let mut other = tiny_tokenisers();
        let config = other.image.take().expect("has one").config;
        other.image = Some(ImageTokeniser::new(config, 99, &device));
        other.save(&folder, Dtype::F32).expect("saves");
        let error = Model::load(&folder, &device).expect_err("foreign").to_string();
        assert!(error.contains("image.safetensors") && error.contains("hash"), "{error}");
        std::fs::remove_file(folder.join("model.safetensors")).expect("removes");
        std::fs::remove_dir_all(&folder).expect("removes");
    }
}
