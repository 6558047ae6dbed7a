//! Removing a restore point, and clearing away page bodies that nothing names any more.
//!
//! A point on whose images nothing rests: its directory is renamed out of `points/` (that is the
//! removal, in one durable step), then its files go. A point with an overlay above it: the overlay's
//! content is written into the point's image, which then takes the overlay's place; this costs in
//! proportion to the overlay. `retire.json` says what is under way, every step can be repeated, and a
//! scan finishes what a crash interrupted:
//!
//! 1. journal; 2. for each disk: merge, cut to the overlay's length, rename into its place, the
//!    overlay's point.json, the names inside overlays above, the overlay's old file; 3. the directory
//!    out of `points/`; 4. journal removed; 5. files, page bodies.
//!
//! While that runs nobody reads or builds this replica's overlay chains (exclusive lease).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::OFlags;
use vbr_api::DiskFormat;

use super::building::lock;
use super::files;
use super::lease::Scope;
use super::overlay::{self, Chain};
use super::pages::{DiskManifest, pages_name, punch_slot};
use super::point::Point;
use super::record::{DiskRecord, MergeRecord, PointRecord, RetireRecord, VERSION};
use super::replica::{EXCLUSIVE_PATIENCE, Replica};
use super::shared::{below_name, image_name};
use crate::repository::RepositoryError;

/// Called before each step with its name; an error stops there. Tests crash in it.
pub(super) type Step<'a> = &'a mut dyn FnMut(&str) -> Result<(), RepositoryError>;

impl Replica {
    /// Removes a restore point. Waits a moment for readers, then answers busy. Blocking: merging an
    /// overlay takes as long as it is large.
    pub fn retire(&self, id: &str) -> Result<(), RepositoryError> {
        self.retire_with(id, &mut |_| Ok(()))
    }

    pub(super) fn retire_with(&self, id: &str, step: Step<'_>) -> Result<(), RepositoryError> {
        let _work = self.work();
        let point = self.point(id)?;
        let id = point.id().to_string();
        let merges = self.check_retire(&point)?;
        let busy = |why: &str| RepositoryError::Busy { what: point.title(), why: why.into() };
        let scope = if merges.is_empty() { Scope::Point(id.clone()) } else { Scope::Replica };
        let evict = || self.shared.core.caches.evict(self.shared.key);
        let lease = self.shared.leases.exclusive(scope, EXCLUSIVE_PATIENCE, evict);
        let _lease = lease.map_err(|_| busy("it, or a point that builds upon it, is being read"))?;
        let manifests = self.manifests_of(&id);
        self.bequeath(&id)?;
        if !merges.is_empty() {
            let journal = RetireRecord { version: VERSION, point: id.clone(), merges };
            step("journal")?;
            self.shared.core.root.write_record(&self.journal_path(), &journal)?;
            point.set_retiring();
            self.run_merges(&journal, step)?;
        }
        point.set_retiring();
        step("leave")?;
        self.leave(&id)?;
        self.drop_point(&id);
        step("journal away")?;
        files::remove_file(&self.journal_path())?;
        files::sync_dir(&self.shared.dir)?;
        step("files")?;
        files::remove_dir_all(&self.shared.retiring_dir().join(&id))?;
        step("pages")?;
        self.collect_pages(&manifests)
    }

    /// What stands in the way, and what has to be merged.
    fn check_retire(&self, point: &Arc<Point>) -> Result<Vec<MergeRecord>, RepositoryError> {
        let busy = |why: String| Err(RepositoryError::Busy { what: point.title(), why });
        let refuse = |why: &str, next: &str| {
            Err(RepositoryError::Conflict { what: point.title(), why: why.into(), next: next.into() })
        };
        if point.is_pinned() {
            return refuse("it is pinned", "unpin it first: vbrctl restore-point unpin");
        }
        if self.journal_path().exists() && !point.is_retiring() {
            return busy(
                "the removal of another restore point is not finished; restart vbrd to finish it".into(),
            );
        }
        let buildings = self.building_records();
        for (building, _) in &buildings {
            if building.base.as_deref() == Some(point.id()) {
                return busy(format!("session {} builds upon it", building.session));
            }
        }
        let Ok(record) = point.record() else {
            let resting = self.shared.all_records().iter().any(|record| {
                record
                    .disks
                    .iter()
                    .any(|disk| disk.backing.as_ref().is_some_and(|below| below.point == point.id()))
            });
            return match resting {
                true => {
                    refuse("its record is damaged and another point builds upon it", "repair its point.json")
                }
                false => Ok(Vec::new()),
            };
        };
        // A removal that stopped half way goes on as it was planned.
        let begun: Option<RetireRecord> = self.shared.core.root.read_record(&self.journal_path()).ok();
        let merges = match begun.filter(|journal| journal.point == record.id) {
            Some(journal) => journal.merges,
            None => self.merges_for(&record)?,
        };
        self.check_not_started(point.id(), !merges.is_empty())?;
        if let Some((building, _)) = buildings.first().filter(|_| !merges.is_empty()) {
            return busy(format!("session {} builds upon a point above it", building.session));
        }
        Ok(merges)
    }

    fn merges_for(&self, record: &PointRecord) -> Result<Vec<MergeRecord>, RepositoryError> {
        let mut merges = Vec::new();
        for (n, disk) in record.disks.iter().enumerate() {
            let children = self.shared.children(&record.id, n as u16);
            let Some((child, child_disk)) = children.first() else { continue };
            let own = self.shared.disk_of(child, *child_disk)?;
            let one = children.len() == 1 && child.id != record.id;
            if !one || !name_matches(&own.file, DiskFormat::Qcow2) {
                let why = "more than one overlay rests on it".to_string();
                return Err(RepositoryError::damaged(
                    format!("disk {n} of {}@{}", self.shared.title(), record.id),
                    why,
                ));
            }
            let after = DiskRecord {
                file: image_name(*child_disk as usize, disk.image),
                image: disk.image,
                backing: disk.backing.clone(),
                ..own.clone()
            };
            merges.push(MergeRecord {
                disk: n as u16,
                child: child.id.clone(),
                child_disk: *child_disk,
                overlay: own.file.clone(),
                after,
            });
        }
        Ok(merges)
    }

    fn run_merges(&self, journal: &RetireRecord, step: Step<'_>) -> Result<(), RepositoryError> {
        let record = self.shared.record(&journal.point)?;
        for merge in &journal.merges {
            let disk = self.shared.disk_of(&record, merge.disk)?;
            let child_dir = self.shared.point_dir(&merge.child);
            let (from, to) =
                (self.shared.point_dir(&journal.point).join(&disk.file), child_dir.join(&merge.after.file));
            let overlay_path = child_dir.join(&merge.overlay);
            if from.exists() {
                let mut below = vec![(from.clone(), disk.image)];
                below.extend(self.shared.below(disk.backing.clone())?);
                let chain = Chain { path: overlay_path.clone(), format: DiskFormat::Qcow2, below };
                step("merge")?;
                overlay::merge(&chain, merge.after.disk_len)?;
                step("rename")?;
                files::rename(&from, &to)?;
                files::sync_dir(&child_dir)?;
                files::sync_parent(&from)?;
            } else if !to.exists() {
                return Err(RepositoryError::damaged(from.display().to_string(), "it is missing"));
            }
            step("record")?;
            self.settle_child(merge)?;
            step("names")?;
            self.rename_above(merge)?;
            if overlay_path != to {
                step("overlay away")?;
                files::remove_file(&overlay_path)?;
                files::sync_dir(&child_dir)?;
            }
        }
        Ok(())
    }

    /// The child's record says what its disk is now.
    fn settle_child(&self, merge: &MergeRecord) -> Result<(), RepositoryError> {
        let mut record = PointRecord::clone(&*self.shared.record(&merge.child)?);
        let slot = record.disks.get_mut(merge.child_disk as usize);
        let slot = slot.ok_or_else(|| {
            RepositoryError::damaged(self.journal_path().display().to_string(), "no such disk")
        })?;
        if *slot == merge.after {
            return Ok(());
        }
        *slot = merge.after.clone();
        self.shared
            .core
            .root
            .write_record(&self.shared.point_dir(&merge.child).join("point.json"), &record)?;
        self.shared.set_record(&merge.child, Some(record));
        Ok(())
    }

    /// Overlays of the child name its image, for people, by its new name.
    fn rename_above(&self, merge: &MergeRecord) -> Result<(), RepositoryError> {
        if merge.overlay == merge.after.file {
            return Ok(());
        }
        for (above, disk) in self.shared.children(&merge.child, merge.child_disk) {
            let path = self.shared.point_dir(&above.id).join(&self.shared.disk_of(&above, disk)?.file);
            overlay::rename_below(&path, &below_name(&merge.child, &merge.after.file), merge.after.image)?;
        }
        Ok(())
    }

    /// Takes a point out of the catalog on the disk. This is its removal.
    fn leave(&self, id: &str) -> Result<(), RepositoryError> {
        let from = self.shared.point_dir(id);
        if from.exists() {
            files::rename(&from, &self.shared.retiring_dir().join(id))?;
        }
        files::sync_dir(&self.shared.points_dir())?;
        files::sync_dir(&self.shared.retiring_dir())
    }

    /// Finishes a removal that a crash interrupted. What cannot be finished stays as it is, with a warning.
    pub(super) fn recover_retire(&self) {
        let path = self.journal_path();
        if !path.exists() {
            return;
        }
        let finish = || -> Result<(), RepositoryError> {
            let journal: RetireRecord = self.shared.core.root.read_record(&path)?;
            journal.check().map_err(|why| RepositoryError::damaged(path.display().to_string(), why))?;
            if self.shared.point_dir(&journal.point).exists() {
                self.run_merges(&journal, &mut |_| Ok(()))?;
                self.leave(&journal.point)?;
            }
            self.shared.set_record(&journal.point, None);
            files::remove_file(&path)?;
            files::sync_dir(&self.shared.dir)?;
            files::remove_dir_all(&self.shared.retiring_dir().join(&journal.point))
        };
        if let Err(error) = finish() {
            self.warn(
                format!(
                    "an interrupted removal in replica {} cannot be finished: {error}",
                    self.shared.title()
                ),
                "nothing was lost; correct the cause and start vbrd again",
            );
        }
    }

    /// After a scan: the point that a journal still names is not offered to anybody.
    pub(super) fn mark_retiring(&self) {
        let journal: Option<RetireRecord> = self.shared.core.root.read_record(&self.journal_path()).ok();
        if let Some(journal) = journal
            && let Ok(point) = self.point(&journal.point)
        {
            point.set_retiring();
        }
    }

    fn journal_path(&self) -> PathBuf {
        self.shared.dir.join("retire.json")
    }

    fn manifests_of(&self, id: &str) -> Vec<Arc<DiskManifest>> {
        let disks = self.shared.record(id).map(|record| record.disks.len()).unwrap_or(0);
        (0..disks).filter_map(|disk| self.shared.manifest(id, disk as u16).ok()).collect()
    }

    /// Removes pages files that no point and no building names. While any point is damaged nobody knows
    /// what it names, and nothing is removed.
    pub(super) fn sweep_pages(&self) -> Result<(), RepositoryError> {
        if self.points().iter().any(|point| point.unreadable().is_some()) {
            return Ok(());
        }
        let mut named: HashSet<String> = HashSet::new();
        for record in self.shared.all_records() {
            named.extend(record.disks.iter().flat_map(|disk| disk.page_files.iter().cloned()));
        }
        for session in files::names_in(&self.shared.buildings_dir())? {
            named.insert(pages_name(&session));
        }
        if let Some(open) = lock(&self.open_building).upgrade() {
            named.insert(pages_name(open.session()));
        }
        for name in files::names_in(&self.shared.pages_dir())? {
            if name.ends_with(".pages") && !named.contains(&name) {
                files::remove_file(&self.shared.pages_dir().join(name))?;
            }
        }
        Ok(())
    }

    /// Gives back the space of page bodies that only a removed point named.
    fn collect_pages(&self, retired: &[Arc<DiskManifest>]) -> Result<(), RepositoryError> {
        if self.points().iter().any(|point| point.unreadable().is_some()) {
            return Ok(());
        }
        self.sweep_pages()?;
        let mut dead: HashMap<String, HashSet<u32>> = HashMap::new();
        for manifest in retired {
            for entry in manifest.entries.values() {
                if let Some(file) = manifest.files.get(entry.file as usize) {
                    dead.entry(file.clone()).or_default().insert(entry.slot);
                }
            }
        }
        for point in self.points() {
            for disk in 0..point.record()?.disks.len() {
                // A manifest that cannot be read may name anything.
                let manifest = self.shared.manifest(point.id(), disk as u16)?;
                for entry in manifest.entries.values() {
                    if let Some(slots) =
                        manifest.files.get(entry.file as usize).and_then(|file| dead.get_mut(file))
                    {
                        slots.remove(&entry.slot);
                    }
                }
            }
        }
        for (file, slots) in dead.into_iter().filter(|(_, slots)| !slots.is_empty()) {
            let path = self.shared.pages_dir().join(&file);
            let Ok(handle) = self.shared.core.root.open_beneath(&path, OFlags::RDWR) else { continue };
            for slot in slots {
                if punch_slot(&handle, slot).is_err() {
                    break; // A file system without holes: the space comes back with the file.
                }
            }
        }
        Ok(())
    }
}

fn name_matches(file: &str, format: DiskFormat) -> bool {
    file.ends_with(&format!(".{}", format.as_str()))
}
