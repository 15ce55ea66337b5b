//! Architectures: a configuration and a forward pass each.

mod gpt;
mod qwen;

pub use gpt::{Gpt, GptBlock, GptConfig};
pub use qwen::{SequenceCache, Transformer, TransformerConfig};
