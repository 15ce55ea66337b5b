//! How well held-out plain text is predicted, in nats a byte of UTF-8: a measure that models with
//! other text tokenisers share.

use crate::pretrain::{Losses, forward};
use danlu_core::{Batch, Control, Result, Vocabulary};
use danlu_data::{Corpus, Split};
use danlu_model::{Tokenisers, Transformer};
use std::collections::BTreeMap;

/// The held-out texts of one language, ready to be measured.
#[derive(Debug)]
pub(crate) struct HeldOut {
    language: String,
    batches: Vec<Batch>,
    bytes: usize,
}

impl HeldOut {
    /// The texts of `corpus` with the split `val`, by language: of each the first documents up to
    /// `limit` bytes, one at least. They stand one after the other in windows, an end token before
    /// the first and after each.
    pub(crate) fn of(
        corpus: &Corpus,
        tokenisers: &Tokenisers,
        vocabulary: &Vocabulary,
        [rows, window]: [usize; 2],
        limit: usize,
    ) -> Result<Vec<Self>> {
        let (tokeniser, end) = (&tokenisers.text, tokenisers.end_of_text());
        let pad = vocabulary.control_id(Control::Pad);
        let mut lines: BTreeMap<&str, (Vec<u32>, usize)> = BTreeMap::new();
        let mut full: Vec<&str> = Vec::new();
        for doc in corpus.texts.iter().filter(|t| t.split == Split::Val) {
            let (ids, bytes) = lines.entry(&doc.language).or_insert_with(|| (vec![end], 0));
            if *bytes > 0 && *bytes + doc.text.len() > limit {
                full.push(&doc.language);
            }
            if !full.contains(&doc.language.as_str()) {
                ids.extend(tokeniser.encode(&doc.text));
                ids.push(end);
                *bytes += doc.text.len();
            }
        }
        let set = |(language, (ids, bytes)): (&str, (Vec<u32>, usize))| Self {
            language: language.to_string(),
            batches: batches(&ids, [rows, window], pad),
            bytes,
        };
        Ok(lines.into_iter().map(set).collect())
    }
}

/// A line of ids as batches in which each row goes on where the last one ended.
fn batches(ids: &[u32], [rows, window]: [usize; 2], pad: u32) -> Vec<Batch> {
    let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
    let chunks = inputs.chunks(rows * window).zip(targets.chunks(rows * window));
    let batch = |(x, y): (&[u32], &[u32])| {
        let size = x.len().div_ceil(window) * window;
        let mut batch = Batch { tokens: x.len(), ..Batch::default() };
        batch.ids = x.to_vec();
        batch.ids.resize(size, pad);
        batch.targets = y.to_vec();
        batch.targets.resize(size, pad);
        batch.weights = vec![1.0; x.len()];
        batch.weights.resize(size, 0.0);
        batch.tasks = vec![0; size];
        batch.starts = (0..=size / window).map(|row| (row * window) as u32).collect();
        batch
    };
    chunks.map(batch).collect()
}

/// Nats a byte of each language, and of `all` together; end tokens count. Nothing where nothing is
/// held out.
pub(crate) fn nats_per_byte(model: &Transformer, sets: &[HeldOut]) -> Losses {
    let mut out = Losses::new();
    let (mut all, mut size) = (0.0, 0);
    for set in sets {
        let mut nats = 0.0;
        for batch in &set.batches {
            let each = forward(model, batch, 1.0, 0.0).1;
            let counted = each.iter().zip(&batch.weights).filter(|(_, w)| **w > 0.0);
            nats += counted.map(|(ce, _)| *ce as f64).sum::<f64>();
        }
        out.insert(set.language.clone(), nats / set.bytes as f64);
        all += nats;
        size += set.bytes;
    }
    if size > 0 {
        out.insert("all".into(), all / size as f64);
    }
    out
}

/// What a checkpoint is as good as: the mean loss of what is held out, or else nats a byte of the held-out
/// texts that every validation measures. `None` without either.
pub(crate) fn judged(validation: &Losses, text: &Losses) -> Option<f64> {
    match validation.is_empty() {
        true => text.get("all").copied(),
        false => Some(validation.values().sum::<f64>() / validation.len() as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_as_good_as_what_is_held_out() {
        let losses = |all: &[(&str, f64)]| -> Losses {
            all.iter().map(|(name, loss)| (name.to_string(), *loss)).collect()
        };
        let text = losses(&[("en", 1.0), ("all", 2.0)]);
        assert_eq!(judged(&losses(&[("a", 3.0), ("b", 5.0)]), &text), Some(4.0));
        assert_eq!(judged(&Losses::new(), &text), Some(2.0));
        assert_eq!(judged(&Losses::new(), &Losses::new()), None);
    }

    #[test]
    fn every_token_is_predicted_once_and_the_filling_never() {
        let ids: Vec<u32> = (0..24).collect();
        let all = batches(&ids, [2, 5], 99);
        let learnt = |b: &Batch| -> Vec<(u32, u32)> {
            let rows = b.ids.iter().zip(&b.targets).zip(&b.weights);
            rows.filter(|(_, w)| **w > 0.0).map(|((x, y), _)| (*x, *y)).collect()
        };
        let pairs: Vec<_> = all.iter().flat_map(learnt).collect();
        assert_eq!(pairs, (0..23).map(|i| (i, i + 1)).collect::<Vec<_>>());
        assert_eq!(all[2].starts, [0, 5]);
        assert_eq!(all[2].ids[3..], [99, 99]);
    }
}
