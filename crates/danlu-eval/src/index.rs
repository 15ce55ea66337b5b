use danlu_core::{Error, Media, Part, Result, Role, Row, Sample, read_rows};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One question with its expected answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Line in its file, from 1.
    pub line: usize,
    /// The conversation, ending with the user's turn.
    pub sample: Sample,
    /// What the reply should be.
    pub expected: Vec<Part>,
    /// The task's name; `other` if the row gives none.
    pub task: String,
    /// The concept that a picture or sound in the reply should be recognised as.
    pub label: Option<String>,
}

impl Question {
    /// The question in a sample; the error is a sentence that says what is missing.
    pub fn new(line: usize, sample: Sample) -> Result<Self, String> {
        match sample.messages.last() {
            Some(last) if last.role == Role::User => {}
            Some(last) => {
                return Err(format!(
                    "expected the last message to be the user's, found the role {:?}",
                    last.role
                ));
            }
            None => return Err("expected at least one message, found none".into()),
        }
        let Some(expected) = sample.expected.clone() else {
            return Err("`expected` is missing; an evaluation needs the right answer".into());
        };
        let task = sample.task.clone().unwrap_or_else(|| "other".into());
        Ok(Self { line, expected, task, label: sample.label.clone(), sample })
    }
}

/// The usable questions of a file, and why the others are not.
#[derive(Debug)]
pub struct EvalSet {
    /// The questions, in the file's order.
    pub questions: Vec<Question>,
    /// One error for each row left out, naming file and line.
    pub bad: Vec<Error>,
}

/// Reads an evaluation set in the sample format. Every row needs `messages` that end with the
/// user's turn and `expected`; every media file is opened and decoded now, so that an evaluation
/// does not stop half-way.
///
/// Up to `max_bad_rows` unusable rows are left out and named; one more is an error, and so is a
/// file without a usable row.
pub fn read_set(path: &Path, max_bad_rows: usize) -> Result<EvalSet> {
    let mut set = EvalSet { questions: Vec::new(), bad: Vec::new() };
    let mut opened = HashMap::new();
    for row in read_rows(path)? {
        let question = match row {
            Ok((line, Row::Chat(sample))) => Question::new(line, sample)
                .and_then(|q| check_media(&q, &mut opened).map(|()| q))
                .map_err(|message| Error::row(path, line, message)),
            Ok((line, Row::Text(_))) => {
                Err(Error::row(path, line, "expected `messages` and `expected`, found `text`"))
            }
            Err(error @ Error::Row { .. }) => Err(error),
            Err(error) => return Err(error),
        };
        match question {
            Ok(question) => set.questions.push(question),
            Err(error) => set.bad.push(error),
        }
        if set.bad.len() > max_bad_rows {
            return Err(Error::TooManyBadRows {
                path: path.into(),
                bad: set.bad.len(),
                seen: set.questions.len() + set.bad.len(),
                allowed: max_bad_rows,
                first: set.bad[0].to_string(),
            });
        }
    }
    if set.questions.is_empty() {
        let found = match set.bad.first() {
            Some(first) => format!("none; the first row left out: {first}"),
            None => "no rows".into(),
        };
        return Err(Error::file(path, "at least one question", found));
    }
    Ok(set)
}

/// Opens every media file of a question; each file once.
fn check_media(
    question: &Question,
    opened: &mut HashMap<PathBuf, Result<(), String>>,
) -> Result<(), String> {
    let messages = question.sample.messages.iter().flat_map(|m| &m.parts);
    for part in messages.chain(&question.expected) {
        let (media, picture) = match part {
            Part::Text(_) => continue,
            Part::Image(media) => (media, true),
            Part::Audio(media) => (media, false),
        };
        let Media::File(file) = media else { continue };
        let checked = opened.entry(file.clone()).or_insert_with(|| {
            let read = match picture {
                true => danlu_media::read_picture(file).map(drop),
                false => danlu_media::read_sound(file).map(drop),
            };
            read.map_err(|e| e.to_string())
        });
        checked.clone()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use danlu_core::{Picture, Sound};

    #[test]
    fn bad_rows_are_named_and_counted() {
        let folder = std::env::temp_dir().join(format!("danlu-eval-index-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let silence = Sound { rate: 16_000, samples: vec![0.1; 800] };
        danlu_media::write_picture(folder.join("a.png"), &Picture::filled(8, 8, [9; 3])).unwrap();
        danlu_media::write_sound(folder.join("a.wav"), &silence).unwrap();
        danlu_media::write_sound(folder.join("none.wav"), &Sound { rate: 16_000, samples: vec![] })
            .unwrap();
        std::fs::write(folder.join("broken.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        let user = |part: &str| format!(r#"{{"role":"user","content":[{part}]}}"#);
        let image = |f: &str| user(&format!(r#"{{"type":"image","image":"{f}"}}"#));
        let audio = |f: &str| user(&format!(r#"{{"type":"audio","audio":"{f}"}}"#));
        let row = |m: String| format!(r#"{{"messages":[{m}],"expected":"x","task":"name"}}"#);
        let lines = [
            row(image("a.png")),
            row(audio("a.wav")),
            row(image("missing.png")),
            row(image("broken.png")),
            row(audio("none.wav")),
            row(user(r#"{"type":"text","text":"?"}"#).replace("user", "robot")),
            row(user(r#"{"type":"text","text":"?"}"#).replace("user", "assistant")),
            row(image("a.png")).replace(r#""expected":"x","#, ""),
            r#"{"text":"plain"}"#.to_string(),
        ];
        let path = folder.join("set.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();

        let set = read_set(&path, 7).unwrap();
        assert_eq!(set.questions.iter().map(|q| q.line).collect::<Vec<_>>(), [1, 2]);
        let wants = [
            (3, "missing.png"),
            (4, "broken.png"),
            (5, "0 samples"),
            (6, "unknown role `robot`"),
            (7, "to be the user's"),
            (8, "`expected` is missing"),
            (9, "found `text`"),
        ];
        for (error, (line, want)) in set.bad.iter().zip(wants) {
            let text = error.to_string();
            assert!(text.contains(&format!("set.jsonl:{line}: ")) && text.contains(want), "{text}");
        }
        assert_eq!(set.bad.len(), wants.len());
        let error = read_set(&path, 2).unwrap_err().to_string();
        assert!(error.contains("3 of 5 rows are bad") && error.contains("set.jsonl:3"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
