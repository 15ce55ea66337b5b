use crate::answer::model_folder;
use danlu_core::{Error, Result, TuneRecipe};
use danlu_train::tune;
use std::path::PathBuf;

/// Adapt a base to rows of your own: an adapter (LoRA, DoRA) or all weights
///
/// The recipe names the base, the files (OpenAI messages, alpaca, sharegpt, preferences, plain
/// text) and what is learnt: replies, preferences (DPO), or what a rule rewards (GRPO). The result
/// is a folder that PEFT reads too.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Recipe file (see recipes/tune/)
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
}

pub(crate) fn run(args: Args) -> Result<()> {
    let (run, recipe) = match (args.recipe, args.resume) {
        (None, Some(folder)) => tune::resume(&folder)?,
        (Some(path), None) => {
            let recipe = TuneRecipe::load(&path)?;
            let folder = args.out.unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
            (tune::open(&folder, &recipe)?, recipe)
        }
        _ => return Err(Error::parameter("recipe", "a recipe file, or --resume RUN", "neither")),
    };
    let _lock = run.lock()?;
    let base = model_folder(Some(recipe.model.clone()))?;
    let mut watcher = crate::dashboard::watcher(recipe.track.dashboard);
    let made = tune::tune(&recipe, &run, &base, args.changed_data, watcher.as_mut())?;
    eprintln!("learnt: {}\npage:   {}", made.display(), run.page().display());
    Ok(())
}
