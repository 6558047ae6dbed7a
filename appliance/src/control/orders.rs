//! What the management API can order, as traits. The composition root implements them with the real
//! jobs, wire, hosts and repository; tests implement them with nothing behind.
//!
//! Plain functions block and are called on blocking threads; those that answer an [`Answer`] are
//! asynchronous.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use vbr_api::{
    BootTest, CacheStats, Check, ConfigView, FailbackRequest, Failover, FailoverRequest, GrantRequest, Host,
    Invite, InviteRequest, Job, JobEdit, JobLogEntry, JobLogQuery, JobSpec, JoinRequest, NotifyHook, Peer,
    PinRequest, Plan, PlannedRequest, PowerRequest, Removed, Replica, Repository, RepositoryReport,
    RestorePoint, Rotation, RunRequest, Session, StateSummary, Status, Task, TestRequest, Throttle,
    ThrottleSpec, Throttles, VerifyReport, Vm, WarmRequest, Warming,
};

use super::reference::{PointRef, ReplicaRef};
use crate::block::BlockRead;
use crate::error::Problem;

/// An asynchronous answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send + 'a>>;
/// Takes the data of an export, in ascending order; an error stops the export.
pub type ExportSink<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;
/// Reads one disk of a restore point, verifying each chunk, and answers the disk's exact length.
/// It keeps the point from retiring for as long as it lives.
pub type Export = Box<dyn FnOnce(&mut ExportSink<'_>) -> Result<u64, Problem> + Send>;

/// The site as a whole.
pub trait SiteOrders: Send + Sync {
    /// `GET /v1/status`
    fn status(&self) -> Result<Status, Problem>;
    /// `GET /v1/config`
    fn config(&self) -> Result<ConfigView, Problem>;
    /// `GET /v1/cache`
    fn cache(&self) -> Result<CacheStats, Problem>;
    /// `GET /v1/metrics`
    fn metrics(&self) -> Result<String, Problem>;
}

/// What commonly goes wrong, as vbrd sees it: it is another user than whoever asks, in a sandbox of its own.
pub trait DoctorOrders: Send + Sync {
    /// Looks at everything.
    fn examine(&self) -> Result<Vec<Check>, Problem>;
    /// Whether vbrd can read these images and devices.
    fn try_disks(&self, disks: &[String]) -> Result<Vec<Check>, Problem>;
}

/// Pairing and peers.
pub trait PeerOrders: Send + Sync {
    /// All peers, by name.
    fn list(&self) -> Result<Vec<Peer>, Problem>;
    /// A new single-use code.
    fn invite(&self, request: InviteRequest) -> Answer<'_, Invite>;
    /// Pairs with whoever made the code.
    fn join(&self, request: JoinRequest) -> Answer<'_, Peer>;
    /// Sets what the peer may fill here.
    fn grant<'a>(&'a self, name: &'a str, request: GrantRequest) -> Answer<'a, Peer>;
    /// Takes every right and cuts live connections.
    fn revoke<'a>(&'a self, name: &'a str) -> Answer<'a, Peer>;
    /// Forgets the peer.
    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()>;
}

/// An order for another site, or of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteOrder {
    /// As in HTTP.
    pub method: String,
    /// With its query.
    pub path: String,
    /// JSON, or nothing.
    pub body: Vec<u8>,
    /// Who gave it at the site that it comes from, as that site says.
    pub user: Option<String>,
}

/// The answer to a [`RemoteOrder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteAnswer {
    /// As in HTTP.
    pub status: u16,
    /// Of the body.
    pub content_type: String,
    /// Whole.
    pub body: Vec<u8>,
}

/// Other sites.
pub trait ConsoleOrders: Send + Sync {
    /// Has a peer carry out an order. What the peer refuses is an answer; a problem is one of the way there.
    fn forward<'a>(&'a self, site: &'a str, order: RemoteOrder) -> Answer<'a, RemoteAnswer>;
}

/// The life of the site: its key, its successors, its state.
pub trait LifeOrders: Send + Sync {
    /// How far a change of the key pair has got.
    fn rotation(&self) -> Result<Rotation, Problem>;
    /// Begins one, or goes on with it.
    fn rotate(&self) -> Answer<'_, Rotation>;
    /// Gives it up, while the old key is in use.
    fn cancel_rotation(&self) -> Result<Rotation, Problem>;
    /// One peer takes the place of another.
    fn replace<'a>(&'a self, old: &'a str, new: &'a str) -> Answer<'a, Peer>;
    /// Keys, peers, jobs, hosts and rules, sealed under a passphrase.
    fn export_state(&self, passphrase: &str) -> Result<Vec<u8>, Problem>;
    /// Takes them over; acts after the restart that follows by itself.
    fn import_state(&self, passphrase: &str, state: &[u8], replace: bool) -> Result<StateSummary, Problem>;
}

/// Hosts.
pub trait HostOrders: Send + Sync {
    /// All hosts, `local` included.
    fn list(&self) -> Result<Vec<Host>, Problem>;
    /// True: new. False: it existed with the same definition.
    fn add(&self, host: Host) -> Result<(Host, bool), Problem>;
    /// Forgets the host; `local` stays.
    fn remove(&self, name: &str) -> Result<(), Problem>;
    /// What can be replicated, of one host or of all.
    fn vms(&self, host: Option<&str>) -> Result<Vec<Vm>, Problem>;
    /// Shuts a VM down, starts it again or switches it off.
    fn power(&self, request: &PowerRequest) -> Result<(), Problem>;
}

/// Jobs, sessions and the source's repositories.
pub trait JobOrders: Send + Sync {
    /// True: new. False: it existed with the same definition.
    fn create(&self, spec: JobSpec) -> Result<(Job, bool), Problem>;
    /// All jobs, by name.
    fn list(&self) -> Result<Vec<Job>, Problem>;
    /// One job.
    fn show(&self, name: &str) -> Result<Job, Problem>;
    /// Enables or disables.
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<Job, Problem>;
    /// Changes what is named of the definition.
    fn edit(&self, name: &str, edit: JobEdit) -> Result<Job, Problem>;
    /// Forgets the definition; replicas stay.
    fn remove(&self, name: &str) -> Result<(), Problem>;
    /// Starts a session; the running one where there is one.
    fn run<'a>(&'a self, name: &'a str, request: RunRequest) -> Answer<'a, Session>;
    /// A dry run.
    fn plan<'a>(&'a self, name: &'a str) -> Answer<'a, Plan>;
    /// Reads one of its disks as its first run would.
    fn seed(&self, name: &str, disk: u16) -> Result<Export, Problem>;
    /// Finished sessions, newest first.
    fn history(&self, name: &str) -> Result<Vec<Session>, Problem>;
    /// Sessions, of one job or all; `active`: those that are not over.
    fn sessions(&self, job: Option<&str>, active: bool) -> Result<Vec<Session>, Problem>;
    /// One session, running or past.
    fn session(&self, id: &str) -> Result<Session, Problem>;
    /// Stops a session for good.
    fn cancel(&self, id: &str) -> Result<Session, Problem>;
    /// Answers when the session changed or the time is over.
    fn wait<'a>(&'a self, id: &'a str, at_most: Duration) -> Answer<'a, Session>;
    /// What is known here of the jobs' replicas.
    fn repositories(&self) -> Result<Vec<Repository>, Problem>;
    /// The same of one job.
    fn repository(&self, job: &str) -> Result<Repository, Problem>;
    /// Checks the manifests and compares them with the target's last point.
    fn repository_verify<'a>(&'a self, job: &'a str) -> Answer<'a, RepositoryReport>;
    /// Fetches the manifests from the target again.
    fn repository_rebuild<'a>(&'a self, job: &'a str) -> Answer<'a, RepositoryReport>;
}

/// What the site does by itself.
pub trait HousekeepingOrders: Send + Sync {
    /// All background workers, by name.
    fn tasks(&self) -> Result<Vec<Task>, Problem>;
    /// One of them.
    fn task(&self, name: &str) -> Result<Task, Problem>;
    /// Lets one run now.
    fn run_task(&self, name: &str) -> Result<Task, Problem>;
    /// What happened to a job, oldest first.
    fn job_log(&self, name: &str, query: &JobLogQuery) -> Result<Vec<JobLogEntry>, Problem>;
    /// Who is told of what, by name.
    fn hooks(&self) -> Result<Vec<NotifyHook>, Problem>;
    /// Tells one of them for nothing.
    fn test_hook(&self, name: &str) -> Result<NotifyHook, Problem>;
}

/// Throttling rules.
pub trait ThrottleOrders: Send + Sync {
    /// All rules, and what they come to.
    fn list(&self) -> Result<Throttles, Problem>;
    /// True: new. False: a rule of that name was replaced, or was the same.
    fn set(&self, spec: ThrottleSpec) -> Answer<'_, (Throttle, bool)>;
    /// Forgets one rule, or all; answers their names.
    fn clear(&self, name: Option<String>) -> Answer<'_, Vec<String>>;
}

/// Images and restore points whose chunks are to count as known.
pub trait WarmOrders: Send + Sync {
    /// Orders one; the one that is under way for the same is given back.
    fn order(&self, request: WarmRequest) -> Result<Warming, Problem>;
    /// All that are remembered, in order of the orders.
    fn list(&self) -> Result<Vec<Warming>, Problem>;
    /// Answers when its state changed or the time is over.
    fn wait<'a>(&'a self, id: &'a str, at_most: Duration) -> Answer<'a, Warming>;
    /// Ends one.
    fn cancel(&self, id: &str) -> Result<Warming, Problem>;
}

/// Replicas that are started here.
pub trait FailoverOrders: Send + Sync {
    /// Every replica, and what runs of it.
    fn list(&self) -> Result<Vec<Failover>, Problem>;
    /// One replica.
    fn show(&self, replica: &ReplicaRef) -> Result<Failover, Problem>;
    /// Starts the VM from a restore point.
    fn start(&self, point: &PointRef, request: &FailoverRequest) -> Result<Failover, Problem>;
    /// Starts a restore point for a test; `stopped`: vbrd stops.
    fn test(
        &self,
        point: &PointRef,
        request: &TestRequest,
        stopped: &dyn Fn() -> bool,
    ) -> Result<BootTest, Problem>;
    /// Moves the VM here in order: the last changes first, then the start.
    fn planned<'a>(&'a self, request: PlannedRequest) -> Answer<'a, Failover>;
    /// Brings the VM back to the site that it came from: the last changes first, then the start there.
    fn fail_back<'a>(&'a self, request: FailbackRequest) -> Answer<'a, Failover>;
    /// The VM is here again; `force`: also where that site cannot be asked.
    fn undo_failback<'a>(&'a self, replica: ReplicaRef, force: bool) -> Answer<'a, Failover>;
    /// The VM stays there, and the replica is one again.
    fn commit_failback<'a>(&'a self, replica: ReplicaRef) -> Answer<'a, Failover>;
    /// Ends either; what was written is thrown away.
    fn undo(&self, replica: &ReplicaRef) -> Result<Failover, Problem>;
    /// The VM stays here for good.
    fn commit(&self, replica: &ReplicaRef) -> Result<Failover, Problem>;
}

/// Replicas and restore points kept at this site.
pub trait ReplicaOrders: Send + Sync {
    /// All replicas.
    fn replicas(&self) -> Result<Vec<Replica>, Problem>;
    /// One replica.
    fn replica(&self, replica: &ReplicaRef) -> Result<Replica, Problem>;
    /// Removes a replica with all its points.
    fn remove_replica(&self, replica: &ReplicaRef) -> Result<Removed, Problem>;
    /// Verifies every point.
    fn verify_replica(&self, replica: &ReplicaRef) -> Result<Vec<VerifyReport>, Problem>;
    /// Points of one replica or of all, oldest first.
    fn points(&self, replica: Option<&ReplicaRef>) -> Result<Vec<RestorePoint>, Problem>;
    /// One point.
    fn point(&self, point: &PointRef) -> Result<RestorePoint, Problem>;
    /// Removes a point; `force`: although retention would keep it.
    fn remove_point(&self, point: &PointRef, force: bool) -> Result<Removed, Problem>;
    /// Keeps a point from being removed.
    fn pin_point(&self, point: &PointRef, request: PinRequest) -> Result<RestorePoint, Problem>;
    /// Takes the pin off.
    fn unpin_point(&self, point: &PointRef) -> Result<RestorePoint, Problem>;
    /// Reads and re-hashes a point.
    fn verify_point(&self, point: &PointRef) -> Result<VerifyReport, Problem>;
    /// Opens a disk of a point for reading.
    fn export(&self, point: &PointRef, disk: u16) -> Result<Export, Problem>;
    /// Opens it for reading at any offset, verified; the point is held until it is dropped.
    fn read_disk(&self, point: &PointRef, disk: u16) -> Result<Box<dyn BlockRead>, Problem>;
}
