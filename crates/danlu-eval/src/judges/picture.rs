use super::{Labels, Ranked};
use danlu_core::Picture;

/// Recognises what a picture shows by the nearest picture of a gallery.
///
/// The descriptor is taken from the part of the picture that holds its ink, so a shift or another
/// scale of the whole does not matter: a coarse layout of Lab colours, histograms of oriented
/// gradients (Dalal and Triggs 2005) at two scales, and a histogram of chroma. Each is centred on
/// the gallery's mean and brought to a fixed length. Directions in which pictures of one label
/// differ from each other (style, line width) are then shrunk by the within-class covariance of the
/// gallery itself, and what counts is the angle between two descriptors.
#[derive(Debug)]
pub struct PictureJudge {
    labels: Labels,
    /// Label number of each picture.
    of: Vec<usize>,
    mean: Vec<f32>,
    /// Lower triangle that whitens, row after row; the identity if it is empty.
    whitener: Vec<f32>,
    /// Unit descriptors, one after another.
    gallery: Vec<f32>,
}

/// Side of the picture that is described.
const SIDE: usize = 64;
/// Bins of gradient orientation.
const ORIENTATIONS: usize = 8;
/// Points along each axis of the chroma histogram.
const CHROMA: usize = 6;
/// Lengths of the parts of a descriptor, with their weights.
const BLOCKS: [(usize, f32); 4] = [
    (8 * 8 * 3, 1.0),
    (8 * 8 * ORIENTATIONS, 1.0),
    (4 * 4 * ORIENTATIONS, 0.7),
    (CHROMA * CHROMA, 0.5),
];
const LENGTH: usize = BLOCKS[0].0 + BLOCKS[1].0 + BLOCKS[2].0 + BLOCKS[3].0;
/// How much of an even spread is added to the within-class covariance. Chosen, like the weights, on
/// the pictograms' training concepts.
const SHRINKAGE: f32 = 3.0;

impl PictureJudge {
    /// A judge that chooses among these labels. A label may have several pictures.
    pub fn new(gallery: &[(&str, &Picture)]) -> Self {
        let mut labels = Labels::default();
        let of: Vec<usize> = gallery.iter().map(|(label, _)| labels.number(label)).collect();
        let mut rows: Vec<Vec<f32>> = gallery.iter().map(|(_, p)| describe(p)).collect();
        let mut mean = vec![0.0; LENGTH];
        for row in &rows {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / rows.len() as f32);
        }
        rows.iter_mut().for_each(|row| centre(row, &mean));
        let whitener = whitener(&rows, &of, labels.names.len());
        let gallery = rows.iter().flat_map(|row| finish(row, &whitener)).collect();
        Self { labels, of, mean, whitener, gallery }
    }

    /// How many labels there are to choose from.
    pub fn labels(&self) -> usize {
        self.labels.names.len()
    }

    /// Every label with the distance of its nearest picture, nearest first.
    pub fn rank(&self, picture: &Picture) -> Vec<Ranked> {
        let mut row = describe(picture);
        centre(&mut row, &self.mean);
        let row = finish(&row, &self.whitener);
        let mut distances = vec![f32::INFINITY; self.labels.names.len()];
        for (&label, other) in self.of.iter().zip(self.gallery.chunks_exact(LENGTH)) {
            let distance = 1.0 - dot(&row, other);
            distances[label] = distances[label].min(distance);
        }
        self.labels.ranked(&distances)
    }
}

/// Takes the mean away and brings every block to its length.
fn centre(row: &mut [f32], mean: &[f32]) {
    row.iter_mut().zip(mean).for_each(|(v, m)| *v -= m);
    let mut rest = row;
    for (length, weight) in BLOCKS {
        let (block, after) = rest.split_at_mut(length);
        let scale = weight / dot(block, block).sqrt().max(1e-6);
        block.iter_mut().for_each(|v| *v *= scale);
        rest = after;
    }
}

/// Whitened, of length one.
fn finish(row: &[f32], whitener: &[f32]) -> Vec<f32> {
    // Forward substitution with the lower triangle of Cholesky.
    let mut out = row.to_vec();
    if !whitener.is_empty() {
        for i in 0..LENGTH {
            let line = &whitener[i * LENGTH..][..=i];
            out[i] = (out[i] - dot(&line[..i], &out[..i])) / line[i];
        }
    }
    let scale = 1.0 / dot(&out, &out).sqrt().max(1e-6);
    out.iter_mut().for_each(|v| *v *= scale);
    out
}

/// Cholesky's lower triangle of the shrunk covariance within labels; empty if no label has two
/// pictures.
fn whitener(rows: &[Vec<f32>], of: &[usize], labels: usize) -> Vec<f32> {
    let mut means = vec![vec![0.0f32; LENGTH]; labels];
    let mut counts = vec![0usize; labels];
    for (row, &label) in rows.iter().zip(of) {
        counts[label] += 1;
        means[label].iter_mut().zip(row).for_each(|(m, v)| *m += v);
    }
    let freedom: usize = counts.iter().map(|&c| c.saturating_sub(1)).sum();
    if freedom == 0 {
        return Vec::new();
    }
    let mut matrix = vec![0f32; LENGTH * LENGTH];
    for (row, &label) in rows.iter().zip(of).filter(|(_, label)| counts[**label] > 1) {
        let count = counts[label] as f32;
        let off: Vec<f32> = row.iter().zip(&means[label]).map(|(v, m)| v - m / count).collect();
        for i in 0..LENGTH {
            let scale = off[i] / freedom as f32;
            let line = &mut matrix[i * LENGTH..][..=i];
            line.iter_mut().zip(&off).for_each(|(m, v)| *m += scale * v);
        }
    }
    let spread = (0..LENGTH).map(|i| matrix[i * LENGTH + i]).sum::<f32>() / LENGTH as f32;
    if spread <= 0.0 {
        return Vec::new();
    }
    matrix.iter_mut().for_each(|m| *m /= spread);
    for i in 0..LENGTH {
        matrix[i * LENGTH + i] += SHRINKAGE;
        for j in 0..=i {
            let (before, line) = matrix.split_at_mut(i * LENGTH);
            let done = dot(&line[..j], if j == i { &line[..j] } else { &before[j * LENGTH..][..j] });
            line[j] = match j == i {
                true => (line[j] - done).sqrt(),
                false => (line[j] - done) / before[j * LENGTH + j],
            };
        }
    }
    matrix
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (x, y) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(p, q)| p * q).sum();
    for (x, y) in x.zip(y) {
        for (sum, (p, q)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += p * q;
        }
    }
    rest + sums.iter().sum::<f32>()
}

/// Three planes of one size.
struct Planes {
    side: usize,
    values: [Vec<f32>; 3],
}

/// The descriptor, not yet centred.
fn describe(picture: &Picture) -> Vec<f32> {
    let sharp = lab(&inked(&danlu_media::fit(picture, SIDE)));
    let soft = Planes { side: SIDE, values: sharp.values.each_ref().map(|p| blur(&blur(p))) };
    let mut out = layout(&sharp);
    out.extend(gradients(&soft, 8));
    out.extend(gradients(&halved(&soft), 4));
    out.extend(chroma(&sharp));
    out
}

/// The square around the ink, at `SIDE` pixels: RGB planes. Half a percent of the ink may be left
/// out on each side, so a stray speck does not move it.
fn inked(picture: &Picture) -> Planes {
    let ink = |x: usize, y: usize| {
        let [r, g, b] = picture.at(x, y);
        (255 - r.min(g).min(b)).saturating_sub(12) as f32
    };
    let mut columns = [0f32; SIDE];
    let mut rows = [0f32; SIDE];
    for y in 0..SIDE {
        for x in 0..SIDE {
            columns[x] += ink(x, y);
            rows[y] += ink(x, y);
        }
    }
    let total: f32 = rows.iter().sum();
    let ends = |sums: &[f32; SIDE]| -> (f32, f32) {
        if total < 500.0 {
            return (0.0, SIDE as f32);
        }
        let reaches = |part: f32| {
            let mut so_far = 0.0;
            let past = |s: &f32| {
                so_far += s;
                so_far >= part * total
            };
            sums.iter().position(past).unwrap_or(SIDE - 1) as f32
        };
        (reaches(0.005), reaches(0.995) + 1.0)
    };
    let ((left, right), (top, bottom)) = (ends(&columns), ends(&rows));
    let size = (right - left).max(bottom - top) * 1.06;
    let pixel = |x: i32, y: i32| match (usize::try_from(x), usize::try_from(y)) {
        (Ok(x), Ok(y)) if x < SIDE && y < SIDE => picture.at(x, y).map(f32::from),
        _ => [255.0; 3],
    };
    let mut values = [(); 3].map(|()| Vec::with_capacity(SIDE * SIDE));
    for row in 0..SIDE {
        for column in 0..SIDE {
            let along = |i: usize| (i as f32 + 0.5) / SIDE as f32 * size - size / 2.0 - 0.5;
            let (x, y) = (along(column) + (left + right) / 2.0, along(row) + (top + bottom) / 2.0);
            let (x0, y0) = (x.floor(), y.floor());
            let (fx, fy) = (x - x0, y - y0);
            let (x0, y0) = (x0 as i32, y0 as i32);
            let (a, b) = (pixel(x0, y0), pixel(x0 + 1, y0));
            let (c, d) = (pixel(x0, y0 + 1), pixel(x0 + 1, y0 + 1));
            for (i, plane) in values.iter_mut().enumerate() {
                let (above, below) = (a[i] + (b[i] - a[i]) * fx, c[i] + (d[i] - c[i]) * fx);
                plane.push(above + (below - above) * fy);
            }
        }
    }
    Planes { side: SIDE, values }
}

/// CIE Lab of sRGB under D65, divided by 100.
fn lab(rgb: &Planes) -> Planes {
    let linear = |v: f32| {
        let c = v / 255.0;
        if c > 0.04045 { ((c + 0.055) / 1.055).powf(2.4) } else { c / 12.92 }
    };
    let bend = |t: f32| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
    let n = rgb.side * rgb.side;
    let mut values = [(); 3].map(|()| Vec::with_capacity(n));
    for i in 0..n {
        let [r, g, b] = [0, 1, 2].map(|c| linear(rgb.values[c][i]));
        let x = bend((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505);
        let y = bend(0.2126 * r + 0.7152 * g + 0.0722 * b);
        let z = bend((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089);
        let colour = [1.16 * y - 0.16, 5.0 * (x - y), 2.0 * (y - z)];
        for (plane, value) in values.iter_mut().zip(colour) {
            plane.push(value);
        }
    }
    Planes { side: rgb.side, values }
}

/// Blurred by 1-2-1 in both directions; edges are repeated.
fn blur(plane: &[f32]) -> Vec<f32> {
    let along = |plane: &[f32], step: usize, at: fn(usize) -> usize| -> Vec<f32> {
        (0..plane.len())
            .map(|i| {
                let before = if at(i) == 0 { i } else { i - step };
                let after = if at(i) == SIDE - 1 { i } else { i + step };
                (plane[before] + 2.0 * plane[i] + plane[after]) / 4.0
            })
            .collect()
    };
    along(&along(plane, SIDE, |i| i / SIDE), 1, |i| i % SIDE)
}

fn halved(planes: &Planes) -> Planes {
    let (from, side) = (planes.side, planes.side / 2);
    let half = |plane: &Vec<f32>| -> Vec<f32> {
        (0..side * side)
            .map(|i| {
                let at = i / side * 2 * from + i % side * 2;
                (plane[at] + plane[at + 1] + plane[at + from] + plane[at + from + 1]) / 4.0
            })
            .collect()
    };
    Planes { side, values: planes.values.each_ref().map(half) }
}

/// For each pixel of a line the two cells that it belongs to, by linear weights that sum to one
/// over the pixels of a cell.
fn shares(side: usize, cells: usize) -> Vec<[(usize, f32); 2]> {
    let width = side as f32 / cells as f32;
    let mut sums = vec![0.0; cells];
    let mut out: Vec<[(usize, f32); 2]> = (0..side)
        .map(|i| {
            let at = (i as f32 + 0.5) / width - 0.5;
            let low = at.floor();
            let part = at - low;
            let cell = |c: f32, w: f32| {
                if c < 0.0 || c >= cells as f32 { (0, 0.0) } else { (c as usize, w) }
            };
            [cell(low, 1.0 - part), cell(low + 1.0, part)]
        })
        .collect();
    out.iter().flatten().for_each(|&(c, w)| sums[c] += w);
    out.iter_mut().flatten().for_each(|(c, w)| *w /= sums[*c]);
    out
}

/// Mean colours of 8 x 8 overlapping cells.
fn layout(planes: &Planes) -> Vec<f32> {
    let shares = shares(planes.side, 8);
    let mut out = vec![0.0; 8 * 8 * 3];
    for y in 0..planes.side {
        for x in 0..planes.side {
            for (cy, wy) in shares[y] {
                for (cx, wx) in shares[x] {
                    for (c, plane) in planes.values.iter().enumerate() {
                        out[(cy * 8 + cx) * 3 + c] += wy * wx * plane[y * planes.side + x];
                    }
                }
            }
        }
    }
    out
}

/// Histograms of unsigned gradient orientation of `cells` x `cells` overlapping cells, each over
/// the gradient energy of its neighbourhood. A pixel's gradient is that of its steepest plane.
fn gradients(planes: &Planes, cells: usize) -> Vec<f32> {
    let side = planes.side;
    let shares = shares(side, cells);
    let mut out = vec![0.0; cells * cells * ORIENTATIONS];
    for y in 0..side {
        for x in 0..side {
            let mut steepest = (0.0, 0.0, 0.0);
            for plane in &planes.values {
                let inside = |i: usize| i > 0 && i + 1 < side;
                let at = y * side + x;
                let dx = if inside(x) { plane[at + 1] - plane[at - 1] } else { 0.0 };
                let dy = if inside(y) { plane[at + side] - plane[at - side] } else { 0.0 };
                let square: f32 = dx * dx + dy * dy;
                if square > steepest.0 {
                    steepest = (square, dx, dy);
                }
            }
            let (square, dx, dy) = steepest;
            if square == 0.0 {
                continue;
            }
            let turn = dy.atan2(dx).rem_euclid(std::f32::consts::PI) / std::f32::consts::PI;
            let bin = turn * ORIENTATIONS as f32;
            let (low, part) = (bin.floor() as usize, bin - bin.floor());
            let size = square.sqrt();
            for (cy, wy) in shares[y] {
                for (cx, wx) in shares[x] {
                    let cell = &mut out[(cy * cells + cx) * ORIENTATIONS..][..ORIENTATIONS];
                    cell[low % ORIENTATIONS] += wy * wx * size * (1.0 - part);
                    cell[(low + 1) % ORIENTATIONS] += wy * wx * size * part;
                }
            }
        }
    }
    let energy: Vec<f32> = out.chunks_exact(ORIENTATIONS).map(|c| dot(c, c)).collect();
    for (i, cell) in out.chunks_exact_mut(ORIENTATIONS).enumerate() {
        let near = |i: usize| i.saturating_sub(1)..(i + 2).min(cells);
        let around: f32 = near(i / cells)
            .flat_map(|y| near(i % cells).map(move |x| (y, x)))
            .map(|(y, x)| energy[y * cells + x])
            .sum();
        let scale = 1.0 / (around / 9.0 + 0.02 * 0.02).sqrt();
        cell.iter_mut().for_each(|v| *v = (*v * scale).min(1.0));
    }
    out
}

/// Square roots of how much of the picture has each chroma, on a grid over -70..70.
fn chroma(planes: &Planes) -> Vec<f32> {
    let mut out = vec![0.0; CHROMA * CHROMA];
    let n = planes.side * planes.side;
    let share = |v: f32| -> [(usize, f32); 2] {
        let at = (v * 100.0 + 70.0) / 28.0;
        let low = at.floor();
        let cell = |c: f32, w: f32| {
            if c < 0.0 || c >= CHROMA as f32 { (0, 0.0) } else { (c as usize, w) }
        };
        [cell(low, 1.0 - at + low), cell(low + 1.0, at - low)]
    };
    for i in 0..n {
        for (a, wa) in share(planes.values[1][i]) {
            for (b, wb) in share(planes.values[2][i]) {
                out[a * CHROMA + b] += wa * wb / n as f32;
            }
        }
    }
    out.iter_mut().for_each(|v| *v = v.sqrt());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::Rng;

    const NAMES: [&str; 5] = ["disc", "square", "stripes", "cross", "ring"];

    /// A red drawing around the middle.
    fn drawing(name: &str, dx: f32, size: f32, noise: f32) -> Picture {
        let mut picture = Picture::filled(64, 64, [255; 3]);
        let mut rng = Rng::new(1, 0);
        for y in 0..64 {
            for x in 0..64 {
                let (u, v) = ((x as f32 - 32.0 - dx) / size, (y as f32 - 32.0) / size);
                let far = (u * u + v * v).sqrt();
                let square = u.abs() < 1.0 && v.abs() < 1.0;
                let inside = match name {
                    "disc" => far < 1.0,
                    "square" => square,
                    "stripes" => square && (v * 3.0).floor() as i32 % 2 == 0,
                    "cross" => square && (u.abs() < 0.3 || v.abs() < 0.3),
                    _ => far < 1.0 && far > 0.6,
                };
                let colour: [f32; 3] = if inside { [220.0, 40.0, 30.0] } else { [255.0; 3] };
                let noisy = colour.map(|c| (c + noise * rng.normal()) as u8);
                picture.rgb[(y * 64 + x) * 3..][..3].copy_from_slice(&noisy);
            }
        }
        picture
    }

    #[test]
    fn shapes_are_recognised_when_moved_scaled_and_noisy() {
        let pictures: Vec<_> = NAMES
            .iter()
            .flat_map(|n| [(*n, drawing(n, 0.0, 24.0, 0.0)), (*n, drawing(n, 2.0, 20.0, 3.0))])
            .collect();
        let gallery: Vec<_> = pictures.iter().map(|(n, p)| (*n, p)).collect();
        let judge = PictureJudge::new(&gallery);
        assert_eq!(judge.labels(), 5);
        for name in NAMES {
            let ranked = judge.rank(&drawing(name, -5.0, 16.0, 6.0));
            assert_eq!(ranked.len(), 5);
            assert_eq!(ranked[0].label, name, "{ranked:?}");
        }
        let same = judge.rank(&pictures[2].1);
        assert!(same[0].distance.abs() < 1e-4 && same[1].distance > 0.05, "{same:?}");
    }

    #[test]
    fn odd_galleries_and_pictures_do_not_panic() {
        let white = Picture::filled(64, 64, [255; 3]);
        let wide = Picture::filled(100, 7, [0; 3]);
        assert!(PictureJudge::new(&[]).rank(&white).is_empty());
        assert_eq!(PictureJudge::new(&[("a", &white)]).rank(&wide)[0].label, "a");
        let judge = PictureJudge::new(&[("a", &white), ("a", &white), ("b", &wide)]);
        assert_eq!(judge.rank(&wide)[0].label, "b");
    }
}
