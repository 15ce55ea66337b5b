//! What a form of a model is measured by: size, speed, loss, scores.

use crate::answer::fitting;
use crate::commands::eval;
use danlu_core::{Error, Result, without_mark};
use danlu_data::{TuneRow, is_table, read_tuning};
use danlu_eval::{Files, Gallery, Interval, Question, interval, ratio, read_set};
use danlu_model::Model;
use danlu_model::engine::{CacheFormat, WeightFormat};
use danlu_model::likelihood::{Choice, Chosen, bits, choose, together};
use danlu_train::bench::{DecodeSetting, decode};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A model's folder as it was opened.
pub(crate) struct Looked {
    /// Bytes of the model's files.
    bytes: u64,
    load_seconds: f64,
}

impl Looked {
    /// Opens a model folder and looks at it.
    pub(crate) fn load(folder: &Path) -> Result<(Model, Self)> {
        let begun = Instant::now();
        let model = Model::load(folder, &danlu_ops::cpu_device())?;
        let load_seconds = begun.elapsed().as_secs_f64();
        let mut bytes = 0;
        let io = |e| Error::io(folder, e);
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().to_string();
            let about = name.starts_with("compress.") || name == "README.md";
            if entry.file_type().map_err(io)?.is_file() && !about {
                bytes += entry.metadata().map_err(io)?.len();
            }
        }
        Ok((model, Self { bytes, load_seconds }))
    }
}

/// What models are measured on.
pub(crate) struct Tests {
    texts: Vec<String>,
    questions: Vec<Question>,
    choices: Vec<ChoiceRow>,
}

/// How many unusable rows of a file of questions or choices are skipped.
const BAD_ROWS: usize = 20;

/// How one form did. The names are read by scripts and stay.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    /// Bytes of the folder's files.
    pub(crate) bytes: u64,
    /// Seconds to open it.
    pub(crate) load_seconds: f64,
    /// Tokens a second of one reply.
    pub(crate) tokens_per_second: f64,
    /// Bytes of weights that one token goes through.
    pub(crate) weights_mb: f64,
    /// Of the texts.
    pub(crate) bits_per_byte: Option<f64>,
    /// The same with its interval, where there are several texts.
    pub(crate) bits_interval: Option<Interval>,
    /// Share of the questions that were answered right.
    pub(crate) questions: Option<Interval>,
    /// The same by task.
    pub(crate) tasks: Vec<(String, usize, Interval)>,
    /// Share of the choices that were right.
    pub(crate) choices: Option<Interval>,
    /// What a form is chosen by: the share right of questions and choices together, or without
    /// them the inverse of bits a byte.
    pub(crate) score: Option<f64>,
}

/// A choice and where it stands.
pub(crate) struct ChoiceRow {
    path: PathBuf,
    line: usize,
    choice: Choice,
}

/// A line of a file of choices.
#[derive(Deserialize)]
struct Line {
    context: String,
    endings: Vec<String>,
    /// A number, which some write as a text.
    label: serde_json::Value,
}

fn read_choice(line: &[u8]) -> std::result::Result<Choice, String> {
    let line: Line = serde_json::from_slice(line)
        .map_err(|e| format!("{e}; expected `context`, `endings` and `label`"))?;
    let label = match &line.label {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64().and_then(|n| usize::try_from(n).ok()),
    };
    let wrong = || format!("`label`: expected a whole number from 0 on, found {}", line.label);
    let label = label.ok_or_else(wrong)?;
    if label >= line.endings.len() {
        return Err(format!("label {label} of {} endings", line.endings.len()));
    }
    if line.endings.iter().any(String::is_empty) {
        return Err("expected endings that say something, found an empty one".into());
    }
    Ok(Choice { context: line.context, endings: line.endings, label })
}

/// Reads a file of choices, one JSON object a line. Unusable rows are left out and told in the
/// second list; more than `max_bad_rows` of them is an [`Error::TooManyBadRows`].
pub(crate) fn read_choices(
    path: &Path,
    max_bad_rows: usize,
) -> Result<(Vec<ChoiceRow>, Vec<String>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let lines = without_mark(path, &bytes)?.split(|&b| b == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for (i, line) in lines {
        match read_choice(line) {
            Ok(choice) => rows.push(ChoiceRow { path: path.into(), line: i + 1, choice }),
            Err(message) => skipped.push(Error::row(path, i + 1, message).to_string()),
        }
        few_enough(path, &mut skipped, rows.len(), max_bad_rows)?;
    }
    if rows.is_empty() {
        let found = skipped.first().map_or("none", String::as_str);
        return Err(Error::file(path, "at least one choice", found));
    }
    Ok((rows, skipped))
}

/// An error if more than `allowed` rows beside `used` ones are bad.
pub(crate) fn few_enough(
    path: &Path,
    skipped: &mut Vec<String>,
    used: usize,
    allowed: usize,
) -> Result<()> {
    if skipped.len() <= allowed {
        return Ok(());
    }
    let (bad, seen) = (skipped.len(), used + skipped.len());
    let first = skipped.swap_remove(0);
    Err(Error::TooManyBadRows { path: path.into(), bad, seen, allowed, first })
}

/// What a model chooses of each, and what is right; those that it cannot read are left out and told
/// in the second list.
pub(crate) fn chosen(model: &Model, rows: &[ChoiceRow]) -> (Vec<(Chosen, usize)>, Vec<String>) {
    let choices: Vec<Choice> = rows.iter().map(|row| row.choice.clone()).collect();
    let (mut out, mut skipped) = (Vec::new(), Vec::new());
    for (row, found) in rows.iter().zip(choose(model, &choices)) {
        match found {
            Ok(chosen) => out.push((chosen, row.choice.label)),
            Err(message) => skipped.push(Error::row(&row.path, row.line, message).to_string()),
        }
    }
    (out, skipped)
}

/// Reads texts: of the rows of a `.jsonl` or `.parquet` file that have `text`, or a whole file.
pub(crate) fn read_texts(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_none_or(|e| e != "jsonl") && !is_table(path) {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = std::str::from_utf8(without_mark(path, &bytes)?);
        return Ok(vec![text.map_err(|e| Error::file(path, "UTF-8", e))?.to_string()]);
    }
    let (rows, _) = read_tuning(path)?;
    let texts = rows.into_iter().filter_map(|(_, row)| match row {
        TuneRow::Text(text) => Some(text),
        _ => None,
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() {
        return Err(Error::file(path, "rows with `text`", "none"));
    }
    Ok(texts)
}

impl Tests {
    pub(crate) fn read(
        texts: &[PathBuf],
        questions: &[PathBuf],
        choices: &[PathBuf],
    ) -> Result<Self> {
        let mut tests = Self { texts: Vec::new(), questions: Vec::new(), choices: Vec::new() };
        for path in texts {
            tests.texts.extend(read_texts(path)?);
        }
        for path in questions {
            let (some, skipped) = read_set(path, BAD_ROWS)?;
            skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
            tests.questions.extend(some);
        }
        for path in choices {
            let (some, skipped) = read_choices(path, BAD_ROWS)?;
            skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
            tests.choices.extend(some);
        }
        Ok(tests)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.questions.is_empty() && self.choices.is_empty()
    }

    /// Measures a model on all of them.
    pub(crate) fn measure(&self, model: &Model, looked: &Looked) -> Result<Measured> {
        let context = model.transformer.config.context;
        let setting = DecodeSetting {
            // A model that is kept in few bits has its own format.
            weights: WeightFormat::F16,
            cache: CacheFormat::F16,
            prefill: 128.min(context / 4),
            prompt: 64.min(context / 4),
            tokens: 64.min(context / 4),
            batch: 1,
            repeats: 3,
        };
        let speed = decode(&model.transformer, &setting)?;
        let costs = bits(model, &self.texts);
        let bits_per_byte = match self.texts.is_empty() {
            true => None,
            false => Some(together(&costs)?),
        };
        let costs = costs.into_iter().filter(|(_, bytes)| *bytes > 0);
        let costs: Vec<(f64, f64)> = costs.map(|(bits, bytes)| (bits, bytes as f64)).collect();
        let (mut right, mut tasks) = (Vec::new(), Vec::new());
        if !self.questions.is_empty() {
            let (fit, over) = fitting(model, self.questions.clone(), &Files)?;
            over.iter().for_each(|line| eprintln!("skipped: {line}"));
            let style = eval::style(0.7, 1.5, 1);
            let report = eval::measure(model, &fit, &Files, &Gallery::default(), style)?.report;
            let mut by_task: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
            for record in &report.records {
                let verdict = f64::from(u8::from(record.verdict));
                right.push(verdict);
                let name = format!("{} {}", record.task, record.view);
                by_task.entry(name.trim().to_string()).or_default().push(verdict);
            }
            tasks = by_task.into_iter().map(|(n, v)| (n, v.len(), interval(&v))).collect();
        }
        let (chosen, over) = chosen(model, &self.choices);
        over.iter().for_each(|line| eprintln!("skipped: {line}"));
        let verdict = |(got, label): &(Chosen, usize)| got.by_character == *label;
        let chosen: Vec<f64> = chosen.iter().map(|c| f64::from(u8::from(verdict(c)))).collect();
        let some = |v: &[f64]| (!v.is_empty()).then(|| interval(v));
        let all = [right.as_slice(), &chosen].concat();
        Ok(Measured {
            bytes: looked.bytes,
            load_seconds: looked.load_seconds,
            tokens_per_second: speed.tokens_per_second,
            weights_mb: speed.weights_mb,
            bits_per_byte,
            bits_interval: (costs.len() > 1).then(|| ratio(&costs)),
            questions: some(&right),
            tasks,
            choices: some(&chosen),
            score: some(&all).map(|i| i.mean).or(bits_per_byte.map(|b| 1.0 / b)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_choices_are_named_by_line() {
        let path = std::env::temp_dir().join(format!("danlu-choices-{}", std::process::id()));
        let good = r#"{"context":"a","endings":[" b"," c"],"label":1}"#;
        let text = r#"{"context":"a","endings":[" b"," c"],"label":"0"}"#;
        std::fs::write(&path, format!("\u{feff}{good}\n\n{text}\n")).expect("writes");
        let (rows, skipped) = read_choices(&path, 0).expect("reads");
        assert_eq!(
            rows.iter().map(|r| (r.line, r.choice.label)).collect::<Vec<_>>(),
            [(1, 1), (3, 0)]
        );
        assert!(skipped.is_empty(), "{skipped:?}");
        for (bad, word) in [
            (r#"{"context":"a","endings":[" b"],"label":1}"#, "label 1 of 1"),
            (r#"{"context":"a","endings":[" b"],"label":"x"}"#, "whole number"),
            (r#"{"context":"a"}"#, "endings"),
        ] {
            std::fs::write(&path, format!("{good}\n{bad}\n")).expect("writes");
            let error = read_choices(&path, 0).err().expect("refused").to_string();
            assert!(error.contains(word) && error.contains(":2"), "{error}");
            let (rows, skipped) = read_choices(&path, 1).expect("reads");
            assert!(rows.len() == 1 && skipped[0].contains(word), "{skipped:?}");
        }
        std::fs::write(&path, "\u{feff}plain").expect("writes");
        assert_eq!(read_texts(&path).expect("reads"), ["plain"]);
        std::fs::remove_file(&path).expect("removes");
    }
}
