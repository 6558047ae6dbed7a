//! Loop file systems: ext4, XFS and btrfs on sparse files, and the loss of their power.
//!
//! Owns the mount and its backing file; unmounts when dropped. Needs root. A power loss is the file
//! system's own shutdown ioctl without a log flush: what was not synced is gone, as after a cut of
//! the supply; killing a process never shows that, since the page cache survives it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::disk::set_len;
use crate::process::run;

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    Ext4,
    Xfs,
    Btrfs,
}

impl FsKind {
    fn make(self, image: &str) -> Result<String> {
        match self {
            Self::Ext4 => {
                run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image])
            }
            Self::Xfs => run("mkfs.xfs", ["-q", "-f", "-m", "reflink=1", image]),
            Self::Btrfs => run("mkfs.btrfs", ["-q", "-f", image]),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// True where it can clone files.
    pub fn has_reflink(self) -> bool {
        self != Self::Ext4
    }
}

/// `_IOR('X', 125, u32)`: the same for XFS (`XFS_IOC_GOINGDOWN`) and ext4 (`EXT4_IOC_SHUTDOWN`).
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `…_FLAGS_NOLOGFLUSH`: the journal is not flushed either.
const NO_LOG_FLUSH: u32 = 2;

/// A mounted loop file system.
#[derive(Debug)]
pub struct LoopFs {
    kind: FsKind,
    image: PathBuf,
    at: PathBuf,
}

impl LoopFs {
    /// Makes `<dir>/<name>.fs` of `len` bytes (sparse) and mounts it at `<dir>/<name>`.
    pub fn create(dir: &Path, name: &str, kind: FsKind, len: u64) -> Result<Self> {
        let (image, at) = (dir.join(format!("{name}.fs")), dir.join(name));
        set_len(&image, len)?;
        kind.make(&image.to_string_lossy())
            .with_context(|| format!("making a {} file system", kind.name()))?;
        std::fs::create_dir_all(&at)?;
        let fs = Self { kind, image, at };
        fs.mount()?;
        Ok(fs)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// What it is.
    pub fn kind(&self) -> FsKind {
        self.kind
    }

    /// Everything not synced is lost from this moment; whoever uses it gets errors until [`Self::remount`].
    pub fn power_loss(&self) -> Result<()> {
        let handle = File::open(&self.at)?;
        let flags = NO_LOG_FLUSH;
        // SAFETY: the descriptor is open and the argument points to a live u32, which this ioctl reads.
        let answer = unsafe { libc::ioctl(handle.as_raw_fd(), SHUTDOWN, &raw const flags) };
        if answer != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("shutting down {} at {}", self.kind.name(), self.at.display()));
        }
        Ok(())
    }

    /// Whoever writes to it stands still while this lives, and cannot be killed.
    pub fn freeze(&self) -> Result<Frozen<'_>> {
        run("fsfreeze", [OsStr::new("--freeze"), self.at.as_os_str()])?;
        Ok(Frozen(self))
    }

    /// After a power loss, with all users gone: unmounts and mounts again, which replays the journal.
    pub fn remount(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        let (image, at) = (self.image.to_string_lossy(), self.at.to_string_lossy());
        run("mount", ["-t", self.kind.name(), "-o", "loop", image.as_ref(), at.as_ref()])?;
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        let mut said = String::new();
        // A child that was just killed may hold a file for a moment.
        for _ in 0..100 {
            let output = Command::new("umount").arg(&self.at).output()?;
            said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("cannot unmount {}: {}", self.at.display(), said.trim())
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error:#}");
            let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        }
    }
}

/// A file system that stands still.
pub struct Frozen<'a>(&'a LoopFs);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = run("fsfreeze", [OsStr::new("--unfreeze"), self.0.at.as_os_str()]) {
            eprintln!("{error:#}");
        }
    }
}

/// A loop block device over a file; detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `image`.
    pub fn attach(image: &Path) -> Result<Self> {
        let path = run("losetup", ["-f", "--show", &image.to_string_lossy()])?;
        Ok(Self { path: path.trim().into() })
    }

    /// `/dev/loopN`
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MIB;
    use crate::process::is_root;
    use crate::work::WorkDir;
    use std::io::Write;

    #[test]
    fn power_loss_keeps_what_was_synced_and_nothing_else() {
        if !is_root() {
            println!("skipped: loop mounts need root");
            return;
        }
        for kind in [FsKind::Ext4, FsKind::Xfs] {
            let dir = WorkDir::new().unwrap();
            let fs = LoopFs::create(dir.path(), "m", kind, 320 * MIB).unwrap();
            let mut synced = File::create(fs.path().join("synced")).unwrap();
            synced.write_all(&[7; 100_000]).unwrap();
            synced.sync_all().unwrap();
            File::open(fs.path()).unwrap().sync_all().unwrap();
            let mut loose = File::create(fs.path().join("loose")).unwrap();
            loose.write_all(&[8; 100_000]).unwrap();
            fs.power_loss().unwrap();
            assert!(std::fs::write(fs.path().join("after"), b"x").is_err());
            drop((synced, loose));
            fs.remount().unwrap();
            assert_eq!(std::fs::read(fs.path().join("synced")).unwrap(), vec![7; 100_000], "{kind:?}");
            assert!(
                std::fs::read(fs.path().join("loose")).unwrap_or_default() != vec![8; 100_000],
                "{kind:?}"
            );
        }
    }
}
