//! The transformer as an [`Engine`]: continuous batching over its cached forward pass. Every step
//! takes waiting jobs in while there are places, feeds prompts in chunks and draws one token for
//! every reply whose prompt is read.

use super::sample::Drawing;
use super::{BitMask, Engine, Event, FinishReason, Guidance, Job, JobId, Mask, Usage};
use danlu_core::{Error, Result};
use danlu_model::Transformer;
use danlu_model::arch::SequenceCache;
use std::collections::VecDeque;
use std::sync::Arc;

/// Sizes of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub struct BatchOptions {
    /// Most replies at a time.
    pub width: usize,
    /// Most tokens of one prompt that are read in one step, so that a long prompt does not hold
    /// the other replies up.
    pub chunk: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { width: 8, chunk: 128 }
    }
}

/// Several replies of one transformer in the making.
pub struct Batch {
    transformer: Transformer,
    /// The same with an adapter's layers, by name; they share the weights.
    adapted: Vec<(String, Transformer)>,
    options: BatchOptions,
    next: u64,
    waiting: VecDeque<(JobId, Job)>,
    running: Vec<Sequence>,
    mask: BitMask,
}

/// Ids that a cache has yet to read, and what it has read.
struct Stream {
    cache: SequenceCache,
    fresh: Vec<u32>,
}

impl Stream {
    /// The next ids to read, and whether they are the last of them.
    fn chunk(&mut self, most: usize) -> (Vec<u32>, bool) {
        let rest = self.fresh.split_off(self.fresh.len().min(most));
        let last = rest.is_empty();
        (std::mem::replace(&mut self.fresh, rest), last)
    }
}

struct Sequence {
    id: JobId,
    /// Place of its adapter among the adapted.
    adapter: Option<usize>,
    own: Stream,
    blank: Option<(Stream, f32)>,
    drawing: Drawing,
    mask: Option<Box<dyn Mask>>,
    stop_ids: Vec<u32>,
    top_logprobs: Option<usize>,
    max_tokens: usize,
    prompt_tokens: usize,
    said: usize,
}

impl Batch {
    /// A batch of a transformer whose weights are on a device without autodiff.
    pub fn new(transformer: Transformer, options: BatchOptions) -> Self {
        let mask = BitMask::new(transformer.config.vocabulary);
        let (waiting, running) = (VecDeque::new(), Vec::new());
        let adapted = Vec::new();
        Self { transformer, adapted, options, next: 0, waiting, running, mask }
    }

    /// Adds the transformer with an adapter's layers. It must have the base's sizes.
    pub fn with_adapter(mut self, name: &str, transformer: Transformer) -> Result<Self> {
        if transformer.config != self.transformer.config {
            return Err(Error::parameter(
                format!("--adapter {name}"),
                "an adapter of this model",
                "one of another",
            ));
        }
        self.adapted.push((name.into(), transformer));
        Ok(self)
    }

    fn start(&self, id: JobId, job: Job) -> Sequence {
        let stream = |ids| Stream { cache: self.transformer.start(), fresh: ids };
        let adapter = job.adapter.and_then(|name| self.adapted.iter().position(|a| a.0 == name));
        Sequence {
            id,
            adapter,
            prompt_tokens: job.prompt.len(),
            own: stream(job.prompt),
            blank: job.guidance.map(|Guidance { blank, scale }| (stream(blank), scale)),
            drawing: Drawing::new(job.sampling),
            mask: job.mask,
            stop_ids: job.stop_ids,
            top_logprobs: job.top_logprobs,
            max_tokens: job.max_tokens,
            said: 0,
        }
    }

    /// Reads the next chunks of all sequences; returns the logits of those whose ids are all read,
    /// by sequence, with those of the blank prompt.
    fn advance(&mut self) -> Vec<Option<Logits>> {
        let most = self.options.chunk.max(1);
        let mut chunks = Vec::new();
        for sequence in &mut self.running {
            let (own, done) = sequence.own.chunk(most);
            // The blank prompt is short: it is read whole, beside the last chunk.
            let blank = match &mut sequence.blank {
                Some((stream, _)) if done => std::mem::take(&mut stream.fresh),
                _ => Vec::new(),
            };
            chunks.push((own, done, blank));
        }
        // One pass for the base and one for each adapter that is asked for.
        let mut out: Vec<Option<Logits>> = self.running.iter().map(|_| None).collect();
        let ways = std::iter::once(None).chain((0..self.adapted.len()).map(Some));
        for way in ways {
            let transformer = match way {
                None => &self.transformer,
                Some(i) => &self.adapted[i].1,
            };
            let mut rows: Vec<(&mut SequenceCache, &[u32])> = Vec::new();
            for (sequence, (own, _, blank)) in self.running.iter_mut().zip(&chunks) {
                if sequence.adapter != way {
                    continue;
                }
                rows.push((&mut sequence.own.cache, own));
                if let Some((stream, _)) = &mut sequence.blank
                    && !blank.is_empty()
                {
                    rows.push((&mut stream.cache, blank));
                }
            }
            if rows.is_empty() {
                continue;
            }
            let logits = transformer.advance(&mut rows);
            let mut logits = logits.chunks_exact(transformer.config.vocabulary);
            let mut next = || logits.next().expect("a row for each chunk").to_vec();
            for ((sequence, (_, done, blank)), out) in
                self.running.iter().zip(&chunks).zip(&mut out)
            {
                if sequence.adapter == way {
                    let own = next();
                    let other = (!blank.is_empty()).then(&mut next);
                    *out = done.then_some((own, other));
                }
            }
        }
        out
    }
}

/// What comes next for a sequence, and for its blank prompt.
type Logits = (Vec<f32>, Option<Vec<f32>>);

impl Engine for Batch {
    fn add(&mut self, job: Job) -> Result<JobId> {
        let context = self.transformer.config.context;
        let tokens = job.prompt.len();
        if tokens == 0 || job.max_tokens == 0 || tokens + job.max_tokens > context {
            return Err(Error::parameter(
                "prompt",
                format!("1 to {} tokens before a reply of {}", context - 1, job.max_tokens.max(1)),
                format!("{tokens} tokens"),
            ));
        }
        if let Some(adapter) = &job.adapter
            && !self.adapted.iter().any(|a| a.0 == *adapter)
        {
            return Err(Error::parameter("adapter", "one that was loaded", adapter));
        }
        let size = self.transformer.config.vocabulary as u32;
        if let Some(id) = job.prompt.iter().find(|&&id| id >= size) {
            return Err(Error::parameter("prompt", format!("ids below {size}"), id));
        }
        let id = JobId(self.next);
        self.next += 1;
        self.waiting.push_back((id, job));
        Ok(id)
    }

    fn cancel(&mut self, id: JobId) {
        self.waiting.retain(|(other, _)| *other != id);
        self.running.retain(|s| s.id != id);
    }

    fn step(&mut self) -> Vec<Event> {
        while self.running.len() < self.options.width.max(1) {
            let Some((id, job)) = self.waiting.pop_front() else { break };
            let sequence = self.start(id, job);
            self.running.push(sequence);
        }
        if self.running.is_empty() {
            return Vec::new();
        }
        let logits = self.advance();
        let mut events = Vec::new();
        let mut left = Vec::with_capacity(self.running.len());
        for (mut sequence, logits) in std::mem::take(&mut self.running).into_iter().zip(logits) {
            let going = match logits {
                Some((own, blank)) => sequence.say(own, blank, &mut self.mask, &mut events),
                None => true,
            };
            if going {
                left.push(sequence);
            }
        }
        self.running = left;
        events
    }

    fn usage(&self) -> Usage {
        let context = self.transformer.config.context * self.options.width.max(1);
        let seen: usize = self.running.iter().map(|s| s.own.cache.tokens()).sum();
        Usage {
            running: self.running.len(),
            waiting: self.waiting.len(),
            cache: seen as f64 / context as f64,
        }
    }

    fn reset(&mut self) {
        self.waiting.clear();
        self.running.clear();
    }

    fn embed(&mut self, text: &[u32]) -> Result<Vec<f32>> {
        let config = &self.transformer.config;
        if text.is_empty() || text.len() > config.context {
            let (wanted, found) = (config.context, text.len());
            let wanted = format!("1 to {wanted} tokens");
            return Err(Error::parameter("input", wanted, format!("{found} tokens")));
        }
        let starts: Arc<[u32]> = Arc::from([0, text.len() as u32]);
        let hidden = self.transformer.hidden(&text.into(), &starts);
        let values: Vec<f32> = hidden.into_data().try_into_vec().expect("f32");
        let mut mean = vec![0.0f32; config.width];
        for row in values.chunks_exact(config.width) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
        }
        let norm = mean.iter().map(|m| m * m).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        mean.iter_mut().for_each(|m| *m /= norm);
        Ok(mean)
    }
}

impl Sequence {
    /// Draws the next token. Whether the reply goes on.
    fn say(
        &mut self,
        mut own: Vec<f32>,
        blank: Option<Vec<f32>>,
        allowed: &mut BitMask,
        events: &mut Vec<Event>,
    ) -> bool {
        if let (Some(blank), Some((_, scale))) = (blank, &self.blank)
            && self.mask.as_ref().is_some_and(|m| m.in_image())
        {
            own.iter_mut().zip(blank).for_each(|(o, b)| *o = b + scale * (*o - b));
        }
        let allowed = self.mask.as_mut().map(|mask| {
            allowed.clear();
            mask.allowed(allowed);
            &*allowed
        });
        let (id, reason) = match self.drawing.draw(&mut own, allowed, self.top_logprobs) {
            // Nothing may follow: what is there is complete.
            None => (None, Some(FinishReason::Stop)),
            Some((id, logprob)) => {
                if let Some(mask) = &mut self.mask {
                    mask.accept(id);
                }
                self.said += 1;
                events.push(Event::Token { id: self.id, token: id, logprob });
                let reason = match self.stop_ids.contains(&id) {
                    true => Some(FinishReason::Stop),
                    false if self.said >= self.max_tokens => Some(FinishReason::Length),
                    false => None,
                };
                (Some(id), reason)
            }
        };
        if let Some(reason) = reason {
            events.push(Event::Done {
                id: self.id,
                reason,
                prompt_tokens: self.prompt_tokens,
                cached_tokens: 0,
                completion_tokens: self.said,
            });
            return false;
        }
        self.own.fresh.extend(id);
        if let Some((stream, _)) = &mut self.blank {
            stream.fresh.extend(id);
        }
        true
    }
}
