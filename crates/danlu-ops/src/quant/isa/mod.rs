//! Vectors of sixteen, for each instruction set: the kernels of this folder are written once over
//! [`Isa`] and compiled for each.
//!
//! Where a processor fuses multiplication and addition, all instruction sets give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::gemm::{self, Level};

/// Sixteen lanes of one instruction set.
///
/// # Safety
/// Every method wants a processor with the instructions, and pointers that are good for all that
/// the method reads or writes; no alignment is needed.
pub(crate) trait Isa {
    /// Sixteen floats.
    type F: Copy;
    /// Sixteen 32-bit integers.
    type I: Copy;
    /// Sixty-four bytes: four for each lane.
    type B: Copy;

    /// Whether [`Self::dot_offset`] leaves the offset of 128 in, for the caller to take away.
    const KEEPS_OFFSET: bool;
    /// Vectors of sixteen floats that fit into the registers.
    const REGISTERS: usize;
    /// Activation rows that a kernel works on at a time.
    const ROWS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(at: *const f32) -> Self::F;
    unsafe fn store(at: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sixteen half-precision floats.
    unsafe fn halves(at: *const u16) -> Self::F;
    /// Sixteen unsigned bytes as floats.
    unsafe fn unsigned(at: *const u8) -> Self::F;
    /// Sixteen signed bytes as floats.
    unsafe fn signed(at: *const i8) -> Self::F;
    unsafe fn ints(x: i32) -> Self::I;
    unsafe fn float(x: Self::I) -> Self::F;
    unsafe fn bytes(at: *const u8) -> Self::B;
    /// The low four bits of every byte.
    unsafe fn low(x: Self::B) -> Self::B;
    /// The high four bits of every byte.
    unsafe fn high(x: Self::B) -> Self::B;
    /// Four signed bytes in every lane.
    unsafe fn spread(at: *const i8) -> Self::B;
    /// Adds to each lane the products of its four bytes: `w` unsigned and at most 15, `x` signed.
    unsafe fn dot(sum: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// The same for `w` that holds signed bytes plus 128; see [`Self::KEEPS_OFFSET`].
    unsafe fn dot_offset(sum: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// Asks for a cache line, at any address.
    unsafe fn prefetch(at: *const u8);
}

/// Something that is compiled for every instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// # Safety
    /// The processor has the instructions of `I`.
    unsafe fn run<I: Isa>(self) -> Self::Out;
}

/// The instruction set that kernels use at present.
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    match gemm::level() {
        Level::Avx512
            if is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl") =>
        {
            return Level::Avx512;
        }
        Level::Avx512 | Level::Avx2
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c") =>
        {
            return Level::Avx2;
        }
        _ => {}
    }
    Level::Portable
}

/// Runs `kernel` with the instructions of [`level`].
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: `level` names only what the processor has.
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::enter(kernel),
            _ => kernel.run::<portable::Portable>(),
        }
    }
}
