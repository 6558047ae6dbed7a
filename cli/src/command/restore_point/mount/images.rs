//! Disks as raw files: qemu-storage-daemon reads them over NBD and shows them through FUSE.
//!
//! To be mounted they can be written to: what is written goes to an overlay that is thrown away with everything else. To be
//! looked at as they are they cannot.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};

use super::bridge::Bridge;
use super::{Disk, Opened};
use crate::exit::Exit;
use crate::failure::Failure;

const STORAGE_DAEMON: &str = "qemu-storage-daemon";
/// For the storage daemon to begin.
const READY: Duration = Duration::from_secs(60);
/// And to end.
const END: Duration = Duration::from_secs(20);
/// How long a read waits for a vbrd that restarts, seconds.
const RECONNECT: u32 = 60;

/// The files of disks, in the order in which they were opened. Gone when it is dropped.
pub struct Images {
    files: Vec<PathBuf>,
    /// Those that were made to be covered by FUSE in a directory of the caller's.
    made: Vec<PathBuf>,
    daemon: Child,
}

impl Images {
    /// In the caller's directory as they are; without one in the directory of the work, over overlays.
    pub async fn show(bridge: &Bridge, opened: &Opened, place: Option<&Path>) -> Result<Self, Failure> {
        let work = bridge.directory();
        let mut command = Command::new(STORAGE_DAEMON);
        let (mut files, mut made) = (Vec::new(), Vec::new());
        for disk in &opened.disks {
            let number = disk.number;
            let file = place.unwrap_or(work).join(format!("disk{number}.raw"));
            let fail = |error| Failure::io("Cannot show a disk", &file, &error);
            File::create_new(&file).map_err(fail)?;
            if place.is_some() {
                made.push(file.clone());
            }
            let overlay = place.is_none().then(|| work.join(format!("disk{number}.qcow2")));
            if let Some(overlay) = &overlay {
                create_overlay(overlay, disk).await?;
            }
            nodes(&mut command, bridge, disk, overlay.as_deref());
            let export = json!({
                "type": "fuse", "id": format!("fuse{number}"), "node-name": format!("disk{number}"),
                "mountpoint": file.display().to_string(), "writable": overlay.is_some(), "growable": false,
            });
            command.arg("--export").arg(export.to_string());
            files.push(file);
        }
        let words = work.join("words");
        let stderr = File::create(&words).map_err(|error| Failure::io("Cannot write", &words, &error))?;
        let pid = work.join("pid");
        command.arg("--pidfile").arg(&pid).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        // Ctrl-C is for us: what is mounted still needs it then.
        command.process_group(0);
        let daemon = command.spawn().map_err(|error| missing(STORAGE_DAEMON, &error))?;
        let mut images = Self { files, made, daemon };
        images.wait_ready(&pid, &words).await?;
        Ok(images)
    }

    /// One a disk.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Its pid file is written when everything on its command line is there.
    async fn wait_ready(&mut self, pid: &Path, words: &Path) -> Result<(), Failure> {
        let end = Instant::now() + READY;
        while !std::fs::metadata(pid).is_ok_and(|meta| meta.len() > 0) {
            let failed = |why: String| {
                Failure::new(
                    Exit::Failed,
                    "storage_daemon_failed",
                    "Cannot show the disks as files",
                    why,
                    "check that FUSE is there (modprobe fuse; without root also the package fuse3)",
                )
            };
            if self.daemon.try_wait().is_ok_and(|status| status.is_some()) {
                let said = std::fs::read_to_string(words).unwrap_or_default();
                let said: String = said.trim().chars().take(500).collect();
                return Err(failed(format!("{STORAGE_DAEMON}: {said}")));
            }
            if Instant::now() > end {
                return Err(failed(format!("{STORAGE_DAEMON} did not begin within {READY:?}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let pid = self.daemon.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
            let end = Instant::now() + END;
            while self.daemon.try_wait().is_ok_and(|status| status.is_none()) {
                if Instant::now() > end {
                    drop(self.daemon.start_kill());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.made.iter().for_each(|file| drop(std::fs::remove_file(file)));
    }
}

/// The disk's nodes for the storage daemon; the topmost is `diskN`.
fn nodes(command: &mut Command, bridge: &Bridge, disk: &Disk, overlay: Option<&Path>) {
    let number = disk.number;
    let (top, below) = (format!("disk{number}"), format!("point{number}"));
    let read = if overlay.is_some() { &below } else { &top };
    let socket = bridge.socket(number).display().to_string();
    let node = json!({
        "driver": "nbd", "node-name": read, "read-only": true, "export": "disk", "reconnect-delay": RECONNECT,
        "server": { "type": "unix", "path": socket },
    });
    command.arg("--blockdev").arg(node.to_string());
    let Some(overlay) = overlay else { return };
    let file = json!({
        "driver": "file", "node-name": format!("file{number}"), "filename": overlay.display().to_string(),
        "cache": { "direct": false, "no-flush": true },
    });
    let node = json!({
        "driver": "qcow2", "node-name": top, "file": format!("file{number}"), "backing": below,
    });
    command.arg("--blockdev").arg(file.to_string()).arg("--blockdev").arg(node.to_string());
}

async fn create_overlay(path: &Path, disk: &Disk) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    // A multiple of 512, as its format wants; what is beyond the disk's end reads as zeroes.
    let bytes = disk.bytes.next_multiple_of(512).to_string();
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(bytes).stdin(Stdio::null());
    let output = command.output().await.map_err(|error| missing("qemu-img", &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    let next = "check the space in the directory of temporary files (TMPDIR)";
    Err(Failure::new(Exit::Failed, "qemu_img_failed", "Cannot make an overlay", said, next))
}

fn missing(tool: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        "tool_missing",
        format!("Cannot start {tool}"),
        error.to_string(),
        "install the packages qemu-utils and qemu-system-common",
    )
}
