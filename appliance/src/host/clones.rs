//! Reflink clones of disks: made, found again, removed.
//!
//! Owns the files it makes, by name: `vbr-OWNER-SESSION-INDEX-JOB.clone`. The owner is this daemon's
//! state directory, so two daemons on one machine leave each other's clones alone. Directories used
//! beside disks are remembered in `directories.json`, so that [`CloneStore::sweep`] finds orphans after
//! a crash. A clone is made only where the file system keeps a floor of free space: what the VM
//! overwrites while a clone lives costs space. Not its job: deciding what a snapshot is.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FsWord, IFlags, fstatfs, ioctl_ficlone, ioctl_getflags, ioctl_setflags, statvfs};
use rustix::io::Errno;

use super::state_file;

const BESIDE: &str = ".vbr-snapshots";
/// Directories remembered for the sweep.
const DIRECTORIES_MAX: usize = 1024;
/// ext2/3/4, tmpfs, ramfs, FAT, ISO 9660: no clones there, so no directory is made beside the disk.
const NO_CLONES: [FsWord; 5] = [0xEF53, 0x0102_1994, 0x8584_58f6, 0x4d44, 0x9660];

/// Where clones may lie.
#[derive(Clone, Debug)]
pub struct CloneConfig {
    /// Directories that were configured; where there are none, `state_dir` and beside the disk.
    pub directories: Vec<PathBuf>,
    /// `<state>/snapshots`.
    pub state_dir: PathBuf,
    /// No clone is made where less than this is free.
    pub floor_bytes: u64,
}

/// The clones of one daemon.
pub struct CloneStore {
    config: CloneConfig,
    owner: String,
    remembered: Mutex<BTreeSet<PathBuf>>,
}

/// Whose clone it is.
#[derive(Clone, Debug)]
pub(super) struct CloneName<'a> {
    pub job: &'a str,
    pub session: &'a str,
    pub index: usize,
}

/// A file that is ready to become a clone; removed again unless it is kept.
pub(super) struct Prepared {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl CloneStore {
    /// Reads what earlier lives of this daemon remembered.
    pub fn new(config: CloneConfig) -> Self {
        let state = fs::canonicalize(&config.state_dir).unwrap_or_else(|_| config.state_dir.clone());
        let owner = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned();
        let remembered = match state_file::load(&config.state_dir.join("directories.json")) {
            Ok(remembered) => remembered.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "snapshots/directories.json is unreadable: old clones beside disks may stay");
                BTreeSet::new()
            }
        };
        Self { config, owner, remembered: Mutex::new(remembered) }
    }

    /// Makes an empty file where a clone of `source` can lie. `Err` holds a sentence for the operator;
    /// `Ok(None)` means that this file system has no clones, which is nothing to speak of.
    pub(super) fn prepare(
        &self,
        source: &File,
        path: &Path,
        name: &CloneName<'_>,
    ) -> Result<Option<Prepared>, String> {
        let mut reason = None;
        for directory in self.candidates(source, path) {
            match self.prepare_in(source, &directory, name) {
                Ok(Some(prepared)) => return Ok(Some(prepared)),
                Ok(None) => forget_if_empty(&directory),
                Err(why) => {
                    reason = Some(format!("no clone of {} in {}: {why}", path.display(), directory.display()))
                }
            }
        }
        if reason.is_none() && !self.config.directories.is_empty() && may_clone(source) {
            reason = Some(format!(
                "no snapshot directory can hold a clone of {}: configure one on its file system",
                path.display()
            ));
        }
        reason.map_or(Ok(None), Err)
    }

    /// Tells this daemon from others on the machine.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// No clone is made where less than this is free.
    pub(super) fn floor_bytes(&self) -> u64 {
        self.config.floor_bytes
    }

    /// Where scratch images of snapshots lie: the first directory that was configured, else one in the state directory.
    pub(super) fn scratch_directory(&self) -> io::Result<PathBuf> {
        match self.config.directories.first() {
            Some(directory) => Ok(directory.clone()),
            None => self.state_directory(),
        }
    }

    /// `<state>/snapshots`, which is made where it is not there yet.
    pub(super) fn state_directory(&self) -> io::Result<PathBuf> {
        let directory = &self.config.state_dir;
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(directory.clone())
    }

    /// The clone of an earlier session, wherever it lies.
    pub(super) fn find(&self, disk: &Path, name: &CloneName<'_>) -> Option<(PathBuf, File)> {
        let beside = disk.parent().map(|parent| parent.join(BESIDE));
        let file_name = self.file_name(name);
        self.known_directories().into_iter().chain(beside).find_map(|directory| {
            let path = directory.join(&file_name);
            let options = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
            options.ok().map(|file| (path, file))
        })
    }

    /// Removes clones of sessions that live no more; gives how many.
    pub fn sweep(&self, living_sessions: &[String]) -> usize {
        let prefix = format!("vbr-{}-", self.owner);
        let mut removed = 0;
        for directory in self.known_directories() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else { continue };
                let session = rest.split('-').next().unwrap_or_default();
                if rest.ends_with(".clone") && !living_sessions.iter().any(|living| living == session) {
                    tracing::info!(clone = %entry.path().display(), "removing the clone of a session that is over");
                    removed += usize::from(fs::remove_file(entry.path()).is_ok());
                }
            }
            forget_if_empty(&directory);
        }
        self.remember_existing();
        removed
    }

    fn file_name(&self, name: &CloneName<'_>) -> String {
        format!("vbr-{}-{}-{}-{}.clone", self.owner, name.session, name.index, name.job)
    }

    /// Where a clone of this disk may lie, the likeliest first.
    fn candidates(&self, source: &File, path: &Path) -> Vec<PathBuf> {
        if !may_clone(source) {
            return Vec::new();
        }
        let device = source.metadata().map(|meta| meta.dev()).ok();
        let same = |directory: &PathBuf| {
            device.is_some() && fs::metadata(directory).map(|meta| meta.dev()).ok() == device
        };
        if self.config.directories.is_empty() {
            let state = Some(self.config.state_dir.clone())
                .filter(|dir| dir.parent().is_some_and(|p| same(&p.into())));
            let beside = path.parent().map(|parent| parent.join(BESIDE));
            return state.into_iter().chain(beside).collect();
        }
        // Subvolumes have device numbers of their own and clone among each other: all are tried.
        let mut directories = self.config.directories.clone();
        directories.sort_by_key(|directory| !same(directory));
        directories
    }

    fn prepare_in(
        &self,
        source: &File,
        directory: &Path,
        name: &CloneName<'_>,
    ) -> Result<Option<Prepared>, String> {
        match make_private(directory) {
            Ok(()) => {}
            // Beside the disk it is only an offer; a configured directory has to work.
            Err(error) if self.config.directories.is_empty() && is_denied(&error) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
        if let Some(why) = below_floor(directory, self.config.floor_bytes) {
            return Err(why);
        }
        self.remember(directory).map_err(|error| error.to_string())?;
        let path = directory.join(self.file_name(name));
        let file = create_clone_file(&path).map_err(|error| error.to_string())?;
        // btrfs clones only between files that are alike in this.
        if let Ok(flags) = ioctl_getflags(source)
            && flags.contains(IFlags::NOCOW)
            && let Ok(own) = ioctl_getflags(&file)
        {
            let _ = ioctl_setflags(&file, own | IFlags::NOCOW);
        }
        let prepared = Prepared { file, path, kept: false };
        match prepared.clone_from(source) {
            Ok(()) => Ok(Some(prepared)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => Ok(None),
                _ => Err(error.to_string()),
            },
        }
    }

    /// All directories where clones of ours may lie.
    fn known_directories(&self) -> BTreeSet<PathBuf> {
        let mut all = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(self.config.directories.iter().cloned());
        all.insert(self.config.state_dir.clone());
        all
    }

    fn remember(&self, directory: &Path) -> io::Result<()> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.contains(directory) {
            return Ok(());
        }
        if remembered.len() >= DIRECTORIES_MAX {
            return Err(io::Error::other("clones lie in too many directories: configure snapshot_dirs"));
        }
        remembered.insert(directory.to_owned());
        state_file::store(&self.config.state_dir.join("directories.json"), &*remembered)
    }

    fn remember_existing(&self) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let before = remembered.len();
        remembered.retain(
            |directory| !matches!(fs::metadata(directory), Err(e) if e.kind() == io::ErrorKind::NotFound),
        );
        if remembered.len() != before
            && let Err(error) =
                state_file::store(&self.config.state_dir.join("directories.json"), &*remembered)
        {
            tracing::warn!(%error, "the list of snapshot directories was not written; it stays longer than needed");
        }
    }
}

impl Prepared {
    /// Makes it a clone of what `source` holds at this moment, whatever it was before.
    pub fn clone_from(&self, source: &File) -> io::Result<()> {
        self.file.set_len(0)?;
        ioctl_ficlone(&self.file, source)?;
        Ok(())
    }

    /// Read-only and durable: it must be there after a restart, unchanged.
    pub fn finish(&self) -> io::Result<(PathBuf, File)> {
        self.file.set_permissions(Permissions::from_mode(0o400))?;
        self.file.sync_all()?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&self.path)?;
        Ok((self.path.clone(), file))
    }

    /// Now the clone stays when this value goes.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.kept {
            remove_clone(&self.path);
        }
    }
}

/// Removes a clone, and the directory beside the disk with the last one.
pub(super) fn remove_clone(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(clone = %path.display(), %error, "a clone was not removed; the next start tries again");
    }
    if let Some(directory) = path.parent() {
        forget_if_empty(directory);
    }
}

/// Directories that we made beside disks do not stay; configured ones do.
fn forget_if_empty(directory: &Path) {
    if directory.file_name().is_some_and(|name| name == BESIDE) {
        let _ = fs::remove_dir(directory);
    }
}

fn create_clone_file(path: &Path) -> io::Result<File> {
    // A file of this name is a leaving of this very session, cut off before it was used.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = libc::O_NOFOLLOW;
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)
}

/// A directory that nobody else can put things into.
fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if directory.file_name().is_some_and(|name| name != BESIDE) {
        return Ok(());
    }
    let meta = fs::symlink_metadata(directory)?;
    let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if ours { Ok(()) } else { Err(io::Error::other("it exists and is not a private directory of vbrd")) }
}

fn may_clone(source: &File) -> bool {
    fstatfs(source).is_ok_and(|fs| !NO_CLONES.contains(&fs.f_type))
}

/// Says so where the file system of a directory has less free space than the floor.
pub(super) fn below_floor(directory: &Path, floor_bytes: u64) -> Option<String> {
    let free = free_bytes(directory)?;
    let below = free < floor_bytes;
    below.then(|| format!("{} has {free} bytes free, the floor is {floor_bytes}", directory.display()))
}

fn free_bytes(directory: &Path) -> Option<u64> {
    statvfs(directory).ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}
