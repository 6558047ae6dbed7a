//! One disk of a building: an image that can be written until it is closed.
//!
//! Guards the datastore's reserve: free space is looked at again after every [`SPACE_STEP_BYTES`].

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::overlay::OverlayDisk;
use super::raw::RawDisk;
use super::store::Core;
use crate::block::{BlockRead, BlockWrite, Extent};

/// Bytes written between two looks at the free space.
const SPACE_STEP_BYTES: u64 = 16 * 1024 * 1024;

/// How the image is stored.
pub(super) enum Image {
    /// A plain file.
    Raw(RawDisk),
    /// qcow2 through a daemon.
    Overlay(Box<OverlayDisk>),
}

impl Image {
    /// Whatever it is, a disk.
    pub fn disk(&self) -> &dyn BlockWrite {
        match self {
            Self::Raw(disk) => disk,
            Self::Overlay(disk) => &**disk,
        }
    }
}

/// A disk that is written.
pub(super) struct BuildingDisk {
    image: Image,
    core: Arc<Core>,
    unchecked_bytes: AtomicU64,
    changed_bytes: Arc<AtomicU64>,
    /// Held for reading by every write; closing waits for them.
    closed: RwLock<bool>,
}

impl BuildingDisk {
    pub fn new(image: Image, core: Arc<Core>, changed_bytes: Arc<AtomicU64>) -> Self {
        let unchecked_bytes = AtomicU64::new(SPACE_STEP_BYTES);
        Self { image, core, unchecked_bytes, changed_bytes, closed: RwLock::new(false) }
    }

    /// Waits for writes under way, flushes, refuses all later writes. Once is enough.
    pub fn close(&self) -> io::Result<()> {
        let mut closed = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        match &self.image {
            Image::Raw(disk) => disk.flush(),
            Image::Overlay(disk) => disk.flush().and_then(|()| Ok(disk.close()?)),
        }
    }

    fn image(&self) -> &dyn BlockWrite {
        self.image.disk()
    }

    fn writing(&self, len: u64, write: impl FnOnce(&dyn BlockWrite) -> io::Result<()>) -> io::Result<()> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(io::Error::other("the restore point was sealed or discarded"));
        }
        if self.unchecked_bytes.fetch_add(len, Ordering::Relaxed) + len > SPACE_STEP_BYTES {
            self.core.check_space()?;
            self.unchecked_bytes.store(0, Ordering::Relaxed);
        }
        write(self.image())?;
        self.changed_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

impl BlockRead for BuildingDisk {
    fn len(&self) -> u64 {
        self.image().len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image().read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.image().next_data(from)
    }
}

impl BlockWrite for BuildingDisk {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writing(data.len() as u64, |image| image.write_at(offset, data))
    }

    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writing(len, |image| image.zero_at(offset, len))
    }

    fn flush(&self) -> io::Result<()> {
        self.image().flush()
    }
}
