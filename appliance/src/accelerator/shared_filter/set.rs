//! The target's side: learns which chunks are shared, and tells each source what it lacks.
//!
//! The keys are kept in the order in which they were added, 8 bytes each; the filter is made of them, so
//! a file need not hold it. Adding asks the filter itself whether a key is there: what it
//! already takes for shared (1 % by mistake) changes no answer and need not be told.
//!
//! One lock, held for less than 1 us a note; for up to a second where the filter is rebuilt (three times
//! in growing to 4 Mi keys, then once every 2 Mi) and never over IO.
//! File: a [`checked_file`](crate::accelerator::block_index::checked_file) of kind `VBRSHAR`. Pieces, big
//! endian: seed 32, epoch u64, capacity u32, keys u32, buckets u64; the keys (u64) in pieces of 65,536;
//! the first branches (see `Table`) in pieces of 16,384 buckets. Versions: 1, the first.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bloomfilter::Bloom;

use super::first::{FirstBranches, Seen};
use super::{
    ADDITIONS_MAX, Cursor, Delta, FilterPart, KEYS_MAX, Key, PART_BYTES_MAX, false_positive_rate, rice,
};
use crate::accelerator::block_index::LoadError;
use crate::accelerator::block_index::checked_file::{Reader, Writer};
use crate::accelerator::block_index::table::{BUCKET_BYTES, PIECE_BUCKETS};
use crate::block::ShortId;

const KIND: &[u8; 7] = b"VBRSHAR";
const VERSION: u8 = 1;
const PIECE_KEYS: usize = 64 * 1024;
const HEAD_BYTES: usize = 56;
/// Keys of the first filter; each next one has four times as many.
const KEYS_MIN: usize = 1 << 16;
/// False positives of a filter with all its keys.
const RATE: f64 = 0.01;
/// Sums are kept for every so many keys.
const CHECK_STEP: usize = 1024;

/// What a note taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// The first branch with this chunk, as far as is remembered.
    First,
    /// The same branch as before.
    Same,
    /// A second branch: the chunk is shared from now on.
    Shared,
    /// It was taken for shared before.
    Known,
}

/// Figures of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedSetStats {
    /// Changes where the filter is rebuilt.
    pub epoch: u64,
    /// Keys in the filter.
    pub keys: u64,
    /// Keys the filter of this epoch is made for.
    pub keys_max: u64,
    /// Bytes of the whole filter.
    pub filter_bytes: u64,
    /// By its bits.
    pub false_positive_rate: f64,
    /// Chunks of one branch that are remembered.
    pub first_branches: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
}

/// See the module.
pub struct SharedSet {
    state: Mutex<State>,
}

struct State {
    bloom: Bloom<Key>,
    epoch: u64,
    /// Keys of this epoch's filter.
    capacity: usize,
    keys: Vec<u64>,
    /// The sum over the first 0, 1,024, 2,048... keys.
    checks: Vec<u64>,
    /// The sum over all keys.
    check: u64,
    first: FirstBranches,
}

impl SharedSet {
    /// An empty set with so many bytes for first branches (8 a chunk). `random` makes the filter's seed
    /// and tells this set's epochs from those of any other.
    pub fn new(first_bytes: usize, random: [u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h] = blake3::derive_key("vbr 2026 shared filter epoch", &random)
            .first_chunk()
            .copied()
            .unwrap_or_default();
        let epoch = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        // Derived, because a seed with two equal halves makes both hashes the same: 3.5 % instead of 1.
        let seed = blake3::derive_key("vbr 2026 shared filter seed", &random);
        Self { state: Mutex::new(State::new(epoch, KEYS_MIN, FirstBranches::new(first_bytes), &seed)) }
    }

    /// A branch refers to a chunk. `branch` is the caller's number for it.
    pub fn note(&self, id: ShortId, branch: u32) -> Noted {
        let mut state = self.state();
        let key = Key::of(id);
        if state.bloom.check(&key) {
            return Noted::Known;
        }
        match state.first.note(id, branch) {
            Seen::New => Noted::First,
            Seen::Same => Noted::Same,
            Seen::Other => {
                state.add(key);
                Noted::Shared
            }
        }
    }

    /// True where the filter takes a chunk for shared.
    pub fn may_contain(&self, id: ShortId) -> bool {
        self.state().bloom.check(&Key::of(id))
    }

    /// What a source with this cursor lacks, or the next piece of it.
    pub fn delta(&self, since: Option<Cursor>) -> Delta {
        self.state().delta(since)
    }

    /// What it holds and takes.
    pub fn stats(&self) -> SharedSetStats {
        let state = self.state();
        let filter_bytes = state.bloom.as_slice().len() as u64;
        let lists = (state.keys.capacity() + state.checks.capacity()) as u64 * 8;
        SharedSetStats {
            epoch: state.epoch,
            keys: state.keys.len() as u64,
            keys_max: state.capacity as u64,
            filter_bytes,
            false_positive_rate: false_positive_rate(&state.bloom),
            first_branches: state.first.table.used(),
            memory_bytes: filter_bytes + lists + state.first.table.memory_bytes(),
        }
    }

    /// Writes the set to a file, durably, while it is in use. Blocks.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut writer = Writer::create(path, KIND, VERSION)?;
        // Up to 32 MiB, copied in some milliseconds: keys and epoch must be of one moment.
        let (mut piece, keys, buckets) = {
            let state = self.state();
            let mut head = state.bloom.seed().to_vec();
            head.extend_from_slice(&state.epoch.to_be_bytes());
            head.extend_from_slice(&(state.capacity as u32).to_be_bytes());
            head.extend_from_slice(&(state.keys.len() as u32).to_be_bytes());
            head.extend_from_slice(&(state.first.buckets as u64).to_be_bytes());
            (head, state.keys.clone(), state.first.buckets)
        };
        writer.piece(&piece)?;
        for keys in keys.chunks(PIECE_KEYS) {
            let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_be_bytes()).collect();
            writer.piece(&bytes)?;
        }
        for from in (0..buckets).step_by(PIECE_BUCKETS) {
            piece.clear();
            self.state().first.table.encode(from, &mut piece);
            writer.piece(&piece)?;
        }
        writer.finish()
    }

    /// The set of a file, or an empty one and why. First branches of a table of another size are
    /// forgotten. Blocks.
    pub fn load(path: &Path, first_bytes: usize, random: [u8; 32]) -> (Self, Option<LoadError>) {
        match State::load(path, first_bytes) {
            Ok(state) => (Self { state: Mutex::new(state) }, None),
            Err(error) => (Self::new(first_bytes, random), Some(error)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A filter for so many keys. Its byte size follows from the count, so both arguments are never 0.
fn filter(capacity: usize, seed: &[u8; 32]) -> Bloom<Key> {
    let bytes = Bloom::<Key>::compute_bitmap_size(capacity.max(1), RATE).max(1);
    match Bloom::new_with_seed(bytes, capacity.max(1), seed) {
        Ok(bloom) => bloom,
        // It fails for no size above 0; its type only allows it to.
        Err(_) => unreachable!("a filter of {bytes} bytes"),
    }
}

/// One step of the sum over keys: no secret, it only has to differ where the keys do.
fn step(check: u64, key: u64) -> u64 {
    let mixed = (check ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

impl State {
    fn new(epoch: u64, capacity: usize, first: FirstBranches, seed: &[u8; 32]) -> Self {
        let bloom = filter(capacity, seed);
        Self { bloom, epoch, capacity, keys: Vec::new(), checks: vec![0], check: 0, first }
    }

    fn add(&mut self, key: Key) {
        if self.keys.len() >= self.capacity {
            self.rebuild();
        }
        self.append(key.0);
    }

    fn append(&mut self, key: u64) {
        self.bloom.set(&Key(key));
        self.keys.push(key);
        self.check = step(self.check, key);
        if self.keys.len().is_multiple_of(CHECK_STEP) {
            self.checks.push(self.check);
        }
    }

    /// The next epoch: four times as large, or, where it is as large as can be, without the older half.
    fn rebuild(&mut self) {
        let mut keys = std::mem::take(&mut self.keys);
        if self.capacity < KEYS_MAX {
            self.capacity = (self.capacity * 4).min(KEYS_MAX);
        } else {
            keys.drain(..keys.len() / 2);
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.bloom = filter(self.capacity, &self.bloom.seed());
        (self.checks, self.check) = (vec![0], 0);
        keys.into_iter().for_each(|key| self.append(key));
    }

    /// The sum over the first keys; none past the end.
    fn check_at(&self, position: usize) -> Option<u64> {
        let kept = position / CHECK_STEP;
        let rest = self.keys.get(kept.checked_mul(CHECK_STEP)?..position)?;
        Some(rest.iter().fold(*self.checks.get(kept)?, |check, key| step(check, *key)))
    }

    fn delta(&self, since: Option<Cursor>) -> Delta {
        let total = self.bloom.as_slice().len();
        let known = |cursor: &Cursor| {
            cursor.epoch == self.epoch && self.check_at(cursor.position as usize) == Some(cursor.check)
        };
        let Some(cursor) = since.filter(known) else { return self.full(None) };
        if cursor.part.is_some() {
            return self.full(Some(cursor));
        }
        let from = cursor.position as usize;
        // A key takes some 3.5 bytes as an addition.
        if self.keys.len().saturating_sub(from) / 2 * 7 > total {
            return self.full(None);
        }
        let position = self.keys.len().min(from.saturating_add(ADDITIONS_MAX));
        let added = self.keys.get(from..position).unwrap_or_default().to_vec();
        Delta {
            epoch: self.epoch,
            from: cursor.position,
            position: position as u32,
            check: self.check_at(position).unwrap_or_default(),
            full: None,
            additions: rice::encode(added, Key::BITS),
            more: position < self.keys.len(),
        }
    }

    /// A part of the whole filter. Later parts may have keys past the position that the first part
    /// told: they will come again as additions, which changes nothing.
    fn full(&self, cursor: Option<Cursor>) -> Delta {
        let bytes = self.bloom.as_slice();
        let come = cursor.and_then(|cursor| cursor.part).map_or(0, |part| part as usize);
        let offset = if come < bytes.len() { come } else { 0 };
        let (position, check) = match cursor {
            Some(cursor) if offset > 0 => (cursor.position, cursor.check),
            _ => (self.keys.len() as u32, self.check),
        };
        let end = bytes.len().min(offset.saturating_add(PART_BYTES_MAX));
        let part = bytes.get(offset..end).unwrap_or_default().to_vec();
        Delta {
            epoch: self.epoch,
            from: 0,
            position,
            check,
            full: Some(FilterPart { total: bytes.len() as u32, offset: offset as u32, bytes: part }),
            additions: Vec::new(),
            more: end < bytes.len() || (position as usize) < self.keys.len(),
        }
    }

    fn load(path: &Path, first_bytes: usize) -> Result<Self, LoadError> {
        let mut reader = Reader::open(path, KIND, VERSION)?;
        let (seed, epoch, capacity, keys, buckets) =
            parse_head(&reader.piece(HEAD_BYTES)?).ok_or_else(|| reader.damaged("its head does not fit"))?;
        let mut state = Self::new(epoch, capacity, FirstBranches::new(first_bytes), &seed);
        while state.keys.len() < keys {
            let piece = reader.piece(PIECE_KEYS * 8)?;
            let (words, rest) = piece.as_chunks::<8>();
            if words.is_empty() || !rest.is_empty() || words.len() > keys - state.keys.len() {
                return Err(reader.damaged("its keys do not fit"));
            }
            for key in words.iter().map(|word| u64::from_be_bytes(*word)) {
                if key >> Key::BITS != 0 {
                    return Err(reader.damaged("one of its keys is impossible"));
                }
                state.append(key);
            }
        }
        for from in (0..buckets).step_by(PIECE_BUCKETS) {
            let piece = reader.piece(PIECE_BUCKETS * (BUCKET_BYTES + 1))?;
            let fits = buckets == state.first.buckets;
            // A word without a fingerprint would be another's free place.
            if fits && state.first.table.decode(from, &piece, |word| word >> 32 != 0).is_none() {
                return Err(reader.damaged("its first branches do not fit"));
            }
        }
        reader.finish()?;
        Ok(state)
    }
}

/// Seed, epoch, capacity, keys, buckets.
fn parse_head(bytes: &[u8]) -> Option<([u8; 32], u64, usize, usize, usize)> {
    let (seed, rest) = bytes.split_first_chunk::<32>()?;
    let (epoch, rest) = rest.split_first_chunk::<8>()?;
    let (capacity, rest) = rest.split_first_chunk::<4>()?;
    let (keys, rest) = rest.split_first_chunk::<4>()?;
    let buckets = u64::from_be_bytes(rest.try_into().ok()?);
    let (capacity, keys) = (u32::from_be_bytes(*capacity) as usize, u32::from_be_bytes(*keys) as usize);
    let sound = (KEYS_MIN..=KEYS_MAX).contains(&capacity) && keys <= capacity && buckets <= 1 << 32;
    sound.then_some((*seed, u64::from_be_bytes(*epoch), capacity, keys, usize::try_from(buckets).ok()?))
}
