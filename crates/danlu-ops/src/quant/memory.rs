//! Memory for weights: cache lines, in large pages where the system has them.
//!
//! The matrices of a small model are about a megabyte each, less than a large page. So they are cut
//! out of slabs one after the other, in the order in which they are read.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a large page.
const LARGE: usize = 2 << 20;
/// Bytes of a slab.
const SLAB: usize = 8 * LARGE;
/// Bytes of a cache line.
const LINE: usize = 64;

#[derive(Debug)]
struct Slab {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is reached only through `Region`s, which do not overlap; each is written
// through `&mut` and read through `&`.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.next_multiple_of(LARGE), LARGE)
            .expect("weights fit into the address space");
        // SAFETY: the size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        let Some(at) = NonNull::new(at) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just allocated; the advice changes nothing that it holds.
        unsafe {
            libc::madvise(at.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE);
        }
        Self { at, layout }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no region is left.
        unsafe { dealloc(self.at.as_ptr(), self.layout) };
    }
}

/// Where the matrices of one model are cut from.
#[derive(Debug, Default)]
pub struct Arena(Mutex<Option<(Arc<Slab>, usize)>>);

impl Arena {
    /// Zeroed memory on a cache-line boundary.
    pub(super) fn take(&self, len: usize) -> Region {
        let want = len.next_multiple_of(LINE);
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, start) = match current.take() {
            Some((slab, start)) if start + want <= slab.layout.size() => (slab, start),
            _ => (Arc::new(Slab::new(want.max(SLAB))), 0),
        };
        *current = Some((slab.clone(), start + want));
        Region { slab, start, len }
    }
}

/// A part of a slab that nobody else has.
#[derive(Debug)]
pub(super) struct Region {
    slab: Arc<Slab>,
    start: usize,
    len: usize,
}

impl Region {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: within the slab, which is initialised; parts of it are written through `&mut`
        // of their own region alone.
        unsafe { std::slice::from_raw_parts(self.slab.at.as_ptr().add(self.start), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; regions do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.slab.at.as_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_lie_apart_on_lines_and_hold_what_was_written() {
        let arena = Arena::default();
        let lens = [1, 64, 65, 0, 3 * LARGE, SLAB, SLAB + 1, 100];
        let mut regions: Vec<Region> = lens.map(|len| arena.take(len)).into();
        for (i, region) in regions.iter_mut().enumerate() {
            assert!(region.bytes().iter().all(|&b| b == 0));
            assert_eq!(region.bytes().as_ptr().addr() % LINE, 0);
            region.bytes_mut().fill(i as u8 + 1);
        }
        drop(arena);
        for (i, region) in regions.iter().enumerate() {
            assert_eq!(region.bytes().len(), lens[i]);
            assert!(region.bytes().iter().all(|&b| b == i as u8 + 1));
        }
    }
}
