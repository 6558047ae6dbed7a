//! The image sequence: vbr on lines of its own, the other tools beside it on an unshaped one, and vbr
//! with less memory of what it had.

use std::path::PathBuf;

use anyhow::Result;

use super::carry::Bench;
use super::record::{Line, Run};
use super::tools::ours::{Ours, Setup};
use super::tools::{PEERS, peer};
use super::{Effort, Figure};
use crate::counter::Counter;
use crate::disk::non_zero_bytes;
use crate::report::{median, mib};
use crate::workload::{images, previous_version};

/// Where memory of earlier data is the question: on a faster line vbr may not look for bases at all.
const BASES: Line = Line::wan(20.0, 0.0);

/// vbr over the six images, on each line and with each way of treating free space.
pub fn ours(effort: &Effort) -> Result<Vec<Figure>> {
    let images = images()?;
    let mut figures = Vec::new();
    for free_space in &effort.free_space {
        for mbit in &effort.lines {
            let line = if *mbit == 0.0 { Line::UNSHAPED } else { Line::wan(*mbit, 0.0) };
            let setup = Setup {
                // `keep` is the default, and the only way of a vbr that does not know the option.
                free_space: Some(free_space.clone()).filter(|mode| mode != "keep"),
                source_cache: effort.source_cache.as_ref().map(|size| share(size, &images)).transpose()?,
                anchor_memory: effort.anchor_memory.clone(),
                no_bases: false,
            };
            let mut tool = format!("vbr {free_space}");
            if let Some(size) = &effort.source_cache {
                tool += &format!(", cache {size}");
            }
            if let Some(size) = &effort.anchor_memory {
                tool += &format!(", anchors {size}");
            }
            let run = carry(effort, ("sequence", &tool), line, setup, &images);
            figures.extend(kept(&tool, line, run, &images)?);
        }
    }
    Ok(figures)
}

/// Every other tool over the same images, once and unshaped.
pub fn side_by_side(effort: &Effort) -> Result<Vec<Figure>> {
    let images = images()?;
    let mut figures = Vec::new();
    for name in PEERS.into_iter().filter(|name| effort.wants(name)) {
        eprintln!("   {name}");
        let measure = || -> Result<Run> {
            let mut bench = Bench::new(peer(name, Line::UNSHAPED.config())?)?;
            let steps = bench.steps(&images)?;
            let run = bench.record("side-by-side", name, Line::UNSHAPED, steps)?;
            run.save(&effort.out)?;
            Ok(run)
        };
        figures.push(sum_figure(name, Line::UNSHAPED, measure()));
    }
    Ok(figures)
}

/// vbr with a small cache at the source: 0, 5, 20 and 100 % of the data of the database server's disk.
pub fn source_cache(effort: &Effort) -> Result<Vec<Figure>> {
    let mut images = images()?;
    // What is asked is db-v2; nothing after it is needed.
    images.truncate(5);
    let mut figures = Vec::new();
    for size in ["0%", "5%", "20%", "100%"] {
        let tool = format!("vbr, source cache {size}");
        let setup = Setup { source_cache: Some(share(size, &images)?), ..Setup::default() };
        let run = carry(effort, ("source-cache", &tool), BASES, setup, &images);
        figures.push(sum_figure(&tool, BASES, run));
    }
    Ok(figures)
}

/// vbr with little memory for anchors: 0.05 % of the data of all images.
pub fn anchor_memory(effort: &Effort) -> Result<Vec<Figure>> {
    let images = images()?;
    let mut data = 0;
    for image in &images {
        data += non_zero_bytes(image)?;
    }
    let tool = "vbr, anchors 0.05 %";
    let setup = Setup { anchor_memory: Some((data / 2000).to_string()), ..Setup::default() };
    let run = carry(effort, ("anchor-memory", tool), BASES, setup, &images);
    Ok(vec![sum_figure(tool, BASES, run)])
}

/// vbr with and without bases where the line is faster than the work on them: a cold disk and its next day.
pub fn rack(effort: &Effort) -> Result<Vec<Figure>> {
    let mut images = images()?;
    images.truncate(2);
    let mut figures = Vec::new();
    for line in [Line::wan(1000.0, 0.0), Line::UNSHAPED] {
        let mut seconds = [Vec::new(), Vec::new()];
        for _ in 0..effort.runs {
            for (no_bases, seconds) in [false, true].into_iter().zip(&mut seconds) {
                let tool = if no_bases { "vbr without bases" } else { "vbr" };
                let run =
                    carry(effort, ("rack", tool), line, Setup { no_bases, ..Setup::default() }, &images)?;
                seconds.push(run.steps.iter().map(|step| step.seconds).sum::<f64>());
            }
        }
        let [with, without] = seconds;
        let share = median(&with) / median(&without);
        figures.push(Figure::promised(
            &format!(
                "a cold disk and its next day, seconds with bases against those without: {}",
                line.words()
            ),
            "<= 1.05 x",
            format!("{share:.2} x ({with:.1?} against {without:.1?} s)"),
            with,
            share <= 1.05,
        ));
    }
    Ok(figures)
}

fn carry(
    effort: &Effort,
    (part, tool): (&str, &str),
    line: Line,
    setup: Setup,
    images: &[PathBuf],
) -> Result<Run> {
    eprintln!("   {tool}, {}", line.words());
    let mut bench = Bench::new(Box::new(Ours::new(line.config(), setup)?))?;
    let steps = bench.steps(images)?;
    let run = bench.record(part, tool, line, steps)?;
    run.save(&effort.out)?;
    Ok(run)
}

/// `5%` of what the database server's first image holds, or a size as it is.
fn share(size: &str, images: &[PathBuf]) -> Result<String> {
    let Some(percent) = size.strip_suffix('%') else { return Ok(size.to_owned()) };
    let percent: f64 = percent.parse()?;
    let database = images.iter().find(|image| image.ends_with("db-v1.img"));
    let data = database.map(|image| non_zero_bytes(image)).transpose()?.unwrap_or(0);
    Ok(format!("{}", (data as f64 * percent / 100.0) as u64))
}

fn sum_figure(tool: &str, line: Line, run: Result<Run>) -> Figure {
    let what =
        format!("image sequence, all steps but the first, both ways on the line: {tool}, {}", line.words());
    match run {
        Ok(run) => {
            let sum = run.steps.iter().skip(1).map(super::record::Step::bytes).sum();
            let each: Vec<String> = run.steps.iter().map(|step| mib(step.bytes())).collect();
            let value = format!("{} MiB ({})", mib(sum), each.join(" / "));
            Figure::plain(&what, value, run.steps.iter().map(|step| step.bytes() as f64).collect())
        }
        Err(error) => {
            eprintln!("   {tool} is left out: {error:#}");
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            Figure::plain(&what, format!("not measured: {first}"), Vec::new())
        }
    }
}

/// The sum, and where nothing but payload matters the promise against our own counter.
fn kept(tool: &str, line: Line, run: Result<Run>, images: &[PathBuf]) -> Result<Vec<Figure>> {
    let told: Vec<u64> = run.iter().flat_map(|run| &run.steps).filter_map(payload).collect();
    let mut figures = vec![sum_figure(tool, line, run)];
    if line == Line::UNSHAPED && tool == "vbr keep" && told.len() == images.len() {
        let counted = counted(images)?;
        let share = told.iter().skip(1).sum::<u64>() as f64 / counted as f64;
        figures.push(Figure::promised(
            "image sequence, steps 2 to 6: payload and recipe",
            "<= 1.02 x our own counter",
            format!("{share:.3} x ({} MiB counted)", mib(counted)),
            vec![share],
            share <= 1.02,
        ));
    }
    Ok(figures)
}

fn payload(step: &super::record::Step) -> Option<u64> {
    step.session.as_ref().map(|session| session.bytes.sent_payload)
}

/// What our own counter makes of all images but the first.
fn counted(images: &[PathBuf]) -> Result<u64> {
    let (mut counter, mut sum) = (Counter::default(), 0);
    for (at, image) in images.iter().enumerate() {
        let count = counter.count(image, previous_version(&images[..at], image))?;
        sum += if at > 0 { count.counter_bytes } else { 0 };
    }
    Ok(sum)
}
