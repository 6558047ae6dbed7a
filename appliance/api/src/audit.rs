//! The audit log: who ordered what, when, and what came of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::Moment;

/// `GET /v1/audit`, one an order that changed something or tried to, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Counts the entries of a site, over restarts.
    pub sequence: u64,
    #[schema(value_type = String)]
    pub at: Moment,
    pub caller: AuditCaller,
    /// The peer that it was handed on to (`vbrctl --site`); none: carried out here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    pub method: String,
    /// `/v1/jobs/{name}/run`; none where there is no such route.
    pub route: Option<String>,
    /// As it was asked, with the query.
    pub path: String,
    /// What of the order's body is worth knowing and no secret.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub details: Map<String, Value>,
    /// `done`, the code of the problem, or `abandoned`: the caller left before the answer.
    pub outcome: String,
    /// Of the answer, as in HTTP; 0 where there was none.
    pub status: u16,
    pub took_ms: u64,
}

/// Who gave an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditCaller {
    /// Of the process at the other end of the socket, as the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Its name here; of a remote caller what its site says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The peer that the order came from, by its name here; none: this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_id: Option<String>,
}
