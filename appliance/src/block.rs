//! Blocks, chunks and their identity: the vocabulary every stage shares.
//!
//! A disk is a run of bytes of exact length (any length, not only multiples of 512). It is cut into
//! fixed chunks of 64 KiB on its own grid; the last chunk may be short. 1,024 chunks make a page
//! (64 MiB of disk): the unit of manifests, of offers and of the resume cursor.
//!
//! Owns no state and does no IO itself. Reading and writing go through [`BlockRead`] and
//! [`BlockWrite`], which are blocking: callers run them on blocking threads.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Bytes in a chunk (all but a disk's last).
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks in a page.
pub const PAGE_CHUNKS: usize = 1024;
/// Bytes of disk that a page describes.
pub const PAGE_BYTES: u64 = (CHUNK_BYTES * PAGE_CHUNKS) as u64;

/// BLAKE3 of a chunk's bytes, keyed with the dedup domain's key. `ZERO` stands for an all-zero chunk
/// and is never the hash of anything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id that stands for a chunk of zeroes, whatever its length.
    pub const ZERO: ChunkId = ChunkId([0; 32]);

    /// True for the id that stands for zeroes.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The first 16 bytes: what offers carry and what indexes are keyed by.
    pub fn short(&self) -> ShortId {
        let mut short = [0; 16];
        short.copy_from_slice(&self.0[..16]);
        ShortId(short)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// The first 16 bytes of a [`ChunkId`]. Keyed, so nobody outside the domain can make two chunks
/// share one; whoever resolves it hashes the content, and the roots at the seal cover full ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShortId(pub [u8; 16]);

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// BLAKE3 of a page's 1,024 ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageHash(pub [u8; 32]);

/// BLAKE3 over a disk's length and its page table: the identity of a whole disk's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Root(pub [u8; 32]);

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl Root {
    /// Lower-case hexadecimal, 64 digits.
    pub fn hex(&self) -> String {
        format!("{self:?}")
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The secret key of a dedup domain: the set of sites that may share chunks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainKey(pub [u8; 32]);

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainKey({:02x?})", self.tag().0)
    }
}

/// Eight bytes derived from a domain's key: the prefix that scopes every index key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DomainTag(pub [u8; 8]);

impl DomainKey {
    /// The id of a chunk's content; zeroes have the id that stands for zeroes.
    pub fn chunk_id(&self, data: &[u8]) -> ChunkId {
        if is_zero(data) { ChunkId::ZERO } else { ChunkId(*blake3::keyed_hash(&self.0, data).as_bytes()) }
    }

    /// The prefix under which this domain's chunks are indexed.
    pub fn tag(&self) -> DomainTag {
        let derived = blake3::derive_key("vbr 2026 dedup domain tag", &self.0);
        let mut tag = [0; 8];
        tag.copy_from_slice(&derived[..8]);
        DomainTag(tag)
    }
}

/// True where every byte is zero.
pub fn is_zero(data: &[u8]) -> bool {
    // Compared in words that the compiler turns into vectors; the first word settles most chunks.
    let (head, words, tail) = {
        let mid = data.len() - data.len() % 64;
        let (body, tail) = data.split_at(mid);
        (body.first(), body.chunks_exact(64), tail)
    };
    if head.is_some_and(|byte| *byte != 0) {
        return false;
    }
    for word in words {
        if word.iter().fold(0u8, |acc, byte| acc | byte) != 0 {
            return false;
        }
    }
    tail.iter().all(|byte| *byte == 0)
}

/// The grid of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// The disk's exact length in bytes.
    pub disk_len: u64,
}

impl Geometry {
    /// Chunks on the disk, the short last one included.
    pub fn chunks(&self) -> u64 {
        self.disk_len.div_ceil(CHUNK_BYTES as u64)
    }

    /// Pages on the disk.
    pub fn pages(&self) -> u64 {
        self.disk_len.div_ceil(PAGE_BYTES)
    }

    /// Byte range of a chunk; empty past the end of the disk.
    pub fn chunk_range(&self, chunk: u64) -> std::ops::Range<u64> {
        let start = chunk.saturating_mul(CHUNK_BYTES as u64).min(self.disk_len);
        start..start.saturating_add(CHUNK_BYTES as u64).min(self.disk_len)
    }

    /// Bytes in a chunk: 65,536, less for the last, 0 past the end.
    pub fn chunk_len(&self, chunk: u64) -> usize {
        let range = self.chunk_range(chunk);
        (range.end - range.start) as usize
    }

    /// Chunks in a page: 1,024, less for the last, 0 past the end.
    pub fn page_chunks(&self, page: u64) -> usize {
        let first = page.saturating_mul(PAGE_CHUNKS as u64);
        self.chunks().saturating_sub(first).min(PAGE_CHUNKS as u64) as usize
    }
}

/// A run of bytes on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

impl Extent {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A disk (or a snapshot of one) that can be read at any offset. Blocking.
#[allow(clippy::len_without_is_empty)]
pub trait BlockRead: Send + Sync {
    /// Exact length in bytes.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`; reading past the end is an error (`UnexpectedEof`).
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The first run of bytes at or after `from` that may hold data; what lies between reads as
    /// zeroes. `None` where only zeroes follow. A driver that cannot tell answers everything.
    fn next_data(&self, from: u64) -> io::Result<Option<Extent>>;
}

/// A disk that can be written. Blocking. Writes are visible to reads at once and durable after `flush`.
pub trait BlockWrite: BlockRead {
    /// Writes all of `data` at `offset`, inside the disk's length.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeroes, releasing space where that is possible.
    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Everything written so far is on stable storage when this returns. An error is final.
    fn flush(&self) -> io::Result<()>;
}

/// Verified chunks by place: what the repository lends to the accelerator. Blocking.
pub trait ChunkSource: Send + Sync {
    /// The chunk with this id from any living sealed restore point of a replica that holds it at this
    /// place; re-hashed. `None` where it is gone or bad: that costs bytes, never data.
    fn read_chunk(
        &self,
        replica: [u8; 16],
        disk: u16,
        chunk: u64,
        id: ShortId,
        key: &DomainKey,
    ) -> Option<(ChunkId, Vec<u8>)>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_of_odd_disks() {
        let g = Geometry { disk_len: PAGE_BYTES + 65_537 };
        assert_eq!((g.chunks(), g.pages(), g.page_chunks(0), g.page_chunks(1)), (1026, 2, 1024, 2));
        assert_eq!((g.chunk_len(1024), g.chunk_len(1025), g.chunk_len(1026)), (65_536, 1, 0));
        assert_eq!(Geometry { disk_len: 0 }.pages(), 0);
    }

    #[test]
    fn zero_test_sees_every_byte() {
        for len in [0, 1, 63, 64, 65, 4096, CHUNK_BYTES] {
            let mut data = vec![0u8; len];
            assert!(is_zero(&data));
            for at in [0, len / 2, len.saturating_sub(1)] {
                if len > 0 {
                    data[at] = 1;
                    assert!(!is_zero(&data), "{len} {at}");
                    data[at] = 0;
                }
            }
        }
    }

    #[test]
    fn ids_are_keyed() {
        let (a, b) = (DomainKey([1; 32]), DomainKey([2; 32]));
        assert_ne!(a.chunk_id(b"x"), b.chunk_id(b"x"));
        assert!(a.chunk_id(&[0; 100]).is_zero());
        assert_ne!(a.tag(), b.tag());
    }
}
