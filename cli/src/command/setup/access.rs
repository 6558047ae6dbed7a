//! What vbrd lacks to read the disks that are named: groups, devices, ACLs, sight of /home, and directories for clones.
//!
//! The least that does it: nothing where vbrd can read already; the group of a file that its group may read; an ACL for one
//! file otherwise. A group is never widened to `root`. Block devices are readable by their group and, in the unit, one by
//! one (`DeviceAllow=`), so that the group `disk` opens no other one. Decides only; `plan` makes steps of it.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, statfs};

use super::drop_in::DropIn;
use super::machine::{Identity, Machine, Right, USER};
use crate::exit::Exit;
use crate::failure::Failure;

/// XFS and btrfs.
const MAY_CLONE: [FsWord; 2] = [0x5846_5342, 0x9123_683E];
/// The unit has its own.
const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];
/// The unit does not see them.
const HIDDEN: [&str; 3] = ["/home", "/root", "/run/user"];
/// Endings of images in a directory.
const IMAGES: [&str; 5] = ["img", "raw", "qcow2", "qcow", "iso"];
/// Disks of one order.
pub const DISKS_MAX: usize = 256;

/// What vbrd lacks.
#[derive(Debug, Default)]
pub struct Access {
    /// All disks, directories read.
    pub disks: Vec<PathBuf>,
    /// Their sizes together.
    pub bytes: u64,
    pub drop_in: DropIn,
    /// Path and entry.
    pub acls: Vec<(PathBuf, String)>,
    /// Directories for clones, one a file system; those that are configured already, too.
    pub snapshots: Vec<PathBuf>,
}

/// Looks at the disks; `have`: what the unit grants by now, `clones`: directories that are configured for clones.
pub fn look(
    machine: &Machine,
    who: Identity,
    paths: &[PathBuf],
    have: &DropIn,
    clones: &[PathBuf],
) -> Result<Access, Failure> {
    let mut access = Access { drop_in: have.clone(), snapshots: clones.to_vec(), ..Access::default() };
    for path in paths {
        let path = checked(path)?;
        let meta = std::fs::metadata(machine.at(&path))
            .map_err(|error| Failure::io("Cannot look at a disk", &path, &error))?;
        if HIDDEN.iter().any(|hidden| path.starts_with(hidden)) {
            access.drop_in.home = true;
        }
        match meta.file_type() {
            kind if kind.is_block_device() => access.device(machine, &path, &meta)?,
            kind if kind.is_dir() => access.directory(machine, who, &path)?,
            kind if kind.is_file() => access.file(machine, who, &path, &meta),
            _ => return Err(not_a_disk(&path, "it is neither a file nor a block device nor a directory")),
        }
    }
    if access.disks.len() > DISKS_MAX {
        let why = format!("{} disks were named, {DISKS_MAX} may be", access.disks.len());
        return Err(Failure::usage(
            "Too many disks",
            why,
            "name some of them, and the others in another run",
        ));
    }
    access.clones(machine);
    Ok(access)
}

fn checked(path: &Path) -> Result<PathBuf, Failure> {
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(not_a_disk(path, "its path does not begin with /, or goes upwards"));
    }
    if PRIVATE.iter().any(|private| path.starts_with(private)) {
        return Err(not_a_disk(path, "the service has a /tmp and a /var/tmp of its own, and never sees it"));
    }
    if path.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return Err(not_a_disk(path, "its name has characters that no unit can name"));
    }
    Ok(path.components().collect())
}

fn not_a_disk(path: &Path, why: &str) -> Failure {
    Failure::usage(
        format!("Cannot give vbrd access to {}", path.display()),
        why,
        "name a disk, or a directory of images, with its whole path",
    )
}

impl Access {
    fn groups(&self, machine: &Machine) -> Vec<u32> {
        self.drop_in.groups.iter().filter_map(|name| machine.group(name)).map(|(gid, _)| gid).collect()
    }

    fn device(&mut self, machine: &Machine, path: &Path, meta: &Metadata) -> Result<(), Failure> {
        let group = machine.group_name(meta.gid()).filter(|_| meta.mode() & 0o040 != 0 && meta.gid() != 0);
        let Some(group) = group else {
            let why = "no group but root may read this device";
            let next =
                "give it a group that may, with a udev rule: OWNER=\"root\", GROUP=\"disk\", MODE=\"0640\"";
            return Err(Failure::new(
                Exit::Failed,
                "access",
                format!("Cannot give vbrd access to {}", path.display()),
                why,
                next,
            ));
        };
        self.drop_in.groups.insert(group);
        self.drop_in.devices.insert(path.to_path_buf());
        let size = std::fs::File::open(machine.at(path)).and_then(|mut file| file.seek(SeekFrom::End(0)));
        self.bytes += size.unwrap_or_default();
        self.disks.push(path.to_path_buf());
        Ok(())
    }

    fn directory(&mut self, machine: &Machine, who: Identity, path: &Path) -> Result<(), Failure> {
        let fail = |error| Failure::io("Cannot read a directory of disks", path, &error);
        let mut images = Vec::new();
        for entry in std::fs::read_dir(machine.at(path)).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let file = path.join(entry.file_name());
            let is_image = file.extension().is_some_and(|ending| IMAGES.iter().any(|image| ending == *image));
            if is_image && entry.file_type().map_err(fail)?.is_file() {
                images.push(file);
            }
        }
        if images.is_empty() {
            return Err(not_a_disk(path, "this directory holds no file that ends in .img, .raw or .qcow2"));
        }
        images.sort();
        for image in images {
            let meta = std::fs::metadata(machine.at(&image)).map_err(fail)?;
            self.file(machine, who, &image, &meta);
        }
        // To list it (vbrctl vm list).
        let groups = self.groups(machine);
        if !self.has_acl(path, 'r') && !machine.may(who, &groups, path, Right::Read) {
            self.acl(path, "r-x");
        }
        Ok(())
    }

    fn file(&mut self, machine: &Machine, who: Identity, path: &Path, meta: &Metadata) {
        self.bytes += meta.len();
        self.disks.push(path.to_path_buf());
        let mut groups = self.groups(machine);
        let closed = |access: &Self, groups: &[u32]| -> Vec<PathBuf> {
            let above = path.ancestors().skip(1).filter(|above| *above != Path::new("/"));
            let lacks = |above: &&Path| {
                !access.has_acl(above, 'x') && !machine.may(who, groups, above, Right::Search)
            };
            above.filter(lacks).map(Path::to_path_buf).collect()
        };
        // A right to read is seen only where one comes through, so directories count first.
        let opened = |groups: &[u32]| meta_allows(meta, who, groups);
        if closed(self, &groups).is_empty() && machine.may(who, &groups, path, Right::Read) {
            return;
        }
        let group = machine.group_name(meta.gid()).filter(|_| meta.mode() & 0o040 != 0 && meta.gid() != 0);
        if let Some(group) = group.filter(|_| !opened(&groups)) {
            self.drop_in.groups.insert(group);
            groups = self.groups(machine);
        }
        for above in closed(self, &groups) {
            self.acl(&above, "--x");
        }
        if !opened(&groups) && !machine.may(who, &groups, path, Right::Read) {
            self.acl(path, "r--");
        }
    }

    fn has_acl(&self, path: &Path, right: char) -> bool {
        self.acls.iter().any(|(known, entry)| known == path && entry.ends_with_right(right))
    }

    fn acl(&mut self, path: &Path, rights: &str) {
        let entry = format!("user:{USER}:{rights}");
        self.acls.retain(|(known, _)| known != path);
        self.acls.push((path.to_path_buf(), entry));
    }

    /// A place for clones on each file system that may have them.
    fn clones(&mut self, machine: &Machine) {
        let device = |path: &Path| std::fs::metadata(machine.at(path)).ok().map(|meta| meta.dev());
        let mut places: BTreeMap<u64, PathBuf> = BTreeMap::new();
        for directory in &self.snapshots {
            if let Some(device) = device(directory) {
                places.insert(device, directory.clone());
            }
        }
        for disk in &self.disks {
            let Ok(meta) = std::fs::metadata(machine.at(disk)) else { continue };
            let clones = statfs(machine.at(disk)).is_ok_and(|found| MAY_CLONE.contains(&found.f_type));
            let above = disk.parent().map(|above| above.join(".vbr"));
            if let Some(place) =
                above.filter(|_| meta.is_file() && clones && !places.contains_key(&meta.dev()))
            {
                places.insert(meta.dev(), place.clone());
                self.snapshots.push(place);
            }
        }
        self.drop_in
            .write
            .extend(self.snapshots.iter().filter(|place| !place.starts_with("/var/lib/vbr")).cloned());
    }
}

/// By its mode alone: a guess that saves an ACL where the group does it.
fn meta_allows(meta: &Metadata, who: Identity, groups: &[u32]) -> bool {
    let mode = meta.mode();
    match () {
        () if meta.uid() == who.uid => mode & 0o400 != 0,
        () if meta.gid() == who.gid || groups.contains(&meta.gid()) => mode & 0o040 != 0,
        () => mode & 0o004 != 0,
    }
}

trait Entry {
    fn ends_with_right(&self, right: char) -> bool;
}

impl Entry for String {
    fn ends_with_right(&self, right: char) -> bool {
        self.rsplit(':').next().is_some_and(|rights| rights.contains(right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};

    /// A root of its own, with disks of several owners. Needs root.
    fn lab() -> Option<(tempfile::TempDir, Machine)> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for below in ["etc", "srv/open", "srv/closed"] {
            std::fs::create_dir_all(dir.path().join(below)).unwrap();
        }
        std::fs::write(dir.path().join("etc/passwd"), "vbr:x:61901:61902::/:/bin/false\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nvbradm:x:61903:\nimages:x:61904:\n")
            .unwrap();
        let put = |path: &str, mode: u32, gid: u32| {
            let path = dir.path().join(path);
            std::fs::write(&path, vec![1; 1000]).unwrap();
            chown(&path, Some(0), Some(gid)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("srv/open/all.img", 0o644, 0);
        put("srv/open/group.img", 0o640, 61904);
        put("srv/open/own.qcow2", 0o600, 61904);
        put("srv/open/notes.txt", 0o600, 0);
        put("srv/closed/root.img", 0o640, 0);
        std::fs::set_permissions(dir.path().join("srv/closed"), std::fs::Permissions::from_mode(0o700))
            .unwrap();
        let machine = Machine::new(Some(dir.path().to_path_buf()));
        Some((dir, machine))
    }

    #[test]
    fn the_least_that_does_it() {
        let Some((_dir, machine)) = lab() else { return };
        let who = machine.vbrd().unwrap();
        let of = |path: &str| {
            let found = look(&machine, who, &[path.into()], &DropIn::default(), &[]).unwrap();
            let acls: Vec<String> =
                found.acls.iter().map(|(path, entry)| format!("{} {entry}", path.display())).collect();
            (found.drop_in.groups.into_iter().collect::<Vec<_>>(), acls)
        };
        let nothing: Vec<String> = Vec::new();
        assert_eq!(of("/srv/open/all.img"), (nothing.clone(), nothing.clone()));
        assert_eq!(of("/srv/open/group.img"), (vec!["images".into()], nothing.clone()));
        assert_eq!(
            of("/srv/open/own.qcow2"),
            (nothing.clone(), vec!["/srv/open/own.qcow2 user:vbr:r--".into()])
        );
        let wanted = vec!["/srv/closed user:vbr:--x".into(), "/srv/closed/root.img user:vbr:r--".into()];
        assert_eq!(of("/srv/closed/root.img"), (nothing, wanted));
        let all = look(&machine, who, &["/srv/open".into()], &DropIn::default(), &[]).unwrap();
        assert_eq!((all.disks.len(), all.bytes), (3, 3000));
    }

    #[test]
    fn what_no_unit_can_see() {
        let Some((_dir, machine)) = lab() else { return };
        let who = machine.vbrd().unwrap();
        for path in ["/tmp/x.img", "srv/x.img", "/srv/../x.img", "/srv/closed/none.img", "/srv"] {
            assert!(look(&machine, who, &[path.into()], &DropIn::default(), &[]).is_err(), "{path}");
        }
    }
}
