//! Metrics, judges, evaluation index and evaluation pages.
//!
//! [`read_set`] opens a file of questions, an [`Answerer`] (the model, or anything else) replies,
//! [`evaluate`] scores the replies and [`write_page`] shows them. Generated pictures and sounds are
//! scored by [`Judges`] that share nothing with the model: they look for the nearest of many
//! references and tell what it is of. This crate knows no tensor and no tokeniser.

mod bootstrap;
mod index;
mod judges;
mod metrics;
mod page;
mod run;

pub use bootstrap::{Interval, interval, ratio};
pub use index::{Question, read_set};
pub use judges::{PictureJudge, PictureWeights, SoundJudge};
pub use metrics::{Box2, METRICS, Metric, boxes, mean_iou, metric};
pub use page::write_page;
pub use run::{
    Answerer, Assets, Files, Gallery, Judges, Record, Report, Scored, Value, evaluate, judge_only,
};
