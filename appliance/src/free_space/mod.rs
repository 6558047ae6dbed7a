//! Free space inside a disk: which blocks a snapshot's own file systems prove to be unused.
//!
//! [`map`] reads partition tables (GPT, MBR), LVM2 linear volumes and the allocation maps of ext2/3/4,
//! XFS, NTFS and swap areas, and answers which bytes need not travel and why. [`MaskedDisk`] shows the
//! disk with those bytes as zeroes; [`changed_since`] says what a change-tracked run must read.
//!
//! The rule of every reader here: a map is believed only where it is proven consistent for this very
//! snapshot (checksums, structure, counts, journal); anything unknown, damaged, busy or contradictory
//! keeps the whole volume, with the reason. A lost file can never be bought back by saved bytes.
//! Nothing outside a recognised volume is ever skipped.
//!
//! A leaf: owns no state, writes nothing. Blocking; call it on a blocking thread. Bounds: at most
//! [`VOLUMES_MAX`] volumes and [`EXTENTS_MAX`] free extents (16 bytes each; beyond that the shorter half
//! is given up), allocation maps are read in windows of 256 KiB, an ext4 journal's replay holds at most
//! 1,048,576 block numbers and no content. A disk of 64 TiB needs some 100 MiB at the worst.
//!
//! Not its job: trusting guests that hibernate to another disk or to a swap file. A hibernation image
//! that is visible here keeps the whole disk.

mod bytes;
mod ext4;
mod ext4_groups;
mod ext4_journal;
mod ext4_journal_file;
mod extents;
mod lvm;
mod lvm_text;
mod masked;
mod ntfs;
mod ntfs_records;
mod partitions;
mod signatures;
mod swap;
mod view;
mod xfs;
mod xfs_log;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_mount;

use crate::block::{BlockRead, Extent};

pub use extents::changed_since;
pub use masked::MaskedDisk;

use extents::Sink;
use signatures::Kind;
use view::View;

/// Most free extents that are told of one disk.
pub const EXTENTS_MAX: usize = 1 << 21;
/// Most volumes that are looked into on one disk; what lies beyond is kept.
pub const VOLUMES_MAX: usize = 1024;
/// The grid of free extents, relative to the disk.
pub const GRAIN_BYTES: u64 = 4096;

/// What of a disk need not travel, and why (or why not).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FreeSpace {
    /// Unused bytes: ascending, disjoint, not adjacent, on the 4 KiB grid, inside the disk.
    pub free: Vec<Extent>,
    /// Every volume that was found, in the order of the partition table.
    pub volumes: Vec<Volume>,
}

/// One volume of a disk and what was decided about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Place on the disk; of a logical volume, its first piece.
    pub extent: Extent,
    /// `partition 1`, `whole disk`, `vg0/root`.
    pub name: String,
    /// `ext4`, `ext3`, `ext2`, `xfs`, `ntfs`, `swap`, `lvm2`, another known kind, or `unknown`.
    pub kind: String,
    /// Bytes that are skipped here.
    pub skipped_bytes: u64,
    /// One plain sentence: what was skipped on what proof, or why everything is kept.
    pub reason: String,
}

/// Why a volume is kept, in the plain words of [`Volume::reason`].
#[derive(Debug, thiserror::Error)]
enum Keep {
    /// This volume alone.
    #[error("{0}")]
    Volume(String),
    /// A sleeping system's memory still knows of writes that the maps do not: keeps the whole disk.
    #[error("{0}")]
    Hibernated(String),
}

/// Shorthand for a reader's refusal.
fn keep<T>(why: impl Into<String>) -> Result<T, Keep> {
    Err(Keep::Volume(why.into()))
}

/// Refuses unless `ok`.
fn require(ok: bool, why: &str) -> Result<(), Keep> {
    if ok { Ok(()) } else { keep(why) }
}

/// Reads a disk's allocation maps. Never fails and never panics: what cannot be read or proven is kept,
/// with the reason.
pub fn map(disk: &dyn BlockRead) -> FreeSpace {
    let mut found = Found { free: Sink::default(), volumes: Vec::new(), hibernated: None };
    let whole = Extent { offset: 0, len: disk.len() };
    match partitions::list(disk) {
        Ok(parts) => {
            for part in parts {
                found.look_into(&View::part(disk, part.extent), part.name, true);
            }
        }
        Err(why) => found.note(whole, "whole disk".into(), "unknown", &why),
    }
    found.finish(disk.len())
}

/// What was decided so far.
struct Found {
    /// Free bytes in the disk's coordinates.
    free: Sink,
    volumes: Vec<Volume>,
    /// The volume on which a sleeping system was seen.
    hibernated: Option<String>,
}

impl Found {
    fn note(&mut self, extent: Extent, name: String, kind: &str, why: &Keep) {
        if matches!(why, Keep::Hibernated(_)) && self.hibernated.is_none() {
            self.hibernated = Some(name.clone());
        }
        if self.volumes.len() < VOLUMES_MAX {
            let reason = format!("kept: {why}");
            self.volumes.push(Volume { extent, name, kind: kind.into(), skipped_bytes: 0, reason });
        }
    }

    /// Decides about one volume; `outer` where it lies on the disk itself, so that it may hold LVM.
    fn look_into(&mut self, view: &View<'_>, name: String, outer: bool) {
        let Some(extent) = view.first_extent() else { return };
        let kind = match signatures::recognise(view) {
            Ok(kind) => kind,
            Err(why) => return self.note(extent, name, "unknown", &why),
        };
        let mut sink = Sink::default();
        let proven = match kind {
            Kind::Ext => ext4::map(view, &mut sink),
            Kind::Xfs => xfs::map(view, &mut sink),
            Kind::Ntfs => ntfs::map(view, &mut sink),
            Kind::Swap => swap::map(view, &mut sink),
            Kind::Lvm if outer => return self.look_into_lvm(view, extent, name),
            Kind::Lvm => keep("a physical volume inside another volume"),
            Kind::Other(_) | Kind::Unknown => keep("nothing here that can be proven free"),
        };
        let label = if kind == Kind::Ext { ext4::label(view) } else { kind.label() };
        match proven {
            Ok(proof) if self.volumes.len() < VOLUMES_MAX => {
                let skipped_bytes = self.free.take_over(sink, view);
                let reason = format!("skipped: {proof}");
                self.volumes.push(Volume { extent, name, kind: label.into(), skipped_bytes, reason });
            }
            Ok(_) => {}
            Err(why) => self.note(extent, name, label, &why),
        }
    }

    fn look_into_lvm(&mut self, view: &View<'_>, extent: Extent, name: String) {
        match lvm::volumes(view) {
            Ok(group) => {
                let why = format!("the volume group {} is looked into by its volumes", group.name);
                self.note(extent, name, "lvm2", &Keep::Volume(why));
                for volume in group.volumes {
                    let name = format!("{}/{}", group.name, volume.name);
                    match volume.view {
                        Ok(inside) => self.look_into(&inside, name, false),
                        Err(why) => self.note(extent, name, "lvm2", &why),
                    }
                }
            }
            Err(why) => self.note(extent, name, "lvm2", &why),
        }
    }

    fn finish(mut self, disk_len: u64) -> FreeSpace {
        if let Some(name) = &self.hibernated {
            for volume in &mut self.volumes {
                if volume.skipped_bytes > 0 {
                    volume.skipped_bytes = 0;
                    volume.reason = format!("kept: a sleeping system's memory image lies on {name}");
                }
            }
            return FreeSpace { free: Vec::new(), volumes: self.volumes };
        }
        FreeSpace { free: self.free.into_extents(disk_len), volumes: self.volumes }
    }
}
