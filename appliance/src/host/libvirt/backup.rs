//! A backup of a running VM: begun, read, taken up again, ended.
//!
//! Owns the backup that libvirt runs for a session, its socket and scratch images in the host's directory, and the job's
//! checkpoints. Whatever fails half-way is undone; what a killed vbrd left is ended by the next session of any job.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use vbr_api::DiskFormat;

use super::domain::{
    Backup, BackupDisk, DomainDisk, checkpoint_document, checkpoint_name, export_name, fits_socket, recorded,
};
use super::errors::is_about_records;
use super::space::{SpaceWatch, low};
use super::virsh::{Virsh, remove, said};
use super::{LibvirtHost, Place};
use crate::block::{BlockRead, Extent};
use crate::host::claim::Claim;
use crate::host::one_moment::OneMoment;
use crate::host::{Changes, DiskSnapshot, Hold, HostError, SnapshotKind, SnapshotRequest, VmSnapshot};
use crate::nbd::{ConnectOptions, NbdClient, NbdError, PrivateDir, dirty_extents};

/// The moment's name: `libvirt.TIME.SESSION`.
fn identity(taken_at: Timestamp, session: &str) -> String {
    format!("libvirt.{}.{session}", taken_at.as_nanosecond())
}

/// When the moment of this name and session was; none where it is no backup's.
pub(super) fn taken_at(identity: &str, session: &str) -> Option<Timestamp> {
    let time = identity.strip_prefix("libvirt.")?.strip_suffix(session)?.strip_suffix('.')?;
    Timestamp::from_nanosecond(time.parse().ok()?).ok()
}

/// The disks of a request, in its order.
fn wanted(disks: &[DomainDisk], request: &SnapshotRequest) -> Result<Vec<DomainDisk>, HostError> {
    let find = |path: &String| disks.iter().find(|disk| disk.path == *path).cloned();
    let missing = |path: &String| HostError::Missing { path: path.clone() };
    request.disks.iter().map(|spec| find(&spec.path).ok_or_else(|| missing(&spec.path))).collect()
}

/// What is to be ended when the session is over.
struct Running {
    virsh: Virsh,
    uuid: String,
    job: String,
    session: String,
    socket: PathBuf,
    scratch: Vec<PathBuf>,
}

impl Running {
    /// Ends the backup. Sealed: changes are recorded from its moment on; else from where they were before.
    fn end(&self, sealed: bool) -> Result<(), NbdError> {
        let ours = |backup: &Backup| backup.socket.as_deref() == self.socket.to_str();
        if self.virsh.backup(&self.uuid)?.as_ref().is_some_and(ours) {
            self.virsh.end_backup(&self.uuid)?;
        }
        self.scratch.iter().chain([&self.socket]).for_each(|path| remove(path));
        for (name, session) in self.virsh.checkpoints(&self.uuid, &self.job)? {
            if (session == self.session) != sealed {
                self.virsh.delete_checkpoint(&self.uuid, &name)?;
            }
        }
        Ok(())
    }
}

/// A backup for as long as a session needs it. It ends with this value, for only a vbrd that watches over the room for what
/// the guest overwrites may leave one running: a session that is suspended takes another moment when it goes on.
struct Held {
    running: Running,
    over: AtomicBool,
    directory: PathBuf,
    floor_bytes: u64,
    _watch: SpaceWatch,
    _claim: Claim,
}

impl Held {
    fn end(&self, sealed: bool) {
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.running.end(sealed) {
            // A VM that has ended since took its backup along.
            tracing::warn!(
                why = said(&error),
                job = self.running.job,
                uuid = self.running.uuid,
                "the VM's backup could not be taken down; the next session does it"
            );
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl Hold for Held {
    fn release(&self, sealed: bool) {
        self.end(sealed);
    }

    fn space_low(&self) -> Option<String> {
        low(&self.directory, self.floor_bytes)
    }
}

impl LibvirtHost {
    fn running(&self, place: &Place, request: &SnapshotRequest) -> Running {
        let file = |name: String| self.directory().join(name);
        let (owner, session) = (self.clones.owner(), &request.session);
        let scratch = (0..request.disks.len())
            .map(|index| file(format!("{}.scratch", export_name(owner, session, index))))
            .collect();
        Running {
            virsh: place.virsh.clone(),
            uuid: place.domain.uuid.clone(),
            job: request.job.clone(),
            session: session.clone(),
            socket: file(format!("vbr-{owner}-{session}.sock")),
            scratch,
        }
    }

    /// A new moment.
    pub(super) fn begin(
        &self,
        claim: Claim,
        place: Place,
        disks: &[DomainDisk],
        request: &SnapshotRequest,
    ) -> Result<VmSnapshot, HostError> {
        let vm = request.vm.as_deref().unwrap_or_default();
        let wanted = wanted(disks, request)?;
        let running = self.running(&place, request);
        self.check_room(vm, &running)?;
        let failed = |error| self.vm_error(vm, error);
        self.end_leftovers(vm, &running)?;
        let all = running.virsh.checkpoints(&running.uuid, &request.job).map_err(failed)?;
        for (name, _) in all.iter().filter(|(_, session)| *session == request.session) {
            running.virsh.delete_checkpoint(&running.uuid, name).map_err(failed)?;
        }
        let earlier: Vec<(String, String)> =
            all.into_iter().filter(|(_, session)| *session != request.session).collect();
        let others: Vec<String> = disks
            .iter()
            .filter(|disk| !wanted.iter().any(|wanted| wanted.target == disk.target))
            .map(|disk| disk.target.clone())
            .collect();
        let begun = self.begin_backup(&running, &wanted, &others, &earlier);
        let taken_at = Timestamp::now();
        let opened = begun.map_err(failed).and_then(|backup| self.open(&running, &wanted, &backup, &earlier));
        match opened {
            Ok(opened) => self.held(claim, running, opened, taken_at),
            Err(error) => {
                if let Err(left) = running.end(false) {
                    tracing::warn!(
                        why = said(&left),
                        vm,
                        "a backup that failed was not taken down; the next session does it"
                    );
                }
                Err(error)
            }
        }
    }

    /// Neither too little space nor too long a path is met half-way.
    fn check_room(&self, vm: &str, running: &Running) -> Result<(), HostError> {
        let what = format!("VM {}/{vm}", self.host.name);
        if !fits_socket(&running.socket) {
            let why = format!("the path {} is too long for a socket", running.socket.display());
            let next_step = "add the host again with a directory of a shorter path";
            return Err(HostError::Invalid { what, why, next_step });
        }
        match low(self.directory(), self.clones.floor_bytes()) {
            None => Ok(()),
            Some(why) => Err(HostError::Hypervisor {
                what,
                why,
                next_step: "free space there for what the guest overwrites meanwhile, or add the host again with another directory",
            }),
        }
    }

    /// Ends a backup that a killed vbrd left; somebody else's is left alone.
    fn end_leftovers(&self, vm: &str, running: &Running) -> Result<(), HostError> {
        let failed = |error| self.vm_error(vm, error);
        let (virsh, uuid) = (&running.virsh, &running.uuid);
        let Some(backup) = virsh.backup(uuid).map_err(failed)? else { return Ok(()) };
        if !backup.is_of(self.clones.owner()) {
            return Err(HostError::Hypervisor {
                what: format!("VM {}/{vm}", self.host.name),
                why: "another program runs a backup of it".into(),
                next_step: "let it end (virsh backup-dumpxml shows it, virsh domjobabort ends it), then try again",
            });
        }
        tracing::info!(vm, "ending the backup of a session that is over");
        virsh.end_backup(uuid).map_err(failed)?;
        backup.socket.iter().for_each(|socket| remove(Path::new(socket)));
        for disk in &backup.disks {
            remove(&self.directory().join(format!("{}.scratch", disk.export)));
        }
        Ok(())
    }

    /// Begins it with the changes since the oldest checkpoint of the job, where there is one that is of use.
    fn begin_backup(
        &self,
        running: &Running,
        wanted: &[DomainDisk],
        others: &[String],
        earlier: &[(String, String)],
    ) -> Result<Backup, NbdError> {
        let (virsh, uuid) = (&running.virsh, &running.uuid);
        if let Some((since, _)) = earlier.first() {
            let recorded = virsh.checkpoint(uuid, since).map(|checkpoint| recorded(&checkpoint));
            let begun = recorded.and_then(|recorded| {
                self.order(running, wanted, others, Some((since.as_str(), recorded.as_slice())))
            });
            match begun {
                Err(error) if is_about_records(&error) => {
                    tracing::info!(why = said(&error), job = running.job, "there are no changes to go by");
                    for (name, _) in earlier {
                        virsh.delete_checkpoint(uuid, name)?;
                    }
                }
                begun => return begun,
            }
        }
        self.order(running, wanted, others, None)
    }

    fn order(
        &self,
        running: &Running,
        wanted: &[DomainDisk],
        others: &[String],
        since: Option<(&str, &[String])>,
    ) -> Result<Backup, NbdError> {
        let owner = self.clones.owner();
        let disk = |(index, disk): (usize, &DomainDisk)| BackupDisk {
            target: disk.target.clone(),
            export: export_name(owner, &running.session, index),
            since: since
                .filter(|(_, recorded)| recorded.contains(&disk.target))
                .map(|(name, _)| name.to_owned()),
        };
        let socket = Some(running.socket.display().to_string());
        let backup = Backup { socket, disks: wanted.iter().enumerate().map(disk).collect() };
        let scratch = |disk: &BackupDisk| {
            self.directory().join(format!("{}.scratch", disk.export)).display().to_string()
        };
        // Raw images keep no record.
        let (tracked, raw): (Vec<_>, Vec<_>) =
            wanted.iter().partition(|disk| disk.format == Some(DiskFormat::Qcow2));
        let targets = |disks: Vec<&DomainDisk>| -> Vec<String> {
            disks.iter().map(|disk| disk.target.clone()).collect()
        };
        let (tracked, mut untracked) = (targets(tracked), targets(raw));
        untracked.extend_from_slice(others);
        let checkpoint = (!tracked.is_empty()).then(|| {
            checkpoint_document(&checkpoint_name(&running.job, &running.session), &tracked, &untracked)
        });
        // Of an earlier try of this session; libvirt takes no file that exists.
        running.scratch.iter().chain([&running.socket]).for_each(|path| remove(path));
        let dir = PrivateDir::create(&self.runtime_dir)?;
        let document = backup.document(others, scratch);
        running.virsh.begin_backup(&running.uuid, &dir, &document, checkpoint.as_deref())?;
        Ok(backup)
    }

    /// One reader a disk, with what changed since the sessions of these checkpoints.
    fn open(
        &self,
        running: &Running,
        wanted: &[DomainDisk],
        backup: &Backup,
        earlier: &[(String, String)],
    ) -> Result<Vec<DiskSnapshot>, HostError> {
        let mut opened = Vec::new();
        for (disk, exported) in wanted.iter().zip(&backup.disks) {
            let failed = |error: NbdError| self.vm_error(&disk.path, error);
            let options = ConnectOptions::new(&running.socket, &exported.export);
            let mut changes: Vec<Changes> = Vec::new();
            if exported.since.is_some() {
                let dirty: Arc<[Extent]> =
                    dirty_extents(&options, &exported.bitmap()).map_err(failed)?.into();
                // What changed since the oldest is more than what changed since a later one.
                changes.extend(earlier.iter().map(|(_, session)| (session.clone(), dirty.clone())));
            }
            let client = NbdClient::connect(options).map_err(failed)?;
            let reader = OneMoment::new(client, disk.path.clone(), "the VM's backup");
            let reader: Arc<dyn BlockRead> = Arc::new(reader);
            let kind = SnapshotKind::Fleece;
            opened.push(DiskSnapshot { changes, kind, ..DiskSnapshot::still(disk.spec(), reader) });
        }
        Ok(opened)
    }

    fn held(
        &self,
        claim: Claim,
        running: Running,
        disks: Vec<DiskSnapshot>,
        taken_at: Timestamp,
    ) -> Result<VmSnapshot, HostError> {
        let (directory, floor_bytes) = (self.directory().to_owned(), self.clones.floor_bytes());
        let identity = identity(taken_at, &running.session);
        let watch =
            SpaceWatch::begin(directory.clone(), floor_bytes, running.virsh.clone(), running.uuid.clone());
        let watch = watch.map_err(|source| {
            let _ = running.end(false);
            HostError::Io { path: directory.display().to_string(), source }
        })?;
        let over = AtomicBool::new(false);
        let held = Held { running, over, directory, floor_bytes, _watch: watch, _claim: claim };
        Ok(VmSnapshot {
            disks,
            identity,
            taken_at,
            one_moment: true,
            transport_mode: "network",
            warnings: Vec::new(),
            config: None,
            hold: Some(Box::new(held)),
        })
    }

    /// The moment of this session again, where libvirt still holds it.
    pub(super) fn take_up(
        &self,
        claim: Claim,
        place: Place,
        disks: &[DomainDisk],
        request: &SnapshotRequest,
        taken_at: Timestamp,
    ) -> Result<Option<VmSnapshot>, HostError> {
        let vm = request.vm.as_deref().unwrap_or_default();
        let failed = |error| self.vm_error(vm, error);
        let running = self.running(&place, request);
        let Some(backup) = running.virsh.backup(&running.uuid).map_err(failed)? else { return Ok(None) };
        let Ok(wanted) = wanted(disks, request) else { return Ok(None) };
        let owner = self.clones.owner();
        let mut ours = Vec::new();
        for (index, disk) in wanted.iter().enumerate() {
            let export = export_name(owner, &request.session, index);
            let same = |other: &&BackupDisk| other.target == disk.target && other.export == export;
            let Some(found) = backup.disks.iter().find(same) else { return Ok(None) };
            ours.push(found.clone());
        }
        let all = running.virsh.checkpoints(&running.uuid, &request.job).map_err(failed)?;
        let earlier: Vec<_> = all.into_iter().filter(|(_, session)| *session != request.session).collect();
        let backup = Backup { disks: ours, ..backup };
        match self.open(&running, &wanted, &backup, &earlier) {
            Ok(opened) => self.held(claim, running, opened, taken_at).map(Some),
            // Its socket is gone, for one: a new moment it is.
            Err(error) => {
                tracing::info!(%error, vm, "the moment of before cannot be read any more");
                Ok(None)
            }
        }
    }
}
