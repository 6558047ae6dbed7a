//! vbrd: flags, allocator, runtime, logs, signals. Everything else is the supervisor's.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use vbr_appliance::config::{Config, LogFormat, Overrides};
use vbr_appliance::error::Problem;
use vbr_appliance::limits::DRAIN_TIMEOUT;
use vbr_appliance::supervisor::{self, Appliance, Service};
use vbr_appliance::telemetry::logs::{self, LogHandle};

/// RocksDB, zstd and many threads: glibc's malloc kept four times the cache's size resident. It takes the
/// place of the system's `malloc`, because those two are not Rust.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MALLOC_OPTIONS: &[u8] = b"narenas:4,dirty_decay_ms:500,muzzy_decay_ms:0,background_thread:true\0";

/// Few arenas, and freed memory goes back to the system soon: bounds on RSS are promises.
// SAFETY: jemalloc reads the symbol as a `const char *`; `Option<&u8>` has that layout, and the bytes
// are static and end with NUL. No other definition of the symbol exists.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: Option<&'static u8> = Some(&MALLOC_OPTIONS[0]);

/// Threads that run tasks; disks and hashing have threads of their own.
const WORKER_THREADS_MAX: usize = 8;
/// Threads for disks and RocksDB: ten a session at the most, sessions are bounded.
const BLOCKING_THREADS_MAX: usize = 512;
/// Of the time to drain, what closing and leaving take.
const EXIT_MARGIN: Duration = Duration::from_millis(500);
/// Wrong configuration, as the console's own status for it.
const EXIT_USAGE: u8 = 2;

/// Replicates the disks of virtual machines between sites.
#[derive(Parser, Debug)]
#[command(
    name = "vbrd",
    version,
    about,
    after_help = "\
Flags override the configuration file; with neither, vbrd runs on sane defaults.\n\n\
Examples:\n  vbrd\n  vbrd --state /srv/vbr --socket /srv/vbr/vbrd.sock --listen /ip4/0.0.0.0/tcp/7301 --name branch\n  \
vbrd check-config --config /etc/vbr/vbrd.toml"
)]
struct Args {
    /// Configuration file [default: /etc/vbr/vbrd.toml where it exists]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// State directory [default: $STATE_DIRECTORY or /var/lib/vbr]
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    /// Socket of the management API [default: vbrd.sock in the runtime directory]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Address to listen on for peers; may be repeated [default: /ip4/0.0.0.0/tcp/7300]
    #[arg(long, value_name = "MULTIADDR", global = true)]
    listen: Vec<String>,
    /// This site's name [default: the machine's name]
    #[arg(long, value_name = "SITE", global = true)]
    name: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Checks the configuration and exits: 0 if it is good, 2 if not
    CheckConfig,
    /// Becomes a VM, as its standard input says: what the unit vbr-vm@.service runs, for vbrd alone
    #[command(hide = true)]
    RunVm,
    /// Makes a network card on the bridge that its standard input names: what the unit vbr-tap@.service runs, for vbrd alone
    #[command(hide = true)]
    RunTap,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Before anything is created: nothing of ours is for others.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    if matches!(args.command, Some(Command::RunVm)) {
        let error = supervisor::become_vm();
        eprintln!("vbrd run-vm: {error}");
        return ExitCode::FAILURE;
    }
    if matches!(args.command, Some(Command::RunTap)) {
        // Whoever asked reads it.
        eprintln!("{}", supervisor::become_tap());
        return ExitCode::FAILURE;
    }
    let overrides = Overrides {
        config: args.config,
        state: args.state,
        socket: args.socket,
        listen: args.listen,
        name: args.name,
        ..Overrides::default()
    }
    .with_environment();
    let config = match Config::load(&overrides) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match args.command {
        Some(Command::CheckConfig) => {
            println!("OK");
            ExitCode::SUCCESS
        }
        Some(Command::RunVm | Command::RunTap) | None => serve(config, &overrides),
    }
}

fn serve(config: Config, overrides: &Overrides) -> ExitCode {
    let log = match logs::init(&config.log.level, config.log.format == LogFormat::Json) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("vbrd: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, WORKER_THREADS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(config, overrides, &log));
    // Whatever still blocks was told to stop and has nothing acknowledged that is not durable.
    runtime.shutdown_background();
    match result {
        Ok(End::Stopped) => ExitCode::SUCCESS,
        Ok(End::Restart) => start_again(),
        Err(problem) => {
            tracing::error!(code = problem.code, next_step = problem.next_step, "{problem}");
            ExitCode::FAILURE
        }
    }
}

/// How vbrd ended.
enum End {
    Stopped,
    /// With another key or state, which only a start takes into use.
    Restart,
}

/// The same program with the same words in the place of this one: nothing is left of what it held, and whoever
/// supervises vbrd sees the process that it started.
fn start_again() -> ExitCode {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut words = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let error = command.args(words).exec();
    tracing::error!(%error, "vbrd could not start again by itself: start it (systemctl start vbrd)");
    ExitCode::FAILURE
}

/// From start to stop: the event loop that feeds the watchdog and hears signals.
async fn run(config: Config, overrides: &Overrides, log: &LogHandle) -> Result<End, Problem> {
    let listen = |kind| signal(kind).map_err(|e| Problem::io("listening for signals", &e));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut service = Service::new();

    let mut appliance = {
        let mut starting = std::pin::pin!(Appliance::start(config));
        loop {
            tokio::select! {
                started = &mut starting => break started?,
                // Re-indexing a large cache takes a while; it is no hang.
                () = service.beat() => {}
                _ = terminate.recv() => return Ok(End::Stopped),
                _ = interrupt.recv() => return Ok(End::Stopped),
            }
        }
    };
    service.ready(&appliance.status_line());
    let restart = appliance.restart();
    let mut restart = std::pin::pin!(restart.wanted());
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(End::Stopped),
            _ = interrupt.recv() => break Ok(End::Stopped),
            () = &mut restart => break Ok(End::Restart),
            _ = hangup.recv() => {
                service.reloading();
                appliance.reload(overrides, log);
                service.ready(&appliance.status_line());
            }
            () = service.beat() => service.status(&appliance.status_line()),
            problem = appliance.failed() => break Err(problem),
        }
    };
    match result {
        // Nobody is to take the pause for an end.
        Ok(End::Restart) => service.reloading(),
        _ => service.stopping(),
    }
    tracing::info!("draining");
    if tokio::time::timeout(DRAIN_TIMEOUT - EXIT_MARGIN, appliance.stop()).await.is_err() {
        tracing::warn!("something did not stop in time; sessions go on from their last durable cursor");
    }
    tracing::info!("stopped");
    result
}
