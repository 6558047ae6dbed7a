//! The site: status, peers, hosts, VMs, configuration.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DiskFormat, DiskSpec, Moment, Session};

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub site: String,
    pub peer_id: String,
    pub version: String,
    #[schema(value_type = String)]
    pub started_at: Moment,
    /// Multiaddrs that others can dial.
    pub listeners: Vec<String>,
    pub peers: Vec<Peer>,
    /// Sessions that are not over.
    pub sessions: Vec<Session>,
    pub jobs: Vec<JobLag>,
    pub datastores: Vec<DatastoreStatus>,
    /// How many replicas are kept here.
    #[serde(default)]
    pub replicas: u64,
    /// Sessions of other sites that fill a restore point here.
    #[serde(default)]
    pub receiving: Vec<Receiving>,
    /// Anything an operator should look at.
    pub warnings: Vec<Warning>,
}

/// A session of another site, as its target sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receiving {
    /// The source site's name here.
    pub site: String,
    pub replica: String,
    /// When its channel was opened; a session that went on after a cut has a new one.
    #[schema(value_type = String)]
    pub since: Moment,
}

/// How far behind a job's last restore point is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobLag {
    pub job: String,
    pub enabled: bool,
    /// Age of the moment that the last sealed restore point shows; none before the first.
    pub rpo_lag_ms: Option<u64>,
    pub last_state: Option<crate::SessionState>,
    /// Two runs were due since the last restore point: the recovery point objective is missed.
    #[serde(default)]
    pub overdue: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DatastoreStatus {
    pub name: String,
    pub path: String,
    /// `reflink` or `overlay`.
    pub backend: String,
    pub size_bytes: u64,
    pub free_bytes: u64,
    pub reserve_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// `warning` or `critical`.
    pub level: String,
    pub what: String,
    pub next_step: String,
}

/// A paired peer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    pub name: String,
    pub peer_id: String,
    pub addresses: Vec<String>,
    pub connected: bool,
    /// The peer's version of vbr; none while not connected.
    #[serde(default)]
    pub software: Option<String>,
    /// `tcp` or `quic`; none while not connected.
    pub transport: Option<String>,
    /// Congestion control of the link: `bbr`, `cubic`, …
    pub congestion_control: Option<String>,
    pub rtt_ms: Option<u64>,
    /// Round trip of the last heartbeat: what control takes beside whatever the link carries. Measured
    /// every second while sessions run; of several links the slowest.
    #[serde(default)]
    pub control_rtt_ms: Option<u64>,
    /// The longest one since the link came up.
    #[serde(default)]
    pub control_rtt_max_ms: Option<u64>,
    /// Connections that are up; several where one does not fill the line.
    #[serde(default)]
    pub links: u32,
    /// Bits a second that throttling lets this site send to it now; none: no rule applies.
    #[serde(default)]
    pub limit_bps: Option<u64>,
    /// Bytes on the wire since this vbrd started, as the kernel counts TCP payload.
    pub sent_wire: u64,
    pub received_wire: u64,
    pub domain: String,
    /// `replicate`, `manage`, `read`: what the peer may do here.
    pub grants: Vec<String>,
    /// Refused: its pairing was ended here, or its place given to another.
    #[serde(default)]
    pub revoked: bool,
    /// What this site may do there, as the peer last said.
    #[serde(default)]
    pub granted: Vec<String>,
    /// What it may fill here: its own bounds, else the site's.
    #[serde(default)]
    pub quota: PeerQuota,
    /// What it fills now; only in `GET /v1/peers` and `GET /v1/peers/{name}`.
    #[serde(default)]
    pub used: Option<PeerUse>,
    #[schema(value_type = String)]
    pub paired_at: Moment,
    #[schema(value_type = Option<String>)]
    pub last_seen_at: Option<Moment>,
    /// Why the last attempt to connect failed.
    pub last_error: Option<String>,
}

/// What a peer may fill at this site; none is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PeerQuota {
    /// Bytes of all its replicas together.
    pub bytes: Option<u64>,
    /// Restore points of all its replicas together.
    pub points: Option<u32>,
}

/// What a peer fills at this site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerUse {
    /// As the quota counts: what several restore points share counts once.
    pub bytes: u64,
    pub points: u64,
}

/// `POST /v1/peers/{name}/grant`: what is not named stays as it is; 0 takes the peer's own bound away, and
/// the site's holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrantRequest {
    pub quota_bytes: Option<u64>,
    pub max_points: Option<u32>,
    /// Whether a console there may give orders here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manage: Option<bool>,
    /// Whether its jobs may fill replicas here. The site that joined may from the first; the one that invited it may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicate: Option<bool>,
}

/// `POST /v1/peers/invite`
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// Life of the code; 10 minutes unless said.
    pub valid_ms: Option<u64>,
    /// Dedup domain the new peer joins; `default` unless said.
    pub domain: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Invite {
    pub code: String,
    #[schema(value_type = String)]
    pub expires_at: Moment,
}

/// `POST /v1/peers/join`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub code: String,
    /// Local name of the new peer; its site name unless said.
    pub name: Option<String>,
}

/// A host where VMs and disks live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub name: String,
    /// `disk` (images and block devices), `qemu` (running VMs, by their QMP monitors), `libvirt` (its VMs) or `nbd` (disks
    /// behind NBD servers).
    pub driver: String,
    /// Directories whose images (`disk`) or monitors (`qemu`: `NAME.qmp`) are listed as VMs; `libvirt`: the one for sockets
    /// and scratch images.
    #[serde(default)]
    pub directories: Vec<String>,
    /// `nbd`: servers, exports, or `VM=URI`; `libvirt`: libvirts of this machine (`qemu:///system` where there is none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uris: Vec<String>,
    /// `nbd`: certificates or keys for `nbds://`, in qemu's layout (`ca-cert.pem`, `client-cert.pem`, `client-key.pem`;
    /// `keys.psk`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_dir: Option<String>,
}

/// What can be replicated: a VM, or a lone disk under its file's stem.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    pub host: String,
    pub name: String,
    pub disks: Vec<DiskSpec>,
    /// Virtual size of all disks; none where a disk cannot be read.
    pub virtual_bytes: Option<u64>,
    pub formats: Vec<DiskFormat>,
    /// Jobs that replicate it.
    pub jobs: Vec<String>,
}

/// `GET /v1/config`: the effective configuration, as TOML and where each part came from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigView {
    /// The file that was read, if any.
    pub file: Option<String>,
    pub toml: String,
}
