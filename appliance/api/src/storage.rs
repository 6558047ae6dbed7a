//! The target: replicas, restore points, the global cache.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{KeepCalendar, Moment, VmConfig};

/// A VM's copy at this site.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// Name within its source site; the job's name unless said.
    pub name: String,
    /// The source site's name here.
    pub site: String,
    pub datastore: String,
    pub backend: String,
    pub path: String,
    pub points: u64,
    pub virtual_bytes: u64,
    /// Space its files take on the datastore (shared extents counted once or more, as `du` does).
    pub stored_bytes: u64,
    pub latest: Option<String>,
    #[schema(value_type = Option<String>)]
    pub latest_at: Option<Moment>,
    /// Session that is filling a new point now.
    pub building: Option<String>,
    pub keep: Option<u32>,
    /// What else its job asks to be kept.
    #[serde(default)]
    pub keep_calendar: KeepCalendar,
    /// Why each restore point is kept, oldest first; only where one replica is shown.
    #[serde(default)]
    pub kept: Vec<KeptPoint>,
    /// Restore points that would retire once one more is sealed.
    #[serde(default)]
    pub retires_next: Vec<String>,
}

/// A restore point and why it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptPoint {
    pub id: String,
    /// Empty: it retires as soon as nothing stands in the way.
    pub kept_because: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PointState {
    Sealed,
    Pinned,
    /// A verification found blocks that differ from the manifest.
    Damaged,
    /// Being removed.
    Retiring,
}

impl PointState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Pinned => "pinned",
            Self::Damaged => "damaged",
            Self::Retiring => "retiring",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestorePoint {
    pub id: String,
    pub replica: String,
    pub site: String,
    pub session: String,
    pub state: PointState,
    /// When the source took its snapshot.
    #[schema(value_type = String)]
    pub snapshot_at: Moment,
    #[schema(value_type = String)]
    pub sealed_at: Moment,
    pub base: Option<String>,
    /// Crash-consistent at one moment; false for a disk that changed while it was read.
    pub consistent: bool,
    pub disks: Vec<PointDisk>,
    /// Plain bytes written to this point.
    pub changed_bytes: u64,
    #[schema(value_type = Option<String>)]
    pub verified_at: Option<Moment>,
    pub verified_ok: Option<bool>,
    /// When it was last tested by starting it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub booted_at: Option<Moment>,
    #[serde(default)]
    pub booted_ok: Option<bool>,
    /// When its pin lapses; none where it is not pinned, or for good.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub pinned_until: Option<Moment>,
    /// Why it is kept; empty where it retires as soon as nothing stands in the way.
    #[serde(default)]
    pub kept_because: Vec<String>,
    /// It would retire once one more is sealed.
    #[serde(default)]
    pub retires_next: bool,
    /// The VM as it was then, where its host says; only where one point is shown.
    #[serde(default)]
    pub vm: Option<VmConfig>,
    /// How that differs from the point before; only where one point is shown.
    #[serde(default)]
    pub vm_changes: Vec<String>,
}

/// `POST /v1/restore-points/pin`: at most one of both; for good without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// Milliseconds from now.
    #[serde(default)]
    pub for_ms: Option<u64>,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub until: Option<Moment>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PointDisk {
    pub index: u16,
    /// Path of the disk at its source.
    pub source_path: String,
    pub virtual_bytes: u64,
    pub root: String,
    /// File that holds it here and the file's format.
    pub file: String,
    pub format: String,
    /// Volumes inside it whose free space was looked at (`--free-space auto`).
    #[serde(default)]
    pub volumes: Vec<crate::DiskVolume>,
}

/// Answer of `POST /v1/restore-points/verify` and `/v1/replicas/verify`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    pub point: String,
    pub ok: bool,
    pub read_bytes: u64,
    pub chunks: u64,
    pub bad_chunks: u64,
    /// The first bad places, at most 100.
    pub bad: Vec<BadChunk>,
    pub duration_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BadChunk {
    pub disk: u16,
    pub offset: u64,
    pub why: String,
}

/// Answer of `DELETE /v1/restore-points` and `DELETE /v1/replicas`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    pub removed: Vec<String>,
    /// What would have kept it, and was overridden by force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
}

/// `GET /v1/cache`
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CacheStats {
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub packs: u64,
    pub chunks: u64,
    /// Lookups answered since this vbrd started.
    pub lookups: u64,
    pub hits: u64,
    /// Chunks read and verified.
    pub reads: u64,
    /// Records that failed their check and were dropped.
    pub bad_records: u64,
    pub evicted_packs: u64,
    pub footer_hits: u64,
    pub footer_misses: u64,
    pub disk_locations: u64,
    /// Chunks that came from two branches or more since they are counted: what the filter that sources
    /// have a copy of knows.
    #[serde(default)]
    pub shared_chunks: u64,
    /// Its size.
    #[serde(default)]
    pub shared_filter_bytes: u64,
}
