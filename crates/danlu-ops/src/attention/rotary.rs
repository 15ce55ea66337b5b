//! Rotary positions.

use std::sync::OnceLock;

/// Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864), for pairs of elements
/// half a head apart as in Llama and Qwen.
#[derive(Debug)]
pub struct Rotary {
    /// Pairs that are turned; 0: none.
    pub(super) half: usize,
    positions: usize,
    theta: f32,
    /// Cosines and sines `[TURNS, 2, half]` of as many positions, each made when it is first asked
    /// for: few documents are as long as the context.
    tables: Vec<OnceLock<Box<[f32]>>>,
}

/// Positions of a table of [`Rotary`].
const TURNS: usize = 128;

impl Rotary {
    /// Tables for heads of `head_dim` elements and positions `0..positions`.
    pub fn new(head_dim: usize, positions: usize, theta: f32) -> Self {
        let tables = (0..positions.div_ceil(TURNS)).map(|_| OnceLock::new()).collect();
        Self { half: head_dim / 2, positions, theta, tables }
    }

    /// Number `index` of the tables.
    fn table(&self, index: usize) -> Box<[f32]> {
        let half = self.half;
        let scales: Vec<f64> =
            (0..half).map(|i| f64::from(self.theta).powf(i as f64 / half as f64)).collect();
        let mut table = Vec::with_capacity(TURNS * 2 * half);
        for position in index * TURNS..(index + 1) * TURNS {
            let angles = scales.iter().map(|scale| position as f64 / scale);
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        table.into()
    }

    /// Turns nothing, for models that learn their positions or have none.
    pub fn none(positions: usize) -> Self {
        Self { half: 0, positions, theta: 1.0, tables: Vec::new() }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }

    #[inline(always)]
    pub(crate) fn turn(&self, position: usize, x: &mut [f32]) {
        let (cos, sin) = self.at(position);
        let (a, b) = x.split_at_mut(self.half);
        for i in 0..self.half {
            (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
        }
    }

    #[inline(always)]
    pub(super) fn turn_back(&self, position: usize, x: &mut [f32]) {
        let (cos, sin) = self.at(position);
        let (a, b) = x.split_at_mut(self.half);
        for i in 0..self.half {
            (a[i], b[i]) = (a[i] * cos[i] + b[i] * sin[i], b[i] * cos[i] - a[i] * sin[i]);
        }
    }

    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        if self.half == 0 {
            return (&[], &[]);
        }
        debug_assert!(position < self.positions, "position {position} of {}", self.positions);
        let index = position / TURNS;
        let table = self.tables[index].get_or_init(|| self.table(index));
        table[position % TURNS * 2 * self.half..][..2 * self.half].split_at(self.half)
    }
}
