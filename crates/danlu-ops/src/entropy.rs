//! How widely attention looks, for those who watch a training.

use crate::AttentionShape;
use crate::Rotary;
use crate::attention::{normalise, softmax};
use crate::cpu;
use rayon::prelude::*;

/// Mean entropy of each head's attention over the rows of one document, as a share of the most that
/// it could be: 1 looks at everything alike, 0 at one position. `qkv` is `[n, shape.projection()]`
/// row-major, as [`crate::attention`] takes it; the first row, which sees only itself, is left out,
/// so fewer than two rows give no head. It takes time in the square of `n`.
pub fn attention_entropy(
    qkv: &[f32],
    norms: [&[f32]; 2],
    shape: &AttentionShape,
    rotary: &Rotary,
) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim: dim, .. } = *shape;
    let width = shape.projection();
    let rows = qkv.len() / width;
    if rows < 2 {
        return Vec::new();
    }
    let load = |row: usize, head: usize, norm: &[f32]| {
        let mut out = vec![0.0; dim];
        normalise(&qkv[row * width + head * dim..][..dim], norm, shape.norm_eps, &mut out);
        rotary.turn(row, &mut out);
        out
    };
    let head = |head: usize| {
        let kv = heads + head / (heads / kv_heads);
        let keys: Vec<Vec<f32>> = (0..rows).map(|row| load(row, kv, norms[1])).collect();
        let each = (1..rows).map(|row| {
            let q = load(row, head, norms[0]);
            let mut scores: Vec<f32> = keys[..=row].iter().map(|k| cpu::dot(&q, k)).collect();
            softmax(&mut scores, shape.scale());
            let bits = |&p: &f32| if p > 0.0 { -(p as f64) * (p as f64).ln() } else { 0.0 };
            scores.iter().map(bits).sum::<f64>() / ((row + 1) as f64).ln()
        });
        each.sum::<f64>() / (rows - 1) as f64
    };
    (0..heads).into_par_iter().map(head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_attention_is_one_and_sharp_attention_is_near_nothing() {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 2, norm_eps: None };
        let rotary = Rotary::none(8);
        let ones = [1.0; 2];
        let width = shape.projection();
        // The first head asks nothing in particular, the second for its own key alone.
        let mut qkv = vec![0.0; 6 * width];
        for (row, x) in qkv.chunks_exact_mut(width).enumerate() {
            let angle = row as f32;
            x[2..4].copy_from_slice(&[300.0 * angle.cos(), 300.0 * angle.sin()]);
            x[4..6].copy_from_slice(&[angle.cos(), angle.sin()]);
        }
        let found = attention_entropy(&qkv, [&ones, &ones], &shape, &rotary);
        assert!((found[0] - 1.0).abs() < 1e-6 && found[1] < 0.01, "{found:?}");
        assert!(attention_entropy(&qkv[..width], [&ones, &ones], &shape, &rotary).is_empty());
    }
}
