use danlu_core::{Error, Result, adapter_folder};
use danlu_model::Model;
use danlu_model::engine::WeightFormat;
use danlu_model::import::open;
use danlu_model::parity::{Comparison, Form, Limits, PROBE, compare_forms};
use std::path::PathBuf;

/// Hold models, or forms of one model, against the first: the same ids, the same log-probabilities?
///
/// Model and run folders, Hugging Face folders and GGUF files. Exits with a failure if one is
/// further from the first than the limits allow; they are those of 32-bit weights, and of the
/// decode engine on a model that is kept in few bits those of its format, unless --limits says
/// otherwise. With --adapter the reference has adapters; --form holds other ways to compute it
/// against the forward pass of training.
///
/// Examples:
///   danlu parity models/smollm2 smollm2-hf smollm2.gguf
///   danlu parity models/smollm2 smollm2-q8.gguf --limits q8
///   danlu parity models/smollm2 --adapter runs/smol-amp --form merged,decode,beside
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The reference
    reference: PathBuf,
    /// What is held against it
    #[arg(required_unless_present = "forms")]
    others: Vec<PathBuf>,
    /// Adapters of the reference, the lowest first
    #[arg(long = "adapter", value_name = "FOLDER")]
    adapters: Vec<PathBuf>,
    /// Forms of the reference that are held against it
    #[arg(long = "form", value_enum, value_delimiter = ',')]
    forms: Vec<Kind>,
    /// Weights of the decode engine: f32, f16, q8_0, q4_0 or q4_k
    #[arg(long, default_value = "f32", value_name = "FORMAT")]
    weights: String,
    /// File of texts to read, one a line (default: eight texts of several kinds)
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// How near is near enough (default: same; of a model kept in few bits, decoded, q8 or q4)
    #[arg(long, value_enum)]
    limits: Option<Near>,
    /// Print one JSON object for each comparison
    #[arg(long)]
    json: bool,
}

/// Another way to compute a model.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Adapters made part of the weights
    Merged,
    /// Adapters taken off and put on again
    Swapped,
    /// The decode engine, adapters merged in
    Decode,
    /// The decode engine, adapters beside the base, as in `danlu serve`
    Beside,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Debug)]
enum Near {
    /// Equal but for the order of sums
    Same,
    /// 16-bit weights
    Half,
    /// 8-bit weights
    Q8,
    /// 4-bit weights
    Q4,
}

impl Near {
    /// What the decode engine is held to on a model that is kept in `format`: it computes in few bits,
    /// which training does not.
    fn of(format: Option<WeightFormat>) -> Self {
        match format {
            Some(WeightFormat::Q8_0) => Near::Q8,
            Some(WeightFormat::Q4_0 | WeightFormat::Q4K) => Near::Q4,
            _ => Near::Same,
        }
    }

    fn limits(self) -> Limits {
        match self {
            Near::Same => Limits::SAME,
            Near::Half => Limits::HALF,
            Near::Q8 => Limits::EIGHT,
            Near::Q4 => Limits::FOUR,
        }
    }
}

/// One comparison in a line.
pub(crate) fn row(name: &str, c: &Comparison) -> String {
    let ids = if c.same_ids { "same ids" } else { "OTHER IDS" };
    let bits = if c.same_bits { ", bit for bit" } else { "" };
    format!(
        "{name}: {}; {} positions, {ids}, {:.2} % agree, log-probabilities {:.1e} apart at most and {:.1e} on \
         average, divergence {:.1e} nats{bits}",
        if c.near { "near" } else { "FAR" },
        c.positions,
        100.0 * c.agreement,
        c.distance,
        c.mean_distance,
        c.divergence
    )
}

pub(crate) fn run(args: Args) -> Result<()> {
    let device = danlu_ops::cpu_device();
    let texts: Vec<String> = match &args.probe {
        None => PROBE.iter().map(|t| t.to_string()).collect(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            text.lines().filter(|l| !l.trim().is_empty()).map(str::to_string).collect()
        }
    };
    let folder = |path: &PathBuf| {
        let inner = path.join("model");
        if inner.join("danlu.json").exists() { inner } else { path.clone() }
    };
    let weights = WeightFormat::parse(&args.weights).ok_or_else(|| {
        let all = WeightFormat::ALL.map(|(name, _)| name).join(", ");
        Error::parameter("--weights", format!("one of {all}"), &args.weights)
    })?;
    let own = folder(&args.reference);
    let reference = if args.adapters.is_empty() {
        open(&own, &device)?
    } else {
        let adapters: Vec<PathBuf> = args.adapters.iter().cloned().map(adapter_folder).collect();
        Model::load_adapted(&own, &adapters, &device)?.0
    };
    let plain = args.limits.unwrap_or(Near::Same);
    let decoded = args.limits.unwrap_or_else(|| Near::of(reference.transformer.frozen_format()));
    let mut far = Vec::new();
    let mut tell = |name: String, form: &mut Form<'_>, near: Near| -> Result<()> {
        let limits = near.limits();
        let found = compare_forms(&mut Form::Train(&reference), form, &texts, &limits)?;
        if args.json {
            let line = serde_json::json!({"reference": args.reference, "model": name,
                "comparison": found});
            println!("{line}");
        } else {
            println!("{}", row(&name, &found));
        }
        if !found.near {
            far.push(format!("{name}, not within {limits:?}"));
        }
        Ok(())
    };
    for path in &args.others {
        let other = open(&folder(path), &device)?;
        tell(path.display().to_string(), &mut Form::Train(&other), plain)?;
    }
    for kind in &args.forms {
        let name = format!("{kind:?}").to_lowercase();
        match kind {
            Kind::Merged | Kind::Swapped => {
                if args.adapters.is_empty() {
                    return Err(Error::parameter("--form", "--adapter with it", name));
                }
                let (tokenisers, info) = (reference.tokenisers.clone(), reference.info.clone());
                let mut transformer = reference.transformer.clone();
                if *kind == Kind::Merged {
                    transformer.merge()?;
                } else {
                    let taken = transformer.detach();
                    transformer.reattach(taken);
                }
                tell(name, &mut Form::Train(&Model { transformer, tokenisers, info }), plain)?;
            }
            Kind::Decode => tell(name, &mut Form::decode(&reference, weights)?, decoded)?,
            Kind::Beside => tell(name, &mut Form::beside(&reference, weights)?, decoded)?,
        }
    }
    if far.is_empty() {
        return Ok(());
    }
    let wanted = format!("models near {}", args.reference.display());
    Err(Error::parameter("parity", wanted, far.join("; ")))
}
