//! Pruning the history of jobs and their logs, and seeing that a recovery point objective is missed.
//!
//! Two workers of the job manager. Pruning forgets by age and by number, and keeps of each job its newest session and
//! the newest one that sealed a restore point: agenda and lags rest on them. A missed objective is told once, and
//! once more when a restore point is there again; what was told is kept over restarts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vbr_api::{JobLag, Moment};

use super::manager::JobManager;
use super::story::Line;
use crate::config::NotifyEvent;
use crate::worker::{Outcome, Pass, Plan, Role, Spec};

/// Between two looks at the history.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// Between two looks at the jobs' lags.
const RPO_INTERVAL: Duration = Duration::from_secs(5);

impl JobManager {
    /// Starts both workers.
    pub(super) fn tend_history(self: &Arc<Self>) {
        let (workers, tasks, stop) = (&self.parts.workers, &self.parts.tasks, &self.parts.stop);
        let what = "forgets old sessions and old entries of job logs";
        let worker = workers.register(Spec::new("history", Role::Source, what));
        let manager = self.clone();
        let plan = Plan::after(Duration::from_secs(60));
        tasks.spawn(worker.drive(stop.clone(), plan, move |pass| {
            manager.prune(pass)?;
            Ok(Outcome::again_in(PRUNE_INTERVAL))
        }));
        let what = "tells of jobs that missed their recovery point objective";
        let worker = workers.register(Spec::new("rpo-watch", Role::Source, what));
        let manager = self.clone();
        tasks.spawn(worker.drive(stop.clone(), Plan::after(RPO_INTERVAL), move |_| {
            manager.watch_objectives()?;
            Ok(Outcome::again_in(RPO_INTERVAL))
        }));
    }

    fn prune(&self, pass: &Pass) -> Result<(), String> {
        let keep = self.parts.history;
        let span = jiff::SignedDuration::try_from(keep.keep).unwrap_or(jiff::SignedDuration::MAX);
        let before = Moment::now().checked_sub(span).unwrap_or(Moment::UNIX_EPOCH);
        let jobs: BTreeSet<String> = self.lock().jobs.keys().cloned().collect();
        let kept = |job: &str| jobs.contains(job);
        let sessions = self.parts.records.prune(before, keep.sessions, &kept);
        pass.worker().count("sessions", sessions.map_err(|problem| problem.to_string())?);
        pass.worker().beat();
        // The log of a job that is gone stays as long as its sessions do.
        let entries = self.parts.log.prune(before);
        pass.worker().count("log_entries", entries.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Tells of what changed since the last look.
    fn watch_objectives(&self) -> Result<(), String> {
        let told = self.parts.records.missed().map_err(|problem| problem.to_string())?;
        let (missed, news) = news(&told, &self.lags());
        for (job, text, recovered) in &news {
            let (name, line) = match recovered {
                false => ("rpo-missed", Line::error("rpo-missed", text.as_str())),
                true => ("rpo-recovered", Line::info("rpo-recovered", text.as_str())),
            };
            self.parts.log.note(job, None, line);
            self.parts.log.tell(NotifyEvent::RpoMissed, name, job, text, None);
        }
        if missed != told {
            self.parts.records.keep_missed(&missed).map_err(|problem| problem.to_string())?;
        }
        Ok(())
    }
}

/// Jobs whose objective is missed now; and, for those that are new among them or not among them any more, what to
/// say and whether it is good.
fn news(told: &BTreeSet<String>, lags: &[JobLag]) -> (BTreeSet<String>, Vec<(String, String, bool)>) {
    let missed: BTreeSet<String> = lags.iter().filter(|lag| lag.overdue).map(|lag| lag.job.clone()).collect();
    let mut news = Vec::new();
    for lag in lags {
        let minutes = lag.rpo_lag_ms.map(|ms| ms / 60_000);
        match (told.contains(&lag.job), lag.overdue) {
            (false, true) => {
                let since = minutes.map_or("it has none".to_string(), |minutes| {
                    format!("the last one shows how the disks were {minutes} minutes ago")
                });
                let text = format!(
                    "job {} missed its recovery point objective: two runs were due and none brought a restore point; {since}",
                    lag.job
                );
                news.push((lag.job.clone(), text, false));
            }
            // One that was disabled has not recovered; nobody asks for it any more.
            (true, false) if lag.enabled => {
                news.push((
                    lag.job.clone(),
                    format!("job {} has a recent restore point again", lag.job),
                    true,
                ));
            }
            _ => {}
        }
    }
    (missed, news)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(job: &str, overdue: bool, enabled: bool) -> JobLag {
        JobLag { job: job.into(), enabled, rpo_lag_ms: Some(600_000), last_state: None, overdue }
    }

    #[test]
    fn each_miss_is_told_once_and_its_end_once() {
        let none = BTreeSet::new();
        let (missed, first) = news(&none, &[lag("web", true, true), lag("db", false, true)]);
        assert_eq!(first.len(), 1);
        assert!(first[0].1.contains("10 minutes ago") && !first[0].2, "{first:?}");
        let (missed, again) = news(&missed, &[lag("web", true, true), lag("db", false, true)]);
        assert!(again.is_empty(), "{again:?}");
        let (left, back) = news(&missed, &[lag("web", false, true)]);
        assert!(left.is_empty() && back.len() == 1 && back[0].2, "{back:?}");
        let (left, quiet) = news(&missed, &[lag("web", false, false)]);
        assert!(left.is_empty() && quiet.is_empty(), "{quiet:?}");
        assert!(news(&missed, &[]).1.is_empty(), "the job is gone");
    }
}
