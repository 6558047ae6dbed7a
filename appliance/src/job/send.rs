//! Sending: needed chunks become batches, batches spend credit.
//!
//! The batcher re-reads each needed chunk from the snapshot and hashes it again: content that is not
//! what was offered means that the disk changed under us. It gathers the bases that the chunks' anchors
//! lead to, by now including what this session has sent, and compresses with as much effort as the
//! line leaves time for. Bounds: one batch compressed ahead of the one that waits for credit;
//! [`CREDIT_BYTES`] of payload that is not durable at the target.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::ahead::note_ahead;
use super::prepare::{Ready, anchors_of, block_of};
use super::replicate::{AttemptError, Credit, Replication};
use super::source_state::SentIds;
use crate::accelerator::batch::{BatchBuilder, Prefix};
use crate::accelerator::effort::{Effort, Made};
use crate::accelerator::prefix;
use crate::block::{CHUNK_BYTES, ChunkId, Geometry, PAGE_CHUNKS};
use crate::error::Problem;
use crate::limits::{BATCH_WAIT, CREDIT_BYTES};
use crate::wire::SessionSender;
use crate::wire::message::{Batch, Entry, Message, PrefixFrom, PrefixRun};

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
    mut ready: mpsc::Receiver<Vec<Ready>>,
    out: mpsc::Sender<Outgoing>,
) -> Result<(), AttemptError> {
    let runtime = Handle::current();
    let mut queue: VecDeque<Ready> = VecDeque::new();
    let mut sent = SentIds::default();
    loop {
        let plain_bytes = ctx.batch_bytes();
        while queue.len() * CHUNK_BYTES < plain_bytes {
            match runtime.block_on(next_ready(ctx, &mut ready, queue.is_empty())) {
                Gathered::More(more) => {
                    ctx.preparing.fetch_sub(more.len(), Ordering::Relaxed);
                    queue.extend(more);
                }
                Gathered::Quiet => break,
                Gathered::Ended => return Ok(()),
            }
        }
        if !queue.is_empty() {
            let permit = runtime.block_on(ctx.compressors.clone().acquire_owned());
            let start = Instant::now();
            let (batches, mut made) = build(ctx, &mut queue, &mut sent, plain_bytes)?;
            if batches.is_empty() {
                continue; // All of it was to go ahead, and turned out to be there.
            }
            made.work = start.elapsed();
            drop(permit);
            made.stored = batches.iter().map(|batch| batch.payload.len()).sum();
            let start = Instant::now();
            for batch in batches {
                if runtime.block_on(out.send(Outgoing::Batch(batch))).is_err() {
                    return Ok(());
                }
            }
            made.waited = start.elapsed();
            tracing::debug!(effort = ctx.effort().name, ?made, "a batch was made");
            ctx.batch_made(made);
        } else if ctx.state.may_seal() {
            ctx.state.begin_seal();
            if runtime.block_on(out.send(Outgoing::Seal)).is_err() {
                return Ok(());
            }
        }
    }
}

enum Gathered {
    More(Vec<Ready>),
    Quiet,
    Ended,
}

/// More chunks, or word that a batch should go as it is.
async fn next_ready(ctx: &Replication, ready: &mut mpsc::Receiver<Vec<Ready>>, idle: bool) -> Gathered {
    if let Ok(more) = ready.try_recv() {
        return Gathered::More(more);
    }
    // Everything was asked for and is prepared: what is queued is all there will be.
    let all = || ctx.state.nothing_outstanding() && ctx.preparing.load(Ordering::Relaxed) == 0;
    if if idle { ctx.state.may_seal() } else { all() } {
        return Gathered::Quiet;
    }
    tokio::select! {
        more = ready.recv() => more.map_or(Gathered::Ended, Gathered::More),
        () = ctx.stop.cancelled() => Gathered::Ended,
        () = ctx.state.quiet.notified() => Gathered::Quiet,
        () = tokio::time::sleep(BATCH_WAIT), if !idle => Gathered::Quiet,
    }
}

/// A literal of the batch that is being built.
struct Literal {
    ready: Ready,
    chunk: u64,
    id: ChunkId,
    /// Where its bytes lie in the batch.
    bytes: std::ops::Range<usize>,
}

/// Fills one batch from the front of the queue; with it its plain bytes.
fn build(
    ctx: &Replication,
    queue: &mut VecDeque<Ready>,
    sent: &mut SentIds,
    plain_bytes: usize,
) -> Result<(Vec<Batch>, Made), AttemptError> {
    let accelerator = &ctx.handle.clocks.source_accelerator;
    let effort = ctx.effort();
    let plain_bytes = plain_bytes.min(effort.batch_bytes);
    let mut builder = BatchBuilder::default();
    let mut literals = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = Vec::new();
    while !builder.is_full(plain_bytes) {
        let Some(mut ready) = queue.pop_front() else { break };
        let wanted = ready.wanted;
        if !ctx.state.wants(&wanted) {
            continue;
        }
        let reader = ctx.reader(wanted.disk)?;
        let geometry = Geometry { disk_len: reader.len() };
        let chunk = wanted.page * PAGE_CHUNKS as u64 + wanted.position as u64;
        let data = &mut buffer[..geometry.chunk_len(chunk)];
        if wanted.ahead {
            ctx.handle.note(|session| note_ahead(session, geometry.chunk_len(chunk)));
        }
        let start = geometry.chunk_range(chunk).start;
        let host = &ctx.handle.clocks.source_host;
        host.time(|| reader.read_at(start, data)).map_err(|e| ctx.read_problem(wanted.disk, &e))?;
        let id = accelerator.time(|| ctx.key.chunk_id(data));
        let offered = ctx.state.open_id((wanted.disk, wanted.page), wanted.position);
        if offered.is_some_and(|offered| offered != id) {
            ctx.changed_while_read(wanted.disk)?;
        }
        let known = !id.is_zero() && sent.seen(id.short());
        if known && !wanted.forced {
            builder.copy(wanted.disk, chunk, id.short());
        } else {
            let from = builder.plain_bytes();
            builder.literal(wanted.disk, chunk, data);
            // Prepared while the line seemed too fast for bases: its own disk's may serve all the same.
            if ready.anchors.is_empty() && effort.bases && !wanted.forced {
                ready.anchors = accelerator.time(|| anchors_of(data));
            }
            ctx.bases.note_anchors(!ready.anchors.is_empty() || effort.bases);
            literals.push(Literal { ready, chunk, id, bytes: from..builder.plain_bytes() });
        }
        done.push((wanted, id));
    }
    if done.is_empty() {
        return Ok((Vec::new(), Made::default()));
    }
    let (plain, sampled) = (builder.plain_bytes(), builder.expected_bytes());
    let prefix = accelerator.time(|| gather(ctx, &literals, &builder, plain_bytes, &effort));
    accelerator.time(|| keep(ctx, &literals, &builder));
    let batches = accelerator.time(|| builder.finish(prefix, &effort)).map_err(|e| {
        AttemptError::Problem(Problem::new("internal", "packing a batch", e.to_string(), "report this"))
    })?;
    for (wanted, id) in done {
        ctx.bases.note_built((wanted.disk, wanted.page), [wanted.position]);
        if let Some(whole) = ctx.state.sent(&wanted, id) {
            ctx.settle_page((wanted.disk, wanted.page), &whole.ids, false)?;
        }
    }
    Ok((batches, Made { tier: effort.tier(), plain, sampled, ..Made::default() }))
}

/// The blocks that resemble the batch's content and that the target has. None for chunks it asks for
/// again: what went wrong may have been a base.
fn gather(
    ctx: &Replication,
    literals: &[Literal],
    builder: &BatchBuilder,
    plain_bytes: usize,
    effort: &Effort,
) -> Prefix {
    let mut prefix = Prefix::default();
    if !effort.bases || literals.iter().any(|literal| literal.ready.wanted.forced) {
        return prefix;
    }
    let known = literals.iter().filter(|literal| literal.ready.known != 0);
    for literal in known {
        let data = builder.plain().get(literal.bytes.clone()).unwrap_or_default();
        let (disk, chunk) = (literal.ready.wanted.disk, literal.chunk);
        let from = PrefixFrom::Known { disk, chunk };
        prefix.runs.push(PrefixRun { from, blocks: literal.ready.known });
        prefix::blocks(data, literal.ready.known).for_each(|block| prefix.bytes.extend_from_slice(block));
    }
    let anchors = literals.iter().flat_map(|literal| &literal.ready.anchors).map(|(anchor, _)| *anchor);
    let hits = ctx.bases.anchors.find(anchors);
    let room = (3 * plain_bytes).saturating_sub(prefix.bytes.len());
    let (mut unknown, mut unconfirmed, mut gone) = (0, 0, 0);
    for ((image, chunk), blocks) in prefix::around(hits.into_iter().flatten(), room) {
        let Some(found) = ctx.bases.find(ctx, image, chunk) else {
            unknown += 1;
            continue;
        };
        let Some(from) = found.from else {
            unconfirmed += 1;
            continue;
        };
        let Some(data) = ctx.bases.bytes(ctx, image, chunk, &found.id) else {
            gone += 1;
            continue;
        };
        prefix.runs.push(PrefixRun { from, blocks });
        prefix::blocks(&data, blocks).for_each(|block| prefix.bytes.extend_from_slice(block));
    }
    let (runs, bytes) = (prefix.runs.len(), prefix.bytes.len());
    tracing::debug!(runs, bytes, unknown, unconfirmed, gone, "bases of a batch");
    prefix
}

/// Remembers what is sent: its anchors, and its bytes for the day it is overwritten.
fn keep(ctx: &Replication, literals: &[Literal], builder: &BatchBuilder) {
    for literal in literals {
        let wanted = &literal.ready.wanted;
        if let Some(image) = ctx.bases.building(wanted.disk) {
            let block = |block: u8| block_of(literal.chunk, block);
            let anchors = literal.ready.anchors.iter().map(|(anchor, at)| (*anchor, block(*at)));
            ctx.bases.anchors.put(image, anchors);
        }
        if let Some(data) = builder.plain().get(literal.bytes.clone())
            && ctx.keep_sent
            && !literal.id.is_zero()
        {
            let replaced = ctx.bases.replaces(ctx, (wanted.disk, wanted.page), wanted.position);
            ctx.bases.keep_sent(ctx, literal.id, data, replaced);
        }
    }
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
    let base: u64 = batch.header.prefix.iter().map(|run| u64::from(run.blocks.count_ones()) * 4096).sum();
    let recipe = Message::Batch(batch.clone()).encode().1.len() as u64;
    let payload = batch.payload.len() as u64;
    ctx.handle.note(|session| {
        session.bytes.sent_payload += payload + recipe;
        session.bytes.delta_base += base;
        if base > 0 {
            session.chunks.delta += literals as u64;
        } else {
            session.chunks.literal += literals as u64;
        }
        session.chunks.known += copies as u64;
        session.bytes.deduplicated += (copies * CHUNK_BYTES) as u64;
        if let Some(Entry::Literal { disk, .. } | Entry::Copy { disk, .. }) = batch.header.entries.first()
            && let Some(disk) = session.disks.get_mut(*disk as usize)
        {
            disk.sent_bytes += payload + recipe;
        }
    });
}
