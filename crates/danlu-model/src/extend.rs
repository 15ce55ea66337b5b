//! A text model takes pictures and sounds: new rows of the embedding (and of an untied head), to be
//! learnt, where everything that it knew stays where it was in meaning.

use crate::modality::Tokenisers;
use crate::model::Model;
use crate::params::Parameter;
use danlu_core::{Error, Result, Rng, TokenKind, Vocabulary};

/// Spread of a new row around the mean of the old ones, as a share of theirs.
const SPREAD: f32 = 0.5;

impl Model {
    /// Gives a model of text the tokens of `donor`'s pictures and sounds, and the places and
    /// control tokens that come with them. A new row begins near the mean of the old ones; that of a
    /// token in `meanings`, at the mean of the rows of the words beside it.
    pub fn extend(
        &mut self,
        donor: Tokenisers,
        meanings: &[(TokenKind, String)],
        seed: u64,
    ) -> Result<()> {
        if self.tokenisers.image.is_some() || self.tokenisers.audio.is_some() {
            return Err(Error::parameter("--model", "a model of text alone", &self.info.name));
        }
        if donor.image.is_none() && donor.audio.is_none() {
            return Err(Error::parameter(
                "--tokenizers",
                "a folder with image.safetensors or audio.safetensors",
                "neither",
            ));
        }
        let old = self.tokenisers.vocabulary();
        let t = &mut self.tokenisers;
        (t.image, t.audio) = (donor.image, donor.audio);
        (t.image_semantic, t.audio_semantic) = (donor.image_semantic, donor.audio_semantic);
        let new = self.tokenisers.vocabulary();
        let words: Vec<(u32, Vec<u32>)> = meanings
            .iter()
            .filter_map(|(kind, words)| {
                // As they stand within a sentence.
                let words = self.tokenisers.text.encode_later(&format!(" {words}"));
                Some((new.id_of(*kind)?, words))
            })
            .filter(|(_, words)| !words.is_empty())
            .collect();
        let device = danlu_ops::cpu_device();
        let mut rng = Rng::new(seed, 0x6578_7465);
        let model = &mut self.transformer;
        for table in std::iter::once(&mut model.embedding).chain(&mut model.head) {
            let mut values = grown(table, &old, &new, &mut rng);
            for (id, words) in &words {
                let row = mean_row(&values, table.shape[1], words);
                values[*id as usize * row.len()..][..row.len()].copy_from_slice(&row);
            }
            let shape = [new.size(), table.shape[1]];
            *table = Parameter::new(table.name.clone(), &shape, values, &device);
        }
        model.config.vocabulary = new.size();
        Ok(())
    }
}

/// The mean of some rows, whose ids are the same in the old table and the new: those of text come first.
fn mean_row(values: &[f32], width: usize, ids: &[u32]) -> Vec<f32> {
    let mut mean = vec![0.0; width];
    for &id in ids {
        let row = &values[id as usize * width..][..width];
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / ids.len() as f32);
    }
    mean
}

/// The rows of a table for the ids of `new`, row-major.
fn grown(table: &Parameter, old: &Vocabulary, new: &Vocabulary, rng: &mut Rng) -> Vec<f32> {
    let width = table.shape[1];
    let values = table.values();
    let count = (values.len() / width) as f32;
    let mut mean = vec![0.0f32; width];
    for row in values.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / count);
    }
    let mut spread = vec![0.0f32; width];
    for row in values.chunks_exact(width) {
        let off = row.iter().zip(&mean).map(|(v, m)| (v - m).powi(2) / count);
        spread.iter_mut().zip(off).for_each(|(s, o)| *s += o);
    }
    spread.iter_mut().for_each(|s| *s = SPREAD * s.sqrt());
    let mut out = Vec::with_capacity(new.size() * width);
    for id in 0..new.size() as u32 {
        match new.kind(id).and_then(|kind| old.id_of(kind)) {
            Some(from) => out.extend(&values[from as usize * width..][..width]),
            None => out.extend(mean.iter().zip(&spread).map(|(m, s)| m + s * rng.normal())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::model::tests::{tiny_model, tiny_tokenisers};
    use crate::{Model, Transformer, TransformerConfig};
    use danlu_core::TokenKind;
    use std::sync::Arc;

    /// A text model with the rows of [`tiny_model`]'s.
    fn text_model() -> Model {
        let whole = tiny_model(3);
        let mut tokenisers = tiny_tokenisers();
        (tokenisers.image, tokenisers.audio) = (None, None);
        (tokenisers.image_semantic, tokenisers.audio_semantic) = (None, None);
        let vocabulary = tokenisers.vocabulary().size();
        let config = TransformerConfig { vocabulary, ..whole.transformer.config.clone() };
        let transformer = Transformer::new(config, 4, &danlu_ops::cpu_device());
        Model { transformer, tokenisers, info: whole.info }
    }

    #[test]
    fn text_stays_what_it_was_and_new_tokens_have_rows() {
        let before = text_model();
        let mut after = text_model();
        after.extend(tiny_tokenisers(), &[], 5).expect("extends");
        let (old, new) = (before.tokenisers.vocabulary(), after.tokenisers.vocabulary());
        assert!(new.size() > old.size());
        let ids: Vec<u32> = vec![3, 7, old.place_id(5), 1];
        let moved: Vec<u32> =
            ids.iter().map(|&id| new.id_of(old.kind(id).expect("known")).expect("kept")).collect();
        assert_ne!(ids, moved, "places have moved");
        let starts: Arc<[u32]> = Arc::from([0, 4]);
        let logits = |m: &Model, ids: Vec<u32>| -> Vec<f32> {
            m.transformer.logits(&ids.into(), &starts).into_data().try_into_vec().expect("f32")
        };
        let (a, b) = (logits(&before, ids), logits(&after, moved));
        for id in 0..old.size() as u32 {
            let to = new.id_of(old.kind(id).expect("known")).expect("kept") as usize;
            for row in 0..4 {
                let (x, y) = (a[row * old.size() + id as usize], b[row * new.size() + to]);
                assert!((x - y).abs() < 1e-5, "{id}: {x} against {y}");
            }
        }
        assert!(matches!(new.kind(new.image_id(0)), Some(TokenKind::Image(0))));
        let error = after.extend(tiny_tokenisers(), &[], 5).expect_err("has them").to_string();
        assert!(error.contains("text alone"), "{error}");
    }
    #[test]
    fn what_a_token_means_is_where_its_row_begins() {
        let mut model = text_model();
        let donor = tiny_tokenisers();
        let meant = TokenKind::ImageSemantic(0);
        model.extend(donor, &[(meant, "ab".into())], 5).expect("extends");
        let new = model.tokenisers.vocabulary();
        let table = model.transformer.embedding.values();
        let width = model.transformer.config.width;
        let row = |id: u32| &table[id as usize * width..][..width];
        let words = model.tokenisers.text.encode_later(" ab");
        let at = row(new.id_of(meant).expect("known"));
        for (i, value) in at.iter().enumerate() {
            let sum: f32 = words.iter().map(|&id| row(id)[i]).sum();
            assert!((value - sum / words.len() as f32).abs() < 1e-6);
        }
    }
}
