//! Guessing the next ids by what followed the same ids before (prompt look-up decoding): no second
//! model, and much is right where a reply repeats its prompt.

/// Most ids that are guessed at a time.
const MOST: usize = 15;
/// Most rows of a pass that guesses bring it to.
pub(super) const TOGETHER: usize = 32;
/// Most passes without a guess after wrong ones.
const REST: usize = 31;
/// Lengths of the endings that are looked for, the longest first.
const ENDINGS: [usize; 3] = [4, 3, 2];

/// What followed the latest earlier place where `ids` has the same ending, `most` ids of it; empty if
/// there is no such place. Where the end comes first it goes on with what was guessed, as if that
/// stood there.
pub(super) fn guess(ids: &[u32], most: usize) -> Vec<u32> {
    for ending in ENDINGS {
        if ids.len() <= ending {
            continue;
        }
        let (earlier, last) = ids.split_at(ids.len() - ending);
        let found = (0..earlier.len()).rev().find(|&at| ids[at..at + ending] == *last);
        if let Some(at) = found {
            return ids[at + ending..].iter().copied().cycle().take(most).collect();
        }
    }
    Vec::new()
}

/// How many ids are guessed for one reply: more while they are right, and none for a while, each
/// time longer, while they are all wrong.
#[derive(Debug)]
pub(super) struct Guessing {
    width: usize,
    /// Passes that the last wrong guess cost.
    rest: usize,
    /// Passes of them that are to come.
    left: usize,
}

impl Default for Guessing {
    fn default() -> Self {
        Self { width: 4, rest: 0, left: 0 }
    }
}

impl Guessing {
    /// How many to guess in the next pass, `most` at most.
    pub(super) fn width(&mut self, most: usize) -> usize {
        if self.left > 0 {
            self.left -= 1;
            return 0;
        }
        self.width.min(most)
    }

    /// Takes note that `right` of `made` guesses were right.
    pub(super) fn note(&mut self, made: usize, right: usize) {
        match right {
            _ if made == 0 => {}
            0 => {
                self.width = (self.width / 2).max(1);
                self.rest = (2 * self.rest + 1).min(REST);
                self.left = self.rest;
            }
            _ => {
                self.width = if right == made { 2 * made } else { right + 1 }.min(MOST);
                self.rest = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_guesses_bring_more_and_wrong_ones_a_rest() {
        let mut g = Guessing::default();
        assert_eq!(g.width(15), 4);
        g.note(4, 4);
        g.note(8, 8);
        assert_eq!((g.width(99), g.width(3)), (15, 3));
        g.note(15, 6);
        assert_eq!(g.width(15), 7);
        g.note(7, 0);
        assert_eq!([(); 3].map(|()| g.width(15)), [0, 3, 3]);
        for _ in 0..9 {
            g.note(1, 0);
        }
        assert_eq!((0..40).find(|_| g.width(15) > 0), Some(31), "it always tries again");
        g.note(1, 1);
        assert_eq!(g.width(15), 2);
    }

    #[test]
    fn the_latest_of_the_longest_endings_is_taken() {
        assert_eq!(guess(&[1, 2, 3, 4, 1, 2], 7), [3, 4, 1, 2, 3, 4, 1]);
        assert_eq!(guess(&[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 1), [9]);
        assert_eq!(guess(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8]);
        assert_eq!(guess(&[5, 5, 5, 5, 5, 5], 3), [5, 5, 5]);
        assert!(guess(&[1, 2, 1, 2, 1], 0).is_empty());
        for none in [&[][..], &[1], &[1, 1], &[1, 2, 3]] {
            assert!(guess(none, 7).is_empty(), "{none:?}");
        }
    }
}
