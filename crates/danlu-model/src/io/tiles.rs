//! The weights of a transformer as decoding wants them, in one file: matrices in the tiles that
//! products read, quantised or not, and vectors and routers in single precision. It is mapped, not read, so a
//! model opens at once; large pages take the place of the file's while it is used.
//!
//! The file is a safetensors file. A matrix `NAME` is up to three tensors of bytes, `NAME.numbers`,
//! `NAME.scales` and `NAME.supers`, as [`danlu_ops::quant`] lays them out; each begins on a multiple
//! of 64 bytes, for which it is filled with zeros. What they are is in the metadata: under `NAME`,
//! the format and the shape, as in `q4_0 576 1536`.

use super::tensors::write_atomically_with;
use crate::arch::Transformer;
use crate::layers::is_router;
use crate::params::{Module, Parameter, matrix};
use danlu_core::{Error, Result};
use danlu_ops::quant::{Mapped, WeightFormat, Weights};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The file of a model folder whose weights are in tiles.
pub const TILES: &str = "model.tiles.safetensors";
/// What every part begins on a multiple of.
const LINE: usize = 64;
const PARTS: [&str; 3] = ["numbers", "scales", "supers"];

/// Writes a transformer whose matrices are frozen.
///
/// # Errors
/// If a matrix is not, by name.
pub fn write_tiles(transformer: &Transformer, path: &Path) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut metadata = serde_json::Map::new();
    let mut end = 0;
    let mut place = |name: String, kind: &str, shape: &[usize], bytes: usize| {
        let offsets = [end, end + bytes];
        end += bytes;
        let entry = serde_json::json!({"dtype": kind, "shape": shape, "data_offsets": offsets});
        header.insert(name, entry);
    };
    let (matrices, whole): (Vec<&Parameter>, Vec<&Parameter>) =
        transformer.parameters().into_iter().partition(|p| in_tiles(p));
    for p in &matrices {
        let Some(weights) = &p.frozen else {
            return Err(Error::file(
                path,
                format!("matrix `{}` in few bits", p.name),
                "it is whole",
            ));
        };
        let [rows, cols] = weights.shape();
        let layout = format!("{} {rows} {cols}", weights.format().name());
        metadata.insert(p.name.clone(), layout.into());
        for (part, bytes) in PARTS.iter().zip(weights.parts()) {
            if !bytes.is_empty() {
                let filled = bytes.len().next_multiple_of(LINE);
                place(format!("{}.{part}", p.name), "U8", &[filled], filled);
            }
        }
    }
    for p in &whole {
        place(p.name.clone(), "F32", &p.shape, 4 * p.len());
    }
    header.insert("__metadata__".into(), metadata.into());
    let mut head = serde_json::Value::from(header).to_string().into_bytes();
    head.resize((head.len() + 8).next_multiple_of(LINE) - 8, b' ');
    write_atomically_with(path, |out| {
        let io = |e| Error::io(path, e);
        out.write_all(&(head.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&head).map_err(io)?;
        for weights in matrices.iter().filter_map(|p| p.frozen.as_ref()) {
            for bytes in weights.parts() {
                out.write_all(bytes).map_err(io)?;
                let filling = bytes.len().next_multiple_of(LINE) - bytes.len();
                out.write_all(&[0; LINE][..filling]).map_err(io)?;
            }
        }
        for p in &whole {
            let bytes: Vec<u8> = p.values().into_iter().flat_map(f32::to_le_bytes).collect();
            out.write_all(&bytes).map_err(io)?;
        }
        Ok(())
    })
}

/// Fills a blank transformer from such a file, whose matrices stay where they are.
///
/// # Errors
/// If the file is no safetensors file, or anything in it is missing, left over or of another shape,
/// by name.
pub fn map_tiles(transformer: &mut Transformer, path: &Path) -> Result<()> {
    let file = Mapped::open(path).map_err(|e| Error::io(path, e))?;
    let wanted = "a safetensors file of tiles";
    let (head, metadata) =
        SafeTensors::read_metadata(file.bytes()).map_err(|e| Error::file(path, wanted, e))?;
    let tensors = metadata.tensors();
    let none = HashMap::new();
    let layouts = metadata.metadata().as_ref().unwrap_or(&none);
    let mut used = 0;
    for p in transformer.parameters_mut() {
        if !in_tiles(p) {
            let Some(info) = tensors.get(&p.name) else {
                return Err(Error::file(path, format!("a tensor `{}`", p.name), "none"));
            };
            if info.dtype != safetensors::Dtype::F32 || info.shape != p.shape {
                let wanted = format!("tensor `{}` as F32 of shape {:?}", p.name, p.shape);
                let found = format!("{:?} of {:?}", info.dtype, info.shape);
                return Err(Error::file(path, wanted, found));
            }
            let (from, to) = info.data_offsets;
            let bytes = &file.bytes()[8 + head + from..8 + head + to];
            p.set(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect());
            used += 1;
            continue;
        }
        let shape = matrix(&p.shape);
        let layout = layouts.get(&p.name).map_or("none", String::as_str);
        let format = layout.split(' ').next().and_then(WeightFormat::parse);
        let Some(format) = format.filter(|f| layout == says(*f, shape)) else {
            let wanted = format!("a layout `FORMAT {} {}` of `{}`", shape[0], shape[1], p.name);
            return Err(Error::file(path, wanted, format!("`{layout}`")));
        };
        let mut starts = [0; 3];
        let sizes = Weights::sizes(shape, format).unwrap_or_default();
        for ((part, size), start) in PARTS.iter().zip(sizes).zip(&mut starts) {
            if size == 0 {
                continue;
            }
            *start = part_start(&metadata, &format!("{}.{part}", p.name), size)
                .map(|at| 8 + head + at)
                .map_err(|found| {
                    let wanted = format!("`{}.{part}` as U8 of {size} bytes and filling", p.name);
                    Error::file(path, wanted, found)
                })?;
            used += 1;
        }
        let Some(weights) = Weights::mapped(&file, shape, format, starts) else {
            let wanted = format!("parts of `{}` that begin on multiples of {LINE}", p.name);
            return Err(Error::file(path, wanted, format!("bytes {starts:?}")));
        };
        p.keep(Arc::new(weights));
    }
    if used != tensors.len() {
        let wanted = format!("the {used} tensors of its configuration and no others");
        return Err(Error::file(path, wanted, tensors.len()));
    }
    // Meanwhile the model may be used. Without a thread it stays as it is.
    let enlarge = std::thread::Builder::new().name("danlu-pages".into());
    let _ = enlarge.spawn(move || file.enlarge());
    Ok(())
}

/// Whether a parameter lies in tiles: what does not is in single precision.
pub(crate) fn in_tiles(p: &Parameter) -> bool {
    p.is_matrix() && !is_router(&p.name)
}

fn says(format: WeightFormat, [rows, cols]: [usize; 2]) -> String {
    format!("{} {rows} {cols}", format.name())
}

/// Where a part begins, counted from the first tensor; otherwise what is wrong with it.
fn part_start(metadata: &Metadata, name: &str, size: usize) -> std::result::Result<usize, String> {
    let info = metadata.info(name).ok_or("none of that name")?;
    let filled = size.next_multiple_of(LINE);
    if info.dtype != safetensors::Dtype::U8 || info.shape != [filled] {
        return Err(format!("{:?} of {:?}", info.dtype, info.shape));
    }
    Ok(info.data_offsets.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny_model;
    use danlu_ops::quant::Arena;

    fn frozen(format: WeightFormat) -> Transformer {
        let mut model = tiny_model(3).transformer;
        let arena = Arena::default();
        let matrices = model.parameters_mut().into_iter().filter(|p| p.is_matrix());
        matrices.for_each(|p| p.freeze(format, &arena));
        model
    }

    #[test]
    fn every_format_comes_back_bit_for_bit_and_says_the_same() {
        let path = std::env::temp_dir().join(format!("danlu-tiles-{}", std::process::id()));
        for (name, format) in WeightFormat::ALL {
            let model = frozen(format);
            write_tiles(&model, &path).expect("writes");
            let device = danlu_ops::cpu_device();
            let mut back = Transformer::blank(model.config.clone(), &device);
            map_tiles(&mut back, &path).expect("maps");
            for (a, b) in model.parameters().iter().zip(back.parameters()) {
                assert_eq!(a.values(), b.values(), "{name} {}", a.name);
                assert_eq!(a.frozen.is_some(), b.frozen.is_some());
            }
            let ids: Arc<[u32]> = Arc::from([1, 7, 30, 2]);
            let starts = Arc::from([0, 4]);
            let of = |t: &Transformer| -> Vec<f32> {
                t.logits(&ids, &starts).into_data().try_into_vec().expect("f32")
            };
            assert_eq!(of(&model), of(&back), "{name}");
        }
        std::fs::remove_file(&path).expect("removes");
    }

    #[test]
    fn a_mixture_of_experts_in_few_bits_is_written_so_and_its_router_whole() {
        let path = std::env::temp_dir().join(format!("danlu-moe-tiles-{}", std::process::id()));
        let device = danlu_ops::cpu_device();
        let dense = tiny_model(3).transformer.config;
        let config = crate::arch::TransformerConfig { experts: 4, experts_per_token: 2, ..dense };
        let mut model = Transformer::new(config.clone(), 5, &device);
        let nearest = crate::compress::Rounding::Nearest;
        crate::compress::quantise(&mut model, WeightFormat::Q4_0, nearest, &mut |_| {})
            .expect("quantises");
        write_tiles(&model, &path).expect("writes");
        let mut back = Transformer::blank(config, &device);
        map_tiles(&mut back, &path).expect("maps");
        for (a, b) in model.parameters().iter().zip(back.parameters()) {
            assert_eq!(a.values(), b.values(), "{}", a.name);
            assert_eq!(b.frozen.is_some(), a.is_matrix() && !is_router(&a.name), "{}", a.name);
        }
        std::fs::remove_file(&path).expect("removes");
    }

    #[test]
    fn damaged_files_are_refused_and_never_panic() {
        let path = std::env::temp_dir().join(format!("danlu-bad-tiles-{}", std::process::id()));
        let model = frozen(WeightFormat::Q4_0);
        write_tiles(&model, &path).expect("writes");
        let good = std::fs::read(&path).expect("reads");
        let refused = |bytes: &[u8]| -> String {
            std::fs::write(&path, bytes).expect("writes");
            let mut blank = Transformer::blank(model.config.clone(), &danlu_ops::cpu_device());
            map_tiles(&mut blank, &path).expect_err("refused").to_string()
        };
        assert!(refused(&good[..good.len() - 1]).contains("danlu-bad-tiles"));
        assert!(refused(&good[..20]).contains("tiles"));
        let head = u64::from_le_bytes(good[..8].try_into().expect("eight")) as usize;
        let text = String::from_utf8(good[8..8 + head].to_vec()).expect("text");
        let with = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            assert!(text.contains(from), "{from}");
            [&good[..8], text.replace(from, to).as_bytes(), &good[8 + head..]].concat()
        };
        let error = refused(&with("q4_0 ", "q8_0 "));
        assert!(error.contains("numbers"), "{error}");
        let error = refused(&with("model.norm.weight", "model.norn.weight"));
        assert!(error.contains("model.norm.weight"), "{error}");
        let error =
            refused(&with("model.embed_tokens.weight.scales", "model.embed_tokens.weight.scalez"));
        assert!(error.contains("scales"), "{error}");
        let whole = tiny_model(3).transformer;
        let error = write_tiles(&whole, &path).expect_err("whole").to_string();
        assert!(error.contains("model.embed_tokens.weight"), "{error}");
        std::fs::remove_file(&path).expect("removes");
    }
}
