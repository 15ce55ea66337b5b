//! Smaller forms of a model: what they are, how they are made, and how they are measured beside it.

mod form;
mod measure;
mod report;

pub(crate) use form::{Calibration, Form, Maker, Method, candidates};
pub(crate) use measure::{Looked, Measured, Tests, chosen, few_enough, read_choices, read_texts};
pub(crate) use report::{Report, Row};
