//! The same thing as another hand would draw it: strong changes of shape, shade, colour and line,
//! for a recogniser that is to know a thing in a style that it has not seen.

use danlu_core::{Picture, Rng};

/// A picture as another style might have it: moved, scaled unevenly, turned, sheared and warped;
/// hue, saturation, contrast and brightness changed, now and then all colour taken away; flat areas
/// shaded; contours drawn darker or lighter; blurred; a part covered. Never mirrored: left and right
/// mean something. The background stays as it is, white mostly.
pub fn restyle_picture(picture: &Picture, rng: &mut Rng) -> Picture {
    let (w, h) = (picture.width, picture.height);
    if w == 0 || h == 0 {
        return picture.clone();
    }
    let mut planes = warp(picture, rng);
    if rng.unit() < 0.5 {
        contour(&mut planes, [w, h], rng.between(-0.5, 1.2));
    }
    if rng.unit() < 0.6 {
        shade(&mut planes, [w, h], rng);
    }
    colour(&mut planes, rng);
    if rng.unit() < 0.35 {
        for plane in &mut planes {
            *plane = blur(plane, [w, h]);
        }
    }
    if rng.unit() < 0.3 {
        cover(&mut planes, [w, h], rng);
    }
    let [r, g, b] = &planes;
    let byte = |ink: f32| (255.0 * (1.0 - ink) + 0.5).clamp(0.0, 255.0) as u8;
    let rgb = (0..w * h).flat_map(|i| [byte(r[i]), byte(g[i]), byte(b[i])]).collect();
    Picture { width: w, height: h, rgb }
}

/// A picture between two of one thing, pixel by pixel: its lightness and its colour each anywhere
/// between theirs, apart from one another. `a` alone if their sizes differ.
pub fn blend_pictures(a: &Picture, b: &Picture, rng: &mut Rng) -> Picture {
    let (light, colour) = (rng.unit(), rng.unit());
    if (a.width, a.height) != (b.width, b.height) {
        return a.clone();
    }
    let mut rgb = Vec::with_capacity(a.rgb.len());
    for (a, b) in a.rgb.as_chunks::<3>().0.iter().zip(b.rgb.as_chunks::<3>().0) {
        let grey = |p: &[u8; 3]| p.iter().map(|&v| v as f32).sum::<f32>() / 3.0;
        let (ga, gb) = (grey(a), grey(b));
        let grey = ga + light * (gb - ga);
        for (&a, &b) in a.iter().zip(b) {
            let (a, b) = (a as f32 - ga, b as f32 - gb);
            rgb.push((grey + a + colour * (b - a) + 0.5).clamp(0.0, 255.0) as u8);
        }
    }
    Picture { width: a.width, height: a.height, rgb }
}

/// Planes of ink (0 is white, 1 is none of the colour) of the picture in another shape.
fn warp(picture: &Picture, rng: &mut Rng) -> [Vec<f32>; 3] {
    let (w, h) = (picture.width, picture.height);
    let (cx, cy) = ((w as f32 - 1.0) / 2.0, (h as f32 - 1.0) / 2.0);
    let size = rng.between(0.72, 1.18);
    let stretch = rng.between(-0.14, 0.14).exp();
    let (sx, sy) = (size * stretch, size / stretch);
    let (sin, cos) = (rng.normal() * 9.0).clamp(-25.0, 25.0).to_radians().sin_cos();
    let shear = rng.between(-0.15, 0.15);
    let (dx, dy) = (rng.between(-0.09, 0.09) * w as f32, rng.between(-0.09, 0.09) * h as f32);
    // A slow wave along each axis bends straight lines.
    let depth = if rng.unit() < 0.5 { rng.between(0.0, 2.2) * w as f32 / 64.0 } else { 0.0 };
    let wave = [0; 4].map(|_| rng.between(0.0, std::f32::consts::TAU));
    let rate = std::f32::consts::TAU * rng.between(0.7, 1.8) / w as f32;
    let ink = |x: i32, y: i32, c: usize| -> f32 {
        if x < 0 || y < 0 || x >= w as i32 || y >= h as i32 {
            return 0.0;
        }
        1.0 - picture.rgb[(y as usize * w + x as usize) * 3 + c] as f32 / 255.0
    };
    let mut planes = [const { Vec::new() }; 3];
    for y in 0..h {
        for x in 0..w {
            let (u, v) = (x as f32 - cx - dx, y as f32 - cy - dy);
            let (u, v) = (u * cos + v * sin, v * cos - u * sin);
            let (u, v) = ((u + shear * v) / sx + cx, v / sy + cy);
            let (u, v) = (
                u + depth * ((v * rate + wave[0]).sin() + 0.5 * (u * rate * 1.7 + wave[1]).sin()),
                v + depth * ((u * rate + wave[2]).sin() + 0.5 * (v * rate * 1.7 + wave[3]).sin()),
            );
            let (x0, y0) = (u.floor(), v.floor());
            let (fx, fy) = (u - x0, v - y0);
            let (x0, y0) = (x0 as i32, y0 as i32);
            for (c, plane) in planes.iter_mut().enumerate() {
                let top = ink(x0, y0, c) * (1.0 - fx) + ink(x0 + 1, y0, c) * fx;
                let low = ink(x0, y0 + 1, c) * (1.0 - fx) + ink(x0 + 1, y0 + 1, c) * fx;
                plane.push(top * (1.0 - fy) + low * fy);
            }
        }
    }
    planes
}

/// Adds `strength` times the steepness of lightness as ink: darker contours, or with a negative
/// strength fainter ones.
fn contour(planes: &mut [Vec<f32>; 3], [w, h]: [usize; 2], strength: f32) {
    let grey: Vec<f32> =
        (0..w * h).map(|i| (planes[0][i] + planes[1][i] + planes[2][i]) / 3.0).collect();
    for y in 1..h.saturating_sub(1) {
        for x in 1..w.saturating_sub(1) {
            let i = y * w + x;
            let (gx, gy) = (grey[i + 1] - grey[i - 1], grey[i + w] - grey[i - w]);
            let steep = (gx * gx + gy * gy).sqrt();
            for plane in planes.iter_mut() {
                plane[i] = (plane[i] + strength * steep * 0.5).clamp(0.0, 1.0);
            }
        }
    }
}

/// Flat areas get lighter to one side and darker to the other.
fn shade(planes: &mut [Vec<f32>; 3], [w, h]: [usize; 2], rng: &mut Rng) {
    let (sin, cos) = rng.between(0.0, std::f32::consts::TAU).sin_cos();
    let slope = rng.between(0.0, 0.45);
    for y in 0..h {
        for x in 0..w {
            let along = (x as f32 / w as f32 - 0.5) * cos + (y as f32 / h as f32 - 0.5) * sin;
            for plane in planes.iter_mut() {
                let ink = &mut plane[y * w + x];
                // Ink times (1 - ink) leaves both ends alone, so white stays white.
                *ink = (*ink * (1.0 + slope * along * (1.5 - *ink))).clamp(0.0, 1.0);
            }
        }
    }
}

/// Hue, saturation, contrast and brightness.
fn colour(planes: &mut [Vec<f32>; 3], rng: &mut Rng) {
    let grey = rng.unit() < 0.08;
    let saturation = if grey { 0.0 } else { rng.between(0.5, 1.45) };
    let contrast = rng.between(0.7, 1.25);
    let gamma = rng.between(-0.45, 0.45).exp();
    let (sin, cos) = (rng.normal() * 14.0).clamp(-40.0, 40.0).to_radians().sin_cos();
    let gain = [0; 3].map(|_| rng.between(0.85, 1.15));
    let k = 1.0 / 3f32.sqrt();
    for i in 0..planes[0].len() {
        let ink = [planes[0][i], planes[1][i], planes[2][i]];
        let mean = (ink[0] + ink[1] + ink[2]) / 3.0;
        for c in 0..3 {
            let (a, b) = (ink[(c + 1) % 3], ink[(c + 2) % 3]);
            // A turn about the grey axis; the cross product with (1, 1, 1) / sqrt(3).
            let turned = (ink[c] - mean) * cos + (b - a) * k * sin;
            let value = contrast * gain[c] * (saturation * turned + mean);
            planes[c][i] = value.clamp(0.0, 1.0).powf(gamma);
        }
    }
}

/// A 1-2-1 blur across and down.
fn blur(plane: &[f32], [w, h]: [usize; 2]) -> Vec<f32> {
    let at = |x: usize, y: usize| plane[y * w + x];
    let mut out = Vec::with_capacity(plane.len());
    for y in 0..h {
        let (above, below) = (y.saturating_sub(1), (y + 1).min(h - 1));
        for x in 0..w {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(w - 1));
            let row = |y: usize| at(left, y) + 2.0 * at(x, y) + at(right, y);
            out.push((row(above) + 2.0 * row(y) + row(below)) / 16.0);
        }
    }
    out
}

/// A rectangle of one colour, up to a third of a side.
fn cover(planes: &mut [Vec<f32>; 3], [w, h]: [usize; 2], rng: &mut Rng) {
    let (cw, ch) = (1 + rng.below(w.div_ceil(3)), 1 + rng.below(h.div_ceil(3)));
    let (left, top) = (rng.below(w - cw.min(w) + 1), rng.below(h - ch.min(h) + 1));
    let white = rng.unit() < 0.5;
    for plane in planes {
        let ink = if white { 0.0 } else { rng.unit() };
        for y in top..(top + ch).min(h) {
            plane[y * w + left..y * w + (left + cw).min(w)].fill(ink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_much_and_repeats_itself() {
        let mut picture = Picture::filled(64, 64, [255; 3]);
        for y in 20..44 {
            for x in 20..44 {
                picture.rgb[(y * 64 + x) * 3..][..3].copy_from_slice(&[200, 30, 60]);
            }
        }
        let mut distances = Vec::new();
        for stream in 0..40 {
            let other = restyle_picture(&picture, &mut Rng::new(1, stream));
            assert_eq!(other, restyle_picture(&picture, &mut Rng::new(1, stream)));
            assert_eq!((other.width, other.height, other.rgb.len()), (64, 64, picture.rgb.len()));
            distances.push(crate::psnr(&picture, &other));
            let ink: f64 = other.rgb.iter().map(|&v| 255.0 - v as f64).sum();
            assert!(ink > 20_000.0, "something is left of it");
        }
        assert!(distances.iter().all(|&d| d < 30.0), "{distances:?}");
    }

    #[test]
    fn a_blend_lies_between_both() {
        let a = Picture::filled(6, 5, [250, 30, 30]);
        let b = Picture::filled(6, 5, [20, 20, 200]);
        let mut seen = std::collections::BTreeSet::new();
        for stream in 0..30 {
            let mixed = blend_pictures(&a, &b, &mut Rng::new(3, stream));
            assert_eq!(mixed.rgb.len(), a.rgb.len());
            let grey = mixed.rgb[..3].iter().map(|&v| v as f32).sum::<f32>() / 3.0;
            assert!((79.0..=104.5).contains(&grey), "{grey}");
            seen.insert(mixed.rgb[..3].to_vec());
        }
        assert!(seen.len() > 20, "{seen:?}");
        assert_eq!(blend_pictures(&a, &a, &mut Rng::new(3, 0)), a);
        let other = Picture::filled(5, 6, [0; 3]);
        assert_eq!(blend_pictures(&a, &other, &mut Rng::new(3, 0)), a);
    }

    #[test]
    fn odd_sizes_do_not_break_it() {
        for (w, h) in [(0, 0), (1, 1), (3, 1), (5, 9)] {
            for stream in 0..30 {
                let picture = Picture::filled(w, h, [9, 200, 77]);
                let other = restyle_picture(&picture, &mut Rng::new(2, stream));
                assert_eq!(other.rgb.len(), w * h * 3);
            }
        }
    }
}
