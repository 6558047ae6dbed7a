//! Files on a datastore: opened beneath it, written whole or not at all, made durable in order.
//!
//! Owns nothing but the handle of the datastore's directory. Paths are relative to it and are resolved
//! beneath it, without symbolic links; names in them were checked by pattern.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};

use crate::repository::{RepositoryError, beneath};

/// Largest record that is read into memory.
const RECORD_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Precedes the checksum, which covers every byte before it.
const CHECKSUM_MARK: &str = ",\n  \"checksum\": \"";
/// Follows it.
const CHECKSUM_END: &str = "\"\n}\n";

/// A datastore's directory, and the only way to open files in it.
pub struct Root {
    path: PathBuf,
    handle: OwnedFd,
}

impl Root {
    /// Opens a directory that exists.
    pub fn open(path: &Path) -> Result<Self, RepositoryError> {
        let path = fs::canonicalize(path).map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
        let handle = File::open(&path).map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
        Ok(Self { path, handle: handle.into() })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file or directory beneath it; symbolic links are refused, and so is anything that is
    /// neither a regular file nor a directory.
    pub fn open_beneath(&self, path: &Path, flags: OFlags) -> Result<File, RepositoryError> {
        let what = || path.display().to_string();
        let relative = path
            .strip_prefix(&self.path)
            .map_err(|_| RepositoryError::invalid(what(), "it is not beneath the datastore"))?;
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let handle = beneath::open(&self.handle, relative, flags, mode)
            .map_err(|error| RepositoryError::io(what(), error))?;
        let file = File::from(handle);
        let kind = file.metadata().map_err(|e| RepositoryError::io(what(), e))?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(RepositoryError::damaged(what(), "it is neither a file nor a directory"));
        }
        Ok(file)
    }

    /// True where a real directory is there.
    pub fn has_dir(&self, path: &Path) -> bool {
        self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY).is_ok()
    }

    /// Reads a whole file of bounded length.
    pub fn read(&self, path: &Path, bytes_max: u64) -> Result<Vec<u8>, RepositoryError> {
        let what = || path.display().to_string();
        let file = self.open_beneath(path, OFlags::RDONLY)?;
        let len = file.metadata().map_err(|e| RepositoryError::io(what(), e))?.len();
        if len > bytes_max {
            return Err(RepositoryError::damaged(what(), format!("it is {len} bytes long")));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(bytes_max).read_to_end(&mut bytes).map_err(|e| RepositoryError::io(what(), e))?;
        Ok(bytes)
    }

    /// Reads a checked record.
    pub fn read_record<T: DeserializeOwned>(&self, path: &Path) -> Result<T, RepositoryError> {
        let bytes = self.read(path, RECORD_BYTES_MAX)?;
        decode_record(&bytes).map_err(|why| RepositoryError::damaged(path.display().to_string(), why))
    }

    /// Writes a checked record: beside its place, synced, renamed, directory synced.
    pub fn write_record<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), RepositoryError> {
        let what = || path.display().to_string();
        let bytes = encode_record(record).map_err(|why| RepositoryError::invalid(what(), why))?;
        self.write_whole(path, &bytes)
    }

    /// Writes a file whole or not at all; durable when this returns.
    pub fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
        let mut temp = path.as_os_str().to_owned();
        temp.push(".new");
        let temp = PathBuf::from(temp);
        let mut file = self.open_beneath(&temp, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|e| RepositoryError::io(temp.display().to_string(), e))?;
        rename(&temp, path)?;
        sync_parent(path)
    }
}

/// JSON for people, with a checksum over every byte before it as the last field.
pub fn encode_record<T: Serialize>(record: &T) -> Result<Vec<u8>, String> {
    let text = serde_json::to_string_pretty(record).map_err(|error| error.to_string())?;
    let body = text.strip_suffix("\n}").ok_or("a record must be an object with fields")?;
    let sum = blake3::hash(body.as_bytes()).to_hex();
    Ok(format!("{body}{CHECKSUM_MARK}{sum}{CHECKSUM_END}").into_bytes())
}

/// The reverse of [`encode_record`]; says what does not fit.
pub fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_string())?;
    let (body, rest) = text.rsplit_once(CHECKSUM_MARK).ok_or("it has no checksum")?;
    let sum = rest.strip_suffix(CHECKSUM_END).ok_or("it is cut short")?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
        return Err("its checksum differs: it was changed or damaged".into());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), RepositoryError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| RepositoryError::io(path.display().to_string(), e))
}

/// Makes a file's own name durable.
pub fn sync_parent(path: &Path) -> Result<(), RepositoryError> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a file's content durable.
pub fn sync_file(path: &Path) -> Result<(), RepositoryError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| RepositoryError::io(path.display().to_string(), e))
}

/// Renames within the datastore. Not durable before the directories are synced.
pub fn rename(from: &Path, to: &Path) -> Result<(), RepositoryError> {
    fs::rename(from, to)
        .map_err(|e| RepositoryError::io(format!("renaming {} to {}", from.display(), to.display()), e))
}

/// Makes a directory, and its name durable; one that exists is success.
pub fn make_dir(path: &Path) -> Result<(), RepositoryError> {
    match fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(RepositoryError::io(path.display().to_string(), error)),
    }
}

/// Removes a file; one that is gone already is success.
pub fn remove_file(path: &Path) -> Result<(), RepositoryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RepositoryError::io(path.display().to_string(), error))
        }
        _ => Ok(()),
    }
}

/// Removes a directory and all in it (symbolic links are not followed); one that is gone is success.
pub fn remove_dir_all(path: &Path) -> Result<(), RepositoryError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RepositoryError::io(path.display().to_string(), error))
        }
        _ => Ok(()),
    }
}

/// Names in a directory, sorted; none where it is missing. Names that are not UTF-8 are not ours.
pub fn names_in(path: &Path) -> Result<Vec<String>, RepositoryError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RepositoryError::io(path.display().to_string(), error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| RepositoryError::io(path.display().to_string(), e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Bytes that a directory's files take on the disk, as `du` counts. Best effort.
pub fn stored_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    let mut dirs = vec![path.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            sum += meta.blocks() * 512;
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_leaves_the_datastore() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        let root = Root::open(&dir.path().join("store")).unwrap();
        std::os::unix::fs::symlink("../secret", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("dir")).unwrap();
        for name in ["link", "../secret", "dir/etc/passwd", "/etc/passwd"] {
            assert!(root.read(&root.path().join(name), 1000).is_err(), "{name}");
        }
        assert!(!root.has_dir(&root.path().join("dir")));
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
        assert!(root.read(&root.path().join("fifo"), 1000).is_err());
    }

    proptest! {
        #[test]
        fn records_notice_every_changed_byte(name in "[a-z]{1,9}", at in any::<prop::sample::Index>(), bit in 0u8..8) {
            #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
            struct Sample { name: String, list: Vec<u8> }
            let sample = Sample { name, list: vec![1, 2] };
            let mut bytes = encode_record(&sample).unwrap();
            prop_assert_eq!(decode_record::<Sample>(&bytes).unwrap(), sample);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_record::<Sample>(&bytes).is_err());
            prop_assert!(decode_record::<Sample>(&bytes[..at]).is_err());
        }
    }
}
