//! Target hosts: VMs that are started from replicas.
//!
//! A VM is a process of its own that outlives vbrd, found again by the monitor in its directory. This driver knows how it is
//! started, asked, stopped and made independent of the images below its disks; whether that is right now is for `failover`
//! to say. Everything blocks. Bounds: those of the monitor, [`START_TIME`] for a start.
//!
//! Not its job: images and records (the datastore's), networks (bridges of this machine are used, never made).

mod agent;
mod arguments;
mod launch;
mod monitor;
mod start;
mod unit;

use std::path::PathBuf;
use std::time::Duration;

use vbr_api::{Flatten, VmConfig};

pub use agent::answers as agent_answers;
pub use arguments::{check_bridge, check_config};
pub use launch::obstacle;
pub use monitor::TargetVm;
pub use start::start;
pub use unit::{become_tap, become_vm};

use crate::config::Accelerator;
use crate::nbd::ImageSpec;

/// The monitor of the VM in this directory.
pub fn monitor_in(directory: &std::path::Path) -> PathBuf {
    directory.join(arguments::MONITOR)
}

/// How the jobs are named that make disks of a VM independent.
pub const FLATTEN: &str = "flatten-";

/// For qemu to read its images and open its monitor.
pub const START_TIME: Duration = Duration::from_secs(60);

/// What is to be started.
#[derive(Clone, Debug)]
pub struct StartSpec {
    /// For people.
    pub name: String,
    /// Where its sockets and logs go; there already.
    pub directory: PathBuf,
    /// Images, in order, each with its declared chain.
    pub disks: Vec<ImageSpec>,
    /// Everything else of it.
    pub vm: VmConfig,
    /// Bridge of each network card; none: it reaches nobody.
    pub bridges: Vec<Option<String>>,
    /// How it runs.
    pub accelerator: Accelerator,
}

/// What a VM does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// There is no process.
    Off,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// Another word of qemu's.
    Other(String),
}

impl RunState {
    /// The word in the management API.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Off => "off",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Other(word) => word,
        }
    }
}

/// How far a VM is independent of what lies below its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flattening {
    /// So much is copied.
    Runs(Flatten),
    /// Nothing lies below any more.
    Done,
}
