//! A libvirtd of a test's own: configuration, state and sockets in a directory of the test, in a mount namespace that
//! leaves those of the machine alone. And a VM of it, emulated and without a guest: qemu's own console writes through
//! the VM's devices what a guest would write.
//!
//! Owns libvirtd and the VM's qemu; both are killed when dropped. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{finish, run};
use crate::vm::VmDisk;

const PATIENCE: Duration = Duration::from_secs(30);
/// As root, without what confines VMs: none of it is there in a container.
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ndynamic_ownership = 0\n\
                         remember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n";
/// Places of the machine, and what they are in the directory.
const PLACES: [(&str, &str); 5] = [
    ("/etc/libvirt", "etc"),
    ("/var/lib/libvirt", "lib"),
    ("/var/cache/libvirt", "cache"),
    ("/var/log/libvirt", "log"),
    ("/run/libvirt", "run"),
];

/// See the module.
pub struct Libvirtd {
    directory: PathBuf,
    child: Child,
    vm: String,
}

impl Libvirtd {
    /// Starts it, defines a VM of these disks and starts that.
    pub fn start(directory: &Path, vm: &str, disks: &[VmDisk]) -> Result<Self> {
        for (place, name) in PLACES {
            fs::create_dir_all(directory.join(name))?;
            fs::create_dir_all(place)?;
        }
        fs::create_dir_all(directory.join("etc/qemu"))?;
        fs::write(directory.join("etc/qemu.conf"), QEMU_CONF)?;
        let at = |name: &str| directory.join(name).display().to_string();
        let conf = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nlog_outputs = \"3:file:{}\"\n",
            at("run"),
            at("libvirtd.log")
        );
        fs::write(directory.join("etc/libvirtd.conf"), conf)?;
        let binds = PLACES.map(|(place, name)| format!("mount --bind '{}' {place}", at(name))).join(" && ");
        let script = format!(
            "{binds} && exec libvirtd --config '{}' --pid-file '{}'",
            at("etc/libvirtd.conf"),
            at("pid")
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let log = fs::File::create(directory.join("start.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("starting libvirtd")?;
        let libvirtd = Self { directory: directory.to_owned(), child, vm: vm.to_owned() };
        let end = Instant::now() + PATIENCE;
        while libvirtd.virsh(&["list"]).is_err() {
            ensure!(Instant::now() < end, "libvirtd does not come up: {:?}", libvirtd.virsh(&["list"]));
            std::thread::sleep(Duration::from_millis(100));
        }
        let definition = directory.join("vm.xml");
        fs::write(&definition, domain(vm, disks))?;
        libvirtd.virsh(&["define", &definition.display().to_string()])?;
        libvirtd.boot()?;
        Ok(libvirtd)
    }

    /// How vbrd reaches it.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}/run/libvirt-sock", self.directory.display())
    }

    /// An order to it.
    pub fn virsh(&self, words: &[&str]) -> Result<String> {
        let uri = self.uri();
        run("virsh", ["--quiet", "--connect", &uri].iter().chain(words))
    }

    /// Starts the VM.
    pub fn boot(&self) -> Result<()> {
        self.virsh(&["start", &self.vm]).map(drop)
    }

    /// Whether the VM runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.virsh(&["domstate", &self.vm])?.trim() == "running")
    }

    /// Ends the VM in order: qemu writes back what it holds.
    pub fn quit(&self) -> Result<()> {
        self.virsh(&["destroy", "--graceful", &self.vm]).map(drop)
    }

    fn qemu(&self) -> Option<Pid> {
        let file = self.directory.join(format!("run/qemu/{}.pid", self.vm));
        Pid::from_raw(fs::read_to_string(file).ok()?.trim().parse().ok()?)
    }

    /// Kills the VM, as a crash of the host does it.
    pub fn crash(&self) -> Result<()> {
        kill_process(self.qemu().context("no qemu")?, Signal::KILL)?;
        let end = Instant::now() + PATIENCE;
        while self.is_running()? {
            ensure!(Instant::now() < end, "the VM does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn said(&self) -> Result<String> {
        let log = self.directory.join(format!("log/qemu/{}.log", self.vm));
        Ok(String::from_utf8_lossy(&fs::read(log)?).into_owned())
    }

    /// Writes a pattern through a device; an error is what the guest would have seen.
    pub fn write(&self, disk: usize, pattern: u8, offset: u64, len: u64) -> Result<()> {
        self.write_as(disk, &format!("-P {pattern}"), offset, len)
    }

    /// The same with the content of a file, over and over.
    pub fn write_file(&self, disk: usize, content: &Path, offset: u64, len: u64) -> Result<()> {
        self.write_as(disk, &format!("-s {}", content.display()), offset, len)
    }

    fn write_as(&self, disk: usize, what: &str, offset: u64, len: u64) -> Result<()> {
        let before = self.said()?.len();
        // Durable, so that it is there after a crash.
        let line = format!(
            "qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"write -f {what} {offset} {len}\""
        );
        let answer = self.virsh(&["qemu-monitor-command", &self.vm, "--hmp", &line])?;
        // It is said before the answer comes.
        let said = self.said()?.split_off(before);
        ensure!(said.contains("wrote ") && !said.contains("failed"), "{line}: {answer} {said}");
        Ok(())
    }

    /// Names of the VM's checkpoints.
    pub fn checkpoints(&self) -> Result<Vec<String>> {
        let list = self.virsh(&["checkpoint-list", &self.vm, "--name"])?;
        Ok(list.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Whether a backup runs.
    pub fn has_backup(&self) -> bool {
        self.virsh(&["backup-dumpxml", &self.vm]).is_ok()
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let qemu = self.qemu();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(qemu) = qemu {
            let _ = kill_process(qemu, Signal::KILL);
        }
    }
}

fn domain(name: &str, disks: &[VmDisk]) -> String {
    let mut text = format!(
        "<domain type='qemu'>\n<name>{name}</name>\n<memory unit='MiB'>128</memory>\n<vcpu>1</vcpu>\n\
         <os><type arch='x86_64' machine='q35'>hvm</type></os>\n<devices>\n\
         <emulator>/usr/bin/qemu-system-x86_64</emulator>\n"
    );
    for (disk, letter) in disks.iter().zip('a'..='z') {
        text += &format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{}' discard='unmap'/><source file='{}'/>\
             <target dev='vd{letter}' bus='virtio'/></disk>\n",
            disk.format,
            disk.path.display()
        );
    }
    text + "<memballoon model='none'/>\n</devices>\n</domain>\n"
}

/// Whether this machine has what it takes.
pub fn is_there() -> bool {
    let mut command = Command::new("libvirtd");
    command.arg("--version");
    crate::process::is_root() && finish(&mut command).is_ok()
}
