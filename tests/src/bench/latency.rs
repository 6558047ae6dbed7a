//! Control beside bulk: how long a heartbeat takes over a full line, there and back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vbr_api::Peer;

use super::{Effort, Figure};
use crate::disk;
use crate::link::LinkConfig;
use crate::report::median;
use crate::world::{World, WorldSpec};

const MBIT: f64 = 20.0;
const RTT_MS: u64 = 80;
const LIMIT_MS: f64 = 300.0;
/// The line is full after this.
const WARM_UP: Duration = Duration::from_secs(4);

/// Heartbeats of both sides during a cold run of incompressible data, and orders that ask the peer.
pub fn latency(effort: &Effort) -> Result<Vec<Figure>> {
    let world =
        World::paired(&WorldSpec { link: LinkConfig::shaped(MBIT, RTT_MS, 0.0), ..WorldSpec::default() })?;
    let (image, tiny) = (world.path("disk.img"), world.path("tiny.img"));
    // Some 40 s of line for each run.
    let time = 40.0 * effort.runs as f64;
    disk::random(&image, (MBIT * 1e6 / 8.0 * time) as u64 / effort.divide, 300)?;
    disk::random(&tiny, 65_536, 301)?;
    world.job("bulk", &image)?;
    world.job("tiny", &tiny)?;
    let idle = order_ms(&world)?;
    world.run_in_background("bulk")?;
    std::thread::sleep(WARM_UP);
    let (mut source, mut target, mut orders) = (Vec::new(), Vec::new(), Vec::new());
    while !world.last_session("bulk")?.context("no session")?.state.is_over() {
        source.push(heartbeat_ms(&world.source, "dr")?);
        target.push(heartbeat_ms(&world.target, "branch")?);
        orders.push(order_ms(&world)?);
        std::thread::sleep(Duration::from_millis(700));
    }
    world.wait("bulk")?;
    ensure!(source.len() >= 5, "the session was too short to measure anything beside it");
    let figure = |whose: &str, samples: Vec<f64>| {
        let value = format!(
            "{:.0} ms, p95 {:.0}, longest {:.0} ({} samples)",
            median(&samples),
            percentile(&samples, 0.95),
            percentile(&samples, 1.0),
            samples.len()
        );
        let kept = median(&samples) <= LIMIT_MS;
        let what =
            format!("control under bulk, {MBIT} Mbit/s, {RTT_MS} ms: heartbeats of the {whose}, median");
        Figure::promised(&what, &format!("<= {LIMIT_MS} ms"), value, samples, kept)
    };
    let words = format!(
        "{:.0} ms, p95 {:.0} ({idle:.0} on the idle line)",
        median(&orders),
        percentile(&orders, 0.95)
    );
    Ok(vec![
        figure("source", source),
        figure("target", target),
        Figure::plain(
            "`job plan` of a small disk beside bulk: two round trips and a snapshot",
            words,
            orders,
        ),
    ])
}

fn heartbeat_ms(site: &crate::site::Site, peer: &str) -> Result<f64> {
    let peer: Peer = site.json(&["peer", "show", peer])?;
    Ok(peer.control_rtt_ms.context("no heartbeat came back yet")? as f64)
}

fn order_ms(world: &World) -> Result<f64> {
    let started = std::time::Instant::now();
    world.source.ok(&["job", "plan", "tiny", "-o", "json"])?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

fn percentile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&samples, 0.95), percentile(&samples, 1.0)), (95.0, 100.0));
        assert_eq!((percentile(&[7.0], 0.95), percentile(&[], 0.95)), (7.0, 0.0));
    }
}
