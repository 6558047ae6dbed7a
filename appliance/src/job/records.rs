//! Records of sessions in RocksDB: the unfinished ones, so that a restart goes on with them, and the
//! history of each job. JSON values, because a field may be added at any release.
//!
//! Losing these records loses history, never data: a session without a record starts again at 0.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vbr_api::{JobSpec, Moment, Session, VmConfig};

use super::log::jobs_in;
use crate::database::{Batch, Database, DatabaseError, cf};
use crate::error::Problem;
use crate::limits::HISTORY_SESSIONS_MAX;

/// Where the jobs are kept whose missed objective was told of.
const RPO_MISSED: &[u8] = b"job/rpo-missed";
/// Before a job's name: when all of its disks were read and compared last.
const COMPARED: &str = "job/compared/";
/// Before a job's name: what its VM was at its last restore point.
const VM: &str = "job/vm/";

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
    /// The VM at that moment, where its host says.
    #[serde(default)]
    pub vm: Option<VmConfig>,
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

    /// When a job's disks were read and compared whole the last time, as far as is known.
    pub fn compared(&self, job: &str) -> Option<Moment> {
        let kept = self.0.get(cf::META, format!("{COMPARED}{job}").as_bytes()).ok().flatten()?;
        serde_json::from_slice(&kept).ok()
    }

    /// Keeps that; losing it costs a compare.
    pub fn note_compared(&self, job: &str, at: Moment) {
        let Ok(value) = serde_json::to_vec(&at) else { return };
        let mut batch = Batch::default();
        batch.put(cf::META, format!("{COMPARED}{job}").into_bytes(), value);
        if let Err(error) = self.0.write(batch, false) {
            tracing::debug!(%error, job, "when the disks were compared is not kept");
        }
    }

    /// The VM of a job at its last restore point, as far as is known.
    pub fn vm(&self, job: &str) -> Option<VmConfig> {
        let kept = self.0.get(cf::META, format!("{VM}{job}").as_bytes()).ok().flatten()?;
        serde_json::from_slice(&kept).ok()
    }

    /// Keeps that; losing it costs a note.
    pub fn note_vm(&self, job: &str, vm: Option<&VmConfig>) {
        let (key, mut batch) = (format!("{VM}{job}").into_bytes(), Batch::default());
        match vm.map(serde_json::to_vec) {
            Some(Ok(value)) => batch.put(cf::META, key, value),
            _ => batch.delete(cf::META, key),
        }
        if let Err(error) = self.0.write(batch, false) {
            tracing::debug!(%error, job, "what the VM was is not kept");
        }
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

    /// Forgets sessions that began before a moment, and of each job more than so many. Of jobs that are `kept` the
    /// newest one stays, and the newest one that sealed a restore point. How many went.
    pub fn prune(&self, before: Moment, most: usize, kept: &dyn Fn(&str) -> bool) -> Result<u64, Problem> {
        let before_ms = before.as_millisecond().max(0) as u64;
        let mut pruned = 0;
        for job in jobs_in(&self.0, cf::HISTORY).map_err(|e| database_problem(&e))? {
            let rows = self
                .0
                .scan_prefix(cf::HISTORY, &job_prefix(&job), None, 2 * HISTORY_SESSIONS_MAX)
                .map_err(|e| database_problem(&e))?;
            let sealed = |value: &[u8]| {
                serde_json::from_slice::<Session>(value).is_ok_and(|session| session.restore_point.is_some())
            };
            let newest_sealed = rows.iter().rposition(|(_, value)| sealed(value));
            let mut batch = Batch::default();
            for (n, (key, _)) in rows.iter().enumerate() {
                let needed = kept(&job) && (n + 1 == rows.len() || Some(n) == newest_sealed);
                let old = began_ms(&job, key) < before_ms;
                if !needed && (old || n + most < rows.len()) {
                    batch.delete(cf::HISTORY, key.clone());
                }
            }
            pruned += batch.len() as u64;
            self.0.write(batch, false).map_err(|e| database_problem(&e))?;
        }
        Ok(pruned)
    }

    /// Jobs whose missed objective was told of.
    pub fn missed(&self) -> Result<BTreeSet<String>, Problem> {
        let kept = self.0.get(cf::META, RPO_MISSED).map_err(|e| database_problem(&e))?;
        Ok(kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default())
    }

    /// Keeps them.
    pub fn keep_missed(&self, jobs: &BTreeSet<String>) -> Result<(), Problem> {
        let value = serde_json::to_vec(jobs).map_err(|e| encode_problem(&e))?;
        let mut batch = Batch::default();
        batch.put(cf::META, RPO_MISSED, value);
        self.0.write(batch, false).map_err(|e| database_problem(&e))
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

/// When the session of a key of the history began, milliseconds since 1970.
fn began_ms(job: &str, key: &[u8]) -> u64 {
    let at = job.len() + 1;
    key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn session(job: &str, began_s: i64, sealed: bool) -> Session {
        let spec: JobSpec =
            serde_json::from_value(serde_json::json!({ "name": job, "target": "dr", "disks": [] })).unwrap();
        let started_at = Moment::from_second(began_s).unwrap();
        let restore_point = sealed.then(|| "p".to_string());
        Session { started_at, restore_point, ..super::super::running::blank(&spec) }
    }

    #[test]
    fn pruning_keeps_what_the_agenda_rests_on() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(Database::open(dir.path(), 16 << 20).unwrap());
        for n in 0..10 {
            records.finish(&session("web", n, n == 3)).unwrap();
            records.finish(&session("gone", n, n == 3)).unwrap();
        }
        let kept = |job: &str| job == "web";
        let began = |job: &str| -> Vec<i64> {
            records.history(job).unwrap().iter().map(|session| session.started_at.as_second()).collect()
        };
        let pruned = records.prune(Moment::from_second(2).unwrap(), 5, &kept).unwrap();
        assert_eq!(began("web"), [3, 5, 6, 7, 8, 9], "two are old, two too many, one sealed");
        assert_eq!(began("gone"), [5, 6, 7, 8, 9]);
        assert_eq!(pruned, 9);
        records.prune(Moment::from_second(100).unwrap(), 5, &kept).unwrap();
        assert_eq!(began("web"), [3, 9]);
        assert!(began("gone").is_empty());
        assert_eq!(records.prune(Moment::from_second(100).unwrap(), 5, &kept).unwrap(), 0);
    }

    #[test]
    fn what_was_told_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(Database::open(dir.path(), 16 << 20).unwrap());
        assert!(records.missed().unwrap().is_empty());
        let jobs: BTreeSet<String> = ["web".to_string()].into();
        records.keep_missed(&jobs).unwrap();
        assert_eq!(records.missed().unwrap(), jobs);
    }
}
