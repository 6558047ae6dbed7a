//! What a process inside the sandbox tries: each attempt is one thing that a vbrd taken over by somebody would want.
//!
//! `vbr-probe` runs them all and prints a line each: a name, and `done` or the error's name. Nothing here does harm
//! where it succeeds: it runs inside a machine of the system test, first without a sandbox, to show that it can.

use std::ffi::CString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, Result};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// A directory where anybody may write: inside the sandbox nobody may.
pub const PLAYGROUND: &str = "/srv/playground";
/// A device node that everybody may read and write, outside of /dev, where hiding /dev does not help.
pub const DEVICE: &str = "/srv/playground/disk";
/// A copy of the probe with the set-user-ID bit.
pub const RAISED: &str = "/srv/playground/raised";
/// Somebody else's state, open to all.
pub const OTHERS_STATE: &str = "/var/lib/other/secret";
/// A file in the machine's /tmp.
pub const SHARED_TMP: &str = "/tmp/shared";
/// The same in /run.
pub const SHARED_RUN: &str = "/run/shared";
/// Names the network namespace of the machine.
pub const NETWORK: &str = "/srv/playground/network";
/// Names a process like vbrd.
pub const BYSTANDER: &str = "/srv/playground/bystander";
/// Where homes are.
pub const HOMES: &str = "/home";
/// A file there, open to all.
pub fn in_homes() -> String {
    format!("{HOMES}/secret")
}
/// Where the datastore of the shipped drop-in would be.
pub const DATASTORE: &str = "/srv/vbr";

/// A thing to try.
pub struct Attempt {
    /// How it is called in the output.
    pub name: &'static str,
    /// Tries it.
    pub run: fn() -> Result<()>,
}

/// All of them.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt { name: "own-state", run: || write("/var/lib/vbr/probe") },
    Attempt { name: "tcp", run: || socket(libc::AF_INET, libc::SOCK_STREAM) },
    Attempt { name: "read-key", run: || open("/var/lib/vbr/key") },
    Attempt { name: "shared-run", run: || open(SHARED_RUN) },
    Attempt { name: "machine-network", run: machine_network },
    Attempt { name: "own-user-process", run: own_user_process },
    Attempt { name: "mount", run: mount },
    Attempt { name: "ptrace", run: ptrace },
    Attempt { name: "device", run: || open(DEVICE) },
    Attempt { name: "device-write", run: || append(DEVICE) },
    Attempt { name: "device-node", run: device_node },
    Attempt { name: "write-usr", run: || write("/usr/lib/probe") },
    Attempt { name: "write-etc", run: || write("/etc/probe") },
    Attempt { name: "write-playground", run: || write(&format!("{PLAYGROUND}/probe")) },
    Attempt { name: "write-datastore", run: || write(&format!("{DATASTORE}/probe")) },
    Attempt {
        name: "write-others-state",
        run: || OpenOptions::new().append(true).open(OTHERS_STATE).map(drop),
    },
    Attempt { name: "read-home", run: || open(&in_homes()) },
    Attempt { name: "shared-tmp", run: || open(SHARED_TMP) },
    Attempt { name: "kernel-setting", run: || append("/proc/sys/net/ipv4/ip_forward") },
    Attempt { name: "cgroup", run: cgroup },
    Attempt { name: "other-process", run: || open("/proc/1/stat") },
    Attempt { name: "signal", run: signal },
    Attempt { name: "become-root", run: become_root },
    Attempt { name: "setuid-program", run: setuid_program },
    Attempt { name: "setuid-file", run: setuid_file },
    Attempt { name: "raw-socket", run: || socket(libc::AF_INET, libc::SOCK_RAW) },
    Attempt { name: "packet-socket", run: || socket(libc::AF_PACKET, libc::SOCK_RAW) },
    Attempt { name: "user-namespace", run: || namespace(libc::CLONE_NEWUSER) },
    Attempt { name: "mount-namespace", run: || namespace(libc::CLONE_NEWNS) },
    Attempt { name: "write-and-execute", run: write_and_execute },
    Attempt { name: "load-module", run: load_module },
    Attempt { name: "hostname", run: hostname },
    Attempt { name: "clock", run: clock },
    Attempt { name: "kernel-log", run: kernel_log },
    Attempt { name: "realtime", run: realtime },
    Attempt { name: "personality", run: personality },
];

/// Tries all of them; each in a process of its own, so that none changes what the next one finds.
pub fn run_all() -> String {
    ATTEMPTS.iter().map(|attempt| format!("{} {}\n", attempt.name, said(attempt.name))).collect()
}

/// What one attempt, in a process of its own, said.
fn said(name: &str) -> String {
    let output = std::env::current_exe().and_then(|own| std::process::Command::new(own).arg(name).output());
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(output) => format!("ended with {}", output.status),
        Err(error) => format!("not started: {error}"),
    }
}

/// Tries one and says what came of it.
pub fn run_one(name: &str) -> Option<String> {
    let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name)?;
    Some(match (attempt.run)() {
        Ok(()) => "done".into(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), error_name),
    })
}

fn error_name(code: i32) -> String {
    let known = match code {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::EROFS => "EROFS",
        libc::ENOENT => "ENOENT",
        libc::ENOSYS => "ENOSYS",
        libc::ENOEXEC => "ENOEXEC",
        libc::EINVAL => "EINVAL",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EBADF => "EBADF",
        libc::ENXIO => "ENXIO",
        _ => return format!("error {code}"),
    };
    known.into()
}

fn check(answer: libc::c_long) -> Result<()> {
    if answer < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn open(path: &str) -> Result<()> {
    File::open(path).map(drop)
}

/// Makes a file and takes it away.
fn write(path: &str) -> Result<()> {
    std::fs::write(path, b"probe")?;
    std::fs::remove_file(path)
}

/// Opens for writing what is there, and writes nothing.
fn append(path: &str) -> Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

fn mount() -> Result<()> {
    let (kind, at) = (c"tmpfs", c"/mnt");
    let none = std::ptr::null();
    // SAFETY: all strings end with NUL and live through the calls; there are no options.
    check(unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, none) }.into())?;
    // SAFETY: as above.
    check(unsafe { libc::umount(at.as_ptr()) }.into())
}

/// Whether it is in the network of the machine.
fn machine_network() -> Result<()> {
    let (own, machines) = (std::fs::read_link("/proc/self/ns/net")?, std::fs::read_to_string(NETWORK)?);
    if own == Path::new(machines.trim()) { Ok(()) } else { Err(Error::from_raw_os_error(libc::EPERM)) }
}

/// Who may follow this link may read the process's memory, and go where its root is.
fn own_user_process() -> Result<()> {
    let pid = std::fs::read_to_string(BYSTANDER)?;
    std::fs::read_link(format!("/proc/{}/exe", pid.trim())).map(drop)
}

/// Takes hold of a child of its own, which needs no privilege.
fn ptrace() -> Result<()> {
    let mut child = std::process::Command::new("/bin/sleep").arg("10").spawn()?;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the request reads and writes no memory of ours.
    let answer = check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, child.id().cast_signed(), none, none) });
    let _ = child.kill();
    let _ = child.wait();
    answer
}

fn device_node() -> Result<()> {
    let path = CString::new(format!("{PLAYGROUND}/node"))?;
    // SAFETY: the path ends with NUL and lives through the call. 7, 0 is the first loop device.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o600, libc::makedev(7, 0)) }.into())?;
    std::fs::remove_file(format!("{PLAYGROUND}/node"))
}

fn cgroup() -> Result<()> {
    let path = Path::new("/sys/fs/cgroup/probe");
    std::fs::create_dir(path)?;
    std::fs::remove_dir(path)
}

fn signal() -> Result<()> {
    // SAFETY: plain integers; signal 0 only asks whether one could be sent.
    check(unsafe { libc::kill(1, 0) }.into())
}

fn become_root() -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setuid, 0) })
}

/// A set-user-ID program makes its caller root, unless privileges cannot be gained.
fn setuid_program() -> Result<()> {
    let output = std::process::Command::new(RAISED).arg("--effective-user").output()?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "0" => Ok(()),
        _ => Err(Error::from_raw_os_error(libc::EPERM)),
    }
}

fn setuid_file() -> Result<()> {
    let path = "/var/lib/vbr/raised";
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o700).open(path)?;
    let answer = std::fs::set_permissions(path, Permissions::from_mode(0o4700));
    std::fs::remove_file(path)?;
    answer
}

fn socket(family: i32, kind: i32) -> Result<()> {
    let protocol = if kind == libc::SOCK_RAW { libc::IPPROTO_ICMP } else { 0 };
    // SAFETY: plain integers.
    let handle = unsafe { libc::socket(family, kind, protocol) };
    check(handle.into())?;
    // SAFETY: the descriptor was just opened and is used nowhere else.
    check(unsafe { libc::close(handle) }.into())
}

fn namespace(kind: i32) -> Result<()> {
    // SAFETY: a plain integer; this process does one attempt and ends.
    check(unsafe { libc::unshare(kind) }.into())
}

fn write_and_execute() -> Result<()> {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let (none, flags) = (std::ptr::null_mut(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at a place of the kernel's choice; nobody uses it.
    let place = unsafe { libc::mmap(none, 4096, all, flags, -1, 0) };
    if place == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Nothing to load: a kernel that gets so far says that it is no module.
fn load_module() -> Result<()> {
    // SAFETY: an empty buffer and an empty string.
    check(unsafe { libc::syscall(libc::SYS_init_module, c"".as_ptr(), 0usize, c"".as_ptr()) })
}

fn hostname() -> Result<()> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let name = name.trim();
    // SAFETY: the pointer and the length are of one live string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())
}

/// A time that no clock may have: who may set it is told so, who may not is refused before.
fn clock() -> Result<()> {
    // SAFETY: the structure holds integers alone, for which zero is a value.
    let mut wrong: libc::timex = unsafe { std::mem::zeroed() };
    (wrong.modes, wrong.tick) = (libc::ADJ_TICK, 1);
    // SAFETY: the pointer is to a live structure of that type.
    check(unsafe { libc::adjtimex(&raw mut wrong) }.into())
}

fn kernel_log() -> Result<()> {
    // 3 reads the last of it, and takes nothing out.
    let mut buffer = [0 as libc::c_char; 64];
    // SAFETY: the buffer is as long as is said.
    check(unsafe { libc::klogctl(3, buffer.as_mut_ptr(), 64) }.into())
}

fn realtime() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a live structure; 0 is this process, which ends soon.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) }.into())
}

fn personality() -> Result<()> {
    // 8 is PER_LINUX32.
    // SAFETY: a plain integer; this process does one attempt and ends.
    check(unsafe { libc::personality(8) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_tell_success_from_refusal() {
        assert_eq!(run_one("tcp").unwrap(), "done");
        assert_eq!(run_one("read-home").unwrap(), "ENOENT");
        assert!(run_one("nothing").is_none());
    }
}
