use crate::answer::model_folder;
use crate::progress::{Terminal, Unkept};
use danlu_core::recipe::DataRecipe;
use danlu_core::{Error, Result};
use danlu_data::{Corpus, LoadOptions};
use danlu_model::io::Dtype;
use danlu_model::{Model, Tokenisers};
use danlu_train::CodeTable;
use std::path::PathBuf;

/// Give a text model the tokens of pictures and sounds
///
/// The rows that are new are near the mean of the old ones, and want to be learnt: name the result as
/// `model.from` in a recipe of `danlu train`, with the tasks that it is to do. What the recognisers tell
/// apart is learnt sooner if it begins at the words for it, which packs know (`--pack`).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model or run folder of text alone, for example one of `danlu import`
    #[arg(long)]
    model: PathBuf,
    /// Model or run folder whose tokenisers of pictures and sounds are taken
    #[arg(long, value_name = "FOLDER", default_value = "models/reference")]
    tokenizers: PathBuf,
    /// Data pack: what its pictures show and its sounds say is where their tokens begin (repeatable)
    #[arg(long = "pack", value_name = "FOLDER")]
    packs: Vec<PathBuf>,
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
    let donor = Tokenisers::load(&from, None, &device)?;
    let meanings = match args.packs.is_empty() {
        true => Vec::new(),
        false => {
            let data = DataRecipe::of_packs(args.packs);
            let corpus = Corpus::load(&data, args.seed, &LoadOptions::default())?;
            let _unkept = Unkept::begin();
            let codes = CodeTable::make(&corpus, &donor, 0, args.seed, &mut Terminal::new())?;
            codes.meanings(&corpus, &donor.vocabulary())
        }
    };
    model.extend(donor, &meanings, args.seed)?;
    model.save(&args.out, Dtype::F32)?;
    let after = model.transformer.config.vocabulary;
    eprintln!(
        "extended: {} ({before} to {after} token ids, {} of them beginning at words)",
        args.out.display(),
        meanings.len()
    );
    Ok(())
}
