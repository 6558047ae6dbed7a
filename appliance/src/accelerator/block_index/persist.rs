//! The index on disk: one [`checked_file`](super::checked_file) of kind `VBRBLKX`.
//!
//! Pieces, integers big endian: first buckets of a shard u64, next sequence number u64; then the ring's
//! places (id 16, tag 2) in pieces of 32,768; then for each of the 64 shards its buckets (count u8, the
//! words u64) in pieces of 16,384. Versions: 1, the first. A golden file holds the format.
//!
//! Sessions go on while it is written. What they insert meanwhile has sequence numbers past the head's
//! and is left out at load; what they overwrote meanwhile is blank.
//! An index of another size is not converted: it is learned again from the chunks.

use std::io;
use std::path::Path;

use super::checked_file::{LoadError, Reader, Writer};
use super::ring::PLACE_BYTES;
use super::table::{BUCKET_BYTES, PIECE_BUCKETS};
use super::{BlockIndex, entry, lock};

const KIND: &[u8; 7] = b"VBRBLKX";
const VERSION: u8 = 1;
const PIECE_PLACES: usize = 32 * 1024;
/// A count and eight words for each bucket.
const PIECE_BYTES_MAX: usize = PIECE_BUCKETS * (BUCKET_BYTES + 1);
/// No index lives to see it; a file that claims more would overflow.
const SEQUENCE_MAX: u64 = 1 << 62;

pub(super) fn save(index: &BlockIndex, path: &Path) -> io::Result<()> {
    let mut writer = Writer::create(path, KIND, VERSION)?;
    let next = lock(&index.ring).next();
    let mut piece = Vec::with_capacity(PIECE_BYTES_MAX);
    piece.extend_from_slice(&(index.buckets as u64).to_be_bytes());
    piece.extend_from_slice(&next.to_be_bytes());
    writer.piece(&piece)?;
    for from in (0..index.used_places(next)).step_by(PIECE_PLACES) {
        piece.clear();
        let many = PIECE_PLACES.min(index.used_places(next) - from);
        lock(&index.ring).encode(from, many, next, &mut piece);
        writer.piece(&piece)?;
    }
    for shard in &index.shards {
        for from in (0..index.buckets).step_by(PIECE_BUCKETS) {
            piece.clear();
            lock(shard).encode(from, &mut piece);
            writer.piece(&piece)?;
        }
    }
    writer.finish()
}

/// Fills an empty index. After an error it holds garbage.
pub(super) fn load(index: &BlockIndex, path: &Path) -> Result<(), LoadError> {
    let mut reader = Reader::open(path, KIND, VERSION)?;
    let head = reader.piece(16)?;
    let Some(([buckets, next], [])) = head.as_chunks::<8>().0.split_first_chunk() else {
        return Err(reader.damaged("its head is too short"));
    };
    let next = u64::from_be_bytes(*next);
    if u64::from_be_bytes(*buckets) != index.buckets as u64 {
        return Err(reader.other("the index has another size now"));
    }
    if next > SEQUENCE_MAX {
        return Err(reader.damaged("its sequence number is impossible"));
    }
    for from in (0..index.used_places(next)).step_by(PIECE_PLACES) {
        let piece = reader.piece(PIECE_PLACES * PLACE_BYTES)?;
        let many = PIECE_PLACES.min(index.used_places(next) - from);
        if piece.len() != many * PLACE_BYTES || lock(&index.ring).decode(from, &piece).is_none() {
            return Err(reader.damaged("its list of chunks does not fit"));
        }
    }
    lock(&index.ring).resume(next);
    let lives = |word| entry::fingerprint(word) != 0 && entry::sequence(word, next, index.places).is_some();
    for shard in &index.shards {
        for from in (0..index.buckets).step_by(PIECE_BUCKETS) {
            let piece = reader.piece(PIECE_BYTES_MAX)?;
            if lock(shard).decode(from, &piece, lives).is_none() {
                return Err(reader.damaged("its buckets do not fit"));
            }
        }
    }
    reader.finish()
}
