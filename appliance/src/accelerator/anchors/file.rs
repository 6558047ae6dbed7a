//! The anchor table on disk: a [`checked_file`](crate::accelerator::block_index::checked_file) of kind
//! `VBRANCH`, whole or not at all.
//!
//! Pieces: the head, postcard of (round, images, buckets); then the buckets in pieces of 16,384, each
//! bucket 64 bytes little-endian: 6 fingerprints u32, 6 blocks u32, 6 owners u16 (image and 1; 0: empty
//! entry), 4 spare.
//! Versions: 1, the first.
//!
//! Written piece by piece while the table is in use, so that saving takes a megabyte and no pause; what
//! changes meanwhile may be in it or not, as with all anchors. A file that is damaged, of another
//! version or of another size costs the table, nothing else.

use std::io;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Image;
use super::table::{AnchorTable, BUCKET_BYTES};
use crate::accelerator::block_index::LoadError;
use crate::accelerator::block_index::checked_file::{Reader, Writer};

const KIND: &[u8; 7] = b"VBRANCH";
const VERSION: u8 = 1;
const PIECE_BUCKETS: usize = 16 * 1024;
/// 4,096 images with names of at most 64 bytes.
const HEAD_BYTES_MAX: usize = 1024 * 1024;

#[derive(Serialize, Deserialize)]
pub struct Head {
    pub round: u64,
    pub images: Vec<Option<Image>>,
    pub buckets: u64,
}

/// Writes the file in the place of the old one. `encode` appends the bytes of some buckets.
pub fn write(path: &Path, head: &Head, mut encode: impl FnMut(Range<usize>, &mut Vec<u8>)) -> io::Result<()> {
    let mut writer = Writer::create(path, KIND, VERSION)?;
    let mut piece = postcard::to_stdvec(head).map_err(io::Error::other)?;
    writer.piece(&piece)?;
    let buckets = head.buckets as usize;
    for from in (0..buckets).step_by(PIECE_BUCKETS) {
        piece.clear();
        encode(from..buckets.min(from + PIECE_BUCKETS), &mut piece);
        writer.piece(&piece)?;
    }
    writer.finish()
}

/// What was loaded: table, images, round.
pub type Loaded = (AnchorTable, Vec<Option<Image>>, u64);

/// Reads it; an error says why it is of no use.
pub fn load(path: &Path, memory_bytes: usize) -> Result<Loaded, LoadError> {
    let mut reader = Reader::open(path, KIND, VERSION)?;
    let head = reader.piece(HEAD_BYTES_MAX)?;
    let head: Head = postcard::from_bytes(&head).map_err(|_| reader.damaged("its head does not fit"))?;
    let mut table = AnchorTable::new(memory_bytes);
    let buckets = table.buckets();
    if head.buckets != buckets as u64 {
        return Err(reader.other("it was made for another size of accelerator.anchor_memory"));
    }
    if head.images.len() > super::IMAGES_MAX {
        return Err(reader.damaged("it names too many disks"));
    }
    for from in (0..buckets).step_by(PIECE_BUCKETS) {
        let piece = reader.piece(PIECE_BUCKETS * BUCKET_BYTES)?;
        table.decode(from, &piece).ok_or_else(|| reader.damaged("its buckets do not fit"))?;
    }
    reader.finish()?;
    Ok((table, head.images, head.round))
}
