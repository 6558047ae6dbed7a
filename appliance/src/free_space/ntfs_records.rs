//! NTFS's file table: records, attributes, runs, and the search in the root directory.
//!
//! A file whose attributes are spread over several records is refused: only system files and one name in
//! the root directory are of interest here, and those are small.

use super::bytes::{add, le16, le32, le64, mul, part, size, u8_at};
use super::ntfs::Boot;
use super::view::View;
use super::{Keep, keep, require};

const ATTR_LIST: u32 = 0x20;
/// `$VOLUME_INFORMATION`.
pub(super) const ATTR_VOLUME_INFORMATION: u32 = 0x70;
/// `$DATA`.
pub(super) const ATTR_DATA: u32 = 0x80;
const ATTR_INDEX_ROOT: u32 = 0x90;
const ATTR_INDEX_ALLOCATION: u32 = 0xA0;
const ATTR_END: u32 = u32::MAX;
const RECORD_ROOT: u64 = 5;
const ROOT_BYTES_MAX: u64 = 16 << 20;
const RUNS_MAX: usize = 1 << 16;

/// A run of clusters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) at: u64,
    pub(super) len: u64,
}

/// A non-resident attribute.
pub(super) struct Content {
    pub(super) runs: Vec<Run>,
    /// Bytes in all, and bytes that were ever written.
    pub(super) len: u64,
    pub(super) written: u64,
}

/// Undoes the fixups of a record: the last word of each 512 bytes must be the record's mark.
pub(super) fn fixed_up(mut data: Vec<u8>, magic: &[u8; 4]) -> Result<Vec<u8>, Keep> {
    let bad = "a record of the file system is damaged";
    require(part(&data, 0, 4)? == magic, bad)?;
    let (at, count) = (size(le16(&data, 4)?.into())?, size(le16(&data, 6)?.into())?);
    require(count >= 2 && (count - 1) * 512 == data.len(), bad)?;
    let marks = part(&data, at, count * 2)?.to_vec();
    let (mark, words) = marks.split_at(2);
    for (sector, word) in data.chunks_exact_mut(512).zip(words.chunks_exact(2)) {
        let Some(end) = sector.get_mut(510..) else { return keep(bad) };
        require(end == mark, "a record of the file system is torn")?;
        end.copy_from_slice(word);
    }
    Ok(data)
}

/// The file table of a volume.
pub(super) struct Table<'a> {
    view: &'a View<'a>,
    boot: &'a Boot,
    /// Where the table is.
    pub(super) runs: Vec<Run>,
}

impl<'a> Table<'a> {
    /// Reads the table's own record.
    pub(super) fn open(view: &'a View<'a>, boot: &'a Boot) -> Result<Self, Keep> {
        let need = boot.record_bytes.div_ceil(boot.cluster_bytes);
        let runs = vec![Run { at: boot.table, len: need }];
        let mut this = Self { view, boot, runs };
        let own = this.file(0, ATTR_DATA)?;
        require(own.runs.first().is_some_and(|run| run.at == boot.table), "the file table is damaged")?;
        this.runs = own.runs;
        Ok(this)
    }

    fn read(&self, runs: &[Run], offset: u64, len: u64) -> Result<Vec<u8>, Keep> {
        let (mut data, mut begin) = (Vec::new(), 0);
        let end = add(offset, len)?;
        for run in runs {
            let run_end = add(begin, mul(run.len, self.boot.cluster_bytes)?)?;
            let (from, to) = (offset.max(begin), end.min(run_end));
            if from < to {
                let at = add(mul(run.at, self.boot.cluster_bytes)?, from - begin)?;
                data.extend(self.view.read(at, to - from)?);
            }
            begin = run_end;
        }
        require(data.len() as u64 == len, "a system file is shorter than it says")?;
        Ok(data)
    }

    /// A part of a file's content.
    pub(super) fn read_file(&self, file: &Content, offset: u64, len: u64) -> Result<Vec<u8>, Keep> {
        self.read(&file.runs, offset, len)
    }

    /// A record of the table, in use or not.
    pub(super) fn record(&self, number: u64) -> Result<Vec<u8>, Keep> {
        let bytes = self.boot.record_bytes;
        fixed_up(self.read(&self.runs, mul(number, bytes)?, bytes)?, b"FILE")
    }

    /// The unnamed (or `$I30`) attribute of this kind; `None` where there is none.
    fn attribute(&self, record: &[u8], kind: u32) -> Result<Option<Vec<u8>>, Keep> {
        let bad = "a record of the file system is damaged";
        require(le64(record, 32)? == 0, bad)?;
        let mut at = size(le16(record, 20)?.into())?;
        let mut found = None;
        // Every attribute takes room, so this ends with the record.
        loop {
            let this = le32(record, at)?;
            if this == ATTR_END {
                return Ok(found);
            }
            let len = size(le32(record, at + 4)?.into())?;
            require(len >= 24 && len.is_multiple_of(8), bad)?;
            let data = part(record, at, len)?;
            require(this != ATTR_LIST, "a system file is spread over several records")?;
            let is_index = kind == ATTR_INDEX_ROOT || kind == ATTR_INDEX_ALLOCATION;
            if this == kind && (u8_at(data, 9)? == 0) != is_index {
                require(found.is_none(), bad)?;
                found = Some(data.to_vec());
            }
            at += len;
        }
    }

    fn used_record(&self, number: u64) -> Result<Vec<u8>, Keep> {
        let record = self.record(number)?;
        require(le16(&record, 22)? & 1 == 1, "a system file is missing")?;
        Ok(record)
    }

    /// A resident attribute's value.
    pub(super) fn resident(&self, number: u64, kind: u32) -> Result<Vec<u8>, Keep> {
        let Some(attribute) = self.attribute(&self.used_record(number)?, kind)? else {
            return keep("a system file is incomplete");
        };
        value(&attribute).map(<[u8]>::to_vec)
    }

    /// A non-resident attribute's content.
    pub(super) fn file(&self, number: u64, kind: u32) -> Result<Content, Keep> {
        match self.attribute(&self.used_record(number)?, kind)? {
            Some(attribute) => self.content(&attribute),
            None => keep("a system file is incomplete"),
        }
    }

    fn content(&self, attribute: &[u8]) -> Result<Content, Keep> {
        let bad = "a system file is damaged";
        require(u8_at(attribute, 8)? == 1 && le64(attribute, 16)? == 0, bad)?;
        require(le16(attribute, 12)? == 0, "a system file is compressed, encrypted or sparse")?;
        let clusters = add(le64(attribute, 24)?, 1)?;
        let runs = self.decode(attribute.get(size(le16(attribute, 32)?.into())?..).unwrap_or_default())?;
        let total = runs.iter().try_fold(0, |sum, run| add(sum, run.len))?;
        let len = le64(attribute, 48)?;
        require(total == clusters && len <= mul(total, self.boot.cluster_bytes)?, bad)?;
        Ok(Content { runs, len, written: le64(attribute, 56)? })
    }

    /// Decodes mapping pairs; holes are refused.
    fn decode(&self, mut pairs: &[u8]) -> Result<Vec<Run>, Keep> {
        let bad = "a system file's places are damaged";
        let (mut runs, mut at) = (Vec::new(), 0i64);
        loop {
            let (head, rest) = pairs.split_first().map_or_else(|| keep(bad), Ok)?;
            if *head == 0 {
                return Ok(runs);
            }
            let (len_bytes, at_bytes) = (usize::from(head & 0xF), usize::from(head >> 4));
            require((1..=8).contains(&len_bytes) && (1..=8).contains(&at_bytes), bad)?;
            let len = signed(part(rest, 0, len_bytes)?);
            let step = signed(part(rest, len_bytes, at_bytes)?);
            at = at.checked_add(step).map_or_else(|| keep(bad), Ok)?;
            let (Ok(len), Ok(start)) = (u64::try_from(len), u64::try_from(at)) else { return keep(bad) };
            require(len > 0 && add(start, len)? <= self.boot.clusters, bad)?;
            runs.push(Run { at: start, len });
            require(runs.len() <= RUNS_MAX, bad)?;
            pairs = rest.get(len_bytes + at_bytes..).unwrap_or_default();
        }
    }

    /// The first bytes of a file (fewer where it is shorter); `None` where the record is not in use.
    pub(super) fn file_start(&self, number: u64, len: u64) -> Result<Option<Vec<u8>>, Keep> {
        let record = self.record(number)?;
        if le16(&record, 22)? & 1 == 0 {
            return Ok(None);
        }
        let Some(attribute) = self.attribute(&record, ATTR_DATA)? else { return Ok(None) };
        if u8_at(&attribute, 8)? == 0 {
            return value(&attribute).map(|data| Some(data.to_vec()));
        }
        let file = self.content(&attribute)?;
        let len = len.min(file.len).min(file.written);
        self.read(&file.runs, 0, len).map(Some)
    }

    /// Records that a name in the root directory stands for, or stood for: every block of the directory is
    /// searched, used or not.
    pub(super) fn find_in_root(&self, name: &str) -> Result<Vec<u64>, Keep> {
        let record = self.used_record(RECORD_ROOT)?;
        let Some(root) = self.attribute(&record, ATTR_INDEX_ROOT)? else {
            return keep("the root directory is damaged");
        };
        let root = value(&root)?;
        let mut found = entries(root.get(16..).unwrap_or_default(), name)?;
        let block_bytes = u64::from(le32(root, 8)?);
        let Some(allocation) = self.attribute(&record, ATTR_INDEX_ALLOCATION)? else { return Ok(found) };
        let blocks = self.content(&allocation)?;
        require(
            block_bytes.is_power_of_two() && (512..=65536).contains(&block_bytes),
            "the root directory is damaged",
        )?;
        require(blocks.len <= ROOT_BYTES_MAX, "the root directory is too large")?;
        for nth in 0..blocks.len / block_bytes {
            let data = self.read(&blocks.runs, nth * block_bytes, block_bytes)?;
            // Blocks that were never used hold nothing.
            if part(&data, 0, 4)? == b"INDX" {
                let data = fixed_up(data, b"INDX")?;
                found.extend(entries(data.get(24..).unwrap_or_default(), name)?);
            }
        }
        Ok(found)
    }
}

fn value(attribute: &[u8]) -> Result<&[u8], Keep> {
    require(u8_at(attribute, 8)? == 0, "a system file is damaged")?;
    part(attribute, size(le16(attribute, 20)?.into())?, size(le32(attribute, 16)?.into())?)
}

/// A little-endian number of up to eight bytes with its sign.
fn signed(bytes: &[u8]) -> i64 {
    let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 };
    let mut wide = [fill; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    i64::from_le_bytes(wide)
}

/// Entries of a directory's node that carry this name, whatever its case.
fn entries(node: &[u8], name: &str) -> Result<Vec<u64>, Keep> {
    let bad = "the root directory is damaged";
    let (mut at, end) = (size(le32(node, 0)?.into())?, size(le32(node, 4)?.into())?);
    let mut found = Vec::new();
    while at < end {
        let (len, key_len, flags) = (le16(node, at + 8)?, le16(node, at + 10)?, le16(node, at + 12)?);
        if flags & 2 != 0 {
            break;
        }
        require(len >= 16, bad)?;
        if key_len >= 66 {
            let key = part(node, at + 16, key_len.into())?;
            let text = part(key, 66, usize::from(u8_at(key, 64)?) * 2)?;
            let text = text.chunks_exact(2).map(|pair| le16(pair, 0).unwrap_or(0));
            let text: String = char::decode_utf16(text).map(|c| c.unwrap_or('?')).collect();
            if text.eq_ignore_ascii_case(name) {
                found.push(le64(node, at)? & 0xFFFF_FFFF_FFFF);
            }
        }
        at += usize::from(len);
    }
    Ok(found)
}
