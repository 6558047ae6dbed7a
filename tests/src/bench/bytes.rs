//! Bytes: incompressible data, and the image sequence against our own counter.

use std::path::Path;

use anyhow::Result;

use super::memory::peak;
use super::{Effort, Figure, crossed};
use crate::counter::Counter;
use crate::disk::{self, MIB};
use crate::report::{Table, mib};
use crate::workload::{disk_of, images, previous_version};
use crate::world::{World, WorldSpec};

/// Overhead on random data, everything on the wire counted outside.
pub fn incompressible(effort: Effort) -> Result<Vec<Figure>> {
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

/// The images one after another, each the next version of its disk.
pub fn sequence(_effort: Effort) -> Result<Vec<Figure>> {
    let images = images()?;
    let world = World::paired(&WorldSpec { cache_size: "12GiB".into(), ..WorldSpec::default() })?;
    let mut counter = Counter::default();
    let mut table = Table::new(&["image", "read", "changed", "payload", "line", "counter", "seconds"]);
    let (mut payload_sum, mut wire_sum, mut counter_sum) = (0, 0, 0);
    let mut samples = Vec::new();
    for (at, image) in images.iter().enumerate() {
        let disk = disk_of(image);
        let place = world.path(&format!("{disk}.img"));
        put(image, &place)?;
        if previous_version(&images[..at], image).is_none() {
            world.job(&disk, &place)?;
        }
        let before = world.link()?.counters().port(world.port());
        let session = world.run(&disk)?;
        let line = crossed(&world, before)?;
        let count = counter.count(image, previous_version(&images[..at], image))?;
        world.prove(&format!("{disk}@latest"), &[image.as_path()])?;
        samples.push(session.bytes.sent_payload as f64);
        if at > 0 {
            payload_sum += session.bytes.sent_payload;
            wire_sum += line;
            counter_sum += count.counter_bytes;
        }
        table.row(&[
            image.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            mib(session.bytes.read),
            mib(session.bytes.changed),
            mib(session.bytes.sent_payload),
            mib(line),
            mib(count.counter_bytes),
            format!("{:.1}", super::seconds(&session)),
        ]);
    }
    eprintln!("{table}(MiB)");
    let share = payload_sum as f64 / counter_sum as f64;
    Ok(vec![
        Figure::promised(
            "image sequence, steps 2 to 6: payload and recipe",
            "<= 1.02 x our own counter",
            format!("{share:.3} x ({} of {} MiB)", mib(payload_sum), mib(counter_sum)),
            samples,
            share <= 1.02,
        ),
        Figure::plain(
            "image sequence, steps 2 to 6: on the line, both ways, counted outside",
            format!("{} MiB ({:.3} x)", mib(wire_sum), wire_sum as f64 / counter_sum as f64),
            vec![wire_sum as f64],
        ),
        peak(&world, "image sequence")?,
    ])
}

/// The image under the disk's name: a hard link where possible, since nothing writes to it.
fn put(image: &Path, place: &Path) -> Result<()> {
    if place.exists() {
        std::fs::remove_file(place)?;
    }
    if std::fs::hard_link(image, place).is_err() {
        disk::copy(image, place)?;
    }
    Ok(())
}
