use super::import::Precision;
use super::parity::row;
use crate::answer::model_folder;
use danlu_core::{Error, Result, adapter_folder};
use danlu_model::adapters::{Adapter, Combine, check_named, combine};
use danlu_model::parity::{Limits, PROBE, compare};
use danlu_model::{Model, ModelInfo};
use std::path::PathBuf;

/// Make adapters part of a model's weights
///
/// With one adapter, or several that were learnt one on top of the other, the result answers as
/// base and adapters do. Several that were learnt on the same base, each for itself, are combined
/// by --combine. The sum is made in full precision.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The base: a model's or a run's folder
    #[arg(long)]
    model: PathBuf,
    /// An adapter's folder, or a tuning's; the lowest first
    #[arg(long = "adapter", value_name = "FOLDER", required = true)]
    adapters: Vec<PathBuf>,
    /// How independent adapters become one
    #[arg(long, value_enum, requires = "adapters")]
    combine: Option<How>,
    /// Weight of each adapter, with --combine (default: 1 each)
    #[arg(long, value_delimiter = ',', requires = "combine")]
    weights: Vec<f32>,
    /// Share of its changes that each adapter keeps (ties, dare; default: 0.5)
    #[arg(long, requires = "combine")]
    density: Option<f32>,
    /// Seed of what is dropped (dare; default: 1)
    #[arg(long, requires = "combine")]
    seed: Option<u64>,
    /// Folder of the merged model
    #[arg(long)]
    out: PathBuf,
    /// Precision of the file
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum How {
    Linear,
    Ties,
    Dare,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let folder = model_folder(Some(args.model))?;
    let others = ["config.json", "adapter_config.json", "danlu.json", "recipe.toml"];
    if let Some(other) = others.into_iter().find(|name| args.out.join(name).exists()) {
        let found = format!("{} with a {other}", args.out.display());
        return Err(Error::parameter("--out", "a folder without a model, adapter or run", found));
    }
    let paths: Vec<PathBuf> = args.adapters.into_iter().map(adapter_folder).collect();
    let device = danlu_ops::cpu_device();
    // What the merged model must answer like: base and adapters, apart, or itself before it is written.
    let (mut model, base, hashes, apart) = match args.combine {
        None => {
            let (mut model, base, hashes) = Model::load_adapted(&folder, &paths, &device)?;
            let apart = model.clone();
            model.transformer.merge()?;
            (model, base, hashes, Some(apart))
        }
        Some(how) => {
            // Which of the options below each way uses.
            let (how, used) = match how {
                How::Linear => (Combine::Linear, 0),
                How::Ties => (Combine::Ties, 1),
                How::Dare => (Combine::Dare, 2),
            };
            let given = [("--density", args.density.is_some()), ("--seed", args.seed.is_some())];
            if let Some((name, _)) = given[used..].iter().find(|(_, given)| *given) {
                let wanted = "nothing: this way to combine does not use it";
                return Err(Error::parameter(*name, wanted, "a value"));
            }
            let (density, seed) = (args.density.unwrap_or(0.5), args.seed.unwrap_or(1));
            let weights = match args.weights.len() {
                0 => vec![1.0; paths.len()],
                n if n == paths.len() => args.weights,
                n => {
                    let wanted = format!("{} numbers, one an adapter", paths.len());
                    return Err(Error::parameter("--weights", wanted, n));
                }
            };
            if let Some(odd) = weights.iter().find(|w| !w.is_finite()) {
                return Err(Error::parameter("--weights", "finite numbers", odd));
            }
            let mut model = Model::load(&folder, &device)?;
            let base = Model::weights_hash(&folder)?;
            let adapters: Vec<Adapter> =
                paths.iter().map(|p| Adapter::load(p)).collect::<Result<_>>()?;
            for (adapter, path) in adapters.iter().zip(&paths) {
                adapter.check_base(&base, &[])?;
                check_named(adapter, path, &folder, &base)?;
            }
            let pairs: Vec<_> = adapters.iter().zip(weights).collect();
            combine(&mut model.transformer, &pairs, how, density, seed)?;
            let hashes = adapters.iter().map(Adapter::hash).collect();
            (model, base, hashes, None)
        }
    };
    let mut from = model.info.from.clone();
    from.push(base);
    from.extend(hashes);
    model.info = ModelInfo { from, ..model.info };
    model.save(&args.out, args.dtype.dtype())?;
    let limits = if args.dtype == Precision::F32 { Limits::SAME } else { Limits::HALF };
    let texts: Vec<String> = PROBE.iter().map(|t| t.to_string()).collect();
    let found = compare(
        apart.as_ref().unwrap_or(&model),
        &Model::load(&args.out, &device)?,
        &texts,
        &limits,
    )?;
    let of = match &apart {
        Some(_) => "merged, against base and adapters",
        None => "combined, as it was written",
    };
    eprintln!("{}", row(of, &found));
    if !found.near {
        let wanted = format!("what base and adapters say, within {limits:?}");
        return Err(Error::file(&args.out, wanted, "another; it is not to be used"));
    }
    eprintln!("merged: {}", args.out.display());
    Ok(())
}
