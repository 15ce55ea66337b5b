//! Plain data that crosses Danlu's seams.
//!
//! Every other crate speaks in these types: a [`Sample`] is a conversation of [`Part`]s, a
//! [`Vocabulary`] says which token ids mean text, image, sound, place or control, a [`Batch`] is
//! what a training step eats, a [`Recipe`] is one run, and an [`Error`] names what was wrong and
//! where. This crate knows no tensor, opens no media file and prints nothing.

mod batch;
pub mod call;
mod error;
pub mod instruction;
mod media;
pub mod recipe;
mod rng;
mod sample;
mod tune;
mod vocabulary;

pub use batch::{Batch, Document};
pub use call::Call;
pub use error::{Error, Result};
pub use media::{Modality, Picture, Sound};
pub use recipe::Recipe;
pub use rng::{Rng, split_mix};
pub use sample::{
    AssetId, Media, Message, Part, Role, Row, Sample, learnt, message, read_rows, refuse_misspelt,
    variables, without_mark,
};
pub use tune::{
    BaseFormat, LoraConfig, MAX_RANK, Objective, Reward, Target, TuneRecipe, TuneSet, TuneTrain,
    adapter_folder,
};
pub use vocabulary::{Control, Foreign, TokenKind, Vocabulary};
