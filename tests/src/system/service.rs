//! The service under faults: killed, hanging, reloaded; and what the journal has of it.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{System, wait};
use crate::machine::{Held, Machine};

/// The unit.
pub(super) const UNIT: &str = "vbrd.service";
/// Where the tests put settings beside the unit's own.
pub(super) const DROP_IN: &str = "/run/systemd/system/vbrd.service.d/test.conf";
/// The unit's own is a minute. What is left to send takes longer than this: the rest of vbrd goes on meanwhile.
const WATCHDOG_SECONDS: u64 = 6;

pub(super) fn run(system: &System) -> Result<()> {
    system
        .step("vbrd at the source is killed in mid-session: it starts again, the session goes on", || {
            system.through(12, 2, || killed(&system.branch))
        })?;
    system.step("the event loop at the target hangs: the watchdog ends it, the session goes on", || {
        impatient(&system.dr)?;
        system.through(20, 3, || hangs(&system.dr))
    })?;
    system.step("reload: the log level takes effect, what is wrong is refused", || reload(&system.dr))?;
    system.step("priorities are in the journal", || priorities(&system.dr))
}

fn killed(machine: &Machine) -> Result<()> {
    let (ours, _) = machine.main_process(UNIT)?;
    let before = restarts(machine)?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(ours)?).context("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    started_again(machine, before)
}

fn impatient(machine: &Machine) -> Result<()> {
    let wanted = machine.property(UNIT, "WatchdogUSec")?;
    ensure!(wanted == "1min", "the unit's watchdog is {wanted}, not a minute");
    machine.write(DROP_IN, &format!("[Service]\nWatchdogSec={WATCHDOG_SECONDS}\n"))?;
    machine.run(&["systemctl", "daemon-reload"])?;
    machine.run(&["systemctl", "restart", "vbrd"])?;
    Ok(())
}

fn hangs(machine: &Machine) -> Result<()> {
    let (ours, _) = machine.main_process(UNIT)?;
    let before = restarts(machine)?;
    let signal = Held::hold(ours)?.ended()?;
    ensure!(signal == libc::SIGABRT, "ended by signal {signal}, not by the watchdog");
    started_again(machine, before)?;
    let journal = machine.run(&["journalctl", "--no-pager", "--unit", UNIT, "--grep", "Watchdog timeout"])?;
    ensure!(journal.contains("Watchdog timeout"), "the journal does not name the watchdog: {journal}");
    Ok(())
}

fn restarts(machine: &Machine) -> Result<u32> {
    Ok(machine.property(UNIT, "NRestarts")?.parse()?)
}

/// systemd has started it once more, and it is ready.
fn started_again(machine: &Machine, before: u32) -> Result<()> {
    wait("systemd to start vbrd again", || {
        Ok(restarts(machine)? == before + 1 && machine.property(UNIT, "ActiveState")? == "active")
    })
}

pub(super) const CONFIG: &str = "/etc/vbr/vbrd.toml";

/// Puts a key into a section of the shipped configuration, whose own keys are comments.
pub(super) fn configure(machine: &Machine, section: &str, line: &str) -> Result<()> {
    let text = std::fs::read_to_string(machine.path(CONFIG))?;
    let heading = format!("[{section}]\n");
    ensure!(text.contains(&heading), "the shipped configuration has no section {section}");
    machine.write(CONFIG, &text.replacen(&heading, &format!("{heading}{line}\n"), 1))
}

fn reload(machine: &Machine) -> Result<()> {
    let (process, _) = machine.main_process(UNIT)?;
    let shipped = std::fs::read_to_string(machine.path(CONFIG))?;
    ensure!(entries(machine, 7)?.iter().all(|entry| entry.priority != 7), "debug lines before the reload");
    configure(machine, "log", "level = \"debug\"")?;
    machine.run(&["systemctl", "reload", "vbrd"])?;
    wait("lines of level debug", || {
        // Each question is one.
        machine.run(&["vbrctl", "status"])?;
        Ok(entries(machine, 7)?.iter().any(|entry| entry.priority == 7))
    })?;
    let level = machine.run(&["vbrctl", "config", "show"])?;
    ensure!(
        level.lines().any(|line| line.contains("debug")),
        "config show does not have the new level:\n{level}"
    );
    // A key that a reload cannot change is a warning, a file that is wrong an error; neither stops vbrd.
    let good = std::fs::read_to_string(machine.path(CONFIG))?;
    configure(machine, "cache", "size = \"512MiB\"")?;
    machine.run(&["systemctl", "reload", "vbrd"])?;
    wait("the warning of a key that needs a restart", || {
        has(machine, 4, "takes effect when vbrd is restarted")
    })?;
    machine.write(CONFIG, &format!("{good}\nwrong = \n"))?;
    machine.run(&["systemctl", "reload", "vbrd"])?;
    wait("the error of a file that is wrong", || has(machine, 3, "was not reloaded"))?;
    machine.write(CONFIG, &shipped)?;
    machine.run(&["systemctl", "reload", "vbrd"])?;
    wait("the shipped level", || Ok(machine.run(&["vbrctl", "config", "show"])? != level))?;
    ensure!(machine.main_process(UNIT)?.0 == process, "a reload started another process");
    Ok(())
}

/// What the journal has of one line.
pub(super) struct Entry {
    priority: u8,
    pub message: String,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "PRIORITY")]
    priority: String,
    #[serde(rename = "MESSAGE")]
    message: serde_json::Value,
}

/// What vbrd itself wrote, up to a priority: higher numbers are less urgent.
pub(super) fn entries(machine: &Machine, priority: u8) -> Result<Vec<Entry>> {
    let priority = priority.to_string();
    let words = ["journalctl", "--no-pager", "-o", "json", "-p", &priority, "_COMM=vbrd"];
    let text = machine.run(&words)?;
    text.lines()
        .map(|line| {
            let raw: Raw = serde_json::from_str(line).with_context(|| format!("the journal has {line}"))?;
            let message = raw.message.as_str().unwrap_or_default().to_owned();
            Ok(Entry { priority: raw.priority.parse()?, message })
        })
        .collect()
}

fn has(machine: &Machine, priority: u8, text: &str) -> Result<bool> {
    Ok(entries(machine, priority)?
        .iter()
        .any(|entry| entry.priority == priority && entry.message.contains(text)))
}

/// Every level has its own, and `journalctl -p warning` shows warnings and errors alone.
fn priorities(machine: &Machine) -> Result<()> {
    let all = entries(machine, 7)?;
    for wanted in [3, 4, 6, 7] {
        ensure!(
            all.iter().any(|entry| entry.priority == wanted),
            "no line of vbrd has the priority {wanted}"
        );
    }
    // The prefix that says it is taken off.
    let raw = all.iter().find(|entry| entry.message.starts_with('<'));
    ensure!(raw.is_none(), "a prefix is left in: {}", raw.map_or("", |entry| &entry.message));
    let urgent = entries(machine, 4)?;
    ensure!(
        !urgent.is_empty() && urgent.len() < all.len(),
        "journalctl -p warning shows {} of {}",
        urgent.len(),
        all.len()
    );
    Ok(())
}
