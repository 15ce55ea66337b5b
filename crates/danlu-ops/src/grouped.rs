//! Projections of several groups of rows, each with a weight of its own: experts, whose groups have
//! any sizes, and batches of products of one shape.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

#[backend_extension(Flex, Autodiff)]
trait GroupedOp: Backend {
    fn danlu_grouped(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        offsets: Arc<[u32]>,
    ) -> FloatTensor<Self>;
}

/// `x w^T` group by group: rows `offsets[e]..offsets[e + 1]` of `x: [n, inputs]` go through the
/// `e`-th weight, `[outputs, inputs]`, of `w: [experts * outputs, inputs]`: `[n, outputs]`.
/// `offsets` ascend from 0 to `n`; a group may be empty.
///
/// # Panics
/// If shapes do not fit, or the offsets are not such.
pub fn grouped_linear(x: Tensor<2>, w: Tensor<2>, offsets: &Arc<[u32]>) -> Tensor<2> {
    let ([n, k], [all, inner]) = (x.dims(), w.dims());
    assert_eq!(k, inner, "grouped_linear: x {:?}, w {:?}", x.dims(), w.dims());
    assert_eq!(offsets.first(), Some(&0), "grouped_linear: the first group starts at row 0");
    assert_eq!(offsets.last(), Some(&(n as u32)), "grouped_linear: the last group ends at row {n}");
    for o in offsets.windows(2) {
        assert!(o[0] <= o[1], "grouped_linear: offsets must ascend, found {} then {}", o[0], o[1]);
    }
    let experts = offsets.len() - 1;
    assert!(
        experts > 0 && all.is_multiple_of(experts),
        "grouped_linear: {all} rows of w for {experts} groups"
    );
    if !on_cpu(&x.device()) {
        return composed(x, w, offsets);
    }
    let (x, w) = (x.into_dispatch(), w.into_dispatch());
    Tensor::from_dispatch(Dispatch::danlu_grouped(x, w, offsets.clone()))
}

/// `x[b] w[b]^T` for every `b`: `x: [batch, n, inputs]` and `w: [batch, outputs, inputs]` to
/// `[batch, n, outputs]`.
///
/// # Panics
/// If shapes do not fit.
pub fn batched_linear(x: Tensor<3>, w: Tensor<3>) -> Tensor<3> {
    let ([batch, n, k], [weights, outputs, inner]) = (x.dims(), w.dims());
    assert_eq!([batch, k], [weights, inner], "batched_linear: x {:?}, w {:?}", x.dims(), w.dims());
    let offsets: Arc<[u32]> = (0..=batch).map(|b| (b * n) as u32).collect();
    let (x, w) = (x.reshape([batch * n, k]), w.reshape([batch * outputs, k]));
    grouped_linear(x, w, &offsets).reshape([batch, n, outputs])
}

pub(crate) fn composed(x: Tensor<2>, w: Tensor<2>, offsets: &[u32]) -> Tensor<2> {
    let outputs = w.dims()[0] / (offsets.len() - 1);
    let groups = offsets.windows(2).enumerate().filter(|(_, o)| o[0] < o[1]);
    let parts: Vec<Tensor<2>> = groups
        .map(|(e, o)| {
            let x = x.clone().narrow(0, o[0] as usize, (o[1] - o[0]) as usize);
            x.matmul(w.clone().narrow(0, e * outputs, outputs).transpose())
        })
        .collect();
    if parts.is_empty() { Tensor::zeros([0, outputs], &x.device()) } else { Tensor::cat(parts, 0) }
}

impl GroupedOp for Flex {
    fn danlu_grouped(x: FlexTensor, w: FlexTensor, offsets: Arc<[u32]>) -> FlexTensor {
        forward(&x.to_contiguous(), &w.to_contiguous(), &offsets)
    }
}

impl<C: CheckpointStrategy> GroupedOp for Autodiff<Flex, C> {
    fn danlu_grouped(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        offsets: Arc<[u32]>,
    ) -> FloatTensor<Self> {
        tape::record::<C, _, 2>(
            "grouped_linear",
            [x, w],
            |[x, w], tracked| {
                let y = forward(&x, &w, &offsets);
                (y, tracked.then_some((x, w, offsets)))
            },
            |(x, w, offsets), up, wanted| backward(&x, &w, &offsets, &up.grad, wanted),
        )
    }
}

/// Calls `f` for every group with its number, its rows of `out` if `by_rows`, else its equal share
/// of `out`, and how many threads it may use: with many groups each has one thread to itself.
fn each(
    out: &mut [f32],
    width: usize,
    offsets: &[u32],
    by_rows: bool,
    f: impl Fn(usize, &mut [f32], Threads) + Sync,
) {
    let groups = offsets.len() - 1;
    let share = out.len() / groups;
    let mut rest = out;
    let mut parts = Vec::with_capacity(groups);
    for o in offsets.windows(2) {
        let len = if by_rows { (o[1] - o[0]) as usize * width } else { share };
        let (part, after) = rest.split_at_mut(len);
        parts.push(part);
        rest = after;
    }
    if groups >= 2 * rayon::current_num_threads() {
        let one = |(e, part): (usize, &mut [f32])| f(e, part, Threads::One);
        parts.into_par_iter().with_max_len(1).enumerate().for_each(one);
    } else {
        parts.into_iter().enumerate().for_each(|(e, part)| f(e, part, Threads::All));
    }
}

/// The sizes of group `e`: where its rows start, and how many there are.
fn group(offsets: &[u32], e: usize) -> [usize; 2] {
    [offsets[e] as usize, (offsets[e + 1] - offsets[e]) as usize]
}

fn forward(x: &FlexTensor, w: &FlexTensor, offsets: &[u32]) -> FlexTensor {
    let ([n, k], [all, _]) = (cpu::dims(x), cpu::dims::<2>(w));
    let outputs = all / (offsets.len() - 1);
    let (x, w) = (cpu::values(x), cpu::values(w));
    let mut out = Buffer::any(n * outputs);
    each(&mut out, outputs, offsets, true, |e, out, threads| {
        let [first, rows] = group(offsets, e);
        let x = Mat::new(&x[first * k..], k);
        let w = Mat::new(&w[e * outputs * k..], k).t();
        gemm([rows, k, outputs], x, w, out, outputs, 0.0, threads);
    });
    tensor(out, [n, outputs])
}

fn backward(
    x: &FlexTensor,
    w: &FlexTensor,
    offsets: &[u32],
    grad: &FlexTensor,
    [want_x, want_w]: [bool; 2],
) -> [Option<FlexTensor>; 2] {
    let ([n, k], [all, _]) = (cpu::dims(x), cpu::dims::<2>(w));
    let outputs = all / (offsets.len() - 1);
    let (x, w, grad) = (cpu::values(x), cpu::values(w), cpu::values(grad));
    let dx = want_x.then(|| {
        let mut out = Buffer::any(n * k);
        each(&mut out, k, offsets, true, |e, out, threads| {
            let [first, rows] = group(offsets, e);
            let g = Mat::new(&grad[first * outputs..], outputs);
            let w = Mat::new(&w[e * outputs * k..], k);
            gemm([rows, outputs, k], g, w, out, k, 0.0, threads);
        });
        tensor(out, [n, k])
    });
    let dw = want_w.then(|| {
        let mut out = Buffer::any(all * k);
        // The weight of an empty group gets zeros: a product over no rows.
        each(&mut out, k, offsets, false, |e, out, threads| {
            let [first, rows] = group(offsets, e);
            let g = Mat::new(&grad[first * outputs..], outputs).t();
            let x = Mat::new(&x[first * k..], k);
            gemm([outputs, rows, k], g, x, out, k, 0.0, threads);
        });
        tensor(out, [all, k])
    });
    [dx, dw]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        // Few groups share every thread, many have one each; some are empty.
        let many: Vec<u32> = (0..=40).map(|i| i / 3 * 3).collect();
        for offsets in [vec![0, 4, 4, 9], vec![0, 0, 5], vec![0, 3], many] {
            let n = *offsets.last().expect("closed") as usize;
            let experts = offsets.len() - 1;
            let offsets: Arc<[u32]> = offsets.into();
            check(
                &[[n, 7], [experts * 5, 7]],
                |v| grouped_linear(v[0].clone(), v[1].clone(), &offsets),
                |v| composed(v[0].clone(), v[1].clone(), &offsets),
            );
        }
    }

    #[test]
    fn a_batch_agrees_too() {
        let as_batch = |t: &Tensor<2>, rows: usize| t.clone().reshape([3, rows, 7]);
        check(
            &[[3 * 4, 7], [3 * 5, 7]],
            |v| batched_linear(as_batch(&v[0], 4), as_batch(&v[1], 5)).reshape([12, 5]),
            |v| {
                let w = as_batch(&v[1], 5).swap_dims(1, 2);
                as_batch(&v[0], 4).matmul(w).reshape([12, 5])
            },
        );
    }

    #[test]
    #[should_panic(expected = "grouped_linear: offsets must ascend, found 3 then 2")]
    fn offsets_that_fall_are_named() {
        let d = crate::cpu_device();
        grouped_linear(
            Tensor::zeros([4, 2], &d),
            Tensor::zeros([9, 2], &d),
            &Arc::from([0, 3, 2, 4]),
        );
    }

    #[test]
    #[should_panic(expected = "batched_linear: x [2, 3, 4], w [2, 3, 5]")]
    fn a_batch_that_does_not_fit_is_named() {
        let d = crate::cpu_device();
        batched_linear(Tensor::zeros([2, 3, 4], &d), Tensor::zeros([2, 3, 5], &d));
    }
}
