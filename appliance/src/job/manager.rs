//! The job manager: definitions, running sessions, history. What the console's orders come down to.
//!
//! Owns the table of jobs and of sessions that are not over. At most one session a job; how many run at
//! once is for the slots to say, the others are pending.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{
    DiskSpec, Job, JobLag, JobLogEntry, JobLogQuery, JobSpec, Moment, PendingRetry, Session, SessionState,
    Warning,
};

use super::ahead::Gates;
use super::definitions::{Definition, Definitions, check};
use super::log::JobLog;
use super::parts::{Ceilings, Parts, SourceStores};
use super::records::{Records, SessionRecord, database_problem};
use super::refresh::Refreshes;
use super::scheduler::seed;
use super::session::SessionHandle;
use super::slots::Slots;
use super::snapshot::{check_exclusions, resolve};
use super::story::Line;
use crate::database::Database;
use crate::error::Problem;
use crate::host::{HostRegistry, SourceHost};
use crate::limits::{BATCHES_PACKED_MAX, COMPRESSORS_MAX, JOB_LOG_ENTRIES_MAX};
use crate::schedule::agenda::Agenda;
use crate::schedule::window::Window;
use crate::wire::Wire;

/// Whoever waits for a suspended session looks again after this long.
const SUSPENDED_POLL: Duration = Duration::from_secs(1);
/// Entries of a job's log, where nobody says how many.
const LOG_LINES: usize = 100;

pub(super) struct State {
    pub(super) jobs: BTreeMap<String, Definition>,
    /// Sessions that run, by id.
    pub(super) running: BTreeMap<String, Arc<SessionHandle>>,
    /// Sessions that go on later, by job.
    pub(super) suspended: BTreeMap<String, SessionRecord>,
    /// The last session of each job that is over, or suspended.
    pub(super) last: BTreeMap<String, Session>,
    pub(super) last_success: BTreeMap<String, Moment>,
    pub(super) agenda: Agenda,
    /// Jobs whose last session was told to seal although a disk changes.
    pub(super) allow_live: BTreeSet<String>,
}

/// See the module.
pub struct JobManager {
    pub(super) parts: Arc<Parts>,
    pub(super) definitions: Definitions,
    /// Held while a definition is changed: two changes do not overwrite each other.
    pub(super) defining: Mutex<()>,
    state: Mutex<State>,
    /// The agenda changed.
    pub(super) changed: Arc<Notify>,
    /// Of the site.
    pub(super) window: Option<Window>,
    unreadable: Vec<String>,
}

impl JobManager {
    /// Opens the definitions and goes on with the sessions that were not over.
    pub fn start(
        jobs_directory: &Path,
        database: Arc<Database>,
        stores: SourceStores,
        wire: Wire,
        hosts: Arc<HostRegistry>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, Problem> {
        let (definitions, jobs, unreadable) = Definitions::open(jobs_directory)?;
        let records = Records::new(database.clone());
        let SourceStores {
            repository,
            anchors,
            filters,
            cache,
            keep_sent,
            look_for_bases,
            window,
            waits,
            slots,
            latency_ceiling,
            workers,
            notifier,
            history,
        } = stores;
        let parts = Arc::new(Parts {
            wire,
            hosts,
            repository,
            anchors,
            filters,
            cache,
            keep_sent,
            look_for_bases,
            base_chunks: Arc::default(),
            refreshes: Refreshes::new(&workers),
            gates: Gates::default(),
            lines: Mutex::default(),
            records,
            compressors: Arc::new(Semaphore::new(COMPRESSORS_MAX)),
            packed: Arc::new(Semaphore::new(BATCHES_PACKED_MAX)),
            slots: Slots::new(slots),
            filling: Arc::default(),
            waits,
            ceilings: Ceilings::new(latency_ceiling),
            workers,
            log: JobLog::open(database, notifier),
            history,
            stop,
            tasks,
        });
        let (mut last, mut last_success) = (BTreeMap::new(), BTreeMap::new());
        for session in parts.records.all_history().unwrap_or_default() {
            if let (Some(at), true) = (session.ended_at, session.restore_point.is_some()) {
                last_success.insert(session.job.clone(), at);
            }
            last.insert(session.job.clone(), session);
        }
        let (running, suspended) = (BTreeMap::new(), BTreeMap::new());
        let agenda = Agenda::new(TimeZone::system(), seed(&parts));
        let allow_live = BTreeSet::new();
        let state = State { jobs, running, suspended, last, last_success, agenda, allow_live };
        let (state, changed, defining) = (Mutex::new(state), Arc::new(Notify::new()), Mutex::new(()));
        let manager = Arc::new(Self { parts, definitions, defining, state, changed, window, unreadable });
        manager.fill_agenda();
        manager.resume_all();
        manager.tend_anchors();
        manager.tend_agenda();
        manager.tend_history();
        Ok(manager)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a job, or finds that it exists as it should; true where it is new.
    pub fn create(&self, spec: JobSpec) -> Result<(Job, bool), Problem> {
        check(&spec)?;
        let _defining = self.defining.lock().unwrap_or_else(PoisonError::into_inner);
        let existing = self.lock().jobs.get(&spec.name).cloned();
        if let Some(existing) = existing {
            if existing.spec == spec {
                return Ok((self.show(&spec.name)?, false));
            }
            return Err(Problem::conflict(
                format!("job {} cannot be created", spec.name),
                "it exists with another definition",
                format!("vbrctl job show {0}; remove it first, or choose another name", spec.name),
            ));
        }
        self.check_surroundings(&spec)?;
        let (host, disks) = resolve(&self.parts, &spec)?;
        check_exclusions(&*host, &spec)?;
        check_disks(&spec.name, &*host, &disks)?;
        let definition = Definition { spec: spec.clone(), created_at: Moment::now(), rescheduled_at: None };
        self.definitions.store(&definition)?;
        self.lock().jobs.insert(spec.name.clone(), definition);
        self.put_on_agenda(&spec.name);
        tracing::info!(job = %spec.name, target = %spec.target, "job created");
        self.parts.log.note(&spec.name, None, Line::info("created", format!("created, to {}", spec.target)));
        Ok((self.show(&spec.name)?, true))
    }

    /// All jobs by name.
    pub fn list(&self) -> Vec<Job> {
        let names: Vec<String> = self.lock().jobs.keys().cloned().collect();
        names.iter().filter_map(|name| self.show(name).ok()).collect()
    }

    /// One job.
    pub fn show(&self, name: &str) -> Result<Job, Problem> {
        let state = self.lock();
        let definition = state.jobs.get(name).ok_or_else(|| unknown_job(name))?;
        let current = state.running.values().map(|handle| handle.view()).find(|session| session.job == name);
        let (over, running) = match current {
            Some(session) if session.state.is_over() => (Some(session), None),
            running => (None, running),
        };
        let sealed = over.as_ref().filter(|session| session.restore_point.is_some());
        let success = sealed.and_then(|s| s.ended_at).or(state.last_success.get(name).copied());
        let last = over.as_ref().or(state.last.get(name));
        let now = Moment::now();
        let retry = state.agenda.retry(name, now).map(|(number, of, at)| PendingRetry { number, of, at });
        Ok(Job {
            spec: definition.spec.clone(),
            created_at: definition.created_at,
            last_session: running.as_ref().or(last).map(|session| session.session.clone()),
            last_state: running.as_ref().or(last).map(|session| session.state),
            running: running.map(|session| session.session),
            last_success_at: success,
            rpo_lag_ms: success.map(age_ms),
            next_run_at: state.agenda.next(name, now),
            pending_retry: retry,
        })
    }

    /// Enables or disables a job. A disabled job refuses to run.
    pub fn set_enabled(&self, name: &str, enabled: bool) -> Result<Job, Problem> {
        let _defining = self.defining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut definition = self.lock().jobs.get(name).cloned().ok_or_else(|| unknown_job(name))?;
        let changes = std::mem::replace(&mut definition.spec.enabled, enabled) != enabled;
        self.definitions.store(&definition)?;
        self.lock().jobs.insert(name.to_string(), definition);
        self.put_on_agenda(name);
        if changes {
            let event = if enabled { "enabled" } else { "disabled" };
            self.parts.log.note(name, None, Line::info(event, format!("{event} by order")));
        }
        self.show(name)
    }

    /// Removes a job and what its repository knows. The replica at the target stays.
    pub fn remove(&self, name: &str) -> Result<(), Problem> {
        let job = self.show(name)?;
        let suspended = self.lock().suspended.get(name).map(|record| record.session.session.clone());
        if let Some(session) = job.running.or(suspended) {
            return Err(Problem::conflict(
                format!("job {name} cannot be removed"),
                format!("session {session} is not over"),
                format!("vbrctl session cancel {session}, then remove the job"),
            ));
        }
        let _defining = self.defining.lock().unwrap_or_else(PoisonError::into_inner);
        self.nothing_follows(name)?;
        self.parts.anchors.forget(name);
        self.parts.gates.forget(name);
        self.definitions.remove(name)?;
        if let Err(error) = self.parts.repository.forget(name) {
            tracing::warn!(job = name, %error, "the job's manifests could not be removed");
        }
        let mut state = self.lock();
        state.jobs.remove(name);
        state.agenda.remove(name);
        state.last.remove(name);
        state.last_success.remove(name);
        state.allow_live.remove(name);
        Ok(())
    }

    /// A job's sessions, newest first, the running one included.
    pub fn history(&self, name: &str) -> Result<Vec<Session>, Problem> {
        self.show(name)?;
        Ok(self.sessions(Some(name), false))
    }

    /// Sessions, newest first; only those that are not over where `active`.
    pub fn sessions(&self, job: Option<&str>, active: bool) -> Vec<Session> {
        let mut sessions: Vec<Session> = {
            let state = self.lock();
            let suspended = state.suspended.values().map(|record| record.session.clone());
            state.running.values().map(|handle| handle.view()).chain(suspended).collect()
        };
        if !active {
            let over = match job {
                Some(job) => self.parts.records.history(job),
                None => self.parts.records.all_history(),
            };
            let known: Vec<String> = sessions.iter().map(|session| session.session.clone()).collect();
            sessions.extend(over.unwrap_or_default().into_iter().filter(|s| !known.contains(&s.session)));
        }
        sessions.retain(|session| job.is_none_or(|job| session.job == job));
        sessions.retain(|session| !active || !session.state.is_over());
        sessions.sort_by_key(|session| std::cmp::Reverse(session.started_at));
        sessions
    }

    /// One session.
    pub fn session(&self, id: &str) -> Result<Session, Problem> {
        if let Some(handle) = self.lock().running.get(id) {
            return Ok(handle.view());
        }
        let last = self.lock().last.values().find(|session| session.session == id).cloned();
        last.or_else(|| self.sessions(None, false).into_iter().find(|session| session.session == id))
            .ok_or_else(|| Problem::not_found(format!("session {id}"), "vbrctl session list shows them"))
    }

    /// Answers when the session changed, or after this long.
    pub async fn wait(&self, id: &str, at_most: Duration) -> Result<Session, Problem> {
        let handle = self.lock().running.get(id).cloned();
        if let Some(handle) = handle {
            let mut changes = handle.subscribe();
            if !handle.view().state.is_over() {
                let _ = tokio::time::timeout(at_most.min(Duration::from_secs(60)), changes.changed()).await;
            }
        } else if self.session(id).is_ok_and(|session| session.state == SessionState::Suspended) {
            tokio::time::sleep(at_most.min(SUSPENDED_POLL)).await;
        }
        self.session(id)
    }

    /// A job's log: the newest entries behind `after`, oldest first. Also of a job that is gone, as long as it is kept.
    pub fn log(&self, name: &str, query: &JobLogQuery) -> Result<Vec<JobLogEntry>, Problem> {
        let lines = query.lines.unwrap_or(LOG_LINES).min(JOB_LOG_ENTRIES_MAX);
        let read = self.parts.log.read(name, query.session.as_deref(), query.after.unwrap_or(0), lines);
        let entries = read.map_err(|error| database_problem(&error))?;
        if entries.is_empty() {
            self.show(name)?;
        }
        Ok(entries)
    }

    /// A session runs.
    pub fn is_busy(&self) -> bool {
        self.lock().running.values().any(|handle| handle.is_running())
    }

    /// How far behind each job is.
    pub fn lags(&self) -> Vec<JobLag> {
        let now = Moment::now();
        let jobs = self.list().into_iter();
        jobs.map(|job| JobLag {
            overdue: job.spec.enabled && self.lock().agenda.is_overdue(&job.spec.name, now),
            job: job.spec.name,
            enabled: job.spec.enabled,
            rpo_lag_ms: job.rpo_lag_ms,
            last_state: job.last_state,
        })
        .collect()
    }

    /// What an operator should look at.
    pub fn warnings(&self) -> Vec<Warning> {
        let warning = |what: String, next: &str| Warning {
            level: "warning".to_string(),
            what,
            next_step: next.to_string(),
        };
        let mut warnings: Vec<Warning> = self
            .unreadable
            .iter()
            .map(|why| warning(format!("a job definition cannot be read: {why}"), "mend or remove the file"))
            .collect();
        for lag in self.lags().into_iter().filter(|lag| lag.overdue) {
            let since = lag.rpo_lag_ms.map_or("it has none".to_string(), |ms| {
                format!("the last one shows how the disks were {} minutes ago", ms / 60_000)
            });
            warnings.push(Warning {
                level: "critical".to_string(),
                what: format!(
                    "job {} is overdue: two runs were due and none brought a restore point; {since}",
                    lag.job
                ),
                next_step: format!("vbrctl job show {}", lag.job),
            });
        }
        let running: Vec<Session> = self.lock().running.values().map(|handle| handle.view()).collect();
        warnings.extend(running.iter().filter_map(|session| {
            let stall = session.stalled.as_ref()?;
            let since = stall.since.strftime("%H:%M:%S UTC");
            let what =
                format!("the session of job {} stands still at {} since {since}", session.job, stall.stage);
            Some(warning(what, &format!("vbrctl session show {}", session.session)))
        }));
        warnings.extend(running.iter().filter_map(|session| {
            let error = session.error.as_ref().filter(|_| is_in_trouble(session))?;
            let what = format!("the session of job {} waits: {}: {}", session.job, error.what, error.why);
            Some(warning(what, &error.next_step))
        }));
        for (job, session) in &self.lock().last {
            if session.state == SessionState::Failed {
                let why =
                    session.error.as_ref().map_or(String::new(), |e| format!(": {}: {}", e.what, e.why));
                warnings.push(Warning {
                    level: "critical".to_string(),
                    what: format!("the last session of job {job} failed{why}"),
                    next_step: format!("vbrctl session show {}", session.session),
                });
            }
        }
        warnings
    }
}

/// Every disk is there and is something that can be read. What another driver reads need be no file of this machine.
pub(super) fn check_disks(job: &str, host: &dyn SourceHost, disks: &[DiskSpec]) -> Result<(), Problem> {
    use std::os::unix::fs::FileTypeExt;
    if host.driver() != "disk" {
        return Ok(());
    }
    for disk in disks {
        let what = format!("disk {} of job {job}", disk.path);
        let kind = std::fs::metadata(&disk.path).map_err(|e| Problem::io(what.clone(), &e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Problem::invalid(
                what,
                "it is neither a file nor a block device",
                "name a disk image or a block device",
            ));
        }
        std::fs::File::open(&disk.path).map_err(|e| Problem::io(what, &e))?;
    }
    Ok(())
}

/// The error of a job that is not there.
pub(super) fn unknown_job(name: &str) -> Problem {
    Problem::not_found(format!("job {name}"), "vbrctl job list shows the jobs")
}

fn age_ms(at: Moment) -> u64 {
    Moment::now().as_millisecond().saturating_sub(at.as_millisecond()).max(0) as u64
}

/// True where another attempt follows one that failed. Not for what passes by itself (a target that has enough to
/// do) and not for a lost link, which is a warning of its own.
fn is_in_trouble(session: &Session) -> bool {
    let passes = |code: &str| matches!(code, "busy" | "not_connected");
    session.state == SessionState::Waiting && session.error.as_ref().is_some_and(|e| !passes(&e.code))
}
