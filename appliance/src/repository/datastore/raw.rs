//! Raw images: plain sparse files.
//!
//! Owns the open file. Length is the disk's exact length. Not its job: choosing or creating files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, FallocateFlags, SeekFrom, copy_file_range, fadvise, fallocate, seek};
use rustix::io::Errno;

use crate::block::{BlockRead, BlockWrite, Extent};

/// Zeroes written at a time where holes cannot be punched.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// An open raw image.
pub struct RawDisk {
    file: File,
    len: u64,
}

impl RawDisk {
    /// Takes a file whose length is the disk's.
    pub fn new(file: File, len: u64) -> Self {
        Self { file, len }
    }

    /// Makes a range the same as in another image; where the file system can, the two share it from then on.
    pub fn copy_from(&self, other: &Self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        other.check(offset, len)?;
        let mut done = 0;
        while done < len {
            let (mut from, mut to) = (offset + done, offset + done);
            let rest = usize::try_from(len - done).unwrap_or(usize::MAX);
            match copy_file_range(&other.file, Some(&mut from), &self.file, Some(&mut to), rest)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                copied => done += copied as u64,
            }
        }
        Ok(())
    }

    /// Lets go of what the kernel keeps of it in memory, so that it is read from the disk again.
    pub fn forget_cached(&self) {
        // An answer would change nothing: it is a wish.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
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

impl BlockRead for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        if from >= self.len {
            return Ok(None);
        }
        // The file's position is moved; nothing here reads or writes by position.
        let start = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                return Ok(Some(Extent { offset: from, len: self.len - from }));
            }
            Err(errno) => return Err(errno.into()),
        };
        if start >= self.len {
            return Ok(None);
        }
        let end = seek(&self.file, SeekFrom::Hole(start)).map_err(io::Error::from)?.min(self.len);
        Ok((end > start).then_some(Extent { offset: start, len: end - start }))
    }
}

impl BlockWrite for RawDisk {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let mut at = offset;
                while at < offset + len {
                    let part = (offset + len - at).min(ZEROES.len() as u64);
                    self.file.write_all_at(&ZEROES[..part as usize], at)?;
                    at += part;
                }
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
