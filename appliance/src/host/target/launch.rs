//! The process of a VM, which is nobody's child.
//!
//! Under systemd: whoever connects to `vbr-vm.socket` gets a unit `vbr-vm@…` of its own, in which `vbrd run-vm` reads what to
//! run and becomes it ([`become_vm`]). The connection stays open as long as that lives. So a VM is in no cgroup and no sandbox of
//! vbrd's, without any right to order systemd about. Elsewhere qemu detaches itself.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{RunState, START_TIME, TargetVm};
use crate::host::HostError;
use crate::nbd::{NbdError, find_tool, run_within};

/// The program.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// systemd's socket for VMs.
const SOCKET: &str = "/run/vbr-vm.sock";
/// What qemu said when it ended, in the VM's directory.
const LOG: &str = "qemu.log";
/// Longest instructions, and longest log that is looked at.
const ORDER_BYTES_MAX: u64 = 4 << 20;
const LOG_BYTES_MAX: u64 = 16 * 1024;

/// What a unit is to become.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    directory: PathBuf,
    arguments: Vec<String>,
}

/// What qemu forbids itself. Who detaches itself has to start a process of its own first.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
const SANDBOX_DETACHED: &str = "on,obsolete=deny,resourcecontrol=deny";

/// Starts qemu with these arguments and waits until its monitor answers; else tells qemu's words. `confined`: it needs no
/// program but itself (helpers for bridges are others).
pub(super) fn launch(
    name: &str,
    directory: &Path,
    mut arguments: Vec<String>,
    confined: bool,
) -> Result<(), LaunchError> {
    let vm = TargetVm::at(directory);
    let begun = Instant::now();
    let mut unit = match UnixStream::connect(SOCKET) {
        Ok(mut unit) => {
            if confined {
                arguments.extend(["-sandbox".into(), SANDBOX.into()]);
            }
            let order = Order { directory: directory.into(), arguments };
            let mut text =
                serde_json::to_vec(&order).map_err(|error| LaunchError::Said(error.to_string()))?;
            text.push(b'\n');
            unit.write_all(&text)?;
            unit.set_nonblocking(true)?;
            Some(unit)
        }
        Err(_) => {
            if confined {
                arguments.extend(["-sandbox".into(), SANDBOX_DETACHED.into()]);
            }
            arguments.push("-daemonize".into());
            let program = find_tool(QEMU).ok_or(LaunchError::Missing)?;
            let mut command = Command::new(program);
            command.args(&arguments).current_dir(directory);
            run_within(QEMU, command, name.into(), START_TIME)?;
            None
        }
    };
    loop {
        // Its monitor may be there before it answers.
        let state = vm.run_state();
        if state.as_ref().is_ok_and(|state| *state != RunState::Off) {
            return Ok(());
        }
        let ended = unit.as_mut().is_some_and(over);
        if ended || begun.elapsed() > START_TIME {
            let said = said(directory);
            let silent = if ended { "it has ended" } else { "it does not answer on its monitor" };
            state?;
            return Err(LaunchError::Said(if said.is_empty() { silent.into() } else { said }));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The other end of a unit is closed when that has ended.
fn over(unit: &mut UnixStream) -> bool {
    !matches!(unit.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    /// No qemu.
    #[error("{QEMU} was not found")]
    Missing,
    /// Its own words.
    #[error("{0}")]
    Said(String),
    /// The way there.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The tool that detaches itself.
    #[error(transparent)]
    Tool(#[from] NbdError),
    /// Its monitor.
    #[error(transparent)]
    Host(#[from] HostError),
}

fn said(directory: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(directory.join(LOG))?.take(LOG_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `vbrd run-vm`: reads what to run from its standard input, and becomes it. Comes back only where that fails.
pub fn become_vm() -> io::Error {
    match order().and_then(|order| Ok((become_of(&order)?, order))) {
        Ok((mut command, order)) => {
            let error = command.exec();
            let _ = fs::write(order.directory.join(LOG), format!("{QEMU}: {error}"));
            error
        }
        Err(error) => error,
    }
}

fn order() -> io::Result<Order> {
    let mut line = Vec::new();
    BufReader::new(io::stdin().lock().take(ORDER_BYTES_MAX)).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn become_of(order: &Order) -> io::Result<Command> {
    let program = find_tool(QEMU)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{QEMU} was not found")))?;
    let mut command = Command::new(program);
    // Its standard input stays what it is: the connection that tells vbrd that it lives.
    command.args(&order.arguments).current_dir(&order.directory).env("LC_ALL", "C").stdout(Stdio::null());
    command.stderr(File::create(order.directory.join(LOG))?);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_back_as_it_was_given() {
        let order = Order { directory: "/srv/a b".into(), arguments: vec!["-name".into(), "x\ny\"".into()] };
        let text = serde_json::to_string(&order).unwrap();
        assert!(!text.contains('\n'), "one line");
        let back: Order = serde_json::from_str(&text).unwrap();
        assert_eq!((back.directory, back.arguments), (order.directory, order.arguments));
    }
}
