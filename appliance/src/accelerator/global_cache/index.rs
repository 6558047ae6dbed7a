//! The cache's records in RocksDB: chunk -> place in a pack, chunk -> place on a replica's disk, the
//! state of each pack, markers of indexed points.
//!
//! Owns the order of index changes: whatever reads an entry and then decides on it holds `changes`, so
//! a removal never hits a newer entry. Not its job: pack files. Damage on a read means "unknown" (the
//! database has logged it); errors of a write are the caller's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::format::{ChunkKey, Entry, u32_at, u64_at};
use crate::block::{ChunkId, DomainTag, PAGE_CHUNKS, ShortId};
use crate::database::{Batch, Database, DatabaseError, cf};

const NEXT_PACK: &[u8] = b"cache/next-pack";
const POINT_INDEXED: &[u8] = b"cache/point-indexed/";
const ROW_VERSION: u8 = 1;
/// Rows of one scan step.
const SCAN_STEP: usize = 4096;

/// A record's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub pack: u64,
    pub offset: u32,
    pub stored_len: u32,
    pub plain_len: u32,
    /// The second half of the chunk's id.
    pub id_rest: [u8; 16],
}

impl Location {
    pub fn of(pack: u64, entry: &Entry) -> Self {
        let mut id_rest = [0; 16];
        id_rest.copy_from_slice(&entry.id.0[16..]);
        Self { pack, offset: entry.offset, stored_len: entry.stored_len, plain_len: entry.plain_len, id_rest }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        bytes.extend_from_slice(&self.pack.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.stored_len.to_be_bytes());
        bytes.extend_from_slice(&self.plain_len.to_be_bytes());
        bytes.extend_from_slice(&self.id_rest);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            pack: u64_at(bytes, 0)?,
            offset: u32_at(bytes, 8)?,
            stored_len: u32_at(bytes, 12)?,
            plain_len: u32_at(bytes, 16)?,
            id_rest: bytes.get(20..36)?.try_into().ok()?,
        })
    }
}

/// A chunk's place on a replica's disk, in whichever living restore point still has it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLocation {
    /// The replica's key.
    pub replica_key: [u8; 16],
    /// Index of the disk within the VM.
    pub disk: u16,
    /// Number of the chunk on the disk's grid.
    pub chunk: u64,
}

/// What the database knows of a pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackRow {
    pub closed: bool,
    /// Records before this offset are in the index.
    pub indexed_len: u32,
    /// Length of the closed file.
    pub file_len: u32,
    pub records: u32,
}

impl PackRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![ROW_VERSION, u8::from(self.closed)];
        bytes.extend_from_slice(&self.indexed_len.to_be_bytes());
        bytes.extend_from_slice(&self.file_len.to_be_bytes());
        bytes.extend_from_slice(&self.records.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let row = Self {
            closed: *bytes.get(1)? == 1,
            indexed_len: u32_at(bytes, 2)?,
            file_len: u32_at(bytes, 6)?,
            records: u32_at(bytes, 10)?,
        };
        (bytes[0] == ROW_VERSION).then_some(row)
    }
}

pub(super) struct Index {
    db: Arc<Database>,
    changes: Mutex<()>,
}

impl Index {
    pub fn new(db: Arc<Database>) -> Self {
        Self { db, changes: Mutex::new(()) }
    }

    /// The place of a chunk; `None` where it is unknown or the database cannot tell.
    pub fn lookup(&self, key: &ChunkKey) -> Option<Location> {
        let value = self.db.get(cf::CHUNK, &chunk_key(key)).unwrap_or_default()?;
        Location::decode(&value)
    }

    pub fn lookup_many(&self, keys: &[ChunkKey]) -> Vec<Option<Location>> {
        let values = self.many(cf::CHUNK, keys);
        values.into_iter().map(|value| Location::decode(&value?)).collect()
    }

    /// Enters records and the state of their packs; with `sync` on stable storage when it returns.
    pub fn commit(
        &self,
        records: &[(ChunkKey, Location)],
        rows: &[(u64, PackRow)],
        next_pack: u64,
        sync: bool,
    ) -> Result<(), DatabaseError> {
        let mut batch = Batch::new();
        for (key, location) in records {
            batch.put(cf::CHUNK, chunk_key(key), location.encode());
        }
        for (pack, row) in rows {
            batch.put(cf::PACK, pack.to_be_bytes(), row.encode());
        }
        batch.put(cf::META, NEXT_PACK, next_pack.to_be_bytes());
        let _changing = self.changing();
        self.db.write(batch, sync)
    }

    /// Removes a pack's row, and its chunks where the index still points there. Not synced: an entry
    /// that comes back points to a pack that is gone, and pack numbers are never used twice.
    pub fn forget_pack(&self, pack: u64, keys: &[ChunkKey]) -> Result<(), DatabaseError> {
        let _changing = self.changing();
        let mut batch = Batch::new();
        for (key, found) in keys.iter().zip(self.lookup_many(keys)) {
            if found.is_some_and(|found| found.pack == pack) {
                batch.delete(cf::CHUNK, chunk_key(key));
            }
        }
        batch.delete(cf::PACK, pack.to_be_bytes());
        self.db.write(batch, false)
    }

    /// Removes a chunk where the index still points to that record.
    pub fn forget_record(&self, key: &ChunkKey, pack: u64, offset: u32) -> Result<(), DatabaseError> {
        let _changing = self.changing();
        let mut batch = Batch::new();
        if self.lookup(key).is_some_and(|found| found.pack == pack && found.offset == offset) {
            batch.delete(cf::CHUNK, chunk_key(key));
        }
        self.db.write(batch, false)
    }

    /// The state of all packs, and the lowest number for the next one.
    pub fn packs(&self) -> (HashMap<u64, PackRow>, u64) {
        let next = self.db.get(cf::META, NEXT_PACK).unwrap_or_default();
        let mut next = next.and_then(|bytes| u64_at(&bytes, 0)).unwrap_or(1);
        let mut rows = HashMap::new();
        let mut from: Vec<u8> = Vec::new();
        loop {
            let step = self.db.scan_prefix(cf::PACK, b"", Some(&from), SCAN_STEP).unwrap_or_default();
            for (key, value) in &step {
                if let (Some(pack), Some(row)) = (u64_at(key, 0), PackRow::decode(value)) {
                    rows.insert(pack, row);
                    next = next.max(pack.saturating_add(1));
                }
            }
            match step.last() {
                Some((key, _)) if step.len() == SCAN_STEP => {
                    from.clone_from(key);
                    from.push(0);
                }
                _ => return (rows, next),
            }
        }
    }

    /// Enters the places of a page's chunks on a replica's disk. Not synced: rebuilt at need.
    pub fn put_page(
        &self,
        tag: DomainTag,
        replica_key: [u8; 16],
        disk: u16,
        page: u64,
        ids: &[ChunkId],
    ) -> Result<(), DatabaseError> {
        let first = page.saturating_mul(PAGE_CHUNKS as u64);
        let mut batch = Batch::new();
        for (chunk, id) in (first..).zip(ids).filter(|(_, id)| !id.is_zero()) {
            let mut value = replica_key.to_vec();
            value.extend_from_slice(&disk.to_be_bytes());
            value.extend_from_slice(&chunk.to_be_bytes());
            batch.put(cf::CHUNK_DISK, chunk_key(&(tag, id.short())), value);
        }
        self.db.write(batch, false)
    }

    pub fn disk_location(&self, key: &ChunkKey) -> Option<DiskLocation> {
        let value = self.db.get(cf::CHUNK_DISK, &chunk_key(key)).unwrap_or_default()?;
        Some(DiskLocation {
            replica_key: value.get(..16)?.try_into().ok()?,
            disk: u16::from_be_bytes(value.get(16..18)?.try_into().ok()?),
            chunk: u64_at(&value, 18)?,
        })
    }

    pub fn on_disk_many(&self, keys: &[ChunkKey]) -> Vec<bool> {
        self.many(cf::CHUNK_DISK, keys).iter().map(Option::is_some).collect()
    }

    pub fn forget_disk_location(&self, key: &ChunkKey) -> Result<(), DatabaseError> {
        let mut batch = Batch::new();
        batch.delete(cf::CHUNK_DISK, chunk_key(key));
        self.db.write(batch, false)
    }

    /// Synced, and with it every page that was entered before.
    pub fn mark_point_indexed(&self, point_key: &[u8]) -> Result<(), DatabaseError> {
        let mut batch = Batch::new();
        batch.put(cf::META, [POINT_INDEXED, point_key].concat(), &b""[..]);
        self.db.write(batch, true)
    }

    pub fn forget_point_indexed(&self, point_key: &[u8]) -> Result<(), DatabaseError> {
        let mut batch = Batch::new();
        batch.delete(cf::META, [POINT_INDEXED, point_key].concat());
        self.db.write(batch, false)
    }

    pub fn point_is_indexed(&self, point_key: &[u8]) -> bool {
        let found = self.db.get(cf::META, &[POINT_INDEXED, point_key].concat());
        found.is_ok_and(|value| value.is_some())
    }

    pub fn disk_locations(&self) -> u64 {
        self.db.estimated_keys(cf::CHUNK_DISK)
    }

    fn many(&self, cf: &str, keys: &[ChunkKey]) -> Vec<Option<Vec<u8>>> {
        let raw: Vec<Vec<u8>> = keys.iter().map(chunk_key).collect();
        self.db.multi_get(cf, &raw).unwrap_or_else(|_| vec![None; keys.len()])
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn chunk_key((DomainTag(tag), ShortId(id)): &ChunkKey) -> Vec<u8> {
    [&tag[..], &id[..]].concat()
}
