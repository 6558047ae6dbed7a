//! Bytes: what incompressible data costs beyond itself.

use anyhow::Result;

use super::memory::peak;
use super::{Effort, Figure, crossed};
use crate::disk::{self, MIB};
use crate::world::{World, WorldSpec};

/// Overhead on random data, everything on the wire counted outside.
pub fn incompressible(effort: &Effort) -> Result<Vec<Figure>> {
    let len = 256 * MIB / effort.divide;
    let world = World::paired(&WorldSpec::default())?;
    let image = world.path("disk.img");
    disk::random(&image, len, 3)?;
    world.job("noise", &image)?;
    let before = world.link()?.counters().port(world.port());
    world.run("noise")?;
    let sent = crossed(&world, before)?;
    let overhead = 100.0 * (sent as f64 / len as f64 - 1.0);
    let overhead = Figure::promised(
        "overhead on incompressible data, both ways on the wire",
        "<= 1 %",
        format!("{overhead:.2} %"),
        vec![overhead],
        overhead <= 1.0,
    );
    Ok(vec![overhead, peak(&world, "incompressible data")?])
}
