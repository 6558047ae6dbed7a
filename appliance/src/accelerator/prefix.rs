//! Which blocks of which images go into a batch's reference prefix.
//!
//! Each anchor that hits pulls the block it hit and six on either side, the near ones of all hits first:
//! a match seldom ends where the anchor lies, and zstd finds its ends. Measured on the image sequence, all
//! steps but the first, level 9: one on either side 599.9 MiB, two 593.6, three 591.2, four 590.0,
//! six 588.4. Where hits lie close the room ends first: hit by hit instead of near ones first, three on
//! either side doubled a database's day (7.3 MiB instead of 3.4 in a sample). Pure.

use std::collections::BTreeMap;

use super::anchors::{BLOCK_BYTES, CHUNK_BLOCKS, Place};

/// Blocks on either side of the one that was hit.
const NEIGHBOURS: u32 = 6;

/// Chunks of images and the blocks wanted of each, in order of image and place.
pub type Wanted = BTreeMap<(u16, u64), u16>;

/// The blocks around these hits; no more than `bytes_max`, the nearest first, of equals the first hits'.
pub fn around(hits: impl IntoIterator<Item = Place>, bytes_max: usize) -> Wanted {
    let hits: Vec<Place> = hits.into_iter().collect();
    let mut wanted = Wanted::new();
    let mut room = bytes_max / BLOCK_BYTES;
    for distance in 0..=NEIGHBOURS {
        for hit in &hits {
            // At the hit itself both are the same block, which is taken once.
            let (before, after) = (hit.block.checked_sub(distance), hit.block.checked_add(distance));
            for block in before.into_iter().chain(after) {
                if room == 0 {
                    return wanted;
                }
                let chunk = u64::from(block) / CHUNK_BLOCKS as u64;
                let mask = wanted.entry((hit.image, chunk)).or_insert(0);
                let bit = 1u16 << (block as usize % CHUNK_BLOCKS);
                if *mask & bit == 0 {
                    *mask |= bit;
                    room -= 1;
                }
            }
        }
    }
    wanted
}

/// The named blocks of a chunk, one after the other; a short chunk's last block may be short.
pub fn blocks(chunk: &[u8], mask: u16) -> impl Iterator<Item = &[u8]> {
    chunk
        .chunks(BLOCK_BYTES)
        .take(CHUNK_BLOCKS)
        .enumerate()
        .filter_map(move |(n, block)| (mask & (1 << n) != 0).then_some(block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(image: u16, block: u32) -> Place {
        Place { image, block }
    }

    #[test]
    fn neighbours_cross_chunks_and_stop_at_the_beginning() {
        let wanted = around([at(1, 0), at(1, 16), at(2, 40)], usize::MAX);
        let expected =
            [((1, 0), 0b1111_1100_0111_1111), ((1, 1), 0b111_1111), ((2, 2), 0b0111_1111_1111_1100)];
        assert_eq!(wanted.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn where_room_ends_every_hit_has_its_near_blocks() {
        let wanted = around([at(1, 8), at(1, 40)], 6 * BLOCK_BYTES);
        assert_eq!(
            wanted.into_iter().collect::<Vec<_>>(),
            [((1, 0), 0b11_1000_0000), ((1, 2), 0b11_1000_0000)]
        );
    }

    proptest! {
        #[test]
        fn never_more_than_allowed(
            hits in prop::collection::vec((0u16..3, 0u32..300), 0..200),
            max in 0usize..100,
        ) {
            let hits = hits.into_iter().map(|(image, block)| Place { image, block });
            let wanted = around(hits, max * BLOCK_BYTES);
            let blocks: u32 = wanted.values().map(|mask| mask.count_ones()).sum();
            prop_assert!(blocks as usize <= max);
            prop_assert!(wanted.values().all(|mask| *mask != 0));
        }

        #[test]
        fn blocks_are_those_of_the_mask(len in 1usize..70_000, mask in any::<u16>()) {
            let data: Vec<u8> = (0..len).map(|n| (n / BLOCK_BYTES) as u8).collect();
            for block in blocks(&data, mask) {
                prop_assert!(mask & (1 << block[0]) != 0);
            }
        }
    }
}
