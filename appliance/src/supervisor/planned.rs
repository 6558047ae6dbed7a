//! Planned failover: a VM moves here in order, and nothing that it wrote is lost.
//!
//! ```text
//! at its source                                      here
//! run its job (most of what changed crosses while it runs)
//! shut the guest down; qemu stands still
//! run its job once more (what it wrote last)
//!                                                    start the newest restore point
//! switch the VM off
//! ```
//!
//! Whatever fails before the start: the VM is started at its source again, as far as that can be reached. Owns nothing; vbrd
//! that is killed meanwhile leaves a VM that is shut down at its source and a replica that is ready.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vbr_api::{Failover, Job, List, One, PlannedRequest, Power, PowerRequest, Session, SessionState};

use super::consoles::Consoles;
use super::failovers::FailingOver;
use crate::control::{FailoverOrders, PointRef, ReplicaRef};
use crate::error::Problem;

/// The longest that the source is waited for in one session.
pub(super) const SESSION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Of one long poll.
pub(super) const POLL_MS: u64 = 20_000;

/// The site that a replica comes from, and its job there.
struct Source<'a> {
    consoles: &'a Consoles,
    site: String,
    job: String,
    vm: String,
}

/// See the module.
pub(super) async fn planned(
    failing_over: &FailingOver,
    mut request: PlannedRequest,
) -> Result<Failover, Problem> {
    let replica = ReplicaRef::parse(&request.start.point)?;
    let found = failing_over.stores.find(replica.site.as_deref(), &replica.name)?;
    found.allows(crate::repository::datastore::Order::Start)?;
    let source = Source::find(&failing_over.consoles, found.site(), found.name()).await?;
    source.replicate().await?;
    let started = async {
        source.power(Power::ShutDown, request.shutdown_ms).await?;
        let point = source.replicate().await?;
        let name = format!("{}/{}@{point}", found.site(), found.name());
        request.start.point.clone_from(&name);
        let point = PointRef::parse(&name)?;
        tokio::task::block_in_place(|| failing_over.start(&point, &request.start))
    };
    match started.await {
        Ok(failover) => Ok(source.switched_off(failover).await),
        // A start that fails leaves the replica as it was; and what somebody else started meanwhile is not ours to undo.
        Err(problem) => Err(source.switched_on(problem).await),
    }
}

impl<'a> Source<'a> {
    async fn find(consoles: &'a Consoles, site: &str, replica: &str) -> Result<Self, Problem> {
        let jobs: List<Job> = consoles.ask(site, "GET", "/v1/jobs".into(), Vec::new()).await?;
        let job = jobs.items.into_iter().find(|job| job.spec.vm.is_some() && job.spec.replica() == replica);
        let Some((job, vm)) = job.and_then(|job| Some((job.spec.name, job.spec.vm?))) else {
            return Err(Problem::conflict(
                format!("replica {site}/{replica}"),
                "no job of its source replicates a VM into it",
                "shut the VM down, run its job once more, then vbrctl failover start",
            ));
        };
        Ok(Self { consoles, site: site.into(), job, vm })
    }

    /// Runs the job to its end; answers the restore point, which shows a moment after this was called.
    async fn replicate(&self) -> Result<String, Problem> {
        // A moment that was taken before, by the job's schedule: an order to run would be content with it.
        let path = format!("/v1/sessions?job={}&active=true", self.job);
        let active: List<Session> = self.order("GET", path, Vec::new()).await?;
        let earlier: Vec<String> = active.items.into_iter().map(|session| session.session).collect();
        let end = Instant::now() + SESSION_MAX;
        loop {
            let path = format!("/v1/jobs/{}/run", self.job);
            let begun: One<Session> = self.order("POST", path, b"{}".to_vec()).await?;
            let is_earlier = earlier.contains(&begun.item.session);
            let sealed = self.wait(begun.item, end).await;
            if !is_earlier {
                return sealed;
            }
        }
    }

    async fn wait(&self, mut session: Session, end: Instant) -> Result<String, Problem> {
        while !session.state.is_over() {
            if Instant::now() > end {
                return Err(self.failed("its session takes longer than a day".into()));
            }
            let path = format!("/v1/sessions/{}?wait_ms={POLL_MS}", session.session);
            session = self.order::<One<Session>>("GET", path, Vec::new()).await?.item;
        }
        sealed(session).map_err(|why| self.failed(why))
    }

    async fn power(&self, power: Power, within_ms: Option<u64>) -> Result<(), Problem> {
        let request = PowerRequest { vm: self.vm.clone(), power, within_ms };
        let body = serde_json::to_vec(&request).unwrap_or_default();
        self.order::<One<PowerRequest>>("POST", "/v1/vms/power".into(), body).await.map(drop)
    }

    /// It does not run here: it runs there again. Also where the order to shut down failed: its answer alone may be lost.
    async fn switched_on(&self, problem: Problem) -> Problem {
        match self.power(Power::On, None).await {
            Ok(()) => Problem { why: format!("{}; the VM runs at its source", problem.why), ..problem },
            Err(off) => Problem {
                why: format!(
                    "{}; the VM may be shut down at its source, and could not be started again: {}",
                    problem.why, off.why
                ),
                next_step: format!("start it there: vbrctl vm power {} on", self.vm),
                ..problem
            },
        }
    }

    /// It runs here now; that it is still there, standing, is told where it cannot be helped.
    async fn switched_off(&self, mut failover: Failover) -> Failover {
        if let Err(problem) = self.power(Power::Off, None).await {
            let warning = format!(
                "the VM at {} is shut down, but still there ({}); never start it while it runs here",
                self.site, problem.why
            );
            failover.warnings.push(warning);
        }
        failover
    }

    async fn order<T: DeserializeOwned>(
        &self,
        method: &str,
        path: String,
        body: Vec<u8>,
    ) -> Result<T, Problem> {
        self.consoles.ask(&self.site, method, path, body).await
    }

    fn failed(&self, why: String) -> Problem {
        let next = format!("look at it there: vbrctl --site {} job log {}", self.site, self.job);
        Problem::new("source", format!("job {} at {}", self.job, self.site), why, next)
    }
}

/// The restore point of a session that is over, or why there is none.
pub(super) fn sealed(session: Session) -> Result<String, String> {
    match (session.state, session.restore_point) {
        (SessionState::Succeeded | SessionState::Warning, Some(point)) => Ok(point),
        (state, _) => {
            let why = session.error.map(|error| error.why).unwrap_or_else(|| state.as_str().into());
            Err(format!("its session did not succeed: {why}"))
        }
    }
}
