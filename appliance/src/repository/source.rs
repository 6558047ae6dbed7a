//! The source's backup repository: what the last restore point of each job holds, in RocksDB.
//!
//! Per job: the manifest of the last point that the target sealed (`promoted`), at most one manifest
//! whose seal was not acknowledged yet (`provisional`), and the progress of at most one unfinished
//! session. Page bodies are kept by content, per job and disk, and shared between those three.
//! Everything can be had again from the target, so damage costs a rebuild and no data.
//!
//! Keys in column family `manifest`: `JOB 0 KIND …`; see `source_record`. Pages are stored without their zero
//! ids, so a page costs in proportion to its data, and are verified by hash on every read.
//!
//! Calls for one job come from one session at a time. Bounds: tables are cut into segments of
//! [`SEGMENT_ENTRIES`]; one table in memory is at most 40 MiB (a disk of 64 TiB full of data).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::RepositoryError;
use super::manifest::{PageIds, PageTable, page_hash};
use super::source_record::{
    Header, Key, be16, be64, damaged, decode, drop_prefix, encode, no_provisional, pack_page, unpack_page,
};
use crate::block::PageHash;
use crate::database::{Batch, Database, cf};
use crate::limits::{DISK_BYTES_MAX, DISKS_MAX};

/// Entries of a page table in one record (160 KiB).
const SEGMENT_ENTRIES: usize = 4096;
/// Records fetched at a time when a range is walked.
const SCAN_RECORDS: usize = 1024;

/// A whole manifest: all disks of a job at one restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Restore point at the target; empty while provisional.
    pub point: String,
    /// The session that made it.
    pub session: String,
    /// One for each disk.
    pub tables: Vec<PageTable>,
    /// Path of each disk at the source.
    pub disk_paths: Vec<String>,
    /// For each disk the blocks that were skipped as free (see `free_space::extents`), packed; none where
    /// it is not known. A run by change tracking must read what was skipped and is kept now.
    pub skipped: Vec<Vec<u8>>,
}

/// Which pages a session has built, by disk and page; none for a page that became all zero.
pub type Built = BTreeMap<(u16, u64), Option<PageHash>>;

/// The repository of this site's jobs.
#[derive(Clone)]
pub struct SourceRepository(Arc<Database>);

impl SourceRepository {
    /// Over the site's database.
    pub fn new(database: Arc<Database>) -> Self {
        Self(database)
    }

    /// The manifest of the last sealed point; none before the first.
    pub fn load(&self, job: &str) -> Result<Option<StoredManifest>, RepositoryError> {
        self.load_kind(job, Key::PROMOTED)
    }

    /// The manifest whose seal was asked for and not acknowledged.
    pub fn provisional(&self, job: &str) -> Result<Option<StoredManifest>, RepositoryError> {
        self.load_kind(job, Key::PROVISIONAL)
    }

    /// A page body, verified.
    pub fn page(&self, job: &str, disk: u16, hash: &PageHash) -> Result<PageIds, RepositoryError> {
        let what = || format!("a page of disk {disk} in the repository of job {job}");
        let bytes = self.0.get(cf::MANIFEST, &Key::new(job).page(disk, hash))?;
        let bytes = bytes.ok_or_else(|| RepositoryError::damaged(what(), "it is missing"))?;
        let ids = unpack_page(&bytes).ok_or_else(|| RepositoryError::damaged(what(), "it does not parse"))?;
        if page_hash(&ids) != *hash {
            return Err(RepositoryError::damaged(what(), "its hash differs"));
        }
        Ok(ids)
    }

    /// Keeps a page body; durable with the next synced call.
    pub fn put_page(&self, job: &str, disk: u16, ids: &PageIds) -> Result<PageHash, RepositoryError> {
        let hash = page_hash(ids);
        let mut batch = Batch::new();
        batch.put(cf::MANIFEST, Key::new(job).page(disk, &hash), pack_page(ids));
        self.0.write(batch, false)?;
        Ok(hash)
    }

    /// Notes what a page of an unfinished session is; durable with [`SourceRepository::note_cursors`].
    pub fn note_built(
        &self,
        job: &str,
        session: &str,
        disk: u16,
        page: u64,
        hash: Option<PageHash>,
    ) -> Result<(), RepositoryError> {
        let mut batch = Batch::new();
        batch.put(cf::MANIFEST, Key::new(job).built(session, disk, page), encode(&hash)?);
        Ok(self.0.write(batch, false)?)
    }

    /// Makes everything noted so far durable, and with it how far it is complete: for each disk, the
    /// first page that is not settled. After a restart a session goes on from the smaller of this and
    /// the target's cursor.
    pub fn note_cursors(&self, job: &str, session: &str, cursors: &[u64]) -> Result<(), RepositoryError> {
        let mut batch = Batch::new();
        batch.put(cf::MANIFEST, Key::new(job).cursors(session), encode(&cursors)?);
        Ok(self.0.write(batch, true)?)
    }

    /// See [`SourceRepository::note_cursors`]; none for a session that noted nothing.
    pub fn noted_cursors(&self, job: &str, session: &str) -> Result<Option<Vec<u64>>, RepositoryError> {
        let bytes = self.0.get(cf::MANIFEST, &Key::new(job).cursors(session))?;
        bytes.map(|bytes| decode(&bytes, job)).transpose()
    }

    /// What a session has built.
    pub fn built(&self, job: &str, session: &str) -> Result<Built, RepositoryError> {
        let prefix = Key::new(job).built_prefix(session);
        let mut built = Built::new();
        self.walk(&prefix, |key, value| {
            let tail = &key[prefix.len()..];
            if let (Some(disk), Some(page)) = (be16(tail), tail.get(2..).and_then(be64)) {
                built.insert((disk, page), decode(value, job)?);
            }
            Ok(())
        })?;
        Ok(built)
    }

    /// Keeps a whole manifest before its seal is asked for. Synced. Replaces an older provisional one.
    pub fn store_provisional(&self, job: &str, manifest: &StoredManifest) -> Result<(), RepositoryError> {
        let key = Key::new(job);
        let mut batch = Batch::new();
        if let Some(old) = self.header(job, Key::PROVISIONAL)?
            && old.session != manifest.session
        {
            drop_prefix(&mut batch, &key.tables_prefix(&old.session));
            batch.delete(cf::MANIFEST, key.skipped(&old.session));
        }
        let header = Header::of(manifest);
        drop_prefix(&mut batch, &key.tables_prefix(&manifest.session));
        for (disk, table) in manifest.tables.iter().enumerate() {
            let entries: Vec<(u64, PageHash)> = table.iter().map(|(page, hash)| (*page, *hash)).collect();
            for (segment, part) in entries.chunks(SEGMENT_ENTRIES).enumerate() {
                let at = key.table(&manifest.session, disk as u16, segment as u32);
                batch.put(cf::MANIFEST, at, encode(&part)?);
            }
        }
        batch.put(cf::MANIFEST, key.skipped(&manifest.session), encode(&manifest.skipped)?);
        batch.put(cf::MANIFEST, key.single(Key::PROVISIONAL), encode(&header)?);
        Ok(self.0.write(batch, true)?)
    }

    /// The target sealed the session as `point`: its provisional manifest becomes the manifest, pages
    /// that nothing names any more are removed, and the session's progress is forgotten. Synced.
    /// Doing it twice is success.
    pub fn promote(&self, job: &str, session: &str, point: &str) -> Result<(), RepositoryError> {
        let key = Key::new(job);
        let Some(header) = self.header(job, Key::PROVISIONAL)? else {
            let done = self.header(job, Key::PROMOTED)?.is_some_and(|header| header.session == session);
            return if done { Ok(()) } else { Err(no_provisional(job, session)) };
        };
        if header.session != session {
            return Err(no_provisional(job, session));
        }
        let new = self.with_tables(job, header.clone())?;
        let old_header = self.header(job, Key::PROMOTED)?;
        let mut batch = Batch::new();
        let mut candidates = self.named_by_progress(job, session)?;
        if let Some(old_header) = old_header.filter(|old| old.session != session) {
            drop_prefix(&mut batch, &key.tables_prefix(&old_header.session));
            batch.delete(cf::MANIFEST, key.skipped(&old_header.session));
            // A damaged old table only means that its pages are found by `verify` instead.
            if let Ok(old) = self.with_tables(job, old_header) {
                collect(&old, &mut candidates);
            }
        }
        let mut living = HashSet::new();
        collect(&new, &mut living);
        for (disk, hash) in candidates.difference(&living) {
            batch.delete(cf::MANIFEST, key.page(*disk, hash));
        }
        batch.put(
            cf::MANIFEST,
            key.single(Key::PROMOTED),
            encode(&Header { point: point.into(), ..header })?,
        );
        batch.delete(cf::MANIFEST, key.single(Key::PROVISIONAL));
        drop_prefix(&mut batch, &key.built_prefix(session));
        batch.delete(cf::MANIFEST, key.cursors(session));
        Ok(self.0.write(batch, true)?)
    }

    /// A session will not go on: its progress, its provisional manifest and pages that only they name
    /// are removed.
    pub fn discard_progress(&self, job: &str, session: &str) -> Result<(), RepositoryError> {
        let key = Key::new(job);
        let mut candidates = self.named_by_progress(job, session)?;
        let mut batch = Batch::new();
        if let Some(header) = self.header(job, Key::PROVISIONAL)?
            && header.session == session
        {
            if let Ok(manifest) = self.with_tables(job, header) {
                collect(&manifest, &mut candidates);
            }
            batch.delete(cf::MANIFEST, key.single(Key::PROVISIONAL));
            drop_prefix(&mut batch, &key.tables_prefix(session));
        }
        if let Ok(promoted) = self.load(job) {
            let mut living = HashSet::new();
            if let Some(promoted) = promoted {
                collect(&promoted, &mut living);
            }
            for (disk, hash) in candidates.difference(&living) {
                batch.delete(cf::MANIFEST, key.page(*disk, hash));
            }
        }
        drop_prefix(&mut batch, &key.built_prefix(session));
        batch.delete(cf::MANIFEST, key.cursors(session));
        Ok(self.0.write(batch, true)?)
    }

    /// Removes everything of a job.
    pub fn forget(&self, job: &str) -> Result<(), RepositoryError> {
        let mut batch = Batch::new();
        drop_prefix(&mut batch, &Key::new(job).all());
        Ok(self.0.write(batch, true)?)
    }

    /// Checks every page that the job's manifest names: (checked, bad). Pages that nothing names are
    /// removed where no session is unfinished.
    pub fn verify(&self, job: &str) -> Result<(u64, u64), RepositoryError> {
        let Some(stored) = self.load(job)? else { return Ok((0, 0)) };
        let (mut checked, mut bad) = (0, 0);
        let mut living = HashSet::new();
        collect(&stored, &mut living);
        for (disk, hash) in &living {
            checked += 1;
            match self.page(job, *disk, hash) {
                Ok(_) => {}
                Err(RepositoryError::Damaged { .. }) => bad += 1,
                Err(RepositoryError::Database(error)) if error.is_corruption() => bad += 1,
                Err(error) => return Err(error),
            }
        }
        if bad == 0 {
            self.sweep(job, &living)?;
        }
        Ok((checked, bad))
    }

    fn sweep(&self, job: &str, living: &HashSet<(u16, PageHash)>) -> Result<(), RepositoryError> {
        let key = Key::new(job);
        let unfinished = !self.0.scan_prefix(cf::MANIFEST, &key.kind(Key::BUILT), None, 1)?.is_empty();
        if unfinished || self.header(job, Key::PROVISIONAL)?.is_some() {
            return Ok(());
        }
        let prefix = key.kind(Key::PAGE);
        let mut batch = Batch::new();
        self.walk(&prefix, |key, _| {
            let tail = &key[prefix.len()..];
            let hash: Option<[u8; 32]> = tail.get(2..).and_then(|hash| hash.try_into().ok());
            if let (Some(disk), Some(hash)) = (be16(tail), hash)
                && !living.contains(&(disk, PageHash(hash)))
            {
                batch.delete(cf::MANIFEST, key);
            }
            Ok(())
        })?;
        Ok(self.0.write(batch, false)?)
    }

    fn load_kind(&self, job: &str, kind: u8) -> Result<Option<StoredManifest>, RepositoryError> {
        self.header(job, kind)?.map(|header| self.with_tables(job, header)).transpose()
    }

    fn header(&self, job: &str, kind: u8) -> Result<Option<Header>, RepositoryError> {
        let bytes = self.0.get(cf::MANIFEST, &Key::new(job).single(kind))?;
        let header: Option<Header> = bytes.map(|bytes| decode(&bytes, job)).transpose()?;
        let fits = |header: &Header| {
            header.disks.len() <= DISKS_MAX && header.disks.iter().all(|disk| disk.len <= DISK_BYTES_MAX)
        };
        match header {
            Some(header) if !fits(&header) => Err(damaged(job, "its disks are out of bounds")),
            other => Ok(other),
        }
    }

    /// Reads the tables and holds them against the roots in the header.
    fn with_tables(&self, job: &str, header: Header) -> Result<StoredManifest, RepositoryError> {
        let mut tables: Vec<_> = header.disks.iter().map(|disk| PageTable::new(disk.len)).collect();
        let prefix = Key::new(job).tables_prefix(&header.session);
        self.walk(&prefix, |key, value| {
            let disk = be16(&key[prefix.len()..]).ok_or_else(|| damaged(job, "a key is cut short"))?;
            let table = tables.get_mut(disk as usize).ok_or_else(|| damaged(job, "a table has no disk"))?;
            for (page, hash) in decode::<Vec<(u64, PageHash)>>(value, job)? {
                table.set(page, hash);
            }
            Ok(())
        })?;
        for (table, disk) in tables.iter().zip(&header.disks) {
            if table.root().0 != disk.root {
                return Err(damaged(job, "a page table does not fit its root"));
            }
        }
        let disk_paths = header.disks.into_iter().map(|disk| disk.path).collect();
        let skipped = match self.0.get(cf::MANIFEST, &Key::new(job).skipped(&header.session))? {
            Some(bytes) => decode(&bytes, job)?,
            None => Vec::new(),
        };
        Ok(StoredManifest { point: header.point, session: header.session, tables, disk_paths, skipped })
    }

    fn named_by_progress(
        &self,
        job: &str,
        session: &str,
    ) -> Result<HashSet<(u16, PageHash)>, RepositoryError> {
        let built = self.built(job, session)?;
        Ok(built.into_iter().filter_map(|((disk, _), hash)| Some((disk, hash?))).collect())
    }

    fn walk(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let mut from: Option<Vec<u8>> = None;
        loop {
            let records = self.0.scan_prefix(cf::MANIFEST, prefix, from.as_deref(), SCAN_RECORDS)?;
            for (key, value) in &records {
                each(key, value)?;
            }
            if records.len() < SCAN_RECORDS {
                return Ok(());
            }
            from = records.into_iter().next_back().map(|(mut key, _)| {
                key.push(0); // The smallest key after it.
                key
            });
        }
    }
}

fn collect(manifest: &StoredManifest, into: &mut HashSet<(u16, PageHash)>) {
    for (disk, table) in manifest.tables.iter().enumerate() {
        into.extend(table.iter().map(|(_, hash)| (disk as u16, *hash)));
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
