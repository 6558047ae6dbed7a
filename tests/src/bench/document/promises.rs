//! What is promised of these measurements, and whether it is kept. A promise without its run is not
//! listed: the document says what was not measured. No IO.

use super::Runs;
use crate::bench::Figure;
use crate::bench::record::{Line, Run, Step};
use crate::bench::tools::PEERS;
use crate::disk::MIB;
use crate::report::mib;
use crate::workload::SEQUENCE;

const SOURCE_RSS_MAX: u64 = 512 * MIB;
const TARGET_RSS_MAX: u64 = 768 * MIB;
/// Up to here nobody may be faster.
const FASTEST_MBIT: f64 = 100.0;

/// Every promise that these runs can answer.
pub fn all(runs: &Runs) -> Vec<Figure> {
    let mut figures = Vec::new();
    sequence(runs, &mut figures);
    special(runs, &mut figures);
    memory(runs, &mut figures);
    walls(runs, &mut figures);
    figures
}

fn limit(what: &str, measured: Option<u64>, most_mib: f64) -> Option<Figure> {
    let measured = measured?;
    let kept = measured as f64 <= most_mib * MIB as f64;
    let value = format!("{} MiB", mib(measured));
    Some(Figure::promised(what, &format!("<= {most_mib} MiB"), value, vec![measured as f64], kept))
}

fn against(what: &str, ours: Option<u64>, best: Option<(&str, u64)>, factor: f64) -> Option<Figure> {
    let (ours, (name, theirs)) = (ours?, best?);
    let share = ours as f64 / theirs as f64;
    let value = format!("{share:.3} x ({} of {} MiB, {name})", mib(ours), mib(theirs));
    Some(Figure::promised(what, &format!("<= {factor} x the best peer"), value, vec![share], share <= factor))
}

fn step_bytes(run: Option<&Run>, image: &str) -> Option<u64> {
    run?.step(image).map(Step::bytes)
}

fn sequence(runs: &Runs, figures: &mut Vec<Figure>) {
    let peers = runs.peers();
    let best = |of: &dyn Fn(&Run) -> Option<u64>| {
        peers.iter().filter_map(|run| Some((run.tool.as_str(), of(run)?))).min_by_key(|(_, bytes)| *bytes)
    };
    let (keep, slow, auto) = (runs.ours("keep", 20.0), runs.ours("keep", 5.0), runs.ours("auto", 20.0));
    let sum = |run: Option<&Run>| run.and_then(Run::later_bytes);
    let best_sum = best(&Run::later_bytes);
    let best_cold = best(&|run| step_bytes(Some(run), "web-v1"));
    figures.extend(
        [
            limit("steps 2 to 6, both ways, 20 Mbit/s", sum(keep), 650.0),
            against("steps 2 to 6, both ways, 20 Mbit/s, beside the peers", sum(keep), best_sum, 0.67),
            limit("steps 2 to 6, both ways, 5 Mbit/s", sum(slow), 620.0),
            limit("db-v2, 20 Mbit/s", step_bytes(keep, "db-v2"), 8.0),
            limit("web-v3, 20 Mbit/s", step_bytes(keep, "web-v3"), 2.1),
            against("cold web-v1, 20 Mbit/s", step_bytes(keep, "web-v1"), best_cold, 0.87),
            limit("steps 2 to 6, free space skipped, 20 Mbit/s", sum(auto), 350.0),
            limit("db-v2, free space skipped, 20 Mbit/s", step_bytes(auto, "db-v2"), 3.0),
            limit("desk-v1, free space skipped, 20 Mbit/s", step_bytes(auto, "desk-v1"), 105.0),
        ]
        .into_iter()
        .flatten(),
    );
}

fn special(runs: &Runs, figures: &mut Vec<Figure>) {
    let uncached = runs.of("source-cache").find(|run| run.tool.ends_with(" 0%"));
    figures.extend(limit("db-v2 without a cache at the source", step_bytes(uncached, "db-v2"), 50.0));
    let second = runs.of("second-branch").next();
    let last = SEQUENCE[SEQUENCE.len() - 1];
    figures.extend(limit("desk-v1 from a second branch that holds nothing", step_bytes(second, last), 330.0));
    for step in runs.of("overhead").flat_map(|run| &run.steps).filter(|step| step.data > 0) {
        let percent = 100.0 * (step.bytes() as f64 / step.data as f64 - 1.0);
        let what = format!("overhead on {} data", step.image);
        let value = format!("{percent:.2} %");
        figures.push(Figure::promised(&what, "<= 0.5 %", value, vec![percent], percent <= 0.5));
    }
}

fn memory(runs: &Runs, figures: &mut Vec<Figure>) {
    let measured = |parts: &'static [&'static str]| {
        runs.0.iter().filter(move |run| parts.contains(&run.part.as_str()) && run.tool.starts_with("vbr"))
    };
    // Thirty sources share a namespace: their sum is no promise.
    let one: &[&str] = &["sequence", "wall", "source-cache", "anchor-memory", "overhead"];
    let source = measured(one).map(|run| run.source_rss).max();
    let target = measured(&[
        "sequence",
        "wall",
        "source-cache",
        "anchor-memory",
        "overhead",
        "thirty",
        "second-branch",
    ])
    .map(|run| run.target_rss)
    .max();
    let mib_of = |bytes: u64| (bytes / MIB) as f64;
    figures.extend(limit("most memory of a source in any run", source, mib_of(SOURCE_RSS_MAX)));
    figures.extend(limit("most memory of the target in any run", target, mib_of(TARGET_RSS_MAX)));
}

/// One line of the document for each line: vbr against the fastest peer.
fn walls(runs: &Runs, figures: &mut Vec<Figure>) {
    for (image, loss) in [("web-v2", 0.0), ("web-v3", 0.0), ("web-v3", 0.01)] {
        for rate in super::tables::rates(runs, image, loss) {
            let line = Line::wan(rate, loss);
            let Some(ours) = runs.wall(image, "vbr keep", line).map(|step| step.seconds) else { continue };
            let peers = PEERS.iter().filter_map(|tool| Some((*tool, runs.wall(image, tool, line)?.seconds)));
            let Some((name, theirs)) = peers.min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
            let what = format!("{image}, {}: wall time", line.words());
            let value = format!("{ours:.1} s ({theirs:.1} s, {name})");
            figures.push(if rate <= FASTEST_MBIT {
                Figure::promised(&what, "not slower than any peer", value, vec![ours, theirs], ours <= theirs)
            } else {
                Figure::plain(&what, value, vec![ours, theirs])
            });
        }
    }
}
