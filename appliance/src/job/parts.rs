//! What the sessions of a source share: handed from the composition root to the manager, from there to
//! every driver. Each part looks after itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ahead::Gates;
use super::bases::BaseChunks;
use super::log::JobLog;
use super::mapping::Filling;
use super::records::Records;
use super::refresh::Refreshes;
use super::slots::Slots;
use super::stall::StallBounds;
use crate::accelerator::anchors::AnchorStore;
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::shared_filter::SharedFilters;
use crate::config::HistorySection;
use crate::host::{HostRegistry, VmSnapshot};
use crate::mover::ceiling::{Ceiling, GentleDisk};
use crate::notify::Notifier;
use crate::repository::source::SourceRepository;
use crate::schedule::resources::Bounds;
use crate::schedule::window::Window;
use crate::wire::Wire;
use crate::worker::Workers;

/// What sessions share.
pub struct Parts {
    /// The wire.
    pub wire: Wire,
    /// Source hosts.
    pub hosts: Arc<HostRegistry>,
    /// The backup repository.
    pub repository: Arc<SourceRepository>,
    /// Where content was seen.
    pub anchors: Arc<AnchorStore>,
    /// What targets have from two branches or more.
    pub filters: Arc<SharedFilters>,
    /// The global cache.
    pub cache: Arc<GlobalCache>,
    /// Keep what is sent in it.
    pub keep_sent: bool,
    /// Look for bases.
    pub look_for_bases: bool,
    pub(super) base_chunks: Arc<BaseChunks>,
    pub(super) refreshes: Refreshes,
    pub(super) gates: Gates,
    /// What the line to each peer was last seen to take, bytes a second.
    pub(super) lines: Mutex<BTreeMap<String, f64>>,
    pub(super) records: Records,
    pub(super) compressors: Arc<Semaphore>,
    /// Room for packed batches.
    pub(super) packed: Arc<Semaphore>,
    pub(super) slots: Arc<Slots>,
    pub(super) filling: Arc<Filling>,
    pub(super) waits: SourceWaits,
    pub(super) ceilings: Ceilings,
    /// Background workers.
    pub(super) workers: Arc<Workers>,
    /// What happened to jobs.
    pub(super) log: Arc<JobLog>,
    /// What of the past stays.
    pub(super) history: HistorySection,
    /// The appliance stops.
    pub stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What a source keeps.
pub struct SourceStores {
    /// The backup repository.
    pub repository: Arc<SourceRepository>,
    /// Where content was seen.
    pub anchors: Arc<AnchorStore>,
    /// What targets have from two branches or more.
    pub filters: Arc<SharedFilters>,
    /// The global cache.
    pub cache: Arc<GlobalCache>,
    /// Keep what is sent in it.
    pub keep_sent: bool,
    /// Look for bases.
    pub look_for_bases: bool,
    /// The hours in which its jobs run by themselves.
    pub window: Option<Window>,
    /// How long its sessions wait.
    pub waits: SourceWaits,
    /// How many of them run.
    pub slots: Bounds,
    /// Where reads of a host take longer, reading slows down.
    pub latency_ceiling: Option<Duration>,
    /// Where its background workers are listed.
    pub workers: Arc<Workers>,
    /// Who is told of what happens.
    pub notifier: Arc<Notifier>,
    /// What of the past stays.
    pub history: HistorySection,
}

/// How long sessions wait for what does not come.
#[derive(Clone, Copy, Debug)]
pub struct SourceWaits {
    /// A lost link.
    pub link: Duration,
    /// Progress.
    pub stall: StallBounds,
}

/// The latency ceilings of the source hosts, by name; none where none is configured.
pub(super) struct Ceilings {
    ceiling: Option<Duration>,
    hosts: Mutex<BTreeMap<String, Arc<Mutex<Ceiling>>>>,
}

impl Ceilings {
    /// One for each host.
    pub(super) fn new(ceiling: Option<Duration>) -> Self {
        Self { ceiling, hosts: Mutex::default() }
    }

    /// The disks of a host, read under its ceiling.
    pub(super) fn limit(&self, host: &str, snapshot: &mut VmSnapshot) {
        let Some(ceiling) = self.ceiling else { return };
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let shared =
            hosts.entry(host.to_string()).or_insert_with(|| Arc::new(Mutex::new(Ceiling::new(ceiling))));
        for disk in &mut snapshot.disks {
            disk.reader = Arc::new(GentleDisk::new(disk.reader.clone(), shared.clone()));
        }
    }
}
