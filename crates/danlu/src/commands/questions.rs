use danlu_core::{Error, Result, recipe::DataRecipe};
use danlu_data::{Corpus, LoadOptions, View, questions, tasks, write_set};
use std::path::PathBuf;

/// Write files of questions from data packs, for `danlu eval`
///
/// Each task and view becomes a folder with `set.jsonl` and the media that it names.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack folders
    #[arg(required = true)]
    packs: Vec<PathBuf>,
    /// Folder for the sets
    #[arg(short, long)]
    output: PathBuf,
    /// Tasks (default: all that the packs have something for)
    #[arg(long)]
    task: Vec<String>,
    /// What was kept from training: seen (nothing), held_style, held_voice, held_concept,
    /// validation
    #[arg(long, default_value = "held_style")]
    view: Vec<String>,
    /// Questions of each task and view
    #[arg(short, default_value_t = 100)]
    n: usize,
    /// Which questions
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.n == 0 {
        return Err(Error::parameter("-n", "at least 1", args.n));
    }
    let data = DataRecipe { scenes: 500, ..DataRecipe::of_packs(args.packs) };
    let corpus = Corpus::load(&data, args.seed, &LoadOptions::default())?;
    let chosen = match args.task.is_empty() {
        true => danlu_data::TASKS.to_vec(),
        false => args.task.iter().map(|t| tasks::find(t)).collect::<Result<_>>()?,
    };
    for name in &args.view {
        let view = view(name)?;
        for task in &chosen {
            let samples = questions(&corpus, *task, view, args.n, args.seed);
            if samples.is_empty() {
                // Not every task has questions in every view.
                if !args.task.is_empty() {
                    eprintln!("{} has no questions in the view {}", task.name(), view.name());
                }
                continue;
            }
            std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
            let folder = args.output.join(format!("{}-{}", task.name(), view.name()));
            let path = write_set(&folder, &samples, &corpus)?;
            println!("{} ({} questions)", path.display(), samples.len());
        }
    }
    Ok(())
}

fn view(name: &str) -> Result<View> {
    View::ALL.into_iter().find(|v| v.name() == name && *v != View::Train).ok_or_else(|| {
        let names: Vec<_> =
            View::ALL.iter().filter(|v| **v != View::Train).map(|v| v.name()).collect();
        Error::parameter("--view", format!("one of {names:?}"), name)
    })
}
