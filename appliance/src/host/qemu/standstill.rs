//! A guest that stands still for us must never stay so because vbrd was killed at that moment: a note is on disk while it
//! does, and a start of vbrd that finds one lets the guest go on.
//!
//! Owns the notes: `standstill-HASH` in a directory of vbrd, with the monitor's path in it. They need no fsync: a power cut
//! ends the guest as well.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::qmp::{Qmp, QmpError};

const NOTE: &str = "standstill-";

/// Present while the guest stands still.
pub(super) struct Standstill {
    note: PathBuf,
}

impl Standstill {
    /// Notes down that the guest behind this monitor is about to be stopped.
    pub fn begin(directory: &Path, monitor: &Path) -> io::Result<Self> {
        let hash = blake3::hash(monitor.as_os_str().as_bytes()).to_hex();
        let note = directory.join(format!("{NOTE}{}", &hash[..16]));
        fs::write(&note, monitor.as_os_str().as_bytes())?;
        Ok(Self { note })
    }

    /// It runs again.
    pub fn end(self) {
        let _ = fs::remove_file(&self.note);
    }
}

/// Lets guests go on that an earlier vbrd stopped and had no time to start again.
pub(super) fn wake_guests(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().starts_with(NOTE.as_bytes()) {
            continue;
        }
        let monitor = fs::read(entry.path()).map(|path| PathBuf::from(std::ffi::OsString::from_vec(path)));
        let woken = monitor.map_err(QmpError::from).and_then(|monitor| wake(&monitor));
        match woken {
            Ok(true) => {
                tracing::warn!(note = %entry.path().display(), "a guest stood still for a vbrd that was killed; it runs again")
            }
            Ok(false) => {}
            // A VM that has ended needs nothing.
            Err(error) => tracing::info!(%error, "a guest may have stood still for a vbrd that was killed"),
        }
        let _ = fs::remove_file(entry.path());
    }
}

fn wake(monitor: &Path) -> Result<bool, QmpError> {
    let mut monitor = Qmp::connect(monitor)?;
    let paused = monitor.execute("query-status", &json!({}))?["status"] == "paused";
    if paused {
        monitor.execute("cont", &json!({}))?;
    }
    Ok(paused)
}
