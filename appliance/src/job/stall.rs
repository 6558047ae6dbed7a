//! Sessions that stand still: found while their link is up, said where, and cut.
//!
//! Progress is a byte read or sent, a page settled, or a piece of work that a stage finished. [`Watchdog`]
//! decides, sans-IO; [`watched`] looks once a second. A session without progress for the first bound gets a warning
//! with the stage that it waits for; after the second its attempt is cut, and begins again at the durable cursor.
//! Not its job: a link that is down (the wire finds that), and what follows the cut.

use std::future::Future;
use std::time::{Duration, Instant};

use vbr_api::{Moment, Stall};

use super::session::{SessionHandle, Signs};
use crate::error::Problem;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks further apart than this: the process stood still itself, and the gap is nobody's stall.
const GAP_MAX: Duration = Duration::from_secs(10);
/// Warnings of one session; after that the log alone tells.
const WARNINGS_MAX: usize = 8;

/// How long a session may stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallBounds {
    /// Until it is told.
    pub warning: Duration,
    /// Until the attempt is cut; more than `warning`.
    pub cut: Duration,
}

/// What a look comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well, or it is too early to say.
    Fine,
    /// It stands still for the first bound: to be told, once.
    Stalled,
    /// It moves again after that.
    Recovered,
    /// It stands still for the second bound.
    Cut,
}

/// See the module.
#[derive(Debug)]
pub struct Watchdog {
    bounds: StallBounds,
    progress: [u64; 8],
    since: Instant,
    looked: Instant,
    told: bool,
}

impl Watchdog {
    /// Begins to watch.
    pub fn new(bounds: StallBounds, progress: [u64; 8], now: Instant) -> Self {
        Self { bounds, progress, since: now, looked: now, told: false }
    }

    /// Looks at the session's counters; any that moved is progress.
    pub fn look(&mut self, progress: [u64; 8], now: Instant) -> Verdict {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = now;
        if gap > GAP_MAX {
            self.since += gap;
        }
        if progress != self.progress {
            (self.progress, self.since) = (progress, now);
            return if std::mem::take(&mut self.told) { Verdict::Recovered } else { Verdict::Fine };
        }
        let still = now.saturating_duration_since(self.since);
        if still >= self.bounds.cut {
            return Verdict::Cut;
        }
        if still >= self.bounds.warning && !self.told {
            self.told = true;
            return Verdict::Stalled;
        }
        Verdict::Fine
    }

    /// How long nothing has moved.
    pub fn still(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// What a session waits for that makes no progress.
pub fn stage(signs: &Signs) -> &'static str {
    match signs {
        Signs { source_host: true, .. } => "source_host",
        Signs { source_mover: true, .. } => "source_mover",
        Signs { source_accelerator: true, .. } => "source_accelerator",
        Signs { queued_bytes: 0, .. } => "target",
        _ => "network",
    }
}

/// What an operator makes of a stage, and what to look at.
fn words(stage: &str) -> (&'static str, &'static str) {
    match stage {
        "source_host" => {
            ("a read of the source disk does not return", "look at the source disk and the kernel's log here")
        }
        "source_mover" => ("the repository does not answer", "look at the disk of the state directory here"),
        "source_accelerator" => ("compressing does not end", "report this, with the log"),
        "network" => ("the link is up and takes no data", "look at the line and at what else it carries"),
        _ => (
            "the target has everything and does not answer",
            "look at the datastore and the kernel's log at the target",
        ),
    }
}

/// Does the work and watches it; the error where it was cut, with the work dropped.
pub async fn watched<T>(
    handle: &SessionHandle,
    bounds: StallBounds,
    work: impl Future<Output = T>,
) -> Result<T, Problem> {
    let watch = async {
        let mut dog = Watchdog::new(bounds, handle.progress(), Instant::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Instant::now();
            match dog.look(handle.progress(), now) {
                Verdict::Fine => {}
                Verdict::Stalled => tell(handle, dog.still(now)),
                Verdict::Recovered => {
                    tracing::info!("the session moves again");
                    handle.update(|session| session.stalled = None);
                }
                Verdict::Cut => return cut(handle, dog.still(now)),
            }
        }
    };
    let result = tokio::select! {
        result = work => Ok(result),
        problem = watch => Err(problem),
    };
    handle.update_where(|session| session.stalled.is_some(), |session| session.stalled = None);
    result
}

fn tell(handle: &SessionHandle, still: Duration) {
    let stage = stage(&handle.signs());
    let (why, next) = words(stage);
    let seconds = still.as_secs();
    tracing::warn!(stage, seconds, next, "the session makes no progress: {why}");
    let since = Moment::now().saturating_sub(jiff::SignedDuration::try_from(still).unwrap_or_default());
    let since = since.unwrap_or_else(|_| Moment::now());
    handle.update(|session| {
        session.stalled = Some(Stall { stage: stage.to_string(), since });
        if session.warnings.len() < WARNINGS_MAX {
            let at = since.strftime("%H:%M:%S UTC");
            session.warnings.push(format!("it stood still at {stage} from {at} on: {why}; {next}"));
        }
    });
}

fn cut(handle: &SessionHandle, still: Duration) -> Problem {
    let stage = stage(&handle.signs());
    let (why, next) = words(stage);
    tracing::warn!(stage, seconds = still.as_secs(), "the attempt is cut: {why}");
    Problem::new(
        "stalled",
        "the session makes no progress",
        format!("nothing has moved for {} s at {stage}: {why}", still.as_secs()),
        next,
    )
    .retry()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: StallBounds =
        StallBounds { warning: Duration::from_secs(300), cut: Duration::from_secs(900) };

    /// Looks every second; `moves` says in which seconds there is progress.
    fn run(seconds: u64, moves: impl Fn(u64) -> bool) -> Vec<(u64, Verdict)> {
        let zero = Instant::now();
        let (mut dog, mut count, mut seen) = (Watchdog::new(BOUNDS, [0; 8], zero), 0, Vec::new());
        for second in 1..=seconds {
            count += u64::from(moves(second));
            let verdict = dog.look([0, 0, 0, count, 0, 0, 0, 0], zero + Duration::from_secs(second));
            if verdict != Verdict::Fine {
                seen.push((second, verdict));
            }
            if verdict == Verdict::Cut {
                break;
            }
        }
        seen
    }

    #[test]
    fn a_stall_is_told_and_cut() {
        assert_eq!(run(2000, |_| false), [(300, Verdict::Stalled), (900, Verdict::Cut)]);
        assert_eq!(
            run(899, |second| second == 400),
            [(300, Verdict::Stalled), (400, Verdict::Recovered), (700, Verdict::Stalled)]
        );
    }

    #[test]
    fn a_process_that_stood_still_itself_blames_nobody() {
        let zero = Instant::now();
        let mut dog = Watchdog::new(BOUNDS, [0; 8], zero);
        assert_eq!(dog.look([0; 8], zero + Duration::from_secs(2000)), Verdict::Fine);
        assert_eq!(dog.look([0; 8], zero + Duration::from_secs(2001)), Verdict::Fine);
    }

    #[test]
    fn stages() {
        let idle = Signs::default();
        assert_eq!(stage(&idle), "target");
        assert_eq!(stage(&Signs { queued_bytes: 7, ..idle }), "network");
        assert_eq!(stage(&Signs { queued_bytes: 7, source_host: true, ..idle }), "source_host");
        assert_eq!(stage(&Signs { source_mover: true, ..idle }), "source_mover");
        assert_eq!(stage(&Signs { source_accelerator: true, ..idle }), "source_accelerator");
    }

    proptest! {
        /// However it moves: it is told exactly when it stood still for the first bound, never before, and cut
        /// exactly when it did for the second.
        #[test]
        fn nothing_is_told_too_early_or_too_late(gaps in prop::collection::vec(1u64..1000, 1..20)) {
            let mut at = 0;
            let moves: Vec<u64> = gaps.iter().map(|gap| { at += gap; at }).collect();
            let seen = run(at, |second| moves.contains(&second));
            let mut expected = Vec::new();
            let mut from = 0;
            for (gap, end) in gaps.iter().zip(&moves) {
                if *gap > 300 {
                    expected.push((from + 300, Verdict::Stalled));
                    if *gap > 900 {
                        expected.push((from + 900, Verdict::Cut));
                        break;
                    }
                    expected.push((*end, Verdict::Recovered));
                }
                from = *end;
            }
            prop_assert_eq!(seen, expected);
        }
    }
}
