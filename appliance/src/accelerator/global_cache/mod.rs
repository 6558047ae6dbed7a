//! The target's global cache: chunks of all sources in append-only packs, with an index in RocksDB.
//!
//! Truth is the datastore: a bad, lost or evicted chunk costs bytes on the wire and never data. So
//! everything here answers "unknown" where it is in doubt, and whoever gets a chunk gets it verified.
//!
//! - `format`: the pack file. `packs`: reading pack files. `state`: the open pack, pending records,
//!   pins, eviction. `index`: RocksDB. `footers`: locality. `lookup`: finding and reading chunks. `commit`: the group commit thread.
//!   `recover`: what happens at open. `scrub`: verifying all of it now and then.
//! - A record is appended to the open pack (page cache), synced with others (4 MiB or at most 50 ms,
//!   less where the disk is quick), then indexed with a synced log, then called durable. Until then
//!   lookups find it in memory.
//! - A failed fsync is final: nothing is appended or called durable any more until a restart.
//!
//! Owns the packs directory and the column families `chunk`, `chunk_disk`, `pack`. Not its job: what a
//! disk location leads to (the repository reads it), sessions, compression. All calls block, except
//! [`GlobalCache::durable`].
//! Bounds: `size_bytes` and the file system's reserve on disk; in memory a row per pack, 64 MiB of
//! records that wait for their commit (as places, not bytes), and the footers of about 128 packs.

mod commit;
mod damage;
mod footers;
mod format;
mod index;
mod lookup;
mod packs;
mod recover;
mod scrub;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_measure;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::watch;
use vbr_api::CacheStats;

pub use self::index::DiskLocation;
pub use self::scrub::ScrubReport;

use self::damage::Damage;
use self::index::Index;
use self::packs::{Files, Settings};
use self::state::{Room, State};
use crate::block::{CHUNK_BYTES, ChunkId, DomainTag, ShortId};
use crate::database::{Database, DatabaseError};
use crate::error::Problem;
use crate::limits;

/// Why the cache could not do something.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The configured size is too small to work with.
    #[error("cache.size is {size} bytes; the smallest that works is {least}: raise it")]
    TooSmall { size: u64, least: u64 },
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}; check the packs directory and its file system")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    /// The reserve of the file system leaves no room for one pack.
    #[error(
        "no room for another cache pack in {dir}: {free} bytes are free and {reserve} are reserved; \
         free some space, or lower cache.reserve"
    )]
    NoSpace { dir: PathBuf, free: u64, reserve: u64 },
    /// A fault in the caller.
    #[error("a chunk of {0} bytes does not fit a record; this is a fault in vbr, please report it")]
    TooLong(usize),
    /// An earlier fsync or index write failed.
    #[error(
        "the cache stopped: {0}; nothing is acknowledged any more: check the device, then start vbrd again"
    )]
    Stopped(String),
    /// The index could not be written.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<CacheError> for Problem {
    fn from(error: CacheError) -> Self {
        let what = "storing chunks in the global cache";
        let why = error.to_string();
        match error {
            CacheError::NoSpace { .. } => {
                Self::new("cache_full", what, why, "free some space on the file system of the cache").retry()
            }
            CacheError::TooSmall { .. } => Self::invalid(what, why, "raise cache.size"),
            _ => Self::new(
                "cache_failed",
                what,
                why,
                "look at the log of vbrd and at the device, then start vbrd again",
            ),
        }
    }
}

/// A promise to be waited for with [`GlobalCache::durable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// While it lives, packs opened at or after its making (and those in which an append found its chunk
/// since) are evicted only where nothing else is left.
pub struct PackPin {
    shared: Arc<Shared>,
    floor: u64,
}

impl Drop for PackPin {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(count) = state.pins.get_mut(&self.floor) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.floor);
            }
        }
    }
}

/// What the committer tells those who wait.
#[derive(Clone, Debug, Default)]
struct Commits {
    durable: u64,
    failed: Option<Arc<str>>,
}

#[derive(Default)]
struct Counters {
    lookups: AtomicU64,
    hits: AtomicU64,
    reads: AtomicU64,
    bad_records: AtomicU64,
    footer_hits: AtomicU64,
    footer_misses: AtomicU64,
}

struct Shared {
    settings: Settings,
    files: Files,
    index: Index,
    state: Mutex<State>,
    /// Wakes the committer.
    work: Condvar,
    /// Wakes appends that wait for a commit.
    progress: Condvar,
    commits: watch::Sender<Commits>,
    counters: Counters,
    damage: Damage,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cache. Dropping it commits what was appended and stops the commit thread.
pub struct GlobalCache {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

impl Drop for GlobalCache {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.work.notify_all();
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
    }
}

impl GlobalCache {
    /// Opens the packs in `packs`: cuts the open one after its last valid record, enters what the index
    /// does not know, evicts down to `size_bytes`.
    ///
    /// `reserve_bytes`: stays free on the file system.
    pub fn open(
        packs: &Path,
        db: Arc<Database>,
        size_bytes: u64,
        reserve_bytes: u64,
    ) -> Result<Arc<GlobalCache>, CacheError> {
        if size_bytes < limits::CACHE_BYTES_MIN {
            return Err(CacheError::TooSmall { size: size_bytes, least: limits::CACHE_BYTES_MIN });
        }
        Self::open_with(packs, db, Settings::new(size_bytes, reserve_bytes))
    }

    fn open_with(
        packs: &Path,
        db: Arc<Database>,
        settings: Settings,
    ) -> Result<Arc<GlobalCache>, CacheError> {
        let files = Files::new(packs, &settings);
        let index = Index::new(db);
        let state = recover::recover(&files, &index, &settings)?;
        let shared = Arc::new(Shared {
            settings,
            files,
            index,
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            commits: watch::Sender::new(Commits::default()),
            counters: Counters::default(),
            damage: Damage::default(),
        });
        let thread = std::thread::Builder::new().name("cache-commit".into());
        let committer = {
            let shared = Arc::clone(&shared);
            thread.spawn(move || commit::run(&shared))
        };
        let committer = committer.map_err(|source| CacheError::Io {
            what: "start the commit thread for",
            path: packs.to_owned(),
            source,
        })?;
        Ok(Arc::new(GlobalCache { shared, committer: Some(committer) }))
    }

    /// Appends a chunk that the caller has verified. A chunk that a living pack has is not stored again.
    /// Waits where too much is on its way to the disk. Not durable before [`Self::durable`] says so.
    pub fn append(&self, tag: DomainTag, id: ChunkId, plain: &[u8]) -> Result<Ticket, CacheError> {
        if plain.len() > CHUNK_BYTES {
            return Err(CacheError::TooLong(plain.len()));
        }
        let shared = &self.shared;
        let key = (tag, id.short());
        let indexed = shared.index.lookup(&key);
        let record = format::encode_record(&id, tag, plain);
        let mut state = shared.state();
        loop {
            if let Some(why) = &state.failed {
                return Err(CacheError::Stopped(why.clone()));
            }
            // Found alive and marked in one step: eviction takes packs under the same lock.
            if let Some((at, sequence)) = state.pending.get(&key)
                && at.id_rest == id.0[16..]
            {
                return Ok(Ticket(*sequence));
            }
            if indexed.is_some_and(|at| at.id_rest == id.0[16..] && state.touch(&at)) {
                return Ok(Ticket(0));
            }
            let waits = state.queue_bytes + state.committing_bytes >= shared.settings.backlog_bytes;
            if !waits && state.fits(record.len(), &shared.settings) {
                break;
            }
            if waits || matches!(state.roll(&shared.settings, &shared.files)?, Room::AfterCommit) {
                shared.work.notify_all();
                state = shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let was_idle = state.queue.is_empty();
        let sequence = state.write(id, tag, &record).map_err(|source| CacheError::Io {
            what: "append to a pack in",
            path: shared.files.dir.clone(),
            source,
        })?;
        if was_idle || state.queue_bytes >= shared.settings.group_bytes {
            shared.work.notify_all();
        }
        Ok(Ticket(sequence))
    }

    /// Keeps a chunk that this site sent, as a base for what will overwrite it. `replaced`: it replaced
    /// other content, so its place tends to be overwritten; the rest never pushes such content out.
    pub fn keep(&self, tag: DomainTag, id: ChunkId, plain: &[u8], replaced: bool) -> Result<(), CacheError> {
        let shared = &self.shared;
        if replaced {
            self.append(tag, id, plain)?;
            shared.state().mark_hot();
            return Ok(());
        }
        let len = format::RECORD_HEADER_BYTES as usize + plain.len();
        let room = shared.state().has_cold_room(len, &shared.settings, &shared.files);
        if room {
            self.append(tag, id, plain)?;
        }
        Ok(())
    }

    /// Waits until that ticket's record is on stable storage and indexed.
    pub async fn durable(&self, ticket: Ticket) -> Result<(), CacheError> {
        let mut commits = self.shared.commits.subscribe();
        let reached = commits.wait_for(|now| now.failed.is_some() || now.durable >= ticket.0).await;
        match reached.map(|now| now.failed.clone()) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(CacheError::Stopped(why.to_string())),
            Err(_) => Err(CacheError::Stopped("vbrd is going down".into())),
        }
    }

    /// Pins the packs from the open one on; a session holds one per checkpoint window.
    pub fn pin(&self) -> PackPin {
        let mut state = self.shared.state();
        let floor = state.open.as_ref().map_or(state.next_pack, |open| open.number);
        *state.pins.entry(floor).or_insert(0) += 1;
        PackPin { shared: Arc::clone(&self.shared), floor }
    }

    /// Remembers where a page's chunks stand on a replica's disk. Done when a point is sealed.
    pub fn index_page(
        &self,
        tag: DomainTag,
        replica_key: [u8; 16],
        disk: u16,
        page: u64,
        ids: &[ChunkId],
    ) -> Result<(), CacheError> {
        Ok(self.shared.index.put_page(tag, replica_key, disk, page, ids)?)
    }

    /// A place on a replica's disk that held this chunk; the reader has to verify it.
    pub fn disk_location(&self, tag: DomainTag, id: ShortId) -> Option<DiskLocation> {
        self.shared.index.disk_location(&(tag, id))
    }

    /// Forgets a place that turned out wrong.
    pub fn forget_disk_location(&self, tag: DomainTag, id: ShortId) {
        if let Err(error) = self.shared.index.forget_disk_location(&(tag, id)) {
            tracing::debug!(%error, "cannot forget a stale place of a chunk");
        }
    }

    /// Notes that all pages of a point were given to [`Self::index_page`].
    pub fn mark_point_indexed(&self, point_key: &[u8]) {
        if let Err(error) = self.shared.index.mark_point_indexed(point_key) {
            tracing::warn!(%error, "a restore point is not marked as indexed; it is indexed again at the next start");
        }
    }

    /// Forgets that note, for a point that is gone.
    pub fn forget_point_indexed(&self, point_key: &[u8]) {
        if let Err(error) = self.shared.index.forget_point_indexed(point_key) {
            tracing::debug!(%error, "cannot forget the mark of a restore point");
        }
    }

    /// True where a point's pages are in the index.
    pub fn point_is_indexed(&self, point_key: &[u8]) -> bool {
        self.shared.index.point_is_indexed(point_key)
    }

    /// Figures for the console; disk locations are RocksDB's estimate.
    pub fn stats(&self) -> CacheStats {
        let counters = &self.shared.counters;
        let disk_locations = self.shared.index.disk_locations();
        let state = self.shared.state();
        CacheStats {
            size_bytes: self.shared.settings.size_bytes,
            used_bytes: state.used_bytes(),
            packs: state.packs.len() as u64,
            chunks: state.chunks,
            lookups: counters.lookups.load(Relaxed),
            hits: counters.hits.load(Relaxed),
            reads: counters.reads.load(Relaxed),
            bad_records: counters.bad_records.load(Relaxed),
            evicted_packs: state.evicted,
            footer_hits: counters.footer_hits.load(Relaxed),
            footer_misses: counters.footer_misses.load(Relaxed),
            disk_locations,
            ..CacheStats::default()
        }
    }

    /// Evicts where the cache is beyond its size or the file system's reserve is not free; how many packs. An
    /// error where writing stopped.
    pub fn give_way(&self) -> Result<u64, CacheError> {
        let shared = &self.shared;
        let mut state = shared.state();
        if let Some(why) = &state.failed {
            return Err(CacheError::Stopped(why.clone()));
        }
        let before = state.evicted;
        match state.make_room(0, &shared.settings, &shared.files) {
            // What others fill is not ours to mend; the datastores tell of it.
            Ok(_) | Err(CacheError::NoSpace { .. }) => {}
            Err(error) => return Err(error),
        }
        let evicted = state.evicted - before;
        drop(state);
        if evicted > 0 {
            shared.work.notify_all(); // Their entries leave the index.
        }
        Ok(evicted)
    }

    /// What the operator should know of records that failed their check lately.
    pub fn damage_warning(&self) -> Option<String> {
        self.shared.damage.warning(Instant::now())
    }

    /// What the operator should know: the cache stopped, or the file system keeps it from its size.
    /// A cache that is full is normal and no warning.
    pub fn near_full_warning(&self) -> Option<String> {
        let settings = &self.shared.settings;
        let free = self.shared.files.free();
        let state = self.shared.state();
        if let Some(why) = &state.failed {
            return Some(CacheError::Stopped(why.clone()).to_string());
        }
        let grows = state.used_bytes() + 2 * settings.pack_bytes < settings.size_bytes;
        let free = free.filter(|free| grows && *free < settings.reserve_bytes + 2 * settings.pack_bytes)?;
        Some(format!(
            "the cache holds {} of its {} bytes and cannot grow: {} has {free} bytes free and {} are \
             reserved; free some space, or lower cache.size",
            state.used_bytes(),
            settings.size_bytes,
            self.shared.files.dir.display(),
            settings.reserve_bytes,
        ))
    }
}
