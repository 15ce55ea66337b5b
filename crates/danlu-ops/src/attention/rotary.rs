//! Rotary positions.

use std::sync::OnceLock;

/// Cosines and sines of the rotary embedding (Su et al., arXiv 2104.09864), for pairs of elements
/// half a head apart as in Llama and Qwen.
#[derive(Debug)]
pub struct Rotary {
    /// Pairs that are turned; 0: none.
    pub(super) half: usize,
    positions: usize,
    /// Positions that turn each pair by one radian, `[half]`.
    scales: Box<[f64]>,
    /// What cosines and sines are multiplied by.
    amplitude: f32,
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
        let half = head_dim / 2;
        let scales = (0..half).map(|i| f64::from(theta).powf(i as f64 / half as f64)).collect();
        Self { half, positions, scales, amplitude: 1.0, tables }
    }

    /// The same with the frequency of each pair divided by one of `divisors`, `[head_dim / 2]`, and
    /// what is turned made longer by `amplitude`.
    ///
    /// # Panics
    /// If there is not one divisor for each pair.
    pub fn scaled(mut self, divisors: &[f64], amplitude: f32) -> Self {
        assert_eq!(divisors.len(), self.half, "rotary: a divisor for each pair of a head");
        self.scales.iter_mut().zip(divisors).for_each(|(scale, by)| *scale *= by);
        self.amplitude = amplitude;
        self
    }

    /// Number `index` of the tables.
    fn table(&self, index: usize) -> Box<[f32]> {
        let amplitude = f64::from(self.amplitude);
        let mut table = Vec::with_capacity(TURNS * 2 * self.half);
        for position in index * TURNS..(index + 1) * TURNS {
            let angles = self.scales.iter().map(|scale| position as f64 / scale);
            table.extend(angles.clone().map(|angle| (amplitude * angle.cos()) as f32));
            table.extend(angles.map(|angle| (amplitude * angle.sin()) as f32));
        }
        table.into()
    }

    /// Turns nothing, for models that learn their positions or have none.
    pub fn none(positions: usize) -> Self {
        Self { half: 0, positions, scales: Box::default(), amplitude: 1.0, tables: Vec::new() }
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
