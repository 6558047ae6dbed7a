//! The composition root: opens every part in order, joins them, stops them in reverse.
//!
//! Order of opening: state directory (locked), management socket (bound, not served yet), database, cache,
//! datastores, hosts, wire, target service, jobs, management API. Nothing here decides anything about data.
//!
//! Every task runs under one of two trackers: `tasks` ends with the order to stop, the wire's own
//! afterwards, because sessions that drain still talk. Blocking steps run on blocking threads, so that the
//! event loop feeds the watchdog meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::Moment;

use super::booting::BootTests;
use super::consoles::Consoles;
use super::doctor::Doctor;
use super::failovers::FailingOver;
use super::housekeeping::{Housekeeping, Kept};
use super::life::{Life, Restart};
use super::orders::{Hosts, Jobs, Peers};
use super::remote::RemoteCalls;
use super::replicas::Replicas;
use super::site::{Site, SiteParts};
use super::state_dir::{StateDir, private_dir};
use super::state_move;
use super::stores::{Stores, open_stores};
use super::throttle::Throttling;
use super::warm::WarmingOrders;
use crate::accelerator::shared_filter::SharedFilters;
use crate::config::{Config, Congestion, Overrides, Transport};
use crate::control::{self, Api, ControlSocket, Orders, RemoteConsole};
use crate::error::Problem;
use crate::failover::Failovers;
use crate::job::{JobManager, SourceStores, SourceWaits, StallBounds, TargetService, Warmings};
use crate::limits::SOURCE_SESSIONS_MAX;
use crate::notify::Notifier;
use crate::repository::datastore::Datastores;
use crate::repository::source::SourceRepository;
use crate::schedule::resources::Bounds;
use crate::telemetry::logs::LogHandle;
use crate::wire::{Dialect, Incoming, TransportKind, Wire, WireConfig};
use crate::worker::Workers;

/// A running vbrd.
pub struct Appliance {
    config: Arc<std::sync::Mutex<Config>>,
    wire: Wire,
    target: Arc<TargetService>,
    jobs: Arc<JobManager>,
    tasks: TaskTracker,
    stop: CancellationToken,
    wire_tasks: TaskTracker,
    wire_stop: CancellationToken,
    api: tokio::task::JoinHandle<std::io::Result<()>>,
    restart: Restart,
    _state: StateDir,
}

impl Appliance {
    /// Opens everything and begins to serve.
    pub async fn start(config: Config) -> Result<Self, Problem> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (wire_tasks, wire_stop) = (TaskTracker::new(), CancellationToken::new());
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(version, site = %config.site, state = %config.state.display(), "starting");
        let opening = config.clone();
        let state = blocking("opening the state directory", move || open_directories(&opening)).await?;
        // Before anything is opened: two of them on one socket must not get any further.
        let (socket, view) = (control::bind(&config.socket)?, control::bind_view(&config.socket)?);
        let metrics = bind_metrics(config.metrics).await?;
        let opening = config.clone();
        let stores = blocking("opening the stores", move || open_stores(state, &opening)).await?;
        let (wire, incoming) =
            Wire::start(wire_config(&config, &stores)?, wire_tasks.clone(), wire_stop.clone())
                .await
                .map_err(|e| e.problem("start the wire"))?;
        let warmings = stores.warmings(&tasks, &stop);
        let target = target_service(&stores, &warmings, &config, (&tasks, &stop));
        let (to_target, for_target) = mpsc::channel(1);
        tasks.spawn(target.clone().serve(for_target));
        let workers = Workers::new(Some(stores.database.clone()));
        target.tend_retention(&workers);
        target.tend_indexes(stores.state.join("blocks"), &workers);
        target.tend_points(&workers);
        let notifier = Notifier::start(&config.site, &config.notify, &workers, &tasks, &stop);
        let source = source_stores(&config, &stores, &workers, &notifier);
        let jobs = start_jobs(&stores, source, &wire, &tasks, &stop).await?;
        kept(&stores, &wire, &jobs, &target).tend(&config, &workers, &tasks, &stop);
        begin_warming(&warmings, &target, &jobs, &wire, &tasks);
        let config = Arc::new(std::sync::Mutex::new(config));
        let site = Arc::new(Site::new(SiteParts {
            config: config.clone(),
            wire: wire.clone(),
            jobs: jobs.clone(),
            target: target.clone(),
            stores: stores.datastores.clone(),
            cache: stores.cache.clone(),
            shared: stores.shared.clone(),
            database: stores.database.clone(),
            workers: workers.clone(),
            started_at: Moment::now(),
        }));
        let datastores = stores.datastores.clone();
        let failovers =
            failing_over(&lock(&config), &stores, &target, &jobs, &wire, (&workers, &tasks, &stop));
        let throttle = Throttling {
            rules: stores.throttle,
            wire: wire.clone(),
            config: config.clone(),
            turn: tokio::sync::Mutex::default(),
        };
        let orders = Orders {
            doctor: Arc::new(Doctor { site: site.clone() }),
            site,
            peers: Arc::new(Peers { wire: wire.clone(), target: target.clone() }),
            hosts: Arc::new(Hosts { hosts: stores.hosts, jobs: jobs.clone() }),
            jobs: Arc::new(Jobs(jobs.clone())),
            replicas: replicas(stores.datastores, &target, &wire),
            throttle: Arc::new(throttle),
            housekeeping: Arc::new(Housekeeping { workers, jobs: jobs.clone(), notifier }),
            warmings: Arc::new(WarmingOrders { warmings, wire: wire.clone() }),
            failovers,
        };
        let life = Life::new(wire.clone(), target.clone(), jobs.clone(), config.clone());
        let mut api = Api::new(orders, stop.clone());
        api.audit = Some(stores.audit);
        let restart = join_sites(&mut api, life, (incoming, to_target), (&tasks, &stop));
        let path = socket.path().to_owned();
        if let Some(listener) = metrics {
            tasks.spawn(serve_metrics(api.clone(), listener));
        }
        tasks.spawn(serve_view(api.clone(), view));
        let api = tasks.spawn(control::serve(api, socket));
        announce(&datastores, &jobs);
        tracing::info!(socket = %path.display(), peer_id = %wire.peer_id(), listeners = ?wire.listeners(), "ready");
        let _state = stores.state;
        Ok(Self { config, wire, target, jobs, tasks, stop, wire_tasks, wire_stop, api, restart, _state })
    }

    /// One line for `systemctl status`.
    pub fn status_line(&self) -> String {
        let sessions = self.jobs.sessions(None, true).len();
        let peers = self.wire.peers();
        let connected = peers.iter().filter(|peer| peer.connected).count();
        format!("{connected} of {} peers connected, {sessions} sessions", peers.len())
    }

    /// Reads the configuration again and applies what can be applied while running.
    pub fn reload(&self, overrides: &Overrides, log: &LogHandle) {
        let new = match Config::load(overrides) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "the configuration was not reloaded; the old one stays");
                return;
            }
        };
        if let Err(error) = log.set_level(&new.log.level) {
            tracing::error!(%error, "the log level stays");
        }
        self.target.set_min_age(new.retention_min_age);
        self.target.quotas().set_site(new.quota);
        let (wire, rate) = (self.wire.clone(), new.wire.rate_bps);
        self.tasks.spawn(async move { wire.set_rate(rate).await });
        let mut current = lock(&self.config);
        let restart = current.needs_restart(&new);
        // Only what is in effect: `config show` must not promise the rest.
        current.log.level = new.log.level;
        current.wire.rate_bps = new.wire.rate_bps;
        current.retention_min_age = new.retention_min_age;
        current.quota = new.quota;
        drop(current);
        for key in restart {
            tracing::warn!(key, "changed in the configuration; takes effect when vbrd is restarted");
        }
        tracing::info!("configuration reloaded");
    }

    /// What tells that vbrd is to stop and start again.
    pub fn restart(&self) -> Restart {
        self.restart.clone()
    }

    /// Resolves when a part that everything needs has failed.
    pub async fn failed(&mut self) -> Problem {
        let why = match (&mut self.api).await {
            Ok(Ok(())) => "it ended".to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Problem::new("internal", "the management API stopped", why, "restart vbrd; report this if it recurs")
    }

    /// Stops: sessions first, each at a durable cursor, and the API; then the wire they talk over.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.wire_stop.cancel();
        self.wire_tasks.close();
        self.wire_tasks.wait().await;
    }
}

/// What sites do for each other: orders of consoles, both ways, and changes of keys. Takes what the wire brings in, and
/// hands on the rest: one place is enough, the wire's own queue is before it.
fn join_sites(
    api: &mut Api,
    life: Arc<Life>,
    (incoming, to_target): (mpsc::Receiver<Incoming>, mpsc::Sender<Incoming>),
    (tasks, stop): (&TaskTracker, &CancellationToken),
) -> Restart {
    let (wire, restart) = (life.wire.clone(), life.restart.clone());
    tasks.spawn(life.clone().tend_rotation(stop.clone()));
    tasks.spawn(Consoles { wire: wire.clone() }.tend_grants(stop.clone()));
    api.console = Some(Arc::new(Consoles { wire: wire.clone() }));
    api.life = Some(life);
    let remote = RemoteCalls::new(RemoteConsole::new(api.clone()), wire, tasks.clone(), stop.clone());
    tasks.spawn(remote.serve(incoming, to_target));
    restart
}

/// The port for metrics, if there is to be one.
async fn bind_metrics(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Problem> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(Problem::new(
            "metrics",
            format!("the metrics cannot be served at {address}"),
            error.to_string(),
            "name a free port in metrics.listen, or leave it out",
        )),
    }
}

async fn serve_view(api: Api, socket: Option<ControlSocket>) {
    let Some(socket) = socket else { return };
    if let Err(error) = control::serve(api, socket).await {
        tracing::error!(%error, "questions are not answered any more at the socket for those who may only look");
    }
}

async fn serve_metrics(api: Api, listener: TcpListener) {
    if let Err(error) = control::serve_metrics(api, listener).await {
        tracing::error!(%error, "the metrics are not served any more");
    }
}

fn replicas(stores: Arc<Datastores>, target: &Arc<TargetService>, wire: &Wire) -> Arc<Replicas> {
    Arc::new(Replicas { target: target.clone(), stores, wire: wire.clone() })
}

fn failing_over(
    config: &Config,
    stores: &Stores,
    target: &Arc<TargetService>,
    jobs: &Arc<JobManager>,
    wire: &Wire,
    (workers, tasks, stop): (&Workers, &TaskTracker, &CancellationToken),
) -> Arc<FailingOver> {
    let (stores, hosts) = (stores.datastores.clone(), stores.hosts.clone());
    let failing_over = FailingOver {
        failovers: Failovers::new(stores.clone(), config.failover.clone()),
        stores,
        target: target.clone(),
        consoles: Arc::new(Consoles { wire: wire.clone() }),
        jobs: jobs.clone(),
        hosts,
        soon: Arc::default(),
        tasks: tasks.clone(),
    };
    failing_over.tend(workers, stop);
    let (failovers, stores) = (failing_over.failovers.clone(), failing_over.stores.clone());
    BootTests { failovers, stores }.tend(&config.failover, workers, tasks, stop);
    Arc::new(failing_over)
}

fn source_stores(
    config: &Config,
    stores: &Stores,
    workers: &Arc<Workers>,
    notifier: &Arc<Notifier>,
) -> SourceStores {
    SourceStores {
        repository: Arc::new(SourceRepository::new(stores.database.clone())),
        anchors: stores.anchors.clone(),
        filters: Arc::new(SharedFilters::new(stores.state.join("filters"))),
        cache: stores.cache.clone(),
        keep_sent: config.accelerator.keep_sent,
        look_for_bases: config.accelerator.bases,
        window: config.window.clone(),
        waits: source_waits(config),
        slots: slots(config),
        latency_ceiling: config.resources.latency_ceiling,
        workers: workers.clone(),
        notifier: notifier.clone(),
        history: config.history,
    }
}

fn kept(stores: &Stores, wire: &Wire, jobs: &Arc<JobManager>, target: &Arc<TargetService>) -> Kept {
    let (cache, stores) = (stores.cache.clone(), stores.datastores.clone());
    Kept { cache, stores, wire: wire.clone(), jobs: jobs.clone(), target: target.clone() }
}

async fn start_jobs(
    stores: &Stores,
    source: SourceStores,
    wire: &Wire,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Arc<JobManager>, Problem> {
    let (directory, database) = (stores.state.join("jobs"), stores.database.clone());
    let (wire, hosts, tasks, stop) = (wire.clone(), stores.hosts.clone(), tasks.clone(), stop.clone());
    let start = move || JobManager::start(&directory, database, source, wire, hosts, tasks, stop);
    blocking("starting the jobs", start).await
}

fn source_waits(config: &Config) -> SourceWaits {
    let stall = StallBounds { warning: config.waits.stall_warning, cut: config.waits.stall_cut };
    SourceWaits { link: config.waits.link, stall }
}

fn slots(config: &Config) -> Bounds {
    Bounds {
        site: SOURCE_SESSIONS_MAX as u32,
        host: config.resources.host_slots,
        link: config.resources.link_slots,
        datastore: config.resources.datastore_slots,
    }
}

/// Warming gives way to sessions, and goes on with what an earlier vbrd began.
fn target_service(
    stores: &Stores,
    warmings: &Arc<Warmings>,
    config: &Config,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) -> Arc<TargetService> {
    let target = TargetService::new(
        stores.cache.clone(),
        stores.blocks.clone(),
        stores.shared.clone(),
        warmings.clone(),
        config.retention_min_age,
        tasks.clone(),
        stop.clone(),
    );
    target.quotas().set_site(config.quota);
    target
}

fn begin_warming(
    warmings: &Arc<Warmings>,
    target: &Arc<TargetService>,
    jobs: &Arc<JobManager>,
    wire: &Wire,
    tasks: &TaskTracker,
) {
    let (target, jobs, wire) = (target.clone(), jobs.clone(), wire.clone());
    warmings.give_way(move || target.is_receiving() || !jobs.sessions(None, true).is_empty());
    tasks.spawn(warmings.clone().tend());
    let warmings = warmings.clone();
    tasks.spawn_blocking(move || warmings.resume(|tag| wire.domain_key(tag)));
}

/// What the log should know from the beginning.
fn announce(datastores: &Datastores, jobs: &JobManager) {
    for store in datastores.status() {
        tracing::info!(
            name = store.name,
            path = store.path,
            backend = store.backend,
            free = store.free_bytes,
            "datastore"
        );
    }
    for warning in datastores.warnings().into_iter().chain(jobs.warnings()) {
        tracing::warn!(next_step = warning.next_step, "{}", warning.what);
    }
}

/// Runs something that waits for the disk on a blocking thread.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|e| Err(Problem::new("internal", what, e.to_string(), "report this with the log")))
}

/// Makes the directories that this vbrd needs, and takes the state directory.
fn open_directories(config: &Config) -> Result<StateDir, Problem> {
    let state = StateDir::open(&config.state)?;
    state_move::apply(&config.state)?;
    private_dir(&config.runtime, "the runtime directory")?;
    if let Some(parent) = config.socket.parent().filter(|parent| !parent.exists()) {
        private_dir(parent, "the directory of the socket")?;
    }
    Ok(state)
}

/// The configuration's lock, whatever happened to a thread that held it.
pub(super) fn lock(config: &std::sync::Mutex<Config>) -> std::sync::MutexGuard<'_, Config> {
    config.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn wire_config(config: &Config, stores: &Stores) -> Result<WireConfig, Problem> {
    let state = &stores.state;
    Ok(WireConfig {
        key_file: state.join("key"),
        peers_file: state.join("peers.json"),
        domains_file: state.join("domains.json"),
        site_name: config.site.clone(),
        listen: config.wire.listen.clone(),
        transport: match config.wire.transport {
            Transport::Tcp => TransportKind::Tcp,
            Transport::Quic => TransportKind::Quic,
        },
        bbr: config.wire.congestion == Congestion::Bbr,
        connections: config.wire.connections,
        rate_bps: config.wire.rate_bps,
        throttle: stores.throttle.all(),
        advertise: config.wire.advertise.clone(),
        dialect: Dialect::from_environment()?,
    })
}
