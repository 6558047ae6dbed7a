//! The tools that are compared: each carries an image to the other end of the link as the next version
//! of its disk. vbr is one of them ([`ours`]).
//!
//! A tool owns its link, its working directory and its daemons. What it keeps between images lies below
//! one directory, so that it can be put back to an earlier moment ([`Tool::save`], [`Tool::restore`]).
//! Measuring is the caller's job ([`super::carry`]).

mod bita;
mod borg;
mod http;
pub mod ours;
mod restic;
mod rsync;
mod ssh;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use http::serve;

use super::record::Told;
use crate::disk;
use crate::link::{End, Link, LinkConfig};
use crate::process::{finish, run};
use crate::work::WorkDir;
use crate::workload::disk_of;

/// The other tools, in the order of the tables.
pub const PEERS: [&str; 5] = ["rsync", "restic", "borg", "borg 64 KiB", "bita"];

const PATIENCE_SECONDS: &str = "7200";

/// Carries images.
pub trait Tool {
    /// As it names itself.
    fn version(&self) -> String;
    /// What it is told to do.
    fn setting(&self) -> String;
    /// The link, for its counters and to reshape it.
    fn link(&self) -> Result<&Link>;
    /// The port at which everything it sends is counted.
    fn port(&self) -> u16;
    /// Puts the image where the tool takes it from. Not measured.
    fn prepare(&mut self, image: &Path) -> Result<()>;
    /// Carries what was prepared.
    fn carry(&mut self, image: &Path) -> Result<Option<Told>>;
    /// Checks what arrived, as far as that is cheap. Not measured.
    fn check(&mut self, image: &Path) -> Result<()>;
    /// Keeps a copy of all state.
    fn save(&mut self) -> Result<()>;
    /// Goes back to the copy.
    fn restore(&mut self) -> Result<()>;
}

/// A peer on a link of this shape. Err says why it cannot be had.
pub fn peer(name: &str, link: LinkConfig) -> Result<Box<dyn Tool>> {
    let stage = Stage::new(link)?;
    Ok(match name {
        "rsync" => Box::new(rsync::Rsync::new(stage)?),
        "restic" => Box::new(restic::Restic::new(stage)?),
        "borg" => Box::new(borg::Borg::new(stage, None)?),
        "borg 64 KiB" => Box::new(borg::Borg::new(stage, Some("buzhash,14,18,16,4095"))?),
        "bita" => Box::new(bita::Bita::new(stage)?),
        _ => bail!("there is no tool {name}; known: {}", PEERS.join(", ")),
    })
}

/// What every peer stands on.
struct Stage {
    /// Daemons of either end; ended when dropped, before their namespaces go.
    daemons: Vec<Daemon>,
    link: Link,
    dir: WorkDir,
}

/// A program that runs until it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // What has ended already needs no ending.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Stage {
    fn new(link: LinkConfig) -> Result<Self> {
        let stage = Self { daemons: Vec::new(), link: Link::up(link)?, dir: WorkDir::new()? };
        std::fs::create_dir_all(stage.state())?;
        std::fs::create_dir_all(stage.dir.join("disks"))?;
        Ok(stage)
    }

    /// Everything that a tool remembers, at either end.
    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where the source has a disk: one name for all its versions.
    fn disk(&self, image: &Path) -> PathBuf {
        self.dir.join("disks").join(format!("{}.img", disk_of(image)))
    }

    fn prepare(&self, image: &Path) -> Result<()> {
        put(image, &self.disk(image))
    }

    fn command(&self, end: End, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.link.namespace(end).command(program)
    }

    /// A command that is given up after hours: a stuck peer must not hold the benchmark for ever.
    fn client(&self, end: End, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command(end, "timeout");
        command.args(["-k", "5", PATIENCE_SECONDS]).arg(program);
        command
    }

    /// Starts a daemon and waits until it listens.
    fn daemon(&mut self, end: End, command: &mut Command, port: u16) -> Result<()> {
        let log = std::fs::File::create(self.dir.join(format!("daemon-{port}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemons.push(Daemon(command.spawn()?));
        let limit = Instant::now() + Duration::from_secs(10);
        let wanted = format!(":{port}");
        loop {
            let listening = finish(self.command(end, "ss").args(["-Hltn"]))?;
            let listening = String::from_utf8_lossy(&listening.stdout).into_owned();
            if listening.split_whitespace().any(|word| word.ends_with(&wanted)) {
                return Ok(());
            }
            if Instant::now() > limit {
                let said = std::fs::read_to_string(self.dir.join(format!("daemon-{port}.log")));
                bail!("{command:?} does not listen: {}", said.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn save(&self) -> Result<()> {
        replace(&self.state(), &self.dir.join("saved"))
    }

    fn restore(&self) -> Result<()> {
        replace(&self.dir.join("saved"), &self.state())
    }
}

/// The image under another name: a hard link where possible, since nothing writes to it.
pub fn put(image: &Path, place: &Path) -> Result<()> {
    if place.exists() {
        std::fs::remove_file(place)?;
    }
    if std::fs::hard_link(image, place).is_err() {
        disk::copy(image, place)?;
    }
    Ok(())
}

/// Makes `to` a copy of `from`, hard links inside kept as such.
fn replace(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    let args = ["-a", "--reflink=auto", "--sparse=always"].map(std::ffi::OsStr::new);
    run("cp", args.into_iter().chain([from.as_os_str(), to.as_os_str()])).map(drop)
}

/// The first line that a program prints when asked for its version.
fn version(program: &str, args: &[&str]) -> String {
    let said = run(program, args).unwrap_or_default();
    said.lines().next().unwrap_or_default().trim().to_owned()
}
