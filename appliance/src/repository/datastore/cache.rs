//! What is kept in memory for reading restore points: manifests, page bodies, open disks.
//!
//! Bounds: [`MANIFEST_ENTRIES_MAX`] table entries (about 100 MiB), [`PAGES_KEPT`] page bodies (4 MiB),
//! [`READERS_KEPT`] open disks, each perhaps a qemu-storage-daemon. Nothing here is ever the truth.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::pages::DiskManifest;
use crate::block::{BlockRead, PageHash};
use crate::repository::PageIds;

/// Table entries of all cached manifests together.
const MANIFEST_ENTRIES_MAX: usize = 1_000_000;
/// Page bodies.
const PAGES_KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(127);
/// Open disks.
const READERS_KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Replica, point, disk.
pub type DiskKey = ([u8; 16], String, u16);

/// The caches of one datastore.
pub struct Caches {
    manifests: Mutex<LruCache<DiskKey, Arc<DiskManifest>>>,
    pages: Mutex<LruCache<PageHash, Arc<PageIds>>>,
    readers: Mutex<LruCache<DiskKey, Arc<dyn BlockRead>>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            manifests: Mutex::new(LruCache::unbounded()),
            pages: Mutex::new(LruCache::new(PAGES_KEPT)),
            readers: Mutex::new(LruCache::new(READERS_KEPT)),
        }
    }
}

impl Caches {
    /// A manifest, loaded where it is not cached.
    pub fn manifest<E>(
        &self,
        key: DiskKey,
        load: impl FnOnce() -> Result<DiskManifest, E>,
    ) -> Result<Arc<DiskManifest>, E> {
        if let Some(found) = lock(&self.manifests).get(&key) {
            return Ok(found.clone());
        }
        let loaded = Arc::new(load()?);
        let mut manifests = lock(&self.manifests);
        manifests.put(key, loaded.clone());
        // A manifest without entries still takes room for its name.
        let mut sum: usize = manifests.iter().map(|(_, manifest)| manifest.entries.len() + 16).sum();
        while sum > MANIFEST_ENTRIES_MAX {
            let Some((_, oldest)) = manifests.pop_lru() else { break };
            sum -= oldest.entries.len() + 16;
        }
        Ok(loaded)
    }

    /// A page body by its hash, loaded (and verified) where it is not cached.
    pub fn page<E>(
        &self,
        hash: PageHash,
        load: impl FnOnce() -> Result<PageIds, E>,
    ) -> Result<Arc<PageIds>, E> {
        if let Some(found) = lock(&self.pages).get(&hash) {
            return Ok(found.clone());
        }
        let loaded = Arc::new(load()?);
        lock(&self.pages).put(hash, loaded.clone());
        Ok(loaded)
    }

    /// An open disk, opened where it is not cached.
    pub fn reader<E>(
        &self,
        key: DiskKey,
        open: impl FnOnce() -> Result<Arc<dyn BlockRead>, E>,
    ) -> Result<Arc<dyn BlockRead>, E> {
        if let Some(found) = lock(&self.readers).get(&key) {
            return Ok(found.clone());
        }
        let opened = open()?;
        // What falls out is dropped after the lock: closing a disk may take a moment.
        let dropped = lock(&self.readers).push(key, opened.clone());
        drop(dropped);
        Ok(opened)
    }

    /// Lets go of a disk that failed.
    pub fn drop_reader(&self, key: &DiskKey) {
        let dropped = lock(&self.readers).pop(key);
        drop(dropped);
    }

    /// Lets go of every open disk of a replica.
    pub fn evict(&self, replica: [u8; 16]) {
        let mut dropped = Vec::new();
        let mut readers = lock(&self.readers);
        let keys: Vec<DiskKey> =
            readers.iter().filter(|(key, _)| key.0 == replica).map(|(key, _)| key.clone()).collect();
        dropped.extend(keys.iter().filter_map(|key| readers.pop(key)));
        drop(readers);
        drop(dropped);
    }

    /// Forgets the manifests of a point.
    pub fn forget_point(&self, replica: [u8; 16], point: &str) {
        let mut manifests = lock(&self.manifests);
        let keys: Vec<DiskKey> = manifests
            .iter()
            .filter(|(key, _)| key.0 == replica && key.1 == point)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            manifests.pop(&key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
