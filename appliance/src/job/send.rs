//! Batching: needed chunks become batches.
//!
//! The batcher re-reads each needed chunk from the snapshot and hashes it again: content that is not
//! what was offered means that the disk changed under us. It gathers the bases that the chunks' anchors
//! lead to, by now including what this session has sent, and compresses with as much effort as the
//! line leaves time for: itself, or, what takes longer than can be kept up, beside the batches after it.
//! Bounds: [`Rooms`](super::transmit::Rooms) for batches that wait to be transmitted;
//! [`COMPRESSORS_MAX`](crate::limits::COMPRESSORS_MAX) that are made at once in the whole appliance.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::ahead::note_ahead;
use super::prepare::{ChunkAnchor, Ready, anchors_of, block_of};
use super::replicate::{AttemptError, Replication};
use super::source_state::SentIds;
use super::transmit::{Outgoing, Packing, Pipe};
use crate::accelerator::batch::{BatchBuilder, Prefix, Work};
use crate::accelerator::effort::{Choice, Content, Harder, Late, Made, Spare};
use crate::accelerator::prefix;
use crate::block::{CHUNK_BYTES, ChunkId, Geometry, PAGE_CHUNKS};
use crate::error::Problem;
use crate::limits::BATCH_WAIT;
use crate::wire::message::{Batch, PrefixFrom, PrefixRun};

/// Packs needed chunks until the attempt ends. Blocking.
pub fn batch_loop(
    ctx: &Arc<Replication>,
    mut ready: mpsc::Receiver<Vec<Ready>>,
    out: mpsc::Sender<Outgoing>,
    pipe: &Pipe,
) -> Result<(), AttemptError> {
    let runtime = Handle::current();
    let mut queue: VecDeque<Ready> = VecDeque::new();
    let mut sent = SentIds::default();
    loop {
        let plain_bytes = ctx.batch_bytes();
        let start = Instant::now();
        while queue.len() * CHUNK_BYTES < plain_bytes {
            match runtime.block_on(next_ready(ctx, &mut ready, queue.is_empty())) {
                Queued::More(more) => {
                    ctx.preparing.fetch_sub(more.len(), Ordering::Relaxed);
                    queue.extend(more);
                }
                Queued::Quiet => break,
                Queued::Ended => return Ok(()),
            }
        }
        pipe.idle(start.elapsed());
        if !queue.is_empty() {
            // Room first: what is packed later knows more about the line, and more of what was sent.
            let fill = ctx.rooms.fill();
            let Ok(room) = runtime.block_on(ctx.rooms.take()) else { return Ok(()) };
            // None where all of it was to go ahead, and turned out to be there.
            let spare = Spare { backlog: pipe.backlog(), fill };
            if let Some((packing, expected)) = pack_next(ctx, &mut queue, &mut sent, spare)? {
                let packed = Outgoing::Batch(pipe.packed(packing, expected, room));
                if runtime.block_on(out.send(packed)).is_err() {
                    return Ok(());
                }
            }
        } else if ctx.state.may_seal() {
            ctx.state.begin_seal();
            if runtime.block_on(out.send(Outgoing::Seal)).is_err() {
                return Ok(());
            }
        }
    }
}

/// Makes the next batch, or has it made. `None` where nothing of the queue is wanted any more.
fn pack_next(
    ctx: &Arc<Replication>,
    queue: &mut VecDeque<Ready>,
    sent: &mut SentIds,
    spare: Spare,
) -> Result<Option<(Packing, u64)>, AttemptError> {
    let runtime = Handle::current();
    let permit = runtime.block_on(ctx.compressors.clone().acquire_owned());
    let choice = ctx.choose(spare, queue.len() * CHUNK_BYTES);
    let start = Instant::now();
    let Some(gathered) = build(ctx, queue, sent, &choice)? else { return Ok(None) };
    let content = gathered.content();
    let harder = ctx.harder(spare, content, || gathered.builder.trial());
    tracing::debug!(
        effort = harder.map_or(choice.effort, |harder| harder.effort).name,
        ?spare,
        ?content,
        queued = queue.len(),
        "an effort was chosen"
    );
    let before = start.elapsed();
    let expected = content.plain as f64 * choice.ratio;
    let worker = ctx.clone();
    let work = move || {
        let packed = gathered.finish(&worker, &choice, harder.as_ref(), before);
        drop(permit);
        packed
    };
    Ok(Some(match harder {
        Some(harder) => (Packing::Beside(tokio::task::spawn_blocking(work)), harder.stored),
        None => (Packing::Done(work()?), expected as u64),
    }))
}

enum Queued {
    More(Vec<Ready>),
    Quiet,
    Ended,
}

/// More chunks, or word that a batch should go as it is.
async fn next_ready(ctx: &Replication, ready: &mut mpsc::Receiver<Vec<Ready>>, idle: bool) -> Queued {
    if let Ok(more) = ready.try_recv() {
        return Queued::More(more);
    }
    // Everything was asked for and is prepared: what is queued is all there will be.
    let all = || ctx.state.nothing_outstanding() && ctx.preparing.load(Ordering::Relaxed) == 0;
    if if idle { ctx.state.may_seal() } else { all() } {
        return Queued::Quiet;
    }
    tokio::select! {
        more = ready.recv() => more.map_or(Queued::Ended, Queued::More),
        () = ctx.stop.cancelled() => Queued::Ended,
        () = ctx.state.quiet.notified() => Queued::Quiet,
        () = tokio::time::sleep(BATCH_WAIT), if !idle => Queued::Quiet,
    }
}

/// A literal of the batch that is being built.
struct Literal {
    ready: Ready,
    chunk: u64,
    id: ChunkId,
    anchors: Vec<ChunkAnchor>,
    /// Its place among the batch's entries.
    nth: usize,
    /// Where its bytes lie in the batch.
    bytes: std::ops::Range<usize>,
}

/// A batch before it is compressed.
struct Gathered {
    builder: BatchBuilder,
    prefix: Prefix,
}

impl Gathered {
    fn content(&self) -> Content {
        Content {
            plain: self.builder.plain_bytes(),
            prefix: self.prefix.bytes.len(),
            sampled: self.builder.expected_bytes(),
        }
    }

    /// Compresses it; the time before that is part of the work.
    fn finish(
        self,
        ctx: &Replication,
        choice: &Choice,
        harder: Option<&Harder>,
        before: Duration,
    ) -> Result<Vec<Batch>, AttemptError> {
        let start = Instant::now();
        let Content { plain, sampled, mut prefix } = self.content();
        let accelerator = &ctx.handle.clocks.source_accelerator;
        let within = harder.map_or(Duration::ZERO, |harder| harder.within);
        let until = (start + within).checked_sub(before).unwrap_or(start);
        let (mut work, bases) = match harder {
            Some(Harder { effort, .. }) => (Work::until(effort, until, &choice.effort), effort.bases),
            None => (Work::of(&choice.effort), choice.effort.bases),
        };
        // They may have been gathered for more work than the batch is worth.
        let bases = if bases { self.prefix } else { Prefix::default() };
        prefix = prefix.min(bases.bytes.len());
        let batches = accelerator
            .time(|| self.builder.finish(bases, &mut work))
            .map_err(|e| Problem::new("internal", "packing a batch", e.to_string(), "report this"))?;
        let stored = batches.iter().map(|batch| batch.payload.len()).sum();
        let effort = harder.map_or(choice.effort, |harder| harder.effort);
        let (tier, took) = (effort.tier(), start.elapsed());
        let late = work.late().map(|part| Late { tier, part, work: before + took.min(until - start) });
        let made = match late {
            None => Made { tier, plain, prefix, stored, sampled, work: before + took, late },
            Some(late) => {
                let work = (before + took).saturating_sub(late.work);
                let tier = choice.effort.tier();
                Made { tier, plain, prefix, stored, sampled, work, late: Some(late) }
            }
        };
        tracing::debug!(effort = effort.name, ?made, "a batch was made");
        ctx.batch_made(made);
        Ok(batches)
    }
}

/// Fills one batch from the front of the queue.
fn build(
    ctx: &Replication,
    queue: &mut VecDeque<Ready>,
    sent: &mut SentIds,
    choice: &Choice,
) -> Result<Option<Gathered>, AttemptError> {
    let accelerator = &ctx.handle.clocks.source_accelerator;
    let mut builder = BatchBuilder::default();
    let mut literals = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = Vec::new();
    while !builder.is_full(choice.plain_bytes) {
        let Some(ready) = queue.pop_front() else { break };
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
            // Also where it was prepared while the line seemed too fast for bases: its own disk's may serve.
            let looked = ready.looked || (choice.bases && !wanted.forced);
            let anchors = if looked { accelerator.time(|| anchors_of(data)) } else { Vec::new() };
            ctx.bases.note_anchors(looked || choice.bases);
            literals.push(Literal {
                ready,
                chunk,
                id,
                anchors,
                nth: done.len(),
                bytes: from..builder.plain_bytes(),
            });
        }
        done.push((wanted, id));
    }
    if done.is_empty() {
        return Ok(None);
    }
    let prefix = accelerator.time(|| gather(ctx, &literals, &mut builder, choice));
    accelerator.time(|| keep(ctx, &literals, &builder));
    for (wanted, id) in done {
        ctx.bases.note_built((wanted.disk, wanted.page), [wanted.position]);
        if let Some(whole) = ctx.state.sent(&wanted, id) {
            ctx.settle_page((wanted.disk, wanted.page), &whole.ids, false)?;
        }
    }
    Ok(Some(Gathered { builder, prefix }))
}

/// The blocks that resemble the batch's content and that the target has. None for chunks it asks for
/// again: what went wrong may have been a base. What has none goes as code, if it is code.
fn gather(ctx: &Replication, literals: &[Literal], builder: &mut BatchBuilder, choice: &Choice) -> Prefix {
    let mut prefix = Prefix::default();
    if !choice.bases || literals.iter().any(|literal| literal.ready.wanted.forced) {
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
    let mut hits = Vec::new();
    for literal in literals {
        let before = hits.len();
        let found = ctx.bases.anchors.find(literal.anchors.iter().map(|(anchor, _)| *anchor));
        hits.extend(found.into_iter().flatten());
        if hits.len() == before && literal.ready.known == 0 {
            builder.as_code(literal.nth);
        }
    }
    let room = (3 * choice.plain_bytes).saturating_sub(prefix.bytes.len());
    let (mut unknown, mut unconfirmed, mut gone) = (0, 0, 0);
    for ((image, chunk), blocks) in prefix::around(hits, room) {
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
            let anchors = literal.anchors.iter().map(|(anchor, at)| (*anchor, block(*at)));
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
