//! GGUF files, versions 2 and 3: a header of keys and tensors, then aligned data. The header is read
//! and checked whole, tensors one at a time. Knows nothing of what keys and tensors mean.

mod read;
mod value;
mod write;

pub use read::{Gguf, TensorInfo, check_gguf};
pub use value::Value;
pub use write::{GgufTensor, write_gguf};

/// The first four bytes of a file.
const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensors begin unless `general.alignment` says otherwise, in bytes.
const ALIGNMENT: u64 = 32;
