//! Judges that say what a picture shows or a sound says, by the nearest of a gallery. They share
//! nothing with the model or its tokenisers.

mod picture;
mod sound;

pub use picture::PictureJudge;
pub use sound::SoundJudge;

/// A label of the gallery and how far its nearest example is.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The label.
    pub label: String,
    /// The distance; only its order among others means something.
    pub distance: f32,
}

/// Labels of a gallery, numbered in the order in which they first appear.
#[derive(Debug, Default)]
struct Labels {
    names: Vec<String>,
    numbers: std::collections::HashMap<String, usize>,
}

impl Labels {
    fn number(&mut self, name: &str) -> usize {
        *self.numbers.entry(name.to_string()).or_insert_with(|| {
            self.names.push(name.to_string());
            self.names.len() - 1
        })
    }

    /// The labels by distance, those at an infinite distance left out.
    fn ranked(&self, distances: &[f32]) -> Vec<Ranked> {
        let finite = self.names.iter().zip(distances).filter(|(_, d)| d.is_finite());
        let mut ranked: Vec<Ranked> =
            finite.map(|(label, &distance)| Ranked { label: label.clone(), distance }).collect();
        ranked.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        ranked
    }
}
