//! Wire accounting: what vbr says it sent, against what the line's own counters saw.

use std::time::Duration;

use anyhow::Result;
use vbr_api::Peer;

use super::{Effort, Figure};
use crate::disk;
use crate::link::LinkConfig;
use crate::site::Site;
use crate::world::{World, WorldSpec};

const LIMIT_PERCENT: f64 = 1.0;
/// Name, loss, congestion control of both sites.
const LINES: [(&str, f64, bool); 3] = [
    ("no loss, BBR", 0.0, true),
    ("1 % loss, BBR", 0.01, true),
    ("1 % loss, CUBIC, several connections", 0.01, false),
];

/// From the first packet of the pairing to the end of a cold run: everything counts, both ways.
pub fn accounting(effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, loss, bbr) in LINES {
        let toml = if bbr { String::new() } else { "[wire]\ncongestion = \"system\"\n".to_owned() };
        let world = World::paired(&WorldSpec {
            link: LinkConfig::shaped(100.0, 40, loss),
            congestion: (!bbr).then_some("cubic"),
            source_toml: toml.clone(),
            target_toml: toml,
            ..WorldSpec::default()
        })?;
        let image = world.path("disk.img");
        disk::random(&image, (48 << 20) / effort.divide, 400)?;
        world.job("noise", &image)?;
        let session = world.run("noise")?;
        // The last acknowledgements and retransmits.
        std::thread::sleep(Duration::from_millis(700));
        let (up, down) = (said(&world.source, "dr")?, said(&world.target, "branch")?);
        let line = world.link()?.counters().port(world.port());
        let all = off(up + down, line.up_sent + line.down_sent);
        let words =
            format!("{all:+.2} % ({up} + {down} said, {} + {} crossed)", line.up_sent, line.down_sent);
        let what = format!("wire accounting, {name}: what both peers say they sent, against the line");
        let limit = format!("<= {LIMIT_PERCENT} % off");
        figures.push(Figure::promised(&what, &limit, words, vec![all], all.abs() <= LIMIT_PERCENT));
        let own = off(session.bytes.sent_wire, line.up_sent);
        let words = format!("{own:+.2} % ({} said)", session.bytes.sent_wire);
        let what = format!("wire accounting, {name}: what the session says it sent, against the line");
        figures.push(Figure::promised(&what, &limit, words, vec![own], own.abs() <= LIMIT_PERCENT));
    }
    Ok(figures)
}

fn said(site: &Site, peer: &str) -> Result<u64> {
    Ok(site.json::<Peer>(&["peer", "show", peer])?.sent_wire)
}

fn off(said: u64, crossed: u64) -> f64 {
    100.0 * (said as f64 / crossed as f64 - 1.0)
}
