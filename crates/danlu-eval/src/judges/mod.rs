//! Judges of generated pictures and sounds: they tell which reference is nearest.

mod picture;
mod sound;

pub use picture::{PictureJudge, PictureWeights};
pub use sound::SoundJudge;

/// The `k` labels with the smallest distances, each once, the nearest first.
fn nearest<'a>(distances: impl Iterator<Item = (&'a String, f32)>, k: usize) -> Vec<(String, f32)> {
    let mut all: Vec<(&String, f32)> = distances.collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(b.0)));
    let mut found: Vec<(String, f32)> = Vec::new();
    for (label, distance) in all {
        if found.len() == k {
            break;
        }
        if !found.iter().any(|(other, _)| other == label) {
            found.push((label.clone(), distance));
        }
    }
    found
}

/// Squared Euclidean distance.
fn squared(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| (x - y) * (x - y)).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            let d = x[i] - y[i];
            sums[i] += d * d;
        }
    }
    tail + sums.iter().sum::<f32>()
}
