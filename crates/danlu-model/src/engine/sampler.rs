use super::Sampler;

/// The part of [`Sampler`] that the commands offer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0: always the likeliest.
    pub temperature: f32,
    /// Only the likeliest this many; 0: all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities sum to this; 1: all.
    pub top_p: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0 }
    }
}

impl Sampling {
    /// As a sampler with a seed.
    pub fn seeded(self, seed: u64) -> Sampler {
        let Self { temperature, top_k, top_p } = self;
        Sampler { temperature, top_k, top_p, seed, ..Sampler::default() }
    }
}
