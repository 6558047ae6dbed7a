//! What the parts of one replica share: where its files are, its records, its leases.
//!
//! Owns the records of all readable points (the truth is on the disk; this is what was read or written
//! last). Not its job: changing files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::OFlags;
use vbr_api::DiskFormat;

use super::lease::Leases;
use super::overlay::{Chain, OverlayDisk};
use super::pages::{DiskManifest, PageEntry, mend_page, read_page};
use super::raw::RawDisk;
use super::record::{BackingRecord, DiskRecord, PointRecord};
use super::store::Core;
use crate::block::{BlockRead, DomainTag};
use crate::limits::DISK_BYTES_MAX;
use crate::repository::{PageIds, RepositoryError};

/// Largest `disk-N.manifest`: every page of the largest disk, and its files.
const MANIFEST_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Shared by a replica, its points and its building.
pub struct Shared {
    /// The datastore it lives in.
    pub core: Arc<Core>,
    /// Its directory.
    pub dir: PathBuf,
    /// The source site's name here.
    pub site: String,
    /// Its name within the site.
    pub name: String,
    /// What index entries name it by.
    pub key: [u8; 16],
    /// Its dedup domain.
    pub domain_tag: DomainTag,
    /// Readers and writers of its points.
    pub leases: Arc<Leases>,
    /// Records of its readable points.
    pub records: RwLock<BTreeMap<String, Arc<PointRecord>>>,
}

impl Shared {
    /// As people write it.
    pub fn title(&self) -> String {
        format!("{}/{}", self.site, self.name)
    }

    /// Where sealed points are.
    pub fn points_dir(&self) -> PathBuf {
        self.dir.join("points")
    }

    /// Where a sealed point is.
    pub fn point_dir(&self, point: &str) -> PathBuf {
        self.points_dir().join(point)
    }

    /// Where points are built.
    pub fn buildings_dir(&self) -> PathBuf {
        self.dir.join("building")
    }

    /// Where a session builds.
    pub fn building_dir(&self, session: &str) -> PathBuf {
        self.buildings_dir().join(session)
    }

    /// Where page bodies are.
    pub fn pages_dir(&self) -> PathBuf {
        self.dir.join("pages")
    }

    /// Points that are gone, but not their files.
    pub fn retiring_dir(&self) -> PathBuf {
        self.dir.join("retiring")
    }

    /// The record of a readable point.
    pub fn record(&self, point: &str) -> Result<Arc<PointRecord>, RepositoryError> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let found = records.get(point).cloned();
        found.ok_or_else(|| RepositoryError::NotFound(format!("restore point {}@{point}", self.title())))
    }

    /// Sets or removes the record of a point.
    pub fn set_record(&self, point: &str, record: Option<PointRecord>) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        match record {
            Some(record) => records.insert(point.to_string(), Arc::new(record)),
            None => records.remove(point),
        };
    }

    /// Every readable point's record.
    pub fn all_records(&self) -> Vec<Arc<PointRecord>> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The points whose disk is an overlay of this one, with the disk's number there.
    pub fn children(&self, point: &str, disk: u16) -> Vec<(Arc<PointRecord>, u16)> {
        let wanted = Some(BackingRecord { point: point.to_string(), disk });
        let mut children = Vec::new();
        for record in self.all_records() {
            for (n, other) in record.disks.iter().enumerate() {
                if other.backing == wanted {
                    children.push((record.clone(), n as u16));
                }
            }
        }
        children
    }

    /// The declared chain of an image in `dir`. Each file of it is opened once beneath the datastore,
    /// so that no link leads elsewhere.
    pub fn chain(&self, dir: PathBuf, disk: &DiskRecord) -> Result<Chain, RepositoryError> {
        let path = dir.join(&disk.file);
        self.core.root.open_beneath(&path, OFlags::RDONLY)?;
        Ok(Chain { path, format: disk.image, below: self.below(disk.backing.clone())? })
    }

    /// The images below an overlay, nearest first.
    pub fn below(
        &self,
        backing: Option<BackingRecord>,
    ) -> Result<Vec<(PathBuf, DiskFormat)>, RepositoryError> {
        let mut below = Vec::new();
        let mut next = backing;
        let bound = self.records.read().unwrap_or_else(PoisonError::into_inner).len();
        while let Some(backing) = next {
            let record = self.record(&backing.point)?;
            let disk = record.disks.get(backing.disk as usize).filter(|_| below.len() <= bound);
            let disk = disk.ok_or_else(|| {
                RepositoryError::damaged(
                    self.title(),
                    format!("the chain below {} does not end", backing.point),
                )
            })?;
            let path = self.point_dir(&backing.point).join(&disk.file);
            self.core.root.open_beneath(&path, OFlags::RDONLY)?;
            below.push((path, disk.image));
            next = disk.backing.clone();
        }
        Ok(below)
    }

    /// Opens a disk of a sealed point for reading. The caller holds a lease.
    pub fn open_image(&self, point: &str, disk: u16) -> Result<Box<dyn BlockRead>, RepositoryError> {
        let record = self.record(point)?;
        let record = self.disk_of(&record, disk)?;
        match record.image {
            DiskFormat::Raw => {
                let path = self.point_dir(point).join(&record.file);
                let file = self.core.root.open_beneath(&path, OFlags::RDONLY)?;
                let len =
                    file.metadata().map_err(|e| RepositoryError::io(path.display().to_string(), e))?.len();
                if len != record.disk_len || len > DISK_BYTES_MAX {
                    let why = format!("it holds {len} bytes, its record says {}", record.disk_len);
                    return Err(RepositoryError::damaged(path.display().to_string(), why));
                }
                Ok(Box::new(RawDisk::new(file, len)))
            }
            DiskFormat::Qcow2 => {
                let chain = self.chain(self.point_dir(point), record)?;
                let image = OverlayDisk::open(&chain, record.disk_len, false, &self.core.runtime_dir)?;
                Ok(Box::new(image))
            }
        }
    }

    /// A disk's record, by its number.
    pub fn disk_of<'a>(&self, record: &'a PointRecord, disk: u16) -> Result<&'a DiskRecord, RepositoryError> {
        record.disks.get(disk as usize).ok_or_else(|| {
            RepositoryError::NotFound(format!("disk {disk} of restore point {}@{}", self.title(), record.id))
        })
    }

    /// The manifest of a disk of a sealed point, checked and cached.
    pub fn manifest(&self, point: &str, disk: u16) -> Result<Arc<DiskManifest>, RepositoryError> {
        let record = self.record(point)?;
        let record = self.disk_of(&record, disk)?;
        let key = (self.key, point.to_string(), disk);
        self.core.caches.manifest(key, || {
            let path = self.point_dir(point).join(manifest_name(disk as usize));
            let bytes = self.core.root.read(&path, MANIFEST_BYTES_MAX)?;
            let damaged = |why: &str| RepositoryError::damaged(path.display().to_string(), why);
            let manifest = DiskManifest::decode(&bytes).map_err(damaged)?;
            if manifest.disk_len != record.disk_len || manifest.table().root().hex() != record.root {
                return Err(damaged("it does not fit the root in the point's record"));
            }
            Ok(manifest)
        })
    }

    /// A page body, verified and cached; none where the page is all zero.
    pub fn page(&self, manifest: &DiskManifest, page: u64) -> Result<Option<Arc<PageIds>>, RepositoryError> {
        let Some(entry) = manifest.entries.get(&page) else { return Ok(None) };
        self.core.caches.page(entry.hash, || self.load_page(manifest, entry)).map(Some)
    }

    /// A page body from the disk, verified.
    pub fn load_page(&self, manifest: &DiskManifest, entry: &PageEntry) -> Result<PageIds, RepositoryError> {
        read_page(&self.core.root, &self.pages_path(manifest, entry)?, entry)
    }

    /// Writes a page body again; the caller has made it anew. Only one that fits is written.
    pub fn mend_page(
        &self,
        manifest: &DiskManifest,
        entry: &PageEntry,
        ids: &PageIds,
    ) -> Result<(), RepositoryError> {
        mend_page(&self.core.root, &self.pages_path(manifest, entry)?, entry, ids)
    }

    fn pages_path(&self, manifest: &DiskManifest, entry: &PageEntry) -> Result<PathBuf, RepositoryError> {
        let file = manifest.files.get(entry.file as usize);
        let file =
            file.ok_or_else(|| RepositoryError::damaged(self.title(), "an entry names no pages file"))?;
        Ok(self.pages_dir().join(file))
    }
}

/// Name of a disk's manifest.
pub fn manifest_name(disk: usize) -> String {
    format!("disk-{disk}.manifest")
}

/// Name of a disk's image.
pub fn image_name(disk: usize, format: DiskFormat) -> String {
    format!("disk-{disk}.{}", format.as_str())
}

/// How an overlay names the image below it, in its header, for people: from `points/ID` as well as from
/// `building/SESSION`.
pub fn below_name(point: &str, file: &str) -> String {
    format!("../../points/{point}/{file}")
}
