//! Generation. The engine knows token ids and what makes a reply well-formed; it knows nothing of
//! files, HTTP or terminals. A reply is an [`Iterator`] of token ids ([`Generator`]); many at once
//! go through [`generate`].

mod generate;
mod grammar;
mod sampler;

pub use generate::{Generator, Request, generate};
pub use grammar::Grammar;
pub use sampler::{Sampling, sample};
