//! The scanner: one blocking thread a disk that reads, names, compares and offers page by page.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use vbr_api::SessionChunks;

use super::prepare::Work;
use super::replicate::{AttemptError, Replication};
use super::source_state::{Ids, OpenOffer, PageKey, Wanted};
use super::tracked::changed_pages;
use crate::accelerator::{identify, recipe};
use crate::block::{CHUNK_BYTES, Extent, Geometry, PAGE_BYTES};
use crate::limits::{CHUNKS_OPEN_MAX, PAGES_OPEN_MAX};
use crate::mover::source::PageWalk;
use crate::repository::manifest::PageTable;
use crate::wire::SessionSender;
use crate::wire::message::{Message, RunKind};

/// Room for open pages and open chunks of one attempt.
#[derive(Clone)]
pub struct Room {
    pages: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
}

impl Room {
    /// All of it free.
    pub fn new() -> Self {
        Self {
            pages: Arc::new(Semaphore::new(PAGES_OPEN_MAX)),
            chunks: Arc::new(Semaphore::new(CHUNKS_OPEN_MAX)),
        }
    }

    /// The attempt is over: whoever waits for room stops.
    pub fn close(&self) {
        self.pages.close();
        self.chunks.close();
    }
}

/// Where a scanner's offers go.
#[derive(Clone)]
pub struct Lanes {
    /// To the target.
    pub sender: SessionSender,
    /// What bounds them.
    pub room: Room,
    /// To the preparer, for chunks that go ahead of the target's answer.
    pub work: mpsc::Sender<Work>,
}

/// Scans one disk from `cursor` on and offers what differs from the base. Pages before the cursor are
/// durable at the target; they are only named again where no record of them is left.
pub fn scan_disk(ctx: &Replication, disk: u16, cursor: u64, lanes: &Lanes) -> Result<(), AttemptError> {
    if let Some(changes) = ctx.tracked.get(usize::from(disk)).cloned().flatten() {
        return scan_changes(ctx, disk, cursor, &changes, lanes);
    }
    let reader = ctx.reader(disk)?;
    let geometry = Geometry { disk_len: reader.len() };
    let base = ctx.base_table(disk);
    let base_pages: Vec<u64> =
        base.map(|table| table.iter().map(|(page, _)| *page).collect()).unwrap_or_default();
    let mut walk = PageWalk::new(geometry.pages(), 0, base_pages);
    while let Some(position) = walk.position() {
        if ctx.stopped() || lanes.sender.is_closed() {
            return Err(AttemptError::Cancelled);
        }
        let data = ctx
            .handle
            .clocks
            .source_host
            .time(|| reader.next_data(position))
            .map_err(|e| ctx.read_problem(disk, &e))?;
        let Some(page) = walk.next_page(data.map(|extent| extent.offset)) else { break };
        if page < cursor {
            rename_page(ctx, disk, page, base, None)?;
        } else {
            scan_page(ctx, disk, page, base, None, lanes)?;
        }
        ctx.state.scanned(disk, page + 1);
    }
    ctx.state.scan_done(disk, geometry.pages());
    Ok(())
}

/// The same where it is known which chunks may differ: nothing else is read, and the rest stays as at the base.
fn scan_changes(
    ctx: &Replication,
    disk: u16,
    cursor: u64,
    changes: &[Extent],
    lanes: &Lanes,
) -> Result<(), AttemptError> {
    let base = ctx.base_table(disk);
    for (page, chunks) in changed_pages(changes) {
        if ctx.stopped() || lanes.sender.is_closed() {
            return Err(AttemptError::Cancelled);
        }
        if page < cursor {
            rename_page(ctx, disk, page, base, Some(&chunks))?;
        } else {
            scan_page(ctx, disk, page, base, Some(&chunks), lanes)?;
        }
        ctx.state.scanned(disk, page + 1);
    }
    ctx.state.scan_done(disk, Geometry { disk_len: ctx.reader(disk)?.len() }.pages());
    Ok(())
}

/// The ids of a page of the base.
fn base_ids(ctx: &Replication, disk: u16, page: u64, base: Option<&PageTable>) -> Result<Ids, AttemptError> {
    match base.and_then(|table| table.get(page)) {
        Some(hash) => ctx.base_page(disk, hash),
        None => Ok(Box::new(recipe::ZERO_PAGE)),
    }
}

/// A page the target has: take its hash from the record, or read it again.
fn rename_page(
    ctx: &Replication,
    disk: u16,
    page: u64,
    base: Option<&PageTable>,
    changed: Option<&[usize]>,
) -> Result<(), AttemptError> {
    let key = (disk, page);
    if let Some(hash) = ctx.state.built(key) {
        ctx.state.settle(key, hash);
        return Ok(());
    }
    let named = ctx.identify(disk, page, base, changed)?;
    let same = base.and_then(|table| table.get(page)).is_some_and(|hash| *hash == hash_of(&named.ids));
    ctx.settle_page(key, &named.ids, same)?;
    Ok(())
}

fn scan_page(
    ctx: &Replication,
    disk: u16,
    page: u64,
    base: Option<&PageTable>,
    changed: Option<&[usize]>,
    lanes: &Lanes,
) -> Result<(), AttemptError> {
    let key = (disk, page);
    let named = ctx.identify(disk, page, base, changed)?;
    let base_ids = match base.and_then(|table| table.get(page)) {
        None => None,
        Some(hash) if *hash == hash_of(&named.ids) => Some(named.ids.clone()),
        Some(hash) => Some(ctx.base_page(disk, hash)?),
    };
    let base_ids = base_ids.as_deref().unwrap_or(&recipe::ZERO_PAGE);
    let geometry = Geometry { disk_len: ctx.reader(disk)?.len() };
    let Some(offer) = recipe::offer(disk, page, geometry, base_ids, &named.ids) else {
        ctx.settle_page(key, &named.ids, true)?;
        return Ok(());
    };
    if ctx.state.built(key).is_none() {
        count(ctx, key, &offer, geometry);
    }
    open_and_send(ctx, key, named.ids, offer, lanes)
}

fn open_and_send(
    ctx: &Replication,
    key: PageKey,
    ids: Ids,
    offer: crate::wire::message::Offer,
    lanes: &Lanes,
) -> Result<(), AttemptError> {
    let Lanes { sender, room, work } = lanes;
    let runtime = Handle::current();
    let weight = offer.ids.len().clamp(1, CHUNKS_OPEN_MAX) as u32;
    let stopped = |_| AttemptError::Cancelled;
    let start = std::time::Instant::now();
    let pages = runtime.block_on(room.pages.clone().acquire_owned()).map_err(stopped)?;
    let chunks = runtime.block_on(room.chunks.clone().acquire_many_owned(weight)).map_err(stopped)?;
    let ahead = ctx.ahead.page(&offer, &ctx.preparing);
    let (disk, page) = key;
    let going = ahead.going().into_iter();
    let wanted: Vec<Wanted> =
        going.map(|position| Wanted { disk, page, position, forced: false, ahead: true }).collect();
    ctx.state.open(key, OpenOffer { ids, ahead, remaining: None, room: Some((pages, chunks)) });
    let message = Message::Offer(offer);
    let (_, body, _) = message.encode();
    runtime.block_on(sender.send(message)).map_err(AttemptError::from)?;
    ctx.handle.clocks.network.add(start);
    ctx.handle.note(|session| session.bytes.sent_payload += body.len() as u64);
    if !wanted.is_empty() {
        // After the offer, so that the target knows the page when they come. There is room: they are few.
        runtime
            .block_on(work.send(Work { key, wanted, known: Vec::new() }))
            .map_err(|_| AttemptError::Cancelled)?;
    }
    Ok(())
}

/// Adds an offered page to the session's figures; each page is counted once, however often it is offered.
fn count(ctx: &Replication, key: PageKey, offer: &crate::wire::message::Offer, geometry: Geometry) {
    let (mut changed, mut zero, mut chunks) = (0u64, 0u64, SessionChunks::default());
    for (position, kind, _) in recipe::positions(offer) {
        let len = geometry.chunk_len(key.1 * 1024 + position as u64) as u64;
        match kind {
            RunKind::Unchanged => continue,
            RunKind::Zero => zero += len,
            RunKind::Offered => chunks.known += 1,
        }
        changed += len;
        chunks.unchanged += 1; // Taken off the unchanged below.
    }
    ctx.handle.note(|session| {
        session.bytes.changed += changed;
        session.bytes.zero += zero;
        session.chunks.known += chunks.known;
        session.bytes.deduplicated += changed - zero;
        session.chunks.unchanged = session.chunks.unchanged.saturating_sub(chunks.unchanged);
        if let Some(disk) = session.disks.get_mut(key.0 as usize) {
            disk.changed_bytes += changed;
        }
    });
}

fn hash_of(ids: &Ids) -> crate::block::PageHash {
    crate::repository::manifest::page_hash(ids)
}

impl Replication {
    /// Reads and names a page, or those chunks of it that may differ from the base; counts what was read.
    fn identify(
        &self,
        disk: u16,
        page: u64,
        base: Option<&PageTable>,
        changed: Option<&[usize]>,
    ) -> Result<identify::IdentifiedPage, AttemptError> {
        let reader = self.reader(disk)?;
        let (host, accelerator) = (&self.handle.clocks.source_host, &self.handle.clocks.source_accelerator);
        let named = match changed {
            None => identify::identify_page(&*reader, page, &self.key, host, accelerator),
            Some(chunks) => {
                let ids = base_ids(self, disk, page, base)?;
                identify::identify_chunks(&*reader, page, chunks, ids, &self.key, host, accelerator)
            }
        };
        let named = named.map_err(|e| self.read_problem(disk, &e))?;
        self.handle.note(|session| {
            session.bytes.read += named.read_bytes;
            if let Some(disk) = session.disks.get_mut(disk as usize) {
                disk.read_bytes += named.read_bytes;
            }
        });
        debug_assert!(named.read_bytes <= PAGE_BYTES + CHUNK_BYTES as u64);
        Ok(named)
    }
}
