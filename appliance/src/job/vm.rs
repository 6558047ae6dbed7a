//! What a session's VM is besides its disks: kept with its moment, told where it changed, given to the target.
//!
//! Owns nothing: the session's record has it for the session, `records` for the next one. A session that goes on has
//! what its moment had, whatever the VM is by then.

use vbr_api::VmConfig;

use super::driver::Driver;
use crate::vm_config;
use crate::wire::{PeerRecord, capability};

impl Driver {
    /// What is another than at the last restore point.
    pub(super) async fn tell_vm_changes(&self) {
        let Some(vm) = self.record.vm.clone() else { return };
        let (records, job) = (self.parts.records.clone(), self.spec.name.clone());
        let before = tokio::task::spawn_blocking(move || records.vm(&job)).await.ok().flatten();
        let changes = before.map(|before| vm_config::differences(&before, &vm)).unwrap_or_default();
        self.handle.update_where(
            |session| session.vm_changes != changes,
            |session| session.vm_changes = changes.clone(),
        );
    }

    /// There is a restore point of it.
    pub(super) async fn note_vm(&self) {
        let (records, job, vm) = (self.parts.records.clone(), self.spec.name.clone(), self.record.vm.clone());
        let _ = tokio::task::spawn_blocking(move || records.note_vm(&job, vm.as_ref())).await;
    }

    /// What a target is told that can keep it.
    pub(super) fn vm_for(&self, peer: &PeerRecord) -> Option<VmConfig> {
        let able = self.parts.wire.peer_can(&peer.peer_id, capability::VM_CONFIG);
        self.record.vm.clone().filter(|_| able)
    }
}

/// What a host says, where that can be kept.
pub(super) fn fitting(vm: VmConfig) -> Option<VmConfig> {
    vm_config::fitting(vm)
        .inspect_err(|why| tracing::warn!(why, "the configuration of the VM is not kept"))
        .ok()
}
