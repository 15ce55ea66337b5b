use super::import::{Precision, free};
use super::parity::row;
use crate::answer::model_folder;
use danlu_core::{Error, Result};
use danlu_model::io::{Dtype, Packing};
use danlu_model::parity::{Limits, PROBE, compare};
use danlu_model::{Model, export, import};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Write a model for transformers (a Hugging Face folder) or llama.cpp (a GGUF file)
///
/// What was written is read again and held against the model (`danlu parity`) before it takes the
/// place of what was there. Pictures and sounds become special tokens: both libraries then know a model of text.
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
    let Args { model, format, out, .. } = &args;
    let model = Model::load(&model_folder(Some(model.clone()))?, &danlu_ops::cpu_device())?;
    match format {
        Format::Hf => {
            // A card of ours, so that nobody's own checkpoint is written over.
            let card = out.join("README.md");
            let ours = |card: String| card.contains("tags: [danlu]");
            let again = card.is_file() && std::fs::read_to_string(card).is_ok_and(ours);
            free("--out", out, if again { &["config.json"] } else { &[] })?;
            if out.join("danlu.json").exists() {
                let wanted = "a folder that holds no model of ours";
                return Err(Error::parameter("--out", wanted, out.display()));
            }
            let c = &model.transformer.config;
            let llama = !c.qk_norm && c.experts == 0 && c.no_rope.is_empty() && c.out_bias;
            if llama && !c.width.is_multiple_of(c.heads) {
                let wanted = "gguf: with biases it is a Llama to transformers, which wants heads that divide the width";
                let found = format!("{} heads of width {}", c.heads, c.width);
                return Err(Error::parameter("--format", wanted, found));
            }
        }
        Format::Gguf => {
            let mut mark = [0; 4];
            let mut begins = || std::fs::File::open(out).and_then(|mut f| f.read_exact(&mut mark));
            let gguf = out.is_file() && begins().is_ok() && &mark == b"GGUF";
            if out.exists() && !gguf {
                let wanted = "a file that is not there yet, or a GGUF file";
                return Err(Error::parameter("--out", wanted, out.display()));
            }
        }
    }
    let first = !out.exists();
    let part = unchecked(*format, out);
    let done = write_and_compare(&args, &model, &part).and_then(|()| take_place(&part, out));
    if done.is_err() {
        // It is of no use; if it cannot be removed the error says more.
        let _ = match format {
            Format::Hf => std::fs::remove_dir_all(&part),
            Format::Gguf => std::fs::remove_file(&part),
        };
        if first && *format == Format::Hf {
            let _ = std::fs::remove_dir(out);
        }
    }
    done.map_err(|error| of_place(error, &part, out))
}

/// Where what is written stays until it was compared: within the folder, or beside the file.
fn unchecked(format: Format, out: &Path) -> PathBuf {
    match format {
        Format::Hf => out.join(".unchecked.part"),
        Format::Gguf => {
            let mut name = OsString::from(".unchecked-");
            name.push(out.file_name().unwrap_or_default());
            out.with_file_name(name)
        }
    }
}

/// Writes the model to `part`, reads it again and holds it against the model.
fn write_and_compare(args: &Args, model: &Model, part: &Path) -> Result<()> {
    let Args { format, kind, out, .. } = args;
    let licence = args.licence.as_deref();
    match format {
        Format::Hf => {
            if part.exists() {
                // Of one that was killed.
                std::fs::remove_dir_all(part).map_err(|e| Error::io(part, e))?;
            }
            export::to_folder(model, part, kind.dtype()?, licence)?;
        }
        Format::Gguf => {
            let wider = export::to_gguf(model, part, kind.packing(), licence)?;
            if wider > 0 {
                eprintln!(
                    "note: {wider} matrices have rows that are no whole blocks; they are F16"
                );
            }
        }
    }
    let back = import::import(part, None, &danlu_ops::cpu_device())?;
    let texts: Vec<String> = PROBE.iter().map(|t| t.to_string()).collect();
    let found = compare(model, &back, &texts, &kind.limits())?;
    eprintln!("{}", row(&out.display().to_string(), &found));
    if !found.near {
        let wanted = format!("what the model says, within {:?}", kind.limits());
        return Err(Error::file(out, wanted, "another; it was not kept"));
    }
    Ok(())
}

/// Puts what was compared where it was asked for: a file, or the files of a folder.
fn take_place(part: &Path, out: &Path) -> Result<()> {
    let moved = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(|e| Error::io(to, e));
    if !part.is_dir() {
        return moved(part, out);
    }
    let wrong = |e| Error::io(part, e);
    for entry in std::fs::read_dir(part).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        moved(&entry.path(), &out.join(entry.file_name()))?;
    }
    std::fs::remove_dir(part).map_err(wrong)
}

/// An error about what is not in its place yet, as one about where it was asked for.
fn of_place(error: Error, part: &Path, out: &Path) -> Error {
    let place = |path: PathBuf| match path.strip_prefix(part) {
        Ok(rest) if rest == Path::new("") => out.to_path_buf(),
        Ok(rest) => out.join(rest),
        Err(_) => path,
    };
    match error {
        Error::File { path, expected, found } => Error::File { path: place(path), expected, found },
        Error::Io { path, source } => Error::Io { path: place(path), source },
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_until_another_takes_its_place() {
        let at = std::env::temp_dir().join(format!("danlu-place-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir_all(&at).unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let file = at.join("a.gguf");
        let part = unchecked(Format::Gguf, &file);
        assert_eq!(part, at.join(".unchecked-a.gguf"));
        std::fs::write(&file, "old").unwrap();
        std::fs::write(&part, "new").unwrap();
        let error = of_place(Error::file(&part, "one", "another"), &part, &file).to_string();
        assert!(error.starts_with(&format!("{}: ", file.display())), "{error}");
        assert_eq!(read(&file), "old");
        take_place(&part, &file).unwrap();
        assert_eq!(read(&file), "new");
        assert!(!part.exists());
        let folder = at.join("hf");
        let part = unchecked(Format::Hf, &folder);
        std::fs::create_dir_all(&part).unwrap();
        free("--out", &folder, &[]).expect("what a killed one left is nothing");
        for name in ["config.json", "README.md"] {
            std::fs::write(folder.join(name), "old").unwrap();
            std::fs::write(part.join(name), "new").unwrap();
        }
        let error =
            of_place(Error::file(part.join("config.json"), "one", "another"), &part, &folder);
        assert!(error.to_string().contains(&folder.join("config.json").display().to_string()));
        take_place(&part, &folder).unwrap();
        assert!(["config.json", "README.md"].iter().all(|name| read(&folder.join(name)) == "new"));
        assert!(!part.exists());
        std::fs::remove_dir_all(&at).unwrap();
    }
}
