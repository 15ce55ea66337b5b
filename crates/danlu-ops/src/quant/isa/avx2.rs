//! AVX2 with FMA and F16C: two registers for sixteen floats or sixty-four bytes.

use super::{Isa, Kernel};
use std::arch::x86_64::*;

pub(super) struct Avx2;

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

/// Both halves, by a function of the half's number.
macro_rules! both {
    ($i:ident, $x:expr) => {
        unsafe {
            [
                {
                    const $i: usize = 0;
                    $x
                },
                {
                    const $i: usize = 1;
                    $x
                },
            ]
        }
    };
}

impl Isa for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const KEEPS_OFFSET: bool = false;
    const REGISTERS: usize = 8;
    const ROWS: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::F {
        both!(H, _mm256_loadu_ps(at.add(8 * H)))
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, x: Self::F) {
        both!(H, _mm256_storeu_ps(at.add(8 * H), x[H]));
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(H, _mm256_add_ps(a[H], b[H]))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(H, _mm256_mul_ps(a[H], b[H]))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(H, _mm256_fmadd_ps(a[H], b[H], c[H]))
    }
    #[inline(always)]
    unsafe fn halves(at: *const u16) -> Self::F {
        both!(H, _mm256_cvtph_ps(_mm_loadu_si128(at.add(8 * H).cast())))
    }
    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> Self::F {
        both!(H, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.add(8 * H).cast()))))
    }
    #[inline(always)]
    unsafe fn signed(at: *const i8) -> Self::F {
        both!(H, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(8 * H).cast()))))
    }
    #[inline(always)]
    unsafe fn ints(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn float(x: Self::I) -> Self::F {
        both!(H, _mm256_cvtepi32_ps(x[H]))
    }
    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> Self::B {
        both!(H, _mm256_loadu_si256(at.add(32 * H).cast()))
    }
    #[inline(always)]
    unsafe fn low(x: Self::B) -> Self::B {
        both!(H, _mm256_and_si256(x[H], _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    unsafe fn high(x: Self::B) -> Self::B {
        both!(H, _mm256_and_si256(_mm256_srli_epi16::<4>(x[H]), _mm256_set1_epi8(15)))
    }
    #[inline(always)]
    unsafe fn spread(at: *const i8) -> Self::B {
        unsafe { [_mm256_set1_epi32(at.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        both!(H, {
            // At most 2 * 15 * 127: no 16-bit sum overflows.
            let pairs = _mm256_maddubs_epi16(w[H], x[H]);
            _mm256_add_epi32(sum[H], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    unsafe fn dot_offset(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        both!(H, {
            // The sign goes from the weight to the activation: at most 2 * 128 * 127.
            let w = _mm256_xor_si256(w[H], _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x[H], w));
            _mm256_add_epi32(sum[H], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
