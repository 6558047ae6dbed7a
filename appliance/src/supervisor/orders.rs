//! The management API's orders, carried out by the real parts.
//!
//! Thin: each order is one call of the part that owns the matter.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{
    GrantRequest, Host, Invite, InviteRequest, Job, JobEdit, JobSpec, JoinRequest, Peer, Plan, PowerRequest,
    Repository, RepositoryReport, RunRequest, Session, Vm,
};

use super::consoles::Consoles;
use crate::control::{Answer, Export, HostOrders, JobOrders, PeerOrders};
use crate::error::Problem;
use crate::host::HostRegistry;
use crate::job::{JobManager, TargetService};
use crate::wire::Wire;

/// Pairing and peers.
pub struct Peers {
    /// The peer book and the links.
    pub wire: Wire,
    /// Knows what peers fill here.
    pub target: Arc<TargetService>,
}

impl Peers {
    /// With the bounds that hold.
    fn bounded(&self, peer: Peer) -> Peer {
        Peer { quota: self.target.quotas().effective(peer.quota), ..peer }
    }
}

impl PeerOrders for Peers {
    fn list(&self) -> Result<Vec<Peer>, Problem> {
        let consoles = Consoles { wire: self.wire.clone() };
        tokio::runtime::Handle::current().block_on(consoles.ask_grants());
        let peers = self.wire.peers().into_iter().map(|peer| {
            let used = Some(self.target.used_by(&peer.peer_id));
            Peer { used, ..self.bounded(peer) }
        });
        Ok(peers.collect())
    }
    fn invite(&self, request: InviteRequest) -> Answer<'_, Invite> {
        Box::pin(self.wire.invite(request))
    }
    fn join(&self, request: JoinRequest) -> Answer<'_, Peer> {
        Box::pin(self.wire.join(request))
    }
    fn grant<'a>(&'a self, name: &'a str, request: GrantRequest) -> Answer<'a, Peer> {
        Box::pin(async move { Ok(self.bounded(self.wire.grant(name, request).await?)) })
    }
    fn revoke<'a>(&'a self, name: &'a str) -> Answer<'a, Peer> {
        Box::pin(self.wire.revoke(name))
    }
    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(self.wire.remove(name))
    }
}

/// Hosts and what can be replicated from them.
pub struct Hosts {
    /// The registry.
    pub hosts: Arc<HostRegistry>,
    /// To name the jobs of a VM.
    pub jobs: Arc<JobManager>,
}

/// For a guest to shut down.
const SHUTDOWN: Duration = Duration::from_secs(300);
/// The longest that may be said.
const SHUTDOWN_MAX: Duration = Duration::from_secs(3600);

impl HostOrders for Hosts {
    fn list(&self) -> Result<Vec<Host>, Problem> {
        Ok(self.hosts.list())
    }
    fn add(&self, host: Host) -> Result<(Host, bool), Problem> {
        self.hosts.add(host).map_err(Problem::from)
    }
    fn remove(&self, name: &str) -> Result<(), Problem> {
        let used = |job: &Job| job.spec.vm.as_ref().is_some_and(|vm| vm.starts_with(&format!("{name}/")));
        if let Some(job) = self.jobs.list().into_iter().find(used) {
            return Err(Problem::conflict(
                format!("host {name} cannot be removed"),
                format!("job {} replicates a VM of it", job.spec.name),
                format!("remove the job first: vbrctl job remove {}", job.spec.name),
            ));
        }
        self.hosts.remove(name).map(|_| ()).map_err(Problem::from)
    }
    fn power(&self, request: &PowerRequest) -> Result<(), Problem> {
        let Some((host, vm)) = request.vm.split_once('/') else {
            let next = "write HOST/VM; vbrctl vm list shows them";
            return Err(Problem::invalid(format!("VM {:?}", request.vm), "that is no name of a VM", next));
        };
        let within = request.within_ms.map_or(SHUTDOWN, Duration::from_millis).min(SHUTDOWN_MAX);
        self.hosts.get(host)?.power(vm, request.power, within)?;
        tracing::warn!(vm = request.vm, power = ?request.power, "a VM was switched by order");
        Ok(())
    }
    fn vms(&self, host: Option<&str>) -> Result<Vec<Vm>, Problem> {
        let mut vms = Vec::new();
        match host {
            Some(name) => vms.extend(self.hosts.get(name)?.list()?),
            None => {
                for host in self.hosts.list() {
                    vms.extend(self.hosts.get(&host.name)?.list()?);
                }
            }
        }
        let jobs = self.jobs.list();
        for vm in &mut vms {
            let name = format!("{}/{}", vm.host, vm.name);
            let replicates = |job: &&Job| {
                job.spec.vm.as_ref() == Some(&name)
                    || job.spec.disks.iter().any(|disk| vm.disks.iter().any(|other| other.path == disk.path))
            };
            vm.jobs = jobs.iter().filter(replicates).map(|job| job.spec.name.clone()).collect();
        }
        Ok(vms)
    }
}

/// Jobs, sessions and repositories.
pub struct Jobs(pub Arc<JobManager>);

impl JobOrders for Jobs {
    fn create(&self, spec: JobSpec) -> Result<(Job, bool), Problem> {
        tokio::runtime::Handle::current().block_on(self.0.look_at_replica(&spec))?;
        self.0.create(spec)
    }
    fn list(&self) -> Result<Vec<Job>, Problem> {
        Ok(self.0.list())
    }
    fn show(&self, name: &str) -> Result<Job, Problem> {
        self.0.show(name)
    }
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<Job, Problem> {
        self.0.set_enabled(name, enabled)
    }
    fn edit(&self, name: &str, edit: JobEdit) -> Result<Job, Problem> {
        if let Some(spec) = self.0.newly_mapped(name, &edit)? {
            tokio::runtime::Handle::current().block_on(self.0.look_at_replica(&spec))?;
        }
        self.0.edit(name, edit)
    }
    fn remove(&self, name: &str) -> Result<(), Problem> {
        self.0.remove(name)
    }
    fn run<'a>(&'a self, name: &'a str, request: RunRequest) -> Answer<'a, Session> {
        let (jobs, name) = (self.0.clone(), name.to_string());
        Box::pin(async move {
            let started = tokio::task::spawn_blocking(move || jobs.run(&name, request)).await;
            started.unwrap_or_else(|e| Err(stopped(&e)))
        })
    }
    fn plan<'a>(&'a self, name: &'a str) -> Answer<'a, Plan> {
        Box::pin(self.0.plan(name))
    }
    fn seed(&self, name: &str, disk: u16) -> Result<Export, Problem> {
        let carried = self.0.carry(name, disk)?;
        Ok(Box::new(move |sink| carried.read(sink)))
    }
    fn history(&self, name: &str) -> Result<Vec<Session>, Problem> {
        self.0.history(name)
    }
    fn sessions(&self, job: Option<&str>, active: bool) -> Result<Vec<Session>, Problem> {
        Ok(self.0.sessions(job, active))
    }
    fn session(&self, id: &str) -> Result<Session, Problem> {
        self.0.session(id)
    }
    fn cancel(&self, id: &str) -> Result<Session, Problem> {
        tokio::runtime::Handle::current().block_on(self.0.cancel(id))
    }
    fn wait<'a>(&'a self, id: &'a str, at_most: Duration) -> Answer<'a, Session> {
        Box::pin(self.0.wait(id, at_most))
    }
    fn repositories(&self) -> Result<Vec<Repository>, Problem> {
        Ok(self.0.repositories())
    }
    fn repository(&self, job: &str) -> Result<Repository, Problem> {
        self.0.repository(job)
    }
    fn repository_verify<'a>(&'a self, job: &'a str) -> Answer<'a, RepositoryReport> {
        Box::pin(self.0.repository_verify(job))
    }
    fn repository_rebuild<'a>(&'a self, job: &'a str) -> Answer<'a, RepositoryReport> {
        Box::pin(self.0.repository_rebuild(job))
    }
}

fn stopped(error: &tokio::task::JoinError) -> Problem {
    Problem::new("internal", "a part of the order stopped", error.to_string(), "report this")
}
