//! The driver `qemu`: running VMs, by their QMP monitors.
//!
//! A VM is a socket `NAME.qmp` in one of the host's directories (Proxmox has them in `/run/qemu-server`). Its disks are read
//! over NBD from qemu itself while the guest goes on writing: all of them at one moment, which costs the guest a standstill
//! of milliseconds. What changed between two sessions comes from qemu's bitmaps, named by job and session.
//!
//! Nothing of a snapshot needs a record here: what is ours in a VM is known by its name, and removed by the next session, or
//! taken up again by the same one. A monitor serves one client at a time, so it is connected to for moments only. Bounds:
//! those of `host`, one snapshot a VM at once.

mod config;
mod inventory;
mod power;
pub(super) mod qmp;
mod snapshot;
mod standstill;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use vbr_api::{DiskSpec, Host, Power, Vm};

pub(super) use self::inventory::holds_a_moment;
use self::inventory::{Bitmap, LiveDisk};
use self::power::Powered;
use self::qmp::{Qmp, QmpError};
use self::snapshot::Prepared;
use self::standstill::Standstill;
use super::clones::{CloneStore, below_floor};
use super::{
    Changes, DIRECTORY_ENTRIES_MAX, DiskSnapshot, Hold, HostError, SnapshotKind, SnapshotRequest, SourceHost,
    VmSnapshot,
};
use crate::block::BlockRead;
use crate::limits::DISKS_MAX;
use crate::nbd::{ConnectOptions, NbdClient, NbdError, PrivateDir, dirty_extents};

/// The end of a monitor's name.
const MONITOR: &str = ".qmp";
/// Of the listener, in a private directory.
const SOCKET: &str = "nbd";

/// The VMs of a host now, and the monitor of each.
pub type Monitors = Arc<dyn Fn() -> Vec<(String, PathBuf)> + Send + Sync>;

/// VMs with monitors in directories of this machine, or where somebody else says.
pub struct QemuHost {
    host: Host,
    /// Who knows them, where that is not the host's directories.
    known: Option<Monitors>,
    clones: Arc<CloneStore>,
    runtime_dir: PathBuf,
    /// VMs with a snapshot.
    taken: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl QemuHost {
    /// Scratch images lie where clones may.
    pub fn new(host: Host, clones: Arc<CloneStore>, runtime_dir: PathBuf) -> Self {
        Self { host, known: None, clones, runtime_dir, taken: Arc::default() }
    }

    /// VMs that somebody else knows: those that this site has started.
    pub fn knowing(host: Host, known: Monitors, clones: Arc<CloneStore>, runtime_dir: PathBuf) -> Self {
        Self { known: Some(known), ..Self::new(host, clones, runtime_dir) }
    }

    /// At a start of vbrd: guests that stand still for an earlier one go on.
    pub fn wake_guests(clones: &CloneStore) {
        if let Ok(directory) = clones.state_directory() {
            standstill::wake_guests(&directory);
        }
    }

    fn monitors(&self) -> Vec<(String, PathBuf)> {
        if let Some(known) = &self.known {
            return known();
        }
        let mut found = Vec::new();
        for directory in &self.host.directories {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for entry in entries.take(DIRECTORY_ENTRIES_MAX) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(vm) = name.strip_suffix(MONITOR).filter(|vm| vbr_api::name_is_valid(vm)) {
                    found.push((vm.to_owned(), entry.path()));
                }
            }
        }
        found.sort();
        found
    }

    fn monitor(&self, vm: &str) -> Result<PathBuf, HostError> {
        let all: Vec<PathBuf> =
            self.monitors().into_iter().filter(|(name, _)| name == vm).map(|(_, path)| path).collect();
        match all.as_slice() {
            [one] => Ok(one.clone()),
            [] if self.known.is_some() => Err(HostError::Invalid {
                what: format!("VM {}/{vm}", self.host.name),
                why: "no replica of this name is failed over here".into(),
                next_step: "name one that is, as SITE.REPLICA; vbrctl failover list shows them",
            }),
            [] => Err(HostError::NoMonitor {
                host: self.host.name.clone(),
                vm: vm.into(),
                directories: self.host.directories.join(", "),
            }),
            several => {
                let paths: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                Err(HostError::AmbiguousVm {
                    host: self.host.name.clone(),
                    vm: vm.into(),
                    paths: paths.join(", "),
                })
            }
        }
    }

    fn vm_error(&self, vm: &str, error: QmpError) -> HostError {
        if self.known.is_some() && is_off(&error) {
            return HostError::Hypervisor {
                what: format!("VM {}/{vm}", self.host.name),
                why: "it is off, and read only while it runs".into(),
                next_step: "start it: vbrctl failover start SITE/REPLICA@latest",
            };
        }
        vm_error(&self.host.name, vm, error)
    }

    /// Whoever has it may set up, or take down, a snapshot of the VM.
    fn claim(&self, vm: &str, monitor: &Path) -> Result<Claim, HostError> {
        let fresh = self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(monitor.to_owned());
        if !fresh {
            return Err(HostError::Hypervisor {
                what: format!("VM {}/{vm}", self.host.name),
                why: "another session has a snapshot of it".into(),
                next_step: "it starts by itself when that session is over",
            });
        }
        Ok(Claim { taken: self.taken.clone(), monitor: monitor.to_owned() })
    }

    fn set_up(
        &self,
        monitor: &mut Qmp,
        path: &Path,
        request: &SnapshotRequest,
        disks: &[LiveDisk],
    ) -> Result<Option<Duration>, QmpError> {
        let directory = self.clones.scratch_directory()?;
        let prepare = |disk: &LiveDisk| -> Result<Prepared, QmpError> {
            Ok(Prepared { disk: disk.clone(), scratch: snapshot::scratch(&directory, disk.bytes)? })
        };
        let prepared = disks.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
        let notes = self.clones.state_directory()?;
        let standstill = || Standstill::begin(&notes, path);
        let taken = snapshot::take(monitor, &request.job, &request.session, &prepared, standstill)?;
        Ok(taken.pause)
    }

    /// Exports the moment and opens it: one reader a disk.
    fn open(
        &self,
        monitor: &mut Qmp,
        request: &SnapshotRequest,
        disks: Vec<LiveDisk>,
    ) -> Result<(Vec<DiskSnapshot>, PrivateDir), HostError> {
        let vm = request.vm.as_deref().unwrap_or_default();
        let failed = |error: QmpError| self.vm_error(vm, error);
        let dir = PrivateDir::create(&self.runtime_dir).map_err(|error| HostError::image(vm, error))?;
        let socket = dir.through_descriptor(SOCKET);
        let listener = UnixListener::bind(&socket).map_err(|error| failed(error.into()))?;
        let earlier = |disk: &LiveDisk| -> Vec<String> {
            let good = disk.bitmaps.iter().filter(|bitmap| {
                !bitmap.inconsistent
                    && snapshot::of_job(bitmap, &request.job)
                    && !is_of(bitmap, &request.session)
            });
            good.map(|bitmap| bitmap.name.clone()).collect()
        };
        let exported: Vec<(LiveDisk, Vec<String>)> =
            disks.into_iter().map(|disk| (disk.clone(), earlier(&disk))).collect();
        snapshot::export(monitor, &request.session, &listener, &exported).map_err(failed)?;
        let mut opened = Vec::new();
        for (index, (disk, bitmaps)) in exported.into_iter().enumerate() {
            let options = ConnectOptions::new(&socket, &snapshot::export_id(&request.session, index));
            let image = |error| HostError::image(&disk.path, error);
            let changes = changes(&options, &bitmaps, &disk).map_err(image)?;
            let reader: Arc<dyn BlockRead> = Arc::new(NbdClient::connect(options).map_err(image)?);
            let kind = SnapshotKind::Fleece;
            opened.push(DiskSnapshot { changes, kind, ..DiskSnapshot::still(disk.spec(), reader) });
        }
        Ok((opened, dir))
    }
}

fn is_of(bitmap: &Bitmap, session: &str) -> bool {
    bitmap.owner().is_some_and(|owner| owner.1 == session)
}

/// What the bitmaps of earlier sessions say, by session.
fn changes(options: &ConnectOptions, bitmaps: &[String], disk: &LiveDisk) -> Result<Vec<Changes>, NbdError> {
    let named = disk.bitmaps.iter().filter(|bitmap| bitmaps.contains(&bitmap.name));
    named
        .filter_map(|bitmap| Some((bitmap, bitmap.owner()?.1.to_owned())))
        .map(|(bitmap, session)| Ok((session, dirty_extents(options, &bitmap.name)?.into())))
        .collect()
}

fn is_off(error: &QmpError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, QmpError::Io(io) if matches!(io.kind(), ConnectionRefused | NotFound))
}

fn vm_error(host: &str, vm: &str, error: QmpError) -> HostError {
    let next_step = match &error {
        QmpError::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
            "start the VM: the disks of one that is off are read with the driver `disk`"
        }
        QmpError::Io(io) if io.kind() == std::io::ErrorKind::PermissionDenied => {
            "give the user of vbrd write access to the monitor's socket, then try again"
        }
        QmpError::Committing => "wait until that is done (vbrctl failover show), then run the job",
        QmpError::Busy => "let the other program end, then try again; vbrd holds a monitor for moments only",
        _ => "look at the VM's log and at the space of the scratch directory, then try again",
    };
    HostError::Hypervisor { what: format!("VM {host}/{vm}"), why: error.to_string(), next_step }
}

/// See [`QemuHost::claim`].
struct Claim {
    taken: Arc<Mutex<BTreeSet<PathBuf>>>,
    monitor: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.monitor);
    }
}

/// A snapshot in a VM, for as long as a session needs it.
struct Held {
    claim: Claim,
    job: String,
    session: String,
    scratch: (PathBuf, u64),
    /// Where the export's socket lies.
    _dir: PrivateDir,
}

impl Hold for Held {
    fn release(&self, sealed: bool) {
        if let Err(error) = release(&self.claim.monitor, &self.job, &self.session, sealed) {
            tracing::warn!(%error, job = self.job, monitor = %self.claim.monitor.display(),
                "the VM's snapshot could not be taken down; the next session does it");
        }
    }

    fn space_low(&self) -> Option<String> {
        below_floor(&self.scratch.0, self.scratch.1)
    }
}

/// Takes a snapshot down. Where it was sealed, changes are recorded from its moment on; else from where they were before.
fn release(monitor: &Path, job: &str, session: &str, sealed: bool) -> Result<(), QmpError> {
    let mut monitor = match Qmp::connect(monitor) {
        // The VM has ended, and with it all that was ours.
        Err(error) if is_off(&error) => return Ok(()),
        monitor => monitor?,
    };
    snapshot::tear_down(&mut monitor)?;
    if sealed {
        return snapshot::forget(&mut monitor, job, |_, of| of != session);
    }
    snapshot::go_on_recording(&mut monitor)?;
    snapshot::forget(&mut monitor, job, |_, of| of == session)
}

impl SourceHost for QemuHost {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn driver(&self) -> &'static str {
        "qemu"
    }

    fn list(&self) -> Result<Vec<Vm>, HostError> {
        Ok(self.monitors().into_iter().map(|(name, monitor)| self.describe(name, &monitor)).collect())
    }

    fn resolve(&self, vm: &str) -> Result<Vec<DiskSpec>, HostError> {
        let path = self.monitor(vm)?;
        let mut monitor = Qmp::connect(&path).map_err(|error| self.vm_error(vm, error))?;
        let disks = snapshot::look(&mut monitor).map_err(|error| self.vm_error(vm, error))?;
        if disks.is_empty() || disks.len() > DISKS_MAX {
            return Err(HostError::Invalid {
                what: format!("VM {}/{vm}", self.host.name),
                why: format!(
                    "it has {} disks that it writes to; 1 to {DISKS_MAX} can be replicated",
                    disks.len()
                ),
                next_step: "attach a disk, or name another VM",
            });
        }
        Ok(disks.iter().map(LiveDisk::spec).collect())
    }

    fn snapshot(&self, request: &SnapshotRequest) -> Result<VmSnapshot, HostError> {
        super::disk::check_request(request)?;
        let vm = request.vm.as_deref().unwrap_or_default();
        let path = self.monitor(vm)?;
        let claim = self.claim(vm, &path)?;
        let failed = |error: QmpError| self.vm_error(vm, error);
        let mut monitor = Qmp::connect(&path).map_err(failed)?;
        snapshot::check_rest(&mut monitor).map_err(failed)?;
        // What an earlier vbrd left when it was killed.
        snapshot::tear_down(&mut monitor).map_err(failed)?;
        snapshot::go_on_recording(&mut monitor).map_err(failed)?;
        snapshot::forget(&mut monitor, &request.job, |bitmap, of| {
            bitmap.inconsistent || of == request.session
        })
        .map_err(failed)?;
        let disks = wanted(snapshot::look(&mut monitor).map_err(failed)?, request)?;
        let config = config::read(&mut monitor, &disks);
        let config =
            config.inspect_err(|error| tracing::warn!(vm, %error, "the VM does not tell what it is"));
        let taken = self.set_up(&mut monitor, &path, request, &disks);
        let taken_at = Timestamp::now();
        let opened =
            taken.map_err(failed).and_then(|pause| Ok((pause, self.open(&mut monitor, request, disks)?)));
        drop(monitor);
        let (pause, (disks, dir)) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let _ = release(&path, &request.job, &request.session, false);
                return Err(error);
            }
        };
        if let Some(pause) = pause {
            tracing::info!(vm, pause_ms = pause.as_millis() as u64, "the guest stood still for its snapshot");
        }
        Ok(VmSnapshot { config: config.ok(), ..self.held(claim, request, disks, taken_at, dir) })
    }

    fn reopen(&self, request: &SnapshotRequest, identity: &str) -> Result<Option<VmSnapshot>, HostError> {
        super::disk::check_request(request)?;
        let vm = request.vm.as_deref().unwrap_or_default();
        let taken_at = identity.strip_prefix("qemu.").and_then(|rest| rest.strip_suffix(&request.session));
        let taken_at = taken_at.and_then(|time| time.strip_suffix('.')?.parse().ok());
        let Some(taken_at) = taken_at.and_then(|nanos| Timestamp::from_nanosecond(nanos).ok()) else {
            return Ok(None);
        };
        let Ok(path) = self.monitor(vm) else { return Ok(None) };
        let claim = self.claim(vm, &path)?;
        let Ok(mut monitor) = Qmp::connect(&path) else { return Ok(None) };
        let Some(disks) = self.again(&mut monitor, request).map_err(|error| self.vm_error(vm, error))? else {
            return Ok(None);
        };
        let (disks, dir) = self.open(&mut monitor, request, disks)?;
        Ok(Some(self.held(claim, request, disks, taken_at, dir)))
    }

    fn power(&self, vm: &str, power: Power, within: Duration) -> Result<(), HostError> {
        let path = self.monitor(vm)?;
        match power::power(&path, power, within).map_err(|error| self.vm_error(vm, error))? {
            Powered::Done => Ok(()),
            Powered::Refused => Err(HostError::Hypervisor {
                what: format!("VM {}/{vm}", self.host.name),
                why: format!("its guest did not shut down within {} s; it runs on", within.as_secs()),
                next_step: "look at what the guest waits for, or allow it more time",
            }),
        }
    }
}

impl QemuHost {
    fn describe(&self, name: String, monitor: &Path) -> Vm {
        let looked = Qmp::connect(monitor).and_then(|mut monitor| snapshot::look(&mut monitor));
        let (disks, virtual_bytes) = match looked {
            Ok(disks) => (
                disks.iter().map(LiveDisk::spec).collect::<Vec<_>>(),
                Some(disks.iter().map(|disk| disk.bytes).sum()),
            ),
            Err(error) => {
                tracing::info!(vm = name, %error, "the VM cannot be asked for its disks");
                (Vec::new(), None)
            }
        };
        let mut formats: Vec<_> = disks.iter().map(|disk| disk.format).collect();
        formats.dedup();
        Vm { host: self.host.name.clone(), name, disks, virtual_bytes, formats, jobs: Vec::new() }
    }

    /// The disks of a moment that is still held in the VM for this session.
    fn again(&self, monitor: &mut Qmp, request: &SnapshotRequest) -> Result<Option<Vec<LiveDisk>>, QmpError> {
        if !snapshot::holds(monitor, &request.session, request.disks.len())? {
            return Ok(None);
        }
        snapshot::stop_exports(monitor)?;
        let below = snapshot::below_filters(monitor)?;
        Ok(wanted(below, request).ok())
    }

    fn held(
        &self,
        claim: Claim,
        request: &SnapshotRequest,
        disks: Vec<DiskSnapshot>,
        taken_at: Timestamp,
        dir: PrivateDir,
    ) -> VmSnapshot {
        let scratch = (self.clones.scratch_directory().unwrap_or_default(), self.clones.floor_bytes());
        let (job, session) = (request.job.clone(), request.session.clone());
        let identity = format!("qemu.{}.{session}", taken_at.as_nanosecond());
        VmSnapshot {
            disks,
            identity,
            taken_at,
            one_moment: true,
            transport_mode: "network",
            warnings: Vec::new(),
            hold: Some(Box::new(Held { claim, job, session, scratch, _dir: dir })),
            config: None,
        }
    }
}

/// The disks of a request, in its order.
fn wanted(disks: Vec<LiveDisk>, request: &SnapshotRequest) -> Result<Vec<LiveDisk>, HostError> {
    let find = |spec: &DiskSpec| disks.iter().find(|disk| disk.path == spec.path).cloned();
    request
        .disks
        .iter()
        .map(|spec| find(spec).ok_or_else(|| HostError::Missing { path: spec.path.clone() }))
        .collect()
}
