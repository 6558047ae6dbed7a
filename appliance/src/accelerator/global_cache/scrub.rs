//! Scrubbing: every record that the index leads to is read from the disk and verified, pack by pack.
//!
//! A record that fails its check is dropped from the index, as a lookup that trips over it would: the chunk is sent
//! again when it is needed, or, at a source, no base any more. A whole pass that finds nothing takes away what was said
//! of damage before it. Owns nothing. Not its job: when, how fast (`pace`
//! says), what to do about the disk. Memory: the entries of one pack.

use std::collections::HashMap;
use std::time::Instant;

use super::format::{ChunkKey, Entry};
use super::index::Location;
use super::packs::ReadError;
use super::{GlobalCache, commit};
use crate::block::{DomainKey, DomainTag};

/// What a pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Packs that were read.
    pub packs: u64,
    /// Records that were read.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Records that failed their check; they were dropped.
    pub bad: u64,
    /// Packs whose file was gone; what they held was dropped.
    pub vanished: u64,
    /// False where the pass was ended early.
    pub whole: bool,
}

impl GlobalCache {
    /// Verifies all packs. `key` gives the key of a domain; without one the sums alone are checked. `pace` hears of
    /// bytes read, packs done and packs in all; where it answers false the pass ends.
    pub fn scrub(
        &self,
        key: &dyn Fn(DomainTag) -> Option<DomainKey>,
        pace: &mut dyn FnMut(u64, u64, u64) -> bool,
    ) -> ScrubReport {
        let (shared, started) = (&self.shared, Instant::now());
        let packs: Vec<u64> = shared.state().packs.keys().copied().collect();
        let (mut report, mut keys) = (ScrubReport::default(), HashMap::new());
        for (done, number) in packs.iter().enumerate() {
            if !pace(0, done as u64, packs.len() as u64) {
                return report;
            }
            let Some(entries) = self.entries_of(*number) else {
                if shared.state().packs.contains_key(number) {
                    report.vanished += 1;
                    commit::lose(shared, *number);
                }
                continue;
            };
            shared.files.drop_from_memory(*number);
            report.packs += 1;
            for (chunk, at) in self.reachable(*number, &entries) {
                let domain = keys.entry(chunk.0).or_insert_with(|| key(chunk.0));
                let bytes = u64::from(at.stored_len);
                report.records += 1;
                report.bytes += bytes;
                report.bad += u64::from(!self.check(&chunk, &at, domain.as_ref()));
                if !pace(bytes, done as u64, packs.len() as u64) {
                    return report;
                }
            }
            shared.files.drop_from_memory(*number);
        }
        report.whole = true;
        if report.bad + report.vanished == 0 {
            shared.damage.disprove(started);
        }
        report
    }

    /// A pack's records; none where its file is gone.
    fn entries_of(&self, number: u64) -> Option<Vec<Entry>> {
        let open = {
            let state = self.shared.state();
            state.open.as_ref().filter(|open| open.number == number).map(|open| open.entries.clone())
        };
        open.or_else(|| self.shared.files.entries_of(number))
    }

    /// Those that the index leads to. The others are dropped or replaced ones, or on their way into it.
    fn reachable(&self, number: u64, entries: &[Entry]) -> Vec<(ChunkKey, Location)> {
        let keys: Vec<ChunkKey> = entries.iter().map(Entry::key).collect();
        let known = self.shared.index.lookup_many(&keys);
        let own = keys.into_iter().zip(entries).zip(known).filter_map(|((key, entry), known)| {
            let at = Location::of(number, entry);
            (known == Some(at)).then_some((key, at))
        });
        own.collect()
    }

    /// Reads a record; drops it where it is bad. True for a good one, and where its pack was evicted meanwhile.
    fn check(&self, chunk: &ChunkKey, at: &Location, key: Option<&DomainKey>) -> bool {
        let read = match key {
            Some(key) => self.shared.files.read(at, key, chunk.1).map(drop),
            None => self.shared.files.check_sums(at, chunk),
        };
        match read {
            Ok(()) => true,
            Err(ReadError::Gone) => {
                commit::lose(&self.shared, at.pack);
                true // Counted with its pack.
            }
            Err(ReadError::Bad(why)) if self.shared.state().packs.contains_key(&at.pack) => {
                self.drop_record(chunk, at, &why);
                false
            }
            Err(ReadError::Bad(_)) => true,
        }
    }
}
