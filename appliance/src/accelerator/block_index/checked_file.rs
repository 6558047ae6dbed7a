//! A file of pieces that is either whole or refused: kind and version in front, BLAKE3 at the end.
//!
//! | part | bytes | fields |
//! |---|---|---|
//! | header | 8 | kind 7, version u8 |
//! | piece, many | 4 + length | length u32, big endian; then the bytes |
//! | sum | 32 | BLAKE3 of all bytes before |
//!
//! Written beside its place, synced, renamed, the directory synced. What is read is trusted only once
//! [`Reader::finish`] has compared the sum; until then it is garbage that may not do harm. Pieces let
//! an owner copy a little under its lock and write without it. Owns the file while it is open; blocks.
//! Bounds: one piece in memory, never longer than the rest of the file and what the reader allows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const SUM_BYTES: u64 = 32;

/// Why a kept file is of no use. Nothing is lost that cannot be learned again.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is none (yet).
    #[error("{0} does not exist yet")]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: &'static str,
    },
    /// It is sound, but was made by another version or for another size.
    #[error("{path} does not fit: {why}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        why: &'static str,
    },
}

/// Writes a file; one that is not finished leaves its predecessor in place.
pub(in crate::accelerator) struct Writer {
    file: File,
    sum: blake3::Hasher,
    temporary: PathBuf,
    path: PathBuf,
}

impl Writer {
    pub fn create(path: &Path, kind: &[u8; 7], version: u8) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // One that a crash left behind would keep its mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let mut writer = Self { file, sum: blake3::Hasher::new(), temporary, path: path.to_owned() };
        writer.write(kind)?;
        writer.write(&[version])?;
        Ok(writer)
    }

    pub fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.write(&len.to_be_bytes())?;
        self.write(bytes)
    }

    /// Durable when it returns.
    pub fn finish(mut self) -> io::Result<()> {
        let sum = self.sum.finalize();
        self.file.write_all(sum.as_bytes())?;
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.file.write_all(bytes)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After the rename there is nothing of that name; otherwise half a file of no use.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Makes a directory for such files, for us alone, where it is missing.
pub(in crate::accelerator) fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Reads a file piece by piece.
pub(in crate::accelerator) struct Reader {
    file: File,
    sum: blake3::Hasher,
    /// Bytes before the sum that are not read yet.
    left: u64,
    path: PathBuf,
}

impl Reader {
    pub fn open(path: &Path, kind: &[u8; 7], version: u8) -> Result<Self, LoadError> {
        let path = path.to_owned();
        let (file, len) = match File::open(&path).and_then(|f| f.metadata().map(|meta| (f, meta.len()))) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LoadError::Missing(path)),
            Err(source) => return Err(LoadError::Io { path, source }),
        };
        let mut reader = Self { file, sum: blake3::Hasher::new(), left: len.saturating_sub(SUM_BYTES), path };
        let header: [u8; 8] = reader.array()?;
        if header[..7] != kind[..] {
            return Err(reader.damaged("it is not a file of this kind"));
        }
        if header[7] != version {
            return Err(reader.other("another version of vbr wrote it"));
        }
        Ok(reader)
    }

    /// The next piece, of at most `bytes_max` bytes.
    pub fn piece(&mut self, bytes_max: usize) -> Result<Vec<u8>, LoadError> {
        let len = u64::from(u32::from_be_bytes(self.array()?));
        if len > bytes_max as u64 || len > self.left {
            return Err(self.damaged("a piece is longer than it can be"));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Compares the sum: what was read is what was written.
    pub fn finish(mut self) -> Result<(), LoadError> {
        if self.left != 0 {
            return Err(self.damaged("something follows its end"));
        }
        let mut sum = [0; SUM_BYTES as usize];
        self.file.read_exact(&mut sum).map_err(|source| self.io(source))?;
        if self.sum.finalize() != sum {
            return Err(self.damaged("its checksum differs"));
        }
        Ok(())
    }

    pub fn damaged(&self, why: &'static str) -> LoadError {
        LoadError::Damaged { path: self.path.clone(), why }
    }

    pub fn other(&self, why: &'static str) -> LoadError {
        LoadError::Other { path: self.path.clone(), why }
    }

    fn io(&self, source: io::Error) -> LoadError {
        LoadError::Io { path: self.path.clone(), source }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), LoadError> {
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => self.left = left,
            None => return Err(self.damaged("it is cut short")),
        }
        self.file.read_exact(bytes).map_err(|source| self.io(source))?;
        self.sum.update(bytes);
        Ok(())
    }
}
