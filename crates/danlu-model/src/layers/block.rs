use super::mlp::ACTIVATION;
use super::{Attention, Cache, Experts, FeedForward, Linear, Lora, Mlp, RmsNorm};
use crate::arch::TransformerConfig;
use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::{Activation, Rotary};
use std::sync::Arc;

/// One layer: attention, then feed-forward, each after a norm and added to the residual stream.
#[derive(Debug, Clone)]
pub struct Block {
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// Mixes positions.
    pub attention: Attention,
    /// Before the feed-forward.
    pub mlp_norm: RmsNorm,
    /// Mixes channels.
    pub mlp: FeedForward,
    /// Whether only its input is kept for the backward pass, which runs the block again.
    pub recompute: bool,
}

impl Block {
    /// Random weights under `name` (`model.layers.3`).
    pub fn new(name: &str, c: &TransformerConfig, rng: &mut Rng, device: &Device) -> Self {
        let mlp = format!("{name}.mlp");
        Self {
            attention_norm: RmsNorm::new(
                &format!("{name}.input_layernorm"),
                c.width,
                c.norm_eps,
                device,
            ),
            attention: Attention::new(&format!("{name}.self_attn"), c, rng, device),
            mlp_norm: RmsNorm::new(
                &format!("{name}.post_attention_layernorm"),
                c.width,
                c.norm_eps,
                device,
            ),
            mlp: match c.experts {
                0 => FeedForward::Dense(Mlp::new(&mlp, c, rng, device)),
                _ => FeedForward::Experts(Experts::new(&mlp, c, rng, device)),
            },
            recompute: false,
        }
    }

    /// `[n, width]` to `[n, width]`, and how unevenly experts were used ([`Experts::forward`]), if
    /// there are some.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rotary: &Arc<Rotary>,
        starts: &Arc<[u32]>,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        if self.recompute {
            return self.recomputed(x, rotary, starts);
        }
        let attention = &self.attention;
        let x = attention.out.after(x, self.attention_norm.op(), Activation::None, |x| {
            attention.branch(x, rotary, starts)
        });
        match &self.mlp {
            FeedForward::Dense(mlp) => {
                let up = |x| mlp.gate_up.forward(x);
                (mlp.down.after(x, self.mlp_norm.op(), ACTIVATION, up), None)
            }
            FeedForward::Experts(experts) => {
                let (y, uneven) = experts.forward(self.mlp_norm.forward(x.clone()));
                (x + y, Some(uneven))
            }
        }
    }

    fn recomputed(
        &self,
        x: Tensor<2>,
        rotary: &Arc<Rotary>,
        starts: &Arc<[u32]>,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let mut bare = Self { recompute: false, ..self.clone() };
        // What is run again holds no gradient record but that of the tensors it is given then.
        let plain = |p: &mut Parameter| {
            let plain = p.tensor.clone().inner();
            std::mem::replace(&mut p.tensor, plain)
        };
        let [a, b, c, d, e, f] = bare.every().map(plain);
        let [g, h] = match &mut bare.mlp {
            FeedForward::Dense(mlp) => {
                [&mut mlp.gate_up, &mut mlp.down].map(|l| plain(&mut l.weight))
            }
            FeedForward::Experts(experts) => {
                let stacked = experts.stacked();
                experts.each.iter_mut().for_each(|m| {
                    plain(&mut m.gate_up.weight);
                    plain(&mut m.down.weight);
                });
                stacked
            }
        };
        let (rotary, starts) = (rotary.clone(), starts.clone());
        // What not every block has goes in as one row.
        let mut few: Vec<Tensor<2>> = Vec::new();
        for p in bare.others() {
            let [rows, columns] = p.tensor.dims();
            few.push(plain(p).reshape([1, rows * columns]));
        }
        let few = match few.is_empty() {
            true => Tensor::zeros([1, 1], &x.device()),
            false => Tensor::cat(few, 1),
        };
        let [n, width] = x.dims();
        let mixes = self.mlp.experts().is_some();
        let out = danlu_ops::recompute(
            [x, a, b, c, d, e, f, g, h, few],
            move |[x, tensors @ .., few]| {
                let mut block = bare.clone();
                let [every @ .., g, h] = tensors;
                for (p, tensor) in block.every().into_iter().zip(every) {
                    p.tensor = tensor;
                }
                match &mut block.mlp {
                    FeedForward::Dense(mlp) => {
                        (mlp.gate_up.weight.tensor, mlp.down.weight.tensor) = (g, h);
                    }
                    FeedForward::Experts(experts) => experts.stacked = Some([g, h]),
                }
                let mut at = 0;
                for p in block.others() {
                    let dims = p.tensor.dims();
                    let size = dims[0] * dims[1];
                    p.tensor = few.clone().narrow(1, at, size).reshape(dims);
                    at += size;
                }
                match block.forward(x, &rotary, &starts) {
                    (x, None) => x,
                    // One result: the number is the first of a row below.
                    (x, Some(uneven)) => {
                        let rest = Tensor::zeros([1, width - 1], &x.device());
                        let row = Tensor::cat(vec![uneven.reshape([1, 1]), rest], 1);
                        Tensor::cat(vec![x, row], 0)
                    }
                }
            },
        );
        if !mixes {
            return (out, None);
        }
        let uneven = out.clone().narrow(0, n, 1).narrow(1, 0, 1).reshape([1]);
        (out.narrow(0, 0, n), Some(uneven))
    }

    /// Every tensor that each block has but those of the feed-forward and that [`Self::forward`] takes,
    /// to change.
    fn every(&mut self) -> [&mut Parameter; 6] {
        let Self { attention_norm, attention: a, mlp_norm, .. } = self;
        [
            &mut attention_norm.weight,
            &mut a.qkv.weight,
            &mut a.out.weight,
            &mut a.q_norm,
            &mut a.k_norm,
            &mut mlp_norm.weight,
        ]
    }

    /// Every parameter, and those of the adapters, to change.
    pub fn every_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { attention_norm, attention: a, mlp_norm, mlp, .. } = self;
        let mut all =
            vec![&mut attention_norm.weight, &mut a.q_norm, &mut a.k_norm, &mut mlp_norm.weight];
        let (router, linears) = mlp.split_mut();
        all.extend(router);
        for linear in [&mut a.qkv, &mut a.out].into_iter().chain(linears) {
            all.push(&mut linear.weight);
            all.extend(&mut linear.bias);
            all.extend(linear.adapters.iter_mut().flat_map(Lora::parameters_mut));
        }
        all
    }

    /// Routers, biases and adapters, to change.
    fn others(&mut self) -> Vec<&mut Parameter> {
        let Self { attention: a, mlp, .. } = self;
        let (router, linears) = mlp.split_mut();
        let linears = [&mut a.qkv, &mut a.out].into_iter().chain(linears);
        let beside = linears.flat_map(|l| {
            l.bias.iter_mut().chain(l.adapters.iter_mut().flat_map(Lora::parameters_mut))
        });
        router.into_iter().chain(beside).collect()
    }

    /// The projections, in file order: of the attention two, of the feed-forward two (of each expert,
    /// if there are some).
    pub fn linears(&self) -> Vec<&Linear> {
        [&self.attention.qkv, &self.attention.out].into_iter().chain(self.mlp.linears()).collect()
    }

    /// The projections, in file order, to change.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Self { attention: a, mlp, .. } = self;
        [&mut a.qkv, &mut a.out].into_iter().chain(mlp.split_mut().1).collect()
    }

    /// As [`Attention::forward_cached`].
    pub fn forward_cached(
        &self,
        x: Tensor<2>,
        rotary: &Rotary,
        caches: &mut [(&mut Cache, usize, usize)],
    ) -> Tensor<2> {
        let normed = self.attention_norm.forward(x.clone());
        let x = x + self.attention.forward_cached(normed, rotary, caches);
        x.clone() + self.mlp.forward(self.mlp_norm.forward(x))
    }

    /// Every parameter, in file order; adapters are none.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let a = &self.attention;
        let mut all = vec![&self.attention_norm.weight];
        all.extend(a.qkv.parameters());
        all.extend(a.out.parameters());
        if a.shape.norm_eps.is_some() {
            all.extend([&a.q_norm, &a.k_norm]);
        }
        all.push(&self.mlp_norm.weight);
        all.extend(self.mlp.parameters());
        all
    }

    /// Every parameter, in file order, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let a = &mut self.attention;
        let mut all = vec![&mut self.attention_norm.weight];
        all.extend(a.qkv.parameters_mut());
        all.extend(a.out.parameters_mut());
        if a.shape.norm_eps.is_some() {
            all.extend([&mut a.q_norm, &mut a.k_norm]);
        }
        all.push(&mut self.mlp_norm.weight);
        all.extend(self.mlp.parameters_mut());
        all
    }
}
