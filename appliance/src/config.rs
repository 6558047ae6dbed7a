//! Configuration of vbrd: a TOML file, flags and the environment become one checked [`Config`].
//!
//! Three steps: [`file`] is the shape of the file and finds what does not parse, [`values`] checks
//! single values (sizes, rates, durations, addresses), and [`resolve`] joins file,
//! flags, environment and defaults. Every error names the place (`file:line:column`), the key and
//! what is allowed there, and all errors of a file are reported together.
//!
//! Owns no state; opens nothing but the file. What a value does is the business of whoever gets it.
//! Bounds: the file is at most [`FILE_BYTES_MAX`].

mod failover;
mod file;
mod housekeeping;
mod render;
mod resolve;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use failover::{Accelerator, FailoverSection};
pub use file::KEYS;
#[cfg(test)]
pub(crate) use housekeeping::parse_webhook;
pub use housekeeping::{HistorySection, NotifyEvent, NotifySection, PacedSection, Webhook};
pub use values::{parse_duration, parse_rate, parse_size};

use crate::error::Problem;
use crate::schedule::window::Window;

/// Largest configuration file that is read.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Read when no `--config` is given and it exists.
pub const FILE_DEFAULT: &str = "/etc/vbr/vbrd.toml";
/// State directory when neither `--state` nor `STATE_DIRECTORY` says otherwise.
pub const STATE_DEFAULT: &str = "/var/lib/vbr";
/// Runtime directory that goes with [`STATE_DEFAULT`].
pub const RUNTIME_DEFAULT: &str = "/run/vbr";

/// Keys of `[wire]` that take effect only after a restart.
const WIRE_RESTARTS: &str = "wire.listen, wire.advertise, wire.transport, wire.congestion, wire.connections";

/// Those of `[schedule]`, besides the window.
const WAIT_RESTARTS: &str = "schedule.link_wait, schedule.stall_warning, schedule.stall_cut";

/// How the link to peers is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP + Noise + Yamux with the kernel's BBR.
    Tcp,
    /// QUIC.
    Quic,
}

impl Transport {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        }
    }
}

/// Who decides how fast a TCP connection may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// The kernel's BBR; the system's default where the kernel refuses it.
    Bbr,
    /// The system's default, whatever it is.
    System,
}

impl Congestion {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bbr => "bbr",
            Self::System => "system",
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; with `<N>` priorities under systemd.
    Plain,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// As written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Json => "json",
        }
    }
}

/// `[wire]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireSection {
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// Multiaddrs that invitations carry; the listeners' own unless said.
    pub advertise: Vec<String>,
    /// Preferred transport.
    pub transport: Transport,
    /// Congestion control of TCP connections.
    pub congestion: Congestion,
    /// Most connections to one peer.
    pub connections: usize,
    /// Upper bound on bytes on the wire of all peers together, bits a second.
    pub rate_bps: Option<u64>,
}

/// `[datastore.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatastoreSection {
    /// Its name here; peers may ask for it.
    pub name: String,
    /// Directory.
    pub path: PathBuf,
    /// Free space that replicas leave alone, bytes.
    pub reserve_bytes: u64,
}

/// Section `accelerator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceleratorSection {
    /// Memory of the content anchors, at a source.
    pub anchor_memory_bytes: usize,
    /// Memory of the index of 4 KiB blocks, at a target.
    pub block_memory_bytes: usize,
    /// A source keeps what it sends in its cache, as bases for later.
    pub keep_sent: bool,
    /// A source looks for bases where the line makes it worth its while.
    pub bases: bool,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSection {
    /// Directory of the packs.
    pub path: PathBuf,
    /// Most bytes in packs.
    pub size_bytes: u64,
    /// Free space that the cache leaves alone, bytes.
    pub reserve_bytes: u64,
}

/// `[source]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSection {
    /// Where clones may be made, one a file system; beside the disk where none fits.
    pub snapshot_dirs: Vec<PathBuf>,
    /// No clone is made with less free space than this, bytes.
    pub snapshot_floor_bytes: u64,
}

/// Of `[schedule]`: how long sessions wait for what does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitSection {
    /// A lost link.
    pub link: Duration,
    /// Progress, until it is told.
    pub stall_warning: Duration,
    /// Progress, until the attempt is cut; more than `stall_warning`.
    pub stall_cut: Duration,
}

/// `[resources]`: disks that are worked on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceSection {
    /// Of one source host.
    pub host_slots: u32,
    /// Over the link to one peer.
    pub link_slots: u32,
    /// Into one datastore of a peer.
    pub datastore_slots: u32,
    /// Where reads of a source host take longer, reading slows down; never where there is none.
    pub latency_ceiling: Option<Duration>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives like `info,vbr_appliance::wire=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// The effective configuration: checked, complete, absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// State directory.
    pub state: PathBuf,
    /// Sockets and other things that do not outlive the process.
    pub runtime: PathBuf,
    /// This site's name.
    pub site: String,
    /// `[wire]`
    pub wire: WireSection,
    /// In order of their names; never empty.
    pub datastores: Vec<DatastoreSection>,
    /// `[cache]`
    pub cache: CacheSection,
    /// `[source]`
    pub source: SourceSection,
    /// Where images may lie that peers name as seeds.
    pub seed_directories: Vec<PathBuf>,
    /// No restore point younger than this retires, whatever a source asks.
    pub retention_min_age: Duration,
    /// What a peer may fill that has no bounds of its own.
    pub quota: vbr_api::PeerQuota,
    /// The hours in which jobs run by themselves; any where there is none.
    pub window: Option<Window>,
    /// Where the metrics are served besides the socket: an address of this machine alone.
    pub metrics: Option<SocketAddr>,
    /// The rest of `[schedule]`.
    pub waits: WaitSection,
    /// `[resources]`
    pub resources: ResourceSection,
    /// `[failover]`
    pub failover: FailoverSection,
    /// `[scrub]`
    pub scrub: PacedSection,
    /// `[verify]`
    pub verify: PacedSection,
    /// `[history]`
    pub history: HistorySection,
    /// `[notify.NAME]`, in order of their names.
    pub notify: Vec<NotifySection>,
    /// Unix socket of the management API.
    pub socket: PathBuf,
    /// `[log]`
    pub log: LogSection,
    /// Memory of RocksDB's block cache and write buffers, bytes.
    pub database_memory_bytes: usize,
    /// The WAN accelerator's part.
    pub accelerator: AcceleratorSection,
}

/// What came in besides the file: flags and environment, injected so that tests need neither.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--state`
    pub state: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--listen`, each
    pub listen: Vec<String>,
    /// `--name`
    pub name: Option<String>,
    /// `STATE_DIRECTORY`
    pub state_directory: Option<String>,
    /// `RUNTIME_DIRECTORY`
    pub runtime_directory: Option<String>,
    /// The machine's name.
    pub hostname: Option<String>,
}

impl Overrides {
    /// Fills in what the environment says.
    pub fn with_environment(mut self) -> Self {
        let first = |name| {
            // systemd separates several directories with colons; ours is the first.
            std::env::var(name)
                .ok()
                .and_then(|v| v.split(':').next().map(str::to_owned))
                .filter(|v| !v.is_empty())
        };
        self.state_directory = first("STATE_DIRECTORY");
        self.runtime_directory = first("RUNTIME_DIRECTORY");
        self.hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        self
    }
}

/// One fault in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// `file:line:column`, or the flag's name.
    pub place: String,
    /// `wire.rate`; empty where the file is not TOML at all.
    pub key: String,
    /// What is wrong and what is allowed.
    pub what: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.place, self.what),
            key => write!(f, "{}: {key}: {}", self.place, self.what),
        }
    }
}

/// Everything that is wrong with the configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<ConfigFault>);

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Problem::invalid(
            "the configuration",
            error.to_string(),
            "correct the lines named above; `vbrd check-config` checks a file without starting anything",
        )
    }
}

impl Config {
    /// Reads the file (if there is one), applies flags and defaults, checks everything.
    pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
        let path = match &overrides.config {
            Some(path) => Some(path.clone()),
            None => Some(PathBuf::from(FILE_DEFAULT)).filter(|path| path.exists()),
        };
        let text = match &path {
            Some(path) => file::read(path).map_err(|fault| ConfigError(vec![fault]))?,
            None => String::new(),
        };
        Self::resolve(path, &text, overrides)
    }

    /// The same for a text that was read already.
    pub fn resolve(path: Option<PathBuf>, text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let name = path.as_deref().unwrap_or(Path::new("configuration")).display().to_string();
        let mut checker = values::Checker::new(name, text);
        let raw = file::parse(text, &mut checker).unwrap_or_default();
        let config = resolve::resolve(path, raw, overrides, &mut checker);
        checker.finish(config)
    }

    /// The effective configuration as TOML.
    pub fn to_toml(&self) -> String {
        render::render(self)
    }

    /// Sections that differ from `new` and take effect only after a restart.
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        let sockets = |c: &Config| (c.wire.transport, c.wire.congestion, c.wire.connections);
        let wire = |c: &Config| (c.wire.listen.clone(), c.wire.advertise.clone(), sockets(c));
        let checks: [(&'static str, bool); 20] = [
            ("--state", self.state != new.state),
            ("site.name", self.site != new.site),
            (WIRE_RESTARTS, wire(self) != wire(new)),
            ("datastore", self.datastores != new.datastores),
            ("cache", self.cache != new.cache),
            ("source", self.source != new.source),
            ("seed.directories", self.seed_directories != new.seed_directories),
            ("schedule.window", self.window != new.window),
            ("metrics.listen", self.metrics != new.metrics),
            (WAIT_RESTARTS, self.waits != new.waits),
            ("resources", self.resources != new.resources),
            ("failover", self.failover != new.failover),
            ("scrub", self.scrub != new.scrub),
            ("verify", self.verify != new.verify),
            ("history", self.history != new.history),
            ("notify", self.notify != new.notify),
            ("api.socket", self.socket != new.socket),
            ("log.format", self.log.format != new.log.format),
            ("memory.database", self.database_memory_bytes != new.database_memory_bytes),
            ("accelerator", self.accelerator != new.accelerator),
        ];
        checks.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests;
