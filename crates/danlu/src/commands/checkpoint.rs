use crate::answer::model_folder;
use crate::progress::Terminal;
use danlu_core::{Result, TuneRecipe};
use danlu_model::io::Dtype;
use danlu_train::{Run, pick, tune};
use std::path::PathBuf;

/// List the checkpoints of a run of a training or a tuning, or make a model (or an adapter) of one
///
/// A run ends with the model of its last step. Where the recipe keeps the best (`best = true` under
/// `[checkpoint]`), `--step best` takes the one of the lowest validation loss instead.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the run
    run: PathBuf,
    /// Which checkpoint: best, newest, or a step
    #[arg(long, requires = "out")]
    step: Option<String>,
    /// Folder for the model or the adapter: a new or empty one, or one that holds one
    #[arg(long, value_name = "FOLDER", requires = "step")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let run = Run::at(&args.run)?;
    let (Some(step), Some(out)) = (args.step, args.out) else {
        let all = pick::checkpoints(&run);
        if all.is_empty() {
            println!("no checkpoints in {}", run.checkpoints().display());
        }
        for (i, c) in all.iter().enumerate() {
            let best = c.best.map(|loss| format!("best, validation loss {loss:.4}"));
            let newest = (i + 1 == all.len()).then(|| "newest".to_string());
            let marks: Vec<String> = best.into_iter().chain(newest).collect();
            let line = format!("step {:>8}  {}  {}", c.step, c.folder.display(), marks.join(", "));
            println!("{}", line.trim_end());
        }
        return Ok(());
    };
    let picked = pick::find(&run, &step)?;
    if TuneRecipe::is_at(&run.recipe()) {
        let (_, recipe) = tune::resume(&args.run)?;
        let mark = if recipe.lora.is_some() { "adapter_config.json" } else { "danlu.json" };
        super::import::free("--out", &out, &[mark])?;
        let base = model_folder(Some(recipe.model.clone()))?;
        pick::tuned(&recipe, &base, &picked, &out, &mut Terminal::new())?;
    } else {
        super::import::free("--out", &out, &["danlu.json"])?;
        let (run, recipe) = Run::resume(&args.run)?;
        pick::trained(&recipe, &run, &picked)?.save(&out, Dtype::F32)?;
    }
    eprintln!("{}: step {}", out.display(), picked.step);
    Ok(())
}
