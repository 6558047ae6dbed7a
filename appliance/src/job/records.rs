//! Records of sessions in RocksDB: the unfinished ones, so that a restart goes on with them, and the
//! history of each job. JSON values, because a field may be added at any release.
//!
//! Losing these records loses history, never data: a session without a record starts again at 0.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vbr_api::{JobSpec, Session};

use crate::database::{Batch, Database, DatabaseError, cf};
use crate::error::Problem;
use crate::limits::HISTORY_SESSIONS_MAX;

/// A session that is not over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// As the console sees it.
    pub session: Session,
    /// The moment it is bound to; none before the snapshot.
    pub snapshot_identity: Option<String>,
    /// When the snapshot was taken, milliseconds since 1970.
    pub snapshot_at_ms: i64,
    /// Seal although a disk changed.
    pub allow_live: bool,
    /// Somebody ordered it: windows do not end it.
    #[serde(default)]
    pub ordered: bool,
    /// The definition it began with, which it goes on with whatever becomes of its job's; none in records of
    /// earlier releases.
    #[serde(default)]
    pub spec: Option<JobSpec>,
}

/// Where records live.
#[derive(Clone)]
pub struct Records(Arc<Database>);

impl Records {
    /// Records in this database.
    pub fn new(database: Arc<Database>) -> Self {
        Self(database)
    }

    /// Keeps an unfinished session, durably.
    pub fn store(&self, record: &SessionRecord) -> Result<(), Problem> {
        let value = serde_json::to_vec(record).map_err(|e| encode_problem(&e))?;
        let mut batch = Batch::default();
        batch.put(cf::SESSION, record.session.session.as_bytes(), value);
        self.0.write(batch, true).map_err(|e| database_problem(&e))
    }

    /// Moves a session that is over into its job's history.
    pub fn finish(&self, session: &Session) -> Result<(), Problem> {
        let value = serde_json::to_vec(session).map_err(|e| encode_problem(&e))?;
        let mut batch = Batch::default();
        batch.delete(cf::SESSION, session.session.as_bytes());
        batch.put(cf::HISTORY, history_key(session), value);
        for old in self.surplus(&session.job)? {
            batch.delete(cf::HISTORY, old);
        }
        self.0.write(batch, true).map_err(|e| database_problem(&e))
    }

    /// Sessions that were not over when vbrd stopped.
    pub fn unfinished(&self) -> Result<Vec<SessionRecord>, Problem> {
        let rows = self.0.scan_prefix(cf::SESSION, b"", None, 4096).map_err(|e| database_problem(&e))?;
        Ok(rows.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
    }

    /// A job's sessions, oldest first.
    pub fn history(&self, job: &str) -> Result<Vec<Session>, Problem> {
        let rows = self
            .0
            .scan_prefix(cf::HISTORY, &job_prefix(job), None, HISTORY_SESSIONS_MAX + 16)
            .map_err(|e| database_problem(&e))?;
        Ok(rows.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
    }

    /// All sessions of all jobs that are over, oldest first within a job.
    pub fn all_history(&self) -> Result<Vec<Session>, Problem> {
        let rows = self.0.scan_prefix(cf::HISTORY, b"", None, 100_000).map_err(|e| database_problem(&e))?;
        Ok(rows.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
    }

    fn surplus(&self, job: &str) -> Result<Vec<Vec<u8>>, Problem> {
        let rows = self
            .0
            .scan_prefix(cf::HISTORY, &job_prefix(job), None, HISTORY_SESSIONS_MAX + 16)
            .map_err(|e| database_problem(&e))?;
        let excess = (rows.len() + 1).saturating_sub(HISTORY_SESSIONS_MAX);
        Ok(rows.into_iter().take(excess).map(|(key, _)| key).collect())
    }
}

fn job_prefix(job: &str) -> Vec<u8> {
    [job.as_bytes(), &[0]].concat()
}

fn history_key(session: &Session) -> Vec<u8> {
    let at = session.started_at.as_millisecond().max(0) as u64;
    [job_prefix(&session.job).as_slice(), &at.to_be_bytes(), session.session.as_bytes()].concat()
}

fn encode_problem(error: &serde_json::Error) -> Problem {
    Problem::new("internal", "a session record cannot be written", error.to_string(), "report this")
}

/// A database error as the operator sees it.
pub fn database_problem(error: &DatabaseError) -> Problem {
    Problem::new(
        "database",
        "the database in the state directory failed",
        error.to_string(),
        "check the disk of the state directory and restart vbrd; a damaged database is set aside and rebuilt",
    )
}
