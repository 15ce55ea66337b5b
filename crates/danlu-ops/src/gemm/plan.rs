//! The blocking of a product: how it is cut into packing jobs and tiles.

use super::kernels::Kernel;

/// The most steps that are summed in registers before the sum is added to the result. Panels of so
/// many steps come from the second-level cache, which is fast enough; fewer steps would go through the
/// result more often.
pub(super) const KC: usize = 512;
/// The floats of a packed operand that are held at a time: few enough to stay in the last-level cache.
const CHUNK: usize = 1 << 20;
/// Below so many columns packing the left operand costs more than it saves.
const DIRECT_COLS: usize = 128;

/// How the tiles read the left operand.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum LeftMode {
    /// From where it lies.
    Direct,
    /// Packed by each tile for itself.
    Block,
    /// Packed once for all tiles, like the right operand.
    Shared,
}

/// How a product is cut up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Steps per block.
    pub kc: usize,
    /// Blocks of `kc` steps that are packed at a time.
    pub blocks: usize,
    /// How many such groups of blocks there are.
    pub chunks: usize,
    pub tile_rows: usize,
    pub tile_cols: usize,
    /// How many tiles lie side by side.
    pub across: usize,
    pub tiles: usize,
    pub left: LeftMode,
    /// Whether each tile packs the right panels for itself, one at a time just before their use.
    /// Where one tile has all the rows, no other needs them, and the panel stays in the first-level
    /// cache.
    pub right_local: bool,
}

/// Steps per block for `k` steps in all. It depends on nothing else: the order of every
/// element's sum follows from it.
pub(super) fn block_depth(k: usize) -> usize {
    k.div_ceil(k.div_ceil(KC)).next_multiple_of(4)
}

/// Cuts `len` into even parts of at most `most`, each a multiple of `unit`.
fn even(len: usize, most: usize, unit: usize) -> usize {
    len.div_ceil(len.div_ceil(most)).next_multiple_of(unit)
}

impl Plan {
    /// `packed` says that the right operand is packed already.
    pub fn new(kernel: &Kernel, [m, k, n]: [usize; 3], threads: usize, packed: bool) -> Self {
        let kc = block_depth(k);
        let all = k.div_ceil(kc);
        let wide = n.next_multiple_of(kernel.nr);
        let mut tile_rows = even(m, kernel.mc, kernel.mr);
        let mut tile_cols = even(n, 2048, kernel.nr);
        // Enough tiles that a thread slowed by other work leaves the rest to the others.
        let want = if threads > 1 { 6 * threads } else { 1 };
        // A tile reads its share of the left operand for few or many columns alike.
        let least = if tile_rows >= m { 128.max(kernel.nr) } else { kernel.nr };
        let count = |r: usize, c: usize| m.div_ceil(r) * n.div_ceil(c);
        while count(tile_rows, tile_cols) < want {
            if tile_cols >= 2 * tile_rows && tile_cols > 2 * least
                || tile_rows <= 4 * kernel.mr && tile_cols > least
            {
                tile_cols = even(n, tile_cols / 2, kernel.nr);
            } else if tile_rows > 4 * kernel.mr {
                tile_rows = even(m, tile_rows / 2, kernel.mr);
            } else {
                break;
            }
        }
        let across = n.div_ceil(tile_cols);
        let right_local = !packed && tile_rows >= m;
        let most = |lines: usize| (CHUNK / (kc * lines)).clamp(1, all);
        let blocks = if packed {
            all
        } else if right_local {
            most(tile_rows)
        } else {
            most(wide)
        };
        let left = if n <= DIRECT_COLS {
            LeftMode::Direct
        } else if across > 1 && tile_cols < 1024 && m * kc * blocks <= CHUNK {
            LeftMode::Shared
        } else {
            LeftMode::Block
        };
        Plan {
            kc,
            blocks,
            chunks: all.div_ceil(blocks),
            tile_rows,
            tile_cols,
            across,
            tiles: across * m.div_ceil(tile_rows),
            left,
            right_local,
        }
    }
}
