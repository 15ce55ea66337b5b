//! Adapters of other programs: a PEFT folder becomes an adapter of a base that is at hand.

use super::Adapter;
use super::file::base_named;
use crate::import::files_hash;
use crate::io::{Gguf, GgufWeights, Shards, Weights, parts_of};
use crate::model::{Model, ModelInfo};
use danlu_core::{Error, Result};
use std::path::{Path, PathBuf};

/// An adapter that was taken in, and how its base was checked.
#[derive(Debug)]
pub struct Adopted {
    /// The adapter; it records the hash of the base from now on.
    pub adapter: Adapter,
    /// What is known of the base.
    pub base: ModelInfo,
    /// What it says of its base, where that could not be held against the one at hand.
    pub unchecked: Option<String>,
}

/// Reads an adapter's folder and makes it one of the model in the folder `base`.
///
/// # Errors
/// If the folder is none that [`Adapter::load`] reads, if shapes do not fit the base, or if it was
/// learnt on another: by the hash in its `danlu.json`, or, where `base_model_name_or_path` is a
/// checkpoint on this machine, by that one's weights. Both hashes are named.
pub fn adopt(folder: &Path, base: &Path) -> Result<Adopted> {
    let mut adapter = Adapter::load(folder)?;
    let hash = Model::weights_hash(base)?;
    adapter.check_base(&hash, &[])?;
    let unchecked = check_named(&adapter, folder, base, &hash)?;
    let device = danlu_ops::cpu_device();
    let mut model = Model::load(base, &device)?;
    model.transformer.attach(&adapter, &device)?;
    adapter.info.base = Some(hash);
    Ok(Adopted { adapter, base: model.info, unchecked })
}

/// Holds an adapter of another program, read from `folder`, against the model in the folder `base`, whose
/// weights have the hash `hash`: by the checkpoint that it names as its base, if that is on this machine.
/// What it names, if it is not. One of ours is held by its hash and says nothing here.
pub fn check_named(
    adapter: &Adapter,
    folder: &Path,
    base: &Path,
    hash: &str,
) -> Result<Option<String>> {
    if adapter.info.base.is_some() {
        return Ok(None);
    }
    let Some(named) = base_named(folder)? else { return Ok(None) };
    let path = PathBuf::from(&named);
    // A relative path is one beside the adapter, or what it is here.
    match [folder.join(&path), path].into_iter().find(|p| p.exists()) {
        Some(path) => same_weights(folder, base, hash, &path).map(|()| None),
        None => Ok(Some(named)),
    }
}

/// Refuses a checkpoint whose weights are not those of the model in the folder `base`, whose file has
/// the hash `hash`.
fn same_weights(folder: &Path, base: &Path, hash: &str, path: &Path) -> Result<()> {
    let (weights, files): (Box<dyn Weights>, Vec<PathBuf>) = if path.is_dir() {
        let shards = Shards::of_folder(path)?;
        let files = shards.files();
        (Box::new(shards), files)
    } else {
        (Box::new(GgufWeights::new(Gguf::open(path)?)?), vec![path.into()])
    };
    let found = files_hash(&files)?;
    // What was tuned or merged since has other weights than where it came from.
    let info = Model::check_files(base)?;
    let untouched = info.from.is_empty() && info.steps == 0;
    let origin = info.origin.as_ref().filter(|_| untouched).map(|o| o.hash.as_str());
    if found == hash || Some(found.as_str()) == origin {
        return Ok(());
    }
    // Another file may hold the same numbers.
    let model = Model::load(base, &danlu_ops::cpu_device())?;
    let parts = parts_of(&model.transformer);
    let whole = model.transformer.frozen_format().is_none();
    let mut same = whole && weights.names().len() == parts.len();
    for part in &parts {
        same = same
            && weights.shape(&part.name).as_ref() == Some(&part.shape)
            && weights.read(&part.name)?.values == part.values(&model.transformer);
    }
    if same {
        return Ok(());
    }
    let wanted = format!("an adapter learnt on the base with hash {hash}");
    let found = format!("one learnt on {}, with hash {found}", path.display());
    Err(Error::file(folder, wanted, found))
}

#[cfg(test)]
mod tests {
    use super::super::tests::noisy;
    use super::*;
    use crate::io::Dtype;
    use crate::model::tests::tiny_model;
    use danlu_core::LoraConfig;

    #[test]
    fn adapters_of_others_find_their_base_and_no_other() {
        let at = std::env::temp_dir().join(format!("danlu-adopt-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&at);
        let path = |name: &str| at.join(name);
        let (model, other) = (tiny_model(1), tiny_model(2));
        model.save(&path("base"), Dtype::F32).expect("saves");
        other.save(&path("other"), Dtype::F32).expect("saves");
        crate::export::to_folder(&model, &path("hf"), Dtype::F32, None).expect("writes");
        let peft = path("peft");
        let adapter = noisy(&LoraConfig { rank: 2, ..Default::default() }, 3, "theirs");
        adapter.save(&peft).expect("saves");
        let info = peft.join("danlu.json");
        let config = peft.join("adapter_config.json");
        let named = |name: &str| {
            // As PEFT writes it: nothing of ours beside it.
            let _ = std::fs::remove_file(&info);
            let text = std::fs::read_to_string(&config).expect("reads");
            let mut all: serde_json::Value = serde_json::from_str(&text).expect("json");
            all["base_model_name_or_path"] = name.into();
            std::fs::write(&config, all.to_string()).expect("writes");
        };
        // A name that is nowhere here cannot be checked, and that is said.
        named("some/where-else");
        let taken = adopt(&peft, &path("base")).expect("fits");
        assert_eq!(taken.unchecked.as_deref(), Some("some/where-else"));
        let hash = Model::weights_hash(&path("base")).expect("hashes");
        assert_eq!(taken.adapter.info.base.as_ref(), Some(&hash));
        // Another file with the same weights is the base; other weights are not.
        named("../hf");
        let taken = adopt(&peft, &path("base")).expect("is its base");
        assert_eq!(taken.unchecked, None);
        // The same where it is used as it is.
        let device = danlu_ops::cpu_device();
        let used = std::slice::from_ref(&peft);
        Model::load_adapted(&path("base"), used, &device).expect("is its base");
        let used = Model::load_adapted(&path("other"), used, &device);
        let wrong = used.expect_err("another").to_string();
        assert!(wrong.contains("an adapter learnt on the base with hash"), "{wrong}");
        let wrong = adopt(&peft, &path("other")).expect_err("another").to_string();
        let theirs = files_hash(&[path("hf/model.safetensors")]).expect("hashes");
        let ours = Model::weights_hash(&path("other")).expect("hashes");
        assert!(wrong.contains(&theirs) && wrong.contains(&ours), "{wrong}");
        // What was tuned on from a checkpoint is no longer that checkpoint.
        let mut tuned = tiny_model(2);
        let (file, hash_there) = ("hf".to_string(), theirs.clone());
        tuned.info.origin = Some(crate::model::Origin { file, hash: hash_there, licence: None });
        tuned.save(&path("tuned"), Dtype::F32).expect("saves");
        adopt(&peft, &path("tuned")).expect("just imported");
        tuned.info.from = vec!["its base".into()];
        tuned.save(&path("tuned"), Dtype::F32).expect("saves");
        let wrong = adopt(&peft, &path("tuned")).expect_err("tuned since").to_string();
        assert!(wrong.contains(&theirs), "{wrong}");
        // Once taken in, it goes with that base alone.
        taken.adapter.save(&path("own")).expect("saves");
        adopt(&path("own"), &path("base")).expect("its own");
        let wrong = adopt(&path("own"), &path("other")).expect_err("another").to_string();
        assert!(wrong.contains(&hash) && wrong.contains(&ours), "{wrong}");
        std::fs::remove_dir_all(&at).expect("removes");
    }
}
