//! Quantised weights and their products, for decoding.
//!
//! A matrix `[rows, columns]` is kept in tiles of sixteen rows, block of 32 columns by block: what
//! one vector instruction multiplies lies side by side, and one load of an activation serves
//! sixteen rows. Activations are quantised once to signed bytes, 32 to a scale, and shared by the
//! matrices that they meet. Whole numbers are summed exactly within a block, and blocks are added
//! in their order in one accumulator for each element: a result does not depend on the number of
//! threads, nor on how many rows are computed together.

mod blocks;
mod feedback;
mod isa;
mod low_rank;
mod memory;
mod product;
mod rows;
mod weights;

pub use feedback::Feedback;
pub(crate) use isa::{Isa, Kernel, dispatch};
pub use low_rank::{LowRank, add_low_rank};
pub use memory::{Arena, Mapped};
pub(crate) use product::each;
pub use product::{Into, bandwidth, product};
pub use rows::Activations;
pub use weights::Weights;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightFormat {
    /// Single precision.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// Signed bytes, 32 to a scale in half precision: 8.5 bits a weight.
    Q8_0,
    /// Four bits, 32 to a scale in half precision: 4.5 bits a weight.
    Q4_0,
    /// Four bits with scale and minimum of six bits for 32, and both their scales in half
    /// precision for 256: 4.5 bits a weight in files, 5.25 in memory at most.
    Q4K,
}

impl WeightFormat {
    /// Every format, with its name.
    pub const ALL: [(&'static str, Self); 5] = [
        ("f32", Self::F32),
        ("f16", Self::F16),
        ("q8_0", Self::Q8_0),
        ("q4_0", Self::Q4_0),
        ("q4_k", Self::Q4K),
    ];

    /// The format of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, format)| *format)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// The format of the embedding and the head beside projections in this one: eight bits where
    /// those have four, for quality depends on them most.
    pub fn of_tables(self) -> Self {
        match self {
            Self::Q4_0 | Self::Q4K => Self::Q8_0,
            other => other,
        }
    }

    /// Whether products with it take quantised activations.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0 | Self::Q4K)
    }
}

/// The instruction set is of the whole process: tests that change it, or hold bits against each
/// other, run one at a time.
#[cfg(test)]
pub(crate) static LEVEL: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests;
