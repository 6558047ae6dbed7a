//! Beginning a point, going on with one, discarding one.
//!
//! Owns the rule that a replica has at most one building. Disks are matched with the base's by their
//! path at the source, and by their number where a path is new. What a disk's image begins with is `image`'s business.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::OFlags;
use vbr_api::{Moment, VmConfig, name_is_valid};

use super::building::{Building, ChangeLog, DiskPages, lock};
use super::building_disk::BuildingDisk;
use super::pages::{DiskManifest, PageEntry, PagesWriter, pages_name};
use super::point::Point;
use super::record::{BuildingRecord, CursorRecord, VERSION};
use super::replica::Replica;
use super::store::Backend;
use super::{changes, files};
use crate::block::Geometry;
use crate::limits::{DISK_BYTES_MAX, DISKS_MAX};
use crate::repository::manifest::{page_is_blank, trim_page};
use crate::repository::{PageIds, RepositoryError};

/// How long a beginning waits for whoever rewrites the base's chain.
const BASE_PATIENCE: Duration = Duration::from_secs(30);

/// A point that is to be built.
#[derive(Clone, Debug)]
pub struct BeginSpec {
    /// Chosen by the source.
    pub session: String,
    /// Point whose content counts as unchanged.
    pub base: Option<String>,
    /// Names the snapshot: a session goes on only under the same.
    pub snapshot_identity: String,
    /// When it was taken.
    pub snapshot_at: Moment,
    /// In order; the index is the disk's number.
    pub disks: Vec<BeginDisk>,
    /// The VM at that moment, where its host says.
    pub vm: Option<VmConfig>,
}

/// A disk of a point that is to be built.
#[derive(Clone, Debug)]
pub struct BeginDisk {
    /// Its path at the source.
    pub source_path: String,
    /// Exact length in bytes.
    pub disk_len: u64,
}

impl Replica {
    /// Begins a point. A building of another session that nobody has open is discarded.
    pub fn begin(self: &Arc<Self>, spec: &BeginSpec) -> Result<Arc<Building>, RepositoryError> {
        let _work = self.work();
        check(spec)?;
        self.check_takes_sessions()?;
        self.check_space()?;
        if self.shared.core.backend == Backend::Overlay
            && let Some(why) = crate::nbd::qemu_utils_missing()
        {
            let source = crate::nbd::NbdError::ToolMissing(why);
            return Err(RepositoryError::Tool { what: format!("replica {}", self.shared.title()), source });
        }
        let base = spec.base.as_deref().map(|id| self.usable_base(id)).transpose()?;
        self.clear_buildings()?;
        let dir = self.shared.building_dir(&spec.session);
        files::make_dir(&dir)?;
        self.begin_in(&dir, spec, base).inspect_err(|_| {
            let _ = files::remove_dir_all(&dir);
            let _ = files::remove_file(&self.shared.pages_dir().join(pages_name(&spec.session)));
        })
    }

    fn begin_in(
        self: &Arc<Self>,
        dir: &Path,
        spec: &BeginSpec,
        base: Option<Arc<Point>>,
    ) -> Result<Arc<Building>, RepositoryError> {
        let base_paths = base.as_ref().map(|point| point.source_paths()).transpose()?.unwrap_or_default();
        let base_disks = matched(&base_paths, &spec.disks);
        let lease = base.as_ref().map(|point| self.base_lease(point.id())).transpose()?;
        let mut disks = Vec::new();
        for (n, disk) in spec.disks.iter().enumerate() {
            let below = base.as_ref().zip(base_disks[n]).map(|(point, disk)| (point.id(), disk));
            disks.push(self.make_image(dir, n, disk, below)?);
        }
        let record = BuildingRecord {
            version: VERSION,
            session: spec.session.clone(),
            snapshot_identity: spec.snapshot_identity.clone(),
            snapshot_at: spec.snapshot_at,
            base: spec.base.as_ref().and(base.as_ref()).map(|point| point.id().to_string()),
            base_disks,
            disks,
            vm: spec.vm.clone(),
        };
        let root = &self.shared.core.root;
        PagesWriter::create(root, &self.shared.pages_dir().join(pages_name(&spec.session)))?;
        root.write_whole(&dir.join("changes"), changes::MAGIC)?;
        let cursor = CursorRecord {
            version: VERSION,
            cursors: vec![0; spec.disks.len()],
            page_slots: 0,
            changes: 0,
            changed_bytes: 0,
        };
        root.write_record(&dir.join("cursor.json"), &cursor)?;
        root.write_record(&dir.join("building.json"), &record)?;
        let building = self.assemble(record, cursor, lease)?;
        building.settle_new_lengths()?;
        Ok(building)
    }

    /// Goes on with a session's building from its durable cursor; none where there is none.
    pub fn reopen(self: &Arc<Self>, session: &str) -> Result<Option<Arc<Building>>, RepositoryError> {
        let _work = self.work();
        self.check_takes_sessions()?;
        let open = lock(&self.open_building).upgrade();
        if let Some(open) = open {
            if !open.is_over() {
                return Err(RepositoryError::Busy {
                    what: self.shared.title(),
                    why: "the session's last connection is still being closed".into(),
                });
            }
            open.abandon(); // A flush failed: what it wrote since its cursor is written again.
        }
        let Some((record, cursor)) = self.building_record(session) else { return Ok(None) };
        let lease = record.base.as_deref().map(|base| self.base_lease(base)).transpose()?;
        match self.assemble(record, cursor, lease) {
            Ok(building) => Ok(Some(building)),
            Err(error @ RepositoryError::Damaged { .. }) => {
                self.warn(
                    format!("session {session} cannot go on and begins anew: {error}"),
                    "nothing to do",
                );
                files::remove_dir_all(&self.shared.building_dir(session))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Drops a session's building and its files; one that is gone is success.
    pub fn discard(&self, session: &str) -> Result<(), RepositoryError> {
        let _work = self.work();
        if !name_is_valid(session) {
            return Err(RepositoryError::invalid(format!("session {session}"), "the id is not valid"));
        }
        let open = lock(&self.open_building).upgrade();
        if let Some(open) = open.filter(|open| open.session() == session) {
            open.abandon();
        }
        self.remove_building(session)
    }

    fn remove_building(&self, session: &str) -> Result<(), RepositoryError> {
        files::remove_dir_all(&self.shared.building_dir(session))?;
        files::sync_dir(&self.shared.buildings_dir())?;
        // A sealed point of the same session would still need its pages.
        if self.sealed_by(session).is_none() {
            files::remove_file(&self.shared.pages_dir().join(pages_name(session)))?;
        }
        Ok(())
    }

    fn clear_buildings(&self) -> Result<(), RepositoryError> {
        let open = lock(&self.open_building).upgrade();
        if open.is_some_and(|open| !open.is_over()) {
            return Err(RepositoryError::Busy {
                what: format!("replica {}", self.shared.title()),
                why: "another session replicates into it".into(),
            });
        }
        for session in files::names_in(&self.shared.buildings_dir())? {
            tracing::info!(
                session,
                replica = self.shared.title(),
                "an unfinished restore point is discarded"
            );
            self.remove_building(&session)?;
        }
        Ok(())
    }

    fn usable_base(&self, id: &str) -> Result<Arc<Point>, RepositoryError> {
        let point = self.point(id)?;
        if point.is_good() && id != "latest" {
            return Ok(point);
        }
        Err(RepositoryError::Conflict {
            what: point.title(),
            why: "it is damaged, so nothing can be built upon it".into(),
            next: "replicate from an older restore point, or from none".into(),
        })
    }

    fn base_lease(&self, base: &str) -> Result<super::lease::ReadLease, RepositoryError> {
        self.shared.leases.shared(base, BASE_PATIENCE).map_err(|_| RepositoryError::Busy {
            what: format!("restore point {}@{base}", self.shared.title()),
            why: "a restore point below it is being removed".into(),
        })
    }

    /// Opens everything a building consists of, up to its cursor.
    fn assemble(
        self: &Arc<Self>,
        record: BuildingRecord,
        cursor: CursorRecord,
        lease: Option<super::lease::ReadLease>,
    ) -> Result<Arc<Building>, RepositoryError> {
        let (shared, root) = (&self.shared, &self.shared.core.root);
        let dir = shared.building_dir(&record.session);
        let changed_bytes = Arc::new(AtomicU64::new(cursor.changed_bytes));
        let mut disks = Vec::new();
        let mut tables = Vec::new();
        for (n, disk) in record.disks.iter().enumerate() {
            let image = self.open_writable(&dir, disk)?;
            disks.push(BuildingDisk::new(image, shared.core.clone(), changed_bytes.clone()));
            let base = record.base.as_deref().zip(record.base_disks[n]);
            let base = base.map(|(point, disk)| shared.manifest(point, disk)).transpose()?;
            tables.push(self.begin_pages(base, disk.disk_len)?);
        }
        let pages_path = shared.pages_dir().join(pages_name(&record.session));
        let pages = PagesWriter::reopen(root, &pages_path, cursor.page_slots)?;
        let file = root.open_beneath(&dir.join("changes"), OFlags::RDWR)?;
        let what = || dir.join("changes").display().to_string();
        replay(&file, &cursor, &tables, &pages_name(&record.session)).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                RepositoryError::damaged(what(), e.to_string())
            }
            _ => RepositoryError::io(what(), e),
        })?;
        file.set_len(changes::offset(cursor.changes)).map_err(|e| RepositoryError::io(what(), e))?;
        let building = Arc::new(Building {
            replica: self.clone(),
            shared: shared.clone(),
            dir,
            record,
            disks,
            tables,
            pages,
            log: Mutex::new(ChangeLog { file, count: cursor.changes }),
            pending: Mutex::default(),
            cursors: Mutex::new(cursor.cursors),
            changed_bytes,
            over: AtomicBool::new(false),
            base_lease: Mutex::new(lease),
        });
        *lock(&self.open_building) = Arc::downgrade(&building);
        Ok(building)
    }

    /// The base's pages for a disk of this length; the page that a shorter end cuts is cut as well.
    fn begin_pages(
        &self,
        base: Option<Arc<DiskManifest>>,
        disk_len: u64,
    ) -> Result<DiskPages, RepositoryError> {
        let Some(base) = base else {
            let current = DiskManifest { disk_len, ..DiskManifest::default() };
            return Ok(DiskPages { base: None, base_table: None, current: Mutex::new(current) });
        };
        let geometry = Geometry { disk_len };
        let old_table = base.table();
        let mut table = old_table.resized(disk_len);
        for page in old_table.boundary_pages(disk_len).into_iter().filter(|page| *page < geometry.pages()) {
            if let Some(ids) = self.cut_page(&base, geometry, page)? {
                match page_is_blank(&ids) {
                    true => table.remove(page),
                    false => table.set(page, crate::repository::page_hash(&ids)),
                }
            }
        }
        let entries = base.entries.range(..geometry.pages()).map(|(page, entry)| (*page, *entry)).collect();
        let current = DiskManifest { disk_len, files: base.files.clone(), entries };
        Ok(DiskPages { base: Some(base), base_table: Some(table), current: Mutex::new(current) })
    }

    /// The page's ids where cutting it changes them.
    fn cut_page(
        &self,
        base: &DiskManifest,
        geometry: Geometry,
        page: u64,
    ) -> Result<Option<PageIds>, RepositoryError> {
        let Some(ids) = self.shared.page(base, page)? else { return Ok(None) };
        let mut ids = PageIds::clone(&ids);
        Ok(trim_page(&mut ids, geometry, page).then_some(ids))
    }
}

impl Building {
    /// Pages that a shorter end cuts are set at once: a source that offers only what changed within the
    /// new length does not mention chunks that are past it.
    fn settle_new_lengths(&self) -> Result<(), RepositoryError> {
        for (n, tables) in self.tables.iter().enumerate() {
            let Some(base) = &tables.base else { continue };
            for page in base.table().boundary_pages(self.record.disks[n].disk_len) {
                if page < (Geometry { disk_len: self.record.disks[n].disk_len }).pages() {
                    let ids = self.base_page(n, page)?;
                    self.put_page(n, page, ids.as_ref())?;
                }
            }
        }
        self.checkpoint(&vec![0; self.record.disks.len()])
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(std::sync::atomic::Ordering::Acquire)
    }
}

/// The base's disk for each disk: the one of its path, or else the one of its number, where no other disk has
/// that one's path. A machine that moved keeps its disks so: the source compares them by number.
fn matched(base_paths: &[String], disks: &[BeginDisk]) -> Vec<Option<u16>> {
    let by_path = |disk: &BeginDisk| base_paths.iter().position(|path| *path == disk.source_path);
    let is_free = |path: &String| !disks.iter().any(|disk| disk.source_path == *path);
    let by_number = |n: usize| base_paths.get(n).filter(|path| is_free(path)).map(|_| n);
    let of = |(n, disk)| by_path(disk).or_else(|| by_number(n)).map(|n| n as u16);
    disks.iter().enumerate().map(of).collect()
}

fn replay(
    file: &std::fs::File,
    cursor: &CursorRecord,
    tables: &[DiskPages],
    pages_file: &str,
) -> std::io::Result<()> {
    let damaged = || std::io::Error::new(std::io::ErrorKind::InvalidData, "a change is out of bounds");
    changes::read(file, cursor.changes, |change| {
        let tables = tables.get(change.disk as usize).ok_or_else(damaged)?;
        let mut current = lock(&tables.current);
        let pages = Geometry { disk_len: current.disk_len }.pages();
        match change.entry {
            _ if change.page >= pages => return Err(damaged()),
            None => drop(current.entries.remove(&change.page)),
            Some((_, slot)) if slot >= cursor.page_slots => return Err(damaged()),
            Some((hash, slot)) => {
                let file = current.file_index(pages_file);
                current.entries.insert(change.page, PageEntry { hash, file, slot });
            }
        }
        Ok(())
    })
}

fn check(spec: &BeginSpec) -> Result<(), RepositoryError> {
    let refuse = |why: String| Err(RepositoryError::invalid(format!("session {}", spec.session), why));
    if !name_is_valid(&spec.session) || spec.session.len() > 48 {
        return refuse("its id is not valid".into());
    }
    if spec.disks.is_empty() || spec.disks.len() > DISKS_MAX {
        return refuse(format!("it has {} disks; 1 to {DISKS_MAX} are possible", spec.disks.len()));
    }
    let mut paths = HashSet::new();
    for disk in &spec.disks {
        if disk.disk_len > DISK_BYTES_MAX || disk.disk_len == 0 {
            return refuse(format!("disk {} is {} bytes long", disk.source_path, disk.disk_len));
        }
        if !paths.insert(&disk.source_path) || disk.source_path.len() > 4096 {
            return refuse(format!("disk path {:?} is there twice or too long", disk.source_path));
        }
    }
    if spec.snapshot_identity.len() > 4096 {
        return refuse("its snapshot's identity is too long".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_matched_by_path_and_then_by_number() {
        let of = |base: &[&str], disks: &[&str]| {
            let base: Vec<String> = base.iter().map(|path| (*path).to_string()).collect();
            let disk = |path: &&str| BeginDisk { source_path: (*path).to_string(), disk_len: 1 };
            matched(&base, &disks.iter().map(disk).collect::<Vec<_>>())
        };
        assert_eq!(of(&[], &["/a"]), [None]);
        assert_eq!(of(&["/a", "/b"], &["/b", "/a"]), [Some(1), Some(0)]);
        assert_eq!(of(&["/a", "/b"], &["/b", "/c"]), [Some(1), None], "its number is that of another path");
        assert_eq!(of(&["/a", "/b"], &["/x", "/y"]), [Some(0), Some(1)], "the machine moved");
        assert_eq!(of(&["/a", "/b"], &["/x", "/b", "/y"]), [Some(0), Some(1), None]);
    }
}
