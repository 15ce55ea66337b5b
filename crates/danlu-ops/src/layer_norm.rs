//! Layer normalisation (Ba et al., arXiv 1607.06450).

use crate::cpu;
use crate::pool::{Buffer, tensor};
use crate::tape::{Recording, Upstream};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use rayon::prelude::*;

#[backend_extension(Flex, Autodiff)]
trait LayerNormOp: Backend {
    fn danlu_layer_norm(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        b: FloatTensor<Self>,
        eps: f32,
        onto: bool,
    ) -> FloatTensor<Self>;
}

/// `(x - mean) / sqrt(variance + eps) * g + b` over the last dimension, for `x: [n, width]` and
/// `g` and `b: [1, width]`.
pub fn layer_norm(x: Tensor<2>, g: Tensor<2>, b: Tensor<2>, eps: f32) -> Tensor<2> {
    run(x, g, b, eps, false)
}

pub(crate) fn run(x: Tensor<2>, g: Tensor<2>, b: Tensor<2>, eps: f32, onto: bool) -> Tensor<2> {
    assert_eq!([1, x.dims()[1]], g.dims(), "layer_norm: gain for x {:?}", x.dims());
    assert_eq!(b.dims(), g.dims(), "layer_norm: bias for x {:?}", x.dims());
    if !on_cpu(&x.device()) {
        return composed(x, g, b, eps);
    }
    let (x, g, b) = (x.into_dispatch(), g.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(Dispatch::danlu_layer_norm(x, g, b, eps, onto))
}

pub(crate) fn composed(x: Tensor<2>, g: Tensor<2>, b: Tensor<2>, eps: f32) -> Tensor<2> {
    let x = x.clone() - x.mean_dim(1);
    let scale = x.clone().powf_scalar(2.0).mean_dim(1).add_scalar(eps).sqrt().recip();
    x * scale * g + b
}

impl LayerNormOp for Flex {
    fn danlu_layer_norm(
        x: FlexTensor,
        g: FlexTensor,
        b: FlexTensor,
        eps: f32,
        _: bool,
    ) -> FlexTensor {
        forward(&x.to_contiguous(), &g.to_contiguous(), &b.to_contiguous(), eps)
    }
}

impl<C: CheckpointStrategy> LayerNormOp for Autodiff<Flex, C> {
    fn danlu_layer_norm(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        b: FloatTensor<Self>,
        eps: f32,
        onto: bool,
    ) -> FloatTensor<Self> {
        tape::record_with::<C, _, 3>(
            "layer_norm",
            Recording { onto },
            [x, g, b],
            |[x, g, b], tracked| {
                let y = forward(&x, &g, &b, eps);
                (y, tracked.then_some((x, g, eps)))
            },
            |(x, g, eps), up, _| backward(&x, &g, eps, up).map(Some),
        )
    }
}

/// Mean and inverse standard deviation of one row.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> [f32; 2] {
    let mean = cpu::sum(row) / row.len() as f32;
    let mut sums = [0.0f32; 16];
    let (chunks, tail) = row.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            sums[i] += (chunk[i] - mean) * (chunk[i] - mean);
        }
    }
    let tail: f32 = tail.iter().map(|v| (v - mean) * (v - mean)).sum();
    let variance = (sums.iter().sum::<f32>() + tail) / row.len() as f32;
    [mean, 1.0 / (variance + eps).sqrt()]
}

fn forward(x: &FlexTensor, g: &FlexTensor, b: &FlexTensor, eps: f32) -> FlexTensor {
    let [n, width] = cpu::dims(x);
    let (g, b) = (&cpu::values(g)[..width], &cpu::values(b)[..width]);
    let mut out = Buffer::any(n * width);
    let rows = cpu::ROWS * width.max(1);
    out.par_chunks_mut(rows).zip(cpu::values(x).par_chunks(rows)).for_each(|(out, x)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let [mean, r] = moments(x, eps);
                    for i in 0..width {
                        out[i] = (x[i] - mean) * r * g[i] + b[i];
                    }
                }
            },
        );
    });
    tensor(out, [n, width])
}

/// Gradients of one row: `dx` takes it, `dg` and `db` are added to.
///
/// With `r` the inverse deviation, `h = (x - mean) r` and `u = grad g`:
/// `dx = r (u - mean(u) - h mean(u h))`, `dg += grad h`, `db += grad`.
#[inline(always)]
fn row_backward(
    [x, g, grad]: [&[f32]; 3],
    eps: f32,
    dx: &mut [f32],
    earlier: Option<&[f32]>,
    [dg, db]: [&mut [f32]; 2],
) {
    let width = dx.len();
    let (x, g, grad) = (&x[..width], &g[..width], &grad[..width]);
    let [mean, r] = moments(x, eps);
    let mut plain = [0.0f32; 16];
    let mut along = [0.0f32; 16];
    for i in 0..width / 16 * 16 {
        let u = grad[i] * g[i];
        plain[i % 16] += u;
        along[i % 16] += u * (x[i] - mean);
    }
    for i in width / 16 * 16..width {
        let u = grad[i] * g[i];
        plain[0] += u;
        along[0] += u * (x[i] - mean);
    }
    let shift = plain.iter().sum::<f32>() / width as f32;
    let pull = along.iter().sum::<f32>() * r * r / width as f32;
    let (dg, db) = (&mut dg[..width], &mut db[..width]);
    for i in 0..width {
        let h = x[i] - mean;
        dx[i] = r * (grad[i] * g[i] - shift - h * pull);
        dg[i] += grad[i] * h * r;
        db[i] += grad[i];
    }
    if let Some(earlier) = earlier {
        dx.iter_mut().zip(earlier).for_each(|(d, e)| *d += e);
    }
}

fn backward(x: &FlexTensor, g: &FlexTensor, eps: f32, up: Upstream) -> [FlexTensor; 3] {
    let [n, width] = cpu::dims(x);
    let g = cpu::values(g);
    let mut dx = Buffer::any(n * width);
    let rows = cpu::ROWS * width.max(1);
    let earlier = up.earlier.as_ref().map(cpu::values);
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(rows)
        .zip(cpu::values(x).par_chunks(rows))
        .zip(cpu::values(&up.grad).par_chunks(rows))
        .enumerate()
        .map(|(task, ((dx, x), grad))| {
            let mut sums = vec![0.0; 2 * width];
            let (dg, db) = sums.split_at_mut(width);
            cpu::vectorised(
                #[inline(always)]
                || {
                    for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                        let part = row * width..(row + 1) * width;
                        let earlier = earlier.map(|e| &e[task * rows..][part.clone()]);
                        let inputs = [&x[part.clone()], g, &grad[part]];
                        row_backward(inputs, eps, dx, earlier, [&mut *dg, &mut *db]);
                    }
                },
            );
            sums
        })
        .collect();
    let sums = cpu::add_parts(&parts, 2 * width);
    let (dg, db) = sums.split_at(width);
    [tensor(dx, [n, width]), tensor(dg.to_vec(), [1, width]), tensor(db.to_vec(), [1, width])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        for n in [1, 6, 130] {
            check(
                &[[n, 20], [1, 20], [1, 20]],
                |v| layer_norm(v[0].clone(), v[1].clone(), v[2].clone(), 1e-5),
                |v| composed(v[0].clone(), v[1].clone(), v[2].clone(), 1e-5),
            );
        }
    }
}
