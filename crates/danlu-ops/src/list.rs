//! Every operation of this crate in one list, which the tests here, the benchmark and comparisons
//! with other devices go over.

use crate::activation::Activation;
use crate::attention::{self, AttentionShape, Rotary};
use crate::conv::{self, ConvShape};
use crate::experts::{self, Among, Routing};
use crate::head_loss::{self, HeadLoss};
use crate::linear::{self, Fused};
use crate::muon::{self, Muon};
use crate::quant::{Arena, WeightFormat, Weights};
use crate::residual::{Last, Norm, residual};
use crate::step::{self, AdamW};
use crate::{embedding, frozen, grouped, layer_norm, rms_norm};
use burn::tensor::Tensor;
use std::sync::Arc;

/// An operation in one of its forms, on matrices.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// The operation.
    pub name: &'static str,
    /// Which of its forms; empty if there is one.
    pub form: &'static str,
    /// Whether it has a backward pass; steps of optimisers have none.
    pub differentiable: bool,
    /// Shapes of inputs for a number of rows (even, at least 8) and a width (a multiple of 16).
    pub shapes: fn(usize, usize) -> Vec<[usize; 2]>,
    /// The operation as it is called: the kernel, where the device has one.
    pub fused: fn(&[Tensor<2>]) -> Tensor<2>,
    /// The same in plain Burn operations.
    pub composed: fn(&[Tensor<2>]) -> Tensor<2>,
}

/// A square weight of eight bits.
fn eight_bits(width: usize) -> Arc<Weights> {
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / (50.0 * (width as f32).sqrt());
    let values: Vec<f32> = (0..width * width).map(value).collect();
    Arc::new(Weights::new(&values, [width, width], WeightFormat::Q8_0, &Arena::default()))
}

/// Every operation.
pub const ALL: &[Op] = &[
    Op {
        name: "linear",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [w, w]],
        fused: |v| linear::linear(v[0].clone(), v[1].clone()),
        composed: |v| linear::composed(v[0].clone(), v[1].clone(), Fused::default()),
    },
    Op {
        name: "frozen_linear",
        form: "q8_0",
        differentiable: true,
        shapes: |n, w| vec![[n, w]],
        fused: |v| frozen::frozen_linear(v[0].clone(), &eight_bits(v[0].dims()[1])),
        composed: |v| frozen::composed(v[0].clone(), &eight_bits(v[0].dims()[1])),
    },
    around(
        "bias, residual",
        Activation::None,
        |v| fused_around(v, Activation::None),
        |v| composed_around(v, Activation::None),
    ),
    around(
        "silu, bias, residual",
        Activation::Silu,
        |v| fused_around(v, Activation::Silu),
        |v| composed_around(v, Activation::Silu),
    ),
    around(
        "gelu, bias, residual",
        Activation::Gelu,
        |v| fused_around(v, Activation::Gelu),
        |v| composed_around(v, Activation::Gelu),
    ),
    around(
        "gelu (tanh), bias, residual",
        Activation::GeluTanh,
        |v| fused_around(v, Activation::GeluTanh),
        |v| composed_around(v, Activation::GeluTanh),
    ),
    around(
        "swiglu, bias, residual",
        Activation::Swiglu,
        |v| fused_around(v, Activation::Swiglu),
        |v| composed_around(v, Activation::Swiglu),
    ),
    Op {
        name: "grouped_linear",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [GROUPS * w, w]],
        fused: |v| grouped::grouped_linear(v[0].clone(), v[1].clone(), &groups(v)),
        composed: |v| grouped::composed(v[0].clone(), v[1].clone(), &groups(v)),
    },
    Op {
        name: "batched_linear",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[2 * n, w], [2 * w, w]],
        fused: |v| {
            let [x, w] = [0, 1].map(|i| halves(&v[i]));
            whole(grouped::batched_linear(x, w))
        },
        composed: |v| whole(halves(&v[0]).matmul(halves(&v[1]).swap_dims(1, 2))),
    },
    Op {
        name: "mix_experts",
        form: "two of four",
        differentiable: true,
        shapes: |n, w| vec![[2 * n, w], [n, 4]],
        fused: |v| mixed(v, experts::mix_experts, Among::Chosen),
        composed: |v| mixed(v, experts::composed, Among::Chosen),
    },
    Op {
        name: "mix_experts",
        form: "two of four, gates among all",
        differentiable: true,
        shapes: |n, w| vec![[2 * n, w], [n, 4]],
        fused: |v| mixed(v, experts::mix_experts, Among::All),
        composed: |v| mixed(v, experts::composed, Among::All),
    },
    Op {
        name: "attention",
        form: "heads share keys, norms, turned, documents",
        differentiable: true,
        shapes: |n, w| vec![[n, 2 * w], [1, w / 4], [1, w / 4]],
        fused: |v| {
            let (shape, rotary, starts) = attends(v);
            let [x, q, k] = [0, 1, 2].map(|i| v[i].clone());
            attention::attention(x, q, k, &shape, &rotary, &starts)
        },
        composed: |v| {
            let (shape, rotary, starts) = attends(v);
            let [x, q, k] = [0, 1, 2].map(|i| v[i].clone());
            attention::composed(x, q, k, &shape, &rotary, &starts)
        },
    },
    Op {
        name: "conv2d",
        form: "stride 1",
        differentiable: true,
        shapes: |n, w| vec![[4 * n, w / 4], [w / 2, 9 * w / 4], [1, w / 2]],
        fused: |v| convolved(v, 1, true),
        composed: |v| convolved(v, 1, false),
    },
    Op {
        name: "conv2d",
        form: "stride 2",
        differentiable: true,
        shapes: |n, w| vec![[4 * n, w / 4], [w / 2, 9 * w / 4], [1, w / 2]],
        fused: |v| convolved(v, 2, true),
        composed: |v| convolved(v, 2, false),
    },
    Op {
        name: "conv1d",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[2 * n, w / 4], [w / 2, 5 * w / 4], [1, w / 2]],
        fused: |v| {
            let shape = ConvShape::along(5, 2, 2);
            whole(conv::conv1d(halves(&v[0]), v[1].clone(), v[2].clone(), shape))
        },
        composed: |v| {
            let (shape, [n, width]) = (ConvShape::along(5, 2, 2), v[0].dims());
            let x = v[0].clone().reshape([2, 1, n / 2, width]);
            let y = conv::composed(x, v[1].clone(), v[2].clone(), shape);
            let [b, h, w, c] = y.dims();
            y.reshape([b * h * w, c])
        },
    },
    Op {
        name: "embedding",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[n, w]],
        fused: |v| embedding::embedding(v[0].clone(), &ids(&v[0])),
        composed: |v| embedding::composed(v[0].clone(), &ids(&v[0])),
    },
    Op {
        name: "head_loss",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [3 * w + 1, w]],
        fused: |v| {
            let (loss, _) = head_loss::head_loss(v[0].clone(), v[1].clone(), &targets(v));
            loss.reshape([1, 1])
        },
        composed: |v| head_loss::composed(v[0].clone(), v[1].clone(), &targets(v)).narrow(0, 0, 1),
    },
    Op {
        name: "layer_norm",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [1, w], [1, w]],
        fused: |v| layer_norm::layer_norm(v[0].clone(), v[1].clone(), v[2].clone(), 1e-5),
        composed: |v| layer_norm::composed(v[0].clone(), v[1].clone(), v[2].clone(), 1e-5),
    },
    Op {
        name: "rms_norm",
        form: "",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [1, w]],
        fused: |v| rms_norm::rms_norm(v[0].clone(), v[1].clone(), 1e-6),
        composed: |v| rms_norm::composed(v[0].clone(), v[1].clone(), 1e-6),
    },
    Op {
        name: "activate",
        form: "silu",
        differentiable: true,
        shapes: |n, w| vec![[n, w]],
        fused: |v| crate::silu(v[0].clone()),
        composed: |v| Activation::Silu.composed(v[0].clone()),
    },
    Op {
        name: "activate",
        form: "gelu",
        differentiable: true,
        shapes: |n, w| vec![[n, w]],
        fused: |v| crate::activate(v[0].clone(), Activation::Gelu),
        composed: |v| Activation::Gelu.composed(v[0].clone()),
    },
    Op {
        name: "activate",
        form: "gelu (tanh)",
        differentiable: true,
        shapes: |n, w| vec![[n, w]],
        fused: |v| crate::activate(v[0].clone(), Activation::GeluTanh),
        composed: |v| Activation::GeluTanh.composed(v[0].clone()),
    },
    Op {
        name: "activate",
        form: "swiglu",
        differentiable: true,
        shapes: |n, w| vec![[n, 2 * w]],
        fused: |v| crate::swiglu(v[0].clone()),
        composed: |v| Activation::Swiglu.composed(v[0].clone()),
    },
    Op {
        name: "residual",
        form: "rms_norm",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [1, w], [w, w]],
        fused: |v| twice(v, |x| half(x, rms(v), v)),
        composed: |v| {
            twice(v, |x| x.clone() + branch(rms_norm::composed(x, v[1].clone(), 1e-6), v))
        },
    },
    Op {
        name: "residual",
        form: "layer_norm",
        differentiable: true,
        shapes: |n, w| vec![[n, w], [1, w], [w, w], [1, w]],
        fused: |v| twice(v, |x| half(x, layer(v), v)),
        composed: |v| {
            let norm = |x| layer_norm::composed(x, v[1].clone(), v[3].clone(), 1e-5);
            twice(v, |x| x.clone() + branch(norm(x), v))
        },
    },
    Op {
        name: "adamw_step",
        form: "",
        differentiable: false,
        shapes: |n, w| vec![[n, w]; 4],
        fused: |v| Tensor::cat(step::adamw_step(moments(v), v[3].clone(), ADAMW).to_vec(), 0),
        composed: |v| Tensor::cat(step::composed(moments(v), v[3].clone(), ADAMW).to_vec(), 0),
    },
    Op {
        name: "muon_step",
        form: "",
        differentiable: false,
        shapes: |n, w| vec![[n, w]; 3],
        fused: |v| {
            let matrix = [0, 1, 2].map(|i| v[i].clone());
            Tensor::cat(muon::muon_step(vec![matrix.into()], MUON).remove(0).to_vec(), 0)
        },
        composed: |v| {
            let matrix = [0, 1, 2].map(|i| v[i].clone());
            Tensor::cat(muon::composed(matrix.into(), MUON).to_vec(), 0)
        },
    },
];

const GROUPS: usize = 3;

const ADAMW: AdamW = AdamW {
    rate: 0.01,
    betas: [0.9, 0.95],
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 3,
    grad_scale: 0.5,
};

const MUON: Muon = Muon { rate: 0.02, momentum: 0.95, weight_decay: 0.1, grad_scale: 0.5 };

/// A projection with everything around it.
const fn around(
    form: &'static str,
    activation: Activation,
    fused: fn(&[Tensor<2>]) -> Tensor<2>,
    composed: fn(&[Tensor<2>]) -> Tensor<2>,
) -> Op {
    let shapes: fn(usize, usize) -> Vec<[usize; 2]> = match activation {
        Activation::Swiglu => |n, w| vec![[n, 2 * w], [w, w], [1, w], [n, w]],
        _ => |n, w| vec![[n, w], [w, w], [1, w], [n, w]],
    };
    Op { name: "linear_with", form, differentiable: true, shapes, fused, composed }
}

fn fused_around(v: &[Tensor<2>], activation: Activation) -> Tensor<2> {
    let around = Fused { activation, bias: Some(v[2].clone()), residual: Some(v[3].clone()) };
    linear::linear_with(v[0].clone(), v[1].clone(), around)
}

fn composed_around(v: &[Tensor<2>], activation: Activation) -> Tensor<2> {
    let around = Fused { activation, bias: Some(v[2].clone()), residual: Some(v[3].clone()) };
    linear::composed(v[0].clone(), v[1].clone(), around)
}

/// Groups of a third of the rows, none, and the rest.
fn groups(v: &[Tensor<2>]) -> Arc<[u32]> {
    let n = v[0].dims()[0] as u32;
    Arc::from([0, n / 3, n / 3, n])
}

/// Two experts for each row, whatever its scores are: a choice has no gradient.
fn mixed(
    v: &[Tensor<2>],
    op: fn(Tensor<2>, Tensor<2>, &Routing) -> Tensor<2>,
    among: Among,
) -> Tensor<2> {
    let [n, experts] = v[1].dims();
    let fixed: Vec<f32> = (0..n * experts).map(|i| (i * i % 7) as f32).collect();
    op(v[0].clone(), v[1].clone(), &Routing::new(&fixed, experts, 2, among))
}

/// Two matrices one under the other as a batch.
fn halves(t: &Tensor<2>) -> Tensor<3> {
    let [n, width] = t.dims();
    t.clone().reshape([2, n / 2, width])
}

fn whole(t: Tensor<3>) -> Tensor<2> {
    let [batch, n, width] = t.dims();
    t.reshape([batch * n, width])
}

/// Four query and two key and value heads; two documents, one of three rows.
fn attends(v: &[Tensor<2>]) -> (AttentionShape, Arc<Rotary>, Arc<[u32]>) {
    let [n, width] = v[0].dims();
    let head_dim = width / 8;
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim, norm_eps: Some(1e-6) };
    (shape, Arc::new(Rotary::new(head_dim, n, 1e4)), Arc::from([0, 3, n as u32]))
}

/// Two pictures four wide under a kernel of 3 by 3.
fn convolved(v: &[Tensor<2>], stride: usize, fused: bool) -> Tensor<2> {
    let [n, width] = v[0].dims();
    let x = v[0].clone().reshape([2, n / 8, 4, width]);
    let shape = ConvShape { stride: [stride; 2], ..ConvShape::same([3, 3]) };
    let y = match fused {
        true => conv::conv2d(x, v[1].clone(), v[2].clone(), shape),
        false => conv::composed(x, v[1].clone(), v[2].clone(), shape),
    };
    let [b, h, w, c] = y.dims();
    y.reshape([b * h * w, c])
}

/// One id for every row and three more, some of them the same.
fn ids(table: &Tensor<2>) -> Arc<[u32]> {
    let n = table.dims()[0] as u32;
    (0..n + 3).map(|i| i * i % n).collect()
}

fn targets(v: &[Tensor<2>]) -> HeadLoss {
    let (n, size) = (v[0].dims()[0], v[1].dims()[0]);
    HeadLoss {
        targets: (0..n).map(|i| (i * 7 % size) as u32).collect(),
        weights: (0..n).map(|i| [1.0, 0.0, 0.5][i % 3]).collect(),
        scale: 1.0 / n as f32,
        z_loss: 0.01,
    }
}

fn rms(v: &[Tensor<2>]) -> Norm {
    Norm::Rms { gain: v[1].clone(), eps: 1e-6 }
}

fn layer(v: &[Tensor<2>]) -> Norm {
    Norm::Layer { gain: v[1].clone(), bias: v[3].clone(), eps: 1e-5 }
}

fn half(x: Tensor<2>, norm: Norm, v: &[Tensor<2>]) -> Tensor<2> {
    residual(x, norm, |x| Last {
        x,
        weight: v[2].clone(),
        around: Fused { activation: Activation::GeluTanh, ..Fused::default() },
    })
}

fn branch(x: Tensor<2>, v: &[Tensor<2>]) -> Tensor<2> {
    Activation::GeluTanh.composed(x).matmul(v[2].clone().transpose())
}

/// Twice, so that the inner stream is no leaf.
fn twice(v: &[Tensor<2>], half: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    half(half(v[0].clone()))
}

/// Value and moments; the second moment is not negative.
fn moments(v: &[Tensor<2>]) -> [Tensor<2>; 3] {
    [v[0].clone(), v[1].clone(), v[2].clone().powf_scalar(2.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, close, floats};
    use burn::tensor::{Distribution, TensorData};
    use std::collections::BTreeSet;

    fn inputs(op: &Op, rows: usize, width: usize) -> Vec<TensorData> {
        let device = crate::cpu_device();
        device.seed(5);
        let random = |dims| Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
        (op.shapes)(rows, width).into_iter().map(|dims| random(dims).into_data()).collect()
    }

    fn plain(data: &[TensorData]) -> Vec<Tensor<2>> {
        data.iter().map(|d| Tensor::from_data(d.clone(), &crate::cpu_device())).collect()
    }

    /// Holds an operation against its composed definition, and against differences if it has a
    /// backward pass.
    fn conforms(op: &Op) {
        if op.differentiable {
            return check(&(op.shapes)(70, 16), op.fused, op.composed);
        }
        let v = inputs(op, 70, 16);
        let [a, b] = [op.fused, op.composed].map(|f| floats(f(&plain(&v)).into_data()));
        close("output", &a, &b, 1e-5);
    }

    #[test]
    fn kernel_composed_and_differences_agree() {
        for op in ALL {
            let done = std::panic::catch_unwind(|| conforms(op));
            assert!(done.is_ok(), "{} {}: see above", op.name, op.form);
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        for op in ALL {
            // Large enough for products and passes to be shared between threads.
            let data = inputs(op, 300, 96);
            let run = |threads: usize| -> Vec<Vec<u32>> {
                let bits = |t: Tensor<2>| floats(t.into_data()).into_iter().map(f32::to_bits);
                let once = || {
                    if !op.differentiable {
                        return vec![bits((op.fused)(&plain(&data))).collect()];
                    }
                    let leaves: Vec<Tensor<2>> = plain(&data)
                        .into_iter()
                        .map(|t| Tensor::from_inner(t).require_grad())
                        .collect();
                    let out = (op.fused)(&leaves);
                    let grads = (out.clone() * out.clone()).sum().backward();
                    let grads = leaves.iter().map(|l| l.grad(&grads).expect("tracked"));
                    std::iter::once(out.inner()).chain(grads).map(|t| bits(t).collect()).collect()
                };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.expect("starts").install(once)
            };
            let one = run(1);
            for threads in [2, 3] {
                assert!(run(threads) == one, "{} {}, {threads} threads", op.name, op.form);
            }
        }
    }

    #[test]
    fn every_operation_is_listed() {
        let names: BTreeSet<&str> = ALL.iter().map(|op| op.name).collect();
        let forms: BTreeSet<[&str; 2]> = ALL.iter().map(|op| [op.name, op.form]).collect();
        assert_eq!(forms.len(), ALL.len(), "no form is listed twice");
        // Files that register an operation with Burn, and what is public in them.
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for entry in std::fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("readable").path();
            let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
            // The start of a backward pass has no value to compare.
            if path.is_dir() || file == "seed" {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("readable");
            if text.lines().any(|line| line.starts_with("#[backend_extension(")) {
                let listed = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("pub fn "))
                    .filter_map(|line| line.split(['(', '<']).next())
                    .any(|name| names.contains(name));
                assert!(listed, "{file}.rs registers an operation that is not in ALL");
            }
        }
    }
}
