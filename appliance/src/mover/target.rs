//! Target mover: the pages of the point being built, and the cursor that follows from them.
//!
//! Pure bookkeeping. A page opens with an offer, is filled by what could be resolved at once and by
//! batches, and is handed out when it is whole. The cursor of a disk is the first page that is not
//! final: offers come in ascending order, and pages that are not offered are as at the base.
//! Bound: [`OPEN_PAGES_MAX`] open pages (32 KiB each).

use std::collections::BTreeMap;

use crate::block::{ChunkId, PAGE_CHUNKS, ShortId};

/// Pages that may be open at once; an honest source stays far below.
pub const OPEN_PAGES_MAX: usize = 256;

/// A page of ids.
pub type Ids = Box<[ChunkId; PAGE_CHUNKS]>;

/// What a source may not do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrackError {
    /// A disk that was not opened.
    #[error("disk {0} is not part of this session")]
    Disk(u16),
    /// Offers of one disk ascend.
    #[error("page {page} of disk {disk} was offered out of order")]
    Order {
        /// Disk number.
        disk: u16,
        /// Page number.
        page: u64,
    },
    /// More pages open than the bound.
    #[error("more than {OPEN_PAGES_MAX} pages are open")]
    TooMany,
}

/// What came of filling a position.
#[derive(Debug)]
pub enum Filled {
    /// Nobody asked for it (a chunk that came twice); nothing changed.
    NotWanted,
    /// Filled; the page needs more.
    More,
    /// Filled, and the page is whole.
    Whole(Ids),
}

struct OpenPage {
    ids: Ids,
    /// What the missing positions were offered as, ascending by position.
    offered: Vec<(usize, ShortId)>,
    missing: [u64; PAGE_CHUNKS / 64],
    missing_count: usize,
}

#[derive(Default)]
struct DiskPages {
    open: BTreeMap<u64, OpenPage>,
    next: u64,
}

/// Keeps track of all disks of one session.
pub struct PageTracker {
    disks: Vec<DiskPages>,
}

impl PageTracker {
    /// A tracker that begins at these cursors, one for each disk.
    pub fn new(cursors: &[u64]) -> Self {
        let disks = cursors.iter().map(|next| DiskPages { open: BTreeMap::new(), next: *next }).collect();
        Self { disks }
    }

    /// Checks that this page may be offered now.
    pub fn check(&self, disk: u16, page: u64) -> Result<(), TrackError> {
        let pages = self.disks.get(disk as usize).ok_or(TrackError::Disk(disk))?;
        if page < pages.next {
            return Err(TrackError::Order { disk, page });
        }
        if self.disks.iter().map(|pages| pages.open.len()).sum::<usize>() >= OPEN_PAGES_MAX {
            return Err(TrackError::TooMany);
        }
        Ok(())
    }

    /// Opens a page that lacks these positions; a page that lacks nothing is handed back whole.
    pub fn open(
        &mut self,
        disk: u16,
        page: u64,
        ids: Ids,
        missing: &[(usize, ShortId)],
    ) -> Result<Option<Ids>, TrackError> {
        self.check(disk, page)?;
        let pages = self.disks.get_mut(disk as usize).ok_or(TrackError::Disk(disk))?;
        pages.next = page + 1;
        if missing.is_empty() {
            return Ok(Some(ids));
        }
        let mut bits = [0u64; PAGE_CHUNKS / 64];
        for (position, _) in missing {
            bits[position / 64] |= 1 << (position % 64);
        }
        let (offered, missing_count) = (missing.to_vec(), missing.len());
        pages.open.insert(page, OpenPage { ids, offered, missing: bits, missing_count });
        Ok(None)
    }

    /// True where a chunk at this position is wanted.
    pub fn wants(&self, disk: u16, page: u64, position: usize) -> bool {
        self.disks
            .get(disk as usize)
            .and_then(|pages| pages.open.get(&page))
            .is_some_and(|open| open.missing[position / 64] & (1 << (position % 64)) != 0)
    }

    /// The id that a position of an open page was offered with, while it is missing.
    pub fn offered(&self, disk: u16, page: u64, position: usize) -> Option<ShortId> {
        let open = self.disks.get(disk as usize)?.open.get(&page)?;
        let at = open.offered.binary_search_by_key(&position, |(position, _)| *position).ok()?;
        open.offered.get(at).map(|(_, id)| *id)
    }

    /// Fills a position.
    pub fn fill(&mut self, disk: u16, page: u64, position: usize, id: ChunkId) -> Filled {
        if !self.wants(disk, page, position) {
            return Filled::NotWanted;
        }
        let Some(pages) = self.disks.get_mut(disk as usize) else { return Filled::NotWanted };
        let Some(open) = pages.open.get_mut(&page) else { return Filled::NotWanted };
        open.missing[position / 64] &= !(1 << (position % 64));
        open.missing_count -= 1;
        open.ids[position] = id;
        if open.missing_count > 0 {
            return Filled::More;
        }
        pages.open.remove(&page).map_or(Filled::NotWanted, |open| Filled::Whole(open.ids))
    }

    /// First page of each disk that is not final.
    pub fn cursors(&self) -> Vec<u64> {
        self.disks
            .iter()
            .map(|pages| pages.open.first_key_value().map_or(pages.next, |(page, _)| *page))
            .collect()
    }

    /// True where no page is open.
    pub fn is_idle(&self) -> bool {
        self.disks.iter().all(|pages| pages.open.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(position: usize) -> (usize, ShortId) {
        (position, ShortId([position as u8; 16]))
    }

    fn blank() -> Ids {
        Box::new([ChunkId::ZERO; PAGE_CHUNKS])
    }

    #[test]
    fn cursor_waits_for_the_first_open_page() {
        let mut tracker = PageTracker::new(&[0, 0]);
        assert!(tracker.open(0, 3, blank(), &[id(5), id(6)]).unwrap().is_none());
        assert!(tracker.open(0, 4, blank(), &[]).unwrap().is_some());
        assert_eq!(tracker.cursors(), [3, 0]);
        assert_eq!(tracker.offered(0, 3, 6), Some(ShortId([6; 16])));
        assert_eq!((tracker.offered(0, 3, 7), tracker.offered(0, 4, 6)), (None, None));
        assert!(matches!(tracker.fill(0, 3, 5, ChunkId([1; 32])), Filled::More));
        assert!(matches!(tracker.fill(0, 3, 5, ChunkId([1; 32])), Filled::NotWanted));
        assert!(matches!(tracker.fill(0, 3, 6, ChunkId([1; 32])), Filled::Whole(_)));
        assert_eq!(tracker.cursors(), [5, 0]);
        assert_eq!(tracker.open(0, 4, blank(), &[]), Err(TrackError::Order { disk: 0, page: 4 }));
        assert_eq!(tracker.open(2, 0, blank(), &[]), Err(TrackError::Disk(2)));
    }

    proptest! {
        #[test]
        fn pages_are_whole_exactly_when_filled(
            pages in prop::collection::vec(prop::collection::btree_set(0usize..PAGE_CHUNKS, 0..30), 1..20),
            order in any::<u64>(),
        ) {
            let mut tracker = PageTracker::new(&[0]);
            let mut todo = Vec::new();
            for (page, missing) in pages.iter().enumerate() {
                let list: Vec<usize> = missing.iter().copied().collect();
                let named: Vec<_> = list.iter().copied().map(id).collect();
                let whole = tracker.open(0, page as u64, blank(), &named).unwrap();
                prop_assert_eq!(whole.is_some(), list.is_empty());
                todo.extend(list.into_iter().map(|position| (page as u64, position)));
            }
            let mut seed = order | 1;
            while !todo.is_empty() {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (page, position) = todo.swap_remove((seed >> 33) as usize % todo.len());
                let last = !todo.iter().any(|(other, _)| *other == page);
                let filled = tracker.fill(0, page, position, ChunkId([9; 32]));
                prop_assert_eq!(matches!(filled, Filled::Whole(_)), last);
                let lowest = todo.iter().map(|(page, _)| *page).min().unwrap_or(pages.len() as u64);
                prop_assert_eq!(tracker.cursors(), vec![lowest]);
            }
            prop_assert!(tracker.is_idle());
        }
    }
}
