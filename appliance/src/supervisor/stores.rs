//! What vbrd keeps: state directory, database, cache, indexes, datastores, hosts, rules and logs, opened in order.
//!
//! Owns nothing once it is open. Everything here blocks.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::state_dir::StateDir;
use crate::accelerator::anchors::AnchorStore;
use crate::accelerator::block_index::BlockIndex;
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::shared_filter::SharedSets;
use crate::config::Config;
use crate::control::AuditLog;
use crate::database::Database;
use crate::error::Problem;
use crate::host::target::monitor_in;
use crate::host::{HostConfig, HostRegistry};
use crate::job::Warmings;
use crate::repository::datastore::{DatastoreConfig, Datastores};
use crate::repository::seeds::{InPlace, Seeds};
use crate::throttle::Rules;
use crate::wire::write_private;

/// The parts that block while they open.
pub(super) struct Stores {
    pub(super) state: StateDir,
    pub(super) database: Arc<Database>,
    pub(super) cache: Arc<GlobalCache>,
    pub(super) anchors: Arc<AnchorStore>,
    pub(super) blocks: Arc<BlockIndex>,
    pub(super) shared: Arc<SharedSets>,
    pub(super) datastores: Arc<Datastores>,
    pub(super) hosts: Arc<HostRegistry>,
    pub(super) throttle: Arc<Rules>,
    pub(super) audit: Arc<AuditLog>,
    pub(super) seeds: Arc<Seeds>,
}

impl Stores {
    pub(super) fn warmings(&self, tasks: &TaskTracker, stop: &CancellationToken) -> Arc<Warmings> {
        let places = InPlace { points: self.datastores.clone(), seeds: self.seeds.clone() };
        let (cache, blocks) = (self.cache.clone(), self.blocks.clone());
        Warmings::new(cache, blocks, Arc::new(places), tasks.clone(), stop.clone())
    }
}

pub(super) fn open_stores(state: StateDir, config: &Config) -> Result<Stores, Problem> {
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
    let started = datastores.clone();
    let hosts = hosts.knowing_failovers(Arc::new(move || started_vms(&started)));
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
    let audit = Arc::new(AuditLog::open(&state.join("audit"))?);
    let hosts = Arc::new(hosts);
    let directories = config.seed_directories.clone();
    let (seeds, why) = Seeds::open(state.join("seeds.json"), directories, &config.runtime, write_private);
    if let Some(why) = why {
        tracing::warn!(why, "the record of seeds is not used; warm images again where they are still wanted");
    }
    let seeds = Arc::new(seeds);
    Ok(Stores { state, database, cache, anchors, blocks, shared, datastores, hosts, throttle, audit, seeds })
}

/// The VMs that run from replicas, or are off for a while, and the monitor of each.
fn started_vms(stores: &Datastores) -> Vec<(String, PathBuf)> {
    let replicas = stores.replicas().into_iter().filter(|replica| replica.stage().is_vm());
    replicas.map(|replica| (replica.vm_name(), monitor_in(&replica.failover_dir()))).collect()
}

fn database_problem(error: &crate::database::DatabaseError) -> Problem {
    Problem::new(
        "database",
        "the database in the state directory cannot be opened",
        error.to_string(),
        "check the disk and the permissions of the state directory",
    )
}
