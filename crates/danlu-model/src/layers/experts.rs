use super::{Mlp, mlp::ACTIVATION};
use crate::arch::TransformerConfig;
use crate::params::Parameter;
use burn::tensor::{Device, Tensor, TensorData, activation::softmax};
use danlu_core::Rng;
use danlu_ops::{Among, Routing};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How the names of routers end.
const ROUTER: &str = ".gate.weight";

/// Whether a parameter is a router, which is small and decides much, and is kept whole for both.
pub(crate) fn is_router(name: &str) -> bool {
    name.ends_with(ROUTER)
}

/// A mixture of experts (Shazeer et al., arXiv 1701.06538): several feed-forwards, of which a router
/// sends each token to a few and sums what they give, weighted by the softmax of its scores among
/// those few, as in Mixtral and Qwen3-MoE, or among all, as Qwen3-MoE may.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[experts, width]`.
    pub router: Parameter,
    /// The experts.
    pub each: Vec<Mlp>,
    /// How many of them a token is sent to.
    pub chosen: usize,
    /// What their weights are a softmax of.
    pub among: Among,
    /// Tokens that each was sent since [`take_load`](Self::take_load); clones count together.
    load: Arc<[AtomicU64]>,
    /// The weights one under the other, where a block that is run again has been given them so.
    pub(super) stacked: Option<[Tensor<2>; 2]>,
}

impl Experts {
    /// Random weights under `name` (`model.layers.3.mlp`).
    pub fn new(name: &str, c: &TransformerConfig, rng: &mut Rng, device: &Device) -> Self {
        let shape = [c.experts, c.width];
        let router = format!("{name}{ROUTER}");
        let router = Parameter::normal(router, &shape, c.init_std(), rng, device);
        let one = |i| Mlp::new(&format!("{name}.experts.{i}"), c, rng, device);
        Self {
            router,
            each: (0..c.experts).map(one).collect(),
            chosen: c.experts_per_token,
            among: if c.gates_of_all { Among::All } else { Among::Chosen },
            load: (0..c.experts).map(|_| AtomicU64::new(0)).collect(),
            stacked: None,
        }
    }

    /// Tokens that each expert was sent since this was asked last, in all passes of this layer and its
    /// clones.
    pub fn take_load(&self) -> Vec<u64> {
        self.load.iter().map(|n| n.swap(0, Relaxed)).collect()
    }

    /// Where tokens go: the router's scores `[n, experts]`, and what follows from them.
    pub(crate) fn route(&self, x: Tensor<2>) -> (Tensor<2>, Routing) {
        let scores = danlu_ops::linear(x, self.router.tensor.clone());
        let values: Vec<f32> = scores.to_data().try_into_vec().expect("f32");
        let routing = Routing::new(&values, self.each.len(), self.chosen, self.among);
        (scores, routing)
    }

    /// `[n, width]` to `[n, width]`, and how unevenly the tokens are spread `[1]`: the number of
    /// experts times the sum over them of the share of tokens that each was sent, times its mean
    /// probability (Switch Transformer, arXiv 2101.03961, equation 4). Where all have alike it is the
    /// number of experts that a token is sent to.
    pub fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (scores, routing) = self.route(x.clone());
        self.load.iter().zip(routing.load()).for_each(|(sum, n)| {
            sum.fetch_add(n.into(), Relaxed);
        });
        let inputs = danlu_ops::embedding(x, &routing.rows);
        let mixed = danlu_ops::mix_experts(self.run(inputs, &routing), scores.clone(), &routing);
        (mixed, self.unevenness(scores, &routing))
    }

    /// What the experts give for their inputs, `[places, width]` each.
    fn run(&self, inputs: Tensor<2>, routing: &Routing) -> Tensor<2> {
        let plain = |m: &Mlp| {
            let plain = |l: &super::Linear| l.adapters.is_empty() && l.weight.frozen.is_none();
            plain(&m.gate_up) && plain(&m.down)
        };
        if self.stacked.is_some() || self.each.iter().all(plain) {
            let [gate_up, down] = self.stacked();
            let inner = danlu_ops::grouped_linear(inputs, gate_up, &routing.offsets);
            let inner = danlu_ops::activate(inner, ACTIVATION);
            return danlu_ops::grouped_linear(inner, down, &routing.offsets);
        }
        let parts = self.each.iter().zip(routing.offsets.windows(2)).filter(|(_, o)| o[0] < o[1]);
        let parts: Vec<Tensor<2>> = parts
            .map(|(m, o)| {
                m.forward(inputs.clone().narrow(0, o[0] as usize, (o[1] - o[0]) as usize))
            })
            .collect();
        if parts.is_empty() { inputs } else { Tensor::cat(parts, 0) }
    }

    /// The experts' weights one under the other: `[experts * 2 * hidden, width]` and
    /// `[experts * width, hidden]`.
    pub(super) fn stacked(&self) -> [Tensor<2>; 2] {
        if let Some(stacked) = &self.stacked {
            return stacked.clone();
        }
        let all = |of: fn(&Mlp) -> &super::Linear| {
            Tensor::cat(self.each.iter().map(|m| of(m).weight.tensor.clone()).collect(), 0)
        };
        [all(|m| &m.gate_up), all(|m| &m.down)]
    }

    fn unevenness(&self, scores: Tensor<2>, routing: &Routing) -> Tensor<1> {
        let [rows, experts] = scores.dims();
        let shares: Vec<f32> = routing.load().map(|n| n as f32 / rows.max(1) as f32).collect();
        let shares =
            Tensor::<2>::from_data(TensorData::new(shares, [1, experts]), &scores.device());
        let probable = softmax(scores, 1).mean_dim(0);
        (probable * shares).sum().mul_scalar(experts as f32)
    }
}

/// How many of some experts are used, of what each was sent: the exponential of the entropy of their
/// shares, from 1 to the number of them; `None` where nothing was sent.
pub fn experts_used(load: &[u64]) -> Option<f64> {
    let sum: u64 = load.iter().sum();
    let shares = load.iter().filter(|&&n| n > 0).map(|&n| n as f64 / sum as f64);
    (sum > 0).then(|| (-shares.map(|p| p * p.ln()).sum::<f64>()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::recipe::ModelRecipe;
    use danlu_ops::quant::{Arena, WeightFormat};

    fn experts(device: &Device) -> Experts {
        let recipe = ModelRecipe {
            width: Some(32),
            head_dim: Some(16),
            hidden: Some(32),
            experts: 4,
            experts_per_token: 2,
            ..Default::default()
        };
        let c = TransformerConfig::from_recipe(&recipe, 50, 16).expect("valid");
        Experts::new("mlp", &c, &mut Rng::new(1, 2), device)
    }

    fn input(device: &Device) -> Tensor<2> {
        let mut rng = Rng::new(3, 4);
        let values: Vec<f32> = (0..9 * 32).map(|_| rng.normal()).collect();
        Tensor::from_data(TensorData::new(values, [9, 32]), device)
    }

    fn floats(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn a_token_gets_the_weighted_sum_of_its_experts() {
        let device = danlu_ops::cpu_device();
        let (layer, x) = (experts(&device), input(&device));
        let all: Vec<Vec<f32>> = layer.each.iter().map(|m| floats(m.forward(x.clone()))).collect();
        let scores = floats(danlu_ops::linear(x.clone(), layer.router.tensor.clone()));
        let (out, uneven) = layer.forward(x);
        let out = floats(out);
        let mut sent = vec![0; 4];
        for row in 0..9 {
            let scores = &scores[row * 4..][..4];
            let mut order: Vec<usize> = (0..4).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let gates = [order[0], order[1]].map(|e| scores[e].exp());
            order[..2].iter().for_each(|&e| sent[e] += 1);
            for c in 0..32 {
                let parts = gates.iter().zip(&order).map(|(g, &e)| g * all[e][row * 32 + c]);
                let want = parts.sum::<f32>() / gates.iter().sum::<f32>();
                assert!((out[row * 32 + c] - want).abs() < 1e-5, "row {row}, column {c}");
            }
        }
        assert_eq!(layer.take_load(), sent);
        assert_eq!(layer.take_load(), [0; 4], "it was taken");
        let uneven: f32 = uneven.into_scalar();
        assert!((1.0..4.0).contains(&uneven), "{uneven}");
    }

    #[test]
    fn few_bits_go_through_each_expert_by_itself() {
        let device = danlu_ops::cpu_device();
        let (mut layer, x) = (experts(&device), input(&device));
        let whole = floats(layer.forward(x.clone()).0);
        let arena = Arena::default();
        for m in &mut layer.each {
            m.gate_up.weight.freeze(WeightFormat::F32, &arena);
            m.down.weight.freeze(WeightFormat::F32, &arena);
        }
        let few = floats(layer.forward(x).0);
        assert!(whole.iter().zip(&few).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn what_is_used_is_counted_by_shares() {
        assert_eq!(experts_used(&[5, 5, 5, 5]), Some(4.0));
        assert_eq!(experts_used(&[0, 9, 0]), Some(1.0));
        assert_eq!(experts_used(&[0, 0]), None);
    }

    #[test]
    fn evening_out_moves_the_router_towards_what_has_less() {
        let device = danlu_ops::cpu_device().autodiff();
        let mut layer = experts(&device);
        // All tokens prefer the first two.
        let x = input(&device).abs();
        let rows: Vec<f32> = (0..4 * 32).map(|i| if i < 64 { 0.05 } else { 0.0 }).collect();
        layer.router.set(rows);
        layer.router.tensor = layer.router.tensor.clone().require_grad();
        let (_, uneven) = layer.forward(x);
        let value: f32 = uneven.clone().inner().into_scalar();
        assert!(value > 2.4, "{value}");
        let grads = uneven.backward();
        let grad = floats(layer.router.tensor.grad(&grads).expect("learns"));
        let mean = |e: usize| grad[e * 32..][..32].iter().sum::<f32>();
        // Down along the gradient is away from the crowded.
        assert!(mean(0) > 0.0 && mean(1) > 0.0 && mean(2) < 0.0 && mean(3) < 0.0, "{grad:?}");
    }
}
