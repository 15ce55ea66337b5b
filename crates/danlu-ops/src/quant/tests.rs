//! Products against plain sums, for every format, shape and instruction set.

use super::*;
use crate::gemm::{Level, force_level};
use crate::team::Team;
use std::sync::PoisonError;

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

struct Case {
    m: usize,
    rows: usize,
    cols: usize,
}

fn run(team: &Team, case: &Case, format: WeightFormat, into: Into) -> Vec<f32> {
    let &Case { m, rows, cols } = case;
    let w = Weights::new(&noise(rows * cols, 1), [rows, cols], format, &Arena::default());
    let (x, bias) = (noise(m * cols, 2), noise(rows, 3));
    let mut a = Activations::default();
    a.take(team, &x, cols, format);
    let mut out = vec![0.5; m * rows];
    product(team, &a, &w, Some(&bias), &mut out, into);
    out
}

/// The product in double precision of what the weights and the activations stand for.
fn plain(case: &Case, format: WeightFormat, start: f64) -> Vec<f64> {
    let &Case { m, rows, cols } = case;
    let w = Weights::new(&noise(rows * cols, 1), [rows, cols], format, &Arena::default());
    let (x, bias) = (noise(m * cols, 2), noise(rows, 3));
    let mut a = Activations::default();
    a.take(&Team::new(1), &x, cols, format);
    let mut row = vec![0.0; cols];
    let mut out = vec![0.0; m * rows];
    for r in 0..rows {
        w.row(r, &mut row);
        for i in 0..m {
            let value = |k: usize| match a.bytes() {
                Some((bytes, meta)) => {
                    let blocks = cols.div_ceil(blocks::BLOCK);
                    let scale = f64::from(meta[i * blocks + k / blocks::BLOCK].scale);
                    scale * f64::from(bytes[i * blocks * blocks::BLOCK + k])
                }
                None => f64::from(x[i * cols + k]),
            };
            let sum: f64 = (0..cols).map(|k| value(k) * f64::from(row[k])).sum();
            out[i * rows + r] = start + f64::from(bias[r]) + sum;
        }
    }
    out
}

#[test]
fn every_format_shape_and_instruction_set_gives_the_plain_sum() {
    let _one = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    let team = Team::new(2);
    let cases = [
        Case { m: 1, rows: 1, cols: 1 },
        Case { m: 1, rows: 100, cols: 96 },
        Case { m: 2, rows: 33, cols: 70 },
        Case { m: 5, rows: 64, cols: 300 },
        Case { m: 8, rows: 80, cols: 576 },
        Case { m: 13, rows: 17, cols: 31 },
    ];
    for (_, format) in WeightFormat::ALL {
        for case in &cases {
            let mut fused: Option<Vec<f32>> = None;
            for level in [Level::Avx512, Level::Avx2, Level::Portable] {
                force_level(Some(level));
                let got = run(&team, case, format, Into::Store);
                let want = plain(case, format, 0.0);
                for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                    let bound = 2e-5 * (1.0 + (case.cols as f64).sqrt());
                    assert!(
                        (f64::from(*a) - b).abs() < bound,
                        "{format:?} {level:?} m {} rows {} cols {} at {i}: {a} against {b}",
                        case.m,
                        case.rows,
                        case.cols
                    );
                }
                let added = run(&team, case, format, Into::Add);
                for (a, b) in added.iter().zip(&got) {
                    assert!((a - b - 0.5).abs() < 1e-4, "{format:?} {level:?}");
                }
                if level != Level::Portable {
                    let first = fused.get_or_insert_with(|| got.clone());
                    assert_eq!(first, &got, "{format:?}: bits of {level:?}");
                }
            }
            force_level(None);
        }
    }
}

#[test]
fn neither_threads_nor_company_change_a_bit() {
    let _one = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, format) in WeightFormat::ALL {
        let [rows, cols, m] = [200, 160, 41];
        let w = Weights::new(&noise(rows * cols, 7), [rows, cols], format, &Arena::default());
        let x = noise(m * cols, 8);
        let run = |threads: usize, range: std::ops::Range<usize>| {
            let team = Team::new(threads);
            let mut a = Activations::default();
            a.take(&team, &x[range.start * cols..range.end * cols], cols, format);
            let mut out = vec![0.0; range.len() * rows];
            product(&team, &a, &w, None, &mut out, Into::Store);
            out
        };
        let all = run(1, 0..m);
        for threads in [2, 3] {
            assert_eq!(run(threads, 0..m), all, "{format:?}");
        }
        for range in [0..1, 3..5, 7..15, 20..41] {
            let part = run(2, range.clone());
            assert_eq!(part, all[range.start * rows..range.end * rows], "{format:?} {range:?}");
        }
    }
}

#[test]
fn weights_come_back_as_rows_and_as_blocks() {
    let arena = Arena::default();
    for (name, format) in WeightFormat::ALL {
        assert_eq!(WeightFormat::parse(name), Some(format));
        let [rows, cols] = [37, 512];
        let values = noise(rows * cols, 5);
        let w = Weights::new(&values, [rows, cols], format, &arena);
        let bound = match format {
            WeightFormat::F32 => 0.0,
            WeightFormat::F16 => 5e-4,
            WeightFormat::Q8_0 => 5e-3,
            WeightFormat::Q4_0 | WeightFormat::Q4K => 0.15,
        };
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            w.row(r, &mut row);
            for (a, b) in row.iter().zip(&values[r * cols..]) {
                assert!((a - b).abs() <= bound, "{format:?}: {b} became {a}");
            }
        }
        match w.to_blocks() {
            None => assert!(!format.is_quantised()),
            Some(bytes) => {
                let back = Weights::from_blocks(&bytes, [rows, cols], format, &arena);
                let back = back.expect("whole blocks");
                assert_eq!(back.to_blocks().expect("whole blocks"), bytes);
                assert!(Weights::from_blocks(&bytes[1..], [rows, cols], format, &arena).is_none());
            }
        }
    }
    let odd = Weights::new(&noise(3 * 40, 1), [3, 40], WeightFormat::Q8_0, &arena);
    assert_eq!((odd.shape(), odd.to_blocks()), ([3, 40], None));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
    #[test]
    fn shapes_that_divide_nothing_are_right(
        m in 1usize..20, rows in 1usize..70, cols in 1usize..150, which in 0usize..5,
    ) {
        let (_, format) = WeightFormat::ALL[which];
        let case = Case { m, rows, cols };
        let got = run(&Team::new(2), &case, format, Into::Store);
        for (a, b) in got.iter().zip(plain(&case, format, 0.0)) {
            proptest::prop_assert!((f64::from(*a) - b).abs() < 3e-4, "{a} against {b}");
        }
    }
}
