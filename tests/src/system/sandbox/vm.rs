//! What is expected of vbr-vm@.service: who breaks out of a guest is vbr's user, without what makes that a site.

use super::{Denial, Shipped, denied};

pub(super) const SHIPPED: Shipped = Shipped {
    unit: "vbr-vm@probe.service",
    file: "/lib/systemd/system/vbr-vm@.service",
    layers: LAYERS,
    denials: DENIALS,
    // Datastores may lie anywhere, and emulation writes code and runs it.
    open: &["own-state", "write-playground", "write-datastore", "write-others-state", "write-and-execute"],
};

const LAYERS: &[(&str, &[&str])] = &[
    ("nothing", &[]),
    ("user", &["User", "Group"]),
    ("privileges", &["User", "Group", "NoNewPrivileges"]),
    ("capabilities", &["CapabilityBoundingSet", "AmbientCapabilities"]),
    ("calls", &["SystemCallFilter", "SystemCallErrorNumber"]),
    ("keys", &["User", "Group", "InaccessiblePaths"]),
    ("run", &["TemporaryFileSystem"]),
    ("users", &["PrivateUsers"]),
    ("network", &["PrivateNetwork"]),
    ("families", &["RestrictAddressFamilies"]),
    ("system", &["ProtectSystem"]),
    ("home", &["ProtectHome"]),
    ("tmp", &["PrivateTmp"]),
    ("devices", &["DevicePolicy"]),
    ("tunables", &["ProtectKernelTunables"]),
    ("cgroups", &["ProtectControlGroups"]),
    ("proc", &["User", "Group", "ProtectProc"]),
    ("namespaces", &["RestrictNamespaces"]),
    ("suid", &["RestrictSUIDSGID"]),
    ("realtime", &["RestrictRealtime"]),
    ("personality", &["LockPersonality"]),
    ("clock", &["ProtectClock"]),
    ("log", &["ProtectKernelLogs"]),
    ("modules", &["ProtectKernelModules"]),
    ("hostname", &["ProtectHostname"]),
];

const fn of_user(
    attempt: &'static str,
    inside: &'static str,
    layers: &'static [(&'static str, &'static str)],
) -> Denial {
    Denial { attempt, outside: ("user", "done"), inside, layers }
}

const DENIALS: &[Denial] = &[
    of_user("read-key", "EACCES", &[("keys", "EACCES")]),
    denied("shared-run", "ENOENT", &[("run", "ENOENT")]),
    denied("own-user-process", "ENOENT", &[("users", "EACCES"), ("user", "EACCES")]),
    denied("machine-network", "EPERM", &[("network", "EPERM")]),
    denied("tcp", "EAFNOSUPPORT", &[("families", "EAFNOSUPPORT")]),
    denied("raw-socket", "EAFNOSUPPORT", &[("families", "EAFNOSUPPORT"), ("user", "EPERM")]),
    denied("packet-socket", "EAFNOSUPPORT", &[("families", "EAFNOSUPPORT"), ("capabilities", "EPERM")]),
    denied("mount", "EPERM", &[("calls", "EPERM"), ("capabilities", "EPERM")]),
    denied("ptrace", "EPERM", &[("calls", "EPERM")]),
    denied("device", "EPERM", &[("devices", "EPERM")]),
    denied("device-write", "EPERM", &[("devices", "EPERM")]),
    denied("device-node", "EPERM", &[("devices", "EPERM"), ("capabilities", "EPERM")]),
    denied("write-usr", "EROFS", &[("system", "EROFS"), ("user", "EACCES")]),
    denied("write-etc", "EROFS", &[("system", "EROFS"), ("user", "EACCES")]),
    denied("read-home", "EACCES", &[("home", "ENOENT")]),
    denied("shared-tmp", "ENOENT", &[("tmp", "ENOENT")]),
    denied("kernel-setting", "EACCES", &[("tunables", "EROFS"), ("user", "EACCES")]),
    denied("cgroup", "EROFS", &[("cgroups", "EROFS"), ("user", "EACCES")]),
    of_user("other-process", "ENOENT", &[("proc", "ENOENT")]),
    denied("signal", "EPERM", &[("user", "EPERM")]),
    denied("become-root", "EPERM", &[("calls", "EPERM"), ("user", "EPERM")]),
    of_user("setuid-program", "EPERM", &[("privileges", "EPERM")]),
    denied("setuid-file", "EPERM", &[("suid", "EPERM")]),
    denied("user-namespace", "EPERM", &[("namespaces", "EPERM")]),
    denied("mount-namespace", "EPERM", &[("namespaces", "EPERM"), ("capabilities", "EPERM")]),
    Denial {
        attempt: "load-module",
        outside: ("nothing", "ENOEXEC"),
        inside: "EPERM",
        layers: &[("calls", "EPERM"), ("modules", "EPERM"), ("capabilities", "EPERM")],
    },
    denied("hostname", "EPERM", &[("calls", "EPERM"), ("hostname", "EPERM"), ("capabilities", "EPERM")]),
    Denial {
        attempt: "clock",
        outside: ("nothing", "EINVAL"),
        inside: "EPERM",
        layers: &[("calls", "EPERM"), ("clock", "EPERM"), ("capabilities", "EPERM")],
    },
    denied("kernel-log", "EPERM", &[("log", "EPERM")]),
    denied("realtime", "EPERM", &[("realtime", "EPERM"), ("calls", "EPERM")]),
    denied("personality", "EPERM", &[("personality", "EPERM")]),
];
