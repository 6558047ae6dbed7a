//! A plain file or block device as a disk: [`BlockRead`] and [`BlockWrite`] over the system's calls.
//!
//! A leaf: owns one descriptor and knows nothing of hosts, datastores or formats. Holes are found by
//! `SEEK_DATA`; where a file system (or a device) cannot tell, everything counts as data. The length is
//! fixed when it is opened: a file that grows is read up to it, one that shrinks fails with
//! `UnexpectedEof`. Bounds: one buffer of zeroes of 256 KiB where holes cannot be punched.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, seek};
use rustix::io::Errno;

use crate::block::{BlockRead, BlockWrite, Extent};

const ZERO_BYTES: usize = 256 * 1024;

/// An open raw disk.
pub struct RawFile {
    file: File,
    len: u64,
    knows_holes: AtomicBool,
    punches_holes: AtomicBool,
    /// After a failed sync the system may have dropped what it could not write: nothing heals that.
    sync_failed: AtomicBool,
}

impl RawFile {
    /// Opens for reading.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(
            OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)?,
        )
    }

    /// Opens for reading and writing.
    pub fn open_writable(path: &Path) -> io::Result<Self> {
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        Self::from_file(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?)
    }

    /// Makes a new sparse file of `len` bytes; one that exists is an error.
    pub fn create(path: &Path, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(len)?;
        Self::from_file(file)
    }

    /// Takes an open regular file or block device; anything else is refused.
    pub fn from_file(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let (len, knows_holes) = if meta.is_file() {
            (meta.len(), true)
        } else if meta.file_type().is_block_device() {
            (seek(&file, SeekFrom::End(0))?, false)
        } else {
            let why = "neither a file nor a block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        Ok(Self {
            file,
            len,
            knows_holes: AtomicBool::new(knows_holes),
            punches_holes: AtomicBool::new(true),
            sync_failed: AtomicBool::new(false),
        })
    }

    /// The descriptor.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Changes the length of a regular file; what is added reads as zeroes.
    pub fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        let why = format!("{len} bytes at {offset} of a disk of {} bytes", self.len);
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0; len.min(ZERO_BYTES as u64) as usize];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZERO_BYTES as u64);
            self.file.write_all_at(&zeroes[..part as usize], offset + done)?;
            done += part;
        }
        Ok(())
    }
}

impl BlockRead for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        if from >= self.len {
            return Ok(None);
        }
        let everything = Some(Extent { offset: from, len: self.len - from });
        if !self.knows_holes.load(Ordering::Relaxed) {
            return Ok(everything);
        }
        let start = match seek(self.file.as_fd(), SeekFrom::Data(from)) {
            Ok(start) => start.max(from),
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.knows_holes.store(false, Ordering::Relaxed);
                return Ok(everything);
            }
            Err(error) => return Err(error.into()),
        };
        if start >= self.len {
            return Ok(None);
        }
        let end = match seek(self.file.as_fd(), SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(self.len),
            // The file changed between the two calls: nothing is claimed to be a hole.
            Ok(_) | Err(Errno::NXIO) => self.len,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Extent { offset: start, len: end - start }))
    }
}

impl BlockWrite for RawFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if self.punches_holes.load(Ordering::Relaxed) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.punches_holes.store(false, Ordering::Relaxed),
                // A device takes only whole sectors.
                Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.write_zeroes(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        fdatasync(&self.file).map_err(|error| {
            self.sync_failed.store(true, Ordering::Release);
            error.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let disk = RawFile::create(&path, (4 << 20) + 7).unwrap();
        assert_eq!(disk.next_data(0).unwrap(), None);
        disk.write_at(1 << 20, &vec![7; 1 << 20]).unwrap();
        disk.write_at((4 << 20) + 6, &[9]).unwrap();
        disk.flush().unwrap();
        assert_eq!(disk.next_data(0).unwrap(), Some(Extent { offset: 1 << 20, len: 1 << 20 }));
        let tail = disk.next_data(2 << 20).unwrap().unwrap();
        assert_eq!((tail.offset, tail.end()), (4 << 20, (4 << 20) + 7));
        disk.zero_at(1 << 20, 1 << 20).unwrap();
        assert_eq!(disk.next_data(0).unwrap().unwrap().offset, 4 << 20);
        disk.write_at(100, &[1; 1000]).unwrap();
        disk.zero_at(150, 100).unwrap();
        let mut back = [9; 300];
        disk.read_at(50, &mut back).unwrap();
        assert!(back[..50].iter().chain(&back[100..200]).all(|b| *b == 0));
        assert!(back[50..100].iter().chain(&back[200..]).all(|b| *b == 1));
    }

    #[test]
    fn nothing_past_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RawFile::create(&dir.path().join("d"), 1000).unwrap();
        assert_eq!(disk.read_at(990, &mut [0; 11]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(disk.write_at(1000, &[1]).is_err());
        assert!(disk.zero_at(u64::MAX, 2).is_err());
        assert_eq!(disk.next_data(1000).unwrap(), None);
        disk.file().set_len(500).unwrap();
        assert_eq!(disk.read_at(400, &mut [0; 200]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(RawFile::open(dir.path()).is_err());
    }
}
