//! What a volume holds, by its signatures; two that contradict each other keep it.
//!
//! A stale signature (a file system that was overwritten by a RAID member, say) must never be believed,
//! so every known signature is looked for, not only the first.

use super::view::View;
use super::{Keep, keep};

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// NTFS.
    Ntfs,
    /// A swap area, possibly with a hibernation image.
    Swap,
    /// An LVM2 physical volume.
    Lvm,
    /// Known, and kept.
    Other(&'static str),
    /// No known signature.
    Unknown,
}

impl Kind {
    /// The name for `Volume::kind`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Kind::Ext => "ext4",
            Kind::Xfs => "xfs",
            Kind::Ntfs => "ntfs",
            Kind::Swap => "swap",
            Kind::Lvm => "lvm2",
            Kind::Other(name) => name,
            Kind::Unknown => "unknown",
        }
    }
}

/// Signatures at fixed places: offset, bytes, what they mean.
const FIXED: &[(u64, &[u8], Kind)] = &[
    (1024 + 56, &[0x53, 0xEF], Kind::Ext),
    (0, b"XFSB", Kind::Xfs),
    (3, b"NTFS    ", Kind::Ntfs),
    (0, b"LABELONE", Kind::Lvm),
    (512, b"LABELONE", Kind::Lvm),
    (1024, b"LABELONE", Kind::Lvm),
    (1536, b"LABELONE", Kind::Lvm),
    (3, b"-FVE-FS-", Kind::Other("bitlocker")),
    (3, b"EXFAT   ", Kind::Other("exfat")),
    (3, b"ReFS\0\0\0\0", Kind::Other("refs")),
    (54, b"FAT12   ", Kind::Other("fat")),
    (54, b"FAT16   ", Kind::Other("fat")),
    (82, b"FAT32   ", Kind::Other("fat")),
    (0, b"LUKS\xBA\xBE", Kind::Other("luks")),
    (0, b"SKUL\xBA\xBE", Kind::Other("luks")),
    (16384, b"SKUL\xBA\xBE", Kind::Other("luks")),
    (0, b"dmvdo001", Kind::Other("vdo")),
    (0, b"integrt\0", Kind::Other("dm-integrity")),
    (0, b"verity\0\0", Kind::Other("dm-verity")),
    (0, b"bluestore block device", Kind::Other("bluestore")),
    (32, b"ORCLDISK", Kind::Other("oracle asm")),
    (0, b"hsqs", Kind::Other("squashfs")),
    (1024, &[0xE2, 0xE1, 0xF5, 0xE0], Kind::Other("erofs")),
    (1024, &[0x10, 0x20, 0xF5, 0xF2], Kind::Other("f2fs")),
    (1024, b"H+\0\x04", Kind::Other("hfs+")),
    (1024, b"HX\0\x05", Kind::Other("hfs+")),
    (32, b"NXSB", Kind::Other("apfs")),
    (0x10040, b"_BHRfS_M", Kind::Other("btrfs")),
    (0x10034, b"ReIsEr", Kind::Other("reiserfs")),
    (0x8000, b"JFS1", Kind::Other("jfs")),
    (0x8001, b"CD001", Kind::Other("iso9660")),
    (4096 + 24, BCACHE, Kind::Other("bcache")),
    (4096 + 24, BCACHEFS, Kind::Other("bcachefs")),
    (0, &RAID, Kind::Other("linux raid")),
    (4096, &RAID, Kind::Other("linux raid")),
    (512, b"EFI PART", Kind::Other("partition table")),
    (4096, b"EFI PART", Kind::Other("partition table")),
];

const BCACHE: &[u8] =
    &[0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA, 0x82, 0x65, 0xF5, 0x7F, 0x48, 0xBA, 0x6D, 0x81];
const BCACHEFS: &[u8] =
    &[0xC6, 0x85, 0x73, 0xF6, 0x66, 0xCE, 0x90, 0xA9, 0xD9, 0x6A, 0x60, 0xCF, 0x80, 0x3D, 0xF7, 0xEF];
const RAID: [u8; 4] = 0xA92B_4EFC_u32.to_le_bytes();

/// What lies at the end of a swap area's first page.
const SWAP: &[&[u8]] = &[
    b"SWAPSPACE2",
    b"SWAP-SPACE",
    b"S1SUSPEND",
    b"S2SUSPEND",
    b"ULSUSPEND",
    b"LINHIB000",
    b"LINHIB0001",
    b"\xED\xC3\x02\xE9\x98\x56\xE5\x0C",
];
/// Page sizes of the systems that write swap areas.
pub(super) const PAGES: &[u64] = &[4096, 8192, 16384, 32768, 65536];

/// The one kind of content whose signature is here; several that contradict each other are refused.
pub(super) fn recognise(view: &View<'_>) -> Result<Kind, Keep> {
    let mut found = Kind::Unknown;
    let mut add = |kind: Kind| {
        if found == Kind::Unknown || found == kind {
            found = kind;
            return Ok(());
        }
        keep(format!("signatures of {} and of {} contradict each other", found.label(), kind.label()))
    };
    for &(at, magic, kind) in FIXED {
        if holds(view, at, magic)? {
            add(kind)?;
        }
    }
    for page in PAGES {
        for magic in SWAP {
            if holds(view, page - 10, magic)? {
                add(Kind::Swap)?;
            }
        }
    }
    if is_raid_by_its_end(view)? {
        add(Kind::Other("linux raid"))?;
    }
    if is_zfs(view)? {
        add(Kind::Other("zfs"))?;
    }
    Ok(found)
}

fn holds(view: &View<'_>, at: u64, magic: &[u8]) -> Result<bool, Keep> {
    let len = magic.len() as u64;
    Ok(at + len <= view.len() && view.read(at, len)? == magic)
}

/// Formats 0.90 and 1.0 put the superblock at the end, so that the start looks like a file system.
pub(super) fn is_raid_by_its_end(view: &View<'_>) -> Result<bool, Keep> {
    let sectors = view.len() / 512;
    let (old, new) = ((sectors & !127).checked_sub(128), sectors.checked_sub(16).map(|at| at & !7));
    for at in [old, new].into_iter().flatten() {
        if holds(view, at * 512, &RAID)? || holds(view, at * 512, &[0xA9, 0x2B, 0x4E, 0xFC])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The uberblock rings of the first two labels.
fn is_zfs(view: &View<'_>) -> Result<bool, Keep> {
    const MAGIC: u64 = 0x00BA_B10C;
    for label in [0u64, 256 * 1024] {
        for slot in 0..128 {
            let at = label + 128 * 1024 + slot * 1024;
            if holds(view, at, &MAGIC.to_le_bytes())? || holds(view, at, &MAGIC.to_be_bytes())? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
