//! Starting a VM: what it needs is made, then its process; and an error is told with what to do. Owns nothing.

use std::fs;
use std::path::Path;

use vbr_api::Firmware;

use super::arguments::{AGENT, MONITOR, PID_FILE, SCREEN, UEFI_VARIABLES, arguments, cards, uefi_firmware};
use super::launch::{LOG, LaunchError, launch};
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
    launch(&spec.name, &spec.directory, arguments, &cards(spec)).map_err(|error| refused(spec, error))
}

/// Clears away what a dead process left, and makes what the firmware writes to.
fn prepare(spec: &StartSpec) -> Result<(), HostError> {
    for name in [MONITOR, SCREEN, AGENT, PID_FILE, LOG] {
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
    let next_step = error.next_step();
    let what = format!("VM {}", spec.name);
    match error {
        LaunchError::Missing | LaunchError::NotOffered(_) => {
            HostError::Invalid { what, why: error.to_string(), next_step }
        }
        LaunchError::Host(error) => error,
        LaunchError::Tool(NbdError::Tool { why, .. } | NbdError::Locked { why, .. }) => {
            HostError::Hypervisor { what, why, next_step }
        }
        other => HostError::Hypervisor { what, why: other.to_string(), next_step },
    }
}
