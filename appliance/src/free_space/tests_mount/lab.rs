//! Where proofs are made: loop devices, mounts, and a file system that copies files at one moment.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(super) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let out = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(text) } else { Err(format!("{program} {args:?}: {text}")) }
}

/// False, with a message, where a proof cannot run here.
pub(super) fn can_run(tools: &[&str]) -> bool {
    if run("id", &["-u"]).is_ok_and(|id| id.trim() != "0") {
        eprintln!("skipped: needs root");
        return false;
    }
    for tool in tools {
        if !["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(tool).exists()) {
            eprintln!("skipped: {tool} is not installed");
            return false;
        }
    }
    true
}

pub(super) fn images(default: u64) -> u64 {
    std::env::var("VBR_FREE_SPACE_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A mounted file system that can copy files at one moment (reflink).
pub(super) struct Lab {
    /// Unmounted before the directory goes: fields are dropped in their order.
    pool: Option<Mount>,
    dir: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new() -> Result<Self, String> {
        // Memory where there is enough of it: every sync of the guest's is one here too.
        let roomy = run("df", &["--output=avail", "-BG", "/dev/shm"]);
        let roomy = roomy.is_ok_and(|text| {
            text.lines()
                .nth(1)
                .and_then(|n| n.trim().trim_end_matches('G').parse().ok())
                .is_some_and(|n: u64| n >= 6)
        });
        let parent = if roomy { "/dev/shm" } else { "/var/tmp" };
        let dir = tempfile::Builder::new().prefix("vbr-free-space").tempdir_in(parent).unwrap();
        let pool = dir.path().join("pool.img");
        File::create(&pool).and_then(|file| file.set_len(6 << 30)).unwrap();
        run("mkfs.xfs", &["-q", "-m", "reflink=1", pool.to_str().unwrap()])?;
        let mut lab = Self { pool: None, dir };
        let device = Device::attach(&pool, 0)?;
        lab.pool = Some(Mount::new(device, &lab.dir.path().join("pool"), "rw")?);
        Ok(lab)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("pool").join(name)
    }

    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A loop device; detached when dropped.
pub(super) struct Device(pub(super) String);

impl Device {
    pub(super) fn attach(image: &Path, offset: u64) -> Result<Self, String> {
        let offset = offset.to_string();
        let args = ["--find", "--show", "--offset", &offset, image.to_str().unwrap()];
        run("losetup", &args).map(|device| Self(device.trim().to_owned()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0]);
    }
}

/// A mount; unmounted when dropped.
pub(super) struct Mount {
    pub(super) dir: PathBuf,
    device: Device,
}

impl Mount {
    pub(super) fn new(device: Device, dir: &Path, options: &str) -> Result<Self, String> {
        // What only ext4 knows is not an option of the names ext2 and ext3.
        let only_ext4 = options.contains("nodelalloc") || options.contains("journal_checksum");
        let kind = if only_ext4 { "ext4" } else { "auto" };
        Self::of(kind, device, dir, options)
    }

    pub(super) fn of(kind: &str, device: Device, dir: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(dir).unwrap();
        run("mount", &["-t", kind, "-o", options, &device.0, dir.to_str().unwrap()])?;
        Ok(Self { dir: dir.to_owned(), device })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..20 {
            if run("umount", &[self.dir.to_str().unwrap()]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("still mounted: {} on {}", self.dir.display(), self.device.0);
    }
}
