//! The benchmark model on candle: its plain differentiable operations and its own AdamW.
//!
//! candle's fused LayerNorm, RMSNorm, softmax and rotary operations have no backward pass, so the
//! composed forms of `candle_nn` are used, as anybody who trains with candle must.

#[path = "../../shared.rs"]
mod shared;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ops::{layer_norm_slow, rms_norm_slow, softmax};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use shared::Options;

/// Makes the weights and keeps them for the optimiser.
struct Weights {
    all: Vec<Var>,
}

impl Weights {
    fn keep(&mut self, var: Var) -> Tensor {
        let tensor = var.as_tensor().clone();
        self.all.push(var);
        tensor
    }

    fn normal(&mut self, rows: usize, columns: usize, std: f64) -> Result<Tensor> {
        let var = Var::randn(0f32, std as f32, (rows, columns), &Device::Cpu)?;
        Ok(self.keep(var))
    }

    fn constant(&mut self, size: usize, value: f32) -> Result<Tensor> {
        let var = Var::from_vec(vec![value; size], size, &Device::Cpu)?;
        Ok(self.keep(var))
    }
}

/// `[out, in]`, with a bias or without.
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn new(w: &mut Weights, inputs: usize, outputs: usize, std: f64, bias: bool) -> Result<Self> {
        let weight = w.normal(outputs, inputs, std)?;
        let bias = if bias { Some(w.constant(outputs, 0.0)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `[n, in]` to `[n, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        self.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
    }
}

/// LayerNorm with a bias, RMSNorm without.
struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Norm {
    fn new(w: &mut Weights, size: usize, bias: bool) -> Result<Self> {
        let weight = w.constant(size, 1.0)?;
        let bias = if bias { Some(w.constant(size, 0.0)?) } else { None };
        Ok(Self { weight, bias })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => layer_norm_slow(x, &self.weight, bias, 1e-5),
            None => rms_norm_slow(x, &self.weight, 1e-6),
        }
    }
}

/// One layer of either architecture.
struct Block {
    norm1: Norm,
    qkv: Linear,
    qk_norm: Option<(Norm, Norm)>,
    out: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
}

/// What the layers share.
struct Tables {
    /// `[window, window]`: 0 where a position sees another, minus infinity elsewhere.
    mask: Tensor,
    /// `[window, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
}

struct Model {
    o: Options,
    tokens: Tensor,
    positions: Option<Tensor>,
    blocks: Vec<Block>,
    norm: Norm,
    tables: Tables,
}

/// Rotary positions on `[rows, heads, window, head_dim]`, the halves of a head being pairs.
fn turn(x: &Tensor, t: &Tables) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(&t.cos)? - b.broadcast_mul(&t.sin)?)?;
    let second = (b.broadcast_mul(&t.cos)? + a.broadcast_mul(&t.sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

impl Block {
    fn new(w: &mut Weights, o: &Options, gpt: bool, std: f64) -> Result<Self> {
        let last = std / (2.0 * o.depth as f64).sqrt();
        let kv_heads = if gpt { o.heads } else { o.kv_heads() };
        let projected = (o.heads + 2 * kv_heads) * o.head_dim();
        let (up, hidden) =
            if gpt { (4 * o.width, 4 * o.width) } else { (2 * o.hidden(), o.hidden()) };
        Ok(Self {
            norm1: Norm::new(w, o.width, gpt)?,
            qkv: Linear::new(w, o.width, projected, std, gpt)?,
            qk_norm: if gpt {
                None
            } else {
                Some((Norm::new(w, o.head_dim(), false)?, Norm::new(w, o.head_dim(), false)?))
            },
            out: Linear::new(w, o.width, o.width, last, gpt)?,
            norm2: Norm::new(w, o.width, gpt)?,
            up: Linear::new(w, o.width, up, std, gpt)?,
            down: Linear::new(w, hidden, o.width, last, gpt)?,
        })
    }

    /// `[rows * window, width]` to the same.
    fn forward(&self, x: &Tensor, o: &Options, t: &Tables) -> Result<Tensor> {
        let x = (x + self.attention(&self.norm1.forward(x)?, o, t)?)?;
        let up = self.up.forward(&self.norm2.forward(&x)?)?;
        let active = if self.qk_norm.is_none() {
            up.gelu()? // the tanh form
        } else {
            let hidden = o.hidden();
            (up.narrow(1, 0, hidden)?.silu()? * up.narrow(1, hidden, hidden)?)?
        };
        x + self.down.forward(&active)?
    }

    fn attention(&self, x: &Tensor, o: &Options, t: &Tables) -> Result<Tensor> {
        let size = o.head_dim();
        let kv_heads = if self.qk_norm.is_none() { o.heads } else { o.kv_heads() };
        let qkv = self.qkv.forward(x)?.reshape((o.rows, o.window, o.heads + 2 * kv_heads, size))?;
        let part = |from, heads| qkv.narrow(2, from, heads)?.transpose(1, 2)?.contiguous();
        let mut q = part(0, o.heads)?;
        let mut k = part(o.heads, kv_heads)?;
        let mut v = part(o.heads + kv_heads, kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = turn(&q_norm.forward(&q)?, t)?;
            k = turn(&k_norm.forward(&k)?, t)?;
        }
        if kv_heads != o.heads {
            let repeat = |y: &Tensor| {
                let wide = (o.rows, kv_heads, o.heads / kv_heads, o.window, size);
                y.unsqueeze(2)?.broadcast_as(wide)?.reshape((o.rows, o.heads, o.window, size))
            };
            (k, v) = (repeat(&k)?, repeat(&v)?);
        }
        let scores = (q * (size as f64).powf(-0.5))?.matmul(&k.t()?)?;
        let shares = softmax(&scores.broadcast_add(&t.mask)?, D::Minus1)?;
        let mixed = shares.matmul(&v.contiguous()?)?.transpose(1, 2)?;
        self.out.forward(&mixed.reshape((o.rows * o.window, o.width))?)
    }
}

impl Model {
    fn new(w: &mut Weights, o: &Options) -> Result<Self> {
        let gpt = o.arch == "gpt";
        let std = if gpt { 0.02 } else { (3.0 * o.width as f64).powf(-0.5) };
        let cells = (0..o.window * o.window)
            .map(|i| if i % o.window > i / o.window { f32::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_vec(cells.collect::<Vec<_>>(), (o.window, o.window), &Device::Cpu)?;
        let (cos, sin) = o.rotary();
        let table = |v: Vec<f32>| Tensor::from_vec(v, (o.window, o.head_dim() / 2), &Device::Cpu);
        Ok(Self {
            tokens: w.normal(o.vocabulary, o.width, std)?,
            positions: if gpt { Some(w.normal(o.window, o.width, std)?) } else { None },
            blocks: (0..o.depth).map(|_| Block::new(w, o, gpt, std)).collect::<Result<_>>()?,
            norm: Norm::new(w, o.width, gpt)?,
            tables: Tables { mask, cos: table(cos)?, sin: table(sin)? },
            o: o.clone(),
        })
    }

    /// Mean cross-entropy in nats.
    fn loss(&self, ids: &[u32], targets: &[u32]) -> Result<Tensor> {
        let o = &self.o;
        let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?;
        let targets = Tensor::from_slice(targets, targets.len(), &Device::Cpu)?;
        let mut x = self.tokens.index_select(&ids, 0)?;
        if let Some(positions) = &self.positions {
            let by_row = x.reshape((o.rows, o.window, o.width))?.broadcast_add(positions)?;
            x = by_row.reshape((o.rows * o.window, o.width))?;
        }
        for block in &self.blocks {
            x = block.forward(&x, o, &self.tables)?;
        }
        let logits = self.norm.forward(&x)?.matmul(&self.tokens.t()?)?;
        cross_entropy(&logits, &targets)
    }
}

/// Scales all gradients so that their common norm is at most 1.
fn clip(grads: &mut GradStore, vars: &[Var]) -> Result<()> {
    let mut squares = 0.0;
    for grad in vars.iter().filter_map(|v| grads.get(v)) {
        squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = squares.sqrt();
    if norm > 1.0 {
        for var in vars {
            if let Some(grad) = grads.remove(var) {
                grads.insert(var, (grad / norm)?);
            }
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let o = Options::parse();
    let mut weights = Weights { all: Vec::new() };
    let model = Model::new(&mut weights, &o)?;
    // Weight decay on matrices alone, as in the other engines.
    let settings =
        |weight_decay| ParamsAdamW { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay };
    let (matrices, vectors) = weights.all.iter().cloned().partition(|v: &Var| v.rank() == 2);
    let mut on_matrices = AdamW::new(matrices, settings(0.1))?;
    let mut on_vectors = AdamW::new(vectors, settings(0.0))?;
    let mut step = |ids: &[u32], targets: &[u32]| -> Result<f32> {
        let loss = model.loss(ids, targets)?;
        let mut grads = loss.backward()?;
        clip(&mut grads, &weights.all)?;
        on_matrices.step(&grads)?;
        on_vectors.step(&grads)?;
        loss.to_scalar()
    };
    shared::measure("candle", &o, |ids, targets| {
        step(ids, targets).unwrap_or_else(|error| {
            eprintln!("candle: {error}");
            std::process::exit(1)
        })
    });
    Ok(())
}
