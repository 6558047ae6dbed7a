//! Footers of recently hit packs in memory: chunks are looked for in the order in which they were
//! stored, so one hit brings the places of its neighbours (Zhu et al., FAST'08) and the following
//! lookups need no database.
//!
//! Owns nothing durable; a stale entry costs one failed read. Bound: a number of entries (about 100
//! bytes each).

use std::collections::HashMap;

use lru::LruCache;

use super::format::{ChunkKey, Entry};
use super::index::Location;

/// Footers by pack, least recently hit first out.
pub(super) struct Footers {
    packs: LruCache<u64, Vec<ChunkKey>>,
    places: HashMap<ChunkKey, Location>,
    entries: usize,
    entries_max: usize,
}

impl Footers {
    pub fn new(entries_max: usize) -> Self {
        Self { packs: LruCache::unbounded(), places: HashMap::new(), entries: 0, entries_max }
    }

    /// The place of a chunk; its pack counts as used.
    pub fn get(&mut self, key: &ChunkKey) -> Option<Location> {
        let place = *self.places.get(key)?;
        self.packs.promote(&place.pack);
        Some(place)
    }

    /// The same without a mark.
    pub fn peek(&self, key: &ChunkKey) -> Option<Location> {
        self.places.get(key).copied()
    }

    pub fn holds(&self, pack: u64) -> bool {
        self.packs.contains(&pack)
    }

    /// Takes a pack's footer in, and lets the least recently used ones go.
    pub fn insert(&mut self, pack: u64, entries: &[Entry]) {
        self.remove(pack);
        for entry in entries {
            self.places.insert(entry.key(), Location::of(pack, entry));
        }
        self.entries += entries.len();
        self.packs.put(pack, entries.iter().map(Entry::key).collect());
        while self.entries > self.entries_max {
            let Some((oldest, keys)) = self.packs.pop_lru() else { break };
            self.forget(oldest, &keys);
        }
    }

    /// Lets a pack go; its keys, where they were here.
    pub fn remove(&mut self, pack: u64) -> Option<Vec<ChunkKey>> {
        let keys = self.packs.pop(&pack)?;
        self.forget(pack, &keys);
        Some(keys)
    }

    /// Forgets one place, if it is still this one.
    pub fn drop_place(&mut self, key: &ChunkKey, pack: u64, offset: u32) {
        if self.places.get(key).is_some_and(|place| place.pack == pack && place.offset == offset) {
            self.places.remove(key);
        }
    }

    fn forget(&mut self, pack: u64, keys: &[ChunkKey]) {
        self.entries -= keys.len();
        for key in keys {
            if self.places.get(key).is_some_and(|place| place.pack == pack) {
                self.places.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{ChunkId, DomainTag};

    fn entries(first: u8, count: u8) -> Vec<Entry> {
        let entry = |id| Entry {
            id: ChunkId([id; 32]),
            tag: DomainTag([1; 8]),
            offset: u32::from(id),
            stored_len: 1,
            plain_len: 1,
        };
        (first..first + count).map(entry).collect()
    }

    #[test]
    fn least_recently_hit_goes_first() {
        let mut footers = Footers::new(20);
        footers.insert(1, &entries(0, 10));
        footers.insert(2, &entries(10, 10));
        assert_eq!(footers.get(&entries(3, 1)[0].key()).unwrap().pack, 1);
        footers.insert(3, &entries(20, 5));
        assert!(footers.holds(1) && !footers.holds(2) && footers.holds(3));
        assert!(footers.peek(&entries(12, 1)[0].key()).is_none());
        assert_eq!((footers.entries, footers.places.len()), (15, 15));
    }

    #[test]
    fn a_newer_copy_survives_the_older_pack() {
        let mut footers = Footers::new(100);
        footers.insert(1, &entries(0, 3));
        footers.insert(2, &entries(0, 1));
        footers.remove(1);
        assert_eq!(footers.get(&entries(0, 1)[0].key()).unwrap().pack, 2);
        footers.drop_place(&entries(0, 1)[0].key(), 1, 0);
        assert!(footers.peek(&entries(0, 1)[0].key()).is_some());
        footers.drop_place(&entries(0, 1)[0].key(), 2, 0);
        assert!(footers.peek(&entries(0, 1)[0].key()).is_none());
    }
}
