//! Network namespaces named after this process, so that what a killed run left behind can be told
//! from what lives: `vbr-<pid>-<n>s` and `vbr-<pid>-<n>t`.
//!
//! Owns the names under `/run/netns`. A namespace goes away when its handle is dropped; [`sweep`]
//! removes those of processes that are dead, with whatever still runs inside.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::process::run;

/// What the package installs.
const SYSCTL: &str = include_str!("../../../systemd/sysctl.d/60-vbr.conf");

/// A network namespace; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Two new namespaces with loopback up, and socket buffers as the package sets them: with the kernel's own
    /// (4 MiB, of which 2.8 are payload) no connection takes more than 280 Mbit/s over 80 ms.
    pub fn pair() -> Result<(Self, Self)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let make = |end| {
            let namespace = Self { name: format!("vbr-{}-{number}{end}", std::process::id()) };
            run("ip", ["netns", "add", &namespace.name]).context("network namespaces need root")?;
            run("ip", ["-n", &namespace.name, "link", "set", "lo", "up"])?;
            let settings = SYSCTL.lines().filter(|line| line.starts_with("net."));
            for (key, value) in settings.filter_map(|line| line.split_once(" = ")) {
                let mut set = namespace.command("sh");
                set.args([
                    "-c",
                    "echo \"$1\" > \"$0\"",
                    &format!("/proc/sys/{}", key.replace('.', "/")),
                    value,
                ]);
                ensure!(set.status()?.success(), "{key} cannot be set in a namespace");
            }
            Ok::<_, anyhow::Error>(namespace)
        };
        Ok((make("s")?, make("t")?))
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that will run inside. Only the network is another one: mounts stay shared, unlike
    /// with `ip netns exec`, so a file system can still be unmounted while the command runs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(Some(&self.name), program)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// A command in the named namespace, or in ours.
pub fn command_in(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match namespace {
        Some(name) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Removes what dead processes left behind, once a process.
pub fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let owner = name.strip_prefix("vbr-").and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
                remove(&name);
            }
        }
    });
}

fn remove(name: &str) {
    if let Ok(pids) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|line| line.trim().parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // Already gone is as good as killed.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}
