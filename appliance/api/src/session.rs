//! Sessions: one run of a job each.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DiskFormat, DiskVolume, ErrorBody, Moment, Stall, WaitsFor};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Waits for a slot.
    Pending,
    /// Waits for the link or the target and goes on by itself.
    Waiting,
    Running,
    /// Stopped cleanly at a durable cursor (shutdown, end of a window).
    Suspended,
    Succeeded,
    /// Sealed, but something needs a look (an inconsistent point, for one).
    Warning,
    Failed,
    Cancelled,
}

impl SessionState {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Warning | Self::Failed | Self::Cancelled)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Succeeded => "succeeded",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One run of a job: `GET /v1/sessions/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub session: String,
    pub job: String,
    pub peer: String,
    pub state: SessionState,
    #[schema(value_type = String)]
    pub started_at: Moment,
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Moment>,
    pub disks: Vec<SessionDisk>,
    pub bytes: SessionBytes,
    pub chunks: SessionChunks,
    /// Wire rate over the last seconds, bits a second.
    pub rate_wire_bps: u64,
    pub eta_ms: Option<u64>,
    pub stage_load_percent: StageLoad,
    /// The busiest stage; none before anything moved.
    pub bottleneck: Option<String>,
    /// `full` (no base), `incremental`, or `full-compare` (base rebuilt from the target).
    pub mode: String,
    /// `direct` or `network`.
    pub transport_mode: String,
    /// True where only what the source host knows to be written since the last restore point is read.
    #[serde(default)]
    pub tracked: bool,
    /// Why everything is read, where it is.
    #[serde(default)]
    pub full_read_reason: Option<String>,
    /// How many times the session went on after a cut or a restart.
    pub resumed: u32,
    /// ID of the sealed restore point.
    pub restore_point: Option<String>,
    /// False where a disk changed while it was read, or disks were not taken at one moment.
    pub consistent: Option<bool>,
    /// What an operator should know although the session goes on or succeeded.
    pub warnings: Vec<String>,
    /// How the VM's configuration differs from that of the job's last restore point.
    #[serde(default)]
    pub vm_changes: Vec<String>,
    /// The last decision on compression; none before a batch was made.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// Which try after a failure this is; 0 for none.
    #[serde(default)]
    pub retry_number: u32,
    /// The slot it waits for; none where it has its slots.
    #[serde(default)]
    pub waits_for: Option<WaitsFor>,
    /// Where it stands still; none while it makes progress.
    #[serde(default)]
    pub stalled: Option<Stall>,
    pub error: Option<ErrorBody>,
}

/// How hard the source works on what it sends, and why; chosen batch by batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Compression {
    /// `fast`, `plain`, `balanced`, `best`, `harder`, `hardest` or `utmost`.
    pub effort: String,
    /// zstd level.
    pub level: i32,
    /// Plain bytes in a batch.
    pub batch_bytes: u64,
    /// Whether bases at the other site are looked for.
    pub bases: bool,
    /// One sentence.
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionDisk {
    pub path: String,
    pub format: DiskFormat,
    pub virtual_bytes: u64,
    /// Bytes of the disk that are settled: read, compared and, where changed, sent.
    pub processed_bytes: u64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub sent_bytes: u64,
    /// `clone` (a reflink clone), `watch` (a change while reading is detected) or `fleece` (a moment that the
    /// hypervisor holds).
    pub snapshot: String,
    /// Volumes inside it; only with `--free-space auto`.
    #[serde(default)]
    pub volumes: Vec<DiskVolume>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionBytes {
    /// Virtual size of all disks.
    #[serde(rename = "virtual")]
    pub virtual_: u64,
    pub read: u64,
    /// Plain bytes that differ from the base restore point.
    pub changed: u64,
    pub zero: u64,
    pub freed: u64,
    /// Changed bytes that the target already had.
    pub deduplicated: u64,
    pub delta_base: u64,
    /// Batches, recipes and control messages of this session, before Noise and Yamux.
    pub sent_payload: u64,
    pub sent_wire: u64,
    pub received_wire: u64,
    /// Payload that crossed the link more than once.
    pub resent: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionChunks {
    pub total: u64,
    pub unchanged: u64,
    pub known: u64,
    pub delta: u64,
    pub literal: u64,
    /// Of `delta` and `literal` (and references to them): sent before the target had asked.
    #[serde(default)]
    pub ahead: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageLoad {
    pub source_host: u8,
    pub source_mover: u8,
    pub source_accelerator: u8,
    pub network: u8,
    pub target_accelerator: u8,
    pub target_mover: u8,
    pub target_host: u8,
}
