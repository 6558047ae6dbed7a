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
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::Moment;

use super::orders::{Hosts, Jobs, Peers};
use super::replicas::Replicas;
use super::site::{Site, SiteParts};
use super::state_dir::{StateDir, private_dir};
use super::throttle::Throttling;
use crate::accelerator::anchors::AnchorStore;
use crate::accelerator::block_index::BlockIndex;
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::shared_filter::{SharedFilters, SharedSets};
use crate::config::{Config, Congestion, Overrides, Transport};
use crate::control::{self, Api};
use crate::database::Database;
use crate::error::Problem;
use crate::host::{HostConfig, HostRegistry};
use crate::job::{JobManager, SourceStores, SourceWaits, StallBounds, TargetService};
use crate::limits::SOURCE_SESSIONS_MAX;
use crate::repository::datastore::{DatastoreConfig, Datastores};
use crate::repository::source::SourceRepository;
use crate::schedule::resources::Bounds;
use crate::telemetry::logs::LogHandle;
use crate::throttle::Rules;
use crate::wire::{TransportKind, Wire, WireConfig, write_private};

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
    _state: StateDir,
}

/// The parts that block while they open.
struct Stores {
    state: StateDir,
    database: Arc<Database>,
    cache: Arc<GlobalCache>,
    anchors: Arc<AnchorStore>,
    blocks: Arc<BlockIndex>,
    shared: Arc<SharedSets>,
    datastores: Arc<Datastores>,
    hosts: Arc<HostRegistry>,
    throttle: Arc<Rules>,
}

impl Appliance {
    /// Opens everything and begins to serve.
    pub async fn start(config: Config) -> Result<Self, Problem> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (wire_tasks, wire_stop) = (TaskTracker::new(), CancellationToken::new());
        let (version, site) = (env!("CARGO_PKG_VERSION"), &config.site);
        tracing::info!(version, %site, state = %config.state.display(), "starting");
        let opening = config.clone();
        let state = blocking("opening the state directory", move || open_directories(&opening)).await?;
        // Before anything is opened: two of them on one socket must not get any further.
        let socket = control::bind(&config.socket)?;
        let metrics = bind_metrics(config.metrics).await?;
        let opening = config.clone();
        let stores = blocking("opening the stores", move || open_stores(state, &opening)).await?;
        let (wire, incoming) =
            Wire::start(wire_config(&config, &stores), wire_tasks.clone(), wire_stop.clone())
                .await
                .map_err(|e| e.problem("start the wire"))?;
        let target = TargetService::new(
            stores.datastores.clone(),
            stores.cache.clone(),
            stores.blocks.clone(),
            stores.shared.clone(),
            config.retention_min_age,
            tasks.clone(),
            stop.clone(),
        );
        target.quotas().set_site(config.quota);
        tasks.spawn(target.clone().serve(incoming));
        tasks.spawn(target.clone().tend_retention());
        tasks.spawn(target.clone().tend_indexes(stores.state.join("blocks")));
        let (indexer, stopping) = (target.clone(), stop.clone());
        tasks.spawn_blocking(move || indexer.index_missing(&|| stopping.is_cancelled()));
        let jobs = {
            let (directory, database) = (stores.state.join("jobs"), stores.database.clone());
            let (wire, hosts, tasks, stop) =
                (wire.clone(), stores.hosts.clone(), tasks.clone(), stop.clone());
            let source = source_stores(&config, &stores);
            let start = move || JobManager::start(&directory, database, source, wire, hosts, tasks, stop);
            blocking("starting the jobs", start).await?
        };
        let config = Arc::new(std::sync::Mutex::new(config));
        let site = Site::new(SiteParts {
            config: config.clone(),
            wire: wire.clone(),
            jobs: jobs.clone(),
            target: target.clone(),
            stores: stores.datastores.clone(),
            cache: stores.cache.clone(),
            shared: stores.shared.clone(),
            database: stores.database.clone(),
            started_at: Moment::now(),
        });
        let datastores = stores.datastores.clone();
        let throttle = Throttling {
            rules: stores.throttle,
            wire: wire.clone(),
            config: config.clone(),
            turn: tokio::sync::Mutex::default(),
        };
        let api = Api::new(
            Arc::new(site),
            Arc::new(Peers { wire: wire.clone(), target: target.clone() }),
            Arc::new(Hosts { hosts: stores.hosts, jobs: jobs.clone() }),
            Arc::new(Jobs(jobs.clone())),
            Arc::new(Replicas { target: target.clone(), stores: stores.datastores, wire: wire.clone() }),
            Arc::new(throttle),
            stop.clone(),
        );
        let path = socket.path().to_owned();
        if let Some(listener) = metrics {
            tasks.spawn(serve_metrics(api.clone(), listener));
        }
        let api = tasks.spawn(control::serve(api, socket));
        announce(&datastores, &jobs);
        tracing::info!(socket = %path.display(), peer_id = %wire.peer_id(), listeners = ?wire.listeners(), "ready");
        let _state = stores.state;
        Ok(Self { config, wire, target, jobs, tasks, stop, wire_tasks, wire_stop, api, _state })
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

async fn serve_metrics(api: Api, listener: TcpListener) {
    if let Err(error) = control::serve_metrics(api, listener).await {
        tracing::error!(%error, "the metrics are not served any more");
    }
}

fn source_stores(config: &Config, stores: &Stores) -> SourceStores {
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
    }
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

fn open_stores(state: StateDir, config: &Config) -> Result<Stores, Problem> {
    let database = Database::open(&state.join("database"), config.database_memory_bytes)
        .map_err(|e| database_problem(&e))?;
    let cache = GlobalCache::open(
        &config.cache.path,
        database.clone(),
        config.cache.size_bytes,
        config.cache.reserve_bytes,
    )
    .map_err(Problem::from)?;
    let stores: Vec<DatastoreConfig> = config
        .datastores
        .iter()
        .map(|store| DatastoreConfig {
            name: store.name.clone(),
            path: store.path.clone(),
            reserve_bytes: store.reserve_bytes,
        })
        .collect();
    let datastores = Datastores::open(stores, &config.runtime);
    let hosts = HostRegistry::open(HostConfig {
        state_dir: config.state.clone(),
        runtime_dir: config.runtime.clone(),
        snapshot_dirs: config.source.snapshot_dirs.clone(),
        snapshot_floor_bytes: config.source.snapshot_floor_bytes,
        local_directories: Vec::new(),
    })
    .map_err(Problem::from)?;
    let (anchors, why) =
        AnchorStore::open(&config.state.join("anchors"), config.accelerator.anchor_memory_bytes);
    if let Some(why) = why {
        tracing::warn!(why, "the content anchors are not used as they were saved; they are learned again");
    }
    let (blocks, why) = BlockIndex::load(&config.state.join("blocks"), config.accelerator.block_memory_bytes);
    if let Some(why) = why {
        tracing::info!(%why, "the index of blocks begins empty");
    }
    let (anchors, blocks) = (Arc::new(anchors), Arc::new(blocks));
    let shared = Arc::new(SharedSets::new(state.join("shared")));
    let throttle = Arc::new(Rules::open(&state.join("throttle.json"), write_private)?);
    let hosts = Arc::new(hosts);
    Ok(Stores { state, database, cache, anchors, blocks, shared, datastores, hosts, throttle })
}

fn database_problem(error: &crate::database::DatabaseError) -> Problem {
    Problem::new(
        "database",
        "the database in the state directory cannot be opened",
        error.to_string(),
        "check the disk and the permissions of the state directory",
    )
}

fn wire_config(config: &Config, stores: &Stores) -> WireConfig {
    let state = &stores.state;
    WireConfig {
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
    }
}
