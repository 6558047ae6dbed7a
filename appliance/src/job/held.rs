//! Bases at the target: answers probes, and puts a batch's reference prefix together.
//!
//! What is said to be held is pinned in the cache while the session lasts; the rest lies in restore points
//! that the session's lease keeps. Everything is resolved by id, which verifies it, when it is used; a
//! base that turns out bad or gone makes the batch's chunks be asked for again, without bases.
//! Bounds: [`HELD_BASES_MAX`] offered ids (16 bytes each), [`KNOWN_CHUNKS_MAX`] chunks whose blocks are
//! known, [`BASES_IN_MEMORY_MAX`] chunks in memory.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::accelerator::block_index::{BlockId, BlockIndex, block_ids};
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::prefix;
use crate::block::{DomainKey, DomainTag, ShortId};
use crate::limits::{BASES_IN_MEMORY_MAX, HELD_BASES_MAX, PREFIX_BYTES_MAX};
use crate::wire::message::{BlockOffer, Held, PrefixFrom, PrefixRun, Probe};

/// Needed chunks of which blocks are known: as many as can be on their way.
const KNOWN_CHUNKS_MAX: usize = 16 * 1024;
/// Chunks that are read to answer for one chunk's blocks; what moved lies in one or two.
const HINTS_TRIED_MAX: usize = 4;

type KnownBlocks = [Option<(ShortId, u8)>; 16];

/// See the module.
pub struct HeldBases {
    key: DomainKey,
    tag: DomainTag,
    index: Arc<BlockIndex>,
    cache: Arc<GlobalCache>,
    offered: VecDeque<(ShortId, bool)>,
    /// Number of the oldest that is remembered.
    first: u32,
    known: HashMap<(u16, u64), Box<KnownBlocks>>,
    chunks: LruCache<ShortId, Arc<Vec<u8>>>,
}

impl HeldBases {
    /// For one channel of one session.
    pub fn new(key: DomainKey, index: Arc<BlockIndex>, cache: Arc<GlobalCache>) -> Self {
        let chunks = LruCache::new(NonZeroUsize::new(BASES_IN_MEMORY_MAX).unwrap_or(NonZeroUsize::MIN));
        let tag = key.tag();
        Self { key, tag, index, cache, offered: VecDeque::new(), first: 0, known: HashMap::new(), chunks }
    }

    /// Answers a probe. `read` resolves an id to verified bytes.
    pub fn probe(&mut self, probe: &Probe, mut read: impl FnMut(ShortId) -> Option<Vec<u8>>) -> Held {
        let bases = self.cache.hold_many(self.tag, &probe.bases);
        for (id, held) in probe.bases.iter().zip(&bases) {
            self.offered.push_back((*id, *held));
            if self.offered.len() > HELD_BASES_MAX {
                self.offered.pop_front();
                self.first = self.first.wrapping_add(1);
            }
        }
        let blocks = probe.blocks.iter().map(|offer| self.known_blocks(offer, &mut read)).collect();
        Held { bases, blocks }
    }

    fn known_blocks(&mut self, offer: &BlockOffer, read: &mut impl FnMut(ShortId) -> Option<Vec<u8>>) -> u16 {
        let asked: Vec<Option<BlockId>> = offer
            .ids
            .iter()
            .map(|id| Some(BlockId(u64::from_be_bytes(*id))).filter(|id| id.0 != 0))
            .take(16)
            .collect();
        let mut known: KnownBlocks = [None; 16];
        let mut tried = 0;
        for (n, hint) in self.index.lookup_all(self.tag, &asked).into_iter().enumerate() {
            let Some(hint) = hint.filter(|_| known[n].is_none() && tried < HINTS_TRIED_MAX) else { continue };
            tried += 1;
            let Some(data) = self.chunk(hint.chunk, read) else {
                self.index.forget_chunk(self.tag, &hint);
                continue;
            };
            // One chunk that is read answers for all of its blocks.
            let ids = block_ids(&self.key, &data);
            for (slot, asked) in known.iter_mut().zip(&asked).filter(|(slot, _)| slot.is_none()) {
                let found = asked.and_then(|asked| ids.iter().position(|id| *id == Some(asked)));
                *slot = found.map(|block| (hint.chunk, block as u8));
            }
        }
        let mask = (0..16).filter(|n| known[*n].is_some()).fold(0u16, |mask, n| mask | 1 << n);
        if mask != 0 && self.known.len() < KNOWN_CHUNKS_MAX {
            self.known.insert((offer.disk, offer.chunk), Box::new(known));
            return mask;
        }
        0
    }

    fn chunk(
        &mut self,
        id: ShortId,
        read: &mut impl FnMut(ShortId) -> Option<Vec<u8>>,
    ) -> Option<Arc<Vec<u8>>> {
        if let Some(data) = self.chunks.get(&id) {
            return Some(data.clone());
        }
        let data = Arc::new(read(id)?);
        self.chunks.put(id, data.clone());
        Some(data)
    }

    /// A chunk of this session has arrived: what was known of it is of no more use.
    pub fn arrived(&mut self, disk: u16, chunk: u64) {
        self.known.remove(&(disk, chunk));
    }

    /// The bytes of a prefix. `read` resolves an id to verified bytes, `place` names the id of a chunk of
    /// the base or, where there is no id to go by, reads the chunk of the point being built. `None` where
    /// one of the bases is not here (any more).
    pub fn prefix(
        &mut self,
        runs: &[PrefixRun],
        mut read: impl FnMut(ShortId) -> Option<Vec<u8>>,
        mut place: impl FnMut(PrefixFrom) -> Option<Place>,
    ) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for run in runs {
            match run.from {
                PrefixFrom::Held { number } => {
                    let at = number.wrapping_sub(self.first) as usize;
                    let (id, _) = self.offered.get(at).filter(|(_, held)| *held)?;
                    let data = self.chunk(*id, &mut read)?;
                    append(&mut bytes, &data, run.blocks);
                }
                PrefixFrom::Known { disk, chunk } => {
                    let known = self.known.get(&(disk, chunk))?.clone();
                    for n in (0..16).filter(|n| run.blocks & (1 << n) != 0) {
                        let (id, block) = known[n]?;
                        let data = self.chunk(id, &mut read)?;
                        append(&mut bytes, &data, 1 << block);
                    }
                }
                from => match place(from)? {
                    Place::Id(id) => {
                        let data = self.chunk(id, &mut read)?;
                        append(&mut bytes, &data, run.blocks);
                    }
                    Place::Data(data) => append(&mut bytes, &data, run.blocks),
                },
            }
            if bytes.len() > PREFIX_BYTES_MAX {
                return None;
            }
        }
        Some(bytes)
    }
}

/// What a place of the recipe leads to.
pub enum Place {
    /// A chunk by its id.
    Id(ShortId),
    /// Bytes that have no id yet (a page of the point being built that is still open).
    Data(Vec<u8>),
}

fn append(bytes: &mut Vec<u8>, chunk: &[u8], mask: u16) {
    prefix::blocks(chunk, mask).for_each(|block| bytes.extend_from_slice(block));
}
