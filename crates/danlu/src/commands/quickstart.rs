use super::train::Options;
use danlu_core::{Error, Recipe, Result};
use danlu_data::{Corpus, View, questions, tasks};
use danlu_eval::{Gallery, Question, write_page};
use danlu_model::Model;
use danlu_train::{Begun, Run};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// From the sample pack to a trained model and a page, in a few minutes
///
/// Learns the three tokenisers and the base model, evaluates it in every direction between text,
/// picture and sound, and leaves pages to look at and listen to. Run it again to go on after an
/// interruption.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Recipe file
    #[arg(long, default_value = "recipes/quickstart.toml")]
    recipe: PathBuf,
    /// Folder of the run (default: runs/NAME)
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let (run, recipe) = super::train::open(Some(args.recipe), args.out, None, &Begun::default())?;
    let (model, corpus) = super::train::train(&run, &recipe, Options::default())?;
    let page = evaluate(&run, &recipe, &corpus, &model)?;
    eprintln!(
        "\ndone in {:.0} s. Look at\n  {}  training, samples, recipe\n  {}  evaluation\n  {}  what the tokenisers keep\n\
         and try\n  danlu generate \"Draw cat face\" --model {} --to image -o cat.png\n  danlu chat --model {}",
        start.elapsed().as_secs_f64(),
        run.page().display(),
        page.display(),
        run.folder.join("tokenisers.html").display(),
        run.folder.display(),
        run.folder.display(),
    );
    Ok(())
}

/// Questions of every trained task in every view that the data has something for.
pub(crate) fn all_questions(recipe: &Recipe, corpus: &Corpus) -> Result<Vec<Question>> {
    let mut all = Vec::new();
    for (name, &weight) in &recipe.mixture {
        if weight <= 0.0 {
            continue;
        }
        for view in [View::Seen, View::HeldStyle, View::HeldVoice, View::HeldConcept] {
            let n = recipe.eval.questions;
            for sample in questions(corpus, tasks::find(name)?, view, n, recipe.seed) {
                let question = Question::new(all.len() + 1, sample, view.name());
                all.push(question.map_err(Error::Other)?);
            }
        }
    }
    Ok(all)
}

/// Evaluates a run's model in every direction; writes `eval.json` and `eval.html`.
pub(crate) fn evaluate(
    run: &Run,
    recipe: &Recipe,
    corpus: &Corpus,
    model: &Model,
) -> Result<PathBuf> {
    let questions = all_questions(recipe, corpus)?;
    let (questions, over) = crate::answer::fitting(model, questions, corpus)?;
    over.iter().for_each(|line| eprintln!("not asked: {line}"));
    let gallery = Gallery::of_corpus(corpus, 2);
    let style = super::eval::style(recipe.eval.temperature, recipe.eval.guidance, recipe.seed);
    let done = super::eval::measure(model, &questions, corpus, &gallery, style)?;
    super::eval::print(&done.report);
    super::eval::write_json(&run.folder.join("eval.json"), &done.report)?;
    let path: &Path = &run.folder.join("eval.html");
    let title = format!("Evaluation of {}", recipe.name);
    write_page(path, &title, &corpus.notices, &done.report, &questions, &done.answers, corpus)?;
    danlu_train::run_page(run, recipe, corpus)?;
    Ok(path.to_path_buf())
}
