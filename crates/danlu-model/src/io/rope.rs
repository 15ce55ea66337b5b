//! Scaled rotary angles as a `config.json` of Hugging Face and as GGUF write them.

use super::gguf::{Gguf, Value};
use crate::arch::{RopeScaling, TransformerConfig};
use danlu_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Where a `config.json` keeps what it says of rotary angles. In transformers, what is said in the older
/// place counts where both are there.
const PLACES: [&str; 2] = ["rope_scaling", "rope_parameters"];
const KINDS: &str = "`rope_type` default, linear, dynamic, llama3, yarn or longrope";
/// The tensor of GGUF with a divisor for each pair.
pub const FACTORS: &str = "rope_freqs.weight";

/// What a `config.json` says of rotary angles.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Rope {
    /// Their base, if it is here.
    pub(super) theta: Option<f32>,
    pub(super) scaling: Option<RopeScaling>,
    /// The longest context that they are right for, if they are not for every one.
    pub(super) context: Option<usize>,
}

/// What stands beside those places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside {
    /// `max_position_embeddings`.
    pub(super) context: usize,
    /// `original_max_position_embeddings`.
    pub(super) taught: Option<usize>,
    /// `rope_theta`.
    pub(super) theta: Option<f32>,
}

/// Reads `rope_scaling`, or `rope_parameters` of newer files; `places` are their values.
pub(super) fn of_config(path: &Path, places: [&Json; 2], beside: Beside) -> Result<Rope> {
    let Beside { context, taught, theta: usual } = beside;
    let mut all: Vec<(&str, &Map<String, Json>)> = Vec::new();
    for (place, value) in PLACES.into_iter().zip(places) {
        match value {
            Json::Null => {}
            Json::Object(map) if map.is_empty() => {}
            Json::Object(map) => all.push((place, map)),
            other => return Err(Error::file(path, format!("an object under `{place}`"), other)),
        }
    }
    let Some(&(place, map)) = all.first() else { return Ok(Rope::default()) };
    if let Some((key, _)) = map.iter().find(|(_, value)| value.is_object()) {
        let wanted = format!("`{place}` for all layers alike");
        return Err(Error::file(path, wanted, format!("`{key}` by itself")));
    }
    let theta = number(path, place, map, "rope_theta")?;
    // A base that stands in the place that does not count would be lost.
    if let (None, Some(&(other, besides))) = (theta, all.get(1))
        && let Some(lost) = number::<f32>(path, other, besides, "rope_theta")?
        && Some(lost) != usual
    {
        let wanted = format!("`rope_theta` under `{place}`, which is read where both are there");
        return Err(Error::file(path, wanted, format!("one under `{other}`")));
    }
    let kind = map.get("rope_type").or_else(|| map.get("type")).filter(|k| !k.is_null());
    let kind = match kind {
        None => "default",
        Some(Json::String(kind)) => kind,
        Some(other) => return Err(Error::file(path, format!("`{place}`: {KINDS}"), other)),
    };
    if let Some(share) = number::<f32>(path, place, map, "partial_rotary_factor")?
        && share != 1.0
    {
        return Err(Error::file(path, format!("`{place}.partial_rotary_factor` 1"), share));
    }
    let needed = |key: &str| {
        let missing = || Error::file(path, format!("a number `{place}.{key}`"), "none");
        number::<f32>(path, place, map, key)?.ok_or_else(missing)
    };
    let original = || {
        let given = number::<usize>(path, place, map, "original_max_position_embeddings")?;
        Ok::<usize, Error>(taught.or(given).unwrap_or(context))
    };
    // What is not given is how much longer the context became.
    let factor = |original: usize| {
        let given = number::<f32>(path, place, map, "factor")?;
        Ok::<f32, Error>(given.unwrap_or(context as f32 / original.max(1) as f32))
    };
    let none = Rope { theta, ..Rope::default() };
    let scaled = |scaling| Rope { scaling: Some(scaling), ..none.clone() };
    Ok(match kind {
        // What is called dynamic begins where the context that was taught ends.
        "default" | "dynamic" => none,
        "linear" => scaled(RopeScaling::Linear { factor: needed("factor")? }),
        "llama3" => scaled(RopeScaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original: original()?,
        }),
        "yarn" => {
            let original = original()?;
            let factor = factor(original)?;
            let [given, own, all] = ["attention_factor", "mscale", "mscale_all_dim"]
                .map(|key| number::<f32>(path, place, map, key));
            let scale = |m: f32| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let amplitude = match (given?, own?, all?) {
                (Some(given), ..) => given,
                (None, Some(own), Some(all)) if own != 0.0 && all != 0.0 => scale(own) / scale(all),
                _ => RopeScaling::yarn_amplitude(factor),
            };
            // Zero stands for what is usual, as in transformers.
            let turns = |key: &str, usual: f32| -> Result<f32> {
                let given = number::<f32>(path, place, map, key)?;
                Ok(given.filter(|&turns| turns != 0.0).unwrap_or(usual))
            };
            scaled(RopeScaling::Yarn {
                factor,
                original,
                fast: turns("beta_fast", 32.0)?,
                slow: turns("beta_slow", 1.0)?,
                whole: number::<bool>(path, place, map, "truncate")?.unwrap_or(true),
                amplitude,
            })
        }
        "longrope" => {
            let factors = |key: &str| {
                let missing = || Error::file(path, format!("numbers `{place}.{key}`"), "none");
                number::<Vec<f32>>(path, place, map, key)?.ok_or_else(missing)
            };
            let (short, long) = (factors("short_factor")?, factors("long_factor")?);
            let original = original()?;
            let factor = factor(original)?;
            let amplitude = match number::<f32>(path, place, map, "attention_factor")? {
                Some(given) => given,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (original as f32).ln()).sqrt(),
            };
            // Another set of factors is for what is longer than the original context.
            let context = (short != long).then_some(original);
            let scaling = Some(RopeScaling::Pairs { factors: short, amplitude });
            Rope { theta, scaling, context }
        }
        other => {
            return Err(Error::file(path, format!("`{place}`: {KINDS}"), format!("`{other}`")));
        }
    })
}

/// A value of the object at `place`.
fn number<T: DeserializeOwned>(
    path: &Path,
    place: &str,
    map: &Map<String, Json>,
    key: &str,
) -> Result<Option<T>> {
    let Some(value) = map.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    let wrong = |_| Error::file(path, format!("a number under `{place}.{key}`"), value);
    serde_json::from_value(value.clone()).map(Some).map_err(wrong)
}

/// The object of a `config.json` for a configuration of ours.
pub(super) fn to_config(c: &TransformerConfig) -> Json {
    let mut out = match &c.rope_scaling {
        None => json!({"rope_type": "default"}),
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low, high, original }) => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original,
        }),
        Some(RopeScaling::Yarn { factor, original, fast, slow, whole, amplitude }) => json!({
            "rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow,
            "truncate": whole, "attention_factor": amplitude,
            "original_max_position_embeddings": original,
        }),
        Some(RopeScaling::Pairs { factors, amplitude }) => json!({
            "rope_type": "longrope", "short_factor": factors, "long_factor": factors,
            "factor": 1.0, "attention_factor": amplitude,
            "original_max_position_embeddings": c.context,
        }),
    };
    out["rope_theta"] = json!(c.rope_theta);
    out
}

/// What a GGUF file says of rotary angles; `key` gives the whole name of a key.
pub(super) fn of_gguf(
    file: &Gguf,
    key: &dyn Fn(&str) -> String,
    theta: f32,
) -> Result<Option<RopeScaling>> {
    let path = file.path();
    let name = key("rope.scaling.type");
    let float = |part: &str| file.maybe_float(&key(&format!("rope.scaling.{part}")));
    // Old files have another name for it.
    let given = match float("factor")? {
        None => file.maybe_float(&key("rope.scale_linear"))?,
        given => given,
    };
    // As llama.cpp takes it: a factor alone is a linear one.
    let kind = match file.maybe_text(&name)? {
        Some(kind) => kind,
        None if given.is_some_and(|factor| factor != 1.0 && factor != 0.0) => "linear",
        None => "none",
    };
    if file.info(FACTORS).is_some() {
        if kind != "none" {
            let wanted = format!("either `{FACTORS}` or `{name}`");
            return Err(Error::file(path, wanted, format!("both, `{kind}`")));
        }
        return Ok(Some(RopeScaling::named(&file.read(FACTORS)?.values, theta)));
    }
    let factor = || {
        let wanted = format!("a number under `{}`", key("rope.scaling.factor"));
        given.ok_or_else(|| Error::file(path, wanted, "none"))
    };
    Ok(match kind {
        "none" => None,
        "linear" => Some(RopeScaling::Linear { factor: factor()? }),
        "yarn" => {
            let factor = factor()?;
            let given = file.maybe_size(&key("rope.scaling.original_context_length"))?;
            let original = match given {
                Some(tokens) => tokens,
                None => file.size(&key("context_length"))?,
            };
            let more = float("attn_factor")?.unwrap_or(1.0);
            Some(RopeScaling::Yarn {
                factor,
                original,
                fast: float("yarn_beta_fast")?.unwrap_or(32.0),
                slow: float("yarn_beta_slow")?.unwrap_or(1.0),
                whole: true,
                amplitude: more * RopeScaling::yarn_amplitude(factor),
            })
        }
        other => {
            let wanted = format!("`{name}` none, linear or yarn");
            return Err(Error::file(path, wanted, format!("`{other}`")));
        }
    })
}

/// The keys of GGUF for a configuration, without its architecture's name before them.
pub(super) fn gguf_keys(c: &TransformerConfig) -> Vec<(&'static str, Value)> {
    match &c.rope_scaling {
        Some(RopeScaling::Linear { factor }) => {
            vec![("rope.scaling.type", "linear".into()), ("rope.scaling.factor", (*factor).into())]
        }
        Some(RopeScaling::Yarn { factor, original, fast, slow, amplitude, .. }) => vec![
            ("rope.scaling.type", "yarn".into()),
            ("rope.scaling.factor", (*factor).into()),
            ("rope.scaling.original_context_length", (*original).into()),
            ("rope.scaling.yarn_beta_fast", (*fast).into()),
            ("rope.scaling.yarn_beta_slow", (*slow).into()),
            ("rope.scaling.attn_factor", (amplitude / RopeScaling::yarn_amplitude(*factor)).into()),
        ],
        None | Some(RopeScaling::Llama3 { .. } | RopeScaling::Pairs { .. }) => Vec::new(),
    }
}

/// The divisors that a GGUF file keeps as a tensor; `path` is for messages.
pub fn gguf_factors(c: &TransformerConfig, path: &Path) -> Result<Option<Vec<f32>>> {
    match &c.rope_scaling {
        Some(RopeScaling::Yarn { whole: false, .. }) => {
            let wanted = "a ramp of YaRN that begins at whole pairs (`truncate`), for GGUF";
            Err(Error::file(path, wanted, "one that does not"))
        }
        // llama.cpp has these of its own, whatever the file says.
        Some(RopeScaling::Yarn { fast, slow, .. }) if (*fast, *slow) != (32.0, 1.0) => {
            let wanted = "a ramp of YaRN from 32 turns to 1 (`beta_fast`, `beta_slow`), for GGUF";
            Err(Error::file(path, wanted, format!("one from {fast} to {slow}")))
        }
        Some(RopeScaling::Pairs { amplitude, .. }) if *amplitude != 1.0 => {
            let wanted = "rotary angles with an attention factor of 1, for GGUF";
            Err(Error::file(path, wanted, amplitude))
        }
        Some(scaling @ (RopeScaling::Llama3 { .. } | RopeScaling::Pairs { .. })) => {
            let all = scaling.divisors(c.head_dim, c.rope_theta);
            Ok(Some(all.into_iter().map(|d| d as f32).collect()))
        }
        _ => Ok(None),
    }
}
