//! Whether vbrd can read a disk, and whether it can read it from a clone.
//!
//! A disk is opened for reading, as a session opens it, and its beginning is read. Nothing is written.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, statfs};
use vbr_api::Check;

use super::storage::{size, write_there};
use crate::config::Config;

/// Enough to see that reading works.
const TRIED_BYTES: usize = 4096;
/// XFS and btrfs.
const MAY_CLONE: [FsWord; 2] = [0x5846_5342, 0x9123_683E];
/// Beside a disk where nothing is configured.
const BESIDE: &str = ".vbr-snapshots";

/// Whether vbrd can read this.
pub(super) fn readable(name: &str, path: &str) -> Check {
    match open(Path::new(path)) {
        Ok((what, bytes)) => Check::ok(name, format!("vbrd reads it: {what} of {}", size(bytes))),
        Err(error) => {
            let (why, next) = advice(path, &error);
            Check::critical(name, why, next)
        }
    }
}

fn open(path: &Path) -> io::Result<(&'static str, u64)> {
    // A pipe must not hold us.
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    let what = match () {
        () if kind.is_file() => "an image",
        () if kind.is_block_device() => "a block device",
        () => return Err(io::Error::new(ErrorKind::InvalidInput, "neither a file nor a block device")),
    };
    let bytes = file.seek(SeekFrom::End(0))?;
    file.read_at(&mut [0; TRIED_BYTES], 0)?;
    Ok((what, bytes))
}

/// Why not, and what to do about it.
fn advice(path: &str, error: &io::Error) -> (String, String) {
    let below =
        |directories: &[&str]| directories.iter().any(|directory| Path::new(path).starts_with(directory));
    let setup = format!("sudo vbrctl setup --disks {path} gives vbrd the right to read it, and proves it");
    match error.kind() {
        ErrorKind::NotFound if below(&["/tmp", "/var/tmp"]) => (
            "vbrd does not see it: the unit has a /tmp of its own".into(),
            "move the disk to another directory".into(),
        ),
        ErrorKind::NotFound | ErrorKind::PermissionDenied if below(&["/home", "/root", "/run/user"]) => (
            format!("vbrd does not see it: {error}; the unit hides /home, /root and /run/user"),
            format!("ProtectHome=read-only in a drop-in of vbrd.service, and the right to read it: {setup}"),
        ),
        ErrorKind::NotFound => ("it is not there".into(), "check the path, or mount what holds it".into()),
        ErrorKind::PermissionDenied => {
            let closed = Path::new(path).ancestors().skip(1).filter(|above| above.metadata().is_err()).last();
            let why = match closed {
                Some(above) => format!("vbrd may not go into the directory that holds {}", above.display()),
                None if Path::new(path).metadata().is_ok_and(|meta| is_device(&meta)) => {
                    format!(
                        "vbrd may not read this device ({error}): it needs DeviceAllow= and the device's group"
                    )
                }
                None => format!("vbrd may not read it: {error}"),
            };
            (why, setup)
        }
        _ => (
            error.to_string(),
            "name an image file or a block device, and see the kernel log for its disk".into(),
        ),
    }
}

fn is_device(meta: &Metadata) -> bool {
    meta.file_type().is_block_device()
}

/// Where a clone of the disk could be made, or that there is no such place although its file system has clones.
pub(super) fn snapshot(path: &str, config: &Config) -> Option<Check> {
    let meta = std::fs::metadata(path).ok().filter(|meta| meta.is_file())?;
    let kind = statfs(path).ok()?.f_type;
    if !MAY_CLONE.contains(&kind) {
        return None;
    }
    let candidates: Vec<PathBuf> = match config.source.snapshot_dirs.is_empty() {
        false => config.source.snapshot_dirs.clone(),
        true => {
            let above = Path::new(path).parent().map(Path::to_path_buf);
            let beside =
                above.map(|above| if above.join(BESIDE).is_dir() { above.join(BESIDE) } else { above });
            std::iter::once(config.state.join("snapshots")).chain(beside).collect()
        }
    };
    let clones = |directory: &PathBuf| {
        let same = std::fs::metadata(directory).is_ok_and(|there| there.dev() == meta.dev());
        same && write_there(directory).is_ok_and(|reflinks| reflinks)
    };
    let name = format!("snapshots of {path}");
    Some(match candidates.iter().find(|directory| clones(directory)) {
        Some(directory) => Check::ok(name, format!("read from a clone in {}", directory.display())),
        None => Check::warning(
            name,
            "its file system may have clones, but vbrd has no directory there to make them in: the disk is watched while it is \
             read, and a restore point of one that changes is not consistent",
            format!("sudo vbrctl setup --disks {path} makes one, and names it in source.snapshot_dirs"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::CheckState;

    #[test]
    fn disks_and_what_is_none() {
        let dir = tempfile::tempdir().expect("dir");
        let image = dir.path().join("web.img");
        std::fs::write(&image, vec![1; 8192]).expect("write");
        let check = |path: &Path| readable("disk", &path.display().to_string());
        assert_eq!(check(&image).found, "vbrd reads it: an image of 8.0 KiB");
        assert_eq!(check(dir.path()).state, CheckState::Critical);
        assert_eq!(check(Path::new("/dev/null")).state, CheckState::Critical);
        let missing = check(Path::new("/srv/no-such-disk"));
        assert_eq!((missing.state, missing.found.as_str()), (CheckState::Critical, "it is not there"));
        assert!(
            snapshot(
                "/srv/no-such-disk",
                &crate::config::Config::resolve(None, "", &Default::default()).expect("config")
            )
            .is_none()
        );
    }

    #[test]
    fn advice_names_what_hides_a_disk() {
        let (missing, denied) =
            (io::Error::from(ErrorKind::NotFound), io::Error::from(ErrorKind::PermissionDenied));
        assert!(advice("/tmp/x.img", &missing).0.contains("/tmp of its own"));
        assert!(advice("/run/user/7/x.img", &denied).1.contains("ProtectHome=read-only"));
        assert!(advice("/srv/x.img", &denied).1.contains("vbrctl setup --disks /srv/x.img"));
    }
}
