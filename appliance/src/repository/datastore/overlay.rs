//! Overlay images: qcow2 files written and read through `qemu-storage-daemon`.
//!
//! The only file here that runs qemu's tools. An image's chain is declared in full by the caller; names
//! inside the images are for people, who boot a point by hand. An image is rounded up to a sector;
//! the disk's exact length lies in its record, and the bytes between are zero.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use vbr_api::DiskFormat;

use crate::block::{BlockRead, BlockWrite, Extent};
use crate::nbd::{BackingImage, ImageSpec, NbdError, QsdExport, qcow2_check_header, qemu_img_within};
use crate::repository::RepositoryError;

/// qcow2 lengths are multiples of this.
const SECTOR_BYTES: u64 = 512;
/// A merge takes as long as its overlay is large; a disk that answers nothing for a day is broken.
const MERGE_TIME: Duration = Duration::from_secs(24 * 3600);
/// Creating, resizing and renaming the image below.
const SMALL_TIME: Duration = Duration::from_secs(600);

/// An image and everything below it, nearest first.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The image itself.
    pub path: PathBuf,
    /// Its declared format.
    pub format: DiskFormat,
    /// What lies below.
    pub below: Vec<(PathBuf, DiskFormat)>,
}

/// The length of an image that holds a disk of `len` bytes.
pub fn image_len(len: u64) -> u64 {
    len.next_multiple_of(SECTOR_BYTES)
}

/// An open image, until [`OverlayDisk::close`].
pub struct OverlayDisk {
    export: RwLock<Option<QsdExport>>,
    len: u64,
}

impl OverlayDisk {
    /// Starts a daemon for the image.
    pub fn open(
        chain: &Chain,
        len: u64,
        writable: bool,
        runtime_dir: &Path,
    ) -> Result<Self, RepositoryError> {
        let backing =
            chain.below.iter().map(|(path, format)| BackingImage { path: path.clone(), format: *format });
        let spec = ImageSpec {
            path: chain.path.clone(),
            format: chain.format,
            backing: backing.collect(),
            writable,
            disk_len: None,
        };
        let export = QsdExport::open(spec, runtime_dir).map_err(|e| tool("opening", &chain.path, e))?;
        if export.client().len() != image_len(len) {
            let why = format!("it holds {} bytes, its record says {len}", export.client().len());
            return Err(RepositoryError::damaged(chain.path.display().to_string(), why));
        }
        Ok(Self { export: RwLock::new(Some(export)), len })
    }

    /// Zeroes what lies between the disk's end and the image's: after a shrink it holds old bytes, which
    /// a later growth would bring back.
    pub fn clear_tail(&self) -> io::Result<()> {
        let tail = image_len(self.len) - self.len;
        if tail == 0 {
            Ok(())
        } else {
            self.with(|export| export.client().write_at(self.len, &vec![0; tail as usize]))
        }
    }

    /// Flushes and ends the daemon; every later call fails.
    pub fn close(&self) -> Result<(), NbdError> {
        let export = self.export.write().unwrap_or_else(PoisonError::into_inner).take();
        export.map_or(Ok(()), QsdExport::close)
    }

    fn with<T>(&self, work: impl FnOnce(&QsdExport) -> io::Result<T>) -> io::Result<T> {
        let export = self.export.read().unwrap_or_else(PoisonError::into_inner);
        match export.as_ref() {
            Some(export) => work(export),
            None => Err(io::Error::other("the image was closed")),
        }
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{len} bytes at {offset} of a disk of {} bytes", self.len),
            )),
        }
    }
}

impl BlockRead for OverlayDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.with(|export| export.client().read_at(offset, buf))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        if from >= self.len {
            return Ok(None);
        }
        let found = self.with(|export| export.client().next_data(from))?;
        Ok(found
            .filter(|extent| extent.offset < self.len)
            .map(|extent| Extent { offset: extent.offset, len: extent.len.min(self.len - extent.offset) }))
    }
}

impl BlockWrite for OverlayDisk {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        self.with(|export| export.client().write_at(offset, data))
    }

    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if len == 0 { Ok(()) } else { self.with(|export| export.client().zero_at(offset, len)) }
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|export| export.client().flush())
    }
}

/// Creates an overlay. `below` is its name inside the image, relative to it; it is not opened.
pub fn create(path: &Path, below: &str, below_format: DiskFormat, len: u64) -> Result<(), RepositoryError> {
    let size = image_len(len).to_string();
    let path_text = text(path)?;
    let args = [
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        below_format.as_str(),
        "-b",
        below,
        path_text,
        size.as_str(),
    ];
    qemu_img_within(&args, SMALL_TIME).map(drop).map_err(|e| tool("creating", path, e))?;
    super::files::sync_file(path)
}

/// Writes an overlay's content into the image below it and gives that the overlay's length. Durable
/// when this returns; doing it again is harmless.
pub fn merge(overlay: &Chain, below_len: u64) -> Result<(), RepositoryError> {
    let Some((below, below_format)) = overlay.below.first() else {
        return Err(RepositoryError::invalid(overlay.path.display().to_string(), "it has nothing below it"));
    };
    // The overlay keeps its content (-d): if this is cut short, it is done again.
    let image = image_opts(overlay)?;
    let args = ["commit", "-q", "-d", "--image-opts", image.as_str()];
    qemu_img_within(&args, MERGE_TIME).map(drop).map_err(|e| tool("merging", &overlay.path, e))?;
    match below_format {
        DiskFormat::Raw => {
            let file = std::fs::OpenOptions::new().write(true).open(below);
            file.and_then(|file| file.set_len(below_len))
                .map_err(|e| RepositoryError::io(below.display().to_string(), e))?;
        }
        DiskFormat::Qcow2 => {
            let has_backing = overlay.below.len() > 1;
            let header = qcow2_check_header(below, has_backing).map_err(|e| tool("reading", below, e))?;
            let size = image_len(below_len).to_string();
            let path = text(below)?;
            // Growing is done by the commit itself, which zeroes what a longer image further below
            // would show; only a shrink is left to do.
            if header.virtual_size > image_len(below_len) {
                let args = ["resize", "-q", "--shrink", "-f", "qcow2", path, size.as_str()];
                qemu_img_within(&args, SMALL_TIME).map(drop).map_err(|e| tool("resizing", below, e))?;
            }
        }
    }
    super::files::sync_file(below)
}

/// Changes the name of the image below in an overlay's header; contents are not touched.
pub fn rename_below(path: &Path, below: &str, below_format: DiskFormat) -> Result<(), RepositoryError> {
    let path_text = text(path)?;
    let args = ["rebase", "-q", "-u", "-f", "qcow2", "-F", below_format.as_str(), "-b", below, path_text];
    qemu_img_within(&args, SMALL_TIME).map(drop).map_err(|e| tool("renaming the image below", path, e))?;
    super::files::sync_file(path)
}

/// Copies into an overlay what lies below it, and has nothing below it any more. Durable when this returns; doing it again is
/// harmless.
pub fn flatten(overlay: &Chain) -> Result<(), RepositoryError> {
    let image = image_opts(overlay)?;
    let args = ["rebase", "-q", "--image-opts", "-b", "", image.as_str()];
    qemu_img_within(&args, MERGE_TIME).map(drop).map_err(|e| tool("copying into", &overlay.path, e))?;
    super::files::sync_file(&overlay.path)
}

/// A chain as qemu's json: pseudo-protocol options, every format and file named, nothing probed.
fn image_opts(chain: &Chain) -> Result<String, RepositoryError> {
    let mut parts = Vec::new();
    let all = std::iter::once((&chain.path, &chain.format)).chain(chain.below.iter().map(|(p, f)| (p, f)));
    let count = chain.below.len() + 1;
    let mut prefix = String::new();
    for (n, (path, format)) in all.enumerate() {
        // A comma ends an option; qemu reads a doubled one as a comma.
        let path = text(path)?.replace(',', ",,");
        parts.push(format!("{prefix}driver={}", format.as_str()));
        parts.push(format!("{prefix}file.driver=file"));
        parts.push(format!("{prefix}file.filename={path}"));
        if *format == DiskFormat::Raw || n + 1 == count {
            break;
        }
        prefix.push_str("backing.");
    }
    Ok(parts.join(","))
}

fn text(path: &Path) -> Result<&str, RepositoryError> {
    path.to_str()
        .ok_or_else(|| RepositoryError::invalid(path.display().to_string(), "qemu takes only paths in UTF-8"))
}

fn tool(doing: &str, path: &Path, source: NbdError) -> RepositoryError {
    match source {
        NbdError::Locked { why, .. } => RepositoryError::Busy { what: path.display().to_string(), why },
        source => RepositoryError::Tool { what: format!("{doing} {}", path.display()), source },
    }
}
