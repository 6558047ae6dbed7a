//! What libvirt's documents say of a VM's disks, checkpoints and backup, and those that we hand to it. Pure.
//!
//! A disk is one that the guest writes to and that cannot be taken out. What is ours is known by its name: checkpoints are
//! `vbr-JOB-SESSION`, exports `vbr-OWNER-SESSION-INDEX`, where the owner is one vbrd.

use std::fmt::Write as _;
use std::path::Path;

use vbr_api::{DiskFormat, DiskSpec};

use super::xml::{Element, escape};

const OURS: &str = "vbr-";

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DomainDisk {
    /// `vda`
    pub target: String,
    /// Its file or device; else where it lies, in words.
    pub path: String,
    /// None where it is neither raw nor qcow2.
    pub format: Option<DiskFormat>,
    /// Whether `path` is one.
    pub is_path: bool,
}

impl DomainDisk {
    /// As a job names it.
    pub fn spec(&self) -> DiskSpec {
        DiskSpec { path: self.path.clone(), format: self.format.unwrap_or(DiskFormat::Raw) }
    }
}

/// The disks, in the order of the definition.
pub(super) fn disks(domain: &Element) -> Vec<DomainDisk> {
    let devices = domain.child("devices");
    devices.into_iter().flat_map(|devices| devices.all("disk")).filter_map(disk).collect()
}

fn disk(disk: &Element) -> Option<DomainDisk> {
    let device = disk.attribute("device").unwrap_or("disk");
    if !matches!(device, "disk" | "lun") || disk.child("readonly").is_some() {
        return None;
    }
    let target = disk.child("target")?.attribute("dev")?.to_owned();
    let source = disk.child("source")?;
    let path = source.attribute("file").or_else(|| source.attribute("dev"));
    let elsewhere = || {
        let kind = source.attribute("protocol").or_else(|| source.attribute("pool"));
        let name = source.attribute("name").or_else(|| source.attribute("volume")).unwrap_or(&target);
        format!("{}:{name}", kind.or_else(|| disk.attribute("type")).unwrap_or("disk"))
    };
    let format = match disk.child("driver").and_then(|driver| driver.attribute("type")) {
        Some("qcow2") => Some(DiskFormat::Qcow2),
        Some("raw") | None => Some(DiskFormat::Raw),
        Some(_) => None,
    };
    let is_path = path.is_some();
    Some(DomainDisk { path: path.map_or_else(elsewhere, str::to_owned), target, format, is_path })
}

/// A session's checkpoint.
pub(super) fn checkpoint_name(job: &str, session: &str) -> String {
    format!("{OURS}{job}-{session}")
}

/// The session of a checkpoint of this job.
pub(super) fn session_of<'a>(checkpoint: &'a str, job: &str) -> Option<&'a str> {
    let session = checkpoint.strip_prefix(OURS)?.strip_prefix(job)?.strip_prefix('-')?;
    // A job's name may be the beginning of another's.
    session.bytes().all(|byte| byte.is_ascii_alphanumeric()).then_some(session)
}

/// The disks that a checkpoint records changes of.
pub(super) fn recorded(checkpoint: &Element) -> Vec<String> {
    let disks = checkpoint.child("disks");
    let disks = disks.into_iter().flat_map(|disks| disks.all("disk"));
    let recorded = disks.filter(|disk| disk.attribute("checkpoint") == Some("bitmap"));
    recorded.filter_map(|disk| disk.attribute("name").map(str::to_owned)).collect()
}

/// The name of a disk's export.
pub(super) fn export_name(owner: &str, session: &str, index: usize) -> String {
    format!("{OURS}{owner}-{session}-{index}")
}

/// A disk of a backup, ours to begin or one that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackupDisk {
    pub target: String,
    pub export: String,
    /// The checkpoint since which changes are told; none for all of it.
    pub since: Option<String>,
}

impl BackupDisk {
    /// The name under which its export tells its changes.
    pub fn bitmap(&self) -> String {
        format!("backup-{}", self.target)
    }
}

/// A backup: where it is served, and its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backup {
    pub socket: Option<String>,
    pub disks: Vec<BackupDisk>,
}

impl Backup {
    /// As libvirt tells of one that runs.
    pub fn read(backup: &Element) -> Self {
        let socket = backup.child("server").and_then(|server| server.attribute("socket")).map(str::to_owned);
        let disks = backup.child("disks").into_iter().flat_map(|disks| disks.all("disk"));
        let disks = disks.filter(|disk| disk.attribute("backup") != Some("no")).filter_map(|disk| {
            let target = disk.attribute("name")?.to_owned();
            let export = disk.attribute("exportname").unwrap_or(&target).to_owned();
            let since =
                disk.attribute("incremental").filter(|_| disk.attribute("backupmode") != Some("full"));
            Some(BackupDisk { target, export, since: since.map(str::to_owned) })
        });
        Self { socket, disks: disks.collect() }
    }

    /// Whether a vbrd of this name began it.
    pub fn is_of(&self, owner: &str) -> bool {
        let begins = format!("{OURS}{owner}-");
        self.disks.iter().any(|disk| disk.export.starts_with(&begins))
    }

    /// What makes libvirt begin it. `others`: disks that are left out.
    pub fn document(&self, others: &[String], scratch: impl Fn(&BackupDisk) -> String) -> String {
        let mut text = String::from("<domainbackup mode='pull'>\n");
        if let Some(socket) = &self.socket {
            let _ = writeln!(text, "  <server transport='unix' socket='{}'/>\n  <disks>", escape(socket));
        }
        for disk in &self.disks {
            let mode = match &disk.since {
                Some(since) => format!("backupmode='incremental' incremental='{}'", escape(since)),
                None => "backupmode='full'".to_owned(),
            };
            let (name, export) = (escape(&disk.target), escape(&disk.export));
            let _ = writeln!(
                text,
                "    <disk name='{name}' backup='yes' type='file' {mode} exportname='{export}'>\n      \
                 <scratch file='{}'/>\n    </disk>",
                escape(&scratch(disk))
            );
        }
        for name in others {
            let _ = writeln!(text, "    <disk name='{}' backup='no'/>", escape(name));
        }
        text + "  </disks>\n</domainbackup>\n"
    }
}

/// What makes libvirt record the changes of these disks from the moment of the backup on, and of no other.
pub(super) fn checkpoint_document(name: &str, recorded: &[String], others: &[String]) -> String {
    let mut text = format!("<domaincheckpoint>\n  <name>{}</name>\n  <disks>\n", escape(name));
    for (disks, word) in [(recorded, "bitmap"), (others, "no")] {
        for disk in disks {
            let _ = writeln!(text, "    <disk name='{}' checkpoint='{word}'/>", escape(disk));
        }
    }
    text + "  </disks>\n</domaincheckpoint>\n"
}

/// Bytes of a Unix socket's path.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Whether qemu can listen there.
pub(super) fn fits_socket(path: &Path) -> bool {
    path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_what_the_guest_writes_to() {
        let text = "<domain><devices>\
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vm/a.qcow2'/><target dev='vda'/></disk>\
            <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/b'/><target dev='vdb'/></disk>\
            <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='pool/c'/><target dev='vdc'/></disk>\
            <disk type='file'><driver type='vmdk'/><source file='/vm/d.vmdk'/><target dev='vdd'/></disk>\
            <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>\
            <disk type='file' device='disk'><source file='/ro'/><target dev='vde'/><readonly/></disk>\
            <disk type='file' device='disk'><target dev='vdf'/></disk></devices></domain>";
        let found = disks(&Element::parse(text).unwrap());
        let short: Vec<_> =
            found.iter().map(|d| (d.target.as_str(), d.path.as_str(), d.format, d.is_path)).collect();
        let (raw, qcow2) = (Some(DiskFormat::Raw), Some(DiskFormat::Qcow2));
        assert_eq!(
            short,
            [
                ("vda", "/vm/a.qcow2", qcow2, true),
                ("vdb", "/dev/vg/b", raw, true),
                ("vdc", "rbd:pool/c", raw, false),
                ("vdd", "/vm/d.vmdk", None, true),
            ]
        );
    }

    #[test]
    fn names_say_whose_it_is() {
        let name = checkpoint_name("web", "01abc");
        assert_eq!(session_of(&name, "web"), Some("01abc"));
        assert_eq!(session_of(&checkpoint_name("web-2", "01abc"), "web"), None);
        assert_eq!(session_of(&name, "we"), None);
        assert_eq!(session_of("web", "web"), None);
    }

    #[test]
    fn a_backup_comes_back_from_its_document() {
        let disk = |target: &str, index, since: Option<&str>| BackupDisk {
            target: target.into(),
            export: export_name("0a1b", "s1", index),
            since: since.map(Into::into),
        };
        let disks = vec![disk("vda", 0, Some("vbr-web-s0")), disk("vdb", 1, None)];
        let backup = Backup { socket: Some("/run/it's/x.sock".into()), disks };
        let text = backup.document(&["vdc".into()], |disk| format!("/s/{}", disk.target));
        let parsed = Element::parse(&text).unwrap();
        assert_eq!(Backup::read(&parsed), backup, "{text}");
        assert!(backup.is_of("0a1b") && !backup.is_of("0a1") && !backup.is_of("ffff"));
        assert_eq!(backup.disks[1].bitmap(), "backup-vdb");
        let text = checkpoint_document("vbr-web-s1", &["vda".into()], &["vdb".into()]);
        let parsed = Element::parse(&text).unwrap();
        assert_eq!(recorded(&parsed), ["vda"]);
        assert_eq!(parsed.child("name").unwrap().text, "vbr-web-s1");
    }
}
