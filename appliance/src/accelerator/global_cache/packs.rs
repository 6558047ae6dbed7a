//! Pack files as a reader sees them: names, cached handles, records, footers, free space.
//!
//! Owns the cached handles and the footers in memory. Not its job: which packs live (`state`).
//! Bounds: [`HANDLES_MAX`] open files, the footers' number of entries.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;

use super::footers::Footers;
use super::format::{
    self, ChunkKey, Entry, PACK_FILE_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader, TRAILER_BYTES, Trailer,
};
use super::index::Location;
use crate::block::{CHUNK_BYTES, ChunkId, DomainKey, ShortId};
use crate::limits;

const HANDLES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);
/// Records in one pack: 64 MiB of whole chunks is 1,023; disks' short last chunks may be tiny.
const RECORDS_MAX: usize = 8192;
/// Footer entries kept in memory: the footers of 128 full packs, about 12 MiB.
const FOOTER_ENTRIES_MAX: usize = 128 * 1024;
/// Bytes appended and not committed, at which appending waits.
const BACKLOG_BYTES: u64 = 64 * 1024 * 1024;

/// The cache's bounds, and the two calls that tests replace.
#[derive(Clone)]
pub(super) struct Settings {
    pub size_bytes: u64,
    pub reserve_bytes: u64,
    pub pack_bytes: u64,
    pub records_max: usize,
    pub group_bytes: u64,
    pub group_delay: Duration,
    pub backlog_bytes: u64,
    pub footer_entries_max: usize,
    pub sync: fn(&File) -> io::Result<()>,
    pub free: fn(&Path) -> io::Result<u64>,
}

impl Settings {
    pub fn new(size_bytes: u64, reserve_bytes: u64) -> Self {
        Self {
            size_bytes,
            reserve_bytes,
            pack_bytes: pack_bytes(size_bytes),
            records_max: RECORDS_MAX,
            group_bytes: limits::GROUP_COMMIT_BYTES,
            group_delay: limits::GROUP_COMMIT_DELAY,
            backlog_bytes: BACKLOG_BYTES,
            footer_entries_max: FOOTER_ENTRIES_MAX,
            sync: File::sync_data,
            free: free_bytes,
        }
    }
}

/// A small cache has small packs, so that it holds eight at least: what is evicted is a whole pack.
fn pack_bytes(size_bytes: u64) -> u64 {
    (size_bytes / 8).next_multiple_of(1 << 20).min(limits::PACK_BYTES)
}

/// Why a record could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The pack's file is not there.
    Gone,
    /// A check failed, or the device did.
    Bad(String),
}

pub(super) struct Files {
    pub dir: PathBuf,
    handles: Mutex<LruCache<u64, Arc<File>>>,
    footers: Mutex<Footers>,
    free: fn(&Path) -> io::Result<u64>,
}

impl Files {
    pub fn new(dir: &Path, settings: &Settings) -> Self {
        Self {
            dir: dir.to_owned(),
            handles: Mutex::new(LruCache::new(HANDLES_MAX)),
            footers: Mutex::new(Footers::new(settings.footer_entries_max)),
            free: settings.free,
        }
    }

    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016x}.pack"))
    }

    pub fn footers(&self) -> MutexGuard<'_, Footers> {
        self.footers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes a normal user may still write there; `None` where the file system does not tell.
    pub fn free(&self) -> Option<u64> {
        (self.free)(&self.dir).ok()
    }

    /// Reads and verifies a record: header, crc32c, and the keyed hash of the content.
    pub fn read(&self, at: &Location, key: &DomainKey, id: ShortId) -> Result<(ChunkId, Vec<u8>), ReadError> {
        let (found, plain) = self.read_sound(at, &(key.tag(), id))?;
        if key.chunk_id(&plain) != found {
            return Err(ReadError::Bad("its content is not the chunk it says".to_owned()));
        }
        Ok((found, plain))
    }

    /// The same without the hash, for a chunk of a domain whose key is not here.
    pub fn check_sums(&self, at: &Location, chunk: &ChunkKey) -> Result<(), ReadError> {
        self.read_sound(at, chunk).map(drop)
    }

    /// Header and crc32c are right.
    fn read_sound(&self, at: &Location, chunk: &ChunkKey) -> Result<(ChunkId, Vec<u8>), ReadError> {
        let file = self.handle(at.pack).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ReadError::Gone,
            _ => ReadError::Bad(error.to_string()),
        })?;
        let len = (at.stored_len as usize).min(CHUNK_BYTES);
        let mut record = vec![0; RECORD_HEADER_BYTES as usize + len];
        file.read_exact_at(&mut record, u64::from(at.offset))
            .map_err(|error| ReadError::Bad(error.to_string()))?;
        let bad = |why: &str| ReadError::Bad(why.to_owned());
        let header = RecordHeader::decode(&record).ok_or_else(|| bad("its header is damaged"))?;
        if (header.tag, header.id.short()) != *chunk || header.stored_len as usize != len {
            return Err(bad("another record is in its place"));
        }
        let mut plain = record.split_off(RECORD_HEADER_BYTES as usize);
        if header.payload(&plain).is_none() {
            return Err(bad("its sum is wrong"));
        }
        plain.truncate(header.plain_len as usize);
        Ok((header.id, plain))
    }

    /// A closed pack's records, by its footer or one by one; none where its file cannot be opened.
    pub fn entries_of(&self, number: u64) -> Option<Vec<Entry>> {
        let file = File::open(self.path(number)).ok()?;
        read_footer(&file, number).or_else(|| Some(format::scan(&read_whole(&file).ok()?).entries))
    }

    /// What the kernel keeps of a pack in memory is not what the disk has: the next read asks the disk.
    pub fn drop_from_memory(&self, number: u64) {
        if let Ok(file) = self.handle(number) {
            // Only a hint: where it is not followed, the check is of the copy in memory.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }

    /// Loads a closed pack's footer into memory, if it is sound and not there yet.
    pub fn load_footer(&self, number: u64) {
        if self.footers().holds(number) {
            return;
        }
        let Ok(file) = self.handle(number) else { return };
        if let Some(entries) = read_footer(&file, number) {
            self.footers().insert(number, &entries);
        }
    }

    /// All chunks of a pack: from memory, its footer, or record by record.
    pub fn keys_of(&self, number: u64) -> Vec<ChunkKey> {
        if let Some(keys) = self.footers().remove(number) {
            return keys;
        }
        let Ok(file) = self.handle(number) else { return Vec::new() };
        let entries =
            read_footer(&file, number).or_else(|| Some(format::scan(&read_whole(&file).ok()?).entries));
        entries.unwrap_or_default().iter().map(Entry::key).collect()
    }

    /// Forgets a pack: its handle would hold the space of a removed file.
    pub fn forget(&self, number: u64) {
        self.handles().pop(&number);
        self.footers().remove(number);
    }

    fn handle(&self, number: u64) -> io::Result<Arc<File>> {
        if let Some(file) = self.handles().get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.path(number))?);
        self.handles().put(number, Arc::clone(&file));
        Ok(file)
    }

    fn handles(&self) -> MutexGuard<'_, LruCache<u64, Arc<File>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A closed pack's entries; `None` without a sound footer.
pub(super) fn read_footer(file: &File, number: u64) -> Option<Vec<Entry>> {
    let file_len = file.metadata().ok()?.len();
    if file_len > PACK_FILE_BYTES_MAX {
        return None;
    }
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, file_len.checked_sub(u64::from(TRAILER_BYTES))?).ok()?;
    let trailer = Trailer::decode(&trailer, number, file_len)?;
    let mut footer = vec![0; trailer.footer_len()];
    file.read_exact_at(&mut footer, u64::from(trailer.footer_offset)).ok()?;
    trailer.entries(&footer)
}

/// A whole pack file in memory, at most [`PACK_FILE_BYTES_MAX`].
pub(super) fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    if len > PACK_FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than any pack"));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
