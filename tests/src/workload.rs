//! The image sequence of the byte figures: where it is, in which order, and which image is the older
//! version of which. Images are made by `tests/workload/make-images`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The order in which the images are replicated.
pub const SEQUENCE: [&str; 6] = ["web-v1", "web-v2", "web-v3", "db-v1", "db-v2", "desk-v1"];

/// The images in `VBR_WORKLOAD`, in order.
pub fn images() -> Result<Vec<PathBuf>> {
    let Some(directory) = std::env::var_os("VBR_WORKLOAD").map(PathBuf::from) else {
        bail!(
            "VBR_WORKLOAD is not set: make the images with tests/workload/make-images and name their directory"
        );
    };
    let images: Vec<PathBuf> = SEQUENCE.iter().map(|name| directory.join(format!("{name}.img"))).collect();
    if let Some(missing) = images.iter().find(|image| !image.is_file()) {
        bail!("{} is missing: make the images with tests/workload/make-images", missing.display());
    }
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
