//! How well the judges recognise what they should, on a pack:
//! `cargo run --release -p danlu-eval --example judges -- PACK [tune]`
//!
//! Pictures of held-out styles are looked up among those of the trained styles, and speech of
//! held-out voices among two trained voices of its language.
#![allow(clippy::print_stdout)]

use danlu_core::{Picture, Sound};
use danlu_data::{Pack, SoundKind, Split};
use danlu_eval::{PictureJudge, PictureWeights, SoundJudge};
use std::path::Path;
use std::time::Instant;

/// Sounds looked up per language.
const QUERIES: usize = 100;
/// Pictures looked up per half of the concepts.
const PICTURES: usize = 200;

/// References or queries with their labels.
type Labelled<T> = Vec<(String, T)>;

fn main() -> danlu_core::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "packs/sample".into());
    let tune = arguments.next().is_some_and(|a| a == "tune");
    let pack = Pack::open(Path::new(&folder))?;
    let concepts = pack.concepts().collect::<danlu_core::Result<Vec<_>>>()?;

    let (mut known, mut asked): (Labelled<Picture>, Labelled<Picture>) = (Vec::new(), Vec::new());
    for concept in &concepts {
        for item in &concept.pictures {
            let picture = danlu_media::decode_picture(&item.bytes, &item.file)?;
            let to = if item.split == Split::Train { &mut known } else { &mut asked };
            to.push((concept.id.clone(), picture));
        }
    }
    let halves: [Vec<&(String, Picture)>; 2] = [0, 1].map(|half| {
        let every = (asked.len() / 2 / PICTURES).max(1);
        asked.iter().skip(half).step_by(2).step_by(every).take(PICTURES).collect()
    });
    let pictures = |weights: PictureWeights, asked: &[&(String, Picture)]| {
        let gallery: Vec<(String, &Picture)> =
            known.iter().map(|(label, picture)| (label.clone(), picture)).collect();
        let judge = PictureJudge::weighted(&gallery, weights);
        let start = Instant::now();
        let found = asked.iter().map(|(label, picture)| place(label, &judge.rank(picture, 5)));
        let (one, five) = shares(&found.collect::<Vec<_>>());
        (one, five, 1000.0 * start.elapsed().as_secs_f64() / asked.len().max(1) as f64)
    };
    println!("pictures: {} known, {} asked", known.len(), asked.len());
    if tune {
        // A coarse search, one weight at a time, on half of the concepts.
        let mut best = PictureWeights::default();
        let (mut best_score, _, _) = pictures(best, &halves[0]);
        for weight in 0..4 {
            for factor in [0.3, 3.0] {
                let mut next = best;
                match weight {
                    0 => next.fine_colour *= factor,
                    1 => next.coarse_colour *= factor,
                    2 => next.fine_edges *= factor,
                    _ => next.coarse_edges *= factor,
                }
                let (score, five, _) = pictures(next, &halves[0]);
                println!("  {next:?}: {score:.3} {five:.3}");
                if score > best_score {
                    (best, best_score) = (next, score);
                }
            }
        }
        println!("best: {best:?}");
    }
    for (name, half) in [("tuned on", &halves[0]), ("held out", &halves[1])] {
        let (one, five, ms) = pictures(PictureWeights::default(), half);
        println!("  half {name}: top-1 {one:.3}, top-5 {five:.3}, {ms:.1} ms each");
    }

    for language in ["en", "zh"] {
        let (mut known, mut asked): (Labelled<Sound>, Labelled<Sound>) = (Vec::new(), Vec::new());
        for concept in &concepts {
            let speech = |split: bool| {
                let of = concept.sounds.iter();
                of.filter(move |s| {
                    s.kind == SoundKind::Speech
                        && s.language == language
                        && (s.split == Split::Train) == split
                })
            };
            for item in speech(true).take(2) {
                let sound = danlu_media::decode_sound(&item.bytes, &item.file)?;
                known.push((concept.id.clone(), sound));
            }
            for item in speech(false).take(1) {
                let sound = danlu_media::decode_sound(&item.bytes, &item.file)?;
                asked.push((concept.id.clone(), sound));
            }
        }
        let every = (asked.len() / QUERIES).max(1);
        let asked: Vec<_> = asked.into_iter().step_by(every).take(QUERIES).collect();
        let start = Instant::now();
        let gallery: Vec<(String, &Sound)> =
            known.iter().map(|(label, sound)| (label.clone(), sound)).collect();
        let judge = SoundJudge::new(&gallery);
        let built = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let found = asked.iter().map(|(label, sound)| place(label, &judge.rank(sound, 5)));
        let (one, five) = shares(&found.collect::<Vec<_>>());
        let ms = 1000.0 * start.elapsed().as_secs_f64() / asked.len().max(1) as f64;
        println!(
            "speech {language}: {} known (heard in {built:.1} s), {} asked: top-1 {one:.3}, \
             top-5 {five:.3}, {ms:.1} ms each",
            known.len(),
            asked.len()
        );
    }
    Ok(())
}

fn place(label: &str, found: &[(String, f32)]) -> Option<usize> {
    found.iter().position(|(other, _)| other == label)
}

fn shares(places: &[Option<usize>]) -> (f64, f64) {
    let n = places.len().max(1) as f64;
    let first = places.iter().filter(|p| **p == Some(0)).count();
    let any = places.iter().filter(|p| p.is_some()).count();
    (first as f64 / n, any as f64 / n)
}
