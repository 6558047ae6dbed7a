//! Recipes: which chunks of a page are as at the base, zero, or offered; and what is then needed.
//!
//! Pure functions, no IO, no clock. The unit is a page of 1,024 chunks.

use crate::block::{ChunkId, Geometry, PAGE_CHUNKS, ShortId};
use crate::wire::message::{Need, Offer, Run, RunKind};

/// A page that is all zero, or that a disk does not have.
pub static ZERO_PAGE: [ChunkId; PAGE_CHUNKS] = [ChunkId::ZERO; PAGE_CHUNKS];

/// The offer of a page, or `None` where it is as at the base. `base` is all zero for a page the base
/// does not have. A page whose only difference lies past the new end (a disk that shrank) is offered
/// with nothing but unchanged chunks: the target cuts it at its own geometry.
pub fn offer(
    disk: u16,
    page: u64,
    geometry: Geometry,
    base: &[ChunkId; PAGE_CHUNKS],
    new: &[ChunkId; PAGE_CHUNKS],
) -> Option<Offer> {
    if base == new {
        return None;
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut ids = Vec::new();
    for position in 0..geometry.page_chunks(page) {
        let kind = if new[position] == base[position] {
            RunKind::Unchanged
        } else if new[position].is_zero() {
            RunKind::Zero
        } else {
            ids.push(new[position].short());
            RunKind::Offered
        };
        match runs.last_mut() {
            Some(run) if run.kind == kind => run.count += 1,
            _ => runs.push(Run { kind, count: 1 }),
        }
    }
    Some(Offer { disk, page, runs, ids })
}

/// The chunks of an offer one by one: position in the page, kind, and the id of an offered one.
pub fn positions(offer: &Offer) -> impl Iterator<Item = (usize, RunKind, Option<ShortId>)> + '_ {
    let mut ids = offer.ids.iter();
    let kinds = offer.runs.iter().flat_map(|run| std::iter::repeat_n(run.kind, run.count as usize));
    kinds.enumerate().map(move |(position, kind)| {
        let id = if kind == RunKind::Offered { ids.next().copied() } else { None };
        (position, kind, id)
    })
}

/// A NEED for ascending positions of a page.
pub fn need(disk: u16, page: u64, positions: &[usize]) -> Need {
    let mut chunks: Vec<(u16, u16)> = Vec::new();
    for position in positions {
        match chunks.last_mut() {
            Some((first, count)) if (*first + *count) as usize == *position => *count += 1,
            _ => chunks.push((*position as u16, 1)),
        }
    }
    Need { disk, page, chunks }
}

/// The positions a NEED names.
pub fn needed(need: &Need) -> impl Iterator<Item = usize> + '_ {
    need.chunks.iter().flat_map(|(first, count)| *first as usize..*first as usize + *count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(seed: &[u8]) -> Box<[ChunkId; PAGE_CHUNKS]> {
        let mut ids = Box::new(ZERO_PAGE);
        for (n, byte) in seed.iter().enumerate() {
            if *byte != 0 {
                ids[n] = ChunkId([*byte; 32]);
            }
        }
        ids
    }

    proptest! {
        #[test]
        fn an_offer_rebuilds_the_page(
            base in prop::collection::vec(0u8..4, PAGE_CHUNKS),
            new in prop::collection::vec(0u8..4, PAGE_CHUNKS),
            chunks in 1usize..=PAGE_CHUNKS,
        ) {
            let geometry = Geometry { disk_len: (chunks * crate::block::CHUNK_BYTES) as u64 };
            let base = page(&base);
            let new = page(&new[..chunks]);
            let mut rebuilt = Box::new(ZERO_PAGE);
            match offer(0, 0, geometry, &base, &new) {
                None => rebuilt = base.clone(),
                Some(offer) => for (at, kind, id) in positions(&offer) {
                    rebuilt[at] = match (kind, id) {
                        (RunKind::Unchanged, _) => base[at],
                        (RunKind::Zero, _) => ChunkId::ZERO,
                        (RunKind::Offered, Some(id)) => ChunkId([id.0[0]; 32]),
                        (RunKind::Offered, None) => unreachable!(),
                    };
                }
            }
            prop_assert!(rebuilt == new);
        }

        #[test]
        fn need_round_trip(set in prop::collection::btree_set(0usize..PAGE_CHUNKS, 0..200)) {
            let list: Vec<usize> = set.into_iter().collect();
            let message = need(1, 2, &list);
            prop_assert_eq!(needed(&message).collect::<Vec<_>>(), list);
        }
    }
}
