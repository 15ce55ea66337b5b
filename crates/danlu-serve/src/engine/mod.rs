//! What the server asks of a model: jobs in, tokens out. Plain data crosses this seam: no tensor,
//! no text, no HTTP.
//!
//! An [`Engine`] runs on the one thread that owns it ([`ModelThread`]); async code talks to the
//! thread by channels. The engine of every model is `danlu-model`'s [`Scheduler`]; tests have some
//! that misbehave.

mod thread;

pub use danlu_model::engine::{
    BitMask, Embedding, Event, FinishReason, Guidance, Job, JobId, Logprob, Mask, ReplyMask,
    Sampler,
};
pub use thread::{Limits, ModelThread, Refusal, Running, Told};

use danlu_core::Result;
use danlu_model::engine::Scheduler;

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Replies in the making.
    pub running: usize,
    /// Jobs that wait for a place.
    pub waiting: usize,
    /// Share of the cache in use, 0 to 1.
    pub cache: f64,
    /// Tokens that were guessed, and how many of them were right.
    pub guessed: [u64; 2],
}

/// A model that replies to several jobs at a time.
pub trait Engine: Send {
    /// Takes a job. Refuses one that can never fit, by name and numbers.
    fn add(&mut self, job: Job) -> Result<JobId>;
    /// Drops a job, running or waiting. Unknown ids are passed over.
    fn cancel(&mut self, id: JobId);
    /// Ends a job whose reply has said all that is wanted of it: the event that is its last. `None` if
    /// there is no such reply.
    fn finish(&mut self, id: JobId) -> Option<Event>;
    /// One pass over the running jobs.
    fn step(&mut self) -> Vec<Event>;
    /// How busy it is.
    fn usage(&self) -> Usage;
    /// Drops every job: what a panic left behind is not used again.
    fn reset(&mut self);
    /// Makes a list of ids ready to be embedded. Refuses one that cannot be, by numbers.
    fn begin_embedding(&mut self, text: Vec<u32>) -> Result<Embedding>;
    /// Reads a further part of it; at its end: the mean of the normalised hidden states, scaled to
    /// length 1.
    fn embed(&mut self, text: &mut Embedding) -> Option<Vec<f32>>;
}

impl Engine for Scheduler {
    fn add(&mut self, job: Job) -> Result<JobId> {
        Scheduler::add(self, job)
    }

    fn cancel(&mut self, id: JobId) {
        Scheduler::cancel(self, id);
    }

    fn finish(&mut self, id: JobId) -> Option<Event> {
        Scheduler::finish(self, id)
    }

    fn step(&mut self) -> Vec<Event> {
        Scheduler::step(self)
    }

    fn usage(&self) -> Usage {
        let usage = Scheduler::usage(self);
        let cache = usage.pages_used as f64 / usage.pages.max(1) as f64;
        Usage { running: usage.running, waiting: usage.waiting, cache, guessed: usage.guessed }
    }

    fn reset(&mut self) {
        Scheduler::reset(self);
    }

    fn begin_embedding(&mut self, text: Vec<u32>) -> Result<Embedding> {
        Scheduler::begin_embedding(self, text)
    }

    fn embed(&mut self, text: &mut Embedding) -> Option<Vec<f32>> {
        Scheduler::embed(self, text)
    }
}
