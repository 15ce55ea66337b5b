/// One conversation or text as token ids, ready to be packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Token ids, the closing [`Control::End`](crate::Control::End) included.
    pub ids: Vec<u32>,
    /// Loss weight of predicting each token of `ids` (0 for prompts; the first is never predicted).
    pub weights: Vec<f32>,
    /// Number of the task it came from, in the order of the recipe's mixture.
    pub task: u16,
}

/// What one training step eats: up to `rows * window` token positions, flat, documents one after the
/// other without filling, which would be computed for nothing and counted by routers.
///
/// Position `i` predicts `targets[i]` with weight `weights[i]`. Attention never leaves a document.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Input ids, `[n]`.
    pub ids: Vec<u32>,
    /// Id to predict at each position, `[n]`.
    pub targets: Vec<u32>,
    /// Loss weight of each position, `[n]`; 0 where nothing is learnt.
    pub weights: Vec<f32>,
    /// Task number of each position, `[n]`.
    pub tasks: Vec<u16>,
    /// Where documents start in the flat positions, ascending from 0, closed by `n`.
    pub starts: Vec<u32>,
    /// Tokens in the batch, `n`.
    pub tokens: usize,
    /// Index of the first sample that is not in this batch: where the next batch begins.
    pub next: u64,
}
