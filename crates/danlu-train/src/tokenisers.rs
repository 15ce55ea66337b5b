//! Learns the three tokenisers: what each learns from, and by which loss. `learn.rs` has the loop.

use crate::learn::{Content, Course, Examples, accept, facts, forget, learn};
use crate::run::Run;
use crate::upkeep::Upkeep;
use crate::watch::{Event, Watcher};
use burn::tensor::{Tensor, TensorData};
use danlu_core::recipe::{Recipe, SemanticRecipe};
use danlu_core::{Error, Picture, Result, Rng, Sound};
use danlu_data::{Corpus, Split, picture_classes, sound_classes};
use danlu_media::{alter_picture, alter_sound, blend_pictures, restyle_picture, revoice_sound};
use danlu_model::io::{Dtype, write_atomically};
use danlu_model::modality::{
    AudioTokeniser, AudioTokeniserConfig, Eye, ImageTokeniser, Recogniser, RecogniserConfig,
    TextTokeniser,
};
use danlu_model::{Module, Tokenisers};
use danlu_ops::HeadLoss;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What is learnt by steps, by its name in files, in the order in which it is.
pub(crate) const PARTS: [&str; 4] =
    ["image", "audio", ImageTokeniser::SEMANTIC, AudioTokeniser::SEMANTIC];

/// Share of the examples of the picture recogniser that are blended with a drawing of the same thing,
/// which may be itself: of two drawings, half of these lie between both.
const BETWEEN: f32 = 0.5;

/// One line of a tokeniser's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Optimiser steps taken.
    pub step: usize,
    /// Training loss.
    pub loss: f32,
    /// What it has cost so far to watch and keep it, where the training ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<Upkeep>,
}

/// Learns (or goes on learning, or loads) the tokenisers of a run: text, and pictures and sounds if
/// the recipe gives those steps or the run was given them.
pub fn train_all(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    watcher: &mut dyn Watcher,
) -> Result<Tokenisers> {
    let text = train_text(recipe, run, corpus, watcher)?;
    let image = train_image(recipe, run, corpus, watcher)?;
    let audio = train_audio(recipe, run, corpus, watcher)?;
    let image_semantic = match &image {
        Some(_) => train_image_semantic(recipe, run, corpus, watcher)?,
        None => None,
    };
    let audio_semantic = match &audio {
        Some(audio) => train_audio_semantic(recipe, run, corpus, audio, watcher)?,
        None => None,
    };
    // All are saved.
    PARTS.iter().try_for_each(|part| forget(run, part))?;
    Ok(Tokenisers { image_semantic, audio_semantic, text, foreign: None, chat: None, image, audio })
}

/// Lets tokenisers that are being learnt go on with data that is not what they were begun on.
pub fn accept_changed_data(recipe: &Recipe, run: &Run, corpus: &Corpus) -> Result<()> {
    let facts = facts(recipe, corpus)?;
    PARTS.iter().try_for_each(|part| accept(run, part, &facts))
}

/// Learns the text tokeniser from the plain texts, the names and the transcripts that are trained
/// on.
pub fn train_text(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    watcher: &mut dyn Watcher,
) -> Result<TextTokeniser> {
    let path = run.tokenisers().join("tokenizer.json");
    if path.exists() {
        return TextTokeniser::load(&path);
    }
    watcher.tell(Event::Phase { name: "text tokeniser".into(), steps: 0, done: 0 });
    let mut texts: Vec<String> = Vec::new();
    // Names and captions come up in every task, so they weigh as much as a few mentions in prose.
    for concept in corpus.concepts.iter().filter(|c| c.split == Split::Train) {
        for text in concept.names.values().chain(concept.captions.values()) {
            texts.extend((0..4).map(|_| format!("{text} ")));
        }
    }
    for sound in corpus.sounds.iter().filter(|s| s.split == Split::Train && !s.synthetic) {
        texts.push(sound.text.clone());
    }
    for index in 0..400 {
        for task in danlu_data::TASKS {
            let mut rng = Rng::new(recipe.seed, 1 << 40 | index);
            if let Some(danlu_data::Drawn::Chat(sample)) =
                task.draw(corpus, danlu_data::View::Train, &mut rng)
            {
                let parts = sample.messages.iter().flat_map(|m| &m.parts);
                texts.extend(parts.filter_map(|p| match p {
                    danlu_core::Part::Text(t) => Some(t.clone()),
                    _ => None,
                }));
            }
        }
    }
    let plain: Vec<&str> =
        corpus.texts.iter().filter(|t| t.split == Split::Train).map(|t| t.text.as_str()).collect();
    let bytes: usize = plain.iter().map(|t| t.len()).sum();
    let every = bytes.div_ceil(recipe.text.train_bytes.max(1)).max(1);
    texts.extend(plain.into_iter().step_by(every).map(str::to_string));
    let tokeniser = TextTokeniser::train(texts.iter().map(String::as_str), recipe.text.vocabulary)?;
    std::fs::create_dir_all(run.tokenisers()).map_err(|e| Error::io(run.tokenisers(), e))?;
    write_atomically(&path, tokeniser.to_json()?.as_bytes())?;
    watcher.tell(Event::PhaseDone { result: format!("{} entries", tokeniser.size()) });
    Ok(tokeniser)
}

/// Learns the image tokeniser from the training pictures and altered copies of them. `None` if the
/// recipe gives it no steps.
pub fn train_image(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    watcher: &mut dyn Watcher,
) -> Result<Option<ImageTokeniser>> {
    let device = danlu_ops::cpu_device();
    let path = run.tokenisers().join("image.safetensors");
    if path.exists() {
        return Ok(Some(ImageTokeniser::load(&path, &device)?));
    }
    if recipe.image.steps == 0 {
        return Ok(None);
    }
    let pictures: Vec<&Picture> = corpus
        .pictures
        .iter()
        .filter(|p| p.split == Split::Train)
        .map(|p| p.picture.as_ref())
        .collect();
    if pictures.is_empty() {
        return Err(Error::parameter("data.packs", "packs with pictures to learn from", "none"));
    }
    let r = &recipe.image;
    let mut module = ImageTokeniser::new(r.into(), recipe.seed, &device.clone().autodiff());
    module.to_device(&device.clone().autodiff());
    let draw = |_: &ImageTokeniser, samples: Range<u64>| {
        let batch: Vec<Picture> = samples
            .into_par_iter()
            .map(|i| {
                let mut rng = Rng::new(recipe.seed, (1 << 50) + i);
                let picture = *rng.pick(&pictures);
                if rng.unit() < 0.5 { picture.clone() } else { alter_picture(picture, &mut rng) }
            })
            .collect();
        let batch: Vec<&Picture> = batch.iter().collect();
        let inputs = ImageTokeniser::pixels(&batch, &device.clone().autodiff());
        let content = Content::of_pictures(&batch, &[]);
        Examples { inputs, classes: Vec::new(), content }
    };
    let loss = |module: &ImageTokeniser, examples: &Examples<4>| {
        let wanted = examples.inputs.clone();
        let made = module.decode(module.fsq.quantise(module.encode(wanted.clone())));
        let difference = made - wanted;
        // Absolute differences keep edges, squares keep areas.
        difference.clone().abs().mean() + difference.powf_scalar(2.0).mean()
    };
    let course = Course {
        what: "image tokeniser",
        name: "image",
        steps: r.steps,
        batch: r.batch,
        rate: r.rate,
        least: 0.05,
        draw: &draw,
        loss: &loss,
    };
    learn(&course, &mut module, recipe, run, corpus, watcher)?;
    module.to_device(&device);
    module.save(&run.tokenisers(), Dtype::F32)?;
    Ok(Some(module))
}

/// Learns the audio tokeniser from the training sounds and altered copies of them. `None` if the
/// recipe gives it no steps.
pub fn train_audio(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    watcher: &mut dyn Watcher,
) -> Result<Option<AudioTokeniser>> {
    let device = danlu_ops::cpu_device();
    let path = run.tokenisers().join("audio.safetensors");
    if path.exists() {
        return Ok(Some(AudioTokeniser::load(&path, &device)?));
    }
    if recipe.audio.steps == 0 {
        return Ok(None);
    }
    let sounds: Vec<_> = corpus
        .sounds
        .iter()
        .filter(|s| s.split == Split::Train)
        .map(|s| s.sound.as_ref())
        .collect();
    if sounds.is_empty() {
        return Err(Error::parameter("data.packs", "packs with sounds to learn from", "none"));
    }
    let r = &recipe.audio;
    let mut config: AudioTokeniserConfig = r.into();
    let plain = AudioTokeniser::new(config.clone(), recipe.seed, &device);
    let mut rng = Rng::new(recipe.seed, 1 << 51);
    let some: Vec<f32> = (0..200).flat_map(|_| plain.rows(&rng.pick(&sounds).samples)).collect();
    let n = some.len() as f64;
    let mean = some.iter().map(|&v| v as f64).sum::<f64>() / n;
    let variance = some.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
    (config.mean, config.std) = (mean as f32, variance.sqrt().max(1e-3) as f32);
    let mut module = AudioTokeniser::new(config, recipe.seed, &device.clone().autodiff());
    module.to_device(&device.clone().autodiff());
    let width = r.mels * r.frames;
    let draw = |module: &AudioTokeniser, samples: Range<u64>| {
        let rows: Vec<f32> = samples
            .into_par_iter()
            .flat_map_iter(|i| {
                let mut rng = Rng::new(recipe.seed, (1 << 52) + i);
                let sound = *rng.pick(&sounds);
                let samples = if rng.unit() < 0.5 {
                    sound.samples.clone()
                } else {
                    alter_sound(sound, &mut rng).samples
                };
                let mut rows = module.rows(&samples);
                let have = rows.len() / width;
                if have > r.clip {
                    let first = rng.below(have - r.clip + 1) * width;
                    rows = rows[first..first + r.clip * width].to_vec();
                }
                let silence = module.rows(&[])[0];
                rows.resize(r.clip * width, silence);
                rows
            })
            .collect();
        let content = Content::of_rows(&[&rows], &[]);
        let inputs = Tensor::<3>::from_data(
            TensorData::new(rows, [r.batch, r.clip, width]),
            &device.clone().autodiff(),
        );
        Examples { inputs, classes: Vec::new(), content }
    };
    let loss = |module: &AudioTokeniser, examples: &Examples<3>| {
        let wanted = examples.inputs.clone();
        let codes = module.fsq.quantise(module.encode(wanted.clone()));
        let difference = module.decode(codes, r.batch) - wanted;
        difference.clone().abs().mean() + difference.powf_scalar(2.0).mean()
    };
    let course = Course {
        what: "audio tokeniser",
        name: "audio",
        steps: r.steps,
        batch: r.batch,
        rate: r.rate,
        least: 0.05,
        draw: &draw,
        loss: &loss,
    };
    learn(&course, &mut module, recipe, run, corpus, watcher)?;
    module.to_device(&device);
    module.save(&run.tokenisers(), Dtype::F32)?;
    Ok(Some(module))
}

/// Learns to recognise what pictures show, however drawn, from the concepts that are trained on.
/// `None` if the recipe wants no semantic tokens or no picture has a concept.
pub fn train_image_semantic(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    watcher: &mut dyn Watcher,
) -> Result<Option<Recogniser>> {
    let device = danlu_ops::cpu_device();
    let name = ImageTokeniser::SEMANTIC;
    let classes = picture_classes(corpus);
    let r = &recipe.image.semantic;
    let found = Recogniser::find(&run.tokenisers(), name, &device)?;
    if found.is_some() || r.steps == 0 || classes.count == 0 {
        return Ok(found);
    }
    let shown: Vec<(&Picture, u32)> = corpus
        .pictures
        .iter()
        .zip(&classes.of)
        .filter(|(p, _)| p.split == Split::Train)
        .filter_map(|(p, class)| Some((p.picture.as_ref(), (*class)?)))
        .collect();
    let mut alike = vec![Vec::new(); classes.count];
    shown.iter().for_each(|&(picture, class)| alike[class as usize].push(picture));
    let config = RecogniserConfig {
        eye: Eye::Picture,
        inputs: 12,
        frames: 8,
        channels: r.channels,
        blocks: r.blocks,
        width: r.width,
        classes: classes.count,
    };
    let tracked = device.clone().autodiff();
    let mut module = Recogniser::new(config, recipe.seed, &tracked);
    module.to_device(&tracked);
    let draw = |_: &Recogniser, samples: Range<u64>| {
        let batch: Vec<(Picture, u32)> = samples
            .into_par_iter()
            .map(|i| {
                let mut rng = Rng::new(recipe.seed, (1 << 53) + i);
                let &(picture, class) = rng.pick(&shown);
                let alike = &alike[class as usize];
                if alike.len() < 2 || rng.unit() >= BETWEEN {
                    return (restyle_picture(picture, &mut rng), class);
                }
                let &other = rng.pick(alike);
                let between = blend_pictures(picture, other, &mut rng);
                (restyle_picture(&between, &mut rng), class)
            })
            .collect();
        let (pictures, classes): (Vec<&Picture>, Vec<u32>) =
            batch.iter().map(|(p, c)| (p, *c)).unzip();
        let content = Content::of_pictures(&pictures, &classes);
        Examples { inputs: ImageTokeniser::pixels(&pictures, &tracked), classes, content }
    };
    let course = recognition("recogniser of pictures", name, r, &draw);
    learn(&course, &mut module, recipe, run, corpus, watcher)?;
    module.to_device(&device);
    module.save(&run.tokenisers(), name, Dtype::F32)?;
    Ok(Some(module))
}

/// Learns to recognise what is said, whatever the voice, from the texts that two voices or more say
/// in training. `None` if the recipe wants no semantic tokens or there is no such text.
pub fn train_audio_semantic(
    recipe: &Recipe,
    run: &Run,
    corpus: &Corpus,
    audio: &AudioTokeniser,
    watcher: &mut dyn Watcher,
) -> Result<Option<Recogniser>> {
    let device = danlu_ops::cpu_device();
    let name = AudioTokeniser::SEMANTIC;
    let classes = sound_classes(corpus);
    let r = &recipe.audio.semantic;
    let found = Recogniser::find(&run.tokenisers(), name, &device)?;
    if found.is_some() || r.steps == 0 || classes.count == 0 {
        return Ok(found);
    }
    let heard: Vec<(&Sound, u32)> = corpus
        .sounds
        .iter()
        .zip(&classes.of)
        .filter(|(s, _)| s.split == Split::Train)
        .filter_map(|(s, class)| Some((s.sound.as_ref(), (*class)?)))
        .collect();
    let frames = (r.seconds * 16_000.0 / audio.config.hop as f32) as usize;
    let config = RecogniserConfig {
        eye: Eye::Sound,
        inputs: audio.config.mels,
        frames: frames.next_multiple_of(8),
        channels: r.channels,
        blocks: r.blocks,
        width: r.width,
        classes: classes.count,
    };
    let tracked = device.clone().autodiff();
    let mut module = Recogniser::new(config, recipe.seed, &tracked);
    module.to_device(&tracked);
    let draw = |module: &Recogniser, samples: Range<u64>| {
        let batch: Vec<(Vec<f32>, u32)> = samples
            .into_par_iter()
            .map(|i| {
                let mut rng = Rng::new(recipe.seed, (1 << 54) + i);
                let &(sound, class) = rng.pick(&heard);
                let samples = revoice_sound(sound, &mut rng).samples;
                let mut rows = audio.rows(&samples);
                mask(&mut rows, audio.config.mels, &mut rng);
                (rows, class)
            })
            .collect();
        let rows: Vec<&[f32]> = batch.iter().map(|(rows, _)| rows.as_slice()).collect();
        let classes: Vec<u32> = batch.iter().map(|(_, class)| *class).collect();
        let content = Content::of_rows(&rows, &classes);
        Examples { inputs: module.frames(&rows, &tracked), classes, content }
    };
    let course = recognition("recogniser of speech", name, r, &draw);
    learn(&course, &mut module, recipe, run, corpus, watcher)?;
    module.to_device(&device);
    module.save(&run.tokenisers(), name, Dtype::F32)?;
    Ok(Some(module))
}

/// What recognisers of all kinds learn by.
fn recognition<'a>(
    what: &'static str,
    name: &'static str,
    r: &SemanticRecipe,
    draw: &'a dyn Fn(&Recogniser, Range<u64>) -> Examples<4>,
) -> Course<'a, Recogniser, 4> {
    let (steps, batch, rate) = (r.steps, r.batch, r.rate);
    Course { what, name, steps, batch, rate, least: 0.5, draw, loss: &recognition_loss }
}

/// Cross-entropy of the classes of examples.
fn recognition_loss(module: &Recogniser, examples: &Examples<4>) -> Tensor<1> {
    let n = examples.classes.len();
    let spec = HeadLoss {
        targets: examples.classes.as_slice().into(),
        weights: vec![1.0; n].into(),
        scale: 1.0 / n as f32,
        z_loss: 1e-4,
    };
    danlu_ops::head_loss(module.embed(examples.inputs.clone()), module.table(), &spec).0
}

/// Blanks out a band of frequencies and a stretch of time, in half of the calls each (SpecAugment,
/// arXiv 1904.08779). `frames` are rows of `mels` values.
fn mask(frames: &mut [f32], mels: usize, rng: &mut Rng) {
    if rng.unit() < 0.5 {
        let band = 1 + rng.below(mels / 6 + 1);
        let low = rng.below(mels - band.min(mels) + 1);
        for frame in frames.chunks_exact_mut(mels) {
            frame[low..(low + band).min(mels)].fill(0.0);
        }
    }
    if rng.unit() < 0.5 {
        let count = frames.len() / mels;
        let stretch = 1 + rng.below(count / 8 + 1);
        let first = rng.below(count - stretch.min(count) + 1);
        frames[first * mels..(first + stretch).min(count) * mels].fill(0.0);
    }
}
