//! What came of making a model smaller: figures, a page, a verdict.

use super::{Calibration, Form, Maker, Measured};
use danlu_core::Result;
use danlu_eval::Interval;
use danlu_model::Model;
use danlu_model::engine::WeightFormat;
use danlu_model::parity::{Comparison, Limits, PROBE, compare};
use danlu_report::{Bar, BarChart, Cell, Figure, NoteKind, Page, Table};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The model and its smaller forms.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    model: PathBuf,
    /// Steps of healing of forms that had parts taken out.
    heal: usize,
    keep: Option<f64>,
    /// How much of the rows was looked at.
    pub(crate) calibration: Option<Calibration>,
    before: Measured,
    pub(crate) rows: Vec<Row>,
}

/// One form.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) parity: Parity,
    pub(crate) measured: Measured,
}

/// How a form compares with the model on the probe.
#[derive(Debug, Serialize)]
pub(crate) struct Parity {
    comparison: Comparison,
    /// What it is held to; a form that had parts taken out is another model, and held to nothing.
    limits: Option<Limits>,
}

impl Row {
    /// Holds a form against the model.
    pub(crate) fn parity(model: &Model, small: &Model, form: &Form) -> Result<Parity> {
        let limits = match form.weights {
            WeightFormat::Q4_0 | WeightFormat::Q4K => Limits::FOUR,
            WeightFormat::Q8_0 => Limits::EIGHT,
            _ => Limits::HALF,
        };
        let texts: Vec<String> = PROBE.iter().map(|t| t.to_string()).collect();
        let comparison = compare(model, small, &texts, &limits)?;
        let same = model.transformer.config == small.transformer.config;
        Ok(Parity { comparison, limits: same.then_some(limits) })
    }

    fn says_the_same(&self) -> bool {
        self.parity.limits.is_none() || self.parity.comparison.near
    }

    fn verdict(&self) -> String {
        let p = &self.parity;
        let agree = format!("{:.1} % agree", 100.0 * p.comparison.agreement);
        match (p.limits, p.comparison.near) {
            (None, _) => format!("another model; {agree}"),
            (Some(_), true) => format!("the same within the limits; {agree}"),
            (Some(_), false) => format!("NOT the same; {agree}"),
        }
    }
}

impl Report {
    pub(crate) fn new(
        model: &Path,
        maker: &Maker<'_>,
        keep: Option<f64>,
        before: Measured,
    ) -> Self {
        let (heal, rows) = (maker.heal, Vec::new());
        Self { model: model.into(), heal, keep, calibration: None, before, rows }
    }

    /// Score of a form as a share of the model's.
    fn kept(&self, m: &Measured) -> Option<f64> {
        Some(m.score? / self.before.score.filter(|s| *s > 0.0)?)
    }

    /// The last form, if it is what was asked for.
    pub(crate) fn verdict(&self) -> Option<&Row> {
        let last = self.rows.last()?;
        match self.keep {
            None => last.says_the_same().then_some(last),
            Some(share) => self.kept(&last.measured).filter(|k| *k >= share).map(|_| last),
        }
    }

    fn every(&self) -> Vec<(&str, &Measured, String)> {
        let mut all = vec![("as it was", &self.before, String::new())];
        all.extend(self.rows.iter().map(|r| (r.name.as_str(), &r.measured, r.verdict())));
        all
    }

    /// A line a form.
    pub(crate) fn text(&self) -> String {
        let share = |i: &Option<Interval>| i.map_or("-".into(), |i| format!("{:.3}", i.mean));
        let mut out = format!(
            "{:34} {:>9} {:>8} {:>8} {:>7} {:>7} {:>7} {:>7}  {}",
            "form", "MB", "load s", "tok/s", "bits/B", "answers", "choices", "kept", "parity"
        );
        for (name, m, parity) in self.every() {
            let bits = m.bits_per_byte.map_or("-".into(), |b| format!("{b:.4}"));
            let kept = self.kept(m).map_or("-".into(), |k| format!("{k:.4}"));
            out += &format!(
                "\n{name:34} {:9.2} {:8.3} {:8.1} {bits:>7} {:>7} {:>7} {kept:>7}  {parity}",
                m.bytes as f64 / 1e6,
                m.load_seconds,
                m.tokens_per_second,
                share(&m.questions),
                share(&m.choices),
            );
        }
        out
    }

    /// The same as a page.
    pub(crate) fn page(&self) -> Page {
        let mut page = Page::new("A smaller model");
        page.lead(&format!("{} in smaller forms, measured beside it.", self.model.display()));
        match (self.verdict(), self.keep) {
            (Some(row), Some(share)) => page.note(
                NoteKind::Good,
                &format!("`{}` is the smallest that keeps {share} of the score.", row.name),
            ),
            (Some(row), None) => {
                page.note(NoteKind::Good, &format!("{}: {}.", row.name, row.verdict()))
            }
            (None, _) => page.note(
                NoteKind::Warning,
                "No form is what was asked for; the folder is not to be used.",
            ),
        };
        if let Some(last) = self.rows.last() {
            let m = &last.measured;
            let figure = |label: &str, value: String, note: String| Figure {
                label: label.into(),
                value,
                note,
            };
            page.figures(&[
                figure(
                    "Size",
                    format!("{:.1} MB", m.bytes as f64 / 1e6),
                    format!("{:.1} MB before", self.before.bytes as f64 / 1e6),
                ),
                figure(
                    "Speed",
                    format!("{:.0} tok/s", m.tokens_per_second),
                    format!("{:.0} before, in 16 bits", self.before.tokens_per_second),
                ),
                figure(
                    "Score kept",
                    self.kept(m).map_or("-".into(), |k| format!("{:.1} %", 100.0 * k)),
                    "of the model's".into(),
                ),
            ]);
        }
        page.section("Forms");
        let number =
            |v: Option<f64>, decimals| v.map_or(Cell::Missing, |v| Cell::number(v, decimals));
        let share = |i: &Option<Interval>| i.as_ref().map_or(Cell::Missing, cell);
        let head = [
            "Form",
            "MB",
            "Load, s",
            "Tokens/s",
            "Bits a byte",
            "Answers right",
            "Choices right",
            "Score kept",
            "Says",
        ];
        let rows = self.every().into_iter().map(|(name, m, parity)| {
            vec![
                Cell::Text(name.into()),
                Cell::number(m.bytes as f64 / 1e6, 2),
                Cell::number(m.load_seconds, 3),
                Cell::number(m.tokens_per_second, 1),
                match m.bits_interval {
                    Some(i) => {
                        Cell::Interval { value: i.mean, low: i.low, high: i.high, decimals: 4 }
                    }
                    None => number(m.bits_per_byte, 4),
                },
                share(&m.questions),
                share(&m.choices),
                number(self.kept(m), 4),
                Cell::Text(parity),
            ]
        });
        page.table(&Table {
            caption:
                "Intervals hold 95 % of 1,000 bootstrap resamples. Speed is that of one reply."
                    .into(),
            head: head.map(String::from).to_vec(),
            rows: rows.collect(),
        });
        page.section("Size");
        let bar = |label: &str, value: f64| Bar {
            label: label.into(),
            value,
            low: value,
            high: value,
            mark: None,
        };
        page.bars(&BarChart {
            title: "Bytes of the model's files".into(),
            unit: "MB".into(),
            mark_label: String::new(),
            bars: self.every().iter().map(|(n, m, _)| bar(n, m.bytes as f64 / 1e6)).collect(),
        });
        if let Some(last) = self.rows.last().filter(|r| !r.measured.tasks.is_empty()) {
            page.section("Tasks");
            let rows = self.before.tasks.iter().map(|(name, n, before)| {
                let after = last.measured.tasks.iter().find(|(other, ..)| other == name);
                let after = after.map_or(Cell::Missing, |(_, _, i)| cell(i));
                vec![Cell::Text(name.clone()), Cell::number(*n as f64, 0), cell(before), after]
            });
            page.table(&Table {
                caption: format!(
                    "Share of the answers that were right, before and as {}.",
                    last.name
                ),
                head: ["Task", "Questions", "Before", "After"].map(String::from).to_vec(),
                rows: rows.collect(),
            });
        }
        if let Some(c) = self.calibration {
            page.text(&format!("Of the rows, the calibration {}.", c.words()));
        }
        if self.heal > 0 {
            page.text(&format!(
                "Forms that had parts taken out learnt from the model for {} steps.",
                self.heal
            ));
        }
        page
    }
}

fn cell(i: &Interval) -> Cell {
    Cell::Interval { value: i.mean, low: i.low, high: i.high, decimals: 3 }
}
