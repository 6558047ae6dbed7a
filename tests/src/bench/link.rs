//! A full link: how much of what iperf3 with BBR gets, on the same link in the same run.
//!
//! Twice: over the whole session, its start and its seal included, and while unseen data remains, which is
//! what is promised: from a tenth of the payload to nine tenths of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vbr_api::Session;

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
/// Between two looks at a session.
const LOOK: Duration = Duration::from_millis(100);

/// A cold run of incompressible data.
pub fn full_link(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let limit = format!(">= {SHARE_MIN_PERCENT} % of iperf3 BBR");
    for (mbit, rtt, loss) in LINES {
        let (mut ours, mut theirs, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        let (mut steady, mut steady_shares) = (Vec::new(), Vec::new());
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
            let best_steady = iperf_mbit(world.link()?, Duration::from_secs(20), 3)?;
            let (session, payload) = watched(&world, len)?;
            steady.push(payload);
            steady_shares.push(100.0 * payload / best_steady);
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
            |which: &str| format!("full link: {mbit} Mbit/s, {rtt} ms, {} % loss, {which}", loss * 100.0);
        figures.push(Figure::plain(&what("disk bytes a second of the whole session"), value, shares));
        let share = median(&steady_shares);
        let value = format!("{share:.1} % ({:.1} Mbit/s; {steady_shares:.1?})", median(&steady));
        let (what, kept) = (what("payload while unseen data remains"), share >= SHARE_MIN_PERCENT);
        figures.push(Figure::promised(&what, &limit, value, steady_shares, kept));
        figures.extend(memory.pop());
    }
    Ok(figures)
}

/// Runs the job; its payload in Mbit/s between a tenth and nine tenths of `len`.
fn watched(world: &World, len: u64) -> Result<(Session, f64)> {
    world.run_in_background("full")?;
    // When the first and the last byte count between the marks were seen to change.
    let (mut seen, mut first, mut last) = (0, None, None);
    loop {
        let session = world.last_session("full")?.context("the job was run and has no session")?;
        let sent = session.bytes.sent_payload;
        if sent > seen && (len / 10..=len / 10 * 9).contains(&sent) {
            first.get_or_insert((Instant::now(), sent));
            last = Some((Instant::now(), sent));
        }
        seen = seen.max(sent);
        if session.state.is_over() {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let ((from, before), (to, after)) = first.zip(last).context("the session was over at once")?;
    let rate = (after - before) as f64 * 8.0 / 1e6 / (to - from).as_secs_f64();
    Ok((world.wait("full")?, rate))
}
