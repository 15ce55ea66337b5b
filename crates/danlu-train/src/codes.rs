//! Codes of every picture and sound of a corpus, made once before training.

use crate::watch::{Event, Watcher};
use danlu_core::{AssetId, Error, Media, Result, Rng, TokenKind, Vocabulary};
use danlu_data::{Corpus, Split};
use danlu_media::{alter_picture, alter_sound};
use danlu_model::io::write_atomically;
use danlu_model::{Tokenisers, modality::ImageTokeniser};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Codes by asset: the original first, then altered copies of what is trained on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CodeTable {
    images: Vec<Vec<Vec<u16>>>,
    audios: Vec<Vec<Vec<u16>>>,
}

/// An error if the person wants to stop.
fn stop_if_asked(watcher: &dyn Watcher) -> Result<()> {
    match watcher.stop() {
        true => Err(Error::Other("stopped while encoding, which begins again next time".into())),
        false => Ok(()),
    }
}

impl CodeTable {
    /// Encodes what of a corpus the model has tokens for, `variants` altered copies of each training
    /// asset with it.
    pub fn make(
        corpus: &Corpus,
        tokenisers: &Tokenisers,
        variants: usize,
        seed: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        crate::fault::point("encoding");
        // A model without tokens for them sees none.
        let pictures = if tokenisers.image.is_some() { &corpus.pictures[..] } else { &[] };
        let sounds = if tokenisers.audio.is_some() { &corpus.sounds[..] } else { &[] };
        let steps = pictures.len() + sounds.len();
        watcher.tell(Event::Phase { name: "encode pictures and sounds".into(), steps, done: 0 });
        let mut table = Self::default();
        let copies = |train: bool| if train { variants } else { 0 };
        for (chunk, assets) in pictures.chunks(64).enumerate() {
            let all: Vec<Vec<danlu_core::Picture>> = assets
                .par_iter()
                .enumerate()
                .map(|(i, a)| {
                    let id = (chunk * 64 + i) as u64;
                    let altered = (0..copies(a.split == Split::Train)).map(|k| {
                        alter_picture(&a.picture, &mut Rng::new(seed, id << 8 | k as u64))
                    });
                    std::iter::once((*a.picture).clone()).chain(altered).collect()
                })
                .collect();
            let flat: Vec<&danlu_core::Picture> = all.iter().flatten().collect();
            let mut codes = tokenisers.image_codes(&flat)?.into_iter();
            for own in &all {
                let small = codes.by_ref().take(own.len()).map(shrink);
                table.images.push(small.collect());
            }
            watcher.tell(Event::Step { done: table.images.len(), figures: "pictures".into() });
            stop_if_asked(watcher)?;
        }
        for (chunk, assets) in sounds.chunks(32).enumerate() {
            let codes: Vec<Vec<Vec<u16>>> = assets
                .par_iter()
                .enumerate()
                .map(|(i, a)| {
                    let id = (chunk * 32 + i) as u64;
                    let altered = (0..copies(a.split == Split::Train)).map(|k| {
                        alter_sound(&a.sound, &mut Rng::new(seed, 1 << 60 | id << 8 | k as u64))
                    });
                    std::iter::once((*a.sound).clone())
                        .chain(altered)
                        .map(|s| Ok(shrink(tokenisers.audio_codes(&s)?)))
                        .collect()
                })
                .collect::<Result<_>>()?;
            table.audios.extend(codes);
            let done = table.images.len() + table.audios.len();
            watcher.tell(Event::Step { done, figures: "sounds".into() });
            stop_if_asked(watcher)?;
        }
        watcher.tell(Event::PhaseDone { result: format!("{steps} pictures and sounds") });
        Ok(table)
    }

    /// Codes of an asset: the original, or for prompts one of the copies that `rng` picks.
    fn pick(all: &[Vec<Vec<u16>>], media: &Media, rng: Option<&mut Rng>) -> Result<Vec<u32>> {
        let Media::Asset(AssetId(id)) = media else {
            return Err(Error::Other(format!("{media:?} is not part of the corpus")));
        };
        let own = all
            .get(*id as usize)
            .ok_or_else(|| Error::Other(format!("asset {id} of {} in the corpus", all.len())))?;
        let which = rng.map_or(0, |rng| rng.below(own.len()));
        Ok(own[which].iter().map(|&c| c as u32).collect())
    }

    /// What semantic tokens stand for in words: what most of the training pictures that a recogniser gave one are
    /// called (in English, where there is a choice), and what is said in most of the sounds. `vocabulary` is that of
    /// the tokenisers which made the table; without recognisers there are none.
    pub fn meanings(&self, corpus: &Corpus, vocabulary: &Vocabulary) -> Vec<(TokenKind, String)> {
        let of_pictures = corpus.pictures.iter().zip(&self.images).filter_map(|(asset, codes)| {
            let names = &corpus.concepts[asset.concept? as usize].names;
            let name = names.get("en").or_else(|| names.values().next())?;
            (asset.split == Split::Train).then_some((codes[0][0], name))
        });
        let of_sounds = corpus.sounds.iter().zip(&self.audios).filter_map(|(asset, codes)| {
            let said = asset.split == Split::Train && !asset.text.is_empty();
            said.then_some((codes[0][0], &asset.text))
        });
        let mut out = Vec::new();
        if vocabulary.image_semantic > 0 {
            let kind = |verdict| TokenKind::ImageSemantic(verdict);
            out.extend(most(of_pictures).into_iter().map(|(v, name)| (kind(v), name)));
        }
        if vocabulary.audio_semantic > 0 {
            let kind = |verdict| TokenKind::AudioSemantic(verdict);
            out.extend(most(of_sounds).into_iter().map(|(v, text)| (kind(v), text)));
        }
        out
    }

    /// Codes for rendering: prompts draw from the altered copies with `rng`, or never without.
    pub fn reader(&self, rng: Option<Rng>) -> Reader<'_> {
        Reader { table: self, rng, brief: None }
    }

    /// Number of codes of a sound.
    pub fn audio_len(&self, id: AssetId) -> usize {
        self.audios[id.0 as usize][0].len()
    }

    /// Writes the table, with the fingerprint of what it was made from.
    pub fn save(&self, path: &Path, fingerprint: &str) -> Result<()> {
        let mut out = format!("danlu-codes-1 {fingerprint}\n").into_bytes();
        for all in [&self.images, &self.audios] {
            out.extend((all.len() as u32).to_le_bytes());
            for own in all {
                out.push(own.len() as u8);
                for codes in own {
                    out.extend((codes.len() as u32).to_le_bytes());
                    out.extend(codes.iter().flat_map(|c| c.to_le_bytes()));
                }
            }
        }
        write_atomically(path, &out)
    }

    /// Reads a table; `None` if there is none of this fingerprint.
    pub fn load(path: &Path, fingerprint: &str) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let rest = bytes.strip_prefix(format!("danlu-codes-1 {fingerprint}\n").as_bytes())?;
        let mut rest = rest;
        let mut table = Self::default();
        for all in [&mut table.images, &mut table.audios] {
            for _ in 0..number(&mut rest)? {
                let (&n, left) = rest.split_first()?;
                rest = left;
                let mut own = Vec::with_capacity(n as usize);
                for _ in 0..n {
                    let len = number(&mut rest)? as usize;
                    let (codes, left) = rest.split_at_checked(2 * len)?;
                    rest = left;
                    own.push(
                        codes.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b)).collect(),
                    );
                }
                all.push(own);
            }
        }
        rest.is_empty().then_some(table)
    }
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (n, left) = rest.split_first_chunk::<4>()?;
    *rest = left;
    Some(u32::from_le_bytes(*n))
}

fn shrink(codes: Vec<u32>) -> Vec<u16> {
    codes.into_iter().map(|c| c as u16).collect()
}

/// For each verdict the words that come with it most often; the first in order where several do.
fn most<'a>(all: impl Iterator<Item = (u16, &'a String)>) -> Vec<(u32, String)> {
    let mut counts: BTreeMap<u16, BTreeMap<&String, usize>> = BTreeMap::new();
    for (verdict, words) in all {
        *counts.entry(verdict).or_default().entry(words).or_default() += 1;
    }
    let pick = |words: BTreeMap<&String, usize>| {
        let best = words.iter().rev().max_by_key(|(_, count)| **count);
        best.map(|(words, _)| (*words).clone()).unwrap_or_default()
    };
    counts.into_iter().map(|(verdict, words)| (verdict.into(), pick(words))).collect()
}

/// Reads a [`CodeTable`].
#[derive(Debug)]
pub struct Reader<'a> {
    table: &'a CodeTable,
    rng: Option<Rng>,
    /// Classes of pictures and of sounds, if prompts are to be brief.
    brief: Option<[&'a [Option<u32>]; 2]>,
}

impl<'a> Reader<'a> {
    /// In prompts, of assets with a class in `classes` (of pictures, of sounds) the semantic token
    /// alone. Only for tables whose tokenisers have both recognisers.
    pub fn brief(self, classes: [&'a [Option<u32>]; 2]) -> Self {
        Self { brief: Some(classes), ..self }
    }

    fn shorten(&self, kind: usize, media: &Media, prompt: bool, mut codes: Vec<u32>) -> Vec<u32> {
        if let (true, Some(classes), Media::Asset(AssetId(id))) = (prompt, &self.brief, media)
            && classes[kind].get(*id as usize).copied().flatten().is_some()
        {
            codes.truncate(1);
        }
        codes
    }
}

impl danlu_model::prompt::Codes for Reader<'_> {
    fn image(&mut self, media: &Media, prompt: bool) -> Result<Vec<u32>> {
        let rng = if prompt { self.rng.as_mut() } else { None };
        let codes = CodeTable::pick(&self.table.images, media, rng)?;
        debug_assert!(codes.len() >= ImageTokeniser::TOKENS);
        Ok(self.shorten(0, media, prompt, codes))
    }

    fn audio(&mut self, media: &Media, prompt: bool) -> Result<Vec<u32>> {
        let rng = if prompt { self.rng.as_mut() } else { None };
        let codes = CodeTable::pick(&self.table.audios, media, rng)?;
        Ok(self.shorten(1, media, prompt, codes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_data::{ConceptEntry, PictureAsset};
    use danlu_model::prompt::Codes;

    #[test]
    fn the_file_comes_back_and_a_cut_one_is_no_table() {
        let table = CodeTable {
            images: vec![vec![vec![1; ImageTokeniser::TOKENS], vec![2; ImageTokeniser::TOKENS]]],
            audios: vec![vec![vec![7, 8]], vec![]],
        };
        let path = std::env::temp_dir().join(format!("danlu-codes-{}", std::process::id()));
        table.save(&path, "abc").expect("saves");
        assert_eq!(CodeTable::load(&path, "abc").as_ref(), Some(&table));
        assert_eq!(CodeTable::load(&path, "abd"), None);
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("writes");
        assert_eq!(CodeTable::load(&path, "abc"), None);
        std::fs::remove_file(&path).expect("removes");
    }

    #[test]
    fn replies_are_originals_and_prompts_vary() {
        let table = CodeTable {
            images: vec![vec![vec![1; ImageTokeniser::TOKENS], vec![2; ImageTokeniser::TOKENS]]],
            audios: vec![],
        };
        let media = Media::Asset(AssetId(0));
        let mut reader = table.reader(Some(Rng::new(1, 1)));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            assert_eq!(reader.image(&media, false).expect("there")[0], 1);
            seen.insert(reader.image(&media, true).expect("there")[0]);
        }
        assert_eq!(seen.len(), 2);
        assert!(reader.audio(&media, true).is_err());
        let with_class = [Some(3)];
        let mut brief = table.reader(None).brief([&with_class, &[]]);
        assert_eq!(brief.image(&media, true).expect("there"), [1]);
        assert_eq!(brief.image(&media, false).expect("there").len(), ImageTokeniser::TOKENS);
        let without = [None];
        let mut long = table.reader(None).brief([&without, &[]]);
        assert_eq!(long.image(&media, true).expect("there").len(), ImageTokeniser::TOKENS);
    }
    #[test]
    fn a_verdict_means_what_most_of_its_pictures_are_called() {
        let concept = |name: &str| ConceptEntry {
            pack: "p".into(),
            id: name.into(),
            names: [("zh".to_string(), "x".to_string()), ("en".into(), name.into())].into(),
            captions: Default::default(),
            group: String::new(),
            split: Split::Train,
            pictures: Vec::new(),
            sounds: Vec::new(),
            related: Vec::new(),
        };
        let picture = |concept, split| PictureAsset {
            picture: danlu_core::Picture { width: 1, height: 1, rgb: vec![0; 3] }.into(),
            concept: Some(concept),
            style: "s".into(),
            split,
            held: None,
        };
        let mut corpus = Corpus::default();
        corpus.concepts = vec![concept("cat"), concept("dog")];
        corpus.pictures = [0, 1, 1, 0, 0].map(|c| picture(c, Split::Train)).to_vec();
        corpus.pictures.extend([picture(0, Split::Test), picture(0, Split::Test)]);
        // What is held out would tip the scales.
        let verdicts = [7, 7, 7, 2, 2, 7, 7];
        let images = verdicts.map(|v| vec![vec![v; 1 + ImageTokeniser::TOKENS]]).to_vec();
        let table = CodeTable { images, audios: Vec::new() };
        let mut vocabulary = Vocabulary {
            text: 300,
            image: 64,
            audio: 64,
            image_semantic: 9,
            audio_semantic: 0,
            places: 0,
            foreign: None,
        };
        let named = [(2, "cat"), (7, "dog")];
        let want = named.map(|(v, name)| (TokenKind::ImageSemantic(v), name.to_string()));
        assert_eq!(table.meanings(&corpus, &vocabulary), want);
        vocabulary.image_semantic = 0;
        assert_eq!(table.meanings(&corpus, &vocabulary), []);
    }
}
