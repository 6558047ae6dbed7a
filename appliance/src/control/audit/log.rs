//! The audit log on disk: lines of JSON in files that are only ever appended to.
//!
//! Owns `<state>/audit`: `audit-<first sequence>.jsonl`, the one with the highest number open for appending. An entry
//! is on stable storage when [`AuditLog::append`] returns. A line that a power cut tore stays where it is and is passed
//! over. Blocking. Bounds: [`FILE_BYTES_MAX`] a file, [`FILES_MAX`] files; the oldest goes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use vbr_api::{AuditEntry, Moment};

use crate::error::Problem;

/// Bytes of one file.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Files: some 100,000 orders.
pub const FILES_MAX: usize = 16;

/// The log of a site.
pub struct AuditLog {
    directory: PathBuf,
    file_bytes_max: u64,
    writer: Mutex<Writer>,
}

struct Writer {
    /// None: the next entry begins a file.
    file: Option<File>,
    bytes: u64,
    sequence: u64,
}

impl AuditLog {
    /// Opens the log, making its directory where it is missing.
    pub fn open(directory: &Path) -> Result<Self, Problem> {
        Self::open_with(directory, FILE_BYTES_MAX)
    }

    fn open_with(directory: &Path, file_bytes_max: u64) -> Result<Self, Problem> {
        let fail = |error: io::Error| Problem::io(format!("the audit log {}", directory.display()), &error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(fail)?;
        let mut next = 0;
        for (first, path) in files(directory).map_err(fail)?.into_iter().rev() {
            let last = entries(&path).map_err(fail)?.last().map(|entry| entry.sequence.saturating_add(1));
            next = last.unwrap_or(first).max(next);
            if last.is_some() {
                break;
            }
        }
        // What a crash tore is never appended to: the first entry begins a file of its own, unless the last one is whole.
        let mut writer = Writer { file: None, bytes: 0, sequence: next };
        if let Some((_, path)) = files(directory).map_err(fail)?.pop()
            && fs::read(&path).map_err(fail)?.last() == Some(&b'\n')
        {
            let file = OpenOptions::new().append(true).open(&path).map_err(fail)?;
            writer.bytes = file.metadata().map_err(fail)?.len();
            writer.file = Some(file);
        }
        Ok(Self { directory: directory.to_owned(), file_bytes_max, writer: Mutex::new(writer) })
    }

    /// Numbers an entry and keeps it, durably. After an error the next entry goes into a new file: whether a
    /// write that failed arrived is not known.
    pub fn append(&self, mut entry: AuditEntry) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        entry.sequence = writer.sequence;
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let length = line.len() as u64;
        if writer.bytes + length > self.file_bytes_max {
            writer.file = None;
        }
        // Never the same number twice, whatever comes of this one.
        writer.sequence += 1;
        let file = match writer.file.take() {
            Some(file) => file,
            None => {
                writer.bytes = 0;
                self.begin(entry.sequence)?
            }
        };
        (&file).write_all(&line)?;
        file.sync_data()?;
        writer.bytes += length;
        writer.file = Some(file);
        Ok(())
    }

    /// The newest `lines` entries since a moment, oldest first.
    pub fn read(&self, since: Option<Moment>, lines: usize) -> Result<Vec<AuditEntry>, Problem> {
        let fail =
            |error: io::Error| Problem::io(format!("the audit log {}", self.directory.display()), &error);
        let mut found = Vec::new();
        for (_, path) in files(&self.directory).map_err(fail)?.into_iter().rev() {
            let entries = match entries(&path) {
                // It was the oldest, and made room.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(fail)?,
            };
            let wanted =
                entries.into_iter().rev().filter(|entry| since.is_none_or(|since| entry.at >= since));
            found.extend(wanted.take(lines - found.len()));
            if found.len() == lines {
                break;
            }
        }
        found.reverse();
        Ok(found)
    }

    fn begin(&self, first: u64) -> io::Result<File> {
        let path = self.directory.join(format!("audit-{first:016}.jsonl"));
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        let all = files(&self.directory)?;
        for (_, path) in &all[..all.len().saturating_sub(FILES_MAX)] {
            fs::remove_file(path)?;
        }
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }
}

/// The files by the number in their name, oldest first.
fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("audit-").and_then(|name| name.strip_suffix(".jsonl"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

fn entries(path: &Path) -> io::Result<Vec<AuditEntry>> {
    let mut text = Vec::new();
    File::open(path)?.take(2 * FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(path: &str) -> AuditEntry {
        AuditEntry {
            sequence: 0,
            at: Moment::now(),
            caller: Default::default(),
            site: None,
            method: "POST".into(),
            route: None,
            path: path.into(),
            details: Default::default(),
            outcome: "done".into(),
            status: 200,
            took_ms: 1,
        }
    }

    fn paths(log: &AuditLog, lines: usize) -> Vec<String> {
        log.read(None, lines).unwrap().into_iter().map(|entry| entry.path).collect()
    }

    #[test]
    fn entries_survive_and_torn_lines_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("audit");
        let log = AuditLog::open(&dir).unwrap();
        for path in ["/a", "/b", "/c"] {
            log.append(entry(path)).unwrap();
        }
        assert_eq!(paths(&log, 2), ["/b", "/c"]);
        assert!(log.read(Some(Moment::MAX), 9).unwrap().is_empty());
        drop(log);
        let log = AuditLog::open(&dir).unwrap();
        log.append(entry("/d")).unwrap();
        assert_eq!(paths(&log, 9), ["/a", "/b", "/c", "/d"]);
        drop(log);

        let file = files(&dir).unwrap().pop().unwrap().1;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut text = fs::read(&file).unwrap();
        text.extend_from_slice(b"{\"sequence\":4,\"at");
        fs::write(&file, &text).unwrap();
        let log = AuditLog::open(&dir).unwrap();
        log.append(entry("/e")).unwrap();
        let all = log.read(None, 9).unwrap();
        assert_eq!(all.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(fs::read(&file).unwrap(), text, "what was written is never touched");
    }

    #[test]
    fn it_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open_with(dir.path(), 400).unwrap();
        for number in 0..200 {
            log.append(entry(&format!("/{number}"))).unwrap();
        }
        let files = files(dir.path()).unwrap();
        assert_eq!(files.len(), FILES_MAX);
        assert!(files.iter().all(|(_, path)| fs::metadata(path).unwrap().len() <= 400));
        let kept = paths(&log, 1000);
        assert_eq!(kept.last().map(String::as_str), Some("/199"));
        assert!(kept.len() < 100 && !kept.is_empty());
        drop(log);
        let log = AuditLog::open_with(dir.path(), 400).unwrap();
        log.append(entry("/new")).unwrap();
        assert_eq!(log.read(None, 1).unwrap()[0].sequence, 200);
    }
}
