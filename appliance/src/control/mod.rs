//! The management API: HTTP + JSON on a unix socket. Requests become orders; answers become JSON.
//!
//! ```text
//! socket   the unix sockets: permissions, stale files, who is at the other end
//! access   who may order, who may look: by socket, and by what the kernel says of the caller
//! routes   the one table of routes, and the OpenAPI document that describes each of them
//! site, doctor, peers, hosts, jobs, sessions, repositories, replicas, points, failovers, throttle, housekeeping, life, warm   the handlers, one noun a file
//! remote   orders for other sites, and orders of peers: what a remote console may do
//! audit    every order that changes something, with its caller and its outcome
//! orders   what the rest of vbrd must be able to do, as traits: the handlers know nothing else
//! export   the stream that carries a restore point's disk to the console
//! nbd      the same disk for a client that reads it at any offset
//! ```
//!
//! Owns no state besides the socket and the audit log: an order is carried out by whoever owns the thing. Not its job:
//! deciding whether an order makes sense (jobs, repository and wire do), progress bars, file paths
//! of the caller. Everything an order may block on runs on blocking threads.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, request bodies of [`BODY_BYTES_MAX`], [`HEAVY_ORDERS_MAX`]
//! verifications and exports at once (more wait), [`nbd::NBD_CONNECTIONS_MAX`] disks read over NBD, long polls of [`WAIT_MAX`].

mod access;
mod audit;
mod doctor;
mod export;
mod failbacks;
mod failovers;
mod hosts;
mod housekeeping;
mod jobs;
mod life;
mod nbd;
pub mod orders;
mod peers;
mod points;
mod reference;
mod remote;
mod replicas;
mod reply;
mod repositories;
mod routes;
mod sessions;
mod site;
mod socket;
mod throttle;
mod warm;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use audit::AuditLog;
pub use orders::{
    Answer, ConsoleOrders, DoctorOrders, Export, ExportSink, FailoverOrders, HostOrders, HousekeepingOrders,
    JobOrders, LifeOrders, PeerOrders, RemoteAnswer, RemoteOrder, ReplicaOrders, SiteOrders, ThrottleOrders,
    WarmOrders,
};
pub use reference::{PointRef, ReplicaRef};
pub use remote::{Remote, RemoteConsole};
pub use routes::openapi;
pub use socket::{ControlSocket, SocketError};

use crate::error::Problem;

/// Connections served at once; more wait in the socket's backlog.
pub const CONNECTIONS_MAX: usize = 128;
/// Largest request body.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// Largest body that carries the state of a site.
pub const STATE_BYTES_MAX: usize = 24 * 1024 * 1024;
/// Verifications and exports that run at once; more wait.
pub const HEAVY_ORDERS_MAX: usize = 4;
/// Longest `wait_ms` of a long poll.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Who carries out which orders; each as [`Api`] has it.
pub struct Orders {
    pub site: Arc<dyn SiteOrders>,
    pub peers: Arc<dyn PeerOrders>,
    pub hosts: Arc<dyn HostOrders>,
    pub jobs: Arc<dyn JobOrders>,
    pub replicas: Arc<dyn ReplicaOrders>,
    pub throttle: Arc<dyn ThrottleOrders>,
    pub housekeeping: Arc<dyn HousekeepingOrders>,
    /// What counts as known.
    pub warmings: Arc<dyn WarmOrders>,
    /// What commonly goes wrong.
    pub doctor: Arc<dyn DoctorOrders>,
    /// Replicas that are started here.
    pub failovers: Arc<dyn FailoverOrders>,
}

/// Who carries out the orders.
#[derive(Clone)]
pub struct Api {
    /// Status, configuration, cache.
    pub site: Arc<dyn SiteOrders>,
    /// Pairing and peers.
    pub peers: Arc<dyn PeerOrders>,
    /// Hosts and what can be replicated from them.
    pub hosts: Arc<dyn HostOrders>,
    /// Jobs, sessions and the source's repositories.
    pub jobs: Arc<dyn JobOrders>,
    /// Replicas and restore points kept here.
    pub replicas: Arc<dyn ReplicaOrders>,
    /// Throttling rules.
    pub throttle: Arc<dyn ThrottleOrders>,
    /// Background workers.
    pub housekeeping: Arc<dyn HousekeepingOrders>,
    /// Hands orders on to other sites; none: there are no other sites.
    pub console: Option<Arc<dyn ConsoleOrders>>,
    /// Keys, replacement and state of the site; none: not offered.
    pub life: Option<Arc<dyn LifeOrders>>,
    /// Where orders are entered; none: nowhere.
    pub audit: Option<Arc<AuditLog>>,
    /// What counts as known.
    pub warmings: Arc<dyn WarmOrders>,
    /// What commonly goes wrong.
    pub doctor: Arc<dyn DoctorOrders>,
    /// Replicas that are started here.
    pub failovers: Arc<dyn FailoverOrders>,
    refusals: Arc<access::Refusals>,
    shutdown: CancellationToken,
    heavy: Arc<Semaphore>,
    disk_readers: Arc<Semaphore>,
}

impl Api {
    /// `shutdown` ends long polls early.
    pub fn new(orders: Orders, shutdown: CancellationToken) -> Self {
        let heavy = Arc::new(Semaphore::new(HEAVY_ORDERS_MAX));
        let disk_readers = Arc::new(Semaphore::new(nbd::NBD_CONNECTIONS_MAX));
        let Orders {
            site,
            peers,
            hosts,
            jobs,
            replicas,
            throttle,
            housekeeping,
            warmings,
            doctor,
            failovers,
        } = orders;
        let (console, life, audit) = (None, None, None);
        Self {
            site,
            peers,
            hosts,
            jobs,
            replicas,
            throttle,
            housekeeping,
            warmings,
            doctor,
            failovers,
            refusals: Arc::default(),
            console,
            life,
            audit,
            shutdown,
            heavy,
            disk_readers,
        }
    }

    /// The router with all routes and bounds.
    pub fn router(self) -> axum::Router {
        routes::router()
            .layer(from_fn_with_state(self.clone(), remote::admit))
            .layer(from_fn_with_state(self.clone(), audit::record))
            .layer(from_fn_with_state(self.clone(), access::guard))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }
}

/// Takes the socket that orders come in at. Refuses where another vbrd answers on it.
pub fn bind(path: &Path) -> Result<ControlSocket, SocketError> {
    socket::bind(path)
}

/// Takes the socket beside it, for those who may only look; none where the group of those does not exist.
pub fn bind_view(path: &Path) -> Result<Option<ControlSocket>, SocketError> {
    match access::Groups::of_system().view {
        Some(_) => socket::bind_view(&access::view_path(path)).map(Some),
        None => Ok(None),
    }
}

/// Serves until `shutdown`; requests under way are finished first.
pub async fn serve(api: Api, socket: ControlSocket) -> std::io::Result<()> {
    let shutdown = api.shutdown.clone();
    socket.serve(api.router(), shutdown).await
}

/// Serves the metrics on a port of this machine, for a Prometheus that cannot read the socket.
pub async fn serve_metrics(api: Api, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    site::serve_metrics(api, listener).await
}

/// Carries out a blocking order.
async fn blocking<T: Send + 'static>(
    order: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(order).await {
        Ok(answer) => answer,
        Err(error) => Err(Problem::new(
            "internal",
            "the order was given up",
            error.to_string(),
            "look at the log of vbrd and report this as a bug",
        )),
    }
}

#[cfg(test)]
mod tests;
