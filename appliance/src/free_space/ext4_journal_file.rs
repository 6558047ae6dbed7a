//! The blocks of the journal's file: an extent tree, or ext3's indirect blocks.
//!
//! Bounds: 65,536 runs; a tree of at most five levels, whose nodes must name ascending places.

use super::bytes::{le16, le32, size};
use super::ext4::Super;
use super::view::View;
use super::{Keep, keep, require};

const RUNS_MAX: usize = 1 << 16;
const EXTENTS_FLAG: u32 = 0x8_0000;
const BAD: &str = "the journal's file is damaged";

/// A run of the file: `len` blocks from `logical` on are at `physical`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    logical: u64,
    physical: u64,
    len: u64,
}

/// Where a block of the file is.
pub(super) fn place(runs: &[Run], block: u64) -> Option<u64> {
    let run = runs.get(runs.partition_point(|run| run.logical + run.len <= block))?;
    Some(run.physical + block.checked_sub(run.logical)?)
}

/// The file system's blocks that the file and its tree take: (start, length).
pub(super) fn places(runs: &[Run], nodes: &[u64]) -> Vec<(u64, u64)> {
    let nodes = nodes.iter().map(|node| (*node, 1));
    runs.iter().map(|run| (run.physical, run.len)).chain(nodes).collect()
}

/// All runs of a file of `blocks` blocks, without a gap, and the blocks of its tree.
pub(super) fn runs(
    view: &View<'_>,
    sb: &Super,
    inode: &[u8],
    blocks: u64,
) -> Result<(Vec<Run>, Vec<u64>), Keep> {
    // A log's block numbers have 32 bits.
    require(blocks > 0 && blocks <= sb.blocks.min(u32::MAX.into()), BAD)?;
    let root = super::bytes::part(inode, 0x28, 60)?;
    let mut file = File { view, sb, runs: Vec::new(), nodes: Vec::new(), next: 0, blocks };
    if le32(inode, 0x20)? & EXTENTS_FLAG != 0 {
        let depth = le16(root, 6)?;
        require(depth <= 5, BAD)?;
        file.extents(root, depth)?;
    } else {
        file.indirect(root)?;
    }
    require(file.next >= blocks, "the journal's file has a hole")?;
    Ok((file.runs, file.nodes))
}

struct File<'a> {
    view: &'a View<'a>,
    sb: &'a Super,
    runs: Vec<Run>,
    nodes: Vec<u64>,
    next: u64,
    blocks: u64,
}

impl File<'_> {
    fn add(&mut self, logical: u64, physical: u64, len: u64) -> Result<(), Keep> {
        let inside = physical > self.sb.first_block && super::bytes::add(physical, len)? <= self.sb.blocks;
        require(logical == self.next && len > 0 && inside, BAD)?;
        self.next = logical + len;
        match self.runs.last_mut() {
            Some(last) if last.physical + last.len == physical => last.len += len,
            _ => self.runs.push(Run { logical, physical, len }),
        }
        require(self.runs.len() <= RUNS_MAX, "the journal's file has too many pieces")
    }

    fn read(&mut self, block: u64) -> Result<Vec<u8>, Keep> {
        self.nodes.push(block);
        require(self.nodes.len() <= RUNS_MAX, "the journal's file has too many pieces")?;
        require(block > self.sb.first_block && block < self.sb.blocks, BAD)?;
        self.view.read(block * self.sb.block_bytes, self.sb.block_bytes)
    }

    /// A node of the extent tree. Every leaf must go on where the last ended, so that a tree that runs
    /// in a circle ends at once.
    fn extents(&mut self, node: &[u8], depth: u16) -> Result<(), Keep> {
        require(le16(node, 0)? == 0xF30A && le16(node, 6)? == depth, BAD)?;
        let entries = size(le16(node, 2)?.into())?;
        require(entries > 0, BAD)?;
        for n in 0..entries {
            let at = 12 + n * 12;
            let logical = u64::from(le32(node, at)?);
            if depth == 0 {
                let len = u64::from(le16(node, at + 4)?);
                // Longer ones are not written yet: no journal has those.
                require(len <= 32768, BAD)?;
                let physical = u64::from(le16(node, at + 6)?) << 32 | u64::from(le32(node, at + 8)?);
                self.add(logical, physical, len)?;
            } else {
                require(logical == self.next, BAD)?;
                let child = u64::from(le16(node, at + 8)?) << 32 | u64::from(le32(node, at + 4)?);
                let child = self.read(child)?;
                self.extents(&child, depth - 1)?;
            }
        }
        Ok(())
    }

    fn indirect(&mut self, root: &[u8]) -> Result<(), Keep> {
        for n in 0..12 {
            self.pointer(le32(root, n * 4)?.into(), 0)?;
        }
        for level in 1..=3 {
            self.pointer(le32(root, (11 + level) * 4)?.into(), level)?;
        }
        Ok(())
    }

    fn pointer(&mut self, block: u64, level: usize) -> Result<(), Keep> {
        if self.next >= self.blocks {
            return Ok(());
        }
        if block == 0 {
            return keep("the journal's file has a hole");
        }
        if level == 0 {
            return self.add(self.next, block, 1);
        }
        let data = self.read(block)?;
        for n in 0..data.len() / 4 {
            self.pointer(le32(&data, n * 4)?.into(), level - 1)?;
        }
        Ok(())
    }
}
