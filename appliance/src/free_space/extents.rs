//! Sets of byte ranges: collecting free ones within a bound, and what changes between two masks.

use crate::block::Extent;

use super::view::View;
use super::{EXTENTS_MAX, GRAIN_BYTES, Keep, keep};

/// Free ranges of a volume or a disk. Bounded: past [`EXTENTS_MAX`] the shorter half is given up.
#[derive(Default)]
pub(super) struct Sink {
    extents: Vec<Extent>,
}

impl Sink {
    /// Adds a free range at or after the last one's end.
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), Keep> {
        if len == 0 {
            return Ok(());
        }
        if offset.checked_add(len).is_none() {
            return keep("a free range is too large");
        }
        match self.extents.last_mut() {
            Some(last) if last.end() > offset => return keep("free ranges overlap"),
            Some(last) if last.end() == offset => last.len += len,
            // What is shorter than the grid can never be skipped.
            Some(last) if last.len < GRAIN_BYTES => *last = Extent { offset, len },
            _ => self.extents.push(Extent { offset, len }),
        }
        if self.extents.len() > EXTENTS_MAX {
            self.give_up_shorter_half();
        }
        Ok(())
    }

    fn give_up_shorter_half(&mut self) {
        let mut lens: Vec<u64> = self.extents.iter().map(|extent| extent.len).collect();
        let middle = lens.len() / 2;
        let (_, median, _) = lens.select_nth_unstable(middle);
        let median = *median;
        // Of those as long as the median as many go as it takes to reach the half.
        let mut equal = EXTENTS_MAX / 2;
        self.extents.retain(|extent| {
            if extent.len == median && equal > 0 {
                equal -= 1;
                return false;
            }
            extent.len >= median
        });
    }

    /// Adds a volume's free ranges, translated to the disk and rounded inward to the grid; the number
    /// of bytes added.
    pub(super) fn take_over(&mut self, volume: Sink, view: &View<'_>) -> u64 {
        let mut bytes = 0;
        for free in volume.extents {
            for (offset, len) in view.places(free.offset, free.len) {
                if let Some(inner) = inward(offset, len) {
                    bytes += inner.len;
                    self.extents.push(inner);
                }
            }
            if self.extents.len() > EXTENTS_MAX {
                self.give_up_shorter_half();
            }
        }
        bytes
    }

    /// The final answer: ascending, disjoint, not adjacent, inside a disk of `disk_len`.
    pub(super) fn into_extents(self, disk_len: u64) -> Vec<Extent> {
        let mut extents = self.extents;
        extents.sort_unstable_by_key(|extent| extent.offset);
        let mut merged: Vec<Extent> = Vec::with_capacity(extents.len());
        for extent in extents {
            if extent.end() > disk_len {
                continue;
            }
            match merged.last_mut() {
                // Two volumes that claim one place: partitions::list refuses those, so this is a belt.
                Some(last) if last.end() > extent.offset => return Vec::new(),
                Some(last) if last.end() == extent.offset => last.len += extent.len,
                _ => merged.push(extent),
            }
        }
        merged
    }
}

fn inward(offset: u64, len: u64) -> Option<Extent> {
    let start = offset.checked_next_multiple_of(GRAIN_BYTES)?;
    let end = offset.checked_add(len)? / GRAIN_BYTES * GRAIN_BYTES;
    (end > start).then(|| Extent { offset: start, len: end - start })
}

/// What a change-tracked run must read of the masked disk, so that a replica of the masked base becomes
/// the masked present: the dirty extents, what was skipped at the base and is kept now (a file system
/// may write data before it says that the space is taken), and what was kept and is skipped now (it
/// reads as zeroes, which cost nothing on the wire).
///
/// `base_free` and `new_free` are answers of [`super::map`]; `dirty` may be in any order. The result is
/// ascending, disjoint and not adjacent.
pub fn changed_since(dirty: &[Extent], base_free: &[Extent], new_free: &[Extent]) -> Vec<Extent> {
    let mut all: Vec<Extent> = dirty.iter().filter(|extent| extent.len > 0).copied().collect();
    all.extend(without(base_free, new_free));
    all.extend(without(new_free, base_free));
    all.sort_unstable_by_key(|extent| extent.offset);
    let mut merged: Vec<Extent> = Vec::with_capacity(all.len());
    for extent in all {
        let end = extent.offset.saturating_add(extent.len);
        match merged.last_mut() {
            Some(last) if last.end() >= extent.offset => last.len = last.end().max(end) - last.offset,
            _ => merged.push(Extent { offset: extent.offset, len: end - extent.offset }),
        }
    }
    merged
}

/// The parts of `from` that are not in `remove`; both ascending and disjoint.
pub(super) fn without(from: &[Extent], remove: &[Extent]) -> Vec<Extent> {
    let mut rest = Vec::new();
    let mut next = 0;
    for extent in from {
        let (mut at, end) = (extent.offset, extent.end());
        while let Some(hole) = remove.get(next) {
            if hole.end() <= at {
                next += 1;
                continue;
            }
            if hole.offset >= end {
                break;
            }
            if hole.offset > at {
                rest.push(Extent { offset: at, len: hole.offset - at });
            }
            at = at.max(hole.end());
            if at >= end {
                break;
            }
            next += 1;
        }
        if at < end {
            rest.push(Extent { offset: at, len: end - at });
        }
    }
    rest
}
