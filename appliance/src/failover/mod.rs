//! Failover: replicas that are started, tried, kept or given back to replication.
//!
//! ```text
//! mod       the orders: start, undo, commit; what is shown
//! settings  the VM as it is started here: from the restore point, the order and this site's networks
//! boot      the test of a restore point: start, look, throw away
//! back      going back to the site that it came from: what is done here
//! tend      what goes on by itself: commits are finished, tests of a vbrd that was killed are ended
//! ```
//!
//! Owns no state but which orders are under way: the datastore's record says what was ordered, and it is durable before anything
//! runs; the VM itself is found by its directory. So a vbrd that is killed at any moment finds what it left. One order a replica
//! at once. Everything blocks. Not its job: how a VM is run (`host::target`), what an image is (`repository`).

mod back;
mod boot;
mod settings;
mod tend;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vbr_api::{Failback, Failover, FailoverRequest, Moment, ReplicaState, StartedVm};

pub use self::tend::INTERVAL;

use self::settings::Settings;
use crate::config::FailoverSection;
use crate::error::Problem;
use crate::host::FAILOVER;
use crate::host::target::{self, RunState, StartSpec, TargetVm};
use crate::nbd::{BackingImage, ImageSpec};
use crate::repository::datastore::{
    Chain, Datastores, FailoverRecord, Order, Point, Replica, Stage, StartedRecord,
};

/// For a test whose VM was ended to tidy up.
const TEST_END: Duration = Duration::from_secs(30);

/// See the module.
pub struct Failovers {
    stores: Arc<Datastores>,
    config: FailoverSection,
    /// Replicas with an order under way.
    turns: Mutex<BTreeSet<[u8; 16]>>,
    /// What the last start of each took, milliseconds.
    started_ms: Mutex<BTreeMap<[u8; 16], u64>>,
}

impl Failovers {
    /// For the replicas of these datastores.
    pub fn new(stores: Arc<Datastores>, config: FailoverSection) -> Arc<Self> {
        Arc::new(Self { stores, config, turns: Mutex::default(), started_ms: Mutex::default() })
    }

    /// Every replica, and what runs of it.
    pub fn list(&self) -> Result<Vec<Failover>, Problem> {
        self.stores.replicas().iter().map(|replica| self.show(replica)).collect()
    }

    /// One replica.
    pub fn show(&self, replica: &Replica) -> Result<Failover, Problem> {
        let record = replica.failover()?;
        let vm = record.started.as_ref().map(|started| self.shown_vm(replica, &record, started));
        Ok(Failover {
            replica: replica.name().into(),
            site: replica.site().into(),
            state: state(replica, record.stage),
            generation: record.generation,
            point: record.started.as_ref().map(|started| started.point.clone()),
            started_at: record.started.as_ref().map(|started| started.at),
            vm,
            failback: record.failback.map(|way| Failback {
                since: way.at,
                job: way.job,
                vm: format!("{FAILOVER}/{}.{}", way.here, way.replica),
                point: way.point,
            }),
            warnings: Vec::new(),
        })
    }

    /// Starts the VM from a restore point; replication into it ends with that. One that cannot be started leaves the replica as
    /// it was. A replica that is failed over already and whose VM is off is started again, as it was.
    pub fn start(
        &self,
        replica: &Arc<Replica>,
        point: &str,
        request: &FailoverRequest,
    ) -> Result<Failover, Problem> {
        let _turn = self.turn(replica)?;
        let begun = Instant::now();
        let record = replica.failover()?;
        let warnings = match (record.stage, record.started) {
            (Stage::Failover | Stage::Permanent, Some(started)) => {
                self.again(replica, point, request, started)?;
                self.run(replica)?;
                Vec::new()
            }
            _ => {
                replica.allows(Order::Start)?;
                let point = replica.point(point)?;
                let settings = self.settings(&point, request)?;
                replica.begin_failover(Order::Start, &point, settings.started(&point, false)?)?;
                self.run(replica).map_err(|problem| self.give_back(replica, problem))?;
                tracing::warn!(point = point.id(), "{} is failed over", title(replica));
                settings.warnings
            }
        };
        self.note_time(replica, begun);
        Ok(Failover { warnings, ..self.show(replica)? })
    }

    /// Ends a failover or a test: what was written here is thrown away, and the replica takes sessions again.
    pub fn undo(&self, replica: &Arc<Replica>) -> Result<Failover, Problem> {
        let turn = match self.turn(replica) {
            // Somebody waits for a test: that sees its VM end, and tidies up.
            Err(_) if replica.stage() == Stage::Test => {
                TargetVm::at(&replica.failover_dir()).stop()?;
                let end = Instant::now() + TEST_END;
                while self.turns().contains(&replica.key()) && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(20));
                }
                if replica.stage() != Stage::Test {
                    return self.show(replica);
                }
                self.turn(replica)?
            }
            turn => turn?,
        };
        let _turn = turn;
        self.undo_now(replica)?;
        self.show(replica)
    }

    /// The VM stays here for good, and becomes independent of the restore points while it runs.
    pub fn commit(&self, replica: &Arc<Replica>) -> Result<Failover, Problem> {
        let _turn = self.turn(replica)?;
        if replica.stage() != Stage::Permanent {
            replica.commit_failover()?;
            tracing::warn!("the failover of {} was committed", title(replica));
        }
        self.flatten(replica)?;
        self.show(replica)
    }

    fn undo_now(&self, replica: &Arc<Replica>) -> Result<(), Problem> {
        replica.allows(Order::Undo)?;
        TargetVm::at(&replica.failover_dir()).stop()?;
        replica.end_failover(Order::Undo)?;
        tracing::info!("{} takes sessions again", title(replica));
        Ok(())
    }

    /// Nothing has run: the replica is as it was before the order.
    fn give_back(&self, replica: &Arc<Replica>, problem: Problem) -> Problem {
        match self.undo_now(replica) {
            Ok(()) => problem,
            Err(undone) => Problem {
                why: format!(
                    "{}; and the replica could not be given back to replication: {}",
                    problem.why, undone.why
                ),
                next_step: "correct what it says, then vbrctl failover undo".into(),
                ..problem
            },
        }
    }

    /// The images are there, and so is what they belong to: nothing but how the VM is started may be changed.
    fn again(
        &self,
        replica: &Arc<Replica>,
        point: &str,
        request: &FailoverRequest,
        started: StartedRecord,
    ) -> Result<(), Problem> {
        if point != "latest" && point != started.point {
            return Err(Problem::conflict(
                format!("replica {}", title(replica)),
                format!("it is failed over from restore point {}", started.point),
                "undo that first (vbrctl failover undo), which throws away what was written since",
            ));
        }
        if TargetVm::at(&replica.failover_dir()).run_state()? != RunState::Off {
            return Ok(());
        }
        let settings =
            Settings { vm: started.vm.clone(), bridges: started.bridges.clone(), warnings: Vec::new() };
        let settings = settings.changed(request, &self.config.networks)?;
        let changed = StartedRecord { vm: settings.vm, bridges: settings.bridges, ..started.clone() };
        if changed != started {
            replica.change_failover(changed)?;
        }
        Ok(())
    }

    fn settings(&self, point: &Arc<Point>, request: &FailoverRequest) -> Result<Settings, Problem> {
        Settings::of(point).changed(request, &self.config.networks)
    }

    /// Starts what the record says.
    fn run(&self, replica: &Arc<Replica>) -> Result<(), Problem> {
        let Some(started) = replica.failover()?.started else { return Ok(()) };
        let disks = 0..started.disk_lens.len();
        let disks =
            disks.map(|n| Ok(image(replica.failover_chain(n as u16)?))).collect::<Result<_, Problem>>()?;
        let spec = StartSpec {
            name: replica.vm_name(),
            directory: replica.failover_dir(),
            disks,
            vm: started.vm,
            bridges: started.bridges,
            accelerator: self.config.accelerator,
        };
        Ok(target::start(&spec)?)
    }

    fn shown_vm(&self, replica: &Replica, record: &FailoverRecord, started: &StartedRecord) -> StartedVm {
        let vm = TargetVm::at(&replica.failover_dir());
        // Who asks must not wait for a VM that hangs, and learns of it.
        let run_state = vm
            .run_state()
            .map_or_else(|error| format!("unknown: {error}"), |state| state.as_str().to_owned());
        let flatten =
            (record.stage == Stage::Permanent && !started.flattened).then(|| self.flattened(&vm, started));
        let started_ms = self.started_ms.lock().unwrap_or_else(PoisonError::into_inner);
        StartedVm {
            name: replica.vm_name(),
            run_state,
            cpus: started.vm.cpus,
            memory_bytes: started.vm.memory_bytes,
            start_ms: started_ms.get(&replica.key()).copied().unwrap_or_default(),
            written_bytes: replica.failover_bytes(),
            directory: replica.failover_dir().display().to_string(),
            flatten,
        }
    }

    fn note_time(&self, replica: &Replica, begun: Instant) {
        let mut started_ms = self.started_ms.lock().unwrap_or_else(PoisonError::into_inner);
        started_ms.insert(replica.key(), begun.elapsed().as_millis() as u64);
    }

    /// One order a replica at once: whoever has several steps to take keeps it meanwhile.
    pub fn turn(&self, replica: &Replica) -> Result<Turn<'_>, Problem> {
        if self.turns().insert(replica.key()) {
            return Ok(Turn { all: self, key: replica.key() });
        }
        Err(Problem::new(
            "busy",
            format!("replica {}", title(replica)),
            "another order for it is under way",
            "wait until that is done; vbrctl failover show tells how far it is",
        )
        .retry())
    }

    fn turns(&self) -> MutexGuard<'_, BTreeSet<[u8; 16]>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to order something of a replica; given up when dropped.
pub struct Turn<'a> {
    all: &'a Failovers,
    key: [u8; 16],
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.all.turns().remove(&self.key);
    }
}

/// As people write it.
fn title(replica: &Replica) -> String {
    format!("{}/{}", replica.site(), replica.name())
}

/// A replica's state, in words of the API.
fn state(replica: &Replica, stage: Stage) -> ReplicaState {
    match (stage, replica.points().is_empty(), replica.is_filling()) {
        (Stage::Test, ..) => ReplicaState::TestFailover,
        (Stage::Failover, ..) => ReplicaState::Failover,
        (Stage::Permanent, ..) => ReplicaState::Permanent,
        (Stage::FailingBack, ..) => ReplicaState::FailingBack,
        (Stage::Failback, ..) => ReplicaState::Failback,
        (Stage::Idle, true, true) => ReplicaState::Seeding,
        (Stage::Idle, true, false) => ReplicaState::Empty,
        (Stage::Idle, false, true) => ReplicaState::Syncing,
        (Stage::Idle, false, false) => ReplicaState::Ready,
    }
}

fn image(chain: Chain) -> ImageSpec {
    let backing = chain.below.into_iter().map(|(path, format)| BackingImage { path, format });
    ImageSpec {
        path: chain.path,
        format: chain.format,
        backing: backing.collect(),
        writable: true,
        disk_len: None,
    }
}

impl Settings {
    fn started(&self, point: &Point, keep: bool) -> Result<StartedRecord, Problem> {
        Ok(StartedRecord {
            point: point.id().into(),
            at: Moment::now(),
            vm: self.vm.clone(),
            bridges: self.bridges.clone(),
            disk_lens: point.disks()?.into_iter().map(|(len, _)| len).collect(),
            flattened: false,
            keep,
        })
    }
}
