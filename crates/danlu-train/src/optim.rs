//! Optimisers: AdamW for everything, Muon for the matrices inside the blocks where the recipe asks.

use burn::tensor::{Gradients, Tensor};
use danlu_core::recipe::{Optimiser as Kind, Schedule, TrainRecipe};
use danlu_model::{Module, Parameter};
use danlu_ops::{AdamW, Matrix, Muon, adamw_step, muon_step, squared_norm};

/// What an optimiser remembers, and its settings.
#[derive(Debug)]
pub struct Optimiser {
    /// Decays of the moments.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f32,
    /// Largest global gradient norm.
    pub clip: f32,
    /// Steps taken.
    pub step: u64,
    /// Two tensors a parameter, in the module's order: AdamW's moments, or Muon's momentum and
    /// an unused one.
    pub state: Vec<[Tensor<2>; 2]>,
    muon: Vec<bool>,
}

/// Decay of Muon's momentum.
const MUON_MOMENTUM: f32 = 0.95;

impl Optimiser {
    /// Fresh state for a module on a device with or without autodiff.
    pub fn new(
        module: &dyn Module,
        betas: [f32; 2],
        epsilon: f32,
        weight_decay: f32,
        clip: f32,
    ) -> Self {
        let parameters = module.parameters();
        let zeros = |p: &&Parameter| {
            let device = p.tensor.device().inner();
            [Tensor::zeros(p.tensor.dims(), &device), Tensor::zeros(p.tensor.dims(), &device)]
        };
        Self {
            betas,
            epsilon,
            weight_decay,
            clip,
            step: 0,
            state: parameters.iter().map(zeros).collect(),
            muon: vec![false; parameters.len()],
        }
    }

    /// As the training part of a recipe says.
    pub fn from_recipe(module: &dyn Module, r: &TrainRecipe) -> Self {
        let mut this = Self::new(module, r.betas, r.epsilon, r.weight_decay, r.clip);
        if r.optimiser == Kind::Muon {
            this = this.with_muon(module, |name| name.contains(".layers."));
        }
        this
    }

    /// With Muon for the matrices whose names `inside` accepts.
    pub fn with_muon(mut self, module: &dyn Module, inside: impl Fn(&str) -> bool) -> Self {
        let takes = |p: &&Parameter| p.is_matrix() && inside(&p.name);
        self.muon = module.parameters().iter().map(takes).collect();
        self
    }

    /// Applies gradients (in the module's order, without gradient record) at the learning rates of
    /// AdamW and Muon. `scale` multiplies the gradients before clipping. Returns their global norm
    /// after `scale`, before clipping; a norm that is not finite leaves everything as it was.
    pub fn step(
        &mut self,
        module: &mut dyn Module,
        grads: Vec<Tensor<2>>,
        [rate, muon_rate]: [f32; 2],
        scale: f32,
    ) -> f64 {
        let squares = squares(&grads);
        self.step_known(module, grads, &squares, [rate, muon_rate], scale)
    }

    /// The same, where the [`squares`] of the gradients are known already.
    pub fn step_known(
        &mut self,
        module: &mut dyn Module,
        grads: Vec<Tensor<2>>,
        squares: &[f64],
        [rate, muon_rate]: [f32; 2],
        scale: f32,
    ) -> f64 {
        let norm = squares.iter().sum::<f64>().sqrt() * scale as f64;
        if !norm.is_finite() {
            return norm;
        }
        self.step += 1;
        let clip = if norm > self.clip as f64 { self.clip as f64 / norm } else { 1.0 };
        let grad_scale = scale * clip as f32;
        let mut matrices = Vec::new();
        let all = module.parameters_mut().into_iter().zip(grads).zip(&mut self.state);
        for (((p, grad), state), &muon) in all.zip(&self.muon) {
            let value = take(&mut p.tensor);
            let tracked = value.device().is_autodiff();
            let value = if tracked { value.inner() } else { value };
            let [first, second] = state.each_mut().map(take);
            if muon {
                // Stepped below, all together: small matrices then have a thread each.
                state[1] = second;
                let stacked = p.stacked.clone();
                matrices
                    .push((Matrix { tensors: [value, first, grad], stacked }, (tracked, p, state)));
                continue;
            }
            let adamw = AdamW {
                rate,
                betas: self.betas,
                epsilon: self.epsilon,
                weight_decay: if p.is_matrix() { self.weight_decay } else { 0.0 },
                step: self.step,
                grad_scale,
            };
            let [value, first, second] = adamw_step([value, first, second], grad, adamw);
            *state = [first, second];
            p.tensor = record(value, tracked);
        }
        let muon = Muon {
            rate: muon_rate,
            momentum: MUON_MOMENTUM,
            weight_decay: self.weight_decay,
            grad_scale,
        };
        let (inputs, places): (Vec<_>, Vec<_>) = matrices.into_iter().unzip();
        let moved = muon_step(inputs, muon);
        for ([value, momentum], (tracked, p, state)) in moved.into_iter().zip(places) {
            p.tensor = record(value, tracked);
            state[0] = momentum;
        }
        norm
    }
}

/// Sum of the squares of each gradient.
pub fn squares(grads: &[Tensor<2>]) -> Vec<f64> {
    grads.iter().map(squared_norm).collect()
}

/// The gradient of every parameter, in the module's order; zeros where there is none.
pub fn gradients(module: &dyn Module, mut grads: Gradients) -> Vec<Tensor<2>> {
    let taken = module.parameters().into_iter().map(|p| {
        let grad = p.tensor.grad_remove(&mut grads);
        grad.unwrap_or_else(|| Tensor::zeros(p.tensor.dims(), &p.tensor.device().inner()))
    });
    taken.collect()
}

/// The tensor, which leaves an empty one behind, so that nothing else holds its memory.
fn take(t: &mut Tensor<2>) -> Tensor<2> {
    let empty = Tensor::zeros([1, 1], &t.device());
    std::mem::replace(t, empty)
}

/// A parameter's new value, with a gradient record if it had one.
fn record(value: Tensor<2>, tracked: bool) -> Tensor<2> {
    if tracked { Tensor::from_inner(value).require_grad() } else { value }
}

/// Share of the peak learning rate at `step` (from 0) of `steps`.
pub fn rate_at(r: &TrainRecipe, step: usize) -> f32 {
    warm_rate(r.schedule, [r.steps, r.warmup, step], r.final_rate, r.decay)
}

/// The same by its parts: all steps, those of the warm-up and the one now; the last rate's share of
/// the peak; the share of the steps in which WSD decays.
pub fn warm_rate(
    schedule: Schedule,
    [steps, warmup, step]: [usize; 3],
    final_rate: f32,
    decay: f32,
) -> f32 {
    let warm = if step < warmup { (step + 1) as f32 / warmup as f32 } else { 1.0 };
    let after = (step.saturating_sub(warmup)) as f32;
    let total = steps.saturating_sub(warmup).max(1) as f32;
    let shape = match schedule {
        Schedule::Cosine => {
            let half = 0.5 + 0.5 * (std::f32::consts::PI * (after / total).min(1.0)).cos();
            final_rate + (1.0 - final_rate) * half
        }
        Schedule::Wsd => {
            let left = (steps as f32 - step as f32) / (steps as f32 * decay).max(1.0);
            final_rate + (1.0 - final_rate) * left.clamp(0.0, 1.0)
        }
    };
    warm * shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_warm_up_and_come_down() {
        let recipe =
            "name='a'\n[data]\n[train]\nsteps=100\nwarmup=10\nfinal_rate=0.1\n[mixture]\nx=1.0\n";
        let mut r = danlu_core::Recipe::parse(recipe).expect("valid").train;
        for schedule in [Schedule::Cosine, Schedule::Wsd] {
            r.schedule = schedule;
            assert!((rate_at(&r, 0) - 0.1).abs() < 1e-6);
            assert!((rate_at(&r, 10) - 1.0).abs() < 1e-2);
            let last = rate_at(&r, 99);
            assert!((0.09..0.15).contains(&last), "{schedule:?}: {last}");
            let rates: Vec<f32> = (10..100).map(|s| rate_at(&r, s)).collect();
            assert!(rates.windows(2).all(|w| w[1] <= w[0]), "{schedule:?}");
        }
    }
}
