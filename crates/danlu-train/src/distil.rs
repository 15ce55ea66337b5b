//! Distillation: a student learns what a teacher thinks of every token (Hinton et al., arXiv
//! 1503.02531).
//!
//! For each token that counts the loss is `T^2` times the divergence of the student's distribution
//! from the teacher's, both at temperature `T`, plus `hard` times the cross-entropy of the token
//! itself. Logits are made a few rows at a time and never kept: the gradients of the hidden states
//! and of the table are worked out with them, and the loss that is handed on is the product with
//! those, whose backward pass gives them back.

use crate::watch::{Event, Watcher};
use burn::tensor::{Tensor, TensorData};
use danlu_core::{Batch, Error, Objective, Result, TuneRecipe};
use danlu_model::{Model, Transformer};
use rayon::prelude::*;
use std::sync::Arc;

/// Values of logits that are in memory at a time.
const LOGITS: usize = 1 << 24;

/// What is learnt from.
#[derive(Debug)]
pub(crate) struct Teacher {
    transformer: Transformer,
    temperature: f32,
    hard: f32,
    /// BLAKE3 of its weights.
    pub(crate) hash: String,
}

impl Teacher {
    /// The teacher of a recipe, if it has one. It must have the student's vocabulary.
    pub(crate) fn of(
        recipe: &TuneRecipe,
        student: &Model,
        watcher: &mut dyn Watcher,
    ) -> Result<Option<Self>> {
        let Objective::Distil { teacher, temperature, hard } = &recipe.objective else {
            return Ok(None);
        };
        let folder = Model::folder(teacher);
        let model = Model::load(&folder, &danlu_ops::cpu_device())?;
        let (ours, theirs) = (&student.tokenisers, &model.tokenisers);
        if ours.vocabulary() != theirs.vocabulary()
            || ours.text.to_json()? != theirs.text.to_json()?
        {
            let wanted = format!("a teacher with the student's {:?}", ours.vocabulary());
            return Err(Error::file(&folder, wanted, format!("{:?}", theirs.vocabulary())));
        }
        watcher.tell(Event::Note(format!("the teacher is {}", folder.display())));
        let (temperature, hard) = (*temperature, *hard);
        let hash = Model::weights_hash(&folder)?;
        Ok(Some(Self { transformer: model.transformer, temperature, hard, hash }))
    }
}

/// What is to be differentiated, and the mean loss in nats a token that counts.
pub(crate) fn loss(student: &Transformer, teacher: &Teacher, batch: &Batch) -> (Tensor<1>, f64) {
    let (ids, starts): (Arc<[u32]>, Arc<[u32]>) =
        (batch.ids.as_slice().into(), batch.starts.as_slice().into());
    let counted: Arc<[u32]> =
        (0..batch.ids.len() as u32).filter(|&i| batch.weights[i as usize] > 0.0).collect();
    let total: f32 = counted.iter().map(|&i| batch.weights[i as usize]).sum();
    let hidden = danlu_ops::embedding(student.hidden(&ids, &starts), &counted);
    let table = student.table();
    let (own, own_table) = (hidden.clone().inner(), table.clone().inner());
    let theirs = danlu_ops::embedding(teacher.transformer.hidden(&ids, &starts), &counted);
    let their_table = teacher.transformer.table();
    let [vocabulary, width] = own_table.dims();
    let device = own.device();
    let mut table_grad = Tensor::<2>::zeros([vocabulary, width], &device);
    let mut hidden_grads = Vec::new();
    let mut sum = 0.0;
    let step = (LOGITS / vocabulary).max(1);
    for from in (0..counted.len()).step_by(step) {
        let rows = step.min(counted.len() - from);
        let h = own.clone().narrow(0, from, rows);
        let mut logits = values(danlu_ops::linear(h.clone(), own_table.clone()));
        let goal =
            values(danlu_ops::linear(theirs.clone().narrow(0, from, rows), their_table.clone()));
        let losses: Vec<f64> = logits
            .par_chunks_exact_mut(vocabulary)
            .zip(goal.par_chunks_exact(vocabulary))
            .zip(counted[from..from + rows].par_iter())
            .map(|((own, goal), &i)| {
                let (target, weight) = (batch.targets[i as usize], batch.weights[i as usize]);
                let loss = row(own, goal, target as usize, teacher.temperature, teacher.hard);
                let scale = weight / total;
                own.iter_mut().for_each(|g| *g *= scale);
                loss * f64::from(scale)
            })
            .collect();
        // In their order, so that the threads change no bit.
        sum += losses.iter().sum::<f64>();
        let grad = Tensor::<2>::from_data(TensorData::new(logits, [rows, vocabulary]), &device);
        hidden_grads.push(danlu_ops::linear(grad.clone(), own_table.clone().transpose()));
        table_grad = table_grad + danlu_ops::linear(grad.transpose(), h.transpose());
    }
    let hidden_grad = Tensor::from_inner(Tensor::cat(hidden_grads, 0));
    let surrogate = (hidden * hidden_grad).sum() + (table * Tensor::from_inner(table_grad)).sum();
    (surrogate, sum)
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

/// Puts the gradient in place of the student's logits; returns the loss.
fn row(own: &mut [f32], goal: &[f32], target: usize, t: f32, hard: f32) -> f64 {
    let (own_norm, goal_norm) = (normaliser(own, t), normaliser(goal, t));
    let plain_norm = if hard > 0.0 { normaliser(own, 1.0) } else { 0.0 };
    let mut loss = if hard > 0.0 { hard * (plain_norm - own[target]) } else { 0.0 };
    for (i, (z, g)) in own.iter_mut().zip(goal).enumerate() {
        let (log_own, log_goal) = (*z / t - own_norm, g / t - goal_norm);
        let goal = log_goal.exp();
        loss += t * t * goal * (log_goal - log_own);
        let mut grad = t * (log_own.exp() - goal);
        if hard > 0.0 {
            grad += hard * ((*z - plain_norm).exp() - if i == target { 1.0 } else { 0.0 });
        }
        *z = grad;
    }
    f64::from(loss)
}

/// The logarithm of the sum of exponentials of `row / t`.
fn normaliser(row: &[f32], t: f32) -> f32 {
    let most = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let sum: f64 = row.iter().map(|v| f64::from((v - most) / t).exp()).sum();
    most / t + sum.ln() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::recipe::ModelRecipe;
    use danlu_model::{Module, TransformerConfig};

    fn model(seed: u64) -> Transformer {
        let recipe =
            ModelRecipe { depth: 1, width: Some(16), head_dim: Some(8), ..Default::default() };
        let config = TransformerConfig::from_recipe(&recipe, 20, 16).expect("valid");
        Transformer::new(config, seed, &danlu_ops::cpu_device())
    }

    fn batch() -> Batch {
        Batch {
            ids: vec![1, 5, 9, 3, 2, 7],
            targets: vec![5, 9, 11, 2, 7, 4],
            weights: vec![0.0, 1.0, 1.0, 1.0, 0.5, 1.0],
            tasks: vec![0; 6],
            starts: vec![0, 3, 6],
            ..Batch::default()
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let device = danlu_ops::cpu_device().autodiff();
        for (temperature, hard) in [(1.0, 0.0), (2.0, 0.5)] {
            let teacher = Teacher { transformer: model(1), temperature, hard, hash: String::new() };
            let of = |student: &Transformer| {
                let mut learns = student.clone();
                learns.to_device(&device);
                let (value, loss) = loss(&learns, &teacher, &batch());
                let grads = value.backward();
                let grad = learns.embedding.tensor.grad(&grads).expect("learns");
                let down = &learns.blocks[0].linears()[3].weight.tensor;
                (loss, [values(grad), values(down.grad(&grads).expect("learns"))])
            };
            let student = model(2);
            let (_, grads) = of(&student);
            for (which, at) in [(0, 16 * 9 + 3), (0, 16 * 4 + 1), (1, 7), (1, 40)] {
                let moved = |by: f32| {
                    let mut other = student.clone();
                    let p = match which {
                        0 => &mut other.embedding,
                        _ => &mut other.blocks[0].linears_mut().swap_remove(3).weight,
                    };
                    let mut all = p.values();
                    all[at] += by;
                    p.set(all);
                    of(&other).0
                };
                let wanted = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                let got = f64::from(grads[which][at]);
                let near = 2e-3 + 0.02 * wanted.abs();
                assert!((got - wanted).abs() < near, "{which} {at}: {got}, differences {wanted}");
            }
        }
    }

    #[test]
    fn a_student_that_is_its_teacher_has_nothing_to_learn() {
        let teacher =
            Teacher { transformer: model(1), temperature: 2.0, hard: 0.0, hash: String::new() };
        let mut student = model(1);
        student.to_device(&danlu_ops::cpu_device().autodiff());
        let (value, loss) = loss(&student, &teacher, &batch());
        assert!(loss.abs() < 1e-5, "{loss}");
        let grads = value.backward();
        let grad = values(student.embedding.tensor.grad(&grads).expect("learns"));
        assert!(grad.iter().all(|g| g.abs() < 1e-5));
    }
}
