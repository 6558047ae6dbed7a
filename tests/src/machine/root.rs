//! The root that machines start from: a minimal Debian of this machine's release with systemd, and an archive of
//! the packages that ours wants, so that apt installs them inside without a network.
//!
//! Made by debootstrap once (a minute or two) and kept in the cache directory; made again when the list of
//! packages changes. Nobody writes to it afterwards: machines put an overlay above.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::package::Package;
use crate::process::{exists, finish};

/// What a machine has before anything of ours is there.
const INCLUDE: [&str; 5] = ["systemd", "systemd-sysv", "dbus", "iproute2", "procps"];
/// What is installed in a machine later, without what it recommends.
const LATER: [&str; 1] = ["qemu-system-x86"];
/// Changes when what this module makes changes.
const VERSION: u32 = 2;

/// The base root for machines that `package` is installed in; made where it is missing.
pub fn prepare(package: &Package) -> Result<PathBuf> {
    let suite = suite()?;
    ensure!(exists("debootstrap"), "debootstrap is missing: apt-get install debootstrap");
    let wanted: BTreeSet<String> = package.wanted()?;
    let key = format!("{VERSION} {suite} {INCLUDE:?} {wanted:?} {LATER:?}\n");
    let place = cache()?.join("debian-root");
    let (root, mark) = (place.join("root"), place.join("key"));
    if std::fs::read_to_string(&mark).is_ok_and(|text| text == key) {
        return Ok(root);
    }
    println!("making the base root in {} (debootstrap {suite}, once)", place.display());
    // Without its mark it is not taken for whole, whenever this ends.
    let _ = std::fs::remove_file(&mark);
    if root.exists() {
        std::fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    std::fs::create_dir_all(&place)?;
    debootstrap(&suite, &root)?;
    fetch(&root, &wanted)?;
    std::fs::write(&mark, key)?;
    Ok(root)
}

/// Release of this machine: programs that were built here run on it.
fn suite() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let field = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    if field("ID") != Some("debian") {
        bail!("the system test needs Debian: its machines run the release that built the package");
    }
    Ok(field("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME")?.to_owned())
}

/// `VBR_CACHE`, or the user's cache directory.
fn cache() -> Result<PathBuf> {
    let own = std::env::var_os("VBR_CACHE").map(PathBuf::from);
    let users = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/vbr"));
    own.or_else(users).context("neither VBR_CACHE nor HOME says where the base root may lie")
}

/// Where this machine gets its packages from, unless `MIRROR` says.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("MIRROR") {
        return Ok(mirror);
    }
    let mut sites = Command::new("apt-get");
    sites.args(["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]);
    let sites = String::from_utf8_lossy(&finish(&mut sites)?.stdout).into_owned();
    let suite = suite()?;
    let wanted = format!(" {suite} main");
    let site = sites.lines().find_map(|line| line.strip_suffix(&wanted));
    Ok(site.map_or_else(|| "http://deb.debian.org/debian".into(), |site| site.trim_end_matches('/').into()))
}

fn debootstrap(suite: &str, root: &Path) -> Result<()> {
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", &format!("--include={}", INCLUDE.join(",")), suite]);
    finish(command.arg(root).arg(mirror()?)).map(drop)
}

/// Into the root's archive of packages, with whatever they need besides.
fn fetch(root: &Path, wanted: &BTreeSet<String>) -> Result<()> {
    let inside = |words: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(root).args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]).args(words);
        finish(&mut command).map(drop)
    };
    inside(&["update"])?;
    let words: Vec<&str> = wanted.iter().map(String::as_str).collect();
    inside(&[&["install", "--download-only"], &words[..]].concat())?;
    inside(&[&["install", "--download-only", "--no-install-recommends"], &LATER[..]].concat())
}
