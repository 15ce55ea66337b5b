use crate::progress::Terminal;
use danlu_core::{Recipe, Result};
use danlu_data::{Corpus, LoadOptions};
use danlu_train::{Begun, Run, tokeniser_page, tokenisers};
use std::path::PathBuf;

/// Learn the text, image and audio tokenisers of a recipe
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Learn all three and show what they keep of pictures and sounds
    Train {
        /// Recipe file
        recipe: Option<PathBuf>,
        /// Folder of the run (default: runs/NAME)
        #[arg(long)]
        out: Option<PathBuf>,
        /// Go on with this run instead of starting one
        #[arg(long, value_name = "RUN", conflicts_with_all = ["recipe", "out"])]
        resume: Option<PathBuf>,
        /// Go on although the data is not what this run was trained on so far
        #[arg(long)]
        changed_data: bool,
    },
}

pub(crate) fn run(args: Args) -> Result<()> {
    let What::Train { recipe, out, resume, changed_data } = args.what;
    let (run, recipe) = super::train::open(recipe, out, resume, &Begun::default())?;
    let _lock = run.lock()?;
    let corpus = load(&recipe)?;
    learn(&run, &recipe, &corpus, changed_data)
}

/// Reads the data of a recipe and says what there is.
pub(crate) fn load(recipe: &Recipe) -> Result<Corpus> {
    let options = LoadOptions { max_seconds: recipe.audio.max_seconds, ..Default::default() };
    let corpus = Corpus::load(&recipe.data, recipe.seed, &options)?;
    eprintln!(
        "data: {} concepts, {} pictures, {} sounds, {} texts, {} scenes, {} conversations",
        corpus.concepts.len(),
        corpus.pictures.len(),
        corpus.sounds.len(),
        corpus.texts.len(),
        corpus.scenes.len(),
        corpus.samples.len()
    );
    for line in corpus.notices.iter().chain(&corpus.skipped) {
        eprintln!("note: {line}");
    }
    Ok(corpus)
}

/// Learns the tokenisers and prints how much they keep. With `changed` they go on with data that is
/// not what they were begun on.
pub(crate) fn learn(run: &Run, recipe: &Recipe, corpus: &Corpus, changed: bool) -> Result<()> {
    if changed {
        tokenisers::accept_changed_data(recipe, run, corpus)?;
    }
    let all = tokenisers::train_all(recipe, run, corpus, &mut Terminal::new())?;
    if run.folder.join("tokenisers.html").exists() {
        return Ok(());
    }
    for q in tokeniser_page(run, corpus, &all)? {
        let figures: Vec<String> =
            q.figures.iter().map(|(name, value)| format!("{name} {value:.2}")).collect();
        eprintln!(
            "  {} ({}): {}, {:.0} % of the codebook{}",
            q.of,
            q.n,
            figures.join(", "),
            100.0 * q.codes_used,
            q.recognised.map_or(String::new(), |r| format!(", {:.1} % recognised", 100.0 * r))
        );
    }
    eprintln!("examples: {}", run.folder.join("tokenisers.html").display());
    Ok(())
}
