use super::quant::Packing;
use crate::params::Module;
use danlu_core::{Error, Result};
use half::{bf16, f16};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

pub use safetensors::Dtype;

/// A tensor as files hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Dotted name.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// Writes a file so that it is either the old one or the whole new one: to a temporary name beside
/// it, flushed, then renamed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically_with(path, |out| out.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// The same for a file that is not in memory whole: `fill` writes it piece by piece.
pub fn write_atomically_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || -> Result<()> {
        let file = std::fs::File::create(&part).map_err(|e| Error::io(&part, e))?;
        let flushed = std::thread::scope(|scope| {
            // What was written goes to the disk while more is made, so that the flush at the end
            // has little left to do. A refusal is told once, so it is kept.
            let (ask, asked) = std::sync::mpsc::sync_channel(1);
            let helper = scope.spawn(|| asked.into_iter().try_for_each(|()| file.sync_data()));
            fill(&mut Flushing { file: &file, written: 0, ask })?;
            helper.join().expect("a flush does not panic").map_err(|e| Error::io(&part, e))
        });
        flushed?;
        file.sync_all().map_err(|e| Error::io(&part, e))?;
        std::fs::rename(&part, path).map_err(|e| Error::io(path, e))
    };
    write().inspect_err(|_| {
        // The half-written file is of no use; if it cannot be removed the error says more.
        let _ = std::fs::remove_file(&part);
    })
}

/// A file that has a helper flush it now and then.
struct Flushing<'a> {
    file: &'a std::fs::File,
    /// Bytes since the last time.
    written: usize,
    ask: std::sync::mpsc::SyncSender<()>,
}

impl Write for Flushing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n;
        // A helper that is still at it takes this with the next.
        if self.written >= 32 << 20 && self.ask.try_send(()).is_ok() {
            self.written = 0;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Writes a safetensors file in the given precision (F32, F16 or BF16), with text metadata.
pub fn save_tensors(
    path: &Path,
    tensors: &[NamedTensor],
    dtype: Dtype,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let shapes: Vec<_> = tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    write_tensors(path, &shapes, dtype, metadata, |i| Ok(tensors[i].values.clone()))
}

/// The same for tensors that are not in memory together: `values` is asked for each in turn.
pub fn write_tensors(
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    dtype: Dtype,
    metadata: BTreeMap<String, String>,
    mut values: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    let (packing, kind) = match dtype {
        Dtype::F16 => (Packing::F16, "F16"),
        Dtype::BF16 => (Packing::Bf16, "BF16"),
        _ => (Packing::F32, "F32"),
    };
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, shape) in shapes {
        let from = end;
        end += packing.bytes(shape.iter().product());
        let entry = serde_json::json!({"dtype": kind, "shape": shape, "data_offsets": [from, end]});
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::file(path, "every tensor once", format!("`{name}` twice")));
        }
    }
    let mut head = serde_json::Value::from(header).to_string().into_bytes();
    // Blanks up to a multiple of eight, so that data are aligned.
    head.resize(head.len().next_multiple_of(8), b' ');
    write_atomically_with(path, |out| {
        let io = |e| Error::io(path, e);
        out.write_all(&(head.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&head).map_err(io)?;
        for (i, (name, shape)) in shapes.iter().enumerate() {
            let values = values(i)?;
            if values.len() != shape.iter().product::<usize>() {
                let wanted = format!("values of tensor `{name}` of shape {shape:?}");
                return Err(Error::file(path, wanted, values.len()));
            }
            // In pieces, so that the packed form takes no more memory than stays in cache.
            for some in values.chunks(1 << 18) {
                out.write_all(&packing.pack(some)).map_err(io)?;
            }
        }
        Ok(())
    })
}

/// Reads every floating-point tensor of a safetensors file, as `f32`.
pub fn load_tensors(path: &Path) -> Result<BTreeMap<String, NamedTensor>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, "a safetensors file", e))?;
    let mut out = BTreeMap::new();
    for (name, view) in file.iter() {
        let data = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => {
                data.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::BF16 => {
                data.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::I32 => {
                data.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b) as f32).collect()
            }
            Dtype::I64 => {
                data.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect()
            }
            other => {
                return Err(Error::file(
                    path,
                    format!("tensor `{name}` as F32, F16 or BF16"),
                    format!("{other:?}"),
                ));
            }
        };
        let tensor = NamedTensor { name: name.to_string(), shape: view.shape().to_vec(), values };
        out.insert(name.to_string(), tensor);
    }
    Ok(out)
}

/// Fills a module from tensors of the same names and shapes; every parameter must be there.
pub fn load_parameters(
    module: &mut dyn Module,
    tensors: &mut BTreeMap<String, NamedTensor>,
    path: &Path,
) -> Result<()> {
    for p in module.parameters_mut() {
        let Some(t) = tensors.remove(&p.name) else {
            return Err(Error::file(path, format!("a tensor `{}`", p.name), "none of that name"));
        };
        if t.shape != p.shape {
            return Err(Error::file(
                path,
                format!("tensor `{}` of shape {:?}", p.name, p.shape),
                format!("{:?}", t.shape),
            ));
        }
        p.set(t.values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("danlu-{name}-{}", std::process::id()))
    }

    #[test]
    fn tensors_come_back_in_every_precision() {
        let t =
            NamedTensor { name: "a".into(), shape: vec![2, 2], values: vec![1.0, -0.5, 0.25, 3.0] };
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let path = file("dtype");
            save_tensors(&path, std::slice::from_ref(&t), dtype, BTreeMap::new()).expect("saves");
            assert_eq!(load_tensors(&path).expect("loads")["a"], t, "{dtype:?}");
            std::fs::remove_file(&path).expect("removes");
        }
    }

    #[test]
    fn what_is_flushed_on_the_way_is_whole() {
        let path = file("flushed");
        let piece: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
        write_atomically_with(&path, |out| {
            (0..70).try_for_each(|_| out.write_all(&piece)).map_err(|e| Error::io(&path, e))
        })
        .expect("writes");
        let back = std::fs::read(&path).expect("reads");
        assert_eq!(back.len(), 70 << 20);
        assert!(back.chunks(1 << 20).all(|c| c == piece));
        let refused = write_atomically_with(&path, |_| Err(Error::Other("no more".into())));
        assert_eq!(refused.expect_err("refused").to_string(), "no more");
        assert_eq!(std::fs::metadata(&path).expect("is still there").len(), 70 << 20);
        std::fs::remove_file(&path).expect("removes");
        assert!(!path.with_extension("part").exists());
    }

    #[test]
    fn a_broken_file_is_named() {
        let path = file("broken");
        for bytes in [&b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"[..], b"", b"\x02\0\0\0\0\0\0\0{}x"] {
            std::fs::write(&path, bytes).expect("writes");
            let error = load_tensors(&path).expect_err("broken").to_string();
            assert!(error.contains("danlu-broken") && error.contains("safetensors"), "{error}");
        }
        std::fs::remove_file(&path).expect("removes");
    }
}
