//! The system test: the package and its service in two machines with a real systemd, joined by a slow line.
//!
//! One story, told in steps whose time is printed. Each step leaves the machines as the next one finds them; a step
//! that fails shows both journals. Owns machines and link. Not its job: what the suites in `tests/tests` prove of
//! replication without systemd.

mod failover;
mod package;
pub mod probe;
mod sandbox;
mod service;
mod units;
mod walk;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vbr_api::{List, Session, SessionState, Status};

use crate::disk::{self, MIB};
use crate::link::{End, Link, LinkConfig};
use crate::machine::package::Package;
use crate::machine::{Cgroups, Machine, root};
use crate::work::WorkDir;

pub use walk::walk;

/// What joins the sites.
const LINE_MBIT: f64 = 10.0;
const ROUND_TRIP_MS: u64 = 40;
/// Where the target listens.
const PORT: u16 = 7300;
/// The disk that is replicated.
pub(crate) const DISK: &str = "/srv/images/web.img";
/// What a session may send more than the plain bytes of its change, however often it is cut: payload that was not
/// durable yet (3.5 MiB a cut), control, and what TCP sends again.
const RESENT_MAX: u64 = 5 * MIB;
/// The longest that a wait takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// Two machines and what is between them. Dropped in this order.
pub struct System {
    /// Source.
    pub branch: Machine,
    /// Target.
    pub dr: Machine,
    link: Link,
    _cgroups: Cgroups,
    dir: WorkDir,
    package: Package,
    started: Instant,
}

impl System {
    /// Boots both machines from a base root that has what `package` wants. Its making does not count.
    pub fn boot(package: &Package) -> Result<Self> {
        let base = root::prepare(package)?;
        let (dir, started) = (WorkDir::new()?, Instant::now());
        let cgroups = Cgroups::mount(dir.path())?;
        let link = Link::up(LinkConfig::shaped(LINE_MBIT, ROUND_TRIP_MS, 0.0))?;
        link.as_one_network()?;
        let boot = |end, name| Machine::boot(&base, link.namespace(end), &cgroups, dir.path(), name);
        let (branch, dr) = (boot(End::Source, "branch")?, boot(End::Target, "dr")?);
        let system = Self { branch, dr, link, _cgroups: cgroups, dir, package: package.clone(), started };
        system.say(started, "two machines with systemd are up");
        Ok(system)
    }

    /// Both machines: source, target.
    pub fn machines(&self) -> [&Machine; 2] {
        [&self.branch, &self.dr]
    }

    /// A path beside the machines' files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Since the machines began to boot.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Runs a step and prints how long it took; where it fails, what both machines say of it.
    pub fn step(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        if let Err(error) = work() {
            let explained: Vec<String> = self.machines().iter().map(|machine| machine.explain()).collect();
            bail!("FAILED: {what}\n{}\n{error:#}", explained.join("\n"));
        }
        self.say(begun, what);
        Ok(())
    }

    fn say(&self, begun: Instant, what: &str) {
        println!("[{:>5.1} s] {:>5.1} s  {what}", self.seconds(), begun.elapsed().as_secs_f64());
    }

    /// Does the same in both machines at once.
    fn in_both(&self, work: impl Fn(&Machine) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let workers = self.machines().map(|machine| scope.spawn(|| work(machine)));
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(done) => done,
                Err(_) => bail!("a step panicked"),
            })
        })
    }

    /// Invites at the target, joins at the source, waits for the connection.
    fn pair(&self) -> Result<()> {
        let code = self.dr.run(&["vbrctl", "peer", "invite"])?;
        self.branch.run(&["vbrctl", "peer", "join", &code])?;
        self.wait_connected()
    }

    fn wait_connected(&self) -> Result<()> {
        wait("the link between the sites", || {
            let status: Status = self.branch.json(&["status"])?;
            Ok(status.peers.iter().any(|peer| peer.name == "dr" && peer.connected))
        })
    }

    /// Fills the disk of the source with bytes that do not compress: so much crosses as is there.
    fn fill(&self, mib: u64, seed: u64) -> Result<()> {
        let path = self.branch.path(DISK);
        std::fs::create_dir_all(path.parent().context("a disk lies in a directory")?)?;
        disk::random(&path, mib * MIB, seed)
    }

    /// Runs the job to its end and proves what came of it.
    fn replicate(&self) -> Result<()> {
        let session: Session = self.branch.json(&["job", "run", "web", "--wait"])?;
        ensure_succeeded(&session)?;
        self.prove()
    }

    /// Changes `mib` of the disk, runs the job, does `fault` when a third has crossed, and waits for the end of the session
    /// that began. It must have gone on from where it was: counted outside of vbr, on the line.
    fn through(&self, mib: u64, seed: u64, fault: impl FnOnce() -> Result<()>) -> Result<()> {
        self.fill(mib, seed)?;
        let before = self.link.counters().port(PORT).up_sent;
        let begun: Session = self.branch.json(&["job", "run", "web"])?;
        self.link.wait_sent(PORT, before, mib * MIB / 3, PATIENCE)?;
        let now: Session = self.branch.json(&["session", "show", &begun.session])?;
        ensure!(!now.state.is_over(), "the session was over before the fault: {now:?}");
        fault()?;
        let mut last = now;
        wait("the end of the session", || {
            // The console fails while vbrd of the source is away.
            let Ok(list) = self.branch.json::<List<Session>>(&["session", "list", "--job", "web"]) else {
                return Ok(false);
            };
            let found = list.items.into_iter().max_by_key(|session| session.started_at);
            last = found.context("the session is not listed any more")?;
            Ok(last.state.is_over())
        })?;
        ensure_succeeded(&last)?;
        ensure!(last.session == begun.session, "session {} was followed by {}", begun.session, last.session);
        ensure!(last.resumed > 0, "the session did not notice the fault: {last:?}");
        let crossed = self.link.counters().port(PORT).up_sent - before;
        ensure!(
            crossed <= mib * MIB + RESENT_MAX,
            "{crossed} bytes crossed for a change of {mib} MiB: the session did not go on from where it was"
        );
        self.prove()
    }

    /// The latest restore point verifies and exports byte for byte as the source's disk.
    fn prove(&self) -> Result<()> {
        let out = "/srv/web.raw";
        self.dr.run(&["vbrctl", "restore-point", "verify", "web@latest"])?;
        self.dr.run(&["vbrctl", "restore-point", "export", "web@latest", "--disk", "0", out])?;
        let out = self.dr.path(out);
        disk::ensure_same(&out, &self.branch.path(DISK))?;
        Ok(std::fs::remove_file(out)?)
    }
}

fn ensure_succeeded(session: &Session) -> Result<()> {
    ensure!(session.state == SessionState::Succeeded, "the session did not succeed: {session:?}");
    ensure!(session.restore_point.is_some(), "succeeded without a restore point: {session:?}");
    Ok(())
}

/// Waits until something is so.
fn wait(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = Instant::now() + PATIENCE;
    while !is()? {
        ensure!(Instant::now() < limit, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The whole story. `probe`: the program that tries what the sandbox denies.
pub fn run(package: &Package, probe: &Path) -> Result<()> {
    let system = System::boot(package)?;
    package::install(&system)?;
    system.step("the sites are paired", || system.pair())?;
    system.step("the first run: 8 MiB, exported and compared", || {
        system.fill(8, 1)?;
        system
            .branch
            .run(&["vbrctl", "job", "create", "web", "--disk", DISK, "--target", "dr", "--keep", "14"])?;
        system.replicate()
    })?;
    service::run(&system)?;
    failover::run(&system)?;
    package::upgrade(&system)?;
    failover::goes_on(&system, "upgraded")?;
    sandbox::run(&system, probe)?;
    package::remove(&system)?;
    println!("the system test has passed in {:.0} s", system.seconds());
    Ok(())
}
