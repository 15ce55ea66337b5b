//! The model: blocks, the transformer, modality tokenisers, the generation engine, files.
//!
//! A model folder holds everything that a reply needs: the transformer's weights
//! (`model.safetensors`, Hugging Face names of the Qwen3 family), `config.json`, the text tokeniser
//! (`tokenizer.json`), and the image and audio tokenisers (`image.safetensors`,
//! `audio.safetensors`). [`Model::load`] opens it, [`engine`] answers conversations with it.
//!
//! This crate knows nothing of training: losses and optimisers are in `danlu-train`. It never
//! imports `danlu-data`.

pub mod adapters;
pub mod arch;
pub mod chat;
pub mod compress;
pub mod engine;
pub mod export;
mod extend;
pub mod import;
pub mod io;
pub mod layers;
pub mod likelihood;
pub mod modality;
mod model;
pub mod params;
pub mod parity;
pub mod prompt;

pub use arch::{Transformer, TransformerConfig};
pub use modality::Tokenisers;
pub use model::{Model, ModelInfo, Origin};
pub use params::{Module, Parameter};
