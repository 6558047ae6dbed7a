//! What the target says in an attempt: needs, held bases, durable progress, the seal.
//!
//! One async task; it never waits for the batcher (its queues hold more than can be open), so credit is
//! always taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, watch};

use super::ahead::AheadPage;
use super::prepare::{Ready, Work};
use super::replicate::{AttemptError, Replication, join};
use super::source_state::{PageKey, Wanted};
use crate::block::{Geometry, PAGE_BYTES, PAGE_CHUNKS};
use crate::wire::SessionReceiver;
use crate::wire::message::{Durable, Held, Message, Need, Sealed};

/// Applies messages until the point is sealed or the channel ends.
pub async fn receive(
    ctx: &Arc<Replication>,
    receiver: &mut SessionReceiver,
    work: mpsc::Sender<Work>,
    ready: mpsc::Sender<Vec<Ready>>,
    durable: watch::Sender<u64>,
) -> Result<Sealed, AttemptError> {
    loop {
        match receiver.recv().await? {
            Message::Need(need) => take_need(ctx, need, &work).await?,
            Message::Held(held) => take_held(ctx, &held, &ready).await?,
            Message::Durable(progress) => take_durable(ctx, &progress, &durable),
            Message::Sealed(sealed) => return Ok(sealed),
            Message::Fail(problem) => return Err(problem.into()),
            _ => return Err(AttemptError::Lost("the target sent a message out of turn".into())),
        }
    }
}

async fn take_need(
    ctx: &Arc<Replication>,
    need: Need,
    work: &mpsc::Sender<Work>,
) -> Result<(), AttemptError> {
    let key: PageKey = (need.disk, need.page);
    let positions: Vec<usize> = crate::accelerator::recipe::needed(&need).collect();
    let geometry = Geometry { disk_len: ctx.reader(need.disk)?.len() };
    if positions.last().is_some_and(|last| *last >= geometry.page_chunks(need.page)) {
        return Err(AttemptError::Lost("the target asked for chunks past the end of a disk".into()));
    }
    let (forced, positions, known) = match ctx.state.need(key, &positions) {
        Some(needed) => {
            let answer = needed.answer;
            ctx.ahead.note(&answer);
            ctx.bases.note_built(key, answer.known.iter().copied());
            if let Some(ids) = needed.settle {
                let worker = ctx.clone();
                let settle = move || worker.settle_page(key, &ids, false);
                join(tokio::task::spawn_blocking(settle).await)?;
                ctx.state.close(key);
            }
            (false, answer.missing, answer.known)
        }
        None => {
            reopen(ctx, key, positions.len()).await?;
            (true, positions, Vec::new())
        }
    };
    if !forced {
        let bytes: u64 = positions
            .iter()
            .map(|position| geometry.chunk_len(need.page * PAGE_CHUNKS as u64 + *position as u64) as u64)
            .sum();
        ctx.handle.note(|session| {
            session.bytes.deduplicated = session.bytes.deduplicated.saturating_sub(bytes);
            session.chunks.known = session.chunks.known.saturating_sub(positions.len() as u64);
        });
    }
    let (disk, page) = key;
    let wanted: Vec<Wanted> =
        positions.into_iter().map(|position| Wanted { disk, page, position, forced, ahead: false }).collect();
    ctx.preparing.fetch_add(wanted.len(), Ordering::Relaxed);
    work.send(Work { key, wanted, known }).await.map_err(|_| AttemptError::Cancelled)
}

/// The answer to a probe: its chunks may go into batches.
async fn take_held(
    ctx: &Replication,
    held: &Held,
    ready: &mpsc::Sender<Vec<Ready>>,
) -> Result<(), AttemptError> {
    let chunks = ctx
        .probes
        .answered(&ctx.bases, held)
        .ok_or_else(|| AttemptError::Lost("the target answered a probe that was not sent".into()))?;
    ready.send(chunks).await.map_err(|_| AttemptError::Cancelled)
}

/// The target asks again for chunks of a page: open it once more from the manifest being built.
async fn reopen(ctx: &Arc<Replication>, key: PageKey, count: usize) -> Result<(), AttemptError> {
    if ctx.state.add_need(key, count) {
        return Ok(());
    }
    let lost = || AttemptError::Lost("the target asked for a page that was not offered".into());
    let hash = ctx.state.hash(key).ok_or_else(lost)?;
    let worker = ctx.clone();
    let ids = tokio::task::spawn_blocking(move || worker.base_page(key.0, &hash))
        .await
        .map_err(|e| AttemptError::Lost(e.to_string()))??;
    let ahead = AheadPage::default();
    let offer = super::source_state::OpenOffer { ids, ahead, remaining: Some(count), room: None };
    ctx.state.open(key, offer);
    Ok(())
}

fn take_durable(ctx: &Replication, progress: &Durable, durable: &watch::Sender<u64>) {
    durable.send_replace(progress.payload_bytes);
    ctx.bases.note_cursors(&progress.cursors);
    ctx.handle.note_target_busy(progress.busy_ms);
    let settled = ctx.state.progress();
    ctx.handle.note(|session| {
        for (n, disk) in session.disks.iter_mut().enumerate() {
            let page = settled.get(n).copied().unwrap_or(0);
            disk.processed_bytes = disk.processed_bytes.max((page * PAGE_BYTES).min(disk.virtual_bytes));
        }
    });
}
