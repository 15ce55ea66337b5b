//! Times matrix products of one library, in single precision, on the shapes that it is given.
//!
//! `peer-gemm LIBRARY THREADS REPEATS`, the products on standard input, one a line, named as by
//! `danlu bench gemm`: `4096 x 512 x 1536, transposed: Right`. One JSON object on standard output.

use std::io::BufRead;
use std::time::Instant;

/// A matrix in memory: element (i, j) at `i * rows + j * cols`.
#[derive(Clone, Copy)]
struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
}

type Product = fn([usize; 3], Mat, Mat, &mut [f32], usize);

/// Row-major `c` = `a` x `b` with `gemm`.
fn gemm_crate([m, k, n]: [usize; 3], a: Mat, b: Mat, c: &mut [f32], threads: usize) {
    let how = match threads {
        1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    // SAFETY: the operands and the result have the sizes and strides that are named.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.data.as_ptr(),
            a.cols as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.cols as isize,
            b.rows as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            how,
        );
    }
}

fn faer_crate([m, k, n]: [usize; 3], a: Mat, b: Mat, c: &mut [f32], threads: usize) {
    use faer::{Accum, MatMut, MatRef, Par};
    let par = match threads {
        1 => Par::Seq,
        n => Par::rayon(n),
    };
    // SAFETY: as above.
    let (a, b, c) = unsafe {
        (
            MatRef::from_raw_parts(a.data.as_ptr(), m, k, a.rows as isize, a.cols as isize),
            MatRef::from_raw_parts(b.data.as_ptr(), k, n, b.rows as isize, b.cols as isize),
            MatMut::from_raw_parts_mut(c.as_mut_ptr(), m, n, n as isize, 1),
        )
    };
    faer::linalg::matmul::matmul(c, Accum::Replace, a, b, 1.0f32, par);
}

/// Takes its threads from `MATMUL_NUM_THREADS`, four at most.
fn matrixmultiply_crate([m, k, n]: [usize; 3], a: Mat, b: Mat, c: &mut [f32], _: usize) {
    // SAFETY: as above.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.data.as_ptr(),
            a.rows as isize,
            a.cols as isize,
            b.data.as_ptr(),
            b.rows as isize,
            b.cols as isize,
            0.0,
            c.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

/// Takes its threads from `OPENBLAS_NUM_THREADS`.
#[cfg(feature = "openblas")]
fn openblas([m, k, n]: [usize; 3], a: Mat, b: Mat, c: &mut [f32], _: usize) {
    #[link(name = "openblas")]
    unsafe extern "C" {
        fn cblas_sgemm(
            order: i32,
            a_transposed: i32,
            b_transposed: i32,
            m: i32,
            n: i32,
            k: i32,
            alpha: f32,
            a: *const f32,
            a_width: i32,
            b: *const f32,
            b_width: i32,
            beta: f32,
            c: *mut f32,
            c_width: i32,
        );
    }
    const ROW_MAJOR: i32 = 101;
    // Whether an operand is transposed (112) or not (111), and the distance between its lines.
    let lies = |x: Mat| match x.cols {
        1 => (111, x.rows as i32),
        width => (112, width as i32),
    };
    let ((ta, wa), (tb, wb)) = (lies(a), lies(b));
    // SAFETY: as above; the constants are those of the CBLAS interface.
    unsafe {
        cblas_sgemm(
            ROW_MAJOR,
            ta,
            tb,
            m as i32,
            n as i32,
            k as i32,
            1.0,
            a.data.as_ptr(),
            wa,
            b.data.as_ptr(),
            wb,
            0.0,
            c.as_mut_ptr(),
            n as i32,
        );
    }
}

/// The libraries by name.
const LIBRARIES: &[(&str, Product)] = &[
    ("gemm", gemm_crate),
    ("faer", faer_crate),
    ("matrixmultiply", matrixmultiply_crate),
    #[cfg(feature = "openblas")]
    ("openblas", openblas),
];

/// Sizes of a product and which operand is transposed.
fn parse(line: &str) -> Option<([usize; 3], &str)> {
    let (sizes, transposed) = line.split_once(", transposed: ")?;
    let sizes: Vec<usize> = sizes.split(" x ").map_while(|s| s.parse().ok()).collect();
    Some((sizes.try_into().ok()?, transposed.trim()))
}

/// Median seconds of one product.
fn time(product: Product, size: [usize; 3], transposed: &str, threads: usize, repeats: usize) -> f64 {
    let [m, k, n] = size;
    let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
    let mut c = vec![0.0f32; m * n];
    let left = match transposed {
        "Left" => Mat { data: &a, rows: 1, cols: m },
        _ => Mat { data: &a, rows: k, cols: 1 },
    };
    let right = match transposed {
        "Right" => Mat { data: &b, rows: 1, cols: k },
        _ => Mat { data: &b, rows: n, cols: 1 },
    };
    let times = (20_000_000 / (m * k * n)).clamp(1, 200);
    let mut seconds: Vec<f64> = (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            for _ in 0..times {
                product(size, left, right, &mut c, threads);
            }
            start.elapsed().as_secs_f64() / times as f64
        })
        .collect();
    let want = 0.125 * k as f32;
    assert!(c.iter().all(|&v| (v - want).abs() <= 1e-3 * want), "a wrong product");
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    let usage = "usage: peer-gemm LIBRARY THREADS REPEATS < names of products";
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [library, threads, repeats] = args.as_slice() else { panic!("{usage}") };
    let number = |s: &String| s.parse::<usize>().unwrap_or_else(|_| panic!("{usage}, found {s}"));
    let (threads, repeats) = (number(threads), number(repeats));
    let names: Vec<&str> = LIBRARIES.iter().map(|(name, _)| *name).collect();
    let found = LIBRARIES.iter().find(|(name, _)| name == library);
    let (_, product) = found.unwrap_or_else(|| panic!("{library} is not one of {names:?}"));
    let rows: Vec<_> = std::io::stdin()
        .lock()
        .lines()
        .map(|line| line.expect("text on standard input"))
        .map(|name| {
            let (size, transposed) =
                parse(&name).unwrap_or_else(|| panic!("{name:?} is not like 8 x 9 x 10, transposed: Left"));
            let seconds = time(*product, size, transposed, threads, repeats);
            let flops = 2.0 * size.iter().product::<usize>() as f64;
            serde_json::json!({
                "name": name, "milliseconds": 1e3 * seconds, "gflops": flops / seconds / 1e9,
            })
        })
        .collect();
    println!("{}", serde_json::json!({ "threads": threads, "rows": rows }));
}
