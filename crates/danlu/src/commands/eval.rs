use super::generate::within;
use crate::answer::{Asked, Style, model_folder, reconstructions};
use crate::progress::{Terminal, Unkept};
use crate::shrink::{chosen, few_enough, read_choices, read_texts};
use danlu_core::{Error, Result};
use danlu_data::Pack;
use danlu_eval::{
    Answerer, Assets, Files, Gallery, Judges, Question, Report, Scored, evaluate, interval,
    judge_only, read_set, write_page,
};
use danlu_model::Model;
use danlu_model::engine::Sampling;
use danlu_model::io::write_atomically;
use danlu_model::likelihood::{Chosen, bits, together};
use danlu_train::{Event, Watcher};
use std::path::{Path, PathBuf};

/// Measure a model on a file of questions
///
/// The file is in the sample format, one conversation a line, with what the reply should be in
/// `expected` (or as a closing assistant's turn). `label` names the concept that a drawn picture or
/// a spoken reply should be recognised as; `task` groups the figures.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model or run folder (default: models/reference)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Adapters to put on the model, the lowest first
    #[arg(long = "adapter", value_name = "FOLDER")]
    adapters: Vec<PathBuf>,
    /// Questions: rows in any form that `danlu tune` reads, with a reply or `expected`
    #[arg(long, value_name = "FILE", required_unless_present_any = ["text", "choices"])]
    data: Vec<PathBuf>,
    /// Held-out texts to measure bits a byte on: .jsonl with `text`, or plain text
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// Endings to choose from by how likely they are, a character and altogether (acc_norm and acc of
    /// lm-evaluation-harness): .jsonl with `context`, `endings` and `label` (packs/choices.py writes
    /// HellaSwag's)
    #[arg(long, value_name = "FILE")]
    choices: Vec<PathBuf>,
    /// Write every figure and every reply's verdict here; with --text alone, what each text costs and how many choices were right
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with pictures and players here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Packs whose pictures and recordings the judges compare with (default: what the questions
    /// expect)
    #[arg(long, value_name = "PACK")]
    gallery: Vec<PathBuf>,
    /// How many unusable rows of --data or --choices are skipped before it is an error
    #[arg(long, default_value_t = 20, value_name = "N")]
    max_bad_rows: usize,
    /// Sampling temperature of pictures and sounds
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Guidance of pictures
    #[arg(long, default_value_t = 1.5)]
    guidance: f32,
    /// Seed of the replies
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.html.is_some() && args.data.is_empty() {
        return Err(Error::parameter("--html", "--data, whose replies the page shows", "none"));
    }
    within("--temperature", args.temperature, 0.0..=100.0)?;
    within("--guidance", args.guidance, 0.0..=100.0)?;
    // What cannot be written at the end is told at the beginning.
    for (name, path) in [("--json", &args.json), ("--html", &args.html)] {
        let Some(path) = path else { continue };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if path.is_dir() || parent.is_some_and(|p| !p.is_dir()) {
            let wanted = "a file in a folder that there is";
            return Err(Error::parameter(name, wanted, path.display()));
        }
    }
    let folder = model_folder(args.model)?;
    let model = crate::answer::adapted(&folder, args.adapters)?;
    let (mut passages, mut sets) = (Vec::new(), Vec::new());
    for path in &args.text {
        let texts = read_texts(path)?;
        let costs = bits(&model, &texts);
        let all = together(&costs)
            .map_err(|_| Error::file(path, "texts of at least two tokens", "none"))?;
        println!("{}: {all:.4} bits a byte", path.display());
        for (i, (text, (bits, bytes))) in texts.iter().zip(costs).enumerate() {
            // Of a text of under two tokens there is nothing to tell.
            let bits = (bytes > 0).then(|| bits / bytes as f64);
            passages.push(serde_json::json!({"file": path, "passage": i + 1,
                "bytes": text.len(), "bits_per_byte": bits}));
        }
    }
    for path in &args.choices {
        let (choices, mut skipped) = read_choices(path, args.max_bad_rows)?;
        let (chosen, over) = chosen(&model, &choices);
        skipped.extend(over);
        skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
        few_enough(path, &mut skipped, chosen.len(), args.max_bad_rows)?;
        if chosen.is_empty() {
            return Err(Error::file(path, "at least one choice that can be read", "none"));
        }
        let share = |right: &dyn Fn(&Chosen) -> usize| {
            let all = chosen.iter().map(|(got, label)| f64::from(u8::from(right(got) == *label)));
            interval(&all.collect::<Vec<f64>>())
        };
        let (i, plain) = (share(&|c| c.by_character), share(&|c| c.by_sum));
        let n = chosen.len();
        sets.push(serde_json::json!({"file": path, "right": i.mean, "low": i.low, "high": i.high,
            "plain_right": plain.mean, "plain_low": plain.low, "plain_high": plain.high,
            "choices": n}));
        let path = path.display();
        println!(
            "{path}: {:.3} ({:.3} to {:.3}) of {n} choices right by nats a character, {:.3} ({:.3} \
             to {:.3}) by nats alone",
            i.mean, i.low, i.high, plain.mean, plain.low, plain.high
        );
    }
    if args.data.is_empty() {
        if let Some(path) = args.json {
            let all = match sets.is_empty() {
                true => passages.into(),
                false => serde_json::json!({"choices": sets, "text": passages}),
            };
            write_atomically(&path, all.to_string().as_bytes())?;
        }
        return Ok(());
    }
    let mut questions = Vec::new();
    for path in &args.data {
        let (some, skipped) = read_set(path, args.max_bad_rows)?;
        skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
        questions.extend(some);
    }
    let (fitting, too_long) = crate::answer::fitting(&model, questions, &Files)?;
    let questions = fitting;
    too_long.iter().for_each(|line| eprintln!("skipped: {line}"));
    if too_long.len() > args.max_bad_rows {
        return Err(Error::parameter(
            "--data",
            format!("at most {} questions over the model's context", args.max_bad_rows),
            format!("{}; the first: {}", too_long.len(), too_long[0]),
        ));
    }
    if questions.is_empty() {
        return Err(Error::parameter("--data", "at least one usable question", "none"));
    }
    let mut gallery = Gallery::default();
    let mut notes = Vec::new();
    for path in &args.gallery {
        let pack = Pack::open(path)?;
        gallery.extend(Gallery::of_pack(&pack, 2)?);
        notes.push(pack.manifest().notice.clone());
    }
    notes.retain(|n| !n.is_empty());
    let style = style(args.temperature, args.guidance, args.seed);
    let done = measure(&model, &questions, &Files, &gallery, style)?;
    print(&done.report);
    if let Some(path) = &args.json {
        let json = |e: serde_json::Error| Error::Other(e.to_string());
        let mut report = serde_json::to_value(&done.report).map_err(json)?;
        for (name, more) in [("choices", sets), ("text", passages)] {
            if !more.is_empty() {
                report[name] = more.into();
            }
        }
        let text = serde_json::to_string_pretty(&report).map_err(json)?;
        write_atomically(path, text.as_bytes())?;
    }
    if let Some(path) = &args.html {
        let title = format!("{} on {} questions", model.info.name, questions.len());
        write_page(path, &title, &notes, &done.report, &questions, &done.answers, &Files)?;
        eprintln!("page: {}", path.display());
    }
    Ok(())
}

/// How an evaluation draws replies.
pub(crate) fn style(temperature: f32, guidance: f32, seed: u64) -> Style {
    Style {
        media: Sampling { temperature, ..Default::default() },
        guidance,
        max_tokens: 220,
        seed,
        width: 32,
    }
}

/// Replies and their scores.
pub(crate) struct Measured {
    pub(crate) report: Report,
    pub(crate) answers: Vec<Vec<danlu_eval::Value>>,
}

/// Asks a model every question and scores the replies, with the tokenisers' own reconstruction of
/// what is expected, judged the same way, as the ceiling.
pub(crate) fn measure(
    model: &Model,
    questions: &[Question],
    assets: &dyn Assets,
    gallery: &Gallery,
    style: Style,
) -> Result<Measured> {
    let mut terminal = Terminal::new();
    let _unkept = Unkept::begin();
    let steps = questions.len();
    let mut phase = |name: &str| {
        terminal.tell(Event::Phase { name: name.into(), steps, done: 0 });
    };
    phase("replies");
    let mut asked = Asked { model, assets, style };
    let mut tell = |done| terminal.tell(Event::Step { done, figures: String::new() });
    let answers = asked.answer(questions, &mut tell)?;
    terminal.tell(Event::PhaseDone { result: format!("{steps} replies") });
    terminal.tell(Event::Phase { name: "judge".into(), steps, done: 0 });
    let judges = Judges::new(questions, assets, gallery)?;
    let mut tell = |done| terminal.tell(Event::Step { done, figures: String::new() });
    let mut report = evaluate(questions, &answers, assets, &judges, &mut tell)?;
    let ceilings = reconstructions(model, questions, assets)?;
    report.set_ceilings(&judge_only(questions, &ceilings, assets, &judges, &mut |_| {})?);
    terminal.tell(Event::PhaseDone { result: format!("{steps} judged") });
    Ok(Measured { report, answers })
}

/// Writes a report, whole or not at all.
pub(crate) fn write_json(path: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report).map_err(|e| Error::Other(e.to_string()))?;
    write_atomically(path, text.as_bytes())
}

/// One score in words: task, view, metric, number of questions, value, interval, chance, ceiling.
pub(crate) fn cells(s: &Scored) -> [String; 8] {
    let optional = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.3}"));
    [
        s.task.clone(),
        s.view.clone(),
        s.metric.clone(),
        s.n.to_string(),
        format!("{:.3}", s.value.mean),
        format!("{:.3} to {:.3}", s.value.low, s.value.high),
        optional(s.chance),
        optional(s.ceiling),
    ]
}

/// The figures, a line each.
pub(crate) fn print(report: &Report) {
    println!(
        "{:22} {:13} {:6} {:>5} {:>8}  {:17} {:>8} {:>8}",
        "task", "held out", "metric", "n", "value", "95 % interval", "chance", "ceiling"
    );
    for s in &report.scores {
        let [task, view, metric, n, value, interval, chance, ceiling] = cells(s);
        println!(
            "{task:22} {view:13} {metric:6} {n:>5} {value:>8}  {interval}    {chance:>8} {ceiling:>8}"
        );
    }
    if report.wrong_kind > 0 {
        println!("{} replies were not of the kind that was expected", report.wrong_kind);
    }
}
