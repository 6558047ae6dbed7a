//! A VM that was started from a replica, in a unit of its own: whatever becomes of vbrd, it goes on.

use anyhow::{Result, ensure};
use vbr_api::{Failover, ReplicaState};

use super::service::{UNIT, configure};
use super::{System, wait};
use crate::machine::Machine;

pub(super) fn run(system: &System) -> Result<()> {
    let dr = &system.dr;
    system.step("qemu is installed at the target", || {
        dr.run(&["apt-get", "install", "--yes", "--no-install-recommends", "qemu-system-x86"]).map(drop)
    })?;
    system.step(
        "a replica is started in a unit of its own; vbrd is stopped and started, it goes on",
        || {
            configure(dr, "failover", "accelerator = \"tcg\"")?;
            dr.run(&["systemctl", "restart", "vbrd"])?;
            wait("vbrd to answer", || Ok(dr.run(&["vbrctl", "status"]).is_ok()))?;
            dr.run(&["vbrctl", "failover", "start", "web@latest", "--memory", "64MiB"])?;
            let unit = own_unit(dr)?;
            let (process, _) = dr.main_process(&unit)?;
            dr.run(&["systemctl", "stop", "vbrd"])?;
            ensure!(dr.property(UNIT, "ActiveState")? == "inactive", "vbrd was not stopped");
            ensure!(dr.main_process(&own_unit(dr)?)?.0 == process, "the VM was ended with vbrd");
            dr.run(&["systemctl", "start", "vbrd"])?;
            let found: Failover = dr.json(&["vbrctl", "failover", "show", "web"])?;
            let run_state = found.vm.map(|vm| vm.run_state).unwrap_or_default();
            ensure!(
                found.state == ReplicaState::Failover && run_state == "running",
                "it is {run_state} after a restart"
            );
            dr.run(&["vbrctl", "failover", "undo", "web", "--yes"])?;
            wait("its unit to be gone", || Ok(units(dr)?.is_empty()))
        },
    )?;
    system.step("one that qemu refuses is told in its own words", || {
        let refused = dr.output(&["vbrctl", "failover", "start", "web@latest", "--memory", "32TiB"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains("memory"), "{said}");
        dr.run(&["vbrctl", "failover", "undo", "web", "--yes"]).map(drop)
    })
}

fn units(machine: &Machine) -> Result<Vec<String>> {
    let list =
        machine.run(&["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "vbr-vm@*"])?;
    Ok(list.lines().filter_map(|line| line.split_whitespace().next().map(Into::into)).collect())
}

fn own_unit(machine: &Machine) -> Result<String> {
    let units = units(machine)?;
    ensure!(units.len() == 1, "the VM has no unit of its own: {units:?}");
    Ok(units[0].clone())
}
