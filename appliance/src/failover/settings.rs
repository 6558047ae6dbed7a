//! The VM as it is started here: as the restore point tells it, as an order changes it, on the networks of this site.
//!
//! Pure. A network card that nothing names a network for is there and reaches nobody: the wrong network is worse than none.

use vbr_api::{FailoverRequest, Firmware, NetworkMap, VmConfig, VmConfigDisk};

use crate::error::Problem;
use crate::host::target::{check_bridge, check_config};
use crate::repository::datastore::Point;

/// What a VM has of whose source nothing is known but disks.
const CPUS: u32 = 2;
const MEMORY: u64 = 2 << 30;
/// A network that reaches nobody.
const ISOLATED: &str = "isolated";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The VM.
    pub vm: VmConfig,
    /// Of each network card.
    pub bridges: Vec<Option<String>>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

impl Settings {
    /// As the restore point tells it, with cards that reach nobody.
    pub fn of(point: &Point) -> Self {
        let known = point.vm();
        let mut warnings = Vec::new();
        if known.is_none() {
            warnings.push(format!(
                "the restore point has no configuration of a VM (its job names disks): {CPUS} processors, 2 GiB, BIOS, no network card"
            ));
        }
        let vm = known.unwrap_or_else(|| VmConfig {
            cpus: CPUS,
            memory_bytes: MEMORY,
            machine: "q35".into(),
            firmware: Firmware::Bios,
            nics: Vec::new(),
            disks: Vec::new(),
            source: String::new(),
            definition: None,
        });
        let bridges = vec![None; vm.nics.len()];
        Self { vm, bridges, warnings }.startable()
    }

    /// What a hypervisor has that is not started here becomes the nearest that is, and that is said.
    fn startable(mut self) -> Self {
        if !matches!(self.vm.machine.as_str(), "q35" | "pc") {
            self.warnings
                .push(format!("its machine is {:?} at the source; it is started as q35", self.vm.machine));
            self.vm.machine = "q35".into();
        }
        for disk in &mut self.vm.disks {
            if !matches!(disk.bus.as_str(), "virtio" | "scsi" | "sata" | "ide") {
                let text = format!(
                    "disk {} is attached by {:?} at the source; it is attached by sata (--bus says otherwise)",
                    disk.disk, disk.bus
                );
                self.warnings.push(text);
                disk.bus = "sata".into();
            }
        }
        self
    }

    /// With what an order says, checked.
    pub fn changed(mut self, request: &FailoverRequest, site: &[NetworkMap]) -> Result<Self, Problem> {
        if let Some(cpus) = request.cpus {
            self.vm.cpus = cpus;
        }
        if let Some(bytes) = request.memory_bytes {
            self.vm.memory_bytes = bytes;
        }
        if let Some(firmware) = request.firmware {
            self.vm.firmware = firmware;
        }
        if let Some(bus) = &request.bus {
            self.vm.disks = (0..crate::limits::DISKS_MAX as u16)
                .map(|disk| VmConfigDisk { disk, bus: bus.clone(), boot_index: None })
                .collect();
        }
        check_config(&self.vm)?;
        let maps: Vec<&NetworkMap> = request.networks.iter().chain(site).collect();
        for (nic, bridge) in self.vm.nics.iter().zip(&mut self.bridges) {
            let fits = |map: &&&NetworkMap| map.from.as_ref().is_none_or(|from| *from == nic.network);
            match maps.iter().find(fits) {
                Some(map) if map.to == ISOLATED => *bridge = None,
                Some(map) => {
                    check_bridge(&map.to)?;
                    *bridge = Some(map.to.clone());
                }
                None if bridge.is_none() => self.warnings.push(format!(
                    "network card {} (at the source on {:?}) reaches nobody: say --network BRIDGE",
                    nic.mac, nic.network
                )),
                None => {}
            }
        }
        Ok(self)
    }

    /// The same away from everybody.
    pub fn isolated(mut self) -> Self {
        self.bridges.fill(None);
        self.warnings.retain(|warning| !warning.contains("reaches nobody"));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::VmNic;

    fn with_nics(networks: &[&str]) -> Settings {
        let nic = |(n, network): (usize, &&str)| VmNic {
            mac: format!("52:54:00:00:00:{n:02x}"),
            model: "virtio-net-pci".into(),
            network: (*network).into(),
        };
        let vm = VmConfig {
            cpus: 1,
            memory_bytes: 1 << 30,
            machine: "pc".into(),
            firmware: Firmware::Bios,
            nics: networks.iter().enumerate().map(nic).collect(),
            disks: Vec::new(),
            source: "qemu".into(),
            definition: None,
        };
        Settings { bridges: vec![None; networks.len()], vm, warnings: Vec::new() }
    }

    fn map(from: Option<&str>, to: &str) -> NetworkMap {
        NetworkMap { from: from.map(Into::into), to: to.into() }
    }

    #[test]
    fn cards_go_to_the_first_network_that_fits_and_else_nowhere() {
        let settings = with_nics(&["lan", "dmz", "storage"]);
        let request =
            FailoverRequest { networks: vec![map(Some("dmz"), "isolated")], ..FailoverRequest::default() };
        let site = [map(Some("lan"), "br7"), map(Some("dmz"), "br8")];
        let changed = settings.changed(&request, &site).unwrap();
        assert_eq!(changed.bridges, [Some("br7".into()), None, None]);
        assert_eq!(changed.warnings.len(), 1);
        assert!(changed.warnings[0].contains("storage"));
        let all = FailoverRequest { networks: vec![map(None, "br1")], ..FailoverRequest::default() };
        let all = changed.changed(&all, &site).unwrap();
        assert_eq!(all.bridges, vec![Some("br1".to_owned()); 3]);
        assert_eq!(all.isolated().bridges, vec![None; 3]);
    }

    #[test]
    fn what_is_not_started_here_becomes_the_nearest_that_is() {
        let mut settings = with_nics(&[]);
        settings.vm.machine = "microvm".into();
        let disk = |disk: u16, bus: &str| VmConfigDisk { disk, bus: bus.into(), boot_index: Some(1) };
        settings.vm.disks = vec![disk(0, "nvme"), disk(1, "scsi")];
        let known = settings.startable();
        assert_eq!(known.vm.machine, "q35");
        assert_eq!(known.vm.disks, [disk(0, "sata"), disk(1, "scsi")]);
        assert_eq!(known.warnings.len(), 2);
    }

    #[test]
    fn what_an_order_says_counts_and_is_checked() {
        let request = FailoverRequest {
            cpus: Some(4),
            memory_bytes: Some(8 << 30),
            firmware: Some(Firmware::Uefi),
            bus: Some("sata".into()),
            ..FailoverRequest::default()
        };
        let vm = with_nics(&[]).changed(&request, &[]).unwrap().vm;
        assert_eq!((vm.cpus, vm.memory_bytes, vm.firmware), (4, 8 << 30, Firmware::Uefi));
        assert!(vm.disks.iter().all(|disk| disk.bus == "sata"));
        for wrong in [
            FailoverRequest { cpus: Some(0), ..FailoverRequest::default() },
            FailoverRequest { bus: Some("nvme,addr=1".into()), ..FailoverRequest::default() },
            FailoverRequest { networks: vec![map(None, "br0,x=y")], ..FailoverRequest::default() },
        ] {
            assert!(with_nics(&["lan"]).changed(&wrong, &[]).is_err(), "{wrong:?}");
        }
    }
}
