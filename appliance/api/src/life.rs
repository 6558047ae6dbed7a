//! The life of a site: a change of its key pair, a peer in the place of another, its state in a file.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/rotation`: how far a change of this site's key pair has got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rotation {
    /// The identity in use.
    pub peer_id: String,
    /// The one that takes its place; none: no change is under way.
    pub next_peer_id: Option<String>,
    /// Peers that know of it and take either.
    pub told: Vec<String>,
    /// Peers that do not know of it yet; the change waits for them.
    pub waiting: Vec<RotationWait>,
}

/// A peer that a change of the key pair waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RotationWait {
    pub peer: String,
    pub why: String,
}

/// `POST /v1/peers/{name}/replace`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceRequest {
    /// The peer that takes the place.
    pub with: String,
}

/// `POST /v1/state/export`
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StateExport {
    pub passphrase: String,
}

/// `POST /v1/state/import`
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StateImport {
    pub passphrase: String,
    /// The file, base64.
    pub state: String,
    /// Although this site has peers or jobs.
    #[serde(default)]
    pub replace: bool,
}

/// What an import brings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateSummary {
    /// The site that it was made at.
    pub site: String,
    pub peer_id: String,
    pub exported_at: String,
    pub peers: u32,
    pub jobs: u32,
    pub hosts: u32,
    pub rules: u32,
}
