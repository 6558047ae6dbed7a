//! A running VM. Without a guest, qemu's own console writes through the VM's devices what a guest would write, at a moment
//! and a place that the test knows. With one ([`Guest`]), files that bear their own checksums are written all the time.
//!
//! Owns the process; killed when dropped. Emulated: no machine of ours can be relied on for KVM.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::run;

/// For the monitor to come up, and for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a guest to boot, emulated on a busy machine, and to read all its files.
const GUEST: Duration = Duration::from_secs(240);

/// A disk of a VM.
#[derive(Clone, Debug)]
pub struct VmDisk {
    /// The image.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
}

/// What runs inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Writes until it is ended.
    Writes,
    /// Checks what it finds and switches off.
    Checks,
    /// Is started by its own disk ([`guest_disk`]), checks what it finds, then writes; the power button switches it off.
    Lives,
}

/// See the module.
pub struct Vm {
    directory: PathBuf,
    name: String,
    disks: Vec<VmDisk>,
    guest: Option<Guest>,
    /// More words for qemu.
    more: Vec<String>,
    qemu: Option<Child>,
}

impl Vm {
    /// Starts a VM whose monitor is `NAME.qmp` in this directory.
    pub fn start(directory: &Path, name: &str, disks: &[VmDisk]) -> Result<Self> {
        Self::boots(directory, name, disks, None)
    }

    /// The same with a guest on its first disk, an ext4 file system.
    pub fn with_guest(directory: &Path, name: &str, disks: &[VmDisk], guest: Guest) -> Result<Self> {
        Self::boots(directory, name, disks, Some(guest))
    }

    fn boots(directory: &Path, name: &str, disks: &[VmDisk], guest: Option<Guest>) -> Result<Self> {
        let (directory, name, disks) = (directory.into(), name.into(), disks.to_vec());
        let mut vm = Self { directory, name, disks, guest, more: Vec::new(), qemu: None };
        vm.boot()?;
        Ok(vm)
    }

    /// From its next start on, qemu is given these words as well.
    pub fn give(&mut self, more: &[&str]) {
        self.more = more.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Starts it again after [`kill`](Self::kill) or [`quit`](Self::quit).
    pub fn boot(&mut self) -> Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let socket = self.socket();
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        // Line by line, so that what it says is there when it has said it.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "qemu-system-x86_64"]);
        command.stdout(std::fs::File::options().create(true).append(true).open(self.said_file())?);
        command.args([
            "-machine",
            "q35,accel=tcg",
            "-m",
            "192",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ]);
        // For a device that comes later.
        command.args(["-device", "pcie-root-port,id=hp,chassis=1"]);
        if let Some(guest) = self.guest {
            if guest != Guest::Lives {
                let (made, mode) = (make_guest()?, if guest == Guest::Writes { "write" } else { "check" });
                command.arg("-kernel").arg(made.join("kernel")).arg("-initrd").arg(made.join("initramfs"));
                command.args(["-append", &format!("console=ttyS0 quiet vbr={mode}")]);
            }
            command.arg("-serial").arg(format!("file:{}", self.console_file().display()));
        }
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        for (n, disk) in self.disks.iter().enumerate() {
            let drive = format!(
                "if=none,id=drive{n},file={},format={},discard=unmap",
                disk.path.display(),
                disk.format
            );
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=drive{n},id=disk{n}")]);
        }
        command.args(&self.more);
        let child = command.stdin(Stdio::null()).spawn().context("starting qemu-system-x86_64")?;
        self.qemu = Some(child);
        let end = Instant::now() + PATIENCE;
        while self.order("query-status", &json!({})).is_err() {
            ensure!(Instant::now() < end, "the VM does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn console_file(&self) -> PathBuf {
        self.directory.join(format!("{}.console", self.name))
    }

    /// What the guest has said.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.console_file())?).into_owned())
    }

    /// Waits until the guest has said a line that this finds something in.
    pub fn wait_for<T>(&self, what: &str, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        said_last(&self.console_file(), found).with_context(|| format!("waiting until the guest says {what}"))
    }

    /// The newest file that is durable in the guest.
    pub fn wrote(&self) -> Result<u64> {
        self.wait_for("that it wrote", |line| line.strip_prefix("GUEST WROTE ")?.parse().ok())
    }

    /// How many files a checking guest found, all of them good and none missing.
    pub fn checked(&self) -> Result<u64> {
        self.wait_for("what it found", |line| line.strip_prefix("GUEST GOOD ")?.parse().ok())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}.qmp", self.name))
    }

    /// One order to the monitor, over a connection of its own.
    pub fn order(&self, command: &str, arguments: &Value) -> Result<Value> {
        order(&self.socket(), command, arguments)
    }

    /// Writes a pattern through a device; an error is what the guest would have seen.
    pub fn write(&self, disk: usize, pattern: u8, offset: u64, len: u64) -> Result<()> {
        let before = self.said()?.len();
        let line = format!("qemu-io -d disk{disk}/virtio-backend \"write -P {pattern} {offset} {len}\"");
        let refused = self.order("human-monitor-command", &json!({ "command-line": line }))?;
        // What came of it, it says on its standard output.
        let said = self.said()?.split_off(before);
        ensure!(refused == "" && said.starts_with("wrote "), "{line}: {refused} {said}");
        Ok(())
    }

    fn said_file(&self) -> PathBuf {
        self.directory.join(format!("{}.said", self.name))
    }

    fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.said_file())?).into_owned())
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.order("query-status", &json!({}))?["running"] == true)
    }

    /// As a crash of the host does it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill()?;
            qemu.wait()?;
        }
        Ok(())
    }

    /// In order: qemu writes back what it holds.
    pub fn quit(&mut self) -> Result<()> {
        self.order("quit", &json!({}))?;
        if let Some(mut qemu) = self.qemu.take() {
            qemu.wait()?;
        }
        Ok(())
    }
}

/// Ends the VM in a directory that vbrd started it in.
pub fn quit(directory: &Path) -> Result<()> {
    // A socket's path is at most 107 bytes long.
    let handle = std::fs::File::open(directory)?;
    let socket = format!("/proc/self/fd/{}/qmp", std::os::fd::AsRawFd::as_raw_fd(&handle));
    order(Path::new(&socket), "quit", &json!({})).map(drop)
}

fn order(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut writer, mut lines) = (stream.try_clone()?, BufReader::new(stream).lines());
    lines.next().context("no greeting")??;
    writeln!(writer, "{}", json!({ "execute": "qmp_capabilities" }))?;
    writeln!(writer, "{}", json!({ "execute": command, "arguments": arguments, "id": 1 }))?;
    for line in lines {
        let answer: Value = serde_json::from_str(&line?)?;
        if answer["id"] == 1 {
            ensure!(answer.get("error").is_none(), "{command}: {answer}");
            return Ok(answer["return"].clone());
        }
    }
    bail!("{command}: no answer")
}

/// A raw disk of so many bytes that starts the guest by itself; the second partition is what it writes to.
pub fn guest_disk(path: &Path, bytes: u64) -> Result<()> {
    const SECTOR: u64 = 512;
    crate::disk::copy(&make_guest()?.join("boot.img"), path)?;
    let first = std::fs::metadata(path)?.len();
    ensure!(bytes > first + (16 << 20), "a guest needs more than {first} bytes");
    crate::disk::set_len(path, bytes)?;
    let (image, size) = (path.display().to_string(), (bytes - first) / 1024);
    let mut table = Command::new("sfdisk")
        .args(["-q", "--append", "--no-reread", "--no-tell-kernel", &image])
        .stdin(Stdio::piped())
        .spawn()?;
    let line = format!("start={}, type=83\n", first / SECTOR);
    table.stdin.take().context("no pipe")?.write_all(line.as_bytes())?;
    ensure!(table.wait()?.success(), "sfdisk failed");
    run("mkfs.ext4", ["-q", "-F", "-E", &format!("offset={first}"), &image, &format!("{size}k")]).map(drop)
}

/// What a started VM's guest has said last, in the log of its serial console.
pub fn said_last<T>(console: &Path, found: impl Fn(&str) -> Option<T>) -> Result<T> {
    let end = Instant::now() + GUEST;
    loop {
        let said = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
        if let Some(bad) = said.lines().find(|line| line.contains("GUEST BAD") || line.contains("I/O error"))
        {
            bail!("the guest says: {bad}");
        }
        if let Some(found) = said.lines().rev().find_map(|line| found(line.trim())) {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "the guest does not say what it should: {said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Kernel and initramfs, made once for all tests of a build directory.
fn make_guest() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).context("the tests run from a build directory")?;
    let (made, lock) = (target.join("guest"), target.join("guest.lock"));
    let lock = std::fs::File::create(lock)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/make-guest"), [&made])?;
    Ok(made)
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
