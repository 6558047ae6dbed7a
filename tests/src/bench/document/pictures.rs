//! The document's pictures, each made of runs. A tool has one colour in all of them. No IO.

use super::{Runs, TOOLS, tables};
use crate::bench::record::{Line, Run};
use crate::chart::{Bars, Lines, Ranking, Series};
use crate::workload::SEQUENCE;

fn colour(tool: &str) -> usize {
    TOOLS.iter().position(|name| *name == tool).unwrap_or(TOOLS.len())
}

/// vbr's bytes depend on its line a little: the legend says which. The peers ran unshaped.
fn name(run: &Run) -> String {
    if !run.tool.starts_with("vbr") {
        return run.tool.clone();
    }
    let line = if run.line.mbit == 0.0 { "unshaped".to_owned() } else { format!("{} Mbit/s", run.line.mbit) };
    format!("{} ({line})", run.tool)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A group an image, a bar a tool.
pub fn bytes_by_step(runs: &[&Run]) -> String {
    let series = runs.iter().map(|run| Series {
        name: name(run),
        colour: colour(&run.tool),
        values: SEQUENCE.iter().map(|image| run.step(image).map(|step| mebibytes(step.bytes()))).collect(),
    });
    let bars = Bars {
        title: "Bytes on the line for each step, both ways".into(),
        axis: "MiB".into(),
        groups: SEQUENCE.map(str::to_owned).to_vec(),
        series: series.collect(),
        top: None,
    };
    bars.svg()
}

/// A bar a tool: all steps but the first, fewest bytes on top.
pub fn bytes_in_sum(runs: &[&Run]) -> String {
    let rows =
        runs.iter().filter_map(|run| Some((name(run), colour(&run.tool), mebibytes(run.later_bytes()?))));
    let mut rows: Vec<(String, usize, f64)> = rows.collect();
    rows.sort_by(|a, b| a.2.total_cmp(&b.2));
    let title = "Steps 2 to 6 together, bytes on the line both ways".into();
    Ranking { title, axis: "MiB".into(), rows }.svg()
}

/// A line a tool: seconds against the rate. None where nothing was timed.
pub fn wall(runs: &Runs, title: &str, image: &str, loss: f64) -> Option<String> {
    let places = tables::rates(runs, image, loss);
    if places.is_empty() {
        return None;
    }
    let series = runs.timed().into_iter().map(|tool| Series {
        name: tool.to_owned(),
        colour: colour(tool),
        values: places
            .iter()
            .map(|rate| runs.wall(image, tool, Line::wan(*rate, loss)).map(|step| step.seconds))
            .collect(),
    });
    let series: Vec<Series> = series.filter(|one| one.values.iter().any(Option::is_some)).collect();
    let title = format!("{title}: wall time, 80 ms round trip");
    let (across, axis) = ("rate of the line, Mbit/s".into(), "seconds".into());
    Some(Lines { title, across, axis, places, series }.svg())
}

/// A group a size of the source's cache, a bar an image that has an older version.
pub fn source_cache(runs: &[&Run]) -> String {
    let size = |run: &Run| run.tool.rsplit(' ').next().unwrap_or_default().replace('%', " %");
    let images = ["web-v2", "web-v3", "db-v2"];
    let series = images.iter().enumerate().map(|(at, image)| Series {
        name: (*image).to_owned(),
        colour: [0, 3, 6][at],
        values: runs.iter().map(|run| run.step(image).map(|step| mebibytes(step.bytes()))).collect(),
    });
    let bars = Bars {
        title: "Bytes on the line by size of the source's cache".into(),
        axis: "MiB".into(),
        groups: runs.iter().map(|run| size(run)).collect(),
        series: series.collect(),
        top: None,
    };
    bars.svg()
}

/// A group an image, a bar a stage.
pub fn loads(run: &Run) -> String {
    type Load = fn(&vbr_api::StageLoad) -> u8;
    let stages: [(&str, Load); 7] = [
        ("source host", |load| load.source_host),
        ("source mover", |load| load.source_mover),
        ("source accelerator", |load| load.source_accelerator),
        ("network", |load| load.network),
        ("target accelerator", |load| load.target_accelerator),
        ("target mover", |load| load.target_mover),
        ("target host", |load| load.target_host),
    ];
    let series = stages.iter().enumerate().map(|(colour, (name, load))| Series {
        name: (*name).to_owned(),
        colour,
        values: SEQUENCE
            .iter()
            .map(|image| run.step(image)?.session.as_ref().map(|told| f64::from(load(&told.load))))
            .collect(),
    });
    let bars = Bars {
        title: format!("Load of each stage of vbr, {}", run.line.words()),
        axis: "percent of the session".into(),
        groups: SEQUENCE.map(str::to_owned).to_vec(),
        series: series.collect(),
        top: Some(100.0),
    };
    bars.svg()
}
