//! The filter of shared chunks: which chunks came from two branches or more (operating systems, mostly)?
//!
//! The target learns it ([`SharedSet`], one for each dedup domain) and every source of the domain has
//! a copy ([`SharedFilter`]). What the filter does not have is hardly at the target from somebody else,
//! so a source can send it at once; and it can estimate savings without asking.
//!
//! - **A hint only, never consulted at the commit.** A wrong "yes" costs a question, a wrong "no" some bytes
//!   that the target had. What the target has is decided by the target, from content.
//! - A filter has an **epoch** and positions: the order in which keys were added. A source asks with its
//!   [`Cursor`] and gets a [`Delta`]: the additions since, or the whole filter in parts where it has
//!   none, another epoch's, or so old a one that additions would be longer. A new epoch begins where the
//!   filter was rebuilt: for 64 Ki keys at first, then 256 Ki, 1 Mi, 4 Mi; full with these, the older half is forgotten.
//! - The cursor carries a sum over all keys before its position. A target that lost its last additions
//!   in a crash, and added others at their positions, so finds out and sends the whole filter.
//! - A **key** is the first 40 bits of the chunk's short id: among 4 Mi keys a foreign one is found by
//!   chance 4 times in a million, against 1 % by the filter's own design, and a delta is shorter for it:
//!   4.4 bytes a key for 100 additions, 4.0 for 1,000, 3.1 for 100,000 (with 63 bits 7.3, 6.8 and 6.0).
//! - The filter is `bloomfilter`'s, whose byte form has the seed, the number of hashes and the bits, the
//!   same on every machine; a key is hashed as its 8 bytes, little endian. A golden file holds that.
//!
//! - A delta crosses the wire [packed](Delta::pack): a filter that has few keys is mostly zeroes.
//!
//! [`SharedSets`] are those of a target and their files, [`SharedFilters`] the copies of a source and theirs.
//! Not its job: the wire, when to ask, what is done with an answer.
//! Bounds: [`KEYS_MAX`] keys, 4.8 MiB of filter (twice that while a new one comes in), [`PART_BYTES_MAX`]
//! or [`ADDITIONS_MAX`] keys in one delta, the memory given for first branches.

mod copies;
mod first;
mod rice;
mod set;
mod sets;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_measure;

use std::hash::{Hash, Hasher};

use bloomfilter::Bloom;
use serde::{Deserialize, Serialize};

pub use self::copies::SharedFilters;
pub use self::set::{Noted, SharedSet, SharedSetStats};
pub use self::sets::SharedSets;

use crate::block::ShortId;
pub use crate::wire::message::FilterCursor as Cursor;

/// Keys of a filter.
pub const KEYS_MAX: usize = 1 << 22;
/// Bytes of a whole filter; what claims to be longer is refused.
pub const FILTER_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Bytes of a whole filter in one delta.
pub const PART_BYTES_MAX: usize = 256 * 1024;
/// Keys in one delta: coded, less than [`PART_BYTES_MAX`].
pub const ADDITIONS_MAX: usize = 64 * 1024;

/// Plain bytes of one delta with all that is around its part or its additions.
const DELTA_BYTES_MAX: usize = PART_BYTES_MAX + 4096;
const PACK_LEVEL: i32 = 3;

/// Hash functions; more than this is no filter of ours.
const HASHES_MAX: u32 = 16;

/// What filter and deltas know of a chunk: its first 40 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    const BITS: u32 = 40;

    fn of(id: ShortId) -> Self {
        let [a, b, c, d, e, ..] = id.0;
        Self(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
    }
}

impl Hash for Key {
    /// Exactly these bytes: what the standard library does with numbers and slices differs by machine.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.to_le_bytes());
    }
}

/// A part of a whole filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterPart {
    /// Length of the whole.
    pub total: u32,
    /// Of this part in it.
    pub offset: u32,
    /// At most [`PART_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// What a source lacks, or the next piece of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Of the filter.
    pub epoch: u64,
    /// Where the additions begin; they end at `position`.
    pub from: u32,
    /// Keys that the source has with this and what it had (with a filter: once all parts are there).
    pub position: u32,
    /// The sum over these keys.
    pub check: u64,
    /// Of a whole filter; then there are no additions.
    pub full: Option<FilterPart>,
    /// The added keys, sorted, Golomb-Rice coded; empty for none.
    pub additions: Vec<u8>,
    /// There is more to ask for at once.
    pub more: bool,
}

impl Delta {
    /// As it crosses the wire: one zstd frame of its record.
    pub fn pack(&self) -> Vec<u8> {
        let plain = postcard::to_stdvec(self).unwrap_or_default();
        zstd::bulk::compress(&plain, PACK_LEVEL).unwrap_or_default()
    }

    /// The reverse. What comes out is still to be [applied](SharedFilter::apply), which checks it.
    pub fn unpack(bytes: &[u8]) -> Result<Self, FilterError> {
        let malformed = || FilterError::Malformed("it is not one record in one frame");
        let plain = zstd::bulk::decompress(bytes, DELTA_BYTES_MAX).map_err(|_| malformed())?;
        postcard::from_bytes(&plain).map_err(|_| malformed())
    }

    /// What a source pays, in bytes, until it has what this is (a part) of. `packed` is the length of this.
    pub fn cost(&self, packed: usize) -> u64 {
        let Some(part) = &self.full else { return packed as u64 };
        packed as u64 * u64::from(part.total) / (part.bytes.len() as u64).max(1)
    }
}

/// Why a delta was refused. The filter is as it was; after a bad part it will ask for the whole again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It is of another epoch, position or offset than was asked for.
    #[error("the delta does not follow what the filter has")]
    OutOfOrder,
    /// A length or count is above its bound.
    #[error("the delta is larger than it may be")]
    TooLarge,
    /// The whole filter, or the coding of the additions, is not sound.
    #[error("the delta is malformed: {0}")]
    Malformed(&'static str),
}

/// A source's copy of the filter. With `serde` it is kept over restarts; what is decoded is checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct SharedFilter {
    bloom: Option<Bloom<Key>>,
    /// Of `bloom`, or of what is coming in.
    cursor: Option<Cursor>,
    coming: Vec<u8>,
}

impl SharedFilter {
    /// What to ask the target with; none for the whole filter.
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// False until the first filter is complete.
    pub fn is_loaded(&self) -> bool {
        self.bloom.is_some()
    }

    /// False where the target surely had this chunk from no two branches when the filter was made. True
    /// where it may have, and as long as there is no filter.
    pub fn may_contain(&self, id: ShortId) -> bool {
        self.bloom.as_ref().is_none_or(|bloom| bloom.check(&Key::of(id)))
    }

    /// The share of foreign chunks that it takes for shared, by how many of its bits are set; none without
    /// a filter. About 0.01 by design; near 1 the filter says nothing and is better not asked.
    pub fn false_positive_rate(&self) -> Option<f64> {
        self.bloom.as_ref().map(false_positive_rate)
    }

    /// Memory of the filter and of one that is coming in, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bloom.as_ref().map_or(0, |bloom| bloom.as_slice().len()) + self.coming.capacity()
    }

    /// Takes what the target answered to [`SharedFilter::cursor`].
    pub fn apply(&mut self, delta: &Delta) -> Result<(), FilterError> {
        if delta.position as usize > KEYS_MAX {
            return Err(FilterError::TooLarge);
        }
        let Some(part) = &delta.full else { return self.add(delta) };
        let taken = self.take(delta, part);
        if taken.is_err() {
            // A complete filter goes on to answer, but not to be added to.
            self.coming = Vec::new();
            self.cursor = None;
        }
        taken
    }

    fn add(&mut self, delta: &Delta) -> Result<(), FilterError> {
        let cursor = self.cursor.ok_or(FilterError::OutOfOrder)?;
        let bloom = self.bloom.as_mut().ok_or(FilterError::OutOfOrder)?;
        if cursor.part.is_some() || (cursor.epoch, cursor.position) != (delta.epoch, delta.from) {
            return Err(FilterError::OutOfOrder);
        }
        let keys =
            rice::decode(&delta.additions, Key::BITS, ADDITIONS_MAX).map_err(FilterError::Malformed)?;
        if u64::from(delta.from).checked_add(keys.len() as u64) != Some(u64::from(delta.position)) {
            return Err(FilterError::OutOfOrder);
        }
        keys.into_iter().for_each(|key| bloom.set(&Key(key)));
        self.cursor = Some(Cursor { position: delta.position, check: delta.check, ..cursor });
        Ok(())
    }

    fn take(&mut self, delta: &Delta, part: &FilterPart) -> Result<(), FilterError> {
        let Delta { epoch, position, check, .. } = *delta;
        let (total, offset) = (part.total as usize, part.offset as usize);
        if total > FILTER_BYTES_MAX || part.bytes.len() > PART_BYTES_MAX {
            return Err(FilterError::TooLarge);
        }
        if offset == 0 {
            self.coming = Vec::new();
        } else if self.cursor != Some(Cursor { epoch, position, check, part: Some(part.offset) })
            || self.coming.len() != offset
        {
            return Err(FilterError::OutOfOrder);
        }
        if part.bytes.is_empty() || part.bytes.len() > total.saturating_sub(offset) {
            return Err(FilterError::Malformed("a part does not fit the whole"));
        }
        self.coming.extend_from_slice(&part.bytes);
        let come = self.coming.len();
        let complete = come == total;
        if complete {
            self.bloom = Some(checked(std::mem::take(&mut self.coming)).map_err(FilterError::Malformed)?);
        }
        self.cursor = Some(Cursor { epoch, position, check, part: (!complete).then_some(come as u32) });
        Ok(())
    }
}

/// A filter from foreign bytes: its own checks, and those without which it could divide by zero or
/// hash for minutes.
fn checked(bytes: Vec<u8>) -> Result<Bloom<Key>, &'static str> {
    if bytes.len() > FILTER_BYTES_MAX {
        return Err("the filter is too long");
    }
    let bloom = Bloom::<Key>::from_bytes(bytes)?;
    if bloom.len() < 8 || bloom.number_of_hash_functions() > HASHES_MAX {
        return Err("the filter's parameters are impossible");
    }
    Ok(bloom)
}

fn false_positive_rate(bloom: &Bloom<Key>) -> f64 {
    let bytes = bloom.as_slice();
    let bits = bytes.get(bytes.len().saturating_sub((bloom.len() / 8) as usize)..).unwrap_or_default();
    let ones: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let hashes = i32::try_from(bloom.number_of_hash_functions()).unwrap_or(1);
    (ones as f64 / bloom.len().max(1) as f64).powi(hashes)
}

/// A source's filter as it is kept: what was coming in is asked for anew.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    cursor: Option<Cursor>,
    filter: Vec<u8>,
}

impl From<SharedFilter> for Kept {
    fn from(filter: SharedFilter) -> Self {
        let cursor = filter.cursor.filter(|cursor| cursor.part.is_none());
        Self { cursor, filter: filter.bloom.map(Bloom::into_bytes).unwrap_or_default() }
    }
}

impl TryFrom<Kept> for SharedFilter {
    type Error = &'static str;

    fn try_from(kept: Kept) -> Result<Self, Self::Error> {
        if kept.filter.is_empty() {
            return Ok(Self::default());
        }
        let cursor = kept.cursor.filter(|cursor| cursor.part.is_none());
        Ok(Self { bloom: Some(checked(kept.filter)?), cursor, coming: Vec::new() })
    }
}
