//! VMs from directories of images: `*.img` and `*.raw` are raw, `*.qcow2` is qcow2, and a subdirectory
//! with such files is one VM with several disks. The format is declared by the file's name; contents
//! are never probed (a declared qcow2's own header gives its size). Owns nothing.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use vbr_api::{DiskFormat, DiskSpec, Host, Vm};

use super::{DIRECTORY_ENTRIES_MAX, HostError};
use crate::block::BlockRead;
use crate::block_file::RawFile;
use crate::limits::DISKS_MAX;
use crate::nbd::qcow2_check_header;

/// The VMs of a host, by name. A directory that cannot be read is left out with a warning.
pub(super) fn list(host: &Host) -> Vec<Vm> {
    let mut found: Vec<(String, Vec<DiskSpec>)> = Vec::new();
    for directory in &host.directories {
        for (name, is_directory) in entries(Path::new(directory)) {
            let path = format!("{}/{name}", directory.trim_end_matches('/'));
            if is_directory {
                let disks = disks_in(&path);
                if !disks.is_empty() {
                    found.push((name, disks));
                }
            } else if let Some((_, format)) = image_name(&name) {
                found.push((name, vec![DiskSpec { path, format }]));
            }
        }
    }
    let mut vms: Vec<Vm> = named(found).into_iter().map(|(name, disks)| vm(host, name, disks)).collect();
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    vms
}

/// The disks of one VM.
pub(super) fn resolve(host: &Host, name: &str) -> Result<Vec<DiskSpec>, HostError> {
    let mut matches: Vec<Vm> = list(host).into_iter().filter(|vm| vm.name == name).collect();
    if matches.len() > 1 {
        let paths: Vec<_> =
            matches.iter().flat_map(|vm| vm.disks.first()).map(|disk| disk.path.as_str()).collect();
        let paths = paths.join(", ");
        return Err(HostError::AmbiguousVm { host: host.name.clone(), vm: name.into(), paths });
    }
    match matches.pop() {
        Some(vm) => Ok(vm.disks),
        None => Err(HostError::NoSuchVm { host: host.name.clone(), vm: name.into() }),
    }
}

/// A lone disk goes by its file's stem, unless another VM has that name: then by its whole name.
fn named(found: Vec<(String, Vec<DiskSpec>)>) -> Vec<(String, Vec<DiskSpec>)> {
    let short = |name: &str| image_name(name).map_or(name, |(stem, _)| stem).to_owned();
    let mut count: HashMap<String, usize> = HashMap::new();
    for (name, _) in &found {
        *count.entry(short(name)).or_default() += 1;
    }
    let choose = |name: String| if count.get(&short(&name)) == Some(&1) { short(&name) } else { name };
    found.into_iter().map(|(name, disks)| (choose(name), disks)).collect()
}

fn vm(host: &Host, name: String, disks: Vec<DiskSpec>) -> Vm {
    let sizes: Option<Vec<u64>> = disks.iter().map(virtual_size).collect();
    let formats = disks.iter().map(|disk| disk.format).collect();
    let virtual_bytes = sizes.map(|sizes| sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size)));
    Vm { host: host.name.clone(), name, disks, virtual_bytes, formats, jobs: Vec::new() }
}

fn virtual_size(disk: &DiskSpec) -> Option<u64> {
    match disk.format {
        DiskFormat::Raw => RawFile::open(Path::new(&disk.path)).ok().map(|file| file.len()),
        DiskFormat::Qcow2 => qcow2_check_header(&disk.path, false).ok().map(|header| header.virtual_size),
    }
}

fn disks_in(directory: &str) -> Vec<DiskSpec> {
    entries(Path::new(directory))
        .into_iter()
        .filter(|(_, is_directory)| !is_directory)
        .filter_map(|(name, _)| {
            let (_, format) = image_name(&name)?;
            Some(DiskSpec { path: format!("{directory}/{name}"), format })
        })
        .take(DISKS_MAX)
        .collect()
}

/// Names in a directory in their order, each with whether it is a directory; hidden ones left out.
fn entries(directory: &Path) -> Vec<(String, bool)> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "a directory of images is left out of the list");
            return Vec::new();
        }
    };
    let mut names: Vec<(String, bool)> = listed
        .flatten()
        .take(DIRECTORY_ENTRIES_MAX)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            if name.starts_with('.') || name.chars().any(char::is_control) {
                return None;
            }
            // Links are followed: whoever fills the directory may link a device into it.
            let kind = fs::metadata(entry.path()).ok()?.file_type();
            (kind.is_dir() || kind.is_file() || kind.is_block_device()).then_some((name, kind.is_dir()))
        })
        .collect();
    names.sort();
    names
}

/// Stem and declared format of an image's name.
fn image_name(name: &str) -> Option<(&str, DiskFormat)> {
    let (stem, extension) = name.rsplit_once('.')?;
    let format = match extension {
        "img" | "raw" => DiskFormat::Raw,
        "qcow2" => DiskFormat::Qcow2,
        _ => return None,
    };
    (!stem.is_empty()).then_some((stem, format))
}
