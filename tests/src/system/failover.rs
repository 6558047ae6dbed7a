//! The day on which the branch burns, at a target that has the package and nothing else: what is missing is said, and VMs run in
//! units of their own, whatever becomes of vbrd.
//!
//! The VMs find nothing to boot, and run all the same.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vbr_api::{BootTest, Failover, ReplicaState, RestorePoint, Session};

use super::service::UNIT;
use super::{DISK, System, ensure_succeeded, wait};
use crate::disk::{self, MIB};
use crate::machine::Machine;

/// The replica that is kept: `web` goes on being replicated.
const KEPT: &str = "app";
const SOCKET: &str = "vbr-vm.socket";
const ENABLE: &str = "systemctl enable --now vbr-vm.socket";
const MEMORY: [&str; 2] = ["--memory", "64MiB"];

pub(super) fn run(system: &System) -> Result<()> {
    let dr = &system.dr;
    system.step("without qemu, failover start and doctor say what to install", || {
        refused(dr, "apt install qemu-system-x86")?;
        ensure!(dr.run(&["systemctl", "is-enabled", SOCKET])? == "enabled", "VMs are not offered at boot");
        ensure!(dr.property(SOCKET, "ActiveState")? == "inactive", "VMs are offered without qemu");
        Ok(())
    })?;
    system.step("qemu is installed: the units for VMs are there by that", || {
        dr.run(&["apt-get", "install", "--yes", "--no-install-recommends", "qemu-system-x86"])?;
        offered(dr)?;
        dr.run(&["systemctl", "disable", "--now", SOCKET])?;
        refused(dr, ENABLE)?;
        dr.run(&ENABLE.split(' ').collect::<Vec<_>>())?;
        offered(dr)
    })?;
    system.step("failover test: a result, and nothing is left", || {
        let order = [&["failover", "test", "web@latest", "--within", "2s"], &MEMORY[..]].concat();
        let test: BootTest = dr.json(&order)?;
        ensure!(test.ok && test.screenshot.is_some(), "{test:?}");
        no_unit(dr)?;
        ensure!(shown(dr, "web")?.state == ReplicaState::Ready, "the test left something");
        Ok(())
    })?;
    system.step(
        "failover start: a unit of its own; vbrd is stopped and killed beside it; undo ends it",
        || {
            dr.run(&[&["vbrctl", "failover", "start", "web@latest"], &MEMORY[..]].concat())?;
            let unit = own_unit(dr)?;
            let (process, _) = dr.main_process(&unit)?;
            outlives(dr, &unit, process)?;
            dr.run(&["vbrctl", "failover", "undo", "web", "--yes"])?;
            ensure!(shown(dr, "web")?.state == ReplicaState::Ready, "it was not undone");
            no_unit(dr)
        },
    )?;
    system.step("a network card on a bridge that is allowed, and on no other", || network(dr))?;
    system.step("failover commit: independent of its restore point", || commit(system))
}

/// `start` fails and says that, `doctor` says it too, and the replica is as it was.
fn refused(dr: &Machine, next_step: &str) -> Result<()> {
    let start = dr.output(&["vbrctl", "failover", "start", "web@latest"])?;
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    ensure!(!start.status.success() && said.contains(next_step), "failover start said: {said}");
    let doctor = dr.output(&["vbrctl", "doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(said.contains(next_step), "doctor said: {said}");
    ensure!(shown(dr, "web")?.state == ReplicaState::Ready, "a start that was refused left something");
    Ok(())
}

fn offered(dr: &Machine) -> Result<()> {
    for (unit, path) in [(SOCKET, "/run/vbr-vm.sock"), ("vbr-tap.socket", "/run/vbr-tap.sock")] {
        ensure!(dr.property(unit, "ActiveState")? == "active", "{unit} is not there");
        let owner = dr.run(&["stat", "-c", "%U %a", path])?;
        ensure!(owner == "vbr 600", "{path} is {owner}");
    }
    Ok(())
}

/// Whatever happens to vbrd, the VM goes on, and vbrd finds it.
fn outlives(dr: &Machine, unit: &str, process: u32) -> Result<()> {
    let cgroup = std::fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    ensure!(cgroup.contains("vbr-vm@") && !cgroup.contains(UNIT), "it is in {cgroup}");
    let running = || -> Result<bool> {
        let vm = shown(dr, "web")?.vm.context("there is no VM")?;
        Ok(vm.run_state == "running" && dr.main_process(unit)?.0 == process)
    };
    ensure!(running()?, "it does not run");
    dr.run(&["systemctl", "stop", "vbrd"])?;
    ensure!(dr.property(UNIT, "ActiveState")? == "inactive", "vbrd was not stopped");
    ensure!(dr.main_process(unit)?.0 == process, "the VM was ended with vbrd");
    dr.run(&["systemctl", "start", "vbrd"])?;
    ensure!(running()?, "vbrd does not find it again");
    dr.run(&["systemctl", "kill", "--signal=KILL", "vbrd"])?;
    wait("vbrd to be started again", || Ok(dr.output(&["vbrctl", "status"])?.status.success()))?;
    ensure!(running()?, "vbrd does not find it again after it was killed");
    dr.run(&["systemctl", "restart", SOCKET])?;
    ensure!(running()?, "the VM was ended with the socket");
    Ok(())
}

/// The network card is one that a source has told of; jobs over disks alone tell of none.
fn network(dr: &Machine) -> Result<()> {
    let point = record_of_latest(dr)?;
    let record = with_vm(&std::fs::read_to_string(&point)?)?;
    dr.run(&["systemctl", "stop", "vbrd"])?;
    std::fs::write(&point, record)?;
    dr.run(&["systemctl", "start", "vbrd"])?;
    dr.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
    dr.run(&["mkdir", "-p", "/dev/net"])?;
    dr.run(&["mknod", "-m", "0666", "/dev/net/tun", "c", "10", "200"])?;
    dr.write("/etc/qemu/bridge.conf", "allow br0\n")?;
    let start = |bridge| dr.output(&["vbrctl", "failover", "start", "web@latest", "--network", bridge]);
    let other = start("br7")?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(said.contains("denied") && said.contains("/etc/qemu/bridge.conf"), "on br7: {said}");
    let right = start("br0")?;
    ensure!(right.status.success(), "on br0: {}", String::from_utf8_lossy(&right.stderr));
    let attached = || dr.run(&["ip", "-brief", "link", "show", "master", "br0"]);
    ensure!(attached()?.lines().count() == 1, "on the bridge is {:?}", attached()?);
    let (process, _) = dr.main_process(&own_unit(dr)?)?;
    let network = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net"));
    let (vms, machines) = (network(&process.to_string())?, network(&dr.main_process(UNIT)?.0.to_string())?);
    ensure!(vms != machines, "the VM's process is in the network of its machine");
    dr.run(&["vbrctl", "failover", "undo", "web", "--yes"])?;
    no_unit(dr)?;
    wait("the network card to be gone", || Ok(attached()?.is_empty()))
}

/// The record of a restore point with a VM in it: its last field is the checksum of all before.
fn with_vm(record: &str) -> Result<String> {
    const MARK: &str = ",\n  \"checksum\": \"";
    let (body, _) = record.rsplit_once(MARK).context("the record has no checksum")?;
    let vm = json!({
        "cpus": 1, "memory_bytes": 64 * MIB, "machine": "q35", "source": "qemu",
        "nics": [{ "mac": "52:54:00:12:34:56", "model": "virtio-net-pci", "network": "lan" }],
    });
    let body = format!("{body},\n  \"vm\": {vm}");
    Ok(format!("{body}{MARK}{}\"\n}}\n", blake3::hash(body.as_bytes()).to_hex()))
}

fn record_of_latest(dr: &Machine) -> Result<PathBuf> {
    let point: RestorePoint = dr.json(&["restore-point", "show", "web@latest"])?;
    Ok(dr.path(&format!("/var/lib/vbr/datastore/branch/web/points/{}/point.json", point.id)))
}

/// Another replica, as one that is kept is replicated no more.
fn commit(system: &System) -> Result<()> {
    let (branch, dr) = (&system.branch, &system.dr);
    let image = DISK.replace("web", KEPT);
    disk::random(&branch.path(&image), 2 * MIB, 6)?;
    branch.run(&["vbrctl", "job", "create", KEPT, "--disk", &image, "--target", "dr", "--keep", "14"])?;
    let session: Session = branch.json(&["job", "run", KEPT, "--wait"])?;
    ensure_succeeded(&session)?;
    dr.run(&[&["vbrctl", "failover", "start", "app@latest"], &MEMORY[..]].concat())?;
    dr.run(&["vbrctl", "failover", "commit", KEPT, "--yes"])?;
    wait("the disks to be independent", || {
        Ok(shown(dr, KEPT)?.vm.context("there is no VM")?.flatten.is_none())
    })?;
    let images =
        dr.run(&["sh", "-c", "qemu-img info -U /var/lib/vbr/datastore/branch/app/failover/disk-0*"])?;
    ensure!(!images.contains("backing file"), "something still lies below its disk:\n{images}");
    goes_on(system, "committed")
}

/// The VM that is kept runs, and vbrd knows it.
pub(super) fn goes_on(system: &System, after: &str) -> Result<()> {
    let kept = shown(&system.dr, KEPT)?;
    let run_state = kept.vm.map(|vm| vm.run_state).unwrap_or_default();
    ensure!(
        kept.state == ReplicaState::Permanent && run_state == "running",
        "{after}: it is {:?}, {run_state}",
        kept.state
    );
    own_unit(&system.dr).map(drop)
}

fn shown(dr: &Machine, replica: &str) -> Result<Failover> {
    dr.json(&["failover", "show", replica])
}

fn no_unit(dr: &Machine) -> Result<()> {
    wait("its unit to be gone", || Ok(units(dr)?.is_empty()))
}

fn units(machine: &Machine) -> Result<Vec<String>> {
    let list = machine.run(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "vbr-vm@*"])?;
    Ok(list.lines().filter_map(|line| line.split_whitespace().next().map(Into::into)).collect())
}

/// The one VM that runs.
pub(super) fn own_unit(machine: &Machine) -> Result<String> {
    let units = units(machine)?;
    ensure!(units.len() == 1, "the VM has no unit of its own: {units:?}");
    ensure!(machine.property(&units[0], "ActiveState")? == "active", "{} is not active", units[0]);
    Ok(units[0].clone())
}
