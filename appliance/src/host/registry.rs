//! The hosts of this site: `hosts.json` in the state directory, and their drivers.
//!
//! Owns the list. `local` (driver `disk`) is always there; disks named by path alone go through it. So is `failover`: the VMs
//! that this site has started from replicas, as whoever opens the registry says.
//! Not its job: jobs. Whoever removes a host first makes sure that no job names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vbr_api::Host;

use super::clones::{CloneConfig, CloneStore};
use super::disk::DiskHost;
use super::libvirt::{self, LibvirtHost};
use super::nbd::{self, NbdHost};
use super::qemu::{Monitors, QemuHost};
use super::{HOSTS_MAX, HostError, SourceHost, state_file};
use crate::nbd::QsdExport;

/// The host that is always there.
pub const LOCAL: &str = "local";
/// The host of the VMs that this site has started from replicas; always there.
pub const FAILOVER: &str = "failover";
/// Running VMs.
const QEMU: &str = "qemu";
/// VMs of libvirt.
const LIBVIRT: &str = "libvirt";
/// Disks behind NBD servers.
const NBD: &str = "nbd";
/// All drivers.
const DRIVERS: [&str; 4] = ["disk", QEMU, LIBVIRT, NBD];
const FILE_VERSION: u32 = 1;

/// What the hosts need to know of this site.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Holds `hosts.json` and `snapshots/`.
    pub state_dir: PathBuf,
    /// For sockets of qemu's processes.
    pub runtime_dir: PathBuf,
    /// Where clones may lie; none: the state directory and beside the disk.
    pub snapshot_dirs: Vec<PathBuf>,
    /// No clone is made where less than this is free.
    pub snapshot_floor_bytes: u64,
    /// Directories of images that `local` lists.
    pub local_directories: Vec<String>,
}

/// All hosts.
pub struct HostRegistry {
    file: PathBuf,
    config: HostConfig,
    clones: Arc<CloneStore>,
    hosts: Mutex<BTreeMap<String, Arc<Entry>>>,
}

struct Entry {
    host: Host,
    source: Arc<dyn SourceHost>,
}

#[derive(Serialize, Deserialize)]
struct HostsFile {
    version: u32,
    hosts: Vec<Host>,
}

impl HostRegistry {
    /// Reads `hosts.json`; a missing one means `local` alone.
    pub fn open(config: HostConfig) -> Result<Self, HostError> {
        let file = config.state_dir.join("hosts.json");
        let clones = CloneStore::new(CloneConfig {
            directories: config.snapshot_dirs.clone(),
            state_dir: config.state_dir.join("snapshots"),
            floor_bytes: config.snapshot_floor_bytes,
        });
        QsdExport::sweep(&config.runtime_dir);
        QemuHost::wake_guests(&clones);
        let stored: Option<HostsFile> =
            state_file::load(&file).map_err(|error| unreadable(&file, &error.to_string()))?;
        let registry = Self { file, config, clones: Arc::new(clones), hosts: Mutex::default() };
        let local = Host {
            name: LOCAL.into(),
            driver: "disk".into(),
            directories: registry.config.local_directories.clone(),
            ..Host::default()
        };
        let mut hosts = registry.lock();
        hosts.insert(LOCAL.into(), registry.entry(local));
        if let Some(stored) = stored {
            if stored.version != FILE_VERSION || stored.hosts.len() > HOSTS_MAX {
                return Err(unreadable(
                    &registry.file,
                    "its version or its length is not one this vbrd knows",
                ));
            }
            for host in stored.hosts.into_iter().filter(|host| !is_built_in(&host.name)) {
                check_host(&host)?;
                hosts.insert(host.name.clone(), registry.entry(host));
            }
        }
        drop(hosts);
        Ok(registry)
    }

    /// With the VMs that this site has started.
    pub fn knowing_failovers(self, known: Monitors) -> Self {
        let host = Host { name: FAILOVER.into(), driver: QEMU.into(), ..Host::default() };
        let (clones, runtime_dir) = (self.clones.clone(), self.config.runtime_dir.clone());
        let source = Arc::new(QemuHost::knowing(host.clone(), known, clones, runtime_dir));
        self.lock().insert(FAILOVER.into(), Arc::new(Entry { host, source }));
        self
    }

    /// All hosts, by name.
    pub fn list(&self) -> Vec<Host> {
        self.lock().values().map(|entry| entry.host.clone()).collect()
    }

    /// The definition of one.
    pub fn show(&self, name: &str) -> Result<Host, HostError> {
        self.find(name).map(|entry| entry.host.clone())
    }

    /// The driver of one.
    pub fn get(&self, name: &str) -> Result<Arc<dyn SourceHost>, HostError> {
        self.find(name).map(|entry| entry.source.clone())
    }

    /// Adds a host; true where it is new. The same definition again is success.
    pub fn add(&self, host: Host) -> Result<(Host, bool), HostError> {
        check_host(&host)?;
        let mut hosts = self.lock();
        if host.name == FAILOVER {
            return Err(HostError::Conflict {
                what: format!("host {FAILOVER}"),
                why: "it is always there: the VMs that this site has started".into(),
                next_step: "choose another name",
            });
        }
        if let Some(known) = hosts.get(&host.name) {
            if known.host == host {
                return Ok((host, false));
            }
            return Err(HostError::Conflict {
                what: format!("host {}", host.name),
                why: "it exists with another definition".into(),
                next_step: "choose another name, or remove the host first (vbrctl host remove); \
                            the directories of `local` stand in the configuration file",
            });
        }
        if hosts.len() >= HOSTS_MAX {
            return Err(HostError::Invalid {
                what: format!("host {}", host.name),
                why: format!("there are {HOSTS_MAX} hosts already"),
                next_step: "remove hosts that are not used any more",
            });
        }
        for directory in host.directories.iter().chain(&host.tls_dir) {
            let found = Path::new(directory).metadata().map_err(|error| HostError::io(directory, error))?;
            if !found.is_dir() {
                return Err(HostError::Invalid {
                    what: format!("host {}", host.name),
                    why: format!("{directory} is not a directory"),
                    next_step: "name directories of images, of monitors or of certificates; lone disks need no host",
                });
            }
        }
        hosts.insert(host.name.clone(), self.entry(host.clone()));
        if let Err(error) = self.store(&hosts) {
            hosts.remove(&host.name);
            return Err(error);
        }
        Ok((host, true))
    }

    /// Removes a host; those that are always there stay.
    pub fn remove(&self, name: &str) -> Result<Host, HostError> {
        if is_built_in(name) {
            return Err(HostError::Conflict {
                what: format!("host {name}"),
                why: "it is always there".into(),
                next_step: "nothing is left to do: the directories of `local` stand in the configuration file, the VMs of \
                            `failover` are the replicas that are failed over",
            });
        }
        let mut hosts = self.lock();
        let Some(entry) = hosts.remove(name) else {
            return Err(HostError::NoSuchHost { name: name.into() });
        };
        if let Err(error) = self.store(&hosts) {
            hosts.insert(name.into(), entry);
            return Err(error);
        }
        Ok(entry.host.clone())
    }

    /// Removes clones left behind by sessions that no longer exist; gives how many.
    pub fn sweep(&self, living_sessions: &[String]) -> usize {
        self.clones.sweep(living_sessions)
    }

    fn find(&self, name: &str) -> Result<Arc<Entry>, HostError> {
        self.lock().get(name).cloned().ok_or_else(|| HostError::NoSuchHost { name: name.into() })
    }

    fn entry(&self, host: Host) -> Arc<Entry> {
        let (clones, runtime_dir) = (self.clones.clone(), self.config.runtime_dir.clone());
        let source: Arc<dyn SourceHost> = match host.driver.as_str() {
            QEMU => Arc::new(QemuHost::new(host.clone(), clones, runtime_dir)),
            LIBVIRT => Arc::new(LibvirtHost::new(host.clone(), clones, runtime_dir)),
            NBD => Arc::new(NbdHost::new(host.clone(), runtime_dir)),
            _ => Arc::new(DiskHost::new(host.clone(), clones, runtime_dir)),
        };
        Arc::new(Entry { host, source })
    }

    fn store(&self, hosts: &BTreeMap<String, Arc<Entry>>) -> Result<(), HostError> {
        let others = hosts.values().filter(|entry| !is_built_in(&entry.host.name));
        let file =
            HostsFile { version: FILE_VERSION, hosts: others.map(|entry| entry.host.clone()).collect() };
        let name = self.file.display().to_string();
        state_file::store(&self.file, &file).map_err(|source| HostError::Io { path: name, source })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// They are in no file.
fn is_built_in(name: &str) -> bool {
    matches!(name, LOCAL | FAILOVER)
}

fn unreadable(file: &Path, why: &str) -> HostError {
    HostError::Invalid {
        what: format!("{}", file.display()),
        why: why.into(),
        next_step: "correct the file, or move it away and add the hosts again",
    }
}

fn check_host(host: &Host) -> Result<(), HostError> {
    let wrong = |why: String, next_step| {
        Err(HostError::Invalid { what: format!("host {:?}", host.name), why, next_step })
    };
    if !vbr_api::name_is_valid(&host.name) {
        return wrong("the name is not valid".into(), "use lower-case letters, digits, and . _ - inside");
    }
    if !DRIVERS.contains(&host.driver.as_str()) {
        let next = "use `disk` (images and block devices), `qemu` (running VMs, by their monitors), `libvirt` (its VMs), or \
                    `nbd` (disks behind NBD servers)";
        return wrong(format!("there is no driver {:?}", host.driver), next);
    }
    check_words(host)?;
    if host.directories.len() > 64 {
        return wrong("it has more than 64 directories".into(), "spread them over several hosts");
    }
    if let Some(relative) =
        host.directories.iter().chain(&host.tls_dir).find(|directory| !directory.starts_with('/'))
    {
        return wrong(format!("{relative:?} is not an absolute path"), "write the whole path, from / on");
    }
    Ok(())
}

/// What each driver takes.
fn check_words(host: &Host) -> Result<(), HostError> {
    let wrong = |why: String, next_step| {
        Err(HostError::Invalid { what: format!("host {:?}", host.name), why, next_step })
    };
    let driver = host.driver.as_str();
    if !matches!(driver, LIBVIRT | NBD) && !host.uris.is_empty() || driver != NBD && host.tls_dir.is_some() {
        let why = format!("URIs or certificates that the driver `{driver}` has no use for");
        return wrong(
            why,
            "leave them out, or name the driver that they are for: --driver nbd, --driver libvirt",
        );
    }
    match driver {
        QEMU if host.directories.is_empty() => wrong(
            "it names no directory".into(),
            "name the directories of the VMs' monitors (NAME.qmp), such as /run/qemu-server",
        ),
        LIBVIRT => libvirt::check(host),
        NBD if !host.directories.is_empty() => {
            wrong("the driver `nbd` has no directories".into(), "name servers with --uri")
        }
        NBD => nbd::check(host),
        _ => Ok(()),
    }
}
