//! Identify: read a page of a disk and name its chunks.
//!
//! Holes are never read; a chunk that any data extent touches is read whole. Reading is in pieces of
//! 1 MiB, so that a piece is hashed while it is still in the processor's cache.

use std::io;

use crate::block::{BlockRead, CHUNK_BYTES, ChunkId, DomainKey, Geometry, PAGE_BYTES, PAGE_CHUNKS};
use crate::busy::BusyClock;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1024 * 1024;

/// A page of ids; positions past the disk's end are zero.
pub type Ids = Box<[ChunkId; PAGE_CHUNKS]>;

/// What a page holds.
pub struct IdentifiedPage {
    /// Its ids.
    pub ids: Ids,
    /// Bytes read to learn them.
    pub read_bytes: u64,
    /// The first data at or after the page's end, as the disk says: where to go on.
    pub next_data: Option<u64>,
}

/// Reads and names the chunks of a page. `from` is where data may start (holes before it are known).
pub fn identify_page(
    reader: &dyn BlockRead,
    page: u64,
    key: &DomainKey,
    host: &BusyClock,
    accelerator: &BusyClock,
) -> io::Result<IdentifiedPage> {
    let geometry = Geometry { disk_len: reader.len() };
    let start = page * PAGE_BYTES;
    let end = (start + PAGE_BYTES).min(geometry.disk_len);
    let mut result =
        IdentifiedPage { ids: Box::new([ChunkId::ZERO; PAGE_CHUNKS]), read_bytes: 0, next_data: None };
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = start;
    loop {
        let extent = host.time(|| reader.next_data(at))?;
        let Some(extent) = extent else { return Ok(result) };
        if extent.offset >= end {
            result.next_data = Some(extent.offset);
            return Ok(result);
        }
        // The run on the chunk grid; what was read for the extent before is not read again.
        let first = (extent.offset / CHUNK_BYTES as u64 * CHUNK_BYTES as u64).max(at);
        let last = extent.end().next_multiple_of(CHUNK_BYTES as u64).min(end);
        let mut offset = first;
        while offset < last {
            let len = PIECE_BYTES.min((last - offset) as usize);
            let piece = &mut buffer[..len];
            host.time(|| reader.read_at(offset, piece))?;
            accelerator.time(|| {
                let position = ((offset - start) / CHUNK_BYTES as u64) as usize;
                for (n, chunk) in piece.chunks(CHUNK_BYTES).enumerate() {
                    result.ids[position + n] = key.chunk_id(chunk);
                }
            });
            result.read_bytes += len as u64;
            offset += len as u64;
        }
        at = last;
        if at >= end {
            result.next_data = Some(end).filter(|end| *end < geometry.disk_len);
            return Ok(result);
        }
    }
}

/// Reads and names these chunks of a page, ascending; the others keep the ids that are given.
pub fn identify_chunks(
    reader: &dyn BlockRead,
    page: u64,
    chunks: &[usize],
    ids: Ids,
    key: &DomainKey,
    host: &BusyClock,
    accelerator: &BusyClock,
) -> io::Result<IdentifiedPage> {
    let geometry = Geometry { disk_len: reader.len() };
    let mut result = IdentifiedPage { ids, read_bytes: 0, next_data: None };
    let mut buffer = vec![0; PIECE_BYTES];
    // Neighbours in one read.
    for run in chunks.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(PIECE_BYTES / CHUNK_BYTES)) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let (first_chunk, last_chunk) =
            (page * PAGE_CHUNKS as u64 + *first as u64, page * PAGE_CHUNKS as u64 + *last as u64);
        let (start, end) = (geometry.chunk_range(first_chunk).start, geometry.chunk_range(last_chunk).end);
        let piece = &mut buffer[..(end - start) as usize];
        host.time(|| reader.read_at(start, piece))?;
        accelerator.time(|| {
            for (position, chunk) in run.iter().zip(piece.chunks(CHUNK_BYTES)) {
                result.ids[*position] = key.chunk_id(chunk);
            }
        });
        result.read_bytes += end - start;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Extent;
    use proptest::prelude::*;

    struct Sparse {
        data: Vec<u8>,
        extents: Vec<Extent>,
    }

    impl BlockRead for Sparse {
        fn len(&self) -> u64 {
            self.data.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let from = offset as usize;
            buf.copy_from_slice(self.data.get(from..from + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
            Ok(self.extents.iter().find(|e| e.end() > from).map(|e| {
                let offset = e.offset.max(from);
                Extent { offset, len: e.end() - offset }
            }))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn ids_equal_those_of_a_plain_read(
            len in 1usize..1_500_000,
            marks in prop::collection::vec((0usize..1_500_000, 1usize..200_000), 0..6),
        ) {
            let mut data = vec![0u8; len];
            let mut covered = vec![false; len];
            for (at, run) in marks {
                for n in at.min(len)..(at + run).min(len) {
                    data[n] = (n % 251) as u8;
                    covered[n] = true;
                }
            }
            let mut extents: Vec<Extent> = Vec::new();
            for (n, data_here) in covered.iter().enumerate() {
                if *data_here {
                    match extents.last_mut() {
                        Some(e) if e.end() == n as u64 => e.len += 1,
                        _ => extents.push(Extent { offset: n as u64, len: 1 }),
                    }
                }
            }
            let key = DomainKey([7; 32]);
            let clock = BusyClock::default();
            let disk = Sparse { data, extents };
            let page = identify_page(&disk, 0, &key, &clock, &clock).unwrap();
            for (n, chunk) in disk.data.chunks(CHUNK_BYTES).enumerate() {
                prop_assert_eq!(page.ids[n], key.chunk_id(chunk));
            }
            prop_assert!(page.ids[len.div_ceil(CHUNK_BYTES)..].iter().all(ChunkId::is_zero));
        }
    }
}
