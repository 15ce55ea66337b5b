//! Architectures: a configuration and a forward pass each.

mod gpt;
mod qwen;
mod rope;
mod view;

pub use gpt::{Gpt, GptBlock, GptConfig};
pub use qwen::{SequenceCache, Transformer, TransformerConfig};
pub use rope::RopeScaling;
pub use view::LayerView;
