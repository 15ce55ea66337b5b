//! What a checkpoint says of itself.

use super::State;
use super::shards::Shard;
use crate::run::read;
use danlu_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file; a folder without it holds no whole checkpoint, or one of the old format.
pub(crate) const MANIFEST: &str = "manifest.json";

const FORMAT: &str = "danlu-checkpoint/2";

/// What a run was made of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Seed of everything random: sample `i` and every draw are functions of it and of indices in
    /// [`State`], so there is no other state of a generator.
    pub seed: u64,
    /// BLAKE3 of the recipe's training part.
    pub recipe: String,
    /// BLAKE3 of each pack's manifest and of each sample file, by name.
    pub data: BTreeMap<String, String>,
    /// BLAKE3 over the tokenisers.
    pub tokenisers: String,
}

/// A checkpoint without its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    /// Where the training stands.
    pub state: State,
    /// What it is a training of.
    pub facts: Facts,
    /// The files with the tensors.
    pub shards: Vec<Shard>,
    /// BLAKE3 of the fields above, so that no digit of them changes unseen.
    seal: String,
}

impl Manifest {
    pub(crate) fn new(state: State, facts: Facts, shards: Vec<Shard>) -> Self {
        let mut this = Self { format: FORMAT.into(), state, facts, shards, seal: String::new() };
        this.seal = this.hash();
        this
    }

    fn hash(&self) -> String {
        let bare = Self { seal: String::new(), ..self.clone() };
        let json = serde_json::to_vec(&bare).expect("a manifest is always JSON");
        blake3::hash(&json).to_hex().to_string()
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::Other(e.to_string()))
    }

    /// Reads the manifest in a checkpoint's folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        Self::parse(&path, &read(&path)?)
    }

    /// Takes a manifest out of the text of `path`.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self> {
        let manifest: Self = serde_json::from_str(text)
            .map_err(|e| Error::file(path, "the manifest of a checkpoint", e))?;
        if manifest.format != FORMAT {
            return Err(Error::file(path, format!("format {FORMAT}"), manifest.format));
        }
        if manifest.seal != manifest.hash() {
            let wanted = format!("a manifest with BLAKE3 {}", manifest.seal);
            return Err(Error::file(path, wanted, manifest.hash()));
        }
        Ok(manifest)
    }
}
