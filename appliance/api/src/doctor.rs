//! What commonly goes wrong, looked at one by one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    /// Could not be looked at, or does not matter here.
    Skipped,
    Warning,
    /// vbr does not do its work until somebody acts.
    Critical,
}

impl CheckState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at: `congestion`, `datastore default`, `disk /srv/vm/web.img`, …
    pub name: String,
    pub state: CheckState,
    /// What was found.
    pub found: String,
    /// What to do; empty where there is nothing to do.
    pub next_step: String,
}

impl Check {
    pub fn new(
        name: impl Into<String>,
        state: CheckState,
        found: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), state, found: found.into(), next_step: next_step.into() }
    }

    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, CheckState::Ok, found, "")
    }

    pub fn skipped(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, CheckState::Skipped, found, "")
    }

    pub fn warning(name: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(name, CheckState::Warning, found, next)
    }

    pub fn critical(name: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(name, CheckState::Critical, found, next)
    }
}

/// `GET /v1/doctor`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    pub checks: Vec<Check>,
}

/// `POST /v1/doctor/disks`: whether vbrd can read these.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DisksRequest {
    /// Paths of images and block devices; 256 at most.
    pub disks: Vec<String>,
}
