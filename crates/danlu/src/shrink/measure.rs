//! What a form of a model is measured by: size, speed, loss, scores.

use crate::answer::fitting;
use crate::commands::eval;
use danlu_core::{Error, Result};
use danlu_data::{TuneRow, is_table, read_tuning};
use danlu_eval::{Files, Gallery, Interval, Question, interval, read_set};
use danlu_model::Model;
use danlu_model::engine::{CacheFormat, WeightFormat};
use danlu_model::likelihood::{Choice, bits_per_byte, choose};
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
    choices: Vec<Choice>,
}

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

/// A line of a file of choices.
#[derive(Deserialize)]
struct Line {
    context: String,
    endings: Vec<String>,
    label: usize,
}

/// Reads a file of choices, one JSON object a line.
pub(crate) fn read_choices(path: &Path) -> Result<Vec<Choice>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let one = |(i, line): (usize, &str)| {
        let bad = |found: String| Error::row(path, i + 1, found);
        let line: Line = serde_json::from_str(line)
            .map_err(|e| bad(format!("{e}; expected `context`, `endings` and `label`")))?;
        if line.label >= line.endings.len() {
            let found = format!("label {} of {} endings", line.label, line.endings.len());
            return Err(bad(found));
        }
        if line.endings.iter().any(String::is_empty) {
            return Err(bad("expected endings that say something, found an empty one".into()));
        }
        Ok(Choice { context: line.context, endings: line.endings, label: line.label })
    };
    let all: Vec<Choice> = lines.map(one).collect::<Result<_>>()?;
    if all.is_empty() {
        return Err(Error::file(path, "at least one choice", "none"));
    }
    Ok(all)
}

/// Reads texts: of the rows of a `.jsonl` or `.parquet` file that have `text`, or a whole file.
pub(crate) fn read_texts(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_none_or(|e| e != "jsonl") && !is_table(path) {
        return Ok(vec![std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?]);
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
            let (some, skipped) = read_set(path, 20)?;
            skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
            tests.questions.extend(some);
        }
        for path in choices {
            tests.choices.extend(read_choices(path)?);
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
        let bits_per_byte = match self.texts.is_empty() {
            true => None,
            false => Some(bits_per_byte(model, &self.texts)?),
        };
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
        let chosen = choose(model, &self.choices)?;
        let verdicts = chosen.iter().zip(&self.choices);
        let chosen: Vec<f64> =
            verdicts.map(|(got, c)| f64::from(u8::from(*got == c.label))).collect();
        let some = |v: &[f64]| (!v.is_empty()).then(|| interval(v));
        let all = [right.as_slice(), &chosen].concat();
        Ok(Measured {
            bytes: looked.bytes,
            load_seconds: looked.load_seconds,
            tokens_per_second: speed.tokens_per_second,
            weights_mb: speed.weights_mb,
            bits_per_byte,
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
        std::fs::write(&path, format!("{good}\n\n{good}\n")).expect("writes");
        assert_eq!(read_choices(&path).expect("reads").len(), 2);
        for (bad, word) in [
            (r#"{"context":"a","endings":[" b"],"label":1}"#, "label 1 of 1"),
            (r#"{"context":"a"}"#, "endings"),
        ] {
            std::fs::write(&path, format!("{good}\n{bad}\n")).expect("writes");
            let error = read_choices(&path).expect_err("refused").to_string();
            assert!(error.contains(word) && error.contains(":2"), "{error}");
        }
        std::fs::remove_file(&path).expect("removes");
    }
}
