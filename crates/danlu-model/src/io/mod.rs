//! Files: tensors in safetensors and GGUF, and the forms that Hugging Face and llama.cpp give to the
//! transformer.

mod gguf;
mod hf;
mod llama_cpp;
mod pieces;
mod quant;
mod regular;
mod rope;
mod shards;
mod tensors;
mod tiles;
mod vocab;

pub use gguf::{Gguf, GgufTensor, TensorInfo, Value as GgufValue, check_gguf, write_gguf};
pub use hf::{HfConfig, Part, fill, from_hf, parts_of, to_hf};
pub(crate) use hf::{check_parts, read_part};
pub use llama_cpp::{GgufWeights, architecture_keys, check_architecture, gguf_name, to_gguf_order};
pub use quant::Packing;
pub(crate) use regular::{open_regular, read_regular, read_text};
pub use rope::{FACTORS, gguf_factors};
pub use shards::{Shards, Weights, check_safetensors, parse_index};
pub use tensors::{
    Dtype, NamedTensor, load_parameters, load_tensors, save_tensors, write_atomically,
    write_atomically_with, write_tensors,
};
pub(crate) use tiles::in_tiles;
pub use tiles::{TILES, map_tiles, write_tiles};
pub use vocab::{SPECIALS, end_keys, ends_of_gguf, tokeniser_keys, tokeniser_of_gguf};
