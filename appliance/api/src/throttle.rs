//! Throttling: how much a site may send, to whom, and when.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Moment;

/// A rule: `POST /v1/throttle`. It bounds all that it applies to together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThrottleSpec {
    pub name: String,
    /// TCP payload that is sent, bits a second.
    pub rate_bps: u64,
    /// For one peer; either this or `network`, or neither: for all peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// For links whose other end lies in this network: `10.1.0.0/16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// `Mon..Fri`, `Sat,Sun`; every day unless said. Days and hours are those of the site's time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<String>,
    /// `08:00-18:00`, several with commas; the whole day unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
}

/// A rule as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Throttle {
    #[serde(flatten)]
    pub spec: ThrottleSpec,
    /// True where its days and hours include this moment.
    pub in_force: bool,
    /// When that changes; none where it never does.
    #[schema(value_type = Option<String>)]
    pub changes_at: Option<Moment>,
    /// True where it comes from the configuration file (`wire.rate`).
    #[serde(default)]
    pub configured: bool,
}

/// What the rules come to for a connected peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ThrottledPeer {
    pub peer: String,
    /// Bits a second that may be sent to it; none: no rule applies now.
    pub limit_bps: Option<u64>,
    /// The rule that this limit comes from: the lowest of those that apply.
    pub rule: Option<String>,
}

/// `GET /v1/throttle`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Throttles {
    /// The rules.
    pub items: Vec<Throttle>,
    /// Connected peers.
    pub peers: Vec<ThrottledPeer>,
}
