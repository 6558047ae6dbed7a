//! ext4's journal (JBD2): where it is, and what its replay would write.
//!
//! The passes are those of a mount's recovery: scan for the end, collect revocations, replay. Nothing is
//! written: the result is a map from a file system's block to the journal's block that replaces it.
//! Stricter than recovery: any checksum that is wrong in a block that carries the expected sequence
//! number keeps the file system, even where a mount would take it for the log's torn end, and so does a
//! fast commit that may be valid.
//!
//! Bounds: 1,048,576 replayed blocks, as many revocations, 65,536 extents of the journal's file.

use std::collections::HashMap;

use super::bytes::{be16, be32, be64, crc32_be, crc32c_raw, crc32c_without, le16, le32, part, size, u8_at};
use super::ext4::Super;
use super::ext4_groups;
use super::ext4_journal_file as file;
use super::view::View;
use super::{Keep, keep, require};

const MAGIC: u32 = 0xC03B_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPER_V1: u32 = 3;
const SUPER_V2: u32 = 4;
const REVOKE: u32 = 5;

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_ASYNC_COMMIT: u32 = 4;
const INCOMPAT_CSUM_V2: u32 = 8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Revocations, 64 bits, asynchronous commits, checksums, fast commits.
const INCOMPAT: u32 = 0x3F;

const TAG_ESCAPE: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;
/// First tag of a fast commit.
const FAST_HEAD: u16 = 9;

const ENTRIES_MAX: usize = 1 << 20;

/// What a replay would write.
#[derive(Default)]
pub(super) struct Replayed {
    /// File system's block -> (journal's block as a block of the file system, first word was escaped).
    blocks: HashMap<u64, (u64, bool)>,
    /// The journal's own blocks: (start, length).
    pub(super) journal: Vec<(u64, u64)>,
    /// Committed transactions that were found.
    pub(super) transactions: u64,
}

impl Replayed {
    /// Reads a block as it is after the replay.
    pub(super) fn read(&self, view: &View<'_>, block: u64, block_bytes: u64) -> Result<Vec<u8>, Keep> {
        let (from, escaped) = self.blocks.get(&block).copied().unwrap_or((block, false));
        let mut data = view.read(super::bytes::mul(from, block_bytes)?, block_bytes)?;
        if escaped && let Some(word) = data.get_mut(..4) {
            word.copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(data)
    }
}

/// A journal: its file's place and its superblock.
pub(super) struct Journal {
    extents: Vec<file::Run>,
    /// The blocks of the file's tree.
    nodes: Vec<u64>,
    blocks: u64,
    first: u64,
    /// One past the last block of the log proper.
    last: u64,
    sequence: u32,
    start: u64,
    incompat: u32,
    has_old_checksum: bool,
    seed: u32,
}

impl Journal {
    fn has_csum(&self) -> bool {
        self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    fn tag_bytes(&self) -> usize {
        if self.incompat & INCOMPAT_CSUM_V3 != 0 {
            return 16;
        }
        let csum = if self.incompat & INCOMPAT_CSUM_V2 != 0 { 2 } else { 0 };
        let high = if self.incompat & INCOMPAT_64BIT != 0 { 4 } else { 0 };
        8 + csum + high
    }

    /// The file system's block of a journal's block.
    fn place(&self, block: u64) -> Result<u64, Keep> {
        file::place(&self.extents, block).map_or_else(|| keep("the journal's file has a hole"), Ok)
    }
}

/// Finds the journal's file and checks its superblock.
pub(super) fn locate(view: &View<'_>, sb: &Super) -> Result<Journal, Keep> {
    let number = sb.journal_inode - 1;
    let (group, index) = (number / sb.group_inodes, number % sb.group_inodes);
    require(group < sb.groups, "the journal's inode lies outside the file system")?;
    let table = ext4_groups::inode_table_on_disk(view, sb, group)?;
    let inode = view.read(table * sb.block_bytes + index * sb.inode_bytes, sb.inode_bytes)?;
    check_inode(sb, &inode)?;
    let file_blocks = (u64::from(le32(&inode, 4)?) | u64::from(le32(&inode, 0x6C)?) << 32) / sb.block_bytes;
    let (extents, nodes) = file::runs(view, sb, &inode, file_blocks)?;
    let mut journal = Journal {
        extents,
        nodes,
        blocks: 0,
        first: 0,
        last: 0,
        sequence: 0,
        start: 0,
        incompat: 0,
        has_old_checksum: false,
        seed: 0,
    };
    let head = view.read(journal.place(0)? * sb.block_bytes, 1024)?;
    read_super(&mut journal, sb, &head, file_blocks)?;
    Ok(journal)
}

fn check_inode(sb: &Super, inode: &[u8]) -> Result<(), Keep> {
    require(le16(inode, 0)? & 0xF000 == 0x8000, "the journal is not a file")?;
    require(le16(inode, 0x1A)? > 0, "the journal's inode is not in use")?;
    if !sb.has_metadata_csum() {
        return Ok(());
    }
    let number = u32::try_from(sb.journal_inode).unwrap_or(0).to_le_bytes();
    let seed = crc32c_raw(crc32c_raw(sb.csum_seed, &number), part(inode, 0x64, 4)?);
    let mut plain = inode.to_vec();
    let mut stored = u32::from(le16(inode, 0x7C)?);
    let mut clear = |at: usize| plain.get_mut(at..at + 2).map_or((), |field| field.fill(0));
    clear(0x7C);
    let mut mask = 0xFFFF;
    if inode.len() > 128 && le16(inode, 0x80)? >= 4 {
        stored |= u32::from(le16(inode, 0x82)?) << 16;
        clear(0x82);
        mask = !0;
    }
    require(crc32c_raw(seed, &plain) & mask == stored, "the journal inode's checksum is wrong")
}

fn read_super(journal: &mut Journal, sb: &Super, head: &[u8], file_blocks: u64) -> Result<(), Keep> {
    let bad = "the journal's superblock is damaged";
    require(be32(head, 0)? == MAGIC, bad)?;
    let kind = be32(head, 4)?;
    require(kind == SUPER_V1 || kind == SUPER_V2, bad)?;
    require(u64::from(be32(head, 0x0C)?) == sb.block_bytes, bad)?;
    let blocks = u64::from(be32(head, 0x10)?);
    journal.blocks = blocks;
    journal.first = be32(head, 0x14)?.into();
    journal.sequence = be32(head, 0x18)?;
    journal.start = be32(head, 0x1C)?.into();
    require(blocks <= file_blocks && journal.first > 0, bad)?;
    require(be32(head, 0x20)? == 0, "the journal recorded an error")?;
    let mut fast_blocks = 0;
    if kind == SUPER_V2 {
        journal.incompat = be32(head, 0x28)?;
        let compat = be32(head, 0x24)?;
        let known =
            journal.incompat & !INCOMPAT == 0 && be32(head, 0x2C)? == 0 && compat & !COMPAT_CHECKSUM == 0;
        require(known, "the journal has features that are not known here")?;
        journal.has_old_checksum = compat & COMPAT_CHECKSUM != 0;
        // A commit that does not wait for its blocks is worth nothing without their checksum.
        let is_async = journal.incompat & INCOMPAT_ASYNC_COMMIT != 0;
        require(!is_async || journal.has_old_checksum || journal.has_csum(), bad)?;
        let both = INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;
        require(journal.incompat & both != both, bad)?;
        require(!(journal.has_old_checksum && journal.has_csum()), bad)?;
        if journal.has_csum() {
            require(u8_at(head, 0x50)? == 4, "the journal has checksums of an unknown type")?;
            let sum = crc32c_without(!0, head, 0xFC, 4)?;
            require(sum == be32(head, 0xFC)?, "the journal superblock's checksum is wrong")?;
        }
        journal.seed = crc32c_raw(!0, part(head, 0x30, 16)?);
        require(be32(head, 0x40)? <= 1, "the journal is shared")?;
        if journal.incompat & INCOMPAT_FAST_COMMIT != 0 {
            fast_blocks = match be32(head, 0x54)? {
                0 => 256,
                n => u64::from(n),
            };
        }
    }
    // A log that is too short to hold anything is not one.
    let last = blocks.checked_sub(fast_blocks).filter(|last| *last > journal.first + 1);
    journal.last = last.map_or_else(|| keep(bad), Ok)?;
    let start_ok = journal.start == 0 || (journal.first..journal.last).contains(&journal.start);
    require(start_ok, bad)
}

/// Replays the journal in memory.
pub(super) fn replay(view: &View<'_>, sb: &Super, journal: Journal) -> Result<Replayed, Keep> {
    let mut replayed =
        Replayed { journal: file::places(&journal.extents, &journal.nodes), ..Replayed::default() };
    if !sb.needs_recovery() {
        // A mount would throw such a journal away, e2fsck would ask: too odd to be believed.
        require(journal.start == 0, "its journal is not empty, though it is marked clean")?;
    }
    let mut log = Log { view, sb, journal, revoked: HashMap::new(), blocks: HashMap::new() };
    let end = if log.journal.start == 0 { log.journal.sequence } else { log.scan()? };
    log.check_fast_commits(end)?;
    if log.journal.start != 0 {
        log.walk(end, Pass::Revoke)?;
        log.walk(end, Pass::Replay)?;
    }
    replayed.transactions = end.wrapping_sub(log.journal.sequence).into();
    replayed.blocks = log.blocks;
    Ok(replayed)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Revoke,
    Replay,
}

struct Log<'a> {
    view: &'a View<'a>,
    sb: &'a Super,
    journal: Journal,
    /// Block -> the last transaction that revoked it.
    revoked: HashMap<u64, u32>,
    blocks: HashMap<u64, (u64, bool)>,
}

/// A tag of a descriptor: what the next block of the log is.
struct Tag {
    block: u64,
    flags: u16,
    checksum: u32,
}

impl Log<'_> {
    fn read(&self, block: u64) -> Result<Vec<u8>, Keep> {
        let place = self.journal.place(block)?;
        self.view.read(super::bytes::mul(place, self.sb.block_bytes)?, self.sb.block_bytes)
    }

    /// The block after this one; the log is a ring.
    fn after(&self, block: u64) -> Result<u64, Keep> {
        if block + 1 < self.journal.last {
            return Ok(block + 1);
        }
        // Kernels have disagreed on where a log with fast commits turns around.
        let sure = self.journal.incompat & INCOMPAT_FAST_COMMIT == 0;
        require(sure, "its log turns around before an area of fast commits")?;
        Ok(self.journal.first)
    }

    /// Finds the first transaction that is not committed, checking everything on the way.
    fn scan(&self) -> Result<u32, Keep> {
        let (mut at, mut sequence) = (self.journal.start, self.journal.sequence);
        let mut old_sum = !0;
        let mut visited = 0;
        loop {
            let data = self.read(at)?;
            if be32(&data, 0)? != MAGIC || be32(&data, 8)? != sequence {
                return Ok(sequence);
            }
            visited += 1;
            at = self.after(at)?;
            match be32(&data, 4)? {
                DESCRIPTOR => {
                    self.check_tail(&data)?;
                    old_sum = crc32_be(old_sum, &data);
                    for _ in self.tags(&data)? {
                        if self.journal.has_old_checksum {
                            old_sum = crc32_be(old_sum, &self.read(at)?);
                        }
                        visited += 1;
                        at = self.after(at)?;
                    }
                }
                REVOKE => self.check_tail(&data)?,
                COMMIT => {
                    self.check_commit(&data, old_sum)?;
                    old_sum = !0;
                    sequence = sequence.wrapping_add(1);
                }
                _ => return keep("the journal holds an unknown block"),
            }
            require(visited <= self.journal.blocks, "the journal runs in a circle")?;
        }
    }

    /// Descriptors and revocations end with a checksum.
    fn check_tail(&self, data: &[u8]) -> Result<(), Keep> {
        if !self.journal.has_csum() {
            return Ok(());
        }
        let at = data.len().saturating_sub(4);
        let sum = crc32c_without(self.journal.seed, data, at, 4)?;
        require(sum == be32(data, at)?, "a checksum in the journal is wrong")
    }

    fn check_commit(&self, data: &[u8], old_sum: u32) -> Result<(), Keep> {
        let stored = be32(data, 16)?;
        if self.journal.has_csum() {
            let sum = crc32c_without(self.journal.seed, data, 16, 4)?;
            return require(sum == stored, "a commit's checksum in the journal is wrong");
        }
        if !self.journal.has_old_checksum {
            return Ok(());
        }
        let (kind, len) = (u8_at(data, 12)?, u8_at(data, 13)?);
        let unused = kind == 0 && len == 0 && stored == 0;
        let right = kind == 1 && len == 4 && stored == old_sum;
        require(unused || right, "a transaction's checksum in the journal is wrong")
    }

    /// The tags of a descriptor.
    fn tags(&self, data: &[u8]) -> Result<Vec<Tag>, Keep> {
        let bytes = self.journal.tag_bytes();
        let tail = if self.journal.has_csum() { 4 } else { 0 };
        let end = data.len().saturating_sub(tail);
        let wide = self.journal.incompat & INCOMPAT_64BIT != 0;
        let (mut tags, mut at) = (Vec::new(), 12);
        while at + bytes <= end {
            let flags = be16(data, at + 6)?;
            let high = if wide { u64::from(be32(data, at + 8)?) << 32 } else { 0 };
            let checksum = match self.journal.incompat & INCOMPAT_CSUM_V3 {
                0 => be16(data, at + 4)?.into(),
                _ => be32(data, at + 12)?,
            };
            tags.push(Tag { block: high | u64::from(be32(data, at)?), flags, checksum });
            at += bytes;
            if flags & TAG_SAME_UUID == 0 {
                at += 16;
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    /// Goes through the committed transactions once more.
    fn walk(&mut self, end: u32, pass: Pass) -> Result<(), Keep> {
        let (mut at, mut sequence) = (self.journal.start, self.journal.sequence);
        // The scan has been here: it visits no more blocks than the journal has.
        while sequence != end {
            let data = self.read(at)?;
            require(be32(&data, 8)? == sequence, "the journal changed while it was read")?;
            at = self.after(at)?;
            match be32(&data, 4)? {
                DESCRIPTOR => {
                    for tag in self.tags(&data)? {
                        if pass == Pass::Replay {
                            self.replay_block(&tag, at, sequence)?;
                        }
                        at = self.after(at)?;
                    }
                }
                REVOKE if pass == Pass::Revoke => self.revoke(&data, sequence)?,
                COMMIT => sequence = sequence.wrapping_add(1),
                _ => {}
            }
        }
        Ok(())
    }

    fn revoke(&mut self, data: &[u8], sequence: u32) -> Result<(), Keep> {
        let tail = if self.journal.has_csum() { 4 } else { 0 };
        let count = size(be32(data, 12)?.into())?;
        require(count >= 16 && count <= data.len() - tail, "a revocation in the journal is damaged")?;
        let wide = self.journal.incompat & INCOMPAT_64BIT != 0;
        let bytes = if wide { 8 } else { 4 };
        for record in part(data, 16, count - 16)?.chunks_exact(bytes) {
            let block = if wide { be64(record, 0)? } else { be32(record, 0)?.into() };
            // Transactions come in their order, so the last one stays.
            self.revoked.insert(block, sequence);
            require(self.revoked.len() <= ENTRIES_MAX, "the journal revokes too much")?;
        }
        Ok(())
    }

    fn replay_block(&mut self, tag: &Tag, at: u64, sequence: u32) -> Result<(), Keep> {
        if let Some(revoked) = self.revoked.get(&tag.block)
            && revoked.wrapping_sub(sequence) < 1 << 31
        {
            return Ok(());
        }
        if self.journal.has_csum() {
            let sum = crc32c_raw(crc32c_raw(self.journal.seed, &sequence.to_be_bytes()), &self.read(at)?);
            let mask = if self.journal.incompat & INCOMPAT_CSUM_V3 != 0 { !0 } else { 0xFFFF };
            require(sum & mask == tag.checksum, "a block's checksum in the journal is wrong")?;
        }
        require(tag.block < self.sb.blocks, "the journal writes outside the file system")?;
        self.blocks.insert(tag.block, (self.journal.place(at)?, tag.flags & TAG_ESCAPE != 0));
        require(self.blocks.len() <= ENTRIES_MAX, "the journal replays too much")
    }

    /// Fast commits describe changes that no bitmap shows: one that a mount might apply keeps all.
    fn check_fast_commits(&self, end: u32) -> Result<(), Keep> {
        if self.journal.incompat & INCOMPAT_FAST_COMMIT == 0 {
            return Ok(());
        }
        let mut fast = self.journal.last;
        // Kernels have disagreed on the first block of the area by one.
        while fast < self.journal.blocks.min(self.journal.last + 2) {
            let data = self.read(fast)?;
            let is_old = end.wrapping_sub(le32(&data, 8)?).wrapping_sub(1) < 1 << 31;
            if le16(&data, 0)? == FAST_HEAD && !is_old {
                return keep("its journal may hold a fast commit");
            }
            fast += 1;
        }
        Ok(())
    }
}
