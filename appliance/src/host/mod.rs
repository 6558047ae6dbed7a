//! Stages 1 and 7: where disks live (drivers).
//!
//! A [`SourceHost`] lists VMs, and gives a [`VmSnapshot`]: readers of all its disks at one moment, or
//! the means to find out that there was no one moment. Drivers own whatever a snapshot needs (clones,
//! exports); the session that ordered it releases it. [`HostRegistry`] owns `hosts.json`.
//!
//! A torn restore point must be impossible: a disk is read from a reflink clone where the file system
//! has them, else it is watched, and any change between the first and the last read is reported.
//! Not its job: what is read, where it goes, when. Everything blocks. Bounds: `limits::DISKS_MAX` disks
//! a VM, [`DIRECTORY_ENTRIES_MAX`] entries a listed directory, [`HOSTS_MAX`] hosts.

mod claim;
mod clones;
mod disk;
mod error;
mod identity;
mod libvirt;
mod listing;
mod mark;
mod nbd;
mod one_moment;
mod qemu;
mod registry;
mod state_file;
pub mod target;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_mount;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use vbr_api::{DiskSpec, Power, Vm, VmConfig};

pub use clones::{CloneConfig, CloneStore};
pub use disk::DiskHost;
pub use error::HostError;
pub use qemu::Monitors;
pub use registry::{FAILOVER, HostConfig, HostRegistry, LOCAL};

use crate::block::{BlockRead, Extent};
use mark::Mark;

/// Entries looked at in a directory of images.
pub const DIRECTORY_ENTRIES_MAX: usize = 10_000;
/// Hosts in `hosts.json`.
pub const HOSTS_MAX: usize = 256;

/// What a session wants to read.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    /// The job's name.
    pub job: String,
    /// The session's id: letters and digits.
    pub session: String,
    /// The VM, where the job names one.
    pub vm: Option<String>,
    /// In order; the index is the disk's number.
    pub disks: Vec<DiskSpec>,
}

/// How a disk is held still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// A reflink clone: nobody writes to it.
    Clone,
    /// The disk itself: a change while it is read is detected.
    Watch,
    /// A moment that the hypervisor holds: it copies aside what the guest overwrites.
    Fleece,
    /// A server elsewhere, which says that nobody writes.
    Export,
    /// The disk as it is: nobody holds it still, and a change is not seen.
    Live,
}

impl SnapshotKind {
    /// The word in the management API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Watch => "watch",
            Self::Fleece => "fleece",
            Self::Export => "export",
            Self::Live => "live",
        }
    }
}

/// What was written between an earlier session's moment and that of a snapshot, or more than that: the session, and
/// extents that ascend and lie apart from each other.
pub type Changes = (String, Arc<[Extent]>);

/// One disk of a snapshot.
pub struct DiskSnapshot {
    /// What was asked for.
    pub spec: DiskSpec,
    /// Its content.
    pub reader: Arc<dyn BlockRead>,
    /// How it is held still.
    pub kind: SnapshotKind,
    /// What was written since, by whoever keeps a record of it.
    pub changes: Vec<Changes>,
    /// What is read, and what it looked like when the snapshot was taken.
    watched: Option<(File, Mark)>,
    /// The clone's file, removed by `release`, and the free space its file system must keep.
    clone: Option<(PathBuf, u64)>,
}

impl DiskSnapshot {
    /// A disk that somebody else holds still (a driver without clones or marks of its own).
    pub fn still(spec: DiskSpec, reader: Arc<dyn BlockRead>) -> Self {
        Self { spec, reader, kind: SnapshotKind::Clone, changes: Vec::new(), watched: None, clone: None }
    }

    /// What was written since the moment of this session; none where nobody knows.
    pub fn changes_since(&self, session: &str) -> Option<Arc<[Extent]>> {
        self.changes.iter().find(|(of, _)| of == session).map(|(_, changes)| changes.clone())
    }
}

/// What holds a moment outside of vbrd, for as long as a session needs it. Dropped, it stays where it can, so that the
/// session can go on.
pub trait Hold: Send + Sync {
    /// The session is over; `sealed`: with a restore point of this moment.
    fn release(&self, sealed: bool);

    /// Says so where its file system has fallen below the floor of free space.
    fn space_low(&self) -> Option<String>;
}

/// All disks of a VM at one moment.
pub struct VmSnapshot {
    /// In the order of the request.
    pub disks: Vec<DiskSnapshot>,
    /// Names the moment: equal only where every byte is the same.
    pub identity: String,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// False where it cannot be proven that they show one moment: clones were made one after another while a disk changed,
    /// or nobody holds a disk still.
    pub one_moment: bool,
    /// `direct` or `network`.
    pub transport_mode: &'static str,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Where the moment is held elsewhere.
    pub hold: Option<Box<dyn Hold>>,
    /// What the VM was then besides its disks, where the host knows: its disks are those of the request. None where the
    /// snapshot was opened again: what it was then is known to whoever took it.
    pub config: Option<VmConfig>,
}

impl VmSnapshot {
    /// After everything was read: paths of disks that changed since the snapshot (clones do not).
    pub fn changed_during_read(&self) -> Result<Vec<String>, HostError> {
        let mut changed = Vec::new();
        for disk in &self.disks {
            let Some((file, then)) = &disk.watched else { continue };
            let now = Mark::now(file).map_err(|error| HostError::io(&disk.spec.path, error))?;
            if now != *then {
                changed.push(disk.spec.path.clone());
            }
        }
        Ok(changed)
    }

    /// Says so where a file system with clones on it has fallen below its floor of free space: what is
    /// overwritten while a clone lives costs space. Cheap; to be asked now and then during a session.
    pub fn space_low(&self) -> Option<String> {
        let clones = self.disks.iter().filter_map(|disk| disk.clone.as_ref());
        let low = clones.filter_map(|(path, floor)| clones::below_floor(path.parent()?, *floor)).next();
        low.or_else(|| self.hold.as_ref()?.space_low())
    }

    /// Removes clones, lets a hypervisor go. Called when the session is over (`sealed`: with a restore point); a
    /// snapshot that is merely dropped keeps them, so that the session can go on after a restart.
    pub fn release(self, sealed: bool) {
        for disk in self.disks {
            let clone = disk.clone.clone();
            drop(disk);
            if let Some((path, _)) = clone {
                clones::remove_clone(&path);
            }
        }
        if let Some(hold) = self.hold {
            hold.release(sealed);
        }
    }
}

/// A host whose VMs can be replicated. Blocking.
pub trait SourceHost: Send + Sync {
    /// Its name in the registry.
    fn name(&self) -> &str;

    /// `disk`, `qemu`, `libvirt` or `nbd`.
    fn driver(&self) -> &'static str;

    /// What can be replicated.
    fn list(&self) -> Result<Vec<Vm>, HostError>;

    /// The disks of a VM, in their order.
    fn resolve(&self, vm: &str) -> Result<Vec<DiskSpec>, HostError>;

    /// A new snapshot.
    fn snapshot(&self, request: &SnapshotRequest) -> Result<VmSnapshot, HostError>;

    /// The snapshot of an earlier session again, if it is provably the same moment.
    fn reopen(&self, request: &SnapshotRequest, identity: &str) -> Result<Option<VmSnapshot>, HostError>;

    /// Shuts a VM down so that its disks can still be read, starts it again, or switches it off. Done when it returns.
    fn power(&self, vm: &str, _power: Power, _within: Duration) -> Result<(), HostError> {
        Err(HostError::Invalid {
            what: format!("VM {}/{vm}", self.name()),
            why: format!("the driver {} cannot switch VMs on and off", self.driver()),
            next_step: "shut the VM down yourself, run its job once more, then vbrctl failover start at the target",
        })
    }
}
