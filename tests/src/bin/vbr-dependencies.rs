//! What vbr is built from: `vbr-dependencies check` holds it against `.deny.toml`, `vbr-dependencies sbom VERSION` writes the
//! bill of materials of a package. Run from the repository; needs no network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use vbr_tests::dependencies::check::{Lock, Rules, check};
use vbr_tests::dependencies::{Metadata, PLATFORM, Reached, sbom};

#[derive(Parser)]
struct Options {
    /// The repository
    #[arg(long, default_value = ".", global = true)]
    root: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Licences, sources, bans and checksums; status 1 where something breaks a rule
    Check,
    /// The bill of materials, CycloneDX 1.5, on standard output
    Sbom {
        /// Version of the package that it describes
        version: String,
    },
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let (metadata, lock) =
        (Metadata::read(&options.root)?, Lock::parse(&text(&options.root, "Cargo.lock")?)?);
    match options.what {
        What::Sbom { version } => {
            let reached = Reached::read(&options.root, sbom::PACKED)?;
            let document = sbom::document(&metadata, &reached, &lock, &version, sbom::PACKED)?;
            println!("{}", serde_json::to_string_pretty(&document)?);
            Ok(ExitCode::SUCCESS)
        }
        What::Check => {
            let rules = Rules::parse(&text(&options.root, ".deny.toml")?)?;
            let verdict = check(&metadata, &Reached::read(&options.root, &[])?, &lock, &rules);
            println!("{} crates on {PLATFORM}, by licence:", verdict.crates);
            for (licence, count) in &verdict.licences {
                println!("  {count:4}  {licence}");
            }
            println!("in more than one version (allowed): {}", verdict.duplicates.join("; "));
            for fault in &verdict.faults {
                println!("FAULT  {fault}");
            }
            match verdict.faults.len() {
                0 => println!("licences, sources, bans, checksums: ok"),
                count => println!("licences, sources, bans, checksums: {count} faults"),
            }
            Ok(if verdict.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn text(root: &Path, name: &str) -> Result<String> {
    let path = root.join(name);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}
