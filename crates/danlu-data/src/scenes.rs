//! Scenes: two to four pictures of the corpus side by side, with the box of each.

use crate::corpus::{Corpus, Held, PictureAsset, SIDE};
use crate::pack::Split;
use danlu_core::{AssetId, Picture, Rng};
use danlu_media as media;
use rayon::prelude::*;
use std::sync::Arc;

/// Seeds of scenes differ from the seeds of samples by this.
const SALT: u64 = 0x5CE2_E5CE;
/// A pixel with a channel under this is part of the object, the rest is its white background.
const INK: u8 = 245;
/// One test scene for so many train scenes.
const TEST_SHARE: usize = 10;
/// Smallest and largest side of an object's picture.
const SIZES: (usize, usize) = (20, 32);

/// Several things in one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// The composition.
    pub picture: AssetId,
    /// What is in it: two to four concepts with different names.
    pub objects: Vec<SceneObject>,
    /// `Train`, or `Test` if it is composed of pictures in held-out styles.
    pub split: Split,
}

/// One thing in a scene and the smallest box around it, its last column and row included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SceneObject {
    /// Index into the corpus's concepts.
    pub concept: u32,
    /// First column.
    pub x0: u8,
    /// First row.
    pub y0: u8,
    /// Last column.
    pub x1: u8,
    /// Last row.
    pub y1: u8,
}

/// Adds `count` scenes of training pictures, and a tenth as many of trained concepts in held-out
/// styles if the corpus has such pictures.
pub(crate) fn compose_all(corpus: &mut Corpus, count: usize, seed: u64) {
    let held = count.div_ceil(TEST_SHARE);
    for (split, reason, count) in
        [(Split::Train, None, count), (Split::Test, Some(Held::Style), held)]
    {
        let candidates = candidates(corpus, reason);
        if candidates.len() < 2 {
            continue;
        }
        let stream = |i: usize| Rng::new(seed ^ SALT, ((split as u64) << 32) | i as u64);
        let composed: Vec<_> = (0..count)
            .into_par_iter()
            .filter_map(|i| compose(corpus, &candidates, &mut stream(i)))
            .collect();
        for (picture, objects) in composed {
            let picture = corpus.add_picture(PictureAsset {
                picture: Arc::new(picture),
                concept: None,
                style: "scene".into(),
                split,
                held: reason,
            });
            corpus.scenes.push(Scene { picture, objects, split });
        }
    }
}

/// Trained concepts that have a name in English and in Chinese or only one of them, each with its
/// pictures that are held for `reason`.
fn candidates(corpus: &Corpus, reason: Option<Held>) -> Vec<(u32, Vec<AssetId>)> {
    let usable = |&id: &AssetId| corpus.picture(id).held == reason;
    let trained = corpus.concepts.iter().enumerate().filter(|(_, c)| c.split == Split::Train);
    trained
        .filter(|(_, c)| c.name("en").is_some())
        .map(|(i, c)| (i as u32, c.pictures.iter().copied().filter(usable).collect::<Vec<_>>()))
        .filter(|(_, pictures)| !pictures.is_empty())
        .collect()
}

/// Draws the objects, then places them. `None` if the dice found no room or blank pictures.
fn compose(
    corpus: &Corpus,
    candidates: &[(u32, Vec<AssetId>)],
    rng: &mut Rng,
) -> Option<(Picture, Vec<SceneObject>)> {
    let mut canvas = Picture::filled(SIDE, SIDE, background(rng));
    let mut squares: Vec<(usize, usize, usize)> = Vec::new();
    let mut objects: Vec<SceneObject> = Vec::new();
    let wanted = 2 + rng.below(3);
    for _ in 0..wanted * 8 {
        if objects.len() == wanted {
            break;
        }
        let (concept, pictures) = rng.pick(candidates);
        let entry = &corpus.concepts[*concept as usize];
        let same = |other: &SceneObject| {
            let other = &corpus.concepts[other.concept as usize];
            ["en", "zh"].iter().any(|l| entry.name(l).is_some() && entry.name(l) == other.name(l))
        };
        if objects.iter().any(|o| o.concept == *concept || same(o)) {
            continue;
        }
        let size = SIZES.0 + rng.below(SIZES.1 - SIZES.0 + 1);
        let small = media::fit(&corpus.picture(*rng.pick(pictures)).picture, size);
        let (Some(ink), Some((x, y))) = (ink_box(&small), room(&squares, size, rng)) else {
            continue;
        };
        paste(&mut canvas, &small, x, y);
        squares.push((x, y, size));
        let [x0, y0, x1, y1] = ink;
        objects.push(SceneObject {
            concept: *concept,
            x0: (x + x0) as u8,
            y0: (y + y0) as u8,
            x1: (x + x1) as u8,
            y1: (y + y1) as u8,
        });
    }
    (objects.len() >= 2).then_some((canvas, objects))
}

/// White half of the time, else a pale colour.
fn background(rng: &mut Rng) -> [u8; 3] {
    if rng.below(2) == 0 {
        return [255; 3];
    }
    std::array::from_fn(|_| 216 + rng.below(40) as u8)
}

/// A place for a square of `size` that overlaps none of `squares`.
fn room(squares: &[(usize, usize, usize)], size: usize, rng: &mut Rng) -> Option<(usize, usize)> {
    (0..40).find_map(|_| {
        let (x, y) = (rng.below(SIDE - size + 1), rng.below(SIDE - size + 1));
        let clear = |&(ox, oy, other): &(usize, usize, usize)| {
            x + size <= ox || ox + other <= x || y + size <= oy || oy + other <= y
        };
        squares.iter().all(clear).then_some((x, y))
    })
}

/// Multiplies `small` into `canvas`, so that its white takes the background's colour.
fn paste(canvas: &mut Picture, small: &Picture, x: usize, y: usize) {
    for row in 0..small.height {
        let from = row * small.width * 3;
        let to = ((y + row) * canvas.width + x) * 3;
        for i in 0..small.width * 3 {
            let below = canvas.rgb[to + i] as u32;
            canvas.rgb[to + i] = ((below * small.rgb[from + i] as u32 + 127) / 255) as u8;
        }
    }
}

/// First and last column and row with ink: `[x0, y0, x1, y1]`.
fn ink_box(picture: &Picture) -> Option<[usize; 4]> {
    let mut found: Option<[usize; 4]> = None;
    for y in 0..picture.height {
        for x in 0..picture.width {
            if picture.at(x, y).iter().any(|&c| c < INK) {
                let b = found.get_or_insert([x, y, x, y]);
                *b = [b[0].min(x), b[1], b[2].max(x), y];
            }
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tasks::tests::tiny_corpus;

    #[test]
    fn boxes_hold_all_the_ink_and_none_overlap() {
        let corpus = tiny_corpus();
        assert!(corpus.scenes.len() > 10);
        for scene in &corpus.scenes {
            let picture = &corpus.picture(scene.picture).picture;
            assert!((2..=4).contains(&scene.objects.len()));
            let inside = |o: &SceneObject, x: usize, y: usize| {
                (o.x0 as usize..=o.x1 as usize).contains(&x)
                    && (o.y0 as usize..=o.y1 as usize).contains(&y)
            };
            let counts: Vec<usize> = (0..SIDE * SIDE)
                .map(|i| scene.objects.iter().filter(|o| inside(o, i % SIDE, i / SIDE)).count())
                .collect();
            assert!(counts.iter().all(|&n| n <= 1), "boxes overlap");
            // Outside of every box there is the background, give or take what is paler than ink.
            let outside: Vec<_> = (0..SIDE * SIDE)
                .filter(|&i| counts[i] == 0)
                .map(|i| picture.at(i % SIDE, i / SIDE))
                .collect();
            for channel in 0..3 {
                let values = outside.iter().map(|c| c[channel]);
                let (low, high) = (values.clone().min().unwrap(), values.max().unwrap());
                assert!(high - low <= 255 - INK, "ink outside of the boxes: {low}..{high}");
            }
        }
    }

    #[test]
    fn train_scenes_have_train_pictures_and_the_seed_decides() {
        let corpus = tiny_corpus();
        let splits = |split| corpus.scenes.iter().filter(move |s| s.split == split).count();
        assert!(splits(Split::Train) > 0 && splits(Split::Test) > 0);
        let mut again = corpus.clone();
        again.scenes.clear();
        compose_all(&mut again, 20, 1);
        let mut other = corpus.clone();
        other.scenes.clear();
        compose_all(&mut other, 20, 2);
        let boxes = |c: &Corpus| c.scenes.iter().map(|s| s.objects.clone()).collect::<Vec<_>>();
        assert_eq!(boxes(&again), boxes(corpus));
        assert_ne!(boxes(&other), boxes(corpus));
        let reasons = [None, Some(Held::Style)].map(|r| candidates(corpus, r));
        for (reason, list) in [None, Some(Held::Style)].iter().zip(&reasons) {
            for (concept, pictures) in list {
                assert_eq!(corpus.concepts[*concept as usize].split, Split::Train);
                assert!(pictures.iter().all(|&p| corpus.picture(p).held == *reason));
            }
        }
    }
}
