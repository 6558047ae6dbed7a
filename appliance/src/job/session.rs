//! A session's figures and state: one run of a job, as the console sees it.
//!
//! Owns the session's public object behind a mutex that is held for a copy only, a change counter for
//! long polls, and the busy clocks of its stages. Decides nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vbr_api::{Session, SessionState, StageLoad, WaitsFor};

use super::log::JobLog;
use super::story::Line;
use crate::busy::BusyClock;
use crate::wire::SessionSender;

/// Rate is taken over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Wire bytes count as progress in steps of this: a session that stands still has its share of heartbeats, some
/// 10 bytes a second, and one of sixteen on a line of 64 kbit/s sends this in two minutes.
const SENT_STEP: u64 = 64 * 1024;

/// Busy clocks of one session, by stage.
#[derive(Debug, Default)]
pub struct Clocks {
    /// Reading the snapshot.
    pub source_host: BusyClock,
    /// Comparing with the repository, keeping its manifest.
    pub source_mover: BusyClock,
    /// Hashing and compressing.
    pub source_accelerator: BusyClock,
    /// Waiting for the link: credit or the send queue.
    pub network: BusyClock,
}

/// What a session is at, as far as that can be seen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// A read of a source disk has not returned.
    pub source_host: bool,
    /// Nor has the repository.
    pub source_mover: bool,
    /// Something is being named or compressed.
    pub source_accelerator: bool,
    /// Bytes that wait for their share of the link.
    pub queued_bytes: usize,
}

struct Inner {
    session: Session,
    /// The way out of the attempt that runs.
    sender: Option<SessionSender>,
    samples: VecDeque<(Instant, u64)>,
    /// Milliseconds busy at the target: accelerator, mover, host.
    target_busy: [u64; 3],
    active_since: Option<Instant>,
    /// Wire bytes when the session became active.
    sent_base: u64,
    /// Busy microseconds of the source's stages when the session became active.
    clock_base: [u64; 4],
}

/// A session, shared between its driver and the console.
pub struct SessionHandle {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    /// Where its changes are told.
    log: OnceLock<Arc<JobLog>>,
    /// Ordered to stop for good.
    pub cancel: CancellationToken,
    /// Ordered to stop at a durable place and to go on later; also when the appliance stops.
    pub pause: CancellationToken,
    /// Stage clocks.
    pub clocks: Clocks,
}

impl SessionHandle {
    /// A handle around a new or reloaded session.
    pub fn new(session: Session, pause: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                session,
                sender: None,
                samples: VecDeque::new(),
                target_busy: [0; 3],
                active_since: None,
                sent_base: 0,
                clock_base: [0; 4],
            }),
            changed: watch::Sender::new(0),
            log: OnceLock::new(),
            cancel: CancellationToken::new(),
            pause,
            clocks: Clocks::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy, with rate, ETA and stage loads as of now.
    pub fn view(&self) -> Session {
        let inner = self.lock();
        let mut session = inner.session.clone();
        if session.state == SessionState::Running {
            session.rate_wire_bps = rate(&inner.samples);
            session.eta_ms = eta(&session, inner.active_since);
        }
        if let Some(since) = inner.active_since {
            session.stage_load_percent = self.load(&inner, since.elapsed());
            session.bottleneck = bottleneck(&session.stage_load_percent);
        }
        session
    }

    /// It runs.
    pub fn is_running(&self) -> bool {
        self.lock().session.state == SessionState::Running
    }

    /// From now on its changes are told there.
    pub fn tell_to(&self, log: Arc<JobLog>) {
        let _ = self.log.set(log);
    }

    /// Something that its object does not show.
    pub fn tell(&self, line: Line) {
        if let Some(log) = self.log.get() {
            let (job, session) = {
                let inner = self.lock();
                (inner.session.job.clone(), inner.session.session.clone())
            };
            log.note(&job, Some(&session), line);
        }
    }

    /// Changes the session and wakes whoever waits for a change.
    pub fn update(&self, change: impl FnOnce(&mut Session)) {
        self.update_where(|_| true, change);
    }

    /// The same, only where it is so.
    pub fn update_where(&self, so: impl FnOnce(&Session) -> bool, change: impl FnOnce(&mut Session)) {
        let mut inner = self.lock();
        if !so(&inner.session) {
            return;
        }
        let before = self.log.get().map(|log| (log, inner.session.clone()));
        change(&mut inner.session);
        let told = before.map(|(log, before)| (log, before, inner.session.clone()));
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
        if let Some((log, before, after)) = told {
            log.changed(&before, &after);
        }
    }

    /// The slot it waits for.
    pub fn note_wait(&self, wait: Option<WaitsFor>) {
        self.update_where(|session| session.waits_for != wait, |session| session.waits_for.clone_from(&wait));
    }

    /// The way out of the attempt that runs; none when it ends.
    pub fn attach(&self, sender: Option<SessionSender>) {
        self.lock().sender = sender;
    }

    /// What the session is at.
    pub fn signs(&self) -> Signs {
        let sender = self.lock().sender.clone();
        Signs {
            source_host: self.clocks.source_host.is_busy(),
            source_mover: self.clocks.source_mover.is_busy(),
            source_accelerator: self.clocks.source_accelerator.is_busy(),
            queued_bytes: sender.map_or(0, |sender| sender.queued_bytes()),
        }
    }

    /// Counters of which one moves while the session does: bytes read, changed and sent, what is settled, and
    /// what each stage has finished.
    pub fn progress(&self) -> [u64; 8] {
        let inner = self.lock();
        let settled = inner.session.disks.iter().map(|disk| disk.processed_bytes).sum();
        let bytes = &inner.session.bytes;
        let [host, mover, accelerator, _] = self.micros();
        let target = inner.target_busy.iter().sum();
        let sent = bytes.sent_wire / SENT_STEP;
        [bytes.read, bytes.changed, sent, settled, host, mover, accelerator, target]
    }

    /// Changes figures without waking anybody; the driver's ticker does that twice a second.
    pub fn note(&self, change: impl FnOnce(&mut Session)) {
        change(&mut self.lock().session);
    }

    /// The link is up and stages run from now on.
    pub fn activate(&self) {
        let mut inner = self.lock();
        inner.active_since = Some(Instant::now());
        inner.clock_base = self.micros();
        inner.target_busy = [0; 3];
        inner.sent_base = inner.session.bytes.sent_wire;
        inner.samples.clear();
    }

    /// Freezes rate and stage loads into the object; called when the session stops being active.
    pub fn settle(&self) {
        let view = self.view();
        let mut inner = self.lock();
        let elapsed = inner.active_since.map(|since| since.elapsed()).unwrap_or_default();
        if !elapsed.is_zero() {
            let sent = view.bytes.sent_wire.saturating_sub(inner.sent_base);
            inner.session.rate_wire_bps = (sent as f64 * 8.0 / elapsed.as_secs_f64()) as u64;
        }
        inner.session.stage_load_percent = view.stage_load_percent;
        inner.session.bottleneck = view.bottleneck;
        inner.session.eta_ms = None;
        inner.active_since = None;
    }

    /// Takes a rate sample and wakes whoever waits for a change.
    pub fn sample(&self) {
        {
            let mut inner = self.lock();
            let sent = inner.session.bytes.sent_wire;
            inner.samples.push_back((Instant::now(), sent));
            while inner.samples.front().is_some_and(|(at, _)| at.elapsed() > RATE_WINDOW) {
                inner.samples.pop_front();
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// What the target says of its stages.
    pub fn note_target_busy(&self, busy_ms: [u64; 3]) {
        self.lock().target_busy = busy_ms;
    }

    /// Tells of changes after this call.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn micros(&self) -> [u64; 4] {
        let c = &self.clocks;
        [c.source_host.micros(), c.source_mover.micros(), c.source_accelerator.micros(), c.network.micros()]
    }

    fn load(&self, inner: &Inner, elapsed: Duration) -> StageLoad {
        let total = (elapsed.as_micros() as u64).max(1);
        let percent = |busy: u64| (busy.saturating_mul(100) / total).min(100) as u8;
        let now = self.micros();
        let source = |n: usize| percent(now[n].saturating_sub(inner.clock_base[n]));
        let target = |n: usize| percent(inner.target_busy[n].saturating_mul(1000));
        StageLoad {
            source_host: source(0),
            source_mover: source(1),
            source_accelerator: source(2),
            network: source(3),
            target_accelerator: target(0),
            target_mover: target(1),
            target_host: target(2),
        }
    }
}

fn rate(samples: &VecDeque<(Instant, u64)>) -> u64 {
    match (samples.front(), samples.back()) {
        (Some((first_at, first)), Some((last_at, last))) if last_at > first_at => {
            let seconds = (*last_at - *first_at).as_secs_f64();
            (last.saturating_sub(*first) as f64 * 8.0 / seconds) as u64
        }
        _ => 0,
    }
}

fn eta(session: &Session, since: Option<Instant>) -> Option<u64> {
    let done: u64 = session.disks.iter().map(|disk| disk.processed_bytes).sum();
    let total: u64 = session.disks.iter().map(|disk| disk.virtual_bytes).sum();
    let elapsed = since?.elapsed();
    if done == 0 || elapsed < Duration::from_secs(2) {
        return None;
    }
    Some((elapsed.as_millis() as f64 * total.saturating_sub(done) as f64 / done as f64) as u64)
}

fn bottleneck(load: &StageLoad) -> Option<String> {
    let stages = [
        ("source_host", load.source_host),
        ("source_mover", load.source_mover),
        ("source_accelerator", load.source_accelerator),
        ("network", load.network),
        ("target_accelerator", load.target_accelerator),
        ("target_mover", load.target_mover),
        ("target_host", load.target_host),
    ];
    stages.iter().max_by_key(|(_, percent)| *percent).filter(|s| s.1 > 0).map(|s| s.0.to_string())
}
