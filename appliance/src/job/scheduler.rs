//! The scheduler: jobs that run by themselves. Asks the agenda what is to be done, and does it.
//!
//! One background task of the job manager; it sleeps until the agenda has something, or changed. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{JobSpec, Moment, RunRequest};

use super::manager::JobManager;
use super::parts::Parts;
use super::running::outcome;
use super::story::Line;
use crate::schedule::agenda::{Outcome, Past, Task};
use crate::schedule::retry::RetryRule;
use crate::schedule::rule::Rule;
use crate::worker::{self, Plan, Role, Spec};

/// A clock that jumps is noticed after this long.
const SLEEP_MAX: Duration = Duration::from_secs(20);
/// Between two looks, at least.
const SLEEP_MIN: Duration = Duration::from_millis(200);

impl JobManager {
    /// Puts every job on the agenda.
    pub(super) fn fill_agenda(&self) {
        let jobs: Vec<String> = self.lock().jobs.keys().cloned().collect();
        jobs.iter().for_each(|job| self.put_on_agenda(job));
    }

    /// Puts a job on the agenda: where it is disabled, so that it runs by order only (and an order is refused).
    pub(super) fn put_on_agenda(&self, job: &str) {
        let mut state = self.lock();
        let Some(definition) = state.jobs.get(job) else { return };
        let rule = Rule::parse(job, &definition.spec.schedule, self.window.as_ref());
        let last = state.last.get(job);
        let failed = last.and_then(|session| match outcome(session) {
            Outcome::Failed(number) => Some((session.ended_at?, number)),
            _ => None,
        });
        let past = Past {
            created: definition.created_at,
            started: last.map(|session| session.started_at),
            sealed: state.last_success.get(job).copied(),
            rescheduled: definition.rescheduled_at,
            failed,
        };
        let retry = RetryRule::parse(&definition.spec.retry);
        let enabled = definition.spec.enabled;
        match rule.and_then(|rule| Ok((rule, retry?))) {
            Ok((rule, retry)) if enabled => state.agenda.put(job, rule, retry, past),
            Ok((rule, _)) => state.agenda.put(job, rule.by_order(), RetryRule::NONE, past),
            Err(why) => {
                tracing::error!(job, %why, "the job's schedule cannot be read; it runs by order only")
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Starts the task; it ends with the appliance.
    pub(super) fn tend_agenda(self: &Arc<Self>) {
        let what = "starts jobs that are due, suspends sessions whose window closed";
        // A look takes milliseconds; what it starts, it does not wait for.
        let spec = Spec::new("schedule", Role::Source, what).steady();
        let worker = self.parts.workers.register(spec);
        let plan = Plan { wake: Some(self.changed.clone()), ..Plan::default() };
        let manager = self.clone();
        self.parts.tasks.spawn(worker.drive(self.parts.stop.clone(), plan, move |_| {
            manager.do_what_is_due();
            let now = Moment::now();
            let wake = manager.lock().agenda.wake(now);
            let until = wake.map(|wake| Duration::try_from(wake.duration_since(now)).unwrap_or_default());
            Ok(worker::Outcome::again_in(until.map_or(SLEEP_MAX, |until| until.clamp(SLEEP_MIN, SLEEP_MAX))))
        }));
    }

    fn do_what_is_due(self: &Arc<Self>) {
        if self.parts.stop.is_cancelled() {
            return; // What the stop suspends goes on after the next start.
        }
        let tasks = self.lock().agenda.tasks(Moment::now());
        for task in tasks {
            let (Task::Start(job) | Task::Retry(job, ..) | Task::Resume(job) | Task::Suspend(job)) = &task;
            let state = self.lock();
            let allow_live = state.allow_live.contains(job);
            let spec = state.jobs.get(job).map(|definition| definition.spec.clone());
            let running = state.running.values().find(|handle| handle.view().job == *job).cloned();
            drop(state);
            match (&task, spec, running) {
                (Task::Suspend(_), _, Some(handle)) => {
                    tracing::info!(job, "the window closed: the session goes on in the next one");
                    handle.tell(Line::info("window", "the window closed: goes on in the next one"));
                    handle.pause.cancel();
                }
                (Task::Start(_) | Task::Resume(_), Some(spec), None) => {
                    tracing::info!(job, resumes = matches!(task, Task::Resume(_)), "the job is due");
                    self.start_due(spec, RunRequest::default(), false, 0);
                }
                (Task::Retry(_, number, ordered), Some(spec), None) => {
                    tracing::info!(job, number, of = spec.retry.count, "the job is tried again");
                    // As it was ordered.
                    let request = RunRequest { allow_live: *ordered && allow_live };
                    self.start_due(spec, request, *ordered, *number);
                }
                _ => {}
            }
        }
    }

    fn start_due(self: &Arc<Self>, spec: JobSpec, request: RunRequest, ordered: bool, retry: u32) {
        let job = spec.name.clone();
        if let Err(problem) = self.start_session(spec, request, ordered, retry) {
            tracing::error!(job, %problem, "a job that is due cannot start");
            self.parts.log.note(&job, None, Line::error("due", format!("cannot start: {problem}")));
        }
    }
}

/// Tells this site's jobs from those of the same name elsewhere.
pub(super) fn seed(parts: &Parts) -> u64 {
    let hash = blake3::hash(parts.wire.peer_id().as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
