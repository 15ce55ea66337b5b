//! Reads packs of the format `danlu-pack/1`: a manifest, tar shards of concepts, texts.

use danlu_core::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

const FORMAT: &str = "danlu-pack/1";
/// The style that is set aside for tests by others: no pack may hold it.
const SET_ASIDE: &str = "openmoji";

/// What a concept, a style, a voice or a text is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learnt from.
    #[default]
    Train,
    /// Looked at while training goes on.
    Val,
    /// Looked at when it is over.
    Test,
}

/// What a manifest says of its pack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `danlu-pack/1`.
    pub format: String,
    /// Short name of the pack; concepts are labelled `name/id`.
    pub name: String,
    /// What is in it, in a sentence.
    #[serde(default)]
    pub description: String,
    /// What must be said wherever results on this pack are shown.
    #[serde(default)]
    pub notice: String,
    /// Where the content comes from, and under which licence.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// The files that hold the concepts.
    #[serde(default)]
    pub shards: Vec<Shard>,
    /// The files that hold plain text.
    #[serde(default)]
    pub texts: Vec<TextFile>,
    /// Which styles and voices are held out.
    #[serde(default)]
    pub splits: Splits,
}

/// One origin of a pack's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the package.
    pub name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Which registry: `npm`, `apt`, `pypi`.
    #[serde(default)]
    pub kind: String,
    /// SPDX identifier, or the licence's usual name.
    pub licence: String,
    /// The licence's text, relative to the pack.
    #[serde(default)]
    pub licence_file: String,
    /// Whom to credit.
    #[serde(default)]
    pub credit: String,
}

/// One tar file of concepts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    /// File name in the pack's folder.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// How many concepts are in it.
    pub concepts: usize,
}

/// One JSON Lines file of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextFile {
    /// File name in the pack's folder.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// `en`, `zh` or `code`.
    pub language: String,
    /// How many texts are in it.
    pub rows: usize,
}

/// Styles and voices by split. Concepts carry their own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Splits {
    /// Styles of pictures.
    #[serde(default)]
    pub style: BTreeMap<Split, Vec<String>>,
    /// Voices of speech.
    #[serde(default)]
    pub voice: BTreeMap<Split, Vec<String>>,
}

/// One thing with its names, pictures and sounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Concept {
    /// Unique in its pack.
    pub id: String,
    /// Name by language.
    pub names: BTreeMap<String, String>,
    /// A sentence by language, where there is one.
    pub captions: BTreeMap<String, String>,
    /// Keywords by language.
    pub tags: BTreeMap<String, Vec<String>>,
    /// What family of things it belongs to; may be empty.
    pub group: String,
    /// What the whole concept is for.
    pub split: Split,
    /// Pictures of it.
    pub pictures: Vec<PictureItem>,
    /// Sounds of it.
    pub sounds: Vec<SoundItem>,
}

/// One picture of a concept, still encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureItem {
    /// Name of the member in its shard.
    pub file: String,
    /// Who or what drew it.
    pub style: String,
    /// What its style is for.
    pub split: Split,
    /// The PNG file.
    pub bytes: Vec<u8>,
}

/// What kind of sound it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SoundKind {
    /// Someone says `text`.
    Speech,
    /// The sound that the thing makes.
    Effect,
}

/// One sound of a concept, still encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct SoundItem {
    /// Name of the member in its shard.
    pub file: String,
    /// Speech or effect.
    pub kind: SoundKind,
    /// Language code; empty for effects.
    pub language: String,
    /// Voice; empty for effects.
    pub voice: String,
    /// What is said; empty for effects.
    pub text: String,
    /// What its voice is for.
    pub split: Split,
    /// Made by a speech synthesiser.
    pub synthetic: bool,
    /// The Ogg Vorbis file.
    pub bytes: Vec<u8>,
}

/// One text of a pack.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// The text.
    pub text: String,
    /// `en`, `zh` or `code`.
    pub language: String,
    /// What it is for.
    pub split: Split,
}

/// A pack on disk whose manifest is read and whose files are there, with the right sizes.
#[derive(Debug, Clone)]
pub struct Pack {
    folder: PathBuf,
    manifest: Manifest,
}

/// The `.json` member that opens a concept.
#[derive(Deserialize)]
struct ConceptHead {
    id: String,
    names: BTreeMap<String, String>,
    #[serde(default)]
    captions: BTreeMap<String, String>,
    #[serde(default)]
    tags: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    group: Option<String>,
    split: Split,
    #[serde(default)]
    pictures: Vec<PictureHead>,
    #[serde(default)]
    sounds: Vec<SoundHead>,
}

#[derive(Deserialize)]
struct PictureHead {
    file: String,
    style: String,
    split: Split,
}

#[derive(Deserialize)]
struct SoundHead {
    file: String,
    kind: SoundKind,
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    voice: Option<String>,
    #[serde(default)]
    text: Option<String>,
    split: Split,
    #[serde(default)]
    synthetic: bool,
}

#[derive(Deserialize)]
struct TextRow {
    text: String,
    #[serde(default)]
    split: Split,
}

impl Pack {
    /// Reads the manifest in `folder` and checks that every file it names has its size.
    pub fn open(folder: &Path) -> Result<Pack> {
        let path = folder.join("manifest.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&path, "the manifest of a pack", e))?;
        if manifest.format != FORMAT {
            return Err(Error::file(&path, format!("format {FORMAT}"), manifest.format));
        }
        if manifest.splits.style.values().flatten().any(|s| is_set_aside(s)) {
            return Err(set_aside(&path));
        }
        let pack = Pack { folder: folder.to_path_buf(), manifest };
        for (name, bytes, _) in pack.files() {
            if !matches!(
                Path::new(name).components().collect::<Vec<_>>()[..],
                [Component::Normal(_)]
            ) {
                return Err(Error::file(&path, "plain file names", format!("{name:?}")));
            }
            let file = folder.join(name);
            let found = std::fs::metadata(&file).map_err(|e| Error::io(&file, e))?.len();
            if found != bytes {
                return Err(Error::file(
                    file,
                    format!("{bytes} bytes, as its manifest says"),
                    format!("{found} bytes"),
                ));
            }
        }
        Ok(pack)
    }

    /// The pack's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Compares the SHA-256 of every file with the manifest.
    pub fn verify(&self) -> Result<()> {
        let files: Vec<_> = self.files().collect();
        files.par_iter().try_for_each(|(name, _, expected)| {
            let path = self.folder.join(name);
            let mut file = File::open(&path).map_err(|e| Error::io(&path, e))?;
            let mut hash = Sha256::new();
            std::io::copy(&mut file, &mut hash).map_err(|e| Error::io(&path, e))?;
            let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            if !found.eq_ignore_ascii_case(expected) {
                return Err(Error::file(path, format!("SHA-256 {expected}"), found));
            }
            Ok(())
        })
    }

    /// Every concept in the order of the shards. One shard at a time is in memory.
    pub fn concepts(&self) -> impl Iterator<Item = Result<Concept>> + '_ {
        self.manifest.shards.iter().flat_map(|shard| match self.read_shard(shard) {
            Ok(concepts) => concepts.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Every text in the order of the files.
    pub fn texts(&self) -> Result<Vec<Text>> {
        let mut texts = Vec::new();
        for file in &self.manifest.texts {
            let path = self.folder.join(&file.file);
            let before = texts.len();
            let reader = BufReader::new(File::open(&path).map_err(|e| Error::io(&path, e))?);
            for (i, line) in reader.lines().enumerate() {
                let line = line.map_err(|e| Error::row(&path, i + 1, e))?;
                let row: TextRow =
                    serde_json::from_str(&line).map_err(|e| Error::row(&path, i + 1, e))?;
                let language = file.language.clone();
                texts.push(Text { text: row.text, language, split: row.split });
            }
            let found = texts.len() - before;
            if found != file.rows {
                let expected = format!("{} rows, as its manifest says", file.rows);
                return Err(Error::file(path, expected, format!("{found} rows")));
            }
        }
        Ok(texts)
    }

    fn files(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        let shards = self.manifest.shards.iter().map(|s| (&s.file, s.bytes, &s.sha256));
        let texts = self.manifest.texts.iter().map(|t| (&t.file, t.bytes, &t.sha256));
        shards.chain(texts).map(|(file, bytes, hash)| (file.as_str(), bytes, hash.as_str()))
    }

    fn read_shard(&self, shard: &Shard) -> Result<Vec<Concept>> {
        let path = self.folder.join(&shard.file);
        let bad = |e: std::io::Error| Error::file(&path, "a tar of concepts", e);
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let mut archive = tar::Archive::new(BufReader::new(file));
        let mut concepts = Vec::with_capacity(shard.concepts.min(1 << 16));
        let mut open: Option<Members> = None;
        for entry in archive.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if !entry.header().entry_type().is_file() {
                return Err(Error::file(&path, "regular files only", format!("{name:?}")));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(bad)?;
            if bytes.len() as u64 != entry.size() {
                let expected = format!("{} bytes of {name}", entry.size());
                return Err(Error::file(&path, expected, bytes.len()));
            }
            let stem = name.split('.').next().unwrap_or_default();
            match &mut open {
                Some(members) if members.stem == stem => {
                    members.files.insert(name, bytes);
                }
                _ => {
                    if let Some(members) = open.take() {
                        concepts.push(self.concept(&path, members)?);
                    }
                    let head: ConceptHead = serde_json::from_slice(&bytes).map_err(|e| {
                        Error::file(
                            &path,
                            "a `.json` member that opens a concept",
                            format!("{name}: {e}"),
                        )
                    })?;
                    open = Some(Members { stem: stem.into(), head, files: BTreeMap::new() });
                }
            }
        }
        if let Some(members) = open {
            concepts.push(self.concept(&path, members)?);
        }
        if concepts.len() != shard.concepts {
            let expected = format!("{} concepts, as its manifest says", shard.concepts);
            return Err(Error::file(path, expected, format!("{} concepts", concepts.len())));
        }
        Ok(concepts)
    }

    /// Joins a concept's head with the members that it names.
    fn concept(&self, shard: &Path, members: Members) -> Result<Concept> {
        let Members { head, mut files, .. } = members;
        let mut take = |name: &str| {
            files.remove(name).ok_or_else(|| {
                Error::file(shard, format!("a member {name} of concept {}", head.id), "none")
            })
        };
        let splits = &self.manifest.splits;
        let mut pictures = Vec::new();
        for picture in head.pictures {
            if is_set_aside(&picture.style) {
                return Err(set_aside(shard));
            }
            pictures.push(PictureItem {
                bytes: take(&picture.file)?,
                split: held_by(&splits.style, &picture.style).unwrap_or(picture.split),
                file: picture.file,
                style: picture.style,
            });
        }
        let mut sounds = Vec::new();
        for sound in head.sounds {
            let voice = sound.voice.unwrap_or_default();
            sounds.push(SoundItem {
                bytes: take(&sound.file)?,
                split: held_by(&splits.voice, &voice).unwrap_or(sound.split),
                file: sound.file,
                kind: sound.kind,
                language: sound.language.unwrap_or_default(),
                voice,
                text: sound.text.unwrap_or_default(),
                synthetic: sound.synthetic,
            });
        }
        if let Some(name) = files.keys().next() {
            let expected = format!("only members that concept {} names", head.id);
            return Err(Error::file(shard, expected, name));
        }
        Ok(Concept {
            id: head.id,
            names: head.names,
            captions: head.captions,
            tags: head.tags,
            group: head.group.unwrap_or_default(),
            split: head.split,
            pictures,
            sounds,
        })
    }
}

/// A concept whose members are still being read.
struct Members {
    stem: String,
    head: ConceptHead,
    files: BTreeMap<String, Vec<u8>>,
}

/// The split that holds `name` out, if the manifest lists it outside of `train`.
fn held_by(lists: &BTreeMap<Split, Vec<String>>, name: &str) -> Option<Split> {
    let mut held = lists.iter().filter(|(split, _)| **split != Split::Train);
    held.find(|(_, names)| names.iter().any(|n| n == name)).map(|(split, _)| *split)
}

fn is_set_aside(style: &str) -> bool {
    style.to_ascii_lowercase().contains(SET_ASIDE)
}

fn set_aside(path: &Path) -> Error {
    let expected = format!("no picture of the style {SET_ASIDE}, which is set aside for tests");
    Error::file(path, expected, SET_ASIDE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tasks::tests::{Folder, member, write_pack, write_tiny_pack};

    fn manifest(folder: &Folder, change: impl Fn(String) -> String) {
        let path = folder.0.join("manifest.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, change(text)).unwrap();
    }

    #[test]
    fn reads_what_was_packed() {
        let folder = Folder::new("pack");
        write_tiny_pack(&folder.0, 10);
        let pack = Pack::open(&folder.0).unwrap();
        pack.verify().unwrap();
        let concepts: Vec<Concept> = pack.concepts().collect::<Result<_>>().unwrap();
        assert_eq!(concepts.len(), 10);
        assert_eq!(concepts[8].split, Split::Val);
        assert_eq!((concepts[1].pictures.len(), concepts[1].sounds.len()), (3, 8));
        assert_eq!(concepts[1].pictures[2].split, Split::Test);
        assert_eq!(concepts[1].sounds[7].kind, SoundKind::Effect);
        let texts = pack.texts().unwrap();
        assert_eq!(texts.len(), 36);
        assert_eq!(texts.iter().filter(|t| t.split == Split::Val).count(), 3);
    }

    #[test]
    fn damaged_packs_are_refused_by_name() {
        let folder = Folder::new("damaged");
        write_tiny_pack(&folder.0, 3);
        let shard = folder.0.join("shard-00000.tar");
        let whole = std::fs::read(&shard).unwrap();
        let read = || -> Result<()> {
            let pack = Pack::open(&folder.0)?;
            pack.concepts().try_for_each(|c| c.map(drop))
        };
        let error = |what: Result<()>| what.unwrap_err().to_string();

        std::fs::write(&shard, &whole[..5000]).unwrap();
        let short = error(read());
        assert!(short.contains("shard-00000.tar") && short.contains("found 5000 bytes"), "{short}");

        let mut flipped = whole.clone();
        flipped[700] ^= 1;
        std::fs::write(&shard, &flipped).unwrap();
        let hash = error(Pack::open(&folder.0).unwrap().verify());
        assert!(hash.contains("shard-00000.tar: expected SHA-256"), "{hash}");

        // The manifest may be wrong too: cut at any place, the tar itself is found out.
        for cut in [100, 600, 5000, 20_000, whole.len() / 2] {
            write_pack(&folder.0, &whole[..cut], 3);
            assert!(error(read()).contains("shard-00000.tar: expected"), "{cut}");
        }
        write_pack(&folder.0, &whole, 4);
        assert!(error(read()).contains("expected 4 concepts"));
    }

    #[test]
    fn heads_and_members_must_agree() {
        let folder = Folder::new("members");
        let head = r#"{"id":"a","names":{},"split":"train","pictures":[{"file":"a.x.png","style":"x","split":"train"}]}"#;
        for (members, want) in [
            (vec![("a.json", head)], "a member a.x.png of concept a"),
            (vec![("a.json", head), ("a.x.png", ""), ("a.y.png", "")], "found a.y.png"),
            (vec![("a.x.png", "")], "`.json` member"),
            (
                vec![("a.json", &head.replace("\"x\"", "\"openmoji\"")[..]), ("a.x.png", "")],
                "set aside",
            ),
        ] {
            let mut tar = tar::Builder::new(Vec::new());
            for (name, text) in members {
                member(&mut tar, name, text.as_bytes());
            }
            write_pack(&folder.0, &tar.into_inner().unwrap(), 1);
            let error = Pack::open(&folder.0).unwrap().concepts().next().unwrap().unwrap_err();
            assert!(error.to_string().contains(want), "{want}: {error}");
        }
    }

    #[test]
    fn bad_manifests_are_refused() {
        for (from, to, want) in [
            ("danlu-pack/1", "danlu-pack/9", "expected format danlu-pack/1, found danlu-pack/9"),
            ("gamma", "openmoji", "set aside"),
            ("shard-00000.tar", "../shard-00000.tar", "plain file names"),
            ("shard-00000.tar", "shard-00001.tar", "shard-00001.tar"),
            ("\"shards\"", "\"shards\":3,\"x\"", "the manifest of a pack"),
        ] {
            let folder = Folder::new("manifest");
            write_tiny_pack(&folder.0, 1);
            manifest(&folder, |text| text.replace(from, to));
            let error = Pack::open(&folder.0).unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
    }

    #[test]
    fn the_sample_pack_is_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packs/sample");
        let pack = Pack::open(&folder).unwrap();
        pack.verify().unwrap();
        let concepts: Vec<Concept> = pack.concepts().collect::<Result<_>>().unwrap();
        assert!(concepts.iter().all(|c| c.names.contains_key("en") && !c.pictures.is_empty()));
        let held = |c: &Concept| c.pictures.iter().any(|p| p.split != Split::Train);
        assert!(concepts.iter().any(held), "no style is held out");
        assert!(pack.texts().unwrap().iter().any(|t| t.split == Split::Val));
    }
}
