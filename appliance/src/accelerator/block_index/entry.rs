//! One word of the index: fingerprint, place, and whether it was asked for. Pure.
//!
//! | bits | field |
//! |---|---|
//! | 0..34 | sequence number of the chunk, its low bits |
//! | 34..38 | number of the block in its chunk |
//! | 38 | hit since it was last passed over |
//! | 39..64 | fingerprint, never 0 |
//!
//! 25 bits of fingerprint, 16 words looked at: an absent block finds a word in about 5 of 10 million
//! lookups, which then costs one chunk read in vain. More bits would buy nothing. Sequence numbers wrap
//! after a pebibyte of inserted chunks; a word that lived through that is a wrong hint, no more.

use crate::block::DomainTag;

use super::BlockId;
use super::table::{BUCKET_WORDS, Bucket};

/// Locks, and parts of the table: the top six bits of the hash.
pub(super) const SHARDS: usize = 64;

const SEQUENCE: u64 = (1 << 34) - 1;
const BLOCK_SHIFT: u32 = 34;
const HIT: u64 = 1 << 38;
const FINGERPRINT_SHIFT: u32 = 39;
/// Words of a bucket that thinning leaves alone: the newest five of eight.
const YOUNG: usize = 5;
/// An odd number with well mixed bits (2^64 divided by the golden ratio).
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a domain's tag adds to the hashes of its blocks. Mixed, for tags could be alike.
pub(super) fn scope(tag: DomainTag) -> u64 {
    let mixed = u64::from_be_bytes(tag.0).wrapping_mul(MIX);
    mixed ^ mixed >> 32
}

/// A block's hash within its domain. Ids are keyed hashes, so they need no mixing.
#[derive(Clone, Copy)]
pub(super) struct Spread(u64);

impl Spread {
    pub fn of(tag: DomainTag, id: BlockId) -> Self {
        Self(id.0 ^ scope(tag))
    }

    pub fn shard(self) -> usize {
        (self.0 >> 58) as usize
    }

    /// The two buckets where the block may be.
    pub fn buckets(self, buckets: usize) -> [usize; 2] {
        let scale = |bits: u64| ((bits & 0xffff_ffff).wrapping_mul(buckets as u64) >> 32) as usize;
        [scale(self.0), scale(self.0.wrapping_mul(MIX) >> 32)]
    }

    pub fn fingerprint(self) -> u64 {
        (self.0 >> 32 & 0x01ff_ffff).max(1)
    }
}

pub(super) fn pack(spread: Spread, sequence: u64, block: u8) -> u64 {
    spread.fingerprint() << FINGERPRINT_SHIFT | u64::from(block & 15) << BLOCK_SHIFT | sequence & SEQUENCE
}

/// The whole sequence number of a word's chunk, where that is among the last `places` before `next`.
pub(super) fn sequence(word: u64, next: u64, places: usize) -> Option<u64> {
    let age = next.wrapping_sub(1).wrapping_sub(word) & SEQUENCE;
    if age < places as u64 { next.checked_sub(1)?.checked_sub(age) } else { None }
}

pub(super) fn fingerprint(word: u64) -> u64 {
    word >> FINGERPRINT_SHIFT
}

pub(super) fn block(word: u64) -> u8 {
    (word >> BLOCK_SHIFT) as u8 & 15
}

pub(super) fn is_hit(word: u64) -> bool {
    word & HIT != 0
}

pub(super) fn with_hit(word: u64) -> u64 {
    word | HIT
}

/// True where both words name the same block of the same chunk, whether hit or not.
pub(super) fn same_place(a: u64, b: u64) -> bool {
    (a ^ b) & !HIT == 0
}

/// Which word of a full bucket goes, and how much it would be missed (0: not at all).
///
/// Words lie newest first. A stale one goes first; then of the oldest three one that thinning does not
/// keep; then the oldest that nobody asked for; where all were hit, the oldest.
/// (A word that had its second chance lies further in front than its age.)
pub(super) fn victim(bucket: &Bucket, keep_every: u8, next: u64, places: usize) -> (u8, usize) {
    let last = BUCKET_WORDS - 1;
    if let Some(at) = bucket.iter().rposition(|word| sequence(*word, next, places).is_none()) {
        return (0, at);
    }
    let thinned = |word: &u64| !is_hit(*word) && !block(*word).is_multiple_of(keep_every.max(1));
    if let Some(at) = bucket.iter().rposition(thinned).filter(|at| *at >= YOUNG) {
        return (1, at);
    }
    match bucket.iter().rposition(|word| !is_hit(*word)) {
        Some(at) => (2, at),
        None => (3, last),
    }
}

/// Gives what was passed over because it was hit its second chance: it moves to the front, as if it
/// were new, and its hit is used. Returns where the victim is now.
pub(super) fn pass_over(bucket: &mut Bucket, (rank, at): (u8, usize)) -> usize {
    let last = BUCKET_WORDS - 1;
    match rank {
        2 => {
            let passed = last.saturating_sub(at);
            bucket.rotate_right(passed);
            bucket.iter_mut().take(passed).for_each(|word| *word &= !HIT);
            last
        }
        3 => {
            bucket.iter_mut().for_each(|word| *word &= !HIT);
            last
        }
        _ => at,
    }
}
