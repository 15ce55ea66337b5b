use super::value::{Value, write_text};
use super::{ALIGNMENT, MAGIC};
use crate::io::quant::Packing;
use crate::io::tensors::{fits_half, one_ahead};
use crate::io::write_atomically_with;
use danlu_core::{Error, Result};
use std::path::Path;

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// How to pack its values.
    pub packing: Packing,
}

/// Writes a version 3 file, whole or not at all. `values` is asked for the row-major values of each
/// tensor in turn, the next while one is written.
pub fn write_gguf(
    path: &Path,
    keys: &[(String, Value)],
    tensors: &[GgufTensor],
    values: impl Fn(usize) -> Result<Vec<f32>> + Sync,
) -> Result<()> {
    let mut head = MAGIC.to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((keys.len() as u64).to_le_bytes());
    let table = |head: &mut Vec<u8>| -> std::io::Result<()> {
        for (key, value) in keys {
            write_text(head, key)?;
            value.write(head)?;
        }
        let mut at = 0u64;
        for t in tensors {
            write_text(head, &t.name)?;
            head.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|&d| head.extend((d as u64).to_le_bytes()));
            head.extend(t.packing.code().to_le_bytes());
            head.extend(at.to_le_bytes());
            let bytes = t.packing.bytes(t.shape.iter().product()) as u64;
            at += bytes.next_multiple_of(ALIGNMENT);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        Ok(())
    };
    table(&mut head).map_err(|e| Error::io(path, e))?;
    write_atomically_with(path, |out| {
        out.write_all(&head).map_err(|e| Error::io(path, e))?;
        one_ahead(tensors.len(), values, |i, values| {
            let t = &tensors[i];
            let wanted: usize = t.shape.iter().product();
            let whole = t.shape.last().is_some_and(|w| w.is_multiple_of(t.packing.block()));
            if values.len() != wanted || !whole {
                return Err(Error::file(
                    path,
                    format!(
                        "tensor `{}` of {:?} in rows of whole blocks of {} ({})",
                        t.name,
                        t.shape,
                        t.packing.block(),
                        t.packing.name()
                    ),
                    format!("{} values", values.len()),
                ));
            }
            if t.packing == Packing::F16 {
                fits_half(path, &t.name, &values)?;
            }
            let mut bytes = t.packing.pack(&values);
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
            out.write_all(&bytes).map_err(|e| Error::io(path, e))
        })
    })
}
