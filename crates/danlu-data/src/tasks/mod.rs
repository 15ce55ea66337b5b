//! What the model is taught and asked: one file per task, one line each in [`TASKS`].
//!
//! A task knows its wordings and which assets it needs; it knows nothing of tokens.

mod audio_only;
mod caption;
mod draw;
mod draw_heard;
mod effect;
mod file;
mod heard_language;
mod image_only;
mod list_objects;
mod name;
mod say;
mod speak;
mod text;
mod transcribe;
mod translate;
mod what_in_box;
mod where_is;
mod yes_no;

use crate::corpus::{ConceptEntry, Corpus, Held, SoundAsset};
use crate::pack::{SoundKind, Split};
use crate::scenes::Scene;
use danlu_core::recipe::edit_distance;
use danlu_core::{AssetId, Error, Media, Message, Part, Result, Rng, Role, Sample};

/// Every task. The order is that of reports; recipes name tasks, so it may change.
pub const TASKS: &[&dyn Task] = &[
    &name::Name(Language::En),
    &name::Name(Language::Zh),
    &caption::Caption,
    &draw::Draw(Language::En),
    &draw::Draw(Language::Zh),
    &say::Say(Language::En),
    &say::Say(Language::Zh),
    &draw_heard::DrawHeard(Language::En),
    &draw_heard::DrawHeard(Language::Zh),
    &transcribe::Transcribe(Some(Language::En)),
    &transcribe::Transcribe(Some(Language::Zh)),
    &transcribe::Transcribe(None),
    &speak::Speak(Language::En),
    &speak::Speak(Language::Zh),
    &translate::Translate { to: Language::Zh },
    &translate::Translate { to: Language::En },
    &yes_no::YesNo,
    &where_is::Where,
    &what_in_box::WhatInBox,
    &list_objects::ListObjects,
    &text::PlainText("en"),
    &text::PlainText("zh"),
    &text::PlainText("code"),
    &image_only::ImageOnly,
    &audio_only::AudioOnly,
    &effect::Effect,
    &heard_language::HeardLanguage,
    &file::File,
];

/// Something that the model is taught and asked.
pub trait Task: Sync {
    /// Its name in recipes, samples and reports.
    fn name(&self) -> &'static str;

    /// What goes in and what comes out, in one line.
    fn help(&self) -> &'static str;

    /// One conversation or text, as `rng` has it; `None` if `corpus` has nothing for it in `view`.
    ///
    /// In [`View::Train`] a conversation ends with the assistant's reply. In every other view it
    /// ends before it, and the reply is in [`Sample::expected`].
    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn>;
}

/// What a task draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drawn {
    /// A conversation.
    Chat(Sample),
    /// Plain text.
    Text(String),
    /// A text of any length, of which a window is learnt at a time, from anywhere in it.
    Long(String),
}

/// Which concepts and assets may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum View {
    /// What is learnt from, replies included.
    Train,
    /// The same, as questions: what it has learnt.
    Seen,
    /// Trained concepts, shown in a style that is held out.
    HeldStyle,
    /// Trained concepts, said by a voice that is held out.
    HeldVoice,
    /// Concepts that are held out for tests, in trained styles and voices.
    HeldConcept,
    /// The same with the concepts of the `val` split.
    Validation,
}

impl View {
    /// Every view.
    pub const ALL: [View; 6] = [
        View::Train,
        View::Seen,
        View::HeldStyle,
        View::HeldVoice,
        View::HeldConcept,
        View::Validation,
    ];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            View::Train => "train",
            View::Seen => "seen",
            View::HeldStyle => "held_style",
            View::HeldVoice => "held_voice",
            View::HeldConcept => "held_concept",
            View::Validation => "validation",
        }
    }

    /// The split that a concept must have.
    pub(crate) fn concept_split(self) -> Split {
        match self {
            View::HeldConcept => Split::Test,
            View::Validation => Split::Val,
            _ => Split::Train,
        }
    }

    /// Whether trained plain text is wanted, or that which is held out.
    fn is_trained(self) -> bool {
        matches!(self, View::Train | View::Seen)
    }
}

/// The task of this name, or an error that names the nearest.
pub fn find(name: &str) -> Result<&'static dyn Task> {
    TASKS.iter().copied().find(|t| t.name() == name).ok_or_else(|| {
        let nearest = TASKS.iter().min_by_key(|t| edit_distance(name, t.name()));
        let hint = nearest.map_or(String::new(), |t| format!(" (did you mean `{}`?)", t.name()));
        Error::parameter(format!("mixture.{name}"), format!("the name of a task{hint}"), name)
    })
}

/// The same sample with `expected` as the assistant's reply: for a loss on questions.
pub fn answered(mut sample: Sample) -> Sample {
    if let Some(parts) = sample.expected.take() {
        sample.messages.push(Message::new(Role::Assistant, parts));
    }
    sample
}

/// A language in which instructions are worded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    En,
    Zh,
}

impl Language {
    fn code(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::Zh => "zh",
        }
    }

    fn other(self) -> Self {
        match self {
            Language::En => Language::Zh,
            Language::Zh => Language::En,
        }
    }

    fn any(rng: &mut Rng) -> Self {
        if rng.below(2) == 0 { Language::En } else { Language::Zh }
    }

    /// `self` five times of six.
    fn mostly(self, rng: &mut Rng) -> Self {
        if rng.below(6) == 0 { self.other() } else { self }
    }

    /// `en` or `zh` text, as the language is.
    fn of<T>(self, en: T, zh: T) -> T {
        match self {
            Language::En => en,
            Language::Zh => zh,
        }
    }
}

/// The ways to put an instruction. `{}` in one stands for what the task fills in.
struct Wordings {
    en: &'static [&'static str],
    zh: &'static [&'static str],
}

impl Wordings {
    /// At least four in English and three in Chinese, or it does not compile.
    const fn new<const E: usize, const Z: usize>(
        en: &'static [&'static str; E],
        zh: &'static [&'static str; Z],
    ) -> Self {
        const { assert!(E >= 4 && Z >= 3, "too few wordings") };
        Self { en, zh }
    }

    fn pick(&self, language: Language, rng: &mut Rng) -> &'static str {
        rng.pick::<&'static str>(language.of(self.en, self.zh))
    }
}

/// Draws one of the concepts of `view` for which `make` finds all it needs. Each of them is
/// equally likely, unless they are so few among the others that they must be searched for.
fn from_concept<'a, T>(
    corpus: &'a Corpus,
    view: View,
    rng: &mut Rng,
    mut make: impl FnMut(&'a ConceptEntry, &mut Rng) -> Option<T>,
) -> Option<T> {
    let concepts = corpus.concepts_in(view);
    if concepts.is_empty() {
        return None;
    }
    for _ in 0..200 {
        let concept = &corpus.concepts[*rng.pick(concepts) as usize];
        if let Some(made) = make(concept, rng) {
            return Some(made);
        }
    }
    let start = rng.below(concepts.len());
    let around = concepts[start..].iter().chain(&concepts[..start]);
    around.into_iter().find_map(|&i| make(&corpus.concepts[i as usize], rng))
}

/// One of `items`, if there are any.
fn one<T: Copy>(items: &[T], rng: &mut Rng) -> Option<T> {
    if items.is_empty() { None } else { Some(*rng.pick(items)) }
}

/// A picture of `concept` to ask about.
fn asked_picture(
    corpus: &Corpus,
    concept: &ConceptEntry,
    view: View,
    rng: &mut Rng,
) -> Option<AssetId> {
    let held = match view {
        View::HeldVoice => return None,
        View::HeldStyle => true,
        _ => false,
    };
    pictures(corpus, concept, held, rng)
}

/// A picture of `concept` to answer with, always of a trained style, and whether its style must be
/// named: three times of four it is the first, which is what is drawn if no style is asked for.
/// Which of two styles is meant cannot be learnt from a question that does not say.
fn reply_picture(
    corpus: &Corpus,
    concept: &ConceptEntry,
    rng: &mut Rng,
) -> Option<(AssetId, bool)> {
    let first = default_picture(corpus, concept)?;
    let id = if rng.below(4) > 0 { first } else { pictures(corpus, concept, false, rng)? };
    Some((id, id != first))
}

/// The picture of `concept` that answers a question which names no style.
fn default_picture(corpus: &Corpus, concept: &ConceptEntry) -> Option<AssetId> {
    let trained = |id: &AssetId| corpus.picture(*id).held != Some(Held::Style);
    concept.pictures.iter().copied().find(trained)
}

fn pictures(corpus: &Corpus, concept: &ConceptEntry, held: bool, rng: &mut Rng) -> Option<AssetId> {
    let of_style = |id: &AssetId| (corpus.picture(*id).held == Some(Held::Style)) == held;
    one(&concept.pictures.iter().copied().filter(of_style).collect::<Vec<_>>(), rng)
}

/// A sound of `concept` to ask about, among those that are `wanted`.
fn asked_sound(
    corpus: &Corpus,
    concept: &ConceptEntry,
    view: View,
    rng: &mut Rng,
    wanted: impl Fn(&SoundAsset) -> bool,
) -> Option<AssetId> {
    let held = match view {
        View::HeldStyle => return None,
        View::HeldVoice => true,
        _ => false,
    };
    sounds(corpus, concept, held, rng, wanted)
}

/// A sound of `concept` to answer with, always of a trained voice, and whether its voice must be
/// named, as in [`reply_picture`].
fn reply_sound(
    corpus: &Corpus,
    concept: &ConceptEntry,
    rng: &mut Rng,
    wanted: impl Fn(&SoundAsset) -> bool,
) -> Option<(AssetId, bool)> {
    let trained = |id: &AssetId| {
        let sound = corpus.sound(*id);
        sound.held != Some(Held::Voice) && wanted(sound)
    };
    let first = concept.sounds.iter().copied().find(trained)?;
    let id = if rng.below(4) > 0 { first } else { sounds(corpus, concept, false, rng, wanted)? };
    Some((id, id != first))
}

fn sounds(
    corpus: &Corpus,
    concept: &ConceptEntry,
    held: bool,
    rng: &mut Rng,
    wanted: impl Fn(&SoundAsset) -> bool,
) -> Option<AssetId> {
    let fits = |id: &AssetId| {
        let sound = corpus.sound(*id);
        (sound.held == Some(Held::Voice)) == held && wanted(sound)
    };
    one(&concept.sounds.iter().copied().filter(fits).collect::<Vec<_>>(), rng)
}

/// Whether `sound` is speech in the language of this code (`en`, also as `en_gb`).
fn speaks(sound: &SoundAsset, code: &str) -> bool {
    sound.kind == Some(SoundKind::Speech)
        && !sound.text.is_empty()
        && sound.language.split(['-', '_']).next() == Some(code)
}

/// A scene of `view`.
fn scene<'a>(corpus: &'a Corpus, view: View, rng: &mut Rng) -> Option<&'a Scene> {
    let split = match view {
        View::Train | View::Seen => Split::Train,
        View::HeldStyle => Split::Test,
        _ => return None,
    };
    let scenes: Vec<&Scene> = corpus.scenes.iter().filter(|s| s.split == split).collect();
    one(&scenes, rng)
}

/// The corners of a box as places: `<locX0><locY0><locX1><locY1>`.
fn places(object: &crate::scenes::SceneObject) -> String {
    let crate::scenes::SceneObject { x0, y0, x1, y1, .. } = object;
    format!("<loc{x0}><loc{y0}><loc{x1}><loc{y1}>")
}

fn image(id: AssetId) -> Part {
    Part::Image(Media::Asset(id))
}

fn audio(id: AssetId) -> Part {
    Part::Audio(Media::Asset(id))
}

fn text(text: impl Into<String>) -> Part {
    Part::Text(text.into())
}

/// The instruction before or after what it is about.
fn in_any_order(instruction: impl Into<String>, medium: Part, rng: &mut Rng) -> Vec<Part> {
    let instruction = text(instruction);
    if rng.below(2) == 0 { vec![instruction, medium] } else { vec![medium, instruction] }
}

/// Puts a question and its answer together, in the form that `view` wants.
fn ask(
    task: &dyn Task,
    view: View,
    question: Vec<Part>,
    answer: Vec<Part>,
    label: Option<String>,
) -> Drawn {
    let mut messages = Vec::new();
    if !question.is_empty() {
        messages.push(Message::new(Role::User, question));
    }
    let task = Some(task.name().to_string());
    let sample = Sample { messages, expected: Some(answer), task, label, ..Sample::default() };
    Drawn::Chat(if view == View::Train { answered(sample) } else { sample })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::corpus::LoadOptions;
    use danlu_core::recipe::DataRecipe;
    use danlu_core::{Picture, Sound};
    use danlu_media as media;
    use serde_json::json;
    use sha2::{Digest, Sha256};
    use std::collections::HashSet;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    /// A folder that goes when the test does.
    pub(crate) struct Folder(pub(crate) PathBuf);

    impl Folder {
        pub(crate) fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("danlu-data-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A disc of a colour and size of its own, in a style of its own.
    fn disc(i: usize, style: usize) -> Picture {
        let mut picture = Picture::filled(64, 64, [255; 3]);
        let radius = 14 + (i + 5 * style) % 16;
        for y in 0..64usize {
            for x in 0..64usize {
                if x.abs_diff(32).pow(2) + y.abs_diff(32).pow(2) < radius * radius {
                    let colour = [(i * 37 % 200) as u8, (i * 91 % 200) as u8, style as u8 * 60];
                    picture.rgb[(y * 64 + x) * 3..][..3].copy_from_slice(&colour);
                }
            }
        }
        picture
    }

    fn tone(i: usize, voice: usize) -> Sound {
        let pitch = 100.0 + 10.0 * i as f32 + voice as f32;
        let sample = |k: usize| 0.7 * (k as f32 * pitch / 16_000.0 * std::f32::consts::TAU).sin();
        Sound { rate: 16_000, samples: (0..1600).map(sample).collect() }
    }

    /// Adds a member to a tar.
    pub(crate) fn member(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }

    /// Writes a pack of `count` concepts: of every ten, the ninth is `val` and the tenth `test`.
    pub(crate) fn write_tiny_pack(folder: &Path, count: usize) {
        let bytes_of = |write: &dyn Fn(&Path), name: &str| {
            let path = folder.join(name);
            write(&path);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            bytes
        };
        let mut tar = tar::Builder::new(Vec::new());
        for i in 0..count {
            let split = ["train", "val", "test"][(i % 10).saturating_sub(7)];
            let (mut pictures, mut sounds, mut files) = (Vec::new(), Vec::new(), Vec::new());
            for (s, style) in ["alpha", "beta", "gamma"].iter().enumerate() {
                let file = format!("c{i}.{style}.png");
                let split = if s == 2 { "test" } else { "train" };
                pictures.push(json!({ "file": file, "style": style, "split": split }));
                let write = |p: &Path| media::write_picture(p, &disc(i, s)).unwrap();
                files.push((file, bytes_of(&write, "x.png")));
            }
            let (en, zh) = (format!("thing{i:02}"), format!("物{i:02}"));
            for (v, (language, voice, text, split, synthetic)) in [
                ("en", "en-a", &en, "train", true),
                ("en", "en-b", &en, "train", true),
                ("en", "en-c", &en, "test", true),
                ("zh", "zh-a", &zh, "train", true),
                ("zh", "zh-b", &zh, "test", true),
                ("fr", "fr-a", &format!("chose{i:02}"), "train", false),
                ("fr", "fr-b", &format!("chose{i:02}"), "test", false),
            ]
            .into_iter()
            .enumerate()
            {
                let file = format!("c{i}.{voice}.wav");
                sounds.push(json!({ "file": file, "kind": "speech", "language": language,
                    "voice": voice, "text": text, "split": split, "synthetic": synthetic }));
                let write = |p: &Path| media::write_sound(p, &tone(i, v)).unwrap();
                files.push((file, bytes_of(&write, "x.wav")));
            }
            let file = format!("c{i}.sfx.wav");
            sounds.push(json!({ "file": file, "kind": "effect", "split": "train" }));
            let write = |p: &Path| media::write_sound(p, &tone(i, 30)).unwrap();
            files.push((file, bytes_of(&write, "x.wav")));
            let head = json!({ "id": format!("c{i}"), "names": { "en": en, "zh": zh },
                "tags": { "en": [format!("tag{}", i % 7)] }, "group": format!("group-{}", i % 4),
                "split": split, "pictures": pictures, "sounds": sounds,
                "captions": if i % 2 == 0 { json!({ "en": format!("It is {en}.") }) } else { json!({}) } });
            member(&mut tar, &format!("c{i}.json"), head.to_string().as_bytes());
            for (name, bytes) in files {
                member(&mut tar, &name, &bytes);
            }
        }
        write_pack(folder, &tar.into_inner().unwrap(), count);
    }

    /// Writes a shard, three files of texts and the manifest that goes with them.
    pub(crate) fn write_pack(folder: &Path, shard: &[u8], concepts: usize) {
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.join(name), bytes).unwrap();
            let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            json!({ "file": name, "bytes": bytes.len(), "sha256": hash })
        };
        let mut shard = write("shard-00000.tar", shard);
        shard["concepts"] = json!(concepts);
        let mut texts = Vec::new();
        for language in ["en", "zh", "code"] {
            let mut rows = String::new();
            for i in 0..12 {
                let held = i == 3;
                let line = format!("{language} row {i}{}.\n", if held { " HELD" } else { "" });
                rows += &json!({ "text": line.repeat(60), "source": "test",
                    "split": if held { "val" } else { "train" } })
                .to_string();
                rows.push('\n');
            }
            let mut text = write(&format!("texts-{language}.jsonl"), rows.as_bytes());
            text["language"] = json!(language);
            text["rows"] = json!(12);
            texts.push(text);
        }
        let manifest = json!({ "format": "danlu-pack/1", "name": "tiny", "shards": [shard],
            "texts": texts, "notice": "Discs and tones.",
            "splits": { "concept": { "rule": "by number" }, "style": { "test": ["gamma"] },
                "voice": { "train": ["en-a"], "test": ["en-c"] } } });
        std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    }

    /// Thirty concepts with 22 scenes, and a sample file of one conversation and one text.
    pub(crate) fn tiny_corpus() -> &'static Corpus {
        static CORPUS: OnceLock<Corpus> = OnceLock::new();
        CORPUS.get_or_init(|| {
            let folder = Folder::new("tiny");
            write_tiny_pack(&folder.0, 30);
            let rows = folder.0.join("rows.jsonl");
            std::fs::write(
                &rows,
                r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}
                {"text":"plain"}"#
                    .replace("\n                ", "\n"),
            )
            .unwrap();
            let recipe = DataRecipe {
                packs: vec![folder.0.clone()],
                files: vec![rows],
                held_out: Vec::new(),
                max_bad_rows: 0,
                scenes: 20,
                variants: 0,
                concepts: 0,
                stretch: danlu_core::recipe::STRETCH,
            };
            Corpus::load(&recipe, 1, &LoadOptions::default()).unwrap()
        })
    }

    fn parts(sample: &Sample) -> impl Iterator<Item = &Part> {
        sample.messages.iter().flat_map(|m| &m.parts).chain(sample.expected.iter().flatten())
    }

    /// What holds the assets of `parts` out of training.
    fn held<'a>(corpus: &Corpus, parts: impl Iterator<Item = &'a Part>) -> Vec<Option<Held>> {
        parts
            .filter_map(|part| match part {
                Part::Image(Media::Asset(id)) => Some(corpus.picture(*id).held),
                Part::Audio(Media::Asset(id)) => Some(corpus.sound(*id).held),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn every_task_trains_on_trained_assets_alone_and_repeats() {
        let corpus = tiny_corpus();
        let held_names: Vec<&str> = corpus
            .concepts
            .iter()
            .filter(|c| c.split != Split::Train)
            .flat_map(|c| c.names.values().map(String::as_str))
            .collect();
        let mut names = HashSet::new();
        for task in TASKS {
            let name = task.name();
            assert!(names.insert(name), "two tasks are called {name}");
            assert!(!task.help().is_empty());
            for stream in 0..200 {
                let draw = || task.draw(corpus, View::Train, &mut Rng::new(9, stream));
                let drawn = draw().unwrap_or_else(|| panic!("{name} draws nothing"));
                assert_eq!(Some(&drawn), draw().as_ref(), "{name} does not repeat");
                let sample = match &drawn {
                    Drawn::Text(text) | Drawn::Long(text) => {
                        assert!(!text.is_empty() && !text.contains("HELD"), "{name}: {text}");
                        continue;
                    }
                    Drawn::Chat(sample) => sample,
                };
                assert_eq!(sample.messages.last().unwrap().role, Role::Assistant, "{name}");
                assert_eq!(sample.task.as_deref(), Some(name));
                assert!(sample.expected.is_none(), "{name}");
                assert!(held(corpus, parts(sample)).iter().all(Option::is_none), "{name}");
                for part in parts(sample) {
                    let Part::Text(text) = part else { continue };
                    assert!(!text.is_empty(), "{name}");
                    assert!(!held_names.iter().any(|n| text.contains(n)), "{name}: {text}");
                }
            }
        }
    }

    #[test]
    fn every_view_asks_about_what_it_says() {
        let corpus = tiny_corpus();
        let mut drawn_in = [0; View::ALL.len()];
        for task in TASKS {
            for view in View::ALL.into_iter().filter(|&v| v != View::Train) {
                for stream in 0..50 {
                    let mut rng = Rng::new(2, stream);
                    let Some(Drawn::Chat(sample)) = task.draw(corpus, view, &mut rng) else {
                        continue;
                    };
                    drawn_in[view as usize] += 1;
                    let context = format!("{} in {}", task.name(), view.name());
                    assert!(
                        sample.messages.last().is_none_or(|m| m.role == Role::User),
                        "{context}"
                    );
                    let answer = sample.expected.as_ref().expect(&context);
                    let asked = held(corpus, sample.messages.iter().flat_map(|m| &m.parts));
                    let reply = held(corpus, answer.iter());
                    let (want_asked, want_reply) = match view {
                        View::HeldStyle => (Some(Held::Style), None),
                        View::HeldVoice => (Some(Held::Voice), None),
                        View::HeldConcept | View::Validation => {
                            (Some(Held::Concept), Some(Held::Concept))
                        }
                        _ => (None, None),
                    };
                    assert!(asked.iter().all(|h| *h == want_asked), "{context}: {asked:?}");
                    // A lone medium is both the question and the answer.
                    let want_reply = if asked.is_empty() && sample.messages.is_empty() {
                        want_asked
                    } else {
                        want_reply
                    };
                    assert!(reply.iter().all(|h| *h == want_reply), "{context}: {reply:?}");
                    if let Some(label) = &sample.label {
                        let concept = corpus.concept_of_label(label).expect(&context);
                        let split = corpus.concepts[concept as usize].split;
                        assert_eq!(split, view.concept_split(), "{context}");
                    }
                    let whole = answered(sample.clone());
                    assert_eq!(whole.messages.last().unwrap().role, Role::Assistant);
                }
            }
        }
        assert!(drawn_in[1..].iter().all(|&n| n > 100), "{drawn_in:?}");
    }

    #[test]
    fn yes_and_no_are_balanced_and_true() {
        let corpus = tiny_corpus();
        let (mut yes, mut related) = (0, 0);
        for stream in 0..1000 {
            let drawn = yes_no::YesNo.draw(corpus, View::Train, &mut Rng::new(3, stream)).unwrap();
            let Drawn::Chat(sample) = drawn else { panic!("text") };
            let asked = sample.messages[0].parts.iter().find_map(|p| match p {
                Part::Text(t) => Some(t),
                _ => None,
            });
            let shown = corpus.concept_of_label(sample.label.as_deref().unwrap()).unwrap();
            let shown = &corpus.concepts[shown as usize];
            let is_shown = shown.names.values().any(|n| asked.unwrap().contains(n));
            let Part::Text(answer) = &sample.messages[1].parts[0] else { panic!("no text") };
            assert_eq!(is_shown, ["yes", "是"].contains(&answer.as_str()));
            yes += usize::from(is_shown);
            let names_of = |&i: &u32| corpus.concepts[i as usize].names.values();
            let hard = shown.related.iter().flat_map(names_of).any(|n| asked.unwrap().contains(n));
            related += usize::from(hard);
        }
        assert!((440..560).contains(&yes), "{yes}");
        // Half of the wrong names by choice, and those that the other half meets by chance.
        assert!(related > 250, "{related}");
    }

    #[test]
    fn boxes_are_those_of_the_scene() {
        let corpus = tiny_corpus();
        let mut rng = Rng::new(4, 0);
        let Some(Drawn::Chat(sample)) =
            list_objects::ListObjects.draw(corpus, View::Seen, &mut rng)
        else {
            panic!("nothing drawn")
        };
        let Some(Part::Image(Media::Asset(id))) =
            sample.messages[0].parts.iter().find(|p| matches!(p, Part::Image(_)))
        else {
            panic!("no picture")
        };
        let scene = corpus.scenes.iter().find(|s| s.picture == *id).unwrap();
        let [Part::Text(list)] = &sample.expected.as_ref().unwrap()[..] else { panic!("no text") };
        let lines: Vec<&str> = list.split("; ").collect();
        assert_eq!(lines.len(), scene.objects.len());
        let left = |line: &str| -> u8 {
            line.split("<loc").nth(1).unwrap().trim_end_matches('>').parse().unwrap()
        };
        assert!(lines.windows(2).all(|w| left(w[0]) <= left(w[1])), "{list}");
        for object in &scene.objects {
            let name = corpus.concepts[object.concept as usize].names.values();
            let want = places(object);
            assert!(name.into_iter().any(|n| list.contains(&format!("{n}{want}"))), "{list}");
        }
    }
}
