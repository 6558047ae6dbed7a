//! The package's life: installed with what it depends on, upgraded in mid-session, removed, installed again, purged.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::service::{CONFIG, DROP_IN, UNIT, configure, entries};
use super::{DISK, PORT, System, wait};
use crate::disk::{self, MIB};
use crate::machine::Machine;

/// Where the package lies inside.
const DEB: &str = "/srv/vbr.deb";
const STATE: &str = "/var/lib/vbr";
const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
/// What stands for that inside: the kernel's own cannot be written in a namespace.
const STAND_IN: &str = "/srv/congestion";
/// What the machines allowed before.
const ALLOWED: &str = "reno vegas";

pub(super) fn install(system: &System) -> Result<()> {
    system.step("the package is installed with apt at both sites, with what it depends on", || {
        stand_in(&system.branch, "rw")?;
        stand_in(&system.dr, "ro")?;
        system.in_both(|machine| {
            machine.copy(system.package.path(), DEB)?;
            let said = machine.run(&["apt-get", "install", "--yes", DEB])?;
            machine.write("/srv/apt.log", &said)?;
            installed(machine)?;
            let urgent = entries(machine, 4)?;
            let first = urgent.first().map_or("", |entry| &entry.message);
            ensure!(urgent.is_empty(), "a fresh vbrd in {} warns: {first}", machine.name());
            Ok(())
        })
    })?;
    system.step("BBR is added to what the machine allows, or said to be impossible", || {
        allowed_beside_others(&system.branch)?;
        refused_quietly(&system.dr)
    })
}

/// A file in place of the list of congestion controls, which postinst may write or not.
fn stand_in(machine: &Machine, mode: &str) -> Result<()> {
    machine.write(STAND_IN, &format!("{ALLOWED}\n"))?;
    machine.run(&["mount", "--bind", STAND_IN, CONGESTION])?;
    machine.run(&["mount", "-o", &format!("remount,bind,{mode}"), CONGESTION])?;
    // The harness sets what the package sets; here the package has to.
    machine.run(&["sysctl", "-q", "-w", "net.ipv4.tcp_wmem=4096 16384 4194304"]).map(drop)
}

fn installed(machine: &Machine) -> Result<()> {
    ensure!(machine.property(UNIT, "ActiveState")? == "active", "vbrd does not run after installation");
    ensure!(machine.run(&["systemctl", "is-enabled", UNIT])? == "enabled", "vbrd is not started at boot");
    let owner = machine.run(&["stat", "-c", "%U:%G %a", STATE])?;
    ensure!(owner == "vbr:vbradm 700", "{STATE} is {owner}");
    let socket = machine.run(&["stat", "-c", "%U:%G %a", "/run/vbr/vbrd.sock"])?;
    ensure!(socket.starts_with("vbr:vbradm"), "the socket is {socket}");
    for tool in ["qemu-img", "qemu-storage-daemon"] {
        machine.run(&[tool, "--version"]).context("the package depends on qemu's tools")?;
    }
    machine.run(&["vbrctl", "status"])?;
    let buffers = machine.run(&["cat", "/proc/sys/net/ipv4/tcp_wmem"])?;
    ensure!(buffers.ends_with("16777216"), "the package's socket buffers are not set: {buffers}");
    Ok(())
}

fn allowed_beside_others(machine: &Machine) -> Result<()> {
    let wanted = format!("{ALLOWED} bbr");
    let now = std::fs::read_to_string(machine.path(STAND_IN))?;
    ensure!(now.trim() == wanted, "allowed are {now:?}, not {wanted:?}");
    let kept = std::fs::read_to_string(machine.path("/etc/sysctl.d/61-vbr-bbr.conf"))?;
    let line = format!("net.ipv4.tcp_allowed_congestion_control = {wanted}");
    ensure!(kept.lines().any(|found| found == line), "a restart of the machine would not allow BBR: {kept}");
    Ok(())
}

/// One line that says it, and nothing of the shell's or the kernel's.
fn refused_quietly(machine: &Machine) -> Result<()> {
    let now = std::fs::read_to_string(machine.path(STAND_IN))?;
    ensure!(now.trim() == ALLOWED, "a list that cannot be written is {now:?}");
    let version = machine.run(&["dpkg-query", "-W", "-f", "${Version}", "vbr"])?;
    let again =
        format!("DPKG_MAINTSCRIPT_PACKAGE=vbr /var/lib/dpkg/info/vbr.postinst configure {version} 2>&1");
    let said = machine.run(&["sh", "-c", &again])?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 1 && lines[0].starts_with("vbr: BBR"), "postinst said:\n{said}");
    Ok(())
}

pub(super) fn upgrade(system: &System) -> Result<()> {
    let (work, newer) = (system.path("newer"), system.path("newer.deb"));
    std::fs::create_dir_all(&work)?;
    let newer = system.package.raised(&work, &newer)?;
    let version = newer.field("Version")?;
    system.step(
        "upgrade of the target in mid-session: it drains, the session goes on, the configuration stays",
        || {
            configure(&system.dr, "schedule", "link_wait = \"11h\"")?;
            system.dr.copy(newer.path(), DEB)?;
            system.through(12, 4, || upgraded(&system.dr, &version))?;
            let kept = std::fs::read_to_string(system.dr.path(CONFIG))?;
            ensure!(kept.contains("link_wait = \"11h\""), "the upgrade took a changed configuration away");
            Ok(())
        },
    )?;
    system.step("upgrade of the source", || {
        system.branch.copy(newer.path(), DEB)?;
        upgraded(&system.branch, &version)?;
        system.wait_connected()
    })
}

fn upgraded(machine: &Machine, version: &str) -> Result<()> {
    let (_, old) = machine.main_process(UNIT)?;
    machine.run(&["dpkg", "--install", DEB])?;
    let now = machine.run(&["dpkg-query", "-W", "-f", "${Version}", "vbr"])?;
    ensure!(now == version, "installed is {now}, not {version}");
    wait("vbrd after the upgrade", || Ok(machine.property(UNIT, "ActiveState")? == "active"))?;
    ensure!(machine.main_process(UNIT)?.1 != old, "the old vbrd runs on");
    // It was not killed: it said that it drains, and that it has.
    let journal = machine.run(&["journalctl", "--no-pager", "-o", "cat", &format!("_PID={old}")])?;
    let lines: Vec<&str> = journal.lines().collect();
    let place = |text: &str| lines.iter().rposition(|line| line.contains(text));
    let (draining, stopped) = (place("draining"), place("stopped"));
    ensure!(draining.is_some() && draining < stopped, "the old vbrd did not drain:\n{journal}");
    let late = lines.iter().find(|line| line.contains("did not stop in time"));
    ensure!(late.is_none(), "the old vbrd did not drain in time:\n{journal}");
    Ok(())
}

pub(super) fn remove(system: &System) -> Result<()> {
    let dr = &system.dr;
    system.step("remove: the service is gone, state and configuration stay", || {
        let key = dr.run(&["sha256sum", "/var/lib/vbr/key"])?;
        dr.run(&["dpkg", "--remove", "vbr"])?;
        ensure!(dr.property(UNIT, "ActiveState")? == "inactive", "vbrd runs after its removal");
        ensure!(dr.property(UNIT, "LoadState")? != "loaded", "its unit is still there");
        super::failover::own_unit(dr).context("the VM was ended with the package")?;
        ensure!(!dr.path("/usr/bin/vbrd").exists() && !dr.path("/run/vbr").exists(), "files are left");
        ensure!(dr.path(CONFIG).exists(), "the configuration is gone");
        ensure!(dr.run(&["sha256sum", "/var/lib/vbr/key"])? == key, "the site's key is not what it was");
        Ok(())
    })?;
    system.step("installed again, it is the same site: the next run sends the change alone", || {
        dr.run(&["dpkg", "--install", DEB])?;
        installed(dr)?;
        system.wait_connected()?;
        super::failover::goes_on(system, "removed and installed again")?;
        let before = system.link.counters().port(PORT).up_sent;
        disk::write_random(&system.branch.path(DISK), 2 * MIB, MIB, 5)?;
        system.replicate()?;
        let crossed = system.link.counters().port(PORT).up_sent - before;
        ensure!(crossed < 2 * MIB, "{crossed} bytes crossed for a change of 1 MiB");
        Ok(())
    })?;
    system.step("purge: replicas and key stay, nothing else does", || {
        let point = point(dr)?;
        dr.run(&["systemctl", "stop", "vbr-vm@*"])?;
        system.in_both(|machine| {
            // Ours, and of no package.
            if let Some(directory) = machine.path(DROP_IN).parent().filter(|directory| directory.exists()) {
                std::fs::remove_dir_all(directory)?;
            }
            machine.run(&["dpkg", "--purge", "vbr"])?;
            left(machine)
        })?;
        ensure!(dr.path(&point).exists(), "purge took the restore point {point}");
        Ok(())
    })
}

/// The description of a sealed restore point.
fn point(machine: &Machine) -> Result<String> {
    let found = machine.run(&["find", STATE, "-path", "*/points/*", "-name", "point.json"])?;
    found.lines().next().map(str::to_owned).context("no restore point in the datastore")
}

/// Below these nobody expects that everything belongs to a package.
const OTHERS: &[&str] = &[
    "/dev",
    "/proc",
    "/sys",
    "/tmp",
    "/srv",
    "/root",
    "/home",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/log",
    "/var/backups",
    "/run/log",
    STATE,
];

/// Nothing with our name is there that is not in the state directory; no unit, no link to one.
fn left(machine: &Machine) -> Result<()> {
    let mut words = vec!["find", "/"];
    for place in OTHERS {
        words.extend(["-path", place, "-prune", "-o"]);
    }
    words.extend(["(", "-name", "*vbr*", "-o", "-lname", "*vbr*", "-o", "-user", "vbr", ")", "-print"]);
    let found = machine.run(&words)?;
    let found: BTreeSet<&str> = found.lines().collect();
    ensure!(found.is_empty(), "purge left in {}: {found:?}", machine.name());
    let mentions = machine.run(&["sh", "-c", "grep -rlw vbr /etc || true"])?;
    // The accounts stay, as is usual: files of theirs do.
    let accounts = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];
    let accounts =
        accounts.iter().flat_map(|file| [(*file).to_owned(), format!("{file}-")]).collect::<BTreeSet<_>>();
    let odd: Vec<&str> = mentions.lines().filter(|file| !accounts.contains(*file)).collect();
    ensure!(odd.is_empty(), "purge left words of ours in {odd:?}");
    ensure!(machine.path(STATE).join("key").exists(), "purge took the site's key");
    Ok(())
}
