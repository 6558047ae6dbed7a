//! The VM that a restore point is of, for people.

use vbr_api::VmConfig;

use crate::human;
use crate::output::View;
use crate::table::{Facts, Table, section};

/// What it is, and how it differs from the point before.
pub fn add(facts: &mut Facts, vm: &VmConfig, changes: &[String]) {
    let processors = human::count(u64::from(vm.cpus), "processor");
    let (memory, firmware) = (human::size(vm.memory_bytes), vm.firmware.as_str());
    let source = if vm.source.is_empty() { String::new() } else { format!(" (by {})", vm.source) };
    facts.add("VM", format!("{processors}, {memory} of memory, {}, {firmware}{source}", vm.machine));
    if !changes.is_empty() {
        facts.add("Since the last", changes.join("; "));
    }
}

/// How a disk is attached; with its place in the order of what is booted from.
pub fn bus(vm: Option<&VmConfig>, index: u16) -> String {
    let disk = vm.and_then(|vm| vm.disks.iter().find(|disk| disk.disk == index));
    disk.map_or_else(String::new, |disk| match disk.boot_index {
        Some(place) => format!("{}, boots {place}", disk.bus),
        None => disk.bus.clone(),
    })
}

/// Its network cards.
pub fn cards(vm: &VmConfig, view: &View) -> String {
    if vm.nics.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["ADDRESS", "MODEL", "NETWORK"]);
    for nic in &vm.nics {
        let network = if nic.network.is_empty() { "none" } else { nic.network.as_str() };
        table.row(vec![nic.mac.as_str().into(), nic.model.as_str().into(), network.into()]);
    }
    section("Network cards", &table.finish())
}
