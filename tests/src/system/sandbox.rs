//! What the unit's sandbox denies, and which of its settings denies it.
//!
//! Every attempt of [`probe`] is made without a sandbox first, where it must succeed; then in vbrd's place in the
//! shipped unit, where it must fail in the way expected; then under each setting alone that is said to deny it. So none of them
//! passes because of another, and a setting that is taken out of the unit fails here.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::service::{DROP_IN, UNIT};
use super::{System, probe, units};
use crate::machine::Machine;

const PROGRAM: &str = "/usr/libexec/probe";
const SHIPPED: &str = "/lib/systemd/system/vbrd.service";
const DROP_INS: &str = "/usr/share/vbr/drop-ins";
/// The shipped drop-in that is tried.
const TRIED: &str = "/run/systemd/system/vbrd.service.d/shipped.conf";

/// Settings of the unit that deny together what they deny, without all others.
const LAYERS: &[(&str, &[&str])] = &[
    ("nothing", &[]),
    ("user", &["User", "Group"]),
    ("privileges", &["User", "Group", "NoNewPrivileges"]),
    ("capabilities", &["CapabilityBoundingSet", "AmbientCapabilities"]),
    ("calls", &["SystemCallFilter", "SystemCallErrorNumber"]),
    ("system", &["ProtectSystem"]),
    ("home", &["ProtectHome"]),
    ("tmp", &["PrivateTmp"]),
    ("devices", &["DevicePolicy"]),
    ("dev", &["PrivateDevices"]),
    ("tunables", &["ProtectKernelTunables"]),
    ("cgroups", &["ProtectControlGroups"]),
    ("proc", &["User", "Group", "ProtectProc"]),
    ("namespaces", &["RestrictNamespaces"]),
    ("families", &["RestrictAddressFamilies"]),
    ("suid", &["RestrictSUIDSGID"]),
    ("realtime", &["RestrictRealtime"]),
    ("personality", &["LockPersonality"]),
    ("memory", &["MemoryDenyWriteExecute"]),
    ("clock", &["ProtectClock"]),
    ("log", &["ProtectKernelLogs"]),
    ("modules", &["ProtectKernelModules"]),
    ("hostname", &["ProtectHostname"]),
];

/// One denial: the attempt, how it ends where nothing denies it, how in the unit, and how under single layers.
struct Denial {
    attempt: &'static str,
    outside: (&'static str, &'static str),
    inside: &'static str,
    layers: &'static [(&'static str, &'static str)],
}

const fn denied(
    attempt: &'static str,
    inside: &'static str,
    layers: &'static [(&'static str, &'static str)],
) -> Denial {
    Denial { attempt, outside: ("nothing", "done"), inside, layers }
}

const DENIALS: &[Denial] = &[
    denied("mount", "EPERM", &[("calls", "EPERM"), ("capabilities", "EPERM")]),
    denied("ptrace", "EPERM", &[("calls", "EPERM")]),
    denied("device", "EPERM", &[("devices", "EPERM")]),
    denied("device-write", "EPERM", &[("devices", "EPERM")]),
    denied("device-node", "EROFS", &[("devices", "EPERM"), ("dev", "EPERM"), ("capabilities", "EPERM")]),
    denied("write-usr", "EROFS", &[("system", "EROFS"), ("user", "EACCES")]),
    denied("write-etc", "EROFS", &[("system", "EROFS"), ("user", "EACCES")]),
    denied("write-playground", "EROFS", &[("system", "EROFS")]),
    denied("write-datastore", "EROFS", &[("system", "EROFS")]),
    denied("write-others-state", "EROFS", &[("system", "EROFS")]),
    denied("read-home", "EACCES", &[("home", "ENOENT")]),
    denied("shared-tmp", "ENOENT", &[("tmp", "ENOENT")]),
    denied("kernel-setting", "EACCES", &[("tunables", "EROFS"), ("user", "EACCES")]),
    denied("cgroup", "EROFS", &[("cgroups", "EROFS"), ("user", "EACCES")]),
    Denial {
        attempt: "other-process",
        outside: ("user", "done"),
        inside: "ENOENT",
        layers: &[("proc", "ENOENT")],
    },
    denied("signal", "EPERM", &[("user", "EPERM")]),
    denied("become-root", "EPERM", &[("calls", "EPERM"), ("user", "EPERM")]),
    Denial {
        attempt: "setuid-program",
        outside: ("user", "done"),
        inside: "EPERM",
        layers: &[("privileges", "EPERM")],
    },
    denied("setuid-file", "EPERM", &[("suid", "EPERM")]),
    denied("raw-socket", "EPERM", &[("capabilities", "EPERM"), ("user", "EPERM")]),
    denied("packet-socket", "EAFNOSUPPORT", &[("families", "EAFNOSUPPORT"), ("capabilities", "EPERM")]),
    denied("user-namespace", "EPERM", &[("namespaces", "EPERM")]),
    denied("mount-namespace", "EPERM", &[("namespaces", "EPERM"), ("capabilities", "EPERM")]),
    denied("write-and-execute", "EPERM", &[("memory", "EPERM")]),
    Denial {
        attempt: "load-module",
        // Empty: it got as far as to be read.
        outside: ("nothing", "ENOEXEC"),
        inside: "EPERM",
        layers: &[("calls", "EPERM"), ("modules", "EPERM"), ("capabilities", "EPERM")],
    },
    denied("hostname", "EPERM", &[("calls", "EPERM"), ("hostname", "EPERM"), ("capabilities", "EPERM")]),
    Denial {
        attempt: "clock",
        // No clock can have that time: it got as far as to be looked at.
        outside: ("nothing", "EINVAL"),
        inside: "EPERM",
        layers: &[("calls", "EPERM"), ("clock", "EPERM"), ("capabilities", "EPERM")],
    },
    denied("kernel-log", "EPERM", &[("log", "EPERM")]),
    denied("realtime", "EPERM", &[("realtime", "EPERM"), ("calls", "EPERM")]),
    denied("personality", "EPERM", &[("personality", "EPERM")]),
];

/// What vbrd needs: a sandbox that denies everything would pass the rest.
const ALLOWED: &[&str] = &["own-state", "tcp"];
/// What a kernel may not offer to anybody.
const OPTIONAL: &[&str] = &["load-module", "realtime", "user-namespace", "kernel-log"];

/// What each attempt said.
type Answers = BTreeMap<String, String>;

pub(super) fn run(system: &System, program: &Path) -> Result<()> {
    let machine = &system.branch;
    let mut count = (0, 0);
    system.step("the sandbox denies what it should, each setting by itself", || {
        playground(machine, program)?;
        machine.run(&["systemctl", "stop", "vbrd"])?;
        let alone = layers(machine)?;
        let inside = in_the_unit(machine, None)?;
        count = judge(&alone, &inside)?;
        Ok(())
    })?;
    println!("{:18}{} attempts denied in the unit, {} times by one setting alone", "", count.0, count.1);
    system.step("each shipped drop-in opens what it says, and no more", || {
        drop_ins(machine)?;
        machine.run(&["systemctl", "start", "vbrd"])?;
        Ok(())
    })
}

/// What the attempts are made on, open to everybody as far as files and modes go.
fn playground(machine: &Machine, program: &Path) -> Result<()> {
    let mode = |inside: &str, mode: u32| {
        let path = machine.path(inside);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("opening {inside}"))
    };
    for directory in [probe::PLAYGROUND, probe::DATASTORE, "/var/lib/other", probe::HOMES, "/usr/libexec"] {
        std::fs::create_dir_all(machine.path(directory))?;
    }
    for file in [probe::OTHERS_STATE, &probe::in_homes(), probe::SHARED_TMP] {
        machine.write(file, "secret\n")?;
        mode(file, 0o666)?;
    }
    mode(probe::PLAYGROUND, 0o1777)?;
    mode(probe::DATASTORE, 0o777)?;
    machine.copy(program, PROGRAM)?;
    machine.copy(program, probe::RAISED)?;
    mode(PROGRAM, 0o755)?;
    mode(probe::RAISED, 0o4755)?;
    machine.run(&["mknod", "-m", "0666", probe::DEVICE, "b", "7", "0"]).map(drop)
}

/// Each layer of the shipped unit in a unit of its own.
fn layers(machine: &Machine) -> Result<BTreeMap<&'static str, Answers>> {
    let shipped = std::fs::read_to_string(machine.path(SHIPPED)).context("reading the shipped unit")?;
    let out = |layer: &str| format!("/run/probe-{layer}.out");
    for (layer, keys) in LAYERS {
        let settings = units::settings(&shipped, keys);
        let missing = keys.iter().find(|key| units::settings(&shipped, &[**key]).is_empty());
        ensure!(missing.is_none(), "the shipped unit does not set {}", missing.unwrap_or(&""));
        let unit = units::once(&settings, PROGRAM, &out(layer));
        machine.write(&format!("/run/systemd/system/probe-{layer}.service"), &unit)?;
    }
    machine.run(&["systemctl", "daemon-reload"])?;
    let mut all = BTreeMap::new();
    for (layer, _) in LAYERS {
        machine.run(&["systemctl", "start", &format!("probe-{layer}.service")])?;
        all.insert(*layer, answers(machine, &out(layer))?);
    }
    Ok(all)
}

/// The probe in vbrd's place, with the text of a drop-in besides.
fn in_the_unit(machine: &Machine, drop_in: Option<&str>) -> Result<Answers> {
    let out = "/run/probe.out";
    match drop_in {
        Some(text) => machine.write(TRIED, text)?,
        None => drop(std::fs::remove_file(machine.path(TRIED))),
    }
    machine.write(DROP_IN, &units::instead(PROGRAM, out))?;
    machine.run(&["systemctl", "daemon-reload"])?;
    let begun = machine.run(&["systemctl", "start", UNIT]);
    for path in [DROP_IN, TRIED] {
        let _ = std::fs::remove_file(machine.path(path));
    }
    machine.run(&["systemctl", "daemon-reload"])?;
    begun?;
    answers(machine, out)
}

fn answers(machine: &Machine, out: &str) -> Result<Answers> {
    let text = std::fs::read_to_string(machine.path(out)).with_context(|| format!("reading {out}"))?;
    let pair = |line: &str| line.split_once(' ').map(|(name, said)| (name.to_owned(), said.to_owned()));
    let found: Answers = text.lines().filter_map(pair).collect();
    ensure!(found.len() == probe::ATTEMPTS.len(), "the probe said:\n{text}");
    Ok(found)
}

/// Compares with what is expected; returns how many attempts and single layers were judged.
fn judge(alone: &BTreeMap<&str, Answers>, inside: &Answers) -> Result<(usize, usize)> {
    let said = |answers: &Answers, attempt: &str| answers.get(attempt).cloned().unwrap_or_default();
    let of = |layer: &str, attempt: &str| {
        alone.get(layer).map(|answers| said(answers, attempt)).unwrap_or_default()
    };
    let (mut faults, mut judged, mut single) = (Vec::new(), 0, 0);
    for attempt in ALLOWED {
        if said(inside, attempt) != "done" {
            faults.push(format!("{attempt} is needed and ends with {}", said(inside, attempt)));
        }
    }
    for denial in DENIALS {
        let (layer, wanted) = denial.outside;
        let outside = of(layer, denial.attempt);
        if outside != wanted {
            if OPTIONAL.contains(&denial.attempt) {
                println!("{:18}not told here: {} ends with {outside} without a sandbox", "", denial.attempt);
            } else {
                faults
                    .push(format!("{} ends with {outside} without a sandbox, not {wanted}", denial.attempt));
            }
            continue;
        }
        judged += 1;
        let found = said(inside, denial.attempt);
        if found != denial.inside {
            faults.push(format!("{} ends with {found} in the unit, not {}", denial.attempt, denial.inside));
        }
        for (layer, wanted) in denial.layers {
            single += 1;
            let found = of(layer, denial.attempt);
            if found != *wanted {
                faults.push(format!(
                    "{} ends with {found} under `{layer}` alone, not {wanted}",
                    denial.attempt
                ));
            }
        }
    }
    let named: Vec<&str> =
        DENIALS.iter().map(|denial| denial.attempt).chain(ALLOWED.iter().copied()).collect();
    let forgotten = probe::ATTEMPTS.iter().map(|attempt| attempt.name).find(|name| !named.contains(name));
    if let Some(name) = forgotten {
        faults.push(format!("nothing is expected of {name}"));
    }
    if !faults.is_empty() {
        bail!("the sandbox is not what it should be:\n  {}", faults.join("\n  "));
    }
    Ok((judged, single))
}

/// Which attempts each shipped drop-in lets through; all others must end as they do without it.
fn drop_ins(machine: &Machine) -> Result<()> {
    let before = in_the_unit(machine, None)?;
    let shipped = |name: &str| {
        std::fs::read_to_string(machine.path(&format!("{DROP_INS}/{name}.conf")))
            .with_context(|| format!("the package has no drop-in {name}"))
    };
    // A machine has no disks; the loop device stands for one.
    let devices = shipped("block-devices")?.replace("block-sd ", "block-loop ");
    machine.run(&["groupadd", "--force", "--system", "libvirt-qemu"])?;
    let expected: [(&str, String, &[&str]); 3] = [
        ("block-devices", devices, &["device"]),
        ("datastore", shipped("datastore")?, &["write-datastore"]),
        ("libvirt", shipped("libvirt")?, &[]),
    ];
    for (name, text, opens) in expected {
        let now = in_the_unit(machine, Some(&text)).with_context(|| format!("with drop-in {name}"))?;
        for (attempt, said) in &now {
            let wanted = match opens.contains(&attempt.as_str()) {
                true => "done",
                false => before.get(attempt).map_or("", String::as_str),
            };
            ensure!(said == wanted, "with drop-in {name} {attempt} ends with {said}, not {wanted}");
        }
    }
    Ok(())
}
