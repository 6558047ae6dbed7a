//! The process of a VM, which is nobody's child.
//!
//! Where systemd has started vbrd, each VM is a unit of its own ([`super::unit`]): in vbrd's it would end with it, and be denied
//! what it needs. Elsewhere qemu detaches itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::unit::{self, NotOffered};
use super::{RunState, START_TIME, TargetVm};
use crate::host::HostError;
use crate::nbd::{NbdError, find_tool, run_within};

/// The program.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// What qemu said when it ended, in the VM's directory.
pub(super) const LOG: &str = "qemu.log";
/// Longest log that is looked at.
const LOG_BYTES_MAX: u64 = 16 * 1024;

/// What qemu forbids itself. Who detaches itself has to start a process of its own first, and helpers for bridges gain rights.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
const SANDBOX_DETACHED: &str = "on,obsolete=deny,resourcecontrol=deny";

/// A network card on a bridge.
pub(super) struct Card {
    /// Of its netdev.
    pub id: String,
    /// A name that was checked.
    pub bridge: String,
}

/// Starts qemu with these arguments and waits until its monitor answers; else tells qemu's words.
pub(super) fn launch(
    name: &str,
    directory: &Path,
    mut arguments: Vec<String>,
    cards: &[Card],
) -> Result<(), LaunchError> {
    let program = find_tool(QEMU).ok_or(LaunchError::Missing)?;
    let begun = Instant::now();
    let mut unit = if unit::is_needed() {
        arguments.extend(["-sandbox".into(), SANDBOX.into()]);
        Some(unit::begin(directory, arguments, cards)?)
    } else {
        arguments.extend(detached(cards));
        let mut command = Command::new(program);
        command.args(&arguments).current_dir(directory);
        run_within(QEMU, command, name.into(), START_TIME)?;
        None
    };
    let vm = TargetVm::at(directory);
    loop {
        // Its monitor may be there before it answers.
        let state = vm.run_state();
        if state.as_ref().is_ok_and(|state| *state != RunState::Off) {
            return Ok(());
        }
        let ended = unit.as_mut().is_some_and(unit::is_over);
        if ended || begun.elapsed() > START_TIME {
            let said = said(directory);
            state?;
            return Err(match ended {
                true if said.is_empty() => LaunchError::Silent,
                false if said.is_empty() => LaunchError::Said("it does not answer on its monitor".into()),
                _ => LaunchError::Said(said),
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// What makes qemu leave its parent, and attach its cards by its own helper.
fn detached(cards: &[Card]) -> Vec<String> {
    let card = |card: &Card| ["-netdev".into(), format!("bridge,id={},br={}", card.id, card.bridge)];
    let mut arguments: Vec<String> = cards.iter().flat_map(card).collect();
    if cards.is_empty() {
        arguments.extend(["-sandbox".into(), SANDBOX_DETACHED.into()]);
    }
    arguments.push("-daemonize".into());
    arguments
}

/// What keeps this vbrd from starting VMs: why, and what to do.
pub fn obstacle() -> Option<(String, &'static str)> {
    let error = match find_tool(QEMU) {
        None => LaunchError::Missing,
        Some(_) if unit::is_needed() => LaunchError::NotOffered(unit::offered().err()?),
        Some(_) => return None,
    };
    Some((error.to_string(), error.next_step()))
}

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    /// No qemu.
    #[error("{QEMU} was not found")]
    Missing,
    /// No unit.
    #[error(transparent)]
    NotOffered(#[from] NotOffered),
    /// No network card.
    #[error("bridge {bridge}: {why}")]
    Bridge {
        /// Its name.
        bridge: String,
        /// The helper's words.
        why: String,
    },
    /// There are no words of qemu's.
    #[error("its unit has ended before it was a VM")]
    Silent,
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

impl LaunchError {
    /// What an operator does about it.
    pub fn next_step(&self) -> &'static str {
        let why = match self {
            Self::Missing => return "apt install qemu-system-x86, then try again",
            Self::NotOffered(_) => return "systemctl enable --now vbr-vm.socket, then try again",
            Self::Silent => return "see why: journalctl -e -u 'vbr-vm@*'",
            other => other.to_string(),
        };
        if why.contains("bridge") {
            "name a bridge of this machine (ip link show type bridge) that /etc/qemu/bridge.conf allows (a line `allow BRIDGE`); \
             or start it with --network isolated"
        } else if why.contains("memory") || why.contains("allocate") {
            "free memory on this machine, or say --memory with less"
        } else if why.contains("KVM") || why.contains("kvm") {
            "see that this machine has /dev/kvm and that group kvm may use it, or allow emulation (failover.accelerator)"
        } else {
            "correct what qemu says, then order it again; the restore point is untouched"
        }
    }
}

fn said(directory: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(directory.join(LOG))?.take(LOG_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    one_line(&read().unwrap_or_default())
}

/// Words of another program, as part of a message.
pub(super) fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_detaches_itself_attaches_its_cards_itself() {
        let card = Card { id: "net1".into(), bridge: "br0".into() };
        let words = detached(&[card]);
        assert_eq!(words, ["-netdev", "bridge,id=net1,br=br0", "-daemonize"]);
        assert!(detached(&[]).contains(&SANDBOX_DETACHED.to_owned()), "nothing is started beside it");
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let bridge = LaunchError::Bridge { bridge: "br9".into(), why: "access denied by acl file".into() };
        assert!(bridge.next_step().contains("bridge.conf"));
        assert!(LaunchError::Missing.next_step().starts_with("apt install"));
        let none = LaunchError::NotOffered(NotOffered::at("/run/x.sock", "No such file or directory"));
        assert!(none.next_step().contains("systemctl enable --now vbr-vm.socket"));
    }
}
