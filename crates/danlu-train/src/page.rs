//! The run's page: curves by modality and task, samples as they improve, the recipe.

use crate::incident::incidents;
use crate::incident_page::went_wrong;
use crate::marginal::Marginals;
use crate::pretrain::{Health, LogLine, Losses, SampleLine};
use crate::run::{Run, entries, read};
use crate::tokenisers;
use crate::upkeep::Upkeep;
use danlu_core::{Error, Modality, Recipe, Result};
use danlu_data::Corpus;
use danlu_report::{Card, Figure, LineChart, NoteKind, Page, Part, Series};
use std::collections::BTreeMap;

/// Writes `index.html` of a run from its logs. The pages of the tokenisers and of the evaluation
/// are linked if they exist.
pub fn run_page(run: &Run, recipe: &Recipe, corpus: &Corpus) -> Result<()> {
    let marginals: Option<Marginals> = std::fs::read(run.folder.join("marginals.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let marginals = marginals.as_ref();
    let log: Vec<LogLine> = entries(&run.log(crate::run::LOG))?;
    let mut page = Page::new(format!("Danlu run {}", recipe.name));
    page.lead(
        "One decoder-only model for text, pictures and sound: every modality is tokens of one \
         vocabulary, every task is an instruction and a reply.",
    );
    for notice in &corpus.notices {
        page.note(NoteKind::Info, notice);
    }
    let others = [("What the tokenisers keep", "tokenisers.html"), ("Evaluation", "eval.html")];
    let there = |(_, file): &(&str, &str)| run.folder.join(file).exists();
    page.links(&others.into_iter().filter(there).collect::<Vec<_>>());
    if let Some(last) = log.last() {
        page.section("Where it stands");
        let mut figures = vec![
            figure("Step", format!("{} of {}", last.step, recipe.train.steps), ""),
            figure("Tokens", format!("{:.2} M", last.tokens as f64 / 1e6), "trained on"),
            figure(
                "Speed",
                format!("{:.0}", median(log.iter().map(|l| l.speed))),
                "tokens/s, median",
            ),
            figure(
                "Utilisation",
                format!("{:.0} %", 100.0 * median(log.iter().map(|l| l.utilisation))),
                "of the multiply-add peak, median",
            ),
        ];
        figures.extend(log.iter().rev().find_map(|l| l.upkeep).map(upkeep));
        let recent = mean_of_last(&log, 50, |l| &l.modality);
        for m in Modality::ALL {
            let (Some(loss), Some(marginals)) = (recent.get(m.name()), marginals) else { continue };
            let floor = marginals.of(m);
            figures.push(figure(
                &format!("Loss, {}", m.name()),
                format!("{loss:.2}"),
                &format!("nats a token; knowing only frequencies gives {floor:.2}"),
            ));
        }
        page.figures(&figures);
        page.section("Curves");
        let points = |of: &dyn Fn(&LogLine) -> Option<f64>| -> Vec<(f64, f64)> {
            log.iter().filter_map(|l| of(l).map(|v| (l.step as f64, v))).collect()
        };
        for m in Modality::ALL {
            let mut series = vec![Series {
                name: "training".into(),
                points: smooth(&points(&|l| l.modality.get(m.name()).copied())),
                dashed: false,
            }];
            if series[0].points.is_empty() {
                continue;
            }
            let held = points(&|l| l.validation.get(m.name()).copied());
            if !held.is_empty() {
                series.push(Series { name: "held out".into(), points: held, dashed: false });
            }
            if let (Some(marginals), Some(last)) = (marginals, log.last()) {
                let floor = marginals.of(m);
                let points = vec![(1.0, floor), (last.step as f64, floor)];
                series.push(Series { name: "frequencies only".into(), points, dashed: true });
            }
            chart(&mut page, &format!("Loss of {}", m.name()), "nats a token", series);
        }
        // What was measured last, but for what stands in charts of its own.
        let measured = |of: fn(&LogLine) -> &Losses, own: &dyn Fn(&str) -> bool| -> Vec<Series> {
            let last = log.iter().rev().map(of).find(|all| !all.is_empty());
            let names = last.into_iter().flat_map(Losses::keys).filter(|name| !own(name));
            names
                .map(|name| Series {
                    name: name.clone(),
                    points: points(&|l| of(l).get(name).copied()),
                    dashed: name == "all",
                })
                .collect()
        };
        let modality = |name: &str| Modality::ALL.iter().any(|m| m.name() == name);
        for (title, unit, series) in [
            ("Held-out files", "nats a token", measured(|l| &l.validation, &modality)),
            ("Held-out plain text", "nats a byte", measured(|l| &l.text, &|_| false)),
        ] {
            if !series.is_empty() {
                chart(&mut page, title, unit, series);
            }
        }
        let tasks: Vec<&String> = log.iter().rev().take(50).flat_map(|l| l.task.keys()).collect();
        let mut names: Vec<&String> = tasks;
        names.sort();
        names.dedup();
        for some in names.chunks(7) {
            let series = some
                .iter()
                .map(|name| Series {
                    name: name.to_string(),
                    points: smooth(&points(&|l| l.task.get(*name).copied())),
                    dashed: false,
                })
                .collect();
            chart(&mut page, "Loss by task", "nats a token", series);
        }
        let one = |name: &str, points| vec![Series { name: name.into(), points, dashed: false }];
        let norm = points(&|l| Some(l.norm));
        chart(&mut page, "Gradient norm before clipping", "norm", one("norm", norm));
        let speed = points(&|l| Some(l.speed));
        chart(&mut page, "Speed", "tokens/s", one("tokens/s", speed));
        inside(&mut page, &log);
    }
    went_wrong(&mut page, incidents(run)?);
    samples(&mut page, run)?;
    for (name, what) in [("image", "image tokeniser"), ("audio", "audio tokeniser")] {
        let log: Vec<tokenisers::LogLine> = entries(&run.log(name))?;
        if log.is_empty() {
            continue;
        }
        let points = log.iter().map(|l| (l.step as f64, l.loss as f64)).collect();
        page.section(&format!("Loss of the {what}"));
        let series = vec![Series { name: "training".into(), points, dashed: false }];
        page.lines(&LineChart {
            title: format!("Reconstruction loss of the {what}"),
            x_label: "step".into(),
            y_label: "absolute + squared".into(),
            log_y: true,
            series,
        });
    }
    if !corpus.skipped.is_empty() {
        page.section("Left out of the data");
        for line in corpus.skipped.iter().take(50) {
            page.text(line);
        }
    }
    page.section("Recipe");
    page.code("Every value of this run", "toml", &read(&run.recipe())?);
    page.write(run.page()).map_err(|e| Error::io(run.page(), e))
}

fn samples(page: &mut Page, run: &Run) -> Result<()> {
    let lines: Vec<SampleLine> = entries(&run.log("samples"))?;
    if lines.is_empty() {
        return Ok(());
    }
    page.section("Samples as they improve");
    page.text("The same questions at every validation, about pictures in a style and recordings in a voice that training never sees.");
    let mut by_question: BTreeMap<(String, String, Option<String>), Vec<SampleLine>> =
        BTreeMap::new();
    for line in lines {
        let key = (line.task.clone(), line.question.clone(), line.shown.clone());
        by_question.entry(key).or_default().push(line);
    }
    let mut cards = Vec::new();
    for ((task, question, shown), mut lines) in by_question {
        lines.sort_by_key(|l| l.step);
        lines.dedup_by_key(|l| l.step);
        let mut parts = vec![Part::Text(question)];
        parts.extend(shown.and_then(|f| media(run, &f, "shown")));
        parts.push(Part::Text(format!("Wanted: {}", lines[0].expected)));
        parts.push(Part::Arrow);
        // The first, the last, and a few between.
        let every = lines.len().div_ceil(5).max(1);
        let newest = lines.len() - 1;
        for (i, line) in lines.iter().enumerate() {
            if i % every != 0 && i != newest {
                continue;
            }
            let label = format!("step {}", line.step);
            match (&line.text, &line.file) {
                (Some(text), _) => parts.push(Part::Quote(format!("{label}: {text}"))),
                (None, Some(file)) => parts.extend(media(run, file, &label)),
                (None, None) => {}
            }
        }
        cards.push(Card { title: task, parts });
    }
    page.gallery("Questions and replies", &cards);
    Ok(())
}

/// What it costs to watch and keep a run.
pub(crate) fn upkeep(of: Upkeep) -> Figure {
    let (all, parts) = of.percent();
    figure("Upkeep", format!("{all:.2} %"), &format!("of the time of steps: {parts}"))
}

/// What was seen inside the model.
fn inside(page: &mut Page, log: &[LogLine]) {
    type Of = fn(&Health) -> &BTreeMap<String, f64>;
    let charts: [(&str, &str, Of); 4] = [
        ("Gradient norm by layer", "norm", |h| &h.norm),
        ("Update of a step over weights, by layer", "share", |h| &h.ratio),
        ("Scale of what comes out of a layer", "root mean square", |h| &h.scale),
        ("Entropy of attention by layer", "0: one position, 1: all alike", |h| &h.entropy),
    ];
    let experts: Vec<_> = log.iter().map(|l| (l.step as f64, &l.experts)).collect();
    by_layer(page, "Experts that tokens are spread over", "experts", &experts, smooth);
    for (title, unit, of) in charts {
        let looked = log.iter().filter_map(|l| Some((l.step as f64, of(l.health.as_ref()?))));
        by_layer(page, title, unit, &looked.collect::<Vec<_>>(), <[_]>::to_vec);
    }
}

/// A step, and a value at it.
type Point = (f64, f64);

/// A curve for each layer that the last of `seen` has, few to a chart. `drawn` is what becomes of the
/// points of one.
fn by_layer(
    page: &mut Page,
    title: &str,
    unit: &str,
    seen: &[(f64, &BTreeMap<String, f64>)],
    drawn: fn(&[Point]) -> Vec<Point>,
) {
    let names: Vec<&String> = seen.last().map_or(Vec::new(), |(_, last)| last.keys().collect());
    for some in names.chunks(7) {
        let series = |name: &String| {
            let points = seen.iter().filter_map(|(x, all)| Some((*x, *all.get(name)?)));
            let points = drawn(&points.collect::<Vec<_>>());
            Series { name: name.clone(), points, dashed: false }
        };
        chart(page, title, unit, some.iter().map(|name| series(name)).collect());
    }
}

fn media(run: &Run, file: &str, label: &str) -> Option<Part> {
    let bytes = std::fs::read(run.samples().join(file)).ok()?;
    Some(match file.ends_with(".png") {
        true => Part::Picture { png: bytes, alt: label.into(), label: label.into() },
        false => Part::Sound { wav: bytes, label: label.into() },
    })
}

/// A large number of a page.
pub(crate) fn figure(label: &str, value: String, note: &str) -> Figure {
    Figure { label: label.into(), value, note: note.into() }
}

/// Curves over the steps.
pub(crate) fn chart(page: &mut Page, title: &str, y_label: &str, series: Vec<Series>) {
    page.lines(&LineChart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        log_y: false,
        series,
    });
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

fn mean_of_last(log: &[LogLine], n: usize, of: impl Fn(&LogLine) -> &Losses) -> Losses {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (name, value) in log.iter().rev().take(n).flat_map(of).filter(|(_, v)| v.is_finite()) {
        let sum = sums.entry(name.clone()).or_default();
        sum.0 += value;
        sum.1 += 1.0;
    }
    sums.into_iter().map(|(name, (sum, n))| (name, sum / n)).collect()
}

/// Exponential moving average over about a fiftieth of the points.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 50.0).max(1.0);
    let mut now: Option<f64> = None;
    points
        .iter()
        .map(|&(x, y)| {
            if !y.is_finite() {
                return (x, y);
            }
            let next = now.map_or(y, |n| n * keep + y * (1.0 - keep));
            now = Some(next);
            (x, next)
        })
        .collect()
}
