//! What a model that knows only how often each token comes would lose: the floor that a loss must
//! get under before it means anything.

use danlu_core::{Document, Modality, TokenKind, Vocabulary};

/// Entropy of the unigram distribution of each modality's tokens in replies, in nats.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Marginals([f64; 3]);

impl Marginals {
    /// Counts the tokens of `documents` that are learnt.
    pub fn count<'a>(
        vocabulary: &Vocabulary,
        documents: impl Iterator<Item = &'a Document>,
    ) -> Self {
        let mut counts = vec![0u64; vocabulary.size()];
        for d in documents {
            for (&id, &w) in d.ids.iter().zip(&d.weights).skip(1) {
                if w > 0.0 {
                    counts[id as usize] += 1;
                }
            }
        }
        let mut out = [0.0; 3];
        for (entropy, modality) in out.iter_mut().zip(Modality::ALL) {
            let of =
                |id: usize| vocabulary.kind(id as u32).map(TokenKind::modality) == Some(modality);
            let own: Vec<f64> = counts
                .iter()
                .enumerate()
                .filter(|&(id, &c)| c > 0 && of(id))
                .map(|(_, &c)| c as f64)
                .collect();
            let total: f64 = own.iter().sum();
            *entropy = own.iter().map(|c| -c / total * (c / total).ln()).sum();
        }
        Self(out)
    }

    /// The entropy of one modality's tokens, given that the next token is of that modality.
    pub fn of(&self, modality: Modality) -> f64 {
        self.0[Modality::ALL.iter().position(|&m| m == modality).expect("listed")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_tokens_have_the_log_of_their_number() {
        let v = Vocabulary {
            text: 4,
            image: 8,
            audio: 2,
            image_semantic: 0,
            audio_semantic: 0,
            places: 1,
            foreign: None,
        };
        let ids: Vec<u32> = (0..8).map(|c| v.image_id(c)).collect();
        let mut d = Document { ids: vec![0], weights: vec![1.0], task: 0 };
        d.ids.extend(&ids);
        d.weights.extend([1.0; 8]);
        d.ids.push(1);
        d.weights.push(0.0);
        let m = Marginals::count(&v, [&d].into_iter());
        assert!((m.of(Modality::Image) - 8f64.ln()).abs() < 1e-9);
        assert_eq!(m.of(Modality::Text), 0.0);
        assert_eq!(m.of(Modality::Audio), 0.0);
    }
}
