//! The file systems on disks: found by blkid and partx, each mounted read only through a loop device of its own.
//!
//! Everything is unmounted when it is dropped; what somebody is still in is detached after a while, and says so.

use std::path::{Path, PathBuf};
use std::process::Command as Blocking;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::exit::Exit;
use crate::failure::Failure;

/// How long a file system that is in use is waited for.
const IN_USE: Duration = Duration::from_secs(10);
/// Partitions of a disk that are looked at.
const PARTITIONS_MAX: usize = 128;

/// What was found on a disk.
pub struct Found {
    /// Number of the disk.
    pub disk: u16,
    /// None: the whole disk.
    pub partition: Option<u32>,
    pub bytes: u64,
    /// As blkid calls it.
    pub kind: Option<String>,
    /// Where it is mounted, or why it is not.
    pub mounted: Result<PathBuf, String>,
}

/// Undone when dropped.
#[derive(Default)]
pub struct Volumes {
    found: Vec<Found>,
    /// In the order in which they were made.
    mounts: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    loops: Vec<String>,
}

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    number: Option<u32>,
    offset: u64,
    bytes: u64,
}

impl Volumes {
    /// Mounts what is on a disk beneath `place`.
    pub async fn mount(&mut self, disk: u16, image: &Path, place: &Path) -> Result<(), Failure> {
        let bytes = std::fs::metadata(image).map(|meta| meta.len());
        let bytes = bytes.map_err(|error| Failure::io("Cannot read a disk", image, &error))?;
        let whole = Part { number: None, offset: 0, bytes };
        let image_text = image.display().to_string();
        let about = tool("blkid", &["-p", "-o", "export", &image_text]).await.unwrap_or_default();
        let parts = match value(&about, "USAGE").is_none() && value(&about, "PTTYPE").is_some() {
            true => {
                let words = ["--raw", "--bytes", "--noheadings", "--output", "NR,START,SIZE", &image_text];
                partitions(&tool("partx", &words).await?)
            }
            false => vec![whole],
        };
        for part in parts.into_iter().take(PARTITIONS_MAX) {
            let found = self.mount_part(disk, &image_text, part, place).await?;
            self.found.extend(found);
        }
        Ok(())
    }

    /// What was found, mounted or not.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Nothing is mounted.
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    async fn mount_part(
        &mut self,
        disk: u16,
        image: &str,
        part: Part,
        place: &Path,
    ) -> Result<Option<Found>, Failure> {
        let (offset, limit) = (part.offset.to_string(), part.bytes.to_string());
        let words = ["--find", "--show", "--offset", &offset, "--sizelimit", &limit, image];
        let device = tool("losetup", &words).await?.trim().to_owned();
        self.loops.push(device.clone());
        let about = tool("blkid", &["-p", "-o", "export", &device]).await.unwrap_or_default();
        let kind = value(&about, "TYPE").map(str::to_owned);
        let mounted = match (value(&about, "USAGE"), kind.as_deref()) {
            (Some("filesystem"), Some(kind)) => self.mount_device(&device, kind, disk, part, place).await?,
            (_, Some("LVM2_member")) => Err("a volume group: attach the disk by hand, with --images".into()),
            (_, Some(_)) => Err("no file system".into()),
            // An extended partition, or nothing at all.
            (_, None) => return Ok(None),
        };
        Ok(Some(Found { disk, partition: part.number, bytes: part.bytes, kind, mounted }))
    }

    async fn mount_device(
        &mut self,
        device: &str,
        kind: &str,
        disk: u16,
        part: Part,
        place: &Path,
    ) -> Result<Result<PathBuf, String>, Failure> {
        let part = part.number.map(|number| format!("p{number}")).unwrap_or_default();
        let directory = place.join(format!("disk{disk}{part}"));
        let made = std::fs::create_dir(&directory);
        made.map_err(|error| Failure::io("Cannot mount there", &directory, &error))?;
        self.directories.push(directory.clone());
        let target = directory.display().to_string();
        // A copy of a file system that may be mounted here already.
        let own = if kind == "xfs" { ",nouuid" } else { "" };
        let options = format!("ro,nosuid,nodev,noexec{own}");
        match tool("mount", &["-o", &options, device, &target]).await {
            Ok(_) => {
                self.mounts.push(directory.clone());
                Ok(Ok(directory))
            }
            Err(failure) => Ok(Err(failure.body.why)),
        }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for directory in self.mounts.iter().rev() {
            unmount(directory);
        }
        self.directories.iter().for_each(|directory| drop(std::fs::remove_dir(directory)));
        self.loops.iter().rev().for_each(|device| drop(run("losetup", &["--detach", device])));
    }
}

fn unmount(directory: &Path) {
    let target = directory.display().to_string();
    let end = Instant::now() + IN_USE;
    let mut told = false;
    while let Err(why) = run("umount", &[&target]) {
        if Instant::now() > end {
            eprintln!("{target} is still in use: it is detached, and gone when nobody is in it any more");
            drop(run("umount", &["--lazy", &target]));
            return;
        }
        if !told {
            eprintln!("{why}; waiting");
            told = true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Runs a tool to its end, at the end of everything.
fn run(tool: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Blocking::new(tool).args(arguments).env("LC_ALL", "C").output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{tool}: {error}")),
    }
}

/// Runs a tool and answers what it says.
async fn tool(name: &str, arguments: &[&str]) -> Result<String, Failure> {
    let failed = |why: String| {
        let next = "see the kernel's log (dmesg), or look at the disks themselves with --images";
        Failure::new(Exit::Failed, "mount_failed", format!("Cannot run {name}"), why, next)
    };
    let output = Command::new(name).args(arguments).env("LC_ALL", "C").output().await;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(failed(said.first().map_or_else(|| output.status.to_string(), |line| (*line).to_owned())))
}

/// Of `blkid -o export`.
fn value<'a>(about: &'a str, key: &str) -> Option<&'a str> {
    about.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::trim)
}

/// Of `partx --output NR,START,SIZE`: sectors of 512 bytes, and bytes. An empty one is none.
fn partitions(text: &str) -> Vec<Part> {
    let part = |line: &str| {
        let mut words = line.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let offset = words.next()?.parse::<u64>().ok()?.checked_mul(512)?;
        let bytes = words.next()?.parse().ok()?;
        (bytes > 0).then_some(Part { number: Some(number), offset, bytes })
    };
    text.lines().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_say() {
        let about = "DEVNAME=/dev/loop1\nUUID=1-2\nTYPE=xfs\nUSAGE=filesystem\n";
        assert_eq!((value(about, "TYPE"), value(about, "PTTYPE")), (Some("xfs"), None));
        let listed = "1 2048 104857600\n2 206848 0\n 5 206848 52428800\nnonsense\n";
        let part = |number, offset, bytes| Part { number: Some(number), offset, bytes };
        assert_eq!(partitions(listed), [part(1, 1 << 20, 104_857_600), part(5, 206_848 * 512, 52_428_800)]);
    }
}
