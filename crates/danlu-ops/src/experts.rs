//! Mixtures of experts: which rows go to which experts, and the sum of what comes back (Shazeer et
//! al., arXiv 1701.06538; the gates of the chosen are a softmax among themselves, as in Mixtral,
//! arXiv 2401.04088, and Qwen3, or their shares of the softmax of all, as in Switch Transformer,
//! arXiv 2101.03961).
//!
//! A layer goes: [`Routing::new`] of the router's scores, [`crate::embedding()`] with
//! [`Routing::rows`] for the inputs in the order of experts, [`crate::grouped_linear`] with
//! [`Routing::offsets`] for their projections, [`mix_experts`].

use crate::cpu::{self, ROWS};
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Int, Tensor, TensorData, activation::softmax};
use rayon::prelude::*;
use std::sync::Arc;

#[backend_extension(Flex, Autodiff)]
trait ExpertsOp: Backend {
    fn danlu_mix_experts(
        y: FloatTensor<Self>,
        scores: FloatTensor<Self>,
        routing: Routing,
    ) -> FloatTensor<Self>;
}

/// Which rows go to which experts. A place is a row at one of its experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// The row of each place: those of the first expert, then those of the second; ascending within
    /// one. `[rows * chosen]`.
    pub rows: Arc<[u32]>,
    /// The first place of each expert, and the end: one more than there are experts.
    pub offsets: Arc<[u32]>,
    /// The places of each row, by its experts ascending: `[rows, chosen]`.
    places: Arc<[u32]>,
    /// Those experts: `[rows, chosen]`.
    experts: Arc<[u32]>,
    /// What the gates are a softmax of.
    among: Among,
}

/// The scores that gates are a softmax of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Those of the chosen experts: the gates of a row sum to 1.
    Chosen,
    /// Those of all experts: the gates of a row sum to what the chosen have of it.
    All,
}

/// The `chosen` largest of `scores`, ascending by index; of equal ones those that come first.
pub fn choose(scores: &[f32], chosen: usize, into: &mut Vec<u32>) {
    into.clear();
    into.extend(0..scores.len() as u32);
    let by = |i: &u32| scores[*i as usize];
    into.sort_by(|a, b| by(b).total_cmp(&by(a)).then(a.cmp(b)));
    into.truncate(chosen);
    into.sort_unstable();
}

/// The softmax of scores, in place.
fn normalise(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - most).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// The gates of the `chosen` experts of one row, after what is in `into`, from the scores of all.
pub fn gates(scores: &[f32], chosen: &[u32], among: Among, into: &mut Vec<f32>) {
    let first = into.len();
    match among {
        Among::Chosen => into.extend(chosen.iter().map(|&e| scores[e as usize])),
        Among::All => into.extend_from_slice(scores),
    }
    normalise(&mut into[first..]);
    if among == Among::All {
        // They ascend, so none is overwritten before it was read.
        chosen.iter().enumerate().for_each(|(i, &e)| into[first + i] = into[first + e as usize]);
        into.truncate(first + chosen.len());
    }
}

impl Routing {
    /// Sends each row to the `chosen` experts of the largest scores, `[rows, experts]`.
    ///
    /// # Panics
    /// If `chosen` is 0 or more than there are experts.
    pub fn new(scores: &[f32], experts: usize, chosen: usize, among: Among) -> Self {
        assert!((1..=experts).contains(&chosen), "Routing: {chosen} of {experts} experts");
        let n = scores.len() / experts;
        let mut picked = Vec::with_capacity(n * chosen);
        let mut one = Vec::with_capacity(experts);
        let mut offsets = vec![0u32; experts + 1];
        for scores in scores.chunks_exact(experts) {
            choose(scores, chosen, &mut one);
            one.iter().for_each(|&e| offsets[e as usize + 1] += 1);
            picked.extend_from_slice(&one);
        }
        for e in 0..experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let (mut rows, mut places) = (vec![0; n * chosen], Vec::with_capacity(n * chosen));
        for (i, &e) in picked.iter().enumerate() {
            let place = &mut next[e as usize];
            rows[*place as usize] = (i / chosen) as u32;
            places.push(*place);
            *place += 1;
        }
        Self {
            rows: rows.into(),
            offsets: offsets.into(),
            places: places.into(),
            experts: picked.into(),
            among,
        }
    }

    /// Rows that each expert has.
    pub fn load(&self) -> impl Iterator<Item = u32> + '_ {
        self.offsets.windows(2).map(|o| o[1] - o[0])
    }

    /// Experts of a row.
    fn chosen(&self, rows: usize) -> usize {
        self.rows.len() / rows.max(1)
    }
}

/// The sum over the experts of each row of what they gave, times their gates: `y:
/// [rows * chosen, width]` in the order of places and `scores: [rows, experts]` to `[rows, width]`.
///
/// # Panics
/// If shapes do not fit the routing.
pub fn mix_experts(y: Tensor<2>, scores: Tensor<2>, routing: &Routing) -> Tensor<2> {
    let ([places, _], [n, experts]) = (y.dims(), scores.dims());
    assert_eq!(
        [places, routing.chosen(n) * n, experts + 1],
        [routing.rows.len(), places, routing.offsets.len()],
        "mix_experts: y {:?}, scores {:?}",
        y.dims(),
        scores.dims()
    );
    if !on_cpu(&y.device()) {
        return composed(y, scores, routing);
    }
    let (y, scores) = (y.into_dispatch(), scores.into_dispatch());
    Tensor::from_dispatch(Dispatch::danlu_mix_experts(y, scores, routing.clone()))
}

pub(crate) fn composed(y: Tensor<2>, scores: Tensor<2>, routing: &Routing) -> Tensor<2> {
    let ([_, width], [n, _], device) = (y.dims(), scores.dims(), y.device());
    let chosen = routing.chosen(n);
    let whole = |v: &[u32]| v.iter().map(|&i| i as i32).collect::<Vec<i32>>();
    let experts = TensorData::new(whole(&routing.experts), [n, chosen]);
    let places = TensorData::new(whole(&routing.places), [n * chosen]);
    let experts = Tensor::<2, Int>::from_data(experts, &device);
    let gates = match routing.among {
        Among::Chosen => softmax(scores.gather(1, experts), 1),
        Among::All => softmax(scores, 1).gather(1, experts),
    };
    let y = y.select(0, Tensor::<1, Int>::from_data(places, &device)).reshape([n, chosen, width]);
    (y * gates.reshape([n, chosen, 1])).sum_dim(1).reshape([n, width])
}

impl ExpertsOp for Flex {
    fn danlu_mix_experts(y: FlexTensor, scores: FlexTensor, routing: Routing) -> FlexTensor {
        let scores = scores.to_contiguous();
        let gates = gates_of(cpu::values(&scores), cpu::dims(&scores), &routing);
        forward(&y.to_contiguous(), &gates, &routing, cpu::dims(&scores))
    }
}

impl<C: CheckpointStrategy> ExpertsOp for Autodiff<Flex, C> {
    fn danlu_mix_experts(
        y: FloatTensor<Self>,
        scores: FloatTensor<Self>,
        routing: Routing,
    ) -> FloatTensor<Self> {
        tape::record::<C, _, 2>(
            "mix_experts",
            [y, scores],
            |[y, scores], tracked| {
                let size = cpu::dims::<2>(&scores);
                let gates = gates_of(cpu::values(&scores), size, &routing);
                let out = forward(&y, &gates, &routing, size);
                (out, tracked.then_some((y, scores, routing)))
            },
            |(y, scores, routing), up, _| backward(&y, &scores, &routing, &up.grad).map(Some),
        )
    }
}

/// The gate of each place in the order of [`Routing::places`], `[rows, chosen]`.
fn gates_of(scores: &[f32], [n, experts]: [usize; 2], routing: &Routing) -> Vec<f32> {
    let chosen = routing.chosen(n).max(1);
    let mut all = Vec::with_capacity(routing.experts.len() + experts);
    for (scores, mine) in
        scores.chunks_exact(experts.max(1)).zip(routing.experts.chunks_exact(chosen))
    {
        gates(scores, mine, routing.among, &mut all);
    }
    all
}

fn forward(y: &FlexTensor, gates: &[f32], routing: &Routing, [n, _]: [usize; 2]) -> FlexTensor {
    let ([_, width], chosen) = (cpu::dims(y), routing.chosen(n).max(1));
    let y = cpu::values(y);
    let mut out = Buffer::any(n * width);
    out.par_chunks_mut((ROWS * width).max(1)).enumerate().for_each(|(task, out)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    let mine = (task * ROWS + row) * chosen;
                    out.fill(0.0);
                    for i in mine..mine + chosen {
                        let y = &y[routing.places[i] as usize * width..][..width];
                        let gate = gates[i];
                        for c in 0..width {
                            out[c] += gate * y[c];
                        }
                    }
                }
            },
        );
    });
    tensor(out, [n, width])
}

/// Gradients of what the experts gave and of the scores.
fn backward(
    y: &FlexTensor,
    scores: &FlexTensor,
    routing: &Routing,
    grad: &FlexTensor,
) -> [FlexTensor; 2] {
    let ([places, width], [n, experts]) = (cpu::dims(y), cpu::dims(scores));
    let chosen = routing.chosen(n).max(1);
    let (y, scores, grad) = (cpu::values(y), cpu::values(scores), cpu::values(grad));
    let gates = gates_of(scores, [n, experts], routing);
    let mut gate_at = vec![0.0; places];
    routing.places.iter().zip(&gates).for_each(|(&p, &g)| gate_at[p as usize] = g);
    let (mut dy, mut dots) = (Buffer::any(places * width), vec![0.0f32; places]);
    let tasks = dy.par_chunks_mut((ROWS * width).max(1)).zip(dots.par_chunks_mut(ROWS));
    tasks.enumerate().for_each(|(task, (dy, dots))| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (i, (dy, dot)) in dy.chunks_exact_mut(width).zip(dots).enumerate() {
                    let place = task * ROWS + i;
                    let grad = &grad[routing.rows[place] as usize * width..][..width];
                    let gate = gate_at[place];
                    for c in 0..width {
                        dy[c] = gate * grad[c];
                    }
                    *dot = cpu::dot(grad, &y[place * width..][..width]);
                }
            },
        );
    });
    let mut ds = Buffer::any(n * experts);
    ds.fill(0.0);
    for (row, ds) in ds.chunks_exact_mut(experts).enumerate() {
        let mine = row * chosen..(row + 1) * chosen;
        let dot = |i: usize| dots[routing.places[i] as usize];
        let mean: f32 = mine.clone().map(|i| gates[i] * dot(i)).sum();
        if routing.among == Among::All {
            // Scores of the others count in every gate.
            ds.copy_from_slice(&scores[row * experts..][..experts]);
            normalise(ds);
            ds.iter_mut().for_each(|p| *p *= -mean);
        }
        for i in mine {
            ds[routing.experts[i] as usize] = gates[i] * (dot(i) - mean);
        }
    }
    [tensor(dy, [places, width]), tensor(ds, [n, experts])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_their_largest_scores_and_the_first_of_equal_ones() {
        let scores = [0.1, 0.9, 0.5, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1];
        let r = Routing::new(&scores, 3, 2, Among::Chosen);
        assert_eq!(r.experts[..], [1, 2, 0, 1, 0, 1]);
        assert_eq!(r.offsets[..], [0, 2, 5, 6]);
        assert_eq!(r.rows[..], [1, 2, 0, 1, 2, 0]);
        assert_eq!(r.places[..], [2, 5, 0, 3, 1, 4]);
        assert_eq!(r.load().collect::<Vec<_>>(), [2, 3, 1]);
        // What is no number is sent somewhere, and the guard is told elsewhere.
        assert_eq!(Routing::new(&[f32::NAN; 3], 3, 1, Among::All).rows.len(), 1);
    }

    #[test]
    fn gates_are_of_the_chosen_or_of_all() {
        let scores = [2.0, 2.0, 9.0, 2.0 + std::f32::consts::LN_2];
        let of = |chosen: &[u32], among| {
            let mut all = vec![7.0];
            gates(&scores, chosen, among, &mut all);
            all
        };
        let near = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
        };
        assert!(near(&of(&[0, 1, 3], Among::Chosen), &[7.0, 0.25, 0.25, 0.5]));
        let rest = 4.0 + 7f32.exp();
        assert!(near(&of(&[1, 2], Among::All), &[7.0, 1.0 / rest, 7f32.exp() / rest]));
    }

    #[test]
    #[should_panic(expected = "Routing: 4 of 3 experts")]
    fn more_than_there_are_cannot_be_chosen() {
        Routing::new(&[0.0; 3], 3, 4, Among::Chosen);
    }
}
