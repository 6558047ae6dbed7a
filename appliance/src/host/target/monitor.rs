//! A VM that was started: asked, stopped and made independent through its monitor.
//!
//! Found by its directory alone, so a vbrd that was restarted knows it again. A monitor serves one client at a time; orders of
//! one process wait for each other. Owns nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk, kill_process};
use serde_json::{Value, json};
use vbr_api::Flatten;

use super::arguments::{CONSOLE, MONITOR, PID_FILE, node};
use super::{FLATTEN, Flattening, RunState};
use crate::host::HostError;
use crate::host::qemu::holds_a_moment;
use crate::host::qemu::qmp::{Qmp, QmpError};
use crate::nbd::CHAIN_MAX;

/// For a VM to end when it is told to.
const END_TIME: Duration = Duration::from_secs(20);
/// A serial console's log is cut when it is longer.
const CONSOLE_MAX: u64 = 16 << 20;

/// A VM, by its directory.
pub struct TargetVm {
    directory: PathBuf,
    turn: Arc<Mutex<()>>,
}

impl TargetVm {
    /// Whether it runs or not.
    pub fn at(directory: &Path) -> Self {
        static TURNS: OnceLock<Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>> = OnceLock::new();
        let turns = TURNS.get_or_init(Mutex::default);
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = turns.entry(directory.to_owned()).or_default().clone();
        Self { directory: directory.to_owned(), turn }
    }

    /// What it does.
    pub fn run_state(&self) -> Result<RunState, HostError> {
        let _turn = self.turn();
        let Some(mut monitor) = self.connect()? else { return Ok(RunState::Off) };
        let answer = match monitor.execute("query-status", &json!({})) {
            Err(QmpError::Io(_)) => return Ok(RunState::Off), // It has just ended.
            answer => answer.map_err(|error| self.failed(error))?,
        };
        Ok(match answer["status"].as_str().unwrap_or_default() {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            word => RunState::Other(word.to_owned()),
        })
    }

    /// Ends it at once, as pulling its plug would.
    pub fn stop(&self) -> Result<(), HostError> {
        let _turn = self.turn();
        match self.connect() {
            // It does not run, or has not come as far as its monitor.
            Ok(None) => {}
            Ok(Some(mut monitor)) => drop(monitor.execute("quit", &json!({}))),
            Err(error) => tracing::warn!(%error, directory = %self.directory.display(), "the VM is killed"),
        }
        let end = Instant::now() + END_TIME;
        while self.process().is_some() {
            let Some(process) = self.process().filter(|_| Instant::now() > end) else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            let _ = kill_process(process, Signal::KILL);
            if Instant::now() > end + END_TIME {
                return Err(HostError::Hypervisor {
                    what: format!("the VM in {}", self.directory.display()),
                    why: format!("process {} does not end", process.as_raw_nonzero()),
                    next_step: "look at what its disks wait for, then order it again",
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Copies into its disks what still lies below them, while it runs; to be ordered again until it is done. None where it is off.
    pub fn flatten(&self, disks: usize) -> Result<Option<Flattening>, HostError> {
        self.flattening(disks, true)
    }

    /// How far that is.
    pub fn flatten_progress(&self, disks: usize) -> Result<Option<Flattening>, HostError> {
        self.flattening(disks, false)
    }

    fn flattening(&self, disks: usize, begin: bool) -> Result<Option<Flattening>, HostError> {
        let _turn = self.turn();
        let Some(mut monitor) = self.connect()? else { return Ok(None) };
        let failed = |error| self.failed(error);
        let jobs = monitor.execute("query-block-jobs", &json!({})).map_err(failed)?;
        let nodes = monitor.execute("query-named-block-nodes", &json!({ "flat": true })).map_err(failed)?;
        // Not under a session's moment: what it put over the image knows it by name.
        let may_begin = begin && !holds_a_moment(&nodes);
        let mut sum = Flatten::default();
        let mut runs = false;
        for n in 0..disks {
            let (name, job) = (node(n), format!("{FLATTEN}{n}"));
            let under_way =
                jobs.as_array().into_iter().flatten().find(|found| found["device"] == job.as_str());
            let found =
                nodes.as_array().into_iter().flatten().find(|found| found["node-name"] == name.as_str());
            let found = found.ok_or_else(|| failed(QmpError::Protocol(format!("it has no {name}"))))?;
            let size = found["image"]["virtual-size"].as_u64().unwrap_or(0);
            sum.total_bytes += size;
            if let Some(job) = under_way {
                runs = true;
                sum.done_bytes += share(job, size);
            } else if found["image"]["backing-filename"].is_string() {
                runs = true;
                if may_begin {
                    let order = json!({ "job-id": job, "device": name, "on-error": "stop" });
                    monitor.execute("block-stream", &order).map_err(failed)?;
                }
            } else {
                sum.done_bytes += size;
            }
        }
        if runs {
            return Ok(Some(Flattening::Runs(sum)));
        }
        if begin {
            (0..disks).try_for_each(|n| let_go(&mut monitor, n, &nodes)).map_err(failed)?;
        }
        Ok(Some(Flattening::Done))
    }

    /// The end of what the guest said on its serial console.
    pub fn console(&self, bytes_max: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.directory.join(CONSOLE))?;
            let from = file.metadata()?.len().saturating_sub(bytes_max);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(bytes_max).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// Keeps the log of its console from growing without end: qemu appends, so it may be emptied under it.
    pub fn bound_console(&self) {
        let path = self.directory.join(CONSOLE);
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > CONSOLE_MAX) {
            let _ = File::options().write(true).open(&path).and_then(|file| file.set_len(0));
        }
    }

    /// Its screen as a PNG file.
    pub fn screenshot(&self, to: &Path) -> Result<(), HostError> {
        let _turn = self.turn();
        let Some(mut monitor) = self.connect()? else { return Ok(()) };
        let order = json!({ "filename": to, "format": "png" });
        monitor.execute("screendump", &order).map(drop).map_err(|error| self.failed(error))
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None where it does not run.
    fn connect(&self) -> Result<Option<Qmp>, HostError> {
        match Qmp::connect(&self.directory.join(MONITOR)) {
            Ok(monitor) => Ok(Some(monitor)),
            Err(QmpError::Io(error))
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(QmpError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Its process, if it lives: qemu keeps a lock on the file that has its number. (What /proc tells of a process in a unit of
    /// its own is not for vbrd to see, and numbers come again.)
    fn process(&self) -> Option<Pid> {
        let file = File::open(self.directory.join(PID_FILE)).ok()?;
        fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??.pid
    }

    fn failed(&self, error: QmpError) -> HostError {
        HostError::Hypervisor {
            what: format!("the VM in {}", self.directory.display()),
            why: error.to_string(),
            next_step: "try again; qemu's own words are in the log of vbrd",
        }
    }
}

/// What was copied is durable before anything below may go; then qemu closes what lay below, which it would keep locked.
fn let_go(monitor: &mut Qmp, disk: usize, nodes: &Value) -> Result<(), QmpError> {
    let name = node(disk);
    let order = json!({ "command-line": format!("qemu-io {name} flush") });
    let said = monitor.execute("human-monitor-command", &order)?;
    if said != "" {
        return Err(QmpError::Protocol(format!("flush: {said}")));
    }
    let known = |name: &str| nodes.as_array().into_iter().flatten().any(|found| found["node-name"] == name);
    // The nearest first: a node that another rests upon cannot go. Some may have gone before, where this was interrupted.
    let below = (1..=CHAIN_MAX).flat_map(|n| [format!("{name}-{n}"), format!("{name}-{n}-file")]);
    for node in below.filter(|node| known(node)) {
        monitor.execute("blockdev-del", &json!({ "node-name": node }))?;
    }
    Ok(())
}

/// Of a disk, by how far its job says it is.
fn share(job: &Value, size: u64) -> u64 {
    let (done, all) = (job["offset"].as_u64().unwrap_or(0), job["len"].as_u64().unwrap_or(0));
    if all == 0 { 0 } else { (u128::from(size) * u128::from(done.min(all)) / u128::from(all)) as u64 }
}
