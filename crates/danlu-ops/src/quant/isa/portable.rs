//! Plain Rust, left to the compiler's vectoriser.

use super::Isa;
use half::f16;
use std::array::from_fn;

pub(super) struct Portable;

#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction a fused multiplication is a slow function.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

impl Isa for Portable {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];

    const KEEPS_OFFSET: bool = false;
    const REGISTERS: usize = 8;
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::F {
        unsafe { at.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, x: Self::F) {
        unsafe { at.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| multiply_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn halves(at: *const u16) -> Self::F {
        let bits = unsafe { at.cast::<[u16; 16]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32_const())
    }
    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> Self::F {
        unsafe { at.cast::<[u8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn signed(at: *const i8) -> Self::F {
        unsafe { at.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn ints(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn float(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> Self::B {
        unsafe { at.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low(x: Self::B) -> Self::B {
        x.map(|b| b & 15)
    }
    #[inline(always)]
    unsafe fn high(x: Self::B) -> Self::B {
        x.map(|b| b >> 4)
    }
    #[inline(always)]
    unsafe fn spread(at: *const i8) -> Self::B {
        let four = unsafe { at.cast::<[u8; 4]>().read_unaligned() };
        from_fn(|i| four[i % 4])
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        from_fn(|i| {
            let product = |j: usize| i32::from(w[4 * i + j]) * i32::from(x[4 * i + j] as i8);
            sum[i] + product(0) + product(1) + product(2) + product(3)
        })
    }
    #[inline(always)]
    unsafe fn dot_offset(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        from_fn(|i| {
            let weight = |j: usize| i32::from(w[4 * i + j]) - 128;
            let product = |j: usize| weight(j) * i32::from(x[4 * i + j] as i8);
            sum[i] + product(0) + product(1) + product(2) + product(3)
        })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
