//! What a VM consists of besides the content of its disks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A VM's configuration at one moment, as its hypervisor said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmConfig {
    /// Virtual processors.
    pub cpus: u32,
    pub memory_bytes: u64,
    /// `q35` or `pc`; what is neither has the hypervisor's own word.
    pub machine: String,
    #[serde(default)]
    pub firmware: Firmware,
    #[serde(default)]
    pub nics: Vec<VmNic>,
    /// Disks of the job alone.
    #[serde(default)]
    pub disks: Vec<VmConfigDisk>,
    /// The driver that asked: `qemu` or `libvirt`.
    #[serde(default)]
    pub source: String,
    /// The hypervisor's own words (libvirt: its XML), where it has any.
    #[serde(default)]
    pub definition: Option<String>,
}

/// What starts the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    #[default]
    Bios,
    Uefi,
}

impl Firmware {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmNic {
    /// Six pairs of lower-case hexadecimal digits with colons between them.
    pub mac: String,
    /// As qemu names it: `virtio-net-pci`, `e1000`, …
    pub model: String,
    /// The bridge or network that it is on; empty where it is on none.
    #[serde(default)]
    pub network: String,
}

/// How a disk is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmConfigDisk {
    /// Its number in the job.
    pub disk: u16,
    /// `virtio`, `scsi`, `sata` or `ide`; seldom `nvme`, `usb` or `other`.
    pub bus: String,
    /// Its place in the order of what is booted from; none where it has none.
    #[serde(default)]
    pub boot_index: Option<u32>,
}
