//! NTFS: believed only where it was cleanly unmounted and nothing else looks at freed clusters.
//!
//! Checked: the boot sector, the mirror of the file table, the fixups of every record, `$Volume`'s flags,
//! the newest restart page of `$LogFile`, no content in `hiberfil.sys`, no shadow copies
//! (they show freed clusters as they were), and that all system files are marked used in `$Bitmap`.
//!
//! Bounds: the bitmap is read in pieces of 256 KiB; the root directory up to 16 MiB.

use super::bytes::{le16, le32, le64, mul, part, size, u8_at};
use super::extents::Sink;
use super::ntfs_records::{ATTR_DATA, ATTR_VOLUME_INFORMATION, Table, fixed_up};
use super::view::View;
use super::{Keep, keep, require};

const RECORD_MIRROR: u64 = 1;
const RECORD_LOG: u64 = 2;
const RECORD_VOLUME: u64 = 3;
const RECORD_BITMAP: u64 = 6;
/// `modified by chkdsk` alone says nothing against the map.
const VOLUME_FLAGS_FINE: u16 = 0x8000;
const VOLUME_DIRTY: u16 = 1;
const RESTART_CLEAN: u16 = 2;
const PIECE_BYTES: u64 = 256 * 1024;
const SHADOW_HEADER: u64 = 0x1E00;
const SHADOW_ID: [u8; 16] =
    [0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52];

/// What the boot sector says, checked.
pub(super) struct Boot {
    pub(super) cluster_bytes: u64,
    pub(super) clusters: u64,
    pub(super) record_bytes: u64,
    pub(super) table: u64,
    pub(super) mirror: u64,
}

impl Boot {
    fn parse(view: &View<'_>) -> Result<Self, Keep> {
        let bad = "the boot sector is damaged";
        let data = view.read(0, 512)?;
        require(part(&data, 3, 8)? == b"NTFS    " && le16(&data, 510)? == 0xAA55, bad)?;
        let sector_bytes = u64::from(le16(&data, 11)?);
        require([512, 1024, 2048, 4096].contains(&sector_bytes), bad)?;
        // Above 128 the number is a negative power of two.
        let cluster_sectors = match u8_at(&data, 13)? {
            n @ 1..=128 => u64::from(n),
            n @ 0xF4..=0xFF => 1 << (256 - u32::from(n)),
            _ => return keep(bad),
        };
        let cluster_bytes = sector_bytes * cluster_sectors;
        require(cluster_bytes.is_power_of_two() && cluster_bytes <= 2 << 20, bad)?;
        let sectors = le64(&data, 40)?;
        require(mul(sectors, sector_bytes)? <= view.len(), "the file system is larger than its volume")?;
        let clusters = sectors / cluster_sectors;
        let record_bytes = match u8_at(&data, 64)? {
            n @ 1..=64 => mul(n.into(), cluster_bytes)?,
            n @ 0xF4..=0xF7 => 1 << (256 - u32::from(n)),
            _ => return keep(bad),
        };
        require(record_bytes.is_power_of_two() && (512..=4096).contains(&record_bytes), bad)?;
        let (table, mirror) = (le64(&data, 48)?, le64(&data, 56)?);
        require(clusters > 0 && table < clusters && mirror < clusters && table != mirror, bad)?;
        Ok(Self { cluster_bytes, clusters, record_bytes, table, mirror })
    }
}

/// Finds the free clusters of an NTFS.
pub(super) fn map(view: &View<'_>, sink: &mut Sink) -> Result<String, Keep> {
    let boot = Boot::parse(view)?;
    let table = Table::open(view, &boot)?;
    // First: a sleeping Windows keeps the whole disk, whatever else is wrong here.
    check_hibernation(&table)?;
    check_mirror(view, &boot, &table)?;
    check_volume(&table)?;
    check_shadow_copies(view)?;
    check_log(&table)?;
    let mut fixed = vec![(0, 8192u64.div_ceil(boot.cluster_bytes))];
    fixed.push((boot.mirror, 1));
    fixed.extend(table.runs.iter().map(|run| (run.at, run.len)));
    for record in [RECORD_MIRROR, RECORD_LOG, RECORD_BITMAP] {
        fixed.extend(table.file(record, ATTR_DATA)?.runs.iter().map(|run| (run.at, run.len)));
    }
    fixed.sort_unstable();
    free_clusters(view, &boot, &table, &fixed, sink)?;
    Ok("cleanly unmounted, as its log says".into())
}

fn check_mirror(view: &View<'_>, boot: &Boot, table: &Table<'_>) -> Result<(), Keep> {
    let at = mul(boot.mirror, boot.cluster_bytes)?;
    for record in 0..4 {
        let copy = fixed_up(view.read(at + record * boot.record_bytes, boot.record_bytes)?, b"FILE")?;
        require(copy == table.record(record)?, "the file table and its mirror differ")?;
    }
    Ok(())
}

fn check_volume(table: &Table<'_>) -> Result<(), Keep> {
    let info = table.resident(RECORD_VOLUME, ATTR_VOLUME_INFORMATION)?;
    let (major, flags) = (u8_at(&info, 8)?, le16(&info, 10)?);
    require(major == 3, "an unknown version of NTFS")?;
    require(flags & VOLUME_DIRTY == 0, "it is marked dirty")?;
    require(flags & !VOLUME_FLAGS_FINE == 0, "it is marked for repair or change")
}

/// Shadow copies read clusters that the present file system has freed.
fn check_shadow_copies(view: &View<'_>) -> Result<(), Keep> {
    let head = view.read(SHADOW_HEADER, 128)?;
    if part(&head, 0, 16)? != SHADOW_ID {
        return Ok(());
    }
    let is_unused = le64(&head, 48)? == 0 && part(&head, 64, 16)? == part(&head, 80, 16)?;
    require(is_unused, "it may have shadow copies, which show what was freed since")
}

fn check_hibernation(table: &Table<'_>) -> Result<(), Keep> {
    for record in table.find_in_root("hiberfil.sys")? {
        let Some(start) = table.file_start(record, 4096)? else { continue };
        // Zeroes are what is left of an image that is of no more use; anything else may be resumed.
        if start.iter().any(|byte| *byte != 0) {
            return Err(Keep::Hibernated("Windows is hibernated (or started fast) on it".into()));
        }
    }
    Ok(())
}

/// The newest restart page of the log must say that the volume is clean.
fn check_log(table: &Table<'_>) -> Result<(), Keep> {
    let log = table.file(RECORD_LOG, ATTR_DATA)?;
    require(log.len >= 64 * 1024, "its log is too short")?;
    let pages = table.read_file(&log, 0, 64 * 1024)?;
    if pages.iter().all(|byte| *byte == 0xFF) {
        // Emptied by whatever mounted it last on Linux, and left so while it is mounted.
        return keep("an empty log cannot say whether it was unmounted");
    }
    let page_bytes = size(le32(&pages, 16)?.into())?;
    require(matches!(page_bytes, 512..=32768) && page_bytes.is_power_of_two(), "its log is damaged")?;
    let mut newest: Option<(u64, bool)> = None;
    for at in [0, page_bytes] {
        // A page that is torn or not there says nothing good.
        let page = fixed_up(part(&pages, at, page_bytes)?.to_vec(), b"RSTR")?;
        let area = size(le16(&page, 24)?.into())?;
        let (lsn, in_use, flags) = (le64(&page, area)?, le16(&page, area + 12)?, le16(&page, area + 14)?);
        let is_clean = in_use == 0xFFFF || flags & RESTART_CLEAN != 0;
        // Of two that are equally new both must say so.
        newest = match newest {
            Some((last, _)) if last > lsn => newest,
            Some((last, clean)) if last == lsn => Some((lsn, clean && is_clean)),
            _ => Some((lsn, is_clean)),
        };
    }
    require(newest.is_some_and(|(_, clean)| clean), "its log is not clean")
}

fn free_clusters(
    view: &View<'_>,
    boot: &Boot,
    table: &Table<'_>,
    fixed: &[(u64, u64)],
    sink: &mut Sink,
) -> Result<(), Keep> {
    let bitmap = table.file(RECORD_BITMAP, ATTR_DATA)?;
    let bytes = boot.clusters.div_ceil(8);
    require(bitmap.len >= bytes && bitmap.written >= bytes, "its bitmap is too short")?;
    require(
        mul(boot.clusters, boot.cluster_bytes)? <= view.len(),
        "the file system is larger than its volume",
    )?;
    let mut open = None;
    let last = boot.clusters - 1;
    let mut end_run = |from: u64, to: u64| {
        // The last cluster may hold the boot sector's copy, which no file owns.
        let to = to.min(last);
        let wrong = fixed.iter().any(|(start, len)| *start < to && from < start.saturating_add(*len));
        require(!wrong, "a system file is marked free in its bitmap")?;
        sink.push(from * boot.cluster_bytes, to.saturating_sub(from) * boot.cluster_bytes)
    };
    for at in (0..bytes).step_by(PIECE_BYTES as usize) {
        let data = table.read_file(&bitmap, at, PIECE_BYTES.min(bytes - at))?;
        for (byte, first) in data.iter().zip((at * 8..).step_by(8)) {
            if (*byte == 0xFF && open.is_none())
                || (*byte == 0 && open.is_some() && first + 8 <= boot.clusters)
            {
                continue;
            }
            for cluster in first..(first + 8).min(boot.clusters) {
                match (byte >> (cluster - first) & 1, open) {
                    (0, None) => open = Some(cluster),
                    (1, Some(from)) => {
                        end_run(from, cluster)?;
                        open = None;
                    }
                    _ => {}
                }
            }
        }
    }
    if let Some(from) = open {
        end_run(from, boot.clusters)?;
    }
    Ok(())
}
