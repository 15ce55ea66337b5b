//! Fills windows with documents. What is left of a window stays out of the batch.

use danlu_core::{Batch, Document, Error, Result};

/// Packs documents into batches of `rows` windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packer {
    /// Rows of a batch.
    pub rows: usize,
    /// Positions of a row, at most.
    pub window: usize,
}

/// Shortens `document` to what fits a row of `window` positions: for plain text, whose start is
/// worth as much as its end. A conversation must not be cut.
pub fn cut(document: &mut Document, window: usize) {
    document.ids.truncate(window + 1);
    document.weights.truncate(window + 1);
}

impl Packer {
    /// Takes the documents `next`, `next + 1`, ... of `source` for as long as each fits somewhere,
    /// and puts each into the fullest row that still has room for it. The first that fits nowhere
    /// is where the next batch begins ([`Batch::next`]); so does the index at which `source` says
    /// `None`, that is, where it ends.
    ///
    /// A document of `n` ids takes `n - 1` positions: it reads `ids[..n - 1]` and predicts
    /// `ids[1..]`. One of fewer than two ids has nothing to predict and is passed over. One that
    /// is longer than a row is an error ([`cut`] it first, if it may be cut); so is a batch that takes
    /// nothing, for whoever asks for the next one would ask for ever.
    pub fn pack(
        &self,
        next: u64,
        source: &mut dyn FnMut(u64) -> Result<Option<Document>>,
    ) -> Result<Batch> {
        let mut rows: Vec<Vec<Document>> = vec![Vec::new(); self.rows];
        let mut used = vec![0usize; self.rows];
        let first = next;
        let mut next = next;
        while used.iter().any(|&u| u < self.window) {
            let Some(document) = source(next)? else { break };
            let (ids, weights) = (document.ids.len(), document.weights.len());
            if ids != weights {
                return Err(Error::Other(format!(
                    "document {next}: expected one weight an id, found {weights} for {ids} ids"
                )));
            }
            let length = ids.saturating_sub(1);
            if length > self.window {
                return Err(Error::Other(format!(
                    "document {next}: expected at most {} ids for a window of {}, found {ids}",
                    self.window + 1,
                    self.window,
                )));
            }
            if length > 0 {
                let fits = (0..self.rows).filter(|&r| used[r] + length <= self.window);
                // The first of the fullest, so that ties fill the rows in order.
                let Some(row) = fits.min_by_key(|&r| (self.window - used[r], r)) else { break };
                used[row] += length;
                rows[row].push(document);
            }
            next += 1;
        }
        if next == first {
            return Err(Error::Other(format!(
                "document {first}: expected one for a batch, found the end"
            )));
        }
        Ok(Self::lay_out(&rows, next))
    }

    fn lay_out(rows: &[Vec<Document>], next: u64) -> Batch {
        let size = rows.iter().flatten().map(|d| d.ids.len() - 1).sum();
        let mut batch = Batch {
            ids: Vec::with_capacity(size),
            targets: Vec::with_capacity(size),
            weights: Vec::with_capacity(size),
            tasks: Vec::with_capacity(size),
            next,
            ..Batch::default()
        };
        for document in rows.iter().flatten() {
            let length = document.ids.len() - 1;
            batch.starts.push(batch.ids.len() as u32);
            batch.ids.extend(&document.ids[..length]);
            batch.targets.extend(&document.ids[1..]);
            batch.weights.extend(&document.weights[1..]);
            batch.tasks.extend(std::iter::repeat_n(document.task, length));
            batch.tokens += length;
        }
        batch.starts.push(size as u32);
        batch
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Document `i` has ids `1000 i + 1, 1000 i + 2, ...`, each with a weight of its own.
    fn document(i: u64, length: usize) -> Document {
        let ids: Vec<u32> = (0..length as u32).map(|k| i as u32 * 1000 + k + 1).collect();
        let weights = ids.iter().map(|&id| id as f32 / 8.0).collect();
        Document { ids, weights, task: i as u16 + 1 }
    }

    fn batches(packer: &Packer, lengths: &[usize]) -> Vec<Batch> {
        let mut all = Vec::new();
        let mut next = 0;
        while (next as usize) < lengths.len() {
            let mut source = |i: u64| Ok(lengths.get(i as usize).map(|&n| document(i, n)));
            let batch = packer.pack(next, &mut source).unwrap();
            assert!(batch.next > next, "no progress at {next}");
            next = batch.next;
            all.push(batch);
        }
        all
    }

    proptest! {
        #[test]
        fn every_token_lands_once_and_nothing_crosses(
            lengths in proptest::collection::vec(0usize..=17, 1..60),
            rows in 1usize..5,
        ) {
            let packer = Packer { rows, window: 16 };
            let mut seen = vec![0usize; lengths.len()];
            for batch in batches(&packer, &lengths) {
                let size = batch.ids.len();
                prop_assert!(size <= rows * 16);
                prop_assert_eq!(batch.targets.len(), size);
                prop_assert_eq!(batch.weights.len(), size);
                prop_assert_eq!(batch.tasks.len(), size);
                prop_assert_eq!(batch.starts[0], 0);
                prop_assert_eq!(*batch.starts.last().unwrap() as usize, size);
                prop_assert!(batch.starts.windows(2).all(|w| w[0] < w[1]));
                let mut tokens = 0;
                for w in batch.starts.windows(2) {
                    let (from, to) = (w[0] as usize, w[1] as usize);
                    let i = batch.ids[from] as usize / 1000;
                    seen[i] += 1;
                    let want = document(i as u64, lengths[i]);
                    prop_assert_eq!(to - from, lengths[i] - 1);
                    prop_assert_eq!(&batch.ids[from..to], &want.ids[..lengths[i] - 1]);
                    prop_assert_eq!(&batch.targets[from..to], &want.ids[1..]);
                    prop_assert_eq!(&batch.weights[from..to], &want.weights[1..]);
                    prop_assert!(batch.tasks[from..to].iter().all(|&t| t == want.task));
                    tokens += to - from;
                }
                prop_assert_eq!([batch.tokens, size], [tokens; 2], "nothing else is in it");
            }
            for (i, &length) in lengths.iter().enumerate() {
                prop_assert_eq!(seen[i], usize::from(length > 1), "document {}", i);
            }
        }
    }

    #[test]
    fn the_fullest_row_that_has_room_is_chosen() {
        // 9 positions, 6 positions in the second row, then 2: the first row has 1 left, no room.
        let batch = batches(&Packer { rows: 2, window: 10 }, &[10, 7, 3, 2, 3]).remove(0);
        assert_eq!(batch.starts, [0, 9, 10, 16, 18, 20]);
        assert_eq!((batch.tokens, batch.next), (20, 5));
    }

    #[test]
    fn too_long_is_an_error_unless_it_is_cut() {
        let packer = Packer { rows: 1, window: 8 };
        let error = packer.pack(3, &mut |i| Ok(Some(document(i, 10)))).unwrap_err().to_string();
        assert!(error.contains("document 3") && error.contains("at most 9"), "{error}");
        let error = packer.pack(3, &mut |_| Ok(None)).unwrap_err().to_string();
        assert!(error.contains("document 3") && error.contains("the end"), "{error}");
        let mut long = document(0, 10);
        cut(&mut long, 8);
        let batch = packer.pack(0, &mut |i| Ok((i == 0).then(|| long.clone()))).unwrap();
        assert_eq!((batch.tokens, batch.next), (8, 1));
    }
}
