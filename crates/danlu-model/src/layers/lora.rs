//! Low-rank additions to a projection (LoRA, arXiv 2106.09685), with a learnt magnitude of each
//! output if wanted (DoRA, arXiv 2402.09353). A projection may be several in one matrix (query, key
//! and value); each addition says which of its outputs it is for.

use crate::params::Parameter;
use burn::tensor::{Tensor, TensorData};
use danlu_core::Rng;
use danlu_ops::Fused;
use std::ops::Range;

/// `scale * b a`, added to some rows of a weight.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[rank, inputs]`.
    pub a: Parameter,
    /// `[rows, rank]`.
    pub b: Parameter,
    /// The outputs of the projection that it is for.
    pub rows: Range<usize>,
    /// What `b a` is multiplied by: `alpha / rank`, or `alpha / sqrt(rank)` (rsLoRA, arXiv
    /// 2312.03732).
    pub scale: f32,
    /// `[rows]`: the norm that each row of the adapted weight has (DoRA). Only the last of a
    /// projection's adapters for the same outputs may have one.
    pub magnitude: Option<Parameter>,
    /// What share of its inputs is left out while it is learnt, and the dice of this step.
    pub dropout: Option<(f32, u64)>,
}

impl Lora {
    /// Number of inner dimensions.
    pub fn rank(&self) -> usize {
        self.a.shape[0]
    }

    /// Its parameters.
    pub fn parameters(&self) -> Vec<&Parameter> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude).collect()
    }

    /// Its parameters, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        [&mut self.a, &mut self.b].into_iter().chain(&mut self.magnitude).collect()
    }

    /// `y + sum of scale * (x a^T) b^T` for `x: [n, inputs]` and `y: [n, outputs]`: two thin
    /// products, however many there are. Inputs are left out for the adapters that learn alone: what
    /// lies beneath them, before them in the list, is as it will be.
    pub(crate) fn add(all: &[Self], x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let shaken = |l: &Self| l.dropout.filter(|&(share, _)| share > 0.0);
        if let Some(first) = all.iter().position(|l| shaken(l).is_some()) {
            let (beneath, learning) = all.split_at(first);
            let y = if first > 0 { Self::add_plain(beneath, x.clone(), y) } else { y };
            let (share, seed) = shaken(&learning[0]).expect("just found");
            return Self::add_plain(learning, dropped(x, share, seed), y);
        }
        Self::add_plain(all, x, y)
    }

    fn add_plain(all: &[Self], x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let outputs = y.dims()[1];
        let inner = danlu_ops::linear(x, down(all));
        let around = Fused { residual: Some(y), ..Fused::default() };
        danlu_ops::linear_with(inner, up(all, outputs), around)
    }

    /// The projection of `x` where some adapter has magnitudes: every row of the adapted weight is
    /// given the length that was learnt for it. The length that it has is no part of the gradient,
    /// as in the paper.
    pub(crate) fn directed(all: &[Self], x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        let y = danlu_ops::linear(x.clone(), weight.clone());
        let y = Self::add(all, x, y);
        let outputs = y.dims()[1];
        let norms = row_norms(all, &plain(weight));
        let mut gains = Tensor::ones([1, outputs], &y.device());
        for lora in all {
            if let Some(m) = &lora.magnitude {
                let [from, to] = [lora.rows.start, lora.rows.end];
                let norm = TensorData::new(norms[from..to].to_vec(), [1, to - from]);
                let norm = Tensor::<2>::from_data(norm, &m.tensor.device());
                let mut pieces = Vec::new();
                if from > 0 {
                    pieces.push(gains.clone().narrow(1, 0, from));
                }
                pieces.push(m.tensor.clone() / norm);
                if to < outputs {
                    pieces.push(gains.narrow(1, to, outputs - to));
                }
                gains = Tensor::cat(pieces, 1);
            }
        }
        y * gains
    }

    /// The adapted weight `[outputs, inputs]`, row-major, of a projection with these adapters.
    pub fn merged(all: &[Self], weight: &Parameter) -> Vec<f32> {
        let plain_weight = plain(weight.whole());
        let inputs = weight.shape[1];
        let mut values = sum(all, &plain_weight);
        if let Some(gains) = Self::gains(all, weight) {
            for (row, gain) in values.chunks_exact_mut(inputs).zip(gains) {
                row.iter_mut().for_each(|v| *v *= gain);
            }
        }
        values
    }

    /// `[outputs]`: the length that was learnt for each row of the adapted weight by the length
    /// that it has, and 1 where none was learnt. None if no adapter has magnitudes.
    pub fn gains(all: &[Self], weight: &Parameter) -> Option<Vec<f32>> {
        if all.iter().all(|l| l.magnitude.is_none()) {
            return None;
        }
        let norms = row_norms(all, &plain(weight.whole()));
        let mut gains = vec![1.0; norms.len()];
        for lora in all {
            let Some(m) = &lora.magnitude else { continue };
            for (row, m) in lora.rows.clone().zip(m.values()) {
                gains[row] = m / norms[row];
            }
        }
        Some(gains)
    }

    /// The norm of every row of `weight`: what magnitudes begin with.
    pub fn norms(weight: &Parameter, rows: Range<usize>) -> Vec<f32> {
        row_norms(&[], &plain(weight.whole()))[rows].to_vec()
    }
}

/// Without gradient record.
fn plain(t: Tensor<2>) -> Tensor<2> {
    if t.device().is_autodiff() { t.inner() } else { t }
}

/// Every `a`, one below the other: `[sum of ranks, inputs]`.
fn down(all: &[Lora]) -> Tensor<2> {
    match all {
        [one] => one.a.tensor.clone(),
        _ => Tensor::cat(all.iter().map(|l| l.a.tensor.clone()).collect(), 0),
    }
}

/// Every scaled `b`, side by side, with zeros for the outputs that it is not for:
/// `[outputs, sum of ranks]`.
fn up(all: &[Lora], outputs: usize) -> Tensor<2> {
    let columns = all.iter().map(|l| {
        let b = l.b.tensor.clone().mul_scalar(l.scale);
        let zeros = |rows: usize| Tensor::zeros([rows, l.rank()], &l.b.tensor.device());
        let mut pieces = Vec::new();
        if l.rows.start > 0 {
            pieces.push(zeros(l.rows.start));
        }
        pieces.push(b);
        if l.rows.end < outputs {
            pieces.push(zeros(outputs - l.rows.end));
        }
        if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(pieces, 0) }
    });
    let mut columns: Vec<_> = columns.collect();
    if columns.len() == 1 { columns.remove(0) } else { Tensor::cat(columns, 1) }
}

/// `weight + sum of scale * b a`, row-major, in full precision.
fn sum(all: &[Lora], weight: &Tensor<2>) -> Vec<f32> {
    let outputs = weight.dims()[0];
    let merged = match all {
        [] => weight.clone(),
        _ => weight.clone() + plain(up(all, outputs)).matmul(plain(down(all))),
    };
    merged.into_data().try_into_vec().expect("weights are f32")
}

fn row_norms(all: &[Lora], weight: &Tensor<2>) -> Vec<f32> {
    let inputs = weight.dims()[1];
    sum(all, weight)
        .chunks_exact(inputs)
        .map(|row| row.iter().map(|&v| v as f64 * v as f64).sum::<f64>().sqrt() as f32)
        .collect()
}

/// `x` with a share of its values left out and the others enlarged accordingly.
fn dropped(x: Tensor<2>, share: f32, seed: u64) -> Tensor<2> {
    let [n, width] = x.dims();
    let keep = 1.0 / (1.0 - share);
    let mut rng = Rng::new(seed, 0xd209);
    let mask: Vec<f32> =
        (0..n * width).map(|_| if rng.unit() < share { 0.0 } else { keep }).collect();
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [n, width]), &x.device());
    x * mask
}

#[cfg(test)]
mod tests {
    use super::super::Linear;
    use super::*;
    use danlu_ops::Activation;

    fn lora(rank: usize, rows: Range<usize>, seed: u64, inputs: usize) -> Lora {
        let d = danlu_ops::cpu_device();
        let mut rng = Rng::new(seed, 1);
        Lora {
            a: Parameter::normal("a", &[rank, inputs], 0.5, &mut rng, &d),
            b: Parameter::normal("b", &[rows.len(), rank], 0.5, &mut rng, &d),
            rows,
            scale: 0.7,
            magnitude: None,
            dropout: None,
        }
    }

    fn values(t: Tensor<2>) -> Vec<f32> {
        t.into_data().try_into_vec().expect("f32")
    }

    fn close(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((x - y).abs() < 2e-5 * (1.0 + y.abs()), "{i}: {x} against {y}");
        }
    }

    #[test]
    fn a_merged_weight_answers_as_weight_and_adapters_do() {
        let d = danlu_ops::cpu_device();
        let mut rng = Rng::new(1, 1);
        let mut linear = Linear::new("l", [9, 6], 0.4, &mut rng, &d).biased(&d);
        linear.bias.as_mut().expect("has one").set((0..9).map(|i| i as f32 / 9.0).collect());
        let x = Parameter::normal("x", &[5, 12], 1.0, &mut rng, &d).tensor;
        let r = Parameter::normal("r", &[5, 9], 1.0, &mut rng, &d).tensor;
        for with_magnitude in [false, true] {
            linear.adapters = vec![lora(2, 0..4, 2, 6), lora(3, 4..9, 3, 6), lora(1, 2..6, 4, 6)];
            if with_magnitude {
                let m = (0..4).map(|i| 0.5 + i as f32).collect();
                linear.adapters[2].magnitude = Some(Parameter::new("m", &[4], m, &d));
            }
            let apart = linear.run(x.clone(), Activation::Swiglu, Some(r.clone()));
            let mut merged = linear.clone();
            merged.weight.set(Lora::merged(&linear.adapters, &linear.weight));
            assert_ne!(merged.weight.values(), linear.weight.values());
            merged.adapters.clear();
            let one = merged.run(x.clone(), Activation::Swiglu, Some(r.clone()));
            close(&values(apart), &values(one));
        }
    }

    #[test]
    fn magnitudes_begin_without_a_change() {
        let d = danlu_ops::cpu_device();
        let mut rng = Rng::new(1, 1);
        let plain = Linear::new("l", [5, 6], 0.4, &mut rng, &d);
        let x = Parameter::normal("x", &[3, 6], 1.0, &mut rng, &d).tensor;
        let mut adapted = plain.clone();
        let mut one = lora(2, 1..4, 2, 6);
        one.b.set(vec![0.0; 6]);
        one.magnitude = Some(Parameter::new("m", &[3], Lora::norms(&plain.weight, 1..4), &d));
        adapted.adapters = vec![one];
        close(&values(adapted.forward(x.clone())), &values(plain.forward(x)));
    }

    #[test]
    fn nothing_is_left_out_for_what_lies_beneath_the_adapter_that_learns() {
        let d = danlu_ops::cpu_device();
        let mut rng = Rng::new(1, 1);
        let mut linear = Linear::new("l", [5, 6], 0.4, &mut rng, &d);
        let x = Parameter::normal("x", &[3, 6], 1.0, &mut rng, &d).tensor;
        let mut fresh = lora(2, 0..5, 3, 6);
        fresh.b.set(vec![0.0; 10]);
        linear.adapters = vec![lora(2, 0..5, 2, 6), fresh];
        let still = values(linear.forward(x.clone()));
        linear.adapters[1].dropout = Some((0.5, 7));
        close(&values(linear.forward(x)), &still);
    }

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_its_seed() {
        let d = danlu_ops::cpu_device();
        let x = Tensor::<2>::ones([50, 40], &d);
        let a = values(dropped(x.clone(), 0.25, 1));
        assert_eq!(a, values(dropped(x.clone(), 0.25, 1)));
        assert_ne!(a, values(dropped(x, 0.25, 2)));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }
}
