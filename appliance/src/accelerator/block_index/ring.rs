//! The side table: the chunks that entries lead to, in the order in which they came.
//!
//! A ring: each inserted chunk has the next sequence number, its place is that number modulo the
//! length, and it overwrites the oldest. So an entry's age can be told from the entry alone, one that
//! has outlived its chunk is known to be stale, and nothing is counted or listed as free. A table with counts
//! and a list of free places was tried: it forgot young chunks where it was full, for places
//! that are used again are in no order.
//!
//! Owned by the index behind one lock, held for some 100 ns a chunk. Bounds: `places` of 18 bytes.

use crate::block::{DomainTag, ShortId};

use super::entry;

/// Bytes of a place, in memory and in the file.
pub(super) const PLACE_BYTES: usize = 18;

/// Id of the chunk, then two bytes of the domain's scope: they tell domains apart well enough, for the
/// chunk is then read within its domain by the full tag. All zeroes: none.
type Place = [u8; PLACE_BYTES];

pub(super) struct Ring {
    places: Vec<Place>,
    /// Sequence number of the next chunk.
    next: u64,
}

fn place(tag: DomainTag, chunk: ShortId) -> Place {
    let mut place = [0; PLACE_BYTES];
    place[..16].copy_from_slice(&chunk.0);
    place[16..].copy_from_slice(&entry::scope(tag).to_be_bytes()[..2]);
    place
}

impl Ring {
    pub fn new(places: usize) -> Self {
        Self { places: vec![[0; PLACE_BYTES]; places.max(1)], next: 0 }
    }

    /// Sequence number of the next chunk.
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn memory_bytes(&self) -> u64 {
        (self.places.len() * PLACE_BYTES) as u64
    }

    /// Enters a chunk in place of the oldest; its sequence number.
    pub fn push(&mut self, tag: DomainTag, chunk: ShortId) -> u64 {
        let sequence = self.next;
        self.next += 1;
        let at = self.at(sequence);
        if let Some(old) = self.places.get_mut(at) {
            *old = place(tag, chunk);
        }
        sequence
    }

    /// The chunk a word leads to; none where that is gone, or of another domain.
    pub fn chunk(&self, tag: DomainTag, word: u64) -> Option<ShortId> {
        let sequence = entry::sequence(word, self.next, self.places.len())?;
        let found = self.places.get(self.at(sequence))?;
        let chunk = ShortId(*found.first_chunk()?);
        (chunk.0 != [0; 16] && *found == place(tag, chunk)).then_some(chunk)
    }

    /// Makes all words that lead to this chunk stale.
    pub fn forget(&mut self, tag: DomainTag, word: u64, chunk: ShortId) -> bool {
        if self.chunk(tag, word) != Some(chunk) {
            return false;
        }
        let at = entry::sequence(word, self.next, self.places.len()).map(|sequence| self.at(sequence));
        if let Some(found) = at.and_then(|at| self.places.get_mut(at)) {
            *found = [0; PLACE_BYTES];
        }
        true
    }

    /// Appends up to `many` places; those that were overwritten since `next` are left blank.
    pub fn encode(&self, from: usize, many: usize, next: u64, out: &mut Vec<u8>) {
        let since = (self.next - next).min(self.places.len() as u64);
        let newer = self.at(next);
        for (at, found) in self.places.iter().enumerate().skip(from).take(many) {
            let behind = (at + self.places.len() - newer) % self.places.len();
            out.extend_from_slice(if (behind as u64) < since { &[0; PLACE_BYTES] } else { found });
        }
    }

    /// Takes places from a file. `None` where the bytes are not that.
    pub fn decode(&mut self, from: usize, bytes: &[u8]) -> Option<()> {
        let (found, rest) = bytes.as_chunks::<PLACE_BYTES>();
        self.places.get_mut(from..from.checked_add(found.len())?)?.copy_from_slice(found);
        rest.is_empty().then_some(())
    }

    /// Goes on from where a file ended.
    pub fn resume(&mut self, next: u64) {
        self.next = next;
    }

    fn at(&self, sequence: u64) -> usize {
        (sequence % self.places.len() as u64) as usize
    }
}
