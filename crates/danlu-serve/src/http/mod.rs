//! HTTP around the routes: errors in the official shape, bodies within limits, who may ask.

pub(crate) mod body;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod guard;
pub(crate) mod keys;
pub(crate) mod rest;
pub(crate) mod sse;
