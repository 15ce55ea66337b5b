//! The server: an OpenAI-compatible HTTP API and a page in front of models.
//!
//! Handlers are async and never touch a tensor; each model has one thread of its own
//! ([`engine::ModelThread`]) that runs an [`engine::Engine`], many replies at a time, and talks to the
//! handlers by channels. This is the only crate with async code. What may go wrong on the network
//! is in SECURITY.md, line by line with the test that holds it.

mod app;
mod ask;
mod catalogue;
mod conversation;
mod detokenise;
pub mod engine;
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod load;
pub mod logs;
mod media;
mod metrics;
mod net;
mod options;
mod reply;
mod routes;
mod schema;
mod server;

pub use catalogue::{Catalogue, Host, Hosted};
pub use http::keys::{Keys, hash};
pub use metrics::Metrics;
pub use options::Options;
pub use server::Server;
