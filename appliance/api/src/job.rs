//! Jobs, plans and the source's backup repository.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Moment, SessionState};

/// Declared, never probed: a guest could write a qcow2 header into a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

impl DiskFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Absolute path of a file or block device.
    pub path: String,
    pub format: DiskFormat,
}

/// What is done with space that the file systems inside a disk have freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FreeSpace {
    /// It travels like everything else.
    #[default]
    Keep,
    /// It reads as zeroes in the replica, where the file system's maps are proven consistent for the
    /// snapshot.
    Auto,
}

impl FreeSpace {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Auto => "auto",
        }
    }
}

/// A volume inside a disk, and what became of its free space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskVolume {
    /// `partition 1`, `whole disk`, `vg0/root`.
    pub name: String,
    /// `ext4`, `xfs`, `ntfs`, `swap`, … or `unknown`.
    pub kind: String,
    /// Bytes that did not travel.
    pub skipped_bytes: u64,
    /// What was skipped on what proof, or why it was kept.
    pub reason: String,
}

/// When a job runs by itself: at most one of `every_ms`, `at`, `after`, `continuous`; never without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// From start to start, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// A calendar expression in systemd's syntax.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// After each success of this job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Again as soon as it ended.
    #[serde(default)]
    pub continuous: bool,
    /// The hours in which it may run: `20:00-06:00`, `Mon..Fri 20:00-06:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
}

/// The newest restore point of each of so many periods that have one; 0 asks for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeepCalendar {
    pub daily: u32,
    /// ISO weeks.
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

impl KeepCalendar {
    /// True where nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who goes first where sessions wait for a slot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

impl Priority {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// How often a job that failed is tried again, where that can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Tries after the first; 0 for none.
    pub count: u32,
    /// Before the first of them; doubled before each one after, up to an hour (or this, where it is longer).
    pub pause_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { count: 3, pause_ms: 300_000 }
    }
}

/// A job's definition: `POST /v1/jobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    pub name: String,
    /// `HOST/VM`; either this or `disks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Disks of the VM that are left out: their paths, or the last part of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Peer, or `PEER/DATASTORE`.
    pub target: String,
    /// Restore points the target is asked to keep; the target's minimum age wins over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// And the newest of each of so many days, weeks, months and years.
    #[serde(default, skip_serializing_if = "KeepCalendar::is_empty")]
    pub keep_calendar: KeepCalendar,
    /// `keep`, or `auto`: free space inside the disks need not travel.
    #[serde(default)]
    pub free_space: FreeSpace,
    /// Bits a second that its sessions may send, besides what throttling rules say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bps: Option<u64>,
    /// When it runs by itself.
    #[serde(default)]
    pub schedule: Schedule,
    /// Who goes first where sessions wait for a slot.
    #[serde(default)]
    pub priority: Priority,
    /// What follows a failure.
    #[serde(default)]
    pub retry: Retry,
    /// What at the target its first run starts from: a replica of this site there, or `PATH[,format=qcow2]` of an image
    /// beneath one of the target's seed directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// The replica of this site at the target that it goes on with, where that is not the one of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    #[serde(default = "enabled_by_default")]
    pub enabled: bool,
}

impl JobSpec {
    /// Its replica at the target.
    pub fn replica(&self) -> &str {
        self.map.as_deref().unwrap_or(&self.name)
    }
}

fn enabled_by_default() -> bool {
    true
}

/// `GET /v1/jobs/{name}`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    #[serde(flatten)]
    pub spec: JobSpec,
    #[schema(value_type = String)]
    pub created_at: Moment,
    /// The session that runs now.
    pub running: Option<String>,
    pub last_session: Option<String>,
    pub last_state: Option<SessionState>,
    #[schema(value_type = Option<String>)]
    pub last_success_at: Option<Moment>,
    pub rpo_lag_ms: Option<u64>,
    /// When it starts, or goes on, by itself.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub next_run_at: Option<Moment>,
    /// The next try after a failure.
    #[serde(default)]
    pub pending_retry: Option<PendingRetry>,
}

/// A try that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingRetry {
    /// Which one, from 1.
    pub number: u32,
    pub of: u32,
    #[schema(value_type = String)]
    pub at: Moment,
}

/// The slot that a pending session waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitsFor {
    /// `host local`, `link dr`, `datastore dr/fast` or `this site`.
    pub resource: String,
    /// Its place among those that wait for it, from 1.
    pub place: u32,
}

/// A session that makes no progress although its link is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stall {
    /// `source_host`, `source_mover`, `source_accelerator`, `network` or `target`.
    pub stage: String,
    /// The last progress.
    #[schema(value_type = String)]
    pub since: Moment,
}

/// `PATCH /v1/jobs/{name}`: what changes of a definition.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobEdit {
    /// Fields of the definition as a merge patch (RFC 7396): what is not named stays, `null` takes the default.
    #[schema(value_type = Object)]
    pub change: serde_json::Map<String, serde_json::Value>,
    /// Disks may be taken out of the job: later restore points do not have them.
    #[serde(default)]
    pub drop_disks: bool,
}

/// `POST /v1/jobs/{name}/run`
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Seal even if a disk changed while it was read; the point is marked inconsistent.
    #[serde(default)]
    pub allow_live: bool,
}

/// `GET /v1/jobs/{name}/plan`: a dry run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    pub job: String,
    pub mode: String,
    pub virtual_bytes: u64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub zero_bytes: u64,
    /// Changed bytes the target says it already has.
    pub known_bytes: u64,
    /// With 95 % confidence the true figure is no further from `known_bytes` than this; 0 where it is exact.
    #[serde(default)]
    pub known_error_bytes: u64,
    /// `asked`: of every chunk; `estimated`: of a sample.
    #[serde(default)]
    pub known_from: String,
    /// Changed bytes the target has never seen.
    pub unseen_bytes: u64,
    /// Estimate from compressing a sample.
    pub send_bytes: u64,
    /// At the rate of the job's last session; none before the first.
    pub duration_ms: Option<u64>,
    /// Restore points that would retire.
    pub retires: Vec<String>,
}

/// What the source knows of a job's replica: `GET /v1/repositories/{job}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    pub job: String,
    pub peer: String,
    pub disks: Vec<RepositoryDisk>,
    /// The restore point that the manifests describe; none before the first.
    pub restore_point: Option<String>,
    /// `ok`, `empty` or `damaged`.
    pub state: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RepositoryDisk {
    pub path: String,
    pub virtual_bytes: u64,
    pub root: String,
    pub pages: u64,
}

/// Answer of `POST /v1/repositories/{job}/verify` and `…/rebuild`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RepositoryReport {
    pub job: String,
    /// `ok`, `damaged`, `differs` (from the target's last point), `rebuilt`, `empty`.
    pub state: String,
    pub pages_checked: u64,
    pub pages_bad: u64,
    /// Bytes of manifest that crossed the link.
    pub received_bytes: u64,
    pub restore_point: Option<String>,
}
