//! Large blocks: parts of long ranges of addresses. What is free side by side is one part again, so
//! a block may lie where others of other sizes lay, and its pages are not taken from the system anew.

use super::LARGE;
use memmap2::{MmapMut, MmapOptions};
use std::collections::BTreeMap;
use std::ptr::NonNull;

/// Bytes of a range. Pages come with the first use, so a long one costs addresses alone.
const RANGE: usize = 1 << 30;

/// Ranges of addresses and what is free in them.
#[derive(Default)]
pub(super) struct Arena {
    ranges: Vec<Range>,
}

struct Range {
    map: MmapMut,
    /// Address of the first block; a multiple of [`LARGE`].
    base: usize,
    /// Free parts by their address, never two side by side.
    free: BTreeMap<usize, Part>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    bytes: usize,
    /// Bytes of it that have pages, about: a part that is cut keeps them at its beginning.
    kept: usize,
}

impl Arena {
    pub(super) const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// A block of `bytes` (a multiple of [`LARGE`]), out of the smallest part that holds it (with
    /// pages, if there is one), and how many of its bytes have pages already. `None` if the system has no more addresses.
    pub(super) fn take(&mut self, bytes: usize) -> Option<(NonNull<u8>, usize)> {
        let (range, address, part) = match self.smallest(bytes) {
            Some(found) => found,
            None => {
                self.ranges.push(Range::new(bytes.max(RANGE))?);
                self.smallest(bytes)?
            }
        };
        let free = &mut self.ranges[range].free;
        free.remove(&address);
        let kept = part.kept.min(bytes);
        if part.bytes > bytes {
            let rest = Part { bytes: part.bytes - bytes, kept: part.kept - kept };
            free.insert(address + bytes, rest);
        }
        Some((NonNull::new(address as *mut u8)?, kept))
    }

    /// The smallest free part of at least `bytes`, the first of several and rather one that has the
    /// pages already: its range, address, size.
    fn smallest(&self, bytes: usize) -> Option<(usize, usize, Part)> {
        let parts = self.ranges.iter().enumerate();
        parts
            .flat_map(|(r, range)| range.free.iter().map(move |(&address, &p)| (r, address, p)))
            .filter(|(.., part)| part.bytes >= bytes)
            .min_by_key(|(.., part)| (part.kept < bytes, part.bytes))
    }

    /// Takes back a block that [`Self::take`] gave, whose pages stay.
    pub(super) fn put(&mut self, at: NonNull<u8>, bytes: usize) {
        let address = at.as_ptr() as usize;
        let holds = |r: &&mut Range| (r.base..r.base + r.map.len()).contains(&address);
        let range = self.ranges.iter_mut().find(holds).expect("blocks come from a range");
        let (mut start, mut part) = (address, Part { bytes, kept: bytes });
        if let Some((&before, &p)) = range.free.range(..address).next_back()
            && before + p.bytes == address
        {
            range.free.remove(&before);
            (start, part) = (before, Part { bytes: p.bytes + bytes, kept: p.kept + part.kept });
        }
        if let Some(after) = range.free.remove(&(address + bytes)) {
            part = Part { bytes: part.bytes + after.bytes, kept: part.kept + after.kept };
        }
        range.free.insert(start, part);
    }

    /// Gives the pages of the last free part that has any back to the system; returns their bytes.
    pub(super) fn give_back(&mut self) -> usize {
        for range in self.ranges.iter_mut().rev() {
            let with_pages = |(_, part): &(&usize, &mut Part)| part.kept > 0;
            if let Some((&address, part)) = range.free.iter_mut().rev().find(with_pages) {
                let offset = address - range.map.as_ptr() as usize;
                release(&mut range.map, offset, part.bytes);
                return std::mem::take(&mut part.kept);
            }
        }
        0
    }
}

impl Range {
    fn new(bytes: usize) -> Option<Self> {
        let (map, base) = in_large_pages(MmapOptions::new().no_reserve_swap(), bytes).ok()?;
        let free = BTreeMap::from([(base, Part { bytes, kept: 0 })]);
        Some(Self { map, base, free })
    }
}

/// Zeroed memory of the system's own, in large pages where it has them, and the address in it from
/// which on there are `bytes`, a multiple of [`LARGE`].
pub(crate) fn in_large_pages(
    options: &mut MmapOptions,
    bytes: usize,
) -> std::io::Result<(MmapMut, usize)> {
    // The system aligns to its own, smaller pages.
    let map = options.len(bytes + LARGE).map_anon()?;
    // Large pages cost fewer page faults and address look-ups; without them all is as well.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let base = (map.as_ptr() as usize).next_multiple_of(LARGE);
    Ok((map, base))
}

/// Gives the pages of a part of `map` that nobody holds back to the system.
#[cfg(unix)]
fn release(map: &mut MmapMut, offset: usize, bytes: usize) {
    // SAFETY: no reference to these bytes exists, and pages that come anew hold numbers as well.
    // Where the system refuses, the pages stay, which costs memory alone.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes) };
}

#[cfg(not(unix))]
fn release(_: &mut MmapMut, _: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(arena: &mut Arena, pages: usize) -> (NonNull<u8>, usize) {
        arena.take(pages * LARGE).expect("addresses")
    }

    #[test]
    fn neighbours_become_one_part() {
        let mut arena = Arena::new();
        let [a, b, c] = [2, 3, 1].map(|pages| take(&mut arena, pages).0);
        arena.put(a, 2 * LARGE);
        arena.put(b, 3 * LARGE);
        // Five pages fit where the two blocks lay, and have their pages.
        let (d, kept) = take(&mut arena, 5);
        assert_eq!((d, kept), (a, 5 * LARGE));
        // The smallest part is cut first.
        arena.put(c, LARGE);
        arena.put(d, 5 * LARGE);
        let parts: Vec<_> = arena.ranges[0].free.values().copied().collect();
        assert_eq!(parts, [Part { bytes: RANGE, kept: 6 * LARGE }]);
    }

    #[test]
    fn the_smallest_part_is_used_and_pages_go_back() {
        let mut arena = Arena::new();
        let blocks = [4, 1, 2, 1].map(|pages| take(&mut arena, pages).0);
        // SAFETY: the block is ours and this large.
        unsafe { blocks[2].cast::<u64>().write(7) };
        arena.put(blocks[0], 4 * LARGE);
        arena.put(blocks[2], 2 * LARGE);
        assert_eq!(take(&mut arena, 2), (blocks[2], 2 * LARGE));
        arena.put(blocks[2], 2 * LARGE);
        assert_eq!(arena.give_back(), 2 * LARGE);
        assert_eq!(arena.give_back(), 4 * LARGE);
        assert_eq!(arena.give_back(), 0);
        let (again, kept) = take(&mut arena, 2);
        assert_eq!((again, kept), (blocks[2], 0));
        #[cfg(target_os = "linux")]
        // SAFETY: as above.
        assert_eq!(unsafe { again.cast::<u64>().read() }, 0);
    }

    #[test]
    fn a_block_may_be_larger_than_a_range() {
        let mut arena = Arena::new();
        let (a, _) = arena.take(RANGE + LARGE).expect("addresses");
        let (b, _) = take(&mut arena, 1);
        assert_eq!(arena.ranges.len(), 2);
        arena.put(a, RANGE + LARGE);
        arena.put(b, LARGE);
        assert_eq!(arena.give_back(), LARGE);
        assert_eq!(arena.give_back(), RANGE + LARGE);
    }
}
