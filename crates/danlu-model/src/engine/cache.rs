//! Which pages belong to which sequence, and which are kept for a prompt with the same beginning.
//!
//! A full page of a sequence is published under what stands in it and under the page before it, so
//! that a later prompt with the same ids finds the chain. A page that no sequence holds any more
//! stays findable until its place is needed; the one that was let go first goes first.

use danlu_ops::{PAGE, Pages};
use std::collections::{BTreeMap, HashMap};

/// What a page is published under: the page before it, and the ids in it.
type Key = (u64, [u32; PAGE]);

#[derive(Debug, Clone, Default)]
struct Page {
    /// Sequences that hold it.
    holders: usize,
    key: Option<Key>,
    /// Number of what it holds, never given twice; what follows is published under it.
    content: u64,
    /// When it was let go.
    since: u64,
}

/// All pages and who holds them.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) pages: Pages,
    book: Vec<Page>,
    free: Vec<u32>,
    /// Findable pages that nobody holds, by when they were let go.
    idle: BTreeMap<u64, u32>,
    known: HashMap<Key, u32>,
    clock: u64,
    contents: u64,
}

/// One sequence's ids and pages.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Every id so far, read or not.
    pub(super) ids: Vec<u32>,
    /// How many of them the pages hold.
    pub(super) read: usize,
    /// Its pages, in the order of what they hold or will hold.
    pub(super) pages: Vec<u32>,
    /// Pages published or shared.
    published: usize,
    /// What the next page is published under.
    parent: u64,
}

impl Sequence {
    /// Ids that were not read yet.
    pub(super) fn fresh(&self) -> &[u32] {
        &self.ids[self.read..]
    }
}

impl Cache {
    pub(super) fn new(pages: Pages) -> Self {
        let count = pages.count();
        Self {
            pages,
            book: vec![Page::default(); count],
            free: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            clock: 0,
            // Below: the beginnings of sequences, one for each adapter. Those of prompts that are scored count
            // down from the other end.
            contents: 1 << 32,
        }
    }

    /// Pages that sequences hold.
    pub(super) fn held(&self) -> usize {
        self.book.len() - self.free.len() - self.idle.len()
    }

    /// A sequence that begins with `prompt` and has pages for `room` ids, under `root` (which
    /// adapter). What is known of the prompt is shared; at least its last id is left to read.
    /// `None` if that would leave fewer than `spare` pages.
    pub(super) fn open(
        &mut self,
        root: u64,
        prompt: &[u32],
        room: usize,
        spare: usize,
    ) -> Option<Sequence> {
        let (mut pages, mut parent) = (Vec::new(), root);
        for ids in prompt.as_chunks::<PAGE>().0 {
            let Some(&page) = self.known.get(&(parent, *ids)) else { break };
            parent = self.book[page as usize].content;
            pages.push(page);
        }
        let mut shared = pages.len();
        for &page in &pages {
            self.hold(page);
        }
        let need = room.div_ceil(PAGE);
        // The last page of a prompt that is known to its end is copied, for one id must be read. If
        // there is no page for the copy, all ids of that page are read again.
        let mut whole = shared * PAGE == prompt.len() && shared > 0;
        if whole && need - shared + 1 + spare > self.left() {
            let last = pages.pop().expect("at least one is shared");
            parent = self.book[last as usize].key.map_or(root, |key| key.0);
            self.let_go(&[last]);
            shared -= 1;
            whole = false;
        }
        if need - shared + usize::from(whole) + spare > self.left() {
            self.let_go(&pages);
            return None;
        }
        let mut read = shared * PAGE;
        if whole {
            let last = pages.pop().expect("at least one is shared");
            let copy = self.take();
            self.pages.copy(last as usize, copy as usize);
            parent = self.book[last as usize].key.map_or(root, |key| key.0);
            self.let_go(&[last]);
            pages.push(copy);
            shared -= 1;
            read -= 1;
        }
        while pages.len() < need {
            pages.push(self.take());
        }
        Some(Sequence { ids: prompt.to_vec(), read, pages, published: shared, parent })
    }

    /// Pages that nobody holds.
    fn left(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Gives a sequence pages for `room` ids; false if there are too few now.
    pub(super) fn grow(&mut self, s: &mut Sequence, room: usize) -> bool {
        while s.pages.len() < room.div_ceil(PAGE) {
            if self.left() == 0 {
                return false;
            }
            s.pages.push(self.take());
        }
        true
    }

    /// Takes note that `count` more ids of a sequence were read, and publishes what is full.
    pub(super) fn advance(&mut self, s: &mut Sequence, count: usize) {
        s.read += count;
        while (s.published + 1) * PAGE <= s.read {
            let mut ids = [0; PAGE];
            ids.copy_from_slice(&s.ids[s.published * PAGE..][..PAGE]);
            let key = (s.parent, ids);
            let page = s.pages[s.published];
            // Another sequence may have been first.
            let owner = *self.known.entry(key).or_insert(page);
            if owner == page {
                self.contents += 1;
                let page = &mut self.book[page as usize];
                (page.key, page.content) = (Some(key), self.contents);
            }
            s.parent = self.book[owner as usize].content;
            s.published += 1;
        }
    }

    /// Ends a sequence.
    pub(super) fn close(&mut self, s: Sequence) {
        self.let_go(&s.pages);
    }

    /// Forgets what is findable: after this nothing is shared with what was read before.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        for page in &mut self.book {
            page.key = None;
        }
        self.free.extend(std::mem::take(&mut self.idle).into_values());
    }

    fn hold(&mut self, page: u32) {
        let entry = &mut self.book[page as usize];
        if entry.holders == 0 {
            self.idle.remove(&entry.since);
        }
        entry.holders += 1;
    }

    fn let_go(&mut self, pages: &[u32]) {
        // The end of a chain goes first: without its beginning it is not found.
        for &page in pages.iter().rev() {
            let entry = &mut self.book[page as usize];
            entry.holders -= 1;
            if entry.holders > 0 {
                continue;
            }
            if entry.key.is_some() {
                self.clock += 1;
                entry.since = self.clock;
                self.idle.insert(self.clock, page);
            } else {
                self.free.push(page);
            }
        }
    }

    /// A page that nobody holds; the caller has seen that there is one.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().or_else(|| self.idle.pop_first().map(|(_, page)| page));
        let page = page.expect("the caller counted the pages");
        let entry = &mut self.book[page as usize];
        if let Some(key) = entry.key.take() {
            self.known.remove(&key);
        }
        entry.holders = 1;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_ops::{AttentionShape, CacheFormat};

    fn cache(pages: usize) -> Cache {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 2, norm_eps: None };
        Cache::new(Pages::new(1, &shape, CacheFormat::F32, pages))
    }

    fn ids(n: usize, seed: u32) -> Vec<u32> {
        (0..n as u32).map(|i| i * 7 % 13 + seed).collect()
    }

    #[test]
    fn equal_beginnings_share_pages_and_no_more() {
        let mut c = cache(12);
        let prompt = ids(40, 0);
        let mut a = c.open(0, &prompt, 50, 0).expect("room");
        assert_eq!((a.read, a.pages.len(), c.held()), (0, 4, 4));
        c.advance(&mut a, 40);
        let b = c.open(0, &[&prompt[..36], &[99; 9]].concat(), 50, 0).expect("room");
        assert_eq!((b.read, &b.pages[..2]), (32, &a.pages[..2]));
        assert!(b.pages[2..].iter().all(|p| !a.pages.contains(p)));
        assert_eq!(c.held(), 6);
        // Another adapter computes something else from the same ids.
        let other = c.open(1, &prompt, 40, 0).expect("room");
        assert_eq!((other.read, c.held()), (0, 9));
        for s in [a, b, other] {
            c.close(s);
        }
        assert_eq!(c.held(), 0);
        // What nobody holds is still found; a prompt known to its end keeps one id to read, in a
        // page of its own.
        let again = c.open(0, &prompt[..32], 40, 0).expect("room");
        assert_eq!((again.read, again.fresh()), (31, &prompt[31..32]));
        assert_eq!(c.held(), 3);
        c.close(again);
        c.forget();
        assert_eq!(c.open(0, &prompt, 40, 0).expect("room").read, 0);
    }

    #[test]
    fn what_was_let_go_first_is_taken_first_and_nothing_is_lost() {
        let mut c = cache(6);
        for seed in 0..3u32 {
            let mut s = c.open(0, &ids(32, 100 * seed), 32, 0).expect("room");
            c.advance(&mut s, 32);
            c.close(s);
        }
        // Two pages are needed: the oldest chain goes, its end and its beginning.
        let s = c.open(0, &ids(20, 900), 32, 0).expect("room");
        assert_eq!(c.open(0, &ids(32, 0), 64, 0).map(|s| s.read), Some(0));
        c.close(s);
        assert!(c.open(0, &[1], 97, 0).is_none(), "more than there are pages");
        let mut c = cache(3);
        let mut s = c.open(0, &ids(32, 5), 32, 0).expect("room");
        c.advance(&mut s, 32);
        // One page left: a full one is refused and leaves the count as it was.
        assert!(c.open(0, &ids(32, 5), 64, 0).is_none());
        assert_eq!(c.held(), 2);
        c.close(s);
        assert_eq!(c.held(), 0);
        assert!(c.open(0, &[9], 16, 3).is_none() && c.open(0, &[9], 16, 2).is_some());
        let mut c = cache(3);
        let mut s = c.open(0, &ids(32, 5), 32, 0).expect("room");
        c.advance(&mut s, 32);
        assert!(c.grow(&mut s, 48) && !c.grow(&mut s, 49));
        c.close(s);
        assert_eq!(c.held(), 0);
        // With no page for a copy the last page is read again.
        assert_eq!(c.open(0, &ids(32, 5), 48, 0).map(|s| (s.read, s.pages.len())), Some((16, 3)));
    }
}
