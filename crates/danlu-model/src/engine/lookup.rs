//! Guessing the next ids by what followed the same ids before (prompt look-up decoding): no second
//! model, and much is right where a reply repeats its prompt.

/// Most ids that are guessed at a time.
pub(super) const MOST: usize = 7;
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

#[cfg(test)]
mod tests {
    use super::*;

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
