//! A point being built: its disks, its pages, its durable cursor, and the seal.
//!
//! Owned by one session at a time; several threads may write. Files in `building/SESSION/`:
//! `building.json` (what is built, from what), the images, `changes` (one record for each page that
//! was set, appended), `cursor.json` (how much of all that counts). After a crash everything up to the
//! cursor is there; what was written after it may or may not be, and the source sends it again.
//!
//! Crash order of a checkpoint: disks, page bodies, changes, cursor. Of the seal: disks, page bodies,
//! manifests, `point.json`, the directory itself; then one rename into `points/` is the seal; then the
//! directories; only then is it acknowledged. An error of a flush is final for this object: the
//! session reopens from the cursor, and what the kernel may have dropped is written again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vbr_api::{DiskVolume, Moment};

use super::building_disk::BuildingDisk;
use super::lease::ReadLease;
use super::pages::{DiskManifest, PageEntry, PagesWriter, pages_name};
use super::point::{Point, point_id};
use super::record::{BuildingRecord, CursorRecord, PointRecord, VERSION};
use super::replica::Replica;
use super::shared::{Shared, manifest_name};
use super::{changes, files};
use crate::block::{BlockWrite, Geometry, Root};
use crate::repository::manifest::{PageTable, page_hash, page_is_blank, trim_page};
use crate::repository::retention::calendar::next_credible;
use crate::repository::{PageIds, RepositoryError};

/// How a seal is meant.
#[derive(Clone, Debug)]
pub struct SealSpec {
    /// False where a disk changed while it was read or the disks are not of one moment.
    pub consistent: bool,
    /// The wall clock, injected.
    pub now: Moment,
    /// For each disk its volumes and what became of their free space.
    pub volumes: Vec<Vec<DiskVolume>>,
}

/// The pages of one disk.
pub(super) struct DiskPages {
    /// The base's manifest, if the disk was there.
    pub base: Option<Arc<DiskManifest>>,
    /// The base's table for this disk's length.
    pub base_table: Option<PageTable>,
    /// As it will be sealed.
    pub current: Mutex<DiskManifest>,
}

/// What is known of a building without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildingState {
    /// The session that builds it.
    pub session: String,
    /// Under which snapshot.
    pub snapshot_identity: String,
    /// From which point.
    pub base: Option<String>,
    /// Durable cursor of each disk.
    pub cursors: Vec<u64>,
}

/// A point being built.
pub struct Building {
    pub(super) replica: Arc<Replica>,
    pub(super) shared: Arc<Shared>,
    pub(super) dir: PathBuf,
    pub(super) record: BuildingRecord,
    pub(super) disks: Vec<BuildingDisk>,
    pub(super) tables: Vec<DiskPages>,
    pub(super) pages: PagesWriter,
    pub(super) log: Mutex<ChangeLog>,
    pub(super) pending: Mutex<Vec<changes::Change>>,
    pub(super) cursors: Mutex<Vec<u64>>,
    pub(super) changed_bytes: Arc<AtomicU64>,
    /// A flush failed, or the building was sealed or discarded: nothing more is done with it.
    pub(super) over: AtomicBool,
    /// Until it is sealed or discarded.
    pub(super) base_lease: Mutex<Option<ReadLease>>,
}

/// The file of changes and how many records of it count.
pub(super) struct ChangeLog {
    pub file: File,
    pub count: u64,
}

impl Building {
    /// The session that builds it.
    pub fn session(&self) -> &str {
        &self.record.session
    }

    /// The point whose content counts as unchanged.
    pub fn base(&self) -> Option<&str> {
        self.record.base.as_deref()
    }

    /// Names the snapshot.
    pub fn snapshot_identity(&self) -> &str {
        &self.record.snapshot_identity
    }

    /// The replica it is for.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Number of disks.
    pub fn disk_count(&self) -> usize {
        self.disks.len()
    }

    /// A disk to write; none for a number that is not there. Writes that would eat the datastore's
    /// reserve fail with `StorageFull`.
    pub fn disk(&self, disk: usize) -> Option<&dyn BlockWrite> {
        self.disks.get(disk).map(|disk| disk as &dyn BlockWrite)
    }

    /// The base's table of a disk, for this disk's length; none for a disk that is new.
    pub fn base_table(&self, disk: usize) -> Option<&PageTable> {
        self.tables.get(disk)?.base_table.as_ref()
    }

    /// The ids of a page at the base, cut to this disk's length; none where it is all zero there.
    pub fn base_page(&self, disk: usize, page: u64) -> Result<Option<PageIds>, RepositoryError> {
        let Some(base) = self.tables.get(disk).and_then(|tables| tables.base.as_ref()) else {
            return Ok(None);
        };
        let Some(ids) = self.shared.page(base, page)? else { return Ok(None) };
        let mut ids = PageIds::clone(&ids);
        trim_page(&mut ids, self.geometry(disk)?, page);
        Ok(Some(ids).filter(|ids| !page_is_blank(ids)))
    }

    /// Sets a page after its chunks were written; none is all zero. Durable with the next checkpoint.
    pub fn put_page(&self, disk: usize, page: u64, ids: Option<&PageIds>) -> Result<(), RepositoryError> {
        let geometry = self.geometry(disk)?;
        let what = || format!("page {page} of disk {disk} of session {}", self.record.session);
        if page >= geometry.pages() {
            return Err(RepositoryError::invalid(what(), "it lies past the end of the disk"));
        }
        let ids = ids.filter(|ids| !page_is_blank(ids));
        if ids.is_some_and(|ids| ids[geometry.page_chunks(page)..].iter().any(|id| !id.is_zero())) {
            return Err(RepositoryError::invalid(what(), "it has chunks past the end of the disk"));
        }
        let tables = &self.tables[disk];
        let mut current = lock(&tables.current);
        let entry = match ids {
            None => {
                if current.entries.remove(&page).is_none() {
                    return Ok(());
                }
                None
            }
            Some(ids) => {
                let hash = page_hash(ids);
                if current.entries.get(&page).is_some_and(|entry| entry.hash == hash) {
                    return Ok(());
                }
                let slot = self.pages.append(ids)?;
                let file = current.file_index(&pages_name(&self.record.session));
                current.entries.insert(page, PageEntry { hash, file, slot });
                Some((hash, slot))
            }
        };
        // Under the table's lock, so that the order of changes to a page is the order of its records.
        lock(&self.pending).push(changes::Change { disk: disk as u16, page, entry });
        Ok(())
    }

    /// Durable cursor of each disk: first page that is not settled.
    pub fn cursors(&self) -> Vec<u64> {
        lock(&self.cursors).clone()
    }

    /// Makes everything written and set so far durable, then these cursors. Blocking.
    pub fn checkpoint(&self, cursors: &[u64]) -> Result<(), RepositoryError> {
        if cursors.len() != self.disks.len() {
            return Err(RepositoryError::invalid("a checkpoint", "it has another number of disks"));
        }
        let mut log = lock(&self.log);
        self.check_alive()?;
        self.checkpoint_locked(&mut log, cursors).inspect_err(|_| self.over.store(true, Ordering::Release))
    }

    fn checkpoint_locked(&self, log: &mut ChangeLog, cursors: &[u64]) -> Result<(), RepositoryError> {
        // What is pending now was written before; what comes later waits for the next checkpoint.
        let pending = std::mem::take(&mut *lock(&self.pending));
        for (n, disk) in self.disks.iter().enumerate() {
            disk.flush().map_err(|e| self.io(&self.record.disks[n].file, e))?;
        }
        let page_slots = self.pages.sync()?;
        if !pending.is_empty() {
            let bytes: Vec<u8> = pending.iter().flat_map(changes::Change::encode).collect();
            log.file
                .write_all_at(&bytes, changes::offset(log.count))
                .and_then(|()| log.file.sync_data())
                .map_err(|e| self.io("changes", e))?;
            log.count += pending.len() as u64;
        }
        let record = CursorRecord {
            version: VERSION,
            cursors: cursors.to_vec(),
            page_slots,
            changes: log.count,
            changed_bytes: self.changed_bytes(),
        };
        self.shared.core.root.write_record(&self.dir.join("cursor.json"), &record)?;
        *lock(&self.cursors) = cursors.to_vec();
        Ok(())
    }

    /// Root of each disk as it stands.
    pub fn roots(&self) -> Vec<Root> {
        self.tables.iter().map(|tables| lock(&tables.current).table().root()).collect()
    }

    /// The table of a disk as it stands.
    pub fn table(&self, disk: usize) -> Option<PageTable> {
        Some(lock(&self.tables.get(disk)?.current).table())
    }

    /// Bytes written to it so far (after a crash, up to a checkpoint's worth may count twice).
    pub fn changed_bytes(&self) -> u64 {
        self.changed_bytes.load(Ordering::Relaxed)
    }

    /// Seals it. The caller has compared the roots. When this returns, the point is durable; after an
    /// error the last point is as it was, and the session goes on from its cursor or is discarded.
    pub fn seal(&self, spec: SealSpec) -> Result<Arc<Point>, RepositoryError> {
        let _work = self.replica.work();
        let _log = lock(&self.log);
        self.check_alive()?;
        self.replica.check_takes_sessions()?;
        self.over.store(true, Ordering::Release);
        for (n, disk) in self.disks.iter().enumerate() {
            // No write is under way after this, and none begins.
            disk.close().map_err(|e| self.io(&self.record.disks[n].file, e))?;
            files::sync_file(&self.dir.join(&self.record.disks[n].file))?;
        }
        self.pages.sync()?;
        let record = self.write_point(spec)?;
        files::sync_dir(&self.dir)?;
        let place = self.shared.point_dir(&record.id);
        files::rename(&self.dir, &place)?;
        files::sync_dir(&self.shared.points_dir())?;
        files::sync_dir(&self.shared.buildings_dir())?;
        // Durable. What follows only tidies up.
        drop(lock(&self.base_lease).take());
        for name in ["building.json", "cursor.json", "changes"] {
            if let Err(error) = files::remove_file(&place.join(name)) {
                tracing::warn!(%error, "a file of the building stays behind in a sealed point");
            }
        }
        Ok(self.replica.add_point(record))
    }

    fn write_point(&self, spec: SealSpec) -> Result<PointRecord, RepositoryError> {
        let observed_ms = self.shared.core.clock.observed_ms();
        let mut record = PointRecord {
            format: PointRecord::FORMAT.into(),
            version: VERSION,
            id: self.new_id(spec.now)?,
            sequence: self.replica.next_sequence(),
            session: self.record.session.clone(),
            snapshot_at: self.record.snapshot_at,
            sealed_at: spec.now,
            observed_ms,
            credible_at: Some(next_credible(&self.replica.facts(), spec.now, observed_ms)),
            base: self.record.base.clone(),
            consistent: spec.consistent,
            changed_bytes: self.changed_bytes(),
            disks: self.record.disks.clone(),
            vm: self.record.vm.clone(),
        };
        for (n, tables) in self.tables.iter().enumerate() {
            let mut manifest = lock(&tables.current).clone();
            manifest.compact();
            self.shared.core.root.write_whole(&self.dir.join(manifest_name(n)), &manifest.encode())?;
            record.disks[n].root = manifest.table().root().hex();
            record.disks[n].page_files = manifest.files;
            record.disks[n].volumes = spec.volumes.get(n).cloned().unwrap_or_default();
        }
        self.shared.core.root.write_record(&self.dir.join("point.json"), &record)?;
        self.shared.core.clock.save();
        Ok(record)
    }

    fn new_id(&self, now: Moment) -> Result<String, RepositoryError> {
        for _ in 0..64 {
            let mut salt = [0; 2];
            getrandom::fill(&mut salt)
                .map_err(|e| RepositoryError::io("random numbers", io::Error::other(e.to_string())))?;
            let id = point_id(now, u16::from_be_bytes(salt));
            let free = |path: PathBuf| !path.exists();
            if free(self.shared.point_dir(&id)) && free(self.shared.retiring_dir().join(&id)) {
                return Ok(id);
            }
        }
        Err(RepositoryError::Busy { what: self.shared.title(), why: "too many points in this second".into() })
    }

    fn geometry(&self, disk: usize) -> Result<Geometry, RepositoryError> {
        let record = self.record.disks.get(disk);
        let record =
            record.ok_or_else(|| RepositoryError::NotFound(format!("disk {disk} of this session")))?;
        Ok(Geometry { disk_len: record.disk_len })
    }

    fn check_alive(&self) -> Result<(), RepositoryError> {
        if !self.over.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(RepositoryError::Conflict {
            what: format!("session {}", self.record.session),
            why: "its restore point was sealed or discarded, or a flush failed".into(),
            next: "open the session again; it goes on from its durable cursor".into(),
        })
    }

    /// Ends all writing; called before its files are removed.
    pub(super) fn abandon(&self) {
        self.over.store(true, Ordering::Release);
        for disk in &self.disks {
            if let Err(error) = disk.close() {
                tracing::debug!(%error, "closing a disk of a building that is discarded");
            }
        }
        drop(lock(&self.base_lease).take());
    }

    fn io(&self, file: &str, source: io::Error) -> RepositoryError {
        RepositoryError::io(self.dir.join(file).display().to_string(), source)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
