//! Questions for evaluation, drawn evenly, and sets of them on disk.

use crate::corpus::Corpus;
use crate::tasks::{Drawn, Task, View};
use danlu_core::{AssetId, Error, Media, Message, Part, Result, Rng, Sample};
use danlu_media as media;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Name of the sample file in a set's folder.
const SET: &str = "set.jsonl";

/// Up to `n` different questions of `task`. Every concept is asked about once before any is asked
/// about again; there are fewer than `n` only if the corpus has no more. Plain text and media
/// without a prompt are no questions. `view` is any but [`View::Train`].
pub fn questions(corpus: &Corpus, task: &dyn Task, view: View, n: usize, seed: u64) -> Vec<Sample> {
    let mut rng = Rng::new(seed, 0);
    let mut asked = HashSet::new();
    let mut found: Vec<Sample> = Vec::new();
    let mut times: BTreeMap<Option<String>, usize> = BTreeMap::new();
    // How often a concept may be asked about, and draws that gave nothing new since the last that
    // did. With `c` concepts the last one missing turns up in `c` draws on average.
    let (mut level, mut idle) = (1, 0);
    let patience = 200 + 12 * corpus.concepts_in(view).len();
    while found.len() < n {
        if let Some(Drawn::Chat(sample)) = task.draw(corpus, view, &mut rng)
            && sample.expected.is_some()
            && !sample.messages.is_empty()
        {
            // Lists of scenes are about no single concept: there, every question counts.
            let count = times.entry(sample.label.clone()).or_default();
            if (sample.label.is_none() || *count < level) && asked.insert(sample.messages.clone()) {
                *count += 1;
                found.push(sample);
                idle = 0;
                continue;
            }
        }
        idle += 1;
        if found.is_empty() && idle > 200 {
            break;
        }
        if idle > patience {
            // Nothing new at this level: go on to the next, unless it brought nothing at all.
            if !times.values().any(|&t| t == level) {
                break;
            }
            (level, idle) = (level + 1, 0);
        }
    }
    found
}

/// Writes `samples` as a folder: `set.jsonl`, which it returns the path of, and the media that
/// they name, as PNG and WAV. The folder must not exist, and appears only when it is complete.
pub fn write_set(folder: &Path, samples: &[Sample], corpus: &Corpus) -> Result<PathBuf> {
    if folder.exists() {
        return Err(Error::file(folder, "a folder that does not exist yet", "it exists"));
    }
    let name = folder
        .file_name()
        .ok_or_else(|| Error::file(folder, "a folder to create", "a path without a last part"))?;
    let part = folder.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = write_files(&part, samples, corpus)
        .and_then(|()| std::fs::rename(&part, folder).map_err(|e| Error::io(folder, e)));
    if let Err(error) = written {
        // What is left of the attempt is of no use; the first error is the one to tell.
        let _ = std::fs::remove_dir_all(&part);
        return Err(error);
    }
    Ok(folder.join(SET))
}

fn write_files(folder: &Path, samples: &[Sample], corpus: &Corpus) -> Result<()> {
    let media = folder.join("media");
    std::fs::create_dir_all(&media).map_err(|e| Error::io(&media, e))?;
    let mut writer = Writer { folder, corpus, written: HashMap::new() };
    let mut lines = String::new();
    for sample in samples {
        let mut row = serde_json::Map::new();
        let messages = sample.messages.iter().map(|m| writer.message(m));
        row.insert("messages".into(), Value::Array(messages.collect::<Result<_>>()?));
        if let Some(expected) = &sample.expected {
            row.insert("expected".into(), writer.parts(expected)?);
        }
        if !sample.tools.is_empty() {
            row.insert("tools".into(), json!(sample.tools));
        }
        for (key, value) in [("task", &sample.task), ("label", &sample.label)] {
            if let Some(value) = value {
                row.insert(key.into(), json!(value));
            }
        }
        lines += &Value::Object(row).to_string();
        lines.push('\n');
    }
    let path = folder.join(SET);
    std::fs::write(&path, lines).map_err(|e| Error::io(&path, e))
}

struct Writer<'a> {
    folder: &'a Path,
    corpus: &'a Corpus,
    /// Files written so far, by whether it is a sound and its number.
    written: HashMap<(bool, AssetId), String>,
}

impl Writer<'_> {
    fn message(&mut self, message: &Message) -> Result<Value> {
        let calls = |part: &Part| matches!(part, Part::Call(_));
        let (calls, parts): (Vec<Part>, Vec<Part>) = message.parts.iter().cloned().partition(calls);
        let mut row = json!({ "role": message.role.name() });
        if calls.is_empty() || !parts.is_empty() {
            row["content"] = self.parts(&parts)?;
        }
        if !calls.is_empty() {
            row["tool_calls"] = self.parts(&calls)?;
        }
        for (key, note) in &message.notes {
            row[key] = json!(note);
        }
        Ok(row)
    }

    fn parts(&mut self, parts: &[Part]) -> Result<Value> {
        let parts = parts.iter().map(|part| {
            Ok(match part {
                Part::Text(text) => json!({ "type": "text", "text": text }),
                Part::Image(media) => json!({ "type": "image", "image": self.file(media, false)? }),
                Part::Audio(media) => json!({ "type": "audio", "audio": self.file(media, true)? }),
                Part::Call(call) => call.json(),
            })
        });
        Ok(Value::Array(parts.collect::<Result<_>>()?))
    }

    /// Path of a medium relative to the set's folder, written if it is new.
    fn file(&mut self, media: &Media, sound: bool) -> Result<String> {
        let id = match media {
            Media::Asset(id) => *id,
            Media::File(path) => {
                let path = std::path::absolute(path).map_err(|e| Error::io(path, e))?;
                return Ok(path.to_string_lossy().into_owned());
            }
        };
        if let Some(name) = self.written.get(&(sound, id)) {
            return Ok(name.clone());
        }
        let name = format!("media/{:05}.{}", id.0, if sound { "wav" } else { "png" });
        let path = self.folder.join(&name);
        match sound {
            true => media::write_sound(&path, &self.corpus.sound(id).sound)?,
            false => media::write_picture(&path, &self.corpus.picture(id).picture)?,
        }
        self.written.insert((sound, id), name.clone());
        Ok(name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::corpus::Purpose;
    use crate::tasks::tests::{Folder, tiny_corpus};
    use crate::tasks::{TASKS, find};

    #[test]
    fn questions_differ_and_cover_every_concept_before_any_twice() {
        let corpus = tiny_corpus();
        let trained = corpus.concepts_in(View::Seen).len();
        let name = find("name_en").unwrap();
        let all = questions(corpus, name, View::Seen, trained + 5, 3);
        assert_eq!(all.len(), trained + 5);
        let first: HashSet<_> = all[..trained].iter().map(|s| s.label.clone().unwrap()).collect();
        assert_eq!(first.len(), trained);
        let distinct: HashSet<_> = all.iter().map(|s| s.messages.clone()).collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all, questions(corpus, name, View::Seen, trained + 5, 3));
        assert_ne!(all, questions(corpus, name, View::Seen, trained + 5, 4));
    }

    #[test]
    fn every_task_stops_when_it_runs_dry() {
        let corpus = tiny_corpus();
        for task in TASKS {
            for view in [View::Seen, View::HeldStyle, View::HeldVoice, View::HeldConcept] {
                let few = questions(corpus, *task, view, 3, 1);
                let held = view != View::Seen;
                assert!(few.iter().all(|s| s.expected.is_some()), "{}", task.name());
                let silent = ["text_en", "text_zh", "code", "image_only", "audio_only"];
                assert_eq!(few.is_empty() && !held, silent.contains(&task.name()) && !held);
            }
        }
        let file = questions(corpus, find("file").unwrap(), View::Seen, 50, 1);
        assert_eq!(file.len(), 1, "one row is a conversation");
    }

    #[test]
    fn a_written_set_reads_back_and_is_whole_or_absent() {
        let corpus = tiny_corpus();
        let folder = Folder::new("set");
        let mut samples = Vec::new();
        for task in ["name_en", "draw_heard_zh", "say_en", "where"] {
            samples.extend(questions(corpus, find(task).unwrap(), View::Seen, 4, 1));
        }
        let path = write_set(&folder.0.join("set"), &samples, corpus).unwrap();
        let mut back = Corpus::default();
        back.add_file(&path, Purpose::Evaluate, 0, 8.0).unwrap();
        assert_eq!(back.samples.len(), samples.len());
        for (want, got) in samples.iter().zip(&back.samples) {
            assert_eq!((&want.task, &want.label), (&got.task, &got.label));
            let parts = |s: &Sample| -> Vec<Part> {
                s.messages
                    .iter()
                    .flat_map(|m| &m.parts)
                    .chain(s.expected.iter().flatten())
                    .cloned()
                    .collect()
            };
            for (a, b) in parts(want).iter().zip(&parts(got)) {
                match (a, b) {
                    (Part::Image(Media::Asset(a)), Part::Image(Media::Asset(b))) => {
                        assert_eq!(corpus.picture(*a).picture, back.picture(*b).picture);
                    }
                    (Part::Audio(Media::Asset(a)), Part::Audio(Media::Asset(b))) => {
                        let (a, b) = (&corpus.sound(*a).sound, &back.sound(*b).sound);
                        assert_eq!(a.samples.len(), b.samples.len());
                    }
                    (a, b) => assert_eq!(a, b),
                }
            }
        }
        let error = write_set(&folder.0.join("set"), &samples, corpus).unwrap_err().to_string();
        assert!(error.contains("it exists"), "{error}");
        // A picture that cannot be written leaves nothing behind.
        let mut broken = corpus.clone();
        broken.pictures.iter_mut().for_each(|p| {
            p.picture =
                std::sync::Arc::new(danlu_core::Picture { width: 0, height: 0, rgb: vec![] })
        });
        assert!(write_set(&folder.0.join("other"), &samples, &broken).is_err());
        let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
