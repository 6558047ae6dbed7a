//! CPU time and memory of everything that runs at one end, whatever the tool: every process in the
//! end's network namespace, looked at twenty times a second.
//!
//! CPU is the last that was seen of each process: a short one may lose a twentieth of a second. Memory
//! is the sum of the peaks (VmHWM) of the processes alive at one moment. Bounds: one entry a process.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::{End, Link};

const EVERY: Duration = Duration::from_millis(50);
/// Linux reports in USER_HZ, which is 100 on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU seconds, user and system, since the meter's start.
    pub cpu: f64,
    /// Peak resident bytes since the meter's start.
    pub rss: u64,
}

/// Watches both ends of a link until dropped.
pub struct Meter {
    ends: [u64; 2],
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// Of each process ever seen at an end: by process ID and start time.
    ticks: [HashMap<(u32, u64), u64>; 2],
    rss: [u64; 2],
}

impl Meter {
    /// Starts watching.
    pub fn start(link: &Link) -> Result<Self> {
        let inode = |end| -> Result<u64> { Ok(fs::metadata(link.namespace(end).path())?.ino()) };
        let ends = [inode(End::Source)?, inode(End::Target)?];
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (shared, over) = (state.clone(), stop.clone());
        let watch = move || {
            while !over.load(Ordering::Relaxed) {
                look(ends, &shared);
                std::thread::sleep(EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("meter".into()).spawn(watch);
        Ok(Self { ends, state, stop, thread: Some(thread.context("starting the meter")?) })
    }

    /// Source and target so far.
    pub fn read(&self) -> [Usage; 2] {
        look(self.ends, &self.state);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        [0, 1].map(|end| Usage {
            cpu: state.ticks[end].values().sum::<u64>() as f64 / TICKS_PER_SECOND,
            rss: state.rss[end],
        })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A meter that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn look(ends: [u64; 2], state: &Mutex<State>) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let mut seen = Vec::new();
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        // A process that ends while it is looked at is not there.
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
        let Some(end) = ends.iter().position(|end| *end == namespace.ino()) else { continue };
        let Some((start, ticks)) = times(pid) else { continue };
        seen.push((end, (pid, start), ticks, peak(pid)));
    }
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rss = [0; 2];
    for (end, process, ticks, peak) in seen {
        rss[end] += peak;
        let known = state.ticks[end].entry(process).or_default();
        *known = ticks.max(*known);
    }
    for (most, now) in state.rss.iter_mut().zip(rss) {
        *most = now.max(*most);
    }
}

/// Start time and ticks used.
fn times(pid: u32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let field = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((field(19)?, field(11)? + field(12)?))
}

fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_times_and_memory() {
        let (start, _) = times(std::process::id()).unwrap();
        assert!(start > 0);
        assert!(peak(std::process::id()) > 1 << 20);
    }

    #[test]
    fn a_process_counts_for_its_namespace() {
        let here = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let state = Mutex::new(State::default());
        look([here, 0], &state);
        let state = state.into_inner().unwrap();
        assert!(state.rss[0] > 0);
        assert_eq!(state.rss[1], 0);
    }
}
