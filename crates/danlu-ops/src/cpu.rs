//! What the CPU kernels share: slices of tensors, matrix products, vectorised exponentials.

pub(crate) use crate::gemm::{Mat, Threads, gemm, gemm_bias};
use crate::pool::{Buffer, tensor};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

/// Rows that one task of a row-wise kernel handles. Fixed, so that partial sums are the same for
/// any number of threads.
pub(crate) const ROWS: usize = 64;

/// The dimensions of `t`.
pub(crate) fn dims<const D: usize>(t: &FlexTensor) -> [usize; D] {
    t.layout().shape().dims()
}

/// The values of `t`, which must be contiguous.
pub(crate) fn values(t: &FlexTensor) -> &[f32] {
    t.as_slice().expect("the caller made the tensor contiguous")
}

/// The values of `t`, which must be contiguous, to change. They are copied first if another tensor
/// shares them or `t` is a part of something larger.
pub(crate) fn values_mut(t: &mut FlexTensor) -> &mut [f32] {
    if t.storage::<f32>().len() != t.layout().num_elements() {
        let shape = t.layout().shape().clone();
        let mut copy = Buffer::any(t.layout().num_elements());
        copy.copy_from_slice(values(t));
        *t = tensor(copy, shape);
    }
    t.storage_mut::<f32>()
}

/// Rows of `width` that one task handles where nothing is summed over rows.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}

/// `e^x` with a relative error below 2e-7, in a form that vectorises: range reduction by powers
/// of two, then the minimax polynomial of Cephes `expf`. The multiply-adds are fused, which rounds the
/// same on every machine.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, which then also stands
    // in the lowest bits. It is taken from there: a cast to an integer saturates, and the loops that
    // call this are no longer vectorised.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = r.mul_add(1.987_569_1e-4, 1.398_199_9e-3);
    let p = r.mul_add(p, 8.333_452e-3);
    let p = r.mul_add(p, 4.166_579_6e-2);
    let p = r.mul_add(p, 1.666_666_5e-1);
    let p = r.mul_add(p, 5e-1);
    let y = (p * r).mul_add(r, r) + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Runs `f` compiled for the widest vectors that this processor has.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Dot product in eight interleaved partial sums.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (ac, ar) = a.as_chunks::<16>();
    let (bc, br) = b.as_chunks::<16>();
    for (x, y) in ac.iter().zip(bc) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    let tail: f32 = ar.iter().zip(br).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + tail
}

/// Sum in sixteen interleaved partial sums.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (chunks, tail) = a.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            sums[i] += chunk[i];
        }
    }
    sums.iter().sum::<f32>() + tail.iter().sum::<f32>()
}

/// `out` takes the rows of `from`, of `width` each, plus `bias` if there is one.
pub(crate) fn copy_rows(out: &mut [f32], from: &[f32], bias: Option<&[f32]>, width: usize) {
    let rows = rows_per_task(width) * width.max(1);
    out.par_chunks_mut(rows).zip(from.par_chunks(rows)).for_each(|(out, from)| {
        let Some(bias) = bias else { return out.copy_from_slice(from) };
        vectorised(
            #[inline(always)]
            || {
                for (out, from) in out.chunks_exact_mut(width).zip(from.chunks_exact(width)) {
                    for i in 0..width {
                        out[i] = from[i] + bias[i];
                    }
                }
            },
        );
    });
}

/// Every row of `out` becomes `row`.
pub(crate) fn fill_rows(out: &mut [f32], row: &[f32]) {
    let rows = rows_per_task(row.len()) * row.len().max(1);
    out.par_chunks_mut(rows).for_each(|out| {
        out.chunks_exact_mut(row.len().max(1)).for_each(|out| out.copy_from_slice(row));
    });
}

/// Sum of the rows of `x`, of `width` each.
pub(crate) fn sum_rows(x: &[f32], width: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = x
        .par_chunks(ROWS * width.max(1))
        .map(|x| {
            let mut sum = vec![0.0; width];
            vectorised(
                #[inline(always)]
                || {
                    for row in x.chunks_exact(width.max(1)) {
                        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
                    }
                },
            );
            sum
        })
        .collect();
    add_parts(&parts, width)
}

/// Sums of every column of the row-major `[rows, width]` matrices in `parts`, added in order.
pub(crate) fn add_parts(parts: &[Vec<f32>], width: usize) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for part in parts {
        for (t, p) in total.iter_mut().zip(part) {
            *t += p;
        }
    }
    total
}

/// A pointer that parallel tasks write disjoint parts through.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32, usize);

// SAFETY: tasks only reach it through `Shared::part`, whose caller promises disjoint ranges.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Asks for the memory of a part that will be written, which need not be within the slice.
    #[inline(always)]
    pub(crate) fn prefetch(&self, start: usize, len: usize) {
        prefetch(self.0.wrapping_add(start), len);
    }

    /// The elements from `start`, `len` of them.
    ///
    /// # Safety
    /// No other task may hold a range that overlaps this one while it is in use, and the slice
    /// that this was made of must outlive the use.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.1, "Shared::part out of range");
        // SAFETY: inside the slice by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Asks for the memory of `len` numbers from `from` on, into the second-level cache, whether they are
/// anybody's or not: for runs too short and too far apart for the processor to foresee.
#[inline(always)]
pub(crate) fn prefetch(from: *const f32, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch has no effect that a program can see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, len);
}

/// Independent chains of vector multiply-adds that never leave the registers; returns the lanes of
/// a vector, and a number so that nothing is optimised away.
struct Chains;

impl Chains {
    const NUMBER: usize = 12;
    const ROUNDS: usize = 20_000;
}

impl pulp::WithSimd for Chains {
    type Output = (usize, f32);

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> (usize, f32) {
        let a = simd.splat_f32s(std::hint::black_box(0.999_9));
        let b = simd.splat_f32s(std::hint::black_box(1e-5));
        let mut chains = [simd.splat_f32s(1.0); Self::NUMBER];
        for _ in 0..Self::ROUNDS {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, a, b);
            }
        }
        (S::F32_LANES, chains.iter().map(|&c| simd.reduce_sum_f32s(c)).sum())
    }
}

/// The chains on vectors of the width that products use at present (`GEMM_LEVEL` in the environment).
fn chains() -> (usize, f32) {
    #[cfg(target_arch = "x86_64")]
    if crate::gemm::level() == crate::gemm::Level::Avx2
        && let Some(avx2) = pulp::x86::V3::try_new()
    {
        return pulp::Simd::vectorize(avx2, Chains);
    }
    pulp::Arch::new().dispatch(Chains)
}

/// Fused multiply-add peak of this machine with `threads` threads, in FLOP/s, measured for about
/// `seconds`. Where products were told to use AVX2 (`GEMM_LEVEL`), it is that of AVX2.
pub fn fma_peak(threads: usize, seconds: f64) -> f64 {
    let run = |_: usize| -> f64 {
        let mut done = 0;
        let start = std::time::Instant::now();
        while start.elapsed().as_secs_f64() < seconds {
            let (lanes, sum) = chains();
            std::hint::black_box(sum);
            done += 2 * lanes * Chains::NUMBER * Chains::ROUNDS;
        }
        done as f64 / start.elapsed().as_secs_f64()
    };
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) => pool.install(|| (0..threads).into_par_iter().map(run).sum()),
        Err(_) => run(0),
    }
}

/// Which operand of a product lies transposed in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transposed {
    /// None: the gradient of a projection's input.
    Neither,
    /// The left one: the gradient of a projection's weight.
    Left,
    /// The right one: a projection.
    Right,
}

/// Rate of a matrix product `[m, k] x [k, n]` on every thread, in FLOP/s: the median of `repeats`.
pub fn gemm_rate([m, k, n]: [usize; 3], transposed: Transposed, repeats: usize) -> f64 {
    let a = vec![0.5f32; m * k];
    let b = vec![0.25f32; k * n];
    let mut c = vec![0.0f32; m * n];
    let left = match transposed {
        Transposed::Left => Mat::new(&a, m).t(),
        _ => Mat::new(&a, k),
    };
    let right = match transposed {
        Transposed::Right => Mat::new(&b, k).t(),
        _ => Mat::new(&b, n),
    };
    // Several products at a time where one is too short for the clock.
    let times = (20_000_000 / (m * k * n).max(1)).clamp(1, 200);
    let mut seconds: Vec<f64> = (0..repeats.max(1))
        .map(|_| {
            let start = std::time::Instant::now();
            for _ in 0..times {
                gemm([m, k, n], left, right, &mut c, n, 0.0, Threads::All);
            }
            start.elapsed().as_secs_f64() / times as f64
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    2.0 * (m * k * n) as f64 / seconds[seconds.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor with AVX2 alone has its own way to run loops, or it would run them four lanes at a
    /// time and call a function for each multiply-add. That it is compiled in is seen anywhere.
    #[cfg(target_arch = "x86_64")]
    const AVX2_IS_THERE: fn(pulp::x86::V3) -> pulp::Arch = pulp::Arch::V3;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vectors_are_as_wide_as_the_processor_has() {
        struct Lanes;
        impl pulp::WithSimd for Lanes {
            type Output = usize;
            fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        if let Some(avx2) = pulp::x86::V3::try_new() {
            assert_eq!(AVX2_IS_THERE(avx2).dispatch(Lanes), 8);
        }
        let [avx512, avx2] =
            [is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2")];
        let want = if avx512 {
            16
        } else if avx2 {
            8
        } else {
            1
        };
        assert_eq!(pulp::Arch::new().dispatch(Lanes), want);
    }

    #[test]
    fn exp_is_close_over_its_range() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01;
            let want = (x as f64).exp();
            let error = (exp(x) as f64 - want).abs() / want;
            assert!(error < 3e-7, "exp({x}): {error:e}");
        }
        assert!(exp(-1e9) < 1e-37);
    }

    #[test]
    fn no_matrix_product_is_faster_than_the_peak() {
        let threads = rayon::current_num_threads();
        let peak = fma_peak(threads, 0.05);
        let product = gemm_rate([512, 512, 512], Transposed::Neither, 9);
        // Another program may have had the processor during one of the two.
        assert!(product < 2.0 * peak, "product {product:e}, peak {peak:e} FLOP/s");
    }

    #[test]
    fn gemm_handles_every_transpose() {
        let (m, k, n) = (5, 7, 3);
        let a: Vec<f32> = (0..m * k).map(|i| (i % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 7) as f32 - 3.0).collect();
        let want: Vec<f32> = (0..m * n)
            .map(|e| (0..k).map(|p| a[e / n * k + p] * b[p * n + e % n]).sum::<f32>() + 1.0)
            .collect();
        let at: Vec<f32> = (0..k * m).map(|e| a[e % m * k + e / m]).collect();
        let bt: Vec<f32> = (0..n * k).map(|e| b[e % k * n + e / k]).collect();
        for (x, y) in [
            (Mat::new(&a, k), Mat::new(&b, n)),
            (Mat::new(&at, m).t(), Mat::new(&b, n)),
            (Mat::new(&a, k), Mat::new(&bt, k).t()),
            (Mat::new(&at, m).t(), Mat::new(&bt, k).t()),
        ] {
            let mut c = vec![1.0; m * n];
            gemm([m, k, n], x, y, &mut c, n, 1.0, Threads::All);
            assert_eq!(c, want);
        }
    }
}
