//! Architectures: a configuration and a forward pass each.

mod qwen;

pub use qwen::{SequenceCache, Transformer, TransformerConfig};
