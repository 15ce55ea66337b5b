//! Continuous batching: jobs come and go at any time, and every step makes at least one token for
//! each reply whose prompt is read, beside the next piece of a prompt.

use super::additions::{Adapted, Additions};
use super::cache::Cache;
use super::decoder::{Decoder, Want};
use super::draft::{Draft, Wanted};
use super::job::{BitMask, EngineOptions, Event, FinishReason, Job, JobId, Usage};
use super::lookup;
use super::reply::{Drawn, Named, Reply, Waiting};
use crate::arch::Transformer;
use danlu_core::{Error, Result};
use danlu_ops::{PAGE, Pages, Scan, Span};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Makes the replies of several jobs with one model. One thread owns it and calls
/// [`step`](Self::step) while there is work.
pub struct Scheduler {
    decoder: Decoder,
    cache: Cache,
    options: EngineOptions,
    next: u64,
    waiting: VecDeque<Waiting>,
    running: Vec<Reply>,
    mask: BitMask,
    scan: Scan,
    pushed: Vec<f32>,
    guessed: [u64; 2],
    adapters: BTreeMap<String, Named>,
    roots: u64,
    draft: Option<Draft>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scheduler({:?})", self.usage())
    }
}

/// A text that is read to be embedded, a chunk at a time.
pub struct Embedding {
    ids: Vec<u32>,
    /// Pages of its own: those of the cache may all be taken.
    pages: Pages,
    own: Vec<u32>,
    read: usize,
    sum: Vec<f32>,
}

impl std::fmt::Debug for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedding({} of {} ids read)", self.read, self.ids.len())
    }
}

/// What one sequence reads in a pass.
struct Part {
    reply: usize,
    blank: bool,
    ids: Vec<u32>,
    /// How many of the ids are guesses.
    guesses: usize,
    /// Whether the guesses are the small model's.
    drafted: bool,
    /// Places of the prompt whose successors are scored, and the first row of their logits.
    scored: (Range<usize>, usize),
    /// First row of its logits, if it has read all.
    logits: Option<usize>,
}

impl Part {
    /// One without guesses.
    fn new(reply: usize, blank: bool, ids: Vec<u32>) -> Self {
        Self { reply, blank, ids, guesses: 0, drafted: false, scored: (0..0, 0), logits: None }
    }
}

/// Most rows of a pass that a prompt is scored of: each has logits of the whole vocabulary.
const SCORED: usize = 32;

impl Scheduler {
    /// A scheduler for the weights of `model`.
    ///
    /// # Errors
    /// If the options leave no room for a reply.
    pub fn new(model: &Transformer, options: &EngineOptions) -> Result<Self> {
        Self::with(Decoder::new(model, options.weights), options)
    }

    /// The same for a decoder that was made before; its weights stay as they are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(decoder: Decoder, options: &EngineOptions) -> Result<Self> {
        let batch = options.batch.max(1);
        let context = decoder.config().context;
        let tokens = options.cache_tokens.unwrap_or(batch * context.next_multiple_of(PAGE));
        if tokens < 2 * PAGE {
            let wanted = format!("at least {}", 2 * PAGE);
            return Err(Error::parameter("cache_tokens", wanted, tokens));
        }
        // One page more for each reply: the last page of a known prompt is copied.
        let count = tokens / PAGE + if options.cache_tokens.is_none() { batch } else { 0 };
        let cache = Cache::new(decoder.pages(options.cache, count));
        Ok(Self {
            mask: BitMask::new(decoder.config().vocabulary),
            decoder,
            cache,
            options: EngineOptions { batch, chunk: options.chunk.max(1), ..*options },
            next: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            scan: Scan::default(),
            pushed: Vec::new(),
            guessed: [0; 2],
            adapters: BTreeMap::new(),
            roots: 0,
            draft: None,
        })
    }

    /// Has a small model guess for the jobs that speculate, where look-up finds nothing. The replies
    /// are the same.
    ///
    /// # Errors
    /// If it is of other ids.
    pub fn with_draft(self, draft: Draft) -> Result<Self> {
        draft.check(&self.decoder)?;
        Ok(Self { draft: Some(draft), ..self })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Makes the adapters that are attached to `adapted`, a copy of the base, available to jobs
    /// under a name, in place of what had the name. They are computed in single precision beside
    /// the base's weights, whatever format those have; jobs of different adapters share a pass. The
    /// lengths that DoRA divides by are those of the weights of `adapted`, computed once, here.
    ///
    /// # Errors
    /// If there are none, or shapes differ.
    pub fn add_adapter(&mut self, name: &str, adapted: &Transformer) -> Result<()> {
        if adapted.config != *self.decoder.config() {
            let wanted = format!("a model of {:?}", self.decoder.config());
            let found = format!("one of {:?}", adapted.config);
            return Err(Error::parameter(format!("adapter `{name}`"), wanted, found));
        }
        let additions = Arc::new(Additions::new(name, adapted)?);
        self.roots += 1;
        self.adapters.insert(name.to_string(), (self.roots, additions));
        Ok(())
    }

    /// Takes an adapter away. Jobs that were taken before keep it.
    pub fn remove_adapter(&mut self, name: &str) {
        self.adapters.remove(name);
    }

    /// Takes a job.
    ///
    /// # Errors
    /// If it can never fit, or names what is not there.
    pub fn add(&mut self, job: Job) -> Result<JobId> {
        let config = self.decoder.config();
        let context = config.context;
        let blank = job.guidance.as_ref().map(|g| &g.blank[..]);
        for (name, prompt) in [("prompt", Some(&job.prompt[..])), ("guidance.blank", blank)] {
            let Some(prompt) = prompt else { continue };
            if prompt.is_empty() || job.max_tokens == 0 || prompt.len() + job.max_tokens > context {
                return Err(Error::parameter(
                    name,
                    format!(
                        "1 to {} tokens, so that a reply of {} fits into the context of {context}",
                        context.saturating_sub(job.max_tokens.max(1)),
                        job.max_tokens.max(1),
                    ),
                    format!("{} tokens", prompt.len()),
                ));
            }
            if let Some(id) = prompt.iter().find(|&&id| id as usize >= config.vocabulary) {
                let wanted = format!("ids below {}", config.vocabulary);
                return Err(Error::parameter(name, wanted, id));
            }
        }
        let pages = |prompt: usize| (prompt + job.max_tokens).div_ceil(PAGE);
        let need = pages(job.prompt.len()) + blank.map_or(0, |b| pages(b.len()));
        if need > self.cache.pages.count() {
            return Err(Error::parameter(
                "prompt",
                format!("a cache of {} tokens or more", need * PAGE),
                format!("one of {}", self.cache.pages.count() * PAGE),
            ));
        }
        if let Some(adapter) = job.adapter.as_ref().filter(|a| !self.adapters.contains_key(*a)) {
            let wanted = format!("one of {:?}", self.adapters.keys().collect::<Vec<_>>());
            return Err(Error::parameter("adapter", wanted, adapter));
        }
        let id = JobId(self.next);
        self.next += 1;
        let adapter = job.adapter.as_ref().and_then(|name| self.adapters.get(name)).cloned();
        self.waiting.push_back(Waiting { id, job, adapter, begun: None });
        Ok(id)
    }

    /// Drops a job, running or waiting. Unknown ids are passed over. No event follows.
    pub fn cancel(&mut self, id: JobId) {
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(at) = self.running.iter().position(|r| r.id == id) {
            self.close(at);
        }
    }

    /// Ends a job whose reply has said all that is wanted of it, and tells what it came to; `None` if
    /// there is no such reply.
    pub fn finish(&mut self, id: JobId) -> Option<Event> {
        if let Some(at) = self.running.iter().position(|r| r.id == id) {
            let done = self.running[at].done(FinishReason::Stop);
            self.close(at);
            return Some(done);
        }
        let at = self.waiting.iter().position(|waiting| waiting.id == id)?;
        let done = self.waiting[at].done(FinishReason::Stop)?;
        self.waiting.remove(at);
        Some(done)
    }

    /// Drops every job, and everything that the cache knows.
    pub fn reset(&mut self) {
        self.waiting.clear();
        while !self.running.is_empty() {
            self.close(0);
        }
        self.cache.forget();
    }

    /// How busy it is.
    pub fn usage(&self) -> Usage {
        Usage {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages_used: self.cache.held(),
            pages: self.cache.pages.count(),
            page_bytes: self.cache.pages.page_bytes(),
            guessed: self.guessed,
        }
    }

    /// Makes a text ready to be embedded by [`Self::embed`].
    ///
    /// # Errors
    /// If there are no ids, too many for the context, or one is no id.
    pub fn begin_embedding(&self, ids: Vec<u32>) -> Result<Embedding> {
        let config = self.decoder.config();
        let most = config.context;
        let fits = (1..=most).contains(&ids.len());
        let bad = ids.iter().find(|&&id| id as usize >= config.vocabulary);
        if !fits || bad.is_some() {
            let wanted = format!("1 to {most} ids of the vocabulary");
            return Err(Error::parameter("ids", wanted, format!("{} ids", ids.len())));
        }
        let own: Vec<u32> = (0..ids.len().div_ceil(PAGE) as u32).collect();
        let pages = self.decoder.pages(self.options.cache, own.len());
        Ok(Embedding { ids, own, pages, read: 0, sum: vec![0.0; config.width] })
    }

    /// Reads the next chunk of a text. After the last one: the mean of the normalised hidden states,
    /// scaled to length 1.
    pub fn embed(&mut self, text: &mut Embedding) -> Option<Vec<f32>> {
        let rest = &text.ids[text.read..];
        let chunk = &rest[..rest.len().min(self.options.chunk)];
        let span = Span { pages: &text.own, position: text.read, rows: chunk.len() };
        let hidden = self.decoder.forward(&mut text.pages, &[span], chunk, &[], Want::Hidden);
        for row in hidden.chunks_exact(text.sum.len()) {
            text.sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        text.read += chunk.len();
        if text.read < text.ids.len() {
            return None;
        }
        let mut sum = std::mem::take(&mut text.sum);
        let length = sum.iter().map(|v| v * v).sum::<f32>().sqrt();
        if length > 0.0 {
            sum.iter_mut().for_each(|v| *v /= length);
        }
        Some(sum)
    }

    /// One pass over the running jobs.
    pub fn step(&mut self) -> Vec<Event> {
        self.admit();
        self.make_room();
        if self.running.is_empty() {
            return Vec::new();
        }
        let mut parts = self.parts();
        let mut ids = Vec::new();
        let mut wanted = Vec::new();
        for part in &mut parts {
            let reply = &self.running[part.reply];
            let sequence = if part.blank { reply.blank.as_ref() } else { Some(&reply.own) };
            let fresh = sequence.map_or(0, |s| s.fresh().len());
            let rows = part.ids.len();
            if !part.blank {
                let places = reply.to_score(rows);
                let first = ids.len() + places.start.saturating_sub(reply.own.read);
                part.scored = (places.clone(), wanted.len());
                wanted.extend(first..first + places.len());
            }
            if rows - part.guesses == fresh {
                part.logits = Some(wanted.len());
                let first = ids.len() + rows - 1 - part.guesses;
                wanted.extend(first..ids.len() + rows);
            }
            ids.extend_from_slice(&part.ids);
        }
        let spans: Vec<Span<'_>> = parts
            .iter()
            .map(|part| {
                let reply = &self.running[part.reply];
                let sequence = match &reply.blank {
                    Some(blank) if part.blank => blank,
                    _ => &reply.own,
                };
                Span { pages: &sequence.pages, position: sequence.read, rows: part.ids.len() }
            })
            .collect();
        let mut row = 0;
        let mut adapted: Vec<Adapted<'_>> = Vec::new();
        for part in &parts {
            let rows = row..row + part.ids.len();
            row = rows.end;
            let adapter = self.running[part.reply].adapter.as_ref();
            adapted.extend(adapter.map(|(_, additions)| (rows, &**additions)));
        }
        let vocabulary = self.decoder.config().vocabulary;
        let want = Want::Logits(&wanted);
        let logits = self.decoder.forward(&mut self.cache.pages, &spans, &ids, &adapted, want);
        drop((spans, adapted));
        for part in &parts {
            let reply = &mut self.running[part.reply];
            let read = part.ids.len() - part.guesses;
            let sequence = match &mut reply.blank {
                Some(blank) if part.blank => blank,
                _ => &mut reply.own,
            };
            self.cache.advance(sequence, read);
        }
        let mut events = Vec::new();
        let mut done = Vec::new();
        let mut blank_row = None;
        for part in &parts {
            let (places, first) = part.scored.clone();
            if !places.is_empty() {
                let rows = logits.chunks_exact(vocabulary).skip(first);
                events.push(self.running[part.reply].score(places, rows, &mut self.scan));
            }
            let Some(row) = part.logits else { continue };
            if part.blank {
                // It stands before the part of its own reply.
                blank_row = Some(row);
                continue;
            }
            let blank = blank_row.take();
            let reply = &mut self.running[part.reply];
            let guesses = &part.ids[part.ids.len() - part.guesses..];
            let mut drawn = Drawn {
                logits,
                vocabulary,
                blank,
                mask: &mut self.mask,
                scan: &mut self.scan,
                pushed: &mut self.pushed,
            };
            self.guessed[0] += guesses.len() as u64;
            let mut right = 0;
            for at in 0..=guesses.len() {
                let end = reply.draw(&mut drawn, row + at, &mut events);
                if let Some(reason) = end {
                    done.push((part.reply, reason));
                    break;
                }
                if reply.own.ids.last() != guesses.get(at) {
                    break;
                }
                // The guess was right: it is read already.
                right += 1;
                self.cache.advance(&mut reply.own, 1);
            }
            self.guessed[1] += right as u64;
            let note =
                if part.drafted { &mut reply.so_far.drafting } else { &mut reply.so_far.guessing };
            note.note(guesses.len(), right);
        }
        for (at, reason) in done.into_iter().rev() {
            events.push(self.running[at].done(reason));
            self.close(at);
        }
        events
    }

    /// Takes waiting jobs in while there are places and pages.
    fn admit(&mut self) {
        while self.running.len() < self.options.batch {
            let Some(first) = self.waiting.front() else { return };
            let (root, ids, blank) = (first.root(), first.ids(), first.blank());
            // Those that run will want more pages soon, in two places if they are guided.
            let spare = 2 * self.running.len();
            let Some(own) = self.cache.open(root, ids, ids.len() + 1, spare) else { return };
            let blank = match blank {
                None => None,
                Some(ids) => match self.cache.open(root, ids, ids.len() + 1, spare) {
                    None => return self.cache.close(own),
                    some => some,
                },
            };
            let Some(first) = self.waiting.pop_front() else { return };
            self.running.push(first.start(own, blank));
        }
    }

    /// Gives every reply pages for what it may read next. If there are too few, those that were let
    /// in last make room, and wait to be let in again.
    fn make_room(&mut self) {
        let mut at = 0;
        while let Some(reply) = self.running.get_mut(at) {
            if reply.grow(&mut self.cache) {
                at += 1;
            } else if let Some(last) = self.running.pop() {
                self.waiting.push_front(last.put_back(&mut self.cache));
            }
        }
    }

    /// What every sequence reads in this pass. Single tokens always go; what is left of the chunk
    /// goes to prompts, the longest waiting first.
    fn parts(&mut self) -> Vec<Part> {
        let mut left = self.options.chunk;
        let mut parts = Vec::new();
        // Each row of a pass costs something: among many replies there is little to gain.
        let most = (lookup::TOGETHER / self.running.len().max(1)).saturating_sub(1);
        for (i, reply) in self.running.iter_mut().enumerate() {
            let fresh = reply.own.fresh();
            let most_read =
                if reply.to_score(fresh.len()).is_empty() { left } else { left.min(SCORED) };
            let take = if fresh.len() == 1 { 1 } else { fresh.len().min(most_read) };
            if take == 0 {
                continue;
            }
            left -= take.min(left);
            let all = take == fresh.len();
            // The blank prompt is short: it is read whole, beside the end of the own one.
            if let (Some(blank), true) = (&reply.blank, all) {
                parts.push(Part::new(i, true, blank.fresh().to_vec()));
            }
            let mut ids = fresh[..take].to_vec();
            // Guidance mixes two passes: nothing is guessed there.
            let guess = if reply.job.speculate && all && reply.blank.is_none() {
                let room = reply.job.max_tokens - reply.so_far.said - 1;
                lookup::guess(&reply.own.ids, reply.so_far.guessing.width(room.min(most)))
            } else {
                Vec::new()
            };
            let guesses = guess.len();
            ids.extend(guess);
            parts.push(Part { guesses, ..Part::new(i, false, ids) });
        }
        self.ask_draft(&mut parts, most);
        parts
    }

    /// Adds what the small model guesses to the parts of which look-up knew nothing.
    fn ask_draft(&mut self, parts: &mut [Part], most: usize) {
        let Some(draft) = &mut self.draft else { return };
        let mut widths = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let reply = &mut self.running[part.reply];
            let read = part.ids.len() == reply.own.fresh().len();
            if !reply.job.speculate || !read || part.guesses > 0 || reply.blank.is_some() {
                continue;
            }
            let room = reply.job.max_tokens - reply.so_far.said - 1;
            let most = reply.so_far.drafting.width(room.min(most));
            if most > 0 {
                widths.push((i, most));
            }
        }
        let wanted: Vec<Wanted<'_>> = widths
            .iter()
            .map(|&(i, most)| {
                let reply = &self.running[parts[i].reply];
                Wanted { id: reply.id, ids: &reply.own.ids, most }
            })
            .collect();
        for ((i, _), guess) in widths.iter().copied().zip(draft.guess(&wanted)) {
            parts[i].guesses = guess.len();
            parts[i].drafted = true;
            parts[i].ids.extend(guess);
        }
    }

    fn close(&mut self, at: usize) {
        self.running.remove(at).put_back(&mut self.cache);
    }
}
