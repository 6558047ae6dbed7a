//! Room for what a guest overwrites while its backup runs.
//!
//! Where libvirt's scratch image cannot grow, it is the *guest's* write that fails. So the file system is looked at four
//! times a second, and the backup ends, with the session, at a floor of free space that is higher than what a guest writes
//! between two looks ([`FLOOR_BYTES_MIN`], or as configured). Owns a thread for each backup, which ends with this value.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::virsh::{Virsh, said};
use crate::host::clones::below_floor;

/// What has to be free, however low the floor is configured.
const FLOOR_BYTES_MIN: u64 = 64 << 20;
const LOOK: Duration = Duration::from_millis(250);

/// Says so where there is too little room.
pub(super) fn low(directory: &Path, floor_bytes: u64) -> Option<String> {
    below_floor(directory, floor_bytes.max(FLOOR_BYTES_MIN))
}

/// Present while the backup runs.
pub(super) struct SpaceWatch {
    _until: SyncSender<()>,
}

impl SpaceWatch {
    /// Watches the file system of a directory for the backup of a VM.
    pub fn begin(directory: PathBuf, floor_bytes: u64, virsh: Virsh, uuid: String) -> std::io::Result<Self> {
        let (until, ended): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let watch = move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
                let Some(low) = low(&directory, floor_bytes) else { continue };
                tracing::error!(
                    low,
                    "the backup of a VM ends, for its guest must not run out of room for what it overwrites"
                );
                match virsh.end_backup(&uuid) {
                    Ok(()) => return,
                    Err(error) => tracing::error!(why = said(&error), "the backup does not end; tried again"),
                }
            }
        };
        thread::Builder::new().name("scratch-space".into()).spawn(watch)?;
        Ok(Self { _until: until })
    }
}
