//! Joins file, flags, environment and defaults into one [`Config`].
//!
//! Flags win over the file, the file over defaults. Defaults that depend on a file system (cache,
//! reserves) look at the one that holds the path or will.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::values::{Checker, absolute, clean_name, multiaddr_fault, name_fault};
use super::{
    AcceleratorSection, CacheSection, Config, DatastoreSection, LogSection, Overrides, RUNTIME_DEFAULT,
    ResourceSection, STATE_DEFAULT, SourceSection, Transport, WaitSection, WireSection, file,
};
use super::{failover, housekeeping};
use crate::limits::{
    ANCHOR_MEMORY_BYTES, BLOCK_MEMORY_BYTES, CACHE_BYTES_MIN, DATABASE_MEMORY_BYTES, LINK_WAIT, LINKS_MAX,
    QUOTA_POINTS, QUOTA_POINTS_MAX, SLOTS_DEFAULT, SLOTS_MAX, STALL_CUT, STALL_WARNING,
};

pub(super) const GIB: u64 = 1 << 30;
pub(super) const MIB: u64 = 1 << 20;
/// A unix socket's path has to fit into `sun_path` with its end mark.
const SOCKET_PATH_BYTES_MAX: usize = 107;

pub(super) fn resolve(
    path: Option<PathBuf>,
    raw: file::File,
    overrides: &Overrides,
    checker: &mut Checker,
) -> Config {
    let (state, runtime) = directories(overrides);
    let transport = checker.transport("wire.transport", raw.wire.transport.as_ref());
    let socket = match (&overrides.socket, raw.api.socket.as_ref()) {
        (Some(flag), _) => absolute(flag),
        (None, Some(value)) => checker.path("api.socket", value).unwrap_or_default(),
        (None, None) => runtime.join("vbrd.sock"),
    };
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        checker.fault_of(
            raw.api.socket.as_ref(),
            "--socket",
            "api.socket",
            format!(
                "{} is {} bytes long; a unix socket's path has at most {SOCKET_PATH_BYTES_MAX}",
                socket.display(),
                socket.as_os_str().len()
            ),
        );
    }
    let datastores = datastores(&raw.datastore, &state, checker);
    let seed_directories = match &raw.seed.directories {
        Some(_) => checker.paths("seed.directories", raw.seed.directories.as_ref()),
        None => datastores.iter().map(|store| store.path.join("seed")).collect(),
    };
    Config {
        site: site(&raw, overrides, checker),
        wire: WireSection {
            listen: listen(&raw, overrides, transport, checker),
            advertise: checker.multiaddrs("wire.advertise", raw.wire.advertise.as_ref()).unwrap_or_default(),
            transport,
            congestion: checker.congestion("wire.congestion", raw.wire.congestion.as_ref()),
            connections: checker.count("wire.connections", raw.wire.connections.as_ref(), LINKS_MAX),
            rate_bps: raw.wire.rate.as_ref().and_then(|v| checker.rate("wire.rate", v)),
        },
        datastores,
        seed_directories,
        cache: cache(&raw.cache, &state, checker),
        source: SourceSection {
            snapshot_dirs: checker.paths("source.snapshot_dirs", raw.source.snapshot_dirs.as_ref()),
            snapshot_floor_bytes: raw
                .source
                .snapshot_floor
                .as_ref()
                .and_then(|v| checker.size("source.snapshot_floor", v, 0, 0))
                .unwrap_or(GIB),
        },
        retention_min_age: raw
            .retention
            .min_age
            .as_ref()
            .and_then(|v| checker.duration("retention.min_age", v))
            .unwrap_or(Duration::from_secs(7 * 24 * 3600)),
        quota: quota(&raw.quota, checker),
        window: raw.schedule.window.as_ref().and_then(|v| checker.window("schedule.window", v)),
        metrics: raw.metrics.listen.as_ref().and_then(|v| checker.loopback("metrics.listen", v)),
        waits: waits(&raw.schedule, checker),
        resources: resources(&raw.resources, checker),
        failover: failover::section(&raw.failover, checker),
        scrub: housekeeping::paced("scrub", &raw.scrub, checker),
        verify: housekeeping::paced("verify", &raw.verify, checker),
        history: housekeeping::history(&raw.history, checker),
        notify: housekeeping::notify(&raw.notify, checker),
        socket,
        log: LogSection {
            level: checker.log_level("log.level", raw.log.level.as_ref()),
            format: checker.log_format("log.format", raw.log.format.as_ref()),
        },
        database_memory_bytes: database_memory(&raw.memory, checker),
        accelerator: accelerator(&raw.accelerator, checker),
        file: path.map(|p| absolute(&p)),
        state,
        runtime,
    }
}

fn database_memory(raw: &file::Memory, checker: &mut Checker) -> usize {
    let said = raw.database.as_ref().and_then(|value| checker.size("memory.database", value, 8 * MIB, 0));
    said.map_or(DATABASE_MEMORY_BYTES, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn quota(raw: &file::Quota, checker: &mut Checker) -> vbr_api::PeerQuota {
    let points =
        raw.points.as_ref().map(|value| checker.count("quota.points", Some(value), QUOTA_POINTS_MAX));
    vbr_api::PeerQuota {
        bytes: raw.bytes.as_ref().and_then(|value| checker.size("quota.bytes", value, MIB, 0)),
        points: Some(points.map_or(QUOTA_POINTS, |points| u32::try_from(points).unwrap_or(u32::MAX))),
    }
}

fn accelerator(raw: &file::Accelerator, checker: &mut Checker) -> AcceleratorSection {
    let mut memory = |key: &str, value: Option<&toml::Spanned<String>>, default: usize| {
        value
            .and_then(|value| checker.size(key, value, MIB, 0))
            .map_or(default, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    };
    AcceleratorSection {
        anchor_memory_bytes: memory(
            "accelerator.anchor_memory",
            raw.anchor_memory.as_ref(),
            ANCHOR_MEMORY_BYTES,
        ),
        block_memory_bytes: memory("accelerator.block_memory", raw.block_memory.as_ref(), BLOCK_MEMORY_BYTES),
        keep_sent: raw.keep_sent.unwrap_or(true),
        bases: raw.bases.unwrap_or(true),
    }
}

/// Reads from memory take less.
const LATENCY_CEILING_MIN: Duration = Duration::from_millis(1);

/// Shorter waits than these are slips of the pen.
const WAIT_MIN: Duration = Duration::from_secs(5);

fn waits(raw: &file::Schedule, checker: &mut Checker) -> WaitSection {
    let mut wait = |key: &str, value: Option<&toml::Spanned<String>>, default: Duration| {
        let Some(given) = value else { return default };
        let wait = checker.duration(key, given).unwrap_or(default);
        if wait < WAIT_MIN {
            checker.fault_in(given.span(), key, "is too short; give at least \"5s\"".into());
        }
        wait
    };
    let link = wait("schedule.link_wait", raw.link_wait.as_ref(), LINK_WAIT);
    let stall_warning = wait("schedule.stall_warning", raw.stall_warning.as_ref(), STALL_WARNING);
    let stall_cut = wait("schedule.stall_cut", raw.stall_cut.as_ref(), STALL_CUT.max(stall_warning * 3));
    if let Some(given) = raw.stall_cut.as_ref().filter(|_| stall_cut <= stall_warning) {
        let what = "is no longer than schedule.stall_warning; a session is told of first, and cut later";
        checker.fault_in(given.span(), "schedule.stall_cut", what.into());
    }
    WaitSection { link, stall_warning, stall_cut }
}

fn resources(raw: &file::Resources, checker: &mut Checker) -> ResourceSection {
    let latency_ceiling = raw.latency_ceiling.as_ref().and_then(|value| {
        let ceiling = checker.duration("resources.latency_ceiling", value)?;
        if !ceiling.is_zero() && ceiling < LATENCY_CEILING_MIN {
            let what = "is too short; give at least \"1ms\", or \"0\" for none";
            checker.fault_in(value.span(), "resources.latency_ceiling", what.into());
        }
        Some(ceiling).filter(|ceiling| !ceiling.is_zero())
    });
    let mut slots = |key: &str, value: Option<&toml::Spanned<i64>>| match value {
        Some(_) => checker.count(key, value, SLOTS_MAX) as u32,
        None => SLOTS_DEFAULT,
    };
    ResourceSection {
        latency_ceiling,
        host_slots: slots("resources.host_slots", raw.host_slots.as_ref()),
        link_slots: slots("resources.link_slots", raw.link_slots.as_ref()),
        datastore_slots: slots("resources.datastore_slots", raw.datastore_slots.as_ref()),
    }
}

/// A site of its own (`--state`) keeps its sockets with it, so two of them never meet in `/run/vbr`.
pub(super) fn directories(overrides: &Overrides) -> (PathBuf, PathBuf) {
    let state = match (&overrides.state, &overrides.state_directory) {
        (Some(flag), _) => absolute(flag),
        (None, Some(env)) => absolute(Path::new(env)),
        (None, None) => PathBuf::from(STATE_DEFAULT),
    };
    let runtime = match &overrides.runtime_directory {
        Some(env) => absolute(Path::new(env)),
        None if state == Path::new(STATE_DEFAULT) => PathBuf::from(RUNTIME_DEFAULT),
        None => state.join("run"),
    };
    (state, runtime)
}

fn site(raw: &file::File, overrides: &Overrides, checker: &mut Checker) -> String {
    if let Some(flag) = &overrides.name {
        if !vbr_api::name_is_valid(flag) {
            checker.fault_at("--name", "site.name", name_fault(flag));
        }
        return flag.clone();
    }
    match &raw.site.name {
        Some(value) => checker.name("site.name", value),
        None => clean_name(overrides.hostname.as_deref().unwrap_or_default()),
    }
}

fn listen(
    raw: &file::File,
    overrides: &Overrides,
    transport: Transport,
    checker: &mut Checker,
) -> Vec<String> {
    if !overrides.listen.is_empty() {
        for address in &overrides.listen {
            if let Some(fault) = multiaddr_fault(address) {
                checker.fault_at("--listen", "wire.listen", fault);
            }
        }
        return overrides.listen.clone();
    }
    checker.multiaddrs("wire.listen", raw.wire.listen.as_ref()).unwrap_or_else(|| {
        vec![match transport {
            Transport::Tcp => "/ip4/0.0.0.0/tcp/7300".into(),
            Transport::Quic => "/ip4/0.0.0.0/udp/7300/quic-v1".into(),
        }]
    })
}

fn datastores(
    raw: &BTreeMap<toml::Spanned<String>, file::Datastore>,
    state: &Path,
    checker: &mut Checker,
) -> Vec<DatastoreSection> {
    if raw.is_empty() {
        let path = state.join("datastore");
        return vec![DatastoreSection {
            name: "default".into(),
            reserve_bytes: default_reserve(&path),
            path,
        }];
    }
    let mut sections: Vec<DatastoreSection> = Vec::new();
    for (name, section) in raw {
        let key = format!("datastore.{}", name.get_ref());
        checker.name(&key, name);
        let Some(value) = &section.path else {
            checker.fault_in(
                name.span(),
                &key,
                "`path` is missing; give the directory where replicas are kept".into(),
            );
            continue;
        };
        let Some(path) = checker.path(&format!("{key}.path"), value) else { continue };
        if let Some(other) = sections.iter().find(|s| s.path == path) {
            checker.fault_in(
                value.span(),
                &format!("{key}.path"),
                format!(
                    "{} is the directory of datastore `{}` already; give each its own",
                    path.display(),
                    other.name
                ),
            );
        }
        let reserve_bytes = match &section.reserve {
            Some(value) => {
                checker.size(&format!("{key}.reserve"), value, 0, file_system_bytes(&path)).unwrap_or(0)
            }
            None => default_reserve(&path),
        };
        sections.push(DatastoreSection { name: name.get_ref().clone(), path, reserve_bytes });
    }
    sections
}

fn cache(raw: &file::Cache, state: &Path, checker: &mut Checker) -> CacheSection {
    let path =
        raw.path.as_ref().and_then(|v| checker.path("cache.path", v)).unwrap_or_else(|| state.join("packs"));
    let total = file_system_bytes(&path);
    let size_bytes = match &raw.size {
        Some(value) => checker.size("cache.size", value, CACHE_BYTES_MIN, total).unwrap_or(CACHE_BYTES_MIN),
        None if total == 0 => 10 * GIB,
        None => (total / 5).clamp(CACHE_BYTES_MIN, 10 * GIB),
    };
    let reserve_bytes = match &raw.reserve {
        Some(value) => checker.size("cache.reserve", value, 0, total).unwrap_or(0),
        None => default_reserve(&path),
    };
    CacheSection { path, size_bytes, reserve_bytes }
}

/// 5 %, at most 20 GiB, at least 64 MiB.
fn default_reserve(path: &Path) -> u64 {
    (file_system_bytes(path) / 20).clamp(64 * MIB, 20 * GIB)
}

/// Size of the file system that holds `path` or will; 0 where nobody can tell.
fn file_system_bytes(path: &Path) -> u64 {
    path.ancestors()
        .find_map(|p| rustix::fs::statvfs(p).ok())
        .map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize))
}
