//! A replica that is started: the images that its VM writes, and what is known of it.
//!
//! ```text
//! DATASTORE/SITE/REPLICA/failover.json    what was ordered, durable before anything is started
//!                        failover/        disk-N.qcow2: what the VM writes, above the restore point's images
//! ```
//!
//! The restore point is never written to. It is leased while images rest upon it, also after a restart. Owns the record and
//! the images; not its job: running the VM (the host driver owns what else lies in `failover/`).

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vbr_api::{DiskFormat, Moment, VmConfig, name_is_valid};

use super::building::lock;
use super::lease::ReadLease;
use super::overlay::{self, Chain};
use super::point::Point;
use super::record::{VERSION, check_version};
use super::replica::Replica;
use super::shared::image_name;
use super::stage::{Order, Refused, Stage};
use super::{files, lease};
use crate::limits::DISKS_MAX;
use crate::nbd::qcow2_check_header;
use crate::repository::RepositoryError;

/// `failover.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// Always `vbr failover`.
    pub format: String,
    /// Of all records.
    pub version: u32,
    /// Counts failovers and tests: images of an earlier one are never taken for those of this one.
    pub generation: u64,
    /// Where it stands.
    pub stage: Stage,
    /// What was started; none while nothing is.
    pub started: Option<StartedRecord>,
    /// How it goes back; none while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<FailbackRecord>,
}

/// How a replica goes back to its site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailbackRecord {
    /// When it was ordered.
    pub at: Moment,
    /// The job here that carries it.
    pub job: String,
    /// What that fills there.
    pub replica: String,
    /// This site's name there.
    pub here: String,
    /// The restore point that it was ordered to be started from there: from then on it may run there.
    #[serde(default)]
    pub point: Option<String>,
}

/// What was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartedRecord {
    /// Restore point.
    pub point: String,
    /// When it was ordered.
    pub at: Moment,
    /// The VM as it is started, and started again.
    pub vm: VmConfig,
    /// Bridge of each network card, in order; none: it reaches nobody.
    pub bridges: Vec<Option<String>>,
    /// Exact length of each disk.
    pub disk_lens: Vec<u64>,
    /// Nothing rests on the restore point any more.
    #[serde(default)]
    pub flattened: bool,
    /// A test that stays until somebody ends it.
    #[serde(default)]
    pub keep: bool,
}

impl FailoverRecord {
    const FORMAT: &str = "vbr failover";

    pub(super) fn check(&self) -> Result<(), String> {
        check_version(self.version)?;
        if self.format != Self::FORMAT {
            return Err("it is not the record of a failover".into());
        }
        let back = self.failback.as_ref();
        let words = back.map(|back| [&back.job, &back.replica, &back.here]);
        if words
            .into_iter()
            .flatten()
            .chain(back.and_then(|back| back.point.as_ref()))
            .any(|w| !name_is_valid(w))
        {
            return Err("a name in it is not valid".into());
        }
        match &self.started {
            None if self.stage.has_images() => Err("it does not say what was started".into()),
            Some(_) if back.is_none() && matches!(self.stage, Stage::FailingBack | Stage::Failback) => {
                Err("it does not say how it goes back".into())
            }
            Some(started) if !name_is_valid(&started.point) => Err("a name in it is not valid".into()),
            Some(started) if started.disk_lens.is_empty() || started.disk_lens.len() > DISKS_MAX => {
                Err(format!("it has {} disks", started.disk_lens.len()))
            }
            _ => Ok(()),
        }
    }
}

/// A record in memory, and the lease on the point that its images rest upon.
#[derive(Default)]
pub struct FailoverState {
    record: FailoverRecord,
    lease: Option<ReadLease>,
    /// Why the record cannot be read: nothing is started, replicated or removed until somebody has looked.
    damaged: Option<String>,
}

impl Replica {
    /// Where it stands.
    pub fn stage(&self) -> Stage {
        lock(&self.failover).record.stage
    }

    /// What is known of its failover.
    pub fn failover(&self) -> Result<FailoverRecord, RepositoryError> {
        let state = lock(&self.failover);
        match &state.damaged {
            None => Ok(state.record.clone()),
            Some(why) => Err(RepositoryError::damaged(self.failover_record().display().to_string(), why)),
        }
    }

    /// The VM's name, where it is one.
    pub fn vm_name(&self) -> String {
        format!("{}.{}", self.site(), self.name())
    }

    /// Where images, sockets and logs of the VM are.
    pub fn failover_dir(&self) -> PathBuf {
        self.shared.dir.join("failover")
    }

    /// Makes images above a restore point and notes what is to run. Durable when this returns; whatever was replicating into it
    /// can seal nothing any more unless this is a test.
    pub fn begin_failover(
        &self,
        order: Order,
        point: &Arc<Point>,
        started: StartedRecord,
    ) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        let stage = self.step(old.stage, order)?;
        if !point.is_good() {
            return Err(RepositoryError::Conflict {
                what: point.title(),
                why: "it is damaged, or being removed".into(),
                next: "choose another restore point: vbrctl restore-point list".into(),
            });
        }
        self.check_space()?;
        let record = point.record()?;
        let lease = self.failover_lease(point.id())?;
        let dir = self.failover_dir();
        files::remove_dir_all(&dir)?; // Of an earlier one that was undone.
        files::make_dir(&dir)?;
        for (n, disk) in record.disks.iter().enumerate() {
            let below = format!("../points/{}/{}", point.id(), disk.file);
            overlay::create(&dir.join(image_name(n, DiskFormat::Qcow2)), &below, disk.image, disk.disk_len)?;
        }
        files::sync_dir(&dir)?;
        let generation = old.generation + 1;
        self.note_failover(FailoverRecord { generation, stage, started: Some(started), ..old })?;
        lock(&self.failover).lease = Some(lease);
        Ok(())
    }

    /// The same images will be started another way.
    pub fn change_failover(&self, started: StartedRecord) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        self.note_failover(FailoverRecord { started: Some(started), ..old })
    }

    /// The VM stays. Durable when this returns.
    pub fn commit_failover(&self) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        let stage = self.step(old.stage, Order::Commit)?;
        self.note_failover(FailoverRecord { stage, ..old })
    }

    /// Throws away what the VM wrote, once it is stopped, by [`Order::Undo`] or [`Order::Return`]. The record goes first: images
    /// without one are nobody's.
    pub fn end_failover(&self, order: Order) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        let stage = self.step(old.stage, order)?;
        self.note_failover(FailoverRecord { stage, started: None, failback: None, ..old })?;
        lock(&self.failover).lease = None;
        files::remove_dir_all(&self.failover_dir())
    }

    /// The VM goes back, this way. Durable when this returns.
    pub fn begin_failback(&self, way: FailbackRecord) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        let stage = self.step(old.stage, Order::FailBack)?;
        self.note_failover(FailoverRecord { stage, failback: Some(way), ..old })
    }

    /// It runs there now. Durable when this returns.
    pub fn hand_over(&self) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        let stage = self.step(old.stage, Order::HandOver)?;
        self.note_failover(FailoverRecord { stage, ..old })
    }

    /// It is the VM here again. Durable when this returns.
    pub fn take_back(&self) -> Result<(), RepositoryError> {
        let _work = self.work();
        let old = self.failover()?;
        let stage = self.step(old.stage, Order::TakeBack)?;
        self.note_failover(FailoverRecord { stage, failback: None, ..old })
    }

    /// Whether an order is allowed now.
    pub fn allows(&self, order: Order) -> Result<(), RepositoryError> {
        self.step(self.failover()?.stage, order).map(drop)
    }

    /// Notes that the images rest on nothing any more, and lets the restore point go. Their own headers have to say so: what
    /// lies below may be removed from then on.
    pub fn note_flattened(&self) -> Result<(), RepositoryError> {
        let _work = self.work();
        let mut record = self.failover()?;
        let disks = record.started.as_ref().map_or(0, |started| started.disk_lens.len());
        for disk in 0..disks {
            let path = self.failover_dir().join(image_name(disk, DiskFormat::Qcow2));
            qcow2_check_header(&path, false).map_err(|source| RepositoryError::Tool {
                what: format!("the commit of {}", self.shared.title()),
                source,
            })?;
        }
        if let Some(started) = &mut record.started {
            started.flattened = true;
        }
        self.note_failover(record)?;
        lock(&self.failover).lease = None;
        Ok(())
    }

    /// The declared chain of a disk that the VM writes.
    pub fn failover_chain(&self, disk: u16) -> Result<Chain, RepositoryError> {
        let record = self.failover()?;
        let Some(started) = record.started else {
            return Err(RepositoryError::NotFound(format!("a failover of {}", self.shared.title())));
        };
        let path = self.failover_dir().join(image_name(disk as usize, DiskFormat::Qcow2));
        self.shared.core.root.open_beneath(&path, rustix::fs::OFlags::RDONLY)?;
        let backing = super::record::BackingRecord { point: started.point, disk };
        let below = if started.flattened { Vec::new() } else { self.shared.below(Some(backing))? };
        Ok(Chain { path, format: DiskFormat::Qcow2, below })
    }

    /// Makes the images of a VM that is off independent of what lies below.
    pub fn flatten_images(&self) -> Result<(), RepositoryError> {
        let record = self.failover()?;
        let disks = record.started.map_or(0, |started| started.disk_lens.len());
        (0..disks).try_for_each(|disk| overlay::flatten(&self.failover_chain(disk as u16)?))
    }

    /// Bytes that the VM's images take.
    pub fn failover_bytes(&self) -> u64 {
        files::stored_bytes(&self.failover_dir())
    }

    /// Refuses a session while the replica is the VM.
    pub(super) fn check_takes_sessions(&self) -> Result<(), RepositoryError> {
        let record = self.failover()?;
        if record.stage.takes_sessions() {
            return Ok(());
        }
        Err(RepositoryError::Conflict {
            what: format!("replica {}", self.shared.title()),
            why: format!(
                "it is failed over (generation {}): what runs at the target is the VM now",
                record.generation
            ),
            next: "stop the VM at the source; at the target, vbrctl failover undo gives the replica back to \
                   replication and throws away what was written there"
                .into(),
        })
    }

    /// Refuses to remove the replica with a VM's disks in it.
    pub(super) fn check_no_vm(&self) -> Result<(), RepositoryError> {
        let stage = self.failover()?.stage;
        if !stage.has_images() || !self.failover_dir().exists() {
            return Ok(());
        }
        let next = match stage {
            Stage::FailingBack | Stage::Failback => "end that first: vbrctl failback commit, or undo".into(),
            Stage::Permanent => {
                format!("switch the VM off and move {} away first", self.failover_dir().display())
            }
            _ => "end that first: vbrctl failover undo".into(),
        };
        Err(RepositoryError::Conflict {
            what: format!("replica {}", self.shared.title()),
            why: "a VM was started from it, and its disks are here".into(),
            next,
        })
    }

    /// Refuses to take away a point that images of a failover rest upon, or a chain with it (`merges`).
    pub(super) fn check_not_started(&self, point: &str, merges: bool) -> Result<(), RepositoryError> {
        let record = self.failover()?;
        let rests = |started: &StartedRecord| !started.flattened && (merges || started.point == point);
        match record.started.filter(rests) {
            None => Ok(()),
            Some(started) => Err(RepositoryError::Busy {
                what: format!("restore point {}@{point}", self.shared.title()),
                why: format!("a VM that was started from {} rests upon it", started.point),
            }),
        }
    }

    /// Reads the record when the replica is opened, and takes the lease again.
    pub(super) fn scan_failover(&self) -> Result<(), RepositoryError> {
        let path = self.failover_record();
        if !path.exists() {
            return files::remove_dir_all(&self.failover_dir()); // Made, and never noted.
        }
        let read = self.shared.core.root.read_record::<FailoverRecord>(&path).map_err(|e| e.to_string());
        match read.and_then(|record| record.check().map(|()| record)) {
            Ok(record) => {
                let rests = record.started.as_ref().filter(|started| !started.flattened);
                let lease = rests.map(|started| self.failover_lease(&started.point)).transpose()?;
                if !record.stage.has_images() {
                    files::remove_dir_all(&self.failover_dir())?;
                }
                *lock(&self.failover) = FailoverState { record, lease, damaged: None };
            }
            Err(why) => {
                self.warn(
                    format!("{} cannot be read: {why}; nothing is replicated into this replica", path.display()),
                    "repair it, or move it away if nothing was started from this replica; then start vbrd again",
                );
                lock(&self.failover).damaged = Some(why);
            }
        }
        Ok(())
    }

    fn step(&self, stage: Stage, order: Order) -> Result<Stage, RepositoryError> {
        stage.after(order).map_err(|Refused { why, next }| RepositoryError::Conflict {
            what: format!("replica {}", self.shared.title()),
            why: why.into(),
            next: next.into(),
        })
    }

    fn failover_lease(&self, point: &str) -> Result<ReadLease, RepositoryError> {
        self.shared.leases.shared(point, LEASE_PATIENCE).map_err(|lease::StillHeld| RepositoryError::Busy {
            what: format!("restore point {}@{point}", self.shared.title()),
            why: "a restore point below it is being removed".into(),
        })
    }

    fn note_failover(&self, record: FailoverRecord) -> Result<(), RepositoryError> {
        let record = FailoverRecord { format: FailoverRecord::FORMAT.into(), version: VERSION, ..record };
        self.shared.core.root.write_record(&self.failover_record(), &record)?;
        lock(&self.failover).record = record;
        Ok(())
    }

    fn failover_record(&self) -> PathBuf {
        self.shared.dir.join("failover.json")
    }
}

/// How long it waits for whoever rewrites the chain.
const LEASE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
