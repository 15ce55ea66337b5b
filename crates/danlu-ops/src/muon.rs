//! The step of Muon (Jordan 2024, "Muon: An optimizer for hidden layers in neural networks"):
//! momentum, made nearly orthogonal by five steps of a quintic Newton-Schulz iteration.
//!
//! With `X` the momentum over its norm and the smaller side as rows, a step is
//! `A = X X^T, X <- a X + (b A + c A A) X`. The kernel folds the coefficients into the products:
//! `P = sqrt(c) A` is scaled in place, then `B = (b / sqrt(c)) P + P P` and `a X + B X` are one
//! product each, with what they are added to already in the output. A tall matrix is multiplied from
//! the other side, so nothing is transposed in memory.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::on_cpu;
use crate::pool::Buffer;
use crate::profile::timed;
use burn::backend::flex::FlexTensor;
use burn::backend::{
    Backend, Dispatch, ExtensionType, Flex, backend_extension, tensor::FloatTensor,
};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Decay of the momentum.
const MOMENTUM: f32 = 0.95;
/// Steps of the iteration.
const STEPS: usize = 5;
/// Coefficients of `x`, `x^3` and `x^5`.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];
/// Elements that one task sums or updates. Fixed, so that sums do not depend on the threads.
const CHUNK: usize = 16 * 1024;

/// One step of Muon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Learning rate of this step; a matrix with more rows than columns takes it times the root of
    /// their ratio.
    pub rate: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// What the gradient is multiplied with first (clipping, accumulation).
    pub grad_scale: f32,
}

/// A matrix, its momentum and its gradient, all of one shape and without gradient record.
#[derive(Debug, Clone)]
pub struct MuonMatrix {
    /// The parameter.
    pub value: Tensor<2>,
    /// The momentum.
    pub momentum: Tensor<2>,
    /// The gradient.
    pub grad: Tensor<2>,
}

#[derive(ExtensionType)]
struct State<B: Backend> {
    value: FloatTensor<B>,
    momentum: FloatTensor<B>,
}

#[backend_extension(Flex)]
trait MuonOp: Backend {
    fn danlu_muon(
        #[extension_type] state: State<Self>,
        grad: FloatTensor<Self>,
        muon: Muon,
        threads: Threads,
    ) -> State<Self>;
}

/// The values and momenta `[value, momentum]` of matrices after one step, in their order. Memory is
/// used again where nothing else holds it. Many matrices are worked on side by side, few one after
/// the other on every thread; the bits are the same.
///
/// # Panics
/// If the shapes of a matrix, its momentum and its gradient differ.
pub fn muon_step(matrices: Vec<MuonMatrix>, muon: Muon) -> Vec<[Tensor<2>; 2]> {
    let side_by_side = matrices.len() >= 2 * rayon::current_num_threads();
    let threads = if side_by_side { Threads::One } else { Threads::All };
    let one = |m: MuonMatrix| {
        assert_eq!(m.value.dims(), m.grad.dims(), "muon: gradient");
        assert_eq!(m.value.dims(), m.momentum.dims(), "muon: momentum");
        if !on_cpu(&m.value.device()) {
            return composed(m, muon);
        }
        let state = State { value: m.value.into_dispatch(), momentum: m.momentum.into_dispatch() };
        let new = Dispatch::danlu_muon(state, m.grad.into_dispatch(), muon, threads);
        [new.value, new.momentum].map(Tensor::from_dispatch)
    };
    timed("muon", "", || match side_by_side {
        true => matrices.into_par_iter().map(one).collect(),
        false => matrices.into_iter().map(one).collect(),
    })
}

fn composed(MuonMatrix { value, momentum, grad }: MuonMatrix, muon: Muon) -> [Tensor<2>; 2] {
    let [rows, columns] = value.dims();
    let grad = grad.mul_scalar(muon.grad_scale);
    let momentum = momentum.mul_scalar(MOMENTUM) + grad.clone();
    let push = grad + momentum.clone().mul_scalar(MOMENTUM);
    let x = if rows > columns { push.transpose() } else { push };
    let norm = x.clone().powf_scalar(2.0).sum().sqrt().add_scalar(1e-7);
    let mut x = x / norm.reshape([1, 1]);
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..STEPS {
        let square = x.clone().matmul(x.clone().transpose());
        let poly = square.clone().mul_scalar(b) + square.clone().matmul(square).mul_scalar(c);
        x = x.clone().mul_scalar(a) + poly.matmul(x);
    }
    let x = if rows > columns { x.transpose() } else { x };
    let value = value.mul_scalar(1.0 - muon.rate * muon.weight_decay)
        - x.mul_scalar(muon.rate * stretch(rows, columns));
    [value, momentum]
}

/// What the rate of a matrix is multiplied with.
fn stretch(rows: usize, columns: usize) -> f32 {
    (rows as f32 / columns as f32).max(1.0).sqrt()
}

impl MuonOp for Flex {
    fn danlu_muon(
        state: State<Self>,
        grad: FlexTensor,
        muon: Muon,
        threads: Threads,
    ) -> State<Self> {
        let State { value, momentum } = state;
        let (mut value, mut momentum) = (value.to_contiguous(), momentum.to_contiguous());
        let grad = grad.to_contiguous();
        let [rows, columns] = cpu::dims(&value);
        let mut x = Buffer::any(rows * columns);
        let squares: Vec<f32> = cpu::values_mut(&mut momentum)
            .par_chunks_mut(CHUNK)
            .zip(cpu::values(&grad).par_chunks(CHUNK))
            .zip(x.par_chunks_mut(CHUNK))
            .map(|((momentum, grad), x)| {
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..x.len() {
                            let g = grad[i] * muon.grad_scale;
                            momentum[i] = MOMENTUM * momentum[i] + g;
                            x[i] = g + MOMENTUM * momentum[i];
                        }
                        cpu::dot(x, x)
                    },
                )
            })
            .collect();
        let norm = squares.iter().map(|&s| s as f64).sum::<f64>().sqrt() as f32;
        scale(&mut x, 1.0 / (norm + 1e-7));
        let x = orthogonal(x, [rows, columns], threads);
        let keep = 1.0 - muon.rate * muon.weight_decay;
        let push = muon.rate * stretch(rows, columns);
        cpu::values_mut(&mut value).par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(
            |(value, x)| {
                cpu::vectorised(
                    #[inline(always)]
                    || value.iter_mut().zip(x).for_each(|(v, x)| *v = keep * *v - push * x),
                );
            },
        );
        State { value, momentum }
    }
}

fn scale(x: &mut [f32], by: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| {
        cpu::vectorised(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x *= by),
        );
    });
}

/// The iteration on `x: [rows, columns]` of norm 1.
fn orthogonal(mut x: Buffer, [rows, columns]: [usize; 2], threads: Threads) -> Buffer {
    let [a, b, c] = COEFFICIENTS;
    let n = rows.min(columns);
    let root = c.sqrt();
    let (mut square, mut poly) = (Buffer::any(n * n), Buffer::any(n * n));
    let mut next = Buffer::any(rows * columns);
    for _ in 0..STEPS {
        let m = Mat::new(&x, columns);
        let (left, right) = if rows > columns { (m.t(), m) } else { (m, m.t()) };
        gemm([n, rows.max(columns), n], left, right, &mut square, n, 0.0, threads);
        scale(&mut square, root);
        poly.copy_from_slice(&square);
        let p = Mat::new(&square, n);
        gemm([n, n, n], p, p, &mut poly, n, b / root, threads);
        next.copy_from_slice(&x);
        let p = Mat::new(&poly, n);
        let (left, right) = if rows > columns { (m, p) } else { (p, m) };
        gemm([rows, n, columns], left, right, &mut next, columns, a, threads);
        std::mem::swap(&mut x, &mut next);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, floats};
    use burn::tensor::Distribution;

    const MUON: Muon = Muon { rate: 0.02, weight_decay: 0.1, grad_scale: 0.5 };

    fn random(dims: [usize; 2]) -> Tensor<2> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), &crate::cpu_device())
    }

    fn bits(t: &Tensor<2>) -> Vec<u32> {
        floats(t.clone().into_data()).into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn kernel_and_composed_agree_over_steps() {
        for dims in [[6, 20], [20, 6], [9, 9], [130, 260], [1, 5]] {
            let zeros = Tensor::<2>::zeros(dims, &crate::cpu_device());
            let start = random(dims);
            let mut fused = [start.clone(), zeros.clone()];
            let mut plain = fused.clone();
            for _ in 0..3 {
                let grad = random(dims);
                let task = |[value, momentum]: [Tensor<2>; 2]| MuonMatrix {
                    value,
                    momentum,
                    grad: grad.clone(),
                };
                fused = muon_step(vec![task(fused)], MUON).remove(0);
                plain = composed(task(plain), MUON);
            }
            for (a, b) in fused.iter().zip(&plain) {
                close(
                    "state",
                    &floats(a.clone().into_data()),
                    &floats(b.clone().into_data()),
                    2e-4,
                );
            }
            let moved = crate::squared_norm(&(fused[0].clone() - start));
            assert!(moved > 1e-5, "{dims:?}: the step moves the parameter");
        }
    }

    #[test]
    fn the_push_has_singular_values_near_one() {
        for dims in [[6, 20], [20, 6]] {
            let zeros = Tensor::<2>::zeros(dims, &crate::cpu_device());
            let task = MuonMatrix { value: zeros.clone(), momentum: zeros, grad: random(dims) };
            let muon = Muon { rate: 1.0, weight_decay: 0.0, grad_scale: 1.0 };
            let [push, _] = muon_step(vec![task], muon).remove(0);
            let push = push.div_scalar(stretch(dims[0], dims[1]));
            let push = if dims[0] > dims[1] { push.transpose() } else { push };
            let gram = floats(push.clone().matmul(push.transpose()).into_data());
            for (e, v) in gram.into_iter().enumerate() {
                let bounds = if e / 6 == e % 6 { 0.3..1.6 } else { -0.35..0.35 };
                assert!(bounds.contains(&v), "{dims:?} [{},{}]: {v}", e / 6, e % 6);
            }
        }
    }

    #[test]
    fn neither_threads_nor_neighbours_change_a_bit() {
        let make = |dims: [usize; 2]| MuonMatrix {
            value: random(dims),
            momentum: random(dims),
            grad: random(dims),
        };
        let all: Vec<MuonMatrix> =
            [[70, 300], [300, 70], [64, 64], [33, 200], [128, 40], [7, 7]].map(make).to_vec();
        let want: Vec<_> = all.iter().map(|m| muon_step(vec![m.clone()], MUON).remove(0)).collect();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let got = pool.expect("a pool").install(|| muon_step(all.clone(), MUON));
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert_eq!(bits(got), bits(want), "{threads} threads");
            }
        }
    }
}
