//! One datastore: a directory on a file system, locked, probed, with its replicas.
//!
//! Owns the lock file (two daemons never share a datastore), the backend that probing chose, the space
//! reserve, and the clock of observed time. Not its job: what is inside a replica.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock, ioctl_ficlone};
use serde::{Deserialize, Serialize};
use vbr_api::{DatastoreStatus, Warning, name_is_valid};

use super::cache::Caches;
use super::files::{self, Root};
use super::record::{ReplicaRecord, VERSION, check_version};
use super::replica::Replica;
use crate::block::DomainTag;
use crate::repository::RepositoryError;
use crate::repository::retention::Clocks;

/// Observed time is written down at most this often by planning, and at every seal.
const CLOCK_SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// A datastore as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatastoreConfig {
    /// Its name.
    pub name: String,
    /// Its directory; made where it is missing.
    pub path: PathBuf,
    /// Bytes that stay free on its file system.
    pub reserve_bytes: u64,
}

/// How restore points share what they have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One raw file a point, cloned by the file system.
    Reflink,
    /// A raw base and qcow2 overlays.
    Overlay,
}

impl Backend {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Overlay => "overlay",
        }
    }
}

/// What everything in a datastore shares.
pub struct Core {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub root: Root,
    /// As probed.
    pub backend: Backend,
    /// Bytes that stay free.
    pub reserve_bytes: u64,
    /// For sockets of daemons.
    pub runtime_dir: PathBuf,
    /// Time that was really seen to pass.
    pub clock: ObservedClock,
    /// What is kept in memory.
    pub caches: Caches,
    lock: File,
}

impl Drop for Core {
    fn drop(&mut self) {
        // Closing is not enough: a child between its fork and its exec shares the lock.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Core {
    /// (size, free) of the file system, for an unprivileged user.
    pub fn space(&self) -> Result<(u64, u64), RepositoryError> {
        let found = rustix::fs::statvfs(self.root.path());
        let found =
            found.map_err(|e| RepositoryError::io(self.root.path().display().to_string(), e.into()))?;
        Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
    }

    /// The wall clock and observed time, now.
    pub fn clocks(&self) -> Clocks {
        Clocks { now: vbr_api::Moment::now(), observed_ms: self.clock.observed_ms() }
    }

    /// Refuses writes that would eat the reserve.
    pub fn check_space(&self) -> Result<(), RepositoryError> {
        let (_, free) = self.space()?;
        if free >= self.reserve_bytes {
            return Ok(());
        }
        Err(RepositoryError::Full { datastore: self.name.clone(), free, reserve: self.reserve_bytes })
    }
}

/// A datastore and its replicas.
pub struct Datastore {
    core: Arc<Core>,
    replicas: RwLock<BTreeMap<(String, String), Arc<Replica>>>,
    warnings: Vec<Warning>,
    creating: Mutex<()>,
}

impl Datastore {
    /// Opens and scans it: interrupted removals are finished, leftovers are cleared away.
    pub fn open(config: &DatastoreConfig, runtime_dir: &Path) -> Result<Arc<Self>, RepositoryError> {
        if !name_is_valid(&config.name) {
            return Err(RepositoryError::invalid(
                format!("datastore {}", config.name),
                "the name is not valid",
            ));
        }
        std::fs::create_dir_all(&config.path)
            .map_err(|e| RepositoryError::io(config.path.display().to_string(), e))?;
        let root = Root::open(&config.path)?;
        let lock = root.open_beneath(&root.path().join(".lock"), OFlags::RDWR | OFlags::CREATE)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| RepositoryError::Conflict {
            what: format!("datastore {}", config.path.display()),
            why: "another vbrd uses it".into(),
            next: "stop the other one, or give this one a datastore of its own".into(),
        })?;
        let core = Arc::new(Core {
            name: config.name.clone(),
            backend: probe(&root)?,
            clock: ObservedClock::open(&root),
            root,
            reserve_bytes: config.reserve_bytes,
            runtime_dir: runtime_dir.into(),
            caches: Caches::default(),
            lock,
        });
        let mut warnings = Vec::new();
        let replicas = scan(&core, &mut warnings)?;
        Ok(Arc::new(Self { core, replicas: RwLock::new(replicas), warnings, creating: Mutex::new(()) }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.core.root.path()
    }

    /// As probed.
    pub fn backend(&self) -> Backend {
        self.core.backend
    }

    /// Refuses writes that would eat the reserve.
    pub fn check_space(&self) -> Result<(), RepositoryError> {
        self.core.check_space()
    }

    /// As `status` shows it.
    pub fn status(&self) -> DatastoreStatus {
        let (size_bytes, free_bytes) = self.core.space().unwrap_or_default();
        DatastoreStatus {
            name: self.core.name.clone(),
            path: self.core.root.path().display().to_string(),
            backend: self.core.backend.as_str().into(),
            size_bytes,
            free_bytes,
            reserve_bytes: self.core.reserve_bytes,
        }
    }

    /// What an operator should look at.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.warnings.clone();
        let reserve = self.core.reserve_bytes;
        match self.core.space() {
            Err(error) => warnings.push(warning("critical", error.to_string(), "check that it is mounted")),
            Ok((_, free)) if free < reserve => warnings.push(warning(
                "critical",
                format!("datastore {} is full: {free} bytes free, {reserve} in reserve", self.core.name),
                "free space or remove restore points; sessions wait",
            )),
            Ok((_, free)) if free < reserve.saturating_mul(2) => warnings.push(warning(
                "warning",
                format!("datastore {} is nearly full: {free} bytes free", self.core.name),
                "free space or remove restore points before sessions have to wait",
            )),
            Ok(_) => {}
        }
        if self.core.backend == Backend::Overlay
            && let Some(missing) = crate::nbd::qemu_utils_missing()
        {
            warnings.push(warning(
                "critical",
                format!("datastore {}: {missing}", self.core.name),
                "install it",
            ));
        }
        for replica in self.replicas() {
            warnings.extend(replica.warnings());
        }
        warnings
    }

    /// Every replica, by site and name.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The replica that index entries name by this key.
    pub fn replica_by_key(&self, key: [u8; 16]) -> Option<Arc<Replica>> {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        replicas.values().find(|replica| replica.key() == key).cloned()
    }

    /// Makes a replica for a peer. One of that place that belongs to the peer is given back.
    pub fn create_replica(&self, spec: &ReplicaSpec) -> Result<Arc<Replica>, RepositoryError> {
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let title = format!("{}/{}", spec.site, spec.name);
        if !name_is_valid(&spec.site) || !name_is_valid(&spec.name) {
            return Err(RepositoryError::invalid(format!("replica {title}"), "a name in it is not valid"));
        }
        let place = (spec.site.clone(), spec.name.clone());
        if let Some(replica) = self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&place) {
            if replica.owner_peer_id() == spec.owner_peer_id && replica.domain_tag() == spec.domain_tag {
                return Ok(replica.clone());
            }
            return Err(taken(&title, "it belongs to another peer or dedup domain"));
        }
        let dir = self.core.root.path().join(&spec.site).join(&spec.name);
        if dir.join("replica.json").exists() {
            return Err(taken(&title, "its directory exists and its record cannot be read"));
        }
        let replica = Replica::create(&self.core, dir, spec)?;
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).insert(place, replica.clone());
        Ok(replica)
    }

    /// Removes a replica and all its points. Busy while anything reads or builds it.
    pub fn remove_replica(&self, site: &str, name: &str) -> Result<Vec<String>, RepositoryError> {
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (site.to_string(), name.to_string());
        let found = self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        let replica = found.ok_or_else(|| RepositoryError::NotFound(format!("replica {site}/{name}")))?;
        let removed = replica.remove()?;
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).remove(&place);
        Ok(removed)
    }
}

impl Drop for Datastore {
    fn drop(&mut self) {
        self.core.clock.save();
        let _ = self.core.clock.write(&self.core.root);
    }
}

/// Whose replica is to be made.
#[derive(Clone, Debug)]
pub struct ReplicaSpec {
    /// Only this peer may replicate into it.
    pub owner_peer_id: String,
    /// The peer's name here.
    pub site: String,
    /// Chosen by the peer.
    pub name: String,
    /// Of the peer's dedup domain.
    pub domain_tag: DomainTag,
    /// The wall clock, injected.
    pub now: vbr_api::Moment,
}

/// Time that passed while vbrd ran, added up over restarts: the age of a point never rests on a wall
/// clock alone. Kept in `.clock.json`; losing it only keeps points longer.
pub struct ObservedClock {
    path: PathBuf,
    base_ms: AtomicU64,
    since: Instant,
    saved_at: Mutex<Option<Instant>>,
}

#[derive(Serialize, Deserialize)]
struct ClockRecord {
    version: u32,
    observed_ms: u64,
}

impl ObservedClock {
    fn open(root: &Root) -> Self {
        let path = root.path().join(".clock.json");
        let record: Option<ClockRecord> = root.read_record(&path).ok();
        let record = record.filter(|record| check_version(record.version).is_ok());
        let base_ms = AtomicU64::new(record.map_or(0, |record| record.observed_ms));
        Self { path, base_ms, since: Instant::now(), saved_at: Mutex::new(None) }
    }

    /// Milliseconds seen to pass so far.
    pub fn observed_ms(&self) -> u64 {
        self.base_ms.load(Ordering::Relaxed).saturating_add(self.since.elapsed().as_millis() as u64)
    }

    /// Never behind what a sealed point has seen.
    pub fn at_least(&self, observed_ms: u64) {
        self.base_ms.fetch_max(observed_ms, Ordering::Relaxed);
    }

    /// Marks it for writing at the next chance.
    pub fn save(&self) {
        *self.saved_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Writes it down where that is due. An error costs age, never data.
    pub fn write(&self, root: &Root) -> Result<(), RepositoryError> {
        let mut saved_at = self.saved_at.lock().unwrap_or_else(PoisonError::into_inner);
        if saved_at.is_some_and(|at| at.elapsed() < CLOCK_SAVE_INTERVAL) {
            return Ok(());
        }
        *saved_at = Some(Instant::now());
        let record = ClockRecord { version: VERSION, observed_ms: self.observed_ms() };
        root.write_record(&self.path, &record)
    }
}

/// True reflinks are tried out: a file is cloned and both are removed again.
fn probe(root: &Root) -> Result<Backend, RepositoryError> {
    let (from, to) = (root.path().join(".probe-a"), root.path().join(".probe-b"));
    let result = (|| {
        root.write_whole(&from, &[7; 8192])?;
        let source = root.open_beneath(&from, OFlags::RDONLY)?;
        let target = root.open_beneath(&to, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)?;
        Ok(if ioctl_ficlone(&target, &source).is_ok() { Backend::Reflink } else { Backend::Overlay })
    })();
    files::remove_file(&from)?;
    files::remove_file(&to)?;
    result
}

type ReplicaMap = BTreeMap<(String, String), Arc<Replica>>;

fn scan(core: &Arc<Core>, warnings: &mut Vec<Warning>) -> Result<ReplicaMap, RepositoryError> {
    let mut replicas = ReplicaMap::new();
    let root = core.root.path().to_path_buf();
    for name in files::names_in(&root)? {
        if name.starts_with(".removed-") {
            files::remove_dir_all(&root.join(name))?;
        }
    }
    for site in files::names_in(&root)?.into_iter().filter(|name| name_is_valid(name)) {
        if !core.root.has_dir(&root.join(&site)) {
            continue;
        }
        for name in files::names_in(&root.join(&site))?.into_iter().filter(|name| name_is_valid(name)) {
            let dir = root.join(&site).join(&name);
            if !core.root.has_dir(&dir) || !dir.join("replica.json").exists() {
                continue;
            }
            let opened =
                core.root.read_record::<ReplicaRecord>(&dir.join("replica.json")).and_then(|record| {
                    let fits = record.check().and_then(|()| {
                        let here = record.site == site && record.name == name;
                        if here {
                            Ok(())
                        } else {
                            Err("it names another replica: was the directory moved?".into())
                        }
                    });
                    fits.map_err(|why| RepositoryError::damaged(format!("replica {site}/{name}"), why))?;
                    Replica::open(core, dir.clone(), record)
                });
            match opened {
                Ok(replica) => drop(replicas.insert((site.clone(), name.clone()), replica)),
                Err(error) => {
                    tracing::warn!(%error, site, replica = name, "a replica cannot be opened; it is left alone");
                    warnings.push(warning(
                        "critical",
                        format!("replica {site}/{name} cannot be opened: {error}"),
                        "nothing was deleted; repair its files and start vbrd again",
                    ));
                }
            }
        }
    }
    Ok(replicas)
}

pub(super) fn warning(level: &str, what: impl Into<String>, next_step: &str) -> Warning {
    Warning { level: level.into(), what: what.into(), next_step: next_step.into() }
}

fn taken(title: &str, why: &str) -> RepositoryError {
    RepositoryError::Conflict {
        what: format!("replica {title}"),
        why: why.into(),
        next: "choose another replica name, or remove that one first".into(),
    }
}
