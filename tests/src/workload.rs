//! The image sequence of the byte figures: where it is, in which order, and which image is the older
//! version of which. Images are made by `tests/workload/make-images`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The order in which the images are replicated.
pub const SEQUENCE: [&str; 6] = ["web-v1", "web-v2", "web-v3", "db-v1", "db-v2", "desk-v1"];

/// Where what is made once for all runs is kept.
pub fn cache_directory() -> Result<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(named.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("vbr"))
}

/// The images in `VBR_WORKLOAD`, in order; without it those in the cache, made where they are missing.
pub fn images() -> Result<Vec<PathBuf>> {
    if let Some(directory) = std::env::var_os("VBR_WORKLOAD").map(PathBuf::from) {
        return images_in(&directory);
    }
    let directory = cache_directory()?.join("workload");
    if let Ok(images) = images_in(&directory) {
        return Ok(images);
    }
    eprintln!("   making the images in {} (15 GB, 10 minutes)", directory.display());
    std::fs::create_dir_all(&directory)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workload/make-images");
    let status =
        Command::new(&script).arg(&directory).stdin(Stdio::null()).stdout(std::io::stderr()).status();
    if !status.with_context(|| format!("starting {}", script.display()))?.success() {
        bail!("{} failed", script.display());
    }
    images_in(&directory)
}

/// Only one process at a time: disks are hard links to the images, and each new link changes an image's
/// time of change, which tools take for a change of the data. Held until the process ends.
fn lock(directory: &Path) -> Result<()> {
    static HELD: OnceLock<File> = OnceLock::new();
    if HELD.get().is_some() {
        return Ok(());
    }
    let file = File::open(directory)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("   another process measures with these images: waiting for it");
        flock(&file, FlockOperation::LockExclusive)?;
    }
    // Lost only where two threads come here at once, which holds the lock twice: as good.
    let _ = HELD.set(file);
    Ok(())
}

fn images_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let images: Vec<PathBuf> = SEQUENCE.iter().map(|name| directory.join(format!("{name}.img"))).collect();
    if let Some(missing) = images.iter().find(|image| !image.is_file()) {
        bail!("{} is missing: make the images with tests/workload/make-images", missing.display());
    }
    lock(directory)?;
    Ok(images)
}

/// The disk an image is a version of: `web-v2.img` is of `web`.
pub fn disk_of(image: &Path) -> String {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    stem.rsplit_once('-').map_or(stem.clone(), |(disk, _)| disk.to_owned())
}

/// The latest earlier image of the same disk.
pub fn previous_version<'a>(earlier: &'a [PathBuf], image: &Path) -> Option<&'a Path> {
    let disk = disk_of(image);
    earlier.iter().rev().map(PathBuf::as_path).find(|other| disk_of(other) == disk)
}
