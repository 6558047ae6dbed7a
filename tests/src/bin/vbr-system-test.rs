//! The package and its service in two machines with a real systemd. `make test-system`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vbr_tests::machine::package::Package;
use vbr_tests::process::is_root;
use vbr_tests::{site, system};

/// Installs a package in two machines with systemd that a line of 10 Mbit/s joins, and does with it what happens in its life:
/// replication, kill -9, a hang, a reload, failover, an upgrade in mid-session, removal, purge; and tries the sandboxes.
///
/// Needs root, Debian, cgroup v2 and debootstrap. The first run makes a base root in the cache directory.
#[derive(Parser)]
struct Options {
    /// The package.
    deb: PathBuf,
    /// Only what docs/getting-started.md has its reader do, with the time of each step.
    #[arg(long)]
    walk: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !is_root() {
        println!("vbr-system-test: skipped: machines need root");
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vbr-system-test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let package = Package::open(&options.deb)?;
    if options.walk {
        return system::walk(&package);
    }
    system::run(&package, &site::binary("vbr-probe", "VBR_PROBE")?)
}
