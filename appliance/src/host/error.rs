//! What can go wrong with hosts and disks, and what to do next. Pure.

use std::io;

use crate::error::Problem;
use crate::nbd::NbdError;

/// An error of a host or of one of its disks.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Nothing lies at the path.
    #[error("{path} does not exist")]
    Missing {
        /// The disk.
        path: String,
    },
    /// It may not be opened.
    #[error("vbrd may not read {path}")]
    Permission {
        /// The disk.
        path: String,
    },
    /// It is not something that has blocks.
    #[error("{path} is {what}, not a disk image or a block device")]
    NotADisk {
        /// The path.
        path: String,
        /// `a directory`, …
        what: &'static str,
    },
    /// It has no bytes.
    #[error("{path} is empty")]
    Empty {
        /// The disk.
        path: String,
    },
    /// Paths are absolute, for vbrd has no directory of its own that a user would mean.
    #[error("{path:?} is not an absolute path")]
    Relative {
        /// The path.
        path: String,
    },
    /// Another program holds a qcow2 image, and there is no clone to read instead.
    #[error("{path} is in use by another program (a running VM?): {why}")]
    InUse {
        /// The image.
        path: String,
        /// What qemu said.
        why: String,
    },
    /// An image could not be opened through qemu.
    #[error("{path}: {source}")]
    Image {
        /// The image.
        path: String,
        /// Why.
        source: Box<NbdError>,
    },
    /// Anything else the system says.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A hypervisor refused or failed.
    #[error("{what}: {why}")]
    Hypervisor {
        /// The VM.
        what: String,
        /// What it said.
        why: String,
        /// What to do.
        next_step: &'static str,
    },
    /// An NBD server refused or failed.
    #[error("{what}: {why}")]
    Server {
        /// The disk.
        what: String,
        /// What was said.
        why: String,
        /// What to do.
        next_step: &'static str,
    },
    /// No host of that name.
    #[error("no host {name:?} is known here")]
    NoSuchHost {
        /// The name.
        name: String,
    },
    /// No VM of that name.
    #[error("host {host} has no VM {vm:?}")]
    NoSuchVm {
        /// The host.
        host: String,
        /// The VM.
        vm: String,
    },
    /// No monitor of that name: a VM that is off has none.
    #[error("there is no monitor {vm}.qmp in {directories}: the VM is off, or its monitor lies elsewhere")]
    NoMonitor {
        /// The host.
        host: String,
        /// The VM.
        vm: String,
        /// Where it was looked for.
        directories: String,
    },
    /// Several VMs of that name.
    #[error("host {host} has several VMs {vm:?}: {paths}")]
    AmbiguousVm {
        /// The host.
        host: String,
        /// The VM.
        vm: String,
        /// Where they lie.
        paths: String,
    },
    /// The order itself is wrong.
    #[error("{what}: {why}")]
    Invalid {
        /// What was ordered.
        what: String,
        /// Why it cannot be.
        why: String,
        /// What to do.
        next_step: &'static str,
    },
    /// It exists with another definition, or must stay.
    #[error("{what}: {why}")]
    Conflict {
        /// What was ordered.
        what: String,
        /// Why it cannot be.
        why: String,
        /// What to do.
        next_step: &'static str,
    },
}

impl HostError {
    /// Sorts an error of the system on a disk.
    pub fn io(path: impl Into<String>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Permission { path },
            _ => Self::Io { path, source },
        }
    }

    /// Sorts an error of the qemu tools on an image.
    pub fn image(path: impl Into<String>, source: NbdError) -> Self {
        let path = path.into();
        match source {
            NbdError::Locked { why, .. } => Self::InUse { path, why },
            NbdError::File { source, .. } => Self::io(path, source),
            source => Self::Image { path, source: Box::new(source) },
        }
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let why = error.to_string();
        match error {
            HostError::Missing { path } => Problem::new(
                "disk_missing",
                format!("disk {path}"),
                why,
                "check the path (it is a path on this machine), then try again",
            ),
            HostError::Permission { path } => Problem::not_allowed(
                format!("disk {path}"),
                why,
                "give the user of vbrd read access to the file and search access to its directories, then try again",
            ),
            HostError::NotADisk { path, .. } => Problem::invalid(
                format!("disk {path}"),
                why,
                "name the image file or the block device itself",
            ),
            HostError::Empty { path } => Problem::invalid(
                format!("disk {path}"),
                why,
                "name another disk; a removable device needs its medium first",
            ),
            HostError::Relative { path } => {
                Problem::invalid(format!("disk {path}"), why, "write the whole path, from / on")
            }
            HostError::InUse { path, .. } => Problem::new(
                "disk_in_use",
                format!("disk {path}"),
                why,
                "shut the VM down, or keep its disks on XFS or btrfs, where a clone can be read beside it",
            )
            .retry(),
            HostError::Image { path, source } => image_problem(path, why, &source),
            HostError::Io { path, source } => Problem::io(format!("disk {path}"), &source),
            HostError::Hypervisor { what, why, next_step } => {
                Problem::new("hypervisor", what, why, next_step).retry()
            }
            HostError::Server { what, why, next_step } => {
                Problem::new("nbd_server", what, why, next_step).retry()
            }
            HostError::NoSuchHost { name } => {
                Problem::not_found(format!("host {name}"), "vbrctl host list shows the hosts")
            }
            HostError::NoSuchVm { host, vm } => Problem::not_found(
                format!("VM {host}/{vm}"),
                "vbrctl vm list shows the VMs; a host lists the images in its directories",
            ),
            HostError::NoMonitor { host, vm, .. } => Problem::new(
                "not_found",
                format!("VM {host}/{vm}"),
                why,
                "start the VM (the disks of one that is off are read with the driver `disk`); vbrctl vm list shows what runs",
            ),
            HostError::AmbiguousVm { host, vm, .. } => Problem::invalid(
                format!("VM {host}/{vm}"),
                why,
                "rename one of them, or name the disks with --disk",
            ),
            HostError::Invalid { what, why, next_step } => Problem::invalid(what, why, next_step),
            HostError::Conflict { what, why, next_step } => Problem::conflict(what, why, next_step),
        }
    }
}

fn image_problem(path: String, why: String, source: &NbdError) -> Problem {
    let what = format!("disk {path}");
    match source {
        NbdError::ToolMissing(_) => Problem::new(
            "tool_missing",
            what,
            why,
            "install the packages qemu-utils and qemu-system-common, then try again",
        ),
        NbdError::Header { .. } | NbdError::Path { .. } => {
            Problem::invalid(what, why, "correct the image or how it is declared, then try again")
        }
        NbdError::Timeout { .. } => {
            Problem::new("image", what, why, "look at the load of this machine, then try again").retry()
        }
        _ => Problem::new("image", what, why, "qemu-img check tells whether the image is sound").retry(),
    }
}
