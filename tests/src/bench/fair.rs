//! Fair shares: equal sessions at once over one line.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Effort, Figure};
use crate::disk::{self, MIB};
use crate::link::LinkConfig;
use crate::world::{SESSION, World, WorldSpec};

const SESSIONS: u64 = 4;
const SPREAD_MAX: f64 = 2.0;

/// Four sessions of as many incompressible bytes, started together: who has sent how much when the first
/// of them is half through, and when it is done.
pub fn fair(effort: &Effort) -> Result<Vec<Figure>> {
    let spec = WorldSpec { link: LinkConfig::shaped(20.0, 80, 0.0), ..WorldSpec::default() };
    let world = World::paired(&spec)?;
    let len = 16 * MIB / effort.divide;
    let names: Vec<String> = (1..=SESSIONS).map(|number| format!("vm{number}")).collect();
    for (seed, name) in names.iter().enumerate() {
        let image = world.path(&format!("{name}.img"));
        disk::random(&image, len, 500 + seed as u64)?;
        world.job(name, &image)?;
    }
    for name in &names {
        world.run_in_background(name)?;
    }
    let end = Instant::now() + SESSION;
    let mut half: Option<Vec<f64>> = None;
    let sent = loop {
        let mut sessions = Vec::new();
        for name in &names {
            sessions.push(world.last_session(name)?.context("no session")?);
        }
        let sent: Vec<f64> = sessions.iter().map(|session| session.bytes.sent_wire as f64).collect();
        if half.is_none() && sent.iter().any(|bytes| *bytes >= len as f64 / 2.0) {
            half = Some(sent.clone());
        }
        if sessions.iter().any(|session| session.state.is_over()) {
            break sent;
        }
        ensure!(Instant::now() < end, "none of the sessions ended");
        std::thread::sleep(Duration::from_millis(100));
    };
    for name in &names {
        world.wait(name)?;
    }
    let half = half.context("the sessions were too short to be looked at half-way")?;
    Ok(vec![figure("half through", half), figure("done", sent)])
}

fn figure(when: &str, sent: Vec<f64>) -> Figure {
    let most = sent.iter().copied().fold(0.0, f64::max);
    let least = sent.iter().copied().fold(f64::INFINITY, f64::min);
    let spread = most / least.max(1.0);
    let mib: Vec<String> = sent.iter().map(|bytes| format!("{:.1}", bytes / MIB as f64)).collect();
    Figure::promised(
        &format!(
            "fair shares: four equal sessions, 20 Mbit/s: most against least sent when the first is {when}"
        ),
        &format!("<= {SPREAD_MAX} times"),
        format!("{spread:.2} times ({} MiB)", mib.join(", ")),
        sent,
        spread <= SPREAD_MAX,
    )
}
