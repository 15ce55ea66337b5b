//! Rows of activations on their way into a product: normalised, gated, quantised.

use super::WeightFormat;
use super::blocks::BLOCK;
use crate::cpu;
use crate::team::Team;
use std::sync::Mutex;

/// Work, in elements, below which one thread is as fast as several.
const SMALL: usize = 4096;
/// `1.5 * 2^23`: adding it rounds to a whole number, which then is in the low bits.
const ROUND: f32 = 12_582_912.0;

/// What a block of a quantised row needs besides its bytes.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Meta {
    pub(super) scale: f32,
    /// The sum of the block's whole numbers times -8 and times -128: what the offset of the weights
    /// adds to a product.
    pub(super) minus_8: i32,
    pub(super) minus_128: i32,
    /// The sum of what the block stands for.
    pub(super) sum: f32,
}

/// Rows of activations `[rows, columns]`, in single precision and, where the weights that they meet
/// are quantised, as signed bytes with a scale for 32 of them. The memory is used again.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    quantised: bool,
    values: Vec<f32>,
    bytes: Vec<i8>,
    meta: Vec<Meta>,
}

impl Activations {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.rows * self.cols]
    }

    pub(super) fn bytes(&self) -> Option<(&[i8], &[Meta])> {
        self.quantised.then_some((&self.bytes[..], &self.meta[..]))
    }

    /// Takes the rows of `x`, `[rows, cols]`, as they are, for weights of `format`.
    pub fn take(&mut self, team: &Team, x: &[f32], cols: usize, format: WeightFormat) {
        self.fill(team, x.len() / cols.max(1), cols, format, |r, out| {
            out.copy_from_slice(&x[r * cols..][..cols]);
        });
    }

    /// Takes the rows of `x` divided by their root mean square, times `gain`.
    pub fn norm(&mut self, team: &Team, x: &[f32], gain: &[f32], eps: f32, format: WeightFormat) {
        let cols = gain.len();
        self.fill(
            team,
            x.len() / cols.max(1),
            cols,
            format,
            #[inline(always)]
            |r, out| {
                let x = &x[r * cols..][..cols];
                let scale = 1.0 / (cpu::dot(x, x) / cols as f32 + eps).sqrt();
                for i in 0..cols {
                    out[i] = x[i] * scale * gain[i];
                }
            },
        );
    }

    /// Takes `silu(gate) * up` of rows that hold gate, then up.
    pub fn swiglu(&mut self, team: &Team, gate_up: &[f32], cols: usize, format: WeightFormat) {
        self.fill(
            team,
            gate_up.len() / (2 * cols).max(1),
            cols,
            format,
            #[inline(always)]
            |r, out| {
                let (gate, up) = gate_up[2 * r * cols..][..2 * cols].split_at(cols);
                for i in 0..cols {
                    out[i] = gate[i] * cpu::sigmoid(gate[i]) * up[i];
                }
            },
        );
    }

    /// Takes some rows of others, as those are.
    pub fn select(&mut self, from: &Self, rows: impl Iterator<Item = usize>) {
        let blocks = from.cols.div_ceil(BLOCK);
        (self.cols, self.quantised) = (from.cols, from.quantised);
        self.values.clear();
        self.bytes.clear();
        self.meta.clear();
        self.rows = 0;
        for row in rows {
            self.rows += 1;
            self.values.extend_from_slice(&from.values[row * self.cols..][..self.cols]);
            if self.quantised {
                let bytes = blocks * BLOCK;
                self.bytes.extend_from_slice(&from.bytes[row * bytes..][..bytes]);
                self.meta.extend_from_slice(&from.meta[row * blocks..][..blocks]);
            }
        }
    }

    fn fill(
        &mut self,
        team: &Team,
        rows: usize,
        cols: usize,
        format: WeightFormat,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let blocks = cols.div_ceil(BLOCK);
        (self.rows, self.cols, self.quantised) = (rows, cols, format.is_quantised());
        grow(&mut self.values, rows * cols);
        if self.quantised {
            grow(&mut self.bytes, rows * blocks * BLOCK);
            grow(&mut self.meta, rows * blocks);
        }
        let quantised = self.quantised;
        let one = |r: usize, values: &mut [f32], bytes: &mut [i8], meta: &mut [Meta]| {
            cpu::vectorised(
                #[inline(always)]
                || {
                    row(r, values);
                    if quantised {
                        quantise(values, bytes, meta);
                    }
                },
            );
        };
        let (mut bytes, mut meta) = (&mut self.bytes[..], &mut self.meta[..]);
        let mut tasks = Vec::with_capacity(rows);
        for (r, values) in self.values[..rows * cols].chunks_mut(cols.max(1)).enumerate() {
            let (b, m) = if quantised {
                let (b, rest_b) = std::mem::take(&mut bytes).split_at_mut(blocks * BLOCK);
                let (m, rest_m) = std::mem::take(&mut meta).split_at_mut(blocks);
                (bytes, meta) = (rest_b, rest_m);
                (b, m)
            } else {
                (&mut [][..], &mut [][..])
            };
            tasks.push((r, values, b, m));
        }
        if rows * cols <= SMALL {
            tasks.into_iter().for_each(|(r, v, b, m)| one(r, v, b, m));
            return;
        }
        let len = (SMALL / 2 / cols.max(1)).max(1);
        let tasks: Vec<_> = tasks.into_iter().map(|t| Mutex::new(Some(t))).collect();
        team.chunks(rows, len, |range| {
            for task in &tasks[range] {
                let task = task.lock().ok().and_then(|mut task| task.take());
                if let Some((r, v, b, m)) = task {
                    one(r, v, b, m);
                }
            }
        });
    }
}

/// Makes room for `len` values; what is there may be anything.
fn grow<T: Copy + Default>(v: &mut Vec<T>, len: usize) {
    if v.len() < len {
        v.resize(len, T::default());
    }
}

/// Quantises one row: each block of 32 by its largest magnitude to -127 to 127.
#[inline(always)]
fn quantise(x: &[f32], bytes: &mut [i8], meta: &mut [Meta]) {
    for ((b, meta), to) in meta.iter_mut().enumerate().zip(bytes.as_chunks_mut::<BLOCK>().0) {
        let from = &x[b * BLOCK..x.len().min((b + 1) * BLOCK)];
        let mut block = [0.0f32; BLOCK];
        block[..from.len()].copy_from_slice(from);
        let mut tops = [0.0f32; 16];
        for i in 0..16 {
            let (a, b) = (block[i].abs(), block[i + 16].abs());
            tops[i] = if a > b { a } else { b };
        }
        let mut step = 8;
        while step > 0 {
            for i in 0..step {
                let (a, b) = (tops[i], tops[i + step]);
                tops[i] = if a > b { a } else { b };
            }
            step /= 2;
        }
        let top = tops[0];
        let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
        let mut numbers = [0i32; BLOCK];
        for i in 0..BLOCK {
            numbers[i] = (block[i] * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        }
        let mut sum = 0;
        for i in 0..BLOCK {
            to[i] = numbers[i] as i8;
            sum += numbers[i];
        }
        let scale = top / 127.0;
        *meta = Meta { scale, minus_8: -8 * sum, minus_128: -128 * sum, sum: scale * sum as f32 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_rows_are_close_and_their_sums_exact() {
        let cols = 75;
        let x: Vec<f32> = (0..70 * cols).map(|i| ((i * 31 % 67) as f32 - 30.0) * 0.1).collect();
        let mut a = Activations::default();
        a.take(&Team::new(2), &x, cols, WeightFormat::Q8_0);
        assert_eq!((a.rows(), a.values()), (70, &x[..]));
        let (bytes, meta) = a.bytes().expect("quantised");
        for (i, &v) in x.iter().enumerate() {
            let (r, c) = (i / cols, i % cols);
            let m = meta[r * 3 + c / BLOCK];
            let got = m.scale * f32::from(bytes[r * 96 + c]);
            assert!((got - v).abs() <= 0.5001 * m.scale, "{i}: {v} became {got}");
        }
        for (b, m) in bytes.as_chunks::<BLOCK>().0.iter().zip(meta) {
            let sum: i32 = b.iter().map(|&b| i32::from(b)).sum();
            assert_eq!((m.minus_8, m.minus_128), (-8 * sum, -128 * sum));
        }
        a.take(&Team::new(2), &[0.0; 40], 40, WeightFormat::Q4_0);
        let (bytes, meta) = a.bytes().expect("quantised");
        assert!(bytes[..64].iter().all(|&b| b == 0) && meta[0].scale == 0.0);
    }

    #[test]
    fn norm_and_gate_compute_what_they_say() {
        let team = Team::new(2);
        let x = [3.0f32, -4.0, 0.5, 2.0, 1.0, 0.0];
        let mut a = Activations::default();
        a.norm(&team, &x, &[1.0, 2.0, 0.5], 1e-6, WeightFormat::F32);
        let rms = |x: &[f32]| (x.iter().map(|v| v * v).sum::<f32>() / 3.0 + 1e-6).sqrt();
        let want = [3.0, -8.0, 0.25].map(|v| v / rms(&x[..3]));
        for (a, b) in a.values().iter().zip(want) {
            assert!((a - b).abs() < 1e-6, "{a} against {b}");
        }
        a.swiglu(&team, &x, 3, WeightFormat::F32);
        let silu = |v: f32| v / (1.0 + (-v).exp());
        for (a, b) in a.values().iter().zip([silu(3.0) * 2.0, silu(-4.0), 0.0]) {
            assert!((a - b).abs() < 1e-6, "{a} against {b}");
        }
    }
}
