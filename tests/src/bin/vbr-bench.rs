//! Measures the project's figures and says which of its promises are kept. `make bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vbr_tests::bench::{self, Effort};

/// Measures figures: unchanged cold link resume incompressible rss sequence peers.
///
/// `sequence` and `peers` need the image sequence: VBR_WORKLOAD=DIR, made by tests/workload/make-images.
#[derive(Parser)]
struct Options {
    /// Subsets; all but `peers` unless said.
    subsets: Vec<String>,
    /// Repetitions; medians count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Divide disk sizes by this, for a quick look.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    divide: u64,
    /// Directory for figures.json and figures.md.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let effort = Effort { runs: options.runs.max(1), divide: options.divide };
    let kept = bench::run(&options.subsets, effort, &options.out)?;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
