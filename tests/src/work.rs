//! Working directories that clean up after themselves, even after a run that was killed.
//!
//! `<temp>/vbrt-<pid>-<n>`: short, since unix sockets live inside. Owns the directory and everything
//! mounted beneath it. `VBR_KEEP=1` leaves it for a look; `VBR_TEST_DIR` says where.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

const PREFIX: &str = "vbrt-";

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// A new, empty directory.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base().join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if std::env::var_os("VBR_KEEP").is_some() {
            eprintln!("kept {}", self.path.display());
        } else {
            remove(&self.path);
        }
    }
}

fn base() -> PathBuf {
    std::env::var_os("VBR_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Removes directories whose process is dead, once a process.
fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(entries) = std::fs::read_dir(base()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
                remove(&entry.path());
            }
        }
    });
}

fn remove(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let inside =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(path));
    for mount in inside.collect::<Vec<_>>().into_iter().rev() {
        // Best effort: what stays mounted is found again by the next sweep.
        let _ = Command::new("umount").args(["-l", mount]).output();
    }
    let _ = std::fs::remove_dir_all(path);
}
