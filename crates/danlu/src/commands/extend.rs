use crate::answer::model_folder;
use danlu_core::{Error, Result};
use danlu_model::io::Dtype;
use danlu_model::{Model, Tokenisers};
use std::path::PathBuf;

/// Give a text model the tokens of pictures and sounds
///
/// The rows that are new are near the mean of the old ones, and want to be learnt: name the result as
/// `model.from` in a recipe of `danlu train`, with the tasks that it is to do.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model or run folder of text alone, for example one of `danlu import`
    #[arg(long)]
    model: PathBuf,
    /// Model or run folder whose tokenisers of pictures and sounds are taken
    #[arg(long, value_name = "FOLDER", default_value = "models/reference")]
    tokenizers: PathBuf,
    /// Folder of the extended model
    #[arg(long)]
    out: PathBuf,
    /// Seed of the new rows
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.out.join("config.json").exists() {
        return Err(Error::parameter("--out", "a folder without a model", args.out.display()));
    }
    let device = danlu_ops::cpu_device();
    let mut model = Model::load(&model_folder(Some(args.model))?, &device)?;
    let inner = args.tokenizers.join("tokenisers");
    let from = if inner.is_dir() { inner } else { args.tokenizers };
    let before = model.transformer.config.vocabulary;
    model.extend(Tokenisers::load(&from, None, &device)?, args.seed)?;
    model.save(&args.out, Dtype::F32)?;
    let after = model.transformer.config.vocabulary;
    eprintln!("extended: {} ({before} to {after} token ids)", args.out.display());
    Ok(())
}
