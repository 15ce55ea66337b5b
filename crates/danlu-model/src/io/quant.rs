//! Block formats of GGUF tensors: how each packs numbers, and back to `f32`. The layouts are those
//! of the GGUF specification; the goldens in `golden/quant.gguf` hold them against the `gguf`
//! package. Knows nothing of files.

use half::{bf16, f16};
use rayon::prelude::*;

/// How a tensor's values are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of IEEE 754.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// 32 values: a scale and 8-bit integers.
    Q8_0,
    /// 32 values: a scale and 4-bit integers around 8.
    Q4_0,
    /// 32 values: a scale, a minimum and 4-bit integers.
    Q4_1,
    /// 32 values: a scale and 5-bit integers around 16.
    Q5_0,
    /// 32 values: a scale, a minimum and 5-bit integers.
    Q5_1,
    /// 256 values in 8 groups with 6-bit scales and minima, and 4-bit integers.
    Q4K,
    /// The same with 5-bit integers.
    Q5K,
    /// 256 values in 16 groups with 8-bit scales, and 6-bit integers around 32.
    Q6K,
}

impl Packing {
    /// Every packing, with its number in GGUF files, its name, values a block and bytes a block.
    pub const ALL: [(Packing, u32, &'static str, usize, usize); 11] = [
        (Packing::F32, 0, "F32", 1, 4),
        (Packing::F16, 1, "F16", 1, 2),
        (Packing::Q4_0, 2, "Q4_0", 32, 18),
        (Packing::Q4_1, 3, "Q4_1", 32, 20),
        (Packing::Q5_0, 6, "Q5_0", 32, 22),
        (Packing::Q5_1, 7, "Q5_1", 32, 24),
        (Packing::Q8_0, 8, "Q8_0", 32, 34),
        (Packing::Q4K, 12, "Q4_K", 256, 144),
        (Packing::Q5K, 13, "Q5_K", 256, 176),
        (Packing::Q6K, 14, "Q6_K", 256, 210),
        (Packing::Bf16, 30, "BF16", 1, 2),
    ];

    fn row(self) -> (Packing, u32, &'static str, usize, usize) {
        *Self::ALL.iter().find(|r| r.0 == self).expect("every packing is listed")
    }

    /// The packing of a number in GGUF files.
    pub fn of_code(code: u32) -> Option<Self> {
        Self::ALL.iter().find(|r| r.1 == code).map(|r| r.0)
    }

    /// Its number in GGUF files.
    pub fn code(self) -> u32 {
        self.row().1
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values in a block.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of `n` values, a multiple of the block.
    pub fn bytes(self, n: usize) -> usize {
        n / self.block() * self.row().4
    }

    /// The values of whole blocks, on all threads.
    ///
    /// # Panics
    /// If `bytes` is not whole blocks.
    pub fn unpack(self, bytes: &[u8]) -> Vec<f32> {
        let (_, _, name, values, size) = self.row();
        assert!(bytes.len().is_multiple_of(size), "{name}: {} bytes", bytes.len());
        let mut out = vec![0.0; bytes.len() / size * values];
        let blocks = (1 << 14) / values;
        out.par_chunks_mut(blocks * values).zip(bytes.par_chunks(blocks * size)).for_each(
            |(out, bytes)| {
                for (out, b) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(size)) {
                    self.unpack_block(b, out);
                }
            },
        );
        out
    }

    fn unpack_block(self, b: &[u8], out: &mut [f32]) {
        match self {
            Packing::F32 => out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Packing::F16 => out[0] = half_at(b, 0),
            Packing::Bf16 => out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Packing::Q8_0 => {
                let d = half_at(b, 0);
                for (o, &q) in out.iter_mut().zip(&b[2..]) {
                    *o = d * f32::from(q as i8);
                }
            }
            Packing::Q4_0 => {
                let d = half_at(b, 0);
                for (i, &q) in b[2..].iter().enumerate() {
                    out[i] = d * (f32::from(q & 15) - 8.0);
                    out[i + 16] = d * (f32::from(q >> 4) - 8.0);
                }
            }
            Packing::Q4_1 => {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                for (i, &q) in b[4..].iter().enumerate() {
                    out[i] = d * f32::from(q & 15) + m;
                    out[i + 16] = d * f32::from(q >> 4) + m;
                }
            }
            Packing::Q5_0 => {
                let (d, high) = (half_at(b, 0), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
                for (i, o) in out.iter_mut().enumerate() {
                    *o = d * (f32::from(five(high, &b[6..], i)) - 16.0);
                }
            }
            Packing::Q5_1 => {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
                for (i, o) in out.iter_mut().enumerate() {
                    *o = d * f32::from(five(high, &b[8..], i)) + m;
                }
            }
            Packing::Q4K | Packing::Q5K => {
                let (d, least) = (half_at(b, 0), half_at(b, 2));
                let (scales, q) = b[4..].split_at(12);
                // With five bits the highest of all come first, a bit of each byte for a group.
                let (high, q) = q.split_at(if self == Packing::Q5K { 32 } else { 0 });
                for (j, out) in out.chunks_exact_mut(32).enumerate() {
                    let (scale, min) = scale_and_min(scales, j);
                    let (scale, min) = (d * f32::from(scale), least * f32::from(min));
                    let shift = 4 * (j % 2);
                    for (i, (o, &q)) in out.iter_mut().zip(&q[32 * (j / 2)..]).enumerate() {
                        let fifth = high.get(i).map_or(0, |h| (h >> j & 1) << 4);
                        *o = scale * f32::from((q >> shift) & 15 | fifth) - min;
                    }
                }
            }
            Packing::Q6K => {
                let (low, rest) = b.split_at(128);
                let (high, rest) = rest.split_at(64);
                let (scales, d) = rest.split_at(16);
                let d = half_at(d, 0);
                for (i, o) in out.iter_mut().enumerate() {
                    // Two halves of 128 values; in each, four groups of 32 share bytes of `high`.
                    let (half, group, lane) = (i / 128, i % 128 / 32, i % 32);
                    let low = low[64 * half + 32 * (group % 2) + lane] >> (4 * (group / 2)) & 15;
                    let high = high[32 * half + lane] >> (2 * group) & 3;
                    let scale = d * f32::from(scales[i / 16] as i8);
                    *o = scale * (f32::from(low | high << 4) - 32.0);
                }
            }
        }
    }

    /// Packs values; the formats with five bits or groups of groups are read only.
    ///
    /// # Panics
    /// If the number of values is not whole blocks, or the packing is read only.
    pub fn pack(self, values: &[f32]) -> Vec<u8> {
        let (_, _, name, block, size) = self.row();
        assert!(values.len().is_multiple_of(block), "{name}: {} values", values.len());
        let mut out = vec![0; self.bytes(values.len())];
        let blocks = (1 << 14) / block;
        out.par_chunks_mut(blocks * size).zip(values.par_chunks(blocks * block)).for_each(
            |(out, values)| match self {
                Packing::F32 => each(values, out, f32::to_le_bytes),
                Packing::F16 => each(values, out, |v| f16::from_f32(v).to_le_bytes()),
                Packing::Bf16 => each(values, out, |v| bf16::from_f32(v).to_le_bytes()),
                _ => {
                    for (out, v) in out.chunks_exact_mut(size).zip(values.chunks_exact(block)) {
                        self.pack_block(v, out);
                    }
                }
            },
        );
        out
    }

    fn pack_block(self, v: &[f32], out: &mut [u8]) {
        match self {
            Packing::Q8_0 => {
                let d = v.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                for (o, v) in out[2..].iter_mut().zip(v) {
                    *o = (v * inverse).round() as i8 as u8;
                }
            }
            Packing::Q4_0 => {
                // The value of the largest size gets the integer -8.
                let largest = v.iter().fold(0.0f32, |a, &v| if v.abs() > a.abs() { v } else { a });
                let d = largest / -8.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                let four = |v: f32| (v * inverse + 8.5).clamp(0.0, 15.0) as u8;
                for (i, o) in out[2..].iter_mut().enumerate() {
                    *o = four(v[i]) | four(v[i + 16]) << 4;
                }
            }
            Packing::Q4_1 => {
                // The least value gets the integer 0, the greatest 15.
                let least = v.iter().fold(f32::INFINITY, |a, &v| a.min(v));
                let d = (v.iter().fold(f32::NEG_INFINITY, |a, &v| a.max(v)) - least) / 15.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                out[2..4].copy_from_slice(&f16::from_f32(least).to_le_bytes());
                let four = |v: f32| ((v - least) * inverse + 0.5).clamp(0.0, 15.0) as u8;
                for (i, o) in out[4..].iter_mut().enumerate() {
                    *o = four(v[i]) | four(v[i + 16]) << 4;
                }
            }
            Packing::Q5_0 | Packing::Q5_1 | Packing::Q4K | Packing::Q5K | Packing::Q6K => {
                panic!("{} is read, not written", self.name())
            }
            Packing::F32 | Packing::F16 | Packing::Bf16 => {
                unreachable!("{} has no blocks", self.name())
            }
        }
    }
}

/// Packs values one by one in a loop of its own, which is no more than a copy where bytes lie alike.
fn each<const N: usize>(values: &[f32], out: &mut [u8], of: impl Fn(f32) -> [u8; N]) {
    for (out, &v) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *out = of(v);
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The `i`-th of 32 integers of five bits: the highest are in `high`, of the others two in a byte.
fn five(high: u32, low: &[u8], i: usize) -> u8 {
    low[i % 16] >> (4 * (i / 16)) & 15 | ((high >> i & 1) as u8) << 4
}

/// The `j`-th of eight 6-bit scales and minima in twelve bytes: the first four pairs lie in the low
/// bits of bytes 0 to 7; of the others the low bits are in bytes 8 to 11, the high bits above those
/// of the first four.
fn scale_and_min(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Gguf;
    use std::path::PathBuf;

    fn golden() -> Gguf {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/quant.gguf");
        Gguf::open(&path).expect("opens")
    }

    #[test]
    fn every_packing_unpacks_as_the_gguf_package_does() {
        let file = golden();
        for (packing, _, name, ..) in Packing::ALL {
            let got = file.read(name).expect("reads");
            let want = file.read(&format!("{name}.values")).expect("reads");
            assert_eq!(file.info(name).expect("there").packing, packing);
            assert_eq!(got.shape, want.shape, "{name}");
            for (i, (g, w)) in got.values.iter().zip(&want.values).enumerate() {
                // One rounding more or less, where the order of products differs.
                assert!((g - w).abs() <= 1e-6 * w.abs().max(1e-3), "{name}[{i}]: {g}, gguf {w}");
            }
        }
    }

    #[test]
    fn what_is_written_is_what_the_gguf_package_writes() {
        let file = golden();
        let source = file.read("source").expect("reads");
        use Packing::{Bf16, F16, F32, Q4_0, Q4_1, Q8_0};
        for packing in [F32, F16, Bf16, Q8_0, Q4_0, Q4_1] {
            let want = file.bytes(packing.name()).expect("reads");
            assert_eq!(packing.pack(&source.values), want, "{}", packing.name());
        }
    }

    #[test]
    fn blocks_with_minima_are_written_as_they_were_read() {
        let file = golden();
        let bytes = file.bytes("Q4_1").expect("reads");
        let again = Packing::Q4_1.pack(&Packing::Q4_1.unpack(&bytes));
        let other = bytes.chunks(20).zip(again.chunks(20)).filter(|(a, b)| a != b).count();
        assert_eq!(other, 0);
    }

    #[test]
    fn zeros_stay_zeros() {
        for packing in [Packing::Q8_0, Packing::Q4_0, Packing::Q4_1] {
            let back = packing.unpack(&packing.pack(&[0.0; 64]));
            assert_eq!(back, [0.0; 64], "{}", packing.name());
        }
    }
}
