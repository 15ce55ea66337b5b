//! The page that shows an evaluation.

use crate::index::Question;
use crate::metrics::METRICS;
use crate::run::{Assets, Record, Report, Scored, Value};
use danlu_core::{Error, Part, Result};
use danlu_report::{Bar, BarChart, Card, Cell, Figure, NoteKind, Page, Part as Shown, Table};
use std::collections::BTreeSet;
use std::path::Path;

/// Most examples of a task and view.
const EXAMPLES: usize = 8;
/// Metrics that say in one number how a task goes, the first that there is.
const HEADLINES: [&str; 4] = ["top1", "iou", "cer", "exact"];

/// Writes the page of `report`: every number with its interval, and examples of each task that a
/// person can look at and listen to. `notes` are what must be said about the data.
pub fn write_page(
    path: &Path,
    title: &str,
    notes: &[String],
    report: &Report,
    questions: &[Question],
    answers: &[Vec<Value>],
    assets: &dyn Assets,
) -> Result<()> {
    let mut page = Page::new(title);
    let groups: BTreeSet<(&str, &str)> =
        report.scores.iter().map(|s| (s.task.as_str(), s.view.as_str())).collect();
    page.lead(&format!(
        "{} questions of {} kinds. Intervals hold 95 % of 1,000 bootstrap resamples.",
        report.questions,
        groups.len()
    ));
    for note in notes {
        page.note(NoteKind::Info, note);
    }
    let right = report.records.iter().filter(|r| r.verdict).count();
    let share = right as f64 / report.records.len().max(1) as f64;
    page.figures(&[
        figure("Questions", report.questions.to_string(), ""),
        figure("Right", format!("{:.1} %", 100.0 * share), "exact, IoU from 0.5, or judged first"),
        figure("Wrong kind of reply", report.wrong_kind.to_string(), "counted as failures"),
    ]);
    page.section("Results");
    let (errors, shares): (Vec<&Scored>, Vec<&Scored>) = groups
        .iter()
        .filter_map(|&(task, view)| {
            HEADLINES.iter().find_map(|metric| report.score(task, view, metric))
        })
        .partition(|s| !s.higher_is_better);
    for (name, scores) in [("One number per task", shares), ("Error rates", errors)] {
        if !scores.is_empty() {
            page.bars(&bars(name, &scores));
        }
    }
    page.table(&table(&report.scores));
    let explained = METRICS.iter().map(|m| format!("{}: {}.", m.name(), m.help()));
    let explained = explained.chain([
        "top1, top5: share of generated pictures and sounds that a judge, which is neither the \
         model nor its tokenisers, takes for the right concept of all, or has among its first five."
            .to_owned(),
        "ceiling: the same judge on the expected media after the tokeniser alone.".to_owned(),
    ]);
    page.text(&explained.collect::<Vec<_>>().join("\n"));
    for (task, view) in groups {
        page.section(&name(task, view));
        let chosen = choose(report.records.iter().filter(|r| r.task == task && r.view == view));
        let cards = chosen
            .into_iter()
            .filter_map(|record| {
                let question = questions.get(record.question)?;
                let answer = answers.get(record.question)?;
                Some(card(record, question, answer, assets))
            })
            .collect::<Result<Vec<_>>>()?;
        page.gallery("Asked, expected and replied", &cards);
    }
    page.write(path).map_err(|e| Error::io(path, e))
}

fn figure(label: &str, value: String, note: &str) -> Figure {
    Figure { label: label.into(), value, note: note.into() }
}

fn name(task: &str, view: &str) -> String {
    if view.is_empty() { task.to_owned() } else { format!("{task}, {view}") }
}

fn bars(title: &str, scores: &[&Scored]) -> BarChart {
    let bar = |s: &&Scored| Bar {
        label: format!("{} ({})", name(&s.task, &s.view), s.metric),
        value: 100.0 * s.value.mean,
        low: 100.0 * s.value.low,
        high: 100.0 * s.value.high,
        mark: s.ceiling.map(|c| 100.0 * c),
    };
    BarChart {
        title: title.into(),
        unit: "%".into(),
        mark_label: "ceiling".into(),
        bars: scores.iter().map(bar).collect(),
    }
}

fn table(scores: &[Scored]) -> Table {
    let heads = ["Task", "View", "Metric", "Percent", "n", "Wrong kind", "Chance", "Ceiling"];
    let percent = |v: Option<f64>, decimals| match v {
        Some(v) => Cell::number(100.0 * v, decimals),
        None => Cell::Missing,
    };
    let row = |s: &Scored| {
        vec![
            s.task.as_str().into(),
            if s.view.is_empty() { Cell::Missing } else { s.view.as_str().into() },
            Cell::Text(format!("{} {}", s.metric, if s.higher_is_better { "↑" } else { "↓" })),
            Cell::Interval {
                value: 100.0 * s.value.mean,
                low: 100.0 * s.value.low,
                high: 100.0 * s.value.high,
                decimals: 1,
            },
            Cell::number(s.n as f64, 0),
            Cell::number(s.wrong_kind as f64, 0),
            percent(s.chance, 2),
            percent(s.ceiling, 1),
        ]
    };
    Table {
        caption: "Every metric in percent with its 95 % interval; ↑ more is better, ↓ less is"
            .into(),
        head: heads.map(String::from).to_vec(),
        rows: scores.iter().map(row).collect(),
    }
}

/// As many hits as misses where there are enough of both, in the order of the set.
fn choose<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<&'a Record> {
    let (hits, misses): (Vec<&Record>, Vec<&Record>) = records.partition(|r| r.verdict);
    let half = EXAMPLES / 2;
    let hit_count = hits.len().min(half.max(EXAMPLES.saturating_sub(misses.len())));
    let miss_count = misses.len().min(EXAMPLES - hit_count);
    let mut chosen = hits[..hit_count].to_vec();
    chosen.extend(&misses[..miss_count]);
    chosen.sort_by_key(|r| r.question);
    chosen
}

fn card(
    record: &Record,
    question: &Question,
    answer: &[Value],
    assets: &dyn Assets,
) -> Result<Card> {
    let mut parts = Vec::new();
    for part in question.sample.messages.iter().flat_map(|m| &m.parts) {
        parts.push(shown(part, "asked", "asked", assets)?);
    }
    parts.push(Shown::Arrow);
    if answer.is_empty() {
        parts.push(Shown::Text("no reply".into()));
    }
    for value in answer {
        parts.push(match value {
            Value::Text(text) => Shown::Quote(text.clone()),
            Value::Picture(picture) => Shown::Picture {
                png: danlu_media::encode_png(picture),
                alt: format!("the reply, taken for {}", record.got),
                label: "reply".into(),
            },
            Value::Sound(sound) => {
                Shown::Sound { wav: danlu_media::encode_wav(sound), label: "reply".into() }
            }
        });
    }
    parts.push(Shown::Text("Expected:".into()));
    for part in question.expected() {
        parts.push(shown(part, "expected", &record.expected, assets)?);
    }
    let media =
        question.expected().iter().any(|part| matches!(part, Part::Image(_) | Part::Audio(_)));
    let text = match (record.verdict, media) {
        (true, true) => format!("recognised as {}", record.got),
        (false, true) => format!("taken for {}, not {}", record.got, record.expected),
        (true, false) => "right".into(),
        (false, false) => "not what was expected".into(),
    };
    parts.push(Shown::Verdict { ok: record.verdict, text });
    Ok(Card { title: name(&record.task, &record.view), parts })
}

fn shown(part: &Part, label: &str, alt: &str, assets: &dyn Assets) -> Result<Shown> {
    Ok(match part {
        Part::Text(text) => Shown::Quote(text.clone()),
        Part::Image(media) => Shown::Picture {
            png: danlu_media::encode_png(&*assets.picture(media)?),
            alt: alt.into(),
            label: label.into(),
        },
        Part::Audio(media) => Shown::Sound {
            wav: danlu_media::encode_wav(&*assets.sound(media)?),
            label: label.into(),
        },
        Part::Call(call) => Shown::Quote(call.words()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::run::tests::{Made, question};
    use crate::run::{Gallery, Judges, evaluate};
    use danlu_core::{AssetId, Media};

    #[test]
    fn a_page_shows_numbers_and_media() {
        let media = Media::Asset(AssetId(1));
        let questions = [
            question(1, "name_en", Part::Text("a <b> cat".into())),
            question(2, "draw_en", Part::Image(media.clone())),
            question(3, "say_en", Part::Audio(media.clone())),
        ];
        let answers = [
            vec![Value::Text("a dog".into())],
            vec![Value::Picture(Made.picture(&media).unwrap().as_ref().clone())],
            vec![Value::Sound(Made.sound(&media).unwrap().as_ref().clone())],
        ];
        let judges = Judges::new(&questions, &Made, &Gallery::default()).unwrap();
        let report = evaluate(&questions, &answers, &Made, &judges, &mut |_| {}).unwrap();
        let path = std::env::temp_dir().join(format!("danlu-eval-{}.html", std::process::id()));
        let notes = ["Speech is synthetic.".to_owned()];
        write_page(&path, "Evaluation", &notes, &report, &questions, &answers, &Made).unwrap();
        let page = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for words in ["Speech is synthetic.", "a &lt;b&gt; cat", "a dog", "recognised as p/2"] {
            assert!(page.contains(words), "{words}");
        }
        assert_eq!(page.matches("data:image/png").count(), 2);
        assert_eq!(page.matches("data:audio/wav").count(), 2);
    }

    #[test]
    fn hits_and_misses_are_balanced() {
        let record = |question: usize, verdict: bool| Record {
            question,
            line: 0,
            task: String::new(),
            view: String::new(),
            prompt: String::new(),
            expected: String::new(),
            got: String::new(),
            verdict,
        };
        let count = |hits: usize, misses: usize| {
            let records: Vec<Record> = (0..hits + misses).map(|i| record(i, i < hits)).collect();
            let chosen = choose(records.iter());
            let hits = chosen.iter().filter(|r| r.verdict).count();
            (hits, chosen.len() - hits)
        };
        assert_eq!(count(20, 20), (4, 4));
        assert_eq!(count(20, 1), (7, 1));
        assert_eq!(count(2, 20), (2, 6));
        assert_eq!(count(1, 1), (1, 1));
    }
}
