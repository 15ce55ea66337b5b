//! Memory for weights: cache lines, in large pages where the system has them; or a file that is
//! mapped into memory.
//!
//! The matrices of a small model are about a megabyte each, less than a large page. So they are cut
//! out of slabs one after the other, in the order in which they are read.

use crate::pool::{LARGE, in_large_pages};
use memmap2::{MmapMut, MmapOptions};
use std::alloc::{Layout, handle_alloc_error};
use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a slab.
const SLAB: usize = 8 * LARGE;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

#[derive(Debug)]
struct Slab {
    /// On a large page's boundary within the map.
    at: NonNull<u8>,
    len: usize,
    /// Holds the memory.
    _map: MmapMut,
}

// SAFETY: the memory is reached only through `Region`s, which do not overlap; each is written
// through `&mut` and read through `&`.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// Zeroed, and asked of the system itself: an allocator may write the zeros, and pages that came
    /// before the advice stay small.
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(LARGE);
        let (map, at) = in_large_pages(&mut MmapOptions::new(), len).unwrap_or_else(|_| {
            handle_alloc_error(
                Layout::from_size_align(len, LARGE).expect("weights fit into the address space"),
            )
        });
        let at = NonNull::new(at as *mut u8).expect("maps do not begin at zero");
        Self { at, len, _map: map }
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
            Some((slab, start)) if start + want <= slab.len => (slab, start),
            _ => (Arc::new(Slab::new(want.max(SLAB))), 0),
        };
        *current = Some((slab.clone(), start + want));
        Region(Place::Slab { slab, start, len })
    }
}

/// A file whose bytes are read where they lie: only what is used takes memory, and the system
/// shares it among processes and may let it go.
#[derive(Debug, Clone)]
pub struct Mapped {
    map: Arc<memmap2::Mmap>,
    file: Arc<File>,
}

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
        Ok(Self { map: Arc::new(map), file: Arc::new(file) })
    }

    /// Puts copies in large pages where the pages of the file are, while others may read: products
    /// read these a quarter faster. Of what is left over at either end, and where the system has no
    /// large pages, nothing changes. The memory is the process's own then; it is not done where there
    /// is no room for twice the file.
    pub fn enlarge(&self) {
        #[cfg(target_os = "linux")]
        if large_pages() && crate::available_memory().is_some_and(|b| b > 2 * self.map.len()) {
            let (start, len) = (self.map.as_ptr().addr(), self.map.len());
            let pages = (start.next_multiple_of(LARGE)..start + len)
                .step_by(LARGE)
                .take_while(|page| page + LARGE <= start + len);
            replace(self.map.as_ptr(), &self.file, pages.map(|page| page - start));
        }
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A part of it, if it lies within and begins on a cache line.
    pub(super) fn region(&self, start: usize, len: usize) -> Option<Region> {
        let end = start.checked_add(len)?;
        let fits = end <= self.map.len() && start.is_multiple_of(LINE);
        fits.then(|| Region(Place::File { map: self.clone(), start, len }))
    }
}

/// Whether the system gives large pages to those who ask.
#[cfg(target_os = "linux")]
fn large_pages() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|text| text.contains("[madvise]") || text.contains("[always]"))
}

/// Replaces the pages of a file's map at these offsets, each a large page, by copies. It ends where the
/// system has no memory for the next.
#[cfg(target_os = "linux")]
fn replace(map: *const u8, file: &File, pages: impl Iterator<Item = usize>) {
    use std::os::fd::AsRawFd;
    for offset in pages {
        let Some(copy) = large_page() else { return };
        // SAFETY: the page lies within the map, and the copy is a mapping of that size that nobody
        // else knows. Moving it is one change of the address space: who reads the page finds the old
        // bytes or the same ones new.
        unsafe {
            let page = map.add(offset);
            std::ptr::copy_nonoverlapping(page, copy.as_ptr().cast(), LARGE);
            let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let to = page.cast_mut().cast::<libc::c_void>();
            if libc::mprotect(copy.as_ptr(), LARGE, libc::PROT_READ) == 0
                && libc::mremap(copy.as_ptr(), LARGE, LARGE, how, to) != libc::MAP_FAILED
            {
                continue;
            }
            libc::munmap(copy.as_ptr(), LARGE);
            // The system may have let go of what was there before it found that it cannot go on.
            let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
            let offset = offset as libc::off_t;
            let back = libc::mmap(to, LARGE, libc::PROT_READ, fixed, file.as_raw_fd(), offset);
            if back == libc::MAP_FAILED {
                // Weights without memory: nothing that reads them may go on.
                std::process::abort();
            }
            return;
        }
    }
}

/// A new large page, all of its mapping.
#[cfg(target_os = "linux")]
fn large_page() -> Option<NonNull<libc::c_void>> {
    let (kind, access) =
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the mapping is new, and what is given back of it lies before and after the page in it.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 2 * LARGE, access, kind, -1, 0);
        if at == libc::MAP_FAILED {
            return None;
        }
        let before = at.cast::<u8>().align_offset(LARGE);
        let page = at.cast::<u8>().add(before).cast::<libc::c_void>();
        if before > 0 {
            libc::munmap(at, before);
        }
        libc::munmap(page.cast::<u8>().add(LARGE).cast(), LARGE - before);
        libc::madvise(page, LARGE, libc::MADV_HUGEPAGE);
        NonNull::new(page)
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
            Place::File { map, start, len } => &map.map[*start..start + len],
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
        map.enlarge();
        assert_eq!(map.bytes(), bytes, "a file that is smaller than a page stays");
        for (start, len) in [(960, 41), (1024, 0), (1, 8), (64, usize::MAX)] {
            assert!(map.region(start, len).is_none(), "{start} {len}");
        }
    }

    #[test]
    fn large_pages_hold_what_the_file_held_while_others_read() {
        let path = std::env::temp_dir().join(format!("danlu-enlarged-{}", std::process::id()));
        let bytes: Vec<u8> = (0..5 * LARGE as u32 + 12345).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("writes");
        let map = Mapped::open(&path).expect("maps");
        let region = map.region(LARGE + 64, 3 * LARGE).expect("within");
        std::thread::scope(|scope| {
            let reader = scope
                .spawn(|| (0..20).all(|_| region.bytes() == &bytes[LARGE + 64..4 * LARGE + 64]));
            map.enlarge();
            assert!(reader.join().expect("reads"));
        });
        map.enlarge();
        assert_eq!(map.bytes(), bytes);
        #[cfg(target_os = "linux")]
        if large_pages() {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux tells it");
            let at = map.bytes().as_ptr().addr() + 2 * LARGE;
            let range = maps.lines().find(|line| {
                let (from, rest) = line.split_once('-').expect("a range");
                let to = rest.split(' ').next().expect("an end");
                let number = |text| usize::from_str_radix(text, 16).expect("an address");
                (number(from)..number(to)).contains(&at)
            });
            let range = range.expect("it is mapped");
            assert!(range.contains(" r--p ") && !range.contains("danlu-enlarged"), "{range}");
        }
        std::fs::remove_file(&path).expect("removes");
    }
}
