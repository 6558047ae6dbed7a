//! Starting replicas: what an operator orders, and what runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Firmware, Moment};

/// Where a replica stands between replication and the day it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// No restore point yet.
    #[default]
    Empty,
    /// The first restore point is being filled.
    Seeding,
    /// Can be started.
    Ready,
    /// Can be started; a session fills a new restore point.
    Syncing,
    /// A restore point runs for a test, away from everybody.
    TestFailover,
    /// The replica is the VM: it runs, or may be started, here; no session may replicate into it.
    Failover,
    /// The same for good.
    Permanent,
    /// It still is the VM, and goes back to the site that it came from.
    FailingBack,
    /// The VM runs at the site that it came from again; what is here is off, and kept.
    Failback,
}

impl ReplicaState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Seeding => "seeding",
            Self::Ready => "ready",
            Self::Syncing => "syncing",
            Self::TestFailover => "test_failover",
            Self::Failover => "failover",
            Self::Permanent => "permanent",
            Self::FailingBack => "failing_back",
            Self::Failback => "failback",
        }
    }
}

/// `POST /v1/failovers/start` and `/v1/failovers/test`. What is not said is as at the source, as far as the restore point tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverRequest {
    /// `[SITE/]REPLICA@ID` or `[SITE/]REPLICA@latest`
    pub point: String,
    #[serde(default)]
    pub cpus: Option<u32>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    #[serde(default)]
    pub firmware: Option<Firmware>,
    /// `virtio`, `scsi`, `sata` or `ide`, for all disks.
    #[serde(default)]
    pub bus: Option<String>,
    /// Networks of this site for those of the source: the first that fits.
    #[serde(default)]
    pub networks: Vec<NetworkMap>,
}

/// `FROM=TO`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkMap {
    /// The network's name at the source; none: any.
    #[serde(default)]
    pub from: Option<String>,
    /// A bridge of this machine, or `isolated`: the card is there, and nobody can be reached.
    pub to: String,
}

/// `POST /v1/failovers/planned`: the VM is moved here in order, and nothing is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlannedRequest {
    /// Its `point` names the replica alone (`[SITE/]REPLICA`): the newest restore point is made on the way.
    pub start: FailoverRequest,
    /// For the guest to shut down; five minutes unless said.
    #[serde(default)]
    pub shutdown_ms: Option<u64>,
}

/// What is ordered of a VM at its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// The guest is asked to shut down; its disks can be read until it is switched off.
    ShutDown,
    /// What was shut down so starts again.
    On,
    /// Its process ends.
    Off,
}

/// `POST /v1/vms/power`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// `HOST/VM`
    pub vm: String,
    pub power: Power,
    /// For a guest to shut down; five minutes unless said.
    #[serde(default)]
    pub within_ms: Option<u64>,
}

/// What a test must show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestRequest {
    pub start: FailoverRequest,
    /// Text that must appear on the serial console.
    #[serde(default)]
    pub expect: Option<String>,
    /// Its guest agent must answer. One that does suffices where no text is expected.
    #[serde(default)]
    pub agent: bool,
    /// For the probes, from the start on; five minutes unless said. Without probes: the VM must run for so long (10 s unless said).
    #[serde(default)]
    pub within_ms: Option<u64>,
    /// Leave it running; `failover undo` ends it.
    #[serde(default)]
    pub keep: bool,
}

/// A replica's state, and the VM that was started from it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Failover {
    pub replica: String,
    pub site: String,
    pub state: ReplicaState,
    /// Grows with every failover: replication of an earlier one is refused.
    pub generation: u64,
    /// Restore point that it was started from.
    pub point: Option<String>,
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Moment>,
    pub vm: Option<StartedVm>,
    /// How it goes back to the site that it came from.
    #[serde(default)]
    pub failback: Option<Failback>,
    /// What an operator should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How a VM goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failback {
    #[schema(value_type = String)]
    pub since: Moment,
    /// The job of this site that carries it.
    pub job: String,
    /// `HOST/VM` that it is there.
    pub vm: String,
    /// Restore point that it was ordered to be started from there; none: it does not run there yet.
    pub point: Option<String>,
}

/// `POST /v1/failbacks/start`: the VM goes back to the site that it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailbackRequest {
    /// Its `point` names the replica alone (`[SITE/]REPLICA`); networks are those of the site that it goes back to.
    pub start: FailoverRequest,
    /// For the guest to shut down; five minutes unless said.
    #[serde(default)]
    pub shutdown_ms: Option<u64>,
}

/// A VM that runs from a replica.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct StartedVm {
    pub name: String,
    /// `running`, `paused`, `off`, or qemu's own word.
    pub run_state: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// From the order until qemu ran, milliseconds; of the last start.
    pub start_ms: u64,
    /// Written since, and kept apart from the restore point.
    pub written_bytes: u64,
    /// Sockets and files of it: monitor, screen (VNC), guest agent, serial console.
    pub directory: String,
    /// Where `commit` is still making it independent of the restore points.
    #[serde(default)]
    pub flatten: Option<Flatten>,
}

/// Progress of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flatten {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootTest {
    pub point: String,
    #[schema(value_type = String)]
    pub at: Moment,
    pub ok: bool,
    /// What failed, or what was seen.
    pub why: String,
    pub start_ms: u64,
    /// Until the last probe was met.
    pub duration_ms: u64,
    /// The end of what the guest said on its serial console.
    #[serde(default)]
    pub console: String,
    /// Its screen at the end, a PNG file of this site.
    #[serde(default)]
    pub screenshot: Option<String>,
}
