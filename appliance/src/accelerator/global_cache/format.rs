//! The pack format: what a pack file looks like, byte by byte. Pure; does no IO and owns nothing.
//!
//! All integers are big endian. A pack is:
//!
//! | part | bytes | fields |
//! |---|---|---|
//! | header | 16 | `VBRPACK`, version u8, pack number u64 |
//! | record, many | 64 + stored_len | `VBRC`, version u8, codec u8, 0u16, chunk id 32, domain tag 8, plain_len u32, stored_len u32, crc32c of the payload u32, crc32c of the 60 bytes before u32; then the payload |
//! | footer, once closed | 52 an entry | chunk id 32, domain tag 8, offset of the record u32, stored_len u32, plain_len u32 |
//! | trailer | 32 | `VBRTRAIL`, footer offset u32, entries u32, crc32c of the footer u32, pack number u64, crc32c of the 28 bytes before u32 |
//!
//! Records describe themselves, so a pack without a footer (the open one, or a damaged one) is read by
//! [`scan`]. Versions: 1, the first. Codecs: 0, raw. A golden file in `golden/` holds the format.
//!
//! Nothing here is trusted for content: whoever reads a chunk hashes it with its domain's key.

use crate::block::{CHUNK_BYTES, ChunkId, DomainTag, ShortId};

pub(super) const PACK_HEADER_BYTES: u32 = 16;
pub(super) const RECORD_HEADER_BYTES: u32 = 64;
pub(super) const FOOTER_ENTRY_BYTES: u32 = 52;
pub(super) const TRAILER_BYTES: u32 = 32;
/// A pack file larger than this was not written by us.
pub(super) const PACK_FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

const VERSION: u8 = 1;
const CODEC_RAW: u8 = 0;
const PACK_MAGIC: &[u8; 7] = b"VBRPACK";
const RECORD_MAGIC: &[u8; 4] = b"VBRC";
const TRAILER_MAGIC: &[u8; 8] = b"VBRTRAIL";

/// What indexes are keyed by.
pub(super) type ChunkKey = (DomainTag, ShortId);

/// A record as the footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub id: ChunkId,
    pub tag: DomainTag,
    /// Of the record's header in the pack.
    pub offset: u32,
    pub stored_len: u32,
    pub plain_len: u32,
}

impl Entry {
    pub fn key(&self) -> ChunkKey {
        (self.tag, self.id.short())
    }

    /// One past the record's last byte.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(RECORD_HEADER_BYTES) + u64::from(self.stored_len)
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub codec: u8,
    pub id: ChunkId,
    pub tag: DomainTag,
    pub plain_len: u32,
    pub stored_len: u32,
    pub payload_crc: u32,
}

impl RecordHeader {
    /// `None` where anything is wrong with it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES as usize)?;
        let sound = bytes.starts_with(RECORD_MAGIC)
            && bytes[4] == VERSION
            && u32_at(bytes, 60)? == crc32c::crc32c(&bytes[..60]);
        let header = Self {
            codec: bytes[5],
            id: ChunkId(bytes[8..40].try_into().ok()?),
            tag: DomainTag(bytes[40..48].try_into().ok()?),
            plain_len: u32_at(bytes, 48)?,
            stored_len: u32_at(bytes, 52)?,
            payload_crc: u32_at(bytes, 56)?,
        };
        (sound && header.plain_len as usize <= CHUNK_BYTES && header.stored_len as usize <= CHUNK_BYTES)
            .then_some(header)
    }

    /// The payload behind a header, checked against its sum; raw records only.
    pub fn payload<'a>(&self, behind: &'a [u8]) -> Option<&'a [u8]> {
        let payload = behind.get(..self.stored_len as usize)?;
        let sound = self.codec == CODEC_RAW
            && self.plain_len == self.stored_len
            && crc32c::crc32c(payload) == self.payload_crc;
        sound.then_some(payload)
    }
}

/// The first bytes of a pack.
pub(super) fn encode_pack_header(number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PACK_HEADER_BYTES as usize);
    bytes.extend_from_slice(PACK_MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

/// The number in a pack's header; `None` where this is no pack of a version we read.
pub(super) fn decode_pack_header(bytes: &[u8]) -> Option<u64> {
    let sound = bytes.starts_with(PACK_MAGIC) && *bytes.get(7)? == VERSION;
    let number = u64_at(bytes, 8)?;
    sound.then_some(number)
}

/// A record, header and payload. `plain` is at most a chunk long.
pub(super) fn encode_record(id: &ChunkId, tag: DomainTag, plain: &[u8]) -> Vec<u8> {
    let len = (plain.len() as u32).to_be_bytes();
    let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES as usize + plain.len());
    bytes.extend_from_slice(RECORD_MAGIC);
    bytes.extend_from_slice(&[VERSION, CODEC_RAW, 0, 0]);
    bytes.extend_from_slice(&id.0);
    bytes.extend_from_slice(&tag.0);
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&crc32c::crc32c(plain).to_be_bytes());
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(plain);
    bytes
}

/// Footer and trailer of a pack whose records end at `footer_offset`.
pub(super) fn encode_footer(number: u64, footer_offset: u32, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(footer_bytes(entries.len()) as usize);
    for entry in entries {
        bytes.extend_from_slice(&entry.id.0);
        bytes.extend_from_slice(&entry.tag.0);
        bytes.extend_from_slice(&entry.offset.to_be_bytes());
        bytes.extend_from_slice(&entry.stored_len.to_be_bytes());
        bytes.extend_from_slice(&entry.plain_len.to_be_bytes());
    }
    let sum = crc32c::crc32c(&bytes);
    let trailer = bytes.len();
    bytes.extend_from_slice(TRAILER_MAGIC);
    bytes.extend_from_slice(&footer_offset.to_be_bytes());
    bytes.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[trailer..]);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes
}

/// Bytes that footer and trailer take for so many records.
pub(super) fn footer_bytes(entries: usize) -> u64 {
    entries as u64 * u64::from(FOOTER_ENTRY_BYTES) + u64::from(TRAILER_BYTES)
}

/// A pack's last 32 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trailer {
    pub footer_offset: u32,
    entries: u32,
    footer_crc: u32,
}

impl Trailer {
    /// `None` where the file has no sound trailer for its number and length.
    pub fn decode(bytes: &[u8], number: u64, file_len: u64) -> Option<Self> {
        let sound = bytes.len() == TRAILER_BYTES as usize
            && bytes.starts_with(TRAILER_MAGIC)
            && u32_at(bytes, 28)? == crc32c::crc32c(&bytes[..28])
            && u64_at(bytes, 20)? == number;
        let trailer = Self {
            footer_offset: u32_at(bytes, 8)?,
            entries: u32_at(bytes, 12)?,
            footer_crc: u32_at(bytes, 16)?,
        };
        let end = u64::from(trailer.footer_offset) + footer_bytes(trailer.entries as usize);
        (sound && end == file_len).then_some(trailer)
    }

    /// Bytes of the footer without the trailer: bounded by the file's length.
    pub fn footer_len(&self) -> usize {
        self.entries as usize * FOOTER_ENTRY_BYTES as usize
    }

    /// The entries; `None` where the footer's sum is wrong or an entry points outside of the records.
    pub fn entries(&self, footer: &[u8]) -> Option<Vec<Entry>> {
        if footer.len() != self.footer_len() || crc32c::crc32c(footer) != self.footer_crc {
            return None;
        }
        footer
            .chunks_exact(FOOTER_ENTRY_BYTES as usize)
            .map(|bytes| {
                let entry = Entry {
                    id: ChunkId(bytes[..32].try_into().ok()?),
                    tag: DomainTag(bytes[32..40].try_into().ok()?),
                    offset: u32_at(bytes, 40)?,
                    stored_len: u32_at(bytes, 44)?,
                    plain_len: u32_at(bytes, 48)?,
                };
                let inside = entry.end() <= u64::from(self.footer_offset)
                    && entry.stored_len as usize <= CHUNK_BYTES
                    && entry.plain_len as usize <= CHUNK_BYTES;
                inside.then_some(entry)
            })
            .collect()
    }
}

/// What a walk over a pack's records found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub entries: Vec<Entry>,
    /// One past the last valid record.
    pub end: u32,
}

/// Walks the records of a whole pack file, its header included. A record that is damaged is left out;
/// behind a damaged header the next sound one is looked for. Stops at what is no record any more.
pub(super) fn scan(pack: &[u8]) -> Scan {
    let mut at = PACK_HEADER_BYTES as usize;
    let mut found = Scan { entries: Vec::new(), end: PACK_HEADER_BYTES };
    while let Some(rest) = pack.get(at..) {
        let Some(header) = RecordHeader::decode(rest) else {
            match rest.get(1..).and_then(next_magic) {
                Some(skip) => at += 1 + skip,
                None => break,
            }
            continue;
        };
        let behind = &rest[RECORD_HEADER_BYTES as usize..];
        if header.payload(behind).is_none() {
            // The header says where the next record begins. Where none does (a torn tail, or a length
            // that belongs to something else), look for one right behind this header.
            let next = at + (RECORD_HEADER_BYTES + header.stored_len) as usize;
            let chained = pack.get(next..).and_then(RecordHeader::decode).is_some();
            at = if chained { next } else { at + RECORD_HEADER_BYTES as usize };
            continue;
        }
        let entry = Entry {
            id: header.id,
            tag: header.tag,
            offset: at as u32,
            stored_len: header.stored_len,
            plain_len: header.plain_len,
        };
        at = entry.end() as usize;
        found.end = at as u32;
        found.entries.push(entry);
    }
    found
}

fn next_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(RECORD_MAGIC.len()).position(|window| window == RECORD_MAGIC)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
