//! One volume as a run of bytes: a partition, or the pieces of a logical volume.

use std::cell::RefCell;

use crate::block::{BlockRead, Extent};

use super::bytes::size;
use super::{Keep, keep};

/// Reads one after the other are served from windows of this size: maps lie side by side, links may be
/// slow.
const WINDOW_BYTES: u64 = 256 * 1024;
/// Reads are made of whole pages.
const PAGE_BYTES: u64 = 4096;

/// A piece of a volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Place in the volume.
    pub(super) at: u64,
    /// Place on the disk.
    pub(super) on_disk: u64,
    /// Length in bytes.
    pub(super) len: u64,
}

/// A volume's bytes and where they are on the disk.
pub(super) struct View<'a> {
    disk: &'a dyn BlockRead,
    /// Ascending in the volume, without gaps.
    pieces: Vec<Piece>,
    len: u64,
    window: RefCell<(u64, Vec<u8>)>,
}

impl<'a> View<'a> {
    /// A partition, or all of a disk. Cut where the disk ends.
    pub(super) fn part(disk: &'a dyn BlockRead, extent: Extent) -> Self {
        let on_disk = extent.offset.min(disk.len());
        let len = extent.len.min(disk.len() - on_disk);
        let pieces = if len > 0 { vec![Piece { at: 0, on_disk, len }] } else { Vec::new() };
        Self { disk, pieces, len, window: RefCell::default() }
    }

    /// Pieces of this volume, put together in their order: (place here, length).
    pub(super) fn assemble(&self, parts: &[(u64, u64)]) -> Result<View<'a>, Keep> {
        let (mut pieces, mut at) = (Vec::new(), 0);
        for &(offset, len) in parts {
            if len == 0 || offset.checked_add(len).is_none_or(|end| end > self.len) {
                return keep("a piece of the volume lies outside its physical volume");
            }
            for (on_disk, len) in self.places(offset, len) {
                pieces.push(Piece { at, on_disk, len });
                at = super::bytes::add(at, len)?;
            }
        }
        Ok(View { disk: self.disk, pieces, len: at, window: RefCell::default() })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where the volume begins on the disk; `None` where it is empty.
    pub(super) fn first_extent(&self) -> Option<Extent> {
        self.pieces.first().map(|piece| Extent { offset: piece.on_disk, len: piece.len })
    }

    /// Where a range lies on the disk: (offset, length), in the volume's order.
    pub(super) fn places(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = offset.saturating_add(len).min(self.len);
        let first = self.pieces.partition_point(|piece| piece.at + piece.len <= offset);
        self.pieces.iter().skip(first).take_while(move |piece| piece.at < end).map(move |piece| {
            let from = offset.max(piece.at);
            let to = end.min(piece.at + piece.len);
            (piece.on_disk + (from - piece.at), to - from)
        })
    }

    /// Reads a range; one outside the volume is a reason to keep.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Keep> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return keep("a structure lies outside the volume");
        }
        if len > WINDOW_BYTES - PAGE_BYTES {
            return self.read_direct(offset, len);
        }
        let mut window = self.window.borrow_mut();
        let (start, held) = (window.0, window.1.len() as u64);
        if offset < start || offset + len > start + held {
            // What follows the last read is read far ahead, anything else alone.
            let follows = held > 0 && (start..=start + held + PAGE_BYTES).contains(&offset);
            let start = offset / PAGE_BYTES * PAGE_BYTES;
            let need = (offset + len).next_multiple_of(PAGE_BYTES) - start;
            let ahead = if follows { WINDOW_BYTES } else { need };
            *window = (start, self.read_direct(start, ahead.min(self.len - start))?);
        }
        super::bytes::part(&window.1, size(offset - window.0)?, size(len)?).map(<[u8]>::to_vec)
    }

    fn read_direct(&self, offset: u64, len: u64) -> Result<Vec<u8>, Keep> {
        let mut data = vec![0; size(len)?];
        let mut rest = data.as_mut_slice();
        for (on_disk, len) in self.places(offset, len) {
            let (now, later) = rest.split_at_mut(size(len)?.min(rest.len()));
            if let Err(error) = self.disk.read_at(on_disk, now) {
                return keep(format!("it cannot be read at byte {on_disk} of the disk: {error}"));
            }
            rest = later;
        }
        if rest.is_empty() { Ok(data) } else { keep("a structure lies outside the volume") }
    }
}
