//! The figures that the project promises, each with the limit it has to keep.
//!
//! A figure is measured from outside: by the link's counters, by /proc, by the clock; what a session
//! says of itself is used where only it can know (bytes resent) or where the promise is about it.
//! Every subset builds worlds of its own and removes them.

mod accounting;
mod branches;
mod bytes;
mod carry;
mod document;
mod failover;
mod fair;
mod hundred;
mod latency;
mod link;
mod memory;
mod meter;
mod noise;
mod parallel;
pub mod record;
mod resume;
mod sequence;
mod speed;
mod throttle;
pub mod tools;
mod wall;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use serde::Serialize;
use vbr_api::Session;

use crate::link::PortBytes;
use crate::report::{Table, median};
use crate::world::World;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What is promised.
    pub limit: String,
    /// What was measured, for people.
    pub value: String,
    /// Every measurement, in the unit of `value`.
    pub samples: Vec<f64>,
    /// None where nothing is promised.
    pub kept: Option<bool>,
}

impl Figure {
    /// A figure with a promise.
    pub fn promised(what: &str, limit: &str, value: String, samples: Vec<f64>, kept: bool) -> Self {
        Self { what: what.into(), limit: limit.into(), value, samples, kept: Some(kept) }
    }

    /// A figure for comparison.
    pub fn plain(what: &str, value: String, samples: Vec<f64>) -> Self {
        Self { what: what.into(), limit: String::new(), value, samples, kept: None }
    }
}

/// How much is measured, and where it goes.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Repetitions; the median counts.
    pub runs: usize,
    /// Divides disk sizes, for a quick look.
    pub divide: u64,
    /// Directory for figures and runs.
    pub out: PathBuf,
    /// Directory for the document and its pictures.
    pub docs: PathBuf,
    /// Tools to compare; all where empty.
    pub tools: Vec<String>,
    /// Mbit/s of the lines for vbr's sequences; 0 is unshaped.
    pub lines: Vec<f64>,
    /// Rates of the wall times; all where empty.
    pub rates: Vec<f64>,
    /// Ways of treating free space that vbr is measured with.
    pub free_space: Vec<String>,
    /// `cache.size` of the source in vbr's sequences: a size, or percent of the database disk's data.
    pub source_cache: Option<String>,
    /// `accelerator.anchor_memory` in vbr's sequences.
    pub anchor_memory: Option<String>,
    /// Also the cells of the wall times that take many minutes.
    pub long: bool,
}

impl Effort {
    fn wants(&self, tool: &str) -> bool {
        self.tools.is_empty() || self.tools.iter().any(|wanted| wanted == tool)
    }

    fn wants_rate(&self, mbit: f64) -> bool {
        self.rates.is_empty() || self.rates.contains(&mbit)
    }
}

/// A subset of the figures.
type Measure = fn(&Effort) -> Result<Vec<Figure>>;

/// Names of the subsets, in the order in which they run.
pub const SUBSETS: [(&str, Measure); 24] = [
    ("unchanged", speed::unchanged),
    ("cold", speed::cold),
    ("link", link::full_link),
    ("parallel", parallel::parallel),
    ("latency", latency::latency),
    ("accounting", accounting::accounting),
    ("fair", fair::fair),
    ("hundred", hundred::hundred),
    ("failover", failover::failover),
    ("bitmaps", failover::bitmaps),
    ("throttle", throttle::throttle),
    ("resume", resume::resent),
    ("incompressible", bytes::incompressible),
    ("rss", memory::peaks),
    ("sequence", sequence::ours),
    ("side-by-side", sequence::side_by_side),
    ("wall", wall::matrix),
    ("source-cache", sequence::source_cache),
    ("anchor-memory", sequence::anchor_memory),
    ("rack", sequence::rack),
    ("second-branch", branches::second_branch),
    ("thirty", branches::thirty),
    ("overhead", noise::overhead),
    ("document", document::write),
];

/// The subsets that `benchmarks` stands for: what the document is made of.
const BENCHMARKS: [&str; 10] = [
    "sequence",
    "side-by-side",
    "wall",
    "source-cache",
    "anchor-memory",
    "rack",
    "second-branch",
    "thirty",
    "overhead",
    "document",
];

/// True where `name` is asked for: by itself, by its group, or because nothing is.
fn asked(names: &[String], name: &str) -> bool {
    names.is_empty()
        || names.iter().any(|asked| asked == name || asked == "benchmarks" && BENCHMARKS.contains(&name))
}

/// Runs the named subsets (all where none is named), writes `figures.json` and `figures.md` into
/// `effort.out`, prints a table. False where a promise was not kept.
pub fn run(names: &[String], effort: &Effort) -> Result<bool> {
    let known = |name: &String| name == "benchmarks" || SUBSETS.iter().any(|(known, _)| known == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let known: Vec<&str> = SUBSETS.iter().map(|(name, _)| *name).collect();
        bail!("there is no subset {unknown}; known: {}, benchmarks", known.join(", "));
    }
    let out = &effort.out;
    let mut table = Table::new(&["figure", "required", "measured", "kept", "command"]);
    let mut records = Vec::new();
    let mut all_kept = true;
    for (name, measure) in SUBSETS {
        if !asked(names, name) {
            continue;
        }
        let started = Instant::now();
        eprintln!("== {name}");
        let figures = match measure(effort) {
            Ok(figures) => figures,
            Err(error) => {
                eprintln!("{error:#}");
                let why = format!("not measured: {}", error.to_string().lines().next().unwrap_or_default());
                vec![Figure::promised(name, "", why, Vec::new(), false)]
            }
        };
        for figure in figures {
            let kept = figure.kept.map_or("", |kept| if kept { "yes" } else { "NO" });
            all_kept &= figure.kept != Some(false);
            eprintln!("   {}: {} {kept}", figure.what, figure.value);
            let command = format!("vbr-bench {name}");
            table.row(&[&figure.what, &figure.limit, &figure.value, kept, command.as_str()]);
            records.push(serde_json::json!({ "subset": name, "figure": figure }));
        }
        eprintln!("   ({:.0} s)", started.elapsed().as_secs_f64());
    }
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("figures.json"), serde_json::to_string_pretty(&records)?)?;
    std::fs::write(out.join("figures.md"), table.markdown())?;
    println!("{table}");
    println!("written: {0}/figures.json, {0}/figures.md", out.display());
    Ok(all_kept)
}

/// Seconds from a session's start to its end, as it says.
fn seconds(session: &Session) -> f64 {
    let ended = session.ended_at.unwrap_or(session.started_at);
    (ended.as_millisecond() - session.started_at.as_millisecond()) as f64 / 1e3
}

/// What crossed the link since `before`, both ways, as sent.
fn crossed(world: &World, before: PortBytes) -> Result<u64> {
    let now = world.link()?.counters().port(world.port());
    Ok(now.up_sent + now.down_sent - before.up_sent - before.down_sent)
}

/// "median (all)".
fn spread(values: &[f64], unit: &str) -> String {
    let all: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
    format!("{:.1} {unit} ({})", median(values), all.join(", "))
}
