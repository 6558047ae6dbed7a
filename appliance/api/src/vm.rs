//! What a VM is besides its disks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A VM's firmware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    #[default]
    Bios,
    Uefi,
}

/// The configuration of a VM at the moment of a restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmConfig {
    pub cpus: u32,
    pub memory_bytes: u64,
    /// `q35` or `pc`.
    pub machine: String,
    #[serde(default)]
    pub firmware: Firmware,
    #[serde(default)]
    pub nics: Vec<VmNic>,
    #[serde(default)]
    pub disks: Vec<VmConfigDisk>,
    /// The driver that it came from.
    #[serde(default)]
    pub source: String,
    /// The hypervisor's own words, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmNic {
    pub mac: String,
    /// `virtio-net-pci`, `e1000e`, …
    pub model: String,
    /// What it is attached to at the source.
    #[serde(default)]
    pub network: String,
}

/// How a disk is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmConfigDisk {
    /// Number of the disk in the restore point.
    pub disk: u16,
    /// `virtio`, `scsi`, `sata` or `ide`.
    pub bus: String,
    #[serde(default)]
    pub boot_index: Option<u32>,
}
