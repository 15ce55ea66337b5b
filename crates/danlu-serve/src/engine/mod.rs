//! What the server asks of a model: jobs in, tokens out. Plain data crosses this seam: no tensor,
//! no text, no HTTP.
//!
//! An [`Engine`] runs on the one thread that owns it ([`ModelThread`]); async code talks to the
//! thread by channels.

mod batch;
mod mask;
mod sample;
mod thread;

pub use batch::{Batch, BatchOptions};
pub use mask::{BitMask, Mask, ReplyMask};
pub use sample::Sampler;
pub use thread::{Limits, ModelThread, Refusal, Running};

use danlu_core::Result;

/// Number of a job, given by its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Classifier-free guidance of pictures (Ho and Salimans, arXiv 2207.12598).
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance {
    /// Ids of the prompt that asks for nothing.
    pub blank: Vec<u32>,
    /// How far to push away from it; 1 is not at all.
    pub scale: f32,
}

/// What one reply is made from, and how.
pub struct Job {
    /// Ids before the reply, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens of the reply, at least one.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampler,
    /// Ids that end the reply; the one that does is its last token.
    pub stop_ids: Vec<u32>,
    /// `None`: no log probabilities. `Some(n)`: those of the token and of the n likeliest.
    pub top_logprobs: Option<usize>,
    /// What may come next; without, anything.
    pub mask: Option<Box<dyn Mask>>,
    /// Adapter to answer with, by name; without, the base model.
    pub adapter: Option<String>,
    /// Push codes of pictures away from the prompt that asks for nothing.
    pub guidance: Option<Guidance>,
}

/// Natural logarithms of probabilities at one position, over the ids that were allowed there.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// Of the token that was drawn.
    pub chosen: f32,
    /// The likeliest ids, the best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// It reached its most tokens.
    Length,
    /// Nobody wants it any more.
    Cancelled,
}

/// What a step of an engine brought forth.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One more token of a reply.
    Token {
        /// Whose.
        id: JobId,
        /// Its id.
        token: u32,
        /// If asked for.
        logprob: Option<Logprob>,
    },
    /// A reply is complete.
    Done {
        /// Whose.
        id: JobId,
        /// Why.
        reason: FinishReason,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// How many of them did not have to be computed.
        cached_tokens: usize,
        /// Tokens of the reply, the one that ended it included.
        completion_tokens: usize,
    },
    /// A reply cannot go on.
    Failed {
        /// Whose.
        id: JobId,
        /// Why, in a sentence.
        message: String,
    },
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Replies in the making.
    pub running: usize,
    /// Jobs that wait for a place.
    pub waiting: usize,
    /// Share of the cache in use, 0 to 1.
    pub cache: f64,
}

/// A model that replies to several jobs at a time.
pub trait Engine: Send {
    /// Takes a job. Refuses one that can never fit, by name and numbers.
    fn add(&mut self, job: Job) -> Result<JobId>;
    /// Drops a job, running or waiting. Unknown ids are passed over.
    fn cancel(&mut self, id: JobId);
    /// One pass over the running jobs.
    fn step(&mut self) -> Vec<Event>;
    /// How busy it is.
    fn usage(&self) -> Usage;
    /// Drops every job: what a panic left behind is not used again.
    fn reset(&mut self);
    /// The mean of the normalised hidden states of a list of ids, scaled to length 1.
    fn embed(&mut self, text: &[u32]) -> Result<Vec<f32>>;
}
