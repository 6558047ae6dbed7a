//! The log of a job: what happened to it, in order, with times; and whoever is to be told of it.
//!
//! Entries are written where they happen, behind everything written before, and are on stable storage with the
//! next record of a session, at the latest with the one of its end. An entry that cannot be written is lost, and
//! holds up nobody. Owns the column family `job_log`: a key is the job's name, a zero, and a number that grows.
//! What is worth an entry is `story`'s decision and the callers'.
//!
//! Bounds: [`JOB_LOG_ENTRIES_MAX`] entries a job, fewer where many jobs have to share
//! [`JOB_LOG_ENTRIES_ALL_MAX`], the oldest go; texts of [`JOB_LOG_TEXT_BYTES_MAX`] bytes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vbr_api::{JobLogEntry, Moment, Session};

use super::story::{Line, changes};
use crate::config::NotifyEvent;
use crate::database::{Batch, Database, DatabaseError, cf};
use crate::limits::{JOB_LOG_ENTRIES_ALL_MAX, JOB_LOG_ENTRIES_MAX, JOB_LOG_TEXT_BYTES_MAX};
use crate::notify::Notifier;

/// However many jobs there are, each has so many.
const ENTRIES_MIN: usize = 100;
/// Rows of one step of a removal.
const STEP: usize = 512;

/// See the module.
pub struct JobLog {
    database: Arc<Database>,
    notifier: Arc<Notifier>,
    last: AtomicU64,
    /// Entries of each job; not counted yet where there is none.
    counts: Mutex<BTreeMap<String, Option<usize>>>,
}

impl JobLog {
    /// The log in this database.
    pub fn open(database: Arc<Database>, notifier: Arc<Notifier>) -> Arc<Self> {
        let log = Self { database, notifier, last: AtomicU64::new(0), counts: Mutex::default() };
        let known: Vec<String> = log.jobs().unwrap_or_default();
        log.counts().extend(known.into_iter().map(|job| (job, None)));
        Arc::new(log)
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Option<usize>>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened to a job.
    pub fn note(&self, job: &str, session: Option<&str>, line: Line) {
        let at = Moment::now();
        let seq = self.next(at);
        let mut text = line.text;
        if text.len() > JOB_LOG_TEXT_BYTES_MAX {
            let end = (0..=JOB_LOG_TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
        let entry = JobLogEntry {
            seq,
            at,
            job: job.to_string(),
            session: session.map(str::to_string),
            level: line.level.to_string(),
            event: line.event.to_string(),
            text,
        };
        if let Err(why) = self.write(&entry) {
            tracing::debug!(job, why, "an entry of the job's log is lost");
        }
    }

    /// A session changed: what that means is written down, and told.
    pub fn changed(&self, before: &Session, after: &Session) {
        for line in changes(before, after) {
            if let Some(event) = line.tell {
                self.tell(event, event.as_str(), &after.job, &line.text, Some(after));
            }
            self.note(&after.job, Some(&after.session), line);
        }
    }

    /// Tells those who want to hear of it; never waits.
    pub fn tell(&self, event: NotifyEvent, name: &str, job: &str, text: &str, session: Option<&Session>) {
        self.notifier.tell(event, name, job, text, session);
    }

    /// The newest `lines` entries of a job behind `after`, oldest first; of one session where it is named.
    pub fn read(
        &self,
        job: &str,
        session: Option<&str>,
        after: u64,
        lines: usize,
    ) -> Result<Vec<JobLogEntry>, DatabaseError> {
        let from = key(job, after.saturating_add(1));
        let rows =
            self.database.scan_prefix(cf::JOB_LOG, &prefix(job), Some(&from), 2 * JOB_LOG_ENTRIES_MAX)?;
        let entries = rows.iter().filter_map(|(_, value)| serde_json::from_slice::<JobLogEntry>(value).ok());
        let mut entries: Vec<JobLogEntry> =
            entries.filter(|entry| session.is_none_or(|id| entry.session.as_deref() == Some(id))).collect();
        entries.drain(..entries.len().saturating_sub(lines));
        Ok(entries)
    }

    /// Forgets entries from before a moment; how many.
    pub fn prune(&self, before: Moment) -> Result<u64, DatabaseError> {
        let mut pruned = 0;
        for job in self.jobs()? {
            let gone = self.remove_before(&job, before.as_microsecond().max(0) as u64, usize::MAX)?;
            pruned += gone as u64;
            if gone > 0 {
                self.counts().insert(job, None); // Counted again when it is written.
            }
        }
        let left = self.jobs()?;
        self.counts().retain(|job, _| left.contains(job));
        Ok(pruned)
    }

    /// Numbers are microseconds, so that they say when, and never go back.
    fn next(&self, at: Moment) -> u64 {
        let now = at.as_microsecond().max(0) as u64;
        let grown = |last: u64| Some(now.max(last.saturating_add(1)));
        let last = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grown);
        last.map_or(now, |last| now.max(last.saturating_add(1)))
    }

    fn write(&self, entry: &JobLogEntry) -> Result<(), String> {
        let value = serde_json::to_vec(entry).map_err(|error| error.to_string())?;
        let mut batch = Batch::new();
        batch.put(cf::JOB_LOG, key(&entry.job, entry.seq), value);
        self.database.write(batch, false).map_err(|error| error.to_string())?;
        self.bound(&entry.job).map_err(|error| error.to_string())
    }

    /// One more entry: the oldest go where there are too many.
    fn bound(&self, job: &str) -> Result<(), DatabaseError> {
        let (count, most) = {
            let mut counts = self.counts();
            let count = counts.entry(job.to_string()).or_insert(None);
            *count = count.map(|count| count + 1);
            let count = *count;
            (count, (JOB_LOG_ENTRIES_ALL_MAX / counts.len().max(1)).clamp(ENTRIES_MIN, JOB_LOG_ENTRIES_MAX))
        };
        let count = match count {
            Some(count) => count,
            None => {
                self.database.scan_prefix(cf::JOB_LOG, &prefix(job), None, 4 * JOB_LOG_ENTRIES_MAX)?.len()
            }
        };
        // A tenth at a time, so that not every entry costs a removal.
        let gone =
            if count > most { self.remove_before(job, u64::MAX, count - most + most / 10)? } else { 0 };
        self.counts().insert(job.to_string(), Some(count - gone.min(count)));
        Ok(())
    }

    /// Removes a job's oldest entries: those numbered below `end`, and no more than so many.
    fn remove_before(&self, job: &str, end: u64, most: usize) -> Result<usize, DatabaseError> {
        let mut gone = 0;
        while gone < most {
            let rows = self.database.scan_prefix(cf::JOB_LOG, &prefix(job), None, STEP.min(most - gone))?;
            let end = key(job, end);
            let mut batch = Batch::new();
            for (key, _) in rows.iter().take_while(|(key, _)| *key < end) {
                batch.delete(cf::JOB_LOG, key.clone());
            }
            let removed = batch.len();
            self.database.write(batch, false)?;
            gone += removed;
            if removed < STEP.min(rows.len()) || rows.is_empty() {
                break;
            }
        }
        Ok(gone)
    }

    /// Jobs that have a log.
    fn jobs(&self) -> Result<Vec<String>, DatabaseError> {
        jobs_in(&self.database, cf::JOB_LOG)
    }
}

/// The jobs that a column family has rows of, whose keys begin with the job's name and a zero.
pub(super) fn jobs_in(database: &Database, cf: &str) -> Result<Vec<String>, DatabaseError> {
    let (mut jobs, mut from) = (Vec::new(), Vec::new());
    loop {
        let first = database.scan_prefix(cf, b"", Some(&from), 1)?;
        let Some((key, _)) = first.first() else { return Ok(jobs) };
        let name: Vec<u8> = key.iter().copied().take_while(|byte| *byte != 0).collect();
        from = [name.as_slice(), &[1]].concat();
        jobs.extend(String::from_utf8(name));
    }
}

fn prefix(job: &str) -> Vec<u8> {
    [job.as_bytes(), &[0]].concat()
}

fn key(job: &str, seq: u64) -> Vec<u8> {
    [prefix(job).as_slice(), &seq.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::info("due", text)
    }

    #[test]
    fn entries_come_back_in_order_also_after_a_restart_and_by_session() {
        let dir = tempfile::tempdir().unwrap();
        {
            let log = JobLog::open(Database::open(dir.path(), 16 << 20).unwrap(), Notifier::nobody());
            for n in 0..5 {
                log.note("web", Some(if n % 2 == 0 { "even" } else { "odd" }), line(&format!("{n}")));
            }
            log.note("web2", None, line("another job"));
            log.note("web", None, line(&"ä".repeat(5000)));
        }
        let log = JobLog::open(Database::open(dir.path(), 16 << 20).unwrap(), Notifier::nobody());
        let texts = |session, after, lines| -> Vec<String> {
            let read = log.read("web", session, after, lines).unwrap();
            read.into_iter().map(|entry| entry.text.chars().take(9).collect()).collect()
        };
        assert_eq!(texts(None, 0, 100), ["0", "1", "2", "3", "4", "äääääääää"]);
        assert_eq!(texts(Some("odd"), 0, 100), ["1", "3"]);
        assert_eq!(texts(None, 0, 2), ["4", "äääääääää"]);
        let all = log.read("web", None, 0, 100).unwrap();
        assert!(all.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].at <= pair[1].at));
        assert!(all[5].text.len() <= JOB_LOG_TEXT_BYTES_MAX);
        assert_eq!(texts(None, all[3].seq, 100), ["4", "äääääääää"]);
        assert_eq!(log.jobs().unwrap(), ["web", "web2"]);
    }

    #[test]
    fn a_log_is_bounded_by_number_and_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let log = JobLog::open(Database::open(dir.path(), 16 << 20).unwrap(), Notifier::nobody());
        log.note("gone", None, line("of a job that was removed"));
        for n in 0..JOB_LOG_ENTRIES_MAX + 50 {
            log.note("web", None, line(&n.to_string()));
        }
        let all = log.read("web", None, 0, usize::MAX).unwrap();
        assert!(all.len() <= JOB_LOG_ENTRIES_MAX && all.len() > JOB_LOG_ENTRIES_MAX / 2, "{}", all.len());
        assert_eq!(all.last().unwrap().text, (JOB_LOG_ENTRIES_MAX + 49).to_string(), "the newest stay");
        let middle = all[all.len() - 10].at;
        assert!(log.prune(middle).unwrap() > 0);
        let left = log.read("web", None, 0, usize::MAX).unwrap();
        assert!(left.len() >= 10 && left.iter().all(|entry| entry.at >= middle), "{}", left.len());
        assert!(log.read("gone", None, 0, 10).unwrap().is_empty());
        assert_eq!(log.jobs().unwrap(), ["web"]);
    }
}
