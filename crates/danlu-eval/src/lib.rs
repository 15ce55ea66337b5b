//! Metrics, judges, evaluation sets and evaluation pages.
//!
//! [`read_set`] reads the questions, an [`Answerer`] answers them, [`evaluate`] scores the answers
//! and [`page`] shows them. Nothing here knows a model or its tokenisers: the judges that recognise
//! pictures and sounds are classical signal processing, fitted to nothing but the gallery they
//! choose from.

mod bootstrap;
mod index;
pub mod judges;
pub mod metrics;
mod page;
mod run;

pub use bootstrap::{Interval, interval};
pub use index::{EvalSet, Question, read_set};
pub use page::page;
pub use run::{
    Answer, Answerer, Assets, Files, Gallery, GalleryPicture, GallerySound, Record, Report, Score,
    TaskReport, Value, evaluate,
};
