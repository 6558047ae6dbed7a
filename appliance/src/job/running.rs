//! Sessions on their way: started by an order or by the agenda, gone on with, suspended, cancelled, over.
//!
//! The part of the job manager that changes its table of sessions. At most one a job.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{JobSpec, Moment, RunRequest, Session, SessionBytes, SessionChunks, SessionState, StageLoad};

use super::definitions::split_target;
use super::driver::Driver;
use super::manager::JobManager;
use super::records::SessionRecord;
use super::session::SessionHandle;
use super::story::Line;
use crate::error::Problem;
use crate::schedule::agenda::Outcome;

impl JobManager {
    pub(super) fn resume_all(self: &Arc<Self>) {
        let unfinished = match self.parts.records.unfinished() {
            Ok(unfinished) => unfinished,
            Err(problem) => {
                tracing::warn!(%problem, "unfinished sessions cannot be read; their jobs start anew");
                return;
            }
        };
        let living: Vec<String> = unfinished.iter().map(|record| record.session.session.clone()).collect();
        self.parts.hosts.sweep(&living);
        self.parts.anchors.sweep(&living);
        for mut record in unfinished {
            let Some(definition) = self.lock().jobs.get(&record.session.job).cloned() else { continue };
            self.suspend(record.clone());
            if record.ordered || self.lock().agenda.is_open(&record.session.job, Moment::now()) {
                tracing::info!(job = %record.session.job, session = %record.session.session, "going on with a session");
                let line = Line::info("goes_on", "goes on after a restart of vbrd");
                self.parts.log.note(&record.session.job, Some(&record.session.session), line);
                record.session.state = SessionState::Pending;
                let spec = record.spec.clone().unwrap_or(definition.spec);
                self.launch(spec, record);
            }
        }
    }

    /// A session that goes on later.
    fn suspend(&self, mut record: SessionRecord) {
        record.session.state = SessionState::Suspended;
        let job = record.session.job.clone();
        let mut state = self.lock();
        state.agenda.suspended(&job);
        state.last.insert(job.clone(), record.session.clone());
        state.suspended.insert(job, record);
    }

    /// Starts a session; a job that runs answers the session it has.
    pub fn run(self: &Arc<Self>, name: &str, request: RunRequest) -> Result<Session, Problem> {
        let job = self.show(name)?;
        if let Some(session) = job.running {
            return self.session(&session);
        }
        if !job.spec.enabled {
            return Err(Problem::conflict(
                format!("job {name} was not run"),
                "it is disabled",
                format!("vbrctl job enable {name}"),
            ));
        }
        self.start_session(job.spec, request, true, 0)
    }

    /// A new session, as try `retry` after a failure (0: the first), or the suspended one goes on.
    pub(super) fn start_session(
        self: &Arc<Self>,
        spec: JobSpec,
        request: RunRequest,
        ordered: bool,
        retry: u32,
    ) -> Result<Session, Problem> {
        let suspended = self.lock().suspended.get(&spec.name).cloned();
        let mut record = suspended.unwrap_or_else(|| SessionRecord {
            session: Session { retry_number: retry, ..blank(&spec) },
            snapshot_identity: None,
            snapshot_at_ms: 0,
            allow_live: request.allow_live,
            ordered,
            spec: Some(spec.clone()),
            vm: None,
        });
        let spec = record.spec.clone().unwrap_or(spec);
        record.ordered |= ordered;
        record.session.state = SessionState::Pending;
        self.parts.records.store(&record)?;
        let why = match (record.ordered, retry) {
            (true, 0) => Line::info("ordered", "ordered to run"),
            (_, 0) => Line::info("due", "due by its schedule"),
            (_, retry) => Line::info("due", format!("tried again, {retry} of {}", spec.retry.count)),
        };
        self.parts.log.note(&spec.name, Some(&record.session.session), why);
        Ok(self.launch(spec, record))
    }

    fn launch(self: &Arc<Self>, spec: JobSpec, record: SessionRecord) -> Session {
        self.launch_with(spec, record, |_| ())
    }

    fn launch_with(
        self: &Arc<Self>,
        spec: JobSpec,
        record: SessionRecord,
        prepare: impl FnOnce(&SessionHandle),
    ) -> Session {
        let handle = SessionHandle::new(record.session.clone(), self.parts.stop.child_token());
        handle.tell_to(self.parts.log.clone());
        prepare(&handle);
        let id = record.session.session.clone();
        {
            let mut state = self.lock();
            let active = |other: &Session| other.job == spec.name && !other.state.is_over();
            if let Some(twin) = state.running.values().map(|other| other.view()).find(active) {
                return twin; // Ordered twice at the same moment.
            }
            state.suspended.remove(&spec.name);
            state.running.insert(id.clone(), handle.clone());
            let retry = record.session.retry_number;
            state.agenda.started(&spec.name, record.ordered, retry, Moment::now());
            match record.allow_live {
                true => state.allow_live.insert(spec.name.clone()),
                false => state.allow_live.remove(&spec.name),
            };
        }
        let span = tracing::info_span!("session", session = %id, job = %spec.name, peer = %spec.target);
        let (parts, free) = (self.parts.clone(), Arc::from([]));
        let driver = Driver { parts, handle: handle.clone(), spec, record, free, tasks: 1 };
        let manager = self.clone();
        let drive = async move {
            let suspended = driver.drive().await;
            manager.over(&id, suspended);
        };
        self.parts.tasks.spawn(tracing::Instrument::instrument(drive, span));
        handle.view()
    }

    /// A session's driver ended: keep the outcome, free the job.
    fn over(&self, id: &str, suspended: Option<SessionRecord>) {
        let mut state = self.lock();
        let Some(handle) = state.running.remove(id) else { return };
        let (session, mut later) = (handle.view(), None);
        match suspended {
            Some(record) => {
                state.agenda.suspended(&session.job);
                state.suspended.insert(session.job.clone(), record);
            }
            None => {
                let now = Moment::now();
                state.agenda.ended(&session.job, outcome(&session), now);
                if let Some((number, of, at)) = state.agenda.retry(&session.job, now) {
                    tracing::info!(job = session.job, number, of, %at, "the job is tried again");
                    later = Some(Line::info("retry", format!("try {number} of {of} at {}", shown(at))));
                }
            }
        }
        if let (Some(at), true) = (session.ended_at, session.restore_point.is_some()) {
            state.last_success.insert(session.job.clone(), at);
        }
        state.last.insert(session.job.clone(), session);
        drop(state);
        if let Some(line) = later {
            handle.tell(line);
        }
        handle.update(|_| ()); // Long polls look again.
        self.changed.notify_one();
    }

    /// Ends a session for good.
    pub async fn cancel(self: &Arc<Self>, id: &str) -> Result<Session, Problem> {
        self.wake_to_cancel(id);
        let handle = self.lock().running.get(id).cloned();
        if let Some(handle) = handle {
            handle.cancel.cancel();
            let mut changes = handle.subscribe();
            let over = async { while !handle.view().state.is_over() && changes.changed().await.is_ok() {} };
            let _ = tokio::time::timeout(Duration::from_secs(20), over).await;
        }
        self.session(id)
    }

    /// A suspended session is taken up again, only to be cancelled: it has a snapshot, and the target its data.
    fn wake_to_cancel(self: &Arc<Self>, id: &str) {
        let mut state = self.lock();
        let job = state.suspended.iter().find(|(_, record)| record.session.session == id);
        let Some(job) = job.map(|(job, _)| job.clone()) else { return };
        let spec = state.jobs.get(&job).map(|definition| definition.spec.clone());
        let Some((spec, mut record)) = spec.zip(state.suspended.remove(&job)) else { return };
        let spec = record.spec.clone().unwrap_or(spec);
        drop(state);
        record.session.state = SessionState::Pending;
        self.launch_with(spec, record, |handle| handle.cancel.cancel());
    }
}

/// What a session that is over means for its job.
pub(super) fn outcome(session: &Session) -> Outcome {
    let helps = session.error.as_ref().is_some_and(|error| error.retry);
    match session.state {
        _ if session.restore_point.is_some() => Outcome::Sealed,
        SessionState::Failed if helps => Outcome::Failed(session.retry_number),
        _ => Outcome::Over,
    }
}

/// A moment for people, in UTC.
fn shown(at: Moment) -> impl std::fmt::Display {
    at.strftime("%Y-%m-%d %H:%M:%S UTC")
}

/// 128 random bits as hexadecimal.
fn new_id() -> String {
    let mut bytes = [0u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without a source of randomness, the clock and the process tell sessions apart.
        let seed = format!("{} {}", Moment::now(), std::process::id());
        bytes.copy_from_slice(&blake3::hash(seed.as_bytes()).as_bytes()[..16]);
    }
    data_encoding::HEXLOWER.encode(&bytes)
}

pub(super) fn blank(spec: &JobSpec) -> Session {
    Session {
        session: new_id(),
        job: spec.name.clone(),
        peer: split_target(&spec.target).0.to_string(),
        state: SessionState::Pending,
        started_at: Moment::now(),
        ended_at: None,
        disks: Vec::new(),
        bytes: SessionBytes::default(),
        chunks: SessionChunks::default(),
        rate_wire_bps: 0,
        eta_ms: None,
        stage_load_percent: StageLoad::default(),
        bottleneck: None,
        mode: "full".to_string(),
        transport_mode: "direct".to_string(),
        tracked: false,
        full_read_reason: None,
        resumed: 0,
        restore_point: None,
        consistent: None,
        warnings: Vec::new(),
        vm_changes: Vec::new(),
        compression: None,
        retry_number: 0,
        waits_for: None,
        stalled: None,
        error: None,
    }
}
