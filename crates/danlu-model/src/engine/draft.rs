//! Guesses of a small model (speculative decoding, arXiv 2211.17192): it says the next ids one by one,
//! and the large model checks them all in one pass. A guess counts only where the large model draws
//! the same id by itself, so replies are the same with it and without.

use super::decoder::{Decoder, Want};
use super::job::JobId;
use danlu_core::{Error, Result};
use danlu_ops::{CacheFormat, PAGE, Pages, Span};

/// Most ids that are guessed at a time.
const MOST: usize = 4;
/// Tokens of a prompt that are read in a pass.
const CHUNK: usize = 256;

/// What is to be guessed: a reply, every id of it so far, and how many more at most.
pub(super) struct Wanted<'a> {
    pub(super) id: JobId,
    pub(super) ids: &'a [u32],
    pub(super) most: usize,
}

/// A reply that the small model follows.
#[derive(Debug, Default)]
struct Follows {
    id: Option<JobId>,
    /// Ids that its pages hold.
    read: Vec<u32>,
}

/// A small model that guesses for a large one with the same vocabulary.
#[derive(Debug)]
pub struct Draft {
    decoder: Decoder,
    pages: Pages,
    /// One for each reply at a time; each has the same number of pages.
    places: Vec<Follows>,
    each: usize,
}

impl Draft {
    /// A small model for so many replies at a time.
    pub fn new(decoder: Decoder, batch: usize) -> Self {
        let each = decoder.config().context.div_ceil(PAGE);
        let places = (0..batch.max(1)).map(|_| Follows::default()).collect::<Vec<_>>();
        let pages = decoder.pages(CacheFormat::F16, each * places.len());
        Self { decoder, pages, places, each }
    }

    /// Refuses a small model of other ids than the large one's.
    pub(super) fn check(&self, large: &Decoder) -> Result<()> {
        let (ours, theirs) = (self.decoder.config().vocabulary, large.config().vocabulary);
        if ours != theirs {
            let wanted = format!("a model of the same {theirs} ids");
            return Err(Error::parameter("draft", wanted, ours));
        }
        Ok(())
    }

    /// The likeliest next ids after each reply; none where there is no place or no room for it.
    pub(super) fn guess(&mut self, wanted: &[Wanted<'_>]) -> Vec<Vec<u32>> {
        let ids: Vec<JobId> = wanted.iter().map(|w| w.id).collect();
        let context = self.decoder.config().context;
        let mut guesses = vec![Vec::new(); wanted.len()];
        // Which place each has, and how many to guess.
        let mut at = vec![None; wanted.len()];
        for (i, w) in wanted.iter().enumerate() {
            let most = w.most.min(MOST).min(context.saturating_sub(w.ids.len()));
            if most == 0 || w.ids.is_empty() {
                continue;
            }
            let followed = self.places.iter().position(|p| p.id == Some(w.id));
            let free = |p: &Follows| p.id.is_none_or(|id| !ids.contains(&id));
            let Some(place) = followed.or_else(|| self.places.iter().position(free)) else {
                continue;
            };
            let follows = &mut self.places[place];
            follows.id = Some(w.id);
            // What was guessed wrong is read again, and always the last id, for its logits.
            let same = follows.read.iter().zip(w.ids).take_while(|(a, b)| a == b).count();
            follows.read.truncate(same.min(w.ids.len() - 1));
            at[i] = Some((place, most));
        }
        for step in 0..MOST {
            // The ids that each reads now, all but the last CHUNK of a prompt beforehand.
            let mut fresh: Vec<(usize, usize, Vec<u32>)> = Vec::new();
            for (i, place) in at.iter().enumerate() {
                let Some((place, _)) = place.filter(|(_, most)| step < *most) else { continue };
                let read = self.places[place].read.len();
                let known = wanted[i].ids.iter().chain(&guesses[i]).skip(read).copied();
                let mut left: Vec<u32> = known.collect();
                while left.len() > CHUNK {
                    let rest = left.split_off(CHUNK);
                    self.pass(&[(i, place, left)]);
                    left = rest;
                }
                fresh.push((i, place, left));
            }
            if fresh.is_empty() {
                break;
            }
            for ((i, ..), best) in fresh.iter().zip(self.pass(&fresh)) {
                guesses[*i].push(best);
            }
        }
        guesses
    }

    /// Reads ids of several replies, and says the likeliest after each.
    fn pass(&mut self, fresh: &[(usize, usize, Vec<u32>)]) -> Vec<u32> {
        let pages: Vec<Vec<u32>> = fresh
            .iter()
            .map(|(_, place, _)| (place * self.each..(place + 1) * self.each).map(|p| p as u32))
            .map(Iterator::collect)
            .collect();
        let spans: Vec<Span<'_>> = fresh
            .iter()
            .zip(&pages)
            .map(|((_, place, ids), pages)| {
                let position = self.places[*place].read.len();
                Span { pages, position, rows: ids.len() }
            })
            .collect();
        let ids: Vec<u32> = fresh.iter().flat_map(|(.., ids)| ids).copied().collect();
        let mut rows = Vec::new();
        let mut end = 0;
        for (.., ids) in fresh {
            end += ids.len();
            rows.push(end - 1);
        }
        let vocabulary = self.decoder.config().vocabulary;
        let want = Want::Logits(&rows);
        let logits = self.decoder.forward(&mut self.pages, &spans, &ids, &[], want);
        let best = logits.chunks_exact(vocabulary).map(|row| {
            let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| {
                if v > best.1 { (i, v) } else { best }
            });
            best.0 as u32
        });
        let best = best.collect();
        for (_, place, ids) in fresh {
            self.places[*place].read.extend(ids);
        }
        best
    }
}
