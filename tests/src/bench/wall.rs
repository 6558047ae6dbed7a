//! Wall time: the same change over lines of different rates, clean and lossy, by every tool.
//!
//! Two changes are carried. A day (web-v1 -> web-v2, some 400 MiB of changed chunks) on clean lines; a
//! quiet day (web-v2 -> web-v3, 17 MiB) on clean and lossy ones, since a peer may take hours for more.
//! Each tool gets to the older image once, unshaped, and goes back to that moment before each line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::carry::Bench;
use super::record::{Line, Step};
use super::tools::ours::{Ours, Setup};
use super::tools::{PEERS, Tool, peer};
use super::{Effort, Figure};
use crate::link::LinkConfig;
use crate::workload::images;

const RATES: [f64; 4] = [5.0, 20.0, 100.0, 1000.0];
const LOSSES: [f64; 2] = [0.0, 0.01];
/// Where the day's change takes minutes by every tool: only with `--long`.
const SLOW_MBIT: f64 = 5.0;

/// Every tool over every line.
pub fn matrix(effort: &Effort) -> Result<Vec<Figure>> {
    let images = images()?;
    let ours = effort.free_space.iter().map(|mode| format!("vbr {mode}"));
    let tools: Vec<String> = ours.chain(PEERS.map(str::to_owned)).filter(|name| effort.wants(name)).collect();
    let mut figures = Vec::new();
    for name in tools {
        eprintln!("   {name}");
        match one(effort, &name, &images) {
            Ok(some) => figures.extend(some),
            Err(error) => {
                eprintln!("   {name} is left out: {error:#}");
                let why = format!("not measured: {}", error.to_string().lines().next().unwrap_or_default());
                figures.push(Figure::plain(&format!("wall time: {name}"), why, Vec::new()));
            }
        }
    }
    Ok(figures)
}

fn one(effort: &Effort, name: &str, images: &[PathBuf]) -> Result<Vec<Figure>> {
    let [first, day, quiet] = images.get(..3).context("three images are needed")? else {
        return Ok(Vec::new());
    };
    let mut bench = Bench::new(tool(name)?)?;
    let mut figures = Vec::new();
    bench.step(first)?;
    bench.tool.save()?;
    for mbit in RATES.into_iter().filter(|mbit| effort.wants_rate(*mbit)) {
        if mbit > SLOW_MBIT || effort.long {
            figures.push(cell(effort, &mut bench, name, Line::wan(mbit, 0.0), day)?);
        }
    }
    bench.tool.link()?.reshape(unshaped());
    bench.tool.restore()?;
    bench.step(day)?;
    bench.tool.save()?;
    for loss in LOSSES {
        for mbit in RATES.into_iter().filter(|mbit| effort.wants_rate(*mbit)) {
            figures.push(cell(effort, &mut bench, name, Line::wan(mbit, loss), quiet)?);
        }
    }
    Ok(figures)
}

/// One change over one line. The line has its shape before the sites meet again.
fn cell(effort: &Effort, bench: &mut Bench, name: &str, line: Line, image: &Path) -> Result<Figure> {
    bench.tool.link()?.reshape(line.config());
    bench.tool.restore()?;
    eprint!("   {:<28}", line.words());
    let step: Step = bench.step(image)?;
    let what = format!("wall time of {}: {name}, {}", step.image, line.words());
    let figure = Figure::plain(&what, format!("{:.1} s", step.seconds), vec![step.seconds]);
    bench.record("wall", name, line, vec![step])?.save(&effort.out)?;
    Ok(figure)
}

/// Packets as on the shaped lines: their size cannot be changed later.
fn unshaped() -> LinkConfig {
    LinkConfig { mtu: 1500, ..LinkConfig::fast() }
}

fn tool(name: &str) -> Result<Box<dyn Tool>> {
    let Some(mode) = name.strip_prefix("vbr ") else { return peer(name, unshaped()) };
    let free_space = Some(mode.to_owned()).filter(|mode| mode != "keep");
    Ok(Box::new(Ours::new(unshaped(), Setup { free_space, ..Setup::default() })?))
}
