//! Housekeeping: what the appliance does by itself beside sessions, and the orders about it.
//!
//! Thin: each worker is one call of the part that owns the matter.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{JobLogEntry, JobLogQuery, NotifyHook, Task};

use super::scrubbing::Scrub;
use super::verifying::Verification;
use crate::accelerator::global_cache::GlobalCache;
use crate::config::Config;
use crate::control::HousekeepingOrders;
use crate::error::Problem;
use crate::job::{JobManager, TargetService};
use crate::notify::Notifier;
use crate::repository::datastore::Datastores;
use crate::wire::Wire;
use crate::worker::{Outcome, Plan, Role, Spec, Workers};

/// Whoever fills the file system besides the cache is noticed after this long.
const EVICTION_INTERVAL: Duration = Duration::from_secs(60);

/// Orders about background workers, job logs and notifications.
pub struct Housekeeping {
    /// The table of workers.
    pub workers: Arc<Workers>,
    /// Jobs have logs.
    pub jobs: Arc<JobManager>,
    /// Who is told of what.
    pub notifier: Arc<Notifier>,
}

impl HousekeepingOrders for Housekeeping {
    fn tasks(&self) -> Result<Vec<Task>, Problem> {
        Ok(self.workers.list())
    }
    fn task(&self, name: &str) -> Result<Task, Problem> {
        self.workers.show(name)
    }
    fn run_task(&self, name: &str) -> Result<Task, Problem> {
        self.workers.run(name)
    }
    fn job_log(&self, name: &str, query: &JobLogQuery) -> Result<Vec<JobLogEntry>, Problem> {
        self.jobs.log(name, query)
    }
    fn hooks(&self) -> Result<Vec<NotifyHook>, Problem> {
        Ok(self.notifier.list())
    }
    fn test_hook(&self, name: &str) -> Result<NotifyHook, Problem> {
        self.notifier.test(name)
    }
}

/// What housekeeping looks after.
#[derive(Clone)]
pub struct Kept {
    /// The global cache.
    pub cache: Arc<GlobalCache>,
    /// The datastores.
    pub stores: Arc<Datastores>,
    /// For the keys of domains.
    pub wire: Wire,
    /// Sessions here, at a source.
    pub jobs: Arc<JobManager>,
    /// The same at a target.
    pub target: Arc<TargetService>,
}

impl Kept {
    /// Sessions are under way, so the disks are theirs.
    pub fn is_busy(&self) -> bool {
        self.target.is_receiving() || self.jobs.is_busy()
    }

    /// Starts the workers that belong to no part alone.
    pub fn tend(self, config: &Config, workers: &Workers, tasks: &TaskTracker, stop: &CancellationToken) {
        self.tend_eviction(workers, tasks, stop);
        Scrub(self.clone()).tend(config.scrub, workers, tasks, stop);
        Verification::new(self).tend(config.verify, workers, tasks, stop);
    }

    /// The cache makes room for itself when it grows; this keeps its reserve where others fill the file system.
    fn tend_eviction(&self, workers: &Workers, tasks: &TaskTracker, stop: &CancellationToken) {
        let what = "keeps the cache within its size and its file system's reserve free";
        let worker = workers.register(Spec::new("eviction", Role::Site, what));
        let cache = self.cache.clone();
        tasks.spawn(worker.drive(stop.clone(), Plan::after(EVICTION_INTERVAL), move |pass| {
            let evicted = cache.give_way().map_err(|error| error.to_string())?;
            pass.worker().count("packs", evicted);
            Ok(Outcome::again_in(EVICTION_INTERVAL))
        }));
    }
}
