//! The anchor table: from an anchor to the place whose content it was seen in. Bounded, lossy, quick.
//!
//! Buckets of six entries of 10 bytes in one cache line; an anchor belongs into one bucket. A full
//! bucket keeps the entries that rank best: those of dead images go first, then a bottom-k sample by
//! fingerprint, in which an image that was long unused counts as sampled more thinly. So a table that
//! is too small thins everything evenly and in the same places for old and new content, before it
//! forgets any disk. (A table that forgot at random would lose matches twice: at the base and at the
//! new content.)
//!
//! Nothing here is trusted: an entry is a hint of where similar bytes may lie, the bytes are verified by
//! whoever reads them. Pure; bound: the bytes it was made with.

use std::ops::Range;

/// Entries in a bucket.
const WAYS: usize = 6;
/// Bytes in a bucket.
pub const BUCKET_BYTES: usize = 64;
/// Where content lies: a block of 4 KiB of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Image number, below 65,535.
    pub image: u16,
    /// 4 KiB block of the disk.
    pub block: u32,
}

/// One cache line: 6 fingerprints, 6 blocks, 6 owners of 16 bits, 32 spare bits. An owner is an image
/// number and one; 0: the entry is empty. Plain words, because the system hands out memory of zeroes
/// page by page as it comes into use.
type Bucket = [u32; BUCKET_BYTES / 4];

/// See the module.
pub struct AnchorTable {
    buckets: Vec<Bucket>,
}

/// How much an image's entries are thinned against others: each step halves them. `u8::MAX`: dead.
pub type Penalty = u8;

impl AnchorTable {
    /// An empty table of at most this many bytes (one bucket at least).
    pub fn new(memory_bytes: usize) -> Self {
        Self { buckets: vec![[0; BUCKET_BYTES / 4]; (memory_bytes / BUCKET_BYTES).max(1)] }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.buckets.len() * BUCKET_BYTES
    }

    /// Entries it can hold.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    fn bucket(&self, anchor: super::Anchor) -> usize {
        ((u128::from(anchor.0) * self.buckets.len() as u128) >> 64) as usize
    }

    /// The place of an anchor.
    pub fn get(&self, anchor: super::Anchor) -> Option<Place> {
        let bucket = self.buckets.get(self.bucket(anchor))?;
        place(bucket, way(bucket, anchor.0 as u32)?)
    }

    /// Notes a place; the newest place of an anchor counts. `penalty` says how images rank.
    pub fn put(&mut self, anchor: super::Anchor, place: Place, penalty: impl Fn(u16) -> Penalty) {
        let at = self.bucket(anchor);
        let Some(bucket) = self.buckets.get_mut(at) else { return };
        let fingerprint = anchor.0 as u32;
        let way = way(bucket, fingerprint).or_else(|| room(bucket, fingerprint, place.image, penalty));
        let Some(way) = way else { return };
        bucket[way] = fingerprint;
        bucket[WAYS + way] = place.block;
        set_owner(bucket, way, place.image.wrapping_add(1));
    }

    /// Goes over all entries: each stays at the place that comes back, or is dropped.
    pub fn retain(&mut self, mut keep: impl FnMut(Place) -> Option<Place>) {
        for bucket in &mut self.buckets {
            for way in 0..WAYS {
                let Some(old) = place(bucket, way) else { continue };
                match keep(old) {
                    Some(place) => {
                        bucket[WAYS + way] = place.block;
                        set_owner(bucket, way, place.image.wrapping_add(1));
                    }
                    None => set_owner(bucket, way, 0),
                }
            }
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| (0..WAYS).filter(|way| owner(bucket, *way) != 0).count()).sum()
    }

    /// Appends the bytes of these buckets, little-endian.
    pub fn encode(&self, buckets: Range<usize>, out: &mut Vec<u8>) {
        let words = self.buckets.get(buckets).unwrap_or_default().iter().flatten();
        words.for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    /// Takes buckets from `from` on; none where they do not fit.
    pub fn decode(&mut self, from: usize, bytes: &[u8]) -> Option<()> {
        let (coded, rest) = bytes.as_chunks::<BUCKET_BYTES>();
        let until = from.checked_add(coded.len())?;
        let buckets = self.buckets.get_mut(from..until).filter(|_| rest.is_empty())?;
        // Empty ones are not touched: they take no memory.
        for (bucket, bytes) in buckets.iter_mut().zip(coded).filter(|(_, bytes)| **bytes != [0; BUCKET_BYTES])
        {
            for (word, bytes) in bucket.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        Some(())
    }

    /// Buckets in it.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }
}

fn owner(bucket: &Bucket, way: usize) -> u16 {
    (bucket[2 * WAYS + way / 2] >> (16 * (way % 2))) as u16
}

fn set_owner(bucket: &mut Bucket, way: usize, owner: u16) {
    let (word, shift) = (&mut bucket[2 * WAYS + way / 2], 16 * (way % 2));
    *word = *word & !(0xFFFF << shift) | u32::from(owner) << shift;
}

/// Of an entry that is in use.
fn place(bucket: &Bucket, way: usize) -> Option<Place> {
    let image = owner(bucket, way).checked_sub(1)?;
    Some(Place { image, block: bucket[WAYS + way] })
}

fn way(bucket: &Bucket, fingerprint: u32) -> Option<usize> {
    (0..WAYS).find(|way| bucket[*way] == fingerprint && owner(bucket, *way) != 0)
}

/// A free way, or that of the entry that ranks last, if the new one ranks before it.
fn room(bucket: &Bucket, fingerprint: u32, image: u16, penalty: impl Fn(u16) -> Penalty) -> Option<usize> {
    if let Some(free) = (0..WAYS).find(|way| owner(bucket, *way) == 0) {
        return Some(free);
    }
    let mine = rank(fingerprint, penalty(image));
    (0..WAYS)
        .map(|way| (rank(bucket[way], penalty(owner(bucket, way).wrapping_sub(1))), way))
        .max()
        .filter(|(worst, _)| mine < *worst)
        .map(|(_, way)| way)
}

/// Lower stays longer.
fn rank(fingerprint: u32, penalty: Penalty) -> u64 {
    if penalty == Penalty::MAX { u64::MAX } else { u64::from(fingerprint) << penalty.min(31) }
}
