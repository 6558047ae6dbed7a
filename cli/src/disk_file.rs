//! Writing an exported disk: a sparse file that appears whole or not at all, or a block device.
//!
//! A file is written under a temporary name beside its place, fsynced and renamed; the temporary file goes away
//! with its guard, also on Ctrl-C. A block device is opened exclusively (a mounted one is refused) and written
//! through, gaps as zeroes, because it may hold anything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags};

use crate::extents::Sink;
use crate::failure::Failure;

const ZEROES_BYTES: usize = 1 << 20;

/// What stands at the place now.
pub enum Place {
    /// A file is made here (or replaced, where that was allowed).
    File(PathBuf),
    Device(PathBuf),
}

impl Place {
    /// Looks before anything is fetched. A symbolic link stands for what it points to.
    pub fn find(out: &Path, force: bool) -> Result<Self, Failure> {
        let what = || format!("Cannot export to {}", out.display());
        let real = match fs::canonicalize(out) {
            Ok(real) => real,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if out.file_name().is_none() {
                    return Err(Failure::usage(what(), "it names no file", "name a file or a block device"));
                }
                return Ok(Self::File(out.to_path_buf()));
            }
            Err(error) => return Err(Failure::io(what(), out, &error)),
        };
        let kind = fs::metadata(&real).map_err(|error| Failure::io(what(), &real, &error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Failure::usage(
                what(),
                "it is neither a file nor a block device",
                "name a file or a block device",
            ));
        }
        if !force {
            let why = if kind.is_file() {
                "the file exists"
            } else {
                "it is a block device, its content would be lost"
            };
            return Err(Failure::usage(what(), why, "choose another path, or pass --force to overwrite it"));
        }
        Ok(if kind.is_file() { Self::File(real) } else { Self::Device(real) })
    }
}

/// A file under a temporary name; removed unless it was put in its place.
pub struct Temporary {
    path: PathBuf,
    placed: bool,
}

impl Temporary {
    /// Makes an empty file beside `place`, so that the rename stays within one file system.
    pub fn create(place: &Path, purpose: &str) -> io::Result<(Self, File)> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        // File names are at most 255 bytes long.
        let name: String = name.chars().take(40).collect();
        let now = vbr_api::Moment::now().as_nanosecond();
        let path = place.with_file_name(format!(".{name}.vbr-{}-{now:x}.{purpose}", std::process::id()));
        let file = OpenOptions::new().write(true).read(true).create_new(true).open(&path)?;
        Ok((Self { path, placed: false }, file))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to `place`; without `force` never over something that appeared meanwhile.
    pub fn put(mut self, place: &Path, force: bool) -> io::Result<()> {
        if force {
            fs::rename(&self.path, place)?;
        } else {
            rename_to_nothing(&self.path, place)?;
        }
        self.placed = true;
        let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn rename_to_nothing(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        other => other.map_err(io::Error::from),
    }
}

/// A new file: gaps stay holes.
pub struct SparseFile(pub File);

impl Sink for SparseFile {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn end(&mut self, disk_len: u64) -> io::Result<()> {
        self.0.set_len(disk_len)
    }
}

/// A block device: every byte up to the disk's length is written.
pub struct Device {
    file: File,
    size: u64,
    at: u64,
    zeroes: Vec<u8>,
}

impl Device {
    pub fn open(path: &Path) -> io::Result<Self> {
        let exclusive = OFlags::EXCL.bits() as i32;
        let mut file = OpenOptions::new().write(true).custom_flags(exclusive).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        Self::new(file, size)
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn new(mut file: File, size: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { file, size, at: 0, zeroes: vec![0; ZEROES_BYTES] })
    }

    fn zero_to(&mut self, end: u64) -> io::Result<()> {
        while self.at < end {
            let step = (end - self.at).min(ZEROES_BYTES as u64);
            self.file.write_all(&self.zeroes[..step as usize])?;
            self.at += step;
        }
        Ok(())
    }
}

impl Sink for Device {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.zero_to(offset)?;
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self, disk_len: u64) -> io::Result<()> {
        self.zero_to(disk_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_zeroes_where_the_stream_has_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        fs::write(&path, vec![7u8; 3 << 20]).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut device = Device::new(file, 3 << 20).unwrap();
        device.data(2 << 20, b"abc").unwrap();
        device.end((2 << 20) + 10).unwrap();
        let content = fs::read(&path).unwrap();
        let mut expected = vec![0u8; 2 << 20];
        expected.extend(b"abc\0\0\0\0\0\0\0");
        expected.resize(3 << 20, 7);
        assert!(content == expected);
    }

    #[test]
    fn a_temporary_file_goes_away_unless_placed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out.raw");
        let (temporary, _) = Temporary::create(&place, "raw").unwrap();
        drop(temporary);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let (temporary, _) = Temporary::create(&place, "raw").unwrap();
        temporary.put(&place, false).unwrap();
        let (temporary, _) = Temporary::create(&place, "raw").unwrap();
        assert_eq!(temporary.put(&place, false).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn places() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        assert!(matches!(Place::find(&file, false), Ok(Place::File(_))));
        fs::write(&file, b"x").unwrap();
        assert!(Place::find(&file, false).is_err());
        assert!(matches!(Place::find(&file, true), Ok(Place::File(_))));
        assert!(Place::find(dir.path(), true).is_err());
        assert!(Place::find(Path::new("/dev/null"), true).is_err());
    }
}
