use super::import::{Precision, free};
use super::parity::row;
use crate::answer::model_folder;
use danlu_core::{Error, Result};
use danlu_model::io::{Dtype, Packing};
use danlu_model::parity::{Limits, PROBE, compare};
use danlu_model::{Model, export, import};
use std::io::Read;
use std::path::PathBuf;

/// Write a model for transformers (a Hugging Face folder) or llama.cpp (a GGUF file)
///
/// What was written is read again and held against the model (`danlu parity`) before it counts as
/// done. Pictures and sounds become special tokens: both libraries then know a model of text.
///
/// Examples:
///   danlu export models/smollm2 --format hf --out smollm2-hf
///   danlu export models/smollm2 --format gguf --type q8_0 --out smollm2.gguf
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Model or run folder
    model: PathBuf,
    /// Form to write
    #[arg(long, value_enum)]
    format: Format,
    /// Precision of the matrices; q8_0, q4_1 and q4_0 are for GGUF
    #[arg(long = "type", value_enum, default_value = "f32", value_name = "TYPE")]
    kind: Kind,
    /// Folder or file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Licence of the weights, as an SPDX identifier (default: that of the imported checkpoint)
    #[arg(long, value_parser = licence)]
    licence: Option<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Format {
    /// Hugging Face folder
    Hf,
    /// GGUF file
    Gguf,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Debug)]
#[value(rename_all = "snake_case")]
enum Kind {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8,
    /// 5 bits a weight; what was imported as Q4_1 goes out as it came
    #[value(name = "q4_1")]
    Q41,
    #[value(name = "q4_0")]
    Q4,
}

impl Kind {
    fn packing(self) -> Packing {
        match self {
            Kind::F32 => Packing::F32,
            Kind::F16 => Packing::F16,
            Kind::Bf16 => Packing::Bf16,
            Kind::Q8 => Packing::Q8_0,
            Kind::Q41 => Packing::Q4_1,
            Kind::Q4 => Packing::Q4_0,
        }
    }

    fn dtype(self) -> Result<Dtype> {
        Ok(match self {
            Kind::F32 => Precision::F32.dtype(),
            Kind::F16 => Precision::F16.dtype(),
            Kind::Bf16 => Precision::Bf16.dtype(),
            Kind::Q8 | Kind::Q41 | Kind::Q4 => {
                let found = format!("{:?} with --format hf", self.packing());
                return Err(Error::parameter("--type", "f32, f16 or bf16", found));
            }
        })
    }

    fn limits(self) -> Limits {
        match self {
            Kind::F32 => Limits::SAME,
            Kind::F16 | Kind::Bf16 => Limits::HALF,
            Kind::Q8 => Limits::EIGHT,
            Kind::Q41 | Kind::Q4 => Limits::FOUR,
        }
    }
}

/// A licence by its identifiers, as SPDX 2.3 writes them together; whether there are such licences is not looked up.
pub(super) fn licence(text: &str) -> std::result::Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.+() ".contains(c);
    let named = text.chars().any(|c| c.is_ascii_alphanumeric());
    match named && text.len() <= 200 && text.chars().all(plain) {
        true => Ok(text.to_string()),
        false => Err("expected an SPDX identifier such as MIT or `Apache-2.0 OR MIT`".into()),
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let folder = model_folder(Some(args.model))?;
    let device = danlu_ops::cpu_device();
    let model = Model::load(&folder, &device)?;
    let licence = args.licence.as_deref();
    match args.format {
        Format::Hf => {
            // A card of ours, so that nobody's own checkpoint is written over.
            let ours = |card: String| card.contains("tags: [danlu]");
            let again = std::fs::read_to_string(args.out.join("README.md")).is_ok_and(ours);
            free("--out", &args.out, if again { &["config.json"] } else { &[] })?;
            if args.out.join("danlu.json").exists() {
                let wanted = "a folder that holds no model of ours";
                return Err(Error::parameter("--out", wanted, args.out.display()));
            }
            let c = &model.transformer.config;
            let llama = !c.qk_norm && c.experts == 0 && c.no_rope.is_empty() && c.out_bias;
            if llama && !c.width.is_multiple_of(c.heads) {
                let wanted = "gguf: with biases it is a Llama to transformers, which wants heads that divide the width";
                let found = format!("{} heads of width {}", c.heads, c.width);
                return Err(Error::parameter("--format", wanted, found));
            }
            export::to_folder(&model, &args.out, args.kind.dtype()?, licence)?;
        }
        Format::Gguf => {
            let mut mark = [0; 4];
            let read = std::fs::File::open(&args.out).and_then(|mut f| f.read_exact(&mut mark));
            if args.out.exists() && !(read.is_ok() && &mark == b"GGUF") {
                let wanted = "a file that is not there yet, or a GGUF file";
                return Err(Error::parameter("--out", wanted, args.out.display()));
            }
            let wider = export::to_gguf(&model, &args.out, args.kind.packing(), licence)?;
            if wider > 0 {
                eprintln!(
                    "note: {wider} matrices have rows that are no whole blocks; they are F16"
                );
            }
        }
    }
    let back = import::import(&args.out, None, &device)?;
    let texts: Vec<String> = PROBE.iter().map(|t| t.to_string()).collect();
    let found = compare(&model, &back, &texts, &args.kind.limits())?;
    eprintln!("{}", row(&args.out.display().to_string(), &found));
    if !found.near {
        let wanted = format!("what the model says, within {:?}", args.kind.limits());
        return Err(Error::file(&args.out, wanted, "another; it is not to be used"));
    }
    Ok(())
}
