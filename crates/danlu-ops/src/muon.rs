//! A step of Muon (Jordan 2024, kellerjordan.github.io/posts/muon): momentum whose singular values
//! are drawn to one by five steps of the quintic Newton-Schulz iteration.
//!
//! Each step multiplies the matrix X from the left with a polynomial Q of X X^T. These polynomials
//! commute, so the iteration runs on X X^T alone, which is small and stays symmetric: with A the
//! present X X^T, the next one is Q A Q. Their product is applied to X once, at the end, in the same
//! product that takes the update off the parameter. Of every symmetric product one triangle is
//! computed. In single precision the result is within about 2e-4 of its norm of what the iteration
//! on X gives; where all singular values are alike, within 1e-5.

use crate::cpu::{self, Mat, Shared, Threads, gemm};
use crate::gemm::gemm_upper;
use crate::on_cpu;
use crate::pool::Buffer;
use crate::profile::timed;
use crate::step::squared_norm;
use burn::backend::flex::FlexTensor;
use burn::backend::{
    Backend, Dispatch, ExtensionType, Flex, backend_extension, tensor::FloatTensor,
};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Elements that one task of an element-wise pass handles. Fixed, so that the norm is the same for
/// any number of threads.
const CHUNK: usize = 16 * 1024;
/// Side of the squares that are mirrored at a time.
const SQUARE: usize = 16;
/// Steps of the iteration.
const STEPS: usize = 5;
/// `Q = 3.4445 - 4.775 A + 2.0315 A^2`.
const QUINTIC: [f32; 3] = [3.4445, -4.775, 2.0315];
/// Added to the norm that a matrix is divided by.
const EPSILON: f32 = 1e-7;

/// One step of Muon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Learning rate of this step; an update of a matrix taller than wide is larger by the root of
    /// rows over columns.
    pub rate: f32,
    /// Decay of the momentum, which is Nesterov's.
    pub momentum: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// What the gradient is multiplied with first (clipping, accumulation).
    pub grad_scale: f32,
}

impl Muon {
    /// What the orthogonal matrix is multiplied with.
    fn size(&self, [rows, columns]: [usize; 2]) -> f32 {
        self.rate * (rows as f32 / columns.max(1) as f32).max(1.0).sqrt()
    }

    /// Share of the parameter that weight decay leaves.
    fn keep(&self) -> f32 {
        1.0 - self.rate * self.weight_decay
    }
}

/// A parameter and its momentum.
#[derive(ExtensionType)]
struct Moving<B: Backend> {
    value: FloatTensor<B>,
    momentum: FloatTensor<B>,
}

#[backend_extension(Flex)]
trait MuonOp: Backend {
    fn danlu_muon(
        #[extension_type] state: Moving<Self>,
        grad: FloatTensor<Self>,
        stacked: Vec<usize>,
        muon: Muon,
        alone: bool,
    ) -> Moving<Self>;
}

/// A parameter that Muon moves.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// The parameter, its momentum and its gradient, all of one shape and without gradient record.
    pub tensors: [Tensor<2>; 3],
    /// Rows of each of the matrices that are stacked in it (queries, keys and values, say), which are
    /// moved each by itself; empty where it is one.
    pub stacked: Vec<usize>,
}

impl From<[Tensor<2>; 3]> for Matrix {
    fn from(tensors: [Tensor<2>; 3]) -> Self {
        Self { tensors, stacked: Vec::new() }
    }
}

/// The parameters and their momenta after one step. Memory is reused where nothing else holds it.
///
/// # Panics
/// If a gradient or a momentum has another shape than its parameter, or the stacked matrices have other
/// rows together.
pub fn muon_step(matrices: Vec<Matrix>, muon: Muon) -> Vec<[Tensor<2>; 2]> {
    for Matrix { tensors: [value, momentum, grad], stacked } in &matrices {
        assert_eq!(value.dims(), grad.dims(), "muon: gradient");
        assert_eq!(value.dims(), momentum.dims(), "muon: momentum");
        let rows: usize = stacked.iter().sum();
        assert!(stacked.is_empty() || rows == value.dims()[0], "muon: stacked rows");
    }
    if matrices.iter().any(|m| !on_cpu(&m.tensors[0].device())) {
        return matrices.into_iter().map(|m| composed(m, muon)).collect();
    }
    // Small products share badly between threads: with enough matrices each has a thread to itself.
    let alone = matrices.len() >= 2 * rayon::current_num_threads();
    let one = |Matrix { tensors: [value, momentum, grad], stacked }: Matrix| {
        let state = Moving { value: value.into_dispatch(), momentum: momentum.into_dispatch() };
        let new = Dispatch::danlu_muon(state, grad.into_dispatch(), stacked, muon, alone);
        [new.value, new.momentum].map(Tensor::from_dispatch)
    };
    timed("muon", "", || match alone {
        true => matrices.into_par_iter().with_max_len(1).map(one).collect(),
        false => matrices.into_iter().map(one).collect(),
    })
}

pub(crate) fn composed(matrix: Matrix, muon: Muon) -> [Tensor<2>; 2] {
    let Matrix { tensors, stacked } = matrix;
    if stacked.is_empty() {
        return composed_one(tensors, muon);
    }
    let parts = tensors.map(|t| t.split_with_sizes(stacked.clone(), 0).into_iter());
    let [values, momenta, grads] = parts;
    let moved = values.zip(momenta).zip(grads).map(|((v, m), g)| composed_one([v, m, g], muon));
    let (values, momenta) = moved.map(|[value, momentum]| (value, momentum)).unzip();
    [values, momenta].map(|parts: Vec<Tensor<2>>| Tensor::cat(parts, 0))
}

fn composed_one([value, momentum, grad]: [Tensor<2>; 3], muon: Muon) -> [Tensor<2>; 2] {
    let grad = grad.mul_scalar(muon.grad_scale);
    let momentum = momentum.mul_scalar(muon.momentum) + grad.clone();
    let push = grad + momentum.clone().mul_scalar(muon.momentum);
    let size = muon.size(value.dims());
    let value = value.mul_scalar(muon.keep()) - orthogonal(push).mul_scalar(size);
    [value, momentum]
}

/// The nearest matrix with orthogonal rows or columns, roughly, by the iteration as it is written.
fn orthogonal(x: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = x.dims();
    let tall = rows > columns;
    let x = if tall { x.transpose() } else { x };
    let norm = squared_norm(&x).sqrt() as f32;
    let mut x = x.div_scalar(norm + EPSILON);
    let [a, b, c] = QUINTIC;
    for _ in 0..STEPS {
        let gram = x.clone().matmul(x.clone().transpose());
        let q = gram.clone().mul_scalar(b) + gram.clone().matmul(gram).mul_scalar(c);
        x = x.clone().mul_scalar(a) + q.matmul(x);
    }
    if tall { x.transpose() } else { x }
}

impl MuonOp for Flex {
    fn danlu_muon(
        state: Moving<Self>,
        grad: FlexTensor,
        stacked: Vec<usize>,
        muon: Muon,
        alone: bool,
    ) -> Moving<Self> {
        let grad = grad.to_contiguous();
        let mut value = state.value.to_contiguous();
        let mut momentum = state.momentum.to_contiguous();
        let [rows, columns] = cpu::dims(&value);
        let threads = if alone { Threads::One } else { Threads::All };
        let (mut values, mut moving) =
            (cpu::values_mut(&mut value), cpu::values_mut(&mut momentum));
        let mut grads = cpu::values(&grad);
        let each = if stacked.is_empty() { vec![rows] } else { stacked };
        for rows in each {
            let (own, own_moving, own_grads);
            (own, values) = values.split_at_mut(rows * columns);
            (own_moving, moving) = moving.split_at_mut(rows * columns);
            (own_grads, grads) = grads.split_at(rows * columns);
            step(own, own_moving, own_grads, [rows, columns], muon, threads);
        }
        Moving { value, momentum }
    }
}

fn step(
    value: &mut [f32],
    momentum: &mut [f32],
    grad: &[f32],
    [rows, columns]: [usize; 2],
    muon: Muon,
    threads: Threads,
) {
    let mut push = Buffer::any(rows * columns);
    let norm = move_on(momentum, grad, &mut push, muon, threads).sqrt() as f32;
    let scale = 1.0 / (norm + EPSILON);
    let push = Mat::new(&push, columns);
    let by = -muon.size([rows, columns]) * scale;
    if rows <= columns {
        let p = polynomial(push, [rows, columns], scale, by, threads);
        let p = Mat::new(&p, rows);
        gemm([rows, rows, columns], p, push, value, columns, muon.keep(), threads);
    } else {
        // Of the transpose: the smaller side is the rows, and the polynomial is its own transpose.
        let p = polynomial(push.t(), [columns, rows], scale, by, threads);
        let p = Mat::new(&p, columns);
        gemm([rows, columns, columns], push, p, value, columns, muon.keep(), threads);
    }
}

/// Moves the momentum on, writes what Nesterov's rule makes of it to `push`, and returns the sum of
/// its squares: one pass over memory.
fn move_on(
    momentum: &mut [f32],
    grad: &[f32],
    push: &mut [f32],
    muon: Muon,
    threads: Threads,
) -> f64 {
    let part = |((momentum, grad), push): ((&mut [f32], &[f32]), &mut [f32])| -> f32 {
        cpu::vectorised(
            #[inline(always)]
            || {
                let n = momentum.len();
                let (grad, push) = (&grad[..n], &mut push[..n]);
                for i in 0..n {
                    let g = grad[i] * muon.grad_scale;
                    momentum[i] = muon.momentum * momentum[i] + g;
                    push[i] = g + muon.momentum * momentum[i];
                }
                cpu::dot(push, push)
            },
        )
    };
    let parts: Vec<f32> = match threads {
        Threads::One => momentum
            .chunks_mut(CHUNK)
            .zip(grad.chunks(CHUNK))
            .zip(push.chunks_mut(CHUNK))
            .map(part)
            .collect(),
        Threads::All => momentum
            .par_chunks_mut(CHUNK)
            .zip(grad.par_chunks(CHUNK))
            .zip(push.par_chunks_mut(CHUNK))
            .map(part)
            .collect(),
    };
    parts.iter().map(|&p| p as f64).sum()
}

/// `by` times the product of the iteration's polynomials, `[n, n]`, for `scale * x` with
/// `x: [n, k]`.
fn polynomial(x: Mat, [n, k]: [usize; 2], scale: f32, by: f32, threads: Threads) -> Buffer {
    let [mut a, mut q, mut p, mut t] = [0; 4].map(|_| Buffer::any(n * n));
    gemm_upper([n, k], x, x.t(), &mut a, threads);
    mirror(&mut a, n, [0.0, scale * scale], None, threads);
    let product = |left: &[f32], right: &[f32], out: &mut [f32]| {
        gemm_upper([n, n], Mat::new(left, n), Mat::new(right, n), out, threads);
    };
    for step in 0..STEPS {
        let last = step + 1 == STEPS;
        let [zeroth, first, second] = QUINTIC.map(|c| if last { c * by } else { c });
        product(&a, &a, &mut q);
        mirror(&mut q, n, [zeroth, second], Some((first, &a)), threads);
        if step > 0 {
            product(&q, &p, &mut t);
            mirror(&mut t, n, [0.0, 1.0], None, threads);
            std::mem::swap(&mut p, &mut t);
        }
        if !last {
            product(&q, &a, &mut t);
            mirror(&mut t, n, [0.0, 1.0], None, threads);
            product(&t, &q, &mut a);
            mirror(&mut a, n, [0.0, 1.0], None, threads);
        }
        if step == 0 {
            std::mem::swap(&mut p, &mut q);
        }
    }
    p
}

/// A symmetric `[n, n]` matrix of which only the upper triangle is there becomes whole, times
/// `second`, plus `first` times another whole one, plus `zeroth` on the diagonal.
fn mirror(
    x: &mut [f32],
    n: usize,
    [zeroth, second]: [f32; 2],
    more: Option<(f32, &[f32])>,
    threads: Threads,
) {
    let x = Shared::new(x);
    let squares = n.div_ceil(SQUARE);
    let line = |row: usize| {
        cpu::vectorised(
            #[inline(always)]
            || (row..squares).for_each(|column| square(x, n, [row, column], second, more)),
        );
        for i in row * SQUARE..n.min((row + 1) * SQUARE) {
            // SAFETY: as in `square`; this task's own are done.
            unsafe { x.part(i * n + i, 1)[0] += zeroth };
        }
    };
    match threads {
        Threads::One => (0..squares).for_each(line),
        Threads::All => (0..squares).into_par_iter().for_each(line),
    }
}

/// One square of [`mirror`] and its mirror image.
#[inline(always)]
fn square(
    x: Shared,
    n: usize,
    [row, column]: [usize; 2],
    second: f32,
    more: Option<(f32, &[f32])>,
) {
    let (top, left) = (row * SQUARE, column * SQUARE);
    let (rows, columns) = (SQUARE.min(n - top), SQUARE.min(n - left));
    let mut held = [[0.0f32; SQUARE]; SQUARE];
    for (i, held) in held.iter_mut().enumerate().take(rows) {
        // SAFETY: the square and its mirror image are this task's alone, as every pair of them is
        // of one task; parts are taken one after the other.
        let from = unsafe { x.part((top + i) * n + left, columns) };
        match more {
            Some((first, a)) => {
                let a = &a[(top + i) * n + left..][..columns];
                for j in 0..columns {
                    held[j] = second * from[j] + first * a[j];
                }
            }
            None => {
                for j in 0..columns {
                    held[j] = second * from[j];
                }
            }
        }
    }
    if row == column {
        for i in 1..rows {
            let (above, rest) = held.split_at_mut(i);
            rest[0].iter_mut().zip(above).for_each(|(v, above)| *v = above[i]);
        }
    } else {
        for j in 0..columns {
            // SAFETY: as above.
            let to = unsafe { x.part((left + j) * n + top, rows) };
            to.iter_mut().zip(&held).for_each(|(to, held)| *to = held[j]);
        }
    }
    for (i, held) in held.iter().enumerate().take(rows) {
        // SAFETY: as above.
        let to = unsafe { x.part((top + i) * n + left, columns) };
        to.copy_from_slice(&held[..columns]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::floats;
    use burn::tensor::{Distribution, TensorData};

    const MUON: Muon = Muon { rate: 0.02, momentum: 0.95, weight_decay: 0.1, grad_scale: 0.5 };

    fn random(dims: [usize; 2]) -> Tensor<2> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), &crate::cpu_device())
    }

    fn values_of(t: &Tensor<2>) -> Vec<f32> {
        floats(t.clone().into_data())
    }

    /// Largest difference over the largest value.
    fn apart(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let most = |v: &mut dyn Iterator<Item = f32>| v.fold(0.0f32, |a, b| a.max(b.abs()));
        most(&mut a.iter().zip(b).map(|(a, b)| a - b)) / most(&mut b.iter().copied())
    }

    #[test]
    fn kernel_and_composed_agree_over_steps() {
        crate::cpu_device().seed(3);
        let one = [[5, 7], [1, 9], [9, 1], [40, 33], [16, 130], [90, 32], [70, 70]];
        let one = one.map(|dims| (dims, vec![]));
        for (dims, stacked) in one.into_iter().chain([([70, 33], vec![40, 1, 29])]) {
            let start = [random(dims), Tensor::zeros(dims, &crate::cpu_device())];
            let (mut fused, mut plain) = (start.clone(), start.clone());
            for _ in 0..4 {
                let grad = random(dims);
                let with = |[value, momentum]: [Tensor<2>; 2]| Matrix {
                    tensors: [value, momentum, grad.clone()],
                    stacked: stacked.clone(),
                };
                fused = muon_step(vec![with(fused)], MUON).remove(0);
                plain = composed(with(plain), MUON);
            }
            assert!(
                apart(&values_of(&fused[1]), &values_of(&plain[1])) < 1e-6,
                "{dims:?}: momentum"
            );
            let moved = |now: &Tensor<2>| values_of(&(now.clone() - start[0].clone()));
            let off = apart(&moved(&fused[0]), &moved(&plain[0]));
            assert!(off < 1e-4, "{dims:?}: update off by {off}");
        }
    }

    #[test]
    fn stacked_matrices_move_as_they_do_apart() {
        crate::cpu_device().seed(5);
        let rows = [40, 24, 24];
        let tensors = [(); 3].map(|()| random([88, 32]));
        let stacked = Matrix { tensors: tensors.clone(), stacked: rows.to_vec() };
        let together = muon_step(vec![stacked], MUON).remove(0);
        let parts = tensors.map(|t| t.split_with_sizes(rows.to_vec(), 0));
        let [values, momenta, grads] = parts.map(Vec::into_iter);
        let each = values.zip(momenta).zip(grads).map(|((v, m), g)| Matrix::from([v, m, g]));
        let (mut apart, mut moving) = (Vec::new(), Vec::new());
        for [value, momentum] in muon_step(each.collect(), MUON) {
            apart.extend(values_of(&value));
            moving.extend(values_of(&momentum));
        }
        assert!(values_of(&together[0]) == apart && values_of(&together[1]) == moving);
    }

    #[test]
    fn singular_values_are_near_one() {
        crate::cpu_device().seed(2);
        for dims in [[6, 20], [20, 6], [60, 200]] {
            let zeros = Tensor::zeros(dims, &crate::cpu_device());
            let muon = Muon { rate: 1.0, momentum: 0.0, weight_decay: 1.0, grad_scale: 1.0 };
            let [y, _] =
                muon_step(vec![[zeros.clone(), zeros, random(dims)].into()], muon).remove(0);
            let y = if dims[0] > dims[1] { y.transpose() } else { y };
            let size = (dims[0] as f32 / dims[1] as f32).max(1.0);
            let gram = values_of(&crate::linear(y.clone(), y).div_scalar(size));
            let n = dims[0].min(dims[1]);
            for (e, v) in gram.into_iter().enumerate() {
                let bounds = if e / n == e % n { 0.3..1.6 } else { -0.35..0.35 };
                assert!(bounds.contains(&v), "{dims:?} [{},{}]: {v}", e / n, e % n);
            }
        }
    }

    #[test]
    fn neither_threads_nor_company_change_a_bit() {
        let mut rng = 1u32;
        let mut data = |dims: [usize; 2]| {
            let mut next = || {
                rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (rng >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            TensorData::new((0..dims[0] * dims[1]).map(|_| next()).collect::<Vec<f32>>(), dims)
        };
        let inputs: Vec<[TensorData; 3]> =
            [[150, 140], [130, 300], [400, 130], [7, 9], [150, 140], [20, 8]]
                .map(|d| [data(d), data(d), data(d)])
                .into();
        let tensor = |d: &TensorData| Tensor::<2>::from_data(d.clone(), &crate::cpu_device());
        let one = |m: &[TensorData; 3]| Matrix::from(m.each_ref().map(tensor));
        let bits = |m: &[Tensor<2>; 2]| -> Vec<u32> {
            m.iter().flat_map(values_of).map(f32::to_bits).collect()
        };
        let run = |threads: usize, together: bool| -> Vec<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("starts").install(|| match together {
                true => {
                    let new = muon_step(inputs.iter().map(one).collect(), MUON);
                    new.iter().map(bits).collect()
                }
                false => inputs.iter().map(|m| bits(&muon_step(vec![one(m)], MUON)[0])).collect(),
            })
        };
        let first = run(1, false);
        for (threads, together) in [(1, true), (2, true), (2, false), (3, true), (3, false)] {
            assert_eq!(run(threads, together), first, "{threads} threads, together: {together}");
        }
    }

    #[test]
    fn a_gradient_of_nothing_only_decays() {
        let zeros = Tensor::zeros([8, 5], &crate::cpu_device());
        let start = random([8, 5]);
        let [value, _] =
            muon_step(vec![[start.clone(), zeros.clone(), zeros].into()], MUON).remove(0);
        assert!(apart(&values_of(&value), &values_of(&start.mul_scalar(MUON.keep()))) < 1e-6);
    }
}
