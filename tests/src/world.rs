//! Two sites and what is between them: `branch` (source) and `dr` (target), in two namespaces joined
//! by a link, or on loopback where this process is not root.
//!
//! Owns the sites, the link and the working directory, in this order of dropping. Offers the steps
//! that every suite takes: pair, create a job, run it, and prove that a restore point is its source.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vbr_api::{List, PointState, RestorePoint, Session, SessionState, Status, VerifyReport};

use crate::disk;
use crate::link::{End, Link, LinkConfig};
use crate::process::is_root;
use crate::site::{Site, SiteConfig};
use crate::work::WorkDir;

/// Longest a session may take.
pub const SESSION: Duration = Duration::from_secs(600);

/// How to build a world. The defaults: fast link, small cache, no minimum age.
#[derive(Clone, Debug)]
pub struct WorldSpec {
    /// The link; not used without root.
    pub link: LinkConfig,
    /// The system's congestion control in both namespaces; the machine's unless said.
    pub congestion: Option<&'static str>,
    /// Both sites on loopback even where namespaces could be made.
    pub loopback: bool,
    /// Rate for `[wire]` of the source, where the link is loopback (`20Mbit`).
    pub loopback_rate: Option<String>,
    /// State of the source; beside everything else unless said.
    pub source_state: Option<PathBuf>,
    /// State of the target.
    pub target_state: Option<PathBuf>,
    /// The target's datastore; in its state unless said.
    pub datastore: Option<PathBuf>,
    /// Appended to the source's configuration.
    pub source_toml: String,
    /// Appended to the target's configuration.
    pub target_toml: String,
    /// `[cache] size` of both.
    pub cache_size: String,
    /// The same of the source alone.
    pub source_cache_size: Option<String>,
    /// `retention.min_age` of the target.
    pub min_age: String,
    /// `datastore.reserve` of the target, and of the source, which keeps nothing there.
    pub reserve: String,
}

impl Default for WorldSpec {
    fn default() -> Self {
        Self {
            link: LinkConfig::fast(),
            congestion: None,
            loopback: false,
            loopback_rate: None,
            source_state: None,
            target_state: None,
            datastore: None,
            source_toml: String::new(),
            target_toml: String::new(),
            cache_size: "1GiB".into(),
            source_cache_size: None,
            min_age: "0".into(),
            reserve: "16MiB".into(),
        }
    }
}

/// Two running sites.
pub struct World {
    /// `branch`
    pub source: Site,
    /// `dr`
    pub target: Site,
    link: Option<Link>,
    dir: WorkDir,
    datastore: PathBuf,
    port: u16,
}

impl World {
    /// Starts both sites, not yet paired.
    pub fn start(spec: &WorldSpec) -> Result<Self> {
        Self::start_in(WorkDir::new()?, spec)
    }

    /// The same in a directory that exists already (with file systems mounted in it, for one).
    pub fn start_in(dir: WorkDir, spec: &WorldSpec) -> Result<Self> {
        let link = if is_root() && !spec.loopback { Some(Link::up(spec.link)?) } else { None };
        if let (Some(link), Some(name)) = (&link, spec.congestion) {
            link.set_congestion(name)?;
        }
        let ports = if link.is_some() { [7300, 7300] } else { [free_port()?, free_port()?] };
        let make = |end: End, name: &str, port: u16, state: &Option<PathBuf>, toml: String| {
            let home = dir.join(name);
            let address = if link.is_some() { end.address() } else { "127.0.0.1" };
            Site::new(SiteConfig {
                name: name.into(),
                state: state.clone().unwrap_or_else(|| home.join("state")),
                namespace: link.as_ref().map(|link| link.namespace(end).name().to_owned()),
                listen: format!("/ip4/{address}/tcp/{port}"),
                home,
                toml,
            })
        };
        let target_state = spec.target_state.clone().unwrap_or_else(|| dir.join("dr/state"));
        let datastore = spec.datastore.clone().unwrap_or_else(|| target_state.join("datastore"));
        let own = spec.source_state.clone().unwrap_or_else(|| dir.join("branch/state")).join("datastore");
        let toml = source_toml(spec, link.is_none(), &own);
        let source = make(End::Source, "branch", ports[0], &spec.source_state, toml)?;
        let target = make(End::Target, "dr", ports[1], &spec.target_state, target_toml(spec, &datastore))?;
        let world = Self { source, target, link, dir, datastore, port: ports[1] };
        world.target.start()?;
        world.source.start()?;
        Ok(world)
    }

    /// Starts both sites and pairs them.
    pub fn paired(spec: &WorldSpec) -> Result<Self> {
        let world = Self::start(spec)?;
        world.pair()?;
        Ok(world)
    }

    /// Invites at the target, joins at the source, waits for the connection.
    pub fn pair(&self) -> Result<()> {
        let code = self.target.ok(&["peer", "invite"])?;
        self.source.ok(&["peer", "join", &code])?;
        self.wait_connected(Duration::from_secs(30))
    }

    /// Waits until the source sees the target.
    pub fn wait_connected(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let status: Status = self.source.json(&["status"])?;
            if status.peers.iter().any(|peer| peer.name == "dr" && peer.connected) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!(
                    "not connected after {limit:?}\n{}\n{}",
                    self.source.log_tail(20),
                    self.target.log_tail(20)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The link; an error on loopback.
    pub fn link(&self) -> Result<&Link> {
        self.link.as_ref().context("there is no shaped link without root")
    }

    /// True where a link with outages and counters exists.
    pub fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// A path in the working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The target's datastore.
    pub fn datastore(&self) -> &Path {
        &self.datastore
    }

    /// The target's port, as the link's counters know it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A job over one raw disk, or with `,format=…` behind its path.
    pub fn job(&self, name: &str, disk: impl AsRef<std::ffi::OsStr>) -> Result<()> {
        self.job_keeping(name, disk, 14)
    }

    /// The same, for a case that seals more points than usual.
    pub fn job_keeping(&self, name: &str, disk: impl AsRef<std::ffi::OsStr>, keep: u32) -> Result<()> {
        let disk = disk.as_ref().to_string_lossy().into_owned();
        let keep = keep.to_string();
        let words = ["job", "create", name, "--disk", &disk, "--target", "dr", "--keep", &keep];
        self.source.ok(&words).map(drop)
    }

    /// Runs a job to its end and wants success.
    pub fn run(&self, job: &str) -> Result<Session> {
        self.run_within(job, SESSION)
    }

    /// The same with a time limit of its own.
    pub fn run_within(&self, job: &str, limit: Duration) -> Result<Session> {
        let session: Session = self.source.json_within(&["job", "run", job, "--wait"], limit)?;
        self.expect_success(session)
    }

    /// A copy of a disk as it is now, to compare with later.
    pub fn keep(&self, disk: &Path, tag: &str) -> Result<PathBuf> {
        let stem = disk.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let copy = self.path(&format!("{stem}-{tag}.kept"));
        disk::copy(disk, &copy)?;
        Ok(copy)
    }

    /// Starts a job and returns at once.
    pub fn run_in_background(&self, job: &str) -> Result<Session> {
        self.source.json(&["job", "run", job])
    }

    /// Waits until the job's latest session is over, through restarts of either side, and wants success.
    pub fn wait(&self, job: &str) -> Result<Session> {
        let session = self.wait_over(job)?;
        self.expect_success(session)
    }

    /// Waits until the job's latest session is over, whatever came of it.
    pub fn wait_over(&self, job: &str) -> Result<Session> {
        self.wait_over_within(job, SESSION)
    }

    /// The same with a time limit of its own.
    pub fn wait_over_within(&self, job: &str, limit: Duration) -> Result<Session> {
        let end = Instant::now() + limit;
        loop {
            let last = self.last_session(job)?;
            if let Some(session) = last.filter(|session| session.state.is_over()) {
                return Ok(session);
            }
            if Instant::now() > end {
                bail!(
                    "job {job} is not over after {limit:?}\n{}\n{}",
                    self.source.log_tail(40),
                    self.target.log_tail(40)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The newest session of a job, if it ever ran.
    pub fn last_session(&self, job: &str) -> Result<Option<Session>> {
        let all: List<Session> = self.source.json(&["session", "list", "--job", job])?;
        Ok(all.items.into_iter().max_by_key(|session| session.started_at))
    }

    fn expect_success(&self, session: Session) -> Result<Session> {
        if session.state != SessionState::Succeeded {
            bail!(
                "session {} of {} ended as {:?}: {:?} {:?}\n{}\n{}",
                session.session,
                session.job,
                session.state,
                session.error,
                session.warnings,
                self.source.log_tail(40),
                self.target.log_tail(40)
            );
        }
        ensure!(session.restore_point.is_some(), "succeeded without a restore point: {session:?}");
        Ok(session)
    }

    /// Restore points of a replica, oldest first.
    pub fn points(&self, replica: &str) -> Result<Vec<RestorePoint>> {
        let mut list: List<RestorePoint> = self.target.json(&["restore-point", "list", replica])?;
        list.items.sort_by_key(|point| point.sealed_at);
        Ok(list.items)
    }

    /// How many points a replica has, once it is `expected` or some seconds have passed.
    pub fn settled_points(&self, replica: &str, expected: usize) -> Result<usize> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let count = self.points(replica)?.len();
            if count == expected || Instant::now() > end {
                return Ok(count);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The point verifies, and each disk exports byte for byte as `expected`.
    pub fn prove(&self, point: &str, expected: &[&Path]) -> Result<()> {
        let report: VerifyReport = self.target.json_within(&["restore-point", "verify", point], SESSION)?;
        ensure!(report.ok && report.bad_chunks == 0, "{point} does not verify: {report:?}");
        for (index, original) in expected.iter().enumerate() {
            let out = self.dir.join(format!("export-{}-{index}.raw", point.replace(['@', '/'], "-")));
            let disk = index.to_string();
            let path = out.to_string_lossy().into_owned();
            if out.exists() {
                std::fs::remove_file(&out)?;
            }
            self.target.ok_within(&["restore-point", "export", point, "--disk", &disk, &path], SESSION)?;
            disk::ensure_same(&out, original).with_context(|| format!("{point} disk {index}"))?;
            std::fs::remove_file(&out)?;
        }
        Ok(())
    }

    /// The rule after every case: the latest point is `expected`, and nothing unsealed looks sealed:
    /// every listed point is sealed, comes from a session of its own, and verifies.
    pub fn prove_latest(&self, replica: &str, expected: &[&Path]) -> Result<()> {
        let points = self.points(replica)?;
        let mut sessions: Vec<&str> = points.iter().map(|point| point.session.as_str()).collect();
        sessions.sort_unstable();
        let all = sessions.len();
        sessions.dedup();
        ensure!(sessions.len() == all, "a session sealed two points of {replica}: {points:?}");
        for point in &points {
            let sealed = matches!(point.state, PointState::Sealed | PointState::Pinned);
            ensure!(sealed, "{}@{} is {:?}", replica, point.id, point.state);
            let name = format!("{replica}@{}", point.id);
            let report: VerifyReport =
                self.target.json_within(&["restore-point", "verify", &name], SESSION)?;
            ensure!(report.ok, "{name} does not verify: {report:?}");
        }
        self.prove(&format!("{replica}@latest"), expected)
    }
}

fn source_toml(spec: &WorldSpec, loopback: bool, datastore: &Path) -> String {
    let rate = match (&spec.loopback_rate, loopback) {
        (Some(rate), true) => format!("[wire]\nrate = \"{rate}\"\n"),
        _ => String::new(),
    };
    format!(
        "{rate}[cache]\nsize = \"{}\"\nreserve = \"0\"\n[source]\nsnapshot_floor = \"0\"\n\
         [datastore.default]\npath = \"{}\"\nreserve = \"{}\"\n{}\n",
        spec.source_cache_size.as_ref().unwrap_or(&spec.cache_size),
        datastore.display(),
        spec.reserve,
        spec.source_toml
    )
}

fn target_toml(spec: &WorldSpec, datastore: &Path) -> String {
    format!(
        "[cache]\nsize = \"{}\"\nreserve = \"0\"\n[retention]\nmin_age = \"{}\"\n\
         [datastore.default]\npath = \"{}\"\nreserve = \"{}\"\n{}\n",
        spec.cache_size,
        spec.min_age,
        datastore.display(),
        spec.reserve,
        spec.target_toml
    )
}

/// A port nobody listens on at this moment.
/// A port of loopback that nothing listens at now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
