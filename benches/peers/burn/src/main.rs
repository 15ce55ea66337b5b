//! The benchmark model on Burn as it comes: the flex backend under autodiff, its plain operations
//! and modules, its own AdamW. None of Danlu's fused operations are used.

#[path = "../../shared.rs"]
mod shared;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{
    Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig,
    RmsNorm, RmsNormConfig,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::{gelu_approximate, silu};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};
use shared::Options;

/// LayerNorm or RMSNorm.
#[derive(Module, Debug)]
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn new(size: usize, gpt: bool, device: &Device) -> Self {
        if gpt {
            Self::Layer(LayerNormConfig::new(size).init(device))
        } else {
            Self::Rms(RmsNormConfig::new(size).with_epsilon(1e-6).init(device))
        }
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// One layer of either architecture; the QK-norms are there in qwen's alone.
#[derive(Module, Debug)]
struct Block {
    norm1: Norm,
    qkv: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    out: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Model {
    tokens: Embedding,
    positions: Option<Embedding>,
    blocks: Vec<Block>,
    norm: Norm,
}

/// What the layers share and the optimiser does not see: the cosines and sines of the rotary
/// angles, `[1, 1, window, head_dim / 2]`.
struct Tables {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

/// Rotary positions on `[rows, heads, window, head_dim]`, the halves of a head being pairs.
fn turn(x: Tensor<4>, t: &Tables) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let (cos, sin) = (t.cos.clone(), t.sin.clone());
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    Tensor::cat(vec![first, b * cos + a * sin], 3)
}

fn linear(inputs: usize, outputs: usize, std: f64, bias: bool, device: &Device) -> Linear {
    let initializer = Initializer::Normal { mean: 0.0, std };
    let config = LinearConfig::new(inputs, outputs).with_bias(false).with_initializer(initializer);
    let bias = bias.then(|| Initializer::Zeros.init([outputs], device));
    Linear { bias, ..config.init(device) }
}

impl Block {
    fn new(o: &Options, gpt: bool, std: f64, device: &Device) -> Self {
        let last = std / (2.0 * o.depth as f64).sqrt();
        let kv_heads = if gpt { o.heads } else { o.kv_heads() };
        let projected = (o.heads + 2 * kv_heads) * o.head_dim();
        let hidden = if gpt { 4 * o.width } else { o.hidden() };
        let up = if gpt { hidden } else { 2 * hidden };
        let head_norm = || (!gpt).then(|| Norm::new(o.head_dim(), false, device));
        Self {
            norm1: Norm::new(o.width, gpt, device),
            qkv: linear(o.width, projected, std, gpt, device),
            q_norm: head_norm(),
            k_norm: head_norm(),
            out: linear(o.width, o.width, last, gpt, device),
            norm2: Norm::new(o.width, gpt, device),
            up: linear(o.width, up, std, gpt, device),
            down: linear(hidden, o.width, last, gpt, device),
        }
    }

    /// `[rows, window, width]` to the same.
    fn forward(&self, x: Tensor<3>, o: &Options, t: &Tables) -> Tensor<3> {
        let x = x.clone() + self.attention(self.norm1.forward(x), o, t);
        let up = self.up.forward(self.norm2.forward(x.clone()));
        let active = if self.q_norm.is_none() {
            gelu_approximate(up)
        } else {
            let hidden = o.hidden();
            silu(up.clone().narrow(2, 0, hidden)) * up.narrow(2, hidden, hidden)
        };
        x + self.down.forward(active)
    }

    fn attention(&self, x: Tensor<3>, o: &Options, t: &Tables) -> Tensor<3> {
        let size = o.head_dim();
        let kv_heads = if self.q_norm.is_none() { o.heads } else { o.kv_heads() };
        let all = [o.rows, o.window, o.heads + 2 * kv_heads, size];
        let qkv: Tensor<4> = self.qkv.forward(x).reshape(all);
        let part = |from, heads| qkv.clone().narrow(2, from, heads).swap_dims(1, 2);
        let mut q = part(0, o.heads);
        let mut k = part(o.heads, kv_heads);
        let mut v = part(o.heads + kv_heads, kv_heads);
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q = turn(q_norm.forward(q), t);
            k = turn(k_norm.forward(k), t);
        }
        if kv_heads != o.heads {
            let wide = [o.rows, kv_heads, o.heads / kv_heads, o.window, size];
            let repeat = |y: Tensor<4>| -> Tensor<4> {
                let grouped: Tensor<5> = y.unsqueeze_dim(2);
                grouped.expand(wide).reshape([o.rows, o.heads, o.window, size])
            };
            (k, v) = (repeat(k), repeat(v));
        }
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let mixed = attention(q, k, v, None, None, options);
        self.out.forward(mixed.swap_dims(1, 2).reshape([o.rows, o.window, o.width]))
    }
}

impl Model {
    fn new(o: &Options, device: &Device) -> Self {
        let gpt = o.arch == "gpt";
        let std = if gpt { 0.02 } else { (3.0 * o.width as f64).powf(-0.5) };
        let table = |size| {
            let initializer = Initializer::Normal { mean: 0.0, std };
            EmbeddingConfig::new(size, o.width).with_initializer(initializer).init(device)
        };
        Self {
            tokens: table(o.vocabulary),
            positions: gpt.then(|| table(o.window)),
            blocks: (0..o.depth).map(|_| Block::new(o, gpt, std, device)).collect(),
            norm: Norm::new(o.width, gpt, device),
        }
    }

    /// Logits `[rows * window, vocabulary]` of `ids: [rows, window]`.
    fn logits(&self, ids: Tensor<2, Int>, o: &Options, t: &Tables) -> Tensor<2> {
        let mut x = self.tokens.forward(ids);
        if let Some(positions) = &self.positions {
            x = x + positions.weight.val().unsqueeze_dim(0);
        }
        for block in &self.blocks {
            x = block.forward(x, o, t);
        }
        let x: Tensor<2> = self.norm.forward(x).reshape([o.rows * o.window, o.width]);
        x.matmul(self.tokens.weight.val().transpose())
    }
}

/// Sums the squares of all gradients, or scales them. (Burn's own clipping looks at one parameter
/// at a time; the other engines clip the norm of all together.)
struct Clip<'a> {
    grads: &'a mut GradientsParams,
    squares: Option<Tensor<1>>,
    scale: Option<f64>,
}

impl ModuleVisitor for Clip<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return };
        if let Some(scale) = self.scale {
            self.grads.register(param.id, grad.mul_scalar(scale));
            return;
        }
        let square = grad.clone().square().sum();
        self.grads.register(param.id, grad);
        self.squares = Some(match self.squares.take() {
            Some(sum) => sum + square,
            None => square,
        });
    }
}

/// Scales all gradients so that their common norm is at most 1.
fn clip(grads: &mut GradientsParams, model: &Model) {
    let mut visitor = Clip { grads, squares: None, scale: None };
    model.visit(&mut visitor);
    let norm = visitor.squares.take().map_or(0.0, |s| f64::from(s.into_scalar::<f32>())).sqrt();
    if norm > 1.0 {
        visitor.scale = Some(1.0 / norm);
        model.visit(&mut visitor);
    }
}

/// The parameters that are vectors.
struct Vectors(Vec<ParamId>);

impl ModuleVisitor for Vectors {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D == 1 {
            self.0.push(param.id);
        }
    }
}

fn main() {
    let o = Options::parse();
    let device = Device::flex().autodiff();
    device.seed(0);
    let mut model = Model::new(&o, &device);
    let (cos, sin) = o.rotary();
    let table =
        |v| Tensor::from_data(TensorData::new(v, [1, 1, o.window, o.head_dim() / 2]), &device);
    let tables = Tables { cos: table(cos), sin: table(sin) };
    // Weight decay on matrices alone, as in the other engines.
    let mut vectors = Vectors(Vec::new());
    model.visit(&mut vectors);
    let adamw = AdamWConfig::new().with_beta_2(0.95).with_epsilon(1e-8);
    let without_decay = adamw.clone().with_weight_decay(0.0).build();
    let vectors = ParamGroup::from_ids(vectors.0);
    let mut optimiser =
        adamw.with_weight_decay(0.1).init().with_group(vectors, without_decay, None);
    let loss_of = CrossEntropyLossConfig::new().init(&device);
    let ints = |ids: &[u32]| -> Vec<i64> { ids.iter().map(|&i| i.into()).collect() };
    shared::measure("burn", &o, |ids, targets| {
        let ids = Tensor::from_data(TensorData::new(ints(ids), [o.rows, o.window]), &device);
        let targets = Tensor::from_data(TensorData::new(ints(targets), [targets.len()]), &device);
        let loss = loss_of.forward(model.logits(ids, &o, &tables), targets);
        let value = loss.clone().into_scalar::<f32>();
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        clip(&mut grads, &model);
        model = optimiser.step(3e-4, model.clone(), grads);
        value
    });
}
