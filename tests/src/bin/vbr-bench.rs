//! Measures the project's figures and says which of its promises are kept. `make bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use vbr_tests::bench::{self, Effort};

/// Measures figures: unchanged cold link parallel latency accounting fair hundred failover bitmaps throttle resume incompressible rss, and
/// `benchmarks`: sequence side-by-side wall source-cache anchor-memory rack second-branch thirty overhead document.
///
/// The image sequence is made in the cache directory where it is missing; VBR_WORKLOAD=DIR names another.
/// Each part leaves its runs in OUT/runs; `document` writes the benchmark document from what is there.
#[derive(Parser)]
struct Options {
    /// Subsets; all unless said.
    subsets: Vec<String>,
    /// Repetitions; medians count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Divide disk sizes by this, for a quick look.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    divide: u64,
    /// Directory for figures.json, figures.md and runs.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Directory for benchmarks.md and its pictures.
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
    /// Tools in side-by-side and wall (`vbr keep`, `vbr auto`, rsync, restic, borg, `borg 64 KiB`, bita).
    #[arg(long, value_delimiter = ',')]
    tools: Vec<String>,
    /// Lines of the sequence in Mbit/s; 0 is unshaped.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 20.0, 5.0])]
    lines: Vec<f64>,
    /// Rates of wall in Mbit/s; all unless said.
    #[arg(long, value_delimiter = ',')]
    rates: Vec<f64>,
    /// Ways of treating free space in sequence and wall.
    #[arg(long, value_delimiter = ',', default_values_t = ["keep".to_owned(), "auto".to_owned()])]
    free_space: Vec<String>,
    /// cache.size of the source in sequence: a size, or percent of the database disk's data (`5%`).
    #[arg(long)]
    source_cache: Option<String>,
    /// accelerator.anchor_memory in sequence.
    #[arg(long)]
    anchor_memory: Option<String>,
    /// In wall also a day's change over the slowest line: half an hour more.
    #[arg(long)]
    long: bool,
    /// Serve this directory over HTTP: how the bench calls itself for bita.
    #[arg(long, hide = true, requires = "at")]
    serve: Option<PathBuf>,
    /// Where to serve it.
    #[arg(long, hide = true)]
    at: Option<String>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let (Some(directory), Some(at)) = (&options.serve, &options.at) {
        bench::tools::serve(directory, at)?;
        return Ok(ExitCode::SUCCESS);
    }
    let effort = Effort {
        runs: options.runs.max(1),
        divide: options.divide,
        out: options.out,
        docs: options.docs,
        tools: options.tools,
        lines: options.lines,
        rates: options.rates,
        free_space: options.free_space,
        source_cache: options.source_cache,
        anchor_memory: options.anchor_memory,
        long: options.long,
    };
    let kept = bench::run(&options.subsets, &effort)?;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
