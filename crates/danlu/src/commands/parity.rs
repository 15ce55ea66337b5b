use danlu_core::{Error, Result};
use danlu_model::import::open;
use danlu_model::parity::{Comparison, Limits, PROBE, compare};
use std::path::PathBuf;

/// Hold models, or forms of one model, against the first: the same ids, the same logits?
///
/// Model and run folders, Hugging Face folders and GGUF files. Exits with a failure if one is
/// further from the first than the limits allow; they are those of 32-bit weights, unless --limits
/// says otherwise.
///
/// Examples:
///   danlu parity models/smollm2 smollm2-hf smollm2.gguf
///   danlu parity models/smollm2 smollm2-q8.gguf --limits q8
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The reference
    reference: PathBuf,
    /// What is held against it
    #[arg(required = true)]
    others: Vec<PathBuf>,
    /// File of texts to read, one a line (default: eight texts of several kinds)
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// How near is near enough
    #[arg(long, value_enum, default_value = "same")]
    limits: Near,
    /// Print one JSON object for each comparison
    #[arg(long)]
    json: bool,
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
        "{name}: {}; {} positions, {ids}, {:.2} % agree, logits {:.1e} apart at most and {:.1e} on \
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
    let reference = open(&folder(&args.reference), &device)?;
    let mut far = Vec::new();
    for path in &args.others {
        let other = open(&folder(path), &device)?;
        let found = compare(&reference, &other, &texts, &args.limits.limits())?;
        let name = path.display().to_string();
        if args.json {
            let line = serde_json::json!({"reference": args.reference, "model": path,
                "comparison": found});
            println!("{line}");
        } else {
            println!("{}", row(&name, &found));
        }
        if !found.near {
            far.push(name);
        }
    }
    if far.is_empty() {
        return Ok(());
    }
    let wanted =
        format!("models within {:?} of {}", args.limits.limits(), args.reference.display());
    Err(Error::parameter("parity", wanted, far.join(", ")))
}
