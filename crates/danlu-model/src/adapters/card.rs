//! The model card of an adapter's folder: a README with the head that hubs read.

use super::Adapter;
use crate::export::licence_line;
use crate::model::ModelInfo;
use danlu_core::{Error, Result};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

impl Adapter {
    /// Writes the folder ([`Adapter::save`]) and a model card that names the base.
    pub fn publish(&self, folder: &Path, base: &ModelInfo) -> Result<()> {
        self.save(folder)?;
        let path = folder.join("README.md");
        let card = self.card(base).map_err(|e| Error::file(&path, "a model card", e))?;
        crate::io::write_atomically(&path, card.as_bytes())
    }

    fn card(&self, base: &ModelInfo) -> Result<String, std::fmt::Error> {
        let (info, c, origin) = (&self.info, &self.config, base.origin.as_ref());
        let licence = licence_line(origin.and_then(|o| o.licence.as_deref()));
        let called = origin.map_or(base.name.as_str(), |o| o.file.as_str());
        let kind = if c.dora { "dora" } else { "lora" };
        let data: Vec<&String> = info.data.keys().collect();
        let mut out = String::new();
        writeln!(out, "---\n{licence}")?;
        writeln!(out, "library_name: peft\npipeline_tag: text-generation")?;
        writeln!(out, "base_model: {}\nbase_model_relation: adapter", Value::from(called))?;
        if !data.is_empty() {
            writeln!(out, "datasets: {}", serde_json::json!(data))?;
        }
        writeln!(out, "tags: [danlu, {kind}]\n---\n\n# {}\n", info.name)?;
        let targets: Vec<&str> = c.targets.iter().map(|t| t.name()).collect();
        writeln!(
            out,
            "An adapter ({}) of rank {} and alpha {} on {}: {:.2} M parameters. Learnt by Danlu.",
            kind.to_uppercase(),
            c.rank,
            c.alpha,
            targets.join(", "),
            self.size() as f64 / 1e6
        )?;
        if info.steps > 0 {
            writeln!(out, "\nTrained for {} steps on {} tokens.", info.steps, info.tokens)?;
        }
        if let Some(hash) = &info.base {
            let between = match info.parents.len() {
                0 => String::new(),
                1 => ", with an adapter between, which `danlu.json` names by its hash".into(),
                n => format!(", with {n} adapters between, which `danlu.json` names by hash"),
            };
            writeln!(
                out,
                "\nIt goes on `{called}`, whose weights have the BLAKE3 hash `{hash}`{between}, and \
                 is refused elsewhere."
            )?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::noisy;
    use super::*;
    use crate::model::Origin;
    use danlu_core::LoraConfig;

    #[test]
    fn the_card_names_the_base_and_the_data() {
        let mut adapter = noisy(&LoraConfig { rank: 2, ..Default::default() }, 3, "scenario");
        adapter.info.base = Some("b4".into());
        adapter.info.parents = vec!["1d".into()];
        adapter.info.data.insert("train.jsonl".into(), "da".into());
        let origin = Origin {
            file: "base: 1.gguf".into(),
            hash: "0f".into(),
            licence: Some("Apache-2.0".into()),
        };
        let base = ModelInfo { origin: Some(origin), ..ModelInfo::default() };
        let card = adapter.card(&base).expect("text");
        let (head, rest) = card.trim_start_matches("---\n").split_once("\n---\n").expect("a head");
        for line in [
            "license: apache-2.0",
            "base_model: \"base: 1.gguf\"",
            "base_model_relation: adapter",
            "datasets: [\"train.jsonl\"]",
        ] {
            assert!(head.lines().any(|l| l == line), "{line} in {head}");
        }
        for word in ["# scenario", "rank 2", "`b4`", "an adapter between"] {
            assert!(rest.contains(word), "{word} in {rest}");
        }
    }
}
