//! `docs/benchmarks.md` and its pictures, written from the runs that are there: no number in it comes
//! from anywhere else, and what was not measured is said.

mod pictures;
mod promises;
mod tables;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::record::{Line, Run, Step, load};
use super::tools::PEERS;
use super::{Effort, Figure};
use crate::report::{Table, mib};

/// Every part that a run can come from, and what it measures.
const PARTS: [(&str, &str); 8] = [
    ("sequence", "vbr over the image sequence"),
    ("side-by-side", "the other tools over the image sequence"),
    ("wall", "wall time over shaped lines"),
    ("source-cache", "vbr with a small cache at the source"),
    ("anchor-memory", "vbr with little memory for anchors"),
    ("second-branch", "a second branch that holds nothing"),
    ("thirty", "thirty sources at once"),
    ("overhead", "data that cannot be made smaller"),
];

/// vbr and the peers: order of tables, colours of pictures.
const TOOLS: [&str; 7] = ["vbr keep", "vbr auto", "rsync", "restic", "borg", "borg 64 KiB", "bita"];

/// Writes the document; its figures are the promises that these runs speak of.
pub fn write(effort: &Effort) -> Result<Vec<Figure>> {
    let runs = Runs(load(&effort.out)?);
    let promises = promises::all(&runs);
    fs::create_dir_all(&effort.docs)?;
    let mut text = introduction(&runs);
    text += &promised(&promises);
    text += &bytes(&runs, &effort.docs)?;
    text += &resources(&runs);
    text += &walls(&runs, &effort.docs)?;
    text += &loads(&runs, &effort.docs)?;
    text += &curves(&runs, &effort.docs)?;
    text += &method(&runs);
    let path = effort.docs.join("benchmarks.md");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("   written: {}", path.display());
    Ok(promises)
}

/// All runs, and where to find one.
struct Runs(Vec<Run>);

impl Runs {
    fn of(&self, part: &str) -> impl Iterator<Item = &Run> {
        self.0.iter().filter(move |run| run.part == part)
    }

    /// vbr's sequence with this treatment of free space on a line of this rate.
    fn ours(&self, free_space: &str, mbit: f64) -> Option<&Run> {
        let tool = format!("vbr {free_space}");
        self.of("sequence").find(|run| run.tool == tool && run.line.mbit == mbit)
    }

    /// All of vbr's sequences: the plain ones first, the fastest line first.
    fn lines(&self) -> Vec<&Run> {
        let mut all: Vec<&Run> = self.of("sequence").collect();
        let rate = |run: &Run| if run.line.mbit == 0.0 { f64::MAX } else { run.line.mbit };
        let place = |run: &Run| TOOLS.iter().position(|name| *name == run.tool).unwrap_or(TOOLS.len());
        all.sort_by(|a, b| place(a).cmp(&place(b)).then(rate(b).total_cmp(&rate(a))));
        all
    }

    /// The sequence that stands beside the peers': at 20 Mbit/s, else whatever there is.
    fn shown(&self, free_space: &str) -> Option<&Run> {
        [20.0, 0.0, 5.0].into_iter().find_map(|mbit| self.ours(free_space, mbit))
    }

    /// Peers in the order of the tables.
    fn peers(&self) -> Vec<&Run> {
        PEERS.iter().filter_map(|name| self.of("side-by-side").find(|run| run.tool == *name)).collect()
    }

    /// vbr and the peers, as tables and pictures show them.
    fn all_tools(&self) -> Vec<&Run> {
        ["keep", "auto"].into_iter().filter_map(|mode| self.shown(mode)).chain(self.peers()).collect()
    }

    fn wall(&self, image: &str, tool: &str, line: Line) -> Option<&Step> {
        let run = self.of("wall").find(|run| {
            run.tool == tool && run.line == line && run.steps.iter().all(|step| step.image == image)
        });
        run?.step(image)
    }

    /// Tools with wall times, vbr first.
    fn timed(&self) -> Vec<&str> {
        TOOLS.into_iter().filter(|name| self.of("wall").any(|run| run.tool == *name)).collect()
    }
}

fn introduction(runs: &Runs) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `vbr-bench document` from the runs that `vbr-bench benchmarks` left; nothing here is \
         edited by hand.\nEvery part can be measured alone and the document written again (`vbr-bench --help`).\n\n",
    );
    let mut machines: Vec<&str> = runs.0.iter().map(|run| run.machine.as_str()).collect();
    machines.sort_unstable();
    machines.dedup();
    text += &format!("Machine: {}.\n", machines.join("; or "));
    text += "Bytes of the peers do not depend on it, vbr chooses its level by line and processor; seconds do depend on it and on what
\
             else ran: compare them with each other.

";
    let missing: Vec<String> = PARTS
        .iter()
        .filter(|(part, _)| runs.of(part).next().is_none())
        .map(|(part, what)| format!("{what} (`vbr-bench {part}`)"))
        .collect();
    if !missing.is_empty() {
        text += &format!("Not measured: {}.\n\n", missing.join("; "));
    }
    let absent: Vec<&str> =
        PEERS.into_iter().filter(|name| runs.peers().iter().all(|run| run.tool != *name)).collect();
    if !absent.is_empty() {
        text += &format!("Peers without a run (not to be had, or not asked for): {}.\n\n", absent.join(", "));
    }
    let tools = runs.all_tools();
    if tools.is_empty() {
        return text;
    }
    let mut table = Table::new(&["tool", "version", "what it is told"]);
    for run in tools {
        table.row(&[&run.tool, &run.version, &format!("`{}`", run.setting)]);
    }
    text + &table.markdown() + "\n"
}

fn promised(promises: &[Figure]) -> String {
    if promises.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["promise", "at least", "measured", "kept"]);
    for figure in promises {
        let kept = figure.kept.map_or("", |kept| if kept { "yes" } else { "NO" });
        table.row(&[&figure.what, &figure.limit, &figure.value, kept]);
    }
    format!("## Promises\n\n{}\n", table.markdown())
}

fn bytes(runs: &Runs, docs: &Path) -> Result<String> {
    let tools = runs.all_tools();
    if tools.is_empty() {
        return Ok(String::new());
    }
    save(docs, "bytes-by-step.svg", &pictures::bytes_by_step(&tools))?;
    save(docs, "bytes-in-sum.svg", &pictures::bytes_in_sum(&tools))?;
    let mut text = String::from(
        "## Bytes on the line\n\nSix Debian 12 disks in order: a web server, the same a day and two days later, a database \
         server, the same after some\nthousand transactions, another installation. TCP payload both ways in MiB, counted \
         outside the tools.\n\n",
    );
    text += "![Bytes on the line for each step, by tool](bytes-by-step.svg)\n\n";
    text += "![Bytes on the line for steps 2 to 6, by tool](bytes-in-sum.svg)\n\n";
    text += &tables::bytes(&tools);
    let lines = runs.lines();
    if lines.len() > 1 {
        text += "\nvbr on its lines, both ways in MiB:\n\n";
        text += &tables::bytes(&lines);
    }
    Ok(text + "\n")
}

fn resources(runs: &Runs) -> String {
    let all: Vec<&Run> = runs.lines().into_iter().chain(runs.peers()).collect();
    if all.is_empty() {
        return String::new();
    }
    format!(
        "## Processor and memory\n\nThe whole sequence, every process of either end: CPU in seconds, peak resident memory \
         in MiB, seconds by the clock.\n\n{}\n",
        tables::resources(&all)
    )
}

fn walls(runs: &Runs, docs: &Path) -> Result<String> {
    if runs.timed().is_empty() {
        return Ok(String::new());
    }
    let mut text = String::from(
        "## Wall time\n\n80 ms round trip. On clean lines a day's change (web-v1 -> web-v2), and on clean and lossy lines a quiet day's\n(web-v2 -> web-v3), so that the whole stays below forty minutes.\n",
    );
    for (name, title, image, loss) in [
        ("wall-day.svg", "A day's change, no loss", "web-v2", 0.0),
        ("wall-quiet.svg", "A quiet day, no loss", "web-v3", 0.0),
        ("wall-quiet-lossy.svg", "A quiet day, 1 % loss", "web-v3", 0.01),
    ] {
        let Some(picture) = pictures::wall(runs, title, image, loss) else { continue };
        save(docs, name, &picture)?;
        text +=
            &format!("\n### {title}\n\n![{title}: seconds against the line's rate]({name})\n\nSeconds:\n\n");
        text += &tables::wall(runs, image, loss, |step| format!("{:.1}", step.seconds));
        text += "\nMiB on the line both ways, retransmits included:\n\n";
        text += &tables::wall(runs, image, loss, |step| mib(step.bytes()));
    }
    Ok(text + "\n")
}

fn loads(runs: &Runs, docs: &Path) -> Result<String> {
    let mut text = String::new();
    for (mbit, name) in [(20.0, "stage-load-20.svg"), (0.0, "stage-load-unshaped.svg")] {
        let Some(run) = runs.ours("keep", mbit) else { continue };
        let words = run.line.words();
        save(docs, name, &pictures::loads(run))?;
        text += &format!("![Load of each stage of vbr, {words}]({name})\n\n");
    }
    if text.is_empty() {
        return Ok(text);
    }
    Ok(format!("## Where the time goes\n\nHow busy each stage of vbr was, as its sessions say.\n\n{text}"))
}

fn curves(runs: &Runs, docs: &Path) -> Result<String> {
    let mut text = String::new();
    let caches = tables::by_percent(runs.of("source-cache"));
    if !caches.is_empty() {
        save(docs, "source-cache.svg", &pictures::source_cache(&caches))?;
    }
    let keep = runs.ours("keep", 20.0);
    for (part, words) in [
        (
            "source-cache",
            "## Less cache at the source\n\n`cache.size` of the source in percent of the data of the database server's disk; \
             MiB both ways.\n\n![Bytes on the line by size of the source's cache](source-cache.svg)\n\n",
        ),
        ("anchor-memory", "## Less memory for anchors\n\nMiB both ways.\n\n"),
    ] {
        let all: Vec<&Run> = tables::by_percent(runs.of(part)).into_iter().chain(keep).collect();
        if runs.of(part).next().is_some() {
            text += &format!("{words}{}\n", tables::bytes(&all));
        }
    }
    for run in runs.of("second-branch") {
        text += &format!(
            "## A second branch\n\ndesk-v1 comes from a site that holds nothing, after another sent the rest unshaped; MiB both ways.\
             \n\n{}\n",
            tables::bytes(&[run])
        );
    }
    for run in runs.of("thirty") {
        text += &format!("## Thirty sources at once\n\n{}\n", tables::shares(run));
    }
    for run in runs.of("overhead") {
        text += &format!("## Data that cannot be made smaller\n\n{}\n", tables::shares(run));
    }
    Ok(text)
}

fn method(runs: &Runs) -> String {
    let mut control: Vec<&str> = runs.0.iter().map(|run| run.congestion.as_str()).collect();
    control.retain(|name| !name.is_empty());
    control.sort_unstable();
    control.dedup();
    let mut commands: Vec<&str> = runs.0.iter().map(|run| run.command.as_str()).collect();
    commands.sort_unstable();
    commands.dedup();
    format!(
        "## How it was measured\n\n- Source and target are two network namespaces of one machine, joined by a user-space link \
         that shapes, loses and counts\n  packets. Bytes are TCP payload as sent, retransmits included, of the tool's port; \
         the same counters for every tool.\n- Congestion control in both namespaces: {}. Peers run once. Random loss is \
         towards the target.\n- restic goes over sftp and borg over ssh (an sshd at the target's end, no compression), rsync \
         to its daemon; bita's archive\n  is made at the source and fetched over HTTP by the target, every earlier image a \
         seed.\n- CPU and memory are those of every process in an end's namespace, looked at twenty times a second.\n- What \
         vbr carried was verified, and exported byte for byte where no free space was skipped; what rsync and bita carried\n  \
         was compared. restic and borg are believed.\n- Images: `tests/workload/make-images DIR`; `VBR_WORKLOAD=DIR` uses \
         them again. Commands of these runs:\n\n```\n{}\n```\n",
        control.join(", "),
        commands.join("\n")
    )
}

fn save(docs: &Path, name: &str, svg: &str) -> Result<()> {
    fs::write(docs.join(name), svg).with_context(|| format!("writing {name}"))
}
