//! What may come next in a reply, one bit an id.

use danlu_model::engine::Grammar;

/// A set of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    words: Vec<u64>,
    size: usize,
}

impl BitMask {
    /// The empty set of ids below `size`.
    pub fn new(size: usize) -> Self {
        Self { words: vec![0; size.div_ceil(64)], size }
    }

    /// Number of ids that it speaks of.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Takes every id out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Adds an id; one of `size` or more is passed over.
    pub fn insert(&mut self, id: u32) {
        if (id as usize) < self.size {
            self.words[id as usize / 64] |= 1 << (id % 64);
        }
    }

    /// Adds a range of ids.
    pub fn insert_range(&mut self, ids: std::ops::Range<u32>) {
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

    /// Its ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    i as u32 * 64 + bit
                })
            })
        })
    }
}

/// Constrains a reply, id by id.
pub trait Mask: Send {
    /// Fills `out`, which is empty, with what may come next. Nothing in it ends the reply.
    fn allowed(&mut self, out: &mut BitMask);
    /// Takes the id that came.
    fn accept(&mut self, id: u32);
    /// Whether the next id is a code of a picture, where guidance applies.
    fn in_image(&self) -> bool {
        false
    }
}

/// The grammar of replies with pictures and sounds.
#[derive(Debug)]
pub struct ReplyMask(pub Grammar);

impl Mask for ReplyMask {
    fn allowed(&mut self, out: &mut BitMask) {
        self.0.allowed().into_iter().for_each(|ids| out.insert_range(ids));
    }

    fn accept(&mut self, id: u32) {
        self.0.take(id);
    }

    fn in_image(&self) -> bool {
        self.0.in_image()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_ids_are_the_set() {
        let mut mask = BitMask::new(300);
        mask.insert_range(3..200);
        mask.insert(255);
        mask.insert_range(290..1_000);
        mask.insert(300);
        let want: Vec<u32> = (3..200).chain([255]).chain(290..300).collect();
        assert_eq!(mask.iter().collect::<Vec<_>>(), want);
        assert!(mask.contains(3) && !mask.contains(200) && !mask.contains(300));
        mask.clear();
        assert_eq!(mask.iter().next(), None);
    }
}
