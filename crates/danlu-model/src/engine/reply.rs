//! One reply: what waits to be made, what is in the making, and the drawing of its next token.

use super::additions::Additions;
use super::cache::{Cache, Sequence};
use super::draw::{Drawing, score};
use super::job::{BitMask, Event, FinishReason, Job, JobId, Sampler};
use super::lookup::Guessing;
use danlu_ops::Scan;
use std::sync::Arc;

/// Ids that a reply has pages for ahead of what it has: guesses, and the token that is drawn.
const AHEAD: usize = 16;

/// An adapter, and what its sequences begin under in the cache: from the same ids it makes other
/// keys than the base.
pub(super) type Named = (u64, Arc<Additions>);

/// A job that waits for a place.
pub(super) struct Waiting {
    pub(super) id: JobId,
    pub(super) job: Job,
    pub(super) adapter: Option<Named>,
    /// What there is of its reply already, if it had to make room for others.
    pub(super) begun: Option<Begun>,
}

/// A reply that was begun.
pub(super) struct Begun {
    ids: Vec<u32>,
    blank: Option<Vec<u32>>,
    so_far: Progress,
}

/// How far a reply has come, whether it runs or waits to go on.
pub(super) struct Progress {
    drawing: Drawing,
    pub(super) guessing: Guessing,
    /// The same of what a small model guesses.
    pub(super) drafting: Guessing,
    /// Tokens of the prompt that did not have to be read.
    cached: usize,
    pub(super) said: usize,
    /// Tokens of the prompt whose successors' log probabilities were told.
    scored: usize,
}

impl Progress {
    /// What the reply to a job came to.
    fn done(&self, id: JobId, job: &Job, reason: FinishReason) -> Event {
        Event::Done {
            id,
            reason,
            prompt_tokens: job.prompt.len(),
            cached_tokens: self.cached,
            completion_tokens: self.said,
        }
    }
}

impl Waiting {
    /// What its sequences begin under in the cache.
    pub(super) fn root(&self) -> u64 {
        match &self.adapter {
            // One of its own, beyond all others: what is known of a prompt is not read, and could not be scored.
            _ if self.job.score_prompt => u64::MAX - self.id.0,
            Some((root, _)) => *root,
            None => 0,
        }
    }

    /// Every id that is to be read.
    pub(super) fn ids(&self) -> &[u32] {
        self.begun.as_ref().map_or(&self.job.prompt, |begun| &begun.ids)
    }

    /// The same of the prompt of guidance.
    pub(super) fn blank(&self) -> Option<&[u32]> {
        match &self.begun {
            Some(begun) => begun.blank.as_deref(),
            None => self.job.guidance.as_ref().map(|guidance| &guidance.blank[..]),
        }
    }

    /// What its reply came to, if it was begun.
    pub(super) fn done(&self, reason: FinishReason) -> Option<Event> {
        let begun = self.begun.as_ref()?;
        Some(begun.so_far.done(self.id, &self.job, reason))
    }

    /// The reply, with pages for its ids.
    pub(super) fn start(self, own: Sequence, blank: Option<Sequence>) -> Reply {
        let Self { id, job, adapter, begun } = self;
        let so_far = match begun {
            Some(begun) => begun.so_far,
            None => Progress {
                drawing: Drawing::new(&job.sampling, &job.prompt, job.top_logprobs),
                guessing: Guessing::default(),
                drafting: Guessing::default(),
                cached: own.read,
                said: 0,
                scored: 0,
            },
        };
        Reply { id, job, own, blank, adapter, so_far }
    }
}

/// A reply in the making.
pub(super) struct Reply {
    pub(super) id: JobId,
    pub(super) job: Job,
    pub(super) own: Sequence,
    /// The prompt of guidance with the reply after it.
    pub(super) blank: Option<Sequence>,
    pub(super) adapter: Option<Named>,
    pub(super) so_far: Progress,
}

/// The logits of a pass, and memory for drawing.
pub(super) struct Drawn<'a> {
    pub(super) logits: &'a mut [f32],
    pub(super) vocabulary: usize,
    /// The row of the prompt of guidance.
    pub(super) blank: Option<usize>,
    pub(super) mask: &'a mut BitMask,
    pub(super) scan: &'a mut Scan,
    pub(super) pushed: &'a mut Vec<f32>,
}

impl Reply {
    /// Gives it pages for what it may read in the next passes; false if there are too few.
    pub(super) fn grow(&mut self, cache: &mut Cache) -> bool {
        let ahead = AHEAD.min(self.job.max_tokens - self.so_far.said);
        let mut all = self.blank.iter_mut().chain([&mut self.own]);
        all.all(|s| cache.grow(s, s.ids.len() + ahead))
    }

    /// What it came to.
    pub(super) fn done(&self, reason: FinishReason) -> Event {
        self.so_far.done(self.id, &self.job, reason)
    }

    /// Gives its pages back. What it said is kept, for it to be read again and go on.
    pub(super) fn put_back(self, cache: &mut Cache) -> Waiting {
        let Self { id, job, mut own, mut blank, adapter, so_far } = self;
        let ids = std::mem::take(&mut own.ids);
        let blank_ids = blank.as_mut().map(|blank| std::mem::take(&mut blank.ids));
        cache.close(own);
        if let Some(blank) = blank {
            cache.close(blank);
        }
        Waiting { id, job, adapter, begun: Some(Begun { ids, blank: blank_ids, so_far }) }
    }

    /// The places of the prompt, of the next `rows` that are read, whose successors are to be scored.
    pub(super) fn to_score(&self, rows: usize) -> std::ops::Range<usize> {
        let last = if self.job.score_prompt { self.job.prompt.len() - 1 } else { 0 };
        self.own.read.max(self.so_far.scored).min(last)..(self.own.read + rows).min(last)
    }

    /// Tells of the successors of `places` of the prompt, of which `rows` are the logits.
    pub(super) fn score<'a>(
        &mut self,
        places: std::ops::Range<usize>,
        rows: impl Iterator<Item = &'a [f32]>,
        scan: &mut Scan,
    ) -> Event {
        let n = self.job.top_logprobs.unwrap_or(0);
        self.so_far.scored = places.end;
        let each = places.zip(rows);
        let logprobs = each.map(|(at, row)| score(self.job.prompt[at + 1], row, n, scan)).collect();
        Event::Scored { id: self.id, logprobs }
    }

    /// Draws the next token from a row of the logits; returns why the reply ends, if it does.
    pub(super) fn draw(
        &mut self,
        from: &mut Drawn<'_>,
        row: usize,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let size = from.vocabulary;
        let mut mask = self.job.mask.as_deref_mut();
        let (mut media, mut image) = (false, false);
        if let Some(mask) = &mut mask {
            from.mask.clear();
            mask.allowed(from.mask);
            if from.mask.is_empty() {
                return Some(FinishReason::Stop);
            }
            (media, image) = (mask.in_media(), mask.in_image());
        }
        let scale = self.job.guidance.as_ref().map_or(1.0, |g| g.scale);
        let logits = match from.blank {
            Some(blank) if image => {
                from.pushed.clear();
                let own = from.logits[row * size..][..size].iter();
                let other = &from.logits[blank * size..][..size];
                from.pushed.extend(own.zip(other).map(|(o, b)| b + scale * (o - b)));
                &mut from.pushed[..]
            }
            _ => &mut from.logits[row * size..][..size],
        };
        let how: &Sampler = match &self.job.media {
            Some(how) if media => how,
            _ => &self.job.sampling,
        };
        let allowed = mask.is_some().then_some(&*from.mask);
        let (token, logprob) = self.so_far.drawing.draw(how, logits, allowed, from.scan);
        self.so_far.said += 1;
        self.own.ids.push(token);
        if let Some(blank) = &mut self.blank {
            blank.ids.push(token);
        }
        events.push(Event::Token { id: self.id, token, logprob });
        let mut ended = self.job.stop_ids.contains(&token);
        if let Some(mask) = mask {
            mask.accept(token);
            ended |= mask.done();
        }
        match () {
            () if ended => Some(FinishReason::Stop),
            () if self.so_far.said >= self.job.max_tokens => Some(FinishReason::Length),
            () => None,
        }
    }
}
