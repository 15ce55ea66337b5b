//! Quantisation row by row into the blocks of GGUF files.
//!
//! The formats are those of llama.cpp's ggml (`block_q8_0`, `block_q4_0`, `block_q4_K`), so that
//! its files can be read and weights can be exchanged. A row that does not fill its last block is
//! padded with zeros.

use super::WeightFormat;
use half::f16;

/// Weights of a block.
pub(super) const BLOCK: usize = 32;
/// Blocks of a super-block of Q4_K.
pub(super) const SUPER: usize = 8;

/// The parts of one block of a row in any of the formats, as whole numbers and their scale.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// Signed for Q8_0, 0 to 15 for the others.
    pub(super) numbers: [i8; BLOCK],
    /// Scale in half precision: of the block, or with Q4_K of the super-block.
    pub(super) scale: u16,
    /// Q4_K: scale of the minima, in half precision.
    pub(super) low: u16,
    /// Q4_K: this block's share of both scales, 0 to 63.
    pub(super) shares: [u8; 2],
}

impl Default for Block {
    fn default() -> Self {
        Self { numbers: [0; BLOCK], scale: 0, low: 0, shares: [0; 2] }
    }
}

impl Block {
    /// The weights.
    pub(super) fn values(&self, format: WeightFormat) -> [f32; BLOCK] {
        let scale = f16::from_bits(self.scale).to_f32();
        match format {
            WeightFormat::Q4_0 => self.numbers.map(|n| scale * f32::from(n - 8)),
            WeightFormat::Q4K => {
                let [share, low] = self.shares.map(f32::from);
                let low = low * f16::from_bits(self.low).to_f32();
                self.numbers.map(|n| scale * share * f32::from(n) - low)
            }
            _ => self.numbers.map(|n| scale * f32::from(n)),
        }
    }
}

impl Block {
    /// The step and the offset of its weights: `step * number + offset`.
    pub(super) fn grid(&self, format: WeightFormat) -> [f32; 2] {
        let scale = f16::from_bits(self.scale).to_f32();
        match format {
            WeightFormat::Q4_0 => [scale, -8.0 * scale],
            WeightFormat::Q4K => {
                let [share, low] = self.shares.map(f32::from);
                [scale * share, -low * f16::from_bits(self.low).to_f32()]
            }
            _ => [scale, 0.0],
        }
    }
}

fn half(x: f32) -> (u16, f32) {
    let h = f16::from_f32(x);
    (h.to_bits(), h.to_f32())
}

fn over(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// Scale by the largest magnitude, to 127.
fn q8_0(x: &[f32; BLOCK]) -> Block {
    let top = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let (scale, exact) = half(top / 127.0);
    // The numbers fit the scale as it is stored.
    let inverse = over(exact);
    let numbers = x.map(|v| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8);
    Block { numbers, scale, ..Block::default() }
}

/// Scale by the value of largest magnitude, which becomes -8; then the scale that fits the numbers
/// best is searched around it.
fn q4_0(x: &[f32; BLOCK], matter: &[f32; BLOCK]) -> Block {
    let top = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let numbers = |scale: f32| {
        let inverse = over(scale);
        x.map(|v| ((v * inverse).round_ties_even().clamp(-8.0, 7.0) + 8.0) as i8)
    };
    let error = |scale: f32, numbers: &[i8; BLOCK]| -> f32 {
        let terms = x.iter().zip(numbers).zip(matter);
        terms.map(|((v, &n), m)| m * (v - scale * f32::from(n - 8)).powi(2)).sum()
    };
    // The scale that fits given numbers best.
    let fitted = |numbers: &[i8; BLOCK]| -> f32 {
        let (mut along, mut square) = (0.0, 0.0);
        for ((v, &n), m) in x.iter().zip(numbers).zip(matter) {
            let n = f32::from(n - 8);
            along += m * n * v;
            square += m * n * n;
        }
        along * over(square)
    };
    let mut best = (f32::INFINITY, Block::default());
    for step in -6..=6 {
        let first = top / (-8.0 + 0.25 * step as f32);
        for scale in [first, fitted(&numbers(first))] {
            let (scale, exact) = half(scale);
            let numbers = numbers(exact);
            let error = error(exact, &numbers);
            if error < best.0 {
                best = (error, Block { numbers, scale, ..Block::default() });
            }
        }
    }
    best.1
}

/// Scale and minimum of one block of Q4_K, both at least 0: `x` is about `scale * n - low`.
fn range(x: &[f32; BLOCK], matter: &[f32; BLOCK]) -> [f32; 2] {
    let least = x.iter().fold(0.0f32, |m, &v| m.min(v));
    let most = x.iter().fold(0.0f32, |m, &v| m.max(v));
    let number =
        |v: f32, scale: f32, low: f32| ((v + low) * over(scale)).round_ties_even().clamp(0.0, 15.0);
    let error = |scale: f32, low: f32| -> f32 {
        let terms = x.iter().zip(matter);
        terms.map(|(&v, m)| m * (v - (scale * number(v, scale, low) - low)).powi(2)).sum()
    };
    let mut best = (f32::INFINITY, [0.0, 0.0]);
    for step in 0..10 {
        // A somewhat narrower range clips the ends and is finer within.
        let narrow = 1.0 - 0.04 * step as f32;
        let (mut scale, mut low) = ((most - least) * narrow / 15.0, -least * narrow);
        // Then twice the line that fits the numbers best.
        for _ in 0..3 {
            let error = error(scale, low);
            if error < best.0 {
                best = (error, [scale, low]);
            }
            [scale, low] = line(x, matter, |v| number(v, scale, low));
        }
    }
    best.1
}

/// The line `scale * n - low` that fits the numbers of `x` best, with both at least 0.
fn line(x: &[f32; BLOCK], matter: &[f32; BLOCK], number: impl Fn(f32) -> f32) -> [f32; 2] {
    let (mut all, mut sum_n, mut sum_v, mut nn, mut nv) = (0.0f32, 0.0, 0.0, 0.0, 0.0);
    for (&v, &m) in x.iter().zip(matter) {
        let n = number(v);
        all += m;
        sum_n += m * n;
        sum_v += m * v;
        nn += m * n * n;
        nv += m * n * v;
    }
    let scale = (all * nv - sum_n * sum_v) * over(all * nn - sum_n * sum_n);
    let low = (scale * sum_n - sum_v) * over(all);
    if scale > 0.0 && low >= 0.0 { [scale, low] } else { [(nv * over(nn)).max(0.0), 0.0] }
}

/// A super-block: up to eight blocks share two scales in half precision.
fn q4_k(x: &[[f32; BLOCK]], matter: &[[f32; BLOCK]], out: &mut [Block]) {
    let mut ranges = [[0.0; 2]; SUPER];
    for ((range_of, x), matter) in ranges.iter_mut().zip(x).zip(matter) {
        *range_of = range(x, matter);
    }
    let top = |i: usize| ranges.iter().fold(0.0f32, |m, r| m.max(r[i])) / 63.0;
    let ((scale, exact_scale), (low, exact_low)) = (half(top(0)), half(top(1)));
    let share = |x: f32, unit: f32| (x * over(unit)).round_ties_even().clamp(0.0, 63.0) as u8;
    for ((out, x), r) in out.iter_mut().zip(x).zip(&ranges) {
        let shares = [share(r[0], exact_scale), share(r[1], exact_low)];
        let inverse = over(exact_scale * f32::from(shares[0]));
        let shift = exact_low * f32::from(shares[1]);
        let numbers = x.map(|v| ((v + shift) * inverse).round_ties_even().clamp(0.0, 15.0) as i8);
        *out = Block { numbers, scale, low, shares };
    }
}

/// Quantises one row, with all errors alike.
pub(super) fn quantise(row: &[f32], format: WeightFormat) -> Vec<Block> {
    quantise_for(row, &[], format)
}

/// Quantises one row, with scales for which the errors of each column, times how much the column
/// matters, are small; columns that `matter` says nothing of matter alike.
pub(super) fn quantise_for(row: &[f32], matter: &[f32], format: WeightFormat) -> Vec<Block> {
    let blocks = row.len().div_ceil(BLOCK);
    let padded = |values: &[f32], rest: f32| -> Vec<[f32; BLOCK]> {
        let mut out = vec![[rest; BLOCK]; blocks];
        for (block, part) in out.iter_mut().zip(values.chunks(BLOCK)) {
            block[..part.len()].copy_from_slice(part);
        }
        out
    };
    let (x, matter) = (padded(row, 0.0), padded(matter, 1.0));
    match format {
        WeightFormat::Q4_0 => x.iter().zip(&matter).map(|(x, m)| q4_0(x, m)).collect(),
        WeightFormat::Q4K => {
            let mut out = vec![Block::default(); blocks];
            let supers = x.chunks(SUPER).zip(matter.chunks(SUPER)).zip(out.chunks_mut(SUPER));
            supers.for_each(|((x, matter), out)| q4_k(x, matter, out));
            out
        }
        _ => x.iter().map(q8_0).collect(),
    }
}

/// Bytes of a row of `cols` weights in a file, if the format is one of blocks and they divide it.
pub(super) fn row_bytes(cols: usize, format: WeightFormat) -> Option<usize> {
    let (weights, bytes) = match format {
        WeightFormat::Q8_0 => (BLOCK, 34),
        WeightFormat::Q4_0 => (BLOCK, 18),
        WeightFormat::Q4K => (BLOCK * SUPER, 144),
        WeightFormat::F32 | WeightFormat::F16 => return None,
    };
    cols.is_multiple_of(weights).then(|| cols / weights * bytes)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads one row as a file holds it.
pub(super) fn read(bytes: &[u8], format: WeightFormat) -> Vec<Block> {
    let nibbles = |qs: &[u8], numbers: &mut [i8; BLOCK]| {
        for (i, &b) in qs.iter().enumerate() {
            numbers[i] = (b & 15) as i8;
            numbers[i + 16] = (b >> 4) as i8;
        }
    };
    match format {
        WeightFormat::Q4_0 => bytes
            .chunks_exact(18)
            .map(|b| {
                let mut block = Block { scale: word(b, 0), ..Block::default() };
                nibbles(&b[2..], &mut block.numbers);
                block
            })
            .collect(),
        WeightFormat::Q4K => bytes
            .chunks_exact(144)
            .flat_map(|b| {
                let (scale, low) = (word(b, 0), word(b, 2));
                let (packed, qs) = (&b[4..16], &b[16..]);
                (0..SUPER).map(move |i| {
                    let shares = if i < 4 {
                        [packed[i] & 63, packed[i + 4] & 63]
                    } else {
                        [
                            packed[i + 4] & 15 | packed[i - 4] >> 6 << 4,
                            packed[i + 4] >> 4 | packed[i] >> 6 << 4,
                        ]
                    };
                    let mut numbers = [0; BLOCK];
                    for (n, &q) in numbers.iter_mut().zip(&qs[i / 2 * BLOCK..]) {
                        *n = (if i % 2 == 0 { q & 15 } else { q >> 4 }) as i8;
                    }
                    Block { numbers, scale, low, shares }
                })
            })
            .collect(),
        _ => bytes
            .chunks_exact(34)
            .map(|b| {
                let mut block = Block { scale: word(b, 0), ..Block::default() };
                for (n, &q) in block.numbers.iter_mut().zip(&b[2..]) {
                    *n = q as i8;
                }
                block
            })
            .collect(),
    }
}

/// Writes one row as a file holds it. Its blocks must fill the format's super-blocks.
pub(super) fn write(blocks: &[Block], format: WeightFormat, out: &mut Vec<u8>) {
    match format {
        WeightFormat::Q4_0 => {
            for b in blocks {
                out.extend(b.scale.to_le_bytes());
                out.extend((0..16).map(|i| b.numbers[i] as u8 | (b.numbers[i + 16] as u8) << 4));
            }
        }
        WeightFormat::Q4K => {
            for group in blocks.chunks_exact(SUPER) {
                out.extend(group[0].scale.to_le_bytes());
                out.extend(group[0].low.to_le_bytes());
                let share = |i: usize, which: usize| group[i].shares[which];
                out.extend((0..4).map(|i| share(i, 0) | share(i + 4, 0) >> 4 << 6));
                out.extend((0..4).map(|i| share(i, 1) | share(i + 4, 1) >> 4 << 6));
                out.extend((4..8).map(|i| share(i, 0) & 15 | (share(i, 1) & 15) << 4));
                for pair in group.as_chunks::<2>().0 {
                    let [low, high] = pair;
                    out.extend(
                        low.numbers
                            .iter()
                            .zip(&high.numbers)
                            .map(|(&l, &h)| l as u8 | (h as u8) << 4),
                    );
                }
            }
        }
        _ => {
            for b in blocks {
                out.extend(b.scale.to_le_bytes());
                out.extend(b.numbers.map(|n| n as u8));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 - 47.0) * 0.013 + (i % 7) as f32 * 0.001).collect()
    }

    #[test]
    fn the_error_is_within_half_a_step() {
        let x = row(256 + 7);
        let top = 0.8;
        for (format, step) in [
            (WeightFormat::Q8_0, top / 127.0),
            (WeightFormat::Q4_0, top / 6.0),
            (WeightFormat::Q4K, 2.0 * top / 12.0),
        ] {
            let got: Vec<f32> =
                quantise(&x, format).iter().flat_map(|b| b.values(format)).collect();
            for (i, (a, b)) in x.iter().zip(&got).enumerate() {
                assert!((a - b).abs() < 0.6 * step, "{format:?} {i}: {a} became {b}");
            }
        }
    }

    #[test]
    fn files_come_back_and_constants_are_exact() {
        for format in [WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4K] {
            let blocks = quantise(&row(512), format);
            let mut bytes = Vec::new();
            write(&blocks, format, &mut bytes);
            assert_eq!(bytes.len(), row_bytes(512, format).expect("whole blocks"));
            let back = read(&bytes, format);
            for (a, b) in blocks.iter().zip(&back) {
                assert_eq!(a.values(format), b.values(format), "{format:?}");
            }
            let zeros = quantise(&[0.0; 256], format);
            assert!(zeros.iter().all(|b| b.values(format) == [0.0; BLOCK]), "{format:?}");
        }
        assert_eq!(row_bytes(576, WeightFormat::Q4K), None);
        assert_eq!(row_bytes(576, WeightFormat::Q8_0), Some(18 * 34));
    }

    /// A block written by hand from the layout of ggml's `block_q4_K`.
    #[test]
    fn shares_of_a_super_block_are_found_in_their_bits() {
        let mut bytes = vec![0u8; 144];
        bytes[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        bytes[2..4].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        // Block 5: scale 0b10_1101, minimum 0b01_0011.
        bytes[4 + 1] = 0b1000_0000;
        bytes[4 + 5] = 0b0100_0000;
        bytes[4 + 9] = 0b0011_1101;
        // Its first number, 9, is in the high half of byte 0 of the third group of 32.
        bytes[16 + 64] = 0x90;
        let block = read(&bytes, WeightFormat::Q4K)[5];
        assert_eq!(block.shares, [0b10_1101, 0b01_0011]);
        assert_eq!(block.values(WeightFormat::Q4K)[0], 0.5 * 45.0 * 9.0 - 2.0 * 19.0);
    }
}
