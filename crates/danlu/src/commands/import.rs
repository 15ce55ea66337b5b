use crate::answer::model_folder;
use danlu_core::{Error, Result};
use danlu_model::Module;
use danlu_model::adapters::adopt;
use danlu_model::io::Dtype;
use std::path::PathBuf;

/// Make a model of somebody else's checkpoint: a Hugging Face folder or a GGUF file
///
/// Llama, Mistral, SmolLM3, Qwen2 and Qwen3 architectures, and the mixtures of experts Mixtral and Qwen3-MoE. The tokeniser and the chat template come along and
/// are bound to the model by hash. What would be computed otherwise (shared experts, partial rotary
/// positions, biases of the output projection) is refused. Pickled weights (.bin, .pt) are never opened. With --base, an
/// adapter in PEFT's form becomes one of that model, if it was learnt on it.
///
/// Examples:
///   danlu import SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2
///   danlu import ~/Qwen3-0.6B --out models/qwen3 --dtype bf16
///   danlu import ~/peft-adapter --base models/qwen3 --out adapters/mine
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Folder with config.json or adapter_config.json, or GGUF file
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
    /// The model that an adapter was learnt on: a model's or a run's folder
    #[arg(long, value_name = "FOLDER")]
    base: Option<PathBuf>,
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

/// Refuses to write into a folder that holds something else than a model; `name` is the parameter that
/// says which one.
pub(crate) fn free(name: &str, out: &std::path::Path, marks: &[&str]) -> Result<()> {
    // What a killed one was about to write is nothing yet.
    let half = |e: std::fs::DirEntry| e.path().extension().is_some_and(|e| e == "part");
    let used = std::fs::read_dir(out).is_ok_and(|mut entries| entries.any(|e| !e.is_ok_and(half)));
    if used && !marks.iter().any(|m| out.join(m).exists()) {
        let wanted = "an empty folder, or one that it wrote before";
        return Err(Error::parameter(name, wanted, out.display()));
    }
    Ok(())
}

pub(crate) fn run(args: Args) -> Result<()> {
    let begun = std::time::Instant::now();
    let adapts = args.source.join("adapter_config.json").exists();
    match args.base {
        Some(base) if adapts => return import_adapter(&args.source, base, &args.out),
        None if adapts => {
            let wanted = "the model that the adapter was learnt on";
            return Err(Error::parameter("--base", wanted, "nothing"));
        }
        Some(base) => {
            let wanted = "an adapter (a folder with adapter_config.json) for --base";
            return Err(Error::file(&args.source, wanted, base.display()));
        }
        None => {}
    }
    free("--out", &args.out, &["danlu.json"])?;
    let dtype = args.dtype.dtype();
    let model = danlu_model::import::convert(&args.source, args.system, &args.out, dtype)?;
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

/// Takes an adapter of another program in as one of the model in the folder `base`.
fn import_adapter(source: &std::path::Path, base: PathBuf, out: &std::path::Path) -> Result<()> {
    free("--out", out, &["adapter_config.json"])?;
    let taken = adopt(source, &model_folder(Some(base))?)?;
    taken.adapter.publish(out, &taken.base)?;
    if let Some(name) = taken.unchecked {
        eprintln!(
            "note: its base is called {name:?}, which is not on this machine; that it is the one \
             named here is taken on trust"
        );
    }
    eprintln!(
        "{}: adapter `{}` of rank {} on {} projections ({:.2} M parameters)",
        out.display(),
        taken.adapter.info.name,
        taken.adapter.config.rank,
        taken.adapter.deltas.len(),
        taken.adapter.size() as f64 / 1e6
    );
    Ok(())
}
