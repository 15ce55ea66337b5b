use crate::Mel;
use danlu_core::Picture;

/// Peak signal-to-noise ratio in dB over all channels, at most 100 (equal pictures).
///
/// The pictures must be of one size.
pub fn psnr(a: &Picture, b: &Picture) -> f64 {
    same_size(a, b);
    let squares: f64 = a.rgb.iter().zip(&b.rgb).map(|(&x, &y)| (x as f64 - y as f64).powi(2)).sum();
    let mean = squares / a.rgb.len().max(1) as f64;
    if mean == 0.0 { 100.0 } else { (10.0 * (255.0 * 255.0 / mean).log10()).min(100.0) }
}

/// Structural similarity of the lumas (Wang et al. 2004: an 11 x 11 Gaussian of sigma 1.5), from -1
/// to 1 (equal pictures). Of pictures smaller than that, the window is as large as the picture.
///
/// The pictures must be of one size.
pub fn ssim(a: &Picture, b: &Picture) -> f64 {
    same_size(a, b);
    let (w, h) = (a.width, a.height);
    if w == 0 || h == 0 {
        return 1.0;
    }
    let (x, y) = (luma(a), luma(b));
    let product =
        |p: &[f64], q: &[f64]| -> Vec<f64> { p.iter().zip(q).map(|(a, b)| a * b).collect() };
    let blur = |p: &[f64]| blur(p, w, h);
    let (mx, my) = (blur(&x), blur(&y));
    let (xx, yy, xy) = (blur(&product(&x, &x)), blur(&product(&y, &y)), blur(&product(&x, &y)));
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let sum: f64 = (0..mx.len())
        .map(|i| {
            let (p, q) = (mx[i], my[i]);
            let (vx, vy, cov) = (xx[i] - p * p, yy[i] - q * q, xy[i] - p * q);
            (2.0 * p * q + c1) * (2.0 * cov + c2) / ((p * p + q * q + c1) * (vx + vy + c2))
        })
        .sum();
    sum / mx.len() as f64
}

/// Mean absolute difference of two log-mel spectrograms in dB, over the frames that both have.
///
/// They must have the same bands. It is 0 if one of them has no frame.
pub fn mel_distance(a: &Mel, b: &Mel) -> f32 {
    assert_eq!(a.mels, b.mels, "mel_distance: the bands differ");
    let n = a.frames.min(b.frames) * a.mels;
    let sum: f32 = a.values[..n].iter().zip(&b.values[..n]).map(|(x, y)| (x - y).abs()).sum();
    10.0 / std::f32::consts::LN_10 * sum / n.max(1) as f32
}

fn same_size(a: &Picture, b: &Picture) {
    assert_eq!((a.width, a.height), (b.width, b.height), "the pictures differ in size");
}

fn luma(picture: &Picture) -> Vec<f64> {
    let value = |p: &[u8]| 0.299 * p[0] as f64 + 0.587 * p[1] as f64 + 0.114 * p[2] as f64;
    picture.rgb.chunks_exact(3).map(value).collect()
}

/// Gaussian means of every whole window.
fn blur(values: &[f64], w: usize, h: usize) -> Vec<f64> {
    let along = |n: usize| -> Vec<f64> {
        let n = n.min(11);
        let middle = (n as f64 - 1.0) / 2.0;
        let raw = (0..n).map(|i| (-(i as f64 - middle).powi(2) / (2.0 * 1.5 * 1.5)).exp());
        let sum: f64 = raw.clone().sum();
        raw.map(|v| v / sum).collect()
    };
    let (kx, ky) = (along(w), along(h));
    let (out_w, out_h) = (w + 1 - kx.len(), h + 1 - ky.len());
    let mut rows = Vec::with_capacity(out_w * h);
    for row in values.chunks_exact(w) {
        rows.extend(
            row.windows(kx.len()).map(|v| v.iter().zip(&kx).map(|(a, b)| a * b).sum::<f64>()),
        );
    }
    let mut out = vec![0.0; out_w * out_h];
    for (y, line) in out.chunks_exact_mut(out_w).enumerate() {
        for (k, weight) in ky.iter().enumerate() {
            for (o, v) in line.iter_mut().zip(&rows[(y + k) * out_w..]) {
                *o += weight * v;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::Rng;

    fn noisy(picture: &Picture, amount: f32) -> Picture {
        let mut rng = Rng::new(1, 0);
        let rgb = picture.rgb.iter().map(|&v| (v as f32 + amount * rng.normal()) as u8).collect();
        Picture { rgb, ..*picture }
    }

    fn ramp() -> Picture {
        let rgb = (0..32 * 32).flat_map(|i| [(60 + i % 32 * 4) as u8; 3]).collect();
        Picture { width: 32, height: 32, rgb }
    }

    #[test]
    fn psnr_is_the_formula() {
        let a = Picture::filled(4, 4, [100; 3]);
        let b = Picture::filled(4, 4, [110; 3]);
        assert!((psnr(&a, &b) - 28.1308).abs() < 1e-3);
        assert_eq!(psnr(&a, &a), 100.0);
    }

    #[test]
    fn ssim_falls_with_noise_and_forgives_a_shift_of_level() {
        let a = ramp();
        assert!((ssim(&a, &a) - 1.0).abs() < 1e-9);
        let brighter = Picture { rgb: a.rgb.iter().map(|v| v + 10).collect(), ..a };
        let (little, much) = (ssim(&a, &noisy(&a, 4.0)), ssim(&a, &noisy(&a, 25.0)));
        assert!(ssim(&a, &brighter) > 0.97);
        assert!(little > 0.6 && much < 0.4, "{little} {much}");
        // Of two flat pictures only the means count: (2ab + c1) / (a^2 + b^2 + c1).
        let (p, q) = (Picture::filled(3, 3, [50; 3]), Picture::filled(3, 3, [100; 3]));
        assert!((ssim(&p, &q) - 10_006.502_5 / 12_506.502_5).abs() < 1e-6);
    }

    #[test]
    fn mel_distance_is_in_decibel() {
        let mel = |v: f32, frames| Mel { frames, mels: 4, values: vec![v; frames * 4] };
        let ten_times = std::f32::consts::LN_10;
        assert!((mel_distance(&mel(0.0, 3), &mel(ten_times, 5)) - 10.0).abs() < 1e-4);
        assert_eq!(mel_distance(&mel(0.0, 0), &mel(1.0, 5)), 0.0);
    }
}
