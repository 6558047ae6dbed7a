//! The machine that is set up: its files (below another root where an image is made), users, groups, and what a user may read.
//!
//! Asks the kernel where it can: a process with the identity of vbrd tries (`setpriv`, which needs root), because ACLs,
//! mount options and security modules all have a say. Owns nothing.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::doctor::machine::group_of;

/// The user of vbrd.
pub const USER: &str = "vbr";
/// Its group.
pub const GROUP: &str = "vbradm";

/// See the module.
pub struct Machine {
    root: Option<PathBuf>,
}

/// Who vbrd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

/// What is to be done with a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    /// Go through a directory.
    Search,
}

impl Machine {
    pub fn new(root: Option<PathBuf>) -> Self {
        Self { root }
    }

    /// False where an image is made: nothing runs there.
    pub fn is_live(&self) -> bool {
        self.root.is_none()
    }

    /// Where a path of that machine lies here.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_path_buf(),
        }
    }

    pub fn read(&self, path: impl AsRef<Path>) -> String {
        std::fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    /// None where the package is not installed.
    pub fn vbrd(&self) -> Option<Identity> {
        let (gid, _) = self.group(GROUP)?;
        let users = self.read("/etc/passwd");
        let uid = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(USER)).then(|| fields.nth(1)?.parse().ok())?
        })?;
        Some(Identity { uid, gid })
    }

    /// Number and members.
    pub fn group(&self, name: &str) -> Option<(u32, Vec<String>)> {
        group_of(&self.read("/etc/group"), name)
    }

    pub fn group_name(&self, gid: u32) -> Option<String> {
        self.read("/etc/group").lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
        })
    }

    pub fn has_user(&self, name: &str) -> bool {
        self.read("/etc/passwd").lines().any(|line| line.split(':').next() == Some(name))
    }

    /// Whether somebody with these groups may do that to what lies at a path.
    pub fn may(&self, who: Identity, groups: &[u32], path: &Path, right: Right) -> bool {
        let path = self.at(path);
        let guess = || std::fs::metadata(&path).is_ok_and(|meta| by_mode(&meta, who, groups, right));
        // A directory above that is closed would make every one below look closed, too.
        let open = right == Right::Search && guess();
        if open || !rustix::process::geteuid().is_root() {
            return guess();
        }
        let list: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let groups = if list.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", list.join(","))
        };
        let test = if right == Right::Read { "-r" } else { "-x" };
        let tried = Command::new("setpriv")
            .args([format!("--reuid={}", who.uid), format!("--regid={}", who.gid), groups])
            .args(["/usr/bin/test", test])
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match tried.map(|status| status.code()) {
            Ok(Some(0)) => true,
            Ok(Some(1)) => false,
            _ => guess(),
        }
    }
}

fn by_mode(meta: &Metadata, who: Identity, groups: &[u32], right: Right) -> bool {
    let bit = if right == Right::Read { 4 } else { 1 };
    let shift = match () {
        () if meta.uid() == who.uid => 6,
        () if meta.gid() == who.gid || groups.contains(&meta.gid()) => 3,
        () => 0,
    };
    meta.mode() >> shift & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn users_and_groups_of_another_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nvbr:x:901:902::/:/bin/false\n")
            .unwrap();
        std::fs::write(dir.path().join("etc/group"), "vbradm:x:903:ann\n").unwrap();
        let machine = Machine::new(Some(dir.path().to_path_buf()));
        assert_eq!(machine.vbrd(), Some(Identity { uid: 901, gid: 903 }));
        assert_eq!(machine.group_name(903).as_deref(), Some("vbradm"));
        assert!(machine.has_user("vbr") && !machine.has_user("vb") && !machine.is_live());
        assert_eq!(machine.at("/srv/x"), dir.path().join("srv/x"));
    }

    #[test]
    fn rights_by_mode() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let own = Identity { uid: u32::MAX - 7, gid: u32::MAX - 7 };
        let may = |mode: u32, groups: &[u32]| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            by_mode(&std::fs::metadata(&file).unwrap(), own, groups, Right::Read)
        };
        let group = std::fs::metadata(&file).unwrap().gid();
        assert!(may(0o644, &[]) && !may(0o640, &[]) && may(0o640, &[group]) && !may(0o604, &[group]));
    }
}
