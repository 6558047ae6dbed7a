//! The management API's orders, carried out by the real parts.
//!
//! Thin: each order is one call of the part that owns the matter.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{
    Host, Invite, InviteRequest, Job, JobEdit, JobSpec, JoinRequest, Moment, Peer, Plan, Removed, Replica,
    Repository, RepositoryReport, RestorePoint, RunRequest, Session, VerifyReport, Vm,
};

use crate::control::{
    Answer, Export, HostOrders, JobOrders, PeerOrders, PointRef, ReplicaOrders, ReplicaRef,
};
use crate::error::Problem;
use crate::host::HostRegistry;
use crate::job::{JobManager, TargetService};
use crate::repository::datastore::{Datastores, Point};
use crate::repository::{export, verify};
use crate::wire::Wire;

/// Pairing and peers.
pub struct Peers(pub Wire);

impl PeerOrders for Peers {
    fn list(&self) -> Result<Vec<Peer>, Problem> {
        Ok(self.0.peers())
    }
    fn invite(&self, request: InviteRequest) -> Answer<'_, Invite> {
        Box::pin(self.0.invite(request))
    }
    fn join(&self, request: JoinRequest) -> Answer<'_, Peer> {
        Box::pin(self.0.join(request))
    }
    fn revoke<'a>(&'a self, name: &'a str) -> Answer<'a, Peer> {
        Box::pin(self.0.revoke(name))
    }
    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(self.0.remove(name))
    }
}

/// Hosts and what can be replicated from them.
pub struct Hosts {
    /// The registry.
    pub hosts: Arc<HostRegistry>,
    /// To name the jobs of a VM.
    pub jobs: Arc<JobManager>,
}

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

/// Replicas and restore points kept here.
pub struct Replicas {
    /// The datastores.
    pub stores: Arc<Datastores>,
    /// Keeps the index of what restore points hold.
    pub target: Arc<TargetService>,
    /// For the keys of the domains that replicas belong to.
    pub wire: Wire,
}

impl Replicas {
    fn find(&self, name: &ReplicaRef) -> Result<Arc<crate::repository::datastore::Replica>, Problem> {
        self.stores.find(name.site.as_deref(), &name.name)
    }

    fn locate(&self, point: &PointRef) -> Result<Arc<Point>, Problem> {
        Ok(self.find(&point.replica)?.point(&point.point)?)
    }

    fn key(&self, point: &Point) -> Result<crate::block::DomainKey, Problem> {
        self.wire.domain_key(point.domain_tag()).ok_or_else(|| {
            Problem::new(
                "no_domain_key",
                format!("restore point {}", point.id()),
                "this site does not have the key of the domain that its replica belongs to",
                "restore domains.json of the state directory, or pair with the source again",
            )
        })
    }

    fn check(&self, point: &Arc<Point>) -> Result<VerifyReport, Problem> {
        let report = verify::verify(point, &self.key(point)?)?;
        point.mark_verified(report.ok, Moment::now())?;
        Ok(report)
    }
}

impl ReplicaOrders for Replicas {
    fn replicas(&self) -> Result<Vec<Replica>, Problem> {
        Ok(self.stores.replicas().iter().map(|replica| replica.meta()).collect())
    }
    fn replica(&self, replica: &ReplicaRef) -> Result<Replica, Problem> {
        Ok(self.find(replica)?.meta())
    }
    fn remove_replica(&self, replica: &ReplicaRef) -> Result<Removed, Problem> {
        let replica = self.find(replica)?;
        let removed = self.stores.remove(&replica)?;
        self.target.reindex();
        Ok(Removed { removed })
    }
    fn verify_replica(&self, replica: &ReplicaRef) -> Result<Vec<VerifyReport>, Problem> {
        self.find(replica)?.points().iter().map(|point| self.check(point)).collect()
    }
    fn points(&self, replica: Option<&ReplicaRef>) -> Result<Vec<RestorePoint>, Problem> {
        let replicas = match replica {
            Some(name) => vec![self.find(name)?],
            None => self.stores.replicas(),
        };
        Ok(replicas.iter().flat_map(|replica| replica.points()).map(|point| point.meta()).collect())
    }
    fn point(&self, point: &PointRef) -> Result<RestorePoint, Problem> {
        Ok(self.locate(point)?.meta())
    }
    fn remove_point(&self, point: &PointRef) -> Result<Removed, Problem> {
        let replica = self.find(&point.replica)?;
        let id = replica.point(&point.point)?.id().to_string();
        replica.retire(&id)?;
        Ok(Removed { removed: vec![id] })
    }
    fn verify_point(&self, point: &PointRef) -> Result<VerifyReport, Problem> {
        self.check(&self.locate(point)?)
    }
    fn export(&self, point: &PointRef, disk: u16) -> Result<Export, Problem> {
        let point = self.locate(point)?;
        let key = self.key(&point)?;
        if usize::from(disk) >= point.disks()?.len() {
            return Err(Problem::not_found(
                format!("disk {disk} of restore point {}", point.id()),
                "vbrctl restore-point show tells how many disks it has; they count from 0",
            ));
        }
        let lease = point.lease()?;
        Ok(Box::new(move |sink| {
            let _lease = lease;
            export::export(&point, disk, &key, sink).map_err(Problem::from)
        }))
    }
}
