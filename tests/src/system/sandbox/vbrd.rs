//! What is expected of vbrd.service and its drop-ins.

use anyhow::{Context, Result, ensure};

use super::{Denial, Shipped, denied, in_the_unit};
use crate::machine::Machine;
use crate::system::service::UNIT;

const DROP_INS: &str = "/usr/share/vbr/drop-ins";

pub(super) const SHIPPED: Shipped = Shipped {
    unit: UNIT,
    file: "/lib/systemd/system/vbrd.service",
    layers: LAYERS,
    denials: DENIALS,
    open: &["own-state", "tcp", "read-key", "shared-run", "machine-network", "own-user-process"],
};

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

/// Which attempts each shipped drop-in lets through; all others must end as they do without it.
pub(super) fn drop_ins(machine: &Machine) -> Result<()> {
    let before = in_the_unit(machine, &SHIPPED, None)?;
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
        let now =
            in_the_unit(machine, &SHIPPED, Some(&text)).with_context(|| format!("with drop-in {name}"))?;
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
