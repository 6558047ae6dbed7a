//! The document's tables. No IO.

use super::Runs;
use crate::bench::record::{Line, Run, Step};
use crate::report::{Table, mib};
use crate::workload::SEQUENCE;

/// Bytes both ways of each image, and of all but the first.
pub fn bytes(runs: &[&Run]) -> String {
    let headings: Vec<&str> = ["tool", "line"].into_iter().chain(SEQUENCE).chain(["steps 2-6"]).collect();
    let mut table = Table::new(&headings);
    for run in runs {
        let mut cells = vec![run.tool.clone(), run.line.words()];
        cells.extend(
            SEQUENCE.iter().map(|image| run.step(image).map_or("-".into(), |step| mib(step.bytes()))),
        );
        cells.push(run.later_bytes().map_or("-".into(), |sum| format!("**{}**", mib(sum))));
        table.row(&cells);
    }
    table.markdown()
}

/// CPU, memory and time of whole sequences.
pub fn resources(runs: &[&Run]) -> String {
    let mut table = Table::new(&[
        "tool",
        "line",
        "CPU source",
        "CPU target",
        "memory source",
        "memory target",
        "seconds",
        "out",
        "back",
        "IP packets",
    ]);
    for run in runs {
        let sum = |of: fn(&Step) -> f64| format!("{:.0}", run.steps.iter().map(of).sum::<f64>());
        let bytes = |of: fn(&Step) -> u64| mib(run.steps.iter().map(of).sum());
        table.row(&[
            run.tool.clone(),
            run.line.words(),
            sum(|step| step.source_cpu),
            sum(|step| step.target_cpu),
            format!("{:.0}", run.source_rss as f64 / f64::from(1 << 20)),
            format!("{:.0}", run.target_rss as f64 / f64::from(1 << 20)),
            sum(|step| step.seconds),
            bytes(|step| step.up),
            bytes(|step| step.down),
            bytes(|step| step.packets),
        ]);
    }
    format!(
        "{}\nOut, back and whole IP packets (headers and acknowledgements) in MiB, all six steps.\n",
        table.markdown()
    )
}

/// What `cell` says of a step, by tool and rate.
pub fn wall(runs: &Runs, image: &str, loss: f64, cell: fn(&Step) -> String) -> String {
    let rates = rates(runs, image, loss);
    let headings: Vec<String> =
        std::iter::once("tool".to_owned()).chain(rates.iter().map(|rate| format!("{rate} Mbit/s"))).collect();
    let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
    for tool in runs.timed() {
        let steps = rates.iter().map(|rate| runs.wall(image, tool, Line::wan(*rate, loss)));
        let said = steps.map(|step| step.map_or("-".into(), cell));
        let cells: Vec<String> = std::iter::once(tool.to_owned()).chain(said).collect();
        table.row(&cells);
    }
    table.markdown()
}

/// The rates at which an image was carried with this loss, rising.
pub fn rates(runs: &Runs, image: &str, loss: f64) -> Vec<f64> {
    let fitting = runs.of("wall").filter(|run| run.line.loss == loss && run.step(image).is_some());
    let mut rates: Vec<f64> = fitting.map(|run| run.line.mbit).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    rates
}

/// Bytes on the line beside the bytes that went in.
pub fn shares(run: &Run) -> String {
    let mut table =
        Table::new(&["data", "MiB", "both ways, MiB", "share", "seconds", "memory source", "memory target"]);
    for step in &run.steps {
        table.row(&[
            step.image.clone(),
            mib(step.data),
            mib(step.bytes()),
            format!("{:.2} %", 100.0 * step.bytes() as f64 / step.data.max(1) as f64),
            format!("{:.1}", step.seconds),
            mib(run.source_rss),
            mib(run.target_rss),
        ]);
    }
    table.markdown()
}

/// Runs whose names end in a percentage, smallest first.
pub fn by_percent<'a>(runs: impl Iterator<Item = &'a Run>) -> Vec<&'a Run> {
    let percent = |run: &Run| {
        let word = run.tool.trim_end_matches(['%', ' ']).rsplit(' ').next().unwrap_or_default().to_owned();
        word.parse::<f64>().unwrap_or(f64::MAX)
    };
    let mut all: Vec<&Run> = runs.collect();
    all.sort_by(|a, b| percent(a).total_cmp(&percent(b)));
    all
}
