//! Data packs, sample files, tasks, mixing and packing. Knows no tensor and no tokeniser.
//!
//! [`Corpus::load`] reads packs and sample files into memory. A [`tasks::Task`] draws one
//! conversation or text out of it, a [`Mixture`] draws the tasks in the recipe's proportions, and
//! once the caller has turned each into a [`danlu_core::Document`], a [`Packer`] fills batches.
//! Everything random is a pure function of a seed and an index.

mod classes;
mod corpus;
mod formats;
mod mixture;
mod pack;
mod packing;
mod questions;
mod scenes;
mod table;
pub mod tasks;

pub use classes::{Classes, picture_classes, sound_classes};
pub use corpus::{
    ConceptEntry, Corpus, Held, LoadOptions, PictureAsset, Purpose, SIDE, SoundAsset, TextDoc,
};
pub use formats::{Numbered, TuneRow, read_each, read_tuning};
pub use mixture::Mixture;
pub use pack::{
    Concept, Manifest, Pack, PictureItem, Shard, SoundItem, SoundKind, Source, Split, Splits, Text,
    TextFile,
};
pub use packing::{Packer, cut};
pub use questions::{questions, write_set};
pub use scenes::{Scene, SceneObject};
pub use table::{Rows, is_table, read_rows};
pub use tasks::{Drawn, TASKS, Task, View};
