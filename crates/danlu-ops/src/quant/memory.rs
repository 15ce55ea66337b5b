//! Memory for weights: cache lines, in large pages where the system has them; or a file that is
//! mapped into memory.
//!
//! The matrices of a small model are about a megabyte each, less than a large page. So they are cut
//! out of slabs one after the other, in the order in which they are read.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a large page.
const LARGE: usize = 2 << 20;
/// Bytes of a slab.
const SLAB: usize = 8 * LARGE;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

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
        Region(Place::Slab { slab, start, len })
    }
}

/// A file whose bytes are read where they lie: only what is used takes memory, and the system
/// shares it among processes and may let it go.
#[derive(Debug, Clone)]
pub struct Mapped(Arc<memmap2::Mmap>);

impl Mapped {
    /// Maps a whole file. It must not be changed in place as long as the map lives; files of models
    /// are replaced by renaming, which leaves the mapped one as it was.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &std::path::Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: files of models are written under another name and renamed, never in place, so
        // the bytes do not change under the map.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        #[cfg(unix)]
        // Only a hint, and a system without it reads just as well.
        let _ = map.advise(memmap2::Advice::WillNeed);
        Ok(Self(Arc::new(map)))
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A part of it, if it lies within and begins on a cache line.
    pub(super) fn region(&self, start: usize, len: usize) -> Option<Region> {
        let end = start.checked_add(len)?;
        let fits = end <= self.0.len() && start.is_multiple_of(LINE);
        fits.then(|| Region(Place::File { map: self.clone(), start, len }))
    }
}

/// Bytes that nobody else writes.
#[derive(Debug)]
pub(super) struct Region(Place);

#[derive(Debug)]
enum Place {
    /// A part of a slab that no other region has.
    Slab { slab: Arc<Slab>, start: usize, len: usize },
    /// A part of a mapped file.
    File { map: Mapped, start: usize, len: usize },
}

impl Region {
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: within the slab, which is initialised; parts of it are written through `&mut`
            // of their own region alone.
            Place::Slab { slab, start, len } => unsafe {
                std::slice::from_raw_parts(slab.at.as_ptr().add(*start), *len)
            },
            Place::File { map, start, len } => &map.0[*start..start + len],
        }
    }

    /// # Panics
    /// If it is of a file.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as above; regions do not overlap.
            Place::Slab { slab, start, len } => unsafe {
                std::slice::from_raw_parts_mut(slab.at.as_ptr().add(*start), *len)
            },
            Place::File { .. } => panic!("weights in a mapped file are not written"),
        }
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

    #[test]
    fn a_mapped_file_is_read_where_it_lies_and_not_past_its_end() {
        let path = std::env::temp_dir().join(format!("danlu-mapped-{}", std::process::id()));
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("writes");
        let map = Mapped::open(&path).expect("maps");
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(map.bytes(), bytes);
        assert_eq!(map.region(128, 100).expect("within").bytes(), &bytes[128..228]);
        assert_eq!(map.region(960, 40).expect("to the end").bytes().len(), 40);
        for (start, len) in [(960, 41), (1024, 0), (1, 8), (64, usize::MAX)] {
            assert!(map.region(start, len).is_none(), "{start} {len}");
        }
    }
}
