//! Driving a worker: its pauses, its runs on a blocking thread, and what follows a run that failed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vbr_api::{Moment, Warning};

use super::Worker;
use crate::pulse::Pulse;

/// After the first failure; twice as long after each more in a row.
const BACK_OFF: Duration = Duration::from_secs(10);
/// The longest of these pauses.
const BACK_OFF_MAX: Duration = Duration::from_secs(3600);
/// Looks at whether a run does anything, in the time after which it is stuck.
const LOOKS: u32 = 9;
/// A run that does not end is left behind when the appliance stops.
const LAST_RUN: Duration = Duration::from_secs(2);

/// When a worker runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After this long, or when it is woken.
    In(Duration),
    /// When it is woken.
    WhenWoken,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// The next run.
    pub next: Next,
    /// What needs attention, until a later run finds otherwise.
    pub finding: Option<Warning>,
}

impl Outcome {
    /// Nothing to tell.
    pub fn again_in(pause: Duration) -> Self {
        Self { next: Next::In(pause), finding: None }
    }
}

/// A run, as the work sees it.
pub struct Pass {
    worker: Arc<Worker>,
    stop: CancellationToken,
    why: Why,
}

/// Why a run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It was time, or something woke it.
    Due,
    /// By order.
    Ordered,
    /// The appliance stops.
    Last,
}

impl Pass {
    /// The worker, for progress and counters.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The appliance stops: the run should end soon.
    pub fn stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The run that is made because the appliance stops.
    pub fn is_last(&self) -> bool {
        self.why == Why::Last
    }

    /// Somebody ordered this run.
    pub fn is_ordered(&self) -> bool {
        self.why == Why::Ordered
    }

    /// Sleeps, unless the appliance stops meanwhile; false where it does. Waiting is progress.
    pub fn sleep(&self, mut pause: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(200);
        while !pause.is_zero() && !self.stopped() {
            let step = pause.min(STEP);
            std::thread::sleep(step);
            self.worker.beat();
            pause -= step;
        }
        !self.stopped()
    }
}

/// When a worker runs besides what its runs say.
#[derive(Clone, Default)]
pub struct Plan {
    /// Before the first run.
    pub first: Duration,
    /// Something else that wakes it.
    pub wake: Option<Arc<Notify>>,
    /// The run follows that waking after this long.
    pub wake_delay: Duration,
    /// One more run when the appliance stops.
    pub at_stop: bool,
}

impl Plan {
    /// First run after this long.
    pub fn after(first: Duration) -> Self {
        Self { first, ..Self::default() }
    }

    /// Every so often from its last run on, which may have been before a restart; from the first start on where
    /// there was none.
    pub fn every(worker: &Worker, every: Duration) -> Self {
        let since = worker.waits_since().map(|at| Moment::now().duration_since(at).unsigned_abs());
        Self::after(since.map_or(every, |since| every.saturating_sub(since).max(Duration::from_secs(60))))
    }
}

impl Worker {
    /// Runs the work, on a blocking thread, until the appliance stops.
    pub async fn drive(
        self: Arc<Self>,
        stop: CancellationToken,
        plan: Plan,
        work: impl Fn(&Pass) -> Result<Outcome, String> + Send + Sync + 'static,
    ) {
        let work = Arc::new(work);
        self.lock().driven = true;
        let mut next = Next::In(plan.first);
        let mut failures = 0;
        while let Some(why) = self.pause(&stop, &plan, next).await {
            let ended = self.run(&stop, work.clone(), why).await;
            if stop.is_cancelled() {
                break; // It may have ended early, and counts as one that did not begin.
            }
            match ended {
                Some(Ok(outcome)) => {
                    failures = 0;
                    next = outcome.next;
                    self.end(Ok(outcome.finding));
                }
                Some(Err(why)) => {
                    failures += 1;
                    let pause = back_off(failures);
                    tracing::warn!(
                        worker = self.name(),
                        why,
                        failures,
                        again_in = pause.as_secs(),
                        "a background worker failed; it is tried again"
                    );
                    next = Next::In(pause);
                    self.end(Err(why));
                }
                None => break,
            }
        }
        if plan.at_stop
            && let Some(Err(why)) = self.run(&stop, work, Why::Last).await
        {
            tracing::warn!(worker = self.name(), why, "a background worker failed while vbrd stops");
        }
    }

    /// Waits for the next run; none where the appliance stops.
    async fn pause(&self, stop: &CancellationToken, plan: &Plan, next: Next) -> Option<Why> {
        let span = match next {
            Next::In(pause) => Some(pause),
            Next::WhenWoken => None,
        };
        self.lock().next_run_at = span
            .and_then(|span| jiff::SignedDuration::try_from(span).ok())
            .and_then(|span| Moment::now().checked_add(span).ok());
        let woken = async {
            match &plan.wake {
                Some(wake) => wake.notified().await,
                None => std::future::pending().await,
            }
            tokio::time::sleep(plan.wake_delay).await;
        };
        tokio::select! {
            () = stop.cancelled() => None,
            () = tokio::time::sleep(span.unwrap_or_default()), if span.is_some() => Some(Why::Due),
            () = self.wake.notified() => Some(Why::Ordered),
            () = woken => Some(Why::Due),
        }
    }

    /// Looks now and then whether the run does anything.
    async fn watch(&self, pulse: &Pulse) -> Infallible {
        let mut last = None;
        loop {
            let felt = pulse.feel();
            if felt.is_some() && felt != last {
                self.stirs();
                last = felt;
            }
            tokio::time::sleep(self.spec.still_after / LOOKS).await;
        }
    }

    /// One run; none where it did not end although the appliance stops.
    async fn run(
        self: &Arc<Self>,
        stop: &CancellationToken,
        work: Arc<impl Fn(&Pass) -> Result<Outcome, String> + Send + Sync + 'static>,
        why: Why,
    ) -> Option<Result<Outcome, String>> {
        self.begin();
        let pass = Pass { worker: self.clone(), stop: stop.clone(), why };
        let pulse = Arc::new(Pulse::default());
        let felt = pulse.clone();
        let mut running = tokio::task::spawn_blocking(move || felt.during(|| work(&pass)));
        let ended = tokio::select! {
            ended = &mut running => ended,
            never = self.watch(&pulse) => match never {},
            () = stop.cancelled(), if why != Why::Last => tokio::time::timeout(LAST_RUN, running).await.ok()?,
        };
        Some(ended.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => Err(format!("it panicked: {}; report this", said(&*panic))),
            Err(error) => Err(error.to_string()),
        }))
    }
}

/// The pause after so many failures in a row.
pub(super) fn back_off(failures: u32) -> Duration {
    BACK_OFF.saturating_mul(1 << (failures.clamp(1, 16) - 1)).min(BACK_OFF_MAX)
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
