//! RocksDB: opening, column families, memory budget, damage.
//!
//! Every record of the appliance that is an index or a history lives here; the truth (restore points,
//! peers, jobs) does not, so a damaged database is moved aside, replaced by a new one and rebuilt by
//! its users: [`Database::was_recreated`] tells them. The old directory is kept once, for a person to
//! look at.
//!
//! Owns the RocksDB handle and the verdict on it. A failed write is final: what the write-ahead log
//! holds after a failed fsync is unknown, so every later write fails and a restart has to recover.
//! Damage found by a read is remembered in a marker file, because RocksDB would keep a bad block until
//! a compaction trips over it: the next start makes a new database.
//!
//! Not its job: what the keys and values mean, and running off the async threads. All calls block.
//! Bounds: the memory given at open (block cache, filters, indexes and write buffers together), 256
//! open files, 64 MiB of write-ahead log.

mod aside;
mod options;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rocksdb::{ColumnFamily, DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use self::aside::{create_private, holds_tables, set_aside};
use crate::error::Problem;

/// Names of the column families.
pub mod cf {
    /// (domain, short id) to the place in a pack.
    pub const CHUNK: &str = "chunk";
    /// (domain, short id) to a place on a replica's disk.
    pub const CHUNK_DISK: &str = "chunk_disk";
    /// State of each pack.
    pub const PACK: &str = "pack";
    /// The source's manifests.
    pub const MANIFEST: &str = "manifest";
    /// Sessions under way.
    pub const SESSION: &str = "session";
    /// Finished sessions.
    pub const HISTORY: &str = "history";
    /// What happened to jobs.
    pub const JOB_LOG: &str = "job_log";
    /// Single facts: counters, markers.
    pub const META: &str = "meta";
    /// All of them.
    pub const ALL: [&str; 8] = [CHUNK, CHUNK_DISK, PACK, MANIFEST, SESSION, HISTORY, JOB_LOG, META];
}

/// In the database's directory: damage was seen, the next start makes a new one.
const DAMAGE_MARKER: &str = "VBR-DAMAGED";

/// Why the database could not do something.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Opening failed for a reason that a new database would not cure.
    #[error("cannot open the database {dir}: {why}; {next}")]
    Open { dir: PathBuf, why: String, next: &'static str },
    /// A file operation around the database failed.
    #[error("cannot {what} {path}: {source}; check the state directory and its file system")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    /// A checksum or a structure is wrong.
    #[error("the database is damaged ({why}); it is rebuilt when vbrd is started again")]
    Damaged { why: String },
    /// A read failed otherwise.
    #[error("reading the database failed: {why}; look at the kernel log for the device")]
    Read { why: String },
    /// An earlier write failed: nothing is written any more.
    #[error("the database stopped writing ({why}); free space or repair the device, then start vbrd again")]
    Stopped { why: String },
    /// No such column family: a mistake in the program.
    #[error("the database has no column family {0}; this is a fault in vbr, please report it")]
    UnknownColumn(String),
}

impl DatabaseError {
    /// True for damage: an index may treat the answer as "unknown".
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        Self::new(
            "database",
            "using the database",
            error.to_string(),
            "look at the log of vbrd for the cause",
        )
    }
}

enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Changes that become visible and durable together, or not at all.
#[derive(Default)]
pub struct Batch {
    changes: Vec<(&'static str, Change)>,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, cf: &'static str, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((cf, Change::Put(key.into(), value.into())));
    }

    /// Removes a key, if it is there.
    pub fn delete(&mut self, cf: &'static str, key: impl Into<Vec<u8>>) {
        self.changes.push((cf, Change::Delete(key.into())));
    }

    /// Removes the keys from `from` on, up to but without `to`.
    pub fn delete_range(&mut self, cf: &'static str, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        self.changes.push((cf, Change::DeleteRange(from.into(), to.into())));
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// True where there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// The open database.
pub struct Database {
    db: DB,
    dir: PathBuf,
    recreated: bool,
    new: bool,
    stopped: OnceLock<String>,
    damage: OnceLock<String>,
}

impl Database {
    /// Opens the database in `dir`, creating it where there is none. A damaged one is moved aside to
    /// `<dir>.damaged-<unix time>` and a new one takes its place.
    ///
    /// `memory_bytes`: block cache, indexes, filters and write buffers together.
    pub fn open(dir: &Path, memory_bytes: usize) -> Result<Arc<Database>, DatabaseError> {
        create_private(dir)?;
        let mut new = !dir.join("CURRENT").exists();
        let mut recreated = false;
        if dir.join(DAMAGE_MARKER).exists() || (new && holds_tables(dir)) {
            set_aside(dir, "damage was found in it")?;
            create_private(dir)?;
            (new, recreated) = (true, true);
        }
        let db = match options::open(dir, memory_bytes) {
            Ok(db) => db,
            Err(error) if is_damage(&error) => {
                set_aside(dir, error.as_ref())?;
                create_private(dir)?;
                (new, recreated) = (true, true);
                options::open(dir, memory_bytes).map_err(|error| open_error(dir, &error))?
            }
            Err(error) => return Err(open_error(dir, &error)),
        };
        Ok(Arc::new(Database {
            db,
            dir: dir.to_owned(),
            recreated,
            new,
            stopped: OnceLock::new(),
            damage: OnceLock::new(),
        }))
    }

    /// True where a damaged database was replaced by this open: its users rebuild what they keep.
    pub fn was_recreated(&self) -> bool {
        self.recreated
    }

    /// True where this open made the database, for whatever reason.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// What the operator should know: damage seen by a read, or that writing stopped.
    pub fn warning(&self) -> Option<String> {
        if let Some(why) = self.stopped.get() {
            return Some(DatabaseError::Stopped { why: why.clone() }.to_string());
        }
        self.damage.get().map(|why| DatabaseError::Damaged { why: why.clone() }.to_string())
    }

    /// One value.
    pub fn get(&self, cf: &str, key: &[u8]) -> Result<Option<Vec<u8>>, DatabaseError> {
        self.db.get_cf(self.column(cf)?, key).map_err(|error| self.read_error(&error))
    }

    /// Many values, in the order of the keys. Sorted inside: several times faster than single gets.
    pub fn multi_get(&self, cf: &str, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, DatabaseError> {
        let column = self.column(cf)?;
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by(|a, b| keys[*a].cmp(&keys[*b]));
        let mut values = vec![None; keys.len()];
        // Slices of a bounded size: what a batch pins stays pinned in the cache until it is done.
        for part in order.chunks(1024) {
            let sorted = part.iter().map(|at| keys[*at].as_slice());
            let found = self.db.batched_multi_get_cf(column, sorted, true);
            for (at, value) in part.iter().zip(found) {
                values[*at] = value.map_err(|error| self.read_error(&error))?.map(|value| value.to_vec());
            }
        }
        Ok(values)
    }

    /// Writes a batch. With `sync` it is on stable storage when this returns, and so is everything
    /// written before it. The first error is final: every later write fails.
    pub fn write(&self, batch: Batch, sync: bool) -> Result<(), DatabaseError> {
        self.check_writing()?;
        if batch.is_empty() && !sync {
            return Ok(());
        }
        let mut raw = WriteBatch::default();
        for (cf, change) in &batch.changes {
            let column = self.column(cf)?;
            match change {
                Change::Put(key, value) => raw.put_cf(column, key, value),
                Change::Delete(key) => raw.delete_cf(column, key),
                Change::DeleteRange(from, to) if from < to => raw.delete_range_cf(column, from, to),
                Change::DeleteRange(..) => {}
            }
        }
        let mut how = WriteOptions::default();
        how.set_sync(sync);
        self.db.write_opt(raw, &how).map_err(|error| self.write_error(&error))
    }

    /// Records whose key begins with `prefix`, ascending, beginning at `from` (inclusive), at most
    /// `limit` of them.
    pub fn scan_prefix(
        &self,
        cf: &str,
        prefix: &[u8],
        from: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, DatabaseError> {
        let column = self.column(cf)?;
        let start = from.map_or(prefix, |from| from.max(prefix));
        let mut how = ReadOptions::default();
        if let Some(end) = prefix_end(prefix) {
            how.set_iterate_upper_bound(end);
        }
        let mut records = Vec::new();
        for record in self.db.iterator_cf_opt(column, how, IteratorMode::From(start, Direction::Forward)) {
            if records.len() >= limit {
                break;
            }
            let (key, value) = record.map_err(|error| self.read_error(&error))?;
            records.push((key.into_vec(), value.into_vec()));
        }
        Ok(records)
    }

    /// About how many keys a column family holds.
    pub fn estimated_keys(&self, cf: &str) -> u64 {
        let column = self.column(cf).ok();
        column
            .and_then(|column| {
                self.db.property_int_value_cf(column, "rocksdb.estimate-num-keys").ok().flatten()
            })
            .unwrap_or(0)
    }

    /// Moves what is in memory into table files; recovery reads less log afterwards.
    pub fn flush(&self) -> Result<(), DatabaseError> {
        self.check_writing()?;
        for name in cf::ALL {
            self.db.flush_cf(self.column(name)?).map_err(|error| self.write_error(&error))?;
        }
        Ok(())
    }

    fn column(&self, name: &str) -> Result<&ColumnFamily, DatabaseError> {
        self.db.cf_handle(name).ok_or_else(|| DatabaseError::UnknownColumn(name.to_owned()))
    }

    fn check_writing(&self) -> Result<(), DatabaseError> {
        match self.stopped.get() {
            Some(why) => Err(DatabaseError::Stopped { why: why.clone() }),
            None => Ok(()),
        }
    }

    fn read_error(&self, error: &rocksdb::Error) -> DatabaseError {
        if is_damage(error) {
            self.note_damage(error.as_ref());
            return DatabaseError::Damaged { why: error.to_string() };
        }
        DatabaseError::Read { why: error.to_string() }
    }

    fn write_error(&self, error: &rocksdb::Error) -> DatabaseError {
        let why = self.stopped.get_or_init(|| {
            tracing::error!(dir = %self.dir.display(), %error, "the database cannot write; restart vbrd");
            error.to_string()
        });
        if is_damage(error) {
            self.note_damage(error.as_ref());
        }
        DatabaseError::Stopped { why: why.clone() }
    }

    fn note_damage(&self, why: &str) {
        self.damage.get_or_init(|| {
            tracing::warn!(dir = %self.dir.display(), why, "the database is damaged; it is rebuilt at the next start");
            let marker = self.dir.join(DAMAGE_MARKER);
            if let Err(error) = std::fs::write(&marker, why) {
                tracing::warn!(path = %marker.display(), %error, "cannot mark the database as damaged");
            }
            why.to_owned()
        });
    }
}

/// Damage that a new database cures: wrong checksums and missing files, not locks or permissions.
fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => true,
        rocksdb::ErrorKind::IOError => error.as_ref().contains("No such file or directory"),
        _ => false,
    }
}

fn open_error(dir: &Path, error: &rocksdb::Error) -> DatabaseError {
    let why = error.to_string();
    let next = if why.contains("lock") {
        "another vbrd uses this state directory: stop it first"
    } else if error.kind() == rocksdb::ErrorKind::InvalidArgument {
        "it was written by another version of vbr: use that version, or move the directory aside"
    } else {
        "check the permissions, the free space and the file system of the state directory"
    };
    DatabaseError::Open { dir: dir.to_owned(), why, next }
}

/// The first key past all that begin with `prefix`; `None` where there is no such key.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
