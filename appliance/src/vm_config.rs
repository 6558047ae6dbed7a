//! A VM's configuration: how it is bounded, how it crosses the wire, and how two of them differ. Pure.
//!
//! It comes from a hypervisor, a peer or a datastore that others may have written to, and ends in records, on terminals
//! and with whoever starts the VM: so words are short and without control characters, numbers within bounds, before
//! anything is made of them. Not its job: asking for it (`host`), keeping it (`repository`). Bounds: `limits`,
//! [`CPUS_MAX`], [`MEMORY_BYTES_MAX`], [`WORD_BYTES_MAX`].

use vbr_api::{VmConfig, VmConfigDisk, VmNic};

use crate::limits::{DISKS_MAX, VM_CONFIG_BYTES_MAX, VM_DEFINITION_BYTES_MAX, VM_NICS_MAX};

/// More than any hypervisor gives to a VM.
pub const CPUS_MAX: u32 = 65_536;
/// The same.
pub const MEMORY_BYTES_MAX: u64 = 1 << 50;
/// A name of a machine, a model, a network, a bus.
pub const WORD_BYTES_MAX: usize = 64;

/// What does not fit.
pub fn check(config: &VmConfig) -> Result<(), String> {
    if !(1..=CPUS_MAX).contains(&config.cpus) || !(1..=MEMORY_BYTES_MAX).contains(&config.memory_bytes) {
        return Err("the number of processors or the memory of its VM is out of bounds".into());
    }
    if config.nics.len() > VM_NICS_MAX || config.disks.len() > DISKS_MAX {
        return Err(format!(
            "its VM has {} network cards and {} disks; {VM_NICS_MAX} and {DISKS_MAX} are the most",
            config.nics.len(),
            config.disks.len()
        ));
    }
    if config.nics.iter().any(|nic| !is_mac(&nic.mac)) {
        return Err("the address of a network card of its VM is none".into());
    }
    let nics = config.nics.iter().flat_map(|nic| [&nic.model, &nic.network]);
    let disks = config.disks.iter().map(|disk| &disk.bus);
    let words = [&config.machine, &config.source].into_iter().chain(nics).chain(disks);
    if config.machine.is_empty() || words.into_iter().any(|word| !is_word(word)) {
        return Err("a name in the configuration of its VM is not valid".into());
    }
    if config.disks.iter().any(|disk| usize::from(disk.disk) >= DISKS_MAX) {
        return Err("the number of a disk of its VM is out of bounds".into());
    }
    let definition = config.definition.as_ref().map_or(0, String::len);
    match definition > VM_DEFINITION_BYTES_MAX || encode(config).len() > VM_CONFIG_BYTES_MAX {
        true => Err("the definition of its VM is too long".into()),
        false => Ok(()),
    }
}

/// What a host says of a VM, as it may be kept: a definition that is too long is left out.
pub fn fitting(mut config: VmConfig) -> Result<VmConfig, String> {
    if check(&config).is_err() {
        config.definition = None;
    }
    check(&config)?;
    Ok(config)
}

/// As it crosses the wire: JSON, so that either side may know of more than the other.
pub fn encode(config: &VmConfig) -> Vec<u8> {
    serde_json::to_vec(config).unwrap_or_default()
}

/// From the wire.
pub fn decode(bytes: &[u8]) -> Result<VmConfig, String> {
    if bytes.len() > VM_CONFIG_BYTES_MAX {
        return Err("the configuration of the VM is too long".into());
    }
    let config: VmConfig = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    check(&config)?;
    Ok(config)
}

/// What is another than before, for people: one sentence each.
pub fn differences(before: &VmConfig, after: &VmConfig) -> Vec<String> {
    let mut changes = Vec::new();
    let mut changed = |what: &str, from: String, to: String| {
        if from != to {
            changes.push(format!("{what}: {from} -> {to}"));
        }
    };
    changed("processors", before.cpus.to_string(), after.cpus.to_string());
    changed("memory", size(before.memory_bytes), size(after.memory_bytes));
    changed("machine", before.machine.clone(), after.machine.clone());
    changed("firmware", before.firmware.as_str().into(), after.firmware.as_str().into());
    nics(&before.nics, &after.nics, &mut changes);
    disks(&before.disks, &after.disks, &mut changes);
    if changes.is_empty() && before.definition != after.definition {
        changes.push("the hypervisor's definition of the VM".into());
    }
    changes
}

fn nics(before: &[VmNic], after: &[VmNic], changes: &mut Vec<String>) {
    let on = |nic: &VmNic| if nic.network.is_empty() { "none".to_owned() } else { nic.network.clone() };
    for old in before.iter().filter(|old| !after.iter().any(|new| new.mac == old.mac)) {
        changes.push(format!("network card {} removed ({}, network {})", old.mac, old.model, on(old)));
    }
    for new in after {
        let Some(old) = before.iter().find(|old| old.mac == new.mac) else {
            changes.push(format!("network card {} added ({}, network {})", new.mac, new.model, on(new)));
            continue;
        };
        if old.model != new.model {
            changes.push(format!("network card {}: model {} -> {}", new.mac, old.model, new.model));
        }
        if old.network != new.network {
            changes.push(format!("network card {}: network {} -> {}", new.mac, on(old), on(new)));
        }
    }
}

fn disks(before: &[VmConfigDisk], after: &[VmConfigDisk], changes: &mut Vec<String>) {
    let boots = |disk: &VmConfigDisk| disk.boot_index.map_or("none".to_owned(), |index| index.to_string());
    for old in before.iter().filter(|old| !after.iter().any(|new| new.disk == old.disk)) {
        changes.push(format!("disk {} removed ({})", old.disk, old.bus));
    }
    for new in after {
        let Some(old) = before.iter().find(|old| old.disk == new.disk) else {
            changes.push(format!("disk {} added ({})", new.disk, new.bus));
            continue;
        };
        if old.bus != new.bus {
            changes.push(format!("disk {}: bus {} -> {}", new.disk, old.bus, new.bus));
        }
        if old.boot_index != new.boot_index {
            changes.push(format!("disk {}: boot order {} -> {}", new.disk, boots(old), boots(new)));
        }
    }
}

/// In the largest unit that says it exactly.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.is_multiple_of(1u64 << *shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

fn is_word(word: &str) -> bool {
    word.len() <= WORD_BYTES_MAX && !word.chars().any(char::is_control)
}

/// Six pairs of lower-case hexadecimal digits with colons between them.
pub fn is_mac(text: &str) -> bool {
    let digits = |pair: &str| {
        pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    text.split(':').count() == 6 && text.split(':').all(digits)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vbr_api::Firmware;

    /// A VM with a card and two disks.
    pub(crate) fn sample() -> VmConfig {
        let disk = |disk, boot_index| VmConfigDisk { disk, bus: "virtio".into(), boot_index };
        VmConfig {
            cpus: 2,
            memory_bytes: 2 << 30,
            machine: "q35".into(),
            firmware: Firmware::Bios,
            nics: vec![VmNic {
                mac: "52:54:00:00:00:01".into(),
                model: "virtio-net-pci".into(),
                network: "br0".into(),
            }],
            disks: vec![disk(0, Some(1)), disk(1, None)],
            source: "qemu".into(),
            definition: None,
        }
    }

    #[test]
    fn differences_are_told_one_by_one() {
        let before = sample();
        assert_eq!(differences(&before, &before), Vec::<String>::new());
        let mut after = sample();
        (after.cpus, after.memory_bytes, after.firmware) = (4, 3 << 29, Firmware::Uefi);
        after.machine = "pc".into();
        after.nics[0].network = "br1".into();
        after.nics.push(VmNic {
            mac: "52:54:00:00:00:02".into(),
            model: "e1000".into(),
            network: String::new(),
        });
        after.disks[0].boot_index = None;
        after.disks[1].disk = 2;
        after.disks[1].bus = "scsi".into();
        assert_eq!(
            differences(&before, &after),
            [
                "processors: 2 -> 4",
                "memory: 2 GiB -> 1536 MiB",
                "machine: q35 -> pc",
                "firmware: bios -> uefi",
                "network card 52:54:00:00:00:01: network br0 -> br1",
                "network card 52:54:00:00:00:02 added (e1000, network none)",
                "disk 1 removed (virtio)",
                "disk 0: boot order 1 -> none",
                "disk 2 added (scsi)",
            ]
        );
        let other = VmConfig { definition: Some("<domain/>".into()), ..sample() };
        assert_eq!(differences(&before, &other), ["the hypervisor's definition of the VM"]);
        assert_eq!(
            (size(0), size(1000), size(3 << 40)),
            ("0 bytes".into(), "1000 bytes".into(), "3 TiB".into())
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        assert_eq!(decode(&encode(&sample())), Ok(sample()));
        let refused = |change: &dyn Fn(&mut VmConfig)| {
            let mut config = sample();
            change(&mut config);
            assert!(check(&config).is_err() && decode(&encode(&config)).is_err(), "{config:?}");
        };
        refused(&|vm| vm.cpus = 0);
        refused(&|vm| vm.memory_bytes = u64::MAX);
        refused(&|vm| vm.machine.clear());
        refused(&|vm| vm.machine = "x".repeat(WORD_BYTES_MAX + 1));
        refused(&|vm| vm.nics[0].network = "\u{1b}[2J".into());
        refused(&|vm| vm.nics[0].mac = "52:54:00:00:00:0g".into());
        refused(&|vm| vm.nics[0].mac = "52:54:00:00:00".into());
        refused(&|vm| vm.nics = vec![vm.nics[0].clone(); VM_NICS_MAX + 1]);
        refused(&|vm| vm.disks = vec![vm.disks[0].clone(); DISKS_MAX + 1]);
        refused(&|vm| vm.disks[0].disk = u16::MAX);
        refused(&|vm| vm.definition = Some("x".repeat(VM_DEFINITION_BYTES_MAX + 1)));
        // Short, but six times as long on the wire.
        refused(&|vm| vm.definition = Some("\u{1}".repeat(VM_DEFINITION_BYTES_MAX)));
        assert!(decode(b"{}").is_err());
        assert!(decode(&vec![b' '; VM_CONFIG_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_definition_that_is_too_long_is_left_out() {
        let long = VmConfig { definition: Some("x".repeat(VM_DEFINITION_BYTES_MAX + 1)), ..sample() };
        assert_eq!(fitting(long), Ok(sample()));
        assert!(fitting(VmConfig { cpus: 0, ..sample() }).is_err());
    }

    /// Either side may know of more: what a later release adds is passed over, what it leaves out has a default.
    #[test]
    fn later_and_earlier_shapes_are_read() {
        let later = br#"{"cpus":1,"memory_bytes":1024,"machine":"pc","watchdog":{"model":"i6300esb"}}"#;
        let read = decode(later).unwrap();
        assert_eq!((read.cpus, read.firmware, read.nics.len()), (1, Firmware::Bios, 0));
    }
}
