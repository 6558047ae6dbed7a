//! A full link: how much of what iperf3 with BBR gets, on the same link in the same run.

use std::time::Duration;

use anyhow::Result;

use super::memory::peak;
use super::{Effort, Figure, seconds};
use crate::disk;
use crate::link::LinkConfig;
use crate::measure::iperf_mbit;
use crate::report::median;
use crate::world::{World, WorldSpec};

/// Mbit/s, round trip in ms, loss.
const LINES: [(f64, u64, f64); 6] =
    [(5.0, 80, 0.0), (5.0, 80, 0.01), (20.0, 80, 0.0), (20.0, 80, 0.01), (100.0, 80, 0.0), (100.0, 80, 0.01)];
const SHARE_MIN_PERCENT: f64 = 95.0;

/// A cold run of incompressible data, whole session, start and seal included.
pub fn full_link(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let limit = format!(">= {SHARE_MIN_PERCENT} % of iperf3 BBR");
    for (mbit, rtt, loss) in LINES {
        let (mut ours, mut theirs, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        let mut memory = Vec::new();
        for run in 0..effort.runs {
            // About 25 s of line: start and seal weigh as in a short session, not as in a long one.
            let len = ((mbit * 1e6 / 8.0 * 25.0) as u64 / effort.divide).next_multiple_of(65_536);
            let link = LinkConfig { seed: 11 + run as u64, ..LinkConfig::shaped(mbit, rtt, loss) };
            let world = World::paired(&WorldSpec { link, ..WorldSpec::default() })?;
            let image = world.path("disk.img");
            disk::random(&image, len, 100 + run as u64)?;
            world.job("full", &image)?;
            // As long as our session and with its slow start, since ours counts too.
            let best = iperf_mbit(world.link()?, Duration::from_secs(25), 0)?;
            let session = world.run("full")?;
            let rate = len as f64 * 8.0 / 1e6 / seconds(&session);
            ours.push(rate);
            theirs.push(best);
            shares.push(100.0 * rate / best);
            memory.push(peak(&world, &format!("{mbit} Mbit/s, {rtt} ms, {} % loss", loss * 100.0))?);
        }
        let value = format!(
            "{:.1} % ({:.1} of {:.1} Mbit/s; {shares:.1?})",
            median(&shares),
            median(&ours),
            median(&theirs)
        );
        let what =
            format!("full link: {mbit} Mbit/s, {rtt} ms, {} % loss, disk bytes a second", loss * 100.0);
        let kept = median(&shares) >= SHARE_MIN_PERCENT;
        figures.push(Figure::promised(&what, &limit, value, shares, kept));
        figures.extend(memory.pop());
    }
    Ok(figures)
}
