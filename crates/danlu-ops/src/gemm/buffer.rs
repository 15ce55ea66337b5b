//! Scratch memory for packed operands, kept by each thread from one product to the next.

use std::cell::Cell;
use std::mem::MaybeUninit;

/// One cache line, which gives the buffers their alignment.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "read and written by address")] [MaybeUninit<f32>; 16]);

/// What a buffer is for; a product may hold one of each at a time.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    Right,
    Left,
    Block,
}

thread_local! {
    static KEPT: [Cell<Vec<Line>>; 3] = const { [const { Cell::new(Vec::new()) }; 3] };
}

/// Floats on a cache-line boundary. Dropping it hands the memory back to the thread.
pub(super) struct Buffer {
    lines: Vec<Line>,
    slot: Slot,
}

impl Buffer {
    /// Room for `len` floats, whose contents are arbitrary. A product that runs inside another
    /// one's wait finds the slot empty and allocates for itself.
    pub fn take(slot: Slot, len: usize) -> Self {
        let mut lines = KEPT.with(|k| k[slot as usize].take());
        let want = len.div_ceil(16);
        if lines.len() < want {
            // Not grown in place: the old contents are of no use.
            lines = Vec::new();
            lines.resize(want, Line([MaybeUninit::uninit(); 16]));
        }
        Buffer { lines, slot }
    }

    pub fn ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // At the end of the thread the slot may be gone; then the memory is simply freed.
        let _ = KEPT.try_with(|k| k[self.slot as usize].set(lines));
    }
}

/// Memory on a cache-line boundary that lives as long as its owner, for operands packed once.
pub(super) struct Owned(Vec<Line>);

impl Owned {
    pub fn new(len: usize) -> Self {
        Owned(vec![Line([MaybeUninit::uninit(); 16]); len.div_ceil(16)])
    }

    pub fn ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    pub fn ptr_mut(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}
