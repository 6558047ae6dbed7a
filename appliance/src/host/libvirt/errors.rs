//! What libvirt's words mean, and what to do about them. Pure.

use super::virsh::said;
use crate::host::HostError;
use crate::nbd::NbdError;

/// An error of libvirt about a VM.
pub(super) fn vm_error(what: &str, error: &NbdError) -> HostError {
    let why = said(error);
    let has = |words: &str| why.contains(words);
    let next_step = match error {
        NbdError::ToolMissing(_) => "install the package libvirt-clients, then try again",
        NbdError::Timeout { .. } => {
            "look whether libvirt and the VM's qemu answer (virsh domstate), then try again"
        }
        _ if has("failed to connect") && (has("ermission denied") || has("uthentication")) => {
            "put vbrd's user into the group libvirt (usermod -aG libvirt vbr), restart vbrd, then try again"
        }
        _ if has("failed to connect") => "start libvirt (libvirtd, or virtqemud), or correct the URI",
        _ if has("ermission denied") || has("o such file") || has("socket") => {
            "let qemu's user write to the directory of the host, and vbrd's user enter it (AppArmor: \
             /etc/apparmor.d/local/abstractions/libvirt-qemu), then try again"
        }
        _ if has("unsupported") || has("not supported") => {
            "backups need libvirt 8.0 and qemu 6.0 or later; with an older one use the driver `qemu`"
        }
        _ => "look at the VM's log in /var/log/libvirt/qemu, then try again",
    };
    HostError::Hypervisor { what: what.into(), why, next_step }
}

/// Whether records of changes are what is wrong: then there is a backup without them.
pub(super) fn is_about_records(error: &NbdError) -> bool {
    let why = said(error).to_ascii_lowercase();
    why.contains("bitmap") || why.contains("checkpoint")
}
