//! The point being built, as one session writes it: offers and batches in, verified chunks out.
//!
//! Joins resolver (accelerator), page tracker (mover) and the datastore's `Building`. Blocking; owned by
//! the session's task. Every chunk that is written was hashed here first; the ids of the point's
//! manifest are the ones computed here, never what the source says.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::accelerator::block_index::{BlockIndex, block_ids};
use crate::accelerator::global_cache::{GlobalCache, Ticket};
use crate::accelerator::recipe;
use crate::accelerator::resolve::Resolver;
use crate::accelerator::{batch, branches};
use crate::block::{CHUNK_BYTES, ChunkId, DomainKey, DomainTag, Geometry, PAGE_CHUNKS, ShortId};
use crate::busy::BusyClock;
use crate::error::Problem;
use crate::mover::target::{Filled, Ids, PageTracker};
use crate::repository::datastore::Building;
use crate::wire::message::{Batch, Entry, Held, Need, Offer, PrefixFrom, Probe, RunKind};

use super::held::{HeldBases, Place};
use super::learns::Learns;
use super::quota::Room;
use super::receive::protocol;

/// Busy clocks of the target's stages.
#[derive(Debug, Default)]
pub struct TargetClocks {
    /// Resolving, hashing, decoding, cache.
    pub accelerator: BusyClock,
    /// Pages and manifests.
    pub mover: BusyClock,
    /// Writing to the datastore.
    pub host: BusyClock,
}

impl TargetClocks {
    /// Microseconds: accelerator, mover, host.
    pub fn micros(&self) -> [u64; 3] {
        [self.accelerator.micros(), self.mover.micros(), self.host.micros()]
    }
}

/// What a message led to.
#[derive(Default)]
pub struct Applied {
    /// To be sent back.
    pub needs: Vec<Need>,
    /// The answer to a probe.
    pub held: Option<Held>,
    /// The last cache record of a batch.
    pub ticket: Option<Ticket>,
    /// Bytes written to the datastore.
    pub written_bytes: u64,
}

/// Writes one session's chunks.
pub struct PointWriter {
    building: Arc<Building>,
    cache: Arc<GlobalCache>,
    resolver: Resolver,
    held: HeldBases,
    index: Arc<BlockIndex>,
    learns: Learns,
    base_page: Option<(u16, u64, Option<Ids>)>,
    tracker: PageTracker,
    key: DomainKey,
    tag: DomainTag,
    disks: Vec<Geometry>,
    room: Room,
    /// Stage clocks.
    pub clocks: Arc<TargetClocks>,
}

impl PointWriter {
    /// A writer that goes on at the building's durable cursors.
    pub fn new(
        building: Arc<Building>,
        cache: Arc<GlobalCache>,
        resolver: Resolver,
        key: DomainKey,
        index: Arc<BlockIndex>,
        learns: Learns,
    ) -> Self {
        let tracker = PageTracker::new(&building.cursors());
        let disks = (0..building.disk_count())
            .map(|disk| Geometry { disk_len: building.disk(disk).map_or(0, |disk| disk.len()) })
            .collect();
        let tag = key.tag();
        let held = HeldBases::new(key.clone(), index.clone(), cache.clone());
        let (base_page, clocks) = (None, Arc::default());
        let room = Room::default();
        Self {
            building,
            cache,
            resolver,
            held,
            index,
            learns,
            base_page,
            tracker,
            key,
            tag,
            disks,
            room,
            clocks,
        }
    }

    /// Writes no more than the peer's quota leaves.
    pub fn within(self, room: Room) -> Self {
        Self { room, ..self }
    }

    /// True where no page lacks anything.
    pub fn is_idle(&self) -> bool {
        self.tracker.is_idle()
    }

    /// First page of each disk that is not final.
    pub fn cursors(&self) -> Vec<u64> {
        self.tracker.cursors()
    }

    /// The cursors of a whole point.
    pub fn final_cursors(&self) -> Vec<u64> {
        self.disks.iter().map(Geometry::pages).collect()
    }

    /// An offered page: writes zeroes and whatever can be resolved, asks for the rest.
    pub fn offer(&mut self, offer: &Offer) -> Result<Applied, Problem> {
        let (disk, page) = (offer.disk, offer.page);
        self.tracker.check(disk, page).map_err(|e| protocol(e.to_string()))?;
        let geometry = self.geometry(disk)?;
        let chunks: usize = offer.runs.iter().map(|run| run.count as usize).sum();
        if page >= geometry.pages() || chunks != geometry.page_chunks(page) {
            return Err(protocol(format!("the offer of page {page} does not cover the page")));
        }
        self.check_room()?;
        let mover = self.clocks.clone();
        let base = mover.mover.time(|| self.building.base_page(disk as usize, page))?;
        let mut ids: Ids = Box::new([ChunkId::ZERO; PAGE_CHUNKS]);
        let mut missing = Vec::new();
        let mut applied = Applied::default();
        for (position, kind, id) in recipe::positions(offer) {
            let chunk = page * PAGE_CHUNKS as u64 + position as u64;
            match (kind, id) {
                (RunKind::Unchanged, _) => {
                    ids[position] = base.as_ref().map_or(ChunkId::ZERO, |base| base[position]);
                }
                (RunKind::Zero, _) => self.zero(disk, geometry, chunk)?,
                (RunKind::Offered, Some(id)) => match self.resolve(disk, id) {
                    Some((full, data)) if data.len() == geometry.chunk_len(chunk) => {
                        self.learns.note(id);
                        self.write(disk, geometry, chunk, full, &data)?;
                        applied.written_bytes += data.len() as u64;
                        ids[position] = full;
                    }
                    _ => missing.push((position, id)),
                },
                (RunKind::Offered, None) => return Err(protocol("an offer without its id")),
            }
        }
        let whole = self.tracker.open(disk, page, ids, &missing).map_err(|e| protocol(e.to_string()))?;
        if let Some(ids) = whole {
            self.put_page(disk, page, &ids)?;
        }
        let missing: Vec<usize> = missing.into_iter().map(|(position, _)| position).collect();
        applied.needs.push(recipe::need(disk, page, &missing));
        self.room.charge(applied.written_bytes);
        Ok(applied)
    }

    /// A probe: says what of it is here.
    pub fn probe(&mut self, probe: &Probe) -> Applied {
        let clocks = self.clocks.clone();
        let Self { held, resolver, building, disks, .. } = self;
        let held = clocks.accelerator.time(|| {
            held.probe(probe, |id| {
                resolver
                    .resolve(id, |disk, chunk| read_built(building, disks, disk, chunk))
                    .map(|found| found.1)
            })
        });
        Applied { held: Some(held), ..Applied::default() }
    }

    /// A batch: every literal is hashed, kept in the cache and written.
    pub fn batch(&mut self, batch: &Batch) -> Result<Applied, Problem> {
        let clocks = self.clocks.clone();
        let plain = match clocks.accelerator.time(|| self.prefix(batch)) {
            Some(prefix) => clocks.accelerator.time(|| batch::decode(batch, &prefix)),
            None => return Ok(self.ask_again(batch)),
        };
        let with_bases = !batch.header.prefix.is_empty();
        let plain = match plain {
            Err(_) if with_bases => return Ok(self.ask_again(batch)),
            other => other.map_err(|e| protocol(format!("a batch does not decode: {e}")))?,
        };
        self.check_room()?;
        let mut rest = &plain[..];
        let mut applied = Applied::default();
        for entry in &batch.header.entries {
            match *entry {
                Entry::Literal { disk, chunk } | Entry::Code { disk, chunk } => {
                    let len = self.geometry(disk)?.chunk_len(chunk);
                    let Some((data, after)) = rest.split_at_checked(len).filter(|_| len > 0) else {
                        return Err(protocol("a batch is shorter than its recipe"));
                    };
                    rest = after;
                    let mut data = Cow::Borrowed(data);
                    if matches!(entry, Entry::Code { .. }) {
                        let place = self.geometry(disk)?.chunk_range(chunk).start;
                        clocks.accelerator.time(|| branches::take_places(data.to_mut(), place));
                    }
                    self.literal(disk, chunk, &data, with_bases, &mut applied)?;
                }
                Entry::Copy { disk, chunk, id } => {
                    let len = self.geometry(disk)?.chunk_len(chunk);
                    if !self.wants(disk, chunk) {
                        continue;
                    }
                    match self.resolve(disk, id).filter(|(_, data)| data.len() == len) {
                        Some((full, data)) => self.fill(disk, chunk, full, &data, &mut applied)?,
                        None => applied.needs.push(need_one(disk, chunk)),
                    }
                }
            }
        }
        applied.needs = by_page(&applied.needs);
        self.room.charge(applied.written_bytes);
        if rest.is_empty() { Ok(applied) } else { Err(protocol("a batch is longer than its recipe")) }
    }

    fn check_room(&self) -> Result<(), Problem> {
        self.building.replica().check_space()?;
        self.room.check()
    }

    fn wants(&self, disk: u16, chunk: u64) -> bool {
        let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
        self.tracker.wants(disk, page, position)
    }

    /// A chunk's bytes. What is not wanted was here when it was offered and was sent ahead of the answer, or
    /// comes a second time: its bytes are of no use, and not looked at. Those of a batch with bases must have the id they were offered with: a base that
    /// was not what it should be is found here, and costs one more NEED.
    fn literal(
        &mut self,
        disk: u16,
        chunk: u64,
        data: &[u8],
        with_bases: bool,
        applied: &mut Applied,
    ) -> Result<(), Problem> {
        let clocks = self.clocks.clone();
        self.held.arrived(disk, chunk);
        if !self.wants(disk, chunk) {
            return Ok(());
        }
        let id = clocks.accelerator.time(|| self.key.chunk_id(data));
        let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
        let offered = self.tracker.offered(disk, page, position);
        if with_bases && offered.is_some_and(|offered| offered != id.short()) {
            tracing::warn!(
                disk,
                chunk,
                "a chunk did not come out of its bases as it was offered; asking again"
            );
            applied.needs.push(need_one(disk, chunk));
            return Ok(());
        }
        if !id.is_zero() {
            self.learns.note(id.short());
            let kept = clocks.accelerator.time(|| self.cache.append(self.tag, id, data));
            applied.ticket = Some(kept.map_err(Problem::from)?);
            clocks.accelerator.time(|| self.index.insert(self.tag, id.short(), &block_ids(&self.key, data)));
        }
        self.fill(disk, chunk, id, data, applied)
    }

    /// The prefix cannot be put together, or is not what it was at the source: everything of the batch
    /// again, without bases.
    fn ask_again(&mut self, batch: &Batch) -> Applied {
        tracing::warn!("a base that was held is gone or bad; asking for the chunks of one batch again");
        let mut applied = Applied::default();
        for entry in &batch.header.entries {
            let (disk, chunk) = entry.place();
            if self.wants(disk, chunk) {
                applied.needs.push(need_one(disk, chunk));
            }
        }
        applied.needs = by_page(&applied.needs);
        applied
    }

    /// The bytes that a batch's frame refers to; none where one of the bases is not here.
    fn prefix(&mut self, batch: &Batch) -> Option<Vec<u8>> {
        let Self { held, resolver, building, disks, base_page, tracker, .. } = self;
        let read = |id: ShortId| {
            resolver.resolve(id, |disk, chunk| read_built(building, disks, disk, chunk)).map(|found| found.1)
        };
        held.prefix(&batch.header.prefix, read, |from| match from {
            PrefixFrom::Base { disk, chunk } => {
                let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
                if base_page.as_ref().is_none_or(|(d, p, _)| (*d, *p) != (disk, page)) {
                    *base_page = Some((disk, page, building.base_page(usize::from(disk), page).ok()?));
                }
                let id = base_page.as_ref()?.2.as_ref()?.get(position).filter(|id| !id.is_zero())?;
                Some(Place::Id(id.short()))
            }
            PrefixFrom::Built { disk, chunk } => {
                let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
                let missing = tracker.wants(disk, page, position);
                read_built(building, disks, disk, chunk).filter(|_| !missing).map(Place::Data)
            }
            PrefixFrom::Held { .. } | PrefixFrom::Known { .. } => None,
        })
    }

    fn geometry(&self, disk: u16) -> Result<Geometry, Problem> {
        self.disks.get(disk as usize).copied().ok_or_else(|| no_disk(disk))
    }

    fn resolve(&mut self, _disk: u16, id: ShortId) -> Option<(ChunkId, Vec<u8>)> {
        let (building, disks) = (&self.building, &self.disks);
        let clocks = self.clocks.clone();
        clocks
            .accelerator
            .time(|| self.resolver.resolve(id, |disk, chunk| read_built(building, disks, disk, chunk)))
    }

    fn fill(
        &mut self,
        disk: u16,
        chunk: u64,
        id: ChunkId,
        data: &[u8],
        applied: &mut Applied,
    ) -> Result<(), Problem> {
        let (page, position) = (chunk / PAGE_CHUNKS as u64, (chunk % PAGE_CHUNKS as u64) as usize);
        if !self.tracker.wants(disk, page, position) {
            return Ok(()); // Asked for twice and sent twice: the first one counts.
        }
        let geometry = self.geometry(disk)?;
        if id.is_zero() {
            self.zero(disk, geometry, chunk)?;
        } else {
            self.write(disk, geometry, chunk, id, data)?;
        }
        applied.written_bytes += data.len() as u64;
        if let Filled::Whole(ids) = self.tracker.fill(disk, page, position, id) {
            self.put_page(disk, page, &ids)?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        disk: u16,
        geometry: Geometry,
        chunk: u64,
        id: ChunkId,
        data: &[u8],
    ) -> Result<(), Problem> {
        let clocks = self.clocks.clone();
        let writer = self.building.disk(disk as usize).ok_or_else(|| no_disk(disk))?;
        clocks
            .host
            .time(|| writer.write_at(geometry.chunk_range(chunk).start, data))
            .map_err(|e| write_problem(disk, &e))?;
        self.resolver.note(id.short(), disk, chunk);
        Ok(())
    }

    fn zero(&mut self, disk: u16, geometry: Geometry, chunk: u64) -> Result<(), Problem> {
        let range = geometry.chunk_range(chunk);
        debug_assert!(range.end - range.start <= CHUNK_BYTES as u64);
        let writer = self.building.disk(disk as usize).ok_or_else(|| no_disk(disk))?;
        let clocks = self.clocks.clone();
        clocks
            .host
            .time(|| writer.zero_at(range.start, range.end - range.start))
            .map_err(|e| write_problem(disk, &e))
    }

    fn put_page(&mut self, disk: u16, page: u64, ids: &Ids) -> Result<(), Problem> {
        let clocks = self.clocks.clone();
        let ids = Some(ids).filter(|ids| !ids.iter().all(ChunkId::is_zero));
        clocks.mover.time(|| self.building.put_page(disk as usize, page, ids)).map_err(Problem::from)
    }
}

/// A chunk of the point being built, as it is now.
fn read_built(building: &Building, disks: &[Geometry], disk: u16, chunk: u64) -> Option<Vec<u8>> {
    let range = disks.get(usize::from(disk))?.chunk_range(chunk);
    let mut data = vec![0; (range.end - range.start) as usize];
    building.disk(usize::from(disk))?.read_at(range.start, &mut data).ok()?;
    Some(data)
}

/// One NEED for each page: however many chunks are asked for again, the source's queue takes pages.
fn by_page(needs: &[Need]) -> Vec<Need> {
    let mut pages: BTreeMap<(u16, u64), BTreeSet<usize>> = BTreeMap::new();
    for need in needs {
        pages.entry((need.disk, need.page)).or_default().extend(recipe::needed(need));
    }
    let page = |((disk, page), positions): ((u16, u64), BTreeSet<usize>)| {
        recipe::need(disk, page, &positions.into_iter().collect::<Vec<_>>())
    };
    pages.into_iter().map(page).collect()
}

fn need_one(disk: u16, chunk: u64) -> Need {
    recipe::need(disk, chunk / PAGE_CHUNKS as u64, &[(chunk % PAGE_CHUNKS as u64) as usize])
}

fn write_problem(disk: u16, error: &std::io::Error) -> Problem {
    let mut problem = Problem::io(format!("writing the replica's disk {disk}"), error);
    if error.kind() == std::io::ErrorKind::StorageFull {
        problem.code = "datastore_full".to_string();
    }
    problem
}

fn no_disk(disk: u16) -> Problem {
    protocol(format!("the session has no disk {disk}"))
}

#[cfg(test)]
#[path = "point_tests.rs"]
mod tests;
