//! Images of a point being built: made from the base's, opened for writing.
//!
//! A disk that was in the base begins as its clone (reflink) or as an overlay of it; where neither is
//! possible - the base already carries another overlay, or its chain is as long as qemu should open -
//! as a full copy made here, without a byte on the wire. A new disk begins as an empty sparse file.

use std::path::Path;

use rustix::fs::{OFlags, ioctl_ficlone};
use vbr_api::DiskFormat;

use super::begin::BeginDisk;
use super::building_disk::Image;
use super::overlay::{self, Chain, OverlayDisk};
use super::raw::RawDisk;
use super::record::{BackingRecord, DiskRecord};
use super::replica::Replica;
use super::shared::{below_name, image_name};
use super::store::Backend;
use crate::block::{BlockRead, BlockWrite};
use crate::repository::RepositoryError;

/// Longest chain of images; a new point beyond it begins as a full copy.
const CHAIN_MAX: usize = 128;
/// Bytes copied at a time.
const COPY_BYTES: u64 = 1024 * 1024;

impl Replica {
    /// Makes a disk's first content: the base's, cut or grown to the new length with zeroes.
    pub(super) fn make_image(
        &self,
        dir: &Path,
        n: usize,
        disk: &BeginDisk,
        base: Option<(&str, u16)>,
    ) -> Result<DiskRecord, RepositoryError> {
        let raw = DiskRecord {
            source_path: disk.source_path.clone(),
            disk_len: disk.disk_len,
            root: String::new(),
            file: image_name(n, DiskFormat::Raw),
            image: DiskFormat::Raw,
            backing: None,
            page_files: Vec::new(),
            volumes: Vec::new(),
        };
        let path = dir.join(&raw.file);
        let Some((point, base_disk)) = base else {
            self.make_raw(&path, disk.disk_len)?;
            return Ok(raw);
        };
        let record = self.shared.record(point)?;
        let below = self.shared.disk_of(&record, base_disk)?;
        if below.image == DiskFormat::Raw && self.shared.core.backend == Backend::Reflink {
            let from = self
                .shared
                .core
                .root
                .open_beneath(&self.shared.point_dir(point).join(&below.file), OFlags::RDONLY)?;
            let to = self.make_raw(&path, 0)?;
            let cloned = ioctl_ficlone(&to, &from).map_err(std::io::Error::from);
            cloned
                .and_then(|()| to.set_len(disk.disk_len))
                .map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
            return Ok(raw);
        }
        let depth = self.shared.below(below.backing.clone())?.len() + 1;
        if self.shared.children(point, base_disk).is_empty() && depth < CHAIN_MAX {
            let file = image_name(n, DiskFormat::Qcow2);
            overlay::create(&dir.join(&file), &below_name(point, &below.file), below.image, disk.disk_len)?;
            let backing = Some(BackingRecord { point: point.to_string(), disk: base_disk });
            return Ok(DiskRecord { file, image: DiskFormat::Qcow2, backing, ..raw });
        }
        let target = RawDisk::new(self.make_raw(&path, disk.disk_len)?, disk.disk_len);
        let source = self.shared.open_image(point, base_disk)?;
        self.copy(&*source, &target).map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
        Ok(raw)
    }

    fn make_raw(&self, path: &Path, len: u64) -> Result<std::fs::File, RepositoryError> {
        let file = self.shared.core.root.open_beneath(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)?;
        file.set_len(len).map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
        Ok(file)
    }

    fn copy(&self, source: &dyn BlockRead, target: &RawDisk) -> std::io::Result<()> {
        let end = source.len().min(target.len());
        let mut buffer = vec![0; COPY_BYTES as usize];
        let (mut at, mut unchecked) = (0, 0);
        while let Some(extent) = source.next_data(at)?.filter(|extent| extent.offset < end) {
            let len = extent.len.min(COPY_BYTES).min(end - extent.offset) as usize;
            source.read_at(extent.offset, &mut buffer[..len])?;
            if !crate::block::is_zero(&buffer[..len]) {
                target.write_at(extent.offset, &buffer[..len])?;
            }
            unchecked += len as u64;
            if unchecked > 64 * COPY_BYTES {
                self.check_space()?;
                unchecked = 0;
            }
            at = extent.offset + len as u64;
        }
        target.flush()
    }

    pub(super) fn open_writable(&self, dir: &Path, disk: &DiskRecord) -> Result<Image, RepositoryError> {
        let path = dir.join(&disk.file);
        match disk.image {
            DiskFormat::Raw => {
                let file = self.shared.core.root.open_beneath(&path, OFlags::RDWR)?;
                let len =
                    file.metadata().map_err(|e| RepositoryError::io(path.display().to_string(), e))?.len();
                if len != disk.disk_len {
                    let why = format!("it holds {len} bytes, its record says {}", disk.disk_len);
                    return Err(RepositoryError::damaged(path.display().to_string(), why));
                }
                Ok(Image::Raw(RawDisk::new(file, len)))
            }
            DiskFormat::Qcow2 => {
                let chain: Chain = self.shared.chain(dir.to_path_buf(), disk)?;
                let image = OverlayDisk::open(&chain, disk.disk_len, true, &self.shared.core.runtime_dir)?;
                image.clear_tail().map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
                Ok(Image::Overlay(Box::new(image)))
            }
        }
    }
}
