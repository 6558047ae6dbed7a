//! Preparing: between what the target needs and the batches, the source asks what may serve as a base.
//!
//! One blocking thread an attempt. Each needed chunk is read once and scanned for anchors; those that lead
//! to another disk's content are offered to the target in a probe, so that a batch uses nothing it did not
//! confirm, and so are the 4 KiB blocks of chunks that no anchor explains, as long as that pays. Chunks
//! with nothing to ask go straight on. Content that the target had is scanned too, where no anchor leads
//! to it yet: it is part of the newest image. Bound: as many probes on their way as there are open pages.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::bases::Bases;
use super::replicate::{AttemptError, Replication};
use super::source_state::{PageKey, Wanted};
use crate::accelerator::anchors::{Anchor, BLOCK_BYTES, gear};
use crate::accelerator::block_index::block_ids;
use crate::block::{Geometry, PAGE_CHUNKS, ShortId};
use crate::limits::{PROBE_BASES_MAX, PROBE_CHUNKS_MAX};
use crate::wire::SessionSender;
use crate::wire::message::{BlockOffer, Held, Message, Probe};

/// An anchor of a chunk, and the block of the chunk in which it lies.
pub type ChunkAnchor = (Anchor, u8);

/// A chunk that may go into a batch.
#[derive(Debug)]
pub struct Ready {
    /// Which.
    pub wanted: Wanted,
    /// Somebody looked for its anchors. They are found again when it is packed: a thousand bytes for each
    /// chunk that waits cost more than 50 µs.
    pub looked: bool,
    /// Bit for each of its blocks that the target said it knows.
    pub known: u16,
}

/// What a NEED leads to.
pub struct Work {
    /// The page.
    pub key: PageKey,
    /// Chunks to send.
    pub wanted: Vec<Wanted>,
    /// Positions that the target had.
    pub known: Vec<usize>,
}

struct Pending {
    ready: Vec<Ready>,
    bases: Vec<ShortId>,
    /// Indexes into `ready` whose blocks were offered.
    asked: Vec<usize>,
}

/// Whether offering blocks pays: 130 bytes a chunk against what a known block saves.
#[derive(Default)]
struct BlockGate {
    asked: u64,
    known: u64,
    skipped: u64,
}

impl BlockGate {
    /// Chunks asked about before the answer counts.
    const TRIAL: u64 = 48;
    /// Of the chunks that are not asked about, one in so many is, to notice a change.
    const RETRY: u64 = 32;

    fn pays(&mut self) -> bool {
        // A block that is known saves about 1,000 bytes compressed; asking costs 8.
        if self.asked < Self::TRIAL || self.known * 50 >= self.asked * 16 {
            return true;
        }
        self.skipped += 1;
        self.skipped.is_multiple_of(Self::RETRY)
    }

    fn note(&mut self, chunks: u64, blocks: u64) {
        (self.asked, self.known) = (self.asked + chunks, self.known + blocks);
        if self.asked > 4096 {
            (self.asked, self.known) = (self.asked / 2, self.known / 2); // What was long ago counts less.
        }
    }
}

/// Probes on their way, oldest first: they are answered in order.
#[derive(Default)]
pub struct Probes {
    pending: Mutex<VecDeque<Pending>>,
    gate: Mutex<BlockGate>,
}

impl Probes {
    /// The answer to the oldest probe: its chunks are ready. `None` where nothing was asked or the answer
    /// does not fit the question.
    pub fn answered(&self, bases: &Bases, held: &Held) -> Option<Vec<Ready>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        if pending.bases.len() != held.bases.len() || pending.asked.len() != held.blocks.len() {
            return None;
        }
        bases.confirm(pending.bases.iter().copied().zip(held.bases.iter().copied()));
        let mut blocks = 0;
        for (index, known) in pending.asked.iter().zip(&held.blocks) {
            blocks += u64::from(known.count_ones());
            if let Some(ready) = pending.ready.get_mut(*index) {
                ready.known = *known;
            }
        }
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.note(pending.asked.len() as u64, blocks);
        Some(pending.ready)
    }
}

/// Prepares what is needed until the attempt ends. Blocking.
pub fn prepare_loop(
    ctx: &Replication,
    mut work: mpsc::Receiver<Work>,
    ready: mpsc::Sender<Vec<Ready>>,
    sender: &SessionSender,
) -> Result<(), AttemptError> {
    let runtime = Handle::current();
    let stop = ctx.stop.clone();
    let next = |work: &mut mpsc::Receiver<Work>| {
        runtime.block_on(async {
            tokio::select! { next = work.recv() => next, () = stop.cancelled() => None }
        })
    };
    while let Some(page) = next(&mut work) {
        let looks = ctx.looks_for_bases();
        if looks {
            learn(ctx, &page)?;
        }
        let Some((chunks, probe)) = prepare(ctx, page, looks)? else { continue };
        match probe {
            None => {
                if runtime.block_on(ready.send(chunks)).is_err() {
                    return Ok(());
                }
            }
            Some((probe, asked)) => {
                let pending = Pending { ready: chunks, bases: probe.bases.clone(), asked };
                ctx.probes.pending.lock().unwrap_or_else(PoisonError::into_inner).push_back(pending);
                let message = Message::Probe(probe);
                let bytes = message.encode().1.len() as u64;
                runtime.block_on(sender.send(message)).map_err(AttemptError::from)?;
                ctx.handle.note(|session| session.bytes.sent_payload += bytes);
            }
        }
    }
    Ok(())
}

/// The question, and which chunks' blocks it names.
type Asked = (Probe, Vec<usize>);
/// Chunks, and what to ask before they may go.
type Prepared = (Vec<Ready>, Option<Asked>);

/// Scans the chunks of a page, and gathers what to ask the target.
fn prepare(ctx: &Replication, page: Work, looks: bool) -> Result<Option<Prepared>, AttemptError> {
    let (mut probe, mut asked) = (Probe::default(), Vec::new());
    let mut chunks = Vec::with_capacity(page.wanted.len());
    for wanted in page.wanted {
        let looked = looks && !wanted.forced;
        let ready = Ready { wanted, looked, known: 0 };
        if looked {
            let data = read(ctx, page.key, wanted.position)?;
            let clocks = &ctx.handle.clocks;
            clocks.source_accelerator.time(|| {
                let explained = offer_bases(ctx, &anchors_of(&data), &mut probe.bases);
                let lost = || ctx.bases.has_lost(ctx, page.key, wanted.position);
                if (!explained || lost()) && probe.blocks.len() < PROBE_CHUNKS_MAX && pays(ctx) {
                    let chunk = page.key.1 * PAGE_CHUNKS as u64 + wanted.position as u64;
                    let ids = block_ids(&ctx.key, &data)
                        .iter()
                        .map(|id| id.map_or([0; 8], |id| id.0.to_be_bytes()))
                        .collect();
                    probe.blocks.push(BlockOffer { disk: wanted.disk, chunk, ids });
                    asked.push(chunks.len());
                }
            });
        }
        chunks.push(ready);
    }
    if chunks.is_empty() {
        return Ok(None);
    }
    let quiet = probe.bases.is_empty() && probe.blocks.is_empty();
    Ok(Some((chunks, (!quiet).then_some((probe, asked)))))
}

fn pays(ctx: &Replication) -> bool {
    ctx.probes.gate.lock().unwrap_or_else(PoisonError::into_inner).pays()
}

/// Adds the bases of other disks that these anchors lead to; true where most anchors lead somewhere that
/// may serve. What was overwritten where it lay may not, unless a cache has it: a chunk of a database page by page.
fn offer_bases(ctx: &Replication, anchors: &[ChunkAnchor], offered: &mut Vec<ShortId>) -> bool {
    let places = ctx.bases.anchors.find(anchors.iter().map(|(anchor, _)| *anchor));
    let (mut hits, mut seen) = (0, HashSet::new());
    for place in places.into_iter().flatten() {
        let chunk = u64::from(place.block) * BLOCK_BYTES as u64 / crate::block::CHUNK_BYTES as u64;
        let Some(found) = ctx.bases.find(ctx, place.image, chunk) else { continue };
        if !ctx.bases.has(ctx, place.image, chunk, &found.id) {
            continue;
        }
        hits += 1;
        if found.from.is_none()
            && seen.insert(found.id)
            && offered.len() < PROBE_BASES_MAX
            && ctx.bases.offer(found.id.short())
        {
            offered.push(found.id.short());
        }
    }
    hits * 2 > anchors.len()
}

/// The anchors of a chunk.
pub fn anchors_of(data: &[u8]) -> Vec<ChunkAnchor> {
    let mut anchors = Vec::new();
    gear::scan(data, |at, anchor| anchors.push((anchor, (at / BLOCK_BYTES) as u8)));
    anchors
}

fn read(ctx: &Replication, key: PageKey, position: usize) -> Result<Vec<u8>, AttemptError> {
    let reader = ctx.reader(key.0)?;
    let geometry = Geometry { disk_len: reader.len() };
    let chunk = key.1 * PAGE_CHUNKS as u64 + position as u64;
    let mut data = vec![0; geometry.chunk_len(chunk)];
    let clock = &ctx.handle.clocks.source_host;
    let start = geometry.chunk_range(chunk).start;
    clock.time(|| reader.read_at(start, &mut data)).map_err(|e| ctx.read_problem(key.0, &e))?;
    Ok(data)
}

/// Anchors of content that the target had, where none leads to it yet.
fn learn(ctx: &Replication, page: &Work) -> Result<(), AttemptError> {
    let Some(image) = ctx.bases.building(page.key.0) else { return Ok(()) };
    for position in &page.known {
        let data = read(ctx, page.key, *position)?;
        let chunk = page.key.1 * PAGE_CHUNKS as u64 + *position as u64;
        ctx.handle.clocks.source_accelerator.time(|| {
            let anchors = anchors_of(&data);
            let places = ctx.bases.anchors.find(anchors.iter().map(|(anchor, _)| *anchor));
            let new = anchors.iter().zip(places).filter(|(_, place)| place.is_none());
            ctx.bases.anchors.put(image, new.map(|((anchor, block), _)| (*anchor, block_of(chunk, *block))));
        });
    }
    Ok(())
}

/// The block of a disk that a block of a chunk is. Disks of more than 16 TiB have anchors in that part.
pub fn block_of(chunk: u64, block: u8) -> u32 {
    let block = chunk.saturating_mul(16).saturating_add(u64::from(block));
    u32::try_from(block).unwrap_or(u32::MAX)
}
