//! Sets of questions on disk.

use danlu_core::{Error, Media, Part, Result, Role, Sample};
use danlu_data::{TuneRow, read_each};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One thing to ask, with what should come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Line in its file, from 1; for questions that are not from a file, any number.
    pub line: usize,
    /// The conversation up to a user's turn, and in `expected` what should come back.
    pub sample: Sample,
    /// Name of the task; `untitled` if it has none.
    pub task: String,
    /// The concept that the reply should be recognised as.
    pub label: Option<String>,
    /// What was held out, for reports; empty where nobody says.
    pub view: String,
}

impl Question {
    /// A question from a sample. The error is a sentence for [`Error::Row`].
    ///
    /// A conversation that ends with the assistant is cut before that turn, which becomes what is
    /// expected unless `expected` says otherwise.
    pub fn new(line: usize, mut sample: Sample, view: &str) -> Result<Self, String> {
        if sample.messages.last().is_some_and(|m| m.role == Role::Assistant) {
            let reply = sample.messages.pop().map(|m| m.parts);
            sample.expected = sample.expected.or(reply);
        }
        if !sample.messages.last().is_some_and(|m| matches!(m.role, Role::User | Role::Tool)) {
            let wanted = "a user's turn (or a tool's) before the reply";
            return Err(format!("`messages`: expected {wanted}, found none"));
        }
        if sample.expected.as_ref().is_none_or(Vec::is_empty) {
            return Err("expected a key `expected` or an assistant's turn at the end".into());
        }
        let says = |part: &Part| !matches!(part, Part::Text(text) if text.trim().is_empty());
        if !sample.expected.iter().flatten().any(says) {
            return Err("`expected`: expected a reply, found an empty one".into());
        }
        let task = sample.task.clone().unwrap_or_else(|| "untitled".into());
        let label = sample.label.clone();
        Ok(Self { line, sample, task, label, view: view.into() })
    }

    /// What should come back.
    pub fn expected(&self) -> &[Part] {
        self.sample.expected.as_deref().unwrap_or_default()
    }

    /// The last user's words, media written as `[picture]` and `[sound]`.
    pub fn prompt(&self) -> String {
        let parts = self.sample.messages.last().map(|m| m.parts.as_slice()).unwrap_or_default();
        let words = parts.iter().map(|part| part.words().trim().to_string());
        words.filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// Reads a set of questions in any of the forms that rows have. Every picture and sound that it names
/// is opened and decoded. Unusable rows are left out and told in the second list, one `file:line: ...` each;
/// more than `max_bad_rows` of them is an [`Error::TooManyBadRows`].
pub fn read_set(path: &Path, max_bad_rows: usize) -> Result<(Vec<Question>, Vec<String>)> {
    let mut questions = Vec::new();
    let mut skipped: Vec<String> = Vec::new();
    let mut checked = HashMap::new();
    for (seen, row) in read_each(path)?.into_iter().enumerate() {
        let question = row.and_then(|(line, row)| {
            let question = match row {
                TuneRow::Chat(sample) => Question::new(line, sample, ""),
                TuneRow::Text(_) => {
                    Err("plain text cannot be evaluated; expected a key `messages`".into())
                }
                // The better of two replies is what should come back.
                TuneRow::Pair { asked, chosen, .. } => {
                    let sample = Sample { expected: Some(chosen.parts), ..asked };
                    Question::new(line, sample, "")
                }
            };
            question
                .and_then(|question| check_media(&question, &mut checked).map(|()| question))
                .map_err(|message| Error::row(path, line, message))
        });
        match question {
            Ok(question) => questions.push(question),
            Err(error @ Error::Row { .. }) => skipped.push(error.to_string()),
            Err(error) => return Err(error),
        }
        if skipped.len() > max_bad_rows {
            return Err(Error::TooManyBadRows {
                path: path.into(),
                bad: skipped.len(),
                seen: seen + 1,
                allowed: max_bad_rows,
                first: skipped.swap_remove(0),
            });
        }
    }
    if questions.is_empty() {
        return Err(Error::file(path, "at least one question", "none that can be asked"));
    }
    Ok((questions, skipped))
}

/// Opens every file that the question names, each once.
fn check_media(
    question: &Question,
    checked: &mut HashMap<PathBuf, Result<(), String>>,
) -> Result<(), String> {
    let prompt = question.sample.messages.iter().flat_map(|m| &m.parts);
    for part in prompt.chain(question.expected()) {
        let (path, is_sound) = match part {
            Part::Image(Media::File(path)) => (path, false),
            Part::Audio(Media::File(path)) => (path, true),
            _ => continue,
        };
        let outcome = match checked.get(path) {
            Some(outcome) => outcome.clone(),
            None => {
                let outcome = match is_sound {
                    false => danlu_media::read_picture(path).map(|_| ()),
                    true => danlu_media::read_sound(path).map(|_| ()),
                };
                let outcome = outcome.map_err(|e| e.to_string());
                checked.insert(path.clone(), outcome.clone());
                outcome
            }
        };
        outcome?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use danlu_core::Picture;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("danlu-eval-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn bad_rows_are_named_and_limited() {
        let folder = folder("rows");
        let picture = Picture::filled(4, 4, [9, 9, 9]);
        danlu_media::write_picture(folder.join("ok.png"), &picture).unwrap();
        std::fs::write(folder.join("broken.png"), b"\x89PNG\r\n\x1a\nrubbish").unwrap();
        std::fs::write(folder.join("empty.wav"), b"").unwrap();
        let ask = |part: &str, rest: &str| {
            format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]{rest}}}"#)
        };
        let image = |f: &str| format!(r#"{{"type":"image","image":"{f}"}}"#);
        let expected = r#","expected":"cat""#;
        let rows = [
            ask(&image("ok.png"), &format!(r#"{expected},"task":"name_en","label":"p/1""#)),
            ask(&image("missing.png"), expected),
            ask(&image("broken.png"), expected),
            ask(r#"{"type":"audio","audio":"empty.wav"}"#, expected),
            ask(&image("ok.png"), ""),
            r#"{"text":"plain"}"#.into(),
            r#"{"messages":[{"role":"robot","content":"x"}]}"#.into(),
            "not json".into(),
            ask(r#"{"type":"text","text":"x"}"#, r#","expected":"""#),
            r#"{"messages":[{"role":"user","content":"1+1"},{"role":"assistant","content":"2"}]}"#
                .into(),
        ];
        let path = folder.join("set.jsonl");
        std::fs::write(&path, rows.join("\n")).unwrap();
        let (questions, skipped) = read_set(&path, 8).unwrap();
        assert_eq!(questions.iter().map(|q| q.line).collect::<Vec<_>>(), [1, 10]);
        assert_eq!(questions[0].task, "name_en");
        assert_eq!(questions[0].label.as_deref(), Some("p/1"));
        assert_eq!(questions[0].prompt(), "[picture]");
        assert_eq!(questions[1].task, "untitled");
        assert_eq!(questions[1].expected(), [Part::Text("2".into())]);
        assert_eq!(skipped.len(), 8);
        let words = [
            "missing.png",
            "broken.png",
            "empty",
            "expected",
            "plain text",
            "robot",
            "",
            "an empty one",
        ];
        for (i, (message, word)) in skipped.iter().zip(words).enumerate() {
            assert!(message.contains(&format!("set.jsonl:{}:", i + 2)), "{message}");
            assert!(message.contains(word), "{message}");
        }
        let error = read_set(&path, 7).unwrap_err();
        assert!(matches!(error, Error::TooManyBadRows { bad: 8, allowed: 7, .. }), "{error}");
        assert!(error.to_string().contains("set.jsonl:2:"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn questions_come_in_the_forms_that_people_have() {
        let folder = folder("forms");
        let path = folder.join("set.jsonl");
        let rows = [
            r#"{"instruction":"1+1","input":"","output":"2"}"#,
            r#"{"conversations":[{"from":"human","value":"1+1"},{"from":"gpt","value":"2"}]}"#,
            r#"{"prompt":"1+1","completion":"2"}"#,
            r#"{"prompt":"1+1","chosen":"2","rejected":"3"}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        let (questions, skipped) = read_set(&path, 0).unwrap();
        assert!(questions.len() == rows.len() && skipped.is_empty(), "{skipped:?}");
        for question in questions {
            assert_eq!(question.prompt(), "1+1", "line {}", question.line);
            assert_eq!(question.expected(), [Part::Text("2".into())], "line {}", question.line);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_set_without_questions_is_an_error() {
        let folder = folder("empty");
        let path = folder.join("set.jsonl");
        std::fs::write(&path, "\n\n").unwrap();
        assert!(read_set(&path, 9).unwrap_err().to_string().contains("at least one"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
