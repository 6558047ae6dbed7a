//! Finding and reading chunks: pending records, footers in memory, the database; then the pack.
//!
//! The read half of [`GlobalCache`]; owns nothing of its own. Not its job: who goes on to disk places.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::format::ChunkKey;
use super::index::Location;
use super::packs::ReadError;
use super::{GlobalCache, commit};
use crate::block::{ChunkId, DomainKey, DomainTag, ShortId};

/// Bad copies of one chunk that a lookup passes over.
const COPIES_TRIED_MAX: usize = 3;

impl GlobalCache {
    /// For each id whether a pack or a replica's disk is known to hold it. A hint: only reading tells.
    pub fn contains_many(&self, domain: DomainTag, ids: &[ShortId]) -> Vec<bool> {
        let keys: Vec<ChunkKey> = ids.iter().map(|id| (domain, *id)).collect();
        let mut places: Vec<Option<Location>> = {
            let footers = self.shared.files.footers();
            keys.iter().map(|key| footers.peek(key)).collect()
        };
        let ask = |known: &[bool]| -> Vec<ChunkKey> {
            keys.iter().zip(known).filter(|(_, known)| !**known).map(|(key, _)| *key).collect()
        };
        let mut known: Vec<bool> = {
            let state = self.shared.state();
            let alive = |place: &Option<Location>| place.is_some_and(|at| state.packs.contains_key(&at.pack));
            keys.iter()
                .zip(&places)
                .map(|(key, place)| state.pending.contains_key(key) || alive(place))
                .collect()
        };
        let mut found = self.shared.index.lookup_many(&ask(&known)).into_iter();
        for (place, _) in places.iter_mut().zip(&known).filter(|(_, known)| !**known) {
            *place = found.next().flatten();
        }
        {
            let state = self.shared.state();
            for (known, place) in known.iter_mut().zip(&places).filter(|(known, _)| !**known) {
                *known = place.is_some_and(|at| state.packs.contains_key(&at.pack));
            }
        }
        let mut on_disk = self.shared.index.on_disk_many(&ask(&known)).into_iter();
        for known in known.iter_mut().filter(|known| !**known) {
            *known = on_disk.next().unwrap_or(false);
        }
        known
    }

    /// Which of these chunks the site has, like [`Self::contains_many`]; those in packs stay there while
    /// a [`super::PackPin`] of before lives, as far as anything does.
    pub fn hold_many(&self, domain: DomainTag, ids: &[ShortId]) -> Vec<bool> {
        let held = self.contains_many(domain, ids);
        for (id, _) in ids.iter().zip(&held).filter(|(_, held)| **held) {
            if let Some((at, _)) = self.locate(&(domain, *id)) {
                self.shared.state().touch(&at);
            }
        }
        held
    }

    /// A chunk from the packs, verified by crc32c and keyed BLAKE3. A bad record is dropped. `None`
    /// where no pack has it.
    pub fn get(&self, key: &DomainKey, id: ShortId) -> Option<(ChunkId, Vec<u8>)> {
        let shared = &self.shared;
        let chunk = (key.tag(), id);
        shared.counters.lookups.fetch_add(1, Relaxed);
        for _ in 0..COPIES_TRIED_MAX {
            let (at, from_index) = self.locate(&chunk)?;
            match shared.files.read(&at, key, id) {
                Ok(found) => {
                    let closed = self.note_hit(at.pack);
                    if from_index && closed {
                        shared.files.load_footer(at.pack);
                    }
                    shared.counters.hits.fetch_add(1, Relaxed);
                    shared.counters.reads.fetch_add(1, Relaxed);
                    return Some(found);
                }
                Err(ReadError::Gone) => commit::lose(shared, at.pack),
                Err(ReadError::Bad(why)) if self.shared.state().packs.contains_key(&at.pack) => {
                    self.drop_record(&chunk, &at, &why);
                }
                Err(ReadError::Bad(_)) => shared.files.forget(at.pack), // Evicted while we read.
            }
        }
        None
    }

    /// Where a chunk is, in a living pack; and whether the database had to be asked.
    fn locate(&self, key: &ChunkKey) -> Option<(Location, bool)> {
        let shared = &self.shared;
        let near = shared.files.footers().get(key);
        {
            let state = shared.state();
            if let Some((at, _)) = state.pending.get(key) {
                return Some((*at, false));
            }
            if let Some(at) = near.filter(|at| state.packs.contains_key(&at.pack)) {
                shared.counters.footer_hits.fetch_add(1, Relaxed);
                return Some((at, false));
            }
        }
        shared.counters.footer_misses.fetch_add(1, Relaxed);
        let at = shared.index.lookup(key)?;
        if shared.state().packs.contains_key(&at.pack) {
            return Some((at, true));
        }
        // Left over from a pack that was evicted or has vanished.
        let _ = shared.index.forget_record(key, at.pack, at.offset);
        None
    }

    /// Gives the pack its second chance; true where it is closed.
    fn note_hit(&self, pack: u64) -> bool {
        let mut state = self.shared.state();
        let open = state.open.as_ref().is_some_and(|open| open.number == pack);
        match state.packs.get_mut(&pack) {
            Some(found) => {
                found.hit = true;
                !open
            }
            None => {
                drop(state);
                self.shared.files.forget(pack);
                false
            }
        }
    }

    pub(super) fn drop_record(&self, key: &ChunkKey, at: &Location, why: &str) {
        tracing::warn!(
            pack = at.pack,
            offset = at.offset,
            why,
            "a chunk in the cache is damaged and was dropped; it comes again when it is needed"
        );
        self.shared.counters.bad_records.fetch_add(1, Relaxed);
        self.shared.damage.note(at.pack, Instant::now());
        self.shared.files.footers().drop_place(key, at.pack, at.offset);
        {
            let mut state = self.shared.state();
            if state.pending.get(key).is_some_and(|(pending, _)| pending == at) {
                state.pending.remove(key);
                state.bad.insert((at.pack, at.offset));
            }
        }
        if let Err(error) = self.shared.index.forget_record(key, at.pack, at.offset) {
            tracing::debug!(%error, "cannot drop a damaged chunk from the index");
        }
    }
}
