use crate::progress::Terminal;
use danlu_core::{Error, Recipe, Result};
use danlu_data::{Corpus, Mixture};
use danlu_model::{Model, Tokenisers};
use danlu_train::{Begun, CodeTable, Run, pretrain};
use std::path::PathBuf;

/// Train a base model (or a single-task one) by a recipe, or go on with a run
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Recipe file (see recipes/)
    recipe: Option<PathBuf>,
    /// Folder of the run (default: runs/NAME)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on with this run instead of starting one
    #[arg(long, value_name = "RUN", conflicts_with_all = ["recipe", "out"])]
    resume: Option<PathBuf>,
    /// Go on from the newest checkpoint of another run, which had another recipe: its tokenisers,
    /// weights, optimiser state, place in the schedule and log are taken over
    #[arg(long, value_name = "RUN", conflicts_with_all = ["resume", "tokenizers"])]
    from: Option<PathBuf>,
    /// Take the tokenisers of this model or run folder instead of learning new ones
    #[arg(long, value_name = "FOLDER")]
    tokenizers: Option<PathBuf>,
    /// Go on although the data is not what this run was trained on so far
    #[arg(long)]
    changed_data: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let with = Begun { tokenizers: args.tokenizers, from: args.from };
    let (run, recipe) = open(args.recipe, args.out, args.resume, &with)?;
    // From the first checkpoint on, everything is in the run.
    let with = match with == Begun::default() && pretrain::has_none(&run).is_ok() {
        true => run.begun()?,
        false => with,
    };
    let tokenisers = with.from.as_ref().map(|from| Run { folder: from.clone() }.tokenisers());
    let options = Options {
        tokenizers: with.tokenizers.or(tokenisers),
        from: with.from,
        changed_data: args.changed_data,
    };
    train(&run, &recipe, options)?;
    eprintln!("model: {}\npage:  {}", run.model().display(), run.page().display());
    Ok(())
}

/// The run that the arguments name, and its recipe.
pub(crate) fn open(
    recipe: Option<PathBuf>,
    out: Option<PathBuf>,
    resume: Option<PathBuf>,
    with: &Begun,
) -> Result<(Run, Recipe)> {
    match (recipe, resume) {
        (None, Some(folder)) => Run::resume(&folder),
        (Some(path), None) => {
            let recipe = Recipe::load(&path)?;
            let folder = out.unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
            Ok((Run::open_with(&folder, &recipe, with)?, recipe))
        }
        _ => Err(Error::parameter("recipe", "a recipe file, or --resume RUN", "neither")),
    }
}

/// What a training begins with beside its recipe.
#[derive(Default)]
pub(crate) struct Options {
    /// Where tokenisers are taken from.
    pub(crate) tokenizers: Option<PathBuf>,
    /// The run that is gone on from.
    pub(crate) from: Option<PathBuf>,
    /// Whether it goes on with data that has changed.
    pub(crate) changed_data: bool,
}

/// Everything from data to model folder; what an earlier call has finished is not done again. With
/// the model comes the data as it was used.
pub(crate) fn train(run: &Run, recipe: &Recipe, options: Options) -> Result<(Model, Corpus)> {
    let Options { tokenizers, from, changed_data } = options;
    let _lock = run.lock()?;
    if let Some(from) = &from {
        let there = Run { folder: from.clone() }.checkpoints();
        if std::fs::read_dir(&there).is_ok_and(|mut all| all.next().is_some()) {
            pretrain::has_none(run)?;
        } else {
            return Err(Error::file(&there, "a checkpoint to go on from", "none"));
        }
    }
    let mut corpus = super::tokenizer::load(recipe)?;
    // What is cheap to find comes before tokenisers are learnt, which takes minutes.
    Mixture::new(&recipe.mixture, &corpus)?;
    danlu_train::doctor::early(recipe, &corpus)?;
    if tokenizers.is_none() && !run.tokenisers().exists() {
        danlu_train::doctor::can_learn(recipe, &corpus)?;
    }
    let mut foreign = None;
    if let Some(base) = &recipe.model.from {
        foreign = Model::vocabulary(base)?.foreign;
        Model::check_files(base)?;
        copy_tokenisers(base, run)?;
    }
    if let Some(from) = tokenizers {
        copy_tokenisers(&from, run)?;
    }
    if recipe.model.from.is_none() {
        super::tokenizer::learn(run, recipe, &corpus, changed_data)?;
    }
    let tokenisers = Tokenisers::load(&run.tokenisers(), foreign, &danlu_ops::cpu_device())?;
    let print = pretrain::codes_fingerprint(recipe, run, &corpus)?;
    let path = run.folder.join("codes.bin");
    let codes = match CodeTable::load(&path, &print) {
        Some(codes) => codes,
        None => {
            let variants = recipe.data.variants;
            let codes =
                CodeTable::make(&corpus, &tokenisers, variants, recipe.seed, &mut Terminal::new())?;
            codes.save(&path, &print)?;
            codes
        }
    };
    if let Some(from) = from {
        let from = Run { folder: from };
        let vocabulary = tokenisers.vocabulary().size();
        let state =
            pretrain::take_over(&from, recipe, run, &corpus, vocabulary, &mut Terminal::new())?;
        eprintln!("going on from step {}", state.step);
    }
    pretrain::check_lengths(recipe, &mut corpus, &tokenisers, &codes)?;
    if changed_data {
        pretrain::accept_changed_data(recipe, run, &corpus)?;
    }
    let mut watcher = crate::dashboard::watcher(recipe.track.dashboard);
    let model = pretrain::pretrain(recipe, run, &corpus, tokenisers, &codes, watcher.as_mut())?;
    Ok((model, corpus))
}

fn copy_tokenisers(from: &std::path::Path, run: &Run) -> Result<()> {
    let inner = from.join("tokenisers");
    let from = if inner.is_dir() { inner } else { from.to_path_buf() };
    let to = run.tokenisers();
    std::fs::create_dir_all(&to).map_err(|e| Error::io(&to, e))?;
    for (name, needed) in Tokenisers::FILES {
        let (path, own) = (from.join(name), to.join(name));
        if own.exists() && !needed && !path.exists() {
            // It was learnt in here.
        } else if own.exists() {
            // Ids of other tokenisers would mean something else, and nobody would see it.
            let bytes = |path: &std::path::Path| std::fs::read(path).ok();
            if bytes(&own) != bytes(&path) {
                let wanted = format!("the tokenisers of {}, or none yet", from.display());
                return Err(Error::file(&own, wanted, "another file"));
            }
        } else if needed || path.exists() {
            let part = to.join(format!("{name}.part"));
            std::fs::copy(&path, &part).map_err(|e| Error::io(&path, e))?;
            std::fs::rename(&part, to.join(name)).map_err(|e| Error::io(&part, e))?;
        }
    }
    Ok(())
}
