//! Tests against sums in double precision, and of the promises about bits.

use super::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tests that force a level must not overlap.
fn exclusive() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` once for every level that the processor has.
fn each_level(f: impl Fn(Level)) {
    let _guard = exclusive();
    for l in [Level::Portable, Level::Avx2, Level::Avx512, Level::Neon] {
        force_level(Some(l));
        if level() == l {
            f(l);
        }
    }
    force_level(None);
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() % 2001) as f32 / 1000.0 - 1.0).collect()
    }
    fn below(&mut self, most: usize) -> usize {
        self.next() as usize % most
    }
}

/// An operand with random strides of one of four kinds.
struct Operand(Vec<f32>, usize, usize);

impl Operand {
    fn new(r: &mut Random, rows: usize, cols: usize, kind: usize) -> Self {
        let gap = r.below(4);
        let (rs, cs) = match kind {
            0 => (cols + gap, 1),
            1 => (1, rows + gap),
            2 => ((cols + gap) * 2, 2),
            _ => (3, rows * 3 + gap),
        };
        let len = if rows * cols == 0 { 0 } else { (rows - 1) * rs + (cols - 1) * cs + 1 };
        Operand(r.vec(len), rs, cs)
    }
    fn mat(&self) -> Mat<'_> {
        Mat { data: &self.0, rows: self.1, cols: self.2 }
    }
    fn at(&self, i: usize, j: usize) -> f64 {
        self.0[i * self.1 + j * self.2] as f64
    }
}

fn check(r: &mut Random, [m, k, n]: [usize; 3], keep: f32, threads: Threads) {
    let (ka, kb) = (r.below(4), r.below(4));
    let a = Operand::new(r, m, k, ka);
    let b = Operand::new(r, k, n, kb);
    let width = n + r.below(3) * 5;
    let before = if keep == 0.0 { vec![f32::NAN; m * width] } else { r.vec(m * width) };
    let bias = r.vec(n);
    let mut c = before.clone();
    gemm([m, k, n], a.mat(), b.mat(), &mut c, width, keep, threads);
    let packed = Packed::new(b.mat(), [k, n]);
    let mut d = before.clone();
    gemm_packed(m, a.mat(), &packed, &mut d, width, keep, threads);
    let mut e = before.clone();
    gemm_bias([m, k, n], a.mat(), b.mat(), &bias, &mut e, width, threads);
    for i in 0..m {
        for j in 0..width {
            let (x, old) = (c[i * width + j], before[i * width + j]);
            assert_eq!(x.to_bits(), d[i * width + j].to_bits(), "packed {m} {k} {n}");
            if j >= n {
                assert_eq!(x.to_bits(), old.to_bits(), "outside {m} {k} {n}");
                assert_eq!(e[i * width + j].to_bits(), old.to_bits(), "outside {m} {k} {n}");
                continue;
            }
            let (mut sum, mut size) = (0f64, 1e-3f64);
            for p in 0..k {
                sum += a.at(i, p) * b.at(p, j);
                size += (a.at(i, p) * b.at(p, j)).abs();
            }
            let bound = (1e-6 * size).max(3e-7 * size * (k as f64).sqrt().min(20.0));
            let want = if keep == 0.0 { sum } else { sum + (keep * old) as f64 };
            let place = format!("{:?} {m} {k} {n} at {i} {j} kinds {ka} {kb}", level());
            assert!((x as f64 - want).abs() <= bound + 1e-6, "{place}: {x} for {want}");
            let (y, want) = (e[i * width + j] as f64, sum + bias[j] as f64);
            assert!((y - want).abs() <= bound + 1e-6, "bias {place}: {y} for {want}");
        }
    }
}

#[test]
fn small_and_odd_sizes() {
    each_level(|_| {
        let mut r = Random(1);
        for round in 0..1500 {
            let size = [1 + r.below(70), 1 + r.below(70), 1 + r.below(70)];
            check(&mut r, size, [0.0, 1.0, 0.5][round % 3], Threads::One);
        }
    });
}

#[test]
fn every_edge() {
    each_level(|_| {
        let mut r = Random(2);
        for m in 1..=26 {
            for n in 1..=35 {
                check(&mut r, [m, 5, n], [0.0, 0.5][n % 2], Threads::One);
            }
        }
    });
}

#[test]
fn larger_sizes() {
    each_level(|_| {
        let mut r = Random(3);
        for size in [
            [257, 263, 269],
            [13, 4099, 17],
            [1, 1031, 523],
            [523, 1031, 1],
            [67, 2053, 131],
            [509, 31, 997],
            [64, 512, 64],
            [300, 300, 2100],
            [61, 1543, 1033],
            [31, 17, 8300],
            [1009, 64, 64],
            [241, 257, 33],
        ] {
            for keep in [0.0, 1.0, 0.5] {
                check(&mut r, size, keep, Threads::All);
            }
        }
    });
}

#[test]
fn the_upper_triangle_of_a_symmetric_product() {
    each_level(|_| {
        let mut r = Random(9);
        for [n, k] in [[1, 3], [37, 50], [130, 700], [257, 64], [300, 300], [3, 0], [0, 3]] {
            for kind in [0, 1] {
                let a = Operand::new(&mut r, n, k, kind);
                let mut whole = vec![0.0; n * n];
                gemm([n, k, n], a.mat(), a.mat().t(), &mut whole, n, 0.0, Threads::One);
                for threads in [Threads::One, Threads::All] {
                    let mut upper = vec![f32::NAN; n * n];
                    gemm_upper([n, k], a.mat(), a.mat().t(), &mut upper, threads);
                    for i in 0..n {
                        let row = i * n + i..(i + 1) * n;
                        assert_eq!(upper[row.clone()], whole[row], "{n} {k}, row {i}");
                    }
                    if n > 200 {
                        assert!(upper[(n - 1) * n].is_nan(), "{n} {k}: the rest is not computed");
                    }
                }
            }
        }
    });
}

#[test]
fn zero_sizes() {
    each_level(|_| {
        let mut r = Random(4);
        for size in [[0, 3, 4], [3, 0, 4], [3, 4, 0], [0, 0, 0]] {
            for keep in [0.0, 1.0, 0.5] {
                check(&mut r, size, keep, Threads::All);
            }
        }
    });
}

#[test]
fn bits_do_not_depend_on_threads() {
    each_level(|_| {
        let mut r = Random(5);
        for [m, k, n] in
            [[300, 700, 500], [64, 4100, 130], [1000, 300, 64], [200, 2500, 2100], [50, 40, 9000]]
        {
            for (ka, kb) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let a = Operand::new(&mut r, m, k, ka);
                let b = Operand::new(&mut r, k, n, kb);
                let before = r.vec(m * n);
                let mut one = before.clone();
                gemm([m, k, n], a.mat(), b.mat(), &mut one, n, 0.5, Threads::One);
                for threads in [1, 2, 3, 5] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    let pool = pool.expect("a pool");
                    let mut c = before.clone();
                    pool.install(|| {
                        gemm([m, k, n], a.mat(), b.mat(), &mut c, n, 0.5, Threads::All);
                    });
                    let same = c.iter().zip(&one).all(|(x, y)| x.to_bits() == y.to_bits());
                    assert!(same, "{threads} threads, {m} {k} {n}");
                }
            }
        }
    });
}

#[test]
fn bits_of_a_part_do_not_depend_on_the_rest() {
    each_level(|_| {
        let mut r = Random(6);
        for [m, k, n] in [[300, 700, 200], [64, 3000, 130], [37, 90, 64]] {
            let a = Operand::new(&mut r, m, k, 0);
            let b = Operand::new(&mut r, k, n, 1);
            let mut all = vec![0.0; m * n];
            gemm([m, k, n], a.mat(), b.mat(), &mut all, n, 0.0, Threads::All);
            for i in [0, 1, 11, 12, m / 2, m - 1] {
                let mut row = vec![0.0; n];
                let alone = Mat { data: &a.0[i * a.1..], ..a.mat() };
                gemm([1, k, n], alone, b.mat(), &mut row, n, 0.0, Threads::One);
                assert_eq!(row, all[i * n..(i + 1) * n]);
                let mut one = [0.0];
                let j = (i * 7) % n;
                let column = Mat { data: &b.0[j * b.2..], ..b.mat() };
                gemm([1, k, 1], alone, column, &mut one, 1, 0.0, Threads::One);
                assert_eq!(one[0], all[i * n + j]);
            }
        }
    });
}

#[test]
fn levels_with_fused_products_agree() {
    let mut r = Random(7);
    let a = r.vec(100 * 600);
    let b = r.vec(600 * 90);
    let results = Mutex::new(Vec::new());
    each_level(|l| {
        if l != Level::Portable {
            let mut c = vec![0.0; 100 * 90];
            let (a, b) = (Mat::new(&a, 600), Mat::new(&b, 90));
            gemm([100, 600, 90], a, b, &mut c, 90, 0.0, Threads::One);
            results.lock().expect("no panic").push(c);
        }
    });
    let results = results.into_inner().expect("no panic");
    assert!(results.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn nested_in_parallel_work() {
    let _guard = exclusive();
    use rayon::prelude::*;
    let mut r = Random(8);
    let (a, b) = (r.vec(200 * 300), r.vec(300 * 200));
    let product = || {
        let mut c = vec![0.0; 200 * 200];
        gemm([200, 300, 200], Mat::new(&a, 300), Mat::new(&b, 200), &mut c, 200, 0.0, Threads::All);
        c
    };
    let want = product();
    let all: Vec<_> = (0..64).into_par_iter().map(|_| product()).collect();
    assert!(all.iter().all(|c| *c == want));
}

#[test]
#[should_panic(expected = "gemm: left operand too short")]
fn short_left() {
    gemm(
        [2, 2, 2],
        Mat::new(&[0.0; 3], 2),
        Mat::new(&[0.0; 4], 2),
        &mut [0.0; 4],
        2,
        0.0,
        Threads::One,
    );
}

#[test]
#[should_panic(expected = "gemm: right operand too short")]
fn short_right() {
    gemm(
        [2, 2, 2],
        Mat::new(&[0.0; 4], 2),
        Mat::new(&[0.0; 3], 2),
        &mut [0.0; 4],
        2,
        0.0,
        Threads::One,
    );
}

#[test]
#[should_panic(expected = "gemm: result too short")]
fn short_result() {
    gemm(
        [2, 2, 2],
        Mat::new(&[0.0; 4], 2),
        Mat::new(&[0.0; 4], 2),
        &mut [0.0; 3],
        2,
        0.0,
        Threads::One,
    );
}
