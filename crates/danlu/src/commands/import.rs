use danlu_core::{Error, Result};
use danlu_model::Module;
use danlu_model::io::Dtype;
use std::path::PathBuf;

/// Make a model of somebody else's checkpoint: a Hugging Face folder or a GGUF file
///
/// Llama, Mistral, Qwen2 and Qwen3 architectures. The tokeniser and the chat template come along and
/// are bound to the model by hash. What would be computed otherwise (sliding windows, scaled rotary
/// positions, experts) is refused. Pickled weights (.bin, .pt) are never opened.
///
/// Examples:
///   danlu import SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2
///   danlu import ~/Qwen3-0.6B --out models/qwen3 --dtype bf16
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Folder with config.json, or GGUF file
    source: PathBuf,
    /// Folder for the model; must not exist, or hold a model that is written over
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Precision of the weights in the folder
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// Default system prompt of conversations, bound to the model
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

/// Precision of weights in files.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Debug)]
pub(crate) enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    /// As safetensors names it.
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::F16 => Dtype::F16,
            Precision::Bf16 => Dtype::BF16,
        }
    }
}

/// Refuses to write into a folder that holds something else than a model.
pub(crate) fn free(out: &std::path::Path, marks: &[&str]) -> Result<()> {
    let used = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if used && !marks.iter().any(|m| out.join(m).exists()) {
        let wanted = "an empty folder, or one that holds a model";
        return Err(Error::parameter("--out", wanted, out.display()));
    }
    Ok(())
}

pub(crate) fn run(args: Args) -> Result<()> {
    let begun = std::time::Instant::now();
    free(&args.out, &["danlu.json"])?;
    let model = danlu_model::import::import(&args.source, args.system, &danlu_ops::cpu_device())?;
    model.save(&args.out, args.dtype.dtype())?;
    let c = &model.transformer.config;
    eprintln!(
        "{}: {}, {:.1} M parameters in {} layers of width {}, {} tokens, context {} ({:.1} s)",
        args.out.display(),
        model.info.name,
        model.transformer.size() as f64 / 1e6,
        c.depth,
        c.width,
        c.vocabulary,
        c.context,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}
