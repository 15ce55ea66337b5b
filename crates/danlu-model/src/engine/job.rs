//! What goes into the engine and what comes out: plain data.

use danlu_core::Result;
use danlu_ops::CacheFormat;
use danlu_ops::quant::WeightFormat;
use std::ops::Range;

/// Sizes and formats of a [`Scheduler`](super::Scheduler).
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// How the weights of projections are kept. With formats of four bits the embedding and the
    /// head have eight.
    pub weights: WeightFormat,
    /// How keys and values are kept.
    pub cache: CacheFormat,
    /// Tokens that all caches together hold; `None`: those of `batch` full contexts. The memory is
    /// taken as it is used.
    pub cache_tokens: Option<usize>,
    /// Most replies at a time.
    pub batch: usize,
    /// Most tokens of prompts that are read in one step, so that a long prompt does not hold the
    /// other replies up.
    pub chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            weights: WeightFormat::F32,
            cache: CacheFormat::F16,
            cache_tokens: None,
            batch: 8,
            chunk: 256,
        }
    }
}

/// Number of a job, given by its scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    /// 0: always the likeliest.
    pub temperature: f32,
    /// Only the likeliest this many; 0: all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities sum to this; 1: all.
    pub top_p: f32,
    /// Only those at least this times as likely as the likeliest; 0: all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of what was said; 1: not at all.
    pub repetition_penalty: f32,
    /// Taken off the logit of everything that was said.
    pub presence_penalty: f32,
    /// Taken off for each time that it was said.
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the reply.
    pub seed: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

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
    /// How codes of pictures and sounds are drawn, where the mask knows of them; without, as all.
    pub media: Option<Sampler>,
    /// Ids that end the reply; the one that does is its last token.
    pub stop_ids: Vec<u32>,
    /// `None`: no log probabilities. `Some(n)`: those of the token and of the n likeliest.
    pub top_logprobs: Option<usize>,
    /// Tell the same of the prompt's ids, from the second on ([`Event::Scored`]). Nothing of the prompt is
    /// taken over from earlier ones then.
    pub score_prompt: bool,
    /// What may come next; without, anything.
    pub mask: Option<Box<dyn Mask>>,
    /// Adapter to answer with, by name; without, the base model.
    pub adapter: Option<String>,
    /// Push codes of pictures away from the prompt that asks for nothing.
    pub guidance: Option<Guidance>,
    /// Guess the next tokens by what followed the last ones before, and check several at once. The
    /// reply is the same.
    pub speculate: bool,
}

impl Job {
    /// A job of a prompt, greedy, without anything else.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            sampling: Sampler::default(),
            media: None,
            stop_ids: Vec::new(),
            top_logprobs: None,
            score_prompt: false,
            mask: None,
            adapter: None,
            guidance: None,
            speculate: false,
        }
    }
}

/// A set of ids: one bit each.
#[derive(Debug, Clone)]
pub struct BitMask {
    words: Vec<u64>,
    size: usize,
}

impl BitMask {
    /// The empty set of ids below `size`.
    pub fn new(size: usize) -> Self {
        Self { words: vec![0; size.div_ceil(64)], size }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Puts an id in; one that is too large is passed over.
    pub fn insert(&mut self, id: u32) {
        if (id as usize) < self.size {
            self.words[id as usize / 64] |= 1 << (id % 64);
        }
    }

    /// Puts a range of ids in.
    pub fn insert_range(&mut self, ids: Range<u32>) {
        let end = ids.end.min(self.size as u32);
        let mut id = ids.start;
        while id < end {
            if id.is_multiple_of(64) && end - id >= 64 {
                self.words[id as usize / 64] = u64::MAX;
                id += 64;
            } else {
                self.insert(id);
                id += 1;
            }
        }
    }

    /// Whether an id is in it.
    pub fn contains(&self, id: u32) -> bool {
        (id as usize) < self.size && self.words[id as usize / 64] >> (id % 64) & 1 == 1
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    /// The words: bit `i` of word `w` stands for id `64 w + i`.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Makes the logits of what is not in it minus infinity.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (logits, &word) in logits.chunks_mut(64).zip(&self.words) {
            match word {
                u64::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    for (i, logit) in logits.iter_mut().enumerate() {
                        if word >> i & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// Constrains a reply, id by id.
pub trait Mask: Send {
    /// Fills `out`, which is empty, with what may come next. Nothing in it ends the reply.
    fn allowed(&mut self, out: &mut BitMask);
    /// Takes the id that came.
    fn accept(&mut self, id: u32);
    /// Whether the reply is complete.
    fn done(&self) -> bool {
        false
    }
    /// Whether the next id is within a picture or a sound.
    fn in_media(&self) -> bool {
        false
    }
    /// Whether the next id is a code of a picture, where guidance applies.
    fn in_image(&self) -> bool {
        false
    }
}

/// Natural logarithms of probabilities at one position, as the model gives them: before
/// temperature, penalties and cuts.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// Of the token that was drawn, or stands there.
    pub chosen: f32,
    /// The likeliest ids, the best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model or the mask ended it.
    Stop,
    /// It reached its most tokens.
    Length,
    /// Nobody wants it any more.
    Cancelled,
}

/// What a step brought forth.
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
    /// The next ids of a prompt that is scored: the first event of a job begins with the prompt's second id.
    Scored {
        /// Whose.
        id: JobId,
        /// One for each of them, in their order.
        logprobs: Vec<Logprob>,
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
}

/// How busy a scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Replies in the making.
    pub running: usize,
    /// Jobs that wait for a place.
    pub waiting: usize,
    /// Pages of the cache that replies hold.
    pub pages_used: usize,
    /// All pages.
    pub pages: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Tokens that were guessed, and those of them that were right.
    pub guessed: [u64; 2],
}

/// Many jobs until each is done: their tokens, in the order of the jobs.
///
/// # Errors
/// If a job is refused.
pub fn run_all(
    scheduler: &mut super::Scheduler,
    jobs: impl IntoIterator<Item = Job>,
) -> Result<Vec<Vec<u32>>> {
    let ids = jobs.into_iter().map(|job| scheduler.add(job)).collect::<Result<Vec<_>>>()?;
    let mut replies = vec![Vec::new(); ids.len()];
    let mut left = ids.len();
    while left > 0 {
        for event in scheduler.step() {
            match event {
                Event::Token { id, token, .. } => {
                    if let Some(at) = ids.iter().position(|&i| i == id) {
                        replies[at].push(token);
                    }
                }
                Event::Scored { .. } => {}
                Event::Done { .. } => left -= 1,
            }
        }
    }
    Ok(replies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_ids_are_the_set() {
        let mut mask = BitMask::new(300);
        assert!(mask.is_empty());
        mask.insert_range(3..200);
        mask.insert(255);
        mask.insert_range(290..1_000);
        mask.insert(300);
        let mut logits = vec![1.0; 300];
        mask.apply(&mut logits);
        for id in 0..310u32 {
            let want = (3..200).contains(&id) || id == 255 || (290..300).contains(&id);
            assert_eq!(mask.contains(id), want, "{id}");
            if id < 300 {
                assert_eq!(logits[id as usize] == 1.0, want, "{id}");
            }
        }
        mask.clear();
        assert!(mask.is_empty());
    }
}
