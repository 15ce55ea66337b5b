//! Files: tensors in safetensors, and the Hugging Face form of the transformer.

mod hf;
mod tensors;

pub use hf::{HfConfig, from_hf, to_hf};
pub use tensors::{
    Dtype, NamedTensor, load_parameters, load_tensors, save_tensors, write_atomically,
};
