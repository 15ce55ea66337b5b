//! Memory of tensors, taken from the system once and used again.
//!
//! A training step allocates and drops large tensors by the hundred, the same sizes each time.
//! Given back to the system they cost a page fault for every page of every step, and fresh memory
//! must be zeroed although nearly all of it is overwritten at once. So what a [`Buffer`] held stays
//! here when it is dropped: a small block in a list by size, a large one as a free part of an
//! [`arena`], and the next buffer takes it, whatever it holds.
//!
//! What is kept for later is little more than it takes to reach the largest amount that was in use at
//! one time: where new memory would pass that by an eighth, other memory is given back first.

mod arena;

use arena::Arena;
pub(crate) use arena::in_large_pages;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};
// Named so that its library is linked.
use libmimalloc_sys as _;
use std::alloc::{Layout as Allocation, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_long};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a large page.
pub(crate) const LARGE: usize = 2 << 20;

/// Memory of tensors in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// In use now.
    pub used: usize,
    /// Most in use at one time since [`reset_peak`].
    pub peak: usize,
    /// Kept for later.
    pub kept: usize,
}

/// What is in use and what is kept, of the whole program.
static POOL: Mutex<Pool> = Mutex::new(Pool {
    small: BTreeMap::new(),
    large: Arena::new(),
    now: Memory { used: 0, peak: 0, kept: 0 },
});

struct Pool {
    /// Addresses of blocks of less than [`LARGE`] by their size in bytes.
    small: BTreeMap<usize, Vec<usize>>,
    large: Arena,
    now: Memory,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory of tensors at this moment.
pub fn memory() -> Memory {
    pool().now
}

/// Begins a new measurement of the peak.
pub fn reset_peak() {
    let mut pool = pool();
    pool.now.peak = pool.now.used;
}

unsafe extern "C" {
    /// Of mimalloc: gives pages that nothing is in back to the system, at once.
    fn mi_collect(force: bool);
    /// Of mimalloc: sets one of the options that its header numbers.
    fn mi_option_set(option: c_int, value: c_long);
}

/// `mi_option_purge_delay`, milliseconds that a page with nothing in it is kept for.
const PURGE_DELAY: c_int = 15;

/// From here on the allocator keeps no empty pages, if it is mimalloc. For a program that is mostly idle
/// and has many threads: [`give_back`] reaches what is kept for the thread that calls it.
pub fn keep_no_pages() {
    // SAFETY: it may be called by any thread at any time, whether mimalloc is the allocator or not.
    unsafe { mi_option_set(PURGE_DELAY, 0) };
}

/// Gives memory that nobody holds back to the system: what tensors left behind, what the allocator
/// keeps for this thread, if that is mimalloc, and pages of the program that were read so far. For after
/// the opening of a model, which takes far more for a moment than what stays, and for when there is
/// nothing to do.
pub fn give_back() {
    let mut pool = pool();
    while pool.now.kept > 0 {
        pool.give_back();
    }
    drop(pool);
    // SAFETY: it may be called by any thread at any time, whether mimalloc is the allocator or not.
    unsafe { mi_collect(true) };
    crate::program::give_back();
}

/// Bytes that a tensor of `len` numbers takes when an operation makes it.
pub fn tensor_bytes(len: usize) -> usize {
    let bytes = (len * size_of::<f32>()).max(64);
    if bytes < 0x1_0000 {
        bytes.next_power_of_two()
    } else {
        bytes.next_multiple_of(if bytes < LARGE { 0x1_0000 } else { LARGE })
    }
}

fn layout(bytes: usize) -> Allocation {
    Allocation::from_size_align(bytes, 64).expect("sizes are far below the address space")
}

impl Pool {
    fn take(&mut self, bytes: usize) -> NonNull<u8> {
        self.now.used += bytes;
        self.now.peak = self.now.peak.max(self.now.used);
        if bytes >= LARGE {
            let Some((at, kept)) = self.large.take(bytes) else {
                handle_alloc_error(layout(bytes))
            };
            self.now.kept -= kept;
            if kept < bytes {
                self.make_room();
            }
            return at;
        }
        if let Some(address) = self.small.get_mut(&bytes).and_then(Vec::pop) {
            self.now.kept -= bytes;
            return NonNull::new(address as *mut u8).expect("only real addresses are kept");
        }
        self.make_room();
        // SAFETY: the size is at least 64.
        let at = unsafe { alloc_zeroed(layout(bytes)) };
        NonNull::new(at).unwrap_or_else(|| handle_alloc_error(layout(bytes)))
    }

    fn put(&mut self, at: NonNull<u8>, bytes: usize) {
        self.now.used -= bytes;
        self.now.kept += bytes;
        if bytes >= LARGE {
            self.large.put(at, bytes);
        } else {
            self.small.entry(bytes).or_default().push(at.as_ptr() as usize);
        }
    }

    /// Gives memory back while what is in use and kept passes the largest use so far by more than an
    /// eighth. Large blocks of many sizes never lie without gaps: with no room at all for those, pages
    /// would go back to the system and come from it anew in every step.
    fn make_room(&mut self) {
        let most = self.now.peak + self.now.peak / 8;
        while self.now.used + self.now.kept > most && self.now.kept > 0 {
            self.give_back();
        }
    }

    /// Returns one kept part to the system: of the arena, or the largest of the small blocks.
    fn give_back(&mut self) {
        let bytes = self.large.give_back();
        if bytes > 0 {
            self.now.kept -= bytes;
            return;
        }
        let Some((&bytes, list)) = self.small.iter_mut().next_back() else { return };
        if let Some(address) = list.pop() {
            self.now.kept -= bytes;
            // SAFETY: `take` allocated it with this layout, and the list was its only owner.
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
        }
        if list.is_empty() {
            self.small.remove(&bytes);
        }
    }
}

/// Numbers in pooled memory.
pub(crate) struct Buffer {
    at: NonNull<u8>,
    len: usize,
    bytes: usize,
}

// SAFETY: a buffer owns its memory alone, like a `Box`.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` numbers of any values (memory is zeroed when it comes from the system, and afterwards
    /// holds what was left in it).
    pub(crate) fn any(len: usize) -> Self {
        let bytes = tensor_bytes(len);
        Self { at: pool().take(bytes), len, bytes }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        use rayon::prelude::*;
        let mut this = Self::any(len);
        this.par_chunks_mut(1 << 18).for_each(|part| part.fill(0.0));
        this
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        pool().put(self.at, self.bytes);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the block is ours, aligned, holds at least `len` numbers, and was zeroed or
        // written when it came from the system.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), self.len) }
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        // Copies are made at this alignment, which is the most that ordinary ones have.
        16
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(
        &mut self,
        _: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let len = self.len * size_of::<f32>();
        // SAFETY: as in `deref_mut`; the caller writes only initialised bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), len) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let len = self.len * size_of::<f32>();
        // SAFETY: as in `deref`.
        Ok(unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), len) })
    }
}

/// Values that a tensor can take over.
pub(crate) trait IntoBytes {
    fn into_bytes(self) -> Bytes;
}

impl IntoBytes for Vec<f32> {
    fn into_bytes(self) -> Bytes {
        Bytes::from_elems(self)
    }
}

impl IntoBytes for Buffer {
    fn into_bytes(self) -> Bytes {
        let len = self.len * size_of::<f32>();
        // SAFETY: all of the buffer's numbers are initialised.
        unsafe { Bytes::from_controller(Box::new(self), len) }
    }
}

/// A contiguous `f32` tensor of `shape` that takes over `values`.
pub(crate) fn tensor(values: impl IntoBytes, shape: impl Into<Shape>) -> FlexTensor {
    let (bytes, shape) = (values.into_bytes(), shape.into());
    assert_eq!(bytes.len(), shape.num_elements() * size_of::<f32>(), "tensor: {shape:?}");
    FlexTensor::new(bytes, Layout::contiguous(shape), DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!([1, 17, 1 << 14].map(tensor_bytes), [64, 128, 1 << 16]);
        assert_eq!(tensor_bytes((1 << 20) + 1), 3 * LARGE);
    }

    #[test]
    fn small_memory_is_used_again_and_zeros_are_zeros() {
        // Sizes that no other test uses; where a large block lies, other tests have a say in.
        for n in [355_555, 5_555_555] {
            let mut a = Buffer::any(n);
            a.fill(3.0);
            let address = a.as_ptr();
            drop(a);
            if tensor_bytes(n) < LARGE {
                let b = Buffer::any(n);
                assert_eq!((b.as_ptr(), b[n - 1]), (address, 3.0));
            }
            let c = Buffer::zeros(n);
            assert!(tensor_bytes(n) >= LARGE || c.as_ptr() == address);
            assert!(c.iter().all(|&v| v == 0.0));
        }
    }

    #[test]
    fn what_is_given_back_comes_zeroed_again() {
        // A small size that no other test uses; the arena has a test of its own.
        let n = 222_222;
        let mut a = Buffer::any(n);
        a.fill(3.0);
        drop(a);
        let size = tensor_bytes(n);
        assert!(pool().small.contains_key(&size));
        give_back();
        assert!(!pool().small.contains_key(&size));
        assert!(Buffer::any(n).iter().all(|&v| v == 0.0));
    }

    #[test]
    fn a_tensor_takes_over_and_gives_back() {
        let mut a = Buffer::any(77_777);
        a.fill(2.0);
        let t = tensor(a, [7, 11_111]);
        let copy = t.clone();
        let mut changed = t.clone();
        changed.storage_mut::<f32>()[5] = 1.0;
        assert_eq!(copy.storage::<f32>()[5], 2.0);
        let values: Vec<f32> = t.into_data().try_into_vec().expect("f32");
        assert!(values.iter().all(|&v| v == 2.0));
    }
}
