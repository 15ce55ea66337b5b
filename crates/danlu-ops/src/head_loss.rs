//! Cross-entropy fused with the output head: the logits of the whole batch never exist.
//!
//! Rows whose weight is 0 cost nothing; the rest go through the head a block at a time, and the
//! gradients of the hidden states and of the table are made while the block's logits are still in
//! the cache, so the backward pass only scales them.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows whose logits exist at once.
const BLOCK: usize = 1024;

/// What each position should predict and how much it counts.
#[derive(Debug, Clone)]
pub struct HeadLoss {
    /// Id to predict at each position, `[n]`.
    pub targets: Arc<[u32]>,
    /// Weight of each position, `[n]`; 0 is ignored, and a negative one makes the target unlikelier.
    pub weights: Arc<[f32]>,
    /// What the weighted sum is multiplied with, usually one over the sum of the weights.
    pub scale: f32,
    /// Weight of the squared log-partition (z-loss; PaLM, arXiv 2204.02311).
    pub z_loss: f32,
}

#[backend_extension(Flex, Autodiff)]
trait HeadLossOp: Backend {
    fn danlu_head_loss(
        hidden: FloatTensor<Self>,
        table: FloatTensor<Self>,
        spec: HeadLoss,
    ) -> FloatTensor<Self>;
}

/// `scale * sum(w * (ce + z lse^2))` of the logits `hidden table^T`, for `hidden: [n, width]` and
/// `table: [vocabulary, width]`. Returns the loss `[1]` (differentiable) and the plain
/// cross-entropy of every position `[n]` in nats (0 where ignored).
///
/// # Panics
/// If lengths differ or a target is outside the table.
pub fn head_loss(hidden: Tensor<2>, table: Tensor<2>, spec: &HeadLoss) -> (Tensor<1>, Vec<f32>) {
    let [n, _] = hidden.dims();
    assert_eq!([n; 2], [spec.targets.len(), spec.weights.len()], "head_loss: positions");
    let size = table.dims()[0];
    if let Some(id) = spec.targets.iter().find(|&&id| id as usize >= size) {
        panic!("head_loss: target {id} in a table of {size}");
    }
    let all = if on_cpu(&hidden.device()) {
        let (hidden, table) = (hidden.into_dispatch(), table.into_dispatch());
        Tensor::<2>::from_dispatch(Dispatch::danlu_head_loss(hidden, table, spec.clone()))
    } else {
        composed(hidden, table, spec)
    };
    let each = all.clone().inner_or_self().narrow(0, 1, n).into_data();
    let loss = all.narrow(0, 0, 1).reshape([1]);
    (loss, each.try_into_vec().expect("the loss is f32"))
}

/// A tensor without its gradient record, whether or not it has one.
trait InnerOrSelf {
    fn inner_or_self(self) -> Self;
}

impl InnerOrSelf for Tensor<2> {
    fn inner_or_self(self) -> Self {
        if self.device().is_autodiff() { self.inner() } else { self }
    }
}

pub(crate) fn composed(hidden: Tensor<2>, table: Tensor<2>, spec: &HeadLoss) -> Tensor<2> {
    let device = hidden.device();
    let n = spec.targets.len();
    let logits = hidden.matmul(table.transpose());
    let peak = logits.clone().detach().max_dim(1);
    let lse = (logits.clone() - peak.clone()).exp().sum_dim(1).log() + peak;
    let targets: Vec<i32> = spec.targets.iter().map(|&t| t as i32).collect();
    let index = Tensor::<2, Int>::from_data(TensorData::new(targets, [n, 1]), &device);
    let ce = lse.clone() - logits.gather(1, index);
    let weights = Tensor::<2>::from_data(TensorData::new(spec.weights.to_vec(), [n, 1]), &device);
    let counted = weights.clone().not_equal_elem(0.0).float();
    let each = (ce.clone() + lse.powf_scalar(2.0).mul_scalar(spec.z_loss)) * weights;
    let loss = each.sum().mul_scalar(spec.scale).reshape([1, 1]);
    Tensor::cat(vec![loss, (ce * counted).detach()], 0)
}

impl HeadLossOp for Flex {
    fn danlu_head_loss(hidden: FlexTensor, table: FlexTensor, spec: HeadLoss) -> FlexTensor {
        run(&hidden.to_contiguous(), &table.to_contiguous(), &spec, [false; 2]).0
    }
}

impl<C: CheckpointStrategy> HeadLossOp for Autodiff<Flex, C> {
    fn danlu_head_loss(
        hidden: FloatTensor<Self>,
        table: FloatTensor<Self>,
        spec: HeadLoss,
    ) -> FloatTensor<Self> {
        // A frozen table or frozen hidden states are not worth their product.
        let wanted = [hidden.is_tracked(), table.is_tracked()];
        tape::record::<C, _, 2>(
            "head_loss",
            [hidden, table],
            |[hidden, table], tracked| {
                let (out, grads) = run(&hidden, &table, &spec, wanted);
                (out, tracked.then_some(grads))
            },
            |grads, up, _| {
                // Element 0 of the output is the loss; the rest is a report without gradient.
                let up = cpu::values(&up.grad)[0];
                grads.map(|g| g.map(|g| scaled(g, up)))
            },
        )
    }
}

fn scaled(mut t: FlexTensor, by: f32) -> FlexTensor {
    if by != 1.0 {
        cpu::values_mut(&mut t).par_chunks_mut(1 << 16).for_each(|part| {
            part.iter_mut().for_each(|v| *v *= by);
        });
    }
    t
}

/// The loss and the cross-entropies `[1 + n, 1]`, and the gradients of `hidden` and `table` for an
/// upstream gradient of 1 where they are wanted.
fn run(
    hidden: &FlexTensor,
    table: &FlexTensor,
    spec: &HeadLoss,
    [want_hidden, want_table]: [bool; 2],
) -> (FlexTensor, [Option<FlexTensor>; 2]) {
    let with_grads = want_hidden || want_table;
    let [n, width] = cpu::dims(hidden);
    let [size, _] = cpu::dims(table);
    let (h, t) = (cpu::values(hidden), cpu::values(table));
    let kept: Vec<usize> = (0..n).filter(|&i| spec.weights[i] != 0.0).collect();
    let mut out = vec![0.0f32; 1 + n];
    let mut total = 0.0f64;
    // Rows that do not count keep a gradient of 0.
    let mut dh = if want_hidden { Buffer::zeros(n * width) } else { Buffer::any(0) };
    let mut dt = match (want_table, kept.is_empty()) {
        (true, true) => Buffer::zeros(size * width),
        (true, false) => Buffer::any(size * width),
        (false, _) => Buffer::any(0),
    };
    let mut logits = Buffer::any(BLOCK.min(kept.len()) * size);
    let mut rows = Buffer::any(BLOCK.min(kept.len()) * width);
    for (block, kept) in kept.chunks(BLOCK).enumerate() {
        let m = kept.len();
        let (rows, logits) = (&mut rows[..m * width], &mut logits[..m * size]);
        rows.par_chunks_mut((cpu::ROWS * width).max(1)).zip(kept.par_chunks(cpu::ROWS)).for_each(
            |(rows, kept)| {
                for (row, &i) in rows.chunks_exact_mut(width).zip(kept) {
                    row.copy_from_slice(&h[i * width..][..width]);
                }
            },
        );
        let (x, w) = (Mat::new(rows, width), Mat::new(t, width));
        gemm([m, width, size], x, w.t(), logits, size, 0.0, Threads::All);
        let losses: Vec<[f32; 2]> = logits
            .par_chunks_exact_mut(size)
            .zip(kept)
            .map(|(row, &i)| {
                cpu::vectorised(
                    #[inline(always)]
                    || row_loss(row, spec, i, with_grads),
                )
            })
            .collect();
        for (&i, [ce, weighted]) in kept.iter().zip(losses) {
            out[1 + i] = ce;
            total += weighted as f64;
        }
        let g = Mat::new(logits, size);
        if want_hidden {
            if let Some(first) = together(kept) {
                let dx = &mut dh[first * width..][..m * width];
                gemm([m, size, width], g, w, dx, width, 0.0, Threads::All);
            } else {
                let mut dx = Buffer::any(m * width);
                gemm([m, size, width], g, w, &mut dx, width, 0.0, Threads::All);
                for (row, &i) in dx.chunks_exact(width).zip(kept) {
                    dh[i * width..][..width].copy_from_slice(row);
                }
            }
        }
        if want_table {
            let keep = if block == 0 { 0.0 } else { 1.0 };
            gemm([size, m, width], g.t(), x, &mut dt, width, keep, Threads::All);
        }
    }
    out[0] = (total * spec.scale as f64) as f32;
    let dh = want_hidden.then(|| tensor(dh, [n, width]));
    let dt = want_table.then(|| tensor(dt, [size, width]));
    (tensor(out, [1 + n, 1]), [dh, dt])
}

/// The first of `kept` if the others follow it one by one.
fn together(kept: &[usize]) -> Option<usize> {
    let (&first, &last) = (kept.first()?, kept.last()?);
    (last - first + 1 == kept.len()).then_some(first)
}

/// Cross-entropy, and weighted loss with the z-loss, of position `i`, whose logits are in `row`. If
/// `with_grads` the logits become their gradient.
#[inline(always)]
fn row_loss(row: &mut [f32], spec: &HeadLoss, i: usize, with_grads: bool) -> [f32; 2] {
    let (target, weight) = (spec.targets[i] as usize, spec.weights[i]);
    let right = row[target];
    let (chunks, tail) = row.as_chunks_mut::<16>();
    let mut peaks = [f32::MIN; 16];
    for chunk in &*chunks {
        for j in 0..16 {
            peaks[j] = if chunk[j] > peaks[j] { chunk[j] } else { peaks[j] };
        }
    }
    let peak = peaks.iter().chain(&*tail).fold(f32::MIN, |a, &b| a.max(b));
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for j in 0..16 {
            chunk[j] = cpu::exp(chunk[j] - peak);
            sums[j] += chunk[j];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for v in tail {
        *v = cpu::exp(*v - peak);
        sum += *v;
    }
    let lse = sum.ln() + peak;
    if with_grads {
        let up = weight * spec.scale;
        let by = up * (1.0 + 2.0 * spec.z_loss * lse) / sum;
        row.iter_mut().for_each(|v| *v *= by);
        row[target] -= up;
    }
    let ce = lse - right;
    [ce, weight * (ce + spec.z_loss * lse * lse)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    fn spec(n: usize, size: u32) -> HeadLoss {
        HeadLoss {
            targets: (0..n as u32).map(|i| i * 7 % size).collect(),
            weights: (0..n).map(|i| [1.0, 0.0, 0.5][i % 3]).collect(),
            scale: 1.0 / n as f32,
            z_loss: 0.01,
        }
    }

    #[test]
    fn kernel_composed_and_differences_agree() {
        // 1,600 positions, a third of which do not count, cross a block boundary.
        for (n, size) in [(7, 19), (1600, 33), (1, 16)] {
            let spec = spec(n, size);
            let only_loss = |t: Tensor<1>| t.reshape([1, 1]);
            check(
                &[[n, 6], [size as usize, 6]],
                |v| only_loss(head_loss(v[0].clone(), v[1].clone(), &spec).0),
                |v| composed(v[0].clone(), v[1].clone(), &spec).narrow(0, 0, 1),
            );
        }
    }

    #[test]
    fn each_position_is_reported_and_ignored_ones_are_zero() {
        let d = crate::cpu_device();
        let spec = spec(7, 19);
        let h = Tensor::<2>::random([7, 6], burn::tensor::Distribution::Default, &d);
        let t = Tensor::<2>::random([19, 6], burn::tensor::Distribution::Default, &d);
        let (_, each) = head_loss(h.clone(), t.clone(), &spec);
        let want: Vec<f32> =
            composed(h, t, &spec).narrow(0, 1, 7).into_data().try_into_vec().expect("f32");
        crate::testing::close("each", &each, &want, 1e-5);
        assert_eq!(each[1], 0.0);
    }
}
