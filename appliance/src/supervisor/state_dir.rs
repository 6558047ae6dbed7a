//! The state and runtime directories: made private, and taken by one vbrd only.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::state_format;
use crate::error::Problem;

/// The state directory, locked for as long as this lives.
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes `path` (0700) where it is missing and takes it.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        private_dir(path, "the state directory")?;
        // Before the lock is made or written to: what a newer vbrd left is not touched at all.
        state_format::check(path)?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| Problem::io(format!("{}", lock_path.display()), &e))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(Problem::io(format!("locking {}", lock_path.display()), &error.into()));
            }
            let holder = std::fs::read_to_string(&lock_path).unwrap_or_default();
            let holder = match holder.trim() {
                "" => "another vbrd".to_owned(),
                pid => format!("another vbrd (process {pid})"),
            };
            return Err(Problem::conflict(
                format!("the state directory {}", path.display()),
                format!("{holder} uses it; two of them would destroy each other's records"),
                "stop the other vbrd, or give this one another --state",
            ));
        }
        // The number is for people; the lock is what counts.
        drop(lock.set_len(0));
        drop(writeln!(lock, "{}", std::process::id()));
        state_format::enter(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Makes a directory with its parents, for us alone; one that exists must be a directory and ours to
/// write, its mode is the operator's business unless everybody may look in.
pub fn private_dir(path: &Path, what: &str) -> Result<(), Problem> {
    let fail = |e: std::io::Error| Problem::io(format!("{what} {}", path.display()), &e);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    let mode = std::fs::metadata(path).map_err(fail)?.permissions().mode();
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(Problem::not_allowed(
            format!("{what} {}", path.display()),
            "everybody may write to it",
            format!("take the right away: chmod o-w {}", path.display()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vbrd_a_state_directory() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a/b");
        let first = StateDir::open(&path).expect("first");
        let mode = std::fs::metadata(&path).expect("meta").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let problem = StateDir::open(&path).map(drop).expect_err("taken");
        assert_eq!(problem.code, "conflict");
        assert!(problem.why.contains(&std::process::id().to_string()), "{problem}");
        assert_eq!(first.join("key"), path.join("key"));
        assert!(path.join("format.json").exists());
        drop(first);
        StateDir::open(&path).map(drop).expect("free again");
    }

    #[test]
    fn what_a_newer_vbrd_left_is_not_touched() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("format.json"), r#"{"format":4000}"#).expect("written");
        let problem = StateDir::open(dir.path()).map(drop).expect_err("newer");
        assert_eq!(problem.code, "newer_state");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "not even a lock is made");
    }

    #[test]
    fn open_doors_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("open");
        private_dir(&path, "x").expect("made");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("mode");
        assert_eq!(private_dir(&path, "x").expect_err("open").code, "not_allowed");
    }
}
