//! Opens files beneath a directory, whatever a name or a symbolic link says.
//!
//! One component after the other, each from the handle of the one before, no symbolic link followed, no `..`: so nothing
//! leads out. The kernel does the same in one call (`openat2`), which a sandbox that forbids set-user-ID files denies as a
//! whole (`RestrictSUIDSGID=` of systemd), because its flags cannot be seen there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// Opens `relative` beneath `directory`; a link anywhere in it, `..` and absolute paths are errors.
pub fn open(directory: impl AsFd, relative: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let mut names = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the path leads out of its directory",
                ));
            }
        }
    }
    let last = names.pop().unwrap_or(".".as_ref());
    let mut above: Option<OwnedFd> = None;
    for name in names {
        above = Some(match &above {
            Some(above) => enter(above, name)?,
            None => enter(&directory, name)?,
        });
    }
    let flags = flags | OFlags::NOFOLLOW;
    Ok(match &above {
        Some(above) => openat(above, last, flags, mode)?,
        None => openat(&directory, last, flags, mode)?,
    })
}

/// A directory in a directory. A link is `ELOOP`, as where the last component is one.
fn enter(above: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&above, name, flags, Mode::empty()).map_err(|errno| {
        let is_link = || {
            statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
        };
        if errno == Errno::NOTDIR && is_link() { Errno::LOOP.into() } else { errno.into() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::symlink;

    fn read(directory: &File, relative: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut text = String::new();
        File::from(open(directory, Path::new(relative), flags, Mode::empty())?).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn what_lies_beneath_is_opened_and_nothing_else() {
        let all = tempfile::tempdir().unwrap();
        let (inside, outside) = (all.path().join("inside"), all.path().join("outside"));
        for directory in [inside.join("a/b"), outside.clone()] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::write(inside.join("top"), "top").unwrap();
        fs::write(inside.join("a/b/deep"), "deep").unwrap();
        symlink("../outside", inside.join("link")).unwrap();
        symlink("b", inside.join("a/near")).unwrap();
        symlink("../outside/secret", inside.join("file")).unwrap();
        let handle = File::open(&inside).unwrap();
        assert_eq!(read(&handle, "top").unwrap(), "top");
        assert_eq!(read(&handle, "./a/./b/deep").unwrap(), "deep");
        for wrong in
            ["link/secret", "file", "../outside/secret", "a/../../outside/secret", "a/near/deep", "a/b/none"]
        {
            assert!(read(&handle, wrong).is_err(), "{wrong} was opened");
        }
        for link in ["link/secret", "file", "a/near/deep"] {
            let error = read(&handle, link).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{link}: {error}");
        }
        let absolute = outside.join("secret");
        assert!(read(&handle, absolute.to_str().unwrap()).is_err());
        // The directory itself, and a new file.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        assert!(open(&handle, Path::new("."), flags, Mode::empty()).is_ok());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        open(&handle, Path::new("a/new"), flags, Mode::from_raw_mode(0o600)).unwrap();
        assert!(inside.join("a/new").is_file());
        // A link that dangles is not written through.
        symlink("../outside/new", inside.join("dangling")).unwrap();
        assert!(open(&handle, Path::new("dangling"), flags, Mode::from_raw_mode(0o600)).is_err());
        assert!(!outside.join("new").exists());
    }
}
