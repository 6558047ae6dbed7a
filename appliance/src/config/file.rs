//! The shape of the configuration file, and where in it something stands.
//!
//! Unknown keys are errors: a misspelt `reserve` must not silently mean the default.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::values::Checker;
use super::{ConfigFault, FILE_BYTES_MAX};

/// Every key of the file (`NAME` stands for a name of the operator's choice). The reference in
/// docs/configuration.md and the packaged default file are tested against this list.
pub const KEYS: &[&str] = &[
    "site.name",
    "wire.listen",
    "wire.advertise",
    "wire.transport",
    "wire.congestion",
    "wire.connections",
    "wire.rate",
    "datastore.NAME.path",
    "datastore.NAME.reserve",
    "cache.size",
    "cache.path",
    "cache.reserve",
    "source.snapshot_dirs",
    "source.snapshot_floor",
    "seed.directories",
    "retention.min_age",
    "quota.bytes",
    "quota.points",
    "schedule.window",
    "schedule.link_wait",
    "schedule.stall_warning",
    "schedule.stall_cut",
    "resources.host_slots",
    "resources.link_slots",
    "resources.datastore_slots",
    "resources.latency_ceiling",
    "failover.accelerator",
    "failover.networks",
    "failover.test_every",
    "failover.test_expect",
    "failover.test_within",
    "scrub.every",
    "scrub.rate",
    "verify.every",
    "verify.rate",
    "history.keep",
    "history.sessions",
    "notify.NAME.on",
    "notify.NAME.jobs",
    "notify.NAME.webhook",
    "notify.NAME.command",
    "notify.NAME.timeout",
    "metrics.listen",
    "api.socket",
    "log.level",
    "log.format",
    "memory.database",
    "accelerator.anchor_memory",
    "accelerator.block_memory",
    "accelerator.keep_sent",
    "accelerator.bases",
];

type Text = Option<Spanned<String>>;
type Texts = Option<Vec<Spanned<String>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub site: Site,
    pub wire: Wire,
    pub datastore: BTreeMap<Spanned<String>, Datastore>,
    pub cache: Cache,
    pub source: Source,
    pub seed: Seed,
    pub retention: Retention,
    pub quota: Quota,
    pub schedule: Schedule,
    pub metrics: Metrics,
    pub resources: Resources,
    pub failover: Failover,
    pub scrub: Paced,
    pub verify: Paced,
    pub history: History,
    pub notify: BTreeMap<Spanned<String>, Notify>,
    pub api: Api,
    pub log: Log,
    pub memory: Memory,
    pub accelerator: Accelerator,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Site {
    pub name: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wire {
    pub listen: Texts,
    pub advertise: Texts,
    pub transport: Text,
    pub congestion: Text,
    pub connections: Option<Spanned<i64>>,
    pub rate: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Datastore {
    pub path: Text,
    pub reserve: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cache {
    pub size: Text,
    pub path: Text,
    pub reserve: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Source {
    pub snapshot_dirs: Texts,
    pub snapshot_floor: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Seed {
    pub directories: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retention {
    pub min_age: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Quota {
    pub bytes: Text,
    pub points: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Schedule {
    pub window: Text,
    pub link_wait: Text,
    pub stall_warning: Text,
    pub stall_cut: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Resources {
    pub host_slots: Option<Spanned<i64>>,
    pub link_slots: Option<Spanned<i64>>,
    pub datastore_slots: Option<Spanned<i64>>,
    pub latency_ceiling: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Failover {
    pub accelerator: Text,
    pub networks: Texts,
    pub test_every: Text,
    pub test_expect: Text,
    pub test_within: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Paced {
    pub every: Text,
    pub rate: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct History {
    pub keep: Text,
    pub sessions: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Notify {
    pub on: Texts,
    pub jobs: Texts,
    pub webhook: Text,
    pub command: Texts,
    pub timeout: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub listen: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub socket: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub level: Text,
    pub format: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Memory {
    pub database: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Accelerator {
    pub anchor_memory: Text,
    pub block_memory: Text,
    pub keep_sent: Option<bool>,
    pub bases: Option<bool>,
}

/// Reads a file of bounded size.
pub(super) fn read(path: &Path) -> Result<String, ConfigFault> {
    let fault = |what: String| ConfigFault { place: path.display().to_string(), key: String::new(), what };
    let file = std::fs::File::open(path).map_err(|e| fault(format!("cannot be read: {e}")))?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|e| fault(format!("cannot be read: {e}")))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(fault(format!(
            "is longer than {FILE_BYTES_MAX} bytes; that is no configuration of vbrd"
        )));
    }
    Ok(text)
}

/// `None` where the text is not TOML or not of this shape; the fault is in the checker then.
pub(super) fn parse(text: &str, checker: &mut Checker) -> Option<File> {
    match toml::from_str::<File>(text) {
        Ok(file) => Some(file),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let key = key_at(text, span.start);
            checker.fault_in(span, &key, one_line(error.message()));
            None
        }
    }
}

/// The dotted key of the line that holds `at`: serde does not say it, and a line number alone makes
/// people count.
fn key_at(text: &str, at: usize) -> String {
    let at = at.min(text.len());
    let line_end = text[at..].find('\n').map_or(text.len(), |n| at + n);
    let mut table = String::new();
    let mut key = String::new();
    for line in text[..line_end].lines() {
        let line = line.trim();
        if let Some(head) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            head.trim_start_matches('[').trim().clone_into(&mut table);
            key.clear();
        } else if let Some((left, _)) = line.split_once('=')
            && !left.trim_start().starts_with('#')
        {
            left.trim().clone_into(&mut key);
        }
    }
    match (table.is_empty(), key.is_empty()) {
        (_, true) => table,
        (true, false) => key,
        (false, false) => format!("{table}.{key}"),
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}
