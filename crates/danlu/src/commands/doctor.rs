use danlu_core::{Error, Recipe, Result, TuneRecipe};
use danlu_train::doctor::{Level, examine};
use std::path::PathBuf;

/// Look at machine, files, recipe and data before a run, and reckon the memory and the time it will take
///
/// Prints a table of findings, the time by a step that is taken and thrown away. Ends with an error if one of
/// them makes the run impossible, such as a longest batch that does not fit into memory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Recipe file of a training or a tuning
    recipe: PathBuf,
    /// Folder of the run (default: runs/NAME)
    #[arg(long)]
    out: Option<PathBuf>,
    /// What an hour of this machine costs, to reckon the run's cost
    #[arg(long, value_name = "PRICE")]
    per_hour: Option<f64>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let tuning = |_| TuneRecipe::load(&args.recipe).map(|r| r.name);
    let name = Recipe::load(&args.recipe).map(|r| r.name).or_else(tuning).unwrap_or_default();
    let folder = args.out.unwrap_or_else(|| PathBuf::from("runs").join(name));
    if let Some(price) = args.per_hour.filter(|p| !(0.0..=1e9).contains(p)) {
        return Err(Error::parameter("--per-hour", "0 to 1e9", price));
    }
    let findings = examine(&args.recipe, &folder, args.per_hour);
    for f in &findings {
        let level = match f.level {
            Level::Good => "ok",
            Level::Careful => "careful",
            Level::Bad => "BAD",
        };
        println!("{level:8}{:9}{}", f.of, f.words);
    }
    let bad: Vec<&str> =
        findings.iter().filter(|f| f.level == Level::Bad).map(|f| f.words.as_str()).collect();
    match bad[..] {
        [] => Ok(()),
        _ => Err(Error::Other(format!("this run cannot work: {}", bad.join("; ")))),
    }
}
