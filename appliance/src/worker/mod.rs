//! Background workers: what the appliance does by itself, and whether it does.
//!
//! Each registers here under a name, and is driven by [`drive`](Worker::drive) or, where it is a loop of its own,
//! says itself when a run begins and ends. A run that panics or fails is told of and begins again with a growing
//! pause; one that makes no progress for longer than it may is `stuck`. Both need attention, in `vbrctl check` as in
//! the metrics.
//!
//! Owns the table and each worker's figures. Not its job: what workers do, and stopping one that is stuck (a thread in
//! the kernel cannot be stopped). Bounds: [`WORKERS_MAX`] workers, [`COUNTERS_MAX`] counters each, texts of
//! [`TEXT_CHARS_MAX`].

mod drive;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use vbr_api::{Moment, Task, TaskProgress, TaskState, Warning};

pub use drive::{Next, Outcome, Pass, Plan};
pub use pace::Pace;

use crate::database::{Batch, Database, cf};
use crate::error::Problem;

/// Workers of an appliance.
pub const WORKERS_MAX: usize = 64;
/// Counters of a worker.
const COUNTERS_MAX: usize = 16;
/// Of an error or a finding.
const TEXT_CHARS_MAX: usize = 1000;
/// A run that says nothing for this long is stuck, however busy it is, where a worker says nothing else.
const STUCK_AFTER: Duration = Duration::from_secs(600);
/// One that does nothing at all ([`Pulse`](crate::pulse::Pulse)) for this long is stuck; and one that reads steadily, where it
/// says nothing. Longer than the kernel waits for a disk before it resets it.
const STILL_AFTER: Duration = Duration::from_secs(45);
/// Failures in a row that are more than a warning.
const CRITICAL_FAILURES: u32 = 3;
/// Before the name, where a worker's last run is kept.
const MEMORY: &str = "worker/";

/// For which side of replication a worker works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Jobs and what they send.
    Source,
    /// Replicas and what is received.
    Target,
    /// Both.
    Site,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Site => "site",
        }
    }
}

/// What a worker is.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name, as names are.
    pub name: String,
    /// One sentence.
    pub what: String,
    /// For which side.
    pub role: Role,
    /// A run that says nothing for this long is stuck.
    pub stuck_after: Duration,
    /// A run that says nothing and does nothing for this long is stuck.
    pub still_after: Duration,
    /// Its last run and what that found are kept over restarts.
    pub remembered: bool,
}

impl Spec {
    /// A worker whose runs are short.
    pub fn new(name: &str, role: Role, what: &str) -> Self {
        let (name, what) = (name.to_string(), what.to_string());
        Self { name, what, role, stuck_after: STUCK_AFTER, still_after: STILL_AFTER, remembered: false }
    }

    /// One whose steps are short, and that makes progress with every piece.
    pub fn steady(self) -> Self {
        self.stuck_after(STILL_AFTER)
    }

    /// With another bound.
    pub fn stuck_after(self, stuck_after: Duration) -> Self {
        Self { stuck_after, ..self }
    }

    #[cfg(test)]
    fn still_after(self, still_after: Duration) -> Self {
        Self { still_after, ..self }
    }

    /// Runs so rarely that a restart must not make it begin anew.
    pub fn remembered(self) -> Self {
        Self { remembered: true, ..self }
    }
}

/// The table of workers.
pub struct Workers {
    table: Mutex<BTreeMap<String, Arc<Worker>>>,
    memory: Option<Arc<Database>>,
}

impl Workers {
    /// An empty table; `memory` keeps the last runs of those that are to be remembered.
    pub fn new(memory: Option<Arc<Database>>) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), memory })
    }

    /// Enters a worker. Who comes when the table is full works without being listed.
    pub fn register(&self, spec: Spec) -> Arc<Worker> {
        let worker = Worker::new(spec, self.memory.clone());
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() < WORKERS_MAX {
            table.insert(worker.spec.name.clone(), worker.clone());
        }
        worker
    }

    /// All workers, by name.
    pub fn list(&self) -> Vec<Task> {
        self.all().iter().map(|worker| worker.view()).collect()
    }

    /// One worker.
    pub fn show(&self, name: &str) -> Result<Task, Problem> {
        Ok(self.find(name)?.view())
    }

    /// Lets a worker run now; one that runs is left running.
    pub fn run(&self, name: &str) -> Result<Task, Problem> {
        let worker = self.find(name)?;
        let refuse = |why: &str, next: &str| {
            Err(Problem::conflict(format!("worker {name} cannot be run by order"), why, next))
        };
        match worker.view() {
            task if task.state == TaskState::Disabled => {
                return refuse(
                    "it is switched off in the configuration",
                    "set its interval, then restart vbrd",
                );
            }
            task if !task.runnable => return refuse("it runs when there is work for it", "leave it"),
            task if matches!(task.state, TaskState::Running | TaskState::Stuck) => {}
            _ => worker.ask(),
        }
        Ok(worker.view())
    }

    /// What an operator should look at.
    pub fn warnings(&self) -> Vec<Warning> {
        self.all().iter().flat_map(|worker| worker.warnings()).collect()
    }

    fn all(&self) -> Vec<Arc<Worker>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn find(&self, name: &str) -> Result<Arc<Worker>, Problem> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let found = table.get(name).cloned();
        found.ok_or_else(|| Problem::not_found(format!("worker {name}"), "vbrctl task list shows them"))
    }
}

#[derive(Default)]
struct Inner {
    /// Runs under way: a worker that serves several peers has several.
    running: u32,
    began: Option<Instant>,
    /// Its last sign of progress.
    beat: Option<Instant>,
    /// When it was last seen doing something; none where that cannot be seen.
    stirred: Option<Instant>,
    last_run_at: Option<Moment>,
    /// When it was registered first, also before a restart; kept for those that are remembered.
    since: Option<Moment>,
    duration_ms: Option<u64>,
    next_run_at: Option<Moment>,
    runs: u64,
    failures: u32,
    last_error: Option<(String, Moment)>,
    progress: Option<TaskProgress>,
    counters: BTreeMap<&'static str, u64>,
    finding: Option<Warning>,
    disabled: bool,
    /// Driven, so that it can be asked to run.
    driven: bool,
}

/// One worker.
pub struct Worker {
    spec: Spec,
    inner: Mutex<Inner>,
    wake: Notify,
    memory: Option<Arc<Database>>,
}

impl Worker {
    fn new(spec: Spec, memory: Option<Arc<Database>>) -> Arc<Self> {
        let memory = memory.filter(|_| spec.remembered);
        let worker = Self { spec, inner: Mutex::default(), wake: Notify::new(), memory };
        worker.recall();
        Arc::new(worker)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is listed, and does nothing.
    pub fn disable(&self) {
        self.lock().disabled = true;
    }

    /// Lets it run now.
    pub fn ask(&self) {
        self.wake.notify_one();
    }

    /// A run begins.
    pub fn begin(&self) {
        let mut inner = self.lock();
        inner.running += 1;
        inner.runs += 1;
        (inner.began, inner.beat) = (Some(Instant::now()), Some(Instant::now()));
        (inner.last_run_at, inner.next_run_at) = (Some(Moment::now()), None);
        (inner.stirred, inner.progress) = (None, None);
    }

    /// A run ended; with what it found, or why it failed.
    pub fn end(&self, result: Result<Option<Warning>, String>) {
        {
            let mut inner = self.lock();
            inner.running = inner.running.saturating_sub(1);
            inner.duration_ms = inner.began.map(|began| began.elapsed().as_millis() as u64);
            inner.progress = None;
            match result {
                Ok(finding) => {
                    inner.failures = 0;
                    inner.finding = finding.map(|finding| Warning { what: cut(&finding.what), ..finding });
                }
                Err(why) => {
                    inner.failures = inner.failures.saturating_add(1);
                    inner.last_error = Some((cut(&why), Moment::now()));
                }
            }
        }
        self.remember();
    }

    /// The run made progress.
    pub fn beat(&self) {
        self.lock().beat = Some(Instant::now());
    }

    /// The run was seen doing something, or can be seen from now on.
    fn stirs(&self) {
        self.lock().stirred = Some(Instant::now());
    }

    /// For how long the run has stood still, where that is too long.
    fn stuck_for(&self, inner: &Inner) -> Option<Duration> {
        let said = inner.beat.filter(|_| inner.running > 0)?.elapsed();
        let quiet = inner.stirred.map(|stirred| stirred.elapsed().min(said));
        let quiet = quiet.filter(|quiet| *quiet >= self.spec.still_after);
        quiet.or(Some(said).filter(|said| *said >= self.spec.stuck_after))
    }

    /// The run is so far. Progress, too.
    pub fn progress(&self, done: u64, total: u64) {
        let mut inner = self.lock();
        inner.beat = Some(Instant::now());
        inner.progress = Some(TaskProgress { done, total });
    }

    /// Adds to a counter.
    pub fn count(&self, counter: &'static str, more: u64) {
        let mut inner = self.lock();
        if inner.counters.len() < COUNTERS_MAX || inner.counters.contains_key(counter) {
            *inner.counters.entry(counter).or_default() += more;
        }
    }

    /// When its last run began, or where there was none, when it was registered first; also before a restart.
    pub fn waits_since(&self) -> Option<Moment> {
        let inner = self.lock();
        inner.last_run_at.or(inner.since)
    }

    /// As the console sees it.
    pub fn view(&self) -> Task {
        let inner = self.lock();
        let state = match (inner.disabled, inner.running > 0, inner.failures) {
            (true, ..) => TaskState::Disabled,
            (_, true, _) if self.stuck_for(&inner).is_some() => TaskState::Stuck,
            (_, true, _) => TaskState::Running,
            (.., 0) => TaskState::Idle,
            _ => TaskState::Failed,
        };
        let runs_for = inner.began.filter(|_| inner.running > 0);
        Task {
            name: self.spec.name.clone(),
            what: self.spec.what.clone(),
            role: self.spec.role.as_str().to_string(),
            state,
            last_run_at: inner.last_run_at,
            duration_ms: runs_for.map(|began| began.elapsed().as_millis() as u64).or(inner.duration_ms),
            next_run_at: inner.next_run_at.filter(|_| inner.running == 0 && !inner.disabled),
            runs: inner.runs,
            failures: inner.failures,
            last_error: inner.last_error.as_ref().map(|(why, _)| why.clone()),
            last_error_at: inner.last_error.as_ref().map(|(_, at)| *at),
            progress: inner.progress.clone(),
            counters: inner.counters.iter().map(|(name, count)| ((*name).to_string(), *count)).collect(),
            finding: inner.finding.clone(),
            runnable: inner.driven,
        }
    }

    fn warnings(&self) -> Vec<Warning> {
        let task = self.view();
        let next_step = format!("vbrctl task list -o wide; journalctl -u vbrd -g {}", task.name);
        let warning = |critical: bool, what: String| Warning {
            level: if critical { "critical" } else { "warning" }.to_string(),
            what,
            next_step: next_step.clone(),
        };
        let mut warnings: Vec<Warning> = task.finding.into_iter().collect();
        match task.state {
            TaskState::Stuck => {
                let still = self.stuck_for(&self.lock()).unwrap_or_default().as_secs();
                let what = format!("the worker {} is stuck: no progress for {still} s", task.name);
                warnings.push(warning(true, what));
            }
            // A run that goes on after failures has not succeeded yet.
            TaskState::Failed | TaskState::Running if task.failures > 0 => {
                let why = task.last_error.unwrap_or_default();
                let times = match task.failures {
                    1 => "failed".to_string(),
                    times => format!("failed {times} times in a row"),
                };
                let what = format!("the worker {} {times}: {why}", task.name);
                warnings.push(warning(task.failures >= CRITICAL_FAILURES, what));
            }
            _ => {}
        }
        warnings
    }

    /// Keeps the last run; losing it costs a run.
    fn remember(&self) {
        let Some(memory) = &self.memory else { return };
        let kept = {
            let inner = self.lock();
            serde_json::json!({
                "since": inner.since, "at": inner.last_run_at, "ms": inner.duration_ms, "finding": inner.finding,
            })
        };
        let mut batch = Batch::new();
        batch.put(cf::META, self.memory_key(), kept.to_string());
        if let Err(error) = memory.write(batch, false) {
            tracing::debug!(%error, worker = self.spec.name, "the worker's last run cannot be kept");
        }
    }

    fn recall(&self) {
        let Some(memory) = &self.memory else { return };
        let kept = memory.get(cf::META, &self.memory_key()).ok().flatten();
        let kept: Option<serde_json::Value> = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
        let Some(kept) = kept else {
            self.lock().since = Some(Moment::now());
            return self.remember();
        };
        let mut inner = self.lock();
        inner.since = serde_json::from_value(kept["since"].clone()).ok().flatten();
        inner.last_run_at = serde_json::from_value(kept["at"].clone()).ok().flatten();
        inner.finding = serde_json::from_value(kept["finding"].clone()).ok().flatten();
        inner.duration_ms = kept["ms"].as_u64();
    }

    fn memory_key(&self) -> Vec<u8> {
        [MEMORY.as_bytes(), self.spec.name.as_bytes()].concat()
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}
