//! Tensors in files of bounded size (safetensors), each with its length and hash.

use crate::fault;
use danlu_core::{Error, Result};
use danlu_model::io::NamedTensor;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

/// One file of tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name, beside the manifest.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of all of it.
    pub blake3: String,
}

/// Cuts tensors into stretches of at most `limit` bytes; one that is larger is alone.
pub(crate) fn split(tensors: &[NamedTensor], limit: usize) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (i, t) in tensors.iter().enumerate() {
        let own = size_of::<f32>() * t.values.len();
        if i > first && bytes + own > limit {
            all.push(first..i);
            (first, bytes) = (i, 0);
        }
        bytes += own;
    }
    all.push(first..tensors.len());
    all
}

/// Writes tensors as one file that is on the disk when this returns. Numbers become bytes piece by
/// piece, so no copy of the file is in memory.
pub(crate) fn write(folder: &Path, file: String, tensors: &[NamedTensor]) -> Result<Shard> {
    let path = folder.join(&file);
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for t in tensors {
        let start = end;
        end += size_of::<f32>() * t.values.len();
        let entry = serde_json::json!({
            "dtype": "F32", "shape": t.shape, "data_offsets": [start, end]
        });
        header.insert(t.name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let write = || -> std::io::Result<Shard> {
        let mut hash = blake3::Hasher::new();
        let mut out = BufWriter::with_capacity(1 << 18, File::create(&path)?);
        let mut bytes = 0;
        let mut put = |piece: &[u8]| {
            hash.update(piece);
            bytes += piece.len() as u64;
            out.write_all(piece)
        };
        put(&(header.len() as u64).to_le_bytes())?;
        put(header.as_bytes())?;
        for numbers in tensors.iter().flat_map(|t| t.values.chunks(1 << 14)) {
            let piece: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
            put(&piece)?;
        }
        if fault::fails("tensors") {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        let opened = out.into_inner().map_err(|e| e.into_error())?;
        fault::point("shard-written");
        opened.sync_all()?;
        fault::point("shard-synced");
        Ok(Shard { file, bytes, blake3: hash.finalize().to_hex().to_string() })
    };
    write().map_err(|e| Error::io(&path, e))
}

impl Shard {
    /// Refuses bytes that are not those that were written; `path` is for messages.
    pub(crate) fn check(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let found = blake3::hash(bytes).to_hex();
        if found.as_str() == self.blake3 {
            return Ok(());
        }
        Err(Error::file(path, format!("a shard with BLAKE3 {}", self.blake3), found))
    }
}

/// Reads a file of tensors after its length and hash have been found right.
pub(crate) fn read(folder: &Path, shard: &Shard) -> Result<Vec<NamedTensor>> {
    let path = folder.join(&shard.file);
    if Path::new(&shard.file).components().count() != 1 {
        return Err(Error::file(&path, "a file beside the manifest", "a path"));
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    if bytes.len() as u64 != shard.bytes {
        let wanted = format!("a shard of {} bytes", shard.bytes);
        return Err(Error::file(&path, wanted, format!("{} bytes", bytes.len())));
    }
    shard.check(&path, &bytes)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::file(&path, "a safetensors file", e))?;
    let tensors = file.iter().map(|(name, view)| {
        let pieces = view.data().as_chunks::<4>().0;
        let values = pieces.iter().map(|&b| f32::from_le_bytes(b)).collect();
        NamedTensor { name: name.to_string(), shape: view.shape().to_vec(), values }
    });
    Ok(tensors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<NamedTensor> {
        let one = |i: usize, n: usize| NamedTensor {
            name: format!("t{i}"),
            shape: vec![n],
            values: (0..n).map(|v| (v * i) as f32 - 0.5).collect(),
        };
        vec![one(1, 10), one(2, 100), one(3, 5), one(4, 5), one(5, 0)]
    }

    #[test]
    fn shards_hold_every_tensor_once_and_stay_under_the_limit() {
        let all = tensors();
        let ends = |all: &[NamedTensor], limit: usize| -> Vec<usize> {
            split(all, limit).into_iter().flat_map(|r| [r.start, r.end]).collect()
        };
        assert_eq!(ends(&all, 64), [0, 1, 1, 2, 2, 5]);
        assert_eq!(ends(&all, 1 << 20), [0, 5]);
        assert_eq!(ends(&[], 1), [0, 0]);
    }

    #[test]
    fn tensors_come_back_and_other_readers_understand_the_file() {
        let folder = std::env::temp_dir().join(format!("danlu-shards-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("makes");
        let all = tensors();
        let shard = write(&folder, "a.safetensors".into(), &all).expect("writes");
        let mut back = read(&folder, &shard).expect("reads");
        back.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(back, all);
        let path = folder.join("a.safetensors");
        assert_eq!(danlu_model::io::load_tensors(&path).expect("reads")["t2"], all[1]);
        let whole = std::fs::read(&path).expect("reads");
        for (bad, want) in [
            ([&whole[..whole.len() - 3], &[whole[whole.len() - 3] ^ 1, 0, 0]].concat(), "BLAKE3"),
            (whole[..50].to_vec(), "bytes"),
        ] {
            std::fs::write(&path, bad).expect("writes");
            let error = read(&folder, &shard).expect_err(want).to_string();
            assert!(error.contains("a.safetensors") && error.contains(want), "{error}");
        }
        std::fs::remove_dir_all(&folder).expect("removes");
    }
}
