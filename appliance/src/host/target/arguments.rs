//! A VM as arguments of qemu. Pure, but for a look at the files that are named.
//!
//! What comes from a restore point came from a peer: every word of it is checked before it becomes part of an argument.

use serde_json::Value;
use vbr_api::{Firmware, VmConfig};

use super::StartSpec;
use super::launch::Card;
use crate::config::Accelerator;
use crate::host::HostError;
use crate::nbd::{blockdevs, check_chain};

/// The VM's monitor, in its directory.
pub(super) const MONITOR: &str = "qmp";
/// Its screen, for a VNC client.
pub(super) const SCREEN: &str = "vnc";
/// Its guest agent.
pub(super) const AGENT: &str = "qga";
/// What the guest says on its serial console.
pub(super) const CONSOLE: &str = "console.log";
/// Its process.
pub(super) const PID_FILE: &str = "pid";
/// What the firmware remembers.
pub(super) const UEFI_VARIABLES: &str = "uefi-variables.fd";

/// Bounds of what a VM may have here.
const CPUS_MAX: u32 = 1024;
const MEMORY_MIN: u64 = 16 << 20;
const MEMORY_MAX: u64 = 64 << 40;
pub(super) const NICS_MAX: usize = 64;

/// Where Debian and others have the firmware for UEFI: code, and variables to begin with.
const UEFI_FIRMWARE: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// The firmware of this machine, if it has one.
pub(super) fn uefi_firmware() -> Option<(&'static str, &'static str)> {
    UEFI_FIRMWARE
        .into_iter()
        .find(|(code, variables)| [code, variables].iter().all(|file| std::path::Path::new(file).is_file()))
}

/// What does not fit in a VM's configuration.
pub fn check_config(vm: &VmConfig) -> Result<(), HostError> {
    let wrong = |why: String, next_step| {
        Err(HostError::Invalid { what: "the VM's configuration".into(), why, next_step })
    };
    if vm.cpus == 0 || vm.cpus > CPUS_MAX {
        return wrong(format!("it has {} processors", vm.cpus), "say --cpus with 1 to 1024");
    }
    if vm.memory_bytes < MEMORY_MIN || vm.memory_bytes > MEMORY_MAX {
        return wrong(format!("it has {} bytes of memory", vm.memory_bytes), "say --memory, such as 4GiB");
    }
    if !matches!(vm.machine.as_str(), "q35" | "pc") {
        return wrong(format!("its machine is {:?}", vm.machine), "vbr starts q35 and pc");
    }
    if vm.nics.len() > NICS_MAX {
        return wrong(format!("it has {} network cards", vm.nics.len()), "vbr starts up to 64");
    }
    for nic in &vm.nics {
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let mac: Vec<&str> = nic.mac.split(':').collect();
        let octet = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        if !word(&nic.model) || mac.len() != 6 || !mac.iter().all(octet) {
            return wrong(
                format!("a network card is {:?} with address {:?}", nic.model, nic.mac),
                "the restore point's record is damaged or forged",
            );
        }
    }
    for disk in &vm.disks {
        if !matches!(disk.bus.as_str(), "virtio" | "scsi" | "sata" | "ide") {
            return wrong(
                format!("disk {} is attached by {:?}", disk.disk, disk.bus),
                "say --bus virtio, scsi, sata or ide",
            );
        }
    }
    Ok(())
}

/// A bridge's name as the kernel takes it.
pub fn check_bridge(name: &str) -> Result<(), HostError> {
    let fits = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(HostError::Invalid {
            what: format!("network {name:?}"),
            why: "that is no name of a bridge".into(),
            next_step: "name a bridge of this machine (ip link show type bridge), or `isolated`",
        })
    }
}

/// All arguments, but for how the process detaches itself, and what its [`cards`] are attached to.
pub(super) fn arguments(spec: &StartSpec) -> Result<Vec<String>, HostError> {
    check_config(&spec.vm)?;
    let vm = &spec.vm;
    let mut all = Arguments::default();
    all.pair("-name", format!("guest={},process=vbr-vm", spec.name));
    all.pair("-machine", vm.machine.clone());
    for accelerator in words(spec.accelerator) {
        all.pair("-accel", (*accelerator).to_owned());
    }
    all.pair("-cpu", "max".into());
    all.pair("-smp", vm.cpus.to_string());
    all.pair("-m", format!("{}B", vm.memory_bytes));
    all.one("-nodefaults");
    all.one("-no-user-config");
    all.pair("-rtc", "base=utc".into());
    if vm.firmware == Firmware::Uefi {
        firmware(&mut all)?;
    }
    all.pair("-vga", "std".into());
    all.pair("-display", "none".into());
    all.pair("-vnc", format!("unix:{SCREEN}"));
    all.pair("-qmp", format!("unix:{MONITOR},server=on,wait=off"));
    all.pair("-pidfile", PID_FILE.into());
    all.pair("-chardev", format!("file,id=console,path={CONSOLE},append=on"));
    all.pair("-serial", "chardev:console".into());
    all.pair("-device", "virtio-serial-pci,id=vserial".into());
    all.pair("-chardev", format!("socket,id=agent,path={AGENT},server=on,wait=off"));
    all.pair("-device", "virtserialport,bus=vserial.0,chardev=agent,name=org.qemu.guest_agent.0".into());
    disks(&mut all, spec)?;
    nics(&mut all, spec)?;
    Ok(all.0)
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn one(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn pair(&mut self, option: &str, value: String) {
        self.0.extend([option.to_owned(), value]);
    }
}

fn firmware(all: &mut Arguments) -> Result<(), HostError> {
    let Some((code, _)) = uefi_firmware() else {
        return Err(HostError::Invalid {
            what: "the VM's firmware".into(),
            why: "it is UEFI, and this machine has no UEFI firmware for VMs".into(),
            next_step: "apt install ovmf, then try again",
        });
    };
    all.pair("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"));
    all.pair("-drive", format!("if=pflash,unit=1,format=raw,file={UEFI_VARIABLES}"));
    Ok(())
}

fn disks(all: &mut Arguments, spec: &StartSpec) -> Result<(), HostError> {
    let mut nodes: Vec<Value> = Vec::new();
    for (n, image) in spec.disks.iter().enumerate() {
        let wrong = |error| HostError::image(image.path.display().to_string(), error);
        check_chain(image).map_err(wrong)?;
        nodes.extend(blockdevs(image, &node(n)).map_err(wrong)?);
    }
    for node in nodes {
        all.pair("-blockdev", node.to_string());
    }
    let attached = |n: usize| spec.vm.disks.iter().find(|disk| usize::from(disk.disk) == n);
    let bus = |n: usize| attached(n).map_or("virtio", |disk| disk.bus.as_str());
    let buses: Vec<&str> = (0..spec.disks.len()).map(bus).collect();
    let boots: Vec<Option<u32>> = (0..buses.len()).map(|n| attached(n)?.boot_index).collect();
    // Where nobody says what is started from, it is the first disk.
    let boots_by_itself = boots.iter().all(Option::is_none);
    if buses.contains(&"scsi") {
        all.pair("-device", "virtio-scsi-pci,id=scsi".into());
    }
    if buses.contains(&"sata") {
        all.pair("-device", "ahci,id=sata".into());
    }
    let mut used = [0_usize; 2];
    for (n, bus) in buses.into_iter().enumerate() {
        let place = match bus {
            "scsi" => "scsi-hd,bus=scsi.0".to_owned(),
            "sata" => format!("ide-hd,bus=sata.{}", next(&mut used[0], 6, bus)?),
            "ide" if spec.vm.machine == "pc" => {
                let place = next(&mut used[1], 4, bus)?;
                format!("ide-hd,bus=ide.{},unit={}", place / 2, place % 2)
            }
            "ide" => format!("ide-hd,bus=ide.{}", next(&mut used[1], 6, bus)?),
            _ => "virtio-blk-pci".to_owned(),
        };
        let boot = boots[n].or((n == 0 && boots_by_itself).then_some(1));
        let boot = boot.map(|index| format!(",bootindex={index}")).unwrap_or_default();
        all.pair("-device", format!("{place},id={},drive={}{boot}", device(n), node(n)));
    }
    Ok(())
}

fn next(used: &mut usize, places: usize, bus: &str) -> Result<usize, HostError> {
    let place = *used;
    *used += 1;
    if place < places {
        Ok(place)
    } else {
        Err(HostError::Invalid {
            what: "the VM's disks".into(),
            why: format!("more than {places} are attached by {bus}"),
            next_step: "attach them by --bus virtio or scsi",
        })
    }
}

fn nics(all: &mut Arguments, spec: &StartSpec) -> Result<(), HostError> {
    for (n, nic) in spec.vm.nics.iter().enumerate() {
        match spec.bridges.get(n).and_then(Option::as_deref) {
            Some(bridge) => check_bridge(bridge)?,
            // A network of its own: an address by DHCP, and nobody there.
            None => all.pair("-netdev", format!("user,id={},restrict=on", netdev(n))),
        }
        all.pair("-device", format!("{},netdev={},id=nic{n},mac={}", nic.model, netdev(n), nic.mac));
    }
    Ok(())
}

/// The network cards that are attached to bridges.
pub(super) fn cards(spec: &StartSpec) -> Vec<Card> {
    let card = |(n, bridge): (usize, &Option<String>)| Some(Card { id: netdev(n), bridge: bridge.clone()? });
    spec.bridges.iter().take(spec.vm.nics.len()).enumerate().filter_map(card).collect()
}

fn netdev(n: usize) -> String {
    format!("net{n}")
}

/// Name of a disk in qemu's block layer.
pub(super) fn node(n: usize) -> String {
    format!("disk{n}")
}

fn device(n: usize) -> String {
    format!("drive{n}")
}

fn words(accelerator: Accelerator) -> &'static [&'static str] {
    match accelerator {
        Accelerator::Auto => &["kvm", "tcg"],
        Accelerator::Kvm => &["kvm"],
        Accelerator::Tcg => &["tcg"],
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::nbd::ImageSpec;
    use vbr_api::{DiskFormat, VmConfigDisk, VmNic};

    fn spec(disks: usize, bus: &str) -> (tempfile::TempDir, StartSpec) {
        let dir = tempfile::tempdir().unwrap();
        let images = (0..disks).map(|n| {
            let path = dir.path().join(format!("disk-{n}.raw"));
            std::fs::write(&path, [0; 512]).unwrap();
            ImageSpec { writable: true, ..ImageSpec::read_only(path, DiskFormat::Raw) }
        });
        let disk = |n: usize| VmConfigDisk { disk: n as u16, bus: bus.into(), boot_index: None };
        let vm = VmConfig {
            cpus: 2,
            memory_bytes: 256 << 20,
            machine: "q35".into(),
            firmware: Firmware::Bios,
            nics: vec![VmNic {
                mac: "52:54:00:12:34:56".into(),
                model: "virtio-net-pci".into(),
                network: "br0".into(),
            }],
            disks: (0..disks).map(disk).collect(),
            source: "qemu".into(),
            definition: None,
        };
        let spec = StartSpec {
            name: "web".into(),
            directory: PathBuf::from("/nowhere"),
            disks: images.collect(),
            bridges: vec![None],
            accelerator: Accelerator::Tcg,
            vm,
        };
        (dir, spec)
    }

    #[test]
    fn disks_go_where_the_source_had_them() {
        for (bus, machine, first, last) in [
            (
                "virtio",
                "q35",
                "virtio-blk-pci,id=drive0,drive=disk0,bootindex=1",
                "virtio-blk-pci,id=drive2,drive=disk2",
            ),
            (
                "scsi",
                "q35",
                "scsi-hd,bus=scsi.0,id=drive0,drive=disk0,bootindex=1",
                "scsi-hd,bus=scsi.0,id=drive2,drive=disk2",
            ),
            (
                "sata",
                "pc",
                "ide-hd,bus=sata.0,id=drive0,drive=disk0,bootindex=1",
                "ide-hd,bus=sata.2,id=drive2,drive=disk2",
            ),
            (
                "ide",
                "pc",
                "ide-hd,bus=ide.0,unit=0,id=drive0,drive=disk0,bootindex=1",
                "ide-hd,bus=ide.1,unit=0,id=drive2,drive=disk2",
            ),
            (
                "ide",
                "q35",
                "ide-hd,bus=ide.0,id=drive0,drive=disk0,bootindex=1",
                "ide-hd,bus=ide.2,id=drive2,drive=disk2",
            ),
        ] {
            let (_dir, mut spec) = spec(3, bus);
            spec.vm.machine = machine.into();
            let all = arguments(&spec).unwrap();
            let drives: Vec<&String> = all.iter().filter(|arg| arg.contains("drive=")).collect();
            assert_eq!((drives[0].as_str(), drives[2].as_str()), (first, last));
        }
        let (_dir, spec) = spec(7, "sata");
        assert!(arguments(&spec).unwrap_err().to_string().contains("more than 6"));
    }

    #[test]
    fn a_card_without_a_network_reaches_nobody() {
        let (_dir, mut spec) = spec(1, "virtio");
        let all = arguments(&spec).unwrap().join(" ");
        assert!(all.contains("user,id=net0,restrict=on"), "{all}");
        spec.bridges = vec![Some("br0".into())];
        let all = arguments(&spec).unwrap().join(" ");
        assert!(all.contains("netdev=net0") && !all.contains("restrict"), "{all}");
        let cards = cards(&spec);
        assert_eq!((cards[0].id.as_str(), cards[0].bridge.as_str()), ("net0", "br0"));
        spec.bridges = vec![Some("br0,helper=/tmp/x".into())];
        assert!(arguments(&spec).is_err());
    }

    /// The configuration comes from a peer.
    #[test]
    fn no_word_of_a_configuration_becomes_an_option() {
        type Change = fn(&mut VmConfig);
        let forged: [Change; 7] = [
            |vm| vm.nics[0].model = "e1000,romfile=/etc/passwd".into(),
            |vm| vm.nics[0].mac = "52:54:00:12:34:56,x=y".into(),
            |vm| vm.machine = "q35,dumpdtb=/etc/x".into(),
            |vm| vm.disks[0].bus = "virtio,x".into(),
            |vm| vm.cpus = 0,
            |vm| vm.memory_bytes = 1,
            |vm| vm.nics = vec![vm.nics[0].clone(); 65],
        ];
        for change in forged {
            let (_dir, mut spec) = spec(1, "virtio");
            change(&mut spec.vm);
            assert!(arguments(&spec).is_err(), "{:?}", spec.vm);
        }
    }
}
