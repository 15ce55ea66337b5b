//! One token at a time against what is kept of those before it.

use super::{AttentionShape, Rotary};
use crate::cpu;
use crate::rms_norm::inverse_rms;

/// One head of a row with its norm, if there is one.
#[inline(always)]
pub(crate) fn normalise(from: &[f32], norm: &[f32], eps: Option<f32>, to: &mut [f32]) {
    let Some(eps) = eps else { return to.copy_from_slice(from) };
    let r = inverse_rms(from, eps);
    for ((to, from), norm) in to.iter_mut().zip(from).zip(norm) {
        *to = from * r * norm;
    }
}

/// Softmax of `row` times `scale`.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], scale: f32) {
    let mut peaks = [f32::MIN; 16];
    let (chunks, tail) = row.as_chunks_mut::<16>();
    for chunk in &mut *chunks {
        for j in 0..16 {
            peaks[j] = if chunk[j] > peaks[j] { chunk[j] } else { peaks[j] };
        }
    }
    let peak = peaks.iter().chain(&*tail).fold(f32::MIN, |a, &b| a.max(b));
    let peak = peak * scale;
    let mut sums = [0.0f32; 16];
    for chunk in &mut *chunks {
        for j in 0..16 {
            chunk[j] = cpu::exp(chunk[j] * scale - peak);
            sums[j] += chunk[j];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for v in &mut *tail {
        *v = cpu::exp(*v * scale - peak);
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v *= 1.0 / sum);
}

/// One new token per sequence against its cache, without gradients, on plain slices.
///
/// `qkv` is the row of the fused projection at `position`. Its key (normalised and turned) and its
/// value are written to row `position` of `keys` and `values` (`[positions, kv_heads * head_dim]`),
/// and the attention over rows `0..=position` goes to `out` (`[heads * head_dim]`).
#[allow(clippy::too_many_arguments)]
pub fn attention_cached(
    qkv: &[f32],
    norms: [&[f32]; 2],
    shape: &AttentionShape,
    rotary: &Rotary,
    position: usize,
    keys: &mut [f32],
    values: &mut [f32],
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim: dim, .. } = *shape;
    let (row, group) = (kv_heads * dim, heads / kv_heads);
    cpu::vectorised(
        #[inline(always)]
        || {
            let load = |head: usize, norm: &[f32], to: &mut [f32]| {
                normalise(&qkv[head * dim..][..dim], norm, shape.norm_eps, to);
                rotary.turn(position, to);
            };
            for h in 0..kv_heads {
                load(heads + h, norms[1], &mut keys[position * row + h * dim..][..dim]);
            }
            values[position * row..][..row].copy_from_slice(&qkv[(heads + kv_heads) * dim..]);
            let mut q = vec![0.0; dim];
            let mut scores = vec![0.0; position + 1];
            for head in 0..heads {
                let kv = head / group * dim;
                load(head, norms[0], &mut q);
                for (p, score) in scores.iter_mut().enumerate() {
                    *score = cpu::dot(&q, &keys[p * row + kv..][..dim]);
                }
                softmax(&mut scores, shape.scale());
                let out = &mut out[head * dim..][..dim];
                out.fill(0.0);
                for (p, &score) in scores.iter().enumerate() {
                    let v = &values[p * row + kv..][..dim];
                    for i in 0..dim {
                        out[i] += score * v[i];
                    }
                }
            }
        },
    );
}
