//! Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467).

use crate::cpu::{self, ROWS};
use crate::pool::{Buffer, tensor};
use crate::tape::{Recording, Upstream};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use rayon::prelude::*;

#[backend_extension(Flex, Autodiff)]
trait RmsNormOp: Backend {
    fn danlu_rms_norm(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        eps: f32,
        onto: bool,
    ) -> FloatTensor<Self>;
}

/// `x / sqrt(mean(x^2) + eps) * g` over the last dimension, for `x: [n, width]`, `g: [1, width]`.
pub fn rms_norm(x: Tensor<2>, g: Tensor<2>, eps: f32) -> Tensor<2> {
    run(x, g, eps, false)
}

pub(crate) fn run(x: Tensor<2>, g: Tensor<2>, eps: f32, onto: bool) -> Tensor<2> {
    assert_eq!([1, x.dims()[1]], g.dims(), "rms_norm: x {:?}", x.dims());
    if !on_cpu(&x.device()) {
        return composed(x, g, eps);
    }
    Tensor::from_dispatch(Dispatch::danlu_rms_norm(x.into_dispatch(), g.into_dispatch(), eps, onto))
}

pub(crate) fn composed(x: Tensor<2>, g: Tensor<2>, eps: f32) -> Tensor<2> {
    let scale = x.clone().powf_scalar(2.0).mean_dim(1).add_scalar(eps).sqrt().recip();
    x * scale * g
}

impl RmsNormOp for Flex {
    fn danlu_rms_norm(x: FlexTensor, g: FlexTensor, eps: f32, _: bool) -> FlexTensor {
        forward(&x.to_contiguous(), &g.to_contiguous(), eps)
    }
}

impl<C: CheckpointStrategy> RmsNormOp for Autodiff<Flex, C> {
    fn danlu_rms_norm(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        eps: f32,
        onto: bool,
    ) -> FloatTensor<Self> {
        tape::record_with::<C, _, 2>(
            "rms_norm",
            Recording { onto },
            [x, g],
            |[x, g], tracked| {
                let y = forward(&x, &g, eps);
                (y, tracked.then_some((x, g, eps)))
            },
            |(x, g, eps), up, _| backward(&x, &g, eps, up).map(Some),
        )
    }
}

/// `1 / sqrt(mean(x^2) + eps)` of one row.
#[inline(always)]
pub(crate) fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (cpu::dot(row, row) / row.len() as f32 + eps).sqrt()
}

/// Gradient of one row. Adds to `dg`; writes `dx`.
#[inline(always)]
pub(crate) fn row_backward(
    row: &[f32],
    g: &[f32],
    eps: f32,
    grad: &[f32],
    dx: &mut [f32],
    dg: &mut [f32],
) {
    // With r the inverse RMS and u = grad * g: dx = r (u - x r^2 mean(u x)), dg += grad x r.
    let width = row.len();
    let (g, grad) = (&g[..width], &grad[..width]);
    let (dx, dg) = (&mut dx[..width], &mut dg[..width]);
    let r = inverse_rms(row, eps);
    let mut sums = [0.0f32; 16];
    for i in 0..width / 16 * 16 {
        sums[i % 16] += grad[i] * g[i] * row[i];
    }
    for i in width / 16 * 16..width {
        sums[0] += grad[i] * g[i] * row[i];
    }
    let pull = r * r * sums.iter().sum::<f32>() / width as f32;
    for i in 0..width {
        dx[i] = r * (grad[i] * g[i] - row[i] * pull);
        dg[i] += grad[i] * row[i] * r;
    }
}

fn forward(x: &FlexTensor, g: &FlexTensor, eps: f32) -> FlexTensor {
    let [n, width] = cpu::dims(x);
    let g = cpu::values(g);
    let mut out = Buffer::any(n * width);
    let rows = ROWS * width.max(1);
    out.par_chunks_mut(rows).zip(cpu::values(x).par_chunks(rows)).for_each(|(out, x)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let r = inverse_rms(x, eps);
                    for i in 0..width {
                        out[i] = x[i] * r * g[i];
                    }
                }
            },
        );
    });
    tensor(out, [n, width])
}

fn backward(x: &FlexTensor, g: &FlexTensor, eps: f32, up: Upstream) -> [FlexTensor; 2] {
    let [n, width] = cpu::dims(x);
    let g = cpu::values(g);
    let mut dx = Buffer::any(n * width);
    let rows = ROWS * width.max(1);
    let earlier = up.earlier.as_ref().map(cpu::values);
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(rows)
        .zip(cpu::values(x).par_chunks(rows))
        .zip(cpu::values(&up.grad).par_chunks(rows))
        .enumerate()
        .map(|(task, ((dx, x), grad))| {
            let mut dg = vec![0.0; width];
            cpu::vectorised(
                #[inline(always)]
                || {
                    for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                        let part = row * width..(row + 1) * width;
                        row_backward(&x[part.clone()], g, eps, &grad[part.clone()], dx, &mut dg);
                        if let Some(earlier) = earlier {
                            let earlier = &earlier[task * rows..][part];
                            dx.iter_mut().zip(earlier).for_each(|(d, e)| *d += e);
                        }
                    }
                },
            );
            dg
        })
        .collect();
    [tensor(dx, [n, width]), tensor(cpu::add_parts(&parts, width), [1, width])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        for n in [1, 6, 130] {
            check(
                &[[n, 20], [1, 20]],
                |v| rms_norm(v[0].clone(), v[1].clone(), 1e-6),
                |v| composed(v[0].clone(), v[1].clone(), 1e-6),
            );
        }
    }
}
