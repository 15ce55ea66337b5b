//! What the recognisers tell apart: concepts for pictures, texts for speech.

use crate::corpus::Corpus;
use crate::pack::{SoundKind, Split};
use std::collections::{BTreeMap, BTreeSet};

/// A class for each asset that has one. Assets that are held out have the class that they should be
/// recognised as; only those of [`Split::Train`] may be learnt from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// By number of the asset.
    pub of: Vec<Option<u32>>,
    /// Number of classes.
    pub count: usize,
}

/// Pictures by the concept that they show, for concepts with a picture to learn from.
pub fn picture_classes(corpus: &Corpus) -> Classes {
    let mut class = vec![None; corpus.concepts.len()];
    let mut count = 0;
    for picture in corpus.pictures.iter().filter(|p| p.split == Split::Train) {
        if let Some(concept) = picture.concept
            && class[concept as usize].is_none()
        {
            class[concept as usize] = Some(count as u32);
            count += 1;
        }
    }
    let of = corpus.pictures.iter().map(|p| p.concept.and_then(|c| class[c as usize])).collect();
    Classes { of, count }
}

/// Speech by what is said in which language, for texts that at least two voices say in training: of
/// one voice alone nothing can be learnt that holds for others.
pub fn sound_classes(corpus: &Corpus) -> Classes {
    let speech = |s: &crate::SoundAsset| s.kind == Some(SoundKind::Speech) && !s.text.is_empty();
    let mut voices: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for sound in corpus.sounds.iter().filter(|s| s.split == Split::Train && speech(s)) {
        voices.entry((&sound.language, &sound.text)).or_default().insert(&sound.voice);
    }
    let class: BTreeMap<(&str, &str), u32> = voices
        .into_iter()
        .filter(|(_, voices)| voices.len() > 1)
        .enumerate()
        .map(|(i, (key, _))| (key, i as u32))
        .collect();
    let of = corpus
        .sounds
        .iter()
        .map(|s| class.get(&(s.language.as_str(), s.text.as_str())).copied().filter(|_| speech(s)))
        .collect();
    Classes { of, count: class.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Held;
    use crate::tasks::tests::tiny_corpus;

    #[test]
    fn held_out_assets_have_the_class_of_what_they_are() {
        let corpus = tiny_corpus();
        let pictures = picture_classes(corpus);
        let trained = corpus.concepts.iter().filter(|c| c.split == Split::Train).count();
        assert_eq!(pictures.count, trained);
        let sounds = sound_classes(corpus);
        // English has two training voices, Chinese and French one each.
        assert_eq!(sounds.count, trained);
        for (asset, class) in corpus.pictures.iter().zip(&pictures.of) {
            let concept = asset.concept.map(|c| &corpus.concepts[c as usize]);
            assert_eq!(class.is_some(), concept.is_some_and(|c| c.split == Split::Train));
        }
        for concept in corpus.concepts.iter().filter(|c| c.split == Split::Train) {
            let all: BTreeSet<_> =
                concept.pictures.iter().map(|id| pictures.of[id.0 as usize]).collect();
            assert_eq!(all.len(), 1, "one class a concept, whatever the style");
        }
        let held = corpus
            .sounds
            .iter()
            .zip(&sounds.of)
            .filter(|(s, _)| s.held == Some(Held::Voice) && s.language == "en");
        assert!(held.clone().count() > 0);
        let is_trained =
            |c: Option<u32>| c.is_some_and(|c| corpus.concepts[c as usize].split == Split::Train);
        for (sound, class) in held {
            assert_eq!(class.is_some(), is_trained(sound.concept));
        }
    }
}
