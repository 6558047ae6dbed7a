//! Several connections where one does not fill the line: a session without BBR on a lossy line, with one
//! connection and with as many as it takes.

use anyhow::{Context, Result};
use vbr_api::Peer;

use super::{Effort, Figure, seconds};
use crate::disk;
use crate::link::LinkConfig;
use crate::report::median;
use crate::world::{World, WorldSpec};

/// Loss of the line of 100 Mbit/s and 80 ms, and what a session's time is, about.
const LINES: [(f64, f64); 2] = [(0.001, 40.0), (0.01, 40.0)];
const GAIN_MIN: f64 = 2.0;
/// Both sites by the system's congestion control, which the world sets to CUBIC.
const SYSTEM: &str = "[wire]\ncongestion = \"system\"\n";
/// A source that never opens a second connection.
const ONE: &str = "[wire]\ncongestion = \"system\"\nconnections = 1\n";

/// A cold run of incompressible data.
pub fn parallel(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (loss, time) in LINES {
        let (mut one, mut several, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..effort.runs {
            let seed = 11 + run as u64;
            let (rate, _) = session(loss, seed, ONE, time / 2.0, effort)?;
            one.push(rate);
            let (rate, count) = session(loss, seed, SYSTEM, time, effort)?;
            several.push(rate);
            links.push(count);
        }
        let gain = median(&several) / median(&one);
        let line = format!("100 Mbit/s, 80 ms, {} % loss, CUBIC", loss * 100.0);
        figures.push(Figure::promised(
            &format!("{line}: several connections against one, disk bytes a second, whole session"),
            &format!(">= {GAIN_MIN} times"),
            format!(
                "{gain:.1} times ({:.1} Mbit/s over {links:?} connections; {:.1} over one)",
                median(&several),
                median(&one)
            ),
            several.clone(),
            gain >= GAIN_MIN,
        ));
        figures.push(Figure::plain(
            &format!("{line}: one connection"),
            format!("{:.1} Mbit/s ({one:.1?})", median(&one)),
            one,
        ));
    }
    Ok(figures)
}

/// Mbit/s of disk bytes, and the most connections that were seen. `time`: what it should take, about.
fn session(loss: f64, seed: u64, source: &str, time: f64, effort: &Effort) -> Result<(f64, u32)> {
    let link = LinkConfig { seed, ..LinkConfig::shaped(100.0, 80, loss) };
    let congestion = Some("cubic");
    let source_toml = source.to_owned();
    let spec =
        WorldSpec { link, congestion, source_toml, target_toml: SYSTEM.into(), ..WorldSpec::default() };
    let world = World::paired(&spec)?;
    let guess = if source == ONE { 8e-3 / loss } else { 40e-3 / loss };
    let len = ((guess.min(60.0) * 1e6 / 8.0 * time) as u64 / effort.divide).next_multiple_of(65_536);
    let image = world.path("disk.img");
    disk::random(&image, len, 200 + seed)?;
    world.job("many", &image)?;
    let mut links = 0;
    world.run_in_background("many")?;
    let session = loop {
        let peer: Peer = world.source.json(&["peer", "show", "dr"])?;
        links = links.max(peer.links);
        let last = world.last_session("many")?.context("no session")?;
        if last.state.is_over() {
            break last;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    };
    world.prove_latest("many", &[&image])?;
    Ok((len as f64 * 8.0 / 1e6 / seconds(&session), links))
}
