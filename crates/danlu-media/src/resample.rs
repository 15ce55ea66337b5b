/// Zero crossings of the sinc on either side of its centre.
const CROSSINGS: usize = 16;
/// Positions between two samples at which the kernel is tabulated; linear in between.
const PHASES: usize = 256;

/// Every `step` input samples one output sample, by a Blackman-windowed sinc that lets nothing
/// above the lower of the two Nyquist frequencies through.
///
/// `step` is the input rate over the output rate and must be positive. The output has
/// `samples.len() / step` values, rounded; outside of the input there is silence.
pub fn resample(samples: &[f32], step: f64) -> Vec<f32> {
    assert!(step.is_finite() && step > 0.0, "resample: step {step}");
    if step == 1.0 {
        return samples.to_vec();
    }
    // A little below Nyquist, so that the slope of the filter ends there.
    let cutoff = (1.0 / step).min(1.0) * 0.94;
    let radius = (CROSSINGS as f64 / cutoff).ceil() as usize;
    let taps = 2 * radius;
    let mut table = vec![0f32; (PHASES + 1) * taps];
    for (phase, row) in table.chunks_exact_mut(taps).enumerate() {
        for (tap, weight) in row.iter_mut().enumerate() {
            let x = tap as f64 - (radius as f64 - 1.0) - phase as f64 / PHASES as f64;
            *weight = kernel(x, cutoff, radius as f64) as f32;
        }
        // Every phase passes a constant unchanged.
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|w| *w /= sum);
    }

    let mut padded = vec![0f32; samples.len() + 2 * taps];
    padded[taps..taps + samples.len()].copy_from_slice(samples);
    let length = (samples.len() as f64 / step).round() as usize;
    (0..length)
        .map(|i| {
            let at = i as f64 * step;
            let whole = at.floor();
            let phase = (at - whole) * PHASES as f64;
            let row = phase.floor();
            let between = (phase - row) as f32;
            let start = (whole as usize).min(samples.len()) + taps + 1 - radius;
            let input = &padded[start..start + taps];
            let rows = &table[row as usize * taps..][..2 * taps];
            let (a, b) = (dot(input, &rows[..taps]), dot(input, &rows[taps..]));
            a + (b - a) * between
        })
        .collect()
}

fn kernel(x: f64, cutoff: f64, radius: f64) -> f64 {
    let edge = x / radius;
    if edge.abs() >= 1.0 {
        return 0.0;
    }
    let angle = std::f64::consts::PI * edge;
    let window = 0.42 + 0.5 * angle.cos() + 0.08 * (2.0 * angle).cos();
    let phase = std::f64::consts::PI * x * cutoff;
    window * if phase.abs() < 1e-9 { 1.0 } else { phase.sin() / phase }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in left.zip(right) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    rest + sums.iter().sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(hertz: f64, rate: f64, seconds: f64) -> Vec<f32> {
        (0..(rate * seconds) as usize)
            .map(|i| (std::f64::consts::TAU * hertz * i as f64 / rate).sin() as f32)
            .collect()
    }

    #[test]
    fn a_sine_keeps_frequency_phase_and_level() {
        for rate in [8_000.0, 11_025.0, 22_050.0, 44_100.0, 48_000.0] {
            let out = resample(&sine(1_000.0, rate, 0.5), rate / 16_000.0);
            let want = sine(1_000.0, 16_000.0, 0.5);
            assert!(out.len().abs_diff(want.len()) <= 1);
            let worst = out[500..7_500]
                .iter()
                .zip(&want[500..7_500])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-3, "{rate}: {worst}");
        }
    }

    #[test]
    fn what_the_new_rate_cannot_hold_is_gone() {
        let out = resample(&sine(11_000.0, 48_000.0, 0.5), 3.0);
        let loudest = out[500..7_500].iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!(loudest < 2e-3, "{loudest}");
    }

    #[test]
    fn short_inputs_do_not_panic() {
        for n in 0..5 {
            for step in [0.3, 0.999, 2.7, 12.0] {
                assert_eq!(resample(&vec![0.5; n], step).len(), (n as f64 / step).round() as usize);
            }
        }
    }
}
