//! Machines with systemd as their first process, for what only a real service manager shows: the package, the
//! unit, its sandbox, its watchdog.
//!
//! A machine is a process in namespaces of its own (mounts, processes, IPC, names, cgroups; its network is one end of a
//! [`crate::link::Link`]) over an overlay of the base root ([`root`]). No virtual machine, no image: it boots in less than a
//! second and is gone with its last process. Owns the process, the cgroup and the console's file. Needs root
//! and cgroup v2. What is not there: devices, controllers of cgroups where the machine below has none.
//! Bounds: what a machine writes lies in memory, 4 GiB at most (`boot.sh`).

mod held;
pub mod package;
pub mod root;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;

use crate::link::Namespace;
use crate::process::run;

pub use held::Held;

/// How a machine makes its root and becomes systemd.
const BOOT: &str = include_str!("boot.sh");
/// The longest that a boot may take.
const BOOT_TIME: Duration = Duration::from_secs(60);
/// A command inside is killed after this.
const COMMAND_SECONDS: &str = "150";

/// A running machine; killed when dropped.
pub struct Machine {
    name: String,
    child: Child,
    init: u32,
    cgroup: PathBuf,
    console: PathBuf,
}

impl Machine {
    /// Boots one over `base`, with the network of `namespace`, and waits until systemd has started what it starts.
    pub fn boot(
        base: &Path,
        namespace: &Namespace,
        cgroups: &Cgroups,
        dir: &Path,
        name: &str,
    ) -> Result<Self> {
        let (place, script) = (dir.join(name), dir.join("boot.sh"));
        std::fs::create_dir_all(&place)?;
        std::fs::write(&script, BOOT)?;
        let console = dir.join(format!("{name}.console"));
        let cgroup = cgroups.add(name)?;
        let out = File::create(&console)?;
        // The shell enters the cgroup before it becomes the one that unshares, so that the namespace begins there.
        // Whatever happens to this process, the machine goes with it.
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&cgroup)
            .args(["setpriv", "--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", namespace.path().display()))
            .args(["--", "unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork"])
            .args(["--kill-child=KILL", "sh"])
            .args([script.as_os_str(), base.as_os_str(), place.as_os_str(), OsStr::new(name)])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut machine = Self { name: name.into(), child, init: 0, cgroup, console };
        machine.wait_booted()?;
        Ok(machine)
    }

    fn wait_booted(&mut self) -> Result<()> {
        let limit = Instant::now() + BOOT_TIME;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("machine {} ended with {status}\n{}", self.name, self.console());
            }
            if self.init == 0 {
                self.init = child_of(self.child.id())?.unwrap_or(0);
            } else {
                // `degraded`: a unit of the distribution failed, as some do on kernels of one's own.
                let state = self.output(&["systemctl", "is-system-running", "--wait"])?.stdout;
                if matches!(&state[..], b"running\n" | b"degraded\n") {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < limit, "machine {} does not boot\n{}", self.name, self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its name, which its site takes unless told otherwise.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path inside, as this process reaches it. Symbolic links on the way must be relative.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Writes a file inside, with the directories above it.
    pub fn write(&self, inside: &str, content: &str) -> Result<()> {
        let path = self.path(inside);
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        std::fs::write(&path, content).with_context(|| format!("writing {inside} in {}", self.name))
    }

    /// Copies a file of ours to a path inside.
    pub fn copy(&self, from: &Path, inside: &str) -> Result<()> {
        let copied = std::fs::copy(from, self.path(inside));
        copied.map(drop).with_context(|| format!("copying {} into {}", from.display(), self.name))
    }

    /// A command that will run inside as root, with an environment of its own.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "--"])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"])
            .args(["DEBIAN_FRONTEND=noninteractive", "timeout", "-k", "5", COMMAND_SECONDS])
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command inside, whatever comes of it.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        self.command(words).output().with_context(|| format!("entering machine {}", self.name))
    }

    /// Runs a command inside and wants success; returns standard output without the last line end.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        if !output.status.success() {
            bail!(
                "{}# {}: {}\n{}{}",
                self.name,
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Runs `vbrctl … -o json`, wants success, and reads the answer.
    pub fn json<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let text = self.run(&[&["vbrctl"], words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("vbrctl {} printed other JSON: {text}", words.join(" ")))
    }

    /// A property of a unit, as systemd has it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--value", "--property", name, unit])
    }

    /// The main process of a unit, as this process and the machine know it.
    pub fn main_process(&self, unit: &str) -> Result<(u32, u32)> {
        let inside: u32 = self.property(unit, "MainPID")?.parse()?;
        let inside_of = self.property(unit, "ControlGroup")?;
        let members = self.cgroup.join(inside_of.trim_start_matches('/')).join("cgroup.procs");
        let members =
            std::fs::read_to_string(&members).with_context(|| format!("reading {}", members.display()))?;
        let ours = members.lines().filter_map(|line| line.parse().ok()).find(|pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            line.and_then(|pids| pids.split_whitespace().last()?.parse().ok()) == Some(inside)
        });
        let ours = ours.ok_or_else(|| anyhow!("{unit} has no main process in machine {}", self.name))?;
        Ok((ours, inside))
    }

    /// What explains a failure: the unit's state, the end of the journal, the console.
    pub fn explain(&self) -> String {
        let said = |words: &[&str]| match self.output(words) {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => format!("{error:#}"),
        };
        format!(
            "--- machine {0}: systemctl status\n{1}--- machine {0}: journal\n{2}--- machine {0}: console\n{3}---",
            self.name,
            said(&["systemctl", "status", "--no-pager", "--lines=0", "vbrd"]),
            said(&["journalctl", "--no-pager", "--lines=80", "--output=short-precise"]),
            self.console()
        )
    }

    fn console(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The one that unshared; its child, the first process inside, is killed with it, and everything inside with that.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let limit = Instant::now() + Duration::from_secs(10);
        while !remove(&self.cgroup) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The one child of a process, once it has one.
fn child_of(parent: u32) -> Result<Option<u32>> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // After the name, which ends with the last parenthesis: state, parent.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        if fields.nth(1) == Some(&parent.to_string()) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// The tree of cgroups that machines are in: a mount of its own, so that it does not matter where, or whether,
/// the machine below has one. Unmounted when dropped.
pub struct Cgroups {
    at: PathBuf,
}

impl Cgroups {
    /// Mounts it in a working directory.
    pub fn mount(dir: &Path) -> Result<Self> {
        let at = dir.join("cgroup");
        std::fs::create_dir_all(&at)?;
        run("mount", [OsStr::new("-t"), "cgroup2".as_ref(), "none".as_ref(), at.as_os_str()])
            .context("machines need cgroup v2")?;
        // What a run that was killed left behind.
        for entry in std::fs::read_dir(&at)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix("vbr-").and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
                remove(&entry.path());
            }
        }
        Ok(Self { at })
    }

    fn add(&self, name: &str) -> Result<PathBuf> {
        let place = self.at.join(format!("vbr-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        Ok(place)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if let Err(error) = run("umount", [&self.at]) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes a cgroup and those below; false while a process is in one.
fn remove(cgroup: &Path) -> bool {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}
