use super::value::{Value, code, least_bytes};
use super::{ALIGNMENT, MAGIC};
use crate::io::quant::Packing;
use crate::io::shards::read_at;
use crate::io::{NamedTensor, open_regular};
use danlu_core::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Arrays inside arrays may go this deep.
const NESTING: usize = 4;
/// Dimensions of a tensor.
const DIMENSIONS: u32 = 4;

/// Where a tensor is.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Dimensions, the slowest first (files hold them the other way round).
    pub shape: Vec<usize>,
    /// How values are packed.
    pub packing: Packing,
    /// First byte, counted from the beginning of the file.
    at: u64,
    bytes: usize,
}

/// An open file whose header has been read and checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: Mutex<File>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads and checks the header.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let (metadata, tensors) = Header::read(path, BufReader::new(&file), size)?;
        Ok(Self { path: path.into(), file: Mutex::new(file), metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Where a tensor is.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.find(name)?;
        self.bytes_at(info.at, info.bytes)
    }

    fn bytes_at(&self, at: u64, count: usize) -> Result<Vec<u8>> {
        read_at(&self.file, at, count).map_err(|e| Error::io(&self.path, e))
    }

    /// A tensor as `f32`.
    pub fn read(&self, name: &str) -> Result<NamedTensor> {
        let info = self.find(name)?;
        let values = info.packing.unpack(&self.bytes(name)?);
        Ok(NamedTensor { name: name.into(), shape: info.shape.clone(), values })
    }

    /// One of the matrices that a tensor of three dimensions holds, as `f32`.
    pub fn read_one(&self, name: &str, number: usize) -> Result<NamedTensor> {
        let info = self.find(name)?;
        let &[count, rows, columns] = &info.shape[..] else {
            let found = format!("{:?}", info.shape);
            return Err(Error::file(&self.path, format!("`{name}` of three dimensions"), found));
        };
        if number >= count {
            let wanted = format!("at least {} matrices in `{name}`", number + 1);
            return Err(Error::file(&self.path, wanted, count));
        }
        // Rows are whole blocks, so matrices are whole bytes.
        let bytes = info.bytes / count;
        let bytes = self.bytes_at(info.at + (number * bytes) as u64, bytes)?;
        let values = info.packing.unpack(&bytes);
        Ok(NamedTensor { name: name.into(), shape: vec![rows, columns], values })
    }

    fn find(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::file(&self.path, format!("a tensor `{name}`"), "none of that name");
        self.info(name).ok_or_else(missing)
    }

    fn wrong<T>(&self, key: &str, wanted: &str, found: Option<&Value>) -> Result<T> {
        let found = found.map_or("nothing", Value::kind);
        Err(Error::file(&self.path, format!("{wanted} under `{key}`"), found))
    }

    /// A key that must be a string.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.get(key) {
            Some(Value::Text(v)) => Ok(v),
            other => self.wrong(key, "a string", other),
        }
    }

    /// The same, if it is there.
    pub fn maybe_text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|_| self.text(key)).transpose()
    }

    /// A key that must be a whole number of at least 0, if it is there.
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(v)) => Ok(Some(usize::try_from(*v).unwrap_or(usize::MAX))),
            Some(Value::Signed(v)) if *v >= 0 => Ok(Some(*v as usize)),
            other => self.wrong(key, "a whole number", other),
        }
    }

    /// A key that must be there and a whole number of at least 0.
    pub fn size(&self, key: &str) -> Result<usize> {
        match self.maybe_size(key)? {
            Some(v) => Ok(v),
            None => self.wrong(key, "a whole number", None),
        }
    }

    /// A key that must be a number, if it is there.
    pub fn maybe_float(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(v)) => Ok(Some(*v as f32)),
            other => self.wrong(key, "a number", other),
        }
    }

    /// A key that must be an array of strings.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        self.all(key, "an array of strings", |v| match v {
            Value::Text(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// A key that must be an array of numbers.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>> {
        self.all(key, "an array of numbers", |v| match v {
            Value::Float(v) => Some(*v as f32),
            _ => None,
        })
    }

    /// A key that must be an array of whole numbers.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>> {
        self.all(key, "an array of integers", |v| match v {
            Value::Signed(v) => Some(*v),
            Value::Unsigned(v) => i64::try_from(*v).ok(),
            _ => None,
        })
    }

    /// What `of` makes of every element of an array.
    fn all<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Vec<T>> {
        let Some(Value::List(all)) = self.get(key) else {
            return self.wrong(key, wanted, self.get(key));
        };
        all.iter().map(|v| of(v).map_or_else(|| self.wrong(key, wanted, Some(v)), Ok)).collect()
    }
}

/// Checks the header of a file that is in memory whole; returns the names of its tensors. `path` is
/// for messages.
pub fn check_gguf(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    Ok(Header::read(path, bytes, bytes.len() as u64)?.1.into_keys().collect())
}

/// The header while it is read.
struct Header<'a, R> {
    path: &'a Path,
    from: R,
    read: u64,
    size: u64,
}

type Keys = BTreeMap<String, Value>;
type Tensors = BTreeMap<String, TensorInfo>;

impl<'a, R: Read> Header<'a, R> {
    /// The keys and tensors of a file of `size` bytes.
    fn read(path: &'a Path, from: R, size: u64) -> Result<(Keys, Tensors)> {
        let mut h = Header { path, from, read: 0, size };
        let magic: [u8; 4] = h.take("the four bytes GGUF")?;
        if magic != MAGIC {
            return h.wrong("a GGUF file", format!("one that begins with {magic:?}"));
        }
        let version = h.u32("the version")?;
        if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
            return h.wrong("a little-endian GGUF file", "a big-endian one");
        }
        if !(2..=3).contains(&version) {
            return h.wrong("GGUF version 2 or 3", format!("version {version}"));
        }
        // The shortest tensor entry has a name, one dimension, a type and an offset; the shortest
        // key a name, a type and a byte.
        let tensors = h.u64("the number of tensors")?;
        let keys = h.u64("the number of keys")?;
        h.room("tensors", tensors, 32)?;
        h.room("keys", keys, 13)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = h.string("a key")?;
            let of = h.u32(&key)?;
            let value = h.value(&key, of, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return h.wrong("every key once", format!("`{key}` twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(v)) if v.is_power_of_two() && (8..=1 << 20).contains(v) => *v,
            Some(other) => {
                return h.wrong(
                    "a power of two from 8 to 1048576 under `general.alignment`",
                    format!("{other:?}"),
                );
            }
        };
        let mut infos = HashMap::new();
        for _ in 0..tensors {
            let (name, info) = h.tensor(alignment)?;
            if infos.insert(name.clone(), info).is_some() {
                return h.wrong("every tensor once", format!("`{name}` twice"));
            }
        }
        let start = h.read.next_multiple_of(alignment);
        h.place(infos, start).map(|tensors| (metadata, tensors))
    }

    fn wrong<T>(&self, wanted: impl Into<String>, found: impl std::fmt::Display) -> Result<T> {
        Err(Error::file(self.path, wanted, found))
    }

    fn left(&self) -> u64 {
        self.size.saturating_sub(self.read)
    }

    fn short<T>(&self, what: &str) -> Result<T> {
        self.wrong(format!("{what} at byte {}", self.read), format!("{} bytes more", self.left()))
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        if (N as u64) > self.left() {
            return self.short(what);
        }
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|e| Error::io(self.path, e))?;
        self.read += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    /// Refuses a count that cannot be true in what is left of the file.
    fn room(&self, what: &str, count: u64, each: u64) -> Result<()> {
        let most = self.left() / each;
        if count <= most {
            return Ok(());
        }
        let wanted = format!("at most {most} {what}, for there are {} bytes more", self.left());
        self.wrong(wanted, count)
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        if length > self.left() {
            let left = self.left();
            return self.wrong(
                format!("{what} at byte {} of at most {left} bytes", self.read),
                format!("a length of {length}"),
            );
        }
        let mut bytes = vec![0; length as usize];
        self.from.read_exact(&mut bytes).map_err(|e| Error::io(self.path, e))?;
        self.read += length;
        String::from_utf8(bytes).or_else(|e| self.wrong(format!("{what} in UTF-8"), e))
    }

    fn value(&mut self, key: &str, of: u32, depth: usize) -> Result<Value> {
        Ok(match of {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.take(key)?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.take(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.take(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.take(key)?))),
            code::U32 => Value::Unsigned(u64::from(self.u32(key)?)),
            code::I32 => Value::Signed(i64::from(i32::from_le_bytes(self.take(key)?))),
            code::F32 => Value::Float(f64::from(f32::from_le_bytes(self.take(key)?))),
            code::BOOL => match self.take::<1>(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return self.wrong(format!("0 or 1 under `{key}`"), other),
            },
            code::TEXT => Value::Text(self.string(&format!("the string `{key}`"))?),
            code::LIST => {
                if depth == NESTING {
                    let wanted = format!("arrays at most {NESTING} deep under `{key}`");
                    return self.wrong(wanted, "a deeper one");
                }
                let of = self.u32(key)?;
                let count = self.u64(key)?;
                let Some(least) = least_bytes(of) else {
                    return self.wrong(format!("an array of a known type under `{key}`"), of);
                };
                self.room(&format!("entries of `{key}`"), count, least)?;
                // Grows as it is read: memory follows what is there, not what is claimed.
                let mut all = Vec::new();
                for _ in 0..count {
                    all.push(self.value(key, of, depth + 1)?);
                }
                Value::List(all)
            }
            code::U64 => Value::Unsigned(self.u64(key)?),
            code::I64 => Value::Signed(i64::from_le_bytes(self.take(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.take(key)?)),
            other => return self.wrong(format!("a value of a known type under `{key}`"), other),
        })
    }

    /// One entry of the table of tensors; `at` counts from the beginning of the data still.
    fn tensor(&mut self, alignment: u64) -> Result<(String, TensorInfo)> {
        let name = self.string("the name of a tensor")?;
        let what = format!("tensor `{name}`");
        let dimensions = self.u32(&what)?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            return self.wrong(format!("{what} with 1 to {DIMENSIONS} dimensions"), dimensions);
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64(&what)?);
        }
        let of = self.u32(&what)?;
        let Some(packing) = Packing::of_code(of) else {
            let known: Vec<&str> = Packing::ALL.iter().map(|r| r.2).collect();
            return self.wrong(format!("{what} as {}", known.join(", ")), format!("type {of}"));
        };
        let at = self.u64(&what)?;
        let values = shape.iter().try_fold(1u64, |a, &d| a.checked_mul(d)).filter(|&n| n > 0);
        let Some(values) = values.filter(|&n| n <= 1 << 40) else {
            let wanted = format!("{what} with dimensions of at least 1, 2^40 values at most");
            return self.wrong(wanted, format!("{shape:?}"));
        };
        if !shape[0].is_multiple_of(packing.block() as u64) {
            let wanted = format!(
                "{what} with rows of a multiple of {} values ({})",
                packing.block(),
                packing.name()
            );
            return self.wrong(wanted, shape[0]);
        }
        if !at.is_multiple_of(alignment) {
            return self.wrong(format!("{what} at a multiple of {alignment} bytes"), at);
        }
        let shape = shape.into_iter().rev().map(|d| d as usize).collect();
        let bytes = packing.bytes(values as usize);
        Ok((name, TensorInfo { shape, packing, at, bytes }))
    }

    /// Puts tensors where they are in the file, and refuses any outside it or over another.
    fn place(&self, infos: HashMap<String, TensorInfo>, start: u64) -> Result<Tensors> {
        let mut order = Vec::new();
        let mut placed = BTreeMap::new();
        for (name, mut info) in infos {
            let first = start.checked_add(info.at);
            let end = first.and_then(|f| f.checked_add(info.bytes as u64));
            let (Some(first), Some(end)) = (first, end.filter(|&e| e <= self.size)) else {
                return self.wrong(
                    format!("tensor `{name}` inside the file of {} bytes", self.size),
                    format!("{} bytes at offset {} of the data", info.bytes, info.at),
                );
            };
            info.at = first;
            order.push((first, end, name.clone()));
            placed.insert(name, info);
        }
        order.sort();
        for pair in order.windows(2) {
            if pair[0].1 > pair[1].0 {
                let both = format!("`{}` and `{}` do", pair[0].2, pair[1].2);
                return self.wrong("tensors that do not overlap", both);
            }
        }
        Ok(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{GgufTensor, write_gguf};

    fn parse(bytes: &[u8]) -> Result<(Keys, Tensors)> {
        Header::read(Path::new("hostile.gguf"), bytes, bytes.len() as u64)
    }

    /// Bytes of a file with one key and one tensor of 4x2 values.
    fn sound(name: &str) -> Vec<u8> {
        let path = std::env::temp_dir().join(format!("danlu-gguf-{}-{name}", std::process::id()));
        let keys = vec![
            ("general.architecture".to_string(), Value::from("llama")),
            ("list".to_string(), Value::List(vec![Value::Signed(3), Value::Signed(-4)])),
        ];
        let tensor = GgufTensor { name: "a".into(), shape: vec![4, 2], packing: Packing::F32 };
        let values = |_: usize| Ok((0..8).map(|v| v as f32).collect());
        write_gguf(&path, &keys, &[tensor], values).expect("writes");
        let bytes = std::fs::read(&path).expect("reads");
        let file = Gguf::open(&path).expect("opens");
        assert_eq!(file.text("general.architecture").expect("there"), "llama");
        assert_eq!(file.integers("list").expect("there"), [3, -4]);
        assert_eq!(file.read("a").expect("reads").values[7], 7.0);
        assert_eq!(file.info("a").expect("there").shape, [4, 2]);
        std::fs::remove_file(&path).expect("removes");
        bytes
    }

    /// A header by hand: version, tensors and keys as counted, then `rest`.
    fn header(tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(tensors.to_le_bytes());
        out.extend(keys.to_le_bytes());
        rest.iter().for_each(|r| out.extend(*r));
        out
    }

    fn text(s: &str) -> Vec<u8> {
        [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
    }

    fn key(name: &str, of: u32, value: &[u8]) -> Vec<u8> {
        [&text(name)[..], &of.to_le_bytes(), value].concat()
    }

    fn tensor(name: &str, shape: &[u64], of: u32, at: u64) -> Vec<u8> {
        let mut out = text(name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(of.to_le_bytes());
        out.extend(at.to_le_bytes());
        out
    }

    #[test]
    fn hostile_files_are_refused_by_name() {
        let pad = [0u8; 256];
        let huge = (1u64 << 63).to_le_bytes();
        let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(6);
        let align = |v: u32| key("general.alignment", 4, &v.to_le_bytes());
        let float = key("general.alignment", 6, &32f32.to_le_bytes());
        let wide = [&u32::MAX.to_le_bytes()[..], &huge].concat();
        let long = [&4u32.to_le_bytes()[..], &huge].concat();
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("empty", vec![], "four bytes GGUF"),
            ("another format", b"PK\x03\x04aaaaaaaaaaaaaaaaaaaaaaaa".to_vec(), "a GGUF file"),
            ("version", b"GGUF\x09\0\0\0aaaaaaaaaaaaaaaa".to_vec(), "version 9"),
            ("endian", b"GGUF\0\0\0\x03aaaaaaaaaaaaaaaa".to_vec(), "big-endian"),
            ("2^63 tensors", header(1 << 63, 0, &[&pad]), "tensors"),
            ("2^63 keys", header(0, 1 << 63, &[&pad]), "keys"),
            ("long name", header(0, 1, &[&huge, &pad]), "a length of 9223372036854775808"),
            ("long string", header(0, 1, &[&key("k", 8, &huge), &pad]), "`k`"),
            ("no UTF-8", header(0, 1, &[&1u64.to_le_bytes(), b"\xff", &pad]), "UTF-8"),
            ("type of a value", header(0, 1, &[&key("k", 77, &[]), &pad]), "known type under `k`"),
            ("type of an array", header(0, 1, &[&key("k", 9, &wide), &pad]), "known type"),
            ("length of an array", header(0, 1, &[&key("k", 9, &long), &pad]), "entries of `k`"),
            ("nesting", header(0, 1, &[&key("k", 9, &nested), &pad]), "deep under `k`"),
            ("boolean", header(0, 1, &[&key("k", 7, &[2]), &pad]), "0 or 1 under `k`"),
            (
                "twice a key",
                header(0, 2, &[&key("k", 0, &[1]), &key("k", 0, &[1]), &pad]),
                "`k` twice",
            ),
            ("alignment 0", header(0, 1, &[&align(0), &pad]), "general.alignment"),
            ("alignment 3", header(0, 1, &[&align(3), &pad]), "general.alignment"),
            ("alignment of floats", header(0, 1, &[&float, &pad]), "general.alignment"),
            ("no dimension", header(1, 0, &[&tensor("t", &[], 0, 0), &pad]), "1 to 4 dimensions"),
            ("many dimensions", header(1, 0, &[&tensor("t", &[1; 9], 0, 0), &pad]), "`t`"),
            ("zero dimension", header(1, 0, &[&tensor("t", &[4, 0], 0, 0), &pad]), "at least 1"),
            (
                "product overflow",
                header(1, 0, &[&tensor("t", &[1 << 33, 1 << 33], 0, 0), &pad]),
                "tensor `t`",
            ),
            ("type of a tensor", header(1, 0, &[&tensor("t", &[4], 5, 0), &pad]), "type 5"),
            ("half a block", header(1, 0, &[&tensor("t", &[31, 2], 2, 0), &pad]), "multiple of 32"),
            ("unaligned", header(1, 0, &[&tensor("t", &[4], 0, 7), &pad]), "multiple of 32 bytes"),
            ("past the end", header(1, 0, &[&tensor("t", &[4], 0, 4096), &pad]), "inside the file"),
            (
                "offset overflow",
                header(1, 0, &[&tensor("t", &[4], 0, u64::MAX - 31), &pad]),
                "inside the file",
            ),
            ("too short", header(1, 0, &[&tensor("t", &[400], 0, 0), &pad]), "inside the file"),
            (
                "twice a tensor",
                header(2, 0, &[&tensor("t", &[4], 0, 0), &tensor("t", &[4], 0, 32), &pad]),
                "`t` twice",
            ),
            (
                "overlap",
                header(2, 0, &[&tensor("t", &[16], 0, 0), &tensor("u", &[4], 0, 32), &pad]),
                "overlap",
            ),
        ];
        for (what, bytes, wanted) in cases {
            let error = parse(&bytes).expect_err(what).to_string();
            assert!(error.contains("hostile.gguf") && error.contains(wanted), "{what}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn mutated_bytes_never_panic(
            changes in proptest::collection::vec((0usize..1 << 16, 0u8..=255), 1..8),
            keep in 0usize..400,
        ) {
            static SOUND: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut bytes = SOUND.get_or_init(|| sound("mutated")).clone();
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(keep.max(24));
            // Either a header or an error; both are fine, a panic is not.
            if let Ok((_, tensors)) = parse(&bytes) {
                proptest::prop_assert!(tensors.values().all(|t| t.bytes <= bytes.len()));
            }
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let bytes = sound("back");
        let (keys, tensors) = parse(&bytes).expect("sound");
        assert_eq!((keys.len(), tensors.len()), (2, 1));
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut to {cut} bytes");
        }
    }
}
