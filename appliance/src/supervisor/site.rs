//! The site as a whole: status at a glance, effective configuration, cache figures.

use std::sync::{Arc, Mutex};

use vbr_api::{CacheStats, ConfigView, Moment, Peer, PeerQuota, Status, Warning};

use super::appliance::lock;
use super::metrics;
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::shared_filter::SharedSets;
use crate::config::Config;
use crate::control::SiteOrders;
use crate::database::Database;
use crate::error::Problem;
use crate::job::{JobManager, TargetService};
use crate::repository::datastore::Datastores;
use crate::wire::Wire;
use crate::worker::Workers;

/// What status is made of.
pub struct SiteParts {
    /// The effective configuration.
    pub config: Arc<Mutex<Config>>,
    /// Peers and links.
    pub wire: Wire,
    /// Jobs and sessions.
    pub jobs: Arc<JobManager>,
    /// What other sites send here.
    pub target: Arc<TargetService>,
    /// Datastores.
    pub stores: Arc<Datastores>,
    /// The global cache.
    pub cache: Arc<GlobalCache>,
    /// Which chunks came from two branches or more.
    pub shared: Arc<SharedSets>,
    /// The database.
    pub database: Arc<Database>,
    /// Background workers.
    pub workers: Arc<Workers>,
    /// When this vbrd started.
    pub started_at: Moment,
}

/// Answers for the site.
pub struct Site {
    pub(super) parts: SiteParts,
}

impl Site {
    /// Over these parts.
    pub fn new(parts: SiteParts) -> Self {
        Self { parts }
    }

    /// What an operator should look at, besides links.
    pub(super) fn own_warnings(&self) -> Vec<Warning> {
        let mut warnings = self.parts.jobs.warnings();
        warnings.extend(self.parts.stores.warnings());
        warnings.extend(self.parts.workers.warnings());
        let mut warn = |what: String, next_step: &str| {
            warnings.push(Warning { level: "warning".to_string(), what, next_step: next_step.to_string() });
        };
        if let Some(what) = self.parts.cache.near_full_warning() {
            warn(what, "free space on the cache's file system, or lower [cache] size");
        }
        if let Some(what) = self.parts.cache.damage_warning() {
            let next = "look at the kernel log and the health of the disk that holds the cache; vbrctl cache scrub reads \
                        all of it, and takes this away where it finds nothing";
            warn(what, next);
        }
        if let Some(what) = self.parts.database.warning() {
            warn(what, "nothing to do now; check the disk of the state directory if it recurs");
        }
        warnings
    }

    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.own_warnings();
        for peer in self.parts.wire.peers().into_iter().filter(|peer| !peer.connected && !peer.revoked) {
            let why = peer.last_error.map_or(String::new(), |why| format!(": {why}"));
            let what = format!("peer {} is not connected{why}", peer.name);
            let next_step = "check the link and the other site".to_string();
            warnings.push(Warning { level: "warning".to_string(), what, next_step });
        }
        warnings
    }
}

impl SiteOrders for Site {
    fn status(&self) -> Result<Status, Problem> {
        let parts = &self.parts;
        let site = lock(&parts.config).quota;
        let bounded = |peer: Peer| {
            let quota = PeerQuota {
                bytes: peer.quota.bytes.or(site.bytes),
                points: peer.quota.points.or(site.points),
            };
            Peer { quota, ..peer }
        };
        Ok(Status {
            site: lock(&parts.config).site.clone(),
            peer_id: parts.wire.peer_id(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            started_at: parts.started_at,
            listeners: parts.wire.listeners(),
            peers: parts.wire.peers().into_iter().map(bounded).collect(),
            sessions: parts.jobs.sessions(None, true),
            jobs: parts.jobs.lags(),
            datastores: parts.stores.status(),
            replicas: parts.stores.replicas().len() as u64,
            receiving: parts.target.receiving(),
            warnings: self.warnings(),
        })
    }

    fn config(&self) -> Result<ConfigView, Problem> {
        let config = lock(&self.parts.config);
        let file = config.file.as_ref().map(|path| path.display().to_string());
        Ok(ConfigView { file, toml: config.to_toml() })
    }

    fn metrics(&self) -> Result<String, Problem> {
        let mut page = metrics::render(&self.status()?, &self.parts.jobs.list(), &self.cache()?);
        page.push_str(&metrics::tasks(&self.parts.workers.list()));
        Ok(page)
    }

    fn cache(&self) -> Result<CacheStats, Problem> {
        let shared = self.parts.shared.stats();
        Ok(CacheStats {
            shared_chunks: shared.iter().map(|set| set.keys).sum(),
            shared_filter_bytes: shared.iter().map(|set| set.filter_bytes).sum(),
            ..self.parts.cache.stats()
        })
    }
}
