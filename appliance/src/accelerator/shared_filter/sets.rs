//! The sets of a target: one for each dedup domain, each with a file of the domain's tag in one directory.
//!
//! A set is opened when its domain is first asked for, and begins empty where its file is missing or
//! damaged: the filter is a hint, and what it lacks is learned again. Owns directory and sets. Blocks.
//! Bounds: [`SHARED_SETS_MAX`] sets in memory; beyond that the one used longest ago is saved and closed,
//! and while all are in use another domain goes without.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{SharedSet, SharedSetStats};
use crate::accelerator::block_index::LoadError;
use crate::accelerator::block_index::checked_file::private_directory;
use crate::block::DomainTag;
use crate::limits::{SHARED_FIRST_BYTES, SHARED_SETS_MAX};

/// See the module.
pub struct SharedSets {
    directory: PathBuf,
    /// The one used last comes last.
    open: Mutex<Vec<Open>>,
}

#[derive(Clone)]
struct Open {
    tag: DomainTag,
    set: Arc<SharedSet>,
    /// What it knew when it was saved.
    saved: u64,
}

impl SharedSets {
    /// Over the files of a directory, which is made when there is something to save.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, open: Mutex::default() }
    }

    /// The set of a domain.
    pub fn of(&self, tag: DomainTag) -> Option<Arc<SharedSet>> {
        let mut open = self.open();
        if let Some(at) = open.iter().position(|entry| entry.tag == tag) {
            let entry = open.remove(at);
            let set = entry.set.clone();
            open.push(entry);
            return Some(set);
        }
        if open.len() >= SHARED_SETS_MAX {
            let idle = open.iter().position(|entry| Arc::strong_count(&entry.set) == 1)?;
            self.save_one(&open.remove(idle));
        }
        let (set, why) = SharedSet::load(&self.path(tag), SHARED_FIRST_BYTES, random());
        match why {
            None | Some(LoadError::Missing(_)) => {}
            Some(why) => tracing::warn!(%why, "a set of shared chunks begins empty; it is learned again"),
        }
        let (set, saved) = (Arc::new(set), 0);
        let entry = Open { tag, saved, set: set.clone() };
        open.push(Open { saved: entry.knows(), ..entry });
        Some(set)
    }

    /// Saves what is new; when the appliance stops only where much is, because sets are written whole.
    pub fn save(&self, stopping: bool) {
        // A copy, so that domains can be opened while files are written.
        let all = self.open().clone();
        for entry in all {
            let knows = entry.knows();
            let worth = if stopping { entry.saved / 100 + 256 } else { 0 };
            if knows.abs_diff(entry.saved) > worth && self.save_one(&entry) {
                let mut open = self.open();
                let same = open.iter_mut().find(|other| other.tag == entry.tag);
                same.into_iter().for_each(|entry| entry.saved = knows);
            }
        }
    }

    /// Figures of all sets in memory.
    pub fn stats(&self) -> Vec<SharedSetStats> {
        self.open().iter().map(|entry| entry.set.stats()).collect()
    }

    fn save_one(&self, entry: &Open) -> bool {
        let saved = private_directory(&self.directory).and_then(|()| entry.set.save(&self.path(entry.tag)));
        if let Err(error) = &saved {
            tracing::warn!(%error, "a set of shared chunks cannot be saved; it stays in memory");
        }
        saved.is_ok()
    }

    fn path(&self, tag: DomainTag) -> PathBuf {
        self.directory.join(data_encoding::HEXLOWER.encode(&tag.0))
    }

    fn open(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Grows with everything that is learned, as long as the table of first branches has room.
    fn knows(&self) -> u64 {
        let stats = self.set.stats();
        2 * stats.keys + stats.first_branches
    }
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    if getrandom::fill(&mut bytes).is_err() {
        // Nobody has to be kept from guessing it; epochs of two sets should only differ.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = *blake3::hash(&now.as_nanos().to_le_bytes()).as_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accelerator::shared_filter::tests::{id, share};

    fn tag(n: u8) -> DomainTag {
        DomainTag([n; 8])
    }

    #[test]
    fn domains_are_apart_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let sets = SharedSets::new(dir.path().join("shared"));
        (0..2000).for_each(|n| share(&sets.of(tag(1)).unwrap(), n));
        share(&sets.of(tag(2)).unwrap(), 5);
        assert!(!sets.of(tag(2)).unwrap().may_contain(id(1)));
        sets.save(true);
        let again = SharedSets::new(dir.path().join("shared"));
        assert!(again.of(tag(1)).unwrap().may_contain(id(1)));
        assert!(!again.of(tag(2)).unwrap().may_contain(id(5)), "one chunk was not worth a file at a stop");
        sets.save(false);
        let again = SharedSets::new(dir.path().join("shared"));
        assert!(again.of(tag(2)).unwrap().may_contain(id(5)));
        assert_eq!(again.stats().len(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        let sets = SharedSets::new(dir.path().to_owned());
        (0..20).for_each(|n| share(&sets.of(tag(1)).unwrap(), n));
        sets.save(false);
        let path = dir.path().join("0101010101010101");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let again = SharedSets::new(dir.path().to_owned());
        assert_eq!(again.of(tag(1)).unwrap().stats().keys, 0);
    }

    #[test]
    fn sets_are_bounded_and_those_in_use_stay() {
        let dir = tempfile::tempdir().unwrap();
        let sets = SharedSets::new(dir.path().to_owned());
        let used: Vec<_> = (0..SHARED_SETS_MAX as u8).map(|n| sets.of(tag(n)).unwrap()).collect();
        share(&used[0], 1);
        assert!(sets.of(tag(99)).is_none(), "all are in use");
        drop(used);
        assert!(sets.of(tag(99)).is_some());
        assert_eq!(sets.stats().len(), SHARED_SETS_MAX);
        assert!(sets.of(tag(0)).unwrap().may_contain(id(1)), "it was saved when it was closed");
    }
}
