//! What follows an attempt: another one, from the target's cursor and under the same snapshot, or the end of
//! the session. The waiting of a session; `patience` says for how long.
//!
//! A session whose link stays away gives its slots back and asks again in its old place, so that sessions
//! to other peers do not wait for it. An attempt that stood still and was cut counts as a try after a failure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vbr_api::{Session, SessionBytes, SessionState};

use super::definitions::split_target;
use super::driver::{Driver, End};
use super::patience::{Next, Patience, WAIT_MAX};
use super::replicate::{AttemptError, Replication};
use super::session::SessionHandle;
use super::slots::Slot;
use super::story::Line;
use crate::error::Problem;
use crate::host::VmSnapshot;
use crate::wire::ChannelCounters;

/// An attempt that sent this much had a link.
const LINKED_BYTES: u64 = 64 * 1024;

impl Driver {
    /// Attempts until the point is sealed or there is no use in another one.
    pub(super) async fn attempts(
        &mut self,
        snapshot: &Arc<VmSnapshot>,
        slot: &mut Option<Slot>,
        asked: Instant,
    ) -> End {
        let peer = split_target(&self.spec.target).0;
        let number = self.handle.view().retry_number;
        let mut patience = Patience::new(peer, self.parts.waits.link, number, self.spec.retry.count);
        let mut kept: Option<Arc<Replication>> = None;
        loop {
            if slot.is_none() {
                match self.slot(asked).await {
                    Ok(held) => *slot = Some(held),
                    Err(end) => return end,
                }
                self.handle.update(|session| session.state = SessionState::Waiting);
            }
            self.tasks = slot.as_ref().map_or(1, |held| held.tasks);
            let before = self.handle.view();
            let stop = self.handle.pause.child_token();
            let result = {
                let this = &*self;
                tokio::select! {
                    result = this.attempt(snapshot, &mut kept, patience.distrusts(), stop.clone()) => result,
                    () = this.handle.cancel.cancelled() => Err(AttemptError::Cancelled),
                    () = this.handle.pause.cancelled() => Err(AttemptError::Cancelled),
                }
            };
            stop.cancel();
            note_progress(&mut patience, &before, &self.handle.view());
            let next = match result {
                Ok(point) => return End::Sealed { point },
                Err(_) if self.handle.cancel.is_cancelled() => return End::Cancelled,
                Err(_) if self.handle.pause.is_cancelled() => return End::Suspended,
                Err(AttemptError::Problem(problem)) => self.after(&mut patience, problem, &mut kept).await,
                Err(lost) => {
                    tracing::info!(why = %lost, "the link was lost; the session goes on when it is back");
                    self.handle.tell(Line::warning("link_lost", format!("the link was lost: {lost}")));
                    patience.lost(&lost.to_string(), Instant::now())
                }
            };
            let wait = match next {
                Next::Again(wait) => wait,
                Next::GiveUp(problem) => return End::Failed(problem),
            };
            self.handle.update(|session| session.state = SessionState::Waiting);
            if wait >= WAIT_MAX {
                *slot = None; // Most links are back at once; this one is not.
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.handle.cancel.cancelled() => return End::Cancelled,
                () = self.handle.pause.cancelled() => return End::Suspended,
            }
        }
    }

    /// After an attempt that failed for another reason than its link.
    async fn after(
        &self,
        patience: &mut Patience,
        problem: Problem,
        kept: &mut Option<Arc<Replication>>,
    ) -> Next {
        let next = patience.trouble(problem.clone(), Instant::now());
        if let Next::Again(_) = next {
            tracing::warn!(code = %problem.code, %problem, "the session waits and tries again");
            if self.recover(&problem).await {
                *kept = None;
            }
            self.handle.update(|session| {
                session.error = Some(problem.body());
                session.retry_number = patience.retry();
            });
        }
        next
    }

    /// What another attempt needs first; true where the session's tables start anew.
    async fn recover(&self, problem: &Problem) -> bool {
        let (repository, job) = (self.parts.repository.clone(), self.spec.name.clone());
        let session = self.record.session.session.clone();
        match problem.code.as_str() {
            "repository_damaged" | "root_mismatch" | "base_mismatch" => {
                let _ = tokio::task::spawn_blocking(move || {
                    let _ = repository.discard_progress(&job, &session);
                    repository.forget(&job)
                })
                .await;
                true
            }
            _ => false,
        }
    }
}

fn note_progress(patience: &mut Patience, before: &Session, after: &Session) {
    let settled = |session: &Session| -> u64 { session.disks.iter().map(|disk| disk.processed_bytes).sum() };
    if settled(after) > settled(before) {
        patience.moved();
    } else if after.bytes.sent_wire > before.bytes.sent_wire + LINKED_BYTES {
        patience.linked();
    }
}

/// What an attempt counts on the wire, on top of those before it.
#[derive(Clone)]
pub(super) struct Counting {
    pub handle: Arc<SessionHandle>,
    pub base: SessionBytes,
    pub counters: Arc<ChannelCounters>,
}

impl Counting {
    fn note(&self) {
        self.handle.note(|session: &mut Session| {
            session.bytes.sent_wire = self.base.sent_wire + self.counters.sent_wire();
            session.bytes.received_wire = self.base.received_wire + self.counters.received_wire();
        });
    }
}

/// Counts to the end of the attempt, also where that is dropped half-way, as by the end of a window.
pub(super) struct Counted(pub Counting);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.note();
    }
}

/// Twice a second: wire bytes, rate, and word to whoever watches.
pub(super) async fn sample(counting: Counting) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        counting.note();
        counting.handle.sample();
    }
}
