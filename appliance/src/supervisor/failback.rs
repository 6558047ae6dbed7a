//! Failback: a VM that runs here goes back to the site that its replica came from, and nothing that it wrote is lost.
//!
//! ```text
//! here                                                     at that site
//! note that it goes back
//! run a job of its own (what changed crosses while it runs)
//! shut the guest down; qemu stands still
//! run the job once more (what it wrote last)
//! note the restore point
//!                                                          start it
//! note that it runs there; its process here ends
//! ```
//!
//! Whatever fails before the start there: the VM goes on here. Whether it was started there is asked for, never guessed: where
//! nobody answers, it stays shut down here until somebody does, or says that it does not run there (`undo` by force). What is
//! noted lies beside the replica, so a vbrd that is killed at any moment is asked to go on by the same order, or to take the
//! VM back. Owns nothing. Bound: a day for a session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vbr_api::{
    FailbackRequest, Failover, FailoverRequest, FreeSpace, Job, JobSpec, KeepCalendar, List, Moment, One,
    Peer, Power, Priority, ReplicaState, Retry, RunRequest, Schedule, Session,
};

use super::failovers::FailingOver;
use super::planned::{POLL_MS, SESSION_MAX, sealed};
use crate::control::ReplicaRef;
use crate::error::Problem;
use crate::host::FAILOVER;
use crate::host::target::RunState;
use crate::repository::datastore::{FailbackRecord, Order, Replica};

/// For a guest to shut down, unless said.
const SHUTDOWN: Duration = Duration::from_secs(300);
const SHUTDOWN_MAX: Duration = Duration::from_secs(3600);
/// Restore points that are kept there: the VM is started from the newest.
const KEEP: u32 = 3;

/// A replica, and its way back.
struct Way<'a> {
    all: &'a FailingOver,
    replica: Arc<Replica>,
}

/// The order to go back, and to go on with that.
pub(super) async fn start(all: &FailingOver, request: FailbackRequest) -> Result<Failover, Problem> {
    let way = Way::of(all, &ReplicaRef::parse(&request.start.point)?)?;
    let _turn = all.failovers.turn(&way.replica)?;
    way.replica.allows(Order::FailBack)?;
    if way.runs_there().await? {
        return way.finish(Vec::new());
    }
    let back = way.look().await?;
    way.replica.begin_failback(back.clone())?;
    let started = match way.carry(&back, &request).await {
        Ok(point) => way.start_there(&back, point, request.start).await,
        Err(problem) => Err(problem),
    };
    match started {
        Ok(there) => way.finish(there.warnings),
        Err(problem) => match way.runs_there().await {
            // Its answer was lost, or it runs and is not as it should be.
            Ok(true) => way.finish(vec![format!("{}: {}", problem.what, problem.why)]),
            Ok(false) => Err(way.goes_on(problem)),
            Err(_) => Err(way.unknown(problem)),
        },
    }
}

/// The VM is here again.
pub(super) async fn undo(all: &FailingOver, name: &ReplicaRef, force: bool) -> Result<Failover, Problem> {
    let way = Way::of(all, name)?;
    let _turn = all.failovers.turn(&way.replica)?;
    way.replica.allows(Order::TakeBack)?;
    let mut warnings = Vec::new();
    match way.end_there().await {
        Ok(true) => warnings.push(format!("what the VM wrote at {} is thrown away", way.site())),
        Ok(false) => {}
        Err(problem) if force => warnings.push(format!(
            "{} was not asked ({}): never let the VM run there while it runs here; vbrctl failover undo ends it there",
            way.site(),
            problem.why
        )),
        Err(problem) => {
            let next_step = format!(
                "try again when {} can be reached; where it is certain that the VM does not run there: vbrctl failback undo --force",
                way.site()
            );
            return Err(Problem { next_step, ..problem });
        }
    }
    way.take_back()?;
    Ok(Failover { warnings, ..all.failovers.show(&way.replica)? })
}

/// The VM stays there, and the replica is one again.
pub(super) async fn commit(all: &FailingOver, name: &ReplicaRef) -> Result<Failover, Problem> {
    let way = Way::of(all, name)?;
    let _turn = all.failovers.turn(&way.replica)?;
    way.replica.allows(Order::Return)?;
    let back = way.noted()?;
    if !way.runs_there().await? {
        return Err(Problem::conflict(
            way.title(),
            format!("it does not run at {} from the restore point that it was handed over with", way.site()),
            "vbrctl failback undo takes the VM back here",
        ));
    }
    way.order::<One<Failover>>("POST", way.path("/v1/failovers/commit", &back), &()).await?;
    match tokio::task::block_in_place(|| all.jobs.remove(&back.job)) {
        Err(problem) if problem.code != "not_found" => return Err(problem),
        _ => {}
    }
    tokio::task::block_in_place(|| all.failovers.returned(&way.replica))?;
    let warnings = way.left_to_do(&back).await;
    Ok(Failover { warnings, ..all.failovers.show(&way.replica)? })
}

impl<'a> Way<'a> {
    fn of(all: &'a FailingOver, name: &ReplicaRef) -> Result<Self, Problem> {
        Ok(Self { all, replica: all.find(name)? })
    }

    fn site(&self) -> &str {
        self.replica.site()
    }

    fn title(&self) -> String {
        format!("replica {}/{}", self.replica.site(), self.replica.name())
    }

    /// As a job here names it.
    fn vm(&self) -> String {
        format!("{FAILOVER}/{}", self.replica.vm_name())
    }

    fn noted(&self) -> Result<FailbackRecord, Problem> {
        self.replica.failover()?.failback.ok_or_else(|| {
            let why = "its record does not say how it goes back";
            Problem::conflict(self.title(), why, "vbrctl failover show tells where it stands")
        })
    }

    /// What can be known before anything is changed: that the site does what it is asked, takes sessions, and that there is
    /// something to read.
    async fn look(&self) -> Result<FailbackRecord, Problem> {
        let peers: List<Peer> = self.order("GET", "/v1/peers".into(), &()).await?;
        let own = self.all.consoles.wire.peer_id();
        let here = peers.items.into_iter().find(|peer| peer.peer_id == own);
        let here = here.filter(|here| !here.revoked && here.grants.iter().any(|grant| grant == "replicate"));
        let Some(here) = here else {
            return Err(Problem::not_allowed(
                self.title(),
                format!("{} takes no sessions of this site", self.site()),
                format!(
                    "at {}: vbrctl peer grant PEER --replicate, PEER being this site's name there",
                    self.site()
                ),
            ));
        };
        let fills = |job: &Job| {
            let peer = job.spec.target.split('/').next();
            job.spec.vm.as_deref() == Some(&self.vm()) && peer == Some(self.site())
        };
        let job = self.all.jobs.list().into_iter().find(fills).map(|job| job.spec);
        let job = job.unwrap_or_else(|| self.new_job());
        self.runs_or_stands()?;
        let (at, replica) = (Moment::now(), job.replica().to_owned());
        Ok(FailbackRecord { at, job: job.name, replica, here: here.name, point: None })
    }

    /// One that is off is read by nobody. Where it was going back already, it was shut down for that.
    fn runs_or_stands(&self) -> Result<(), Problem> {
        let failovers = &self.all.failovers;
        if tokio::task::block_in_place(|| failovers.run_state(&self.replica))? != RunState::Off {
            return Ok(());
        }
        if self.replica.failover()?.failback.is_some() {
            return tokio::task::block_in_place(|| failovers.start_again(&self.replica));
        }
        Err(Problem::conflict(
            self.title(),
            "its VM is off, and what it wrote is read only while it runs",
            format!("start it first: vbrctl failover start {}/{}@latest", self.site(), self.replica.name()),
        ))
    }

    fn new_job(&self) -> JobSpec {
        let name = format!("{}-back", self.replica.name());
        let short = || format!("back-{}", &blake3::hash(name.as_bytes()).to_hex()[..16]);
        JobSpec {
            name: if vbr_api::name_is_valid(&name) { name } else { short() },
            vm: Some(self.vm()),
            disks: Vec::new(),
            exclude: Vec::new(),
            target: self.site().into(),
            keep: Some(KEEP),
            keep_calendar: KeepCalendar::default(),
            free_space: FreeSpace::default(),
            rate_bps: None,
            schedule: Schedule::default(),
            priority: Priority::default(),
            retry: Retry::default(),
            seed: None,
            map: None,
            enabled: true,
        }
    }

    /// Everything that the VM wrote is there when this returns, and its guest is shut down.
    async fn carry(&self, back: &FailbackRecord, request: &FailbackRequest) -> Result<String, Problem> {
        if self.all.jobs.show(&back.job).is_err() {
            tokio::task::block_in_place(|| self.all.jobs.create(self.new_job()))?;
        }
        self.replicate(&back.job).await?;
        let within = request.shutdown_ms.map_or(SHUTDOWN, Duration::from_millis).min(SHUTDOWN_MAX);
        self.power(Power::ShutDown, within)?;
        self.replicate(&back.job).await
    }

    /// Runs the job to its end; answers the restore point, which shows a moment after this was called.
    async fn replicate(&self, job: &str) -> Result<String, Problem> {
        let jobs = &self.all.jobs;
        // A moment that was taken before, by the job's schedule or an earlier vbrd: what it sends is not sent again.
        let earlier: Vec<String> = jobs.sessions(Some(job), true).into_iter().map(|s| s.session).collect();
        let end = Instant::now() + SESSION_MAX;
        loop {
            let begun = tokio::task::block_in_place(|| jobs.run(job, RunRequest::default()))?;
            let is_earlier = earlier.contains(&begun.session);
            let sealed = self.wait(begun, end).await;
            if !is_earlier {
                return sealed;
            }
        }
    }

    async fn wait(&self, mut session: Session, end: Instant) -> Result<String, Problem> {
        let job = session.job.clone();
        let failed = |why: String| {
            let next = format!("look at it: vbrctl job log {job}; then order the failback again");
            Problem::conflict(format!("job {job}"), why, next)
        };
        while !session.state.is_over() {
            if Instant::now() > end {
                return Err(failed("its session takes longer than a day".into()));
            }
            session = self.all.jobs.wait(&session.session, Duration::from_millis(POLL_MS)).await?;
        }
        sealed(session).map_err(failed)
    }

    fn power(&self, power: Power, within: Duration) -> Result<(), Problem> {
        let name = self.replica.vm_name();
        let order = || self.all.hosts.get(FAILOVER)?.power(&name, power, within);
        Ok(tokio::task::block_in_place(order)?)
    }

    /// From here on it may run there, whatever is answered.
    async fn start_there(
        &self,
        back: &FailbackRecord,
        point: String,
        request: FailoverRequest,
    ) -> Result<Failover, Problem> {
        let name = format!("{}/{}@{point}", back.here, back.replica);
        self.replica.begin_failback(FailbackRecord { point: Some(point), ..back.clone() })?;
        let request = FailoverRequest { point: name, ..request };
        self.order::<One<Failover>>("POST", "/v1/failovers/start".into(), &request).await.map(|one| one.item)
    }

    /// Whether it was started there, from what was noted. Where nothing was ordered yet, nobody is asked.
    async fn runs_there(&self) -> Result<bool, Problem> {
        let Some(back) = self.replica.failover()?.failback else { return Ok(false) };
        let Some(point) = back.point.clone() else { return Ok(false) };
        let there =
            self.order::<One<Failover>>("GET", self.path("/v1/failovers/one", &back), &()).await?.item;
        let is_vm = matches!(there.state, ReplicaState::Failover | ReplicaState::Permanent);
        Ok(is_vm && there.point == Some(point))
    }

    /// Ends it there; false where it does not run there.
    async fn end_there(&self) -> Result<bool, Problem> {
        let runs = self.runs_there().await?;
        if runs {
            let path = self.path("/v1/failovers/undo", &self.noted()?);
            self.order::<One<Failover>>("POST", path, &()).await?;
        }
        Ok(runs)
    }

    fn finish(&self, mut warnings: Vec<String>) -> Result<Failover, Problem> {
        let failovers = &self.all.failovers;
        warnings.extend(tokio::task::block_in_place(|| failovers.handed_over(&self.replica))?);
        Ok(Failover { warnings, ..failovers.show(&self.replica)? })
    }

    /// It does not run there: it runs here again.
    fn goes_on(&self, problem: Problem) -> Problem {
        match self.take_back() {
            Ok(()) => Problem { why: format!("{}; the VM goes on here", problem.why), ..problem },
            Err(here) => Problem {
                why: format!("{}; and the VM could not be started here again: {}", problem.why, here.why),
                next_step: "correct what it says, then vbrctl failover start; vbrctl failover show tells where it stands"
                    .into(),
                ..problem
            },
        }
    }

    /// Two of the VM would be worse than none.
    fn unknown(&self, problem: Problem) -> Problem {
        let why = format!(
            "{}; the VM is shut down here, because it may have been started at {}, which does not answer",
            problem.why,
            self.site()
        );
        let next_step = "when that site can be reached: vbrctl failback start goes on, vbrctl failback undo takes the VM back";
        Problem { why, next_step: next_step.into(), ..problem }
    }

    /// Noted first: what runs here is the VM from then on.
    fn take_back(&self) -> Result<(), Problem> {
        self.replica.take_back()?;
        tokio::task::block_in_place(|| match self.all.failovers.run_state(&self.replica)? {
            RunState::Off => self.all.failovers.start_again(&self.replica),
            // Also one that runs: an earlier vbrd may have told it to stand still when it shuts down.
            _ => self.power(Power::On, SHUTDOWN),
        })
    }

    /// What its administrator does there.
    async fn left_to_do(&self, back: &FailbackRecord) -> Vec<String> {
        let vm = format!("{FAILOVER}/{}.{}", back.here, back.replica);
        let (site, replica) = (self.site(), self.replica.name());
        let jobs = self.order::<List<Job>>("GET", "/v1/jobs".into(), &()).await.map(|jobs| jobs.items);
        let job = jobs.unwrap_or_default().into_iter().find(|job| job.spec.replica() == replica);
        let job = job.map_or_else(
            || format!("create a job over it there that goes on with the replica here: vbrctl --site {site} job create NAME --vm {vm} --map {replica} --target {}", back.here),
            |job| format!("its job there goes on with the replica here once it names it: vbrctl --site {site} job edit {} --vm {vm} --drop-disks", job.spec.name),
        );
        vec![format!("at {site} the VM is {vm}; {job}")]
    }

    fn path(&self, route: &str, back: &FailbackRecord) -> String {
        format!("{route}?replica={}%2F{}", back.here, back.replica)
    }

    async fn order<T: DeserializeOwned>(
        &self,
        method: &str,
        path: String,
        body: &impl serde::Serialize,
    ) -> Result<T, Problem> {
        let body = match method {
            "GET" => Vec::new(),
            _ => serde_json::to_vec(body).unwrap_or_default(),
        };
        self.all.consoles.ask(self.site(), method, path, body).await
    }
}
