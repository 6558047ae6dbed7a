//! Records on the datastore: what stands in `replica.json`, `point.json` and the files of a building.
//!
//! Pure types and checks. All are JSON for people with a version and a checksum (see `files`). Records
//! come from a disk that others may have written to: names are checked by pattern, numbers by bounds,
//! before anything acts on them. No key of a dedup domain is ever among them, only its tag.

use serde::{Deserialize, Serialize};
use vbr_api::{DiskFormat, DiskVolume, KeepCalendar, Moment, VmConfig, name_is_valid};

use crate::limits::{DISK_BYTES_MAX, DISKS_MAX};
use crate::vm_config;

/// The version of all records. A higher one was written by a newer vbr and is left alone.
pub const VERSION: u32 = 1;

/// `replica.json`: whose replica it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Always `vbr replica`.
    pub format: String,
    /// See [`VERSION`].
    pub version: u32,
    /// 32 hexadecimal digits, chosen at creation: what index entries name it by. Not a secret.
    pub id: String,
    /// The source site's name here.
    pub site: String,
    /// Name within its site.
    pub name: String,
    /// The peer that replicates into it; nobody else may.
    pub owner_peer_id: String,
    /// Tag of its dedup domain, 16 hexadecimal digits.
    pub domain_tag: String,
    /// When the first session came.
    pub created_at: Moment,
    /// Restore points the job last asked to keep.
    pub keep: Option<u32>,
    /// And of how many days, weeks, months and years.
    #[serde(default, skip_serializing_if = "KeepCalendar::is_empty")]
    pub keep_calendar: KeepCalendar,
}

/// `point.json`: a sealed restore point. Changes only when a point below it is retired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRecord {
    /// Always `vbr restore point`.
    pub format: String,
    /// See [`VERSION`].
    pub version: u32,
    /// Its id, which is the directory's name.
    pub id: String,
    /// Order of sealing within the replica: clocks may jump, this does not.
    pub sequence: u64,
    /// The session that made it.
    pub session: String,
    /// When the source took its snapshot.
    pub snapshot_at: Moment,
    /// When it was sealed, by the wall clock here.
    pub sealed_at: Moment,
    /// Observed time of the datastore at the seal, milliseconds (see `retention`).
    pub observed_ms: u64,
    /// Its time on the calendar's own line, in which clocks do not jump (see `retention::calendar`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credible_at: Option<Moment>,
    /// The point it was made from.
    pub base: Option<String>,
    /// False where a disk changed while it was read.
    pub consistent: bool,
    /// Bytes written to it.
    pub changed_bytes: u64,
    /// In order; the index is the disk's number.
    pub disks: Vec<DiskRecord>,
    /// The VM at that moment, where its host says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmConfig>,
}

/// One disk of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its path at the source.
    pub source_path: String,
    /// Exact length in bytes; an image may be rounded up to a sector.
    pub disk_len: u64,
    /// Root of its manifest, 64 hexadecimal digits; empty while the point is being built.
    pub root: String,
    /// Image, in the point's directory.
    pub file: String,
    /// Format of the image: declared here, never probed.
    pub image: DiskFormat,
    /// What the image is an overlay of.
    pub backing: Option<BackingRecord>,
    /// Files in `pages/` that its manifest names.
    pub page_files: Vec<String>,
    /// Volumes inside it and what became of their free space, as the source said; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<DiskVolume>,
}

/// The image below an overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingRecord {
    /// Restore point that holds it.
    pub point: String,
    /// Disk number there.
    pub disk: u16,
}

/// `state.json` beside `point.json`: what changes in a point's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// Held by an operator.
    pub pinned: bool,
    /// Until then; for good where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_until: Option<Moment>,
    /// And at least until so much time of the datastore was observed, milliseconds.
    #[serde(default)]
    pub pinned_until_observed_ms: u64,
    /// Bytes written to retired points that lay between this one and the one before it: it still holds some
    /// of them. What a quota counts.
    #[serde(default)]
    pub inherited_bytes: u64,
    /// When it was last verified.
    pub verified_at: Option<Moment>,
    /// With what result.
    pub verified_ok: Option<bool>,
    /// Chunks that were found damaged then, and mended.
    #[serde(default)]
    pub mended_chunks: u64,
    /// When it was last tested by starting it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<Moment>,
    /// With what result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_ok: Option<bool>,
}

/// `building.json`: a point that a session fills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildingRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// The session, which is the directory's name.
    pub session: String,
    /// The snapshot it reads, and no other.
    pub snapshot_identity: String,
    /// When that was taken.
    pub snapshot_at: Moment,
    /// Restore point whose content counts as unchanged.
    pub base: Option<String>,
    /// For each disk, its number in the base.
    pub base_disks: Vec<Option<u16>>,
    /// As in [`PointRecord`].
    pub disks: Vec<DiskRecord>,
    /// The VM at the moment of that snapshot: what a session that goes on says later is of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmConfig>,
}

/// `cursor.json`: how far a building is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// First page of each disk that is not durable.
    pub cursors: Vec<u64>,
    /// Page bodies in the session's pages file that count.
    pub page_slots: u32,
    /// Entries in `changes` that count.
    pub changes: u64,
    /// Bytes written so far.
    pub changed_bytes: u64,
}

/// `retire.json`: an overlay chain is being shortened; see `retire`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// The point that goes.
    pub point: String,
    /// One step for each of its disks that another builds upon.
    pub merges: Vec<MergeRecord>,
}

/// One image takes in the overlay above it, and takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeRecord {
    /// Disk number in the point that goes.
    pub disk: u16,
    /// The point whose overlay is taken in.
    pub child: String,
    /// Disk number there.
    pub child_disk: u16,
    /// The overlay's file there, which ends.
    pub overlay: String,
    /// The disk's record in the child when all is done.
    pub after: DiskRecord,
}

impl ReplicaRecord {
    /// The fixed word in `format`.
    pub const FORMAT: &str = "vbr replica";

    /// What does not fit.
    pub fn check(&self) -> Result<(), String> {
        check_version(self.version)?;
        if self.format != Self::FORMAT {
            return Err("it is not the record of a replica".into());
        }
        if !name_is_valid(&self.site) || !name_is_valid(&self.name) {
            return Err("a name in it is not valid".into());
        }
        if !is_hex(&self.id, 32) || !is_hex(&self.domain_tag, 16) {
            return Err("an id in it is not valid".into());
        }
        Ok(())
    }
}

impl PointRecord {
    /// The fixed word in `format`.
    pub const FORMAT: &str = "vbr restore point";

    /// What does not fit, for a point found under this id.
    pub fn check(&self, id: &str) -> Result<(), String> {
        check_version(self.version)?;
        if self.format != Self::FORMAT || self.id != id {
            return Err("it is not the record of this restore point".into());
        }
        if !name_is_valid(&self.session) || self.base.as_ref().is_some_and(|base| !name_is_valid(base)) {
            return Err("a name in it is not valid".into());
        }
        if self.disks.iter().any(|disk| !is_hex(&disk.root, 64)) {
            return Err("a root in it is not valid".into());
        }
        self.vm.as_ref().map_or(Ok(()), vm_config::check)?;
        check_disks(&self.disks)
    }
}

impl BuildingRecord {
    /// What does not fit, for a building found under this session.
    pub fn check(&self, session: &str) -> Result<(), String> {
        check_version(self.version)?;
        if self.session != session || self.base_disks.len() != self.disks.len() {
            return Err("it is not the record of this session".into());
        }
        if self.base.as_ref().is_some_and(|base| !name_is_valid(base)) {
            return Err("a name in it is not valid".into());
        }
        self.vm.as_ref().map_or(Ok(()), vm_config::check)?;
        check_disks(&self.disks)
    }
}

impl RetireRecord {
    /// What does not fit.
    pub fn check(&self) -> Result<(), String> {
        check_version(self.version)?;
        let names = self.merges.iter().flat_map(|merge| [&merge.child, &merge.overlay, &merge.after.file]);
        if !name_is_valid(&self.point) || names.into_iter().any(|name| !name_is_valid(name)) {
            return Err("a name in it is not valid".into());
        }
        Ok(())
    }
}

/// Refuses what a newer vbr wrote.
pub fn check_version(version: u32) -> Result<(), String> {
    match version {
        VERSION => Ok(()),
        newer if newer > VERSION => Err(format!("it was written by a newer vbr (version {newer})")),
        other => Err(format!("its version {other} is unknown")),
    }
}

fn check_disks(disks: &[DiskRecord]) -> Result<(), String> {
    if disks.is_empty() || disks.len() > DISKS_MAX {
        return Err(format!("it has {} disks", disks.len()));
    }
    for disk in disks {
        let backing = disk.backing.as_ref().map(|backing| &backing.point);
        let names = [&disk.file].into_iter().chain(&disk.page_files).chain(backing);
        if names.into_iter().any(|name| !name_is_valid(name)) {
            return Err("a file's name in it is not valid".into());
        }
        if disk.disk_len > DISK_BYTES_MAX {
            return Err("a disk in it is larger than vbr takes".into());
        }
        if disk.backing.is_some() && disk.image != DiskFormat::Qcow2 {
            return Err("a raw image in it is declared as an overlay".into());
        }
    }
    Ok(())
}

/// True for exactly so many lower-case hexadecimal digits.
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
