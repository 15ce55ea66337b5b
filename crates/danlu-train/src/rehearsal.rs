//! How long a run will take, by a step of it that is taken and thrown away.

use crate::distil::Teacher;
use crate::lesson::Lessons;
use crate::optim::{Optimiser, gradients};
use crate::tuning::Tuning;
use danlu_core::recipe::Recipe;
use danlu_core::{Result, Rng, TuneRecipe};
use danlu_model::{Model, Module, Transformer, TransformerConfig};
use danlu_ops::HeadLoss;
use std::sync::Arc;
use std::time::Instant;

/// Rows that are taken through a model at most; a step of more takes so many times as long.
const ROWS: usize = 4;

/// Seconds of a step of a pretraining: full windows of random ids of which all count, forward and back, and the
/// optimiser. What a prompt holds costs less than that, so a step is not longer but for a busier machine.
pub(crate) fn pretraining(recipe: &Recipe, config: TransformerConfig) -> Result<f64> {
    let r = &recipe.train;
    let rows = r.rows.min(ROWS);
    let again = r.recompute.blocks("train.recompute", config.depth)?;
    let mut rng = Rng::new(recipe.seed, 0x7265_6865);
    let mut ids = || -> Arc<[u32]> {
        (0..rows * r.window).map(|_| rng.below(config.vocabulary) as u32).collect()
    };
    let (inputs, targets) = (ids(), ids());
    let spec = HeadLoss {
        targets,
        weights: vec![1.0; inputs.len()].into(),
        scale: 1.0 / inputs.len() as f32,
        z_loss: r.z_loss,
    };
    let starts: Arc<[u32]> = (0..=rows).map(|row| (row * r.window) as u32).collect();
    let device = danlu_ops::cpu_device().autodiff();
    let mut model = Transformer::new(config, recipe.seed, &device);
    model.to_device(&device);
    model.blocks.iter_mut().zip(again).for_each(|(block, again)| block.recompute = again);
    let mut optimiser = Optimiser::from_recipe(&model, r);
    let mut seconds = 0.0;
    // The first takes its memory from the system, which later ones do not.
    for _ in 0..2 {
        let begun = Instant::now();
        let loss = model.loss(&inputs, &starts, &spec).0;
        let grads = gradients(&model, loss.backward());
        let pass = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        optimiser.step(&mut model, grads, [0.0; 2], 1.0);
        let passes = r.accumulate as f64 * r.rows as f64 / rows as f64;
        seconds = pass * passes + begun.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

/// Seconds of a step of a tuning: the first two of it, on what they will learn from, without the optimiser, which
/// takes little beside them.
pub(crate) fn tuning(
    recipe: &TuneRecipe,
    model: &Model,
    lessons: &Lessons<'_>,
    teacher: Option<&Teacher>,
) -> Result<f64> {
    let mut tuning = Tuning::begin(recipe, model, (lessons, teacher))?;
    let mut seconds = 0.0;
    for _ in 0..2 {
        let begun = Instant::now();
        tuning.pass()?;
        seconds = begun.elapsed().as_secs_f64();
    }
    Ok(seconds)
}
