//! ext2, ext3 and ext4: the superblock, and the order of the proof.
//!
//! A journaled file system is believed after its journal was replayed in memory; one without a journal
//! only where it was cleanly unmounted. After the replay every group descriptor and bitmap must carry its
//! checksum (where the features have them), every group's free count must equal its bitmap's, and every
//! known piece of metadata must be marked used.

use super::bytes::{crc32c_raw, le16, le32, le64, part, size, u8_at};
use super::extents::Sink;
use super::view::View;
use super::{Keep, ext4_groups, ext4_journal, keep, require};

/// `COMPAT` bits that are understood: the rest is kept.
const COMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x200 | 0x400 | 0x800 | 0x1000;
const COMPAT_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
/// `INCOMPAT` bits that are understood. Not: compression, journal devices, directory data.
const INCOMPAT: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// `RO_COMPAT` bits that are understood. Not: snapshots, replicas, shared blocks.
const RO_COMPAT: u32 =
    0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x1_0000;
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_GDT_CSUM: u32 = 0x10;
const RO_BIGALLOC: u32 = 0x200;
const RO_METADATA_CSUM: u32 = 0x400;

const STATE_VALID: u16 = 1;
const STATE_ERROR: u16 = 2;
/// A fast commit was being replayed.
const STATE_FC_REPLAY: u16 = 0x20;

/// Most groups that are looked into: 128 TiB of the usual 128 MiB.
const GROUPS_MAX: u64 = 1 << 20;

/// What the superblock says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Super {
    pub(super) block_bytes: u64,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) group_blocks: u64,
    pub(super) cluster_blocks: u64,
    pub(super) group_clusters: u64,
    pub(super) group_inodes: u64,
    pub(super) inode_bytes: u64,
    pub(super) desc_bytes: u64,
    pub(super) groups: u64,
    pub(super) first_meta_group: u64,
    pub(super) reserved_gdt: u64,
    pub(super) backup_groups: [u64; 2],
    pub(super) mmp_block: Option<u64>,
    pub(super) journal_inode: u64,
    pub(super) csum_seed: u32,
    pub(super) uuid: [u8; 16],
    compat: u32,
    incompat: u32,
    ro_compat: u32,
}

impl Super {
    /// Reads and checks the 1,024 bytes of a superblock.
    pub(super) fn parse(sb: &[u8]) -> Result<Self, Keep> {
        require(le16(sb, 0x38)? == 0xEF53, "no ext4 superblock")?;
        let (compat, incompat, ro_compat) = (le32(sb, 0x5C)?, le32(sb, 0x60)?, le32(sb, 0x64)?);
        if le32(sb, 0x4C)? == 0 {
            return keep("an ext2 of the oldest revision");
        }
        let unknown = (compat & !COMPAT) | (incompat & !INCOMPAT) | (ro_compat & !RO_COMPAT);
        require(unknown == 0, "it has features that are not known here")?;
        let has_csum = ro_compat & RO_METADATA_CSUM != 0;
        if has_csum {
            require(u8_at(sb, 0x175)? == 1, "it has checksums of an unknown type")?;
            let sum = crc32c_raw(!0, part(sb, 0, 0x3FC)?);
            require(sum == le32(sb, 0x3FC)?, "the superblock's checksum is wrong")?;
            require(ro_compat & RO_GDT_CSUM == 0, "two checksum features contradict each other")?;
        }
        check_state(le16(sb, 0x3A)?)?;
        require(le32(sb, 0xE4)? == 0, "its journal is on another device")?;
        let uuid: [u8; 16] = part(sb, 0x68, 16)?.try_into().unwrap_or_default();
        let csum_seed =
            if incompat & INCOMPAT_CSUM_SEED != 0 { le32(sb, 0x270)? } else { crc32c_raw(!0, &uuid) };
        let log_block = le32(sb, 0x18)?;
        require(log_block <= 6, "an impossible block size")?;
        let block_bytes = 1024u64 << log_block;
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(le32(sb, 0x150)?) << 32 } else { 0 };
        let cluster_blocks = cluster_blocks(sb, log_block, ro_compat)?;
        let mut this = Self {
            block_bytes,
            blocks: high | u64::from(le32(sb, 4)?),
            first_block: le32(sb, 0x14)?.into(),
            group_blocks: le32(sb, 0x20)?.into(),
            cluster_blocks,
            group_clusters: le32(sb, 0x24)?.into(),
            group_inodes: le32(sb, 0x28)?.into(),
            inode_bytes: le16(sb, 0x58)?.into(),
            desc_bytes: if wide { le16(sb, 0xFE)?.into() } else { 32 },
            groups: 0,
            first_meta_group: le32(sb, 0x104)?.into(),
            reserved_gdt: le16(sb, 0xCE)?.into(),
            backup_groups: [le32(sb, 0x24C)?.into(), le32(sb, 0x250)?.into()],
            mmp_block: (incompat & INCOMPAT_MMP != 0).then_some(le64(sb, 0x168)?),
            journal_inode: le32(sb, 0xE0)?.into(),
            csum_seed,
            uuid,
            compat,
            incompat,
            ro_compat,
        };
        this.check_geometry()?;
        Ok(this)
    }

    fn check_geometry(&mut self) -> Result<(), Keep> {
        let bad = "the superblock's numbers contradict each other";
        // Without clusters the field repeats the blocks of a group.
        if self.cluster_blocks == 1 {
            self.group_clusters = self.group_blocks;
        }
        let bitmap_bits = self.block_bytes * 8;
        require(self.group_clusters > 0 && self.group_clusters <= bitmap_bits, bad)?;
        require(self.group_clusters.is_multiple_of(8), bad)?;
        require(self.group_clusters * self.cluster_blocks == self.group_blocks, bad)?;
        require(self.group_inodes > 0 && self.group_inodes <= bitmap_bits, bad)?;
        let inode_ok =
            self.inode_bytes.is_power_of_two() && (128..=self.block_bytes).contains(&self.inode_bytes);
        require(inode_ok, bad)?;
        let desc_ok = self.desc_bytes.is_power_of_two() && (32..=self.block_bytes).contains(&self.desc_bytes);
        require(desc_ok && self.desc_bytes <= 1024, bad)?;
        require(!self.is_wide() || self.desc_bytes >= 64, bad)?;
        let first = u64::from(self.block_bytes == 1024 && self.cluster_blocks == 1);
        require(self.first_block == first, bad)?;
        require(self.blocks > self.first_block && self.blocks < 1 << 48, bad)?;
        self.groups = (self.blocks - self.first_block).div_ceil(self.group_blocks);
        require(self.groups <= GROUPS_MAX, "it has too many groups")?;
        let desc_blocks = self.groups.div_ceil(self.descs_per_block());
        require(!self.has_meta_bg() || self.first_meta_group <= desc_blocks, bad)?;
        require(!self.has_journal() || self.journal_inode != 0, bad)?;
        require(self.has_journal() || self.incompat & INCOMPAT_RECOVER == 0, bad)
    }

    pub(super) fn has_journal(&self) -> bool {
        self.compat & COMPAT_JOURNAL != 0
    }

    /// True where the journal must be replayed before anything is believed.
    pub(super) fn needs_recovery(&self) -> bool {
        self.incompat & INCOMPAT_RECOVER != 0
    }

    pub(super) fn has_meta_bg(&self) -> bool {
        self.incompat & INCOMPAT_META_BG != 0
    }

    pub(super) fn has_metadata_csum(&self) -> bool {
        self.ro_compat & RO_METADATA_CSUM != 0
    }

    pub(super) fn has_gdt_csum(&self) -> bool {
        self.ro_compat & RO_GDT_CSUM != 0
    }

    pub(super) fn is_wide(&self) -> bool {
        self.incompat & INCOMPAT_64BIT != 0
    }

    pub(super) fn descs_per_block(&self) -> u64 {
        self.block_bytes / self.desc_bytes
    }

    /// True where a group carries a copy of the superblock.
    pub(super) fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || self.ro_compat & RO_SPARSE_SUPER == 0 {
            return true;
        }
        [3u64, 5, 7].iter().any(|base| {
            let mut power = *base;
            while power < group {
                power = power.saturating_mul(*base);
            }
            power == group
        })
    }

    /// First block of a group.
    pub(super) fn group_start(&self, group: u64) -> u64 {
        self.first_block + group * self.group_blocks
    }

    /// Blocks of a group's inode table.
    pub(super) fn inode_table_blocks(&self) -> u64 {
        (self.group_inodes * self.inode_bytes).div_ceil(self.block_bytes)
    }

    /// The block that holds the superblock.
    pub(super) fn super_block(&self) -> u64 {
        1024 / self.block_bytes
    }

    /// The same file system, but for what changes in every life of it.
    fn is_same_as(&self, other: &Super) -> bool {
        // The features that say where things are; others are set when they are first used.
        let fixed = |sb: &Super| Super {
            compat: sb.compat & (COMPAT_JOURNAL | COMPAT_SPARSE_SUPER2),
            incompat: sb.incompat
                & (INCOMPAT_META_BG | INCOMPAT_64BIT | INCOMPAT_FLEX_BG | INCOMPAT_MMP | INCOMPAT_CSUM_SEED),
            ro_compat: sb.ro_compat & (RO_SPARSE_SUPER | RO_GDT_CSUM | RO_BIGALLOC | RO_METADATA_CSUM),
            ..sb.clone()
        };
        fixed(self) == fixed(other)
    }
}

fn cluster_blocks(sb: &[u8], log_block: u32, ro_compat: u32) -> Result<u64, Keep> {
    if ro_compat & RO_BIGALLOC == 0 {
        return Ok(1);
    }
    let log_cluster = le32(sb, 0x1C)?;
    require(log_cluster > log_block && log_cluster <= 20, "an impossible cluster size")?;
    Ok(1 << (log_cluster - log_block))
}

fn check_state(state: u16) -> Result<(), Keep> {
    require(state & STATE_ERROR == 0, "it is marked as having errors")?;
    require(state & STATE_FC_REPLAY == 0, "a fast commit was being replayed")?;
    // Only what runs without a journal clears this mark while it is mounted.
    require(state & STATE_VALID != 0, "it was not cleanly unmounted and its journal was not in use")
}

/// `ext4`, `ext3` or `ext2`, by the features.
pub(super) fn label(view: &View<'_>) -> &'static str {
    let Ok(sb) = view.read(1024, 1024) else { return "ext4" };
    let (Ok(compat), Ok(incompat), Ok(ro)) = (le32(&sb, 0x5C), le32(&sb, 0x60), le32(&sb, 0x64)) else {
        return "ext4";
    };
    let modern = incompat & (INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_FLEX_BG) != 0 || ro & !0x7 != 0;
    match (modern, compat & COMPAT_JOURNAL != 0) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    }
}

/// A file system's blocks as they are after the replay of its journal.
pub(super) struct Blocks<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) sb: Super,
    pub(super) replayed: ext4_journal::Replayed,
}

impl Blocks<'_> {
    /// Reads one block through the replayed journal.
    pub(super) fn read(&self, block: u64) -> Result<Vec<u8>, Keep> {
        require(block < self.sb.blocks, "a structure lies outside the file system")?;
        self.replayed.read(self.view, block, self.sb.block_bytes)
    }
}

/// Finds the free blocks of an ext2, ext3 or ext4.
pub(super) fn map(view: &View<'_>, sink: &mut Sink) -> Result<String, Keep> {
    let on_disk = Super::parse(&view.read(1024, 1024)?)?;
    let bytes = super::bytes::mul(on_disk.blocks, on_disk.block_bytes)?;
    require(bytes <= view.len(), "the file system is larger than its volume")?;
    let (replayed, proof) = if on_disk.has_journal() {
        let journal = ext4_journal::locate(view, &on_disk)?;
        let replayed = ext4_journal::replay(view, &on_disk, journal)?;
        let proof = match replayed.transactions {
            0 => "the journal is empty".to_owned(),
            1 => "the journal was replayed in memory (1 transaction)".to_owned(),
            n => format!("the journal was replayed in memory ({n} transactions)"),
        };
        (replayed, proof)
    } else {
        (ext4_journal::Replayed::default(), "no journal, cleanly unmounted".to_owned())
    };
    let mut blocks = Blocks { view, sb: on_disk, replayed };
    let at = size(1024 % blocks.sb.block_bytes)?;
    let block = blocks.read(blocks.sb.super_block())?;
    let after = Super::parse(part(&block, at, 1024)?)?;
    require(after.is_same_as(&blocks.sb), "the journal changes the file system's shape")?;
    blocks.sb = after;
    ext4_groups::free_blocks(&blocks, sink)?;
    Ok(proof)
}
