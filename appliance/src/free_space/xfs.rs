//! XFS: believed only where its log holds nothing that touches an allocation map.
//!
//! That is after a clean unmount, and while it is frozen or idle (see [`super::xfs_log`]). Then the
//! free space is what each allocation group's tree by block number says, every block of it checked:
//! magic, level, order, keys, total; with version 5 also checksum, place, owner and UUID. Volumes with an
//! external log or a realtime device are kept.
//!
//! Bounds: one block of a tree for each of at most 9 levels; 1,048,576 groups.

use super::bytes::{be16, be32, be64, crc32c_without, le32, mul, part, size, u8_at};
use super::extents::Sink;
use super::view::View;
use super::xfs_log;
use super::{Keep, keep, require};

const GROUPS_MAX: u64 = 1 << 20;
const LEVELS_MAX: u32 = 9;
/// Free inode tree, reverse map, reflink, inode tree counts.
const RO_COMPAT: u32 = 0xF;
/// File types, sparse inodes, metadata UUID, big times, large counters, exchange range, parent pointers.
/// Not: a repair that is needed, metadata directories, zones.
const INCOMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80;
const INCOMPAT_META_UUID: u32 = 0x4;
/// Lazy counters, attributes 2, parents, project ids of 32 bits, checksums, file types.
const FEATURES2: u32 = 0x2 | 0x8 | 0x10 | 0x80 | 0x100 | 0x200;

/// What the superblock says, checked.
pub(super) struct Super {
    pub(super) block_bytes: u64,
    pub(super) sector_bytes: u64,
    pub(super) blocks: u64,
    pub(super) group_blocks: u64,
    pub(super) groups: u64,
    /// First byte and length of the log.
    pub(super) log: (u64, u64),
    /// True for version 5: everything carries checksums.
    pub(super) has_crc: bool,
    pub(super) uuid: [u8; 16],
    meta_uuid: [u8; 16],
}

impl Super {
    fn parse(view: &View<'_>) -> Result<Self, Keep> {
        let bad = "the superblock's numbers contradict each other";
        let head = view.read(0, 512)?;
        require(be32(&head, 0)? == 0x5846_5342, "no XFS superblock")?;
        let version = be16(&head, 100)? & 0xF;
        require(version == 4 || version == 5, "an unknown version of XFS")?;
        let has_crc = version == 5;
        let (block_bytes, sector_bytes) = (u64::from(be32(&head, 4)?), u64::from(be16(&head, 102)?));
        let power = |n: u64, from: u64| n.is_power_of_two() && (from..=65536).contains(&n);
        require(power(block_bytes, 512) && power(sector_bytes, 512) && sector_bytes <= block_bytes, bad)?;
        require(u8_at(&head, 126)? == 0, "its making was not finished")?;
        require(be64(&head, 16)? == 0 && be64(&head, 24)? == 0, "it has a realtime device")?;
        require(be32(&head, 200)? & !FEATURES2 == 0, "it has features that are not known here")?;
        let uuid: [u8; 16] = part(&head, 32, 16)?.try_into().unwrap_or_default();
        let meta_uuid = if has_crc { check_v5(view, &head, sector_bytes, uuid)? } else { uuid };
        let (blocks, groups) = (be64(&head, 8)?, u64::from(be32(&head, 88)?));
        let group_blocks = u64::from(be32(&head, 84)?);
        require(group_blocks > 0 && groups > 0 && groups <= GROUPS_MAX, bad)?;
        require(blocks.div_ceil(group_blocks) == groups, bad)?;
        require(mul(blocks, block_bytes)? <= view.len(), "the file system is larger than its volume")?;
        let group_log = u32::from(u8_at(&head, 124)?);
        require(group_log < 32 && group_blocks <= 1 << group_log, bad)?;
        require(1 << u8_at(&head, 120)?.min(31) == block_bytes, bad)?;
        let (log_start, log_blocks) = (be64(&head, 48)?, u64::from(be32(&head, 96)?));
        require(log_start != 0, "its log is on another device")?;
        let (group, within) = (log_start >> group_log, log_start & ((1 << group_log) - 1));
        let inside = group < groups && log_blocks > 0 && within + log_blocks <= group_blocks;
        require(inside && group * group_blocks + within + log_blocks <= blocks, bad)?;
        let log = ((group * group_blocks + within) * block_bytes, log_blocks * block_bytes);
        Ok(Self { block_bytes, sector_bytes, blocks, group_blocks, groups, log, has_crc, uuid, meta_uuid })
    }

    fn group_len(&self, group: u64) -> u64 {
        self.group_blocks.min(self.blocks - group * self.group_blocks)
    }
}

fn check_v5(view: &View<'_>, head: &[u8], sector_bytes: u64, uuid: [u8; 16]) -> Result<[u8; 16], Keep> {
    check_crc(&view.read(0, sector_bytes)?, 224, "the superblock's checksum is wrong")?;
    let (ro_compat, incompat) = (be32(head, 212)?, be32(head, 216)?);
    require(incompat & 0x10 == 0, "it needs a repair")?;
    let known = ro_compat & !RO_COMPAT == 0 && incompat & !INCOMPAT == 0;
    require(known, "it has features that are not known here")?;
    require(be32(head, 220)? == 0, "its log may hold features that are not known here")?;
    if incompat & INCOMPAT_META_UUID == 0 {
        return Ok(uuid);
    }
    Ok(part(head, 248, 16)?.try_into().unwrap_or_default())
}

/// XFS keeps CRC-32C with the final inversion, little-endian.
pub(super) fn check_crc(data: &[u8], at: usize, wrong: &str) -> Result<(), Keep> {
    require(!crc32c_without(!0, data, at, 4)? == le32(data, at)?, wrong)
}

/// Finds the free blocks of an XFS.
pub(super) fn map(view: &View<'_>, sink: &mut Sink) -> Result<String, Keep> {
    let sb = Super::parse(view)?;
    let proof = xfs_log::prove_quiet(view, &sb)?;
    for group in 0..sb.groups {
        let mut walk = Walk::new(view, &sb, group);
        walk.group(sink)?;
    }
    Ok(proof.into())
}

/// The walk through one group's tree of free space by block number.
struct Walk<'a> {
    view: &'a View<'a>,
    sb: &'a Super,
    group: u64,
    /// First block of the volume that belongs to the group.
    base: u64,
    len: u64,
    /// One past the last free block so far, and the sum of all.
    end: u64,
    total: u64,
    /// Blocks of the tree that were read: none of them may be free.
    nodes: Vec<u64>,
}

impl<'a> Walk<'a> {
    fn new(view: &'a View<'a>, sb: &'a Super, group: u64) -> Self {
        let (base, len) = (group * sb.group_blocks, sb.group_len(group));
        Self { view, sb, group, base, len, end: 0, total: 0, nodes: Vec::new() }
    }

    fn group(&mut self, sink: &mut Sink) -> Result<(), Keep> {
        let bad = "an allocation group's header is damaged";
        let agf =
            self.view.read(self.base * self.sb.block_bytes + self.sb.sector_bytes, self.sb.sector_bytes)?;
        require(be32(&agf, 0)? == 0x5841_4746 && be32(&agf, 4)? == 1, bad)?;
        require(u64::from(be32(&agf, 8)?) == self.group && u64::from(be32(&agf, 12)?) == self.len, bad)?;
        if self.sb.has_crc {
            check_crc(&agf, 216, "an allocation group header's checksum is wrong")?;
            require(part(&agf, 64, 16)? == self.sb.meta_uuid, bad)?;
        }
        let levels = be32(&agf, 28)?;
        require(levels > 0 && levels <= LEVELS_MAX, bad)?;
        let mut runs = Vec::new();
        self.node(be32(&agf, 16)?.into(), levels - 1, None, &mut runs)?;
        let counted = u64::from(be32(&agf, 52)?);
        require(self.total == counted, "an allocation group counts other free blocks than its tree has")?;
        self.check_runs(&runs)?;
        for (start, len) in runs {
            sink.push((self.base + start) * self.sb.block_bytes, len * self.sb.block_bytes)?;
        }
        Ok(())
    }

    /// Nothing that is certainly in use may be free: headers, the tree itself, the log.
    fn check_runs(&self, runs: &[(u64, u64)]) -> Result<(), Keep> {
        let headers = (4 * self.sb.sector_bytes).div_ceil(self.sb.block_bytes);
        let overlaps = |start: u64, end: u64| {
            let nth = runs.partition_point(|run| run.0 + run.1 <= start);
            runs.get(nth).is_some_and(|run| run.0 < end)
        };
        let log_start = self.sb.log.0 / self.sb.block_bytes;
        let log_end = log_start + self.sb.log.1 / self.sb.block_bytes;
        let in_log = log_end > self.base
            && log_start < self.base + self.len
            && overlaps(log_start.saturating_sub(self.base), log_end - self.base);
        let in_tree = self.nodes.iter().any(|node| overlaps(*node, node + 1));
        require(!overlaps(0, headers) && !in_log && !in_tree, "metadata is marked free in a tree")
    }

    /// A block of the tree; `key` is what its parent says of its first record.
    fn node(
        &mut self,
        block: u64,
        level: u32,
        key: Option<u64>,
        runs: &mut Vec<(u64, u64)>,
    ) -> Result<(), Keep> {
        let bad = "a tree of free space is damaged";
        require(block > 0 && block < self.len, bad)?;
        self.nodes.push(block);
        require(self.nodes.len() as u64 <= self.len, bad)?;
        let at = (self.base + block) * self.sb.block_bytes;
        let data = self.view.read(at, self.sb.block_bytes)?;
        let magic = if self.sb.has_crc { 0x4142_3342 } else { 0x4142_5442 };
        require(be32(&data, 0)? == magic && u32::from(be16(&data, 4)?) == level, bad)?;
        let head = if self.sb.has_crc { 56 } else { 16 };
        if self.sb.has_crc {
            check_crc(&data, 52, "a checksum in a tree of free space is wrong")?;
            let right_place = be64(&data, 16)? == at / 512 && u64::from(be32(&data, 48)?) == self.group;
            require(right_place && part(&data, 32, 16)? == self.sb.meta_uuid, bad)?;
        }
        let records = size(be16(&data, 6)?.into())?;
        let (record_bytes, room) = (if level == 0 { 8 } else { 12 }, data.len() - head);
        let room = room / record_bytes;
        require(records <= room && (records > 0 || key.is_none()), bad)?;
        if let Some(key) = key {
            require(u64::from(be32(&data, head)?) == key, bad)?;
        }
        for n in 0..records {
            let start = u64::from(be32(&data, head + n * 8)?);
            if level == 0 {
                self.record(start, be32(&data, head + n * 8 + 4)?.into(), runs)?;
            } else {
                let child = be32(&data, head + room * 8 + n * 4)?;
                self.node(child.into(), level - 1, Some(start), runs)?;
            }
        }
        Ok(())
    }

    fn record(&mut self, start: u64, len: u64, runs: &mut Vec<(u64, u64)>) -> Result<(), Keep> {
        let first = self.total == 0;
        // Neighbours would have been one record.
        let in_order = start > 0 && (first || start > self.end);
        require(in_order && len > 0 && start + len <= self.len, "a tree of free space is out of order")?;
        self.end = start + len;
        self.total += len;
        runs.push((start, len));
        if runs.len() > super::EXTENTS_MAX {
            return keep("an allocation group has too many pieces of free space");
        }
        Ok(())
    }
}
