//! Sending: needed chunks become batches, batches spend credit.
//!
//! The batcher re-reads each needed chunk from the snapshot and hashes it again: content that is not
//! what was offered means that the disk changed under us. Bounds: one batch compressed ahead of the one
//! that waits for credit; [`CREDIT_BYTES`] of payload that is not durable at the target.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::replicate::{AttemptError, Credit, Replication};
use super::source_state::{SentIds, Wanted};
use crate::accelerator::batch::BatchBuilder;
use crate::block::{CHUNK_BYTES, Geometry, PAGE_CHUNKS};
use crate::error::Problem;
use crate::limits::{BATCH_PLAIN_BYTES_MAX, BATCH_WAIT, CREDIT_BYTES};
use crate::wire::SessionSender;
use crate::wire::message::{Batch, Entry, Message};

/// What the transmitter sends next.
pub enum Outgoing {
    /// Chunks.
    Batch(Batch),
    /// Nothing is left: ask for the seal.
    Seal,
}

/// Packs needed chunks until the attempt ends. Blocking.
pub fn batch_loop(
    ctx: &Replication,
    mut needs: mpsc::Receiver<Vec<Wanted>>,
    out: mpsc::Sender<Outgoing>,
) -> Result<(), AttemptError> {
    let runtime = Handle::current();
    let mut queue: VecDeque<Wanted> = VecDeque::new();
    let mut sent = SentIds::default();
    let enough = BATCH_PLAIN_BYTES_MAX / CHUNK_BYTES;
    loop {
        while queue.len() < enough {
            match runtime.block_on(next_needs(ctx, &mut needs, queue.is_empty())) {
                Gathered::More(more) => queue.extend(more),
                Gathered::Quiet => break,
                Gathered::Ended => return Ok(()),
            }
        }
        if !queue.is_empty() {
            let permit = runtime.block_on(ctx.compressors.clone().acquire_owned());
            let batch = build(ctx, &mut queue, &mut sent)?;
            drop(permit);
            if runtime.block_on(out.send(Outgoing::Batch(batch))).is_err() {
                return Ok(());
            }
        } else if ctx.state.may_seal() {
            ctx.state.begin_seal();
            if runtime.block_on(out.send(Outgoing::Seal)).is_err() {
                return Ok(());
            }
        }
    }
}

enum Gathered {
    More(Vec<Wanted>),
    Quiet,
    Ended,
}

/// More needed chunks, or word that a batch should go as it is.
async fn next_needs(ctx: &Replication, needs: &mut mpsc::Receiver<Vec<Wanted>>, idle: bool) -> Gathered {
    if let Ok(more) = needs.try_recv() {
        return Gathered::More(more);
    }
    // Everything was asked for: what is queued is all there will be.
    if if idle { ctx.state.may_seal() } else { ctx.state.nothing_outstanding() } {
        return Gathered::Quiet;
    }
    tokio::select! {
        more = needs.recv() => more.map_or(Gathered::Ended, Gathered::More),
        () = ctx.stop.cancelled() => Gathered::Ended,
        () = ctx.state.quiet.notified() => Gathered::Quiet,
        () = tokio::time::sleep(BATCH_WAIT), if !idle => Gathered::Quiet,
    }
}

/// Fills one batch from the front of the queue.
fn build(ctx: &Replication, queue: &mut VecDeque<Wanted>, sent: &mut SentIds) -> Result<Batch, AttemptError> {
    let clocks = &ctx.handle.clocks;
    let codec = |e: crate::accelerator::batch::BatchError| {
        AttemptError::Problem(Problem::new("internal", "packing a batch", e.to_string(), "report this"))
    };
    let mut builder = BatchBuilder::new().map_err(codec)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    while !builder.is_full() {
        let Some(wanted) = queue.pop_front() else { break };
        let reader = ctx.reader(wanted.disk)?;
        let geometry = Geometry { disk_len: reader.len() };
        let chunk = wanted.page * PAGE_CHUNKS as u64 + wanted.position as u64;
        let range = geometry.chunk_range(chunk);
        let data = &mut buffer[..geometry.chunk_len(chunk)];
        clocks
            .source_host
            .time(|| reader.read_at(range.start, data))
            .map_err(|e| ctx.read_problem(wanted.disk, &e))?;
        let id = clocks.source_accelerator.time(|| ctx.key.chunk_id(data));
        if ctx.state.id(&wanted).is_some_and(|offered| offered != id) {
            ctx.changed_while_read(wanted.disk)?;
        }
        let known = !id.is_zero() && sent.seen(id.short());
        if known && !wanted.forced {
            builder.copy(wanted.disk, chunk, id.short());
        } else {
            clocks.source_accelerator.time(|| builder.literal(wanted.disk, chunk, data)).map_err(codec)?;
        }
        if let Some(whole) = ctx.state.sent(&wanted, id) {
            ctx.settle_page((wanted.disk, wanted.page), &whole.ids, false)?;
        }
    }
    clocks.source_accelerator.time(|| builder.finish()).map_err(codec)
}

/// Sends batches as credit allows, and the seal when everything is sent.
pub async fn transmit(
    ctx: Arc<Replication>,
    credit: Arc<Credit>,
    sender: SessionSender,
    mut queue: mpsc::Receiver<Outgoing>,
    mut durable: watch::Receiver<u64>,
) -> Result<(), AttemptError> {
    while let Some(next) = queue.recv().await {
        let batch = match next {
            Outgoing::Batch(batch) => batch,
            Outgoing::Seal => {
                let worker = ctx.clone();
                let seal = tokio::task::spawn_blocking(move || worker.prepare_seal())
                    .await
                    .map_err(|e| AttemptError::Lost(e.to_string()))??;
                sender.send(seal).await?;
                continue;
            }
        };
        let start = Instant::now();
        let payload = batch.payload.len() as u64;
        let sent = credit.sent.load(Ordering::Relaxed);
        let enough = |durable: &u64| *durable >= sent || sent + payload <= *durable + CREDIT_BYTES;
        durable.wait_for(enough).await.map_err(|_| AttemptError::Cancelled)?;
        credit.sent.store(sent + payload, Ordering::Relaxed);
        note_batch(&ctx, &batch);
        sender.send(Message::Batch(batch)).await?;
        ctx.handle.clocks.network.add(start);
    }
    // The queue ends with the attempt; stay until then, so that the end is not taken for a failure.
    std::future::pending().await
}

fn note_batch(ctx: &Replication, batch: &Batch) {
    let literals = batch.header.entries.iter().filter(|entry| matches!(entry, Entry::Literal { .. })).count();
    let copies = batch.header.entries.len() - literals;
    let recipe = Message::Batch(batch.clone()).encode().1.len() as u64;
    let payload = batch.payload.len() as u64;
    ctx.handle.note(|session| {
        session.bytes.sent_payload += payload + recipe;
        session.chunks.literal += literals as u64;
        session.chunks.known += copies as u64;
        session.bytes.deduplicated += (copies * CHUNK_BYTES) as u64;
        if let Some(Entry::Literal { disk, .. } | Entry::Copy { disk, .. }) = batch.header.entries.first()
            && let Some(disk) = session.disks.get_mut(*disk as usize)
        {
            disk.sent_bytes += payload + recipe;
        }
    });
}
