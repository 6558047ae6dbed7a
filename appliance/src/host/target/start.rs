//! Starting a VM: what it needs is made, then its process; and an error is told with what to do. Owns nothing.

use std::fs;
use std::path::Path;

use vbr_api::Firmware;

use super::arguments::{AGENT, MONITOR, PID_FILE, SCREEN, UEFI_VARIABLES, arguments, uefi_firmware};
use super::launch::{LaunchError, launch};
use super::{RunState, StartSpec, TargetVm};
use crate::host::HostError;
use crate::nbd::NbdError;

/// Starts a VM and waits until it runs. One that runs already is success.
pub fn start(spec: &StartSpec) -> Result<(), HostError> {
    let vm = TargetVm::at(&spec.directory);
    if vm.run_state()? != RunState::Off {
        return Ok(());
    }
    let arguments = arguments(spec)?;
    prepare(spec)?;
    let confined = spec.bridges.iter().all(Option::is_none);
    launch(&spec.name, &spec.directory, arguments, confined).map_err(|error| refused(spec, error))
}

/// Clears away what a dead process left, and makes what the firmware writes to.
fn prepare(spec: &StartSpec) -> Result<(), HostError> {
    for name in [MONITOR, SCREEN, AGENT, PID_FILE] {
        match fs::remove_file(spec.directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HostError::io(spec.directory.join(name).display().to_string(), error));
            }
            _ => {}
        }
    }
    let variables = spec.directory.join(UEFI_VARIABLES);
    if spec.vm.firmware == Firmware::Uefi
        && !variables.exists()
        && let Some((_, template)) = uefi_firmware()
    {
        copy_whole(Path::new(template), &variables)
            .map_err(|error| HostError::io(variables.display().to_string(), error))?;
    }
    Ok(())
}

/// Whole or not at all, so that a start that was cut short leaves nothing half.
fn copy_whole(from: &Path, to: &Path) -> std::io::Result<()> {
    let new = to.with_extension("new");
    fs::write(&new, fs::read(from)?)?;
    fs::rename(&new, to)
}

fn refused(spec: &StartSpec, error: LaunchError) -> HostError {
    match error {
        LaunchError::Missing => HostError::Invalid {
            what: format!("VM {}", spec.name),
            why: error.to_string(),
            next_step: "apt install qemu-system-x86, then try again",
        },
        LaunchError::Host(error) => error,
        LaunchError::Tool(NbdError::Tool { why, .. } | NbdError::Locked { why, .. }) => failed(spec, why),
        other => failed(spec, other.to_string()),
    }
}

fn failed(spec: &StartSpec, why: String) -> HostError {
    let next_step = if why.contains("bridge") {
        "qemu-bridge-helper must be allowed to use the bridge (/etc/qemu/bridge.conf); or start it isolated"
    } else if why.contains("memory") || why.contains("allocate") {
        "free memory on this machine, or say --memory with less"
    } else if why.contains("KVM") || why.contains("kvm") {
        "give the user of vbrd access to /dev/kvm (group kvm), or allow emulation (failover.accelerator)"
    } else {
        "correct what qemu says, then order it again; the restore point is untouched"
    };
    HostError::Hypervisor { what: format!("VM {}", spec.name), why, next_step }
}
