//! Generation. The engine knows token ids and what makes a reply well-formed; it knows nothing of
//! files, HTTP or terminals.
//!
//! A [`Decoder`] is a transformer made ready: weights in tiles, quantised if wanted, and a pass over
//! new tokens. A [`Scheduler`] makes many replies with it at a time ([`Job`] in, [`Event`] out), over
//! keys and values in pages that equal prompts share. [`Generator`] and [`generate`] are the ways in
//! for the template's requests: a reply is an [`Iterator`] of token ids.

mod additions;
mod cache;
mod decoder;
mod draft;
mod draw;
mod experts;
mod generate;
mod grammar;
mod job;
mod lookup;
mod reply;
mod sampler;
mod scheduler;
#[cfg(test)]
mod tests;

pub use danlu_ops::quant::WeightFormat;
pub use danlu_ops::{CacheFormat, PAGE};
pub use decoder::Decoder;
pub use draft::Draft;
pub use generate::{Generator, Request, generate};
pub use grammar::{Grammar, ReplyMask};
pub use job::{
    BitMask, EngineOptions, Event, FinishReason, Guidance, Job, JobId, Logprob, Mask, Sampler,
    Usage, run_all,
};
pub use sampler::Sampling;
pub use scheduler::{Embedding, Scheduler};
