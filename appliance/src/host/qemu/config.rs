//! What a running VM is besides its disks: asked over its monitor, parsed here.
//!
//! Read before a snapshot, and never a reason for one to fail: a VM that does not tell is replicated without. Devices are
//! looked for in qemu's object tree, where each network card has its `mac`; which network it is on says the console's
//! `info network`, and of a tap device the bridge it is on. Bounds: `limits::VM_NICS_MAX` cards,
//! [`DEVICES_MAX`] devices.

use std::path::Path;

use serde_json::{Value, json};
use vbr_api::{Firmware, VmConfig, VmConfigDisk, VmNic};

use super::inventory::LiveDisk;
use super::qmp::{Qmp, QmpError};
use crate::limits::VM_NICS_MAX;
use crate::vm_config::is_mac;

/// Where qemu has its devices: those with a name, those without, and those of the machine itself.
const PLACES: [&str; 3] = ["/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"];
/// Devices that are looked at.
const DEVICES_MAX: usize = 4096;
/// Network devices of this machine.
const NETWORK_DEVICES: &str = "/sys/class/net";

/// The VM's configuration, with these disks in their order.
pub(super) fn read(monitor: &mut Qmp, disks: &[LiveDisk]) -> Result<VmConfig, QmpError> {
    let none = json!({});
    let cpus = monitor.execute("query-cpus-fast", &none)?.as_array().map_or(0, Vec::len);
    let memory = monitor.execute("query-memory-size-summary", &none)?;
    let bytes = |part: &str| memory[part].as_u64().unwrap_or(0);
    let machine = text(monitor, "/machine", "type").unwrap_or_default();
    let firmware = match text(monitor, "/machine", "pflash0").filter(|flash| !flash.is_empty()) {
        Some(_) => Firmware::Uefi,
        None => firmware_of(&text(monitor, "/machine", "firmware").unwrap_or_default()),
    };
    let disks = disks.iter().enumerate().map(|(n, disk)| describe(monitor, n as u16, disk));
    Ok(VmConfig {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: bytes("base-memory").saturating_add(bytes("plugged-memory")),
        machine: machine_of(&machine),
        firmware,
        disks: disks.collect(),
        nics: nics(monitor)?,
        source: "qemu".into(),
        definition: None,
    })
}

/// `q35`, `pc`, or what else it is, without version and the word that all have.
fn machine_of(class: &str) -> String {
    let name = class.strip_suffix("-machine").unwrap_or(class);
    match name {
        name if name.contains("q35") => "q35".into(),
        name if name == "pc" || name.starts_with("pc-") => "pc".into(),
        other => other.into(),
    }
}

/// By the name of a firmware that is no flash (`-bios`).
fn firmware_of(file: &str) -> Firmware {
    let file = file.to_lowercase();
    let is_uefi = ["ovmf", "edk2", "efi"].iter().any(|word| file.contains(word));
    if is_uefi { Firmware::Uefi } else { Firmware::Bios }
}

fn describe(monitor: &mut Qmp, disk: u16, live: &LiveDisk) -> VmConfigDisk {
    let device = text(monitor, &live.qdev, "type").unwrap_or_default();
    let parent = text(monitor, &live.qdev, "parent_bus").unwrap_or_default();
    let controller = parent.rsplit_once('/').and_then(|(owner, _)| text(monitor, owner, "type"));
    let boot = property(monitor, &live.qdev, "bootindex").and_then(|index| index.as_u64());
    VmConfigDisk {
        disk,
        bus: bus_of(&device, &controller.unwrap_or_default()).into(),
        boot_index: boot.and_then(|index| u32::try_from(index).ok()),
    }
}

/// By the types of the device and of what it is attached to.
fn bus_of(device: &str, controller: &str) -> &'static str {
    match device {
        device if device.starts_with("virtio") || device.starts_with("vhost") => "virtio",
        device if device.starts_with("scsi") => "scsi",
        device if device.starts_with("ide") && controller.contains("ahci") => "sata",
        device if device.starts_with("ide") => "ide",
        device if device.starts_with("nvme") => "nvme",
        device if device.starts_with("usb") => "usb",
        _ => "other",
    }
}

fn nics(monitor: &mut Qmp) -> Result<Vec<VmNic>, QmpError> {
    let said = monitor.execute("human-monitor-command", &json!({ "command-line": "info network" }))?;
    let networks = networks(said.as_str().unwrap_or_default());
    let mut found: Vec<VmNic> = Vec::new();
    for place in PLACES {
        let children = monitor.execute("qom-list", &json!({ "path": place }))?;
        for child in children.as_array().into_iter().flatten().take(DEVICES_MAX) {
            let kind = child["type"].as_str().and_then(|kind| kind.strip_prefix("child<")?.strip_suffix('>'));
            let (Some(model), Some(name)) = (kind, child["name"].as_str()) else { continue };
            let path = format!("{place}/{name}");
            let mac = text(monitor, &path, "mac").map(|mac| mac.to_lowercase()).filter(|mac| is_mac(mac));
            let Some(mac) = mac.filter(|_| found.len() < VM_NICS_MAX) else { continue };
            let netdev = text(monitor, &path, "netdev").unwrap_or_default();
            let network = networks.iter().find(|(name, _)| *name == netdev);
            let network = network.map(|(_, network)| on(network, Path::new(NETWORK_DEVICES)));
            found.push(VmNic { mac, model: model.into(), network: network.unwrap_or_default() });
        }
    }
    found.sort_by(|a, b| a.mac.cmp(&b.mac));
    Ok(found)
}

/// What a card's other end is.
#[derive(Debug, PartialEq, Eq)]
enum Network<'a> {
    /// A tap device of this machine.
    Tap(&'a str),
    /// A name: a bridge's, or what kind of network it is.
    Named(&'a str),
}

/// From the console's words, by the other end's id: `\ net0: index=0,type=tap,ifname=tap0,script=…`
fn networks(said: &str) -> Vec<(&str, Network<'_>)> {
    said.lines().filter_map(network).collect()
}

fn network(line: &str) -> Option<(&str, Network<'_>)> {
    let (id, rest) = line.trim_start_matches([' ', '\\']).split_once(": ")?;
    let field = |name: &str| {
        rest.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
    };
    let kind = field("type").filter(|kind| *kind != "nic")?;
    let tap = field("ifname").filter(|_| kind == "tap").map(Network::Tap);
    Some((id, field("br").map(Network::Named).or(tap).unwrap_or(Network::Named(kind))))
}

/// The bridge that a tap device is on, or its own name.
fn on(network: &Network<'_>, devices: &Path) -> String {
    match network {
        Network::Named(name) => (*name).to_owned(),
        Network::Tap(device) if device.contains('/') || device.starts_with('.') => String::new(),
        Network::Tap(device) => {
            let bridge = std::fs::read_link(devices.join(device).join("master")).ok();
            let bridge =
                bridge.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            bridge.unwrap_or_else(|| (*device).to_owned())
        }
    }
}

fn property(monitor: &mut Qmp, path: &str, property: &str) -> Option<Value> {
    monitor.execute("qom-get", &json!({ "path": path, "property": property })).ok()
}

fn text(monitor: &mut Qmp, path: &str, name: &str) -> Option<String> {
    property(monitor, path, name)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_firmware_and_buses_have_plain_words() {
        let machines =
            ["pc-q35-7.2-machine", "q35-machine", "pc-i440fx-7.2-machine", "pc-machine", "microvm-machine"];
        assert_eq!(machines.map(machine_of), ["q35", "q35", "pc", "pc", "microvm"]);
        assert_eq!(firmware_of("bios-256k.bin"), Firmware::Bios);
        assert_eq!(firmware_of("/usr/share/ovmf/OVMF.fd"), Firmware::Uefi);
        assert_eq!(bus_of("virtio-blk-device", ""), "virtio");
        assert_eq!(bus_of("scsi-hd", "virtio-scsi-device"), "scsi");
        assert_eq!((bus_of("ide-hd", "ich9-ahci"), bus_of("ide-hd", "piix3-ide")), ("sata", "ide"));
    }

    #[test]
    fn the_other_end_of_a_card_is_found() {
        let said = "hub 3\n \\ n1: nic1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\n\
            virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\n \
            \\ n0: index=0,type=user,net=10.0.2.0,restrict=off\n\
            net1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02\r\n \
            \\ hostnet1: index=0,type=tap,ifname=tap100i0,script=/x,downscript=/y\r\n \
            \\ n2: index=0,type=tap,helper=/usr/lib/qemu/qemu-bridge-helper,br=br7\n";
        let found = networks(said);
        let of = |id: &str| found.iter().find(|(name, _)| *name == id).map(|(_, network)| network);
        assert_eq!(of("n0"), Some(&Network::Named("user")));
        assert_eq!(of("hostnet1"), Some(&Network::Tap("tap100i0")));
        assert_eq!(of("n2"), Some(&Network::Named("br7")));
        assert_eq!(of("net1"), None, "the card itself");
        let devices = tempfile::tempdir().unwrap();
        let at = |name: &str| devices.path().join(name);
        std::fs::create_dir_all(at("tap100i0")).unwrap();
        std::os::unix::fs::symlink("../vmbr0", at("tap100i0/master")).unwrap();
        assert_eq!(on(&Network::Tap("tap100i0"), devices.path()), "vmbr0");
        assert_eq!(on(&Network::Tap("tap9"), devices.path()), "tap9");
        assert_eq!(on(&Network::Tap("../x"), devices.path()), "");
        assert_eq!(on(&Network::Named("user"), devices.path()), "user");
    }
}
