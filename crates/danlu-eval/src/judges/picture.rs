use super::{nearest, squared};
use danlu_core::Picture;
use rayon::prelude::*;

const SIDE: usize = 64;
/// Directions of edges that are told apart.
const TURNS: usize = 9;
/// Edges fainter than this, summed over a block, count for less: they may be noise.
const FAINT: f32 = 0.1;
/// Where a picture is looked for: right in place, or moved by two pixels.
const SHIFTS: [(i32, i32); 9] =
    [(0, 0), (-2, 0), (2, 0), (0, -2), (0, 2), (-2, -2), (-2, 2), (2, -2), (2, 2)];

/// How much each part of the description of a picture counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureWeights {
    /// Colours on an 8x8 grid.
    pub fine_colour: f32,
    /// Colours on a 4x4 grid.
    pub coarse_colour: f32,
    /// Edges in cells of 8 pixels.
    pub fine_edges: f32,
    /// Edges in cells of 16 pixels.
    pub coarse_edges: f32,
}

impl Default for PictureWeights {
    fn default() -> Self {
        Self { fine_colour: 1.0, coarse_colour: 1.0, fine_edges: 1.0, coarse_edges: 1.0 }
    }
}

/// Recognises pictures by the nearest of a gallery.
///
/// A picture is described by where its colours are (CIE Lab, on two grids) and by histograms of
/// oriented gradients (Dalal and Triggs 2005) of its lightness at two scales. Nothing is learnt.
pub struct PictureJudge {
    weights: PictureWeights,
    labels: Vec<String>,
    references: Vec<Vec<f32>>,
}

impl PictureJudge {
    /// A judge that knows the pictures of `gallery` by their labels.
    pub fn new(gallery: &[(String, &Picture)]) -> Self {
        Self::weighted(gallery, PictureWeights::default())
    }

    /// The same with weights of one's own.
    pub fn weighted(gallery: &[(String, &Picture)], weights: PictureWeights) -> Self {
        Self {
            weights,
            labels: gallery.iter().map(|(label, _)| label.clone()).collect(),
            references: gallery
                .par_iter()
                .map(|(_, picture)| describe(&planes(picture), (0, 0), &weights))
                .collect(),
        }
    }

    /// The `k` labels that look most like `picture`, each once with its distance, the nearest
    /// first.
    pub fn rank(&self, picture: &Picture, k: usize) -> Vec<(String, f32)> {
        let planes = planes(picture);
        let views: Vec<Vec<f32>> =
            SHIFTS.iter().map(|&shift| describe(&planes, shift, &self.weights)).collect();
        let distances = self.references.iter().map(|reference| {
            let least = views.iter().map(|v| squared(v, reference)).fold(f32::INFINITY, f32::min);
            least.sqrt()
        });
        nearest(self.labels.iter().zip(distances), k)
    }
}

/// L, a and b of every pixel, each over 100, slightly blurred.
fn planes(picture: &Picture) -> [Vec<f32>; 3] {
    let picture = danlu_media::fit(picture, SIDE);
    let mut planes = [const { Vec::new() }; 3];
    for pixel in picture.rgb.chunks_exact(3) {
        let lab = lab([pixel[0], pixel[1], pixel[2]]);
        for (plane, value) in planes.iter_mut().zip(lab) {
            plane.push(value / 100.0);
        }
    }
    planes.map(|plane| blur(&plane))
}

/// CIE Lab of an sRGB colour, white point D65.
fn lab(rgb: [u8; 3]) -> [f32; 3] {
    let [r, g, b] = rgb.map(|c| {
        let c = f32::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    let x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505;
    let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089;
    let f = |t: f32| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
    let (x, y, z) = (f(x), f(y), f(z));
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

/// A 1-2-1 blur across and down.
fn blur(plane: &[f32]) -> Vec<f32> {
    let pass = |from: &[f32], step: usize| -> Vec<f32> {
        (0..SIDE * SIDE)
            .map(|i| {
                let at = i / step % SIDE;
                let before = if at > 0 { from[i - step] } else { from[i] };
                let after = if at + 1 < SIDE { from[i + step] } else { from[i] };
                0.25 * before + 0.5 * from[i] + 0.25 * after
            })
            .collect()
    };
    pass(&pass(plane, 1), SIDE)
}

/// The description of a picture moved by `shift`, its edge pixels repeated.
fn describe(planes: &[Vec<f32>; 3], shift: (i32, i32), weights: &PictureWeights) -> Vec<f32> {
    let place = |at: usize, by: i32| (at as i32 - by).clamp(0, SIDE as i32 - 1) as usize;
    let moved = [0, 1, 2].map(|p: usize| -> Vec<f32> {
        if shift == (0, 0) {
            return planes[p].clone();
        }
        (0..SIDE * SIDE)
            .map(|i| planes[p][place(i / SIDE, shift.1) * SIDE + place(i % SIDE, shift.0)])
            .collect()
    });
    let mut out = Vec::with_capacity(2400);
    for (cells, weight) in [(8, weights.fine_colour), (4, weights.coarse_colour)] {
        let scale = (weight / (cells * cells) as f32).sqrt();
        for plane in &moved {
            out.extend(layout(plane, cells).iter().map(|v| v * scale));
        }
    }
    for (cell, weight) in [(8, weights.fine_edges), (16, weights.coarse_edges)] {
        let edges = edges(&moved[0], cell);
        let blocks = edges.len() / (4 * TURNS);
        let scale = (weight / blocks as f32).sqrt();
        out.extend(edges.iter().map(|v| v * scale));
    }
    out
}

/// Means over a `cells` x `cells` grid, each cell reaching half way into its neighbours.
fn layout(plane: &[f32], cells: usize) -> Vec<f32> {
    let cell = (SIDE / cells) as i32;
    let reach = cell / 2;
    let range = |c: usize| {
        let start = c as i32 * cell;
        (start - reach).max(0) as usize..((start + cell + reach) as usize).min(SIDE)
    };
    let mut out = Vec::with_capacity(cells * cells);
    for row in 0..cells {
        for column in 0..cells {
            let (mut sum, mut count) = (0.0, 0);
            for y in range(row) {
                let line = &plane[y * SIDE..][range(column)];
                sum += line.iter().sum::<f32>();
                count += line.len();
            }
            out.push(sum / count as f32);
        }
    }
    out
}

/// Histograms of oriented gradients, in overlapping blocks of 2x2 cells.
fn edges(plane: &[f32], cell: usize) -> Vec<f32> {
    let cells = SIDE / cell;
    let mut votes = vec![0f32; cells * cells * TURNS];
    for y in 1..SIDE - 1 {
        for x in 1..SIDE - 1 {
            let i = y * SIDE + x;
            let dx = plane[i + 1] - plane[i - 1];
            let dy = plane[i + SIDE] - plane[i - SIDE];
            let strength = (dx * dx + dy * dy).sqrt();
            if strength < 1e-4 {
                continue;
            }
            let turn = dy.atan2(dx).rem_euclid(std::f32::consts::PI) / std::f32::consts::PI;
            let [(t0, a0), (t1, a1)] = split(turn * TURNS as f32 - 0.5);
            for (row, wy) in split((y as f32 + 0.5) / cell as f32 - 0.5) {
                for (column, wx) in split((x as f32 + 0.5) / cell as f32 - 0.5) {
                    let inside = 0..cells as i32;
                    if !inside.contains(&row) || !inside.contains(&column) {
                        continue;
                    }
                    let at = (row as usize * cells + column as usize) * TURNS;
                    for (turn, wt) in [(t0, a0), (t1, a1)] {
                        votes[at + turn.rem_euclid(TURNS as i32) as usize] +=
                            strength * wy * wx * wt;
                    }
                }
            }
        }
    }
    let mut out = Vec::with_capacity((cells - 1) * (cells - 1) * 4 * TURNS);
    for row in 0..cells - 1 {
        for column in 0..cells - 1 {
            let start = out.len();
            for (r, c) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let at = ((row + r) * cells + column + c) * TURNS;
                out.extend_from_slice(&votes[at..at + TURNS]);
            }
            // L2-hys: to unit length, cut at 0.2, to unit length again.
            let block = &mut out[start..];
            unit(block, FAINT);
            block.iter_mut().for_each(|v| *v = v.min(0.2));
            unit(block, FAINT);
        }
    }
    out
}

/// The two whole numbers around `at` and how much of it belongs to each.
fn split(at: f32) -> [(i32, f32); 2] {
    let low = at.floor();
    [(low as i32, 1.0 - (at - low)), (low as i32 + 1, at - low)]
}

fn unit(values: &mut [f32], faint: f32) {
    let norm = (values.iter().map(|v| v * v).sum::<f32>() + faint * faint).sqrt();
    values.iter_mut().for_each(|v| *v /= norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disc of `colour`, or a square, centred at `x`, `y`.
    fn shape(round: bool, colour: [u8; 3], x: f32, y: f32) -> Picture {
        let mut picture = Picture::filled(SIDE, SIDE, [255; 3]);
        for i in 0..SIDE * SIDE {
            let (dx, dy) = ((i % SIDE) as f32 - x, (i / SIDE) as f32 - y);
            let far = if round { dx.hypot(dy) } else { dx.abs().max(dy.abs()) };
            if far < 18.0 {
                picture.rgb[i * 3..][..3].copy_from_slice(&colour);
            }
        }
        picture
    }

    #[test]
    fn shapes_and_colours_are_told_apart_even_when_moved() {
        let (red, blue) = ([220, 30, 30], [30, 60, 210]);
        let known = [(true, red), (false, red), (true, blue), (false, blue)];
        let pictures: Vec<Picture> =
            known.iter().map(|&(round, colour)| shape(round, colour, 32.0, 32.0)).collect();
        let gallery: Vec<(String, &Picture)> =
            pictures.iter().enumerate().map(|(i, p)| (i.to_string(), p)).collect();
        let judge = PictureJudge::new(&gallery);
        for (i, (round, colour)) in known.into_iter().enumerate() {
            // Another shade, three pixels off.
            let shade = colour.map(|c| c - 15);
            let found = judge.rank(&shape(round, shade, 29.0, 34.0), 4);
            assert_eq!(found[0].0, i.to_string(), "{found:?}");
            assert_eq!(found.len(), 4);
        }
        assert_eq!(judge.rank(&pictures[2], 1)[0].1, 0.0);
    }

    #[test]
    fn labels_come_once() {
        let picture = shape(true, [0; 3], 32.0, 32.0);
        let other = shape(false, [0; 3], 32.0, 32.0);
        let judge = PictureJudge::new(&[
            ("a".into(), &picture),
            ("a".into(), &picture),
            ("b".into(), &other),
        ]);
        let labels: Vec<String> = judge.rank(&picture, 5).into_iter().map(|(l, _)| l).collect();
        assert_eq!(labels, ["a", "b"]);
    }

    #[test]
    fn lab_of_known_colours() {
        let [l, a, b] = lab([255, 255, 255]);
        assert!((l - 100.0).abs() < 0.1 && a.abs() < 0.1 && b.abs() < 0.1, "{l} {a} {b}");
        let [l, a, b] = lab([255, 0, 0]);
        assert!((l - 53.2).abs() < 0.3 && (a - 80.1).abs() < 0.5 && (b - 67.2).abs() < 0.5);
    }
}
