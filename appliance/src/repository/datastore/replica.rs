//! A replica: one VM's copy, its restore points in order of sealing, at most one being built.
//!
//! Owns the catalog in memory (the truth is the directory, scanned when it is opened) and serialises
//! whatever changes it: begin, seal, discard, retire. Not its job: the images themselves.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use vbr_api::{KeepCalendar, Warning, name_is_valid};

use super::building::{Building, BuildingState, lock};
use super::failover::FailoverState;
use super::lease::{Leases, Scope};
use super::point::Point;
use super::record::{BuildingRecord, CursorRecord, PointRecord, ReplicaRecord, VERSION, check_version};
use super::shared::Shared;
use super::store::{Core, ReplicaSpec, warning};
use super::{files, readme};
use crate::block::{ChunkId, DomainKey, DomainTag, PAGE_CHUNKS, ShortId};
use crate::repository::RepositoryError;

/// How long removing waits for readers.
pub(super) const EXCLUSIVE_PATIENCE: Duration = Duration::from_secs(10);

/// One VM's copy.
pub struct Replica {
    pub(super) shared: Arc<Shared>,
    pub(super) record: Mutex<ReplicaRecord>,
    pub(super) points: RwLock<Vec<Arc<Point>>>,
    pub(super) open_building: Mutex<Weak<Building>>,
    pub(super) failover: Mutex<FailoverState>,
    work: Mutex<()>,
    warnings: Mutex<Vec<Warning>>,
}

impl Replica {
    pub(super) fn create(
        core: &Arc<Core>,
        dir: PathBuf,
        spec: &ReplicaSpec,
    ) -> Result<Arc<Self>, RepositoryError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|e| RepositoryError::io("random numbers", std::io::Error::other(e.to_string())))?;
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let record = ReplicaRecord {
            format: ReplicaRecord::FORMAT.into(),
            version: VERSION,
            id: hex(&id),
            site: spec.site.clone(),
            name: spec.name.clone(),
            owner_peer_id: spec.owner_peer_id.clone(),
            domain_tag: hex(&spec.domain_tag.0),
            created_at: spec.now,
            keep: None,
            keep_calendar: KeepCalendar::default(),
        };
        if let Some(site_dir) = dir.parent() {
            files::make_dir(site_dir)?;
        }
        files::make_dir(&dir)?;
        if !core.root.has_dir(&dir) {
            return Err(RepositoryError::invalid(dir.display().to_string(), "it is not a directory here"));
        }
        for name in ["points", "building", "pages", "retiring"] {
            files::make_dir(&dir.join(name))?;
        }
        core.root.write_whole(&dir.join("README.txt"), readme::TEXT.as_bytes())?;
        core.root.write_record(&dir.join("replica.json"), &record)?;
        Self::open(core, dir, record)
    }

    /// Scans a replica's directory and finishes what a crash interrupted.
    pub(super) fn open(
        core: &Arc<Core>,
        dir: PathBuf,
        record: ReplicaRecord,
    ) -> Result<Arc<Self>, RepositoryError> {
        let parse = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap_or_default();
        let (Ok(key), Ok(tag)) = (parse(&record.id).try_into(), parse(&record.domain_tag).try_into()) else {
            return Err(RepositoryError::damaged(
                dir.display().to_string(),
                "an id in replica.json is not valid",
            ));
        };
        let shared = Arc::new(Shared {
            core: core.clone(),
            site: record.site.clone(),
            name: record.name.clone(),
            key,
            domain_tag: DomainTag(tag),
            leases: Arc::new(Leases::default()),
            records: RwLock::default(),
            dir,
        });
        for dir in [shared.points_dir(), shared.buildings_dir(), shared.pages_dir(), shared.retiring_dir()] {
            files::make_dir(&dir)?;
            if !core.root.has_dir(&dir) {
                return Err(RepositoryError::damaged(
                    dir.display().to_string(),
                    "it is not a directory here",
                ));
            }
        }
        let replica = Arc::new(Self {
            shared,
            record: Mutex::new(record),
            points: RwLock::default(),
            open_building: Mutex::default(),
            failover: Mutex::default(),
            work: Mutex::default(),
            warnings: Mutex::default(),
        });
        replica.scan()?;
        Ok(replica)
    }

    /// The peer that replicates into it.
    pub fn owner_peer_id(&self) -> String {
        lock(&self.record).owner_peer_id.clone()
    }

    /// Gives it to another identity of its peer, or to the peer's successor. Durable when it returns.
    pub fn set_owner(&self, peer_id: &str) -> Result<(), RepositoryError> {
        let mut record = lock(&self.record);
        let new = ReplicaRecord { owner_peer_id: peer_id.to_owned(), ..record.clone() };
        self.shared.core.root.write_record(&self.shared.dir.join("replica.json"), &new)?;
        *record = new;
        Ok(())
    }

    /// The source site's name here.
    pub fn site(&self) -> &str {
        &self.shared.site
    }

    /// Its name within the site.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What index entries name it by.
    pub fn key(&self) -> [u8; 16] {
        self.shared.key
    }

    /// Its dedup domain.
    pub fn domain_tag(&self) -> DomainTag {
        self.shared.domain_tag
    }

    /// Name of its datastore.
    pub fn datastore(&self) -> &str {
        &self.shared.core.name
    }

    /// Refuses writes that would eat the datastore's reserve.
    pub fn check_space(&self) -> Result<(), RepositoryError> {
        self.shared.core.check_space()
    }

    /// As the management API shows it. Counts its files, which takes a moment for many points.
    pub fn meta(&self) -> vbr_api::Replica {
        let latest = self.latest().map(|point| point.meta());
        let virtual_bytes = latest.iter().flat_map(|point| &point.disks).map(|disk| disk.virtual_bytes).sum();
        vbr_api::Replica {
            name: self.shared.name.clone(),
            site: self.shared.site.clone(),
            datastore: self.shared.core.name.clone(),
            backend: self.shared.core.backend.as_str().into(),
            path: self.shared.dir.display().to_string(),
            points: self.points().len() as u64,
            virtual_bytes,
            stored_bytes: files::stored_bytes(&self.shared.dir),
            latest_at: latest.as_ref().map(|point| point.snapshot_at),
            latest: latest.map(|point| point.id),
            building: self.building().map(|building| building.session),
            keep: self.policy().last,
            keep_calendar: self.policy().calendar,
            kept: Vec::new(),
            retires_next: Vec::new(),
        }
    }

    /// Every restore point, oldest first; damaged ones too.
    pub fn points(&self) -> Vec<Arc<Point>> {
        self.points.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest point that is good: what a session builds on and `latest` means.
    pub fn latest(&self) -> Option<Arc<Point>> {
        self.points().into_iter().rev().find(|point| point.is_good())
    }

    /// A point by id, or `latest`.
    pub fn point(&self, id: &str) -> Result<Arc<Point>, RepositoryError> {
        let found = match id {
            "latest" => self.latest(),
            id => self.points().into_iter().find(|point| point.id() == id),
        };
        found.ok_or_else(|| RepositoryError::NotFound(format!("restore point {}@{id}", self.shared.title())))
    }

    /// The point that a session sealed, if it did: what decides after a lost acknowledgement.
    pub fn sealed_by(&self, session: &str) -> Option<Arc<Point>> {
        self.points().into_iter().rev().find(|point| point.session() == session)
    }

    /// The point being built, opened or left by an earlier run.
    pub fn building(&self) -> Option<BuildingState> {
        self.building_records().into_iter().next_back().map(|(record, cursor)| BuildingState {
            session: record.session,
            snapshot_identity: record.snapshot_identity,
            base: record.base,
            cursors: cursor.cursors,
        })
    }

    /// True while a session fills a new point.
    pub fn is_filling(&self) -> bool {
        lock(&self.open_building).upgrade().is_some_and(|open| !open.is_over())
    }

    /// A chunk by place and id, through any good sealed point whose manifest has it there; re-hashed.
    pub fn read_chunk(
        &self,
        disk: u16,
        chunk: u64,
        id: ShortId,
        key: &DomainKey,
    ) -> Option<(ChunkId, Vec<u8>)> {
        if key.tag() != self.shared.domain_tag {
            return None;
        }
        // Pages that do not have the id there need not be looked at again in older points.
        let mut without = Vec::new();
        for point in self.points().iter().rev().filter(|point| point.unreadable().is_none()) {
            let Some(hash) = point.page_hash(disk, chunk / PAGE_CHUNKS as u64) else { continue };
            if without.contains(&hash) {
                continue;
            }
            match point.id_at(disk, chunk, id) {
                None => without.push(hash),
                Some(full) => {
                    if let Some(data) = point.read_chunk(disk, chunk, full, key) {
                        return Some((full, data));
                    }
                }
            }
        }
        None
    }

    /// What an operator should look at.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = lock(&self.warnings).clone();
        for point in self.points() {
            if let Some(why) = point.unreadable() {
                warnings.push(warning(
                    "critical",
                    format!("{} is damaged: {why}", point.title()),
                    "nothing was deleted; repair its files, or remove the point with vbrctl restore-point remove",
                ));
            } else if point.bad() {
                warnings.push(warning(
                    "critical",
                    format!("{} failed its verification", point.title()),
                    "run the job again: what is bad is sent anew; then vbrctl task run verification, which mends the \
                     point, or remove it",
                ));
            }
        }
        warnings
    }

    pub(super) fn warn(&self, text: String, next: &str) {
        tracing::warn!(replica = self.shared.title(), "{text}");
        lock(&self.warnings).push(warning("warning", text, next));
    }

    /// Serialises whatever changes the catalog.
    pub(super) fn work(&self) -> MutexGuard<'_, ()> {
        lock(&self.work)
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.shared.all_records().iter().map(|record| record.sequence).max().unwrap_or(0) + 1
    }

    pub(super) fn add_point(&self, record: PointRecord) -> Arc<Point> {
        let id = record.id.clone();
        self.shared.set_record(&id, Some(record));
        let point = Arc::new(Point::new(self.shared.clone(), id, None));
        self.points.write().unwrap_or_else(PoisonError::into_inner).push(point.clone());
        if let Err(error) = self.shared.core.clock.write(&self.shared.core.root) {
            tracing::warn!(%error, "observed time was not written down; points are kept longer");
        }
        point
    }

    pub(super) fn drop_point(&self, id: &str) {
        self.points.write().unwrap_or_else(PoisonError::into_inner).retain(|point| point.id() != id);
        self.shared.set_record(id, None);
        self.shared.core.caches.forget_point(self.shared.key, id);
    }

    /// Sessions that have a valid building here, with their cursors.
    pub(super) fn building_records(&self) -> Vec<(BuildingRecord, CursorRecord)> {
        let names = files::names_in(&self.shared.buildings_dir()).unwrap_or_default();
        names
            .iter()
            .filter(|name| name_is_valid(name))
            .filter_map(|name| self.building_record(name))
            .collect()
    }

    pub(super) fn building_record(&self, session: &str) -> Option<(BuildingRecord, CursorRecord)> {
        if !name_is_valid(session) {
            return None;
        }
        let (root, dir) = (&self.shared.core.root, self.shared.building_dir(session));
        let record: BuildingRecord = root.read_record(&dir.join("building.json")).ok()?;
        let cursor: CursorRecord = root.read_record(&dir.join("cursor.json")).ok()?;
        record.check(session).and_then(|()| check_version(cursor.version)).ok()?;
        (cursor.cursors.len() == record.disks.len()).then_some((record, cursor))
    }

    /// Removes the whole replica; gives back the ids of its points.
    pub(super) fn remove(&self) -> Result<Vec<String>, RepositoryError> {
        let _work = self.work();
        let busy = |why: &str| RepositoryError::Busy { what: self.shared.title(), why: why.into() };
        if lock(&self.open_building).upgrade().is_some_and(|open| !open.is_over()) {
            return Err(busy("a session replicates into it"));
        }
        self.check_no_vm()?;
        if let Some(point) = self.points().iter().find(|point| point.is_pinned()) {
            return Err(RepositoryError::Conflict {
                what: format!("replica {}", self.shared.title()),
                why: format!("its restore point {} is pinned", point.id()),
                next: format!(
                    "unpin it first: vbrctl restore-point unpin {}@{}",
                    self.shared.title(),
                    point.id()
                ),
            });
        }
        let evict = || self.shared.core.caches.evict(self.shared.key);
        let lease = self.shared.leases.exclusive(Scope::Replica, EXCLUSIVE_PATIENCE, evict);
        let _lease = lease.map_err(|_| busy("a restore point is being read"))?;
        let ids: Vec<String> = self.points().iter().map(|point| point.id().to_string()).collect();
        let record = lock(&self.record);
        let gone = self.shared.core.root.path().join(format!(".removed-{}", record.id));
        files::rename(&self.shared.dir, &gone)?;
        files::sync_parent(&self.shared.dir)?;
        files::sync_parent(&gone)?;
        for point in self.points() {
            point.set_retiring();
            self.drop_point(point.id());
        }
        files::remove_dir_all(&gone)?;
        if let Some(site_dir) = self.shared.dir.parent() {
            let _ = std::fs::remove_dir(site_dir); // Only where it was the last of its site.
        }
        Ok(ids)
    }
}
