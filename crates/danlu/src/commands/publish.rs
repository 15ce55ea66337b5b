use danlu_core::{Error, Recipe, Result};
use danlu_data::Pack;
use danlu_eval::Report;
use danlu_model::io::{Dtype, write_atomically};
use danlu_model::{Model, Module};
use danlu_train::Run;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Write a run's model as a folder to share: half precision, figures and a model card
///
/// The run must have been evaluated (`danlu quickstart --recipe RECIPE` goes on with a run and
/// evaluates it). What the tokenisers lose in half precision is not measured again.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the run
    run: PathBuf,
    /// Folder for the model: a new or empty one, or one that holds a model
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Licence of the weights, as an SPDX identifier
    #[arg(long, value_parser = super::export::licence)]
    licence: String,
}

pub(crate) fn run(args: Args) -> Result<()> {
    super::import::free("--to", &args.to, &["danlu.json"])?;
    let (run, recipe) = Run::resume(&args.run)?;
    let model = Model::load(&run.model(), &danlu_ops::cpu_device())?;
    let path = run.folder.join("eval.json");
    // A run that was not evaluated has no figures to tell.
    let report: Option<Report> = match path.exists() {
        false => None,
        true => {
            let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
            let wrong = |e| Error::file(&path, "the report of an evaluation", e);
            Some(serde_json::from_slice(&bytes).map_err(wrong)?)
        }
    };
    model.save(&args.to, Dtype::F16)?;
    let card = card(&recipe, &model, report.as_ref(), &args.licence)?;
    write_atomically(&args.to.join("README.md"), card.as_bytes())?;
    let size: u64 = std::fs::read_dir(&args.to)
        .map_err(|e| Error::io(&args.to, e))?
        .filter_map(|e| e.ok()?.metadata().ok().map(|m| m.len()))
        .sum();
    eprintln!("{}: {:.1} MB", args.to.display(), size as f64 / 1e6);
    Ok(())
}

/// The model card: what it is, what it was made of, what it can do.
fn card(recipe: &Recipe, model: &Model, report: Option<&Report>, licence: &str) -> Result<String> {
    let mut packs = BTreeMap::new();
    let mut notices = Vec::new();
    for folder in &recipe.data.packs {
        let pack = Pack::open(folder)?;
        let manifest = pack.manifest();
        let sources: Vec<String> =
            manifest.sources.iter().map(|s| format!("{} ({})", s.name, s.licence)).collect();
        packs.insert(manifest.name.clone(), sources);
        notices.push(format!("{}: {}", manifest.name, manifest.notice));
    }
    let mut out = String::new();
    let names: Vec<&String> = packs.keys().collect();
    let c = &model.transformer.config;
    let t = &model.tokenisers;
    let recognisers = [&t.image_semantic, &t.audio_semantic].into_iter().flatten();
    let recognisers: usize = recognisers.map(|r| r.size()).sum();
    let (start, ancestor) = match model.info.from.is_empty() {
        true => ("from nothing ", ""),
        false => (
            "",
            ", from the weights of another training, which `danlu.json` names by their fingerprint",
        ),
    };
    let line = |out: &mut String, text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(
        &mut out,
        format!("---\n{}\nlibrary_name: danlu", danlu_model::export::licence_line(Some(licence))),
    );
    line(
        &mut out,
        format!("language: [en, zh]\ndatasets: {names:?}\nmetrics: [exact_match, chrf, cer]"),
    );
    line(&mut out, format!("model-index:\n- name: {}\n  results: []\n---\n", recipe.name));
    line(&mut out, format!("# {}\n", recipe.name));
    line(
        &mut out,
        format!(
            "A decoder-only transformer of the Qwen3 family for text, 64x64 pictures and 16 kHz \
             sound: {:.1} M parameters in {} layers of width {}, a vocabulary of {} tokens, {:.1} M \
             parameters in the tokenisers of pictures and sounds and {:.1} M in their recognisers. \
             Trained {}for {} steps on {:.1} M tokens{}.\n",
            model.transformer.size() as f64 / 1e6,
            c.depth,
            c.width,
            c.vocabulary,
            (t.image.as_ref().map_or(0, |t| t.size()) + t.audio.as_ref().map_or(0, |t| t.size()))
                as f64
                / 1e6,
            recognisers as f64 / 1e6,
            start,
            model.info.steps,
            model.info.tokens as f64 / 1e6,
            ancestor,
        ),
    );
    line(&mut out, "## Made of\n".into());
    for (name, sources) in &packs {
        line(&mut out, format!("- {name}: {}", sources.join(", ")));
    }
    line(&mut out, String::new());
    for notice in notices {
        line(&mut out, format!("- {notice}"));
    }
    if let Some(report) = report {
        line(&mut out, "\n## Figures\n".into());
        line(
        &mut out,
        "Held out as the column says; `seen` is what was trained on. Chance is one in all concepts. \
         The ceiling is the tokenisers' own reconstruction of what is expected, judged the same \
         way.\n\n| task | held out | metric | n | value | 95 % interval | chance | ceiling |\n\
         |---|---|---|---|---|---|---|---|"
            .into(),
    );
        for s in &report.scores {
            line(&mut out, format!("| {} |", super::eval::cells(s).join(" | ")));
        }
    }
    line(
        &mut out,
        "\n## Limits\n\nIt knows the things of its packs and the kinds of question it was taught, \
         and nothing else; it is no assistant, and its replies say nothing about the world. Not for \
         any use where a wrong reply matters.\n\n## Recipe\n\n```toml"
            .into(),
    );
    out += &recipe.to_toml();
    line(&mut out, "```".into());
    Ok(out)
}
