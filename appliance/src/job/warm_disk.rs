//! One disk being warmed: read page by page, hashed, and entered into the indexes; at a bounded rate.
//!
//! The worker's half of `warm`; owns the pace. Bounds: one chunk and one page of ids (32 KiB) in memory.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::warm::Warmings;
use crate::accelerator::block_index::block_ids;
use crate::block::{
    BlockRead, CHUNK_BYTES, ChunkId, ChunkSource, DomainKey, Geometry, PAGE_BYTES, PAGE_CHUNKS,
};
use crate::error::Problem;
use crate::limits::{WARM_BYTES_PER_SECOND, WARM_BYTES_PER_SECOND_BUSY};

/// Read between two looks at clock and order.
const STRIDE_BYTES: u64 = 1024 * 1024;

/// One disk being read.
pub struct Run<'a> {
    all: &'a Warmings,
    id: &'a str,
    key: &'a DomainKey,
    cancel: &'a CancellationToken,
    own: [u8; 16],
    disk: u16,
    /// When the next stride may be read.
    due: Instant,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    read: u64,
    chunks: u64,
    known: u64,
    bad: u64,
    by_block: u64,
}

impl<'a> Run<'a> {
    /// `own`: what names it in the index.
    pub fn new(
        all: &'a Warmings,
        id: &'a str,
        key: &'a DomainKey,
        cancel: &'a CancellationToken,
        own: [u8; 16],
        disk: u16,
    ) -> Self {
        Self { all, id, key, cancel, own, disk, due: Instant::now(), figures: Figures::default() }
    }

    /// Reads a disk, page by page. `listed`: the id that a chunk must have, where that is known.
    pub fn disk(
        &mut self,
        reader: &dyn BlockRead,
        mut listed: impl FnMut(u64, usize) -> Option<ChunkId>,
    ) -> Result<(), Problem> {
        let io = |error: std::io::Error| Problem::io("reading what is to be warmed", &error);
        let geometry = Geometry { disk_len: reader.len() };
        let mut buffer = vec![0; CHUNK_BYTES];
        for page in 0..geometry.pages() {
            let by_block = self.has_room_for_blocks();
            let mut ids = vec![ChunkId::ZERO; geometry.page_chunks(page)];
            let mut data_from = reader.next_data(page * PAGE_BYTES).map_err(io)?;
            for (position, place) in ids.iter_mut().enumerate() {
                let chunk = page * PAGE_CHUNKS as u64 + position as u64;
                let range = geometry.chunk_range(chunk);
                let len = range.end - range.start;
                self.figures.read += len;
                if data_from.is_some_and(|data| data.end() <= range.start) {
                    data_from = reader.next_data(range.start).map_err(io)?;
                }
                if data_from.is_none_or(|data| data.offset >= range.end) {
                    continue; // A hole.
                }
                let data = &mut buffer[..len as usize];
                reader.read_at(range.start, data).map_err(io)?;
                *place = self.chunk(data, listed(page, position), by_block);
                if self.figures.read >= STRIDE_BYTES && !self.stride() {
                    return Ok(());
                }
            }
            let indexed = self.all.cache.index_page(self.key.tag(), self.own, self.disk, page, &ids);
            indexed.map_err(Problem::from)?;
            if !self.stride() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The id to be entered at this place; the one of zeroes where there is nothing to enter.
    fn chunk(&mut self, data: &[u8], listed: Option<ChunkId>, by_block: bool) -> ChunkId {
        let (id, tag) = (self.key.chunk_id(data), self.key.tag());
        if listed.is_some_and(|listed| listed != id) {
            self.figures.bad += 1;
            return ChunkId::ZERO;
        }
        if id.is_zero() {
            return id;
        }
        self.figures.chunks += 1;
        if by_block {
            self.all.blocks.insert(tag, id.short(), &block_ids(self.key, data));
            self.figures.by_block += 1;
        }
        let elsewhere = self.all.cache.disk_location(tag, id.short()).filter(|place| {
            let other = (place.replica_key, place.disk) != (self.own, self.disk);
            let places = &self.all.places;
            other
                && places
                    .read_chunk(place.replica_key, place.disk, place.chunk, id.short(), self.key)
                    .is_some()
        });
        match elsewhere {
            Some(_) => {
                self.figures.known += 1;
                ChunkId::ZERO
            }
            None => id,
        }
    }

    /// Warming takes half of that index at the most: what sessions learned is worth as much.
    fn has_room_for_blocks(&self) -> bool {
        let stats = self.all.blocks.stats();
        stats.entries < stats.entries_max / 2 && stats.chunks < stats.chunks_max / 2
    }

    /// Tells how far it has got and keeps the rate; false where it is to end.
    fn stride(&mut self) -> bool {
        let figures = std::mem::take(&mut self.figures);
        self.all.update(self.id, |view| {
            view.read_bytes += figures.read;
            view.chunks += figures.chunks;
            view.known_chunks += figures.known;
            view.bad_chunks += figures.bad;
            view.chunks_by_block += figures.by_block;
        });
        let busy = self.all.busy.get().is_some_and(|busy| busy());
        let rate = if busy { WARM_BYTES_PER_SECOND_BUSY } else { WARM_BYTES_PER_SECOND };
        self.due += Duration::from_secs_f64(figures.read as f64 / rate as f64);
        let now = Instant::now();
        self.due = self.due.max(now.checked_sub(Duration::from_millis(100)).unwrap_or(now));
        while !self.cancel.is_cancelled() {
            let wait = self.due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return true;
            }
            std::thread::sleep(wait.min(Duration::from_millis(100)));
        }
        false
    }
}
