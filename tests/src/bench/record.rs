//! What a measurement leaves behind: one JSON file a run, so that any part can be measured alone and the
//! document is written from whatever is there. A later run of the same name replaces the earlier.
//!
//! No measuring here. Bounds: a run has a step an image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vbr_api::{SessionBytes, SessionChunks, StageLoad};

use crate::link::LinkConfig;
use crate::process::run;

/// The line between the sites.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Mbit/s; 0 is unshaped.
    pub mbit: f64,
    /// Round trip in ms.
    pub rtt_ms: u64,
    /// Fraction of packets lost on the way to the target.
    pub loss: f64,
}

impl Line {
    /// As fast as the machine carries it.
    pub const UNSHAPED: Self = Self { mbit: 0.0, rtt_ms: 0, loss: 0.0 };

    /// A shaped line of 80 ms.
    pub const fn wan(mbit: f64, loss: f64) -> Self {
        Self { mbit, rtt_ms: 80, loss }
    }

    /// As the link wants it. A shaped line has packets of 1500 bytes.
    pub fn config(self) -> LinkConfig {
        if self.mbit == 0.0 {
            return LinkConfig::fast();
        }
        LinkConfig { seed: 11, ..LinkConfig::shaped(self.mbit, self.rtt_ms, self.loss) }
    }

    /// For people.
    pub fn words(self) -> String {
        if self.mbit == 0.0 {
            return "unshaped".into();
        }
        format!("{} Mbit/s, {} ms, {} % loss", self.mbit, self.rtt_ms, self.loss * 100.0)
    }

    fn slug(self) -> String {
        if self.mbit == 0.0 {
            return "unshaped".into();
        }
        format!("{}mbit-{}loss", self.mbit, self.loss * 100.0)
    }
}

/// One image, carried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Image (`web-v2`), or what else was carried.
    pub image: String,
    /// TCP payload from source to target as sent, retransmits included.
    pub up: u64,
    /// The same from target to source.
    pub down: u64,
    /// Whole IP packets both ways: headers and acknowledgements included.
    pub packets: u64,
    /// From the command to its end.
    pub seconds: f64,
    /// CPU seconds of everything in the source's namespace.
    pub source_cpu: f64,
    /// The same of the target's.
    pub target_cpu: f64,
    /// Bytes that went in, where a share of them is promised.
    #[serde(default)]
    pub data: u64,
    /// What a session of vbr says of itself.
    #[serde(default)]
    pub session: Option<Told>,
}

impl Step {
    /// TCP payload both ways.
    pub fn bytes(&self) -> u64 {
        self.up + self.down
    }
}

/// What a session says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Its byte counts.
    pub bytes: SessionBytes,
    /// Its chunk counts.
    pub chunks: SessionChunks,
    /// How busy each stage was.
    pub load: StageLoad,
    /// The busiest stage.
    pub bottleneck: Option<String>,
}

/// One tool over some images on one line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Part of the benchmark.
    pub part: String,
    /// Tool, with what sets it apart (`vbr auto`, `borg 64 KiB`).
    pub tool: String,
    /// As the tool says.
    pub version: String,
    /// The tool's command, or what was set.
    pub setting: String,
    /// The command that measures this again.
    pub command: String,
    /// The line.
    pub line: Line,
    /// Kernel's congestion control, as both namespaces had it.
    pub congestion: String,
    /// One for each image.
    pub steps: Vec<Step>,
    /// Most resident memory of everything in the source's namespace.
    pub source_rss: u64,
    /// The same of the target's.
    pub target_rss: u64,
    /// The machine.
    pub machine: String,
}

/// The command that measures a run again.
pub fn command(part: &str, tool: &str, line: Line) -> String {
    let quoted = if tool.contains(' ') { format!("'{tool}'") } else { tool.to_owned() };
    match (part, tool.strip_prefix("vbr ")) {
        ("side-by-side", _) => format!("vbr-bench side-by-side --tools {quoted}"),
        ("wall", _) => format!("vbr-bench wall --tools {quoted}"),
        ("sequence", Some(mode)) if !mode.contains(',') => {
            format!("vbr-bench sequence --lines {} --free-space {mode}", line.mbit)
        }
        _ => format!("vbr-bench {part}"),
    }
}

impl Run {
    /// The named step.
    pub fn step(&self, image: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.image == image)
    }

    /// Bytes both ways of all steps but the first; none unless all six are there.
    pub fn later_bytes(&self) -> Option<u64> {
        let whole = self.steps.len() == crate::workload::SEQUENCE.len();
        whole.then(|| self.steps.iter().skip(1).map(Step::bytes).sum())
    }

    /// Writes it into the directory of runs.
    pub fn save(&self, out: &Path) -> Result<()> {
        let dir = directory(out);
        fs::create_dir_all(&dir)?;
        let mut name = format!("{}--{}--{}", self.part, self.tool, self.line.slug());
        if self.part == "wall" {
            name = format!("{name}--{}", self.steps.first().map_or("", |step| &step.image));
        }
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let path = dir.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// All runs in the directory, in the order of their names.
pub fn load(out: &Path) -> Result<Vec<Run>> {
    let dir = directory(out);
    let entries = fs::read_dir(&dir).with_context(|| format!("no runs in {}: measure first", dir.display()));
    let mut paths: Vec<PathBuf> = entries?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .map(|path| {
            let text = fs::read_to_string(path)?;
            serde_json::from_str(&text).with_context(|| format!("{} is no run", path.display()))
        })
        .collect()
}

fn directory(out: &Path) -> PathBuf {
    out.join("runs")
}

/// Processor, cores, memory and kernel of this machine.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kib: u64 =
        field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = run("uname", ["-r"]).unwrap_or_default();
    let kernel = kernel.split(['-', '\n']).next().unwrap_or_default().to_owned();
    let model = field(&read("/proc/cpuinfo"), "model name");
    format!(
        "{cores} virtual cores ({model}), shared by both ends and the link; {:.0} GiB; Linux {kernel}",
        kib as f64 / f64::from(1 << 20)
    )
}
