//! Housekeeping: background workers, what happened to jobs, notifications.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{Moment, Warning};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Waits for its next run.
    Idle,
    Running,
    /// Runs, and has made no progress for longer than it may.
    Stuck,
    /// Its last run failed; it is tried again.
    Failed,
    /// Switched off in the configuration.
    Disabled,
}

impl TaskState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Stuck => "stuck",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
        }
    }
}

/// A background worker: `GET /v1/tasks`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Task {
    pub name: String,
    /// One sentence.
    pub what: String,
    /// `source`, `target` or `site`: for which side of replication it works.
    pub role: String,
    pub state: TaskState,
    /// When the last run began.
    #[schema(value_type = Option<String>)]
    pub last_run_at: Option<Moment>,
    /// How long it took, or takes.
    pub duration_ms: Option<u64>,
    /// When it runs next by itself; none: when there is work for it.
    #[schema(value_type = Option<String>)]
    pub next_run_at: Option<Moment>,
    /// Runs since this vbrd started.
    pub runs: u64,
    /// Runs in a row that failed.
    pub failures: u32,
    /// Why a run failed last, although later ones may have succeeded.
    pub last_error: Option<String>,
    #[schema(value_type = Option<String>)]
    pub last_error_at: Option<Moment>,
    /// How far the run is, where it can tell.
    pub progress: Option<TaskProgress>,
    /// What it did since this vbrd started.
    pub counters: BTreeMap<String, u64>,
    /// What its last run found that needs attention.
    pub finding: Option<Warning>,
    /// `POST /v1/tasks/{name}/run` starts a run.
    pub runnable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskProgress {
    pub done: u64,
    pub total: u64,
}

/// What happened to a job: `GET /v1/jobs/{name}/log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobLogEntry {
    /// Grows from entry to entry.
    pub seq: u64,
    #[schema(value_type = String)]
    pub at: Moment,
    pub job: String,
    pub session: Option<String>,
    /// `info`, `warning` or `error`.
    pub level: String,
    /// What kind of thing happened: `due`, `ordered`, `started`, `waiting`, `sealed`, `failed`, …
    pub event: String,
    pub text: String,
}

/// Which entries of a job's log: the newest of those that fit, oldest first.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct JobLogQuery {
    /// Of this session alone.
    pub session: Option<String>,
    /// At most so many; 100 unless said.
    pub lines: Option<usize>,
    /// With a greater `seq` than this.
    pub after: Option<u64>,
}

/// Who is told of what: `GET /v1/notify`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NotifyHook {
    pub name: String,
    /// `success`, `warning`, `failure`, `stall`, `rpo-missed`.
    pub on: Vec<String>,
    /// Of these jobs; of all where it is empty.
    pub jobs: Vec<String>,
    pub webhook: Option<String>,
    /// Empty for none.
    pub command: Vec<String>,
    /// Since this vbrd started.
    pub sent: u64,
    pub failed: u64,
    /// Because too many waited.
    pub dropped: u64,
    /// That wait.
    pub queued: u64,
    #[schema(value_type = Option<String>)]
    pub last_sent_at: Option<Moment>,
    pub last_error: Option<String>,
}

/// What a webhook gets as its body, and a command on its standard input.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Notification {
    pub schema: u32,
    /// `success`, `warning`, `failure`, `stall`, `rpo-missed`, `rpo-recovered` or `test`.
    pub event: String,
    #[schema(value_type = String)]
    pub at: Moment,
    pub site: String,
    pub job: Option<String>,
    /// One sentence.
    pub text: String,
    /// As it was then.
    pub session: Option<crate::Session>,
}
