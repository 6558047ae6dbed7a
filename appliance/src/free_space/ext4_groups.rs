//! ext4's groups: descriptors, the places of all metadata, and the block bitmaps.
//!
//! Bounds: one record of 56 bytes a group (at most 1,048,576), some four ranges of metadata a group,
//! one bitmap at a time.

use super::bytes::{crc16, crc32c_raw, crc32c_without, le16, le32, part, size};
use super::ext4::{Blocks, Super};
use super::extents::Sink;
use super::view::View;
use super::{Keep, keep, require};

const FLAG_BLOCK_UNINIT: u16 = 2;

/// A group's descriptor, checked.
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    bitmap_csum: u32,
    has_wide_csum: bool,
    is_uninit: bool,
}

/// A run of blocks that are in use, whatever the bitmap says.
#[derive(Clone, Copy)]
struct Fixed {
    start: u64,
    end: u64,
    /// Certain to be marked used in a sound bitmap; the others are a generous guess.
    certain: bool,
}

/// Where a group's descriptor lies: (block, byte).
fn desc_place(sb: &Super, group: u64) -> (u64, u64) {
    let per_block = sb.descs_per_block();
    let (nth, slot) = (group / per_block, group % per_block);
    (desc_block(sb, nth), slot * sb.desc_bytes)
}

/// Place of the nth block of descriptors.
fn desc_block(sb: &Super, nth: u64) -> u64 {
    if !sb.has_meta_bg() || nth < sb.first_meta_group {
        return sb.super_block() + 1 + nth;
    }
    let group = nth * sb.descs_per_block();
    let mut skip = u64::from(sb.has_super(group));
    // With clusters of 1 KiB blocks the superblock is block 1 though the first group begins at 0.
    if sb.block_bytes == 1024 && nth == 0 && sb.first_block == 0 {
        skip += 1;
    }
    sb.group_start(group) + skip
}

/// The block of a group's inode table before any replay: the journal's inode is in one.
pub(super) fn inode_table_on_disk(view: &View<'_>, sb: &Super, number: u64) -> Result<u64, Keep> {
    let (block, at) = desc_place(sb, number);
    let block = view.read(block * sb.block_bytes, sb.block_bytes)?;
    Ok(group(sb, &block, at, number)?.inode_table)
}

/// Reads and checks a descriptor at byte `at` of its block.
fn group(sb: &Super, block: &[u8], at: u64, number: u64) -> Result<Group, Keep> {
    let desc = part(block, size(at)?, size(sb.desc_bytes)?)?;
    check_desc(sb, desc, number)?;
    let wide = sb.is_wide();
    let join = |low: usize, high: usize| -> Result<u64, Keep> {
        let high = if wide { u64::from(le32(desc, high)?) << 32 } else { 0 };
        Ok(high | u64::from(le32(desc, low)?))
    };
    let free_high = if wide { u64::from(le16(desc, 0x2C)?) << 16 } else { 0 };
    let has_wide_csum = wide;
    let csum_high = if wide { u32::from(le16(desc, 0x38)?) << 16 } else { 0 };
    let flags = if sb.has_metadata_csum() || sb.has_gdt_csum() { le16(desc, 0x12)? } else { 0 };
    let this = Group {
        block_bitmap: join(0, 0x20)?,
        inode_bitmap: join(4, 0x24)?,
        inode_table: join(8, 0x28)?,
        free: free_high | u64::from(le16(desc, 0x0C)?),
        bitmap_csum: csum_high | u32::from(le16(desc, 0x18)?),
        has_wide_csum,
        is_uninit: flags & FLAG_BLOCK_UNINIT != 0,
    };
    let inside = |start: u64, len: u64| {
        start > sb.first_block && start.checked_add(len).is_some_and(|end| end <= sb.blocks)
    };
    let sound = inside(this.block_bitmap, 1)
        && inside(this.inode_bitmap, 1)
        && inside(this.inode_table, sb.inode_table_blocks());
    require(sound, "a group's metadata lies outside the file system")?;
    Ok(this)
}

fn check_desc(sb: &Super, desc: &[u8], number: u64) -> Result<(), Keep> {
    let wrong = "a group descriptor's checksum is wrong";
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    if sb.has_metadata_csum() {
        let sum = crc32c_without(crc32c_raw(sb.csum_seed, &number), desc, 0x1E, 2)?;
        require(sum & 0xFFFF == u32::from(le16(desc, 0x1E)?), wrong)
    } else if sb.has_gdt_csum() {
        let mut sum = crc16(crc16(crc16(!0, &sb.uuid), &number), part(desc, 0, 0x1E)?);
        if let Some(rest) = desc.get(0x20..) {
            sum = crc16(sum, rest);
        }
        require(sum == le16(desc, 0x1E)?, wrong)
    } else {
        Ok(())
    }
}

fn read_groups(blocks: &Blocks<'_>) -> Result<Vec<Group>, Keep> {
    let sb = &blocks.sb;
    let mut groups = Vec::with_capacity(size(sb.groups)?);
    let mut held: Option<(u64, Vec<u8>)> = None;
    for number in 0..sb.groups {
        let (place, at) = desc_place(sb, number);
        let block = match held.take() {
            Some((at, block)) if at == place => block,
            _ => blocks.read(place)?,
        };
        groups.push(group(sb, &block, at, number)?);
        held = Some((place, block));
    }
    Ok(groups)
}

/// Everything that is in use whatever the bitmaps say, ascending.
fn fixed_ranges(blocks: &Blocks<'_>, groups: &[Group]) -> Vec<Fixed> {
    let sb = &blocks.sb;
    let table = sb.inode_table_blocks();
    let desc_blocks = sb.groups.div_ceil(sb.descs_per_block());
    let mut fixed = Vec::with_capacity(groups.len() * 4);
    let mut add = |start: u64, len: u64, certain| {
        // A cluster is used as a whole; with clusters the first block is block 0.
        let end = start.saturating_add(len).checked_next_multiple_of(sb.cluster_blocks);
        let start = start / sb.cluster_blocks * sb.cluster_blocks;
        fixed.push(Fixed { start, end: end.unwrap_or(sb.blocks).min(sb.blocks), certain });
    };
    add(0, sb.first_block + 1, false);
    for (number, group) in (0u64..).zip(groups) {
        add(group.block_bitmap, 1, true);
        add(group.inode_bitmap, 1, true);
        add(group.inode_table, table, true);
        if sb.has_super(number) {
            let start = sb.group_start(number);
            add(start, 1, true);
            // Copies of descriptors and what is reserved for more of them; more than `meta_bg` has.
            add(start, 2 + desc_blocks + sb.reserved_gdt, false);
        }
    }
    for nth in 0..desc_blocks {
        add(desc_block(sb, nth), 1, true);
        // Where descriptors are spread, the next and the last group hold copies.
        if sb.has_meta_bg() && nth >= sb.first_meta_group {
            let first = nth * sb.descs_per_block();
            for copy in [first + 1, first + sb.descs_per_block() - 1] {
                if copy < sb.groups {
                    add(sb.group_start(copy) + u64::from(sb.has_super(copy)), 1, true);
                }
            }
        }
    }
    if let Some(block) = sb.mmp_block {
        add(block, 1, true);
    }
    for &(start, len) in &blocks.replayed.journal {
        add(start, len, true);
    }
    fixed.retain(|range| range.start < range.end);
    fixed.sort_unstable_by_key(|range| (range.start, range.end));
    fixed
}

/// Reads every bitmap and collects what is free in all that is known.
pub(super) fn free_blocks(blocks: &Blocks<'_>, sink: &mut Sink) -> Result<(), Keep> {
    let sb = &blocks.sb;
    let groups = read_groups(blocks)?;
    let fixed = fixed_ranges(blocks, &groups);
    let mut next = 0;
    for (number, group) in (0u64..).zip(&groups) {
        let start = sb.group_start(number);
        let end = (start + sb.group_blocks).min(sb.blocks);
        let free = if group.is_uninit {
            // No bitmap yet: nothing was ever allocated here but metadata.
            vec![(start, end)]
        } else {
            bitmap_runs(blocks, group, number, start, end)?
        };
        // Ranges that end before this group are done with; long ones may span groups.
        while fixed.get(next).is_some_and(|range| range.end <= start) {
            next += 1;
        }
        let nearby = fixed.get(next..).unwrap_or_default();
        let contradicted = !group.is_uninit && is_contradicted(&free, nearby);
        require(!contradicted, "metadata is marked free in a block bitmap")?;
        let found = subtract(sb, &free, nearby, sink)?;
        let counted = group.free * sb.cluster_blocks;
        require(found <= counted, "a group without a bitmap counts fewer free blocks than it has")?;
    }
    Ok(())
}

/// A bitmap's free runs, after all that can be checked of it.
fn bitmap_runs(
    blocks: &Blocks<'_>,
    group: &Group,
    number: u64,
    start: u64,
    end: u64,
) -> Result<Vec<(u64, u64)>, Keep> {
    let sb = &blocks.sb;
    let bitmap = blocks.read(group.block_bitmap)?;
    let bitmap = part(&bitmap, 0, size(sb.group_clusters / 8)?)?;
    if sb.has_metadata_csum() {
        let mask = if group.has_wide_csum { !0 } else { 0xFFFF };
        let sum = crc32c_raw(sb.csum_seed, bitmap) & mask;
        require(sum == group.bitmap_csum, "a block bitmap's checksum is wrong")?;
    }
    let clusters = (end - start).div_ceil(sb.cluster_blocks);
    let mut runs = Vec::new();
    let free = free_clusters(bitmap, clusters, |from, to| {
        let to = start + to * sb.cluster_blocks;
        runs.push((start + from * sb.cluster_blocks, to.min(end)));
    });
    if free != group.free {
        return keep(format!(
            "group {number} counts {} free clusters where its bitmap has {free}: the map is not consistent",
            group.free
        ));
    }
    Ok(runs)
}

/// Tells the runs of zero bits among the first `bits`; the number of such bits.
fn free_clusters(bitmap: &[u8], bits: u64, mut run: impl FnMut(u64, u64)) -> u64 {
    let (mut free, mut open) = (0, None);
    for (byte, at) in bitmap.iter().zip((0..bits).step_by(8)) {
        // Whole bytes of used or of free clusters are the rule.
        if (*byte == 0xFF && open.is_none()) || (*byte == 0 && open.is_some() && at + 8 <= bits) {
            continue;
        }
        for bit in at..(at + 8).min(bits) {
            match (byte >> (bit - at) & 1, open) {
                (0, None) => open = Some(bit),
                (1, Some(from)) => {
                    free += bit - from;
                    run(from, bit);
                    open = None;
                }
                _ => {}
            }
        }
    }
    if let Some(from) = open {
        free += bits - from;
        run(from, bits);
    }
    free
}

/// True where a run and a fixed range that must be marked used share a block; both ascending.
fn is_contradicted(free: &[(u64, u64)], fixed: &[Fixed]) -> bool {
    let last = free.last().map_or(0, |run| run.1);
    fixed.iter().take_while(|range| range.start < last).filter(|range| range.certain).any(|range| {
        let nth = free.partition_point(|run| run.1 <= range.start);
        free.get(nth).is_some_and(|run| run.0 < range.end)
    })
}

/// Puts what of `free` is not fixed into the sink; the number of blocks.
fn subtract(sb: &Super, free: &[(u64, u64)], fixed: &[Fixed], sink: &mut Sink) -> Result<u64, Keep> {
    let (mut next, mut blocks) = (0, 0);
    let mut put = |from: u64, to: u64| {
        blocks += to - from;
        sink.push(from * sb.block_bytes, (to - from) * sb.block_bytes)
    };
    for &(mut at, end) in free {
        while let Some(range) = fixed.get(next) {
            if range.end <= at {
                next += 1;
                continue;
            }
            if range.start >= end {
                break;
            }
            if range.start > at {
                put(at, range.start)?;
            }
            at = range.end;
            if at >= end {
                break;
            }
            next += 1;
        }
        if at < end {
            put(at, end)?;
        }
    }
    Ok(blocks)
}
