//! Source mover: which pages of a disk have to be looked at, in ascending order.
//!
//! Without change tracking every page that holds data now, or held data at the base, is visited; pages
//! that are a hole in both are not even counted one by one, so a sparse disk costs in proportion to
//! its data. Pure: it is told where data lies and answers the next page.

use std::collections::BTreeSet;

use crate::block::PAGE_BYTES;

/// Walks the union of a disk's data and the base's pages.
pub struct PageWalk {
    base_pages: BTreeSet<u64>,
    pages: u64,
    next: u64,
}

impl PageWalk {
    /// A walk over a disk of `pages` pages from `start` on; `base_pages` are the base's non-zero pages.
    pub fn new(pages: u64, start: u64, base_pages: impl IntoIterator<Item = u64>) -> Self {
        let base_pages = base_pages.into_iter().filter(|page| *page < pages).collect();
        Self { base_pages, pages, next: start }
    }

    /// Where the next look for data starts, in bytes; `None` when the disk is done.
    pub fn position(&self) -> Option<u64> {
        (self.next < self.pages).then_some(self.next * PAGE_BYTES)
    }

    /// The next page, given where the first data at or after [`Self::position`] lies.
    pub fn next_page(&mut self, next_data: Option<u64>) -> Option<u64> {
        let by_data = next_data.map(|offset| offset / PAGE_BYTES).filter(|page| *page < self.pages);
        let by_base = self.base_pages.range(self.next..).next().copied();
        let page = match (by_data, by_base) {
            (Some(data), Some(base)) => data.min(base),
            (Some(page), None) | (None, Some(page)) => page,
            (None, None) => {
                self.next = self.pages;
                return None;
            }
        };
        self.next = page + 1;
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn visits_exactly_the_union(
            data in prop::collection::btree_set(0u64..200, 0..40),
            base in prop::collection::btree_set(0u64..260, 0..40),
            start in 0u64..50,
        ) {
            let mut walk = PageWalk::new(200, start, base.iter().copied());
            let mut seen = BTreeSet::new();
            while let Some(position) = walk.position() {
                let next_data = data.range(position / PAGE_BYTES..).next().map(|page| page * PAGE_BYTES);
                match walk.next_page(next_data) {
                    Some(page) => prop_assert!(seen.insert(page)),
                    None => break,
                }
            }
            let want: BTreeSet<u64> =
                data.union(&base).copied().filter(|page| (start..200).contains(page)).collect();
            prop_assert_eq!(seen, want);
        }
    }
}
