//! The management API's orders on failovers, and the worker that looks after what runs.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{BootTest, FailbackRequest, Failover, FailoverRequest, PlannedRequest, TestRequest};

use super::consoles::Consoles;
use super::failback;
use super::planned::planned;
use crate::control::{Answer, FailoverOrders, PointRef, ReplicaRef};
use crate::error::Problem;
use crate::failover::{Failovers, INTERVAL};
use crate::host::HostRegistry;
use crate::job::{JobManager, TargetService};
use crate::repository::datastore::{Datastores, Replica};
use crate::worker::{Next, Outcome, Pass, Plan, Role, Spec, Workers};

/// See the module.
#[derive(Clone)]
pub struct FailingOver {
    /// Carries them out.
    pub failovers: Arc<Failovers>,
    /// For the names of replicas.
    pub stores: Arc<Datastores>,
    /// What fills a replica that is to be the VM is ended.
    pub target: Arc<TargetService>,
    /// For orders to the sites that replicas come from.
    pub consoles: Arc<Consoles>,
    /// The jobs that carry VMs back.
    pub jobs: Arc<JobManager>,
    /// To shut VMs down.
    pub hosts: Arc<HostRegistry>,
    /// There may be something to look after.
    pub soon: Arc<tokio::sync::Notify>,
    /// Where planned failovers run.
    pub tasks: TaskTracker,
}

impl FailingOver {
    /// Also when its console has gone: half of it would be worse.
    fn carried_on<'a>(
        &'a self,
        order: impl Future<Output = Result<Failover, Problem>> + Send + 'static,
    ) -> Answer<'a, Failover> {
        let ordered = self.tasks.spawn(order);
        Box::pin(async move {
            ordered.await.unwrap_or_else(|error| {
                Err(Problem::new("internal", "an order of several steps", error.to_string(), "report this"))
            })
        })
    }

    pub(super) fn find(&self, name: &ReplicaRef) -> Result<Arc<Replica>, Problem> {
        self.stores.find(name.site.as_deref(), &name.name)
    }

    /// Looks after what runs, now and then.
    pub fn tend(&self, workers: &Workers, stop: &CancellationToken) {
        let what = "finishes committed failovers and ends tests that nobody waits for";
        let worker = workers.register(Spec::new("failover", Role::Target, what));
        let failovers = self.failovers.clone();
        let plan = Plan { wake: Some(self.soon.clone()), ..Plan::default() };
        let work = move |_: &Pass| {
            Ok(match failovers.tend()? {
                true => Outcome::again_in(INTERVAL),
                false => Outcome { next: Next::WhenWoken, finding: None },
            })
        };
        self.tasks.spawn(worker.drive(stop.clone(), plan, work));
    }
}

impl FailoverOrders for FailingOver {
    fn list(&self) -> Result<Vec<Failover>, Problem> {
        self.failovers.list()
    }
    fn show(&self, replica: &ReplicaRef) -> Result<Failover, Problem> {
        self.failovers.show(&*self.find(replica)?)
    }
    fn start(&self, point: &PointRef, request: &FailoverRequest) -> Result<Failover, Problem> {
        let replica = self.find(&point.replica)?;
        let started = self.failovers.start(&replica, &point.point, request)?;
        // It could seal nothing any more; now it learns that.
        self.target.interrupt(replica.key());
        self.soon.notify_one();
        Ok(started)
    }
    fn test(
        &self,
        point: &PointRef,
        request: &TestRequest,
        stopped: &dyn Fn() -> bool,
    ) -> Result<BootTest, Problem> {
        let test = self.failovers.test(&self.find(&point.replica)?, &point.point, request, stopped);
        self.soon.notify_one();
        test
    }
    fn planned<'a>(&'a self, request: PlannedRequest) -> Answer<'a, Failover> {
        let own = self.clone();
        self.carried_on(async move { planned(&own, request).await })
    }
    fn fail_back<'a>(&'a self, request: FailbackRequest) -> Answer<'a, Failover> {
        let own = self.clone();
        self.carried_on(async move { failback::start(&own, request).await })
    }
    fn undo_failback<'a>(&'a self, replica: ReplicaRef, force: bool) -> Answer<'a, Failover> {
        let own = self.clone();
        self.carried_on(async move { failback::undo(&own, &replica, force).await })
    }
    fn commit_failback<'a>(&'a self, replica: ReplicaRef) -> Answer<'a, Failover> {
        let own = self.clone();
        self.carried_on(async move { failback::commit(&own, &replica).await })
    }
    fn undo(&self, replica: &ReplicaRef) -> Result<Failover, Problem> {
        self.failovers.undo(&self.find(replica)?)
    }
    fn commit(&self, replica: &ReplicaRef) -> Result<Failover, Problem> {
        let committed = self.failovers.commit(&self.find(replica)?);
        self.soon.notify_one();
        committed
    }
}
