use super::mlp::ACTIVATION;
use super::{Attention, Cache, Linear, Lora, Mlp, RmsNorm};
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
    pub mlp: Mlp,
    /// Whether only its input is kept for the backward pass, which runs the block again.
    pub recompute: bool,
}

impl Block {
    /// Random weights under `name` (`model.layers.3`).
    pub fn new(name: &str, c: &TransformerConfig, rng: &mut Rng, device: &Device) -> Self {
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
            mlp: Mlp::new(&format!("{name}.mlp"), c, rng, device),
            recompute: false,
        }
    }

    /// `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>, rotary: &Arc<Rotary>, starts: &Arc<[u32]>) -> Tensor<2> {
        if self.recompute {
            return self.recomputed(x, rotary, starts);
        }
        let (attention, mlp) = (&self.attention, &self.mlp);
        let x = attention.out.after(x, self.attention_norm.op(), Activation::None, |x| {
            attention.branch(x, rotary, starts)
        });
        mlp.down.after(x, self.mlp_norm.op(), ACTIVATION, |x| mlp.gate_up.forward(x))
    }

    fn recomputed(&self, x: Tensor<2>, rotary: &Arc<Rotary>, starts: &Arc<[u32]>) -> Tensor<2> {
        let mut bare = Self { recompute: false, ..self.clone() };
        // What is run again holds no gradient record but that of the tensors it is given then.
        let [a, b, c, d, e, f, g, h] = bare.every().map(|p| {
            let plain = p.tensor.clone().inner();
            std::mem::replace(&mut p.tensor, plain)
        });
        let (rotary, starts) = (rotary.clone(), starts.clone());
        // What not every block has goes in as one row.
        let mut few: Vec<Tensor<2>> = Vec::new();
        for p in bare.others() {
            let plain = p.tensor.clone().inner();
            let [rows, columns] = plain.dims();
            few.push(std::mem::replace(&mut p.tensor, plain).reshape([1, rows * columns]));
        }
        let few = match few.is_empty() {
            true => Tensor::zeros([1, 1], &x.device()),
            false => Tensor::cat(few, 1),
        };
        danlu_ops::recompute([x, a, b, c, d, e, f, g, h, few], move |[x, tensors @ .., few]| {
            let mut block = bare.clone();
            for (p, tensor) in block.every().into_iter().zip(tensors) {
                p.tensor = tensor;
            }
            let mut at = 0;
            for p in block.others() {
                let dims = p.tensor.dims();
                let size = dims[0] * dims[1];
                p.tensor = few.clone().narrow(1, at, size).reshape(dims);
                at += size;
            }
            block.forward(x, &rotary, &starts)
        })
    }

    /// Every tensor that each block has and [`Self::forward`] takes, to change.
    fn every(&mut self) -> [&mut Parameter; 8] {
        let Self { attention_norm, attention: a, mlp_norm, mlp, .. } = self;
        [
            &mut attention_norm.weight,
            &mut a.qkv.weight,
            &mut a.out.weight,
            &mut a.q_norm,
            &mut a.k_norm,
            &mut mlp_norm.weight,
            &mut mlp.gate_up.weight,
            &mut mlp.down.weight,
        ]
    }

    /// Every parameter, and those of the adapters, to change.
    pub fn every_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { attention_norm, attention: a, mlp_norm, mlp, .. } = self;
        let mut all =
            vec![&mut attention_norm.weight, &mut a.q_norm, &mut a.k_norm, &mut mlp_norm.weight];
        for linear in [&mut a.qkv, &mut a.out, &mut mlp.gate_up, &mut mlp.down] {
            all.push(&mut linear.weight);
            all.extend(&mut linear.bias);
            all.extend(linear.adapters.iter_mut().flat_map(Lora::parameters_mut));
        }
        all
    }

    /// Biases and adapters, to change.
    fn others(&mut self) -> Vec<&mut Parameter> {
        let linears = self.linears_mut();
        linears
            .into_iter()
            .flat_map(|l| {
                l.bias.iter_mut().chain(l.adapters.iter_mut().flat_map(Lora::parameters_mut))
            })
            .collect()
    }

    /// The projections, in file order.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.attention.qkv, &self.attention.out, &self.mlp.gate_up, &self.mlp.down]
    }

    /// The projections, in file order, to change.
    pub fn linears_mut(&mut self) -> [&mut Linear; 4] {
        let Self { attention, mlp, .. } = self;
        [&mut attention.qkv, &mut attention.out, &mut mlp.gate_up, &mut mlp.down]
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
        all.extend(self.mlp.gate_up.parameters());
        all.extend(self.mlp.down.parameters());
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
        all.extend(self.mlp.gate_up.parameters_mut());
        all.extend(self.mlp.down.parameters_mut());
        all
    }
}
