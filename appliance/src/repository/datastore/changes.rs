//! The changes of a building: one record for each page that was set, appended.
//!
//! Pure but for [`read`]. A record is 52 bytes: disk, kind, slot, page, hash, CRC-32C of all before. How
//! many count stands in the cursor; they were synced before it, so one that does not fit is damage.

use std::fs::File;
use std::io::{self, BufReader, Read};

use crate::block::PageHash;

/// First bytes of the file.
pub const MAGIC: &[u8; 16] = b"vbr changes v1\n\0";
const RECORD_BYTES: usize = 52;
const KIND_ZERO: u16 = 0;
const KIND_PAGE: u16 = 1;

/// A page that was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Disk number.
    pub disk: u16,
    /// Page number.
    pub page: u64,
    /// Hash and slot of its body; none for a page that is all zero.
    pub entry: Option<(PageHash, u32)>,
}

/// Where a record begins.
pub fn offset(record: u64) -> u64 {
    MAGIC.len() as u64 + record * RECORD_BYTES as u64
}

impl Change {
    /// As it is stored.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..2].copy_from_slice(&self.disk.to_be_bytes());
        let (kind, (hash, slot)) = match self.entry {
            Some(entry) => (KIND_PAGE, entry),
            None => (KIND_ZERO, (PageHash([0; 32]), 0)),
        };
        bytes[2..4].copy_from_slice(&kind.to_be_bytes());
        bytes[4..8].copy_from_slice(&slot.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.page.to_be_bytes());
        bytes[16..48].copy_from_slice(&hash.0);
        let sum = crc32c::crc32c(&bytes[..48]);
        bytes[48..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Checks and parses a record.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body).to_be_bytes() != *sum {
            return None;
        }
        let disk = u16::from_be_bytes(*body.first_chunk()?);
        let kind = u16::from_be_bytes(*body[2..].first_chunk()?);
        let slot = u32::from_be_bytes(*body[4..].first_chunk()?);
        let page = u64::from_be_bytes(*body[8..].first_chunk()?);
        let entry = match kind {
            KIND_PAGE => Some((PageHash(*body[16..].first_chunk()?), slot)),
            KIND_ZERO => None,
            _ => return None,
        };
        Some(Self { disk, page, entry })
    }
}

/// Reads the first `count` records.
pub fn read(file: &File, count: u64, mut each: impl FnMut(Change) -> io::Result<()>) -> io::Result<()> {
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_string());
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let mut magic = [0; 16];
    reader.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("it is not a list of changes of this version"));
    }
    let mut record = [0; RECORD_BYTES];
    for _ in 0..count {
        reader.read_exact(&mut record)?;
        each(Change::decode(&record).ok_or_else(|| damaged("a record's checksum differs"))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The format on disk: a change here needs a new version.
    #[test]
    fn golden_record() {
        let change = Change { disk: 2, page: 0x0102, entry: Some((PageHash([0xaa; 32]), 7)) };
        let bytes = change.encode();
        assert_eq!(bytes[..16], [0, 2, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(bytes[16..48], [0xaa; 32]);
        assert_eq!(Change::decode(&bytes), Some(change));
    }

    proptest! {
        #[test]
        fn round_trip_and_damage(disk: u16, page: u64, slot: u32, zero: bool, at in 0usize..RECORD_BYTES, bit in 0u8..8) {
            let entry = (!zero).then_some((PageHash([slot as u8; 32]), slot));
            let change = Change { disk, page, entry };
            let mut bytes = change.encode();
            prop_assert_eq!(Change::decode(&bytes), Some(change));
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Change::decode(&bytes), None);
        }
    }
}
