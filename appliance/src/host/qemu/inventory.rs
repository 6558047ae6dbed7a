//! What a running VM says of its disks: parsed from `query-block`. Pure.
//!
//! A disk is a device with a writable medium that cannot be taken out; the flash of a firmware is none. Names of what we add to a VM follow from the name
//! of the node below, so that whatever an earlier vbrd left behind is known again without a record of it.

use serde_json::Value;
use vbr_api::{DiskFormat, DiskSpec};

/// What we add to a VM begins with it.
pub(super) const OURS: &str = "vbr-";
/// Bitmaps that are ours: `vbr:JOB:SESSION`.
const BITMAP: &str = "vbr:";
/// Where the machine has its firmware and what that remembers: qemu lets nobody between it and its image.
const FLASH: &str = "/machine/system.flash";

/// How the name of an image begins that qemu tells by all that it was given.
const IN_JSON: &str = "json:";

/// A change-tracking bitmap of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    /// Its name.
    pub name: String,
    /// It takes down what is written now.
    pub recording: bool,
    /// qemu ended without writing it back: it says nothing.
    pub inconsistent: bool,
}

impl Bitmap {
    /// The name of a session's bitmap.
    pub fn name_of(job: &str, session: &str) -> String {
        format!("{BITMAP}{job}:{session}")
    }

    /// The job it is for, and the session from whose moment on it records.
    pub fn owner(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix(BITMAP)?.split_once(':')
    }
}

/// A disk of a running VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LiveDisk {
    /// The device's place in qemu's object tree.
    pub qdev: String,
    /// The node that the device reads and writes now; one of ours while a snapshot lives.
    pub node: String,
    /// The image's file.
    pub path: String,
    /// Its format, as qemu has it open.
    pub format: DiskFormat,
    /// Virtual size.
    pub bytes: u64,
    /// Ours, on that node.
    pub bitmaps: Vec<Bitmap>,
}

impl LiveDisk {
    /// As a job names it.
    pub fn spec(&self) -> DiskSpec {
        DiskSpec { path: self.path.clone(), format: self.format }
    }

    /// A node, a file or an export of ours that belongs to this disk: at most 31 characters, as qemu wants.
    pub fn ours(&self, kind: &str) -> String {
        our_name(kind, &self.node)
    }
}

/// See [`LiveDisk::ours`].
pub(super) fn our_name(kind: &str, node: &str) -> String {
    format!("{OURS}{kind}-{}", &blake3::hash(node.as_bytes()).to_hex()[..16])
}

/// All disks, in qemu's order.
pub(super) fn disks(answer: &Value) -> Vec<LiveDisk> {
    answer.as_array().into_iter().flatten().filter_map(disk).collect()
}

fn disk(device: &Value) -> Option<LiveDisk> {
    let inserted = device.get("inserted")?;
    let flash = device["qdev"].as_str().is_some_and(|device| device.starts_with(FLASH));
    if device["removable"] == true || inserted["ro"] == true || flash {
        return None;
    }
    let image = &inserted["image"];
    Some(LiveDisk {
        qdev: device["qdev"].as_str()?.to_owned(),
        node: inserted["node-name"].as_str()?.to_owned(),
        path: file_of(inserted["file"].as_str()?),
        format: if image["format"] == "qcow2" { DiskFormat::Qcow2 } else { DiskFormat::Raw },
        bytes: image["virtual-size"].as_u64()?,
        bitmaps: bitmaps(inserted),
    })
}

/// qemu names an image whose header says something else of what lies below by all that it was given, as JSON; where that
/// is cut, because it is long, it stays as it is.
fn file_of(said: &str) -> String {
    let whole = said.strip_prefix(IN_JSON).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let file = whole.and_then(|whole| Some(whole["file"]["filename"].as_str()?.to_owned()));
    file.unwrap_or_else(|| said.to_owned())
}

/// Whether one of these nodes holds a moment for a session.
pub(in crate::host) fn holds_a_moment(nodes: &Value) -> bool {
    let filter = format!("{OURS}cbw-");
    let named = |node: &Value| node["node-name"].as_str().is_some_and(|name| name.starts_with(&filter));
    nodes.as_array().into_iter().flatten().any(named)
}

/// Names of files that were cut: from the nodes that VMs of our own have below their images.
pub(super) fn name_files(disks: &mut [LiveDisk], nodes: &[Value]) {
    for disk in disks.iter_mut().filter(|disk| disk.path.starts_with(IN_JSON)) {
        let below = format!("{}-file", disk.node);
        let found = nodes.iter().find(|node| node["node-name"] == below.as_str());
        if let Some(path) = found.and_then(|node| node["file"].as_str()) {
            disk.path = path.to_owned();
        }
    }
}

/// Bitmaps of ours on a node, as `query-block` or `query-named-block-nodes` tells them.
pub(super) fn bitmaps(node: &Value) -> Vec<Bitmap> {
    let all = node["dirty-bitmaps"].as_array().into_iter().flatten();
    all.filter_map(|bitmap| {
        let name = bitmap["name"].as_str().filter(|name| name.starts_with(BITMAP))?.to_owned();
        let (recording, inconsistent) = (bitmap["recording"] == true, bitmap["inconsistent"] == true);
        Some(Bitmap { name, recording, inconsistent })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn disks_are_what_is_written_and_stays() {
        let disk = |qdev: &str, removable: bool, ro: bool| {
            json!({ "device": "", "qdev": qdev, "removable": removable, "inserted": {
                "ro": ro, "node-name": "#block163", "drv": "qcow2", "file": "/vm/a.qcow2",
                "image": { "filename": "/vm/a.qcow2", "format": "qcow2", "virtual-size": 67_108_864 },
                "dirty-bitmaps": [
                    { "name": "vbr:web:s1", "recording": true, "count": 0 },
                    { "name": "vbr:web.a-b:s2", "recording": false, "inconsistent": true },
                    { "name": "libvirt-1", "recording": true },
                ] } })
        };
        let empty = json!({ "device": "floppy0", "removable": true });
        let no_device = json!({ "device": "x", "removable": false, "inserted": {} });
        let all = json!([
            disk("/a", false, false),
            disk("/cd", true, false),
            disk("/machine/system.flash1", false, false),
            disk("/b", false, true),
            empty,
            no_device
        ]);
        let found = disks(&all);
        assert_eq!(found.len(), 1);
        let disk = &found[0];
        assert_eq!((disk.qdev.as_str(), disk.bytes, disk.format), ("/a", 64 << 20, DiskFormat::Qcow2));
        let owners: Vec<_> = disk.bitmaps.iter().map(|bitmap| bitmap.owner().unwrap()).collect();
        assert_eq!(owners, [("web", "s1"), ("web.a-b", "s2")]);
        assert!(disk.bitmaps[0].recording && disk.bitmaps[1].inconsistent);
        assert_eq!(Bitmap::name_of("web", "s1"), disk.bitmaps[0].name);
        assert!(disk.ours("c").len() <= 31 && disk.ours("c") != disk.ours("f"));
        assert_eq!(disks(&json!({})), []);
    }

    #[test]
    fn an_image_that_is_told_as_json_is_its_file() {
        let said = r#"json:{"backing": {"driver": "raw", "file": {"driver": "file", "filename": "/p/a"}}, "driver": "qcow2", "file": {"driver": "file", "filename": "/f/b"}}"#;
        assert_eq!(file_of(said), "/f/b");
        assert_eq!(file_of("/f/b"), "/f/b");
        let cut = &said[..60];
        let mut disks = [LiveDisk {
            qdev: "/a".into(),
            node: "disk-0".into(),
            path: file_of(cut),
            format: DiskFormat::Qcow2,
            bytes: 1,
            bitmaps: Vec::new(),
        }];
        assert_eq!(disks[0].path, cut);
        name_files(&mut disks, &[json!({ "node-name": "disk-0-file", "file": "/f/b" })]);
        assert_eq!(disks[0].path, "/f/b");
    }
}
