//! The file systems that vbrd writes to: whether it may, how much room there is, and whether reflinks work.
//!
//! Tried with files that have no name (`O_TMPFILE`); where a file system has none, with `.doctor-a` and `.doctor-b`, which are
//! removed again.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ioctl_ficlone, openat, statvfs};
use vbr_api::{Check, DatastoreStatus};

use crate::config::Config;

/// Below this much free space nothing of ours can work for long.
const STATE_FREE_BYTES: u64 = 256 * 1024 * 1024;

pub(super) fn look(config: &Config, open: &[DatastoreStatus]) -> Vec<Check> {
    let mut checks = vec![state(&config.state), cache(config)];
    for store in &config.datastores {
        let status = open.iter().find(|status| status.name == store.name);
        checks.push(datastore(&store.name, &store.path, store.reserve_bytes, status));
    }
    checks
}

fn state(path: &Path) -> Check {
    let name = "state directory";
    let found = match write_there(path) {
        Err(why) => return not_writable(name, path, &why),
        Ok(_) => space(path),
    };
    match found {
        Some((_, free)) if free < STATE_FREE_BYTES => Check::critical(
            name,
            format!("{}: {} free", path.display(), size(free)),
            "free space on its file system: jobs and history are kept there",
        ),
        Some((whole, free)) => {
            Check::ok(name, format!("{}: {} of {} free", path.display(), size(free), size(whole)))
        }
        None => Check::warning(name, format!("{}: its file system tells no size", path.display()), "see df"),
    }
}

fn cache(config: &Config) -> Check {
    let (path, reserve) = (&config.cache.path, config.cache.reserve_bytes);
    if let Err(why) = write_there(path) {
        return not_writable("cache", path, &why);
    }
    let Some((whole, free)) = space(path) else {
        return Check::skipped("cache", format!("{}: its file system tells no size", path.display()));
    };
    let found = format!(
        "{}: {} at most, {} of {} free, {} in reserve",
        path.display(),
        size(config.cache.size_bytes),
        size(free),
        size(whole),
        size(reserve)
    );
    if free < reserve {
        let next =
            "free space there, or lower cache.size; the cache gives way by itself and content is sent again";
        return Check::warning("cache", found, next);
    }
    Check::ok("cache", found)
}

fn datastore(name: &str, path: &Path, reserve: u64, open: Option<&DatastoreStatus>) -> Check {
    let title = format!("datastore {name}");
    let reflinks = match write_there(path) {
        Ok(reflinks) => reflinks,
        Err(why) => return not_writable(&title, path, &why),
    };
    if open.is_none() {
        let next = "look at the log of vbrd for the reason (journalctl -u vbrd), mend it, then restart vbrd";
        return Check::critical(title, format!("{} could not be opened", path.display()), next);
    }
    let Some((whole, free)) = space(path) else {
        return Check::warning(title, format!("{}: its file system tells no size", path.display()), "see df");
    };
    let backend = if reflinks { "reflinks work" } else { "no reflinks: qcow2 overlays" };
    let room = format!("{} of {} free, {} in reserve", size(free), size(whole), size(reserve));
    let found = format!("{}: {backend}, {room}", path.display());
    let next = "free space there or remove restore points: vbrctl replica list, vbrctl restore-point remove";
    match free {
        free if free < reserve => Check::critical(title, format!("{found}: sessions wait"), next),
        free if free < reserve.saturating_mul(2) => Check::warning(title, found, next),
        _ => Check::ok(title, found),
    }
}

fn not_writable(name: &str, path: &Path, why: &str) -> Check {
    Check::critical(
        name,
        format!("vbrd cannot write to {}: {why}", path.display()),
        format!(
            "the directory has to belong to the user of vbrd, and ReadWritePaths={} to stand in a drop-in of vbrd.service: \
             sudo vbrctl setup does both",
            path.display()
        ),
    )
}

/// Whether one can write there; true where reflinks work, too.
pub(super) fn write_there(directory: &Path) -> Result<bool, String> {
    let from = scratch(directory, ".doctor-a")?;
    let mut from = File::from(from);
    from.write_all(&[7; 8192]).and_then(|()| from.sync_data()).map_err(|error| error.to_string())?;
    let to = scratch(directory, ".doctor-b")?;
    Ok(ioctl_ficlone(&to, &from).is_ok())
}

/// A file without a name.
fn scratch(directory: &Path, name: &str) -> Result<OwnedFd, String> {
    let mode = Mode::RUSR | Mode::WUSR;
    let unnamed = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, directory, unnamed, mode) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = directory.join(name);
            let named = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
            let file = openat(CWD, &path, named, mode).map_err(|error| error.to_string())?;
            std::fs::remove_file(&path).map_err(|error| error.to_string())?;
            Ok(file)
        }
        other => other.map_err(|error| error.to_string()),
    }
}

/// (size, free to vbrd)
fn space(path: &Path) -> Option<(u64, u64)> {
    let found = statvfs(path).ok()?;
    Some((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::CheckState;

    #[test]
    fn what_can_be_written_to() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(write_there(dir.path()).is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0, "something stayed");
        let missing = state(&dir.path().join("none"));
        assert_eq!(missing.state, CheckState::Critical);
        assert!(missing.next_step.contains("ReadWritePaths="), "{}", missing.next_step);
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").expect("write");
        assert!(write_there(&file).is_err());
    }

    #[test]
    fn room_against_the_reserve() {
        let dir = tempfile::tempdir().expect("dir");
        let status = DatastoreStatus {
            name: "default".into(),
            path: String::new(),
            backend: "overlay".into(),
            size_bytes: 0,
            free_bytes: 0,
            reserve_bytes: 0,
        };
        let state = |reserve, open| datastore("default", dir.path(), reserve, open).state;
        assert_eq!(state(0, Some(&status)), CheckState::Ok);
        assert_eq!(state(u64::MAX, Some(&status)), CheckState::Critical);
        assert_eq!(state(0, None), CheckState::Critical);
        let (_, free) = space(dir.path()).expect("space");
        assert_eq!(state(free / 4 * 3, Some(&status)), CheckState::Warning);
    }
}
