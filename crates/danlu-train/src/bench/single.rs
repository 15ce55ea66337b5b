//! Operations one by one, and matrix products, at the shapes of training the benchmark model.

use burn::tensor::{Distribution, Tensor};
use danlu_ops::quant::{Arena, WeightFormat, Weights};
use danlu_ops::{
    Activation, AdamW, Among, AttentionShape, ConvShape, Fused, HeadLoss, Last, Muon, Norm, Rotary,
    Routing,
};
use serde::Serialize;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// How fast one thing is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// What.
    pub name: String,
    /// Median of one call; of forward and backward for an operation.
    pub milliseconds: f64,
    /// Where arithmetic is what counts.
    pub gflops: Option<f64>,
    /// Where memory is what counts: the least that must be read and written.
    pub gigabytes_per_second: Option<f64>,
}

/// How fast several things are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    /// The machine's multiply-add peak in GFLOP/s.
    pub fma_peak_gflops: f64,
    /// Threads.
    pub threads: usize,
    /// One entry a thing.
    pub rows: Vec<Rate>,
}

const N: usize = 4096;
const WIDTH: usize = 512;
const SIZE: usize = 8192;

/// What one call costs.
enum Cost {
    /// Floating-point operations, forward and backward.
    Flops(f64),
    /// Numbers read and written, forward and backward.
    Numbers(usize),
}

/// An operation that is measured.
struct Case {
    /// Its name in [`danlu_ops::ALL`].
    op: &'static str,
    name: &'static str,
    inputs: &'static [[usize; 2]],
    cost: Cost,
    run: fn(Vec<Tensor<2>>) -> Tensor<2>,
}

const fn matmul(m: usize, k: usize, n: usize) -> Cost {
    Cost::Flops(6.0 * (m * k * n) as f64)
}

/// A step of Muon on a matrix: two products of its own size, the first of them by half, and 17
/// halves of the smaller side.
const fn muon([m, n]: [usize; 2]) -> f64 {
    let (small, large) = if m < n { (m, n) } else { (n, m) };
    (small * small * (3 * large + 17 * small)) as f64
}

/// Matrices of a layer of the reference model.
const LAYER: [[usize; 2]; 4] = [[384, 256], [256, 256], [1408, 256], [256, 704]];

/// A weight that does not learn.
static EIGHT_BITS: LazyLock<Arc<Weights>> = LazyLock::new(|| {
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|i| (i * 37 % 101) as f32 / 1e3 - 0.05).collect();
    Arc::new(Weights::new(&values, [WIDTH, WIDTH], WeightFormat::Q8_0, &Arena::default()))
});

/// Every operation that is measured.
const CASES: &[Case] = &[
    Case {
        op: "linear",
        name: "linear 4096x512 to 1536",
        inputs: &[[N, WIDTH], [3 * WIDTH, WIDTH]],
        cost: matmul(N, WIDTH, 3 * WIDTH),
        run: |v| danlu_ops::linear(v[0].clone(), v[1].clone()),
    },
    Case {
        op: "linear_with",
        name: "linear with bias 4096x512 to 2048",
        inputs: &[[N, WIDTH], [4 * WIDTH, WIDTH], [1, 4 * WIDTH]],
        cost: matmul(N, WIDTH, 4 * WIDTH),
        run: |v| with(&v, Activation::None),
    },
    Case {
        op: "linear_with",
        name: "gelu (tanh) and linear 4096x2048 to 512",
        inputs: &[[N, 4 * WIDTH], [WIDTH, 4 * WIDTH], [1, WIDTH]],
        cost: matmul(N, 4 * WIDTH, WIDTH),
        run: |v| with(&v, Activation::GeluTanh),
    },
    Case {
        op: "linear_with",
        name: "gelu (erf) and linear 4096x2048 to 512",
        inputs: &[[N, 4 * WIDTH], [WIDTH, 4 * WIDTH], [1, WIDTH]],
        cost: matmul(N, 4 * WIDTH, WIDTH),
        run: |v| with(&v, Activation::Gelu),
    },
    Case {
        op: "linear_with",
        name: "swiglu and linear 4096x2x1408 to 512",
        inputs: &[[N, 2816], [WIDTH, 1408], [1, WIDTH]],
        cost: matmul(N, 1408, WIDTH),
        run: |v| with(&v, Activation::Swiglu),
    },
    Case {
        op: "attention",
        name: "attention 8 x 512, 8 heads of 64",
        inputs: &[[N, 3 * WIDTH]],
        cost: Cost::Flops(12.0 * (N * WIDTH) as f64 * 256.0),
        run: |v| attend(&v[0], 8, 512, false),
    },
    Case {
        op: "attention",
        name: "attention 1 x 4096, 8 heads of 64",
        inputs: &[[N, 3 * WIDTH]],
        cost: Cost::Flops(12.0 * (N * WIDTH) as f64 * 2048.0),
        run: |v| attend(&v[0], 8, N, false),
    },
    Case {
        op: "attention",
        name: "attention 8 x 512, 8 over 2, turned, normed",
        inputs: &[[N, 12 * 64]],
        cost: Cost::Flops(12.0 * (N * WIDTH) as f64 * 256.0),
        run: |v| attend(&v[0], 2, 512, true),
    },
    Case {
        op: "layer_norm",
        name: "layer_norm 4096x512",
        inputs: &[[N, WIDTH], [1, WIDTH], [1, WIDTH]],
        cost: Cost::Numbers(5 * N * WIDTH),
        run: |v| {
            let (gain, bias) = (v[1].clone(), v[2].clone());
            Norm::Layer { gain, bias, eps: 1e-5 }.forward(v[0].clone())
        },
    },
    Case {
        op: "rms_norm",
        name: "rms_norm 4096x512",
        inputs: &[[N, WIDTH], [1, WIDTH]],
        cost: Cost::Numbers(5 * N * WIDTH),
        run: |v| danlu_ops::rms_norm(v[0].clone(), v[1].clone(), 1e-6),
    },
    Case {
        op: "activate",
        name: "gelu (tanh) 4096x2048",
        inputs: &[[N, 4 * WIDTH]],
        cost: Cost::Numbers(5 * N * 4 * WIDTH),
        run: |v| danlu_ops::activate(v[0].clone(), Activation::GeluTanh),
    },
    Case {
        op: "embedding",
        name: "embedding 8192x512, 4096 ids",
        inputs: &[[SIZE, WIDTH]],
        cost: Cost::Numbers((3 * N + SIZE) * WIDTH),
        run: |v| danlu_ops::embedding(v[0].clone(), &ids()),
    },
    Case {
        op: "head_loss",
        name: "head_loss 4096x512 over 8192",
        inputs: &[[N, WIDTH], [SIZE, WIDTH]],
        cost: matmul(N, WIDTH, SIZE),
        run: |v| {
            let spec = HeadLoss {
                targets: ids(),
                weights: vec![1.0; N].into(),
                scale: 1.0 / N as f32,
                z_loss: 1e-4,
            };
            danlu_ops::head_loss(v[0].clone(), v[1].clone(), &spec).0.reshape([1, 1])
        },
    },
    Case {
        op: "frozen_linear",
        name: "frozen_linear 4096x512 to 512, q8_0",
        inputs: &[[N, WIDTH]],
        cost: Cost::Flops(4.0 * (N * WIDTH * WIDTH) as f64),
        run: |v| danlu_ops::frozen_linear(v[0].clone(), &EIGHT_BITS),
    },
    Case {
        op: "grouped_linear",
        name: "grouped_linear 4096x512 to 512, 8 groups",
        inputs: &[[N, WIDTH], [8 * WIDTH, WIDTH]],
        cost: matmul(N, WIDTH, WIDTH),
        run: |v| {
            let offsets: Arc<[u32]> = (0..=8).map(|g| (g * g * N / 64) as u32).collect();
            danlu_ops::grouped_linear(v[0].clone(), v[1].clone(), &offsets)
        },
    },
    Case {
        op: "mix_experts",
        name: "mix_experts 4096x512, two of eight",
        inputs: &[[2 * N, WIDTH], [N, 8]],
        cost: Cost::Numbers(9 * N * WIDTH),
        run: |v| danlu_ops::mix_experts(v[0].clone(), v[1].clone(), &TWO_OF_EIGHT),
    },
    Case {
        op: "batched_linear",
        name: "batched_linear 8 x 512x512 to 512",
        inputs: &[[N, WIDTH], [8 * WIDTH, WIDTH]],
        cost: matmul(N, WIDTH, WIDTH),
        run: |v| {
            let [x, w] = [0, 1].map(|i| v[i].clone().reshape([8, WIDTH, WIDTH]));
            danlu_ops::batched_linear(x, w).reshape([N, WIDTH])
        },
    },
    Case {
        op: "conv2d",
        name: "conv2d 8 x 32x32x64, 3x3 to 64",
        inputs: &[[8 * 1024, 64], [64, 9 * 64], [1, 64]],
        cost: matmul(8 * 1024, 9 * 64, 64),
        run: |v| {
            let x = v[0].clone().reshape([8, 32, 32, 64]);
            let shape = ConvShape::same([3, 3]);
            danlu_ops::conv2d(x, v[1].clone(), v[2].clone(), shape).reshape([8 * 1024, 64])
        },
    },
    Case {
        op: "conv1d",
        name: "conv1d 8 x 512x128, 5 to 128",
        inputs: &[[N, 128], [128, 5 * 128], [1, 128]],
        cost: matmul(N, 5 * 128, 128),
        run: |v| {
            let x = v[0].clone().reshape([8, 512, 128]);
            let shape = ConvShape::along(5, 1, 2);
            danlu_ops::conv1d(x, v[1].clone(), v[2].clone(), shape).reshape([N, 128])
        },
    },
    Case {
        op: "residual",
        name: "rms_norm, linear, sum 4096x512",
        inputs: &[[N, WIDTH], [1, WIDTH], [WIDTH, WIDTH]],
        cost: matmul(N, WIDTH, WIDTH),
        run: |v| {
            let norm = Norm::Rms { gain: v[1].clone(), eps: 1e-6 };
            let (weight, around) = (v[2].clone(), Fused::default());
            danlu_ops::residual(v[0].clone(), norm, |x| Last { x, weight, around })
        },
    },
    Case {
        op: "adamw_step",
        name: "adamw_step 8192x512",
        inputs: &[[SIZE, WIDTH]; 4],
        cost: Cost::Numbers(7 * SIZE * WIDTH),
        run: |v| {
            let [value, first, second, grad] = v.try_into().expect("four inputs");
            let adamw = AdamW {
                rate: 1e-3,
                betas: [0.9, 0.95],
                epsilon: 1e-8,
                weight_decay: 0.1,
                step: 1,
                grad_scale: 1.0,
            };
            let [value, ..] = danlu_ops::adamw_step([value, first, second], grad, adamw);
            value
        },
    },
    Case {
        op: "muon_step",
        name: "muon_step, a layer of the reference model",
        inputs: &[
            LAYER[0], LAYER[0], LAYER[0], LAYER[1], LAYER[1], LAYER[1], LAYER[2], LAYER[2],
            LAYER[2], LAYER[3], LAYER[3], LAYER[3],
        ],
        cost: Cost::Flops(muon(LAYER[0]) + muon(LAYER[1]) + muon(LAYER[2]) + muon(LAYER[3])),
        run: |v| {
            let mut v = v.into_iter();
            let matrices = std::iter::from_fn(|| Some([v.next()?, v.next()?, v.next()?].into()));
            let muon = Muon { rate: 1e-2, momentum: 0.95, weight_decay: 0.1, grad_scale: 1.0 };
            let [value, _] = danlu_ops::muon_step(matrices.collect(), muon).swap_remove(0);
            value
        },
    },
];

/// Two experts of eight for each row.
static TWO_OF_EIGHT: LazyLock<Routing> = LazyLock::new(|| {
    let scores: Vec<f32> = (0..8 * N).map(|i| (i * 2_654_435_761 % 1009) as f32).collect();
    Routing::new(&scores, 8, 2, Among::Chosen)
});

fn ids() -> Arc<[u32]> {
    (0..N).map(|i| (i * 2_654_435_761 % SIZE) as u32).collect()
}

fn with(v: &[Tensor<2>], activation: Activation) -> Tensor<2> {
    let around = Fused { activation, bias: Some(v[2].clone()), residual: None };
    danlu_ops::linear_with(v[0].clone(), v[1].clone(), around)
}

fn attend(qkv: &Tensor<2>, kv_heads: usize, document: usize, qwen: bool) -> Tensor<2> {
    let norm_eps = qwen.then_some(1e-6);
    let shape = AttentionShape { heads: 8, kv_heads, head_dim: 64, norm_eps };
    let rotary = if qwen { Rotary::new(64, document, 1e4) } else { Rotary::none(document) };
    let starts: Arc<[u32]> = (0..=N / document).map(|d| (d * document) as u32).collect();
    let ones = Tensor::ones([1, 64], &qkv.device());
    danlu_ops::attention(qkv.clone(), ones.clone(), ones, &shape, &Arc::new(rotary), &starts)
}

/// Times every operation whose name holds `only`.
pub fn ops(repeats: usize, only: &str) -> Rates {
    let device = danlu_ops::cpu_device();
    device.seed(1);
    measured(|| {
        let rate = |case: &Case| {
            let known = danlu_ops::ALL.iter().find(|op| op.name == case.op);
            let differentiable = known.is_some_and(|op| op.differentiable);
            let random = |&dims: &[usize; 2]| {
                Tensor::<2>::random(dims, Distribution::Normal(0.0, 0.1), &device)
            };
            let track = |t: Tensor<2>| Tensor::from_inner(t).require_grad();
            let leaves: Vec<Tensor<2>> = match differentiable {
                true => case.inputs.iter().map(random).map(track).collect(),
                false => Vec::new(),
            };
            let mut seconds: Vec<f64> = (0..repeats.max(1) + 1)
                .map(|_| {
                    if !differentiable {
                        // Nothing else may hold what a step works on, or it is copied first.
                        let inputs = case.inputs.iter().map(random).collect();
                        let start = Instant::now();
                        drop((case.run)(inputs));
                        return start.elapsed().as_secs_f64();
                    }
                    let start = Instant::now();
                    let out = (case.run)(leaves.clone());
                    let forward = start.elapsed().as_secs_f64();
                    let total = danlu_ops::seed(out);
                    let start = Instant::now();
                    drop(total.backward());
                    forward + start.elapsed().as_secs_f64()
                })
                .skip(1)
                .collect();
            let s = median(&mut seconds);
            let (flops, numbers) = match case.cost {
                Cost::Flops(f) => (Some(f), None),
                Cost::Numbers(n) => (None, Some(4.0 * n as f64)),
            };
            Rate {
                name: case.name.into(),
                milliseconds: 1e3 * s,
                gflops: flops.map(|f| f / s / 1e9),
                gigabytes_per_second: numbers.map(|b| b / s / 1e9),
            }
        };
        CASES.iter().filter(|case| case.name.contains(only)).map(rate).collect()
    })
}

/// Times matrix products: forward, gradient of the input and of the weight at the shapes of the
/// benchmark model, and those inside attention on one thread.
pub fn gemm(repeats: usize) -> Rates {
    use danlu_ops::Transposed::{Left, Neither, Right};
    let shapes = [
        ([N, 512, 1536], Right),
        ([N, 512, 512], Right),
        ([N, 512, 2048], Right),
        ([N, 2048, 512], Right),
        ([1024, 512, SIZE], Right),
        ([N, 2048, 512], Neither),
        ([N, 512, 2048], Neither),
        ([N, 1536, 512], Neither),
        ([1024, SIZE, 512], Neither),
        ([512, N, 512], Left),
        ([1536, N, 512], Left),
        ([2048, N, 512], Left),
        ([512, N, 2048], Left),
        ([SIZE, 1024, 512], Left),
        ([64, 64, 512], Right),
        ([64, 512, 64], Neither),
        ([512, 64, 64], Left),
    ];
    measured(|| {
        let rate = |([m, k, n], transposed): ([usize; 3], _)| {
            let rate = danlu_ops::gemm_rate([m, k, n], transposed, repeats);
            Rate {
                name: format!("{m} x {k} x {n}, transposed: {transposed:?}"),
                milliseconds: 2e3 * (m * k * n) as f64 / rate,
                gflops: Some(rate / 1e9),
                gigabytes_per_second: None,
            }
        };
        shapes.into_iter().map(rate).collect()
    })
}

fn measured(f: impl FnOnce() -> Vec<Rate>) -> Rates {
    let threads = rayon::current_num_threads();
    let before = danlu_ops::fma_peak(threads, 0.3);
    let rows = f();
    let peak = before.max(danlu_ops::fma_peak(threads, 0.3));
    Rates { fma_peak_gflops: peak / 1e9, threads, rows }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_operation_is_measured() {
        let measured: BTreeSet<&str> = CASES.iter().map(|case| case.op).collect();
        let listed: BTreeSet<&str> = danlu_ops::ALL.iter().map(|op| op.name).collect();
        assert_eq!(measured, listed);
    }

    #[test]
    fn every_operation_and_product_has_a_rate() {
        for rates in [ops(1, ""), gemm(1)] {
            for r in &rates.rows {
                assert!(r.milliseconds > 0.0, "{r:?}");
                assert!(r.gflops.or(r.gigabytes_per_second).is_some_and(|v| v > 0.0), "{r:?}");
            }
        }
    }
}
