//! Operations one by one, and matrix products, at the shapes of training the benchmark model.

use burn::tensor::{Distribution, Tensor};
use danlu_ops::{Activation, AttentionShape, Fused, HeadLoss, Norm, Rotary};
use serde::Serialize;
use std::sync::Arc;
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
    name: &'static str,
    inputs: &'static [[usize; 2]],
    cost: Cost,
    run: fn(&[Tensor<2>]) -> Tensor<2>,
}

const fn matmul(m: usize, k: usize, n: usize) -> Cost {
    Cost::Flops(6.0 * (m * k * n) as f64)
}

/// Every operation that is measured.
const CASES: &[Case] = &[
    Case {
        name: "linear 4096x512 to 1536",
        inputs: &[[N, WIDTH], [3 * WIDTH, WIDTH]],
        cost: matmul(N, WIDTH, 3 * WIDTH),
        run: |v| danlu_ops::linear(v[0].clone(), v[1].clone()),
    },
    Case {
        name: "linear with bias 4096x512 to 2048",
        inputs: &[[N, WIDTH], [4 * WIDTH, WIDTH], [1, 4 * WIDTH]],
        cost: matmul(N, WIDTH, 4 * WIDTH),
        run: |v| with(v, Activation::None),
    },
    Case {
        name: "gelu (tanh) and linear 4096x2048 to 512",
        inputs: &[[N, 4 * WIDTH], [WIDTH, 4 * WIDTH], [1, WIDTH]],
        cost: matmul(N, 4 * WIDTH, WIDTH),
        run: |v| with(v, Activation::GeluTanh),
    },
    Case {
        name: "gelu (erf) and linear 4096x2048 to 512",
        inputs: &[[N, 4 * WIDTH], [WIDTH, 4 * WIDTH], [1, WIDTH]],
        cost: matmul(N, 4 * WIDTH, WIDTH),
        run: |v| with(v, Activation::Gelu),
    },
    Case {
        name: "swiglu and linear 4096x2x1408 to 512",
        inputs: &[[N, 2816], [WIDTH, 1408], [1, WIDTH]],
        cost: matmul(N, 1408, WIDTH),
        run: |v| with(v, Activation::Swiglu),
    },
    Case {
        name: "attention 8 x 512, 8 heads of 64",
        inputs: &[[N, 3 * WIDTH]],
        cost: Cost::Flops(12.0 * (N * WIDTH) as f64 * 256.0),
        run: |v| attend(&v[0], 8, 512, false),
    },
    Case {
        name: "attention 1 x 4096, 8 heads of 64",
        inputs: &[[N, 3 * WIDTH]],
        cost: Cost::Flops(12.0 * (N * WIDTH) as f64 * 2048.0),
        run: |v| attend(&v[0], 8, N, false),
    },
    Case {
        name: "attention 8 x 512, 8 over 2, turned, normed",
        inputs: &[[N, 12 * 64]],
        cost: Cost::Flops(12.0 * (N * WIDTH) as f64 * 256.0),
        run: |v| attend(&v[0], 2, 512, true),
    },
    Case {
        name: "layer_norm 4096x512",
        inputs: &[[N, WIDTH], [1, WIDTH], [1, WIDTH]],
        cost: Cost::Numbers(5 * N * WIDTH),
        run: |v| {
            let (gain, bias) = (v[1].clone(), v[2].clone());
            Norm::Layer { gain, bias, eps: 1e-5 }.forward(v[0].clone())
        },
    },
    Case {
        name: "rms_norm 4096x512",
        inputs: &[[N, WIDTH], [1, WIDTH]],
        cost: Cost::Numbers(5 * N * WIDTH),
        run: |v| danlu_ops::rms_norm(v[0].clone(), v[1].clone(), 1e-6),
    },
    Case {
        name: "gelu (tanh) 4096x2048",
        inputs: &[[N, 4 * WIDTH]],
        cost: Cost::Numbers(5 * N * 4 * WIDTH),
        run: |v| danlu_ops::activate(v[0].clone(), Activation::GeluTanh),
    },
    Case {
        name: "embedding 8192x512, 4096 ids",
        inputs: &[[SIZE, WIDTH]],
        cost: Cost::Numbers((3 * N + SIZE) * WIDTH),
        run: |v| danlu_ops::embedding(v[0].clone(), &ids()),
    },
    Case {
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
];

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

/// Times every operation.
pub fn ops(repeats: usize) -> Rates {
    let device = danlu_ops::cpu_device();
    device.seed(1);
    measured(|| {
        let rate = |case: &Case| {
            let leaves: Vec<Tensor<2>> = case
                .inputs
                .iter()
                .map(|&dims| {
                    let t = Tensor::<2>::random(dims, Distribution::Normal(0.0, 0.1), &device);
                    Tensor::from_inner(t).require_grad()
                })
                .collect();
            let mut seconds: Vec<f64> = (0..repeats.max(1) + 1)
                .map(|_| {
                    let start = Instant::now();
                    let out = (case.run)(&leaves);
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
        CASES.iter().map(rate).collect()
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

    #[test]
    fn every_operation_and_product_has_a_rate() {
        for rates in [ops(1), gemm(1)] {
            for r in &rates.rows {
                assert!(r.milliseconds > 0.0, "{r:?}");
                assert!(r.gflops.or(r.gigabytes_per_second).is_some_and(|v| v > 0.0), "{r:?}");
            }
        }
    }
}
