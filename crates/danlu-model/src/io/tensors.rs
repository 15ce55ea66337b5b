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

/// What follows the name of a tensor in whole numbers: the step of each of its rows.
const STEPS: &str = ".step";

/// Tensors with rows as whole numbers of eight bits and the step of each row; vectors stay as they
/// are.
fn in_eight_bits(tensors: &[NamedTensor]) -> Vec<(NamedTensor, Option<Dtype>)> {
    let mut out = Vec::new();
    for t in tensors {
        let inner: usize = t.shape.iter().skip(1).product();
        if t.shape.len() < 2 || inner == 0 {
            out.push((t.clone(), None));
            continue;
        }
        let rows = t.values.chunks_exact(inner);
        let steps: Vec<f32> =
            rows.clone().map(|r| r.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0).collect();
        let numbers = rows.zip(&steps).flat_map(|(row, &step)| {
            let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
            row.iter().map(move |v| (v * inverse).round())
        });
        let steps_name = format!("{}{STEPS}", t.name);
        out.push((NamedTensor { values: numbers.collect(), ..t.clone() }, Some(Dtype::I8)));
        let shape = vec![steps.len()];
        out.push((NamedTensor { name: steps_name, shape, values: steps }, None));
    }
    out
}

/// Writes a safetensors file in the given precision (F32, F16 or BF16; I8: rows of matrices as whole
/// numbers with a step each), with text metadata.
pub fn save_tensors(
    path: &Path,
    tensors: &[NamedTensor],
    dtype: Dtype,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    if dtype == Dtype::I8 {
        let all = in_eight_bits(tensors);
        let shapes: Vec<_> = all
            .iter()
            .map(|(t, kind)| (t.name.clone(), t.shape.clone(), kind.unwrap_or(Dtype::F32)))
            .collect();
        return write_typed(path, &shapes, metadata, |i| Ok(all[i].0.values.clone()));
    }
    let shapes: Vec<_> = tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    write_tensors(path, &shapes, dtype, metadata, |i| Ok(tensors[i].values.clone()))
}

/// The same for tensors that are not in memory together: `values` is asked for each in turn, the next
/// while one is written.
pub fn write_tensors(
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    dtype: Dtype,
    metadata: BTreeMap<String, String>,
    values: impl Fn(usize) -> Result<Vec<f32>> + Sync,
) -> Result<()> {
    let typed: Vec<_> =
        shapes.iter().map(|(name, shape)| (name.clone(), shape.clone(), dtype)).collect();
    write_typed(path, &typed, metadata, values)
}

/// Hands the values of `count` tensors to `write` in their order, each with its number; another thread
/// makes the next meanwhile, so that up to three are in memory. The first error ends it.
pub(super) fn one_ahead(
    count: usize,
    values: impl Fn(usize) -> Result<Vec<f32>> + Sync,
    mut write: impl FnMut(usize, Vec<f32>) -> Result<()>,
) -> Result<()> {
    if rayon::current_num_threads() == 1 {
        // Another thread would wait for this one, which is all of the pool.
        return (0..count).try_for_each(|i| write(i, values(i)?));
    }
    let values = &values;
    std::thread::scope(|scope| {
        // Holds nothing itself: a value is made once the last one was taken.
        let (give, take) = std::sync::mpsc::sync_channel(0);
        scope.spawn(move || {
            for i in 0..count {
                // Whoever takes may have gone on an error of their own, which says more.
                if give.send(values(i)).is_err() {
                    return;
                }
            }
        });
        take.into_iter().enumerate().try_for_each(|(i, values)| write(i, values?))
    })
}

/// Refuses finite values that half precision has no number for.
pub(super) fn fits_half(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| v.is_finite() && !f16::from_f32(**v).is_finite()) {
        Some(large) => {
            let wanted = format!("values up to {} in tensor `{name}`, for 16 bits", f16::MAX);
            Err(Error::file(path, wanted, large))
        }
        None => Ok(()),
    }
}

/// The bytes of some values.
fn packed(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => Packing::F16.pack(values),
        Dtype::BF16 => Packing::Bf16.pack(values),
        Dtype::I8 => values.iter().map(|&v| v as i8 as u8).collect(),
        _ => Packing::F32.pack(values),
    }
}

/// The same with a type for each tensor.
fn write_typed(
    path: &Path,
    shapes: &[(String, Vec<usize>, Dtype)],
    metadata: BTreeMap<String, String>,
    values: impl Fn(usize) -> Result<Vec<f32>> + Sync,
) -> Result<()> {
    let kind = |dtype: Dtype| match dtype {
        Dtype::F16 => ("F16", 2),
        Dtype::BF16 => ("BF16", 2),
        Dtype::I8 => ("I8", 1),
        _ => ("F32", 4),
    };
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, shape, dtype) in shapes {
        let from = end;
        let (kind, size) = kind(*dtype);
        end += size * shape.iter().product::<usize>();
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
        one_ahead(shapes.len(), values, |i, values| {
            let (name, shape, dtype) = &shapes[i];
            if values.len() != shape.iter().product::<usize>() {
                let wanted = format!("values of tensor `{name}` of shape {shape:?}");
                return Err(Error::file(path, wanted, values.len()));
            }
            if *dtype == Dtype::F16 {
                fits_half(path, name, &values)?;
            }
            // In pieces, so that the packed form takes no more memory than stays in cache.
            for some in values.chunks(1 << 18) {
                out.write_all(&packed(*dtype, some)).map_err(io)?;
            }
            Ok(())
        })
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
            Dtype::I8 => in_steps(&file, name, view.shape(), data).map_err(|found| {
                let wanted = format!("`{name}{STEPS}` as F32, one for each row of `{name}`");
                Error::file(path, wanted, found)
            })?,
            other => {
                return Err(Error::file(
                    path,
                    format!("tensor `{name}` as F32, F16, BF16 or I8"),
                    format!("{other:?}"),
                ));
            }
        };
        let tensor = NamedTensor { name: name.to_string(), shape: view.shape().to_vec(), values };
        out.insert(name.to_string(), tensor);
    }
    Ok(out)
}

/// The values of a tensor in whole numbers; otherwise what its steps are instead.
fn in_steps(
    file: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    data: &[u8],
) -> std::result::Result<Vec<f32>, String> {
    let steps = file.tensor(&format!("{name}{STEPS}")).map_err(|e| e.to_string())?;
    let rows = shape.first().copied().unwrap_or(0);
    if steps.dtype() != Dtype::F32 || steps.shape() != [rows] {
        return Err(format!("{:?} of {:?}", steps.dtype(), steps.shape()));
    }
    let steps = steps.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
    let inner = data.len() / rows.max(1);
    let rows = data.chunks(inner.max(1)).zip(steps);
    Ok(rows.flat_map(|(row, step)| row.iter().map(move |&b| f32::from(b as i8) * step)).collect())
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
    fn eight_bits_are_within_half_a_step_and_want_their_steps() {
        let values: Vec<f32> = (0..6).map(|i| (i as f32 - 2.5) * 0.3).collect();
        let t = NamedTensor { name: "a".into(), shape: vec![2, 3, 1], values };
        let bias = NamedTensor { name: "b".into(), shape: vec![2], values: vec![0.1, 1e-7] };
        let path = file("eight");
        let both = [t.clone(), bias.clone()];
        save_tensors(&path, &both, Dtype::I8, BTreeMap::new()).expect("saves");
        let back = load_tensors(&path).expect("loads");
        assert_eq!((&back["b"], &back["a"].shape), (&bias, &t.shape));
        for (row, (a, b)) in t.values.chunks(3).zip(back["a"].values.chunks(3)).enumerate() {
            let step = back["a.step"].values[row];
            assert!((step - a.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0).abs() < 1e-6);
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 0.501 * step), "{a:?} {b:?}");
        }
        let bytes = std::fs::read(&path).expect("reads");
        let text = bytes.windows(6).position(|w| w == b"a.step").expect("is named");
        let mut other = bytes.clone();
        other[text..text + 6].copy_from_slice(b"a.stop");
        std::fs::write(&path, other).expect("writes");
        let error = load_tensors(&path).expect_err("no steps").to_string();
        assert!(error.contains("a.step"), "{error}");
        std::fs::remove_file(&path).expect("removes");
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
