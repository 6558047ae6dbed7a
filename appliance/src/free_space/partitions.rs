//! Partition tables: GPT, MBR with its chain of logical partitions, or none.
//!
//! A table that is damaged, contradicts itself or names overlapping places refuses the whole disk.
//! Bounds: 4,096 GPT entries, 128 logical partitions.

use crate::block::{BlockRead, Extent};

use super::bytes::{crc32_reflected, le16, le32, le64, part, size, u8_at};
use super::signatures::{self, Kind};
use super::view::View;
use super::{Keep, keep, require};

const ENTRIES_MAX: u32 = 4096;
const LOGICAL_MAX: usize = 128;
/// Far above any disk; leaves room for sums.
const DISK_BYTES_MAX: u64 = 1 << 60;

/// The types of a dynamic disk's partitions in a GPT: metadata and data.
const DYNAMIC: [[u8; 16]; 2] = [
    [0xAA, 0xC8, 0x08, 0x58, 0x8F, 0x7E, 0xE0, 0x42, 0x85, 0xD2, 0xE1, 0xE9, 0x04, 0x34, 0xCF, 0xB3],
    [0xA0, 0x60, 0x9B, 0xAF, 0x31, 0x14, 0x62, 0x4F, 0xBC, 0x68, 0x33, 0x11, 0x71, 0x4A, 0x69, 0xAD],
];

/// A partition, or the whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// `partition 1` or `whole disk`.
    pub(super) name: String,
    /// Its place.
    pub(super) extent: Extent,
}

/// Lists a disk's partitions in the order of their numbers.
pub(super) fn list(disk: &dyn BlockRead) -> Result<Vec<Part>, Keep> {
    let view = View::part(disk, Extent { offset: 0, len: disk.len() });
    let is_sane = (4096..=DISK_BYTES_MAX).contains(&disk.len());
    require(is_sane, "the disk is too small or too large for anything")?;
    require(!signatures::is_raid_by_its_end(&view)?, "the whole disk is a part of a Linux RAID")?;
    let sector = view.read(0, 512)?;
    let entries = mbr_entries(&sector)?;
    let mut tables = Vec::new();
    for sector_bytes in [512, 4096] {
        if view.read(sector_bytes, 8.min(view.len() - sector_bytes))? == b"EFI PART" {
            tables.push(sector_bytes);
        }
    }
    let parts = match (tables.as_slice(), &entries) {
        ([], None) => return Ok(whole(disk)),
        ([], Some(entries)) => {
            // The boot sectors of NTFS and FAT carry the same mark as a partition table.
            let kind = signatures::recognise(&view)?;
            let plausible = mbr_is_plausible(entries, disk.len());
            match (kind, plausible) {
                (Kind::Unknown | Kind::Other("iso9660"), true) => mbr(&view, entries)?,
                (_, true) => return keep("a partition table and a file system claim the disk"),
                (Kind::Ntfs, false) => return Ok(whole(disk)),
                (_, false) if entries.iter().all(|entry| entry.kind == 0) => return Ok(whole(disk)),
                (_, false) => return keep("the partition table is damaged"),
            }
        }
        ([sector_bytes], Some(entries)) => {
            let used: Vec<_> = entries.iter().filter(|entry| entry.kind != 0).collect();
            let protective = matches!(used.as_slice(), [one] if one.kind == 0xEE);
            require(protective, "a GPT and other partitions in the MBR contradict each other")?;
            gpt(&view, *sector_bytes)?
        }
        _ => return keep("the partition tables contradict each other"),
    };
    check_places(&parts, disk.len())?;
    Ok(parts)
}

fn whole(disk: &dyn BlockRead) -> Vec<Part> {
    vec![Part { name: "whole disk".into(), extent: Extent { offset: 0, len: disk.len() } }]
}

fn check_places(parts: &[Part], disk_len: u64) -> Result<(), Keep> {
    let mut places: Vec<Extent> = parts.iter().map(|part| part.extent).collect();
    places.sort_unstable_by_key(|extent| extent.offset);
    for place in &places {
        let inside = place.offset.checked_add(place.len).is_some_and(|end| end <= disk_len);
        require(inside, "a partition ends outside the disk")?;
    }
    let apart = places.windows(2).all(|pair| matches!(pair, [a, b] if a.end() <= b.offset));
    require(apart, "partitions overlap")
}

fn gpt(view: &View<'_>, sector_bytes: u64) -> Result<Vec<Part>, Keep> {
    let header = view.read(sector_bytes, sector_bytes)?;
    let header_len = size(le32(&header, 12)?.into())?;
    require((92..=512).contains(&header_len), "the GPT header has an impossible length")?;
    let mut plain = part(&header, 0, header_len)?.to_vec();
    if let Some(field) = plain.get_mut(16..20) {
        field.fill(0);
    }
    require(!crc32_reflected(!0, &plain) == le32(&header, 16)?, "the GPT header's checksum is wrong")?;
    require(le64(&header, 24)? == 1, "the GPT header is not at its place")?;
    let (first_usable, last_usable) = (le64(&header, 40)?, le64(&header, 48)?);
    let (table_at, count, entry_len) = (le64(&header, 72)?, le32(&header, 80)?, le32(&header, 84)?);
    require(count <= ENTRIES_MAX, "the GPT has too many entries")?;
    require((128..=4096).contains(&entry_len), "the GPT's entries have an impossible length")?;
    let table_at = super::bytes::mul(table_at, sector_bytes)?;
    let table = view.read(table_at, u64::from(count) * u64::from(entry_len))?;
    require(!crc32_reflected(!0, &table) == le32(&header, 88)?, "the GPT's checksum is wrong")?;
    let mut parts = Vec::new();
    for (number, entry) in table.chunks_exact(size(entry_len.into())?).enumerate() {
        if part(entry, 0, 16)?.iter().all(|byte| *byte == 0) {
            continue;
        }
        // A dynamic disk says elsewhere what lies where.
        let is_dynamic = DYNAMIC.iter().any(|kind| entry.starts_with(kind));
        require(!is_dynamic, "a dynamic disk of Windows")?;
        let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
        let sound = first >= first_usable && first <= last && last <= last_usable && last < u64::MAX;
        require(sound, "a GPT entry names an impossible place")?;
        let offset = super::bytes::mul(first, sector_bytes)?;
        let len = super::bytes::mul(last - first + 1, sector_bytes)?;
        parts.push(Part { name: format!("partition {}", number + 1), extent: Extent { offset, len } });
    }
    Ok(parts)
}

/// An entry of an MBR: sectors of 512 bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    status: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    fn extent(&self, base: u64) -> Extent {
        // Two 32-bit numbers: nothing here can overflow.
        Extent { offset: (base + self.start) * 512, len: self.sectors * 512 }
    }
}

/// The four entries; `None` where the mark of an MBR is missing.
fn mbr_entries(sector: &[u8]) -> Result<Option<Vec<Entry>>, Keep> {
    if le16(sector, 510)? != 0xAA55 {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for n in 0..4 {
        let at = 446 + n * 16;
        entries.push(Entry {
            status: u8_at(sector, at)?,
            kind: u8_at(sector, at + 4)?,
            start: le32(sector, at + 8)?.into(),
            sectors: le32(sector, at + 12)?.into(),
        });
    }
    Ok(Some(entries))
}

/// True for what a partitioning tool writes, false for a boot sector's code and for an empty table.
fn mbr_is_plausible(entries: &[Entry], disk_len: u64) -> bool {
    let used: Vec<&Entry> = entries.iter().filter(|entry| entry.kind != 0).collect();
    let sound = |entry: &&Entry| {
        matches!(entry.status, 0 | 0x80)
            && entry.start > 0
            && entry.sectors > 0
            && entry.start * 512 < disk_len
    };
    !used.is_empty() && used.iter().all(sound)
}

fn mbr(view: &View<'_>, entries: &[Entry]) -> Result<Vec<Part>, Keep> {
    let (mut parts, mut extended) = (Vec::new(), None);
    for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.kind != 0) {
        require(entry.kind != 0xEE, "the MBR names a GPT that is not there")?;
        require(entry.kind != 0x42, "a dynamic disk of Windows")?;
        if !entry.is_extended() {
            parts.push(Part { name: format!("partition {}", n + 1), extent: entry.extent(0) });
        } else if extended.replace(*entry).is_some() {
            return keep("two extended partitions");
        }
    }
    if let Some(extended) = extended {
        // The chain lies inside the extended partition, which must not overlap a primary one.
        let mut places = parts.clone();
        places.push(Part { name: String::new(), extent: extended.extent(0) });
        check_places(&places, view.len())?;
        logical(view, extended, &mut parts)?;
    }
    Ok(parts)
}

fn logical(view: &View<'_>, extended: Entry, parts: &mut Vec<Part>) -> Result<(), Keep> {
    let area = extended.extent(0);
    let mut record = extended.start;
    for n in 0..LOGICAL_MAX {
        let Some(entries) = mbr_entries(&view.read(record * 512, 512)?)? else {
            // An extended partition that was never filled has no first record.
            return if n == 0 { Ok(()) } else { keep("the chain of logical partitions is broken") };
        };
        let (first, second) = match entries.as_slice() {
            [first, second, third, fourth] if third.kind == 0 && fourth.kind == 0 => (*first, *second),
            _ => return keep("a record of the logical partitions is damaged"),
        };
        if first.kind != 0 {
            require(!first.is_extended() && first.sectors > 0, "a logical partition is damaged")?;
            let extent = first.extent(record);
            let inside = extent.offset > area.offset && extent.end() <= area.end();
            require(inside, "a logical partition lies outside the extended one")?;
            parts.push(Part { name: format!("partition {}", n + 5), extent });
        }
        if second.kind == 0 {
            return Ok(());
        }
        let next = extended.start + second.start;
        require(second.is_extended(), "a record of the logical partitions is damaged")?;
        require(
            next > record && next * 512 + 512 <= area.end(),
            "the chain of logical partitions is broken",
        )?;
        // Its own record must not lie in a partition that was already listed.
        let taken =
            parts.iter().any(|part| part.extent.offset <= next * 512 && next * 512 < part.extent.end());
        require(!taken, "a logical partition overlaps the chain")?;
        record = next;
    }
    keep("too many logical partitions")
}
