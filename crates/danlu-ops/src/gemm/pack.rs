//! Packing: operands are copied into narrow panels that the micro-kernels read front to back.
//!
//! A panel holds `w` lines (rows of the left operand, or columns of the right one) step by step:
//! element (line, step) is at `step * w + line`. The lines that a last panel lacks are zeros.

use super::kernels::Level;

/// How many elements ahead of its use a line's memory is asked for.
const AHEAD: usize = 64;
/// How many steps are packed panel by panel where each step is a run of memory of its own: enough
/// to write whole cache lines, few enough that runs a power of two apart do not drive each other
/// out of the cache.
const ROWS_AT_ONCE: usize = 8;

/// A strided view of lines to pack: element (line, step) at `line * line_stride + step * step_stride`.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub ptr: *const f32,
    pub line_stride: usize,
    pub step_stride: usize,
}

/// Packs `lines` lines of `depth` steps into panels `w` wide, one panel after another in `dst`.
///
/// # Safety
/// All the elements of `src` can be read, `dst` has room for `lines` rounded up to whole panels
/// times `depth`, and the processor has the instructions of `level`.
pub(super) unsafe fn pack(
    level: Level,
    w: usize,
    src: Lines,
    lines: usize,
    depth: usize,
    dst: *mut f32,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        match (level, w) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 12) => wide::<12>(src, lines, depth, dst),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, 32) => wide::<32>(src, lines, depth, dst),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 6) => middle::<6>(src, lines, depth, dst),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 16) => middle::<16>(src, lines, depth, dst),
            (_, 4) => panels::<4>(src, lines, depth, dst),
            (_, 6) => panels::<6>(src, lines, depth, dst),
            (_, 8) => panels::<8>(src, lines, depth, dst),
            (_, 16) => panels::<16>(src, lines, depth, dst),
            _ => unreachable!("no kernel has panels of {w}"),
        }
    }
}

/// `panels`, compiled for AVX-512 so that copies of whole lines take few instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wide<const W: usize>(src: Lines, lines: usize, depth: usize, dst: *mut f32) {
    // SAFETY: handed on from the caller.
    unsafe { panels::<W>(src, lines, depth, dst) }
}

/// `panels`, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn middle<const W: usize>(src: Lines, lines: usize, depth: usize, dst: *mut f32) {
    // SAFETY: handed on from the caller.
    unsafe { panels::<W>(src, lines, depth, dst) }
}

#[inline(always)]
unsafe fn panels<const W: usize>(src: Lines, lines: usize, depth: usize, dst: *mut f32) {
    // SAFETY: handed on from the caller; every access is to an element that it names.
    unsafe {
        if src.line_stride == 1 {
            side_by_side::<W>(src, lines, depth, dst);
            return;
        }
        for q in 0..lines.div_ceil(W) {
            let here = W.min(lines - q * W);
            let from = Lines { ptr: src.ptr.add(q * W * src.line_stride), ..src };
            let to = dst.add(q * W * depth);
            if here < W {
                std::ptr::write_bytes(to, 0, W * depth);
            }
            if src.step_stride == 1 {
                transposed::<W>(from, here, depth, to);
            } else {
                for l in 0..here {
                    scattered::<W>(from, l, 0, depth, to);
                }
            }
        }
    }
}

/// Asks for the cache line of an address, which need not be within the operand. The runs of an
/// operand that packing reads are too short for the processor to foresee by itself.
#[inline(always)]
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect that a program can see, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Lines next to each other in memory: each step is a copy of `W` neighbours. A few steps at a
/// time are the outer loop, so that the source is read in long runs.
#[inline(always)]
unsafe fn side_by_side<const W: usize>(src: Lines, lines: usize, depth: usize, dst: *mut f32) {
    let full = lines / W;
    let rest = lines % W;
    // About as much memory on its way for narrow runs as for wide ones; more than the first-level
    // cache can wait for at a time.
    let distance = (4096 / lines.max(1)).clamp(ROWS_AT_ONCE, 16 * ROWS_AT_ONCE);
    // SAFETY: handed on from the caller.
    unsafe {
        for first in (0..depth).step_by(ROWS_AT_ONCE) {
            let steps = first..depth.min(first + ROWS_AT_ONCE);
            for p in steps.clone() {
                let ahead = src.ptr.wrapping_add((p + distance) * src.step_stride);
                crate::cpu::prefetch(ahead, lines);
            }
            for q in 0..full {
                for p in steps.clone() {
                    let from = src.ptr.add(p * src.step_stride + q * W);
                    let to = dst.add((q * depth + p) * W);
                    std::ptr::copy_nonoverlapping(from, to, W);
                }
            }
            if rest > 0 {
                for p in steps {
                    let from = src.ptr.add(p * src.step_stride + full * W);
                    let to = dst.add((full * depth + p) * W);
                    for l in 0..W {
                        to.add(l).write(if l < rest { *from.add(l) } else { 0.0 });
                    }
                }
            }
        }
    }
}

/// One line, element by element, from step `first` on.
#[inline(always)]
unsafe fn scattered<const W: usize>(
    src: Lines,
    line: usize,
    first: usize,
    depth: usize,
    dst: *mut f32,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        let from = src.ptr.add(line * src.line_stride);
        for p in first..depth {
            dst.add(p * W + line).write(*from.add(p * src.step_stride));
        }
    }
}

/// Lines whose steps are next to each other in memory. Sixteen steps, a cache line of each line,
/// are packed at a time, so that many lines are on their way from memory at once.
#[inline(always)]
unsafe fn transposed<const W: usize>(src: Lines, lines: usize, depth: usize, dst: *mut f32) {
    let whole = depth / 16 * 16;
    // SAFETY: handed on from the caller.
    unsafe {
        for l in 0..lines {
            let from = src.ptr.add(l * src.line_stride);
            for ahead in (0..AHEAD).step_by(16) {
                prefetch(from.wrapping_add(ahead));
            }
        }
        let mut p = 0;
        while p < whole {
            let mut l = 0;
            while l + 4 <= lines {
                let from = src.ptr.add(l * src.line_stride + p);
                for i in 0..4 {
                    prefetch(from.wrapping_add(i * src.line_stride + AHEAD));
                }
                four_lines::<W>(from, src.line_stride, dst.add(p * W + l));
                l += 4;
            }
            while l < lines {
                let from = src.ptr.add(l * src.line_stride + p);
                prefetch(from.wrapping_add(AHEAD));
                for i in 0..16 {
                    dst.add((p + i) * W + l).write(*from.add(i));
                }
                l += 1;
            }
            p += 16;
        }
        for l in 0..lines {
            scattered::<W>(src, l, whole, depth, dst);
        }
    }
}

/// Four lines of sixteen steps: step p of line i goes to `dst[p * W + i]`. Squares of four by four
/// are turned within the 128-bit lanes of the widest registers at hand.
#[inline(always)]
unsafe fn four_lines<const W: usize>(from: *const f32, line_stride: usize, dst: *mut f32) {
    // SAFETY: handed on from the caller; which instructions there are was settled at compile time
    // of the function this is inlined into, or they are in every x86-64 processor.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        for p in (0..16).step_by(4) {
            use std::arch::x86_64::*;
            let r = |i: usize| _mm_loadu_ps(from.add(i * line_stride + p));
            let (r0, r1, r2, r3) = (r(0), r(1), r(2), r(3));
            let (lo01, hi01) = (_mm_unpacklo_ps(r0, r1), _mm_unpackhi_ps(r0, r1));
            let (lo23, hi23) = (_mm_unpacklo_ps(r2, r3), _mm_unpackhi_ps(r2, r3));
            let to = dst.add(p * W);
            _mm_storeu_ps(to, _mm_movelh_ps(lo01, lo23));
            _mm_storeu_ps(to.add(W), _mm_movehl_ps(lo23, lo01));
            _mm_storeu_ps(to.add(2 * W), _mm_movelh_ps(hi01, hi23));
            _mm_storeu_ps(to.add(3 * W), _mm_movehl_ps(hi23, hi01));
        }
        #[cfg(not(target_arch = "x86_64"))]
        for p in 0..16 {
            for i in 0..4 {
                dst.add(p * W + i).write(*from.add(i * line_stride + p));
            }
        }
    }
}
