use super::import::free;
use crate::answer::model_folder;
use crate::progress::Terminal;
use crate::shrink::{Form, Looked, Maker, Method, Report, Row, Tests, candidates};
use danlu_core::recipe::same_file;
use danlu_core::{Error, Result};
use danlu_data::read_tuning;
use danlu_model::Model;
use danlu_model::engine::WeightFormat;
use danlu_model::io::{HfConfig, write_atomically};
use danlu_train::{Event, Watcher};
use std::path::PathBuf;

/// Make a model smaller: fewer bits, fewer parts, healed by its own teaching; with a report
///
/// Parts that do the least on your rows can be taken out (layers, heads, channels); what is left
/// then learns from the model as it was. Weights of 8 or 4 bits lie in one file that is mapped, so
/// the result opens at once. Every form is measured beside the model: size, speed, loss, scores with
/// intervals, and whether it says the same (compress.html, compress.json in the new folder). With
/// --keep, forms are tried from the smallest on until one keeps that share of the score.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model or run folder (default: models/reference)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Folder of the new model
    #[arg(long)]
    out: PathBuf,
    /// Weights: f16, q8_0, q4_0 or q4_k; embedding and head have at least eight bits
    #[arg(long, default_value = "q4_k", value_parser = weight_format)]
    weights: WeightFormat,
    /// How weights are rounded (default: gptq where --data is given)
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Rows to look at and to heal on, as `danlu tune` takes them (.jsonl): never those of a test
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Tokens of the rows that are looked at
    #[arg(long, default_value_t = 8192, value_name = "N")]
    tokens: usize,
    /// Layers to take out
    #[arg(long, default_value_t = 0, value_name = "N")]
    drop_layers: usize,
    /// Key-value heads to take out of each layer, with the query heads that read them
    #[arg(long, default_value_t = 0, value_name = "N")]
    drop_heads: usize,
    /// Share of the feed-forward's channels to take out of each layer
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    drop_channels: f64,
    /// A smaller model that learns from this one, in place of what is left after taking parts out
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["drop_layers", "drop_heads", "drop_channels"])]
    student: Option<PathBuf>,
    /// Steps in which what is left, or the student, learns from the model (distillation)
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    heal: usize,
    /// Peak learning rate of that
    #[arg(long, default_value_t = 1e-4)]
    rate: f32,
    /// Tokens of a row: longer conversations are left out, longer texts cut
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// The networks of the picture and sound tokenisers (default: i8 with 8 and 4 bits, else f16)
    #[arg(long, value_enum)]
    tokenisers: Option<Networks>,
    /// Held-out texts to measure bits a byte on: .jsonl with `text`, or plain text
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// Held-out questions, as `danlu eval` takes them (.jsonl)
    #[arg(long, value_name = "FILE")]
    questions: Vec<PathBuf>,
    /// Held-out choices: .jsonl with `context`, `endings` and `label`
    #[arg(long, value_name = "FILE")]
    choices: Vec<PathBuf>,
    /// Find the smallest form that keeps this share of the score (of questions and choices, or
    /// without them of the inverse of bits a byte)
    #[arg(long, value_name = "SHARE")]
    keep: Option<f64>,
}

/// Precision of the tokenisers' networks.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Networks {
    F32,
    F16,
    I8,
}

fn weight_format(name: &str) -> std::result::Result<WeightFormat, String> {
    WeightFormat::parse(name)
        .filter(|f| *f != WeightFormat::F32)
        .ok_or_else(|| "f16, q8_0, q4_0 or q4_k".into())
}

/// Where forms lie while they are made; nobody's but this command's.
const WORK: &str = ".danlu-compress";
const JSON: &str = "compress.json";
const PAGE: &str = "compress.html";

pub(crate) fn run(args: Args) -> Result<()> {
    check(&args)?;
    let folder = model_folder(args.model)?;
    if args.out.canonicalize().ok().is_some_and(|out| folder.canonicalize().ok() == Some(out)) {
        return Err(Error::parameter(
            "--out",
            "another folder than the model's",
            args.out.display(),
        ));
    }
    free("--out", &args.out, &[WORK, JSON])?;
    let mut terminal = Terminal::new();
    let (model, looked) = Looked::load(&folder)?;
    let config = &model.transformer.config;
    let form = Form {
        weights: args.weights,
        method: args.method,
        layers: args.drop_layers,
        kv_heads: args.drop_heads,
        channels: (args.drop_channels * config.hidden as f64).round() as usize,
    };
    form.cut().check(config)?;
    if args.drop_channels > 0.0 && form.channels == 0 {
        let wanted = format!("a share of at least one of {} channels", config.hidden);
        return Err(Error::parameter("--drop-channels", wanted, args.drop_channels));
    }
    for path in &args.data {
        let (rows, bad) = read_tuning(path)?;
        if rows.is_empty() {
            let found = bad.first().map_or("none", String::as_str);
            return Err(Error::file(path, "at least one usable row", found));
        }
    }
    let tests = Tests::read(&args.text, &args.questions, &args.choices)?;
    if args.keep.is_some() && tests.is_empty() {
        let wanted = "--questions, --choices or --text to measure the score on";
        return Err(Error::parameter("--keep", wanted, "none of them"));
    }
    for path in args.text.iter().chain(&args.questions).chain(&args.choices) {
        if args.data.iter().any(|data| same_file(data, path)) {
            let path = path.display();
            let note =
                format!("{path} is given as --data, too: what is measured on it was looked at");
            terminal.tell(Event::Note(note));
        }
    }
    terminal.tell(Event::Note(format!("measuring {}", folder.display())));
    let before = tests.measure(&model, &looked)?;
    if args.keep.is_some() && before.score.is_none_or(|score| score <= 0.0) {
        let wanted = "a model that gets something right, whose score can be kept";
        return Err(Error::parameter("--keep", wanted, "a score of 0"));
    }
    let window = match &args.student {
        // A student may read less at a time than the model.
        Some(student) => {
            let path = Model::folder(student).join("config.json");
            args.window.min(HfConfig::read(&path)?.to_ours(&path)?.context)
        }
        None => args.window,
    };
    let maker = Maker {
        folder: &folder,
        model: &model,
        base: Model::weights_hash(&folder)?,
        work: args.out.join(WORK),
        data: &args.data,
        tokens: args.tokens,
        window,
        heal: args.heal,
        rate: args.rate,
        student: args.student.as_deref(),
        tokenisers: args.tokenisers.map(|n| match n {
            Networks::F32 => danlu_model::io::Dtype::F32,
            Networks::F16 => danlu_model::io::Dtype::F16,
            Networks::I8 => danlu_model::io::Dtype::I8,
        }),
        seen: std::cell::OnceCell::new(),
    };
    let forms = match args.keep {
        Some(_) => candidates(&form, config, !args.data.is_empty()),
        None => vec![form],
    };
    let mut report = Report::new(&folder, &maker, args.keep, before);
    let mut found = false;
    let mut last = None;
    // Forms are measured apart: in the new model's folder is only what was decided on.
    let trial = maker.work.join("trial");
    for form in forms {
        let name = maker.name(&form, &mut terminal)?;
        terminal.tell(Event::Note(format!("trying {name}")));
        let small = maker.make(&form, &mut terminal)?;
        maker.save(&small, &form, &trial)?;
        let (again, looked) = Looked::load(&trial)?;
        let row = Row {
            name,
            parity: Row::parity(&model, &again, &form)?,
            measured: tests.measure(&again, &looked)?,
        };
        report.rows.push(row);
        last = Some((small, form));
        found = report.verdict().is_some();
        if found {
            break;
        }
    }
    // What says of an earlier model that it is good.
    for page in [JSON, PAGE] {
        match std::fs::remove_file(args.out.join(page)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(args.out.join(page), e));
            }
            _ => {}
        }
    }
    if let Some((small, form)) = &last {
        maker.save(small, form, &args.out)?;
    }
    report.calibration = maker.calibration();
    report.write(&args.out)?;
    remove(&args.out.join(WORK))?;
    println!("{}", report.text());
    eprintln!("page: {}", args.out.join(PAGE).display());
    match found {
        true => Ok(()),
        false => {
            let wanted = match args.keep {
                Some(share) => format!("a form that keeps {share} of the score"),
                None => "a model that says what the one before says, within the limits".into(),
            };
            Err(Error::file(
                &args.out,
                wanted,
                "none (see compress.html there); it is not to be used",
            ))
        }
    }
}

fn check(args: &Args) -> Result<()> {
    let pruned = args.drop_layers > 0 || args.drop_heads > 0 || args.drop_channels > 0.0;
    if !(0.0..1.0).contains(&args.drop_channels) {
        return Err(Error::parameter("--drop-channels", "0 to below 1", args.drop_channels));
    }
    if let Some(keep) = args.keep.filter(|k| !(*k > 0.0 && *k <= 1.0)) {
        return Err(Error::parameter("--keep", "above 0, at most 1", keep));
    }
    if args.data.is_empty() {
        let needs = [
            ("--heal", args.heal > 0),
            ("--drop-layers, --drop-heads and --drop-channels", pruned),
            ("--student", args.student.is_some()),
            ("--method gptq", args.method == Some(Method::Gptq)),
        ];
        if let Some((name, _)) = needs.into_iter().find(|(_, needed)| *needed) {
            return Err(Error::parameter(name, "rows to look at, by --data FILE", "none"));
        }
    }
    if args.heal > 0 && !pruned && args.student.is_none() && args.keep.is_none() {
        let wanted = "0 where nothing is taken out (--drop-layers, --drop-heads, --drop-channels) and nobody \
                      learns (--student)";
        return Err(Error::parameter("--heal", wanted, args.heal));
    }
    if !(args.rate > 0.0 && args.rate <= 1.0) {
        return Err(Error::parameter("--rate", "above 0, at most 1", args.rate));
    }
    if args.tokens == 0 {
        return Err(Error::parameter("--tokens", "at least 1", 0));
    }
    if args.student.is_some() && args.heal == 0 {
        return Err(Error::parameter("--student", "steps to learn in, by --heal STEPS", 0));
    }
    if args.student.is_some() && args.keep.is_some() {
        return Err(Error::parameter("--student", "no search beside it (--keep)", "both"));
    }
    Ok(())
}

fn remove(folder: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, e)),
        _ => Ok(()),
    }
}

impl Report {
    /// Writes the page and the figures into the new model's folder.
    fn write(&self, out: &std::path::Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Other(e.to_string()))?;
        write_atomically(&out.join(JSON), text.as_bytes())?;
        let page = out.join(PAGE);
        self.page().write(&page).map_err(|e| Error::io(&page, e))
    }
}
