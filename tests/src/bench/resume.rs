//! Bytes sent again after a link cut.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Effort, Figure, crossed};
use crate::disk::{self, MIB};
use crate::link::{LinkConfig, Mode};
use crate::report::mib;
use crate::world::{World, WorldSpec};

const CUTS: u64 = 10;

/// Ten cuts in one session; what the same session sends without cuts is subtracted.
pub fn resent(effort: &Effort) -> Result<Vec<Figure>> {
    let len = 160 * MIB / effort.divide;
    let spec = WorldSpec { link: LinkConfig::shaped(100.0, 40, 0.0), ..WorldSpec::default() };
    let (clean, _) = transfer(&spec, len, 0)?;
    let (cut, said) = transfer(&spec, len, CUTS)?;
    let each = (cut.saturating_sub(clean)) as f64 / CUTS as f64;
    let limit = 4.0 * MIB as f64;
    let told = said as f64 / CUTS as f64;
    Ok(vec![
        Figure::promised(
            "bytes resent after a link cut, from the link's counters, each",
            "<= 4 MiB",
            format!("{} MiB", mib(each as u64)),
            vec![each],
            each <= limit,
        ),
        Figure::promised(
            "bytes resent after a link cut, as the session says, each",
            "<= 4 MiB",
            format!("{} MiB", mib(told as u64)),
            vec![told],
            told <= limit,
        ),
    ])
}

/// Bytes on the wire upwards and what the session calls resent.
fn transfer(spec: &WorldSpec, len: u64, cuts: u64) -> Result<(u64, u64)> {
    let world = World::paired(spec)?;
    let image = world.path("disk.img");
    disk::random(&image, len, 77)?;
    world.job("cut", &image)?;
    let before = world.link()?.counters().port(world.port());
    world.run_in_background("cut")?;
    for number in 1..=cuts {
        let mark = len * number / (cuts + 1);
        world.link()?.wait_sent(world.port(), before.up_sent, mark, Duration::from_secs(300))?;
        world.link()?.cut(Mode::Reset, Duration::from_millis(700));
    }
    let session = world.wait("cut")?;
    ensure!(cuts == 0 || session.resumed > 0, "the link was cut and the session never resumed");
    let all = crossed(&world, before)?;
    world.prove("cut@latest", &[image.as_path()])?;
    Ok((all, session.bytes.resent))
}
