//! Everything that a run may look at, decoded and in memory.

use crate::pack::{Concept, Pack, SoundKind, Split};
use crate::scenes::{self, Scene};
use crate::table::read_rows;
use crate::tasks::View;
use danlu_core::recipe::DataRecipe;
use danlu_core::{AssetId, Error, Media, Part, Picture, Result, Role, Row, Sample, Sound};
use danlu_media as media;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Width and height of every picture in a corpus.
pub const SIDE: usize = 64;

/// Which of its properties keeps a picture or sound out of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// Its concept is held out; its style or voice is not.
    Concept,
    /// Its style is held out (whether its concept is too, the concept says).
    Style,
    /// Its voice is held out (whether its concept is too, the concept says).
    Voice,
}

/// A picture that the corpus holds.
#[derive(Debug, Clone)]
pub struct PictureAsset {
    /// 64x64 pixels.
    pub picture: Arc<Picture>,
    /// What it shows; `None` for scenes and for pictures of sample files.
    pub concept: Option<u32>,
    /// Who or what drew it; `scene` and `file` where it has no concept.
    pub style: String,
    /// `Train` only if both its style and its concept are.
    pub split: Split,
    /// Why it is not `Train`.
    pub held: Option<Held>,
}

/// A sound that the corpus holds.
#[derive(Debug, Clone)]
pub struct SoundAsset {
    /// 16 kHz mono.
    pub sound: Arc<Sound>,
    /// What is said, or what makes the sound; `None` for sounds of sample files.
    pub concept: Option<u32>,
    /// Language code; empty for effects.
    pub language: String,
    /// Voice; empty for effects.
    pub voice: String,
    /// What is said; empty for effects.
    pub text: String,
    /// Speech or effect; `None` for sounds of sample files.
    pub kind: Option<SoundKind>,
    /// Made by a speech synthesiser.
    pub synthetic: bool,
    /// `Train` only if both its voice and its concept are.
    pub split: Split,
    /// Why it is not `Train`.
    pub held: Option<Held>,
}

/// One thing with its names and what the corpus holds of it.
#[derive(Debug, Clone)]
pub struct ConceptEntry {
    /// Name of its pack.
    pub pack: String,
    /// Unique in its pack.
    pub id: String,
    /// Name by language.
    pub names: BTreeMap<String, String>,
    /// A sentence by language, where there is one.
    pub captions: BTreeMap<String, String>,
    /// What family of things it belongs to; may be empty.
    pub group: String,
    /// What the whole concept is for.
    pub split: Split,
    /// Its pictures, of every split.
    pub pictures: Vec<AssetId>,
    /// Its sounds, of every split.
    pub sounds: Vec<AssetId>,
    /// Other concepts of its group or with one of its keywords: easily mistaken for it.
    pub related: Vec<u32>,
}

impl ConceptEntry {
    /// What it is called in evaluation sets: `pack/id`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.pack, self.id)
    }

    /// Its name in `language`, if it has one.
    pub fn name(&self, language: &str) -> Option<&str> {
        self.names.get(language).map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// A plain text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextDoc {
    /// The text.
    pub text: String,
    /// `en`, `zh`, `code`, or `file` if it is a row of a sample file.
    pub language: String,
    /// What it is for.
    pub split: Split,
}

/// What the rows of a sample file are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Every conversation must end with an assistant's message.
    Train,
    /// A closing assistant's message becomes `expected`, which every conversation must have.
    Evaluate,
}

/// How a corpus is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    /// Compare the SHA-256 of every file of the packs with their manifests.
    pub verify: bool,
    /// Longer sounds are left out (packs) or make their row unusable (sample files).
    pub max_seconds: f32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { verify: true, max_seconds: 8.0 }
    }
}

/// Everything that a run may look at.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// Every picture; an [`AssetId`] in a [`Part::Image`] is an index into it.
    pub pictures: Vec<PictureAsset>,
    /// Every sound; an [`AssetId`] in a [`Part::Audio`] is an index into it.
    pub sounds: Vec<SoundAsset>,
    /// Every concept, pack after pack.
    pub concepts: Vec<ConceptEntry>,
    /// Every plain text.
    pub texts: Vec<TextDoc>,
    /// Most characters of a stretch of plain text; 0: as the recipe's default.
    pub stretch: usize,
    /// Conversations of sample files, their media loaded.
    pub samples: Vec<Sample>,
    /// File and line of each of `samples`.
    pub origins: Vec<(PathBuf, usize)>,
    /// Compositions of several pictures.
    pub scenes: Vec<Scene>,
    /// What was left out and why: one message per unusable row (`file:line: ...`), one per pack
    /// that has sounds over the limit.
    pub skipped: Vec<String>,
    /// What must be said wherever results on this corpus are shown.
    pub notices: Vec<String>,
    /// Concepts by split, for drawing.
    by_split: [Vec<u32>; 3],
    /// Media of sample files that are already loaded.
    picture_files: HashMap<PathBuf, AssetId>,
    sound_files: HashMap<PathBuf, AssetId>,
    bad_rows: usize,
}

impl Corpus {
    /// Reads everything that `recipe` names and composes its scenes. What comes out depends on the
    /// files, the recipe and the seed alone.
    pub fn load(recipe: &DataRecipe, seed: u64, options: &LoadOptions) -> Result<Corpus> {
        let mut corpus = Corpus { stretch: recipe.stretch, ..Corpus::default() };
        for folder in &recipe.packs {
            let pack = Pack::open(folder)?;
            if options.verify {
                pack.verify()?;
            }
            corpus.add_pack(&pack, recipe.concepts, options.max_seconds)?;
        }
        for file in &recipe.files {
            corpus.add_file(file, Purpose::Train, recipe.max_bad_rows, options.max_seconds)?;
        }
        scenes::compose_all(&mut corpus, recipe.scenes, seed);
        Ok(corpus)
    }

    /// Adds a pack's first `limit` concepts (0: all) and its texts.
    pub fn add_pack(&mut self, pack: &Pack, limit: usize, max_seconds: f32) -> Result<()> {
        let name = &pack.manifest().name;
        if self.concepts.iter().any(|c| &c.pack == name) {
            let found = format!("a second pack named {name:?}");
            return Err(Error::file(pack.folder(), "packs of different names", found));
        }
        let limit = if limit == 0 { usize::MAX } else { limit };
        let concepts = pack.concepts().take(limit).collect::<Result<Vec<_>>>()?;
        let tags: Vec<Vec<String>> =
            concepts.iter().map(|c| c.tags.values().flatten().cloned().collect()).collect();
        let decoded = concepts
            .into_par_iter()
            .map(|concept| Decoded::new(concept, pack.folder()))
            .collect::<Result<Vec<_>>>()?;
        let first = self.concepts.len();
        let mut too_long = 0;
        for concept in decoded {
            too_long += self.add_concept(name, concept, max_seconds);
        }
        if too_long > 0 {
            let folder = pack.folder().display();
            self.skipped
                .push(format!("{folder}: {too_long} sounds longer than {max_seconds} s left out"));
        }
        self.relate(first, &tags);
        let texts = pack.texts()?.into_iter();
        self.texts.extend(texts.map(|t| TextDoc {
            text: t.text,
            language: t.language,
            split: t.split,
        }));
        if !pack.manifest().notice.is_empty() {
            self.notices.push(format!("{name}: {}", pack.manifest().notice));
        }
        Ok(())
    }

    /// Adds the rows of a sample file. Unusable rows are skipped and told in
    /// [`Corpus::skipped`]; more than `max_bad_rows` of them, over all files, is an error.
    pub fn add_file(
        &mut self,
        path: &Path,
        purpose: Purpose,
        max_bad_rows: usize,
        max_seconds: f32,
    ) -> Result<()> {
        let mut first = None;
        for (seen, row) in read_rows(path)?.enumerate() {
            let (message, error) = match row {
                Ok((_, Row::Text(text))) if purpose == Purpose::Train && !text.is_empty() => {
                    let language = "file".into();
                    self.texts.push(TextDoc { text, language, split: Split::Train });
                    continue;
                }
                Ok((line, Row::Text(_))) => {
                    let want = match purpose {
                        Purpose::Train => "`text` is empty",
                        Purpose::Evaluate => "plain text cannot be evaluated; expected `messages`",
                    };
                    let error = Error::row(path, line, want);
                    (error.to_string(), error)
                }
                Ok((line, Row::Chat(sample))) => match self.usable(sample, purpose, max_seconds) {
                    Ok(sample) => {
                        self.samples.push(sample);
                        self.origins.push((path.into(), line));
                        continue;
                    }
                    Err(message) => {
                        let error = Error::row(path, line, message);
                        (error.to_string(), error)
                    }
                },
                Err(error @ Error::Row { .. }) => (error.to_string(), error),
                Err(error) => return Err(error),
            };
            first.get_or_insert_with(|| message.clone());
            self.skip(message);
            if self.bad_rows > max_bad_rows {
                if max_bad_rows == 0 {
                    return Err(error);
                }
                return Err(Error::TooManyBadRows {
                    path: path.into(),
                    bad: self.bad_rows,
                    seen: seen + 1,
                    allowed: max_bad_rows,
                    first: first.unwrap_or_default(),
                });
            }
        }
        Ok(())
    }

    /// Takes out the conversations of sample files that `fault` finds something wrong with (a text
    /// that is too long for the model, say); they count as bad rows like those that could not be
    /// read.
    pub fn retain_samples(
        &mut self,
        max_bad_rows: usize,
        mut fault: impl FnMut(&Sample) -> Option<String>,
    ) -> Result<()> {
        let seen = self.samples.len();
        let samples = std::mem::take(&mut self.samples);
        let origins = std::mem::take(&mut self.origins);
        for (sample, (path, line)) in samples.into_iter().zip(origins) {
            match fault(&sample) {
                None => {
                    self.samples.push(sample);
                    self.origins.push((path, line));
                }
                Some(message) => {
                    let message = Error::row(&path, line, message).to_string();
                    self.skip(message.clone());
                    if self.bad_rows > max_bad_rows {
                        let (bad, allowed) = (self.bad_rows, max_bad_rows);
                        return Err(Error::TooManyBadRows {
                            path,
                            bad,
                            seen,
                            allowed,
                            first: message,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, message: String) {
        self.bad_rows += 1;
        self.skipped.push(message);
    }

    /// The picture behind `id`.
    pub fn picture(&self, id: AssetId) -> &PictureAsset {
        &self.pictures[id.0 as usize]
    }

    /// The sound behind `id`.
    pub fn sound(&self, id: AssetId) -> &SoundAsset {
        &self.sounds[id.0 as usize]
    }

    /// The concept that a `pack/id` label names.
    pub fn concept_of_label(&self, label: &str) -> Option<u32> {
        let (pack, id) = label.split_once('/')?;
        self.concepts.iter().position(|c| c.pack == pack && c.id == id).map(|i| i as u32)
    }

    /// Concepts that `view` draws from.
    pub fn concepts_in(&self, view: View) -> &[u32] {
        &self.by_split[view.concept_split() as usize]
    }

    /// Adds a picture and says how it is called in parts.
    pub fn add_picture(&mut self, asset: PictureAsset) -> AssetId {
        self.pictures.push(asset);
        AssetId(self.pictures.len() as u32 - 1)
    }

    /// Adds a sound and says how it is called in parts.
    pub fn add_sound(&mut self, asset: SoundAsset) -> AssetId {
        self.sounds.push(asset);
        AssetId(self.sounds.len() as u32 - 1)
    }

    /// Adds one concept and says how many of its sounds were too long.
    fn add_concept(&mut self, pack: &str, decoded: Decoded, max_seconds: f32) -> usize {
        let Decoded { concept, pictures, sounds } = decoded;
        let index = self.concepts.len() as u32;
        let mut too_long = 0;
        let mut entry = ConceptEntry {
            pack: pack.into(),
            id: concept.id,
            names: concept.names,
            captions: concept.captions,
            group: concept.group,
            split: concept.split,
            pictures: Vec::new(),
            sounds: Vec::new(),
            related: Vec::new(),
        };
        for (item, picture) in concept.pictures.into_iter().zip(pictures) {
            let (split, held) = effective(entry.split, item.split, Held::Style);
            let picture = Arc::new(picture);
            let asset =
                PictureAsset { picture, concept: Some(index), style: item.style, split, held };
            entry.pictures.push(self.add_picture(asset));
        }
        for (item, sound) in concept.sounds.into_iter().zip(sounds) {
            if sound.seconds() > max_seconds as f64 {
                too_long += 1;
                continue;
            }
            let (split, held) = effective(entry.split, item.split, Held::Voice);
            entry.sounds.push(self.add_sound(SoundAsset {
                sound: Arc::new(sound),
                concept: Some(index),
                language: item.language,
                voice: item.voice,
                text: item.text,
                kind: Some(item.kind),
                synthetic: item.synthetic,
                split,
                held,
            }));
        }
        self.by_split[entry.split as usize].push(index);
        self.concepts.push(entry);
        too_long
    }

    /// Finds the relatives of the concepts from `first` on, whose keywords are `tags`.
    fn relate(&mut self, first: usize, tags: &[Vec<String>]) {
        let mut families: BTreeMap<(bool, &str), Vec<u32>> = BTreeMap::new();
        let added = &self.concepts[first..];
        for (i, (entry, tags)) in added.iter().zip(tags).enumerate() {
            let index = (first + i) as u32;
            if !entry.group.is_empty() {
                families.entry((true, &entry.group)).or_default().push(index);
            }
            for tag in tags {
                families.entry((false, tag)).or_default().push(index);
            }
        }
        let mut related = vec![BTreeSet::new(); added.len()];
        for members in families.values() {
            for &a in members {
                related[a as usize - first].extend(members.iter().copied().filter(|&b| b != a));
            }
        }
        for (entry, related) in self.concepts[first..].iter_mut().zip(related) {
            entry.related = related.into_iter().collect();
        }
    }

    /// Loads a sample's media and checks its form. The error is a sentence.
    fn usable(
        &mut self,
        mut sample: Sample,
        purpose: Purpose,
        max_seconds: f32,
    ) -> Result<Sample, String> {
        let closing = sample.messages.last().map(|m| m.role);
        match purpose {
            Purpose::Train if closing != Some(Role::Assistant) => {
                return Err("expected an assistant's message at the end, found none".into());
            }
            Purpose::Evaluate if closing == Some(Role::Assistant) => {
                let reply = sample.messages.pop().map(|m| m.parts);
                sample.expected = sample.expected.or(reply);
            }
            _ => {}
        }
        if purpose == Purpose::Evaluate && sample.expected.is_none() {
            return Err("expected a key `expected` or an assistant's message at the end".into());
        }
        for message in &mut sample.messages {
            let parts = std::mem::take(&mut message.parts);
            message.parts = self.load_parts(parts, max_seconds)?;
        }
        if let Some(parts) = sample.expected {
            sample.expected = Some(self.load_parts(parts, max_seconds)?);
        }
        Ok(sample)
    }

    fn load_parts(&mut self, parts: Vec<Part>, max_seconds: f32) -> Result<Vec<Part>, String> {
        let mut loaded = Vec::with_capacity(parts.len());
        for part in parts {
            loaded.push(match part {
                Part::Image(Media::File(path)) => {
                    let id = match self.picture_files.get(&path) {
                        Some(&id) => id,
                        None => self.load_picture(path).map_err(|e| e.to_string())?,
                    };
                    Part::Image(Media::Asset(id))
                }
                Part::Audio(Media::File(path)) => {
                    let id = match self.sound_files.get(&path) {
                        Some(&id) => id,
                        None => self.load_sound(path, max_seconds).map_err(|e| e.to_string())?,
                    };
                    Part::Audio(Media::Asset(id))
                }
                other => other,
            });
        }
        Ok(loaded)
    }

    fn load_picture(&mut self, path: PathBuf) -> Result<AssetId> {
        let picture = Arc::new(media::fit(&media::read_picture(&path)?, SIDE));
        let style = "file".into();
        let asset = PictureAsset { picture, concept: None, style, split: Split::Train, held: None };
        let id = self.add_picture(asset);
        self.picture_files.insert(path, id);
        Ok(id)
    }

    fn load_sound(&mut self, path: PathBuf, max_seconds: f32) -> Result<AssetId> {
        let sound = media::read_sound(&path)?;
        if sound.seconds() > max_seconds as f64 {
            let found = format!("{:.1} seconds", sound.seconds());
            return Err(Error::file(path, format!("at most {max_seconds} seconds"), found));
        }
        let id = self.add_sound(SoundAsset {
            sound: Arc::new(sound),
            concept: None,
            language: String::new(),
            voice: String::new(),
            text: String::new(),
            kind: None,
            synthetic: false,
            split: Split::Train,
            held: None,
        });
        self.sound_files.insert(path, id);
        Ok(id)
    }
}

/// A concept whose media are decoded (and their bytes dropped).
struct Decoded {
    concept: Concept,
    pictures: Vec<Picture>,
    sounds: Vec<Sound>,
}

impl Decoded {
    fn new(mut concept: Concept, folder: &Path) -> Result<Self> {
        let mut pictures = Vec::with_capacity(concept.pictures.len());
        for item in &mut concept.pictures {
            let bytes = std::mem::take(&mut item.bytes);
            pictures
                .push(media::fit(&media::decode_picture(&bytes, folder.join(&item.file))?, SIDE));
        }
        let mut sounds = Vec::with_capacity(concept.sounds.len());
        for item in &mut concept.sounds {
            let bytes = std::mem::take(&mut item.bytes);
            sounds.push(media::decode_sound(&bytes, folder.join(&item.file))?);
        }
        Ok(Self { concept, pictures, sounds })
    }
}

/// Split of an asset, given its concept's and its style's or voice's, and what holds it out.
fn effective(concept: Split, own: Split, reason: Held) -> (Split, Option<Held>) {
    match (concept, own) {
        (Split::Train, Split::Train) => (Split::Train, None),
        (split, Split::Train) => (split, Some(Held::Concept)),
        (concept, own) => (own.max(concept), Some(reason)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tasks::tests::{Folder, tiny_corpus, write_tiny_pack};

    #[test]
    fn concept_style_and_voice_each_hold_out() {
        let corpus = tiny_corpus();
        let of = |style: &str, concept: u32| {
            let entry = &corpus.concepts[concept as usize];
            let asset = entry.pictures.iter().map(|&id| corpus.picture(id));
            asset.clone().find(|a| a.style == style).map(|a| (a.split, a.held)).unwrap()
        };
        assert_eq!(of("alpha", 0), (Split::Train, None));
        assert_eq!(of("gamma", 0), (Split::Test, Some(Held::Style)));
        assert_eq!(of("alpha", 8), (Split::Val, Some(Held::Concept)));
        assert_eq!(of("gamma", 8), (Split::Test, Some(Held::Style)));
        assert_eq!(of("alpha", 9), (Split::Test, Some(Held::Concept)));
        let held: Vec<_> = corpus.sounds.iter().filter(|s| s.held == Some(Held::Voice)).collect();
        assert!(held.iter().all(|s| ["en-c", "zh-b", "fr-b"].contains(&s.voice.as_str())));
        assert_eq!(held.len(), 90);
        assert_eq!(corpus.notices, ["tiny: Discs and tones."]);
        assert_eq!(corpus.concept_of_label(&corpus.concepts[3].label()), Some(3));
        // Concepts 0, 4, 8... share a group, 0, 7, 14... a keyword.
        assert!(corpus.concepts[0].related.starts_with(&[4, 7, 8, 12, 14]));
    }

    #[test]
    fn a_limit_keeps_the_first_concepts_and_no_sound_over_the_length() {
        let folder = Folder::new("limit");
        write_tiny_pack(&folder.0, 5);
        let pack = Pack::open(&folder.0).unwrap();
        let mut corpus = Corpus::default();
        corpus.add_pack(&pack, 2, 8.0).unwrap();
        assert_eq!((corpus.concepts.len(), corpus.pictures.len()), (2, 6));
        let again = corpus.add_pack(&pack, 2, 8.0).unwrap_err().to_string();
        assert!(again.contains("second pack named \"tiny\""), "{again}");
        let mut short = Corpus::default();
        short.add_pack(&pack, 2, 0.05).unwrap();
        assert_eq!(short.sounds.len(), 0);
        assert!(short.skipped[0].contains("16 sounds longer than 0.05 s"), "{:?}", short.skipped);
    }

    #[test]
    fn unusable_rows_are_named_counted_and_limited() {
        let folder = Folder::new("rows");
        let path = folder.0.join("rows.jsonl");
        media::write_picture(folder.0.join("ok.png"), &Picture::filled(64, 64, [9; 3])).unwrap();
        std::fs::write(folder.0.join("broken.png"), b"no picture").unwrap();
        std::fs::write(folder.0.join("empty.wav"), b"").unwrap();
        let row = |part: &str, reply: &str| {
            format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}{reply}]}}"#)
        };
        let reply = r#",{"role":"assistant","content":"yes"}"#;
        let image = |file: &str| format!(r#"{{"type":"image","image":"{file}"}}"#);
        let rows = [
            row(&image("ok.png"), reply),
            row(&image("missing.png"), reply),
            row(&image("broken.png"), reply),
            row(r#"{"type":"audio","audio":"empty.wav"}"#, reply),
            row(&image("ok.png"), r#",{"role":"robot","content":"yes"}"#),
            row(&image("ok.png"), ""),
            r#"{"text":"plain"}"#.to_string(),
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();

        let mut corpus = Corpus::default();
        corpus.add_file(&path, Purpose::Train, 5, 8.0).unwrap();
        assert_eq!((corpus.samples.len(), corpus.texts.len(), corpus.pictures.len()), (1, 1, 1));
        assert_eq!(corpus.skipped.len(), 5);
        for (message, (line, want)) in corpus.skipped.iter().zip([
            (2, "missing.png"),
            (3, "broken.png"),
            (4, "empty.wav"),
            (5, "unknown role `robot`"),
            (6, "assistant's message"),
        ]) {
            assert!(message.contains(&format!("rows.jsonl:{line}: ")), "{message}");
            assert!(message.contains(want), "{message}");
        }
        let limited = |max| {
            Corpus::default().add_file(&path, Purpose::Train, max, 8.0).unwrap_err().to_string()
        };
        let two = limited(2);
        assert!(two.contains("3 of 4 rows are bad") && two.contains("rows.jsonl:2:"), "{two}");
        assert!(limited(0).contains("rows.jsonl:2:"));

        let mut corpus = Corpus::default();
        corpus.add_file(&path, Purpose::Evaluate, 9, 8.0).unwrap();
        assert_eq!(corpus.samples[0].expected, Some(vec![Part::Text("yes".into())]));
        assert_eq!(corpus.samples[0].messages.len(), 1);
        assert!(corpus.skipped[5].contains("plain text cannot be evaluated"));
    }

    #[test]
    fn the_sample_pack_has_something_for_every_task_but_those_of_recordings_and_files() {
        let recipe = DataRecipe {
            packs: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packs/sample")],
            files: Vec::new(),
            held_out: Vec::new(),
            max_bad_rows: 0,
            scenes: 50,
            variants: 0,
            concepts: 0,
            stretch: danlu_core::recipe::STRETCH,
        };
        let corpus = Corpus::load(&recipe, 1, &LoadOptions::default()).unwrap();
        assert!(
            corpus.pictures.iter().all(|p| (p.picture.width, p.picture.height) == (SIDE, SIDE))
        );
        assert!(corpus.sounds.iter().all(|s| s.sound.rate == 16_000 && s.sound.seconds() > 0.2));
        let draws = |task: &&dyn crate::Task| {
            task.draw(&corpus, View::Train, &mut danlu_core::Rng::new(1, 1)).is_some()
        };
        let without: Vec<_> = crate::TASKS.iter().filter(|t| !draws(t)).map(|t| t.name()).collect();
        assert_eq!(without, ["transcribe_other", "effect", "heard_language", "file"]);
    }
}
