//! Free space of a session's disks: looked up in the snapshot, masked, told.
//!
//! Only with `--free-space auto`, and only in a snapshot of one moment: a clone, or a disk that is watched
//! from before its maps are read until the last block is, so that a point is sealed only if nothing
//! changed. (With `--allow-live` a changing disk is sealed all the same: there everything is kept.)
//! What is masked reads as zeroes for everything that follows, so ids, roots and the replica agree on it.

use std::sync::Arc;

use vbr_api::{DiskVolume, FreeSpace};

use crate::block::{BlockRead, Extent};
use crate::error::Problem;
use crate::free_space::{self, MaskedDisk, Volume};
use crate::host::{SnapshotKind, VmSnapshot};
use crate::limits::{VOLUME_NOTE_BYTES_MAX, VOLUME_NOTES_MAX};
use crate::wire::message::VolumeNote;

/// What of one disk does not travel.
#[derive(Clone, Debug, Default)]
pub struct DiskFree {
    free: Arc<[Extent]>,
    volumes: Vec<DiskVolume>,
    /// Bytes of it that are not holes anyway.
    pub freed_bytes: u64,
}

impl DiskFree {
    /// For people, at this site.
    pub fn volumes(&self) -> Vec<DiskVolume> {
        self.volumes.clone()
    }

    /// For people, at the target.
    pub fn notes(&self) -> Vec<VolumeNote> {
        let cut = |text: &str, bytes: usize| text.chars().take(bytes / 4).collect::<String>();
        let note = |volume: &DiskVolume| VolumeNote {
            name: cut(&volume.name, VOLUME_NOTE_BYTES_MAX / 4),
            kind: cut(&volume.kind, VOLUME_NOTE_BYTES_MAX / 4),
            skipped_bytes: volume.skipped_bytes,
            reason: cut(&volume.reason, VOLUME_NOTE_BYTES_MAX / 2),
        };
        self.volumes.iter().take(VOLUME_NOTES_MAX / crate::limits::DISKS_MAX).map(note).collect()
    }

    /// The skipped blocks for the repository: pairs of (4 KiB blocks kept before, blocks skipped), packed.
    pub fn mask(&self) -> Vec<u8> {
        let mut at = 0;
        let runs: Vec<(u64, u64)> = self
            .free
            .iter()
            .map(|extent| {
                let kept = extent.offset.saturating_sub(at) / free_space::GRAIN_BYTES;
                at = extent.end();
                (kept, extent.len / free_space::GRAIN_BYTES)
            })
            .collect();
        postcard::to_stdvec(&runs).unwrap_or_default()
    }
}

/// Looks up the free space of each disk and masks it. A list as long as the disks. Blocking.
pub fn mask(
    mut snapshot: VmSnapshot,
    wish: FreeSpace,
    allow_live: bool,
) -> Result<(VmSnapshot, Vec<DiskFree>), Problem> {
    let mut all = Vec::new();
    for disk in &mut snapshot.disks {
        all.push(match (wish, disk.kind) {
            (FreeSpace::Keep, _) => DiskFree::default(),
            (FreeSpace::Auto, SnapshotKind::Watch) if allow_live => kept_whole(
                "kept: no clone could be taken and changes are allowed, so its maps need not be of the moment of its blocks",
            ),
            (FreeSpace::Auto, SnapshotKind::Live) => kept_whole(
                "kept: nobody holds the disk still, so its maps need not be of the moment of its blocks",
            ),
            (FreeSpace::Auto, _) => {
                let found = free_space::map(&*disk.reader);
                let free: Arc<[Extent]> = found.free.into();
                let freed_bytes = freed(&*disk.reader, &free)
                    .map_err(|e| Problem::io(format!("reading {}", disk.spec.path), &e))?;
                let volumes = found.volumes.into_iter().map(volume).collect();
                disk.reader = Arc::new(MaskedDisk::new(disk.reader.clone(), free.clone()));
                DiskFree { free, volumes, freed_bytes }
            }
        });
    }
    Ok((snapshot, all))
}

fn kept_whole(reason: &str) -> DiskFree {
    let (name, kind, reason) = ("whole disk".into(), "unknown".into(), reason.into());
    DiskFree { volumes: vec![DiskVolume { name, kind, skipped_bytes: 0, reason }], ..DiskFree::default() }
}

fn volume(volume: Volume) -> DiskVolume {
    DiskVolume {
        name: volume.name,
        kind: volume.kind,
        skipped_bytes: volume.skipped_bytes,
        reason: volume.reason,
    }
}

/// Bytes of free extents that the disk stores: holes would not have travelled either.
fn freed(disk: &dyn BlockRead, free: &[Extent]) -> std::io::Result<u64> {
    let (mut freed, mut at) = (0, 0);
    while let Some(data) = disk.next_data(at)? {
        let from = free.partition_point(|extent| extent.end() <= data.offset);
        let within =
            free.get(from..).unwrap_or_default().iter().take_while(|extent| extent.offset < data.end());
        freed += within
            .map(|extent| extent.end().min(data.end()).saturating_sub(extent.offset.max(data.offset)))
            .sum::<u64>();
        at = data.end();
        if at >= disk.len() {
            break;
        }
    }
    Ok(freed)
}
