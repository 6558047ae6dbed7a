//! Child processes of the tools of qemu and libvirt: found, started, bounded in time and output, always reaped.
//!
//! All children are started by one thread that lives as long as vbrd: the kernel's parent-death signal
//! follows the *thread* that forked, and the threads of a blocking pool come and go. Not its job: what
//! the tools are asked to do.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::NbdError;
use crate::pulse;

pub(super) const QEMU_IMG: &str = "qemu-img";
pub(super) const STORAGE_DAEMON: &str = "qemu-storage-daemon";
/// The console of libvirt.
pub const VIRSH: &str = "virsh";

/// How long `qemu_img` may take: enough for creating, checking a small image, resizing.
const QEMU_IMG_TIME: Duration = Duration::from_secs(120);
/// Bytes of a tool's standard output or error that are kept.
const OUTPUT_BYTES_MAX: u64 = 1024 * 1024;
/// Characters of a tool's words that reach an error message.
const WORDS_MAX: usize = 2000;

/// Names the packages to install where qemu's tools are not found; none where they are there.
pub fn qemu_utils_missing() -> Option<String> {
    let missing: Vec<_> = [QEMU_IMG, STORAGE_DAEMON].into_iter().filter(|t| find_tool(t).is_none()).collect();
    if missing.is_empty() {
        return None;
    }
    let packages: Vec<_> = missing.iter().map(|tool| package_of(tool)).collect();
    Some(format!("{} not found: apt install {}", missing.join(" and "), packages.join(" ")))
}

/// The package of Debian that has a tool.
fn package_of(tool: &str) -> &'static str {
    match tool {
        STORAGE_DAEMON => "qemu-system-common",
        VIRSH => "libvirt-clients",
        _ => "qemu-utils",
    }
}

/// Runs `qemu-img` with its usual bound of two minutes and gives back its standard output.
pub fn qemu_img<S: AsRef<OsStr>>(args: &[S]) -> Result<String, NbdError> {
    qemu_img_within(args, QEMU_IMG_TIME)
}

/// Runs `qemu-img` with a bound of the caller's: a conversion takes as long as its image is large.
pub fn qemu_img_within<S: AsRef<OsStr>>(args: &[S], timeout: Duration) -> Result<String, NbdError> {
    run_tool(QEMU_IMG, args, timeout)
}

/// Runs a tool to its end within a bound, and gives back its standard output. Its language is C.
pub fn run_tool<S: AsRef<OsStr>>(
    tool: &'static str,
    args: &[S],
    timeout: Duration,
) -> Result<String, NbdError> {
    let image = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let mut command = Command::new(tool_path(tool)?);
    command.args(args);
    run_within(tool, command, image, timeout)
}

/// Runs a tool of qemu's and gives back its standard output; `image` says what it works on.
pub fn run_within(
    tool: &'static str,
    mut command: Command,
    image: String,
    timeout: Duration,
) -> Result<String, NbdError> {
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running::spawn(tool, command, false)?;
    let (out, err) = (collect(child.stdout()), collect(child.stderr()));
    let Some(status) = child.wait_within(timeout)? else {
        return Err(NbdError::Timeout { tool, image, seconds: timeout.as_secs() });
    };
    let (out, err) = (joined(out), joined(err));
    if status.success() {
        return Ok(out);
    }
    let why = if err.trim().is_empty() { format!("{status}") } else { words(&err) };
    Err(failed(tool, image, why))
}

/// The error of a tool, with a held lock told apart.
pub(super) fn failed(tool: &'static str, image: String, why: String) -> NbdError {
    if why.contains("lock") && (why.contains("Failed to get") || why.contains("another process")) {
        return NbdError::Locked { image, why };
    }
    NbdError::Tool { tool, image, why }
}

/// The last words of a tool, shortened to what a message can carry.
pub(super) fn words(text: &str) -> String {
    let text = text.trim();
    let skip = text.chars().count().saturating_sub(WORDS_MAX);
    text.chars().skip(skip).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn tool_path(tool: &str) -> Result<PathBuf, NbdError> {
    find_tool(tool).ok_or_else(|| {
        let alone = || format!("{tool} not found: apt install {}", package_of(tool));
        let both = if tool == VIRSH { None } else { qemu_utils_missing() };
        NbdError::ToolMissing(both.unwrap_or_else(alone))
    })
}

/// Where a program is, in the search path and the usual places.
pub fn find_tool(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin", "/bin"].into_iter().map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain(usual)
        .map(|dir| dir.join(tool))
        .find(|candidate| candidate.is_file())
}

/// A child that never outlives its owner: stopped and reaped when dropped.
pub(super) struct Running {
    child: Child,
    /// Asked to end by SIGTERM first, so that it can write back what it holds.
    gentle: bool,
    over: Option<ExitStatus>,
}

impl Running {
    pub fn spawn(tool: &'static str, mut command: Command, gentle: bool) -> Result<Self, NbdError> {
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only two system calls are made, both async-signal-safe, and
        // nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        let fail = |why: String| NbdError::Tool { tool, image: "start".into(), why };
        let (answer, wait) = sync_channel(1);
        let spawner = spawner().ok_or_else(|| fail("no thread to start it from".into()))?;
        spawner.send((command, answer)).map_err(|_| fail("the starting thread is gone".into()))?;
        let child = wait.recv().map_err(|_| fail("the starting thread is gone".into()))?;
        Ok(Self { child: child.map_err(|error| fail(error.to_string()))?, gentle, over: None })
    }

    fn stdout(&mut self) -> Option<Box<dyn Read + Send>> {
        self.child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>)
    }

    fn stderr(&mut self) -> Option<Box<dyn Read + Send>> {
        self.child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>)
    }

    /// Its exit status, where it is over.
    pub fn poll(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.over.is_none() {
            self.over = self.child.try_wait()?;
        }
        Ok(self.over)
    }

    /// Waits for its end, asleep: what it does is what shows whether there is progress. None where the time is over
    /// first.
    pub fn wait_within(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.poll()? {
            return Ok(Some(status));
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let ends = pidfd_open(pid, PidfdFlags::empty())?;
        pulse::waiting_for(self.child.id(), || readable_within(ends.as_fd(), timeout))?;
        self.poll()
    }

    /// Asks it to end and waits; stops it where it does not. True where it ended by itself.
    pub fn stop(&mut self, patience: Duration) -> bool {
        if matches!(self.poll(), Ok(Some(_))) {
            return true;
        }
        if self.gentle
            && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::TERM);
            if matches!(self.wait_within(patience), Ok(Some(_))) {
                return true;
            }
        }
        let _ = self.child.kill();
        if matches!(self.wait_within(Duration::from_secs(5)), Ok(None)) {
            self.leave_to_reaper();
        }
        false
    }
}

/// Sleeps until there is something to read, or the time is over.
fn readable_within(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            done => return done.map(drop).map_err(io::Error::from),
        }
    }
}

impl Running {
    /// A killed child that hangs in the kernel (a dead disk below it) is reaped whenever it ends.
    fn leave_to_reaper(&self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let wait = move || rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).is_ok();
        if pid.is_some() {
            let _ = thread::Builder::new().name("qemu-reaper".into()).spawn(wait);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(3));
    }
}

type Order = (Command, SyncSender<io::Result<Child>>);

fn spawner() -> Option<&'static SyncSender<Order>> {
    static SPAWNER: OnceLock<Option<SyncSender<Order>>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (orders, inbox): (SyncSender<Order>, Receiver<Order>) = sync_channel(4);
            let thread = thread::Builder::new().name("qemu-spawner".into()).spawn(move || {
                for (mut command, answer) in inbox {
                    // Who gave the order may be gone; then the child is dropped and must not stay.
                    if let Err(unsent) = answer.send(command.spawn())
                        && let Ok(mut child) = unsent.0
                    {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                }
            });
            thread.is_ok().then_some(orders)
        })
        .as_ref()
}

type Collected = Option<thread::JoinHandle<Vec<u8>>>;

/// Reads a pipe to its end on a thread of its own, keeping only its first megabyte.
fn collect(pipe: Option<Box<dyn Read + Send>>) -> Collected {
    let mut pipe = pipe?;
    let read = move || {
        let mut kept = Vec::new();
        let _ = (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
        kept
    };
    thread::Builder::new().name("qemu-output".into()).spawn(read).ok()
}

fn joined(collected: Collected) -> String {
    let bytes = collected.and_then(|thread| thread.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
