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

/// Entries in a bucket.
const WAYS: usize = 6;
/// Bytes in a bucket.
pub const BUCKET_BYTES: usize = 64;
/// The image number of an empty entry.
const NOBODY: u16 = u16::MAX;

/// Where content lies: a block of 4 KiB of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Image number, below 65,535.
    pub image: u16,
    /// 4 KiB block of the disk.
    pub block: u32,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    fingerprints: [u32; WAYS],
    blocks: [u32; WAYS],
    images: [u16; WAYS],
    spare: u32,
}

const EMPTY: Bucket = Bucket { fingerprints: [0; WAYS], blocks: [0; WAYS], images: [NOBODY; WAYS], spare: 0 };

/// See the module.
pub struct AnchorTable {
    buckets: Vec<Bucket>,
}

/// How much an image's entries are thinned against others: each step halves them. `u8::MAX`: dead.
pub type Penalty = u8;

impl AnchorTable {
    /// An empty table of at most this many bytes (one bucket at least).
    pub fn new(memory_bytes: usize) -> Self {
        Self { buckets: vec![EMPTY; (memory_bytes / BUCKET_BYTES).max(1)] }
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
        let way = bucket.way(anchor.0 as u32)?;
        Some(Place { image: bucket.images[way], block: bucket.blocks[way] })
    }

    /// Notes a place; the newest place of an anchor counts. `penalty` says how images rank.
    pub fn put(&mut self, anchor: super::Anchor, place: Place, penalty: impl Fn(u16) -> Penalty) {
        let at = self.bucket(anchor);
        let Some(bucket) = self.buckets.get_mut(at) else { return };
        let fingerprint = anchor.0 as u32;
        let way = bucket.way(fingerprint).or_else(|| bucket.room(fingerprint, place.image, penalty));
        let Some(way) = way else { return };
        bucket.fingerprints[way] = fingerprint;
        bucket.images[way] = place.image;
        bucket.blocks[way] = place.block;
    }

    /// Goes over all entries: each stays at the place that comes back, or is dropped.
    pub fn retain(&mut self, mut keep: impl FnMut(Place) -> Option<Place>) {
        for bucket in &mut self.buckets {
            for way in 0..WAYS {
                if bucket.images[way] == NOBODY {
                    continue;
                }
                match keep(Place { image: bucket.images[way], block: bucket.blocks[way] }) {
                    Some(place) => {
                        bucket.images[way] = place.image;
                        bucket.blocks[way] = place.block;
                    }
                    None => bucket.images[way] = NOBODY,
                }
            }
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.images.iter().filter(|image| **image != NOBODY).count()).sum()
    }

    /// The table as bytes, little-endian, bucket by bucket.
    pub fn write_to(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        for bucket in &self.buckets {
            let mut bytes = [0u8; BUCKET_BYTES];
            let words = bucket.fingerprints.iter().chain(&bucket.blocks);
            for (word, at) in words.zip(bytes.chunks_exact_mut(4)) {
                at.copy_from_slice(&word.to_le_bytes());
            }
            for (image, at) in bucket.images.iter().zip(bytes[8 * WAYS..].chunks_exact_mut(2)) {
                at.copy_from_slice(&image.to_le_bytes());
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// A table of exactly these buckets. `buckets` was checked against the memory allowed.
    pub fn read_from(input: &mut impl std::io::Read, buckets: usize) -> std::io::Result<Self> {
        let mut table = Self { buckets: vec![EMPTY; buckets.max(1)] };
        for bucket in &mut table.buckets {
            let mut bytes = [0u8; BUCKET_BYTES];
            input.read_exact(&mut bytes)?;
            let (words, images) = bytes.split_at(8 * WAYS);
            let mut words = words.chunks_exact(4).map(|at| u32::from_le_bytes([at[0], at[1], at[2], at[3]]));
            bucket.fingerprints = std::array::from_fn(|_| words.next().unwrap_or(0));
            bucket.blocks = std::array::from_fn(|_| words.next().unwrap_or(0));
            let mut images = images.chunks_exact(2).map(|at| u16::from_le_bytes([at[0], at[1]]));
            bucket.images = std::array::from_fn(|_| images.next().unwrap_or(NOBODY));
        }
        Ok(table)
    }

    /// Buckets in it.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }
}

impl Bucket {
    fn way(&self, fingerprint: u32) -> Option<usize> {
        (0..WAYS).find(|way| self.fingerprints[*way] == fingerprint && self.images[*way] != NOBODY)
    }

    /// A free way, or that of the entry that ranks last, if the new one ranks before it.
    fn room(&self, fingerprint: u32, image: u16, penalty: impl Fn(u16) -> Penalty) -> Option<usize> {
        if let Some(free) = (0..WAYS).find(|way| self.images[*way] == NOBODY) {
            return Some(free);
        }
        let mine = rank(fingerprint, penalty(image));
        (0..WAYS)
            .map(|way| (rank(self.fingerprints[way], penalty(self.images[way])), way))
            .max()
            .filter(|(worst, _)| mine < *worst)
            .map(|(_, way)| way)
    }
}

/// Lower stays longer.
fn rank(fingerprint: u32, penalty: Penalty) -> u64 {
    if penalty == Penalty::MAX { u64::MAX } else { u64::from(fingerprint) << penalty.min(31) }
}
