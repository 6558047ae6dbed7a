//! One site: a `vbrd` of its own (state, configuration, socket, namespace) and the `vbrctl` that
//! drives it. Both are the real programs.
//!
//! Owns the process: killed and reaped when dropped. Its log is kept beside the state and its end is
//! shown when something fails. The state outlives restarts; the world ([`crate::world`]) owns it.

use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::link::namespace::command_in;

/// How long a `vbrd` may take until its socket answers. Generous: RocksDB recovers on a loaded machine.
const READY: Duration = Duration::from_secs(60);
/// The console is killed after this, unless a call says otherwise.
const CONSOLE: Duration = Duration::from_secs(180);

/// What a site is made of.
#[derive(Clone, Debug)]
pub struct SiteConfig {
    /// Site name.
    pub name: String,
    /// Directory for configuration, socket, runtime directory and log.
    pub home: PathBuf,
    /// State directory.
    pub state: PathBuf,
    /// Name of the network namespace; none for ours.
    pub namespace: Option<String>,
    /// Multiaddr.
    pub listen: String,
    /// The configuration file.
    pub toml: String,
}

/// A site's daemon and console.
pub struct Site {
    config: Mutex<SiteConfig>,
    child: Mutex<Option<Child>>,
    environment: Mutex<Vec<(String, PathBuf)>>,
    socket: PathBuf,
    log: PathBuf,
}

impl Site {
    /// Writes the configuration; starts nothing yet.
    pub fn new(config: SiteConfig) -> Result<Self> {
        std::fs::create_dir_all(config.home.join("run"))?;
        std::fs::create_dir_all(&config.state)?;
        let (socket, log) = (config.home.join("sock"), config.home.join("log"));
        let (config, child, environment) = (Mutex::new(config), Mutex::new(None), Mutex::default());
        Ok(Self { config, child, environment, socket, log })
    }

    /// Site name.
    pub fn name(&self) -> String {
        self.config().name.clone()
    }

    /// State directory.
    pub fn state(&self) -> PathBuf {
        self.config().state.clone()
    }

    /// Unix socket of the management API.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The configuration file's text, as the next start takes it.
    pub fn toml(&self) -> String {
        self.config().toml.clone()
    }

    /// Replaces the configuration file's text, for the next start.
    pub fn set_toml(&self, toml: &str) {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).toml = toml.to_owned();
    }

    /// What the environment of `vbrd` holds besides, from its next start on.
    pub fn set_environment(&self, variables: &[(&str, &Path)]) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.to_path_buf()));
        *self.environment.lock().unwrap_or_else(PoisonError::into_inner) = variables.collect();
    }

    fn config(&self) -> std::sync::MutexGuard<'_, SiteConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `vbrd` and waits until it answers.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts `vbrd` without waiting.
    pub fn launch(&self) -> Result<()> {
        let config = self.config().clone();
        let file = config.home.join("vbrd.toml");
        std::fs::write(&file, &config.toml)?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = command_in(config.namespace.as_deref(), binary("vbrd", "VBRD")?);
        command
            .arg("--config")
            .arg(&file)
            .arg("--state")
            .arg(&config.state)
            .arg("--socket")
            .arg(&self.socket)
            .args(["--listen", &config.listen, "--name", &config.name])
            .env("RUNTIME_DIRECTORY", config.home.join("run"))
            .env("TZ", "UTC")
            .env_remove("STATE_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = self.child();
        if child.is_some() {
            bail!("site {} runs already", config.name);
        }
        *child = Some(command.spawn().with_context(|| format!("starting {command:?}"))?);
        Ok(())
    }

    /// Waits until the socket answers.
    pub fn wait_ready(&self) -> Result<()> {
        let limit = Instant::now() + READY;
        loop {
            if let Ok(output) = self.ctl_within(&["status", "-o", "json"], Duration::from_secs(10))
                && output.status.success()
            {
                return Ok(());
            }
            let gone = match self.child().as_mut() {
                Some(child) => child.try_wait()?,
                None => bail!("site {} was not started", self.name()),
            };
            if let Some(status) = gone {
                self.child().take();
                bail!("vbrd of site {} ended with {status}\n{}", self.name(), self.log_tail(40));
            }
            if Instant::now() > limit {
                bail!("vbrd of site {} is not ready after {READY:?}\n{}", self.name(), self.log_tail(40));
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// True while the daemon runs.
    pub fn is_running(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGSTOP, until every thread stands still, or waits for the kernel for seconds: what comes next finds it
    /// as a power cut does, without a moment in which it could see its disk fail and tell the other site.
    pub fn freeze(&self) -> Result<()> {
        let child = self.child();
        let Some(pid) = child.as_ref().map(Pid::from_child) else { return Ok(()) };
        kill_process(pid, Signal::STOP)?;
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        let stopped = || -> Result<bool> {
            for task in std::fs::read_dir(&tasks)? {
                // After the name, which ends with the last parenthesis, comes the state. None: it is gone.
                let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
                if !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T') {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) && !stopped()? {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// SIGKILL: no goodbye.
    pub fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.child().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; returns how long it took. An error when it did not exit cleanly.
    pub fn stop(&self) -> Result<Duration> {
        let Some(mut child) = self.child().take() else { return Ok(Duration::ZERO) };
        let started = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        while started.elapsed() < Duration::from_secs(20) {
            if let Some(status) = child.try_wait()? {
                if !status.success() && status.signal() != Some(15) {
                    bail!("vbrd of {} ended with {status} after SIGTERM\n{}", self.name(), self.log_tail(30));
                }
                return Ok(started.elapsed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        bail!("vbrd of {} did not stop within 20 s of SIGTERM\n{}", self.name(), self.log_tail(30))
    }

    /// SIGKILL (where it still runs) and a new start.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// Runs `vbrctl` against this site, whatever it returns.
    pub fn ctl(&self, args: &[&str]) -> Result<Output> {
        self.ctl_within(args, CONSOLE)
    }

    /// The same with a time limit of its own.
    pub fn ctl_within(&self, args: &[&str], limit: Duration) -> Result<Output> {
        let mut command = command_in(None, "timeout");
        command.args(["-k", "5", &limit.as_secs().max(1).to_string()]).arg(binary("vbrctl", "VBRCTL")?);
        command.arg("--socket").arg(&self.socket).args(args).stdin(Stdio::null());
        command.output().with_context(|| format!("starting {command:?}"))
    }

    /// Runs `vbrctl` and wants success; returns standard output without the last line end.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        self.ok_within(args, CONSOLE)
    }

    /// The same with a time limit of its own.
    pub fn ok_within(&self, args: &[&str], limit: Duration) -> Result<String> {
        let output = self.ctl_within(args, limit)?;
        if !output.status.success() {
            bail!("{}\n{}", describe(&self.name(), args, &output), self.log_tail(25));
        }
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Runs `vbrctl … -o json`, wants success, and reads the answer.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        self.json_within(args, CONSOLE)
    }

    /// The same with a time limit of its own.
    pub fn json_within<T: DeserializeOwned>(&self, args: &[&str], limit: Duration) -> Result<T> {
        let text = self.ok_within(&[args, &["-o", "json"]].concat(), limit)?;
        serde_json::from_str(&text)
            .with_context(|| format!("vbrctl {} printed other JSON: {text}", args.join(" ")))
    }

    /// Wants the exit status `code` (CLI.md's contract); returns standard error.
    pub fn fails(&self, args: &[&str], code: i32) -> Result<String> {
        let output = self.ctl(args)?;
        if output.status.code() != Some(code) {
            bail!("wanted exit status {code}: {}", describe(&self.name(), args, &output));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Peak resident set in bytes so far.
    pub fn peak_rss(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no value in VmHWM")?.parse()?;
        Ok(kib * 1024)
    }

    /// Lets the peak begin anew at what it takes now.
    pub fn reset_peak_rss(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid()?);
        std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
    }

    /// User and system time so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let sum =
            ticks(11).zip(ticks(12)).map(|(user, system)| user + system).context("odd /proc/pid/stat")?;
        // Linux reports in USER_HZ, which is 100 on every architecture we build for.
        Ok(Duration::from_millis(sum * 10))
    }

    /// Process ID. nsenter executes the daemon in its own place, so the child is the daemon.
    pub fn pid(&self) -> Result<u32> {
        self.child().as_ref().map(Child::id).ok_or_else(|| anyhow!("vbrd does not run"))
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        let tail = all[all.len().saturating_sub(lines)..].join("\n");
        format!("--- end of the log of site {} ---\n{tail}\n---", self.name())
    }

    /// The whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail(60));
        }
        // Nothing to do about a process that cannot be killed.
        let _ = self.kill();
    }
}

fn describe(site: &str, args: &[&str], output: &Output) -> String {
    format!(
        "vbrctl {} at site {site}: {}\n{}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A program of ours: from the environment, or beside the running executable.
pub fn binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let here = std::env::current_exe()?;
    let beside = here.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    let found = beside.into_iter().find(|path| File::open(path).is_ok());
    found.ok_or_else(|| anyhow!("{name} is not built: run `cargo build --workspace`, or set {variable}"))
}
