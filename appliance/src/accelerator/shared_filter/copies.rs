//! The copies of a source: one for each target and domain, each a file in one directory.
//!
//! File: a [`checked_file`](crate::accelerator::block_index::checked_file) of kind `VBRFILT`, one piece: the filter's
//! record. Versions: 1, the first. A missing or damaged one is no filter: the target is asked
//! about everything. Owns directory and copies. Blocks.
//! Bounds: [`SHARED_FILTERS_MAX`] copies in memory.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::{FILTER_BYTES_MAX, SharedFilter};
use crate::accelerator::block_index::LoadError;
use crate::accelerator::block_index::checked_file::{Reader, Writer, private_directory};
use crate::block::DomainTag;
use crate::limits::SHARED_FILTERS_MAX;

const KIND: &[u8; 7] = b"VBRFILT";
const VERSION: u8 = 1;
/// The filter and its cursor.
const RECORD_BYTES_MAX: usize = FILTER_BYTES_MAX + 64;

/// See the module.
pub struct SharedFilters {
    directory: PathBuf,
    open: Mutex<LruCache<String, Arc<SharedFilter>>>,
}

impl SharedFilters {
    /// Over the files of a directory, which is made when there is something to keep.
    pub fn new(directory: PathBuf) -> Self {
        let many = NonZeroUsize::new(SHARED_FILTERS_MAX).unwrap_or(NonZeroUsize::MIN);
        Self { directory, open: Mutex::new(LruCache::new(many)) }
    }

    /// The filter of a target; one that is not loaded where there is none. The domain's tag is part of its
    /// name: ids of another domain would find nothing in it.
    pub fn of(&self, peer_id: &str, tag: DomainTag) -> Arc<SharedFilter> {
        let name = name(peer_id, tag);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = open.get(&name) {
            return filter.clone();
        }
        let filter = match load(&self.directory.join(&name)) {
            Ok(filter) => filter,
            Err(LoadError::Missing(_)) => SharedFilter::default(),
            Err(why) => {
                tracing::warn!(%why, "a filter of shared chunks is not used; the target is asked for it again");
                SharedFilter::default()
            }
        };
        let filter = Arc::new(filter);
        open.put(name, filter.clone());
        filter
    }

    /// Takes a newer one. An error leaves the old file; the new filter is used all the same.
    pub fn put(&self, peer_id: &str, tag: DomainTag, filter: SharedFilter) -> io::Result<()> {
        let name = name(peer_id, tag);
        let record = postcard::to_stdvec(&filter).map_err(io::Error::other)?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).put(name.clone(), Arc::new(filter));
        private_directory(&self.directory)?;
        let mut writer = Writer::create(&self.directory.join(name), KIND, VERSION)?;
        writer.piece(&record)?;
        writer.finish()
    }
}

fn load(path: &Path) -> Result<SharedFilter, LoadError> {
    let mut reader = Reader::open(path, KIND, VERSION)?;
    let record = reader.piece(RECORD_BYTES_MAX)?;
    let filter = postcard::from_bytes(&record).map_err(|_| reader.damaged("its filter is not sound"))?;
    reader.finish()?;
    Ok(filter)
}

/// A file's name: of what a peer is called nothing but letters and digits.
fn name(peer_id: &str, tag: DomainTag) -> String {
    let peer: String = peer_id.chars().filter(char::is_ascii_alphanumeric).take(100).collect();
    format!("{peer}-{}", data_encoding::HEXLOWER.encode(&tag.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accelerator::shared_filter::SharedSet;
    use crate::accelerator::shared_filter::tests::{catch_up, id, share};

    const TAG: DomainTag = DomainTag([3; 8]);

    #[test]
    fn copies_survive_a_restart_and_damage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let filters = SharedFilters::new(dir.path().join("filters"));
        assert!(!filters.of("12D3Koo", TAG).is_loaded());
        let (set, mut filter) = (SharedSet::new(1 << 20, [1; 32]), SharedFilter::default());
        (0..100).for_each(|n| share(&set, n));
        catch_up(&set, &mut filter);
        filters.put("12D3Koo", TAG, filter).unwrap();
        assert!(filters.of("12D3Koo", TAG).may_contain(id(1)));
        assert!(
            !filters.of("12D3Koo", DomainTag([4; 8])).is_loaded() && !filters.of("other", TAG).is_loaded()
        );

        let again = SharedFilters::new(dir.path().join("filters"));
        let kept = again.of("12D3Koo", TAG);
        assert!(kept.is_loaded() && kept.may_contain(id(99)) && !kept.may_contain(id(100)));
        let path = dir.path().join("filters").join("12D3Koo-0303030303030303");
        let good = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            SharedFilters::new(dir.path().join("filters")).of("12D3Koo", TAG).is_loaded()
        };
        assert!(!damaged(b"") && !damaged(&good[..good.len() - 1]));
        let mut flipped = good.clone();
        flipped[500] ^= 4;
        assert!(!damaged(&flipped) && damaged(&good));
    }

    #[test]
    fn names_stay_in_the_directory() {
        assert_eq!(name("../../etc/passwd", TAG), "etcpasswd-0303030303030303");
    }
}
