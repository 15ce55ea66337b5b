//! A weight matrix in tiles of sixteen rows.
//!
//! | format | a tile holds, for each of its steps or blocks |
//! |---|---|
//! | F32, F16 | sixteen numbers a column |
//! | Q8_0 | 8 times 64 bytes, number + 128: four columns of each row; then the scales |
//! | Q4_0 | 4 times 64 bytes: columns 4v to 4v + 3 in the low halves, those 16 on in the high ones |
//! | Q4_K | as Q4_0, with the block's shares as scales, and the super-blocks' scales apart |
//!
//! Scales lie apart from the numbers, so that these stay on cache lines.

use super::WeightFormat;
use super::blocks::{self, BLOCK, Block, SUPER};
use super::memory::{Arena, Mapped, Region};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Rows of a tile.
pub(super) const TILE: usize = 16;

/// A matrix of weights `[rows, columns]`, ready for products.
#[derive(Debug)]
pub struct Weights {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    /// Numbers, tile by tile.
    pub(super) numbers: Region,
    /// Scales of blocks, tile by tile.
    pub(super) scales: Region,
    /// Scales of super-blocks, tile by tile.
    pub(super) supers: Region,
}

/// Bytes that a tile takes of each of the three regions.
pub(super) fn tile_bytes(format: WeightFormat, cols: usize) -> [usize; 3] {
    let blocks = cols.div_ceil(BLOCK);
    match format {
        WeightFormat::F32 => [cols * TILE * 4, 0, 0],
        WeightFormat::F16 => [cols * TILE * 2, 0, 0],
        WeightFormat::Q8_0 => [blocks * BLOCK * TILE, blocks * TILE * 2, 0],
        WeightFormat::Q4_0 => [blocks * BLOCK * TILE / 2, blocks * TILE * 2, 0],
        WeightFormat::Q4K => {
            [blocks * BLOCK * TILE / 2, blocks * TILE * 2, blocks.div_ceil(SUPER) * TILE * 4]
        }
    }
}

/// One tile, cut out of the regions.
pub(super) struct Tile<'a> {
    numbers: &'a mut [u8],
    scales: &'a mut [u8],
    supers: &'a mut [u8],
}

fn put(to: &mut [u8], at: usize, word: u16) {
    to[2 * at..2 * at + 2].copy_from_slice(&word.to_le_bytes());
}

fn get(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([from[2 * at], from[2 * at + 1]])
}

impl Weights {
    /// Quantises `values`, row-major `[rows, cols]`, into memory of `arena`.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn new(
        values: &[f32],
        [rows, cols]: [usize; 2],
        format: WeightFormat,
        arena: &Arena,
    ) -> Self {
        assert_eq!(values.len(), rows * cols, "weights: values of a [{rows}, {cols}] matrix");
        Self::fill([rows, cols], format, arena, |row, in_tile, tile| {
            let values = &values[row * cols..][..cols];
            match format {
                WeightFormat::F32 => {
                    for (k, v) in values.iter().enumerate() {
                        let at = 4 * (k * TILE + in_tile);
                        tile.numbers[at..at + 4].copy_from_slice(&v.to_le_bytes());
                    }
                }
                WeightFormat::F16 => {
                    for (k, &v) in values.iter().enumerate() {
                        put(tile.numbers, k * TILE + in_tile, f16::from_f32(v).to_bits());
                    }
                }
                _ => put_blocks(&blocks::quantise(values, format), format, in_tile, tile),
            }
        })
    }

    /// Takes rows of blocks as GGUF files hold them. `None` if the format has no blocks, the
    /// columns do not fill them, or the bytes are not as many as the shape needs.
    pub fn from_blocks(
        bytes: &[u8],
        [rows, cols]: [usize; 2],
        format: WeightFormat,
        arena: &Arena,
    ) -> Option<Self> {
        let row_bytes = blocks::row_bytes(cols, format)?;
        if bytes.len() != rows.checked_mul(row_bytes)? {
            return None;
        }
        Some(Self::fill([rows, cols], format, arena, |row, in_tile, tile| {
            let row = &bytes[row * row_bytes..][..row_bytes];
            put_blocks(&blocks::read(row, format), format, in_tile, tile);
        }))
    }

    /// The rows as GGUF files hold them; `None` as for [`from_blocks`](Self::from_blocks).
    pub fn to_blocks(&self) -> Option<Vec<u8>> {
        let row_bytes = blocks::row_bytes(self.cols, self.format)?;
        let mut out = Vec::with_capacity(self.rows * row_bytes);
        for row in 0..self.rows {
            blocks::write(&self.blocks_of(row), self.format, &mut out);
        }
        Some(out)
    }

    /// The three parts as they lie in memory, for [`mapped`](Self::mapped): numbers, scales of
    /// blocks, scales of super-blocks. Some formats leave the last ones empty.
    pub fn parts(&self) -> [&[u8]; 3] {
        [self.numbers.bytes(), self.scales.bytes(), self.supers.bytes()]
    }

    /// Takes a matrix whose [`parts`](Self::parts) begin at these bytes of a mapped file. `None` if
    /// one does not lie within the file or does not begin on a multiple of 64 bytes.
    pub fn mapped(
        file: &Mapped,
        [rows, cols]: [usize; 2],
        format: WeightFormat,
        starts: [usize; 3],
    ) -> Option<Self> {
        let sizes = Self::sizes([rows, cols], format)?;
        let part = |i: usize| file.region(if sizes[i] == 0 { 0 } else { starts[i] }, sizes[i]);
        Some(Self { format, rows, cols, numbers: part(0)?, scales: part(1)?, supers: part(2)? })
    }

    /// Bytes of each of the three parts of a matrix; `None` if there is no such size.
    pub fn sizes([rows, cols]: [usize; 2], format: WeightFormat) -> Option<[usize; 3]> {
        // So far below the limit that no product in here goes over.
        if rows > 1 << 31 || cols > 1 << 24 {
            return None;
        }
        Some(tile_bytes(format, cols).map(|bytes| bytes * rows.div_ceil(TILE)))
    }

    /// Every weight in single precision, row-major.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.write_to(&mut out);
        out
    }

    /// Writes every weight to `out`, in single precision, row-major.
    pub(crate) fn write_to(&self, out: &mut [f32]) {
        if self.cols > 0 {
            let rows = out.par_chunks_exact_mut(self.cols).enumerate();
            rows.for_each(|(row, out)| self.row(row, out));
        }
    }

    pub(super) fn fill(
        [rows, cols]: [usize; 2],
        format: WeightFormat,
        arena: &Arena,
        write: impl Fn(usize, usize, &mut Tile<'_>) + Sync,
    ) -> Self {
        let bytes = tile_bytes(format, cols);
        let tiles = rows.div_ceil(TILE);
        let [mut numbers, mut scales, mut supers] = bytes.map(|b| arena.take(b * tiles));
        // An empty region still has a (empty) part for every tile.
        fn parts(region: &mut Region, bytes: usize, tiles: usize) -> Vec<&mut [u8]> {
            let mut left = region.bytes_mut();
            let mut all = Vec::with_capacity(tiles);
            for _ in 0..tiles {
                let (part, rest) = left.split_at_mut(bytes);
                all.push(part);
                left = rest;
            }
            all
        }
        let cut = parts(&mut numbers, bytes[0], tiles)
            .into_par_iter()
            .zip(parts(&mut scales, bytes[1], tiles))
            .zip(parts(&mut supers, bytes[2], tiles));
        cut.enumerate().for_each(|(i, ((numbers, scales), supers))| {
            let mut tile = Tile { numbers, scales, supers };
            for in_tile in 0..TILE.min(rows - i * TILE) {
                write(i * TILE + in_tile, in_tile, &mut tile);
            }
        });
        Self { format, rows, cols, numbers, scales, supers }
    }

    /// The format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        [&self.numbers, &self.scales, &self.supers].iter().map(|r| r.bytes().len()).sum()
    }

    /// Writes row `row` to `out`, in single precision.
    ///
    /// # Panics
    /// If there is no such row or `out` has not one value for each column.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "weights: row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "weights: length of a row");
        let numbers = self.tile(&self.numbers, 0, row);
        let in_tile = row % TILE;
        match self.format {
            WeightFormat::F32 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = 4 * (k * TILE + in_tile);
                    let four = [numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]];
                    *out = f32::from_le_bytes(four);
                }
            }
            WeightFormat::F16 => {
                let halves: Vec<f16> = (0..self.cols)
                    .map(|k| f16::from_bits(get(numbers, k * TILE + in_tile)))
                    .collect();
                halves.convert_to_f32_slice(out);
            }
            _ => {
                for (out, block) in out.chunks_mut(BLOCK).zip(self.blocks_of(row)) {
                    out.copy_from_slice(&block.values(self.format)[..out.len()]);
                }
            }
        }
    }

    /// The tile of `row` in one of the regions.
    fn tile<'a>(&self, region: &'a Region, which: usize, row: usize) -> &'a [u8] {
        let len = tile_bytes(self.format, self.cols)[which];
        &region.bytes()[row / TILE * len..][..len]
    }

    fn blocks_of(&self, row: usize) -> Vec<Block> {
        let numbers = self.tile(&self.numbers, 0, row);
        let scales = self.tile(&self.scales, 1, row);
        let supers = self.tile(&self.supers, 2, row);
        let r = row % TILE;
        let one = |b: usize| {
            let mut block = Block::default();
            if self.format == WeightFormat::Q8_0 {
                let bytes = &numbers[b * BLOCK * TILE..];
                for (i, n) in block.numbers.iter_mut().enumerate() {
                    *n = (bytes[i / 4 * 64 + r * 4 + i % 4] ^ 0x80) as i8;
                }
            } else {
                let bytes = &numbers[b * BLOCK * TILE / 2..];
                for i in 0..16 {
                    let byte = bytes[i / 4 * 64 + r * 4 + i % 4];
                    block.numbers[i] = (byte & 15) as i8;
                    block.numbers[i + 16] = (byte >> 4) as i8;
                }
            }
            if self.format == WeightFormat::Q4K {
                let at = b * TILE * 2 + r;
                block.shares = [scales[at], scales[at + TILE]];
                block.scale = get(supers, b / SUPER * TILE * 2 + r);
                block.low = get(supers, b / SUPER * TILE * 2 + TILE + r);
            } else {
                block.scale = get(scales, b * TILE + r);
            }
            block
        };
        (0..self.cols.div_ceil(BLOCK)).map(one).collect()
    }
}

/// Writes the blocks of one row to its places in a tile.
pub(super) fn put_blocks(blocks: &[Block], format: WeightFormat, r: usize, tile: &mut Tile<'_>) {
    for (b, block) in blocks.iter().enumerate() {
        if format == WeightFormat::Q8_0 {
            let bytes = &mut tile.numbers[b * BLOCK * TILE..];
            for (i, &n) in block.numbers.iter().enumerate() {
                bytes[i / 4 * 64 + r * 4 + i % 4] = n as u8 ^ 0x80;
            }
        } else {
            let bytes = &mut tile.numbers[b * BLOCK * TILE / 2..];
            for i in 0..16 {
                let byte = block.numbers[i] as u8 | (block.numbers[i + 16] as u8) << 4;
                bytes[i / 4 * 64 + r * 4 + i % 4] = byte;
            }
        }
        if format == WeightFormat::Q4K {
            let at = b * TILE * 2 + r;
            tile.scales[at] = block.shares[0];
            tile.scales[at + TILE] = block.shares[1];
            put(tile.supers, b / SUPER * TILE * 2 + r, block.scale);
            put(tile.supers, b / SUPER * TILE * 2 + TILE + r, block.low);
        } else {
            put(tile.scales, b * TILE + r, block.scale);
        }
    }
}
