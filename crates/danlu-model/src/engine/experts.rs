//! A mixture of experts in a pass of the decoder: each expert takes the rows that it is sent together.

use super::decoder::{Projection, sized};
use crate::layers::Experts;
use danlu_ops::quant::{Activations, Arena, Into, WeightFormat};
use danlu_ops::{Among, Team};

/// The experts of a layer with weights in tiles.
#[derive(Debug)]
pub(super) struct Mixture {
    router: Projection,
    /// Gate-up and down of each.
    each: Vec<[Projection; 2]>,
    chosen: usize,
    among: Among,
    hidden: usize,
}

/// Memory that passes use again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    scores: Vec<f32>,
    /// For each expert its rows, and their gates.
    sent: Vec<Vec<(usize, f32)>>,
    inputs: Activations,
    gate_up: Vec<f32>,
    inner: Activations,
    out: Vec<f32>,
}

impl Mixture {
    pub(super) fn new(experts: &Experts, format: WeightFormat, arena: &Arena) -> Self {
        let each = experts.each.iter();
        let each: Vec<[Projection; 2]> = each
            .map(|m| [&m.gate_up, &m.down].map(|l| Projection::new(l, format, arena)))
            .collect();
        Self {
            // A few values, on which everything after them depends.
            router: Projection::of(&experts.router, WeightFormat::F32, arena),
            hidden: experts.each.first().map_or(0, |m| m.down.weight.shape[1]),
            each,
            chosen: experts.chosen,
            among: experts.among,
        }
    }

    /// The format that inputs are to be made ready for.
    pub(super) fn format(&self) -> WeightFormat {
        self.each[0][0].format()
    }

    /// All matrices.
    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        std::iter::once(&self.router).chain(self.each.iter().flatten())
    }

    /// Bytes of the matrices that a token does not go through.
    pub(super) fn idle_bytes(&self) -> usize {
        let one = |p: &[Projection; 2]| p.iter().map(Projection::bytes).sum::<usize>();
        self.each.iter().skip(self.chosen).map(one).sum()
    }

    /// Adds to each row of `stream` what its experts make of its row of `x`.
    pub(super) fn run(&self, team: &Team, x: &Activations, s: &mut Scratch, stream: &mut [f32]) {
        let (rows, experts) = (x.rows(), self.each.len());
        let width = stream.len() / rows.max(1);
        let scores = sized(&mut s.scores, rows * experts);
        self.router.run(team, x, scores, Into::Store);
        s.sent.resize(experts, Vec::new());
        s.sent.iter_mut().for_each(Vec::clear);
        let (mut chosen, mut gates) = (Vec::new(), Vec::new());
        for (row, scores) in scores.chunks_exact(experts).enumerate() {
            danlu_ops::choose(scores, self.chosen, &mut chosen);
            gates.clear();
            danlu_ops::gates(scores, &chosen, self.among, &mut gates);
            chosen.iter().zip(&gates).for_each(|(&e, &g)| s.sent[e as usize].push((row, g)));
        }
        for ([gate_up, down], sent) in self.each.iter().zip(&s.sent) {
            if sent.is_empty() {
                continue;
            }
            s.inputs.select(x, sent.iter().map(|(row, _)| *row));
            let inner = sized(&mut s.gate_up, sent.len() * 2 * self.hidden);
            gate_up.run(team, &s.inputs, inner, Into::Store);
            s.inner.swiglu(team, inner, self.hidden, down.format());
            let out = sized(&mut s.out, sent.len() * width);
            down.run(team, &s.inner, out, Into::Store);
            for ((row, gate), out) in sent.iter().zip(out.chunks_exact(width)) {
                let to = &mut stream[row * width..][..width];
                to.iter_mut().zip(out).for_each(|(t, o)| *t += gate * o);
            }
        }
    }
}
