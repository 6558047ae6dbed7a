//! Resolve: from an offered id to verified bytes, at the target.
//!
//! Order: global cache, sealed restore points of any replica of the domain, the disk being built.
//! Everything is re-hashed by whoever reads it; what is bad or gone answers `None` and becomes a NEED.
//! Bound: [`RECENT_MAX`] places of the disk being built are remembered (about 3 MiB).

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::global_cache::GlobalCache;
use crate::block::{ChunkId, ChunkSource, DomainKey, DomainTag, ShortId};

/// Places of the disk being built that are remembered.
const RECENT_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(32 * 1024 - 1);

/// Resolves ids for one session.
pub struct Resolver {
    cache: Arc<GlobalCache>,
    points: Arc<dyn ChunkSource>,
    key: DomainKey,
    tag: DomainTag,
    recent: LruCache<ShortId, (u16, u64)>,
}

impl Resolver {
    /// A resolver within one domain.
    pub fn new(cache: Arc<GlobalCache>, points: Arc<dyn ChunkSource>, key: DomainKey) -> Self {
        let tag = key.tag();
        Self { cache, points, key, tag, recent: LruCache::new(RECENT_MAX) }
    }

    /// Remembers where the disk being built holds a chunk.
    pub fn note(&mut self, id: ShortId, disk: u16, chunk: u64) {
        self.recent.put(id, (disk, chunk));
    }

    /// The chunk's bytes, verified. `building` reads a chunk of the disk being built.
    pub fn resolve(
        &mut self,
        id: ShortId,
        building: impl FnOnce(u16, u64) -> Option<Vec<u8>>,
    ) -> Option<(ChunkId, Vec<u8>)> {
        if let Some(found) = self.cache.get(&self.key, id) {
            return Some(found);
        }
        if let Some(place) = self.cache.disk_location(self.tag, id) {
            match self.points.read_chunk(place.replica_key, place.disk, place.chunk, id, &self.key) {
                Some(found) => return Some(found),
                None => self.cache.forget_disk_location(self.tag, id),
            }
        }
        let (disk, chunk) = *self.recent.get(&id)?;
        let data = building(disk, chunk)?;
        let found = self.key.chunk_id(&data);
        if found.short() == id {
            Some((found, data))
        } else {
            self.recent.pop(&id); // Overwritten since.
            None
        }
    }
}
