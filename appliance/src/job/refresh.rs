//! Keeping a source's copies of its targets' filters of shared chunks, at a price that they can win back.
//!
//! After a session that sent chunks, in the background, and at most once in [`INTERVAL`] a target: an
//! unchanged run asks for nothing. A refresh may cost a hundredth of what was sent to that target since the last
//! one ([`Refresh`]), so a slow line never carries a large filter for small sessions; the
//! target does not answer with more than that. Failure leaves the old copy: it is a hint.
//!
//! Bounds: one refresh a target at once, [`SHARED_DELTAS_MAX`] questions each, a line for each paired target.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vbr_api::Session;

use super::parts::Parts;
use crate::accelerator::shared_filter::{Delta, SharedFilter};
use crate::limits::SHARED_DELTAS_MAX;
use crate::wire::message::{Request, Response};
use crate::wire::{PeerRecord, capability};
use crate::worker::{Role, Spec, Worker, Workers};

/// Between two refreshes of one target's filter.
const INTERVAL: Duration = Duration::from_secs(3600);
/// A question and its answer cost about this; for less nobody asks.
const QUESTION_BYTES: u64 = 256;
/// Of what was sent, a refresh may cost one part in so many.
const SHARE: u64 = 100;

/// What is known of one target's refreshes.
#[derive(Clone, Copy, Debug, Default)]
struct Refresh {
    asked: Option<Instant>,
    /// Bytes sent since, in sessions that had chunks to send.
    sent: u64,
}

impl Refresh {
    /// What a refresh may cost now; none where it is not due.
    fn due(&self, now: Instant) -> Option<u64> {
        let rested = self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= INTERVAL);
        Some(self.sent / SHARE).filter(|bytes| rested && *bytes >= QUESTION_BYTES)
    }
}

/// All targets' refreshes, by PeerId.
pub struct Refreshes {
    lines: Mutex<BTreeMap<String, Refresh>>,
    worker: Arc<Worker>,
}

impl Refreshes {
    /// None yet.
    pub fn new(workers: &Workers) -> Self {
        let what = "fetches from targets which chunks branches share, after sessions";
        let worker = workers.register(Spec::new("filter-refresh", Role::Source, what).steady());
        Self { lines: Mutex::default(), worker }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Refresh>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session with a target is over; says what a refresh may cost where one is due, which begins now.
    fn begin(&self, peer_id: &str, session: &Session, now: Instant) -> Option<u64> {
        let mut lines = self.lock();
        let line = lines.entry(peer_id.to_string()).or_default();
        if session.chunks.literal + session.chunks.delta == 0 {
            return None; // A run that found nothing new has to stay as small as it is.
        }
        line.sent += session.bytes.sent_wire;
        let due = line.due(now)?;
        *line = Refresh { asked: Some(now), sent: 0 };
        Some(due)
    }
}

/// A session with this target is over.
pub fn refresh_after(parts: &Arc<Parts>, peer: PeerRecord, session: &Session) {
    if !parts.wire.peer_can(&peer.peer_id, capability::SHARED_FILTER) {
        return;
    }
    let Some(bytes_max) = parts.refreshes.begin(&peer.peer_id, session, Instant::now()) else { return };
    let (tasks, parts) = (parts.tasks.clone(), parts.clone());
    tasks.spawn(async move {
        let worker = &parts.refreshes.worker;
        worker.begin();
        let refreshed = tokio::select! {
            refreshed = refresh(&parts, &peer, bytes_max) => refreshed,
            () = parts.stop.cancelled() => return,
        };
        worker.count(if refreshed.is_ok() { "refreshed" } else { "failed" }, 1);
        worker.end(Ok(None)); // What failed is a hint, and comes with a later session.
        match refreshed {
            Ok(true) => tracing::debug!(peer = %peer.name, bytes_max, "the filter of shared chunks is up to date"),
            Ok(false) => tracing::debug!(peer = %peer.name, bytes_max, "the filter of shared chunks would cost too much"),
            Err(why) => {
                tracing::info!(peer = %peer.name, why, "the filter of shared chunks was not refreshed; the old one stays");
            }
        }
    });
}

/// Asks until there is no more; false where the target has too much to tell.
async fn refresh(parts: &Arc<Parts>, peer: &PeerRecord, bytes_max: u64) -> Result<bool, String> {
    let (filters, id, tag) = (parts.filters.clone(), peer.peer_id.clone(), peer.domain_key.tag());
    let old = blocking(move || Ok(filters.of(&id, tag))).await?;
    let mut filter = SharedFilter::clone(&old);
    let mut left = bytes_max;
    for _ in 0..SHARED_DELTAS_MAX {
        let cursor = filter.cursor();
        // A filter that began to come is taken to its end: its first part was answered for the whole.
        let bytes_max = if cursor.is_some_and(|cursor| cursor.part.is_some()) { u64::MAX } else { left };
        let answer = parts.wire.request(&peer.peer_id, Request::SharedFilter { cursor, bytes_max }).await;
        let packed = match answer.map_err(|e| e.to_string())? {
            Response::SharedFilter(Some(packed)) => packed,
            Response::SharedFilter(None) => return keep(parts, peer, filter, &old).await.map(|()| false),
            Response::Problem(problem) => return Err(problem.to_string()),
            _ => return Err("the target answered something else".to_string()),
        };
        parts.refreshes.worker.beat();
        left = left.saturating_sub(packed.len() as u64);
        let (next, more) = blocking(move || {
            let delta = Delta::unpack(&packed).map_err(|e| e.to_string())?;
            filter.apply(&delta).map_err(|e| e.to_string())?;
            Ok((filter, delta.more))
        })
        .await?;
        filter = next;
        if !more {
            break;
        }
    }
    keep(parts, peer, filter, &old).await.map(|()| true)
}

/// Uses and stores what is new.
async fn keep(
    parts: &Arc<Parts>,
    peer: &PeerRecord,
    filter: SharedFilter,
    old: &SharedFilter,
) -> Result<(), String> {
    if filter.cursor() == old.cursor() {
        return Ok(());
    }
    let (filters, id, tag) = (parts.filters.clone(), peer.peer_id.clone(), peer.domain_key.tag());
    blocking(move || filters.put(&id, tag, filter).map_err(|e| e.to_string())).await
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, String> + Send + 'static,
) -> Result<R, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refresh(sent: u64, asked: Option<Instant>) -> Refresh {
        Refresh { asked, sent }
    }

    #[test]
    fn a_refresh_costs_a_hundredth_of_what_was_sent_and_is_rare() {
        let now = Instant::now() + 2 * INTERVAL;
        assert_eq!(refresh(0, None).due(now), None, "nothing was sent");
        assert_eq!(refresh(25_599, None).due(now), None, "a question would cost more");
        assert_eq!(refresh(25_600, None).due(now), Some(256));
        assert_eq!(refresh(1 << 30, Some(now - INTERVAL / 2)).due(now), None, "it is too soon");
        assert_eq!(refresh(1 << 30, Some(now - INTERVAL)).due(now), Some((1 << 30) / 100));
    }
}
