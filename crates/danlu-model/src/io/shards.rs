//! Safetensors files read one tensor at a time: one file, or the shards that an index names. Headers
//! are checked whole before any tensor is read.

use super::quant::Packing;
use super::{NamedTensor, open_regular, read_regular};
use danlu_core::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// Longest header, in bytes; that of a model of a thousand layers is a few megabytes.
const HEADER: u64 = 100_000_000;
/// The file of a model that is one file.
const SINGLE: &str = "model.safetensors";
/// The file that says which shard holds what.
const INDEX: &str = "model.safetensors.index.json";

/// Tensors by name, each read when it is asked for, by any thread.
pub trait Weights: Sync {
    /// The file or folder, for messages.
    fn path(&self) -> &Path;
    /// Names of all tensors.
    fn names(&self) -> Vec<String>;
    /// Dimensions of a tensor, the slowest first; `None` if there is none of that name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// A tensor as `f32`.
    fn read(&self, name: &str) -> Result<NamedTensor>;
}

/// Where a tensor is.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    shape: Vec<usize>,
    packing: Packing,
    /// First byte, counted from the beginning of the file.
    at: u64,
    bytes: usize,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    places: BTreeMap<String, Place>,
}

/// The tensors of one or several safetensors files.
#[derive(Debug)]
pub struct Shards {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Which shard holds a tensor.
    of: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens one file.
    pub fn open(path: &Path) -> Result<Self> {
        let shard = Shard::open(path)?;
        let of = shard.places.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { path: path.into(), shards: vec![shard], of })
    }

    /// Opens the weights of a model folder: its `model.safetensors`, or without one the shards of its index.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        // Where both are there transformers reads the one file.
        let single = folder.join(SINGLE);
        if single.exists() {
            return Self::open(&single);
        }
        let index = folder.join(INDEX);
        if !index.exists() {
            let pickled = |name: &str| name.ends_with(".bin") || name.ends_with(".pt");
            let found = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
            let found = found
                .filter_map(|e| e.ok()?.file_name().into_string().ok())
                .find(|name| pickled(name) || name.ends_with(".pth"));
            let found = match found {
                Some(name) => format!("{name}, which may run code when it is read"),
                None => "neither".into(),
            };
            return Err(Error::file(folder, format!("{SINGLE} or {INDEX}"), found));
        }
        let map = parse_index(&index, &read_regular(&index, HEADER)?)?;
        let mut all = Self { path: index.clone(), shards: Vec::new(), of: BTreeMap::new() };
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, file) in &map {
            let number = match numbers.get(file.as_str()) {
                Some(n) => *n,
                None => {
                    all.shards.push(Shard::open(&folder.join(file))?);
                    numbers.insert(file, all.shards.len() - 1);
                    all.shards.len() - 1
                }
            };
            if !all.shards[number].places.contains_key(name) {
                let found = "none of that name there";
                return Err(Error::file(&index, format!("tensor `{name}` in {file}"), found));
            }
            all.of.insert(name.clone(), number);
        }
        for (number, shard) in all.shards.iter().enumerate() {
            let stray = shard.places.keys().find(|name| all.of.get(*name) != Some(&number));
            if let Some(name) = stray {
                let wanted = "tensors that the index names, each in one shard";
                return Err(Error::file(&shard.path, wanted, format!("`{name}` besides")));
            }
        }
        Ok(all)
    }
}

impl Shards {
    /// The files, in the order of their names.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = self.shards.iter().map(|s| s.path.clone()).collect();
        all.sort();
        all
    }
}

impl Weights for Shards {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.of.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.shards[*self.of.get(name)?].places[name].shape.clone())
    }

    fn read(&self, name: &str) -> Result<NamedTensor> {
        let Some(&number) = self.of.get(name) else {
            let wanted = format!("a tensor `{name}`");
            return Err(Error::file(&self.path, wanted, "none of that name"));
        };
        let shard = &self.shards[number];
        let place = &shard.places[name];
        let bytes = read_at(&shard.file, place.at, place.bytes);
        let bytes = bytes.map_err(|e| Error::io(&shard.path, e))?;
        let values = place.packing.unpack(&bytes);
        Ok(NamedTensor { name: name.into(), shape: place.shape.clone(), values })
    }
}

/// `count` bytes of a file from byte `at` on; threads take turns.
pub(super) fn read_at(file: &Mutex<File>, at: u64, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    // Whoever panicked in here left no more than a place in the file, and that is set anew.
    let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Which file holds each tensor, by the bytes of an index; files are plain names of safetensors
/// files beside it.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Pairs<String>,
    }
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|e| Error::file(path, "an index with a `weight_map`", e))?;
    let mut map = BTreeMap::new();
    for (name, file) in index.weight_map.0 {
        let plain =
            matches!(Path::new(&file).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if !plain || file.contains(['/', '\\', '\0']) || !file.ends_with(".safetensors") {
            let wanted = "names of safetensors files in the same folder";
            return Err(Error::file(path, wanted, format!("{file:?} for `{name}`")));
        }
        if map.insert(name.clone(), file).is_some() {
            return Err(Error::file(path, "every tensor once", format!("`{name}` twice")));
        }
    }
    if map.is_empty() {
        return Err(Error::file(path, "tensors in `weight_map`", "none"));
    }
    Ok(map)
}

/// A JSON object with its keys as they stand, doubles included.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Each<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Each<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Pairs<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    all.push(pair);
                }
                Ok(Pairs(all))
            }
        }
        d.deserialize_map(Each(std::marker::PhantomData))
    }
}

/// One entry of a header: a tensor, or the metadata.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Tensor {
        dtype: String,
        shape: Vec<u64>,
        data_offsets: [u64; 2],
    },
    #[expect(dead_code, reason = "read to be checked: metadata is strings alone")]
    Metadata(BTreeMap<String, String>),
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let mut file = open_regular(path)?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let places = read_header(path, &mut file, size)?;
        Ok(Self { path: path.into(), file: Mutex::new(file), places })
    }
}

/// Checks the header of a safetensors file that is in memory whole; returns the names of its tensors.
/// `path` is for messages.
pub fn check_safetensors(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    Ok(read_header(path, &mut &bytes[..], bytes.len() as u64)?.into_keys().collect())
}

/// Reads and checks the header of a safetensors file of `size` bytes.
fn read_header(path: &Path, from: &mut dyn Read, size: u64) -> Result<BTreeMap<String, Place>> {
    let wrong = |wanted: String, found: String| Err(Error::file(path, wanted, found));
    let mut length = [0; 8];
    if size < 8 {
        return wrong("a safetensors file".into(), format!("{size} bytes"));
    }
    from.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
    let length = u64::from_le_bytes(length);
    let most = (size - 8).min(HEADER);
    if length > most {
        return wrong(format!("a safetensors header of at most {most} bytes"), length.to_string());
    }
    let mut header = vec![0; length as usize];
    from.read_exact(&mut header).map_err(|e| Error::io(path, e))?;
    let entries: Pairs<Entry> = serde_json::from_slice(&header)
        .map_err(|e| Error::file(path, "a safetensors header in JSON", e))?;
    let data = size - 8 - length;
    let mut places = BTreeMap::new();
    let mut order = Vec::new();
    let mut metadata = false;
    for (name, entry) in entries.0 {
        let (dtype, shape, [from, to]) = match entry {
            Entry::Metadata(_) if name == "__metadata__" && !metadata => {
                metadata = true;
                continue;
            }
            Entry::Metadata(_) => {
                let wanted = format!("`dtype`, `shape` and `data_offsets` of tensor `{name}`");
                return wrong(wanted, "other keys".into());
            }
            Entry::Tensor { dtype, shape, data_offsets } => (dtype, shape, data_offsets),
        };
        let packing = match dtype.as_str() {
            "F32" => Packing::F32,
            "F16" => Packing::F16,
            "BF16" => Packing::Bf16,
            other => return wrong(format!("tensor `{name}` as F32, F16 or BF16"), other.into()),
        };
        let values = shape.iter().try_fold(1u64, |a, &d| a.checked_mul(d));
        let bytes = values.and_then(|n| n.checked_mul(packing.bytes(1) as u64));
        let (Some(bytes), true) = (bytes, from <= to && to <= data) else {
            return wrong(
                format!("tensor `{name}` inside the {data} bytes of data"),
                format!("shape {shape:?} in bytes {from} to {to}"),
            );
        };
        if bytes != to - from {
            let wanted = format!("{bytes} bytes for tensor `{name}` of shape {shape:?} as {dtype}");
            return wrong(wanted, (to - from).to_string());
        }
        let shape = shape.iter().map(|&d| d as usize).collect();
        let place = Place { shape, packing, at: 8 + length + from, bytes: bytes as usize };
        order.push((from, to, name.clone()));
        if places.insert(name.clone(), place).is_some() {
            return wrong("every tensor once".into(), format!("`{name}` twice"));
        }
    }
    order.sort();
    let mut end = 0;
    for (from, to, name) in order {
        if from != end {
            let wanted = format!("tensor `{name}` to begin at byte {end}, where the last one ends");
            return wrong(wanted, from.to_string());
        }
        end = to;
    }
    if end != data {
        return wrong(format!("{end} bytes of data, as the header says"), data.to_string());
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Dtype, save_tensors};

    fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Place>> {
        read_header(Path::new("hostile.safetensors"), &mut &bytes[..], bytes.len() as u64)
    }

    /// A file of a header and a number of bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    fn entry(name: &str, dtype: &str, shape: &str, from: u64, to: u64) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let one = |e: String, data| file(&format!("{{{e}}}"), data);
        let two = |a: String, b: String, data| file(&format!("{{{a},{b}}}"), data);
        let plain = |name: &str, from, to| entry(name, "F32", "[2]", from, to);
        let mut endless = (1u64 << 63).to_le_bytes().to_vec();
        endless.extend(b"{}");
        let overflow = entry("a", "F32", "[9223372036854775807,4]", 0, 8);
        let deep = format!("{}{}", r#"{"__metadata__":"#, "[".repeat(100_000));
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("empty", vec![], "a safetensors file"),
            ("header of 2^63", endless, "9223372036854775808"),
            ("no JSON", file("{", 0), "header in JSON"),
            ("deep JSON", file(&deep, 0), "header in JSON"),
            ("overlap", two(plain("a", 0, 8), plain("b", 4, 12), 12), "`b` to begin at byte 8"),
            ("hole", two(plain("a", 0, 8), plain("b", 12, 20), 20), "`b` to begin at byte 8"),
            ("bytes after the end", one(plain("a", 0, 8), 12), "8 bytes of data"),
            ("past the end", one(plain("a", 0, 8), 4), "inside the 4 bytes"),
            ("backwards", one(plain("a", 8, 0), 8), "`a`"),
            ("twice", two(plain("a", 0, 8), plain("a", 8, 16), 16), "`a` twice"),
            ("overflow", one(overflow, 8), "`a`"),
            ("shape", one(entry("a", "F32", "[3]", 0, 8), 8), "12 bytes for tensor `a`"),
            ("dtype", one(entry("a", "F64", "[1]", 0, 8), 8), "`a` as F32, F16 or BF16"),
            ("other keys", file(r#"{"a":{"x":"y"}}"#, 0), "`dtype`"),
        ];
        for (what, bytes, wanted) in cases {
            let error = parse(&bytes).expect_err(what).to_string();
            assert!(error.contains("hostile.safetensors") && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn hostile_indexes_are_refused_by_name() {
        for (text, wanted) in [
            (r#"{"weight_map":{"a":"../../etc/passwd"}}"#, "passwd"),
            (r#"{"weight_map":{"a":"/x.safetensors"}}"#, "/x.safetensors"),
            (r#"{"weight_map":{"a":"..\\x.safetensors"}}"#, "`a`"),
            (r#"{"weight_map":{"a":"y/x.safetensors"}}"#, "y/x.safetensors"),
            (r#"{"weight_map":{"a":"pytorch_model.bin"}}"#, "pytorch_model.bin"),
            (r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#, "`a` twice"),
            (r#"{"weight_map":{}}"#, "none"),
            (r#"{"weight_map":[]}"#, "weight_map"),
            ("{}", "weight_map"),
            ("", "weight_map"),
        ] {
            let error = parse_index(Path::new("index.json"), text.as_bytes()).expect_err(text);
            let error = error.to_string();
            assert!(error.contains("index.json") && error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn shards_come_together_and_must_agree_with_the_index() {
        let folder = std::env::temp_dir().join(format!("danlu-shards-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("makes");
        let tensor = |name: &str, v: f32| NamedTensor {
            name: name.into(),
            shape: vec![2],
            values: vec![v, -v],
        };
        let save = |file: &str, all: &[NamedTensor]| {
            save_tensors(&folder.join(file), all, Dtype::BF16, BTreeMap::new()).expect("saves");
        };
        save("1.safetensors", &[tensor("a", 1.0), tensor("b", 2.0)]);
        save("2.safetensors", &[tensor("c", 3.0)]);
        let index = |text: &str| std::fs::write(folder.join(INDEX), text).expect("writes");
        index(r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}"#);
        let all = Shards::of_folder(&folder).expect("opens");
        assert_eq!(all.names(), ["a", "b", "c"]);
        assert_eq!(all.read("c").expect("reads"), tensor("c", 3.0));
        assert_eq!((all.shape("b"), all.shape("x")), (Some(vec![2]), None));
        for (text, wanted) in [
            (r#"{"weight_map":{"a":"1.safetensors","c":"2.safetensors"}}"#, "`b` besides"),
            (r#"{"weight_map":{"x":"1.safetensors"}}"#, "tensor `x` in 1.safetensors"),
            (r#"{"weight_map":{"a":"3.safetensors"}}"#, "3.safetensors"),
        ] {
            index(text);
            let error = Shards::of_folder(&folder).expect_err(text).to_string();
            assert!(error.contains(wanted), "{error}");
        }
        std::fs::remove_file(folder.join(INDEX)).expect("removes");
        std::fs::write(folder.join("pytorch_model.bin"), b"\x80").expect("writes");
        let error = Shards::of_folder(&folder).expect_err("pickle").to_string();
        assert!(error.contains("pytorch_model.bin"), "{error}");
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    proptest::proptest! {
        #[test]
        fn mutated_bytes_never_panic(
            changes in proptest::collection::vec((0usize..1 << 16, 0u8..=255), 1..8),
        ) {
            let header = format!(
                "{{\"__metadata__\":{{\"a\":\"b\"}},{},{}}}",
                entry("a", "F32", "[2,2]", 0, 16),
                entry("b", "BF16", "[3]", 16, 22),
            );
            let mut bytes = file(&header, 22);
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Ok(places) = parse(&bytes) {
                proptest::prop_assert!(places.values().all(|p| p.bytes <= bytes.len()));
            }
            let _ = parse_index(Path::new("index.json"), &bytes[8..]);
        }
    }
}
