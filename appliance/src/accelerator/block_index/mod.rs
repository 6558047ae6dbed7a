//! The target's index of 4 KiB blocks: in which chunk, and where in it, was this block seen?
//!
//! A chunk that the target does not know may still be made of blocks that it has inside other chunks:
//! the same operating system at another alignment, or a database page whose old version the source no
//! longer has. The source then offers the chunk's sixteen blocks by [`BlockId`], and what this index
//! finds need not be sent.
//!
//! - **Everything here is a hint.** Whoever gets a [`Hint`] reads that chunk within the domain, hashes
//!   the block, and compares; the chunk that is built from blocks is verified by its own 32-byte id
//!   before anybody sees it. So 8 bytes of hash do for a block, and 25 bits for an entry.
//! - **Whoever reads a chunk for one hint compares all sixteen of its blocks with all that is asked.**
//!   That costs 20 us of hashing and makes one entry a chunk do the work of many: see thinning.
//! - An entry is a word of 8 bytes in one of two buckets of eight (`entry`, `table`); the chunks are in
//!   a ring beside it (`ring`, 18 bytes each, 5 for every 4 buckets): 10.8 bytes an entry, 2.6 GB for
//!   10^12 bytes of unique blocks. Two choices of bucket: 96 % are full before 5 % had to go.
//! - A block that is inserted again leads to the newest chunk that has it: the one that will be
//!   evicted last. That, and the hit bit, keep what is in use.
//! - **Thinning.** In a full bucket, of the oldest three those blocks go first whose number in the chunk
//!   is not a multiple of 4, so old content thins out to a quarter before it is forgotten. Where blocks
//!   are asked for one by one this alone gains nothing: it trades blocks of newer chunks for as many of
//!   older ones. But what moved, moved in runs: four blocks in a row hold one that was kept, it
//!   leads to their chunk, and the rule above finds the other three. Taken by position and not by a bit
//!   of the id, because only so is a run sure to hold one. Measured, of chunks that moved, in sizes of
//!   the index: one by one 0.95 is found, thinned or not; by the rule above 1.55, and 2.14 thinned.
//!
//! Owns the memory and, during [`BlockIndex::save`], the file. Not its job: reading or verifying chunks, the wire,
//! when to save. It can be rebuilt at any time by feeding chunks again.
//! Thread safety: 64 locks over the words, one over the side table, never two at once (but at load) and none over IO.
//! Bounds: `memory_bytes`, all of it reserved at once and used page by page.

pub(in crate::accelerator) mod checked_file;
mod entry;
mod persist;
mod ring;
pub(in crate::accelerator) mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(in crate::accelerator) mod tests_measure;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use self::checked_file::LoadError;

use self::entry::{SHARDS, Spread};
use self::ring::{PLACE_BYTES, Ring};
use self::table::{BUCKET_BYTES, BUCKET_WORDS, Bucket, Table};
use crate::block::{CHUNK_BYTES, DomainKey, DomainTag, ShortId, is_zero};

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;
/// The smallest index.
pub const MEMORY_BYTES_MIN: usize = 64 * 1024;
/// Memory that holds every block of 10^12 bytes of unique data.
pub const MEMORY_BYTES_PER_TB: u64 =
    1_000_000_000_000 / (BLOCK_BYTES * BUCKET_WORDS * 4) as u64 * GROUP_BYTES as u64;

/// Four buckets and five places: thinned as it is, the index reaches back over about that many chunks.
const GROUP_BYTES: usize = 4 * BUCKET_BYTES + 5 * PLACE_BYTES;
/// A shard's buckets are numbered with 32 bits; this is 370 GB.
const GROUPS_MAX: usize = 1 << 30;
/// Of the older entries, one block in this many stays longest.
const KEEP_EVERY: u8 = 4;
/// More than enough for locks, heads and what aligns 64 tables.
const FIXED_BYTES: usize = 12 * 1024;

/// The first 8 bytes, big endian, of BLAKE3 of a block keyed with the domain's key. Never 0, which on
/// the wire stands for a block that is not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockId(pub u64);

/// The ids of a chunk's blocks; none for zeroes, for a short block at the end of a disk, and past it.
pub type BlockIds = [Option<BlockId>; CHUNK_BLOCKS];

/// The id of one block; none where it is short or all zeroes.
pub fn block_id(key: &DomainKey, block: &[u8]) -> Option<BlockId> {
    if block.len() != BLOCK_BYTES || is_zero(block) {
        return None;
    }
    let hash = blake3::keyed_hash(&key.0, block);
    let id = u64::from_be_bytes(*hash.as_bytes().first_chunk()?);
    (id != 0).then_some(BlockId(id))
}

/// The ids of a chunk's blocks; what a chunk has beyond [`CHUNK_BYTES`] is not looked at.
pub fn block_ids(key: &DomainKey, chunk: &[u8]) -> BlockIds {
    let mut ids = [None; CHUNK_BLOCKS];
    for (id, block) in ids.iter_mut().zip(chunk.chunks(BLOCK_BYTES)) {
        *id = block_id(key, block);
    }
    ids
}

/// Where a block may be found. To be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The chunk, within the domain that was asked.
    pub chunk: ShortId,
    /// Number of the block in it, 0 to 15.
    pub block: u8,
    /// The entry, to take it back.
    word: u64,
}

/// Figures of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockIndexStats {
    /// Words in use, stale ones among them.
    pub entries: u64,
    /// Words there are.
    pub entries_max: u64,
    /// Chunks that entries may lead to.
    pub chunks: u64,
    /// Chunks there can be.
    pub chunks_max: u64,
    /// Memory reserved, in bytes.
    pub memory_bytes: u64,
    /// Blocks asked for since the start.
    pub lookups: u64,
    /// Hints given since the start.
    pub hints: u64,
    /// Hints that were taken back since the start.
    pub forgotten: u64,
}

/// See the module.
pub struct BlockIndex {
    shards: Vec<Mutex<Table>>,
    ring: Mutex<Ring>,
    /// Sequence number of the next chunk, to tell ages without the ring's lock.
    next: AtomicU64,
    /// Buckets of a shard.
    buckets: usize,
    /// Chunks the ring has room for.
    places: usize,
    keep_every: u8,
    lookups: AtomicU64,
    hints: AtomicU64,
    forgotten: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockIndex {
    /// An empty index of at most so many bytes (at least [`MEMORY_BYTES_MIN`]).
    pub fn new(memory_bytes: usize) -> Self {
        Self::thinned(memory_bytes, KEEP_EVERY)
    }

    fn thinned(memory_bytes: usize, keep_every: u8) -> Self {
        let bytes = memory_bytes.max(MEMORY_BYTES_MIN) - FIXED_BYTES;
        let groups = (bytes / GROUP_BYTES).min(GROUPS_MAX);
        let buckets = groups * 4 / SHARDS;
        let places = buckets * SHARDS * 5 / 4;
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Table::new(buckets))).collect(),
            ring: Mutex::new(Ring::new(places)),
            next: AtomicU64::new(0),
            buckets,
            places,
            keep_every,
            lookups: AtomicU64::new(0),
            hints: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Learns the blocks of a chunk that the target holds.
    pub fn insert(&self, tag: DomainTag, chunk: ShortId, blocks: &BlockIds) {
        if blocks.iter().all(Option::is_none) {
            return;
        }
        let sequence = {
            let mut ring = lock(&self.ring);
            let sequence = ring.push(tag, chunk);
            self.next.store(ring.next(), Relaxed);
            sequence
        };
        for (number, id) in blocks.iter().enumerate() {
            let Some(id) = id else { continue };
            let spread = Spread::of(tag, *id);
            self.put(spread, entry::pack(spread, sequence, number as u8));
        }
    }

    /// Where a block may be found.
    pub fn lookup(&self, tag: DomainTag, id: BlockId) -> Option<Hint> {
        let mut hints = self.lookup_all(tag, &[Some(id)]);
        hints.pop().flatten()
    }

    /// The same for many, in their order; cheaper than one by one.
    pub fn lookup_all(&self, tag: DomainTag, ids: &[Option<BlockId>]) -> Vec<Option<Hint>> {
        let words: Vec<Option<u64>> = ids.iter().map(|id| self.find(Spread::of(tag, (*id)?))).collect();
        self.lookups.fetch_add(ids.iter().flatten().count() as u64, Relaxed);
        if words.iter().all(Option::is_none) {
            return vec![None; words.len()];
        }
        let ring = lock(&self.ring);
        let hint = |word: Option<u64>| {
            let word = word?;
            Some(Hint { chunk: ring.chunk(tag, word)?, block: entry::block(word), word })
        };
        let hints: Vec<Option<Hint>> = words.into_iter().map(hint).collect();
        self.hints.fetch_add(hints.iter().flatten().count() as u64, Relaxed);
        hints
    }

    /// The chunk of a hint is gone or bad: no entry leads to it any more.
    pub fn forget_chunk(&self, tag: DomainTag, hint: &Hint) {
        if lock(&self.ring).forget(tag, hint.word, hint.chunk) {
            self.forgotten.fetch_add(1, Relaxed);
        }
    }

    /// The chunk of a hint is sound but has another block there: this entry was somebody else's.
    pub fn forget_block(&self, tag: DomainTag, id: BlockId, hint: &Hint) {
        let spread = Spread::of(tag, id);
        let Some(shard) = self.shards.get(spread.shard()) else { return };
        let mut table = lock(shard);
        for number in spread.buckets(self.buckets) {
            let same = |word: &u64| entry::same_place(*word, hint.word);
            if let Some(at) = table.bucket(number).and_then(|bucket| bucket.iter().position(same)) {
                table.remove(number, at);
                self.forgotten.fetch_add(1, Relaxed);
                return;
            }
        }
    }

    /// What it holds and takes.
    pub fn stats(&self) -> BlockIndexStats {
        let (mut entries, mut memory_bytes) =
            (0, (SHARDS * size_of::<Mutex<Table>>() + size_of::<Self>()) as u64);
        for table in self.shards.iter().map(lock) {
            entries += table.used();
            memory_bytes += table.memory_bytes();
        }
        let ring = lock(&self.ring);
        BlockIndexStats {
            entries,
            entries_max: (self.buckets * SHARDS * BUCKET_WORDS) as u64,
            chunks: self.used_places(ring.next()) as u64,
            chunks_max: self.places as u64,
            memory_bytes: memory_bytes + ring.memory_bytes(),
            lookups: self.lookups.load(Relaxed),
            hints: self.hints.load(Relaxed),
            forgotten: self.forgotten.load(Relaxed),
        }
    }

    /// Writes the index to a file, durably, while it is in use. Blocks; at most the size of its memory.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        persist::save(self, path)
    }

    /// The index of a file, or an empty one and why. Blocks.
    pub fn load(path: &Path, memory_bytes: usize) -> (Self, Option<LoadError>) {
        let index = Self::new(memory_bytes);
        match persist::load(&index, path) {
            Ok(()) => {
                index.next.store(lock(&index.ring).next(), Relaxed);
                (index, None)
            }
            Err(error) => (Self::new(memory_bytes), Some(error)),
        }
    }

    /// Places that were used when `next` was the next sequence number.
    fn used_places(&self, next: u64) -> usize {
        next.min(self.places as u64) as usize
    }

    /// Enters a word as the newest, in place of the block's old one, of a free one, or of the one that
    /// will be missed least.
    fn put(&self, spread: Spread, word: u64) {
        let Some(shard) = self.shards.get(spread.shard()) else { return };
        let mut table = lock(shard);
        let numbers = spread.buckets(self.buckets);
        let [Some(first), Some(second)] = numbers.map(|number| table.bucket(number).copied()) else { return };
        for (number, bucket) in [(numbers[0], &first), (numbers[1], &second)] {
            if let Some(at) = position(bucket, spread) {
                // Seen again: it keeps its hit.
                let hit = entry::is_hit(bucket[at]);
                table.put(number, at, if hit { entry::with_hit(word) } else { word });
                return;
            }
        }
        let free = |bucket: &Bucket| bucket.iter().position(|word| *word == 0).unwrap_or(BUCKET_WORDS);
        let (a, b) = (free(&first), free(&second));
        if a.min(b) < BUCKET_WORDS {
            table.put(if a <= b { numbers[0] } else { numbers[1] }, a.min(b), word);
            return;
        }
        let next = self.next.load(Relaxed);
        let [a, b] = [&first, &second].map(|full| entry::victim(full, self.keep_every, next, self.places));
        // Where both would be missed alike, half of the blocks go this way and half that.
        let even = spread.fingerprint() & 1 == 0;
        let (number, victim) =
            if a.0 < b.0 || (a.0 == b.0 && even) { (numbers[0], a) } else { (numbers[1], b) };
        let at = table.bucket_mut(number).map_or(victim.1, |bucket| entry::pass_over(bucket, victim));
        table.put(number, at, word);
    }

    /// The word of a block, marked as hit.
    fn find(&self, spread: Spread) -> Option<u64> {
        let mut table = lock(self.shards.get(spread.shard())?);
        for number in spread.buckets(self.buckets) {
            let bucket = table.bucket_mut(number)?;
            if let Some(at) = position(bucket, spread) {
                bucket[at] = entry::with_hit(bucket[at]);
                return Some(bucket[at]);
            }
        }
        None
    }
}

fn position(bucket: &Bucket, spread: Spread) -> Option<usize> {
    let fingerprint = spread.fingerprint();
    bucket.iter().position(|word| entry::fingerprint(*word) == fingerprint)
}
