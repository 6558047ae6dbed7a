//! Datastores: where replica disks live, human readable and bootable without vbr.
//!
//! ```text
//! DATASTORE/SITE/REPLICA/replica.json  README.txt  retire.json (while a removal runs)
//!                        points/ID/    point.json  state.json  disk-N.raw|qcow2  disk-N.manifest
//!                        building/SESSION/  building.json  cursor.json  changes  disk-N.…
//!                        pages/SESSION.pages         retiring/ID/
//!                        failover.json  failover/    disk-N.qcow2 (what a VM that was started from it writes)
//! ```
//!
//! The files are the only truth at the target; everything in memory is scanned from them. A datastore
//! that cannot be opened is a warning, never the end of the daemon. Not its job: who may do what.

mod begin;
mod building;
mod building_disk;
mod cache;
mod changes;
mod failover;
mod files;
mod image;
mod lease;
mod mend;
mod overlay;
mod pages;
mod point;
mod raw;
mod readme;
mod record;
mod replica;
mod retain;
mod retire;
mod scan;
mod shared;
mod stage;
mod store;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use vbr_api::{DatastoreStatus, Warning};

pub use begin::{BeginDisk, BeginSpec};
pub use building::{Building, BuildingState, SealSpec};
pub use failover::{FailbackRecord, FailoverRecord, StartedRecord};
pub use lease::ReadLease;
pub use mend::{FindChunk, Mended};
pub use overlay::Chain;
pub use point::Point;
pub use replica::Replica;
pub use stage::{Order, Stage};
pub use store::{Backend, Datastore, DatastoreConfig, ReplicaSpec};

use crate::block::{ChunkId, ChunkSource, DomainKey, ShortId};
use crate::error::Problem;

/// Every datastore of this site. The first that is configured is the default.
pub struct Datastores {
    configs: Vec<DatastoreConfig>,
    open: Vec<Arc<Datastore>>,
    failed: Vec<Warning>,
}

impl Datastores {
    /// Opens and scans all of them; one that cannot be opened becomes a warning. Blocking.
    pub fn open(configs: Vec<DatastoreConfig>, runtime_dir: &Path) -> Arc<Self> {
        let (mut open, mut failed) = (Vec::new(), Vec::new());
        for config in &configs {
            match Datastore::open(config, runtime_dir) {
                Ok(store) => open.push(store),
                Err(error) => {
                    tracing::error!(%error, datastore = config.name, "a datastore cannot be opened");
                    let what = format!("datastore {} cannot be opened: {error}", config.name);
                    failed.push(store::warning("critical", what, "correct the cause and start vbrd again"));
                }
            }
        }
        Arc::new(Self { configs, open, failed })
    }

    /// Those that are open.
    pub fn list(&self) -> Vec<Arc<Datastore>> {
        self.open.clone()
    }

    /// The default datastore.
    pub fn default_store(&self) -> Result<Arc<Datastore>, Problem> {
        let first = self.configs.first().map(|config| config.name.clone()).unwrap_or_default();
        self.get(&first)
    }

    /// A datastore by name.
    pub fn get(&self, name: &str) -> Result<Arc<Datastore>, Problem> {
        if let Some(store) = self.open.iter().find(|store| store.name() == name) {
            return Ok(store.clone());
        }
        if self.configs.iter().any(|config| config.name == name) {
            let next = "correct the cause (see `vbrctl status`) and start vbrd there again";
            return Err(Problem::new(
                "datastore_offline",
                format!("datastore {name}"),
                "it could not be opened",
                next,
            )
            .retry());
        }
        Err(Problem::not_found(format!("datastore {name}"), "`vbrctl status` lists the datastores"))
    }

    /// As `status` shows them.
    pub fn status(&self) -> Vec<DatastoreStatus> {
        self.open.iter().map(|store| store.status()).collect()
    }

    /// What an operator should look at.
    pub fn warnings(&self) -> Vec<Warning> {
        self.failed.iter().cloned().chain(self.open.iter().flat_map(|store| store.warnings())).collect()
    }

    /// Every replica.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.open.iter().flat_map(|store| store.replicas()).collect()
    }

    /// A replica by name, and by site where the name alone is ambiguous.
    pub fn find(&self, site: Option<&str>, name: &str) -> Result<Arc<Replica>, Problem> {
        let mut found = self.replicas();
        found.retain(|replica| replica.name() == name && site.is_none_or(|site| replica.site() == site));
        if found.len() > 1 {
            let sites: Vec<&str> = found.iter().map(|replica| replica.site()).collect();
            let next = format!(
                "say which: {}",
                sites.iter().map(|s| format!("{s}/{name}")).collect::<Vec<_>>().join(", ")
            );
            return Err(Problem::new(
                "ambiguous",
                format!("replica {name}"),
                format!("there is one of {}", sites.join(", ")),
                next,
            ));
        }
        let shown = site.map_or_else(|| name.to_string(), |site| format!("{site}/{name}"));
        found.pop().ok_or_else(|| {
            Problem::not_found(format!("replica {shown}"), "`vbrctl replica list` shows what is there")
        })
    }

    /// The replica of this name that belongs to a peer.
    pub fn for_peer(&self, peer_id: &str, name: &str) -> Option<Arc<Replica>> {
        self.replicas()
            .into_iter()
            .find(|replica| replica.name() == name && replica.owner_peer_id() == peer_id)
    }

    /// The peer's replica, made where it is missing; `datastore` none is the default, or where it is.
    pub fn for_session(&self, datastore: Option<&str>, spec: &ReplicaSpec) -> Result<Arc<Replica>, Problem> {
        if let Some(replica) = self.for_peer(&spec.owner_peer_id, &spec.name) {
            if datastore.is_some_and(|wanted| wanted != replica.datastore()) {
                return Err(Problem::conflict(
                    format!("replica {}", spec.name),
                    format!("it is on datastore {}", replica.datastore()),
                    "name that datastore in the job, or remove the replica first",
                ));
            }
            if replica.domain_tag() != spec.domain_tag {
                return Err(Problem::conflict(
                    format!("replica {}", spec.name),
                    "it was made in another dedup domain",
                    "remove the replica, or choose another name for it",
                ));
            }
            return Ok(replica);
        }
        let store = datastore.map_or_else(|| self.default_store(), |name| self.get(name))?;
        Ok(store.create_replica(spec)?)
    }

    /// Removes a replica and all its points; gives back their ids.
    pub fn remove(&self, replica: &Replica) -> Result<Vec<String>, Problem> {
        Ok(self.get(replica.datastore())?.remove_replica(replica.site(), replica.name())?)
    }
}

impl ChunkSource for Datastores {
    fn read_chunk(
        &self,
        replica: [u8; 16],
        disk: u16,
        chunk: u64,
        id: ShortId,
        key: &DomainKey,
    ) -> Option<(ChunkId, Vec<u8>)> {
        let found = self.open.iter().find_map(|store| store.replica_by_key(replica));
        found?.read_chunk(disk, chunk, id, key)
    }
}
