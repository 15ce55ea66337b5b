//! A model as what an evaluation asks: questions to prompts, replies to values.

use danlu_core::{Error, Media, Modality, Part, Result};
use danlu_eval::{Answerer, Assets, Question, Value};
use danlu_model::Model;
use danlu_model::engine::{Grammar, Request, Sampling, generate};
use danlu_model::prompt::{Codes, Template, Value as Said};
use std::collections::HashMap;
use std::path::PathBuf;

/// How replies are drawn.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    /// How codes of pictures and sounds are drawn; text is always the likeliest.
    pub(crate) media: Sampling,
    /// Classifier-free guidance of pictures.
    pub(crate) guidance: f32,
    /// Most tokens of a reply.
    pub(crate) max_tokens: usize,
    /// Seed of the first reply; each next one has the next.
    pub(crate) seed: u64,
    /// Replies at a time.
    pub(crate) width: usize,
}

/// A model that is asked questions whose media are `assets`.
pub(crate) struct Asked<'a> {
    pub(crate) model: &'a Model,
    pub(crate) assets: &'a dyn Assets,
    pub(crate) style: Style,
}

/// Codes made on the spot, each picture and sound once.
struct Encoded<'a> {
    model: &'a Model,
    assets: &'a dyn Assets,
    known: HashMap<(bool, Media), Vec<u32>>,
}

impl Codes for Encoded<'_> {
    fn image(&mut self, media: &Media, _: bool) -> Result<Vec<u32>> {
        let key = (true, media.clone());
        if !self.known.contains_key(&key) {
            let picture = danlu_media::fit(&*self.assets.picture(media)?, 64);
            let codes = self.model.tokenisers.image_codes(&[&picture])?.remove(0);
            self.known.insert(key.clone(), codes);
        }
        Ok(self.known[&key].clone())
    }

    fn audio(&mut self, media: &Media, _: bool) -> Result<Vec<u32>> {
        let key = (false, media.clone());
        if !self.known.contains_key(&key) {
            let codes = self.model.tokenisers.audio_codes(&*self.assets.sound(media)?)?;
            self.known.insert(key.clone(), codes);
        }
        Ok(self.known[&key].clone())
    }
}

/// The modality of a question's answer.
fn modality(parts: &[Part]) -> Modality {
    match parts.first() {
        Some(Part::Image(_)) => Modality::Image,
        Some(Part::Audio(_)) => Modality::Audio,
        _ => Modality::Text,
    }
}

/// The questions that leave room for a reply in the model's context, and a line about each of the
/// others.
pub(crate) fn fitting(
    model: &Model,
    questions: Vec<Question>,
    assets: &dyn Assets,
) -> Result<(Vec<Question>, Vec<String>)> {
    let template = Template::new(&model.tokenisers);
    let mut codes = Encoded { model, assets, known: HashMap::new() };
    let context = model.transformer.config.context;
    let (mut fit, mut over) = (Vec::new(), Vec::new());
    for q in questions {
        let tokens = template.prompt(&q.sample, &mut codes)?.len();
        let room = Grammar::room(template.vocabulary(), Some(modality(q.expected())));
        if tokens + room <= context {
            fit.push(q);
        } else {
            over.push(format!(
                "line {}: a question of {tokens} tokens; the context is {context} and the reply \
                 needs {room}",
                q.line
            ));
        }
    }
    Ok((fit, over))
}

impl Answerer for Asked<'_> {
    fn answer(
        &mut self,
        questions: &[Question],
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Value>>> {
        let template = Template::new(&self.model.tokenisers);
        let mut codes = Encoded { model: self.model, assets: self.assets, known: HashMap::new() };
        let mut requests = Vec::with_capacity(questions.len());
        for (i, q) in questions.iter().enumerate() {
            let prompt = template.prompt(&q.sample, &mut codes)?;
            requests.push(Request {
                prompt,
                blank: template.blank_prompt(),
                to: Some(modality(q.expected())),
                max_tokens: self.style.max_tokens,
                text: Sampling::default(),
                media: self.style.media,
                guidance: self.style.guidance,
                seed: self.style.seed + i as u64,
            });
        }
        let transformer = &self.model.transformer;
        let replies =
            generate(transformer, template.vocabulary(), &requests, self.style.width, done)?;
        replies.iter().map(|ids| Ok(values(template.reply(ids)?))).collect()
    }
}

/// The reply as the evaluation takes it.
fn values(said: Vec<Said>) -> Vec<Value> {
    said.into_iter()
        .map(|v| match v {
            Said::Text(t) => Value::Text(t),
            Said::Picture(p) => Value::Picture(p),
            Said::Sound(s) => Value::Sound(s),
        })
        .collect()
}

/// What questions expect, through the tokenisers and back: the ceiling of what is drawn and said.
pub(crate) fn reconstructions(
    model: &Model,
    questions: &[Question],
    assets: &dyn Assets,
) -> Result<Vec<Vec<Value>>> {
    let mut codes = Encoded { model, assets, known: HashMap::new() };
    let one = |part: &Part, codes: &mut Encoded<'_>| -> Result<Value> {
        Ok(match part {
            Part::Text(_) | Part::Call(_) => Value::Text(part.words().into_owned()),
            Part::Image(media) => {
                let codes = codes.image(media, false)?;
                Value::Picture(model.tokenisers.picture(&codes)?)
            }
            Part::Audio(media) => {
                let codes = codes.audio(media, false)?;
                Value::Sound(model.tokenisers.sound(&codes)?)
            }
        })
    };
    questions.iter().map(|q| q.expected().iter().map(|p| one(p, &mut codes)).collect()).collect()
}

/// The model folder to use when none is named: the one in the repository.
pub(crate) fn model_folder(named: Option<PathBuf>) -> Result<PathBuf> {
    let folder = Model::folder(&named.unwrap_or_else(|| PathBuf::from("models/reference")));
    if !folder.join("config.json").exists() {
        return Err(Error::parameter(
            "--model",
            "a folder with config.json and model.safetensors",
            folder.display(),
        ));
    }
    Ok(folder)
}

/// The model of a folder with adapters on it, the lowest first.
pub(crate) fn adapted(folder: &std::path::Path, adapters: Vec<PathBuf>) -> Result<Model> {
    let paths: Vec<PathBuf> = adapters.into_iter().map(danlu_core::adapter_folder).collect();
    Ok(Model::load_adapted(folder, &paths, &danlu_ops::cpu_device())?.0)
}
