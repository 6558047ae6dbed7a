//! Switching a VM off so that its disks can still be read, and on again.
//!
//! A guest that has shut down normally takes its qemu with it, and the record of what it wrote last. So qemu is told to stand
//! still instead (`shutdown=pause`): the last session reads from it as from any other moment. Owns nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use vbr_api::Power;

use super::qmp::{Qmp, QmpError};

/// Between two looks at a guest that shuts down, and two presses of its button: some guests do not hear the first.
const LOOK: Duration = Duration::from_millis(200);
const PRESS: Duration = Duration::from_secs(10);

/// What became of an order.
pub(super) enum Powered {
    /// It is so.
    Done,
    /// The guest did not shut down; it runs on.
    Refused,
}

pub(super) fn power(monitor: &Path, power: Power, within: Duration) -> Result<Powered, QmpError> {
    match power {
        Power::ShutDown => shut_down(monitor, within),
        Power::On => on(monitor).map(|()| Powered::Done),
        Power::Off => off(monitor, within).map(|()| Powered::Done),
    }
}

fn shut_down(path: &Path, within: Duration) -> Result<Powered, QmpError> {
    let end = Instant::now() + within;
    let mut pressed: Option<Instant> = None;
    loop {
        // For a moment only: others want to talk to it, too.
        let mut monitor = Qmp::connect(path)?;
        if status(&mut monitor)? == "shutdown" {
            return Ok(Powered::Done);
        }
        if Instant::now() >= end {
            on_shutdown(&mut monitor, "poweroff")?;
            return Ok(Powered::Refused);
        }
        if pressed.is_none_or(|at| at.elapsed() > PRESS) {
            on_shutdown(&mut monitor, "pause")?;
            monitor.execute("system_powerdown", &json!({}))?;
            pressed = Some(Instant::now());
        }
        drop(monitor);
        std::thread::sleep(LOOK);
    }
}

fn on(path: &Path) -> Result<(), QmpError> {
    let mut monitor = Qmp::connect(path)?;
    on_shutdown(&mut monitor, "poweroff")?;
    if status(&mut monitor)? == "shutdown" {
        monitor.execute("system_reset", &json!({}))?;
        monitor.execute("cont", &json!({}))?;
    }
    Ok(())
}

fn off(path: &Path, within: Duration) -> Result<(), QmpError> {
    let gone = |error: &QmpError| matches!(error, QmpError::Io(error) if error.kind() != std::io::ErrorKind::TimedOut);
    match Qmp::connect(path) {
        Err(error) if gone(&error) => return Ok(()),
        connected => drop(connected?.execute("quit", &json!({}))),
    }
    let end = Instant::now() + within;
    while Instant::now() < end {
        if Qmp::connect(path).is_err_and(|error| gone(&error)) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(QmpError::Protocol("it does not end".into()))
}

fn status(monitor: &mut Qmp) -> Result<String, QmpError> {
    Ok(monitor.execute("query-status", &json!({}))?["status"].as_str().unwrap_or_default().to_owned())
}

fn on_shutdown(monitor: &mut Qmp, action: &str) -> Result<(), QmpError> {
    monitor.execute("set-action", &json!({ "shutdown": action })).map(drop)
}
