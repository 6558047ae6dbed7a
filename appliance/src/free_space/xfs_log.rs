//! XFS's log: the proof that no allocation map is waiting in it.
//!
//! Quiet is a log whose newest record is an unmount record, and one in which everything between its tail
//! and its head changes the superblock alone: so it is left by a freeze and by a while without writes
//! (the log is "covered"). What lies before the tail is in its place on the disk, by the log's own rule.
//!
//! Checked: the cycle numbers of all blocks of the log show exactly one end; the newest record ends
//! there; every record up to there carries its own number, the file system's UUID and (version 5) its
//! checksum; every operation between tail and head belongs to a whole transaction of superblock buffers.
//!
//! Bounds: logs up to 2 GiB, read once and only where the newest record promises quiet; 4 bytes a block
//! of 512; at most 256 blocks between tail and head.

use super::bytes::{be32, be64, crc32c_without, le16, le32, le64, part, size, u8_at};
use super::view::View;
use super::xfs::Super;
use super::{Keep, keep, require};

const SECTOR: u64 = 512;
const LOG_BYTES_MAX: u64 = 1 << 31;
const MAGIC: u32 = 0xFEED_BABE;
/// Longest record: 256 KiB and its headers.
const RECORD_BLOCKS_MAX: u64 = 512 + 8;
/// Most blocks between tail and head of a log that can be quiet.
const QUIET_BLOCKS_MAX: u64 = 256;
const BUSY: &str = "the XFS log is not clean: it was neither unmounted nor frozen";

const OP_START: u8 = 1;
const OP_COMMIT: u8 = 2;
const OP_UNMOUNT: u8 = 0x20;
const ITEM_BUFFER: u16 = 0x123C;
const TRANSACTION: u32 = 0x5452_414E;

/// Proves the log quiet, or refuses.
pub(super) fn prove_quiet(view: &View<'_>, sb: &Super) -> Result<&'static str, Keep> {
    let (start, bytes) = sb.log;
    require((64 * SECTOR..=LOG_BYTES_MAX).contains(&bytes), "the log has an impossible length")?;
    let log = Log { view, sb, start, blocks: bytes / SECTOR };
    // A busy log is told from a quiet one by a few blocks; only then all of it is read.
    let guess = log.guess_head()?;
    log.newest(guess)?;
    let head = log.head()?;
    require(head == guess, BUSY)?;
    let newest = log.newest(head)?;
    let is_unmount = log.is_unmount(&newest)?;
    // The tools that make and repair write their unmount record without a checksum.
    let has_sum = !is_unmount || le32(&newest.head, 32)? != 0;
    log.check_record(&newest, has_sum)?;
    if is_unmount {
        return Ok("cleanly unmounted, the log ends with an unmount record");
    }
    log.check_covered(head, &newest)?;
    Ok("frozen or idle, the log holds only superblock updates")
}

struct Log<'a> {
    view: &'a View<'a>,
    sb: &'a Super,
    start: u64,
    blocks: u64,
}

/// A record's header.
struct Record {
    at: u64,
    cycle: u32,
    head: Vec<u8>,
    /// Blocks of header and of data.
    head_blocks: u64,
    data_blocks: u64,
    tail: u64,
}

fn cycle_of(block: &[u8]) -> Result<u32, Keep> {
    let word = be32(block, 0)?;
    if word == MAGIC { be32(block, 4) } else { Ok(word) }
}

impl Log<'_> {
    fn read(&self, at: u64, blocks: u64) -> Result<Vec<u8>, Keep> {
        let first = blocks.min(self.blocks - at);
        let mut data = self.view.read(self.start + at * SECTOR, first * SECTOR)?;
        if first < blocks {
            data.extend(self.view.read(self.start, (blocks - first) * SECTOR)?);
        }
        Ok(data)
    }

    /// The first block of the older cycle, by halving: right for every log with exactly one end.
    fn guess_head(&self) -> Result<u64, Keep> {
        let newer = cycle_of(&self.read(0, 1)?)?;
        let (mut low, mut high) = (0, self.blocks);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if cycle_of(&self.read(middle, 1)?)? == newer { low = middle } else { high = middle }
        }
        Ok(high % self.blocks)
    }

    /// The log's end, from the cycles of all its blocks.
    fn head(&self) -> Result<u64, Keep> {
        const CHUNK: u64 = 2048;
        let (mut newer, mut head) = (None, None);
        for at in (0..self.blocks).step_by(CHUNK as usize) {
            let data = self.read(at, CHUNK.min(self.blocks - at))?;
            for (block, nth) in data.chunks_exact(SECTOR as usize).zip(at..) {
                let cycle = cycle_of(block)?;
                let newer = *newer.get_or_insert(cycle);
                require(newer > 0, BUSY)?;
                match head {
                    None if cycle == newer => {}
                    None if cycle == newer - 1 => head = Some(nth),
                    Some(_) if cycle == newer - 1 => {}
                    _ => return keep("the XFS log's end is not clear"),
                }
            }
        }
        Ok(head.unwrap_or(0))
    }

    /// The newest record, which must end at the head and promise quiet.
    fn newest(&self, head: u64) -> Result<Record, Keep> {
        for back in 1..=RECORD_BLOCKS_MAX.min(self.blocks - 1) {
            let at = (head + self.blocks - back) % self.blocks;
            if be32(&self.read(at, 1)?, 0)? != MAGIC {
                continue;
            }
            let record = self.record(at)?;
            require(record.head_blocks + record.data_blocks == back, BUSY)?;
            let span = (head + self.blocks - record.tail) % self.blocks;
            let quiet = span <= QUIET_BLOCKS_MAX || self.is_unmount(&record)?;
            require(quiet, BUSY)?;
            return Ok(record);
        }
        keep("the XFS log has no newest record")
    }

    fn record(&self, at: u64) -> Result<Record, Keep> {
        let bad = "a record of the XFS log is damaged";
        let head = self.read(at, 1)?;
        let (cycle, version) = (be32(&head, 4)?, be32(&head, 8)?);
        require(be32(&head, 0)? == MAGIC && (version == 1 || version == 2), bad)?;
        require(be64(&head, 16)? == u64::from(cycle) << 32 | at, bad)?;
        require(be32(&head, 300)? == 1 && part(&head, 304, 16)? == self.sb.uuid, bad)?;
        let data_bytes = u64::from(be32(&head, 12)?);
        let record_bytes = if version == 2 { u64::from(be32(&head, 320)?) } else { 0 };
        require(data_bytes > 0 && data_bytes <= 256 * 1024 && record_bytes <= 256 * 1024, bad)?;
        let head_blocks = record_bytes.div_ceil(32 * 1024).max(1);
        let data_blocks = data_bytes.div_ceil(SECTOR);
        let tail = be64(&head, 24)? & 0xFFFF_FFFF;
        require(tail < self.blocks && head_blocks + data_blocks < self.blocks, bad)?;
        Ok(Record { at, cycle, head, head_blocks, data_blocks, tail })
    }

    /// Every block of the record carries the cycle of its place; version 5 has a checksum over all of it.
    fn check_record(&self, record: &Record, has_sum: bool) -> Result<(), Keep> {
        let wrong = "a record of the XFS log is damaged";
        let all = self.read(record.at, record.head_blocks + record.data_blocks)?;
        for (block, nth) in all.chunks_exact(SECTOR as usize).zip(record.at..) {
            let wrapped = u32::from(nth >= self.blocks);
            require(cycle_of(block)? == record.cycle.wrapping_add(wrapped), wrong)?;
        }
        if !self.sb.has_crc || !has_sum {
            return Ok(());
        }
        // The header's length in the sum differs between 32-bit and 64-bit kernels.
        for len in [328, 324] {
            let mut sum = crc32c_without(!0, part(&all, 0, len)?, 32, 4)?;
            for nth in 1..record.head_blocks {
                sum = super::bytes::crc32c_raw(sum, part(&all, size(nth * SECTOR)?, 260)?);
            }
            let data_bytes = size(be32(&record.head, 12)?.into())?;
            sum = super::bytes::crc32c_raw(sum, part(&all, size(record.head_blocks * SECTOR)?, data_bytes)?);
            if !sum == le32(&record.head, 32)? {
                return Ok(());
            }
        }
        keep("a checksum in the XFS log is wrong")
    }

    fn is_unmount(&self, record: &Record) -> Result<bool, Keep> {
        if be32(&record.head, 40)? != 1 {
            return Ok(false);
        }
        let data = self.read((record.at + record.head_blocks) % self.blocks, 1)?;
        Ok(u8_at(&data, 8)? == 0xAA && u8_at(&data, 9)? & OP_UNMOUNT != 0 && le16(&data, 12)? == 0x556E)
    }

    /// Goes through all records from the tail to the head.
    fn check_covered(&self, head: u64, newest: &Record) -> Result<(), Keep> {
        let span = (head + self.blocks - newest.tail) % self.blocks;
        require(span > 0 && span <= QUIET_BLOCKS_MAX, BUSY)?;
        let (mut at, mut left) = (newest.tail, span);
        let mut open: Option<Transaction> = None;
        while left > 0 {
            let record = self.record(at)?;
            self.check_record(&record, true)?;
            let blocks = record.head_blocks + record.data_blocks;
            require(blocks <= left, "a record of the XFS log is damaged")?;
            self.check_operations(&record, &mut open)?;
            left -= blocks;
            at = (at + blocks) % self.blocks;
        }
        require(open.is_none(), BUSY)
    }

    /// A record's data with the words that the cycle numbers took the place of.
    fn unpack(&self, record: &Record) -> Result<Vec<u8>, Keep> {
        let first = (record.at + record.head_blocks) % self.blocks;
        let mut data = self.read(first, record.data_blocks)?;
        let heads = self.read(record.at, record.head_blocks)?;
        for (nth, block) in data.chunks_exact_mut(SECTOR as usize).enumerate() {
            let (head, slot) = (nth / 64, nth % 64);
            let at = if head == 0 { 44 } else { head * SECTOR as usize + 4 };
            if let Some(word) = block.get_mut(..4) {
                word.copy_from_slice(part(&heads, at + slot * 4, 4)?);
            }
        }
        data.truncate(size(be32(&record.head, 12)?.into())?);
        Ok(data)
    }

    fn check_operations(&self, record: &Record, open: &mut Option<Transaction>) -> Result<(), Keep> {
        let data = self.unpack(record)?;
        let mut at = 0;
        for _ in 0..be32(&record.head, 40)? {
            let len = size(be32(&data, at + 4)?.into())?;
            let (id, flags) = (be32(&data, at)?, u8_at(&data, at + 9)?);
            let body = part(&data, at + 12, len)?;
            at += 12 + len;
            match (flags, open.as_mut()) {
                (OP_START, None) if len == 0 => {
                    *open = Some(Transaction { id, has_header: false, regions: 0 })
                }
                (OP_COMMIT, Some(now)) if now.id == id && now.regions == 0 && now.has_header => *open = None,
                (0, Some(now)) if now.id == id => now.operation(body, self.sb.sector_bytes)?,
                // An older unmount, torn transactions, several at once: not what a quiet log holds.
                _ => return keep(BUSY),
            }
        }
        Ok(())
    }
}

/// A transaction that is being read.
struct Transaction {
    id: u32,
    has_header: bool,
    /// Operations that still belong to the last item.
    regions: u16,
}

impl Transaction {
    fn operation(&mut self, body: &[u8], sector_bytes: u64) -> Result<(), Keep> {
        if !self.has_header {
            self.has_header = true;
            return require(le32(body, 0)? == TRANSACTION, BUSY);
        }
        if self.regions > 0 {
            self.regions -= 1;
            return Ok(());
        }
        // The format of an item begins with its type and the number of its operations.
        // The next sector is an allocation group's header: the buffer must be the first one alone.
        let sectors = u64::from(le16(body, 6)?);
        let is_first = le64(body, 8)? == 0 && sectors * SECTOR <= sector_bytes;
        let is_superblock = le16(body, 0)? == ITEM_BUFFER && is_first;
        require(is_superblock, BUSY)?;
        self.regions = le16(body, 2)?.saturating_sub(1);
        Ok(())
    }
}
